//! What a training run is: the configuration file, and the same from the command line.

use super::recipe;
use crate::error::{Error, Result};
use cupola_train::Net;
use cupola_train::data::{Side, Units};
use cupola_train::metrics::Metric;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A training run. docs/training.md describes every key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Name of the model and of the files that are written; that of the configuration file by itself.
    pub name: String,
    /// Decides first weights, order of samples, dropout.
    pub seed: u64,
    /// Passes over the data.
    pub epochs: Option<u64>,
    /// Optimiser steps; with `epochs`, whichever ends first.
    pub steps: Option<u64>,
    /// Samples of a step.
    pub batch: usize,
    /// Another order in every epoch.
    pub shuffle: bool,
    /// Leave out what does not fill a batch at the end of an epoch.
    pub drop_last: bool,
    /// What is made small, as in `ce:smoothing=0.1`.
    pub loss: String,
    /// How, as in `adam:lr=1e-3`.
    pub optim: String,
    /// How the learning rate changes, as in `cosine:warmup=100`.
    pub schedule: String,
    /// Most norm of all gradients together.
    pub clip_norm: Option<f64>,
    /// Most magnitude of a gradient's element.
    pub clip_value: Option<f64>,
    /// Low type of mixed precision.
    pub amp: Option<Amp>,
    /// Compute in f64 throughout.
    pub double: bool,
    /// Programs of this process that compute a batch together; one by itself.
    pub replicas: Option<usize>,
    /// Parts that a batch is cut into; as many as there are replicas by itself. Results depend on it, not on the replicas.
    pub shards: Option<usize>,
    /// Batch norm takes its statistics over all shards.
    pub sync_batch_norm: bool,
    /// What evaluations report beside the loss.
    pub metrics: Vec<String>,
    /// What is trained.
    pub model: ModelConfig,
    /// What it is trained on.
    pub data: DataConfig,
    /// When it is looked at.
    pub validation: ValidationConfig,
    /// When it is saved.
    pub checkpoint: CheckpointConfig,
    /// Files that the trained model is written to: `.onnx`, `.safetensors`, `.cupola`.
    pub export: Vec<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            name: String::new(),
            seed: 0,
            epochs: None,
            steps: None,
            batch: 32,
            shuffle: true,
            drop_last: false,
            loss: String::new(),
            optim: String::new(),
            schedule: "constant".into(),
            clip_norm: None,
            clip_value: None,
            amp: None,
            double: false,
            replicas: None,
            shards: None,
            sync_batch_norm: false,
            metrics: vec![],
            model: ModelConfig::default(),
            data: DataConfig::default(),
            validation: ValidationConfig::default(),
            checkpoint: CheckpointConfig::default(),
            export: vec![],
        }
    }
}

/// Low type of mixed precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Amp {
    /// bf16, without loss scaling.
    Bf16,
    /// f16, with loss scaling.
    F16,
}

/// A model: layers, or a file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// Layers one after the other, as in `linear:128`.
    pub layers: Vec<String>,
    /// A model file that is trained further, instead.
    pub file: Option<PathBuf>,
    /// Which of its outputs the loss is taken of; the first by itself.
    pub output: Option<String>,
    /// Extents of one input sample; those of the data by itself.
    pub input: Vec<usize>,
    /// Parameters whose names begin like this are not trained.
    pub freeze: Vec<String>,
    /// First weights by name, from a safetensors file or checkpoint.
    pub weights: Option<PathBuf>,
}

/// Form of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Pixels and class on every line.
    DigitsCsv,
    /// A folder with a file `0.json` for every class.
    DigitsJson,
    /// Pictures and classes in two IDX files.
    Idx,
    /// A folder with a folder of pictures for every class.
    Images,
    /// Two NumPy files.
    Npy,
    /// Numbers and a target on every line.
    Table,
    /// Class and text on every line.
    Classes,
    /// Text to be continued.
    Text,
}

/// Data: files, their form, and how samples are made of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// Files or folders to train on; relative to the configuration file.
    pub files: Vec<PathBuf>,
    /// Files to validate by.
    pub validation_files: Vec<PathBuf>,
    /// Files to test with.
    pub test_files: Vec<PathBuf>,
    /// Form of the files; by itself told by names and contents.
    pub kind: Option<Kind>,
    /// Share of `files` held out for validation.
    pub validation: f64,
    /// Share of `files` held out for tests.
    pub test: f64,
    /// Decides which samples are held out.
    pub split_seed: u64,
    /// Hold out the end of the data instead of drawing.
    pub split_end: Option<bool>,
    /// Drop samples with an input that is there already.
    pub unique: bool,
    /// Tables: columns to be said (names, or numbers from 1).
    pub target: Vec<String>,
    /// Tables: columns left out.
    pub ignore: Vec<String>,
    /// Tables: the target is a class.
    pub class_target: bool,
    /// Tables: between fields.
    pub separator: Option<char>,
    /// Tables: bring every column to mean 0 and deviation 1, by the training samples.
    pub standardise: bool,
    /// Digits in CSV: the class comes first.
    pub label_first: bool,
    /// Images and digits: channels, height, width.
    pub image: Vec<usize>,
    /// Texts: what a token is.
    pub units: Option<Units>,
    /// Texts: a model or `tokenizer.json` whose tokens are used.
    pub tokenizer: Option<PathBuf>,
    /// Texts: make all letters small.
    pub lowercase: bool,
    /// Texts: most kinds of tokens.
    pub vocabulary: Option<usize>,
    /// Text: tokens of a sample. Classes: most tokens of one.
    pub length: Option<usize>,
    /// Text: from the begin of a sample to that of the next.
    pub stride: Option<usize>,
    /// Classes: which side is padded.
    pub pad: Side,
    /// Classes: pad to `length`, not to the longest of the batch.
    pub pad_to_length: bool,
    /// Tab-separated files: the column of the text.
    pub text_column: Option<String>,
    /// Tab-separated files: the column of the class.
    pub class_column: Option<String>,
}

/// When the model is validated, and when that ends training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ValidationConfig {
    /// Steps between validations; by itself at the end of each epoch.
    pub every: Option<u64>,
    /// Samples of a batch; those of training by itself.
    pub batch: Option<usize>,
    /// What tells the best: `loss` by itself, or one of `metrics`.
    pub watch: Option<String>,
    /// Stop after this many validations without improvement.
    pub patience: Option<u64>,
    /// Least improvement that counts.
    pub least: f64,
}

/// When checkpoints are written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Folder; `checkpoints/NAME` beside the configuration by itself.
    pub folder: Option<PathBuf>,
    /// Steps between checkpoints; by itself at the end of each epoch.
    pub every: Option<u64>,
    /// How many of the last stay.
    pub keep: usize,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        CheckpointConfig {
            folder: None,
            every: None,
            keep: 3,
        }
    }
}

/// What is wrong with a configuration, as an error.
pub(crate) fn wrong(what: impl Into<String>) -> Error {
    Error::Config(what.into())
}

impl Config {
    /// Reads a TOML file; paths in it are relative to its folder.
    ///
    /// # Errors
    /// A file that cannot be read, is no TOML, has unknown keys or values that cannot be meant: with file and line where
    /// there is one.
    pub fn open(path: &Path) -> Result<Config> {
        let text = std::fs::read_to_string(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::InvalidData => wrong(format!("{}: not text", path.display())),
            _ => Error::Missing(format!("cannot read {}: {e}", path.display())),
        })?;
        let mut config = Config::parse(&text)
            .map_err(|e| wrong(format!("{}{}", path.display(), in_file(&e.to_string()))))?;
        if config.name.is_empty() {
            let stem = path.file_stem().unwrap_or_default();
            config.name = stem.to_string_lossy().into_owned();
        }
        config.place(path.parent().unwrap_or(Path::new("")));
        Ok(config)
    }

    /// Reads TOML text.
    ///
    /// # Errors
    /// As [`Config::open`].
    pub fn parse(text: &str) -> Result<Config> {
        let config: Config = toml::from_str(text).map_err(|e| {
            let line = e.span().map(|span| {
                let before = text.as_bytes().iter().take(span.start);
                before.filter(|b| **b == b'\n').count() + 1
            });
            let place = line.map_or(String::new(), |line| format!("line {line}: "));
            wrong(format!("{place}{}", e.message().replace('\n', ", ")))
        })?;
        Ok(config)
    }

    /// Makes relative paths begin at a folder, and all paths absolute.
    pub fn place(&mut self, folder: &Path) {
        let data = &mut self.data;
        let lists = [
            &mut data.files,
            &mut data.validation_files,
            &mut data.test_files,
            &mut self.export,
        ];
        let single = [
            &mut data.tokenizer,
            &mut self.model.file,
            &mut self.model.weights,
            &mut self.checkpoint.folder,
        ];
        let each = lists.into_iter().flatten();
        for path in each.chain(single.into_iter().flatten()) {
            *path = absolute(&folder.join(&*path));
        }
        if self.checkpoint.folder.is_none() {
            let folder = folder.join("checkpoints").join(&self.name);
            self.checkpoint.folder = Some(absolute(&folder));
        }
    }

    /// Refuses values that cannot be meant.
    ///
    /// # Errors
    /// The first of them.
    pub fn check(&self) -> Result<()> {
        let need = |is_there: bool, what: &str| match is_there {
            true => Ok(()),
            false => Err(wrong(what)),
        };
        need(
            !self.loss.is_empty(),
            "loss is missing, as in loss = \"ce\"",
        )?;
        need(
            !self.optim.is_empty(),
            "optim is missing, as in optim = \"adam:lr=1e-3\"",
        )?;
        need(self.batch > 0, "batch is 0")?;
        need(!self.data.files.is_empty(), "data.files is missing")?;
        need(
            self.epochs.is_some() || self.steps.is_some(),
            "epochs or steps is missing",
        )?;
        need(
            self.model.layers.is_empty() != self.model.file.is_none(),
            "model needs either layers or file",
        )?;
        need(
            self.validation.every != Some(0) && self.checkpoint.every != Some(0),
            "every is 0, where a number of steps is to stand",
        )?;
        need(
            self.clip_norm.is_none() || self.clip_value.is_none(),
            "clip_norm and clip_value exclude each other",
        )?;
        need(
            self.replicas.is_none_or(usize::is_power_of_two)
                && self.shards.is_none_or(usize::is_power_of_two),
            "replicas and shards must be powers of two",
        )?;
        need(
            !self.double || self.amp.is_none(),
            "double and amp exclude each other",
        )?;
        need(
            !self.double || self.model.file.is_none(),
            "double is of models of layers; those of a file have its types",
        )?;
        self.check_settings()?;
        self.metrics()?;
        let watched = self.validation.watch.as_deref().unwrap_or("loss");
        need(
            watched == "loss" || self.metrics.iter().any(|m| m == watched),
            "validation.watch is neither loss nor one of metrics",
        )?;
        recipe::Loss::parse(&self.loss)?;
        recipe::optimiser(&self.optim)?;
        Ok(())
    }

    /// Refuses settings that mean nothing.
    fn check_settings(&self) -> Result<()> {
        let need = |is_there: bool, what: &str| match is_there {
            true => Ok(()),
            false => Err(wrong(what)),
        };
        let data = &self.data;
        for (what, number) in [
            ("data.length", data.length),
            ("data.stride", data.stride),
            ("validation.batch", self.validation.batch),
            ("checkpoint.keep", Some(self.checkpoint.keep)),
        ] {
            need(number != Some(0), &format!("{what} is 0"))?;
        }
        need(
            data.vocabulary.is_none_or(|most| most > 2),
            "data.vocabulary leaves no token beside those that fill and that stand for others; 3 are the least",
        )?;
        need(
            self.model.output.is_none() || self.model.file.is_some(),
            "model.output is of a model.file; what layers give is the last one's",
        )?;
        let mut parts = Path::new(&self.name).components();
        let is_name = matches!(
            (parts.next(), parts.next()),
            (None | Some(std::path::Component::Normal(_)), None)
        );
        need(
            is_name,
            "name is that of a folder, without others before it",
        )
    }

    /// An empty model of this name and type.
    pub fn net(&self) -> Net {
        let net = Net::new(&self.name);
        if self.double { net.double() } else { net }
    }

    /// The metrics that are asked for.
    ///
    /// # Errors
    /// An unknown name.
    pub fn metrics(&self) -> Result<Vec<Metric>> {
        let metric = |name: &String| {
            Metric::named(name).ok_or_else(|| {
                let known: Vec<&str> = Metric::ALL.iter().map(|m| m.name()).collect();
                let known = known.join(", ");
                wrong(format!("metric '{name}' is none of {known}"))
            })
        };
        self.metrics.iter().map(metric).collect()
    }

    /// As JSON, for checkpoints.
    pub fn to_json(&self) -> String {
        // Strings, numbers and lists can always be written.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads [`Config::to_json`].
    ///
    /// # Errors
    /// A text that is not one.
    pub fn from_json(text: &str) -> Result<Config> {
        serde_json::from_str(text).map_err(|e| wrong(format!("configuration of a checkpoint: {e}")))
    }
}

/// The path from the root; as it is where the process has no folder.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// `, line 3: what` or `: what`.
fn in_file(what: &str) -> String {
    match what.starts_with("line ") {
        true => format!(", {what}"),
        false => format!(": {what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "loss = \"mse\"\noptim = \"sgd:lr=0.1\"\nepochs = 2\n[data]\nfiles = [\"a.csv\"]\n[model]\nlayers = [\"linear:1\"]\n";

    #[test]
    fn configurations_are_read_and_written() {
        let mut config = Config::parse(SMALL).expect("a configuration");
        config.check().expect("complete");
        config.name = "small".into();
        config.place(Path::new("here"));
        assert!(config.data.files[0].ends_with("here/a.csv"));
        assert!(config.data.files[0].is_absolute());
        let folder = config.checkpoint.folder.as_deref();
        assert!(folder.is_some_and(|f| f.ends_with("here/checkpoints/small")));
        let again = Config::from_json(&config.to_json()).expect("what was written");
        assert_eq!(again, config);
    }

    #[test]
    fn mistakes_are_named_with_their_lines() {
        let error = |text: String| {
            let parsed = Config::parse(&text).and_then(|c| c.check());
            parsed.expect_err(&text).to_string()
        };
        let e = error(SMALL.replace("epochs", "epoch"));
        assert!(e.starts_with("line 3: unknown field `epoch`"), "{e}");
        let e = error(SMALL.replace("[data]", "[data]\nkind = \"jpeg\""));
        assert!(e.starts_with("line 5: unknown variant `jpeg`"), "{e}");
        let e = error(SMALL.replace("epochs = 2", "epochs = two"));
        assert!(e.starts_with("line 3: "), "{e}");
        let e = error(SMALL.replace("epochs = 2", ""));
        assert_eq!(e, "epochs or steps is missing");
        let e = error(SMALL.replace("layers = [\"linear:1\"]", ""));
        assert_eq!(e, "model needs either layers or file");
        let e = error(SMALL.replace("epochs", "metrics = [\"taste\"]\nepochs"));
        assert!(e.starts_with("metric 'taste' is none of accuracy"), "{e}");
    }
}
