//! Guesses by a smaller model of the same vocabulary.
//!
//! The model keeps the texts in a cache of its own. What it put there of guesses that did not come is overwritten: a text
//! goes on from where it parts from what the cache holds of it. Guesses are chosen as the text's own tokens are, by the
//! same sampling and the same random numbers, so that two models that agree draw the same token.

use super::{Draftable, Drafter};
use crate::batch::Batch;
use crate::decoder::{Decoder, Logits};
use crate::error::Result;
use crate::pages::{PageId, PagePool, PrefixId};
use crate::sample::{Choice, Sampler};
use crate::sequence::SequenceId;
use cupola_ir::eval::Stop;
use rustc_hash::FxHashMap;

/// Guesses by running a decoder of its own.
pub struct DraftModel {
    decoder: Decoder,
    pool: PagePool,
    context_len: usize,
    rows: usize,
    texts: FxHashMap<SequenceId, Draft>,
    sampler: Sampler,
    calls: u64,
}

/// What the cache holds of a text.
#[derive(Debug, Default)]
struct Draft {
    /// Tokens in the cache, guesses included.
    known: Vec<u32>,
    pages: Vec<PageId>,
    /// Pages made known to other texts, and their name. They hold no guesses.
    published: usize,
    prefix: PrefixId,
    /// Guesses of the last call.
    guessed: Vec<u32>,
    /// Tokens of the text at the last call.
    text_len: usize,
    /// Most guesses next time: two more than last time where all came, else one more than came.
    reach: usize,
    /// The last call that had it.
    used: u64,
}

/// A text that is guessed on in this call.
struct Job<'a, 'b> {
    text: &'a mut Draftable<'b>,
    draft: Draft,
    most: usize,
}

impl DraftModel {
    /// Guesses with this decoder, whose cache holds no text yet: at most `rows` rows of it in one run, texts of at most
    /// `context_len` tokens.
    pub fn new(decoder: Decoder, context_len: usize, rows: usize) -> DraftModel {
        DraftModel {
            pool: PagePool::new(decoder.pages(), decoder.cache().page_len),
            decoder,
            context_len,
            rows: rows.max(1),
            texts: FxHashMap::default(),
            sampler: Sampler::default(),
            calls: 0,
        }
    }

    /// Takes up a text; `None` where nothing can be guessed on it. What is in the cache of it stays there.
    fn begin<'a, 'b>(&mut self, text: &'a mut Draftable<'b>) -> Option<Job<'a, 'b>> {
        let mut draft = self.texts.remove(&text.id).unwrap_or_default();
        draft.follow(text.text, &mut self.pool);
        draft.used = self.calls;
        let room = self.context_len.min(self.pool.len() * self.pool.page_len());
        // The last guess is not put into the cache.
        let most = text.most.min((room + 1).saturating_sub(text.text.len()));
        let vocab_len = self.decoder.vocab_len();
        let foreign = |token: &u32| *token as usize >= vocab_len;
        let fits = most > 0 && !text.text.iter().any(foreign);
        let most = most.min(draft.reach);
        if fits && self.make_room(&mut draft, text.text.len() + most - 1) {
            return Some(Job { text, draft, most });
        }
        self.texts.insert(text.id, draft);
        None
    }

    /// Gives a text pages for so many positions; texts that are not guessed on now lose theirs, the longest unused first.
    fn make_room(&mut self, draft: &mut Draft, positions: usize) -> bool {
        while draft.pages.len() * self.pool.page_len() < positions {
            if let Some(page) = self.pool.take() {
                draft.pages.push(page);
                continue;
            }
            let held = self.texts.values_mut().filter(|d| !d.pages.is_empty());
            let unused = held.filter(|d| d.used < self.calls).min_by_key(|d| d.used);
            match unused {
                Some(unused) => unused.release(&mut self.pool),
                None => return false,
            }
        }
        true
    }

    /// Runs what the cache lacks of the texts, and chooses the first guess of each.
    fn catch_up(&mut self, jobs: &mut [Job<'_, '_>]) -> Result<()> {
        let mut first = 0;
        while first < jobs.len() {
            let mut batch = Batch::new();
            let mut done = vec![];
            let mut last = first;
            while last < jobs.len() && batch.rows() < self.rows {
                let job = &mut jobs[last];
                let text = job.text.text;
                let from = job.draft.known.len();
                let len = (text.len() - from).min(self.rows - batch.rows());
                job.draft.push(&text[from..from + len], &mut batch);
                if from + len < text.len() {
                    break;
                }
                done.push((last, batch.want(1)));
                last += 1;
            }
            let logits = self.decoder.run(&batch)?;
            for job in &mut jobs[first..last] {
                job.draft.publish(&mut self.pool);
            }
            self.choose(jobs, &done, &logits);
            first = last;
        }
        Ok(())
    }

    /// Runs the last guess of each text that may have another, and chooses that.
    fn go_on(&mut self, jobs: &mut [Job<'_, '_>]) -> Result<bool> {
        let mut batch = Batch::new();
        let mut done = vec![];
        for (at, job) in jobs.iter_mut().enumerate() {
            let Some(guess) = job.text.draft.last().copied() else {
                continue;
            };
            if job.text.draft.len() < job.most && batch.rows() < self.rows {
                job.draft.push(&[guess], &mut batch);
                done.push((at, batch.want(1)));
            }
        }
        if done.is_empty() {
            return Ok(false);
        }
        let logits = self.decoder.run(&batch)?;
        self.choose(jobs, &done, &logits);
        Ok(true)
    }

    /// Chooses a guess for texts by the logits at their places.
    fn choose(&mut self, jobs: &mut [Job<'_, '_>], done: &[(usize, usize)], logits: &Logits) {
        for (at, place) in done {
            let Job { text, most, .. } = &mut jobs[*at];
            let so_far = [text.text, &text.draft[..]].concat();
            let choice = Choice {
                sampling: text.sampling,
                text: &so_far,
                place: text.place + text.draft.len() as u64,
                allowed: None,
            };
            // Where this model has no finite logit it has no guess; the text itself goes on.
            let guess = self.sampler.choose(logits.row(*place), choice);
            match guess.ok().flatten() {
                Some(token) if !text.end_tokens.contains(&token) => text.draft.push(token),
                _ => *most = text.draft.len(),
            }
        }
    }

    fn guess(&mut self, jobs: &mut [Job<'_, '_>]) -> Result<()> {
        self.catch_up(jobs)?;
        while self.go_on(jobs)? {}
        Ok(())
    }
}

impl Drafter for DraftModel {
    fn draft(&mut self, texts: &mut [Draftable<'_>], stop: &Stop) -> Result<()> {
        self.calls += 1;
        self.decoder.stop_mut().clone_from(stop);
        let mut jobs = vec![];
        for text in texts {
            jobs.extend(self.begin(text));
        }
        let outcome = self.guess(&mut jobs);
        for Job { text, draft, .. } in jobs {
            let draft = match outcome {
                Ok(()) => Draft {
                    guessed: text.draft.clone(),
                    text_len: text.text.len(),
                    ..draft
                },
                // A run that failed may have written some of its rows: nothing of the text is sure.
                Err(_) => draft.emptied(&mut self.pool),
            };
            self.texts.insert(text.id, draft);
        }
        outcome
    }

    fn forget(&mut self, id: SequenceId) {
        if let Some(mut draft) = self.texts.remove(&id) {
            draft.release(&mut self.pool);
        }
    }
}

impl Draft {
    /// Keeps what the cache has of a text, and sees how many of the last guesses came. The last token is computed in any
    /// case: its logits are needed.
    fn follow(&mut self, text: &[u32], pool: &mut PagePool) {
        let came = text.get(self.text_len..).unwrap_or_default();
        let right = came.iter().zip(&self.guessed).take_while(|(a, b)| a == b);
        self.reach = match (right.count(), self.guessed.len()) {
            (_, 0) => self.reach.max(2),
            (right, all) if right == all => all + 2,
            (right, _) => right + 1,
        };
        let same = self.known.iter().zip(text).take_while(|(a, b)| a == b);
        let len = same.count().min(text.len() - 1);
        if self.published * pool.page_len() > len {
            // Pages that others may have are not written over.
            self.release(pool);
        }
        if self.pages.is_empty() {
            let prefix = pool.find(&text[..text.len() - 1]);
            self.published = prefix.pages.len();
            (self.pages, self.prefix) = (prefix.pages, prefix.id);
            self.known = text[..self.published * pool.page_len()].to_vec();
        } else {
            self.known.truncate(len);
        }
    }

    /// Adds the next tokens of the text to a batch.
    fn push(&mut self, tokens: &[u32], batch: &mut Batch) {
        batch.push(tokens, self.known.len(), &self.pages);
        self.known.extend_from_slice(tokens);
    }

    /// Makes full pages known to other texts.
    fn publish(&mut self, pool: &mut PagePool) {
        let len = pool.page_len();
        while (self.published + 1) * len <= self.known.len() {
            let at = self.published * len;
            let page = self.pages[self.published];
            self.prefix = pool.publish(page, self.prefix, &self.known[at..at + len]);
            self.published += 1;
        }
    }

    /// Gives the pages back; what is not known to other texts is to be computed again.
    fn release(&mut self, pool: &mut PagePool) {
        pool.release(&std::mem::take(&mut self.pages));
        self.known.clear();
        (self.published, self.prefix) = (0, 0);
    }

    fn emptied(mut self, pool: &mut PagePool) -> Draft {
        self.release(pool);
        self.guessed.clear();
        self
    }
}
