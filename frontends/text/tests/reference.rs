//! Tokens equal to those of public implementations, on the fixtures that `make_fixtures.py` writes. `TEXT_FIXTURES`
//! names a folder with more of them.

use std::path::PathBuf;

use cupola_gguf::Gguf;
use cupola_text::{Decoder, Tokenizer};

fn folder() -> PathBuf {
    std::env::var_os("TEXT_FIXTURES").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data"),
        PathBuf::from,
    )
}

fn tokenizer(name: &str) -> Tokenizer {
    let file = Gguf::open(folder().join(format!("{name}.gguf"))).expect("a GGUF file");
    Tokenizer::from_gguf(&file).expect("a tokenizer")
}

fn cases(name: &str) -> Vec<(String, Vec<u32>)> {
    let text = std::fs::read_to_string(folder().join(format!("{name}.json"))).expect("cases");
    let cases: Vec<(String, Vec<u32>)> =
        serde_json::from_str(&text).expect("pairs of text and tokens");
    assert!(cases.len() >= 50, "{name}: {} cases", cases.len());
    cases
}

/// Compares all cases of one kind, and puts every text together again, at once and token by token.
fn check(name: &str, parse_special: bool, restores: impl Fn(&str) -> Option<String>) {
    let tokenizer = tokenizer(name);
    let mut wrong = vec![];
    let cases = cases(name);
    for (text, expected) in &cases {
        // SentencePiece puts a space of its own before a token that the user defined and that begins the text.
        if !parse_special && text.starts_with("<tool>") {
            continue;
        }
        let tokens = tokenizer
            .encode(text, false, parse_special)
            .expect("tokens");
        if tokens != *expected {
            wrong.push(format!("{text:?}\n  {expected:?}\n  {tokens:?}"));
            continue;
        }
        if let Some(restored) = restores(text) {
            assert_eq!(tokenizer.decode(&tokens, false), restored, "{name}");
        }
        let mut decoder = Decoder::new(&tokenizer, false);
        let mut pieces: String = tokens.iter().map(|&token| decoder.push(token)).collect();
        pieces += &decoder.finish();
        let bytes: Vec<u8> = tokens
            .iter()
            .flat_map(|&t| tokenizer.token_bytes(t))
            .copied()
            .collect();
        assert_eq!(pieces, String::from_utf8_lossy(&bytes), "{name}");
    }
    let some = wrong.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
    assert!(
        wrong.is_empty(),
        "{name}: {} of {} differ\n{some}",
        wrong.len(),
        cases.len()
    );
}

#[test]
fn byte_level_vocabularies() {
    for name in [
        "gpt-2",
        "smollm",
        "llama-bpe",
        "qwen2",
        "gpt-4o",
        "tekken",
        "deepseek-v3",
    ] {
        check(name, true, |text| Some(text.to_owned()));
    }
}

#[test]
fn scored_pairs_of_sentencepiece() {
    check("sentence", false, |text| {
        Some(text.replace('\u{2581}', " "))
    });
    check("sentence-no-bytes", false, |_| None);
}
