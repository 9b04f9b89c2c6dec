//! Layers by their descriptions in text, as configurations have them.

use cupola_ir::ValueId;
use cupola_train::layers::{BatchNorm, Conv, Embedding, Pool, Recurrent, SelfAttention};
use cupola_train::{Init, Net, Result, Spec, TrainError};
use std::collections::BTreeMap;

/// Numbers that words in descriptions stand for.
pub type Words<'a> = [(&'a str, usize)];

/// Layers under construction.
pub struct Layers<'a> {
    net: &'a mut Net,
    words: &'a Words<'a>,
    counts: BTreeMap<String, usize>,
}

impl<'a> Layers<'a> {
    /// Of a model, with words for numbers.
    pub fn new(net: &'a mut Net, words: &'a Words<'a>) -> Layers<'a> {
        Layers {
            net,
            words,
            counts: BTreeMap::new(),
        }
    }

    /// The model, to append something else to it.
    pub fn net(&mut self) -> &mut Net {
        self.net
    }

    /// Appends layers one after the other.
    ///
    /// # Errors
    /// The layer that is not known or does not fit what comes before, with its number and text.
    pub fn all(&mut self, texts: &[String], mut x: ValueId) -> Result<ValueId> {
        for (i, text) in texts.iter().enumerate() {
            let layer = Spec::parse(text).and_then(|spec| {
                let y = self.one(&spec, x)?;
                spec.finish()?;
                let ty = self.net.graph.tensor(y);
                let empty = |d: &cupola_ir::Dim| d.as_const().is_some_and(|n| n <= 0);
                if ty.dims.iter().any(empty) {
                    let what = format!("'{spec}': nothing is left of the sample, but {ty}");
                    return Err(TrainError::Options(what));
                }
                // Messages about the step find the layer by it.
                let name = format!("layer {}, {}", i + 1, spec.name);
                self.net.graph.set_name(y, &name);
                Ok(y)
            });
            x = layer.map_err(|e| {
                let before = self.net.graph.ty(x).to_string();
                let what = format!("{e} (layer {} takes {before})", i + 1);
                TrainError::Options(what)
            })?;
        }
        Ok(x)
    }

    /// The layer's name: what is asked for, or its kind with a number.
    fn name(&mut self, spec: &Spec) -> String {
        let count = self.counts.entry(spec.name.clone()).or_default();
        *count += 1;
        let usual = format!("{}{count}", spec.name);
        spec.text("name", None).map_or(usual, String::from)
    }

    fn one(&mut self, spec: &Spec, x: ValueId) -> Result<ValueId> {
        match spec.name.as_str() {
            "relu" => self.net.relu(x),
            "gelu" => match spec.flag("tanh", false)? {
                true => self.net.gelu_tanh(x),
                false => self.net.gelu(x),
            },
            "silu" => self.net.silu(x),
            "tanh" => self.net.tanh(x),
            "sigmoid" => self.net.sigmoid(x),
            "softplus" => self.net.softplus(x),
            "softmax" => self.net.softmax(x),
            "log_softmax" => self.net.log_softmax(x),
            "leaky_relu" => {
                let slope = spec.number("slope", Some(0), 0.01)?;
                self.net.leaky_relu(x, slope)
            }
            "elu" => {
                let alpha = spec.number("alpha", Some(0), 1.0)?;
                self.net.elu(x, alpha)
            }
            "dropout" => {
                let p = spec.number("p", Some(0), 0.5)?;
                self.net.dropout(x, p)
            }
            "flatten" => {
                let first = spec.count("from", Some(0))?.unwrap_or(1);
                self.net.flatten(x, first)
            }
            "last" => self.net.last_step(x),
            "mean" => {
                let axis = spec.count("axis", Some(0))?.unwrap_or(1);
                self.net.mean(x, axis)
            }
            "max_pool" | "avg_pool" | "global_pool" => self.pool(spec, x),
            "linear" | "embedding" | "positions" | "conv" => self.weighted(spec, x),
            "batch_norm" | "layer_norm" | "rms_norm" | "group_norm" => self.norm(spec, x),
            "lstm" | "gru" | "rnn" => self.recurrent(spec, x),
            "attention" => {
                let settings = SelfAttention {
                    heads: spec.size("heads", Some(0), self.words)?,
                    causal: spec.flag("causal", false)?,
                    bias: spec.flag("bias", true)?,
                    dropout: spec.number("dropout", None, 0.0)?,
                };
                let name = self.name(spec);
                self.net.self_attention(&name, x, &settings)
            }
            "blocks" => self.blocks(spec, x),
            other => {
                let known = "linear, conv, embedding, positions, lstm, gru, rnn, attention, blocks, batch_norm, \
                             layer_norm, rms_norm, group_norm, max_pool, avg_pool, global_pool, dropout, flatten, last, \
                             mean, relu, gelu, silu, tanh, sigmoid, softplus, elu, leaky_relu, softmax, log_softmax";
                let what = format!("no layer '{other}'; there are {known}");
                Err(TrainError::Options(what))
            }
        }
    }

    /// One extent for every spatial axis: `3`, or `3x5`.
    fn extents(
        &self,
        spec: &Spec,
        key: &str,
        place: Option<usize>,
        x: ValueId,
    ) -> Result<Option<Vec<usize>>> {
        let Some(text) = spec.text(key, place) else {
            return Ok(None);
        };
        let parsed: Result<Vec<usize>, _> = text.split('x').map(str::parse).collect();
        let extents = parsed.map_err(|_| {
            let what = format!("'{spec}': {key} is '{text}', not like 3 or 3x5");
            TrainError::Options(what)
        })?;
        let spatial = self.net.graph.rank(x).saturating_sub(2);
        Ok(Some(match extents[..] {
            [one] => vec![one; spatial.max(1)],
            _ => extents,
        }))
    }

    fn pool(&mut self, spec: &Spec, x: ValueId) -> Result<ValueId> {
        if spec.name == "global_pool" {
            let spatial = self.net.graph.rank(x).saturating_sub(2);
            let y = self.net.adaptive_avg_pool(x, &vec![1; spatial.max(1)])?;
            return self.net.flatten(y, 1);
        }
        let kernel = self.extents(spec, "kernel", Some(0), x)?;
        let kernel = kernel.unwrap_or_else(|| vec![2; self.net.graph.rank(x).saturating_sub(2)]);
        let mut pool = Pool::new(kernel);
        if let Some(stride) = self.extents(spec, "stride", None, x)? {
            pool.stride = stride;
        }
        if let Some(padding) = self.extents(spec, "padding", None, x)? {
            pool.padding = padding;
        }
        match spec.name == "max_pool" {
            true => self.net.max_pool(x, &pool),
            false => self.net.avg_pool(x, &pool),
        }
    }

    fn weighted(&mut self, spec: &Spec, x: ValueId) -> Result<ValueId> {
        let name = self.name(spec);
        match spec.name.as_str() {
            "linear" => {
                let outputs = spec.size("outputs", Some(0), self.words)?;
                match spec.flag("bias", true)? {
                    true => self.net.linear(&name, x, outputs),
                    false => self.net.linear_without_bias(&name, x, outputs),
                }
            }
            "embedding" => {
                let width = spec.size("width", Some(0), self.words)?;
                let tokens = self.words.iter().find(|w| w.0 == "tokens");
                let tokens = tokens.map_or(0, |w| w.1);
                let rows = match spec.text("rows", None) {
                    Some(_) => spec.size("rows", None, self.words)?,
                    None => tokens,
                };
                if rows < tokens {
                    let what = format!("'{spec}': {rows} rows for {tokens} kinds of tokens");
                    return Err(TrainError::Options(what));
                }
                let settings = Embedding {
                    padding: spec.count("padding", None)?,
                    ..Embedding::new(rows, width)
                };
                self.net.embedding(&name, x, &settings)
            }
            "positions" => {
                // A row for each place in the window, added to the tokens there.
                let dims = self.net.graph.tensor(x).dims;
                let known = |at: usize| dims.get(at).and_then(cupola_ir::Dim::as_const);
                let (Some(steps), Some(width)) = (known(1), known(2)) else {
                    let what =
                        "positions are added to [batch, steps, width] of known steps and width";
                    return Err(TrainError::Options(what.into()));
                };
                let shape = [steps as usize, width as usize];
                let table = self
                    .net
                    .parameter(&format!("{name}.weight"), &shape, Init::ZEROS)?;
                self.net.add(x, table)
            }
            _ => {
                let outputs = spec.size("channels", Some(0), self.words)?;
                let kernel = self.extents(spec, "kernel", Some(1), x)?;
                let mut conv = Conv::new(outputs, kernel.unwrap_or_else(|| vec![3; 2]));
                if let Some(stride) = self.extents(spec, "stride", None, x)? {
                    conv.stride = stride;
                }
                if let Some(padding) = self.extents(spec, "padding", None, x)? {
                    conv.padding = padding;
                }
                conv.groups = spec.count("groups", None)?.unwrap_or(1);
                conv.bias = spec.flag("bias", true)?;
                self.net.conv(&name, x, &conv)
            }
        }
    }

    fn norm(&mut self, spec: &Spec, x: ValueId) -> Result<ValueId> {
        let name = self.name(spec);
        match spec.name.as_str() {
            "batch_norm" => self.net.batch_norm(&name, x, &BatchNorm::default()),
            "layer_norm" => self.net.layer_norm(&name, x, 1),
            "rms_norm" => self.net.rms_norm(&name, x, None),
            _ => {
                let groups = spec.size("groups", Some(0), self.words)?;
                self.net.group_norm(&name, x, groups)
            }
        }
    }

    fn recurrent(&mut self, spec: &Spec, x: ValueId) -> Result<ValueId> {
        use cupola_ir::composite::Cell;
        let name = self.name(spec);
        let cell = match spec.name.as_str() {
            "lstm" => Cell::Lstm,
            "gru" => Cell::Gru,
            _ => Cell::Rnn,
        };
        let settings = Recurrent {
            layers: spec.count("layers", None)?.unwrap_or(1),
            dropout: spec.number("dropout", None, 0.0)?,
            bidirectional: spec.flag("bidirectional", false)?,
            bias: spec.flag("bias", true)?,
            ..Recurrent::new(cell, spec.size("hidden", Some(0), self.words)?)
        };
        Ok(self.net.recurrent(&name, x, &settings)?.y)
    }

    /// Blocks of a GPT: attention and two linear layers, each behind a norm and beside a residual path.
    fn blocks(&mut self, spec: &Spec, x: ValueId) -> Result<ValueId> {
        let count = spec.size("count", Some(0), self.words)?;
        let heads = spec.size("heads", None, self.words)?;
        let causal = spec.flag("causal", true)?;
        let dropout = spec.number("dropout", None, 0.0)?;
        let of_weights = spec.number("attention_dropout", None, 0.0)?;
        let factor = spec.count("factor", None)?.unwrap_or(4);
        let name = self.name(spec);
        let dims = self.net.graph.tensor(x).dims;
        let width = dims.last().and_then(cupola_ir::Dim::as_const);
        let width = width
            .ok_or_else(|| TrainError::Options(format!("'{spec}': the width is not known")))?;
        let width = width as usize;
        let mut x = x;
        for i in 0..count {
            let part = |what: &str| format!("{name}.{i}.{what}");
            x = self.net.residual(x, |net, x| {
                let h = net.layer_norm(&part("n1"), x, 1)?;
                let h = net.linear(&part("qkv"), h, 3 * width)?;
                let h = net.attention(&part("attention"), h, heads, causal, of_weights)?;
                let h = net.linear(&part("o"), h, width)?;
                if dropout > 0.0 {
                    net.dropout(h, dropout)
                } else {
                    Ok(h)
                }
            })?;
            x = self.net.residual(x, |net, x| {
                let h = net.layer_norm(&part("n2"), x, 1)?;
                let h = net.linear(&part("f1"), h, factor * width)?;
                let h = net.gelu_tanh(h)?;
                let h = net.linear(&part("f2"), h, width)?;
                if dropout > 0.0 {
                    net.dropout(h, dropout)
                } else {
                    Ok(h)
                }
            })?;
        }
        Ok(x)
    }
}
