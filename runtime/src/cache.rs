//! A folder of stores, one per program, that processes share.
//!
//! A store appears by renaming a finished file, so that whoever opens one sees all of it, and goes by being unlinked, which
//! leaves those who map it alone. Nothing here is an error to a user: what cannot be read, written or removed is left.

use crate::store::{self, Store};
use bytes::Bytes;
use cupola_backend::{Keeper, Key};
use cupola_source::Source;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

/// Bytes that stores may take together, unless told otherwise.
pub const USUAL_LIMIT: u64 = 4 << 30;

/// Files that were begun so long ago will not be finished.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Where stores are kept between processes, and how many bytes of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    folder: PathBuf,
    limit: u64,
}

impl Cache {
    /// A cache in this folder, which is made when something is kept. Of what is beyond `limit` bytes the least recently
    /// used goes.
    pub fn new(folder: impl Into<PathBuf>, limit: u64) -> Cache {
        Cache {
            folder: folder.into(),
            limit,
        }
    }

    /// The cache that `CUPOLA_CACHE` names: a folder, or `off`; unset, the folder `cupola` in the user's cache folder.
    pub fn from_environment() -> Option<Cache> {
        let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
        let folder = match var("CUPOLA_CACHE") {
            Some(value) if value == "off" => return None,
            Some(folder) => PathBuf::from(folder),
            None => {
                let of_user = var("XDG_CACHE_HOME").map(PathBuf::from);
                let of_user = of_user.filter(|p| p.is_absolute());
                let at_home = || Some(PathBuf::from(var("HOME")?).join(".cache"));
                of_user.or_else(at_home)?.join("cupola")
            }
        };
        Some(Cache::new(folder, USUAL_LIMIT))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, key: Key) -> PathBuf {
        self.folder.join(format!("{key:?}.store"))
    }

    /// The store of a program.
    pub(crate) fn open(&self, key: Key) -> Option<Store> {
        let path = self.path(key);
        let folder = fs::symlink_metadata(&self.folder).ok()?;
        if !is_private(&folder) {
            tracing::debug!("{}: others may write here, not used", self.folder.display());
            return None;
        }
        let source = Source::open(&path).ok()?;
        let Some(store) = Store::read(source.bytes()).filter(|s| s.key() == key) else {
            tracing::debug!("{}: not a whole store of this program", path.display());
            return None;
        };
        // The time of the last change says when it was last used.
        let file = OpenOptions::new().write(true).open(&path);
        let touched = file.and_then(|f| f.set_modified(SystemTime::now()));
        touched.unwrap_or_else(|e| tracing::debug!("{}: {e}", path.display()));
        Some(store)
    }

    /// Keeps the store of a program, and makes room for it.
    pub(crate) fn put(&self, key: Key, pieces: &[(Key, Bytes)]) {
        if let Err(e) = self.try_put(key, pieces) {
            tracing::debug!("{}: not kept: {e}", self.folder.display());
        }
    }

    fn try_put(&self, key: Key, pieces: &[(Key, Bytes)]) -> io::Result<()> {
        let size: u64 = pieces.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        if size > self.limit / 2 {
            return Err(io::Error::other(format!("{size} bytes are too many")));
        }
        make_private(&self.folder)?;
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        let part = self.folder.join(format!("{key:?}-{unique}.part"));
        let written = write_file(&part, key, pieces)
            .and_then(|()| fs::rename(&part, self.path(key)))
            .inspect_err(|_| {
                // It may not even have been begun.
                let _ = fs::remove_file(&part);
            });
        self.evict(key);
        written
    }

    /// Removes abandoned files, and the least recently used stores until the rest is within the limit; not that of `newest`.
    fn evict(&self, newest: Key) {
        let now = SystemTime::now();
        let mut stores: Vec<(SystemTime, u64, PathBuf)> = vec![];
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(facts) = entry.metadata() else {
                continue;
            };
            let used = facts.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            match path.extension().and_then(|e| e.to_str()) {
                Some("store") if facts.is_file() => stores.push((used, facts.len(), path)),
                Some("part") if now.duration_since(used).is_ok_and(|age| age > ABANDONED) => {
                    remove(&path);
                }
                _ => {}
            }
        }
        stores.sort();
        let kept = self.path(newest);
        let mut all: u64 = stores.iter().map(|(_, size, _)| size).sum();
        for (_, size, path) in stores.iter().filter(|(_, _, path)| *path != kept) {
            if all <= self.limit {
                break;
            }
            remove(path);
            all -= size;
        }
    }
}

/// What belongs to no program is a store of one piece.
impl Keeper for Cache {
    fn find(&self, key: Key) -> Option<Bytes> {
        self.open(key)?.find(key)
    }

    fn keep(&self, key: Key, bytes: Bytes) {
        self.put(key, &[(key, bytes)]);
    }
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Ok(()) => tracing::debug!("{}: removed", path.display()),
        Err(e) => tracing::debug!("{}: {e}", path.display()),
    }
}

fn write_file(path: &Path, key: Key, pieces: &[(Key, Bytes)]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file: File = options.open(path)?;
    let mut out = BufWriter::with_capacity(1 << 16, file);
    store::write(key, pieces, &mut out)?;
    out.flush()
}

/// A folder that only the user can enter: what lies in it is run as code.
fn make_private(folder: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)?;
    match is_private(&fs::symlink_metadata(folder)?) {
        true => Ok(()),
        false => Err(io::Error::other("others may write here")),
    }
}

/// Whether nobody but the user can put files into a folder.
#[cfg(unix)]
fn is_private(folder: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    // Where processes are files, they show whose they are; elsewhere the permissions have to do.
    let own = fs::metadata("/proc/self").map(|own| own.uid());
    folder.is_dir() && folder.mode() & 0o022 == 0 && own.map_or(true, |own| own == folder.uid())
}

#[cfg(not(unix))]
fn is_private(folder: &Metadata) -> bool {
    folder.is_dir()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that is removed at the end.
    struct Scene(PathBuf);

    impl Scene {
        fn new(name: &str) -> Scene {
            let path = format!("cupola-cache-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(path);
            let _ = fs::remove_dir_all(&path);
            Scene(path)
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn pieces(size: usize) -> Vec<(Key, Bytes)> {
        vec![(Key(5), vec![3; size].into())]
    }

    fn used(cache: &Cache, key: Key, seconds_ago: u64) {
        let file = OpenOptions::new().write(true).open(cache.path(key));
        let then = SystemTime::now() - Duration::from_secs(seconds_ago);
        file.and_then(|f| f.set_modified(then)).expect("a time");
    }

    #[test]
    fn the_least_recently_used_goes() {
        let scene = Scene::new("evict");
        let cache = Cache::new(&scene.0, 100_000);
        for (key, age) in [(1, 30), (2, 90), (3, 60)] {
            cache.put(Key(key), &pieces(25_000));
            used(&cache, Key(key), age);
        }
        assert!(cache.open(Key(2)).is_some(), "it counts as used now");
        cache.put(Key(4), &pieces(25_000));
        let left = [1, 2, 3, 4].map(|key| cache.open(Key(key)).is_some());
        assert_eq!(left, [true, true, false, true]);
        cache.put(Key(9), &pieces(60_000));
        assert!(cache.open(Key(9)).is_none(), "more than half of all");
    }

    #[test]
    fn abandoned_files_go_and_foreign_ones_stay() {
        let scene = Scene::new("abandoned");
        let cache = Cache::new(&scene.0, 100_000);
        cache.put(Key(1), &pieces(10));
        let file = |name: &str, age: Duration| {
            let path = scene.0.join(name);
            fs::write(&path, "begun").expect("written");
            let file = OpenOptions::new().write(true).open(&path).expect("a file");
            file.set_modified(SystemTime::now() - age).expect("a time");
            path
        };
        let old = file("1-2-3.part", 2 * ABANDONED);
        let young = file("1-2-4.part", Duration::ZERO);
        let foreign = file("notes.txt", 2 * ABANDONED);
        cache.put(Key(2), &pieces(10));
        assert_eq!(
            [old, young, foreign].map(|p| p.exists()),
            [false, true, true]
        );
    }

    #[test]
    fn a_store_of_another_program_is_none() {
        let scene = Scene::new("foreign");
        let cache = Cache::new(&scene.0, 100_000);
        cache.put(Key(1), &pieces(10));
        fs::rename(cache.path(Key(1)), cache.path(Key(2))).expect("renamed");
        assert!(cache.open(Key(2)).is_none());
        cache.put(Key(2), &pieces(10));
        assert_eq!(
            cache
                .open(Key(2))
                .and_then(|s| s.find(Key(5)))
                .map(|b| b.len()),
            Some(10)
        );
    }
}
