//! `cupola embed`: vectors of texts.

use crate::args::{CacheArgs, EmbedArgs};
use crate::fail::{Failure, Outcome};
use crate::outputs;
use serde_json::json;

/// Prints the vector of each text.
pub fn embed(args: &EmbedArgs) -> Outcome {
    let mut texts = args.prompt.clone();
    if let Some(path) = &args.file {
        let bytes = std::fs::read(path).map_err(|e| Failure::io("cannot read", path, e))?;
        texts.extend(String::from_utf8_lossy(&bytes).lines().map(str::to_string));
    }
    let import = super::import(&args.compile, None, CacheArgs::default());
    let model = super::open(&args.model, &args.compile, &import)?;
    let encode = |text: &String| model.tokenizer.encode(text, true, false);
    let tokens = texts.iter().map(encode).collect::<Result<Vec<_>, _>>();
    let tokens = tokens.map_err(cupola::Error::from)?;
    let vectors = model
        .encoder()?
        .embed(&tokens)
        .map_err(cupola::Error::from)?;
    match &args.json {
        Some(to) => {
            let counts: Vec<usize> = tokens.iter().map(Vec::len).collect();
            let dim = vectors.first().map_or(0, Vec::len);
            outputs::write_json(
                to,
                &json!({ "embeddings": vectors, "dim": dim, "tokens": counts }),
            )
        }
        None => {
            for vector in vectors {
                let numbers: Vec<String> = vector.iter().map(|x| format!("{x:.6}")).collect();
                println!("{}", numbers.join(" "));
            }
            Ok(())
        }
    }
}
