//! Files, packed by gzip or not.

use super::{DataError, Result};
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

/// Most bytes that are read of one file, unpacked: packed ones may claim anything.
const MOST: u64 = 16 << 30;

/// The file, unpacked if its first bytes are those of gzip.
fn open(path: &Path) -> Result<Box<dyn Read>> {
    let mut file = File::open(path).map_err(|e| DataError::io(path, e))?;
    let mut start = vec![];
    (&mut file)
        .take(2)
        .read_to_end(&mut start)
        .map_err(|e| DataError::io(path, e))?;
    let is_packed = start == [0x1f, 0x8b];
    let whole = std::io::Cursor::new(start).chain(file);
    Ok(match is_packed {
        true => Box::new(BufReader::new(MultiGzDecoder::new(whole).take(MOST))),
        false => Box::new(BufReader::new(whole.take(MOST))),
    })
}

/// All of it.
pub(super) fn bytes(path: &Path) -> Result<Vec<u8>> {
    let mut all = vec![];
    let read = open(path)?.read_to_end(&mut all);
    read.map_err(|e| DataError::io(path, e))?;
    Ok(all)
}

/// All of it as text.
pub(super) fn text(path: &Path) -> Result<String> {
    let bytes = bytes(path)?;
    String::from_utf8(bytes).map_err(|e| {
        let before = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = before.iter().filter(|b| **b == b'\n').count() as u64 + 1;
        DataError::line(path, line, "not UTF-8 text")
    })
}

/// What lies in a folder, sorted by name; hidden files are left out.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let listed = std::fs::read_dir(folder).map_err(|e| DataError::io(folder, e))?;
    let mut all = vec![];
    for entry in listed {
        let path = entry.map_err(|e| DataError::io(folder, e))?.path();
        if !name(&path).starts_with('.') {
            all.push(path);
        }
    }
    all.sort();
    Ok(all)
}

/// The last part of a path.
pub(super) fn name(path: &Path) -> String {
    path.file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// The line on which a record begins: its position is where the one before ended, empty lines lie between.
pub(super) fn line_of(bytes: &[u8], position: Option<&csv::Position>) -> u64 {
    let Some(position) = position else {
        return 0;
    };
    let rest = bytes.iter().skip(position.byte() as usize);
    let empty = rest.take_while(|b| matches!(b, b'\n' | b'\r'));
    position.line() + empty.filter(|b| **b == b'\n').count() as u64
}
