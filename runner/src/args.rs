//! The command line.

mod language;
mod train;

pub use language::*;
pub use train::*;

use clap::{Args, Parser, Subcommand, ValueEnum};
use cupola::Fault;
use std::path::PathBuf;

/// Runs, checks and explains models: one compiled dataflow graph, any hardware.
#[derive(Debug, Parser)]
#[command(
    name = "cupola",
    version,
    about,
    propagate_version = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// More log lines on standard error (-v, -vv); RUST_LOG works too.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
    #[command(subcommand)]
    pub command: Command,
}

/// A command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the CPU and every GPU adapter.
    Devices(DevicesArgs),
    /// Check the installation: run a small graph on every device.
    Doctor(DevicesArgs),
    /// Show inputs, outputs, parameters and ops of a model.
    Inspect(InspectArgs),
    /// Validate a file without running it.
    Check(CheckArgs),
    /// Run a model once.
    Run(RunArgs),
    /// Time a model, or answer a harness as a worker.
    Bench(BenchArgs),
    /// Show the final kernels and every fusion that was not made.
    Explain(ExplainArgs),
    /// Measure where the time of a run goes.
    Profile(ProfileArgs),
    /// Show the memory a model will need.
    Plan(PlanArgs),
    /// Compare a model's results between devices.
    Compare(CompareArgs),
    /// Find the first node whose result differs between two devices.
    Bisect(BisectArgs),
    /// Run a suite of ONNX cases.
    Conformance(ConformanceArgs),
    /// Compile a model ahead of time, for processors like this one.
    Compile(CompileCommandArgs),
    /// Convert a model between formats, by suffix.
    Convert(ConvertArgs),
    /// Continue a text with a language model.
    Generate(GenerateArgs),
    /// Talk with a language model: a line of standard input is a message.
    Chat(ChatArgs),
    /// Show the tokens of a text.
    Tokenize(TokenizeArgs),
    /// Measure how well a language model foretells a text.
    Perplexity(PerplexityArgs),
    /// Give the vectors of texts by an encoder.
    Embed(EmbedArgs),
    /// Serve a language model over HTTP, in the form of the OpenAI API.
    Serve(ServeArgs),
    /// Train a model: a configuration, or a model file and data.
    Train(TrainArgs),
    /// Measure a trained model on samples that were held out, or on others.
    Eval(EvalArgs),
    /// Show tables of timed kernels that --tune-table wrote, or join them.
    Tuning(TuningArgs),
    /// Try the features of a GPU; started by this program for itself.
    #[command(hide = true)]
    TryGpu(TryGpuArgs),
}

/// `cupola try-gpu`.
#[derive(Debug, Args)]
pub struct TryGpuArgs {
    /// Position of the adapter.
    pub adapter: usize,
}

/// `cupola tuning`.
#[derive(Debug, Args)]
pub struct TuningArgs {
    /// Tables.
    #[arg(required = true, num_args = 1..)]
    pub files: Vec<PathBuf>,
    /// Write all of them in one; of two winners of a problem on one device the faster stays.
    #[arg(long, value_name = "FILE")]
    pub merge: Option<PathBuf>,
    /// JSON to FILE, or to standard output.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<String>,
}

/// How a model is compiled; the same for every command that compiles.
#[derive(Clone, Debug, Args)]
pub struct CompileArgs {
    /// Device: cpu, gpu, gpu:N, reference or auto.
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Threads of the CPU (default: one per physical core).
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Fix a symbolic dimension, as in batch=4 (repeatable).
    #[arg(long, value_name = "NAME=N")]
    pub set: Vec<String>,
    /// Optimisation level: 0 every op apart, 1 fused, 2 patterns raised to composites, 3 products merged too.
    #[arg(short = 'O', default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=3))]
    pub level: u8,
    /// Seed of random ops.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Exit with status 4 instead of running anything on another device.
    #[arg(long)]
    pub no_fallback: bool,
    /// Bytes for weights and working memory together, as in 512MiB; exit 5 when they do not suffice.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub memory: Option<u64>,
    /// The same bits at every run: refuse units that add in any order, and take the CPU for `auto`.
    #[arg(long)]
    pub deterministic: bool,
    /// Type in which products with constant weights are computed.
    #[arg(long, value_enum, default_value = "model")]
    pub precision: Precision,
    /// Time the kernels that a GPU may compute each problem by before the first run, and keep the fastest.
    #[arg(long, conflicts_with = "deterministic")]
    pub tune: bool,
    /// Use a table of kernels that were timed on such a GPU; what is timed now is added to it.
    #[arg(long, value_name = "FILE", conflicts_with = "deterministic")]
    pub tune_table: Option<PathBuf>,
    /// Compile a mistake into what is run (but not into the standard of a comparison), to see it found.
    #[arg(long, value_name = "NAME", hide = true)]
    pub fault: Option<Fault>,
}

/// Type in which products with constant weights are computed; sums are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// As the model says; activations are rounded to 8 bits where weights are block-quantised.
    Model,
    /// As the model says, activations of block-quantised weights too.
    F32,
    /// Weights and activations are rounded to bf16.
    Bf16,
    /// Weights are rounded to f16; activations too, also those of attention, on devices that multiply f16 faster.
    F16,
    /// Weights and activations are rounded to 8-bit integers with scales found in the run.
    Int8,
}

/// `1024`, `512MiB`, `2GB`.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let split = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: f64 = match unit.trim() {
        "" | "B" => 1.0,
        "KiB" | "K" => 1024.0,
        "MiB" | "M" => 1024.0 * 1024.0,
        "GiB" | "G" => 1024.0 * 1024.0 * 1024.0,
        "KB" | "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        _ => return Err("write it as in 512MiB".into()),
    };
    let bytes = number.trim().parse::<f64>().ok().map(|n| n * factor);
    let bytes = bytes.filter(|b| *b >= 0.0 && *b < u64::MAX as f64);
    bytes
        .map(|b| b as u64)
        .ok_or("write it as in 512MiB".into())
}

/// Where inputs come from.
#[derive(Clone, Debug, Args)]
pub struct InputArgs {
    /// An input: NAME=FILE.npy, FILE.npz, FILE.pb, FILE.png, FILE.jpg, or NAME=SHAPExDTYPE:rand or :zeros, as in x=1x3x224x224xf32:rand.
    #[arg(short, long, value_name = "NAME=WHAT")]
    pub input: Vec<String>,
    /// A folder with input_0.pb, input_1.pb, ...
    #[arg(long, value_name = "DIR")]
    pub inputs: Option<PathBuf>,
}

/// What `--stats` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StatsFormat {
    /// One JSON object on standard output.
    Json,
    /// A table on standard error.
    Text,
}

#[derive(Debug, Args)]
pub struct DevicesArgs {
    /// JSON to FILE, or to standard output.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<String>,
}

/// Form of `inspect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum InspectFormat {
    /// Tables, or the graph's text form with --after.
    Text,
    /// JSON.
    Json,
    /// Graphviz.
    Dot,
    /// One self-contained page.
    Html,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Model file.
    pub model: PathBuf,
    #[command(flatten)]
    pub compile: CompileArgs,
    #[command(flatten)]
    pub input: InputArgs,
    /// JSON to FILE, or to standard output.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<String>,
    /// Print the graph after this step of the pipeline (import, simplify, ...).
    #[arg(long, value_name = "STEP")]
    pub after: Option<String>,
    /// Form of the output.
    #[arg(long, value_enum, default_value = "text")]
    pub format: InspectFormat,
    /// Per op: supported, decomposed or missing on the device.
    #[arg(long)]
    pub support: bool,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// ONNX, GGUF, safetensors or Cupola file, told by content.
    pub file: PathBuf,
    /// JSON to FILE, or to standard output.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<String>,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Model file.
    pub model: PathBuf,
    #[command(flatten)]
    pub compile: CompileArgs,
    #[command(flatten)]
    pub input: InputArgs,
    /// Write outputs to this folder (NAME.npy, or output_0.pb with --inputs) instead of printing them.
    #[arg(long, value_name = "DIR")]
    pub outputs: Option<PathBuf>,
    /// Compare with NAME.npy or output_<i>.pb in this folder; exit 6 when they differ.
    #[arg(long, value_name = "DIR")]
    pub expect: Option<PathBuf>,
    /// Relative tolerance of --expect.
    #[arg(long, default_value_t = 1e-3)]
    pub rtol: f64,
    /// Absolute tolerance of --expect.
    #[arg(long, default_value_t = 1e-5)]
    pub atol: f64,
    /// Load, compile and run times, kernels, compiles, memory.
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub stats: Option<StatsFormat>,
    /// JSON to FILE, or to standard output.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<String>,
    /// Run this often (the statistics are those of the last run).
    #[arg(long, default_value_t = 1)]
    pub repeat: usize,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub action: Option<BenchAction>,
    /// Model file; not with --worker.
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub compile: CompileArgs,
    #[command(flatten)]
    pub input: InputArgs,
    /// Timed runs.
    #[arg(long, default_value_t = 50)]
    pub iterations: usize,
    /// Seconds of warm-up.
    #[arg(long, default_value_t = 0.3)]
    pub warmup: f64,
    /// JSON to FILE, or to standard output.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<String>,
    /// Answer requests on standard input, one JSON object a line.
    #[arg(long)]
    pub worker: bool,
    /// Time a language model: tokens per second of prompts and of continuing a text.
    #[arg(long, conflicts_with_all = ["worker", "suite"])]
    pub llm: bool,
    #[command(flatten)]
    pub llm_args: BenchLlmArgs,
    /// Measure the device itself, kernels and models on it, instead of a model: the benchmark that compares machines.
    #[arg(long, conflicts_with_all = ["model", "worker", "json"])]
    pub suite: bool,
    /// Results of the suite to FILE.
    #[arg(short, long, value_name = "FILE", requires = "suite")]
    pub output: Option<PathBuf>,
    /// Only cases of the suite whose name contains TEXT.
    #[arg(long = "match", value_name = "TEXT", requires = "suite")]
    pub only: Option<String>,
    /// What the suite's kernels would move, compute and take on a GPU that need not be here: h200, or h200,base for its
    /// kernels without optional features.
    #[arg(
        long,
        value_name = "GPU",
        requires = "suite",
        conflicts_with = "output"
    )]
    pub forecast: Option<String>,
}

/// What `bench` does beside timing a model.
#[derive(Debug, Subcommand)]
pub enum BenchAction {
    /// Put the results of several files side by side, and say what became slower or faster than in the first.
    Compare(BenchCompareArgs),
}

#[derive(Debug, Args)]
pub struct BenchCompareArgs {
    /// Results of `cupola bench --json` or of `cupola bench --suite`; the first is the standard.
    #[arg(required = true, num_args = 1..)]
    pub files: Vec<PathBuf>,
    /// Results of the suite as a page with charts.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// All results in one file, which compares like several.
    #[arg(long, value_name = "FILE")]
    pub merge: Option<PathBuf>,
    /// Least change that counts, as a fraction.
    #[arg(long, default_value_t = 0.05)]
    pub least: f64,
    /// Chance of a false alarm in the whole table.
    #[arg(long, default_value_t = 0.01)]
    pub chance: f64,
    /// Exit with status 6 when something became slower.
    #[arg(long)]
    pub check: bool,
    /// JSON to FILE, or to standard output.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<String>,
}

#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Model file.
    pub model: PathBuf,
    #[command(flatten)]
    pub compile: CompileArgs,
    #[command(flatten)]
    pub input: InputArgs,
    /// JSON to FILE, or to standard output.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<String>,
    /// Only kernels and misses of source nodes with this name.
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Also print generated code.
    #[arg(long)]
    pub code: bool,
}

#[derive(Debug, Args)]
pub struct ProfileArgs {
    /// Model file; with --train a configuration.
    pub model: PathBuf,
    /// A step of training, on the configuration's first batch.
    #[arg(long)]
    pub train: bool,
    #[command(flatten)]
    pub compile: CompileArgs,
    #[command(flatten)]
    pub input: InputArgs,
    /// Recorded runs; as many are timed without being recorded.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub runs: u64,
    /// Rows of the table; 0 for all.
    #[arg(long, default_value_t = 40)]
    pub rows: usize,
    /// One row for all kernels of a name.
    #[arg(long)]
    pub by_name: bool,
    /// Write a trace for Perfetto or chrome://tracing.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Write a report: one page that needs nothing else.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// JSON to FILE, or to standard output.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<String>,
}

#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Model file; with --train a configuration.
    pub model: PathBuf,
    /// The memory of training: of a step of the configuration's batch.
    #[arg(long)]
    pub train: bool,
    #[command(flatten)]
    pub compile: CompileArgs,
    #[command(flatten)]
    pub input: InputArgs,
    #[command(flatten)]
    pub llm: PlanLlmArgs,
    /// JSON to FILE, or to standard output.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<String>,
}

#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Model file.
    pub model: PathBuf,
    #[command(flatten)]
    pub compile: CompileArgs,
    #[command(flatten)]
    pub input: InputArgs,
    /// Two or more devices; the first is the standard.
    #[arg(long, value_delimiter = ',', default_value = "reference,cpu")]
    pub devices: Vec<String>,
    /// Compare every node's results, not only the outputs.
    #[arg(long)]
    pub all_nodes: bool,
    /// Relative tolerance.
    #[arg(long, default_value_t = 1e-3)]
    pub rtol: f64,
    /// Absolute tolerance.
    #[arg(long, default_value_t = 1e-5)]
    pub atol: f64,
    /// JSON to FILE, or to standard output.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<String>,
}

#[derive(Debug, Args)]
pub struct BisectArgs {
    /// Model file.
    pub model: PathBuf,
    #[command(flatten)]
    pub compile: CompileArgs,
    #[command(flatten)]
    pub input: InputArgs,
    /// Device that is right.
    #[arg(long, default_value = "reference")]
    pub good: String,
    /// Device that is wrong.
    #[arg(long, default_value = "cpu")]
    pub bad: String,
    /// Relative tolerance.
    #[arg(long, default_value_t = 1e-3)]
    pub rtol: f64,
    /// Absolute tolerance.
    #[arg(long, default_value_t = 1e-5)]
    pub atol: f64,
    /// Write the reproducer (a text graph with its inputs beside it) to this file.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// JSON to FILE, or to standard output.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<String>,
}

/// Tolerance of `conformance`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// The suite's own.
    Strict,
    /// With floors that the precision rules of GPUs call for.
    Device,
}

#[derive(Debug, Args)]
pub struct ConformanceArgs {
    /// Folder with manifest.json and one folder per case.
    #[arg(long, value_name = "DIR")]
    pub suite: PathBuf,
    #[command(flatten)]
    pub compile: CompileArgs,
    /// Result lines.
    #[arg(long, value_name = "FILE")]
    pub json: PathBuf,
    /// Write computed outputs to this folder.
    #[arg(long, value_name = "DIR")]
    pub outputs: Option<PathBuf>,
    /// Only cases whose name matches.
    #[arg(long, value_name = "REGEX")]
    pub r#match: Option<String>,
    /// Names to leave out, one a line.
    #[arg(long, value_name = "FILE")]
    pub skip_file: Option<PathBuf>,
    /// Tolerance.
    #[arg(long, value_enum, default_value = "strict")]
    pub profile: Profile,
    /// Cases at a time.
    #[arg(long, default_value_t = 1)]
    pub jobs: usize,
}

#[derive(Debug, Args)]
pub struct CompileCommandArgs {
    /// Model file.
    pub model: PathBuf,
    /// File to write: a model that starts without being compiled.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    #[command(flatten)]
    pub compile: CompileArgs,
}

#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// Model file.
    pub input: PathBuf,
    /// .cupola, .cup or .onnx.
    pub output: PathBuf,
    /// Fix a symbolic dimension, as in batch=4 (repeatable).
    #[arg(long, value_name = "NAME=N")]
    pub set: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_counts_parse() {
        assert_eq!(parse_bytes("1024"), Ok(1024));
        assert_eq!(parse_bytes("2GiB"), Ok(2 << 30));
        assert_eq!(parse_bytes("1.5KB"), Ok(1500));
        assert!(parse_bytes("lots").is_err());
        assert!(parse_bytes("-1").is_err());
    }
}
