//! The sizes of a model that its metadata states: what a model is built from must not be zero or contradict itself.

use crate::error::GgufError;
use crate::metadata::Value;
use crate::read::Gguf;

/// Keys behind the architecture's name that hold a count of at least 1, or a list of such counts (one per block).
const COUNTS: [&str; 6] = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
];

/// Checks the counts that are there. Files without an architecture hold no model and are left alone.
///
/// # Errors
/// [`GgufError::Hyperparameter`] for the first count that no model can have.
pub fn check(file: &Gguf) -> Result<(), GgufError> {
    let Some(architecture) = file.architecture() else {
        return Ok(());
    };
    let wrong = |key: &str, what: &'static str| GgufError::Hyperparameter {
        key: key.to_owned(),
        what,
    };
    for name in COUNTS {
        let key = format!("{architecture}.{name}");
        let Some(value) = file.get(&key) else {
            continue;
        };
        match value {
            Value::Array(all) => {
                // A block without attention or feed-forward part has 0 of them.
                if all.iter().any(|v| v.as_u64().is_none()) {
                    return Err(wrong(&key, "is not a list of counts"));
                }
            }
            one => match one.as_u64() {
                Some(0) => return Err(wrong(&key, "is 0")),
                Some(_) => {}
                None => return Err(wrong(&key, "is not a count")),
            },
        }
    }
    let count = |name: &str| {
        file.get(&format!("{architecture}.{name}"))
            .and_then(Value::as_u64)
    };
    let stated = count("attention.key_length").is_some();
    if let (Some(width), Some(heads), false) = (
        count("embedding_length"),
        count("attention.head_count"),
        stated,
    ) && width % heads != 0
    {
        let key = format!("{architecture}.attention.head_count");
        return Err(wrong(&key, "does not divide the embedding length"));
    }
    Ok(())
}
