//! Tokens guessed ahead, so that one run of the decoder may give several.
//!
//! A guess costs a row of a step and changes nothing else: a token is taken only if it is the one that would have been
//! chosen anyway, by the same logits and the same random number.

mod model;

pub use model::DraftModel;

use crate::error::Result;
use crate::sample::Sampling;
use crate::sequence::SequenceId;
use cupola_ir::eval::Stop;

/// A text to guess on.
#[derive(Debug)]
pub struct Draftable<'a> {
    /// Which.
    pub id: SequenceId,
    /// The text so far.
    pub text: &'a [u32],
    /// How its tokens are chosen.
    pub sampling: &'a Sampling,
    /// Place of the next token in what is generated, from 0.
    pub place: u64,
    /// Tokens that end it: nothing after them is of use.
    pub end_tokens: &'a [u32],
    /// Most tokens to guess.
    pub most: usize,
    /// The guesses, empty at first.
    pub draft: &'a mut Vec<u32>,
}

/// Guesses how texts go on.
pub trait Drafter: Send {
    /// Guesses for several texts. A text may be any other than in the last call. `stop` ends what takes long.
    ///
    /// # Errors
    /// What running a model finds.
    fn draft(&mut self, texts: &mut [Draftable<'_>], stop: &Stop) -> Result<()>;

    /// A text has ended.
    fn forget(&mut self, _id: SequenceId) {}
}

/// Guesses that a text goes on as it did the last time that its last tokens occurred in it.
#[derive(Clone, Copy, Debug)]
pub struct PromptLookup {
    /// Most last tokens that are looked for; fewer are tried where they do not occur.
    pub longest: usize,
    /// Fewest last tokens that are looked for.
    pub shortest: usize,
}

impl Default for PromptLookup {
    fn default() -> PromptLookup {
        PromptLookup {
            longest: 4,
            shortest: 2,
        }
    }
}

impl Drafter for PromptLookup {
    fn draft(&mut self, texts: &mut [Draftable<'_>], _stop: &Stop) -> Result<()> {
        for Draftable {
            text, most, draft, ..
        } in texts
        {
            let lengths = (self.shortest.max(1)..=self.longest).rev();
            let found = lengths.filter_map(|len| follows(text, len)).next();
            draft.extend(found.unwrap_or_default().iter().take(*most));
        }
        Ok(())
    }
}

/// What follows the last earlier occurrence of the last `len` tokens.
fn follows(text: &[u32], len: usize) -> Option<&[u32]> {
    let start = text.len().checked_sub(len)?;
    let last = &text[start..];
    let found = text[..text.len() - 1]
        .windows(len)
        .rposition(|w| w == last)?;
    Some(&text[found + len..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guesses(text: &[u32], most: usize) -> Vec<u32> {
        let mut draft = vec![];
        let job = Draftable {
            id: SequenceId(0),
            text,
            sampling: &Sampling::default(),
            place: 0,
            end_tokens: &[],
            most,
            draft: &mut draft,
        };
        PromptLookup::default()
            .draft(&mut [job], &Stop::default())
            .expect("guesses");
        draft
    }

    #[test]
    fn the_text_is_continued_as_it_was_before() {
        assert_eq!(guesses(&[5, 1, 2, 3, 4, 9, 1, 2], 2), [3, 4]);
        assert_eq!(guesses(&[5, 1, 2, 3, 4, 9, 1, 2], 9), [3, 4, 9, 1, 2]);
        // The longest match wins over the latest.
        assert_eq!(guesses(&[1, 2, 3, 7, 2, 3, 8, 1, 2, 3], 1), [7]);
        assert_eq!(guesses(&[6, 6, 6], 4), [6]);
        assert!(guesses(&[1, 2, 3], 4).is_empty());
        assert!(guesses(&[1], 4).is_empty());
    }
}
