//! `cupola bench --llm`: tokens per second of prompts (`pp`) and of continuing a text (`tg`).
//!
//! A prompt of N tokens is computed from an empty cache, in steps of 512 rows, up to the logits of its last token; N
//! tokens are generated one by one from an empty cache, each with its logits. One run of each warms up.

use crate::args::BenchArgs;
use crate::fail::{Failure, Outcome};
use cupola::llm::{Batch, Decoder, Rows};
use serde_json::{Value as Json, json};
use std::io::Write;
use std::time::Instant;

/// Rows of a step.
const ROWS: usize = 512;

/// Times a language model.
pub fn bench(args: &BenchArgs) -> Outcome {
    let path = args
        .model
        .as_ref()
        .ok_or_else(|| Failure::usage("bench --llm needs a MODEL"))?;
    let asked = &args.llm_args;
    let threads = match asked.thread_counts.is_empty() {
        true => vec![args.compile.threads],
        false => asked.thread_counts.clone(),
    };
    if asked.repetitions == 0 {
        return Err(Failure::usage("at least one run is timed"));
    }
    let mut out = Lines::open(args.json.as_deref())?;
    for count in threads {
        let mut compile = args.compile.clone();
        compile.threads = count;
        let import = super::import(&compile, None, asked.cache);
        let model = super::open(path, &compile, &import)?;
        let longest = asked
            .prompts
            .iter()
            .chain(&asked.generate)
            .max()
            .copied()
            .unwrap_or(0);
        if longest > model.config.context_len {
            let what = format!(
                "{longest} tokens; the model was made for {}",
                model.config.context_len
            );
            return Err(Failure::limit(what));
        }
        let mut decoder = model.decoder(longest.max(1))?;
        let prompts = asked.prompts.iter().map(|n| ("pp", *n));
        let generated = asked.generate.iter().map(|n| ("tg", *n));
        for (kind, len) in prompts.chain(generated).filter(|(_, len)| *len > 0) {
            let rows = if kind == "pp" { ROWS } else { 1 };
            let how = match args.compile.deterministic {
                true => Rows::Apart,
                false => Rows::Together,
            };
            pass(&mut decoder, len.min(2 * ROWS), rows, how)?;
            let mut rates = vec![];
            for _ in 0..asked.repetitions {
                let start = Instant::now();
                pass(&mut decoder, len, rows, how)?;
                rates.push(len as f64 / start.elapsed().as_secs_f64());
            }
            out.line(&format!("{kind}{len}"), count, &rates)?;
        }
    }
    Ok(())
}

/// Computes so many tokens from an empty cache, in steps of so many rows.
fn pass(decoder: &mut Decoder, len: usize, rows: usize, how: Rows) -> Outcome {
    let pages: Vec<u32> = (0..decoder.pages() as u32).collect();
    let tokens: Vec<u32> = (0..len as u64)
        .map(|i| (i * 7919 % decoder.vocab_len() as u64) as u32)
        .collect();
    let needed = |positions: usize| positions.div_ceil(decoder.cache().page_len);
    let (chunks, mut batches) = (tokens.chunks(rows), vec![]);
    for (i, chunk) in chunks.enumerate() {
        let mut batch = Batch::new();
        let end = i * rows + chunk.len();
        batch.push_rows(chunk, i * rows, &pages[..needed(end)], how);
        batch.want(usize::from(rows == 1 || end == len));
        batches.push(batch);
    }
    for batch in &batches {
        decoder.run(batch).map_err(cupola::Error::from)?;
    }
    Ok(())
}

/// Where results go: a table, or a line of JSON each.
enum Lines {
    Table,
    Json(Box<dyn Write>),
}

impl Lines {
    fn open(json: Option<&str>) -> Outcome<Lines> {
        match json {
            None => {
                println!(
                    "{:>8} {:>8} {:>12} {:>10} {:>10}",
                    "test", "threads", "tok/s", "least", "most"
                );
                Ok(Lines::Table)
            }
            Some("-") => Ok(Lines::Json(Box::new(std::io::stdout()))),
            Some(path) => {
                let file = std::fs::File::create(path);
                let file = file.map_err(|e| Failure::io("cannot write", path.as_ref(), e))?;
                Ok(Lines::Json(Box::new(file)))
            }
        }
    }

    fn line(&mut self, name: &str, threads: usize, rates: &[f64]) -> Outcome {
        let mut sorted = rates.to_vec();
        sorted.sort_by(f64::total_cmp);
        let median = sorted[sorted.len() / 2];
        match self {
            Lines::Table => {
                let (least, most) = (sorted[0], sorted[sorted.len() - 1]);
                println!("{name:>8} {threads:>8} {median:>12.2} {least:>10.2} {most:>10.2}");
                Ok(())
            }
            Lines::Json(to) => {
                let line: Json = json!({
                    "name": name,
                    "case": format!("w4/{name}"),
                    "threads": threads,
                    "unit": "tok/s",
                    "median": median,
                    "tok_s": rates,
                    "peak_rss_mib": super::peak_rss_mib(),
                });
                let written = writeln!(to, "{line}").and_then(|()| to.flush());
                written.map_err(|e| Failure::new(1, "io", format!("results: {e}")))
            }
        }
    }
}
