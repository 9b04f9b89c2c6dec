//! Stores: what backends made for one program, as bytes that are mapped and used where they lie.
//!
//! Layout, little-endian: magic `CUPSTORE`, version `u32`, entry count `u32`, key of the program `u128`, size of all `u64`,
//! 8 bytes of zero, the hash of these 48 bytes and the table; then the table, one entry of key `u128`, offset `u64`, size
//! `u64` and content hash `u128` per kept piece; then the pieces at multiples of 2 MiB, 4096 or 64 bytes, by their size.
//!
//! Nothing in a store is believed before its hash has been compared: what is cut off, foreign or damaged is not there.

use bytes::Bytes;
use cupola_backend::Key;
use cupola_source::ContentHash;
use rustc_hash::FxHashMap;
use std::io::{self, Read, Write};

const MAGIC: &[u8; 8] = b"CUPSTORE";
const VERSION: u32 = 1;
const HEADER_SIZE: usize = 64;
/// Bytes of the header that its hash covers.
const HASHED_SIZE: usize = 48;
const ENTRY_SIZE: usize = 48;
const PAGE: usize = 4096;
const LINE: usize = 64;
/// Pieces of this size lie so that systems with large pages of files can map them by such (measured: small ones cost
/// ResNet-50 2.5 %).
const HUGE_PAGE: usize = 2 << 20;

/// Pieces by key, in bytes that stay as they are.
#[derive(Clone, Debug)]
pub struct Store {
    key: Key,
    bytes: Bytes,
    table: FxHashMap<Key, Piece>,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    offset: usize,
    size: usize,
    hash: ContentHash,
}

impl Store {
    /// The store in these bytes; `None` for anything that [`write`] would not have written.
    pub fn read(bytes: &Bytes) -> Option<Store> {
        let header = bytes.get(..HEADER_SIZE)?;
        let count = usize::try_from(number(header, 12, 4)?).ok()?;
        let known = header.starts_with(MAGIC) && number(header, 8, 4)? == u128::from(VERSION);
        if !known || number(header, 32, 8)? != bytes.len() as u128 {
            return None;
        }
        let end = count.checked_mul(ENTRY_SIZE)?.checked_add(HEADER_SIZE)?;
        let table = bytes.get(HEADER_SIZE..end)?;
        if number(header, HASHED_SIZE, 16)? != table_hash(&header[..HASHED_SIZE], table).0 {
            return None;
        }
        let entry = |raw: &[u8]| {
            let piece = Piece {
                offset: usize::try_from(number(raw, 16, 8)?).ok()?,
                size: usize::try_from(number(raw, 24, 8)?).ok()?,
                hash: ContentHash(number(raw, 32, 16)?),
            };
            Some((Key(number(raw, 0, 16)?), piece))
        };
        Some(Store {
            key: Key(number(header, 16, 16)?),
            bytes: bytes.clone(),
            table: table
                .chunks_exact(ENTRY_SIZE)
                .map(entry)
                .collect::<Option<_>>()?,
        })
    }

    /// The key of the program.
    pub fn key(&self) -> Key {
        self.key
    }

    /// A piece that is whole.
    pub fn find(&self, key: Key) -> Option<Bytes> {
        let piece = self.table.get(&key)?;
        let end = piece.offset.checked_add(piece.size)?;
        let bytes = self.bytes.get(piece.offset..end)?;
        (ContentHash::of(bytes) == piece.hash).then(|| self.bytes.slice(piece.offset..end))
    }
}

/// Writes a store; the first byte is taken to lie at a multiple of 4096.
///
/// # Errors
/// Those of `to`.
pub fn write(key: Key, pieces: &[(Key, Bytes)], to: &mut dyn Write) -> io::Result<()> {
    let mut at = HEADER_SIZE + pieces.len() * ENTRY_SIZE;
    let mut table = Vec::with_capacity(pieces.len() * ENTRY_SIZE);
    let mut gaps = vec![];
    for (key, bytes) in pieces {
        let from = at.next_multiple_of(alignment(bytes.len()));
        gaps.push(from - at);
        table.extend_from_slice(&key.0.to_le_bytes());
        table.extend_from_slice(&(from as u64).to_le_bytes());
        table.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        table.extend_from_slice(&ContentHash::of(bytes).0.to_le_bytes());
        at = from + bytes.len();
    }
    let mut header = Vec::with_capacity(HEADER_SIZE);
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&(pieces.len() as u32).to_le_bytes());
    header.extend_from_slice(&key.0.to_le_bytes());
    header.extend_from_slice(&(at as u64).to_le_bytes());
    header.resize(HASHED_SIZE, 0);
    let hash = table_hash(&header, &table);
    header.extend_from_slice(&hash.0.to_le_bytes());
    to.write_all(&header)?;
    to.write_all(&table)?;
    for ((_, bytes), gap) in pieces.iter().zip(gaps) {
        io::copy(&mut io::repeat(0).take(gap as u64), to)?;
        to.write_all(bytes)?;
    }
    Ok(())
}

fn alignment(size: usize) -> usize {
    let alignments = [HUGE_PAGE, PAGE];
    let fits = alignments.into_iter().find(|alignment| size >= *alignment);
    fits.unwrap_or(LINE)
}

fn table_hash(header: &[u8], table: &[u8]) -> ContentHash {
    ContentHash::of(&[header, table].concat())
}

/// A little-endian number of up to 16 bytes.
fn number(bytes: &[u8], at: usize, size: usize) -> Option<u128> {
    let raw = bytes.get(at..at + size)?;
    Some(raw.iter().rev().fold(0, |n, b| n << 8 | u128::from(*b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces() -> Vec<(Key, Bytes)> {
        let bytes =
            |n: usize| Bytes::from((0..n).map(|i| (i * 7 % 251) as u8).collect::<Vec<u8>>());
        vec![
            (Key(1), bytes(100)),
            (Key(2), bytes(9000)),
            (Key(1 << 100), bytes(0)),
            (Key(3), bytes(4096)),
        ]
    }

    fn written() -> Vec<u8> {
        let mut out = vec![];
        write(Key(77), &pieces(), &mut out).expect("memory takes everything");
        out
    }

    #[test]
    fn what_is_written_is_found_aligned() {
        let bytes = Bytes::from(written());
        let store = Store::read(&bytes).expect("a whole store");
        assert_eq!(store.key(), Key(77));
        for (key, wanted) in pieces() {
            let found = store.find(key).expect("every piece");
            assert_eq!(found, wanted);
            let at = found.as_ptr() as usize - bytes.as_ptr() as usize;
            let alignment = if wanted.len() >= PAGE { PAGE } else { LINE };
            assert!(wanted.is_empty() || at.is_multiple_of(alignment), "{at}");
        }
        assert!(store.find(Key(4)).is_none());
    }

    #[test]
    fn nothing_damaged_is_found() {
        let whole = written();
        let step = |at: usize| if at < 600 { 1 } else { 37 };
        let mut at = 0;
        while at < whole.len() {
            let cut = Bytes::copy_from_slice(&whole[..at]);
            assert!(Store::read(&cut).is_none(), "cut at {at}");
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            if let Some(store) = Store::read(&flipped.into()) {
                for (key, wanted) in pieces() {
                    assert!(store.find(key).is_none_or(|b| b == wanted), "flipped {at}");
                }
            }
            at += step(at);
        }
    }

    #[test]
    fn claims_beyond_the_bytes_are_refused() {
        let mut huge = written();
        huge[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Store::read(&huge.into()).is_none());
        let mut far = written();
        far[HEADER_SIZE + 16..HEADER_SIZE + 24].copy_from_slice(&u64::MAX.to_le_bytes());
        let end = HEADER_SIZE + pieces().len() * ENTRY_SIZE;
        let hash = table_hash(&far[..HASHED_SIZE], &far[HEADER_SIZE..end]);
        far[HASHED_SIZE..HEADER_SIZE].copy_from_slice(&hash.0.to_le_bytes());
        let store = Store::read(&far.into()).expect("a sound table");
        assert!(store.find(Key(1)).is_none());
    }
}
