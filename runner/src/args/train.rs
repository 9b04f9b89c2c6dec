//! The command line of training.

use super::CompileArgs;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Low type of mixed precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Amp {
    /// bf16.
    Bf16,
    /// f16, with a scaled loss.
    F16,
}

/// What a run is, where it is not as the configuration says.
#[derive(Clone, Debug, Args)]
pub struct RecipeArgs {
    /// Data instead of the configuration's: files or folders (repeatable).
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub data: Vec<PathBuf>,
    /// Share of the data held out for validation.
    #[arg(long, value_name = "SHARE")]
    pub validation: Option<f64>,
    /// Loss: ce, nll, mse, l1, huber, smooth_l1, bce or kl, as in ce:smoothing=0.1.
    #[arg(long, value_name = "LOSS")]
    pub loss: Option<String>,
    /// Optimiser: sgd, adam or adamw, as in adam:lr=1e-3.
    #[arg(long, value_name = "OPTIMISER")]
    pub optim: Option<String>,
    /// Schedule of the learning rate, as in cosine:warmup=100.
    #[arg(long, value_name = "SCHEDULE")]
    pub schedule: Option<String>,
    /// Mixed precision.
    #[arg(long, value_enum)]
    pub amp: Option<Amp>,
    /// Compute in f64 throughout, weights too.
    #[arg(long, conflicts_with = "amp")]
    pub double: bool,
    /// Samples of a step.
    #[arg(long, value_name = "N")]
    pub batch: Option<usize>,
    /// Passes over the data.
    #[arg(long, value_name = "N")]
    pub epochs: Option<u64>,
    /// Steps at most.
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    /// Number reported beside the loss: accuracy, precision, recall, f1, perplexity, bleu or mse (repeatable).
    #[arg(long, value_name = "NAME")]
    pub metric: Vec<String>,
    /// Programs of this process that compute a batch together; processor threads are shared out among them.
    #[arg(long, value_name = "N")]
    pub replicas: Option<usize>,
    /// Parts that a batch is cut into, on which results depend (default: one for each replica).
    #[arg(long, value_name = "N")]
    pub shards: Option<usize>,
    /// Batch norm takes its statistics over all shards.
    #[arg(long)]
    pub sync_batch_norm: bool,
    /// Output of a model file that the loss is taken of (default: the first).
    #[arg(long, value_name = "NAME")]
    pub output: Option<String>,
}

/// `cupola train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// A configuration (TOML), or a model file to train further.
    pub config: PathBuf,
    #[command(flatten)]
    pub run: RecipeArgs,
    #[command(flatten)]
    pub compile: CompileArgs,
    /// Go on from a checkpoint, or the last one of a folder; without a value, of the run's own folder.
    #[arg(long, value_name = "CHECKPOINT", num_args = 0..=1)]
    pub resume: Option<Option<PathBuf>>,
    /// Be one of the processes that mpirun has started, each of which is a replica.
    #[arg(long, conflicts_with = "replicas")]
    pub mpi: bool,
    /// Write when what ran in the first steps: a trace for Perfetto, with messages between replicas on a track of their own.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Folder for checkpoints.
    #[arg(long, value_name = "DIR")]
    pub checkpoints: Option<PathBuf>,
    /// Write the trained model: .onnx, .safetensors (weights alone) or .cupola (repeatable).
    #[arg(long, value_name = "FILE")]
    pub export: Vec<PathBuf>,
    /// Write a report with curves: one page that needs nothing else.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// JSON lines to FILE, or to standard output: one for every step and validation.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<String>,
}

/// A part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Which {
    /// What was trained on.
    Train,
    /// What was validated by.
    Validation,
    /// What was held out.
    Test,
}

/// `cupola eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// A checkpoint, a folder of them, or a configuration (its best checkpoint, else its last).
    pub checkpoint: PathBuf,
    #[command(flatten)]
    pub compile: CompileArgs,
    /// Part of the data (default: test, or validation where there is no test).
    #[arg(long, value_enum)]
    pub part: Option<Which>,
    /// Other data: files or folders (repeatable).
    #[arg(long, value_name = "PATH", num_args = 1.., conflicts_with = "part")]
    pub data: Vec<PathBuf>,
    /// Number reported beside the loss (repeatable; default: those of the run).
    #[arg(long, value_name = "NAME")]
    pub metric: Vec<String>,
    /// Write the model: .onnx, .safetensors (weights alone) or .cupola (repeatable).
    #[arg(long, value_name = "FILE")]
    pub export: Vec<PathBuf>,
    /// JSON to FILE, or to standard output.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<String>,
}
