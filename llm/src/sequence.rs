//! One text under way: what was asked for, how far it is, and what is told of it.

use crate::error::LlmError;
use crate::mask::Constraint;
use crate::pages::{PageId, PagePool, PrefixId};
use crate::sample::{LogProbs, Sampling};
use std::fmt;
use std::sync::Arc;

/// Names a text of one engine; never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A text to continue.
#[derive(Default)]
pub struct Request {
    /// The text so far; not empty.
    pub prompt: Vec<u32>,
    /// Most tokens to add.
    pub most: usize,
    /// How to choose them.
    pub sampling: Sampling,
    /// Tokens that end the text; they are not part of it.
    pub end_tokens: Arc<[u32]>,
    /// Tells log-probabilities of each token, with those of so many likeliest ones.
    pub log_probs: Option<usize>,
    /// Restricts what is generated.
    pub constraint: Option<Box<dyn Constraint>>,
}

impl Request {
    /// Whether the likeliest token is all that is asked of logits.
    pub(crate) fn takes_likeliest(&self) -> bool {
        let sampling = &self.sampling;
        let changed = sampling.changes_logits() || self.constraint.is_some();
        sampling.temperature == 0.0 && !changed && self.log_probs.is_none()
    }
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model gave this token, which ends a text.
    EndToken(u32),
    /// As many tokens were added as were asked for.
    Length,
    /// The context is full.
    Context,
    /// The constraint allows nothing more.
    Constraint,
}

/// What a text took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Those of them that were found in the cache.
    pub reused: usize,
    /// Tokens that were generated.
    pub generated: usize,
}

/// What became of a text in a step.
#[derive(Clone, Debug)]
pub enum Event {
    /// A part of the prompt was computed: `done` of `total` tokens are in the cache.
    Prefill {
        /// Text.
        sequence: SequenceId,
        /// Tokens in the cache.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
    },
    /// The text has one more token.
    Token {
        /// Text.
        sequence: SequenceId,
        /// Token.
        token: u32,
        /// Its log-probability and the likeliest, if asked for.
        log_probs: Option<LogProbs>,
    },
    /// The text has ended.
    Finished {
        /// Text.
        sequence: SequenceId,
        /// Why.
        reason: FinishReason,
        /// What it took.
        usage: Usage,
    },
    /// The text cannot be continued; others can.
    Failed {
        /// Text.
        sequence: SequenceId,
        /// Why.
        error: LlmError,
    },
}

impl Event {
    /// The text that it tells of.
    pub fn sequence(&self) -> SequenceId {
        match self {
            Event::Prefill { sequence, .. }
            | Event::Token { sequence, .. }
            | Event::Finished { sequence, .. }
            | Event::Failed { sequence, .. } => *sequence,
        }
    }
}

/// A text under way, or waiting.
pub(crate) struct Sequence {
    pub id: SequenceId,
    /// What the model sees: the prompt and what was generated, less what was shifted out.
    pub context: Vec<u32>,
    /// Positions whose keys and values are in the cache.
    pub computed: usize,
    /// Pages in order; room for `computed` positions at least.
    pub pages: Vec<PageId>,
    /// Pages made known to others, and their name.
    published: usize,
    prefix: PrefixId,
    pub usage: Usage,
    pub request: Request,
    /// This step's rows: so many tokens of the context.
    pub rows: usize,
    /// Tokens guessed to follow the context, in this step's rows too.
    pub draft: Vec<u32>,
    pub ended: bool,
}

impl Sequence {
    pub fn new(id: SequenceId, mut request: Request) -> Sequence {
        let context = std::mem::take(&mut request.prompt);
        Sequence {
            id,
            computed: 0,
            pages: vec![],
            published: 0,
            prefix: 0,
            usage: Usage {
                prompt: context.len(),
                ..Usage::default()
            },
            context,
            request,
            rows: 0,
            draft: vec![],
            ended: false,
        }
    }

    /// Tokens of the context that are not in the cache.
    pub fn pending(&self) -> usize {
        self.context.len() - self.computed
    }

    /// Whether only the last token of the context is missing, so that the next row gives a new one.
    pub fn is_decoding(&self) -> bool {
        self.pending() == 1
    }

    /// Takes what the cache has of the context. The last token is computed in any case: its logits are needed.
    pub fn reuse(&mut self, pool: &mut PagePool) {
        debug_assert!(self.pages.is_empty(), "bug: pages would be lost");
        let prefix = pool.find(&self.context[..self.context.len() - 1]);
        self.published = prefix.pages.len();
        self.computed = self.published * pool.page_len();
        (self.pages, self.prefix) = (prefix.pages, prefix.id);
        if self.usage.generated == 0 {
            self.usage.reused = self.computed;
        }
    }

    /// Ends the text.
    pub fn finish(&mut self, reason: FinishReason, events: &mut Vec<Event>) {
        self.ended = true;
        events.push(Event::Finished {
            sequence: self.id,
            reason,
            usage: self.usage,
        });
    }

    /// Makes full pages known to others.
    pub fn publish(&mut self, pool: &mut PagePool) {
        let len = pool.page_len();
        while (self.published + 1) * len <= self.computed {
            let at = self.published * len;
            let page = self.pages[self.published];
            self.prefix = pool.publish(page, self.prefix, &self.context[at..at + len]);
            self.published += 1;
        }
    }

    /// Gives all pages back; what is not known to others is to be computed again.
    pub fn release(&mut self, pool: &mut PagePool) {
        pool.release(&std::mem::take(&mut self.pages));
        (self.computed, self.published, self.prefix) = (0, 0, 0);
        (self.rows, self.draft) = (0, vec![]);
    }

    /// Makes room for this step's rows; `false` when the pool has too few pages.
    pub fn make_room(&mut self, pool: &mut PagePool) -> bool {
        let positions = self.computed + self.rows + self.draft.len();
        while self.pages.len() * pool.page_len() < positions {
            match pool.take() {
                Some(page) => self.pages.push(page),
                None => return false,
            }
        }
        true
    }

    /// Takes tokens out of the middle of the context: of what follows the first `keep`, the older half.
    pub fn shift(&mut self, keep: usize, pool: &mut PagePool) {
        let keep = keep.min(self.context.len() / 2);
        let out = (self.context.len() - keep).div_ceil(2);
        self.context.drain(keep..keep + out);
        self.release(pool);
        self.reuse(pool);
    }
}
