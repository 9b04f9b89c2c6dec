//! `cupola generate`: continues a text.

use super::run::{self, Generated};
use crate::args::{GenerateArgs, GenerationArgs};
use crate::fail::{Failure, Outcome};
use crate::interrupt::Interrupt;
use crate::outputs::{self, write_atomically};
use cupola::LanguageOptions;
use cupola::language::{TextModel, read_snapshot, write_snapshot};
use cupola::llm::constrain::{Constrainer, Grammar, TokenTrie};
use cupola::llm::{Constraint, Engine, LogProbs, Request, Transcript};
use serde_json::{Value as Json, json};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// Continues a text, on standard output as it comes.
pub fn generate(args: &GenerateArgs) -> Outcome {
    let text = super::text(&args.text)?;
    let generation = &args.generation;
    let text_len = text_len(&args.model, &text, generation)?;
    let import = LanguageOptions {
        text_len: Some(text_len),
        ..super::import(&args.compile, generation.context, generation.cache)
    };
    let (model, draft) =
        super::open_with_draft(&args.model, &args.compile, &generation.draft, &import)?;
    let prompt = model.tokenizer.encode(&text, true, true);
    let prompt = prompt.map_err(cupola::Error::from)?;
    let positions = positions(&model, prompt.len(), &args.generation);
    let deterministic = args.compile.deterministic;
    let mut engine = run::engine(&model, draft.as_ref(), generation, deterministic, positions)?;
    if let Some(path) = &args.load_cache {
        load_cache(path, &model, &mut engine)?;
    }
    let interrupt = Interrupt::watch();
    let begun = prompt.clone();
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
    if let Some(path) = &args.save_cache {
        save_cache(
            path,
            &model,
            &mut engine,
            &[begun, generated.tokens.clone()].concat(),
        )?;
    }
    let stats = engine.stats();
    if let Some(to) = &args.json {
        let mut document = document(&generated);
        let decoder = engine.decoder();
        let cache_bytes = decoder.pages() * decoder.cache().page_size;
        document["kv_cache_bytes"] = json!(cache_bytes);
        if generation.lookup.is_some() || draft.is_some() {
            document["drafted"] = json!(stats.drafted);
            document["accepted"] = json!(stats.accepted);
            let share = stats.accepted as f64 / stats.drafted.max(1) as f64;
            document["accepted_share"] = json!(share);
        }
        if args.load_cache.is_some() {
            document["reused_tokens"] = json!(generated.usage.reused);
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

/// Puts a saved text into the cache.
fn load_cache(path: &Path, model: &TextModel, engine: &mut Engine) -> Outcome {
    let snapshot = read_snapshot(path, model.program.graph())?;
    let restored = engine.restore(&snapshot).map_err(cupola::Error::from)?;
    tracing::info!(
        "{restored} of {} tokens of {} are in the cache",
        snapshot.tokens.len(),
        path.display()
    );
    Ok(())
}

/// Writes what the cache has of a text.
fn save_cache(path: &Path, model: &TextModel, engine: &mut Engine, text: &[u32]) -> Outcome {
    let snapshot = engine.snapshot(text).map_err(cupola::Error::from)?;
    write_atomically(path, |file| {
        write_snapshot(&snapshot, model.program.graph(), file)
    })?;
    tracing::info!("{} tokens are in {}", snapshot.tokens.len(), path.display());
    Ok(())
}

/// Positions that the text will have at most, before the model is opened. A short text has no more tokens than bytes, and a
/// few around it; the tokens of a long one are counted, since models may be another for longer texts.
fn text_len(path: &Path, text: &str, args: &GenerationArgs) -> Outcome<usize> {
    const SHORT: usize = 1024;
    const AROUND: usize = 16;
    if args.shift.is_some() || args.context.is_some() {
        return Ok(usize::MAX);
    }
    let tokens = match text.len() <= SHORT {
        true => text.len() + AROUND,
        false => {
            let tokenizer = cupola::language::tokenizer(path)?;
            let tokens = tokenizer.encode(text, true, true);
            tokens.map_err(cupola::Error::from)?.len()
        }
    };
    Ok(tokens.saturating_add(args.predict))
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
