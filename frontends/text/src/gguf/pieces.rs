//! Tokenizers of encoders: words taken apart into the longest pieces (`bert`), and the most probable pieces of a text
//! (`t5`). Both become pipelines.

use cupola_gguf::Value as Metadata;
use serde_json::{Map, Value, json};

use super::{Keys, Spelt, special, spelt, wrong};
use crate::error::TextError;
use crate::pipeline::Pipeline;
use crate::tokenizer::{Method, Parts, SPACE_MARK};
use crate::vocabulary::{TokenKind, Vocabulary};

/// Longer words are unknown, as in the published tokenizers of this kind.
const MAX_WORD_LEN: usize = 100;

/// BERT's pieces. In the file those that begin a word have a mark for the space before it, and the others none.
pub fn words(keys: &Keys) -> Result<Parts, TextError> {
    let spelt = spelt(keys)?;
    let len = spelt.texts.len();
    let mut vocab = Map::new();
    for (id, text) in texts(&spelt)?.into_iter().enumerate() {
        let name = match (spelt.kinds[id], text.strip_prefix(SPACE_MARK)) {
            (TokenKind::Normal, Some(word)) => word.to_owned(),
            (TokenKind::Normal, None) => format!("##{text}"),
            _ => text,
        };
        vocab.insert(name, id.into());
    }
    let lowercase = keys.bool("normalizer.lowercase", true)?;
    let unknown = keys.token("unknown_token_id", Some(100), len)?;
    let begin = match keys.token("cls_token_id", None, len)? {
        Some(begin) => Some(begin),
        None => keys.token("bos_token_id", Some(101), len)?,
    };
    let end = keys.token("seperator_token_id", Some(102), len)?;
    let unknown = unknown.map_or("[UNK]".to_owned(), |id| name_of(&spelt, id));
    let description = json!({
        "version": "1.0",
        "added_tokens": added(&spelt),
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "lowercase": lowercase,
            "strip_accents": keys.bool("normalizer.strip_accents", lowercase)?,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": surround(&spelt, begin, end),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {
            "type": "WordPiece", "unk_token": unknown, "continuing_subword_prefix": "##",
            "max_input_chars_per_word": MAX_WORD_LEN, "vocab": vocab,
        },
    });
    parts(keys, &description)
}

/// SentencePiece's unigrams.
pub fn unigrams(keys: &Keys) -> Result<Parts, TextError> {
    let spelt = spelt(keys)?;
    let len = spelt.texts.len();
    let scores = keys.scores(len)?;
    let texts = texts(&spelt)?;
    let pieces: Vec<Value> = texts
        .iter()
        .zip(&scores)
        .map(|(text, score)| json!([text, score]))
        .collect();
    let mut normalizers = vec![];
    if let Some(charsmap) = replacements(keys)? {
        normalizers.push(json!({"type": "Precompiled", "precompiled_charsmap": charsmap}));
    }
    if keys.bool("remove_extra_whitespaces", true)? {
        normalizers
            .push(json!({"type": "Replace", "pattern": {"Regex": "^ +| +$"}, "content": ""}));
        normalizers.push(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}));
    }
    let mark = SPACE_MARK.to_string();
    let prepend = if keys.bool("add_space_prefix", true)? {
        "always"
    } else {
        "never"
    };
    let begin = keys
        .bool("add_bos_token", false)?
        .then(|| keys.token("bos_token_id", None, len));
    let end = keys
        .bool("add_eos_token", true)?
        .then(|| keys.token("eos_token_id", Some(1), len));
    let description = json!({
        "version": "1.0",
        "added_tokens": added(&spelt),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {"type": "Metaspace", "replacement": mark, "prepend_scheme": prepend, "split": false},
        "post_processor": surround(&spelt, begin.transpose()?.flatten(), end.transpose()?.flatten()),
        "decoder": {"type": "Metaspace", "replacement": mark, "prepend_scheme": prepend, "split": false},
        "model": {
            "type": "Unigram", "unk_id": keys.token("unknown_token_id", Some(2), len)?, "vocab": pieces,
            "byte_fallback": spelt.kinds.contains(&TokenKind::Byte),
        },
    });
    parts(keys, &description)
}

fn parts(keys: &Keys, description: &Value) -> Result<Parts, TextError> {
    let pipeline = Pipeline::read(description.to_string().as_bytes(), "tokenizer.ggml")?;
    let vocabulary: Vocabulary = pipeline.vocabulary()?;
    let special = special(keys, &vocabulary, None, None, true)?;
    Ok(Parts {
        vocabulary,
        method: Method::Pipeline(pipeline),
        special,
        space_prefix: false,
        marks_spaces: false,
    })
}

fn texts(spelt: &Spelt) -> Result<Vec<String>, TextError> {
    let text = |(id, text): (usize, &bytes::Bytes)| {
        let text = std::str::from_utf8(text).map_err(|_| TextError::Token {
            id,
            what: "the token is not UTF-8",
        })?;
        Ok(text.to_owned())
    };
    spelt.texts.iter().enumerate().map(text).collect()
}

fn name_of(spelt: &Spelt, id: u32) -> String {
    String::from_utf8_lossy(&spelt.texts[id as usize]).into_owned()
}

/// The tokens that are recognised in texts before anything else.
fn added(spelt: &Spelt) -> Vec<Value> {
    let mut added = vec![];
    for (id, kind) in spelt.kinds.iter().enumerate() {
        let special = kind.is_special();
        if special || *kind == TokenKind::UserDefined {
            added.push(json!({
                "id": id, "content": name_of(spelt, id as u32), "special": special,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            }));
        }
    }
    added
}

/// What puts tokens before and after a text.
fn surround(spelt: &Spelt, begin: Option<u32>, end: Option<u32>) -> Value {
    let mut tokens = Map::new();
    let mut special = |id: u32| {
        let name = name_of(spelt, id);
        let part = json!({"SpecialToken": {"id": name, "type_id": 0}});
        tokens.insert(
            name.clone(),
            json!({"id": name, "ids": [id], "tokens": [name]}),
        );
        part
    };
    let before: Vec<Value> = begin.map(&mut special).into_iter().collect();
    let after: Vec<Value> = end.map(&mut special).into_iter().collect();
    let around = |middle: &[&str]| {
        let middle = middle
            .iter()
            .map(|text| json!({"Sequence": {"id": text, "type_id": 0}}));
        let all = before
            .iter()
            .cloned()
            .chain(middle)
            .chain(after.iter().cloned());
        all.collect::<Vec<Value>>()
    };
    json!({"type": "TemplateProcessing", "single": around(&["A"]), "pair": around(&["A", "B"]), "special_tokens": tokens})
}

/// The table of replacements that texts go through, in base 64.
fn replacements(keys: &Keys) -> Result<Option<String>, TextError> {
    let name = "precompiled_charsmap";
    let Some(value) = keys.get(name) else {
        return Ok(None);
    };
    let byte = |value: Metadata| match value {
        Metadata::U8(byte) => Some(byte),
        Metadata::I8(byte) => Some(byte as u8),
        _ => None,
    };
    let array = value.as_array();
    let bytes: Option<Vec<u8>> = array.and_then(|array| array.iter().map(byte).collect());
    let bytes = bytes.ok_or_else(|| wrong(name, "an array of bytes"))?;
    check_replacements(&bytes).ok_or(TextError::Replacements)?;
    Ok(Some(base64(&bytes)))
}

/// Checks the table's parts, which the pipeline relies on: the size of a trie, the trie, strings with a zero after each.
fn check_replacements(bytes: &[u8]) -> Option<()> {
    let (size, rest) = bytes.split_first_chunk::<4>()?;
    let size = u32::from_le_bytes(*size) as usize;
    let (_, strings) = rest.split_at_checked(size)?;
    let is_whole = size.is_multiple_of(4) && size > 0 && std::str::from_utf8(strings).is_ok();
    (is_whole && strings.last().is_none_or(|&last| last == 0)).then_some(())
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            if digit <= chunk.len() {
                text.push(char::from(DIGITS[(bits >> (18 - 6 * digit) & 63) as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base_64() {
        assert_eq!(base64(b""), "");
        assert_eq!(base64(b"M"), "TQ==");
        assert_eq!(base64(b"Ma"), "TWE=");
        assert_eq!(base64(b"Man\xff"), "TWFu/w==");
    }
}
