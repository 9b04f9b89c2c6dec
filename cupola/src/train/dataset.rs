//! The samples that a configuration names: read, joined, split.

use super::checkpoint::Checkpoint;
use super::config::{Config, DataConfig, Kind, wrong};
use crate::error::{Error, Result};
use crate::model::Model;
use cupola_train::data::{
    self, ArrayFiles, ClassColumns, Column, CorpusOptions, DataError, Dataset, Padding, Part,
    Readers, Splits, TableColumns, Units, Words,
};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Pixels of a digit where nothing else is said: 28 by 28.
const DIGIT: usize = 784;

/// Extents of a picture where nothing else is said.
const PICTURE: [usize; 3] = [3, 32, 32];

/// What to train on, to validate by and to test with; the last two may be empty.
#[derive(Clone, Debug)]
pub struct Parts {
    /// To train on.
    pub train: Part,
    /// To validate by.
    pub validation: Part,
    /// To test with.
    pub test: Part,
}

impl Parts {
    /// Reads the data of a configuration.
    ///
    /// # Errors
    /// [`Error::Missing`] for files that are not there, [`Error::Data`] for those that are not what they should be.
    pub fn open(config: &Config, readers: &Readers) -> Result<Parts> {
        let settings = &with_extents(config)?;
        let mut whole = read(settings, &settings.files, None, readers)?;
        if settings.class_target && whole.classes.is_empty() {
            return Err(wrong("data.class_target is for tables"));
        }
        let others = [&settings.validation_files, &settings.test_files];
        let others = others.map(|files| match files.is_empty() {
            true => Ok(None),
            false => read(settings, files, Some(&whole), readers).map(Some),
        });
        let [validation, test] = others;
        let (validation, test) = (validation?, test?);
        let is_text = matches!(whole.column("y"), Some(Column::Windows { .. }));
        let splits = Splits {
            validation: settings.validation,
            test: settings.test,
            seed: settings.split_seed,
            unique: settings.unique,
            from_end: settings.split_end.unwrap_or(is_text),
        };
        if settings.standardise {
            if validation.is_some() || test.is_some() {
                let what =
                    "data.standardise is for shares of data.files, not for files of their own";
                return Err(wrong(what));
            }
            let [train, ..] = splits.deal(whole.clone())?;
            whole.standardise(&train.rows);
        }
        let [train, held, tested] = splits.deal(whole)?;
        Ok(Parts {
            train,
            validation: validation.map_or(held, Part::whole),
            test: test.map_or(tested, Part::whole),
        })
    }
}

impl Parts {
    /// Other samples for the model of a checkpoint, in its vocabulary and classes.
    ///
    /// # Errors
    /// As [`Parts::open`].
    pub fn open_others(
        checkpoint: &Checkpoint,
        files: &[PathBuf],
        readers: &Readers,
    ) -> Result<Part> {
        let settings = &with_extents(&checkpoint.config)?;
        if settings.standardise {
            let what = "columns were brought to mean 0 by the samples of training; give the whole data instead";
            return Err(wrong(what));
        }
        let known = Dataset {
            classes: checkpoint.classes.clone(),
            vocabulary: checkpoint.vocabulary.clone(),
            ..Dataset::default()
        };
        Ok(Part::whole(read(settings, files, Some(&known), readers)?))
    }
}

/// The data's settings, where pictures have the extents that a model file asks for if nothing else is said.
fn with_extents(config: &Config) -> Result<DataConfig> {
    let mut settings = config.data.clone();
    if let Some(path) = config
        .model
        .file
        .as_ref()
        .filter(|_| settings.image.is_empty())
    {
        let types = Model::open(path)?.input_types()?;
        let dims = types
            .first()
            .and_then(|(_, t)| t.as_tensor()?.dims.get(1..));
        let extents = dims.unwrap_or_default().iter().map(|d| {
            let extent = d.as_const()?;
            usize::try_from(extent).ok()
        });
        let extents: Option<Vec<usize>> = extents.collect();
        settings.image = extents
            .filter(|e| matches!(e.len(), 2 | 3))
            .unwrap_or_default();
    }
    Ok(settings)
}

/// All samples of some files.
fn read(
    settings: &DataConfig,
    files: &[PathBuf],
    known: Option<&Dataset>,
    readers: &Readers,
) -> Result<Dataset> {
    if let Some(path) = files.iter().find(|p| !p.exists()) {
        let what = format!("data: {} does not exist", path.display());
        return Err(Error::Missing(what));
    }
    let kinds: Vec<Kind> = files
        .iter()
        .map(|path| settings.kind.map_or_else(|| guess(path), Ok))
        .collect::<Result<_>>()?;
    if kinds.contains(&Kind::Text) {
        if kinds.iter().any(|k| *k != Kind::Text) {
            return Err(wrong("data.files: texts and other data cannot be joined"));
        }
        let options = CorpusOptions {
            words: words(settings),
            length: settings.length.unwrap_or(64),
            stride: settings.stride,
            column: settings.text_column.clone(),
        };
        return Ok(data::corpus(files, &options, known, readers)?);
    }
    let mut all: Option<Dataset> = None;
    let mut at = 0;
    while at < files.len() {
        let next = match kinds[at] {
            Kind::Idx | Kind::Npy => 2,
            _ => 1,
        };
        let Some(group) = files.get(at..at + next) else {
            let what = format!(
                "{}: the file with the targets is to follow it in data.files",
                files[at].display()
            );
            return Err(wrong(what));
        };
        // Later files have the vocabulary and classes of the first.
        let before = known.or(all.as_ref());
        let part = read_group(settings, kinds[at], group, before, readers)?;
        match &mut all {
            None => all = Some(part),
            Some(all) => all.append(part)?,
        }
        at += next;
    }
    let mut all = all.ok_or_else(|| wrong("data.files is missing"))?;
    // A part may lack the last classes.
    if let Some(known) = known.filter(|k| k.classes.len() > all.classes.len()) {
        all.classes.clone_from(&known.classes);
    }
    Ok(all)
}

fn read_group(
    settings: &DataConfig,
    kind: Kind,
    files: &[PathBuf],
    known: Option<&Dataset>,
    readers: &Readers,
) -> Result<Dataset> {
    let pixels = match settings.image.is_empty() {
        true => DIGIT,
        false => settings.image.iter().product(),
    };
    let picture = match settings.image[..] {
        [] => PICTURE,
        [h, w] => [1, h, w],
        [c, h, w] => [c, h, w],
        _ => return Err(wrong("data.image is not [channels, height, width]")),
    };
    if picture.contains(&0) || !matches!(picture[0], 1 | 3) {
        return Err(wrong("data.image: 1 or 3 channels, no extent of 0"));
    }
    let path = &files[0];
    Ok(match kind {
        Kind::DigitsCsv => data::digits_csv(path, settings.label_first)?,
        Kind::DigitsJson => data::digits_json(path, pixels)?,
        Kind::Idx => data::idx(path, &files[1])?,
        Kind::Images => data::image_folder(path, picture, readers)?,
        Kind::Npy => {
            let pair = ArrayFiles {
                x: path.clone(),
                y: files[1].clone(),
            };
            data::npy(&pair, readers)?
        }
        Kind::Table => {
            let columns = TableColumns {
                target: settings.target.clone(),
                ignore: settings.ignore.clone(),
                is_class: settings.class_target,
                separator: separator(settings, path)?,
            };
            let classes = known.map(|k| &k.classes[..]);
            data::table(path, &columns, classes.filter(|_| settings.class_target))?
        }
        Kind::Classes => {
            let columns = ClassColumns {
                class: settings.class_column.clone(),
                text: settings.text_column.clone(),
            };
            let exact = settings.length.filter(|_| settings.pad_to_length);
            let padding = Padding {
                most: settings.length,
                exact,
                side: settings.pad,
                token: 0,
            };
            data::classes(path, &columns, &words(settings), padding, known, readers)?
        }
        Kind::Text => return Err(wrong("data.files: texts and other data cannot be joined")),
    })
}

fn words(settings: &DataConfig) -> Words {
    let usual = match settings.tokenizer.is_some() {
        true => Units::Tokenizer,
        false => Units::Words,
    };
    Words {
        units: settings.units.unwrap_or(usual),
        lowercase: settings.lowercase,
        most: settings.vocabulary,
    }
}

fn separator(settings: &DataConfig, path: &Path) -> Result<u8> {
    match settings.separator {
        Some(c) => u8::try_from(c).map_err(|_| wrong("data.separator is not one byte")),
        None if suffix(path) == "csv" => Ok(b','),
        None => Ok(b'\t'),
    }
}

/// The suffix, that of what is packed where it is.
fn suffix(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.to_lowercase();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    name.rsplit_once('.')
        .map_or(String::new(), |(_, s)| s.to_string())
}

/// The form of a file by its name, and of tables by their first line.
fn guess(path: &Path) -> Result<Kind> {
    let io = |e: std::io::Error| DataError::Io {
        path: path.to_owned(),
        what: e.to_string(),
    };
    if path.is_dir() {
        let mut inside = std::fs::read_dir(path).map_err(io)?.flatten();
        return Ok(match inside.any(|e| suffix(&e.path()) == "json") {
            true => Kind::DigitsJson,
            false => Kind::Images,
        });
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.contains("idx") && (name.contains("ubyte") || name.contains(".idx")) {
        return Ok(Kind::Idx);
    }
    match suffix(path).as_str() {
        "csv" => {
            let file = std::fs::File::open(path).map_err(io)?;
            let mut line = vec![];
            let is_packed = name.ends_with(".gz");
            let reader = BufReader::new(file);
            if !is_packed {
                reader
                    .take(1 << 20)
                    .read_until(b'\n', &mut line)
                    .map_err(io)?;
            }
            let commas = line.iter().filter(|b| **b == b',').count();
            // Tables that are packed are rare; digits come so.
            Ok(match is_packed || commas == DIGIT {
                true => Kind::DigitsCsv,
                false => Kind::Table,
            })
        }
        "npy" => Ok(Kind::Npy),
        "tab" | "tsv" => Ok(Kind::Classes),
        "txt" => Ok(Kind::Text),
        _ if name.contains("idx") => Ok(Kind::Idx),
        _ => Err(wrong(format!(
            "{}: its form is not told by its name; data.kind says it",
            path.display()
        ))),
    }
}
