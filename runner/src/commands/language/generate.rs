//! `cupola generate`: continues a text.

use super::run::{self, Generated};
use crate::args::{GenerateArgs, GenerationArgs};
use crate::fail::Failure;
use crate::fail::Outcome;
use crate::interrupt::Interrupt;
use crate::outputs;
use cupola::language::TextModel;
use cupola::llm::constrain::{Constrainer, Grammar, TokenTrie};
use cupola::llm::{Constraint, LogProbs, Request, Transcript};
use serde_json::{Value as Json, json};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// Continues a text, on standard output as it comes.
pub fn generate(args: &GenerateArgs) -> Outcome {
    let text = super::text(&args.text)?;
    let model = super::open(&args.model, &args.compile, args.generation.context)?;
    let prompt = model.tokenizer.encode(&text, true, true);
    let prompt = prompt.map_err(cupola::Error::from)?;
    let positions = positions(&model, prompt.len(), &args.generation);
    let mut engine = run::engine(&model, &args.generation, positions)?;
    let interrupt = Interrupt::watch();
    let transcript = Transcript::new(&model.tokenizer, &args.generation.stop);
    let constrainer = constrainer(&model, &args.generation, engine.decoder().vocab_len())?;
    let request = request(
        &model,
        prompt,
        &args.generation,
        args.compile.seed,
        args.logprobs,
        constrainer.as_ref(),
    );
    let streams = args.json.as_deref() != Some("-");
    let generated = run::generate(&mut engine, request, transcript, &interrupt, |piece| {
        if streams {
            show(piece);
        }
    })?;
    if streams {
        println!();
    }
    let stats = engine.stats();
    if let Some(to) = &args.json {
        let mut document = document(&generated);
        if args.generation.lookup.is_some() {
            document["drafted"] = json!(stats.drafted);
            document["accepted"] = json!(stats.accepted);
        }
        if args.logprobs.is_some() {
            document["logprobs"] = generated.log_probs.iter().map(log_probs).collect();
        }
        // One line: harnesses read the last one.
        match to == "-" {
            true => println!("{document}"),
            false => outputs::write_json(to, &document)?,
        }
    }
    tracing::info!(
        "{} prompt tokens at {:.1}/s, {} tokens at {:.1}/s, ended by {}",
        generated.usage.prompt,
        generated.prefill_rate(),
        generated.tokens.len(),
        generated.decode_rate(),
        generated.finish.name()
    );
    Ok(())
}

/// Positions that a text of so many tokens and its continuation can take.
fn positions(model: &TextModel, prompt: usize, args: &GenerationArgs) -> usize {
    let most = model.config.context_len;
    match args.shift {
        Some(_) => most.min(args.context.unwrap_or(most)),
        None => most.min(prompt.saturating_add(args.predict)),
    }
}

/// What the text is held to, if anything.
pub fn constrainer(
    model: &TextModel,
    args: &GenerationArgs,
    vocab_len: usize,
) -> Outcome<Option<Constrainer>> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|e| Failure::io("cannot read", path, e))
    };
    let grammar = if let Some(path) = &args.json_schema {
        let schema = serde_json::from_str(&read(path)?);
        let schema = schema.map_err(|e| Failure::malformed(format!("{}: {e}", path.display())))?;
        Grammar::json_schema(&schema)
    } else if let Some(path) = &args.grammar {
        Grammar::gbnf(&read(path)?)
    } else if let Some(pattern) = &args.regex {
        Grammar::regex(pattern)
    } else {
        return Ok(None);
    };
    let grammar = grammar.map_err(|e| Failure::malformed(e.to_string()))?;
    let trie = TokenTrie::of(&model.tokenizer, vocab_len);
    Ok(Some(Constrainer::new(&grammar, Arc::new(trie))))
}

/// What is asked of the engine.
pub fn request(
    model: &TextModel,
    prompt: Vec<u32>,
    args: &GenerationArgs,
    seed: u64,
    log_probs: Option<usize>,
    constrainer: Option<&Constrainer>,
) -> Request {
    Request {
        prompt,
        most: args.predict,
        sampling: super::sampling(&args.sampling, seed),
        end_tokens: match args.ignore_eos {
            true => [].into(),
            false => model.tokenizer.end_tokens().into(),
        },
        log_probs,
        constraint: constrainer.map(|c| Box::new(c.start()) as Box<dyn Constraint>),
    }
}

/// Prints a piece at once; a reader that has gone ends the program like any other print.
pub fn show(piece: &str) {
    if piece.is_empty() {
        return;
    }
    print!("{piece}");
    // The next print fails too, and says so.
    let _ = std::io::stdout().flush();
}

/// The promise of `--json`.
fn document(generated: &Generated) -> Json {
    json!({
        "text": generated.text,
        "tokens": generated.tokens,
        "prompt_tokens": generated.usage.prompt,
        "prefill_tok_s": generated.prefill_rate(),
        "decode_tok_s": generated.decode_rate(),
        "peak_rss_mib": super::peak_rss_mib(),
        "first_token_ms": generated.prefill.as_secs_f64() * 1e3,
        "finish": generated.finish.name(),
    })
}

fn log_probs(found: &LogProbs) -> Json {
    let top = found
        .top
        .iter()
        .map(|t| json!({ "token": t.token, "logprob": t.log_prob }));
    json!({
        "token": found.chosen.token,
        "logprob": found.chosen.log_prob,
        "top": top.collect::<Vec<_>>(),
    })
}
