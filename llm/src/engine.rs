//! Continuous batching: texts join and leave between steps.

use crate::batch::{Batch, Rows};
use crate::decoder::{Decoder, Found, Row};
use crate::error::{LlmError, Result};
use crate::mask::TokenMask;
use crate::pages::PagePool;
use crate::sample::{self, Choice, Sampler};
use crate::schedule::{Budget, share_rows};
use crate::sequence::{Event, FinishReason, Request, Sequence, SequenceId};
use crate::speculate::{Draftable, Drafter};
use std::collections::VecDeque;

/// Bounds of an engine.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Most tokens of a text, prompt included; no more than the model was made for.
    pub context_len: usize,
    /// Most texts continued at the same time.
    pub slots: usize,
    /// Most texts that wait for a slot.
    pub queue: usize,
    /// Most rows of a step.
    pub rows: usize,
    /// Most rows of prompts in a step that continues other texts.
    pub rows_beside: usize,
    /// Find prompts that begin as earlier texts did.
    pub reuse: bool,
    /// Where a text is full: go on without the older half of it, except so many tokens at its beginning. Without it
    /// the text ends.
    pub shift: Option<usize>,
    /// Most tokens guessed ahead for one text, where there is something that guesses.
    pub draft_len: usize,
    /// A text gets the same logits, bit for bit, whatever is beside it and in how many steps its prompt is computed.
    /// Prompts then take longer.
    pub deterministic: bool,
}

impl EngineOptions {
    /// The usual bounds for texts of so many tokens.
    pub fn new(context_len: usize) -> EngineOptions {
        EngineOptions {
            context_len,
            slots: 1,
            queue: 64,
            // Above this many rows products take no less time a row (measured on processors with 2 MiB of L2).
            rows: 512,
            rows_beside: 128,
            reuse: true,
            shift: None,
            draft_len: 0,
            deterministic: false,
        }
    }
}

/// What an engine has done, and what it is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Runs of the decoder.
    pub steps: u64,
    /// Rows of them.
    pub rows: u64,
    /// Tokens of prompts that were found in the cache.
    pub reused: u64,
    /// Tokens that were generated.
    pub generated: u64,
    /// Tokens guessed ahead.
    pub drafted: u64,
    /// Those that were right.
    pub accepted: u64,
    /// Times that a text gave its pages to another and was computed again.
    pub preempted: u64,
    /// Texts being continued.
    pub running: usize,
    /// Texts that wait.
    pub waiting: usize,
    /// Pages that texts hold.
    pub pages_held: usize,
    /// Pages altogether.
    pub pages: usize,
}

/// Continues texts with one decoder.
pub struct Engine {
    pub(crate) decoder: Decoder,
    options: EngineOptions,
    pub(crate) pool: PagePool,
    waiting: VecDeque<Sequence>,
    /// In the order in which they were admitted.
    running: Vec<Sequence>,
    sampler: Sampler,
    mask: TokenMask,
    drafter: Option<Box<dyn Drafter>>,
    stats: EngineStats,
    next: u64,
}

impl Engine {
    /// An engine with a decoder whose cache holds no text yet.
    ///
    /// # Errors
    /// [`LlmError::Request`] for bounds that let nothing run.
    pub fn new(decoder: Decoder, options: EngineOptions) -> Result<Engine> {
        let bounds = [
            options.context_len,
            options.slots,
            options.rows,
            options.rows_beside,
            decoder.pages(),
        ];
        if bounds.contains(&0) {
            return Err(LlmError::Request(format!(
                "nothing can run with {options:?} and {} pages",
                decoder.pages()
            )));
        }
        if options.slots > options.rows {
            let what = format!(
                "{} texts do not fit in a step of {} rows",
                options.slots, options.rows
            );
            return Err(LlmError::Request(what));
        }
        Ok(Engine {
            pool: PagePool::new(decoder.pages(), decoder.cache().page_len),
            mask: TokenMask::none(decoder.vocab_len()),
            decoder,
            options,
            waiting: VecDeque::new(),
            running: vec![],
            sampler: Sampler::default(),
            drafter: None,
            stats: EngineStats::default(),
            next: 0,
        })
    }

    /// Guesses tokens ahead from now on, [`EngineOptions::draft_len`] at a time. What is generated stays the same.
    pub fn set_drafter(&mut self, drafter: Box<dyn Drafter>) {
        self.drafter = Some(drafter);
    }

    /// The decoder.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The decoder, to say what stops a run. Its cache is the engine's.
    pub fn decoder_mut(&mut self) -> &mut Decoder {
        &mut self.decoder
    }

    /// Most tokens of a text: what the options and the cache allow.
    pub fn context_len(&self) -> usize {
        let room = self.pool.len().saturating_mul(self.pool.page_len());
        self.options.context_len.min(room)
    }

    /// Takes a text, to be continued by later steps.
    ///
    /// # Errors
    /// [`LlmError::Request`], [`LlmError::TooLong`], [`LlmError::QueueFull`].
    pub fn submit(&mut self, request: Request) -> Result<SequenceId> {
        self.check(&request)?;
        let free = self.options.slots.saturating_sub(self.running.len());
        if self.waiting.len() >= self.options.queue.saturating_add(free) {
            return Err(LlmError::QueueFull(self.waiting.len()));
        }
        let id = SequenceId(self.next);
        self.next += 1;
        self.waiting.push_back(Sequence::new(id, request));
        Ok(id)
    }

    fn check(&self, request: &Request) -> Result<()> {
        let vocab_len = self.decoder.vocab_len();
        if request.prompt.is_empty() {
            return Err(LlmError::Request("the prompt is empty".into()));
        }
        if let Some(token) = request.prompt.iter().find(|t| **t as usize >= vocab_len) {
            return Err(LlmError::Request(format!(
                "the prompt has token {token}; there are {vocab_len} tokens"
            )));
        }
        if request.most == 0 {
            return Err(LlmError::Request("no token is asked for".into()));
        }
        request.sampling.check(vocab_len)?;
        let (prompt, room) = (request.prompt.len(), self.context_len());
        match prompt > room {
            true => Err(LlmError::TooLong { prompt, room }),
            false => Ok(()),
        }
    }

    /// Ends a text without an event; `false` when there is no such text any more.
    pub fn cancel(&mut self, id: SequenceId) -> bool {
        if let Some(at) = self.waiting.iter().position(|s| s.id == id) {
            self.waiting.remove(at);
            if let Some(drafter) = &mut self.drafter {
                drafter.forget(id);
            }
            return true;
        }
        let found = self.running.iter_mut().find(|s| s.id == id);
        let cancelled = found.map(|s| s.ended = true).is_some();
        self.remove_ended();
        cancelled
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Figures.
    pub fn stats(&self) -> EngineStats {
        EngineStats {
            running: self.running.len(),
            waiting: self.waiting.len(),
            pages_held: self.pool.len() - self.pool.available(),
            pages: self.pool.len(),
            ..self.stats
        }
    }

    /// How many leading tokens of a prompt are in the cache now.
    pub fn known_len(&self, prompt: &[u32]) -> usize {
        self.pool.known_len(prompt)
    }

    /// Runs the decoder once over rows of all texts under way; gives what became of them, in the order of admission.
    /// Nothing happens when there is no text.
    ///
    /// # Errors
    /// What the run finds. Texts are then where they were: another step tries the same again.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        self.admit();
        let budget = Budget {
            rows: self.options.rows,
            beside: self.options.rows_beside,
        };
        share_rows(&mut self.running, budget);
        self.draft()?;
        self.make_room();
        let mut batch = Batch::new();
        let rows = match self.options.deterministic {
            true => Rows::Apart,
            false => Rows::Together,
        };
        let texts = self.running.iter();
        let firsts: Vec<usize> = texts.map(|s| add(&mut batch, s, rows)).collect();
        if batch.rows() == 0 {
            return Ok(vec![]);
        }
        let simple = |s: &Sequence| s.rows == 0 || s.request.takes_likeliest();
        let found = match self.running.iter().all(simple) {
            true => self.decoder.run_for_likeliest(&batch)?,
            false => Found::Logits(self.decoder.run(&batch)?),
        };
        self.stats.steps += 1;
        self.stats.rows += batch.rows() as u64;
        let mut events = vec![];
        for (at, first) in firsts.into_iter().enumerate() {
            self.advance(at, &found, first, &mut events);
        }
        self.remove_ended();
        Ok(events)
    }

    /// Lets texts in, in their order, while there are slots and pages.
    fn admit(&mut self) {
        while self.running.len() < self.options.slots {
            let Some(mut text) = self.waiting.pop_front() else {
                break;
            };
            if self.options.reuse {
                text.reuse(&mut self.pool);
            }
            let needed = (text.context.len() + 1).div_ceil(self.pool.page_len());
            // A page for each text under way, or it would be sent back by the next that needs one.
            let spare = self.running.len();
            let enough = needed - text.pages.len() + spare <= self.pool.available();
            if !enough && !self.running.is_empty() {
                text.release(&mut self.pool);
                self.waiting.push_front(text);
                break;
            }
            if text.usage.generated == 0 {
                self.stats.reused += text.usage.reused as u64;
            }
            self.running.push(text);
        }
    }

    /// Guesses what follows the texts that are being continued.
    fn draft(&mut self) -> Result<()> {
        let room = self.context_len();
        let Some(drafter) = &mut self.drafter else {
            return Ok(());
        };
        // A step that failed left its guesses.
        self.running.iter_mut().for_each(|s| s.draft.clear());
        let used: usize = self.running.iter().map(|s| s.rows).sum();
        let decoding = self
            .running
            .iter()
            .filter(|s| s.rows > 0 && s.is_decoding())
            .count();
        let share = (self.options.rows - used)
            .checked_div(decoding)
            .unwrap_or(0);
        let jobs = self
            .running
            .iter_mut()
            .filter(|s| s.rows > 0 && s.is_decoding());
        let mut jobs: Vec<Draftable<'_>> = jobs
            .map(|s| {
                let rest = s.request.most - s.usage.generated - 1;
                let bounds = [share, self.options.draft_len, rest, room - s.context.len()];
                Draftable {
                    id: s.id,
                    text: &s.context,
                    sampling: &s.request.sampling,
                    place: s.usage.generated as u64,
                    end_tokens: &s.request.end_tokens,
                    most: bounds.into_iter().min().unwrap_or(0),
                    draft: &mut s.draft,
                }
            })
            .collect();
        drafter.draft(&mut jobs, self.decoder.stop())?;
        let vocab_len = self.decoder.vocab_len();
        for job in &mut jobs {
            let foreign = job.draft.iter().position(|t| *t as usize >= vocab_len);
            job.draft
                .truncate(foreign.unwrap_or(job.most).min(job.most));
            self.stats.drafted += job.draft.len() as u64;
        }
        Ok(())
    }

    /// Gives every text the pages of its rows. Where there are too few, the text admitted last gives up its own: they
    /// are computed again, or found, when its turn comes.
    fn make_room(&mut self) {
        let mut at = 0;
        while at < self.running.len() {
            if self.running[at].make_room(&mut self.pool) {
                at += 1;
                continue;
            }
            if let Some(mut last) = self.running.pop() {
                last.release(&mut self.pool);
                self.waiting.push_front(last);
                self.stats.preempted += 1;
            }
        }
    }

    /// Takes the results of a text's rows: its prompt is further, or it has new tokens.
    fn advance(&mut self, at: usize, found: &Found, first: usize, events: &mut Vec<Event>) {
        let text = &mut self.running[at];
        let (rows, draft) = (
            std::mem::take(&mut text.rows),
            std::mem::take(&mut text.draft),
        );
        if rows == 0 {
            return;
        }
        text.computed += rows;
        text.publish(&mut self.pool);
        if text.usage.generated == 0 {
            events.push(Event::Prefill {
                sequence: text.id,
                done: text.computed.min(text.usage.prompt),
                total: text.usage.prompt,
            });
        }
        if text.pending() > 0 {
            return;
        }
        // Rows of guessed tokens count as far as the guesses are what would have come anyway.
        for (place, guess) in draft.iter().map(Some).chain([None]).enumerate() {
            let token = self.next_token(at, found.row(first + place), events);
            let text = &mut self.running[at];
            if token.is_none() || text.ended || token.as_ref() != guess {
                break;
            }
            text.computed += 1;
            self.stats.accepted += 1;
        }
        let room = self.context_len();
        let text = &mut self.running[at];
        text.publish(&mut self.pool);
        if !text.ended && text.context.len() > room {
            self.overflow(at, events);
        }
    }

    /// Chooses a text's next token; `None` when the text ends instead.
    fn next_token(&mut self, at: usize, row: Row<'_>, events: &mut Vec<Event>) -> Option<u32> {
        let text = &mut self.running[at];
        let sequence = text.id;
        let allowed = text.request.constraint.as_mut().map(|constraint| {
            constraint.mask(&mut self.mask);
            &self.mask
        });
        let choice = Choice {
            sampling: &text.request.sampling,
            text: &text.context,
            place: text.usage.generated as u64,
            allowed,
        };
        let chosen = match row {
            Row::Logits(logits) => self.sampler.choose(logits, choice),
            Row::Likeliest(token) => Ok(Some(token)),
        };
        let token = match chosen {
            Ok(Some(token)) => token,
            Ok(None) => {
                text.finish(FinishReason::Constraint, events);
                return None;
            }
            Err(error) => {
                text.ended = true;
                events.push(Event::Failed { sequence, error });
                return None;
            }
        };
        if text.request.end_tokens.contains(&token) {
            text.finish(FinishReason::EndToken(token), events);
            return None;
        }
        if let Some(constraint) = &mut text.request.constraint {
            constraint.accept(token);
        }
        let log_probs = match (row, text.request.log_probs) {
            (Row::Logits(logits), Some(top)) => Some(sample::log_probs(logits, token, top)),
            _ => None,
        };
        text.context.push(token);
        text.usage.generated += 1;
        self.stats.generated += 1;
        events.push(Event::Token {
            sequence,
            token,
            log_probs,
        });
        if text.usage.generated == text.request.most {
            text.finish(FinishReason::Length, events);
        }
        Some(token)
    }

    /// A text has more tokens than the context.
    fn overflow(&mut self, at: usize, events: &mut Vec<Event>) {
        let text = &mut self.running[at];
        match self.options.shift {
            Some(keep) => text.shift(keep, &mut self.pool),
            None => text.finish(FinishReason::Context, events),
        }
    }

    fn remove_ended(&mut self) {
        for text in self.running.iter_mut().filter(|s| s.ended) {
            text.release(&mut self.pool);
            if let Some(drafter) = &mut self.drafter {
                drafter.forget(text.id);
            }
        }
        self.running.retain(|s| !s.ended);
        if !self.options.reuse {
            self.pool.forget_idle();
        }
    }
}

/// Adds a text's rows of this step; gives the place of its first logits.
fn add(batch: &mut Batch, text: &Sequence, how: Rows) -> usize {
    let Sequence {
        context,
        computed,
        rows,
        draft,
        ..
    } = text;
    if *rows == 0 {
        return 0;
    }
    let tokens = [&context[*computed..computed + rows], draft].concat();
    // Guesses are to give the bits that their tokens would give one by one.
    let how = if draft.is_empty() { how } else { Rows::Apart };
    batch.push_rows(&tokens, *computed, &text.pages, how);
    match computed + rows == context.len() {
        true => batch.want(1 + draft.len()),
        false => 0,
    }
}
