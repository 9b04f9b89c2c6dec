//! Tokenizers from a model's folder: `tokenizer.json` with the files beside it.

use std::path::Path;

use cupola_source::{Source, SourceError};
use serde_json::{Map, Value};

use crate::error::TextError;
use crate::gguf::END_NAMES;
use crate::pipeline::Pipeline;
use crate::tokenizer::{Method, Parts, Special, Tokenizer};
use crate::vocabulary::Vocabulary;

/// Larger files are no tokenizers.
const MAX_FILE_SIZE: usize = 1 << 28;

impl Tokenizer {
    /// The tokenizer in a model's folder: `tokenizer.json`, with begin and end tokens from `tokenizer_config.json`,
    /// `special_tokens_map.json`, `generation_config.json` and `config.json` where these exist.
    ///
    /// # Errors
    /// [`TextError`] for what is missing, wrong or not supported.
    pub fn from_folder(path: impl AsRef<Path>) -> Result<Tokenizer, TextError> {
        let path = path.as_ref();
        let bytes = read(path, TOKENIZER)?;
        let pipeline = Pipeline::read(bytes.bytes(), TOKENIZER)?;
        let vocabulary = pipeline.vocabulary()?;
        let special = special(path, &pipeline, &vocabulary)?;
        Ok(Tokenizer::new(Parts {
            vocabulary,
            method: Method::Pipeline(pipeline),
            special,
            space_prefix: false,
            marks_spaces: false,
        }))
    }
}

const TOKENIZER: &str = "tokenizer.json";

fn special(
    path: &Path,
    pipeline: &Pipeline,
    vocabulary: &Vocabulary,
) -> Result<Special, TextError> {
    let config = json(path, "tokenizer_config.json")?.unwrap_or_default();
    let texts = special_texts(path, &config)?;
    let id = |name: &str| pipeline.token(texts.get(name)?.as_str()?);
    let mut ends: Vec<u32> = Vec::new();
    for file in ["generation_config.json", "config.json"] {
        let found = json(path, file)?.unwrap_or_default();
        match &found["eos_token_id"] {
            Value::Array(ids) => ends.extend(ids.iter().filter_map(token_id)),
            one => ends.extend(token_id(one)),
        }
    }
    ends.retain(|&id| (id as usize) < vocabulary.len());
    let eos = id("eos_token").or(ends.first().copied());
    ends.extend(eos);
    let names = END_NAMES.iter();
    ends.extend(names.filter_map(|name| pipeline.token(name)));
    ends.sort_unstable();
    ends.dedup();
    let bos = id("bos_token");
    let before = pipeline.encode("", true, true)?;
    let before = before.into_iter().take_while(|&token| Some(token) == bos);
    Ok(Special {
        before: before.collect(),
        bos,
        eos,
        ends,
        ..Special::default()
    })
}

fn token_id(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

/// The texts of special tokens by role, such as `bos_token`: strings, or objects with the text in `content`.
pub(crate) fn special_texts(path: &Path, config: &Value) -> Result<Map<String, Value>, TextError> {
    let map = json(path, "special_tokens_map.json")?.unwrap_or_default();
    let mut texts = Map::new();
    for (name, value) in [&map, config]
        .into_iter()
        .filter_map(Value::as_object)
        .flatten()
    {
        let text = value.as_str().or(value["content"].as_str());
        if let Some(text) = text.filter(|_| name.ends_with("_token")) {
            texts.insert(name.clone(), text.into());
        }
    }
    Ok(texts)
}

/// A JSON file of the folder, if it is there.
pub(crate) fn json(path: &Path, file: &str) -> Result<Option<Value>, TextError> {
    if !path.join(file).exists() {
        return Ok(None);
    }
    let value = serde_json::from_slice(read(path, file)?.bytes());
    value.map(Some).map_err(|error| TextError::Json {
        file: file.to_owned(),
        what: error.to_string(),
    })
}

/// A text file of the folder, if it is there.
pub(crate) fn text(path: &Path, file: &str) -> Result<Option<String>, TextError> {
    if !path.join(file).exists() {
        return Ok(None);
    }
    let text = String::from_utf8(read(path, file)?.bytes().to_vec());
    text.map(Some).map_err(|_| TextError::Json {
        file: file.to_owned(),
        what: "is not UTF-8".to_owned(),
    })
}

fn read(path: &Path, file: &str) -> Result<Source, TextError> {
    let source: Result<Source, SourceError> = Source::open(path.join(file));
    let source = source?;
    if source.bytes().len() > MAX_FILE_SIZE {
        return Err(TextError::TooLarge("bytes of a tokenizer's file"));
    }
    Ok(source)
}
