//! The commands of language models.
//!
//! Reading order: this file (what they share), `run` (a text while it is generated), then one file per command.

mod bench;
mod chat;
mod embed;
mod generate;
mod perplexity;
mod run;
mod serve;
mod tokenize;

pub use bench::bench;
pub use chat::chat;
pub use embed::embed;
pub use generate::generate;
pub use perplexity::perplexity;
pub use serve::serve;
pub use tokenize::tokenize;

use crate::args::{
    CacheArgs, CacheType, CompileArgs, DraftArgs, Precision, SamplingArgs, TextArgs,
};
use crate::fail::{Failure, Outcome};
use cupola::language::TextModel;
use cupola::llm::Sampling;
use cupola::{DType, Host, LanguageOptions};
use std::path::Path;

/// Most tokens of a text where nothing is asked for.
pub const USUAL_CONTEXT: usize = 8192;

/// How a model that continues texts is built: `context` tokens where somebody asks for so many, else texts of the usual
/// length.
pub fn import(args: &CompileArgs, context: Option<usize>, cache: CacheArgs) -> LanguageOptions {
    LanguageOptions {
        context_len: context,
        cache_dtype: match cache.cache_type {
            Some(CacheType::F32) => DType::F32,
            Some(CacheType::F16) => DType::F16,
            Some(CacheType::Bf16) => DType::BF16,
            Some(CacheType::Q8) => DType::I8,
            None if args.precision == Precision::F32 => DType::F32,
            None => LanguageOptions::default().cache_dtype,
        },
        text_len: Some(USUAL_CONTEXT),
        ..LanguageOptions::default()
    }
}

/// Opens and compiles a model.
fn open(path: &Path, args: &CompileArgs, import: &LanguageOptions) -> Outcome<TextModel> {
    open_on(&super::host(args), path, args, import)
}

fn open_on(
    host: &Host,
    path: &Path,
    args: &CompileArgs,
    import: &LanguageOptions,
) -> Outcome<TextModel> {
    let _busy = super::busy("loading");
    let options = super::options(args)?;
    Ok(TextModel::open_with(path, host, &options, import)?)
}

/// Opens a model, and the one that guesses for it if there is one, on the same devices.
fn open_with_draft(
    path: &Path,
    args: &CompileArgs,
    draft: &DraftArgs,
    own: &LanguageOptions,
) -> Outcome<(TextModel, Option<TextModel>)> {
    let host = super::host(args);
    let model = open_on(&host, path, args, own)?;
    let import = LanguageOptions {
        context_len: None,
        ..own.clone()
    };
    let draft = draft.draft.as_ref();
    let draft = draft.map(|path| open_on(&host, path, args, &import));
    Ok((model, draft.transpose()?))
}

/// The text of the command line.
fn text(args: &TextArgs) -> Outcome<String> {
    match (&args.prompt, &args.file) {
        (Some(text), _) => Ok(text.clone()),
        (None, Some(path)) => {
            let bytes = std::fs::read(path).map_err(|e| Failure::io("cannot read", path, e))?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
        (None, None) => Err(Failure::usage(
            "a text is needed: --prompt TEXT or --file FILE",
        )),
    }
}

fn sampling(args: &SamplingArgs, seed: u64) -> Sampling {
    Sampling {
        temperature: args.temp,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        typical_p: args.typical_p,
        repetition_penalty: args.repeat_penalty,
        presence_penalty: args.presence_penalty,
        frequency_penalty: args.frequency_penalty,
        penalty_len: args.repeat_last_n,
        logit_bias: args.logit_bias.clone(),
        seed,
    }
}

/// Most memory that the process had at a time; `None` where the system does not tell.
fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}
