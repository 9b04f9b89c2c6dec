//! The command line of language models.

use super::CompileArgs;
use clap::builder::TypedValueParser as _;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// A text, from the command line or a file.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
pub struct TextArgs {
    /// Text.
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// File with the text; what is no UTF-8 in it is read as U+FFFD.
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// How tokens are chosen. In this order: bias and penalties, top-k, typical, top-p, min-p, temperature.
#[derive(Clone, Debug, Args)]
pub struct SamplingArgs {
    /// Temperature; 0 always takes the likeliest token.
    #[arg(long, visible_alias = "temperature", default_value_t = 0.8)]
    pub temp: f32,
    /// Choose among so many of the likeliest tokens; 0 for all.
    #[arg(long, default_value_t = 40)]
    pub top_k: usize,
    /// Choose among the likeliest tokens whose probabilities reach this sum.
    #[arg(long, default_value_t = 0.95)]
    pub top_p: f32,
    /// Choose among tokens at least this times as likely as the likeliest.
    #[arg(long, default_value_t = 0.05)]
    pub min_p: f32,
    /// Choose among the tokens nearest to the expected information whose probabilities reach this sum.
    #[arg(long, default_value_t = 1.0)]
    pub typical_p: f32,
    /// Make tokens of the text less likely: divide their logits if positive, else multiply.
    #[arg(long, default_value_t = 1.0)]
    pub repeat_penalty: f32,
    /// Tokens at the end of the text that penalties look at.
    #[arg(long, default_value_t = 64)]
    pub repeat_last_n: usize,
    /// Take this off the logits of tokens that the text has.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub presence_penalty: f32,
    /// Take this off the logits of tokens as often as the text has them.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub frequency_penalty: f32,
    /// Add to the logit of a token, as in 15043=+1.5 or 15043=-inf (repeatable).
    #[arg(long, value_name = "TOKEN=BIAS", value_parser = parse_bias)]
    pub logit_bias: Vec<(u32, f32)>,
}

/// `TOKEN=BIAS`.
fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let parts = text.split_once('=');
    let bias = parts.and_then(|(token, bias)| Some((token.parse().ok()?, bias.parse().ok()?)));
    bias.filter(|(_, bias): &(u32, f32)| !bias.is_nan())
        .ok_or_else(|| "write it as in 15043=-1.5".into())
}

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CacheType {
    /// As they are computed.
    F32,
    /// Rounded to f16.
    F16,
    /// Rounded to bf16.
    Bf16,
    /// 127 steps to either side of zero, a scale for each 32 numbers.
    Q8,
}

/// The cache of keys and values.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct CacheArgs {
    /// Type of keys and values in the cache (default: f16, with --precision f32 that).
    #[arg(long, value_enum, value_name = "TYPE")]
    pub cache_type: Option<CacheType>,
}

/// What is generated, and how.
#[derive(Clone, Debug, Args)]
pub struct GenerationArgs {
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Most tokens to generate.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    pub predict: usize,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Most tokens of the whole text (default: what the model was made for).
    #[arg(short, long, value_name = "N")]
    pub context: Option<usize>,
    /// Where the context is full, go on without the older half of it, except so many tokens at the beginning.
    #[arg(long, value_name = "KEEP", num_args = 0..=1, default_missing_value = "4")]
    pub shift: Option<usize>,
    /// Stop before this text (repeatable).
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Generate JSON that the schema in this file allows.
    #[arg(long, value_name = "FILE", group = "grammar_kind")]
    pub json_schema: Option<PathBuf>,
    /// Generate what this regular expression matches from beginning to end.
    #[arg(long, value_name = "PATTERN", group = "grammar_kind")]
    pub regex: Option<String>,
    /// Generate what the rules in this file allow, in GBNF.
    #[arg(long, value_name = "FILE", group = "grammar_kind")]
    pub grammar: Option<PathBuf>,
    /// Go on after tokens that end a text.
    #[arg(long)]
    pub ignore_eos: bool,
    /// Tokens of a prompt computed at a time.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u16).range(1..=8192))]
    pub batch: u16,
    /// Guess so many tokens ahead from what the text said before; the result stays the same.
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "8", conflicts_with = "draft")]
    pub lookup: Option<usize>,
    #[command(flatten)]
    pub draft: DraftArgs,
}

/// A model that guesses.
#[derive(Clone, Debug, Args)]
pub struct DraftArgs {
    /// Guess tokens ahead by this smaller model of the same vocabulary; the result stays the same.
    #[arg(long, value_name = "MODEL")]
    pub draft: Option<PathBuf>,
    /// Most tokens that --draft guesses ahead.
    #[arg(long, value_name = "N", default_value_t = 6, requires = "draft", value_parser = clap::value_parser!(u16).range(1..=256).map(usize::from))]
    pub draft_len: usize,
}

#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// GGUF file, or folder of safetensors with config.json.
    pub model: PathBuf,
    #[command(flatten)]
    pub text: TextArgs,
    #[command(flatten)]
    pub generation: GenerationArgs,
    #[command(flatten)]
    pub compile: CompileArgs,
    /// Take keys and values of the prompt's beginning from a file that --save-cache wrote.
    #[arg(long, value_name = "FILE")]
    pub load_cache: Option<PathBuf>,
    /// At the end, write the keys and values of the text into a file, for --load-cache.
    #[arg(long, value_name = "FILE")]
    pub save_cache: Option<PathBuf>,
    /// Log-probabilities of every token and of so many of the likeliest, with --json.
    #[arg(long, value_name = "N", requires = "json")]
    pub logprobs: Option<usize>,
    /// JSON to FILE, or to standard output.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<String>,
}

#[derive(Debug, Args)]
pub struct ChatArgs {
    /// GGUF file, or folder of safetensors with config.json.
    pub model: PathBuf,
    /// What the model is told before the first message.
    #[arg(short, long, value_name = "TEXT")]
    pub system: Option<String>,
    #[command(flatten)]
    pub generation: GenerationArgs,
    #[command(flatten)]
    pub compile: CompileArgs,
}

#[derive(Debug, Args)]
pub struct TokenizeArgs {
    /// GGUF file, or folder with a tokenizer.json.
    pub model: PathBuf,
    #[command(flatten)]
    pub text: TextArgs,
    /// Leave out the tokens that the model wants around a text.
    #[arg(long)]
    pub no_special: bool,
    /// Read the names of control tokens in the text as text.
    #[arg(long)]
    pub plain: bool,
    /// JSON to FILE, or to standard output.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<String>,
}

#[derive(Debug, Args)]
pub struct PerplexityArgs {
    /// GGUF file, or folder of safetensors with config.json.
    pub model: PathBuf,
    #[command(flatten)]
    pub text: TextArgs,
    /// Tokens of a window: the text is cut into windows that know nothing of each other (default: what the model was made
    /// for, at most 8192).
    #[arg(short, long, value_name = "N")]
    pub context: Option<usize>,
    /// Writes the logits of all rows that foretell a token: `f32[rows, vocabulary]`, window after window.
    #[arg(long, value_name = "FILE.npy")]
    pub logits: Option<PathBuf>,
    #[command(flatten)]
    pub cache: CacheArgs,
    #[command(flatten)]
    pub compile: CompileArgs,
    /// JSON to FILE, or to standard output.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<String>,
}

/// The texts that `plan` makes room for, where the model continues texts.
#[derive(Debug, Args)]
pub struct PlanLlmArgs {
    /// Most tokens of a text of a language model (default: what the model was made for, at most 8192).
    #[arg(short, long, value_name = "N")]
    pub context: Option<usize>,
    /// Texts that a language model continues at the same time.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256).map(usize::from))]
    pub slots: usize,
    /// Rows of a language model's largest step.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u16).range(1..=8192).map(usize::from))]
    pub batch: usize,
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// What `bench --llm` times.
#[derive(Debug, Args)]
pub struct BenchLlmArgs {
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Lengths of prompts to time, with --llm.
    #[arg(
        short = 'p',
        long,
        value_name = "N,N",
        value_delimiter = ',',
        default_value = "512",
        requires = "llm"
    )]
    pub prompts: Vec<usize>,
    /// Numbers of tokens to generate, with --llm.
    #[arg(
        short = 'n',
        long,
        value_name = "N,N",
        value_delimiter = ',',
        default_value = "128",
        requires = "llm"
    )]
    pub generate: Vec<usize>,
    /// Numbers of threads to time with, with --llm (default: --threads).
    #[arg(
        short = 't',
        value_name = "N,N",
        value_delimiter = ',',
        requires = "llm"
    )]
    pub thread_counts: Vec<usize>,
    /// Runs of each, with --llm.
    #[arg(
        short = 'r',
        long,
        value_name = "N",
        default_value_t = 5,
        requires = "llm"
    )]
    pub repetitions: usize,
}

#[derive(Debug, Args)]
pub struct EmbedArgs {
    /// Folder of safetensors with config.json, or GGUF file, of an encoder.
    pub model: PathBuf,
    /// Texts.
    #[arg(short, long, value_name = "TEXT", num_args = 1.., required_unless_present = "file")]
    pub prompt: Vec<String>,
    /// File with a text on every line.
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub compile: CompileArgs,
    /// JSON to FILE, or to standard output.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<String>,
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// GGUF file, or folder of safetensors with config.json.
    pub model: PathBuf,
    /// Port; 0 for any that is free.
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// Address to listen on; only this machine can reach the default.
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// Texts continued at the same time.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256).map(usize::from))]
    pub slots: usize,
    /// Most requests that wait for a slot; more get status 429.
    #[arg(long, default_value_t = 64)]
    pub queue: usize,
    /// Most tokens of a text (default: what the model was made for, at most 8192).
    #[arg(short, long, value_name = "N")]
    pub context: Option<usize>,
    /// Where a text is full, go on without the older half of it, except so many tokens at the beginning.
    #[arg(long, value_name = "KEEP", num_args = 0..=1, default_missing_value = "4")]
    pub shift: Option<usize>,
    /// What clients must send as `Authorization: Bearer KEY`.
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
    /// Name of the model as clients see it (default: that of the file).
    #[arg(long)]
    pub name: Option<String>,
    /// Most bytes of a request.
    #[arg(long, value_name = "BYTES", default_value = "4MiB", value_parser = super::parse_bytes)]
    pub body_size: u64,
    /// Most seconds of a request.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub timeout: u64,
    #[command(flatten)]
    pub cache: CacheArgs,
    #[command(flatten)]
    pub draft: DraftArgs,
    #[command(flatten)]
    pub compile: CompileArgs,
}
