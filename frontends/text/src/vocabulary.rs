//! [`Vocabulary`]: the bytes and the kind of every token; [`Index`]: tokens found by their bytes; [`Prefixes`]: tokens
//! that a text begins with.

use std::hash::{BuildHasher, RandomState};

use crate::error::TextError;

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Part of a text.
    Normal,
    /// Stands for what the vocabulary cannot spell.
    Unknown,
    /// Steers the model; text spells it only where special tokens are parsed.
    Control,
    /// Text that is always one token.
    UserDefined,
    /// Never produced.
    Unused,
    /// One byte, for characters that the vocabulary lacks.
    Byte,
}

impl TokenKind {
    /// Whether the token is no part of the text that a model writes.
    pub fn is_special(self) -> bool {
        matches!(self, TokenKind::Control | TokenKind::Unknown)
    }
}

/// The tokens of a model, numbered from 0.
#[derive(Clone, Debug, Default)]
pub struct Vocabulary {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    kinds: Vec<TokenKind>,
}

impl Vocabulary {
    /// Appends a token that stands for `bytes`.
    ///
    /// # Errors
    /// [`TextError::TooLarge`] when all tokens together take 4 GiB.
    pub fn push(&mut self, bytes: &[u8], kind: TokenKind) -> Result<(), TextError> {
        let end = self.bytes.len() + bytes.len();
        let end = u32::try_from(end).map_err(|_| TextError::TooLarge("bytes"))?;
        self.bytes.extend_from_slice(bytes);
        self.ends.push(end);
        self.kinds.push(kind);
        Ok(())
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes that a token stands for; none for tokens that do not exist.
    pub fn token(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else {
            return &[];
        };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start as usize..end as usize]
    }

    /// What a token is for; `None` for tokens that do not exist.
    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    /// Changes what a token that exists is for.
    pub fn set_kind(&mut self, id: u32, kind: TokenKind) {
        self.kinds[id as usize] = kind;
    }

    /// All tokens in order.
    pub fn ids(&self) -> std::ops::Range<u32> {
        0..self.ends.len() as u32
    }
}

const EMPTY: u32 = u32::MAX;

/// Tokens by their bytes: an open hash table of numbers, without copies of what is in the vocabulary. Its hash is
/// keyed at random, so that no file can make all tokens collide.
#[derive(Clone, Debug)]
pub struct Index {
    slots: Vec<u32>,
    hasher: RandomState,
}

impl Index {
    /// The index of the given tokens. Of several with the same bytes the first counts.
    pub fn new(vocabulary: &Vocabulary, ids: impl Iterator<Item = u32>) -> Index {
        let slot_count = (vocabulary.len() * 2).next_power_of_two().max(2);
        let mut index = Index {
            slots: vec![EMPTY; slot_count],
            hasher: RandomState::new(),
        };
        for id in ids {
            let slot = index.find(vocabulary, vocabulary.token(id));
            if index.slots[slot] == EMPTY {
                index.slots[slot] = id;
            }
        }
        index
    }

    /// The token that stands for exactly these bytes.
    pub fn get(&self, vocabulary: &Vocabulary, bytes: &[u8]) -> Option<u32> {
        let id = self.slots[self.find(vocabulary, bytes)];
        (id != EMPTY).then_some(id)
    }

    /// The slot that holds the token, or where it would be.
    fn find(&self, vocabulary: &Vocabulary, bytes: &[u8]) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = self.hasher.hash_one(bytes) as usize & mask;
        while self.slots[slot] != EMPTY && vocabulary.token(self.slots[slot]) != bytes {
            slot = (slot + 1) & mask;
        }
        slot
    }
}

/// Tokens in the order of their bytes, to find those that a text begins with.
#[derive(Clone, Debug, Default)]
pub struct Prefixes {
    sorted: Vec<u32>,
    /// Where the tokens with this first byte begin in `sorted`; the last entry is its length.
    starts: Vec<u32>,
}

impl Prefixes {
    /// Of several tokens with the same bytes the first counts; those without bytes are left out.
    pub fn new(vocabulary: &Vocabulary, ids: impl Iterator<Item = u32>) -> Prefixes {
        let mut sorted: Vec<u32> = ids.filter(|&id| !vocabulary.token(id).is_empty()).collect();
        sorted.sort_by_key(|&id| vocabulary.token(id));
        sorted.dedup_by_key(|id| vocabulary.token(*id));
        let starts = (0..=256)
            .map(|first| {
                sorted.partition_point(|&id| usize::from(vocabulary.token(id)[0]) < first) as u32
            })
            .collect();
        Prefixes { sorted, starts }
    }

    /// The tokens that `text` begins with, shortest first.
    pub fn of<'a>(
        &'a self,
        vocabulary: &'a Vocabulary,
        text: &'a [u8],
    ) -> impl Iterator<Item = u32> + 'a {
        let mut range = match text.first() {
            Some(&first) if !self.starts.is_empty() => {
                let first = usize::from(first);
                self.starts[first] as usize..self.starts[first + 1] as usize
            }
            _ => 0..0,
        };
        let mut depth = 1;
        std::iter::from_fn(move || {
            while !range.is_empty() {
                // The token that ends here is the first of those that share what was read.
                let first = self.sorted[range.start];
                if vocabulary.token(first).len() == depth {
                    range.start += 1;
                    return Some(first);
                }
                let &next = text.get(depth)?;
                let within = &self.sorted[range.clone()];
                let low = within.partition_point(|&id| vocabulary.token(id)[depth] < next);
                let high = within.partition_point(|&id| vocabulary.token(id)[depth] <= next);
                range = range.start + low..range.start + high;
                depth += 1;
            }
            None
        })
    }

    /// The longest token that `text` begins with.
    pub fn longest(&self, vocabulary: &Vocabulary, text: &[u8]) -> Option<u32> {
        self.of(vocabulary, text).last()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary(tokens: &[&str]) -> Vocabulary {
        let mut vocabulary = Vocabulary::default();
        for token in tokens {
            vocabulary
                .push(token.as_bytes(), TokenKind::Normal)
                .expect("a small vocabulary");
        }
        vocabulary
    }

    #[test]
    fn tokens_are_found_by_bytes() {
        let vocabulary = vocabulary(&["a", "ab", "", "ab", "b"]);
        let index = Index::new(&vocabulary, vocabulary.ids());
        assert_eq!(index.get(&vocabulary, b"ab"), Some(1));
        assert_eq!(index.get(&vocabulary, b"b"), Some(4));
        assert_eq!(index.get(&vocabulary, b""), Some(2));
        assert_eq!(index.get(&vocabulary, b"abc"), None);
    }

    #[test]
    fn prefixes_come_shortest_first() {
        let vocabulary = vocabulary(&["abc", "a", "b", "abcd", "", "ab", "abd", "a"]);
        let prefixes = Prefixes::new(&vocabulary, vocabulary.ids());
        let of = |text: &str| {
            prefixes
                .of(&vocabulary, text.as_bytes())
                .collect::<Vec<_>>()
        };
        assert_eq!(of("abcx"), [1, 5, 0]);
        assert_eq!(of("abcd"), [1, 5, 0, 3]);
        assert_eq!(of("b"), [2]);
        assert!(of("c").is_empty());
        assert!(of("").is_empty());
        assert_eq!(prefixes.longest(&vocabulary, b"abx"), Some(5));
        assert_eq!(Prefixes::default().longest(&vocabulary, b"abx"), None);
    }
}
