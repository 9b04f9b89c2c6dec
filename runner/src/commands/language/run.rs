//! A text while it is generated: shown as it comes, stopped by Ctrl-C, timed.

use crate::args::GenerationArgs;
use crate::fail::{Failure, Outcome};
use crate::interrupt::Interrupt;
use cupola::language::TextModel;
use cupola::llm::speculate::PromptLookup;
use cupola::llm::{
    Engine, EngineOptions, Event, FinishReason, LlmError, LogProbs, Request, Transcript, Usage,
};
use cupola::runtime::RuntimeError;
use indicatif::{ProgressBar, ProgressStyle};
use std::time::{Duration, Instant};

/// Tokens of a prompt from which on its progress is shown.
const LONG_PROMPT: usize = 1024;

/// An engine for one text at a time.
pub fn engine(
    model: &TextModel,
    draft: Option<&TextModel>,
    args: &GenerationArgs,
    deterministic: bool,
    positions: usize,
) -> Outcome<Engine> {
    let options = EngineOptions {
        rows: args.batch.into(),
        rows_beside: args.batch.into(),
        shift: args.shift,
        draft_len: match draft {
            Some(_) => args.draft.draft_len,
            None => args.lookup.unwrap_or(0),
        },
        deterministic,
        ..EngineOptions::new(positions)
    };
    let mut engine = model.engine(positions, options).map_err(Failure::from)?;
    if let Some(draft) = draft {
        let drafter = model.drafter(draft, positions, args.batch.into())?;
        engine.set_drafter(Box::new(drafter));
    } else if args.lookup.is_some() {
        engine.set_drafter(Box::new(PromptLookup::default()));
    }
    Ok(engine)
}

/// What was generated.
#[derive(Debug, Default)]
pub struct Generated {
    pub text: String,
    pub tokens: Vec<u32>,
    pub log_probs: Vec<LogProbs>,
    pub finish: Finish,
    pub usage: Usage,
    /// Time to the first token.
    pub prefill: Duration,
    /// Time from the first token to the last.
    pub decode: Duration,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Finish {
    /// Ctrl-C.
    #[default]
    Interrupted,
    /// A string of `--stop`.
    StopText,
    /// What the engine says.
    Engine(FinishReason),
}

impl Finish {
    /// A short word.
    pub fn name(self) -> &'static str {
        match self {
            Finish::Interrupted => "interrupted",
            Finish::StopText
            | Finish::Engine(FinishReason::EndToken(_) | FinishReason::Constraint) => "stop",
            Finish::Engine(FinishReason::Length) => "length",
            Finish::Engine(FinishReason::Context) => "context",
        }
    }
}

impl Generated {
    /// Prompt tokens computed per second.
    pub fn prefill_rate(&self) -> f64 {
        rate(self.usage.prompt - self.usage.reused, self.prefill)
    }

    /// Tokens per second after the first.
    pub fn decode_rate(&self) -> f64 {
        rate(self.tokens.len().saturating_sub(1), self.decode)
    }
}

/// Things per second; 0 where nothing was timed.
fn rate(count: usize, time: Duration) -> f64 {
    match time.is_zero() || count == 0 {
        true => 0.0,
        false => count as f64 / time.as_secs_f64(),
    }
}

/// Generates one text; `show` gets every piece of it as it comes.
pub fn generate(
    engine: &mut Engine,
    request: Request,
    mut transcript: Transcript,
    interrupt: &Interrupt,
    mut show: impl FnMut(&str),
) -> Outcome<Generated> {
    let mut out = Generated::default();
    out.usage.prompt = request.prompt.len();
    let bar = progress(request.prompt.len());
    engine.decoder_mut().stop_mut().flags = vec![interrupt.flag()];
    tracing::info!("{} tokens are read", request.prompt.len());
    let start = Instant::now();
    let id = engine.submit(request).map_err(cupola::Error::from)?;
    let mut first: Option<Instant> = None;
    let mut ended = false;
    while !ended {
        let events = match engine.step() {
            Ok(events) if !interrupt.is_set() => events,
            Ok(_) | Err(LlmError::Runtime(RuntimeError::Cancelled)) => break,
            Err(e) => return Err(cupola::Error::from(e).into()),
        };
        for event in events {
            match event {
                Event::Prefill { done, .. } => bar.set_position(done as u64),
                Event::Token {
                    token, log_probs, ..
                } => {
                    if first.is_none() {
                        first = Some(Instant::now());
                        bar.finish_and_clear();
                    }
                    out.tokens.push(token);
                    out.log_probs.extend(log_probs);
                    let piece = transcript.push(token);
                    show(&piece);
                    out.text.push_str(&piece);
                    if transcript.is_stopped() {
                        out.finish = Finish::StopText;
                        ended = true;
                        break;
                    }
                }
                Event::Finished { reason, usage, .. } => {
                    out.finish = Finish::Engine(reason);
                    out.usage = usage;
                    ended = true;
                }
                Event::Failed { error, .. } => return Err(cupola::Error::from(error).into()),
            }
        }
    }
    bar.finish_and_clear();
    engine.cancel(id);
    let rest = transcript.finish();
    show(&rest);
    out.text.push_str(&rest);
    out.usage.generated = out.tokens.len();
    let first = first.unwrap_or_else(Instant::now);
    out.prefill = first - start;
    out.decode = first.elapsed();
    Ok(out)
}

/// A bar for a long prompt, on a terminal only.
fn progress(tokens: usize) -> ProgressBar {
    if tokens < LONG_PROMPT {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(tokens as u64);
    let style = ProgressStyle::with_template("reading {bar:30} {pos}/{len} tokens, {per_sec}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
