//! [`Source`]: the bytes of one file, memory-mapped and shared without copying. The only module that maps memory.
#![allow(unsafe_code)]

use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
#[cfg(unix)]
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;

use crate::{ContentHash, Fault, Format, quote, sniff};

/// The bytes of a file or of a buffer. Cloning is cheap; slices of [`Source::bytes`] keep the mapping alive.
///
/// A mapped file must not be changed or cut while it is in use: the bytes then change under the reader, and on most
/// systems touching a page past the new end ends the process. That is the contract of every memory-mapping reader.
#[derive(Clone, Debug)]
pub struct Source {
    bytes: Bytes,
    map: Option<Arc<Mmap>>,
    path: Option<PathBuf>,
    /// Names the file in the state in which it was opened.
    stamp: Option<ContentHash>,
}

/// A mapping that [`Bytes`] keep alive.
struct Mapped(Arc<Mmap>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Why a file could not be opened. Every case is the user's to mend.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file does not exist, may not be read, or could not be mapped.
    #[error("cannot read the file: {error}, {}", quote(&path.to_string_lossy()))]
    Io {
        /// The path that was asked for.
        path: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },
    /// The path is a folder, a pipe, a device or a socket, where a file was needed.
    #[error("not a regular file, {}", quote(&path.to_string_lossy()))]
    NotAFile {
        /// The path that was asked for.
        path: PathBuf,
    },
}

impl SourceError {
    /// Always [`Fault::Malformed`]: what cannot be read cannot be valid.
    pub fn fault(&self) -> Fault {
        Fault::Malformed
    }
}

impl Source {
    /// Maps a regular file. Nothing is read yet; an empty file gives empty bytes.
    ///
    /// # Errors
    /// [`SourceError`] when the path is not a regular file (symbolic links are followed) or cannot be opened or mapped.
    pub fn open(path: impl AsRef<Path>) -> Result<Source, SourceError> {
        let path = path.as_ref();
        let failed = |error| SourceError::Io {
            path: path.to_owned(),
            error,
        };
        // Asked before opening, since opening a pipe waits for a writer.
        if !path.metadata().map_err(failed)?.is_file() {
            return Err(SourceError::NotAFile {
                path: path.to_owned(),
            });
        }
        let file = File::open(path).map_err(failed)?;
        let facts = file.metadata().map_err(failed)?;
        let map = match facts.len() {
            0 => None,
            _ => Some(Arc::new(map(&file).map_err(failed)?)),
        };
        let bytes = map.clone().map(|m| Bytes::from_owner(Mapped(m)));
        Ok(Source {
            bytes: bytes.unwrap_or_default(),
            map,
            path: Some(path.to_owned()),
            stamp: stamp(&facts),
        })
    }

    /// A source over bytes in memory, which has no path and so no neighbouring files.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Source {
        Source {
            bytes: bytes.into(),
            map: None,
            path: None,
            stamp: None,
        }
    }

    /// The whole content. `slice` on it shares the mapping.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The path it was opened by; `None` for bytes in memory.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The folder of the file, in which a model's side files must lie; `None` for bytes in memory.
    pub fn folder(&self) -> Option<&Path> {
        let folder = self.path.as_deref()?.parent()?;
        Some(if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        })
    }

    /// The format, told by content.
    pub fn format(&self) -> Format {
        sniff(&self.bytes)
    }

    /// Gives the pages of a part of [`Source::bytes`] back to the system, which reads them from the file again when
    /// they are next looked at. Nothing happens for bytes in memory, and for bytes that are not part of these.
    pub fn release(&self, part: &[u8]) {
        const PAGE: usize = 4096;
        let Some(map) = &self.map else { return };
        let (all, from) = (map.as_ptr() as usize, part.as_ptr() as usize);
        if from < all || from + part.len() > all + map.len() || part.is_empty() {
            return;
        }
        let first = (from - all) / PAGE * PAGE;
        let end = (from - all + part.len()).next_multiple_of(PAGE);
        let size = end.min(map.len()) - first;
        release(map, first, size);
    }

    /// Names a part of [`Source::bytes`] without reading it: by the file (device and number, size, times of the last change of
    /// contents and of facts, to the nanosecond) and the place in it. The same name for other bytes takes a file that was
    /// written to within one tick of the system's clock, so none is given of files that changed in the last seconds before
    /// they were opened, nor where files have no numbers; nor of bytes that are not part of these.
    pub fn identify(&self, part: &[u8]) -> Option<ContentHash> {
        let (stamp, map) = (self.stamp?, self.map.as_ref()?);
        let from = (part.as_ptr() as usize).checked_sub(map.as_ptr() as usize)?;
        let inside = from
            .checked_add(part.len())
            .is_some_and(|end| end <= map.len());
        let place = [stamp.0, from as u128, part.len() as u128];
        inside.then(|| ContentHash::of(&place.map(u128::to_le_bytes).concat()))
    }

    /// The hash of the whole content. Reads every page.
    pub fn hash(&self) -> ContentHash {
        ContentHash::of(&self.bytes)
    }
}

/// See [`Source::identify`].
#[cfg(unix)]
fn stamp(facts: &Metadata) -> Option<ContentHash> {
    use std::os::unix::fs::MetadataExt;
    const SETTLED: Duration = Duration::from_secs(2);
    let changed = facts.ctime().max(facts.mtime());
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(changed).ok()?);
    let age = SystemTime::now().duration_since(changed).ok()?;
    let times = [
        facts.mtime(),
        facts.mtime_nsec(),
        facts.ctime(),
        facts.ctime_nsec(),
    ];
    let numbers = [facts.dev(), facts.ino(), facts.size()].into_iter();
    let all = numbers.chain(times.map(i64::cast_unsigned));
    let all: Vec<u8> = all.flat_map(u64::to_le_bytes).collect();
    (age > SETTLED).then(|| ContentHash::of(&all))
}

#[cfg(not(unix))]
fn stamp(_facts: &Metadata) -> Option<ContentHash> {
    None
}

#[cfg(unix)]
fn release(map: &Mmap, first: usize, size: usize) {
    // SAFETY: the mapping is of a file, shared and never written through, so the pages come back with the same bytes.
    // A refusal costs memory only.
    let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, first, size) };
}

#[cfg(not(unix))]
fn release(_map: &Mmap, _first: usize, _size: usize) {}

fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the mapping is read-only and private to this process. That nobody changes or cuts the file while it is
    // mapped cannot be enforced here; it is the documented contract of `Source`, upheld by whoever names the file.
    // Readers treat the bytes as untrusted and index them with bounds checks only.
    unsafe { Mmap::map(file) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_is_sliced_without_copying() {
        let path = std::env::temp_dir().join(format!("cupola-source-{}", std::process::id()));
        std::fs::write(&path, b"GGUF and more").unwrap();
        let source = Source::open(&path).unwrap();
        let slice = source.bytes().slice(5..8);
        assert_eq!(&slice[..], b"and");
        assert_eq!(
            slice.as_ptr() as usize - source.bytes().as_ptr() as usize,
            5
        );
        assert_eq!(source.format(), Format::Gguf);
        assert_eq!(source.folder(), Some(std::env::temp_dir().as_path()));
        source.release(&slice);
        source.release(b"bytes from elsewhere");
        assert_eq!(&slice[..], b"and", "released bytes are read again");
        drop(source);
        assert_eq!(&slice[..], b"and", "a slice outlives its source");
        std::fs::remove_file(&path).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn settled_files_name_their_parts() {
        let path = std::env::temp_dir().join(format!("cupola-source-stamp-{}", std::process::id()));
        std::fs::write(&path, [7; 100]).unwrap();
        let fresh = Source::open(&path).unwrap();
        assert_eq!(fresh.identify(fresh.bytes()), None, "it may still change");
        let mut source = fresh.clone();
        source.stamp = Some(ContentHash(1));
        let name = |s: &Source, a, b| s.identify(&s.bytes()[a..b]);
        assert!(name(&source, 0, 10).is_some());
        assert_ne!(name(&source, 0, 10), name(&source, 10, 20), "by place");
        assert_ne!(name(&source, 0, 10), name(&source, 0, 11), "by size");
        assert_eq!(source.identify(b"elsewhere"), None);
        std::fs::remove_file(&path).unwrap();
        let settled = std::env::current_exe().unwrap().metadata().unwrap();
        let directory = std::path::Path::new("/").metadata().unwrap();
        assert_ne!(stamp(&settled), stamp(&directory));
        assert_eq!(stamp(&directory), stamp(&directory));
    }

    #[test]
    fn empty_files_folders_and_missing_files() {
        let path = std::env::temp_dir().join(format!("cupola-source-empty-{}", std::process::id()));
        std::fs::write(&path, b"").unwrap();
        assert!(Source::open(&path).unwrap().bytes().is_empty());
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(Source::open(&path), Err(SourceError::Io { .. })));
        assert!(matches!(
            Source::open(std::env::temp_dir()),
            Err(SourceError::NotAFile { .. })
        ));
        let text = Source::open("no\nsuch\u{1b}file").unwrap_err().to_string();
        assert!(!text.contains('\n') && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn a_bare_file_name_lies_in_the_current_folder() {
        let source = Source {
            bytes: Bytes::new(),
            map: None,
            path: Some("model.onnx".into()),
            stamp: None,
        };
        assert_eq!(source.folder(), Some(Path::new(".")));
        assert_eq!(Source::from_bytes(vec![1, 2]).folder(), None);
    }
}
