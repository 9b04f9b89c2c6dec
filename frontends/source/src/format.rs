//! Telling model formats apart by their first bytes. Names and suffixes are never asked.

use std::fmt;
use std::path::Path;

use crate::{Source, SourceError};

/// What a file looks like. Only its own reader can say whether it is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// A protobuf message whose top-level fields are those of ONNX `ModelProto`.
    Onnx,
    /// A GGUF container.
    Gguf,
    /// A safetensors file.
    SafeTensors,
    /// A `.npy` array.
    Npy,
    /// A zip archive, as `.npz` is.
    Zip,
    /// Our own binary graph file.
    CupolaBinary,
    /// A program compiled ahead of time by us.
    CupolaProgram,
    /// Our own text form: `graph @name(...)` after comments.
    CupolaText,
    /// A folder that holds a model: a `config.json`, or safetensors files under their usual names.
    Folder,
    /// None of these.
    Unknown,
}

impl Format {
    /// The format of what lies at `path`, which may be a file or a folder.
    ///
    /// # Errors
    /// [`SourceError`] when there is nothing, or nothing readable.
    pub fn of_path(path: &Path) -> Result<Format, SourceError> {
        if !path.is_dir() {
            return Ok(Source::open(path)?.format());
        }
        let names = [
            "config.json",
            "model.safetensors",
            "model.safetensors.index.json",
        ];
        let known = names.into_iter().any(|name| path.join(name).is_file());
        Ok(if known {
            Format::Folder
        } else {
            Format::Unknown
        })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Onnx => "ONNX",
            Format::Gguf => "GGUF",
            Format::SafeTensors => "safetensors",
            Format::Npy => "npy",
            Format::Zip => "zip",
            Format::CupolaBinary => "Cupola binary graph",
            Format::CupolaProgram => "Cupola compiled program",
            Format::CupolaText => "Cupola text graph",
            Format::Folder => "model folder",
            Format::Unknown => "unknown",
        })
    }
}

/// The longest safetensors header, as the format itself limits it.
const SAFETENSORS_HEADER_LIMIT: u64 = 100_000_000;

/// Comments in front of a text graph are skipped up to here.
const TEXT_PREFIX_LIMIT: usize = 1 << 20;

/// Tells the format of a file from its content. Damaged files are still recognised where their beginning is whole, so
/// that the right reader can say what is wrong with them. Looks at few bytes, whatever the size.
pub fn sniff(bytes: &[u8]) -> Format {
    if bytes.starts_with(b"GGUF") {
        return Format::Gguf;
    }
    if bytes.starts_with(b"CUPOLA\0\0") {
        return Format::CupolaBinary;
    }
    if bytes.starts_with(b"CUPOLAOT") {
        return Format::CupolaProgram;
    }
    if bytes.starts_with(b"\x93NUMPY") {
        return Format::Npy;
    }
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06") {
        return Format::Zip;
    }
    let header_len = bytes
        .first_chunk::<8>()
        .map(|head| u64::from_le_bytes(*head));
    let opens_json = bytes.get(8) == Some(&b'{');
    if opens_json && header_len.is_some_and(|len| len <= SAFETENSORS_HEADER_LIMIT) {
        return Format::SafeTensors;
    }
    if is_text_graph(bytes) {
        return Format::CupolaText;
    }
    if looks_like_onnx(bytes) {
        return Format::Onnx;
    }
    // A header length past the limit is still a safetensors file's mistake rather than nobody's.
    if opens_json {
        Format::SafeTensors
    } else {
        Format::Unknown
    }
}

/// `graph` and a blank or `@`, after blank lines and lines that start with `#` or `//`.
fn is_text_graph(bytes: &[u8]) -> bool {
    let mut rest = &bytes[..bytes.len().min(TEXT_PREFIX_LIMIT)];
    loop {
        rest = rest.trim_ascii_start();
        if rest.starts_with(b"#") || rest.starts_with(b"//") {
            let line = rest
                .iter()
                .position(|&byte| byte == b'\n')
                .unwrap_or(rest.len());
            rest = &rest[line..];
            continue;
        }
        return rest.strip_prefix(b"graph").is_some_and(|name| {
            name.starts_with(b"@") || name.trim_ascii_start().starts_with(b"@")
        });
    }
}

/// Whether the top-level protobuf fields are those of `ModelProto`. An `ir_version` in front, which every writer puts
/// there, is enough; other orders must go on plausibly to the end or to a length that runs past it.
fn looks_like_onnx(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    let mut fields = 0;
    while !rest.is_empty() && fields < 64 {
        let Some(key) = varint(&mut rest) else {
            return fields > 0;
        };
        let known = match (key >> 3, key & 7) {
            (1, 0) if fields == 0 => {
                return varint(&mut rest).is_some_and(|version| version < 1 << 16);
            }
            (1 | 5, 0) => varint(&mut rest).is_some(),
            (2..=4 | 6..=8 | 14 | 20 | 25 | 26, 2) => match varint(&mut rest) {
                Some(len) if len <= rest.len() as u64 => {
                    rest = &rest[len as usize..];
                    true
                }
                Some(len) => return len < 1 << 40 && fields > 0,
                None => false,
            },
            _ => false,
        };
        if !known {
            return false;
        }
        fields += 1;
    }
    fields > 0
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for (index, &byte) in rest.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            *rest = &rest[index + 1..];
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_by_content() {
        assert_eq!(sniff(b"GGUF\x03\0\0\0"), Format::Gguf);
        assert_eq!(sniff(b"CUPOLA\0\0\x01"), Format::CupolaBinary);
        assert_eq!(sniff(b"\x93NUMPY\x01\0"), Format::Npy);
        assert_eq!(sniff(b"PK\x03\x04...."), Format::Zip);
        assert_eq!(sniff(b"\x02\0\0\0\0\0\0\0{}"), Format::SafeTensors);
        assert_eq!(
            sniff(b"\xff\xff\xff\xff\xff\xff\xff\xff{}"),
            Format::SafeTensors
        );
        assert_eq!(sniff(b"graph @f() {}"), Format::CupolaText);
        assert_eq!(
            sniff(b"\n# a comment\n  // another\n graph @f"),
            Format::CupolaText
        );
        assert_eq!(sniff(b"graphic @f"), Format::Unknown);
        assert_eq!(sniff(b""), Format::Unknown);
        assert_eq!(sniff(b"this is not a model\n"), Format::Unknown);
        assert_eq!(sniff(b"{\"a\": 1}"), Format::Unknown);
    }

    #[test]
    fn onnx_is_told_by_its_fields() {
        assert_eq!(sniff(b"\x08\x08\x3a\x00"), Format::Onnx);
        assert_eq!(
            sniff(b"\x08\x08\x3a\xff\xff\xff\x7f"),
            Format::Onnx,
            "a cut file"
        );
        assert_eq!(
            sniff(b"\x3a\x02\x12\x00\x42\x02\x10\x11"),
            Format::Onnx,
            "graph before the version"
        );
        assert_eq!(sniff(b"\x0b\x0b\x0b\x0b"), Format::Unknown, "nested groups");
        assert_eq!(sniff(b"(a lisp program)"), Format::Unknown);
    }
}
