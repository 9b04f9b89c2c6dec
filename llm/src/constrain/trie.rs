//! [`TokenTrie`]: the bytes of all tokens, ordered so that one walk tells which of them a constraint allows.

use super::automaton::{Automaton, DEAD, StateId};
use crate::mask::TokenMask;
use cupola_text::Tokenizer;

/// A place in the tree of all tokens' bytes, in the order of a walk that visits children after their parent.
struct Place {
    byte: u8,
    /// Bytes before this one.
    depth: u16,
    /// Where the walk goes on when nothing below is wanted.
    skip: u32,
    /// The tokens that end here, in `tokens`.
    first_token: u32,
    last_token: u32,
}

/// The tokens that texts are made of, by their bytes, and those that end a text.
pub struct TokenTrie {
    places: Vec<Place>,
    tokens: Vec<u32>,
    ends: Vec<u32>,
    /// The bytes of every token, one after the other.
    bytes: Vec<u8>,
    offsets: Vec<u32>,
    deepest: usize,
}

/// Longer tokens are never allowed.
const MAX_TOKEN_SIZE: usize = 4096;

impl TokenTrie {
    /// The tree of `vocab_len` tokens. `bytes` gives what a token stands for; tokens that are no text (control tokens)
    /// give nothing. `ends` are the tokens that end a text.
    pub fn new<'a>(vocab_len: usize, bytes: impl Fn(u32) -> &'a [u8], ends: &[u32]) -> TokenTrie {
        let mut sorted: Vec<u32> = (0..vocab_len as u32)
            .filter(|id| !ends.contains(id))
            .filter(|&id| (1..=MAX_TOKEN_SIZE).contains(&bytes(id).len()))
            .collect();
        sorted.sort_by_key(|&id| bytes(id));
        let mut trie = TokenTrie {
            places: vec![],
            tokens: Vec::with_capacity(sorted.len()),
            ends: ends.to_vec(),
            bytes: vec![],
            offsets: vec![0],
            deepest: 0,
        };
        for id in 0..vocab_len as u32 {
            trie.bytes.extend_from_slice(bytes(id));
            trie.offsets.push(trie.bytes.len() as u32);
        }
        // The places of the last token's bytes, whose ends are still open.
        let mut open: Vec<usize> = vec![];
        let mut last: &[u8] = &[];
        for id in sorted {
            let token = bytes(id);
            let shared = token.iter().zip(last).take_while(|(a, b)| a == b).count();
            trie.close(&mut open, shared);
            for (depth, &byte) in token.iter().enumerate().skip(shared) {
                open.push(trie.places.len());
                let tokens = trie.tokens.len() as u32;
                trie.places.push(Place {
                    byte,
                    depth: depth as u16,
                    skip: 0,
                    first_token: tokens,
                    last_token: tokens,
                });
            }
            trie.tokens.push(id);
            if let Some(&place) = open.last() {
                trie.places[place].last_token = trie.tokens.len() as u32;
            }
            trie.deepest = trie.deepest.max(token.len());
            last = token;
        }
        trie.close(&mut open, 0);
        trie
    }

    fn close(&mut self, open: &mut Vec<usize>, len: usize) {
        let here = self.places.len() as u32;
        for place in open.drain(len.min(open.len())..) {
            self.places[place].skip = here;
        }
    }

    /// The tree of a model's tokens, of which there may be more logits than its tokenizer knows.
    pub fn of(tokenizer: &Tokenizer, vocab_len: usize) -> TokenTrie {
        let known = tokenizer.vocab_len();
        let bytes = |token: u32| match (token as usize) < known && !tokenizer.is_special(token) {
            true => tokenizer.token_bytes(token),
            false => &[],
        };
        TokenTrie::new(vocab_len, bytes, tokenizer.end_tokens())
    }

    /// Number of tokens.
    pub fn vocab_len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The tokens that end a text.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// What a token stands for; nothing if there is no such token.
    pub fn bytes(&self, token: u32) -> &[u8] {
        let at = token as usize;
        match (self.offsets.get(at), self.offsets.get(at + 1)) {
            (Some(&start), Some(&end)) => &self.bytes[start as usize..end as usize],
            _ => &[],
        }
    }

    /// Makes `mask` the tokens all of whose bytes lead on from `state`, and those that end a text where it may end.
    pub fn mask(&self, automaton: &mut Automaton, state: StateId, mask: &mut TokenMask) {
        mask.forbid_all();
        if automaton.accepts(state) {
            self.ends.iter().for_each(|&end| mask.allow(end));
        }
        let mut states = vec![state; self.deepest + 1];
        let mut at = 0;
        while let Some(place) = self.places.get(at) {
            let depth = usize::from(place.depth);
            let next = automaton.step(states[depth], place.byte);
            if next == DEAD {
                at = place.skip as usize;
                continue;
            }
            states[depth + 1] = next;
            for &token in &self.tokens[place.first_token as usize..place.last_token as usize] {
                mask.allow(token);
            }
            at += 1;
        }
    }
}
