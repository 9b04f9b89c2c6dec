//! SentencePiece's pair encoding: neighbours are joined where the result is a token, the token of the highest score
//! before all others. Spaces are part of tokens; a text is one word.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use crate::vocabulary::{Index, TokenKind, Vocabulary};

/// A vocabulary of scored pieces.
#[derive(Clone, Debug)]
pub struct Sentence {
    /// Tokens that text is made of: normal, user-defined and unused ones.
    pub index: Index,
    /// The score of each token.
    pub scores: Vec<f32>,
    /// The token of each byte.
    pub bytes: Vec<Option<u32>>,
    /// Token for characters that neither tokens nor bytes spell.
    pub unknown: Option<u32>,
    /// Size of the longest token.
    pub longest: usize,
}

/// A piece of the text; `size` is 0 once it was joined to the piece before it.
#[derive(Clone, Copy)]
struct Piece {
    start: usize,
    size: usize,
    previous: usize,
    next: usize,
}

const END: usize = usize::MAX;

/// Two neighbours whose bytes, `size` of them, are a token.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    size: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Pair) -> Ordering {
        let by_score = self.score.total_cmp(&other.score);
        by_score.then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Pair) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Pair) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

/// What joining made: for each size of bytes and place, the size of the left half. Needed to take tokens apart that
/// must not be produced.
type Halves = HashMap<(usize, usize), usize>;

impl Sentence {
    /// Appends the tokens of a text.
    pub fn encode(&self, vocabulary: &Vocabulary, text: &str, tokens: &mut Vec<u32>) {
        let mut pieces = pieces(text);
        let mut heap = BinaryHeap::new();
        let mut halves = Halves::new();
        for right in 1..pieces.len() {
            self.propose(vocabulary, text, &pieces, right - 1, &mut heap);
        }
        while let Some(pair) = heap.pop() {
            let (left, right) = (pieces[pair.left], pieces[pair.right]);
            // Entries of pieces that were joined since they were proposed are out of date.
            if left.size == 0 || right.size == 0 || left.size + right.size != pair.size {
                continue;
            }
            if self.is_unused(vocabulary, &text[left.start..left.start + pair.size]) {
                halves.insert((left.start, pair.size), left.size);
            }
            pieces[pair.left].size = pair.size;
            pieces[pair.left].next = right.next;
            pieces[pair.right].size = 0;
            if right.next != END {
                pieces[right.next].previous = pair.left;
            }
            self.propose(vocabulary, text, &pieces, pair.left, &mut heap);
            if left.previous != END {
                self.propose(vocabulary, text, &pieces, left.previous, &mut heap);
            }
        }
        let start = tokens.len();
        for piece in pieces.iter().filter(|piece| piece.size > 0) {
            self.emit(vocabulary, text, (piece.start, piece.size), &halves, tokens);
        }
        self.fuse_unknown(tokens, start);
    }

    fn propose(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        pieces: &[Piece],
        left: usize,
        heap: &mut BinaryHeap<Pair>,
    ) {
        let right = pieces[left].next;
        if right == END {
            return;
        }
        let size = pieces[left].size + pieces[right].size;
        if size > self.longest {
            return;
        }
        let joined = &text[pieces[left].start..pieces[left].start + size];
        if let Some(token) = self.index.get(vocabulary, joined.as_bytes()) {
            heap.push(Pair {
                score: self.scores[token as usize],
                left,
                right,
                size,
            });
        }
    }

    fn is_unused(&self, vocabulary: &Vocabulary, text: &str) -> bool {
        self.index
            .get(vocabulary, text.as_bytes())
            .is_some_and(|token| vocabulary.kind(token) == Some(TokenKind::Unused))
    }

    /// The tokens of what was joined at `(start, size)`: parts of unused tokens are taken apart again.
    fn emit(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        whole: (usize, usize),
        halves: &Halves,
        tokens: &mut Vec<u32>,
    ) {
        let mut waiting = vec![whole];
        while let Some((start, size)) = waiting.pop() {
            if let Some(&left) = halves.get(&(start, size)) {
                waiting.push((start + left, size - left));
                waiting.push((start, left));
                continue;
            }
            let piece = &text.as_bytes()[start..start + size];
            if let Some(token) = self.index.get(vocabulary, piece) {
                tokens.push(token);
                continue;
            }
            let spelt = || piece.iter().map(|&byte| self.bytes[usize::from(byte)]);
            if spelt().all(|token| token.is_some()) {
                tokens.extend(spelt().flatten());
            } else {
                tokens.extend(self.unknown);
            }
        }
    }

    /// A run of characters that nothing spells is one unknown token.
    fn fuse_unknown(&self, tokens: &mut Vec<u32>, start: usize) {
        let Some(unknown) = self.unknown else {
            return;
        };
        let mut new = tokens.split_off(start);
        new.dedup_by(|next, previous| *next == unknown && *previous == unknown);
        tokens.append(&mut new);
    }
}

/// The characters of the text.
fn pieces(text: &str) -> Vec<Piece> {
    let starts = text
        .char_indices()
        .map(|(start, char)| (start, char.len_utf8()));
    let mut pieces: Vec<Piece> = starts
        .enumerate()
        .map(|(at, (start, size))| Piece {
            start,
            size,
            previous: at.wrapping_sub(1),
            next: at + 1,
        })
        .collect();
    if let Some(last) = pieces.last_mut() {
        last.next = END;
    }
    pieces
}
