//! The corpus of malformed files, for the tests of every reader: each file is refused with the right fault and one short
//! line, or read, and soon.

use cupola_source::Fault;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a reader must do with a file.
pub enum Expected {
    /// Read it.
    Read,
    /// Refuse it with this fault.
    Refuse(Fault),
    /// Either.
    Either,
}

/// The unpacked corpus, if the environment names one (`scripts/test.sh` does).
fn folder() -> Option<PathBuf> {
    let found = std::env::var_os("CUPOLA_TEST_MALFORMED").map(PathBuf::from);
    if found.is_none() {
        eprintln!(
            "the malformed files are not unpacked (scripts/test.sh does it): nothing checked"
        );
    }
    found
}

/// Opens every file of a format and holds the result against `expected`, which is given the file's name and what the
/// corpus says of a whole program: `accept`, `reject` or `survive`. There are `least` files at least.
pub fn check(
    format: &str,
    least: usize,
    open: impl Fn(&Path) -> Result<(), (Fault, String)>,
    expected: impl Fn(&str, &str) -> Expected,
) {
    let Some(folder) = folder() else { return };
    let list = std::fs::read_to_string(folder.join("corpus.json")).expect("the corpus");
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    let mut seen = 0;
    let mut wrong = vec![];
    for case in list["cases"].as_array().expect("cases") {
        let text = |key: &str| case[key].as_str().unwrap_or_default();
        if text("format") != format {
            continue;
        }
        seen += 1;
        let name = text("name");
        let start = Instant::now();
        let result = open(&folder.join(name).join(text("file")));
        let taken = start.elapsed();
        let fits = match (expected(name, text("expect")), &result) {
            (Expected::Either, _) | (Expected::Read, Ok(())) => true,
            (Expected::Refuse(fault), Err((found, _))) => fault == *found,
            (Expected::Read, Err(_)) | (Expected::Refuse(_), Ok(())) => false,
        };
        let clear = result
            .as_ref()
            .err()
            .is_none_or(|(_, message)| is_clear(message));
        if !fits || !clear || taken > Duration::from_secs(2) {
            wrong.push(format!("{name}: {result:?} after {taken:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        seen >= least,
        "only {seen} {format} files in {}",
        folder.display()
    );
}

/// One short printable line that shows nothing of files outside.
fn is_clear(message: &str) -> bool {
    message.len() <= 400 && !message.chars().any(char::is_control) && !message.contains("CANARY")
}
