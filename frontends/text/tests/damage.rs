//! Damaged files give errors, never a panic.

use std::path::{Path, PathBuf};

use cupola_gguf::Gguf;
use cupola_source::Source;
use cupola_text::Tokenizer;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

/// Uses what was read, if anything was.
fn try_out(tokenizer: Option<Tokenizer>) -> bool {
    let Some(tokenizer) = tokenizer else {
        return false;
    };
    for text in [
        "",
        "Hello world 123 \u{1f600}\n",
        "<|im_start|><tool>[MASK]é",
    ] {
        for (add, parse) in [(false, false), (true, true)] {
            if let Ok(tokens) = tokenizer.encode(text, add, parse) {
                tokenizer.decode(&tokens, true);
            }
        }
    }
    tokenizer.decode(&[0, 5, 100_000, u32::MAX], false);
    true
}

#[test]
fn gguf_metadata_with_a_changed_byte() {
    let mut refused = 0;
    for name in ["smollm", "sentence", "word-pieces"] {
        let bytes = std::fs::read(data().join(format!("{name}.gguf"))).expect("a file");
        // Most of the file is tokens; keys, types and ids lie anywhere between.
        for at in (24..bytes.len()).step_by(37) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            let file = Gguf::read(&Source::from_bytes(damaged)).ok();
            let read = file.and_then(|file| Tokenizer::from_gguf(&file).ok());
            refused += usize::from(!try_out(read));
        }
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn tokenizer_json_with_a_changed_part() {
    let source = data().join("byte-fallback/tokenizer.json");
    let text = std::fs::read_to_string(source).expect("a file");
    let folder = std::env::temp_dir().join(format!("cupola-text-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let mut refused = 0;
    for at in (1..text.len()).step_by(101) {
        let mut damaged = text.clone().into_bytes();
        damaged[at] = b"0}\"-x"[at % 5];
        std::fs::write(folder.join("tokenizer.json"), &damaged).expect("written");
        refused += usize::from(!try_out(Tokenizer::from_folder(&folder).ok()));
    }
    for text in ["", "{}", "[]", "{\"model\":{}}", "\u{0}"] {
        std::fs::write(folder.join("tokenizer.json"), text).expect("written");
        assert!(Tokenizer::from_folder(&folder).is_err(), "{text}");
    }
    std::fs::remove_dir_all(&folder).expect("removed");
    assert!(Tokenizer::from_folder(&folder).is_err());
    assert!(refused > 20, "{refused}");
}
