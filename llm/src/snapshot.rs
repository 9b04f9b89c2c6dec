//! The keys and values of a text, taken out of one engine's cache and put into another's.
//!
//! Whole pages are taken: they are what texts share. A text that begins as the saved one did finds them like those of an
//! earlier text of the same engine, and its rows are computed as they would be there.

use crate::engine::Engine;
use crate::error::{LlmError, Result};
use cupola_ir::Tensor;
use std::collections::BTreeMap;

/// Keys and values of the beginning of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// The tokens that they are of: whole pages of them.
    pub tokens: Vec<u32>,
    /// What each slot holds of them, by name: `[pages, heads, page_len, width]`.
    pub slots: BTreeMap<String, Tensor>,
}

impl Engine {
    /// What the cache has of a text: of its beginning, in whole pages. A text that shares nothing with any earlier one
    /// gives no tokens and slots without pages.
    ///
    /// # Errors
    /// A device that fails.
    pub fn snapshot(&mut self, text: &[u32]) -> Result<Snapshot> {
        let prefix = self.pool.find(text);
        let slots = self.decoder.read_pages(&prefix.pages);
        self.pool.release(&prefix.pages);
        let len = prefix.pages.len() * self.pool.page_len();
        Ok(Snapshot {
            tokens: text[..len].to_vec(),
            slots: slots?,
        })
    }

    /// Puts a saved text into the cache, where later texts that begin like it find it: as much of its beginning as there
    /// are pages that no text holds. Gives the number of tokens that were put there, or were there before.
    ///
    /// # Errors
    /// [`LlmError::Snapshot`] for one that does not fit this decoder; nothing is changed then. A device that fails.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<usize> {
        self.check_snapshot(snapshot)?;
        let page_len = self.pool.page_len();
        let prefix = self.pool.find(&snapshot.tokens);
        let known = prefix.pages.len();
        let (mut pages, mut id) = (prefix.pages, prefix.id);
        while pages.len() * page_len < snapshot.tokens.len() {
            match self.pool.take() {
                Some(page) => pages.push(page),
                None => break,
            }
        }
        let written = self
            .decoder
            .write_pages(&pages[known..], &snapshot.slots, known);
        if written.is_ok() {
            let chunks = snapshot.tokens.chunks(page_len).skip(known);
            for (page, chunk) in pages[known..].iter().zip(chunks) {
                id = self.pool.publish(*page, id, chunk);
            }
        }
        self.pool.release(&pages);
        written?;
        Ok(pages.len() * page_len)
    }

    fn check_snapshot(&self, snapshot: &Snapshot) -> Result<()> {
        let refused = |what: String| Err(LlmError::Snapshot(what));
        let (len, page_len) = (snapshot.tokens.len(), self.pool.page_len());
        if !len.is_multiple_of(page_len) {
            return refused(format!("has {len} tokens, no multiple of {page_len}"));
        }
        let vocab_len = self.decoder.vocab_len();
        if let Some(token) = snapshot.tokens.iter().find(|t| **t as usize >= vocab_len) {
            return refused(format!("has token {token}; there are {vocab_len} tokens"));
        }
        self.decoder.check_pages(&snapshot.slots, len / page_len)
    }
}
