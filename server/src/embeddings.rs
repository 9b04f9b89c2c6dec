//! `/v1/embeddings`: texts in, a vector of each out.

use crate::Model;
use crate::embedder::Embedder;
use crate::error::{ApiError, Outcome};
use crate::request::Prompt;
use serde::{Deserialize, Serialize};

/// Most texts of a request.
const MOST_TEXTS: usize = 2048;

/// What to describe.
#[derive(Debug, Deserialize)]
pub(crate) struct EmbeddingBody {
    input: Prompt,
    encoding_format: Option<Encoding>,
    dimensions: Option<usize>,
}

/// How a vector is written.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    /// A list of numbers.
    #[default]
    Float,
    /// The bytes of its f32, little-endian.
    Base64,
}

/// Texts as tokens, and what is to become of their vectors.
pub(crate) struct EmbeddingJob {
    pub texts: Vec<Vec<u32>>,
    encoding: Encoding,
    dimensions: Option<usize>,
}

/// The answer.
#[derive(Debug, Serialize)]
pub(crate) struct Embeddings {
    object: &'static str,
    data: Vec<Embedding>,
    model: String,
    usage: Used,
}

#[derive(Debug, Serialize)]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Vector {
    Numbers(Vec<f32>),
    Base64(String),
}

#[derive(Debug, Serialize)]
struct Used {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl EmbeddingBody {
    /// Encodes the texts.
    pub fn job(self, model: &Model) -> Outcome<EmbeddingJob> {
        let embedder = model.embedder()?;
        let texts = self
            .input
            .tokens(|text| model.tokenizer.encode(text, true, false))?;
        if !(1..=MOST_TEXTS).contains(&texts.len()) {
            return Err(ApiError::bad(format!(
                "input: between 1 and {MOST_TEXTS} texts can be described at once, not {}",
                texts.len()
            )));
        }
        for (i, text) in texts.iter().enumerate() {
            check(text, embedder)
                .map_err(|what| ApiError::bad(format!("input: text {i} {what}")))?;
        }
        Ok(EmbeddingJob {
            texts,
            encoding: self.encoding_format.unwrap_or_default(),
            dimensions: self.dimensions,
        })
    }
}

fn check(text: &[u32], embedder: &Embedder) -> Result<(), String> {
    let (len, most, vocab_len) = (text.len(), embedder.context_len(), embedder.vocab_len());
    if len == 0 {
        return Err("has no tokens".into());
    }
    if len > most {
        return Err(format!("has {len} tokens; the model reads at most {most}"));
    }
    match text.iter().find(|t| **t as usize >= vocab_len) {
        Some(token) => Err(format!("has token {token}; there are {vocab_len} tokens")),
        None => Ok(()),
    }
}

impl EmbeddingJob {
    /// Describes the texts.
    pub async fn run(self, model: &Model) -> Outcome<Embeddings> {
        let tokens = self.texts.iter().map(Vec::len).sum();
        let vectors = model.embedder()?.embed(self.texts).await?;
        let width = vectors.first().map_or(0, Vec::len);
        if let Some(asked) = self.dimensions.filter(|asked| *asked != width) {
            return Err(ApiError::bad(format!(
                "dimensions: the model's vectors have {width}, and their beginnings mean nothing; {asked} cannot be had"
            )));
        }
        let embedding = |(index, numbers): (usize, Vec<f32>)| Embedding {
            object: "embedding",
            index,
            embedding: match self.encoding {
                Encoding::Float => Vector::Numbers(numbers),
                Encoding::Base64 => {
                    let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
                    Vector::Base64(base64(&bytes))
                }
            },
        };
        Ok(Embeddings {
            object: "list",
            data: vectors.into_iter().enumerate().map(embedding).collect(),
            model: model.name.clone(),
            usage: Used {
                prompt_tokens: tokens,
                total_tokens: tokens,
            },
        })
    }
}

/// Base64 of RFC 4648, section 4, padded.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = (0..3).fold(0u32, |bits, i| {
            bits << 8 | u32::from(group.get(i).copied().unwrap_or(0))
        });
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i) & 63) as usize];
            text.push(if i <= group.len() { digit.into() } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_as_in_the_standard() {
        let known = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ];
        for (text, encoded) in known {
            assert_eq!(base64(text.as_bytes()), encoded);
        }
        assert_eq!(base64(&[0xff, 0xef, 0xbe]), "/+++");
    }
}
