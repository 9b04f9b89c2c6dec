//! A model under construction: a graph with named parameters, running statistics, metrics and outputs.
//!
//! A [`Net`] is built in its form for training. Layers that behave otherwise in evaluation (dropout, batch norm) append both
//! forms and note the pair; [`Net::eval_graph`] redirects the one to the other, and what is not used disappears.

use crate::error::{Result, TrainError};
use crate::init::{Init, zeros};
use cupola_ir::ops::{Bitcast, CoreOp, ReadState};
use cupola_ir::{DType, Dim, Graph, Op, StateSlot, Tensor, TensorType, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// A trainable state slot.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Slot name, as in a `state_dict`.
    pub name: String,
    /// The slot's value at the start of a step.
    pub value: ValueId,
    /// Type; its extents are known.
    pub ty: TensorType,
    /// First values.
    pub init: Init,
    /// Whether optimisers change it.
    pub trainable: bool,
}

/// A state slot that a forward pass of training changes: a running statistic.
#[derive(Clone, Debug, PartialEq)]
pub struct Buffer {
    /// Slot name, as in a `state_dict`.
    pub name: String,
    /// The slot's value at the start of a step.
    pub value: ValueId,
    /// Its value after a training step.
    pub next: Option<ValueId>,
    /// Type.
    pub ty: TensorType,
    /// First values.
    pub init: Init,
}

/// A model under construction.
#[derive(Clone, Debug, Default)]
pub struct Net {
    /// The forward pass in its form for training. Anything may be appended with the builders of [`Graph`]; outputs and effects
    /// are added by the functions that make a graph of the model.
    pub graph: Graph,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) buffers: Vec<Buffer>,
    /// Values of training and what stands for them in evaluation.
    pub(crate) switches: Vec<(ValueId, ValueId)>,
    /// Means over the batch, and numbers of elements that they are over, that shards of it may agree on.
    pub(crate) batch_means: Vec<ValueId>,
    pub(crate) batch_counts: Vec<ValueId>,
    /// Totals that means over targets are divided by.
    pub(crate) totals: Vec<ValueId>,
    pub(crate) metrics: Vec<(String, ValueId)>,
    pub(crate) outputs: Vec<(String, ValueId)>,
    pub(crate) streams: u64,
    /// Type of parameters and buffers: f64 instead of f32.
    pub(crate) double: bool,
}

impl Net {
    /// An empty model.
    pub fn new(name: &str) -> Net {
        Net {
            graph: Graph::new(name),
            ..Net::default()
        }
    }

    /// The same with parameters and buffers of f64, which begin with the numbers that f32 ones would: a model that is computed in
    /// f64 throughout where its float inputs are f64 too. To be said before anything is added.
    pub fn double(self) -> Net {
        Net {
            double: true,
            ..self
        }
    }

    /// The type of parameters and buffers.
    pub fn dtype(&self) -> DType {
        match self.double {
            true => DType::F64,
            false => DType::F32,
        }
    }

    /// A named input. Extents may be symbols, of which equal ones are equal in all inputs.
    ///
    /// # Errors
    /// A name that is taken.
    pub fn input(
        &mut self,
        name: &str,
        dtype: DType,
        dims: impl IntoIterator<Item = impl Into<Dim>>,
    ) -> Result<ValueId> {
        let inputs = self.graph.inputs();
        if inputs.iter().any(|v| self.graph.input_name(*v) == name) {
            let what = "there is an input of this name already";
            return Err(TrainError::layer(format!("input '{name}'"), what));
        }
        Ok(self.graph.input(name, TensorType::new(dtype, dims))?)
    }

    /// A trainable parameter of [`Net::dtype`]. Asking for a name again gives the same parameter, so that layers may share it.
    ///
    /// # Errors
    /// A name that a parameter of another shape or a buffer has.
    pub fn parameter(&mut self, name: &str, shape: &[usize], init: Init) -> Result<ValueId> {
        let ty = TensorType::new(self.dtype(), shape.iter().copied());
        if let Some(known) = self.parameters.iter().find(|p| p.name == name) {
            if known.ty == ty {
                return Ok(known.value);
            }
            let what = format!("there is a parameter of type {} already", known.ty);
            return Err(TrainError::layer(name, what));
        }
        let value = self.slot(name, &ty)?;
        self.parameters.push(Parameter {
            name: name.into(),
            value,
            ty,
            init,
            trainable: true,
        });
        Ok(value)
    }

    /// A state slot of [`Net::dtype`] that no optimiser changes; [`Net::set_buffer`] says what a training step makes of it.
    ///
    /// # Errors
    /// A name that is taken.
    pub fn buffer(&mut self, name: &str, shape: &[usize], init: Init) -> Result<ValueId> {
        let ty = TensorType::new(self.dtype(), shape.iter().copied());
        let value = self.slot(name, &ty)?;
        self.buffers.push(Buffer {
            name: name.into(),
            value,
            next: None,
            ty,
            init,
        });
        Ok(value)
    }

    /// Makes `next` the value of a buffer after a training step.
    ///
    /// # Errors
    /// A buffer that does not exist, or a value of another type.
    pub fn set_buffer(&mut self, name: &str, next: ValueId) -> Result<()> {
        let ty = self.graph.tensor(next);
        match self.buffers.iter_mut().find(|b| b.name == name) {
            Some(b) if b.ty == ty => {
                b.next = Some(next);
                Ok(())
            }
            Some(b) => Err(TrainError::layer(
                name,
                format!("{ty} is not its type {}", b.ty),
            )),
            None => Err(TrainError::layer(name, "there is no such buffer")),
        }
    }

    /// Declares a state slot and reads it.
    pub(crate) fn slot(&mut self, name: &str, ty: &TensorType) -> Result<ValueId> {
        if self.graph.slots.contains_key(name) {
            return Err(TrainError::layer(
                name,
                "there is a state slot of this name already",
            ));
        }
        let shape = ty.const_shape();
        let initial = shape.and_then(|s| zeros(ty.dtype, &s));
        let initial = initial.ok_or_else(|| {
            let what = format!("there is no memory for a state of type {ty}");
            TrainError::layer(name, what)
        })?;
        declare(&mut self.graph, name, ty, initial)
    }

    /// Takes parameters from the optimiser: those for whose name `is_frozen` holds.
    pub fn freeze(&mut self, is_frozen: impl Fn(&str) -> bool) {
        for p in &mut self.parameters {
            p.trainable &= !is_frozen(&p.name);
        }
    }

    /// Gives parameters and buffers other first values: those of the tensors that have their name.
    ///
    /// # Errors
    /// A tensor of another shape. Names that the model has not are left out and returned.
    pub fn load(&mut self, weights: &BTreeMap<String, Tensor>) -> Result<Vec<String>> {
        let mut unknown = vec![];
        for (name, tensor) in weights {
            let parameters = self
                .parameters
                .iter_mut()
                .map(|p| (&p.name, &p.ty, &mut p.init));
            let buffers = self
                .buffers
                .iter_mut()
                .map(|b| (&b.name, &b.ty, &mut b.init));
            match parameters.chain(buffers).find(|(n, ..)| *n == name) {
                Some((_, ty, init)) => {
                    if ty.const_shape().as_deref() != Some(tensor.shape()) {
                        let what = format!("{tensor:?} does not fit the type {ty}");
                        return Err(TrainError::layer(name.clone(), what));
                    }
                    *init = Init::Values(tensor.clone());
                }
                None => unknown.push(name.clone()),
            }
        }
        Ok(unknown)
    }

    /// Makes `eval` stand for `training` in graphs for evaluation.
    pub fn switch(&mut self, training: ValueId, eval: ValueId) {
        self.switches.push((training, eval));
    }

    /// A number reported by every step and every evaluation beside the loss; a mean over the batch.
    pub fn metric(&mut self, name: &str, value: ValueId) {
        self.metrics.push((name.into(), value));
    }

    /// A result of the model in evaluation and inference.
    pub fn output(&mut self, name: &str, value: ValueId) {
        self.outputs.push((name.into(), value));
    }

    /// Results by name, in the order in which they were named.
    pub fn outputs(&self) -> &[(String, ValueId)] {
        &self.outputs
    }

    /// All parameters in the order of their making.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// All buffers in the order of their making.
    pub fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    /// What a mean over targets is divided by, where targets may count differently or not at all (`ignore`, weights of classes):
    /// float scalars in the order in which the losses and metrics were made. Several batches have the mean of their means
    /// weighted by these.
    pub fn totals(&self) -> &[ValueId] {
        &self.totals
    }

    /// Number of trainable elements.
    pub fn trainable_len(&self) -> usize {
        let trainable = self.parameters.iter().filter(|p| p.trainable);
        trainable
            .filter_map(|p| Some(p.ty.const_shape()?.iter().product::<usize>()))
            .sum()
    }

    /// A number for the next random op of the model.
    pub(crate) fn next_stream(&mut self) -> u64 {
        self.streams += 1;
        self.streams
    }

    /// The value, through which no gradient flows.
    ///
    /// # Errors
    /// A value that is no tensor of a float type of 16, 32 or 64 bits.
    pub fn stop_gradient(&mut self, x: ValueId) -> Result<ValueId> {
        // Bits are no numbers, so no derivative passes them.
        let dtype = self.graph.dtype(x);
        let bits = match dtype.bits() {
            16 => DType::U16,
            32 => DType::U32,
            _ => DType::U64,
        };
        let y = self.graph.one(Bitcast { to: bits }, &[x])?;
        Ok(self.graph.one(Bitcast { to: dtype }, &[y])?)
    }

    /// The model for evaluation: dropout off, running statistics used and left as they are. Outputs are `values` (a loss, say),
    /// the model's outputs and its metrics; inputs that nothing of it needs are left out.
    ///
    /// # Errors
    /// Values of another model.
    pub fn eval_graph(&self, values: &[(&str, ValueId)]) -> Result<Graph> {
        let given = values.iter().map(|(n, v)| (n.to_string(), *v));
        let all = given.chain(self.outputs.iter().cloned());
        self.finished(all.chain(self.metrics.iter().cloned()).collect())
    }

    /// The model for inference with weights as constants: its outputs only. `weights` gives the value of a parameter or buffer by
    /// name, say from a checkpoint. Other state slots of the graph stay.
    ///
    /// # Errors
    /// A model without outputs; weights that are missing or of another type.
    pub fn inference_graph(&self, weights: &dyn Fn(&str) -> Option<Tensor>) -> Result<Graph> {
        if self.outputs.is_empty() {
            let what = "the model has no outputs to infer; name them with Net::output";
            return Err(TrainError::Options(what.into()));
        }
        let mut graph = self.finished(self.outputs.clone())?;
        let parameters = self.parameters.iter().map(|p| &p.name);
        let own: BTreeSet<&String> = parameters
            .chain(self.buffers.iter().map(|b| &b.name))
            .collect();
        let reads: Vec<(ValueId, String)> = (graph.nodes())
            .filter_map(|(_, n)| match &n.op {
                Op::Core(CoreOp::ReadState(p)) => Some((n.results[0], p.slot.clone())),
                _ => None,
            })
            .filter(|(_, name)| own.contains(name))
            .collect();
        for (value, name) in reads {
            let tensor = weights(&name)
                .ok_or_else(|| TrainError::Options(format!("no weights for '{name}'")))?;
            if graph.tensor(value) != tensor.ty() {
                let ty = graph.ty(value);
                let what = format!("weights {tensor:?} for '{name}' of type {ty}");
                return Err(TrainError::Options(what));
            }
            let constant = graph.constant(tensor)?;
            graph.set_name(constant, &name);
            graph.replace(value, constant);
            graph.slots.remove(&name);
        }
        graph.compact()?;
        Ok(graph)
    }

    /// The graph in its form for evaluation with these outputs.
    fn finished(&self, outputs: Vec<(String, ValueId)>) -> Result<Graph> {
        let mut graph = self.graph.clone();
        for (name, value) in &outputs {
            graph.output(name, *value);
        }
        graph.replace_all(&self.switches.iter().copied().collect());
        keep_needed(&mut graph)?;
        Ok(graph)
    }
}

/// Declares a state slot and reads it.
pub(crate) fn declare(
    graph: &mut Graph,
    name: &str,
    ty: &TensorType,
    initial: Tensor,
) -> Result<ValueId> {
    let slot = StateSlot {
        ty: ty.clone().into(),
        initial,
    };
    graph.slots.insert(name.into(), slot);
    let read = ReadState {
        slot: name.into(),
        ty: ty.clone().into(),
    };
    let value = graph.one(read, &[])?;
    graph.set_name(value, name);
    Ok(value)
}

/// Drops what outputs and effects do not need: nodes, state slots, and inputs whose symbols nothing else uses.
pub(crate) fn keep_needed(graph: &mut Graph) -> Result<()> {
    graph.compact()?;
    let users = graph.users();
    let mut at = graph.inputs().len();
    while at > 0 {
        at -= 1;
        let v = graph.inputs()[at];
        let is_output = graph.outputs().iter().any(|(_, o)| *o == v);
        if users[v.index()].is_empty() && !is_output && !binds_alone(graph, at) {
            graph.remove_input(at);
        }
    }
    graph.compact()?;
    let mut used = BTreeSet::new();
    for (_, node) in graph.nodes() {
        match &node.op {
            Op::Core(CoreOp::ReadState(p)) => used.insert(p.slot.clone()),
            Op::Core(CoreOp::WriteState(p)) => used.insert(p.slot.clone()),
            _ => false,
        };
    }
    graph.slots.retain(|name, _| used.contains(name));
    Ok(())
}

/// Whether an input has a symbol that no other input has.
fn binds_alone(graph: &Graph, at: usize) -> bool {
    let mut others = BTreeSet::new();
    let inputs = graph.inputs();
    for (i, v) in inputs.iter().enumerate() {
        if i != at {
            graph.ty(*v).for_each_dim(&mut |d| {
                d.for_each_sym(&mut |s| {
                    others.insert(s.clone());
                });
            });
        }
    }
    let mut alone = false;
    graph.ty(inputs[at]).for_each_dim(&mut |d| {
        d.for_each_sym(&mut |s| alone |= !others.contains(s));
    });
    alone
}
