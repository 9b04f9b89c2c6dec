//! Names the sources that generated code and packed weights come from, so that what another version made is not taken for
//! this one's.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::Path;

/// Everything that decides what the crate makes: its own sources, the kernels' level of the IR, and the code generator.
const SOURCES: [&str; 3] = ["src", "../../ir/src", "../../Cargo.lock"];

fn main() {
    let mut hasher = DefaultHasher::new();
    for path in SOURCES {
        println!("cargo::rerun-if-changed={path}");
        if let Err(e) = add(Path::new(path), &mut hasher) {
            println!("cargo::error=cannot read {path}: {e}");
        }
    }
    println!(
        "cargo::rustc-env=CUPOLA_CPU_SOURCES={:016x}",
        hasher.finish()
    );
}

/// Adds a file, or all files of a folder in the order of their names.
fn add(path: &Path, hasher: &mut DefaultHasher) -> io::Result<()> {
    if !path.is_dir() {
        fs::read(path)?.hash(hasher);
        return Ok(());
    }
    let mut entries: Vec<_> = fs::read_dir(path)?.collect::<io::Result<_>>()?;
    entries.sort_by_key(|e| e.file_name());
    for entry in entries {
        entry.file_name().hash(hasher);
        add(&entry.path(), hasher)?;
    }
    Ok(())
}
