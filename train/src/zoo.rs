//! Models that examples and configurations name. Parameters have the names of the modules in PyTorch that they correspond to.
//!
//! Inputs are `x` and `target` (numbers) or `labels` (classes, i64) with the symbol `batch` as their first extent; outputs are
//! `y`, and for classes the loss is cross-entropy; classifiers report `accuracy`.

use crate::error::{Result, TrainError};
use crate::init::Init;
use crate::layers::{Conv, Embedding, Pool, Recurrent};
use crate::loss::{CrossEntropy, Reduction};
use crate::net::Net;
use cupola_ir::{DType, Dim, Sym, SymRange, ValueId};

/// A model with its loss.
#[derive(Clone, Debug)]
pub struct Model {
    /// The model.
    pub net: Net,
    /// Its loss, a scalar.
    pub loss: ValueId,
    /// Its result before the loss.
    pub y: ValueId,
}

/// The extent of a batch.
fn batch() -> Dim {
    Dim::sym("batch")
}

/// Classes as target: loss, accuracy and output for scores `y: [rows, classes]`.
fn classify(mut net: Net, y: ValueId, labels: ValueId) -> Result<Model> {
    let accuracy = net.accuracy(y, labels, -100)?;
    net.metric("accuracy", accuracy);
    predict(net, y, labels)
}

/// Tokens that follow as target: loss and output for scores `y: [rows, tokens]`; `labels` of any extents with as many elements.
fn predict(mut net: Net, y: ValueId, labels: ValueId) -> Result<Model> {
    let rows = net.graph.dim(y, 0);
    let flat = net.graph.reshape(labels, &[rows])?;
    let loss = net.cross_entropy(y, flat, &CrossEntropy::default())?;
    net.output("y", y);
    Ok(Model { net, loss, y })
}

/// `y = x w^T + b` with the mean square as its loss: `x: [batch, inputs]`, `target: [batch, outputs]`. Parameters `fc.*`.
///
/// # Errors
/// None in practice.
pub fn linear(inputs: usize, outputs: usize) -> Result<Model> {
    let mut net = Net::new("linear");
    let x = net.input("x", DType::F32, [batch(), inputs.into()])?;
    let target = net.input("target", DType::F32, [batch(), outputs.into()])?;
    let y = net.linear("fc", x, outputs)?;
    let loss = net.mse(y, target, Reduction::Mean)?;
    net.output("y", y);
    Ok(Model { net, loss, y })
}

/// Linear layers `fc1`, `fc2`, .. of the given sizes with relu between them: `x: [batch, sizes[0]]`, as many classes as the last
/// size says.
///
/// # Errors
/// Fewer than two sizes.
pub fn mlp(sizes: &[usize]) -> Result<Model> {
    let [inputs, hidden @ .., classes] = sizes else {
        let what = "sizes of the input and of at least one layer are needed";
        return Err(TrainError::layer("mlp", what));
    };
    let mut net = Net::new("mlp");
    let x = net.input("x", DType::F32, [batch(), (*inputs).into()])?;
    let labels = net.input("labels", DType::I64, [batch()])?;
    let mut h = x;
    for (i, size) in hidden.iter().enumerate() {
        h = net.linear(&format!("fc{}", i + 1), h, *size)?;
        h = net.relu(h)?;
    }
    let y = net.linear(&format!("fc{}", hidden.len() + 1), h, *classes)?;
    classify(net, y, labels)
}

/// Two convolutions, pooling and two linear layers over images `x: [batch, 1, 28, 28]`, ten classes. With `dropout`, a quarter
/// after pooling and half before the last layer.
///
/// # Errors
/// None in practice.
pub fn mnist_cnn(dropout: bool) -> Result<Model> {
    let mut net = Net::new("mnist_cnn");
    let x = net.input(
        "x",
        DType::F32,
        [batch(), 1usize.into(), 28usize.into(), 28usize.into()],
    )?;
    let labels = net.input("labels", DType::I64, [batch()])?;
    let h = net.conv("c1", x, &Conv::new(32, [3, 3]))?;
    let h = net.relu(h)?;
    let h = net.conv("c2", h, &Conv::new(64, [3, 3]))?;
    let h = net.relu(h)?;
    let h = net.max_pool(h, &Pool::new([2, 2]))?;
    let h = net.dropout(h, if dropout { 0.25 } else { 0.0 })?;
    let h = net.flatten(h, 1)?;
    let h = net.linear("f1", h, 128)?;
    let h = net.relu(h)?;
    let h = net.dropout(h, if dropout { 0.5 } else { 0.0 })?;
    let y = net.linear("f2", h, 10)?;
    classify(net, y, labels)
}

/// Sizes of [`lstm_lm`] and [`lstm_classifier`].
#[derive(Clone, Debug, PartialEq)]
pub struct Lstm {
    /// Number of tokens.
    pub vocabulary: usize,
    /// Elements of an embedding.
    pub embedding: usize,
    /// Elements of a state.
    pub hidden: usize,
    /// Layers above each other.
    pub layers: usize,
    /// Probability of dropout between layers, and after the last of a classifier.
    pub dropout: f64,
}

impl Default for Lstm {
    /// A vocabulary of 10,000, embeddings of 300, one layer of 1,024.
    fn default() -> Self {
        Lstm {
            vocabulary: 10_000,
            embedding: 300,
            hidden: 1024,
            layers: 1,
            dropout: 0.0,
        }
    }
}

impl Lstm {
    /// Embedding `e` and network `l` over tokens `x: [batch, steps]`.
    fn states(&self, net: &mut Net) -> Result<ValueId> {
        let x = net.input("x", DType::I64, [batch(), Dim::sym("steps")])?;
        let h = net.embedding("e", x, &Embedding::new(self.vocabulary, self.embedding))?;
        let settings = Recurrent {
            layers: self.layers,
            dropout: self.dropout,
            ..Recurrent::lstm(self.hidden)
        };
        Ok(net.recurrent("l", h, &settings)?.y)
    }
}

/// A language model: embedding `e`, lstm `l`, linear `o`. `x` and `labels` are tokens `[batch, steps]`, the labels those that
/// follow; `y: [batch * steps, vocabulary]`.
///
/// # Errors
/// Sizes of 0.
pub fn lstm_lm(sizes: &Lstm) -> Result<Model> {
    let mut net = Net::new("lstm_lm");
    let h = sizes.states(&mut net)?;
    let labels = net.input("labels", DType::I64, [batch(), Dim::sym("steps")])?;
    let h = net.join_steps(h)?;
    let y = net.linear("o", h, sizes.vocabulary)?;
    predict(net, y, labels)
}

/// A classifier of texts: embedding `e`, lstm `l`, and linear `o` of the last state. Tokens `x: [batch, steps]`, so padding goes
/// in front of a text; `labels: [batch]`.
///
/// # Errors
/// Sizes of 0.
pub fn lstm_classifier(sizes: &Lstm, classes: usize) -> Result<Model> {
    let mut net = Net::new("lstm_classifier");
    let h = sizes.states(&mut net)?;
    let labels = net.input("labels", DType::I64, [batch()])?;
    let h = net.last_step(h)?;
    let h = net.dropout(h, sizes.dropout)?;
    let y = net.linear("o", h, classes)?;
    classify(net, y, labels)
}

/// Sizes of [`gpt`].
#[derive(Clone, Debug, PartialEq)]
pub struct Gpt {
    /// Number of tokens.
    pub vocabulary: usize,
    /// Elements of a position.
    pub width: usize,
    /// Blocks.
    pub layers: usize,
    /// Heads of a block's attention.
    pub heads: usize,
    /// Most positions.
    pub context: usize,
    /// Probability of dropout after the embedding and each half of a block.
    pub dropout: f64,
}

impl Default for Gpt {
    /// Six layers of 384 with six heads, 256 positions, a vocabulary of 8,192.
    fn default() -> Self {
        Gpt {
            vocabulary: 8192,
            width: 384,
            layers: 6,
            heads: 6,
            context: 256,
            dropout: 0.0,
        }
    }
}

/// One block of a [`gpt`] over `x: [batch, steps, width]`: causal attention and a perceptron, each on its normalised input and
/// added to it. Layers `n1`, `qkv`, `o`, `n2`, `f1`, `f2` under the block's name.
///
/// # Errors
/// As [`Net::attention`].
pub fn attention_block(
    net: &mut Net,
    name: &str,
    x: ValueId,
    heads: usize,
    dropout: f64,
) -> Result<ValueId> {
    let width = crate::layers::known(&net.graph, name, x, 2)?;
    let x = net.residual(x, |net, x| {
        let h = net.layer_norm(&format!("{name}.n1"), x, 1)?;
        let h = net.linear(&format!("{name}.qkv"), h, 3 * width)?;
        let h = net.attention(name, h, heads, true, 0.0)?;
        let h = net.linear(&format!("{name}.o"), h, width)?;
        net.dropout(h, dropout)
    })?;
    net.residual(x, |net, x| {
        let h = net.layer_norm(&format!("{name}.n2"), x, 1)?;
        let h = net.linear(&format!("{name}.f1"), h, 4 * width)?;
        let h = net.gelu_tanh(h)?;
        let h = net.linear(&format!("{name}.f2"), h, width)?;
        net.dropout(h, dropout)
    })
}

/// A language model of attention blocks: embedding `e`, positions `p`, blocks `b.0`, `b.1`, .., norm `n`, linear `o` without
/// bias. `x` and `labels` are tokens `[batch, steps]`, the labels those that follow; `y: [batch * steps, vocabulary]`.
///
/// # Errors
/// Sizes of 0; heads that do not divide the width.
pub fn gpt(sizes: &Gpt) -> Result<Model> {
    let mut net = Net::new("gpt");
    let steps = Sym::new("steps");
    let range = SymRange {
        max: sizes.context as i64,
        ..SymRange::default()
    };
    net.graph.ranges.insert(steps.clone(), range);
    let steps = Dim::from(&steps);
    let x = net.input("x", DType::I64, [batch(), steps.clone()])?;
    let labels = net.input("labels", DType::I64, [batch(), steps.clone()])?;
    let h = net.embedding("e", x, &Embedding::new(sizes.vocabulary, sizes.width))?;
    let p = net.parameter("p", &[sizes.context, sizes.width], Init::ZEROS)?;
    let p = net.graph.slice_axis(p, 0, &Dim::ZERO, &steps)?;
    let h = net.add(h, p)?;
    let mut h = net.dropout(h, sizes.dropout)?;
    for i in 0..sizes.layers {
        h = attention_block(&mut net, &format!("b.{i}"), h, sizes.heads, sizes.dropout)?;
    }
    let h = net.layer_norm("n", h, 1)?;
    let h = net.join_steps(h)?;
    let y = net.linear_without_bias("o", h, sizes.vocabulary)?;
    predict(net, y, labels)
}
