//! The file that the suite writes: one JSON object on one line. `docs/suite.schema.json` says the same to other programs.

use crate::fail::{Failure, Outcome};
use cupola::runtime::Rates;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use std::collections::BTreeMap;

/// The format's name and version.
pub const SCHEMA: &str = "cupola-suite-1";

/// Results of one device.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Results {
    /// [`SCHEMA`].
    pub schema: String,
    /// Version of the program.
    pub version: String,
    /// Seconds since 1970 when it was measured.
    pub unix_time: u64,
    /// How long that took.
    pub seconds: f64,
    /// What was measured.
    pub machine: Machine,
    /// What it reaches.
    pub measured: Measured,
    /// One entry for each case.
    pub rows: Vec<Row>,
    /// Cases that were not measured.
    pub left_out: Vec<LeftOut>,
}

/// A device and the computer that it is in.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// As in `--device`.
    pub device: String,
    /// Product name.
    pub name: String,
    /// Driver, limits, features.
    pub facts: BTreeMap<String, String>,
    /// Name and facts of the processor.
    pub host: BTreeMap<String, String>,
}

/// Limits measured with kernels that do one thing only.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Bytes read and written by a copy, in 1e9 a second.
    pub copy_gb_s: f64,
    /// Bytes read from each level of memory, smallest first, in 1e9 a second.
    pub read_gb_s: Vec<f64>,
    /// Operations on f32, in 1e9 a second; a multiply-add is two.
    pub f32_gflop_s: f64,
    /// Operations on f16.
    pub f16_gflop_s: Option<f64>,
    /// Operations of matrix units on f16 with sums of f32.
    pub matrix_gflop_s: Option<f64>,
    /// Microseconds from handing over an empty kernel to knowing that it has run.
    pub submit_us: f64,
    /// Microseconds that one more kernel takes beside its work.
    pub dispatch_us: f64,
}

impl From<&Rates> for Measured {
    fn from(rates: &Rates) -> Measured {
        let giga = |rate: f64| rate / 1e9;
        Measured {
            copy_gb_s: giga(rates.copy),
            read_gb_s: rates.reads.iter().map(|(_, rate)| giga(*rate)).collect(),
            f32_gflop_s: giga(rates.f32_ops),
            f16_gflop_s: rates.f16_ops.map(giga),
            matrix_gflop_s: rates.matrix_ops.map(giga),
            submit_us: rates.submit * 1e6,
            dispatch_us: rates.dispatch * 1e6,
        }
    }
}

/// A case.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// The case, with all that distinguishes it.
    pub name: String,
    /// Its group.
    pub group: String,
    /// Milliseconds of the kernels of a run; of whole runs for models.
    pub samples_ms: Vec<f64>,
    /// The median of them.
    pub median_ms: f64,
    /// The median of whole runs, inputs from the host and outputs to the host.
    pub run_ms: f64,
    /// Kernels in a run.
    pub kernels: usize,
    /// Operations of a run.
    pub flops: f64,
    /// Bytes of operands, weights and results, each once.
    pub bytes: f64,
    /// Operations in 1e9 a second of the median.
    pub gflop_s: f64,
    /// Bytes in 1e9 a second of the median.
    pub gb_s: f64,
    /// The least time that what was measured allows.
    pub limit_ms: f64,
    /// That as a fraction of the median.
    pub fraction: f64,
    /// Operators that ran on another device.
    pub fallback: Vec<String>,
}

/// A case that was not measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftOut {
    /// The case.
    pub name: String,
    /// Why.
    pub reason: String,
}

impl Results {
    /// Reads a document if it is one of the suite.
    ///
    /// # Errors
    /// One that says it is, but is not.
    pub fn read(document: &Json, place: &str) -> Outcome<Option<Results>> {
        if document["schema"] != SCHEMA {
            return Ok(None);
        }
        let read = serde_json::from_value(document.clone());
        let failure = |e| Failure::malformed(format!("{place}: no results of the suite: {e}"));
        read.map(Some).map_err(failure)
    }
}
