//! The graph of one training step: forward pass, loss, gradients, clipping, optimiser and loss scale.

use crate::error::{Result, TrainError};
use crate::init::Init;
use crate::net::{Net, declare, keep_needed};
use crate::optimiser::{Hyper, Hypers, Optimiser};
use crate::scaler::{self, GradScaler};
use crate::shards::Shards;
use cupola_ir::ops::{ReduceKind, WriteState};
use cupola_ir::{Bindings, DType, Graph, Scalar, Sym, Tensor, TensorType, ValueId};
use cupola_passes::autocast;
use cupola_passes::autodiff::{self, Kept};

/// Slot of the number of optimiser steps taken (i32).
pub const STEP: &str = "optimiser.step";

/// How gradients are limited before the optimiser sees them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Clip {
    /// All gradients are scaled so that their joint Euclidean norm is this at most.
    Norm(f64),
    /// Every element is limited to this magnitude.
    Value(f64),
}

/// A limit of what the backward pass keeps of the forward pass; the rest is computed again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes.
    pub budget: u64,
    /// The sizes of the symbols of the inputs for which it is planned. Steps of other sizes are right too.
    pub sizes: Vec<(String, i64)>,
}

/// What a training step does beside its optimiser's update.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOptions {
    /// Limit of the gradients.
    pub clip: Option<Clip>,
    /// Whether the norm of the gradients (before clipping) is an output even if nothing is clipped by it.
    pub grad_norm: bool,
    /// Scaling of the loss, for f16.
    pub scaler: Option<GradScaler>,
    /// Type in which products are computed (bf16 or f16); parameters stay f32.
    pub autocast: Option<DType>,
    /// Limit of the memory.
    pub memory: Option<Memory>,
    /// Copies of the program that compute a batch together, each on its share of the samples; 0 and 1 for one alone. The step
    /// then has one more input, [`crate::SHARE`].
    pub shards: usize,
    /// Whether batch norm normalises by all samples of the batch; by itself by those of its shard, and the running statistics
    /// are the first shard's.
    pub sync_batch_norm: bool,
}

/// A state slot of a training step.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    /// Name.
    pub name: String,
    /// Type; its extents are known.
    pub ty: TensorType,
    /// First values.
    pub init: Init,
    /// What it is.
    pub kind: SlotKind,
}

/// What a state slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotKind {
    /// A parameter of the model.
    Parameter,
    /// A running statistic of the model.
    Buffer,
    /// Memory of the optimiser or the loss scale.
    Optimiser,
}

/// A training step as data.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainStep {
    /// The graph. Its inputs are those of the model and those that [`TrainStep::hyper`] gives; its outputs `loss`, the model's
    /// metrics, and where asked for `grad_norm`, `scale` (after the step) and `found_inf` (1 when the update was left out). Its
    /// slots begin with zeros; [`TrainStep::initial`] gives the values to begin with.
    pub graph: Graph,
    /// The state slots.
    pub slots: Vec<Slot>,
    /// What the backward pass keeps, where that has a limit.
    pub kept: Option<Kept>,
    hypers: Vec<(String, Hyper, DType)>,
}

impl TrainStep {
    /// The scalar inputs for step `t`, counted from 1, with the learning rate `lr`. A step that the scaler leaves out does not
    /// count: the next has the same `t`.
    pub fn hyper(&self, t: u64, lr: f64) -> Vec<(String, Tensor)> {
        let value = |h: &Hyper, dtype: DType| match dtype {
            DType::F64 => Tensor::scalar(h.value(t, lr)),
            _ => Tensor::scalar(h.value(t, lr) as f32),
        };
        self.hypers
            .iter()
            .map(|(n, h, dtype)| (n.clone(), value(h, *dtype)))
            .collect()
    }

    /// The value that a slot begins with.
    ///
    /// # Errors
    /// As [`Init::draw`].
    pub fn initial(&self, slot: &Slot, seed: u64) -> Result<Tensor> {
        slot.init.draw(seed, &slot.name, &slot.ty)
    }

    /// Names of the outputs in order.
    pub fn outputs(&self) -> Vec<&str> {
        self.graph.outputs().iter().map(|(n, _)| &**n).collect()
    }
}

/// The step under construction.
struct Build<'a> {
    net: &'a Net,
    graph: Graph,
    slots: Vec<Slot>,
    shards: Option<Shards>,
    /// Running statistics are those of one shard.
    is_local: bool,
}

impl Net {
    /// The graph of one training step that lowers `loss`, a scalar.
    ///
    /// Parameters that the loss does not depend on stay as they are. Metrics are computed with the parameters before the step.
    ///
    /// # Errors
    /// A loss that is no float scalar or depends on no trainable parameter, settings out of range, ops without a gradient.
    pub fn train_step(
        &self,
        loss: ValueId,
        optimiser: &Optimiser,
        options: &StepOptions,
    ) -> Result<TrainStep> {
        optimiser.check()?;
        check(self, loss, options)?;
        let (mut b, map) = Build::begin(self, options)?;
        let at = |v: ValueId| map.get(v.index()).copied().unwrap_or(v);
        let loss = at(loss);
        let scale = match &options.scaler {
            Some(s) => Some(b.state(scaler::SCALE, DType::F32, s.init_scale)?),
            None => None,
        };
        let mut grads = b.gradients(loss, scale)?;
        b.collect(&mut grads)?;
        let found = match scale {
            Some(scale) => Some(scaler::unscale(&mut b.graph, scale, &mut grads)?),
            None => None,
        };
        let norm = b.clip(&mut grads, options)?;
        let mut hypers = Hypers::default();
        b.update(optimiser, &mut hypers, &grads, found)?;
        b.count_step(found)?;
        for buffer in &self.buffers {
            if let Some(next) = buffer.next {
                let mut next = b.graph.cast(at(next), buffer.ty.dtype)?;
                if let Some(shards) = b.shards.as_ref().filter(|_| b.is_local) {
                    next = shards.first(&mut b.graph, next)?;
                }
                b.write(&buffer.name, next)?;
            }
        }
        let own = b.graph.widen(loss)?;
        let all = b.of_batch(own)?;
        b.graph.output("loss", all);
        for (name, value) in &self.metrics {
            let all = b.of_batch(at(*value))?;
            b.graph.output(name, all);
        }
        if let Some(norm) = norm {
            b.graph.output("grad_norm", norm);
        }
        if let (Some(s), Some(scale), Some(found)) = (&options.scaler, scale, found) {
            let tracker = b.state(scaler::TRACKER, DType::I32, 0.0)?;
            let [scale, tracker] = s.next(&mut b.graph, scale, tracker, found)?;
            b.write(scaler::SCALE, scale)?;
            b.write(scaler::TRACKER, tracker)?;
            let found = b.graph.cast(found, DType::F32)?;
            b.graph.output("scale", scale);
            b.graph.output("found_inf", found);
        }
        let kept = match &options.memory {
            Some(memory) => Some(b.compute_again(own, memory)?),
            None => None,
        };
        b.finish(hypers, kept)
    }
}

fn check(net: &Net, loss: ValueId, options: &StepOptions) -> Result<()> {
    let ty = net.graph.tensor(loss);
    if !ty.dtype.is_float() || ty.rank() != 0 {
        let what = format!("the loss is a float scalar, not {ty}; reduce it to its mean or sum");
        return Err(TrainError::Options(what));
    }
    let limit = match options.clip {
        Some(Clip::Norm(limit) | Clip::Value(limit)) => limit,
        None => 1.0,
    };
    if limit.is_nan() || limit < 0.0 {
        return Err(TrainError::Options(format!(
            "gradients cannot be clipped to {limit}"
        )));
    }
    match &options.scaler {
        Some(s) => s.check(),
        None => Ok(()),
    }
}

impl Build<'_> {
    /// The forward pass, and where each of the model's values is in it.
    fn begin<'a>(net: &'a Net, options: &StepOptions) -> Result<(Build<'a>, Vec<ValueId>)> {
        let mut graph = net.graph.clone();
        let shards = match options.shards {
            0 | 1 => None,
            count => Some(Shards::declare(&mut graph, count, net.dtype())?),
        };
        if let Some(shards) = shards.as_ref().filter(|_| options.sync_batch_norm) {
            shards.agree(net, &mut graph)?;
        }
        if let Some(shards) = &shards {
            shards.agree_on_totals(net, &mut graph)?;
        }
        let map = match options.autocast {
            Some(dtype) => autocast(&mut graph, dtype)?,
            None => vec![],
        };
        let parameters = net.parameters.iter().map(|p| Slot {
            name: p.name.clone(),
            ty: p.ty.clone(),
            init: p.init.clone(),
            kind: SlotKind::Parameter,
        });
        let buffers = net.buffers.iter().map(|b| Slot {
            name: b.name.clone(),
            ty: b.ty.clone(),
            init: b.init.clone(),
            kind: SlotKind::Buffer,
        });
        let slots = parameters.chain(buffers).collect();
        let build = Build {
            net,
            graph,
            slots,
            shards,
            is_local: !options.sync_batch_norm,
        };
        Ok((build, map))
    }

    /// A slot of the optimiser of the given type, read.
    fn memory(&mut self, name: &str, ty: TensorType, init: Init) -> Result<ValueId> {
        if self.graph.slots.contains_key(name) {
            let what = "the name is one of the optimiser's state slots; the model needs another";
            return Err(TrainError::layer(name, what));
        }
        let initial = Init::ZEROS.draw(0, name, &ty)?;
        let value = declare(&mut self.graph, name, &ty, initial)?;
        self.slots.push(Slot {
            name: name.into(),
            ty,
            init,
            kind: SlotKind::Optimiser,
        });
        Ok(value)
    }

    fn state(&mut self, name: &str, dtype: DType, first: f64) -> Result<ValueId> {
        self.memory(name, TensorType::scalar(dtype), Init::Constant(first))
    }

    fn write(&mut self, slot: &str, value: ValueId) -> Result<()> {
        let op = WriteState { slot: slot.into() };
        self.graph.one(op, &[value])?;
        Ok(())
    }

    /// Gradients of the loss, times the loss scale where there is one, by position of the parameter.
    fn gradients(
        &mut self,
        loss: ValueId,
        scale: Option<ValueId>,
    ) -> Result<Vec<(usize, ValueId)>> {
        let trained: Vec<usize> = (0..self.net.parameters.len())
            .filter(|i| self.net.parameters[*i].trainable)
            .collect();
        let wrt: Vec<ValueId> = trained
            .iter()
            .map(|i| self.net.parameters[*i].value)
            .collect();
        let seed = match scale {
            Some(scale) => self.graph.cast_like(scale, loss)?,
            None => self.graph.number_like(1.0, loss)?,
        };
        let seed = match &self.shards {
            Some(shards) => shards.weigh(&mut self.graph, seed)?,
            None => seed,
        };
        let grads = autodiff::vjp(&mut self.graph, &[(loss, seed)], &wrt)?;
        let found = trained.into_iter().zip(grads);
        let found: Vec<_> = found.filter_map(|(i, g)| Some((i, g?))).collect();
        match found.is_empty() {
            true => {
                let what = "the loss depends on no trainable parameter";
                Err(TrainError::Options(what.into()))
            }
            false => Ok(found),
        }
    }

    /// The gradients of all shards. They come in the order in which the backward pass has them, and each is handed over there:
    /// those of the last layers are on their way while those of the first are computed, and are the first to be used.
    fn collect(&mut self, grads: &mut [(usize, ValueId)]) -> Result<()> {
        let Some(shards) = &self.shards else {
            return Ok(());
        };
        let graph = &mut self.graph;
        grads.sort_by_key(|(_, grad)| graph.value(*grad).node);
        for (_, grad) in grads.iter_mut() {
            *grad = shards.sum(graph, *grad)?;
        }
        let all: Vec<ValueId> = grads.iter().map(|(_, grad)| *grad).collect();
        Ok(graph.bring_forward(&all)?)
    }

    /// A mean over the shard's samples as the mean over all.
    fn of_batch(&mut self, x: ValueId) -> Result<ValueId> {
        match &self.shards {
            Some(shards) if self.graph.dtype(x).is_float() => shards.mean(&mut self.graph, x),
            _ => Ok(x),
        }
    }

    /// Limits the gradients; their norm before that, where it is asked for.
    fn clip(
        &mut self,
        grads: &mut [(usize, ValueId)],
        options: &StepOptions,
    ) -> Result<Option<ValueId>> {
        let norm = match options.clip {
            Some(Clip::Norm(_)) => Some(self.norm(grads)?),
            _ if options.grad_norm => Some(self.norm(grads)?),
            _ => None,
        };
        let g = &mut self.graph;
        match (options.clip, norm) {
            (Some(Clip::Norm(limit)), Some(norm)) => {
                let (limit, tiny, one) = (
                    g.number_like(limit, norm)?,
                    g.number_like(1e-6, norm)?,
                    g.number_like(1.0, norm)?,
                );
                let factor = g.binary(Scalar::Add, norm, tiny)?;
                let factor = g.binary(Scalar::Div, limit, factor)?;
                let factor = g.binary(Scalar::Min, factor, one)?;
                for (_, grad) in grads {
                    let factor = g.cast_like(factor, *grad)?;
                    *grad = g.binary(Scalar::Mul, *grad, factor)?;
                }
            }
            (Some(Clip::Value(limit)), _) => {
                for (_, grad) in grads {
                    let (low, high) = (g.number_like(-limit, *grad)?, g.number_like(limit, *grad)?);
                    *grad = g.binary(Scalar::Max, *grad, low)?;
                    *grad = g.binary(Scalar::Min, *grad, high)?;
                }
            }
            _ => {}
        }
        Ok(norm)
    }

    /// The joint Euclidean norm of all gradients, in f32 at least. Matrices are summed along their rows first: one sum of ten million
    /// numbers, in a few partial sums of f32, loses a part in a thousand.
    fn norm(&mut self, grads: &[(usize, ValueId)]) -> Result<ValueId> {
        let g = &mut self.graph;
        let mut total = None;
        let is_double = grads.iter().any(|(_, v)| g.dtype(*v) == DType::F64);
        let dtype = if is_double { DType::F64 } else { DType::F32 };
        for (_, grad) in grads {
            let wide = g.cast(*grad, dtype)?;
            let square = g.binary(Scalar::Mul, wide, wide)?;
            let axes: Vec<usize> = (1..g.rank(square)).collect();
            let rows = match axes.is_empty() {
                true => square,
                false => g.reduce(ReduceKind::Sum, square, &axes)?,
            };
            let axes: Vec<usize> = (0..g.rank(rows)).collect();
            let sum = g.reduce(ReduceKind::Sum, rows, &axes)?;
            total = Some(match total {
                Some(total) => g.binary(Scalar::Add, total, sum)?,
                None => sum,
            });
        }
        let total = match total {
            Some(total) => total,
            None => g.number(0.0, dtype)?,
        };
        Ok(g.unary(Scalar::Sqrt, total)?)
    }

    /// The optimiser's update of every parameter that has a gradient; nothing changes where `found` holds.
    fn update(
        &mut self,
        optimiser: &Optimiser,
        hypers: &mut Hypers,
        grads: &[(usize, ValueId)],
        found: Option<ValueId>,
    ) -> Result<()> {
        let net = self.net;
        for (i, grad) in grads {
            let p = &net.parameters[*i];
            let names: Vec<String> = (optimiser.memory().iter())
                .map(|m| format!("{m}/{}", p.name))
                .collect();
            let old = names
                .iter()
                .map(|n| self.memory(n, p.ty.clone(), Init::ZEROS));
            let old = old.collect::<Result<Vec<_>>>()?;
            let (new, kept) =
                optimiser.update(&mut self.graph, hypers, &p.name, p.value, *grad, &old)?;
            let before = [&[p.value], &old[..]].concat();
            let after = [&[new], &kept[..]].concat();
            let slots = std::iter::once(&p.name).chain(&names);
            for ((slot, before), mut after) in slots.zip(before).zip(after) {
                if let Some(found) = found {
                    after = self.graph.select(found, before, after)?;
                }
                self.write(slot, after)?;
            }
        }
        Ok(())
    }

    /// The number of steps taken.
    fn count_step(&mut self, found: Option<ValueId>) -> Result<()> {
        let step = self.state(STEP, DType::I32, 0.0)?;
        let g = &mut self.graph;
        let one = g.number(1.0, DType::I32)?;
        let mut next = g.binary(Scalar::Add, step, one)?;
        if let Some(found) = found {
            next = g.select(found, step, next)?;
        }
        self.write(STEP, next)
    }

    /// Has the backward pass compute again what it may not keep.
    fn compute_again(&mut self, loss: ValueId, memory: &Memory) -> Result<Kept> {
        let mut bindings = Bindings::default();
        for (name, size) in &memory.sizes {
            bindings.set(Sym::new(name), *size);
        }
        let graph = &mut self.graph;
        Ok(autodiff::rematerialise(
            graph,
            loss,
            memory.budget,
            &bindings,
        )?)
    }

    fn finish(mut self, hypers: Hypers, kept: Option<Kept>) -> Result<TrainStep> {
        keep_needed(&mut self.graph)?;
        let graph = self.graph;
        self.slots.retain(|s| graph.slots.contains_key(&s.name));
        let hypers = (hypers.all.into_iter())
            .map(|(n, h, dtype, _)| (n, h, dtype))
            .collect();
        Ok(TrainStep {
            graph,
            slots: self.slots,
            kept,
            hypers,
        })
    }
}
