//! `cupola perplexity`: how well a model foretells a text.
//!
//! The text is cut into windows that know nothing of each other. Of each window all tokens but the first are foretold
//! from those before; perplexity is the exponential of the mean negative log-probability. Where the model wants a token
//! at the beginning of texts, every window begins with it.

use crate::args::PerplexityArgs;
use crate::fail::{Failure, Outcome};
use crate::npy::RowsFile;
use crate::outputs;
use cupola::language::TextModel;
use cupola::llm::sample::log_sum_exp;
use cupola::llm::{Batch, Decoder, Logits};
use serde_json::json;
use std::time::Instant;

/// Most tokens of a window where none is asked for.
const LONGEST_WINDOW: usize = 8192;

/// Rows of a run: their logits are held together.
const ROWS: usize = 128;

/// Prints the perplexity of a text.
pub fn perplexity(args: &PerplexityArgs) -> Outcome {
    let text = super::text(&args.text)?;
    let import = super::import(&args.compile, args.context, args.cache);
    let model = super::open(&args.model, &args.compile, &import)?;
    let tokens = model.tokenizer.encode(&text, false, false);
    let tokens = tokens.map_err(cupola::Error::from)?;
    let window = args
        .context
        .unwrap_or(model.config.context_len.min(LONGEST_WINDOW));
    let windows = windows(&model, &tokens, window)?;
    let longest = windows.iter().map(Vec::len).max().unwrap_or(0);
    let mut decoder = model.decoder(longest)?;
    let count: usize = windows.iter().map(|w| w.len() - 1).sum();
    let file = args.logits.as_ref();
    let file = file.map(|path| RowsFile::new(path, count, decoder.vocab_len()));
    let mut file = file.transpose()?;
    let (start, mut total) = (Instant::now(), 0.0);
    for window in &windows {
        total += cost(&mut decoder, window, file.as_mut())?;
    }
    file.map(RowsFile::finish).transpose()?;
    let mean = total / count as f64;
    let rate = count as f64 / start.elapsed().as_secs_f64();
    match &args.json {
        Some(to) => {
            let document = json!({
                "perplexity": mean.exp(),
                "ln_perplexity": mean,
                "tokens": count,
                "windows": windows.len(),
                "window": longest,
                "tok_s": rate,
                "peak_rss_mib": super::peak_rss_mib(),
            });
            outputs::write_json(to, &document)
        }
        None => {
            println!(
                "perplexity {:.4}, ln {mean:.5}, over {count} tokens in {} windows",
                mean.exp(),
                windows.len()
            );
            Ok(())
        }
    }
}

/// The windows of a text, all but the last of the same length.
fn windows(model: &TextModel, tokens: &[u32], len: usize) -> Outcome<Vec<Vec<u32>>> {
    let first = model
        .tokenizer
        .adds_bos()
        .then(|| model.tokenizer.bos())
        .flatten();
    let room = len.saturating_sub(usize::from(first.is_some()));
    if room == 0 || len < 2 {
        return Err(Failure::usage("a window has at least two tokens"));
    }
    let chunks = tokens.chunks(room);
    let windows = chunks.map(|chunk| first.iter().chain(chunk).copied().collect());
    let windows: Vec<Vec<u32>> = windows.filter(|w: &Vec<u32>| w.len() > 1).collect();
    match windows.is_empty() {
        true => Err(Failure::usage(
            "the text has too few tokens to foretell one",
        )),
        false => Ok(windows),
    }
}

/// The sum of negative log-probabilities of a window's tokens; their logits go into the file.
fn cost(decoder: &mut Decoder, window: &[u32], mut file: Option<&mut RowsFile>) -> Outcome<f64> {
    let pages: Vec<u32> = (0..decoder.pages() as u32).collect();
    let known = &window[..window.len() - 1];
    let mut total = 0.0;
    for (i, chunk) in known.chunks(ROWS).enumerate() {
        let mut batch = Batch::new();
        batch.push(chunk, i * ROWS, &pages);
        batch.want(chunk.len());
        let logits = decoder.run(&batch).map_err(cupola::Error::from)?;
        let next = &window[i * ROWS + 1..][..chunk.len()];
        total += costs(&logits, next);
        if let Some(file) = &mut file {
            (0..chunk.len()).try_for_each(|row| file.push(logits.row(row)))?;
        }
    }
    Ok(total)
}

/// The sum of negative log-probabilities of the tokens that follow rows.
fn costs(logits: &Logits, next: &[u32]) -> f64 {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let part = next.len().div_ceil(threads);
    let of = |from: usize| {
        let rows = next[from..].iter().take(part).zip(from..);
        rows.map(|(token, row)| {
            let row = logits.row(row);
            log_sum_exp(row) - f64::from(row[*token as usize])
        })
        .sum::<f64>()
    };
    std::thread::scope(|scope| {
        let parts = (0..next.len()).step_by(part);
        let parts: Vec<_> = parts.map(|from| scope.spawn(move || of(from))).collect();
        let sums = parts.into_iter().map(|p| p.join());
        sums.map(|sum| sum.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .sum()
    })
}
