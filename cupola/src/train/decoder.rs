//! Trained language models as decoders, for the engine that continues texts.
//!
//! A GPT (an embedding, `blocks`, a norm, a linear layer) becomes a decoder that keeps keys and values, like those of model files.
//! Any other model that looks back only keeps the tokens themselves: for each token that is to be said it is evaluated anew over
//! the window before it, from the states that training begins its windows with.

use super::checkpoint::{self, Checkpoint};
use super::config::Config;
use super::layers::{Layers, Words};
use crate::error::{Error, Result};
use cupola_ir::graph::StateSlot;
use cupola_ir::ops::{Bounds, Gather, ReadState, Scatter, ScatterKind, WriteState};
use cupola_ir::{DType, Dim, Graph, Scalar, Tensor, TensorType, ValueId};
use cupola_language::{Config as Sizes, Kind, LanguageModel, Options, Plain};
use cupola_source::{Format, Source};
use cupola_text::{TokenKind, Tokenizer, Vocabulary};
use cupola_train::{Net, Spec};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Epsilon of layer norms.
const EPSILON: f64 = 1e-5;

/// Most tokens of a text that is continued window by window: a token takes four bytes.
const LONGEST: usize = 1 << 16;

/// Tokens of a window where the configuration says nothing.
const USUAL_LENGTH: usize = 64;

/// The checkpoint that a path means: a configuration's best one, else its last; the last of a folder; a file.
///
/// # Errors
/// [`Error::Missing`] for what is not there, or has none yet.
pub fn checkpoint_path(path: &Path) -> Result<PathBuf> {
    if path.extension().is_none_or(|e| e != "toml") {
        return Ok(path.to_owned());
    }
    if !path.exists() {
        return Err(Error::Missing(format!("{} does not exist", path.display())));
    }
    let folder = Config::open(path)?.checkpoint.folder.unwrap_or_default();
    let best = folder.join(checkpoint::BEST);
    match (best.exists(), folder.is_dir()) {
        (true, _) => Ok(best),
        (false, true) => Ok(folder),
        (false, false) => Err(Error::Missing(format!(
            "{} has no checkpoints yet; cupola train writes them",
            path.display()
        ))),
    }
}

/// The checkpoint at a path where language models are expected; `None` for what is no checkpoint, folder of them or
/// configuration.
///
/// # Errors
/// As [`checkpoint_path`] and [`Checkpoint::open`].
pub(crate) fn checkpoint_at(path: &Path) -> Result<Option<Checkpoint>> {
    let is_toml = path.extension().is_some_and(|e| e == "toml");
    let is_one = match path.is_dir() {
        true => !path.join("config.json").exists() && checkpoint::last(path).is_some(),
        false => is_toml || Source::open(path)?.format() == Format::SafeTensors,
    };
    if !is_one {
        return Ok(None);
    }
    let path = checkpoint_path(path)?;
    if path.is_file() && !is_toml && !checkpoint::is_checkpoint(&path) {
        return Ok(None);
    }
    Checkpoint::open(&path).map(Some)
}

/// A model's error: sound, but nothing that continues texts.
fn unfit<T>(checkpoint: &Checkpoint, what: impl std::fmt::Display) -> Result<T> {
    let name = cupola_source::quote(&checkpoint.config.name);
    Err(Error::NoGraph(format!(
        "the model {name} does not continue texts: {what}"
    )))
}

/// The tokenizer of a trained language model.
///
/// # Errors
/// A model of other data than texts; the tokenizer's file where it has one.
pub(crate) fn tokenizer(checkpoint: &Checkpoint) -> Result<Tokenizer> {
    if !checkpoint.classes.is_empty() {
        return unfit(checkpoint, "it says classes; 'cupola eval' measures it");
    }
    let Some(vocabulary) = &checkpoint.vocabulary else {
        return match &checkpoint.config.data.tokenizer {
            Some(path) => crate::language::tokenizer(path),
            None => unfit(
                checkpoint,
                "its data are no texts; 'cupola eval' measures it",
            ),
        };
    };
    let mut tokens = Vocabulary::default();
    for token in 0..vocabulary.len() as u32 {
        // The first fills up sequences; the second is shown, since much of a text may be unknown.
        let kind = match token {
            0 => TokenKind::Control,
            _ => TokenKind::Normal,
        };
        tokens.push(vocabulary.piece(token).as_bytes(), kind)?;
    }
    let (is_words, own) = (vocabulary.is_words(), Arc::new(vocabulary.clone()));
    let encode = move |text: &str| own.encode(text);
    Ok(Tokenizer::foreign(tokens, is_words, Arc::new(encode)))
}

/// The decoder of a trained language model with so many kinds of tokens.
///
/// # Errors
/// A model of which a token's scores depend on those that follow, or that is no model of layers.
pub(crate) fn language_model(
    checkpoint: &Checkpoint,
    kinds: usize,
    options: &Options,
) -> Result<LanguageModel> {
    if checkpoint.config.model.file.is_some() {
        return unfit(checkpoint, "it was trained from a model file");
    }
    let words = [("tokens", kinds)];
    match Gpt::of(&checkpoint.config.model.layers, &words) {
        Some(gpt) => gpt.decoder(checkpoint, options),
        None => windowed(checkpoint, kinds, &words, options),
    }
}

/// Names of the layers of a GPT.
#[derive(Debug, Default)]
struct Gpt {
    embedding: String,
    positions: Option<String>,
    /// Name, heads and elements between the matrices (as a multiple of the width) of each block.
    blocks: Vec<(String, usize, usize)>,
    norm: String,
    output: String,
}

impl Gpt {
    /// An embedding, positions perhaps, blocks, a layer norm and a linear layer, with dropout anywhere; `None` for all else.
    fn of(layers: &[String], words: &Words) -> Option<Gpt> {
        let mut gpt = Gpt::default();
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        let mut stage = 0;
        for text in layers {
            let spec = Spec::parse(text).ok()?;
            let count = counts.entry(spec.name.clone()).or_default();
            *count += 1;
            let name = spec.text("name", None).map(String::from);
            let name = name.unwrap_or_else(|| format!("{}{count}", spec.name));
            stage = match (spec.name.as_str(), stage) {
                ("dropout", stage) => stage,
                ("embedding", 0) => {
                    gpt.embedding = name;
                    1
                }
                ("positions", 1) if gpt.positions.is_none() => {
                    gpt.positions = Some(name);
                    1
                }
                ("blocks", 1 | 2) if spec.flag("causal", true).ok()? => {
                    let heads = spec.size("heads", None, words).ok()?;
                    let factor = spec.count("factor", None).ok()?.unwrap_or(4);
                    let len = spec.size("count", Some(0), words).ok()?;
                    let all = (0..len).map(|i| (format!("{name}.{i}"), heads, factor));
                    gpt.blocks.extend(all);
                    2
                }
                ("layer_norm", 2) => {
                    gpt.norm = name;
                    3
                }
                ("linear", 3) => {
                    gpt.output = name;
                    4
                }
                _ => return None,
            };
        }
        (stage == 4).then_some(gpt)
    }

    /// Names of the checkpoint's tensors, and what model files call them.
    fn names(&self) -> Vec<(String, String)> {
        let mut all = vec![
            (self.embedding.clone(), "token_embd".to_string()),
            (self.norm.clone(), "output_norm".into()),
            (self.output.clone(), "output".into()),
        ];
        all.extend(
            self.positions
                .iter()
                .map(|p| (p.clone(), "position_embd".into())),
        );
        let parts = [
            ("n1", "attn_norm"),
            ("qkv", "attn_qkv"),
            ("o", "attn_output"),
            ("n2", "ffn_norm"),
            ("f1", "ffn_up"),
            ("f2", "ffn_down"),
        ];
        for (i, (block, ..)) in self.blocks.iter().enumerate() {
            all.extend(
                parts.map(|(own, known)| (format!("{block}.{own}"), format!("blk.{i}.{known}"))),
            );
        }
        all
    }

    fn decoder(&self, checkpoint: &Checkpoint, options: &Options) -> Result<LanguageModel> {
        let mut tensors = BTreeMap::new();
        for (own, known) in self.names() {
            for part in ["weight", "bias"] {
                if let Some(t) = checkpoint.slots.get(&format!("{own}.{part}")) {
                    tensors.insert(format!("{known}.{part}"), t.clone());
                }
            }
        }
        let extent = |name: &str, axis: usize| {
            let shape = tensors.get(name).map(Tensor::shape);
            shape.and_then(|s| s.get(axis)).copied()
        };
        let width = extent("token_embd.weight", 1).unwrap_or(0);
        let positions = extent("position_embd.weight", 0);
        let plain = Plain {
            name: checkpoint.config.name.clone(),
            width,
            context_len: positions.unwrap_or_else(|| length(checkpoint)),
            epsilon: EPSILON,
            blocks: (self.blocks.iter())
                .map(|(_, heads, factor)| (*heads, factor * width))
                .collect(),
        };
        let mut model = LanguageModel::of_tensors(&plain, &tensors, options)?;
        // No row stands for a position after the last.
        if let Some(most) = positions {
            model.config.context_len = model.config.context_len.min(most);
        }
        Ok(model)
    }
}

/// Tokens of a window.
fn length(checkpoint: &Checkpoint) -> usize {
    let asked = checkpoint.config.data.length;
    asked.unwrap_or(USUAL_LENGTH).max(1)
}

/// Whether a layer works on each row by itself.
fn is_by_row(spec: &Spec) -> bool {
    let kinds = [
        "linear",
        "layer_norm",
        "rms_norm",
        "dropout",
        "relu",
        "gelu",
        "silu",
        "tanh",
        "sigmoid",
        "softplus",
        "elu",
        "leaky_relu",
    ];
    kinds.contains(&spec.name.as_str())
}

/// Whether no row of a layer's result depends on later rows.
fn looks_back(spec: &Spec) -> Result<bool> {
    Ok(match spec.name.as_str() {
        "embedding" | "positions" | "softmax" | "log_softmax" => true,
        "lstm" | "gru" | "rnn" => !spec.flag("bidirectional", false)?,
        "attention" => spec.flag("causal", false)?,
        "blocks" => spec.flag("causal", true)?,
        _ => is_by_row(spec),
    })
}

/// A decoder that keeps tokens and evaluates the model over windows of them.
fn windowed(
    checkpoint: &Checkpoint,
    kinds: usize,
    words: &Words,
    options: &Options,
) -> Result<LanguageModel> {
    let (layers, len) = (&checkpoint.config.model.layers, length(checkpoint));
    let mut by_row = 0;
    for (i, text) in layers.iter().enumerate() {
        let spec = Spec::parse(text)?;
        if !looks_back(&spec)? {
            return unfit(
                checkpoint,
                format!(
                    "what layer {}, '{text}', says of a token depends on later ones",
                    i + 1
                ),
            );
        }
        by_row = if is_by_row(&spec) { by_row + 1 } else { 0 };
    }
    let (before, after) = layers.split_at(layers.len() - by_row);
    let mut net = Net::new(&checkpoint.config.name);
    let step = Step::append(&mut net.graph, len, options.page_len)?;
    let mut builder = Layers::new(&mut net, words);
    let rows = builder.all(before, step.window)?;
    let last = Gather {
        axes: vec![1],
        batch: 1,
        bounds: Bounds::Check,
    };
    let wanted = builder.net().graph.one(last, &[rows, step.at])?;
    let logits = builder.all(after, wanted)?;
    let found = net.graph.tensor(logits);
    let expected = [step.outs.clone(), Dim::from(kinds)];
    if found.dims[..] != expected {
        let what = format!("its last layer gives {found}, not a score for each of {kinds} tokens");
        return unfit(checkpoint, what);
    }
    net.output("logits", logits);
    // Texts are continued in f32, also by a model that was trained in f64.
    let graph = net.inference_graph(&|name| {
        let value = checkpoint.slots.get(name)?;
        match value.dtype() {
            DType::F64 => cupola_ir::convert::cast(value, DType::F32, true).ok(),
            _ => Some(value.clone()),
        }
    })?;
    Ok(LanguageModel {
        graph,
        config: Sizes {
            architecture: checkpoint.config.name.clone(),
            kind: Kind::Decoder,
            vocab_len: kinds,
            context_len: options.context_len.unwrap_or(LONGEST),
            width: 1,
            blocks: vec![],
            page_len: options.page_len,
            cache_dtype: DType::I32,
        },
        files: vec![],
    })
}

/// The first ops of a decoder that keeps tokens.
struct Step {
    /// `[outs, len]`, i64: of each wanted row the tokens up to it, then its own again to the end of the window.
    window: ValueId,
    /// `[outs]`: the row's place in its window.
    at: ValueId,
    outs: Dim,
}

impl Step {
    /// Inputs and slot by the contract of [`Kind::Decoder`], with one i32 for each position.
    fn append(g: &mut Graph, len: usize, page_len: usize) -> Result<Step> {
        let mut input = |name: &str, dims: &[&str]| {
            let dims = dims.iter().map(|d| Dim::sym(d));
            g.input(name, TensorType::new(DType::I64, dims))
        };
        let tokens = input("tokens", &["rows"])?;
        let positions = input("positions", &["rows"])?;
        let sequences = input("sequences", &["rows"])?;
        let table = input("table", &["batch", "blocks"])?;
        let wanted = input("wanted", &["outs"])?;
        let place = |g: &mut Graph, sequences, positions| -> Result<[ValueId; 2]> {
            let page_len = g.number(page_len as f64, DType::I64)?;
            let block = g.binary(Scalar::Div, positions, page_len)?;
            let offset = g.binary(Scalar::Rem, positions, page_len)?;
            Ok([g.one(picks(&[0, 1]), &[table, sequences, block])?, offset])
        };
        let [page, offset] = place(g, sequences, positions)?;
        let kept = keep(g, tokens, [page, offset], page_len)?;
        let sequence = g.one(picks(&[0]), &[sequences, wanted])?;
        let last = g.one(picks(&[0]), &[positions, wanted])?;
        let outs = g.dim(last, 0);
        let reach = g.number(len as f64 - 1.0, DType::I64)?;
        let zero = g.number(0.0, DType::I64)?;
        let first = g.binary(Scalar::Sub, last, reach)?;
        let first = g.binary(Scalar::Max, first, zero)?;
        let dims = [outs.clone(), Dim::from(len)];
        let wide = |g: &mut Graph, x| -> Result<ValueId> {
            let x = g.unsqueeze(x, &[1])?;
            Ok(g.broadcast_to(x, &dims)?)
        };
        let (sequence, from, to) = (wide(g, sequence)?, wide(g, first)?, wide(g, last)?);
        let along = g.iota(DType::I64, &dims, 1)?;
        let all = g.binary(Scalar::Add, from, along)?;
        let all = g.binary(Scalar::Min, all, to)?;
        let place = place(g, sequence, all)?;
        let window = g.one(picks(&[0, 2]), &[kept, place[0], place[1]])?;
        let window = g.reshape(window, &dims)?;
        Ok(Step {
            window: g.cast(window, DType::I64)?,
            at: g.binary(Scalar::Sub, last, first)?,
            outs,
        })
    }
}

/// Elements by indices of these axes.
fn picks(axes: &[usize]) -> Gather {
    Gather {
        axes: axes.to_vec(),
        batch: 0,
        bounds: Bounds::Check,
    }
}

/// The slot of tokens with new ones in it.
fn keep(g: &mut Graph, tokens: ValueId, place: [ValueId; 2], page_len: usize) -> Result<ValueId> {
    let slot = "tokens".to_string();
    let one = Dim::ONE;
    let dims = [Dim::sym("pages"), one.clone(), page_len.into(), one.clone()];
    let ty = TensorType::new(DType::I32, dims);
    let initial = Tensor::from_slice::<i32>(&[0, 1, page_len, 1], &[]);
    let initial = initial.unwrap_or_else(|| unreachable!("bug: no page has no elements"));
    let state = StateSlot {
        ty: ty.clone().into(),
        initial,
    };
    g.slots.insert(slot.clone(), state);
    let read = ReadState {
        slot: slot.clone(),
        ty: ty.into(),
    };
    let before = g.one(read, &[])?;
    let rows = g.cast(tokens, DType::I32)?;
    let rows = g.unsqueeze(rows, &[1, 2])?;
    let scatter = Scatter {
        axes: vec![0, 2],
        batch: 0,
        kind: ScatterKind::Set,
        bounds: Bounds::Check,
    };
    let after = g.one(scatter, &[before, rows, place[0], place[1]])?;
    Ok(g.one(WriteState { slot }, &[after])?)
}
