//! What backends made before: machine code and packed weights, kept under keys by whoever loads programs.

use bytes::Bytes;
use std::fmt::{self, Write};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Names something made by all that decides it: equal keys stand for equal bytes. 128 bits of two unrelated hashes, against
/// accidents and not against an adversary; the same in every process of one release on one kind of machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub u128);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Key {
    /// The key of what the value says of itself when it is hashed.
    pub fn of(value: &(impl Hash + ?Sized)) -> Key {
        let mut hasher = KeyHasher::default();
        value.hash(&mut hasher);
        hasher.key()
    }
}

/// Collects what decides a [`Key`]: values that can be hashed, and text (`write!`) of those that cannot.
pub struct KeyHasher([DefaultHasher; 2]);

impl Default for KeyHasher {
    fn default() -> KeyHasher {
        let mut second = DefaultHasher::new();
        second.write_u8(1);
        KeyHasher([DefaultHasher::new(), second])
    }
}

impl KeyHasher {
    /// The key of all that was written.
    pub fn key(&self) -> Key {
        let [high, low] = &self.0;
        Key(u128::from(high.finish()) << 64 | u128::from(low.finish()))
    }
}

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0[0].finish()
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.iter_mut().for_each(|h| h.write(bytes));
    }
}

impl Write for KeyHasher {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        Hasher::write(self, s.as_bytes());
        Ok(())
    }
}

/// Keeps what takes time to make, perhaps beyond the process. Called from several threads at once.
pub trait Keeper: Send + Sync + fmt::Debug {
    /// The bytes kept under a key, as they were given; they begin at a multiple of 64 bytes and are only read.
    fn find(&self, key: Key) -> Option<Bytes>;

    /// Takes bytes that were made because there were none.
    fn keep(&self, key: Key, bytes: Bytes);
}

/// Keeps nothing.
#[derive(Clone, Copy, Debug)]
pub struct Forgetful;

impl Keeper for Forgetful {
    fn find(&self, _key: Key) -> Option<Bytes> {
        None
    }

    fn keep(&self, _key: Key, _bytes: Bytes) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_follow_what_is_written() {
        assert_eq!(Key::of(&(1u32, "a")), Key::of(&(1u32, "a")));
        assert_ne!(Key::of(&(1u32, "a")), Key::of(&(1u32, "b")));
        assert_ne!(Key::of(&["ab", "c"]), Key::of(&["a", "bc"]));
        let key = Key::of(&7u8).0;
        assert_ne!((key >> 64) as u64, key as u64, "two hashes");
        let mut text = KeyHasher::default();
        write!(text, "{:?}", (1, 2.5)).expect("hashing does not fail");
        assert_ne!(text.key(), KeyHasher::default().key());
    }
}
