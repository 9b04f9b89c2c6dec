//! The one error type of this crate.

/// What went wrong on the GPU side, and what to do about it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// *User input*: an environment variable holds something it cannot mean.
    #[error("{variable} is '{value}', which is none of {allowed}")]
    Setting {
        /// Name of the variable.
        variable: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
        allowed: String,
    },
    /// *User input*: a tuning table is damaged, of another version, or cannot be read or written.
    #[error("tuning table {place}: {reason}")]
    Table {
        /// The file.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// *User input*: `gpu:N` names an adapter that is not there.
    #[error("no GPU adapter with index {index}: {count} found")]
    NoAdapter {
        /// Index asked for.
        index: usize,
        /// Adapters present.
        count: usize,
    },
    /// *Unsupported*: the adapter lacks something that every kernel needs.
    #[error("adapter `{adapter}` cannot be used: {reason}")]
    Unusable {
        /// Adapter name.
        adapter: String,
        /// The missing limit or capability.
        reason: String,
    },
    /// *Limit*: the adapter was found, but the driver gave no device.
    #[error("adapter `{adapter}` gave no device: {reason}")]
    Open {
        /// Adapter name.
        adapter: String,
        /// The driver's words.
        reason: String,
    },
    /// *Limit*: a size is above what the device or WebGPU can do.
    #[error("{what} needs {needed}, the device allows {allowed}")]
    Limit {
        /// What was asked for.
        what: &'static str,
        /// How much.
        needed: u64,
        /// The most there is.
        allowed: u64,
    },
    /// *Limit*: an allocation failed, or would exceed the memory budget.
    #[error("out of device memory: {requested} bytes asked for, {live} bytes live{}", budget_words(*.budget))]
    OutOfMemory {
        /// Size of the failed allocation.
        requested: u64,
        /// Bytes of this device's buffers alive then.
        live: u64,
        /// The budget the caller set, if that is what refused it.
        budget: Option<u64>,
    },
    /// *Our bug or a driver's*: a kernel did not compile.
    #[error("kernel `{label}` does not compile: {message}")]
    Shader {
        /// Label of the kernel.
        label: String,
        /// Compiler message.
        message: String,
    },
    /// *User input*: an offset or length outside a buffer, or not aligned as the call asks.
    #[error("{what}: {reason}")]
    Range {
        /// The call.
        what: &'static str,
        /// Which bound was missed.
        reason: String,
    },
    /// *Our bug*: wgpu refused a command.
    #[error("{what} refused by the graphics interface: {message}")]
    Refused {
        /// The call.
        what: &'static str,
        /// wgpu's message.
        message: String,
    },
    /// *Limit*: the device stopped answering (driver reset, watchdog, unplugged). Nothing on it can be used any more.
    #[error("the GPU device was lost: {reason}")]
    Lost {
        /// The driver's words.
        reason: String,
    },
    /// *Unsupported*: the caller asked for a feature this device was opened without.
    #[error("{what} needs a feature this device does not have: {feature}")]
    MissingFeature {
        /// The call.
        what: &'static str,
        /// Name of the feature.
        feature: &'static str,
    },
}

fn budget_words(budget: Option<u64>) -> String {
    budget.map_or(String::new(), |bytes| format!(", budget {bytes} bytes"))
}
