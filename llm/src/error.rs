//! The error type of the crate.

use cupola_runtime::RuntimeError;
use thiserror::Error;

/// What can go wrong while text is generated.
#[derive(Clone, Debug, Error)]
pub enum LlmError {
    /// Compiling or running the graph failed.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The program does not take and give what a decoder does. *User input.*
    #[error("{0} is no decoder: {1}")]
    NoDecoder(String, String),
    /// A request that means nothing: an empty prompt, an unknown token, a parameter outside its range. *User input.*
    #[error("{0}")]
    Request(String),
    /// A prompt that leaves no room for an answer. *Limit.*
    #[error("the prompt has {prompt} tokens; there is room for {room} with one to follow")]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens that a prompt may have.
        room: usize,
    },
    /// As many requests wait as may wait. *Limit.*
    #[error("{0} requests wait already")]
    QueueFull(usize),
    /// A saved text that does not belong to this model, or is damaged. *User input.*
    #[error("the saved text {0}")]
    Snapshot(String),
    /// The model gave no number to choose a token by. *A damaged model.*
    #[error("the model gave no finite logit")]
    NotFinite,
}

/// Result with [`LlmError`].
pub type Result<T, E = LlmError> = std::result::Result<T, E>;
