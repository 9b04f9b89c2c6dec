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

/// Compares all cases of one kind with a GGUF file.
fn check(name: &str, parse_special: bool, restores: impl Fn(&str) -> Option<String>) {
    // SentencePiece puts a space of its own before a token that the user defined and that begins the text.
    let compares = |text: &str| parse_special || !text.starts_with("<tool>");
    let wrong = check_with(
        &tokenizer(name),
        name,
        false,
        parse_special,
        compares,
        restores,
    );
    judge(name, &wrong, NONE);
}

/// Compares all cases of one kind, and puts every text together again, at once and token by token.
fn check_with(
    tokenizer: &Tokenizer,
    name: &str,
    add_special: bool,
    parse_special: bool,
    compares: impl Fn(&str) -> bool,
    restores: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let mut wrong = vec![];
    let cases = cases(name);
    for (text, expected) in &cases {
        if !compares(text) {
            continue;
        }
        let tokens = tokenizer
            .encode(text, add_special, parse_special)
            .expect("tokens");
        if tokens != *expected {
            wrong.push(format!("{text:?}\n  {expected:?}\n  {tokens:?}"));
            continue;
        }
        if let Some(restored) = restores(text) {
            assert_eq!(tokenizer.decode(&tokens, false), restored, "{name}");
        }
        let mut decoder = Decoder::new(tokenizer, false);
        let mut pieces: String = tokens.iter().map(|&token| decoder.push(token)).collect();
        pieces += &decoder.finish();
        let bytes: Vec<u8> = tokens
            .iter()
            .flat_map(|&t| tokenizer.token_bytes(t))
            .copied()
            .collect();
        assert_eq!(pieces, String::from_utf8_lossy(&bytes), "{name}");
    }
    wrong
}

/// Fails when more than one text in `tolerance` was wrong.
fn judge(name: &str, wrong: &[String], tolerance: usize) {
    let some = wrong.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
    let len = cases(name).len();
    assert!(
        wrong.len().saturating_mul(tolerance) <= len,
        "{name}: {} of {len} differ\n{some}",
        wrong.len()
    );
}

/// More than there are texts: none may be wrong.
const NONE: usize = usize::MAX;

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

#[test]
fn unigrams_of_sentencepiece() {
    // A pipeline of unigrams finds the names of its special tokens in any text. It replaces characters together with the
    // marks after them, which differs from SentencePiece where control characters or damage have such marks.
    let has_names = |text: &str| {
        ["<tool>", "<s>", "</s>", "<unk>"]
            .iter()
            .any(|name| text.contains(name))
    };
    let unigram = tokenizer("unigram");
    let wrong = check_with(
        &unigram,
        "unigram",
        false,
        false,
        |text| !has_names(text),
        |_| None,
    );
    judge("unigram", &wrong, 100);
}

#[test]
fn word_pieces_from_either_kind_of_file() {
    let from_folder = Tokenizer::from_folder(folder().join("word-pieces")).expect("a tokenizer");
    for tokenizer in [&tokenizer("word-pieces"), &from_folder] {
        let wrong = check_with(tokenizer, "word-pieces", true, true, |_| true, |_| None);
        judge("word-pieces", &wrong, NONE);
        assert_eq!(tokenizer.token_bytes(2), b"[CLS]");
        assert!(tokenizer.is_special(2));
    }
}

#[test]
fn folders_give_begin_and_end_tokens() {
    let tokenizer = Tokenizer::from_folder(folder().join("byte-fallback")).expect("a tokenizer");
    let wrong = check_with(&tokenizer, "byte-fallback", true, true, |_| true, |_| None);
    judge("byte-fallback", &wrong, NONE);
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
    assert!(tokenizer.adds_bos());
    assert_eq!(tokenizer.end_tokens(), [2]);
    let plain = tokenizer.encode("a</s>", false, false).expect("tokens");
    assert!(!plain.contains(&2));
    let special = tokenizer.encode("a</s>", false, true).expect("tokens");
    assert!(special.ends_with(&[2]));
    assert_eq!(tokenizer.decode(&special, true), "a");
}
