//! Files that appear under their name only when they are complete.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// A file under way, written beside the place where it is to appear. Dropped before [`WholeFile::finish`], it is
/// removed, and what was there before stays. A device or pipe of that name is written to itself: a file would replace it.
#[derive(Debug)]
pub struct WholeFile {
    file: BufWriter<File>,
    part: PathBuf,
    path: PathBuf,
    is_stream: bool,
}

impl WholeFile {
    /// Begins a file.
    ///
    /// # Errors
    /// A folder that is not there or may not be written to.
    pub fn create(path: &Path) -> io::Result<WholeFile> {
        let found = std::fs::metadata(path);
        let is_stream = found.is_ok_and(|found| !found.is_file() && !found.is_dir());
        let mut part = path.as_os_str().to_owned();
        if !is_stream {
            part.push(".part");
        }
        let part = PathBuf::from(part);
        Ok(WholeFile {
            file: BufWriter::new(File::create(&part)?),
            part,
            path: path.to_owned(),
            is_stream,
        })
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// A full disk, a name that is a folder's.
    pub fn finish(mut self) -> io::Result<()> {
        self.file.flush()?;
        self.appear()
    }

    fn appear(&self) -> io::Result<()> {
        match self.is_stream {
            true => Ok(()),
            false => std::fs::rename(&self.part, &self.path),
        }
    }

    /// As [`WholeFile::finish`], once all bytes are where a loss of power does not reach them: for what replaces the
    /// only copy of something.
    ///
    /// # Errors
    /// As [`WholeFile::finish`].
    pub fn finish_durably(mut self) -> io::Result<()> {
        self.file.flush()?;
        if !self.is_stream {
            self.file.get_ref().sync_data()?;
        }
        self.appear()
    }

    /// Another handle of the file, for writers that want to own one. What is written through it and through `self`
    /// must not alternate.
    ///
    /// # Errors
    /// A system without handles left.
    pub fn handle(&self) -> io::Result<File> {
        self.file.get_ref().try_clone()
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        if !self.is_stream {
            // Not there any more once the file has its name.
            let _ = std::fs::remove_file(&self.part);
        }
    }
}

/// Writes a file, complete or not at all.
///
/// # Errors
/// Those of `write` and of the file.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut WholeFile) -> io::Result<()>,
) -> io::Result<()> {
    let mut file = WholeFile::create(path)?;
    write(&mut file)?;
    file.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_appear_complete_or_not_at_all() {
        let name = format!("cupola-whole-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let read = || std::fs::read(&path).ok();
        write_atomically(&path, |f| f.write_all(b"one")).expect("a file");
        let failed = write_atomically(&path, |f| {
            f.write_all(b"two")?;
            Err(io::Error::other("stopped"))
        });
        assert!(failed.is_err());
        assert_eq!(read().as_deref(), Some(&b"one"[..]));
        let mut file = WholeFile::create(&path).expect("a file");
        file.write_all(b"three").expect("room");
        assert!(file.part.exists());
        let part = file.part.clone();
        file.finish_durably().expect("room");
        assert!(!part.exists());
        assert_eq!(read().as_deref(), Some(&b"three"[..]));
        let _ = std::fs::remove_file(&path);
    }

    #[test]
    #[cfg(unix)]
    fn what_is_no_file_is_not_replaced() {
        use std::os::unix::fs::FileTypeExt;
        let name = format!("cupola-socket-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_file(&path);
        let socket = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
        assert!(write_atomically(&path, |f| f.write_all(b"gone")).is_err());
        let found = std::fs::metadata(&path).expect("a socket");
        assert!(found.file_type().is_socket());
        drop(socket);
        let _ = std::fs::remove_file(&path);
    }
}
