//! `cupola tokenize`: the tokens of a text.

use crate::args::TokenizeArgs;
use crate::fail::Outcome;
use crate::outputs;
use serde_json::json;

/// Prints the tokens of a text, one a line.
pub fn tokenize(args: &TokenizeArgs) -> Outcome {
    let text = super::text(&args.text)?;
    let tokenizer = cupola::language::tokenizer(&args.model)?;
    let tokens = tokenizer.encode(&text, !args.no_special, !args.plain);
    let tokens = tokens.map_err(cupola::Error::from)?;
    let piece = |token: &u32| String::from_utf8_lossy(tokenizer.token_bytes(*token)).into_owned();
    match &args.json {
        Some(to) => {
            let pieces: Vec<String> = tokens.iter().map(piece).collect();
            let document = json!({ "tokens": tokens, "count": tokens.len(), "pieces": pieces });
            outputs::write_json(to, &document)
        }
        None => {
            tokens
                .iter()
                .for_each(|token| println!("{token:8}  {:?}", piece(token)));
            Ok(())
        }
    }
}
