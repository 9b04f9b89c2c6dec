//! Byte pair encoding: a word's pieces are joined in pairs, the pair that was learnt first before all others.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use crate::error::TextError;
use crate::vocabulary::{Index, Vocabulary};

/// A learnt vocabulary of pairs.
#[derive(Clone, Debug)]
pub struct Bpe {
    /// The pair of tokens that is joined: its rank and the result.
    merges: HashMap<(u32, u32), Merge>,
    /// The tokens that may be a word's pieces, by their bytes.
    index: Index,
    /// The token of each byte.
    bytes: Vec<Option<u32>>,
    /// What a word consists of before anything is joined.
    pub alphabet: Alphabet,
    /// A word that is a token is that token, whatever pairs would make of it.
    pub whole_words: bool,
    /// Token for characters that neither tokens nor bytes spell.
    pub unknown: Option<u32>,
}

/// The smallest pieces of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alphabet {
    /// Bytes.
    Bytes,
    /// Characters; those that are no tokens are spelt in tokens for bytes.
    Characters,
}

#[derive(Clone, Copy, Debug)]
struct Merge {
    rank: u32,
    result: u32,
}

/// A piece of a word while it is encoded; `next` and `previous` are positions, [`END`] where there is none.
#[derive(Clone, Copy)]
struct Piece {
    /// [`GONE`] once it was joined to the piece before it.
    token: u32,
    previous: u32,
    next: u32,
}

const END: u32 = u32::MAX;
const GONE: u32 = u32::MAX;

impl Bpe {
    /// Builds the table of pairs. `merges` gives the bytes of both halves, first learnt first; pairs whose parts or
    /// result are no tokens of `index` cannot happen and are left out.
    ///
    /// # Errors
    /// [`TextError::TooLarge`] for 2^32 pairs.
    pub fn new<'a>(
        vocabulary: &Vocabulary,
        index: Index,
        bytes: Vec<Option<u32>>,
        alphabet: Alphabet,
        merges: impl Iterator<Item = (&'a [u8], usize)>,
    ) -> Result<Bpe, TextError> {
        let mut table = HashMap::with_capacity(merges.size_hint().0);
        for (rank, (joined, split)) in merges.enumerate() {
            let rank = u32::try_from(rank).map_err(|_| TextError::TooLarge("pairs"))?;
            let parts = (
                index.get(vocabulary, &joined[..split]),
                index.get(vocabulary, &joined[split..]),
                index.get(vocabulary, joined),
            );
            if let (Some(left), Some(right), Some(result)) = parts {
                table.entry((left, right)).or_insert(Merge { rank, result });
            }
        }
        Ok(Bpe {
            merges: table,
            index,
            bytes,
            alphabet,
            whole_words: false,
            unknown: None,
        })
    }

    /// Appends the tokens of one word.
    pub fn encode(&self, vocabulary: &Vocabulary, word: &str, tokens: &mut Vec<u32>) {
        if self.whole_words
            && let Some(token) = self.index.get(vocabulary, word.as_bytes())
        {
            tokens.push(token);
            return;
        }
        let mut pieces = self.pieces(vocabulary, word);
        let mut heap: BinaryHeap<Reverse<(u32, u32, u32)>> = BinaryHeap::new();
        for at in 0..pieces.len() as u32 {
            self.propose(&pieces, at, &mut heap);
        }
        while let Some(Reverse((rank, at, result))) = heap.pop() {
            // Entries of pieces that were joined since they were proposed are out of date.
            let Some(merge) = self.merge_at(&pieces, at) else {
                continue;
            };
            if (merge.rank, merge.result) != (rank, result) {
                continue;
            }
            join(&mut pieces, at, result);
            self.propose(&pieces, at, &mut heap);
            let previous = pieces[at as usize].previous;
            if previous != END {
                self.propose(&pieces, previous, &mut heap);
            }
        }
        let left = pieces.iter().map(|piece| piece.token);
        tokens.extend(left.filter(|&token| token != GONE));
    }

    fn pieces(&self, vocabulary: &Vocabulary, word: &str) -> Vec<Piece> {
        let mut pieces = Vec::with_capacity(word.len());
        // What nothing spells is left out, and what was around it may be joined.
        let mut push = |token: Option<u32>| {
            let at = pieces.len() as u32;
            pieces.extend(token.map(|token| Piece {
                token,
                previous: at.wrapping_sub(1),
                next: at + 1,
            }));
        };
        match self.alphabet {
            Alphabet::Bytes => {
                for byte in word.bytes() {
                    push(self.bytes[usize::from(byte)]);
                }
            }
            Alphabet::Characters => {
                for char in word.split_inclusive(|_| true) {
                    let bytes = || char.bytes().map(|byte| self.bytes[usize::from(byte)]);
                    match self.index.get(vocabulary, char.as_bytes()) {
                        Some(token) => push(Some(token)),
                        None if bytes().all(|token| token.is_some()) => bytes().for_each(&mut push),
                        None => push(self.unknown),
                    }
                }
            }
        }
        if let Some(last) = pieces.last_mut() {
            last.next = END;
        }
        pieces
    }

    /// What the piece at `at` and the next one become.
    fn merge_at(&self, pieces: &[Piece], at: u32) -> Option<Merge> {
        let piece = pieces[at as usize];
        if piece.token == GONE || piece.next == END {
            return None;
        }
        let pair = (piece.token, pieces[piece.next as usize].token);
        self.merges.get(&pair).copied()
    }

    fn propose(&self, pieces: &[Piece], at: u32, heap: &mut BinaryHeap<Reverse<(u32, u32, u32)>>) {
        if let Some(merge) = self.merge_at(pieces, at) {
            heap.push(Reverse((merge.rank, at, merge.result)));
        }
    }
}

/// The piece at `at` takes in the next one and becomes `token`.
fn join(pieces: &mut [Piece], at: u32, token: u32) {
    let taken = pieces[at as usize].next;
    let next = pieces[taken as usize].next;
    pieces[taken as usize].token = GONE;
    pieces[at as usize].token = token;
    pieces[at as usize].next = next;
    if next != END {
        pieces[next as usize].previous = at;
    }
}
