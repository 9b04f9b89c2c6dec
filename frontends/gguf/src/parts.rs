//! [`GgufParts`]: a model in one file, or split into several.

use std::path::{Path, PathBuf};

use cupola_source::Source;

use crate::error::GgufError;
use crate::metadata::Value;
use crate::read::Gguf;

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";

/// Names have five digits.
const MAX_PARTS: u64 = 99_999;

/// All files of a model, the one with the metadata first.
#[derive(Debug)]
pub struct GgufParts {
    files: Vec<Gguf>,
    sources: Vec<Source>,
}

impl GgufParts {
    /// Reads the file at `path` and, when it is one of several (`NAME-00001-of-00003.gguf`, as its metadata says), the others
    /// beside it. Any of them may be named.
    ///
    /// # Errors
    /// [`GgufError`] for the first thing that is wrong.
    pub fn open(path: impl AsRef<Path>) -> Result<GgufParts, GgufError> {
        let path = path.as_ref();
        let source = Source::open(path)?;
        let file = Gguf::read(&source)?;
        let count = number(&file, COUNT)?.unwrap_or(1);
        if count <= 1 {
            return Ok(GgufParts {
                files: vec![file],
                sources: vec![source],
            });
        }
        let own = number(&file, NUMBER)?.unwrap_or(0);
        let wrong = |what| GgufError::Split {
            what,
            file: path.display().to_string(),
        };
        if count > MAX_PARTS || own >= count {
            return Err(wrong("the number of the part is not below their count"));
        }
        let name = wrong("the file's name does not end in its number, as in -00001-of-00002.gguf");
        let stem = stem(path, own, count).ok_or(name)?;
        let mut parts = GgufParts {
            files: vec![],
            sources: vec![],
        };
        for i in 0..count {
            parts.push(&part(&stem, i, count), i)?;
        }
        parts.check_names(path)?;
        Ok(parts)
    }

    fn push(&mut self, path: &Path, place: u64) -> Result<(), GgufError> {
        let source = Source::open(path)?;
        let file = Gguf::read(&source)?;
        if number(&file, NUMBER)? != Some(place) {
            return Err(GgufError::Split {
                what: "the part has another number than its name says",
                file: path.display().to_string(),
            });
        }
        self.files.push(file);
        self.sources.push(source);
        Ok(())
    }

    fn check_names(&self, path: &Path) -> Result<(), GgufError> {
        let all = self.files.iter().flat_map(Gguf::tensors);
        let mut names: Vec<&str> = all.map(|t| t.name.as_str()).collect();
        let told = self.files.iter().find_map(|f| f.get("split.tensors.count"));
        let told = told.and_then(Value::as_u64);
        if told.is_some_and(|told| told != names.len() as u64) {
            return Err(GgufError::Split {
                what: "the parts have not as many tensors together as they say",
                file: path.display().to_string(),
            });
        }
        names.sort_unstable();
        match names.windows(2).find(|w| w[0] == w[1]) {
            Some(twice) => Err(GgufError::DuplicateTensor(twice[0].to_owned())),
            None => Ok(()),
        }
    }

    /// The file that holds the metadata.
    pub fn first(&self) -> &Gguf {
        &self.files[0]
    }

    /// All files in order; at least one.
    pub fn files(&self) -> &[Gguf] {
        &self.files
    }

    /// What each file was read from.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }
}

fn number(file: &Gguf, key: &'static str) -> Result<Option<u64>, GgufError> {
    match file.get(key) {
        None => Ok(None),
        Some(value) => match value.as_u64() {
            Some(value) => Ok(Some(value)),
            None => Err(GgufError::KeyType {
                key,
                needed: "count",
            }),
        },
    }
}

/// The path without the number of the part.
fn stem(path: &Path, own: u64, count: u64) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let stem = name.strip_suffix(&suffix(own, count))?;
    Some(path.with_file_name(stem))
}

fn part(stem: &Path, number: u64, count: u64) -> PathBuf {
    let mut name = stem.as_os_str().to_owned();
    name.push(suffix(number, count));
    name.into()
}

fn suffix(number: u64, count: u64) -> String {
    format!("-{:05}-of-{count:05}.gguf", number + 1)
}
