//! [`Recipe`]: what an architecture does with its weights, as data. Families make it, `build/` follows it.
//!
//! What tensors tell by being there is not repeated here: biases, norms of queries and keys, norms after a part, a head of
//! its own, learned positions, joined matrices.

use crate::rope::Rope;

/// A model.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    /// Elements of a row.
    pub width: usize,
    /// Positions the model was made for.
    pub context_len: usize,
    /// Kind of all norms.
    pub norm: Norm,
    /// Factor of the embedded tokens.
    pub embedding_scale: f64,
    /// Factor of what a part adds to the row.
    pub residual_scale: f64,
    /// Factor of the logits.
    pub logit_scale: f64,
    /// Soft limit of the logits; 0 for none.
    pub logit_cap: f64,
    /// Feed-forward part and attention read the same row and are added together.
    pub parallel: bool,
    /// Function inside feed-forward parts.
    pub activation: Activation,
    /// Routing, where blocks have experts.
    pub experts: Option<Experts>,
    /// What an encoder makes of a text's rows.
    pub pooling: Pooling,
    /// Kinds of rotation that blocks choose from.
    pub ropes: Vec<Rope>,
    /// The blocks.
    pub blocks: Vec<Block>,
}

/// One block.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Elements of a query or key of one head.
    pub key_len: usize,
    /// Elements of a value of one head.
    pub value_len: usize,
    /// Factor of the scores.
    pub scale: f64,
    /// Soft limit of the scores; 0 for none.
    pub cap: f64,
    /// Positions that a row sees at most; 0 for all.
    pub window: usize,
    /// Which of [`Recipe::ropes`]; `None` where queries and keys are not turned.
    pub rope: Option<usize>,
    /// Elements between the two products of the feed-forward part.
    pub feed_len: usize,
}

/// A normalisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Norm {
    /// By mean and variance, else by root mean square.
    pub centred: bool,
    /// Added below the root.
    pub epsilon: f64,
    /// Added to the stored factors.
    pub offset: f64,
}

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU by the error function.
    Gelu,
    /// GELU by its tanh approximation.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// How rows find their experts: by the largest weights of a softmax.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Experts {
    /// Number of experts.
    pub len: usize,
    /// Experts of one row.
    pub used: usize,
    /// Elements between the products of one expert.
    pub feed_len: usize,
    /// The weights of a row's experts are divided by their sum.
    pub normalised: bool,
}

/// What stands for a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// The mean of its tokens' rows.
    Mean,
    /// The row of its first token.
    First,
}
