//! Checkpoints: all state of a training run as one safetensors file.
//!
//! Tensors are the state slots of the step (parameters, running statistics, the optimiser's memory, the loss scale) by
//! their names; metadata hold the configuration, how far the run is, and a hash of everything. A file appears under its
//! name only when it is complete, and one that is not what was written is refused.

use super::config::Config;
use crate::error::{Error, Result};
use cupola_ir::Tensor;
use cupola_safetensors::{SafeTensors, TensorToWrite, write};
use cupola_source::{ContentHash, WholeFile};
use cupola_train::PlateauMemory;
use cupola_train::data::{Position, Vocabulary};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// What the file is, in its metadata.
const FORMAT: &str = "cupola checkpoint 1";

/// Begin of the names of checkpoints by step.
const STEM: &str = "step-";

/// Name of the checkpoint that did best in validation.
pub const BEST: &str = "best.safetensors";

/// How far a run is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done, those without an update too.
    pub step: u64,
    /// Updates done.
    pub updates: u64,
    /// Runs of the program: the counter of its random numbers.
    pub runs: u64,
    /// The next batch.
    #[serde(with = "position")]
    pub at: Position,
    /// The best validation so far.
    #[serde(with = "exact_option")]
    pub best: Option<f64>,
    /// Validations since then.
    pub bad: u64,
    /// Base of the learning rate, which a plateau lowers.
    #[serde(with = "exact")]
    pub rate: f64,
    /// The best that a plateau has seen.
    #[serde(with = "exact_option")]
    plateau_best: Option<f64>,
    /// Its checks since then, and those it lets pass.
    plateau_counts: (u64, u64),
}

/// Numbers by their bits: JSON's digits are not read exactly.
mod exact {
    use super::{Deserialize, Serialize};

    pub fn serialize<S: serde::Serializer>(x: &f64, to: S) -> Result<S::Ok, S::Error> {
        x.to_bits().serialize(to)
    }

    pub fn deserialize<'a, D: serde::Deserializer<'a>>(from: D) -> Result<f64, D::Error> {
        Ok(f64::from_bits(Deserialize::deserialize(from)?))
    }
}

/// [`exact`], if there is a number.
mod exact_option {
    use super::{Deserialize, Serialize};

    pub fn serialize<S: serde::Serializer>(x: &Option<f64>, to: S) -> Result<S::Ok, S::Error> {
        x.map(f64::to_bits).serialize(to)
    }

    pub fn deserialize<'a, D: serde::Deserializer<'a>>(from: D) -> Result<Option<f64>, D::Error> {
        let bits: Option<u64> = Deserialize::deserialize(from)?;
        Ok(bits.map(f64::from_bits))
    }
}

/// [`Position`] as two numbers.
mod position {
    use super::{Deserialize, Position, Serialize};

    pub fn serialize<S: serde::Serializer>(at: &Position, to: S) -> Result<S::Ok, S::Error> {
        (at.epoch, at.batch).serialize(to)
    }

    pub fn deserialize<'a, D: serde::Deserializer<'a>>(from: D) -> Result<Position, D::Error> {
        let (epoch, batch) = Deserialize::deserialize(from)?;
        Ok(Position { epoch, batch })
    }
}

impl Progress {
    /// Nothing done, with this base of the learning rate.
    pub fn new(rate: f64) -> Progress {
        Progress {
            rate,
            ..Progress::default()
        }
    }

    /// What a plateau has seen.
    pub fn plateau(&self) -> PlateauMemory {
        let (bad, cooling) = self.plateau_counts;
        PlateauMemory {
            best: self.plateau_best,
            bad,
            cooling,
        }
    }

    /// Notes what a plateau has seen.
    pub fn set_plateau(&mut self, memory: PlateauMemory) {
        self.plateau_best = memory.best;
        self.plateau_counts = (memory.bad, memory.cooling);
    }
}

/// A checkpoint in memory.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The run's configuration.
    pub config: Config,
    /// How far it is.
    pub progress: Progress,
    /// Names of the classes by number.
    pub classes: Vec<String>,
    /// What tokens stand for.
    pub vocabulary: Option<Vocabulary>,
    /// All state slots.
    pub slots: BTreeMap<String, Tensor>,
}

/// A hash of everything in a file: texts, and every slot by name, type and bytes.
fn content(texts: &[(&str, &str)], slots: &BTreeMap<String, Tensor>) -> String {
    let mut all = String::new();
    for (key, text) in texts {
        all.push_str(&format!("{key} {};", ContentHash::of(text.as_bytes())));
    }
    for (name, t) in slots {
        let hash = ContentHash::of(t.bytes());
        all.push_str(&format!("{name} {} {:?} {hash};", t.dtype(), t.shape()));
    }
    ContentHash::of(all.as_bytes()).to_string()
}

impl Checkpoint {
    /// Writes a file, complete or not at all.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let written = WholeFile::create(path).and_then(|mut file| {
            self.write_to(&mut file)?;
            // The file may replace the only one of a long run.
            file.finish_durably()
        });
        written.map_err(|e| Error::Write(path.to_owned(), e.to_string()))
    }

    fn write_to(&self, to: &mut impl io::Write) -> io::Result<()> {
        let texts = [
            ("format", FORMAT.to_string()),
            ("config", self.config.to_json()),
            ("progress", json(&self.progress)),
            ("classes", json(&self.classes)),
            ("vocabulary", json(&self.vocabulary)),
        ];
        let mut texts: Vec<(&str, &str)> = texts.iter().map(|(k, t)| (*k, t.as_str())).collect();
        let hash = content(&texts, &self.slots);
        texts.push(("content", &hash));
        let tensors: Vec<TensorToWrite> = (self.slots.iter())
            .map(|(name, t)| TensorToWrite::new(name, t))
            .collect();
        write(to, &tensors, &texts)
    }

    /// Reads a file, or the last of a folder of them.
    ///
    /// # Errors
    /// A file that is not there, is cut off or damaged, or is no checkpoint of this release.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        let newest;
        let path = match path.is_dir() {
            true => {
                newest = last(path).ok_or_else(|| {
                    let what = format!("{}: no checkpoints in this folder", path.display());
                    Error::Missing(what)
                })?;
                &newest
            }
            false if !path.exists() => {
                let what = format!("{} does not exist", path.display());
                return Err(Error::Missing(what));
            }
            false => path,
        };
        let refused = |what: String| Error::Checkpoint(format!("{}: {what}", path.display()));
        let file = SafeTensors::open(path).map_err(|e| refused(e.to_string()))?;
        let stated = |key: &str| {
            let found = file.metadata().iter().find(|(k, _)| k == key);
            found.map_or("", |(_, value)| value.as_str())
        };
        if stated("format") != FORMAT {
            return Err(refused("no checkpoint of this release".into()));
        }
        let mut slots = BTreeMap::new();
        for t in file.tensors() {
            let tensor = Tensor::new(t.dtype, t.dims.clone(), t.data.clone());
            let tensor =
                tensor.ok_or_else(|| refused(format!("tensor '{}' is cut off", t.name)))?;
            slots.insert(t.name.clone(), tensor);
        }
        let keys = ["format", "config", "progress", "classes", "vocabulary"];
        if content(&keys.map(|k| (k, stated(k))), &slots) != stated("content") {
            return Err(refused(
                "damaged: its contents are not those that were written".into(),
            ));
        }
        let wrong = |e: serde_json::Error| refused(e.to_string());
        let vocabulary = match stated("vocabulary") {
            "null" => None,
            text => Some(Vocabulary::from_json(text).map_err(refused)?),
        };
        Ok(Checkpoint {
            config: Config::from_json(stated("config"))?,
            progress: serde_json::from_str(stated("progress")).map_err(wrong)?,
            classes: serde_json::from_str(stated("classes")).map_err(wrong)?,
            vocabulary,
            slots,
        })
    }
}

/// A value as JSON text.
fn json(value: &impl Serialize) -> String {
    // Numbers, strings and lists can always be written.
    serde_json::to_string(value).unwrap_or_default()
}

/// Whether a safetensors file says that it is a checkpoint.
pub fn is_checkpoint(path: &Path) -> bool {
    SafeTensors::open(path).is_ok_and(|file| {
        let mut all = file.metadata().iter();
        all.any(|(key, value)| key == "format" && value == FORMAT)
    })
}

/// The name of the checkpoint of a step.
pub fn name_of(step: u64) -> String {
    format!("{STEM}{step:08}.safetensors")
}

/// Checkpoints by step in a folder, oldest first.
pub fn all(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return vec![];
    };
    let is_one = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = name
            .strip_prefix(STEM)
            .and_then(|n| n.strip_suffix(".safetensors"));
        number.is_some_and(|n| n.parse::<u64>().is_ok())
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(is_one).collect();
    paths.sort();
    paths
}

/// The last checkpoint in a folder.
pub fn last(folder: &Path) -> Option<PathBuf> {
    all(folder).pop()
}

/// Removes all but the last `keep` checkpoints of a folder.
pub fn thin(folder: &Path, keep: usize) {
    let paths = all(folder);
    for path in &paths[..paths.len().saturating_sub(keep.max(1))] {
        // One that cannot be removed only takes room.
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Checkpoint {
        let mut slots = BTreeMap::new();
        slots.insert("fc.weight".into(), Tensor::vector(&[1.0f32, -2.0]));
        slots.insert("optimiser.step".into(), Tensor::scalar(3i32));
        Checkpoint {
            config: Config::default(),
            progress: Progress {
                step: 3,
                at: Position { epoch: 1, batch: 2 },
                best: Some(0.1 + 0.2),
                ..Progress::default()
            },
            classes: vec!["a".into()],
            vocabulary: None,
            slots,
        }
    }

    #[test]
    fn checkpoints_are_read_as_they_were_written_and_damage_is_found() {
        let folder = std::env::temp_dir().join(format!("cupola-ckpt-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join(name_of(3));
        let checkpoint = sample();
        checkpoint.write(&path).expect("a file");
        let read = Checkpoint::open(&folder).expect("the last one");
        assert_eq!(read.slots, checkpoint.slots);
        assert_eq!(read.progress, checkpoint.progress);
        let bytes = std::fs::read(&path).expect("bytes");
        let mut changed = bytes.clone();
        *changed.last_mut().expect("data") ^= 1;
        std::fs::write(&path, &changed).expect("a file");
        let error = Checkpoint::open(&path)
            .expect_err("a changed bit")
            .to_string();
        assert!(error.contains("damaged"), "{error}");
        for len in [0, 7, 100, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..len]).expect("a file");
            assert!(Checkpoint::open(&path).is_err(), "{len}");
        }
        for step in 4..8 {
            checkpoint
                .write(&folder.join(name_of(step)))
                .expect("a file");
        }
        thin(&folder, 2);
        assert_eq!(all(&folder), [6, 7].map(|s| folder.join(name_of(s))));
        let _ = std::fs::remove_dir_all(&folder);
    }
}
