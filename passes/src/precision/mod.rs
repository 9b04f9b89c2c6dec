//! Computes products with constant weights, and attention, in a narrower type than the model's.
//!
//! Rules: weights are converted once, here; activations by an ordinary conversion, which a device's kernel makes as it reads or
//! the kernel before as it writes; sums and results stay f32, and so does everything that is no product. Where the device has
//! no product of the narrower type, or computes no faster in it, the weights are rounded to it and the product stays what it was.

mod int8;

use crate::edit::Edits;
use crate::{Context, PassError, Result, Work};
use cupola_ir::composite::Recurrent;
use cupola_ir::convert;
use cupola_ir::eval::{Env, eval_op};
use cupola_ir::target::{Claim, Target};
use cupola_ir::{
    CompositeOp, CoreOp, DType, Graph, IrError, Node, NodeId, Op, OpClass, Tensor, TensorType,
    Value, ValueId,
};
use rustc_hash::FxHashMap;

/// Type in which products with constant weights are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// That of the model; activations are rounded to 8 bits, 32 sharing a scale, where weights are block-quantised.
    #[default]
    Model,
    /// That of the model, activations of block-quantised weights too.
    F32,
    /// Weights and activations are rounded to bf16.
    Bf16,
    /// Weights are rounded to f16; activations too, also those of attention, on devices that multiply f16 faster.
    F16,
    /// Weights and activations are rounded to 8-bit integers with scales: in matrix products one for each 32 neighbours.
    Int8,
}

/// Weights with fewer elements stay as they are: conversion costs more than the product gains.
const MIN_WEIGHTS: usize = 4096;

pub(crate) fn run(work: &mut Work, context: &Context) -> Result<()> {
    let target = context.target(context.options.device);
    apply(work, context.options.precision, Some(target))
}

/// A graph whose products are computed in a narrower type, for a device that takes any op.
///
/// # Errors
/// An invalid graph.
pub fn with_precision(graph: Graph, precision: Precision) -> Result<Graph> {
    let mut work = Work {
        graph,
        ..Work::default()
    };
    apply(&mut work, precision, None)?;
    Ok(work.graph)
}

fn apply(work: &mut Work, precision: Precision, target: Option<&Target>) -> Result<()> {
    let dtype = match precision {
        Precision::Model | Precision::F32 => return Ok(()),
        Precision::Bf16 => DType::BF16,
        Precision::F16 => DType::F16,
        Precision::Int8 => DType::I8,
    };
    let error = |error: IrError| PassError::Graph {
        pass: "precision",
        error,
    };
    let nodes: Vec<NodeId> = work.graph.nodes().map(|(id, _)| id).collect();
    let mut edits = Edits::default();
    let mut narrower = Narrower {
        graph: &mut work.graph,
        target,
        dtype,
        constants: FxHashMap::default(),
        floats: FxHashMap::default(),
        ranges: FxHashMap::default(),
        activations: FxHashMap::default(),
    };
    for id in nodes {
        if let Some(results) = narrower.product(id).map_err(error)? {
            let old = narrower.graph.node(id).results.clone();
            for (old, new) in old.into_iter().zip(results) {
                edits.replace(old, new);
            }
        }
    }
    edits.apply(work).map_err(error)?;
    Ok(())
}

/// Values in the place of a node's results, when there are any.
type Replaced = Option<Vec<ValueId>>;

struct Narrower<'a> {
    graph: &'a mut Graph,
    /// The device; `None` for one that takes any op.
    target: Option<&'a Target>,
    /// Of weights.
    dtype: DType,
    /// Converted constants by the original.
    constants: FxHashMap<ValueId, ValueId>,
    /// Values of the narrower type that activations are rounded to, or are widened from, by the activation.
    floats: FxHashMap<ValueId, ValueId>,
    /// Ranges of activations by value and axes, for integers.
    ranges: FxHashMap<(ValueId, Vec<usize>), ValueId>,
    /// Activations as integers by value and range.
    activations: FxHashMap<(ValueId, ValueId), ValueId>,
}

impl Narrower<'_> {
    /// What takes the place of a node's results, if the node is a product of f32 with constant weights.
    fn product(&mut self, id: NodeId) -> Result<Replaced, IrError> {
        let node = self.graph.node(id).clone();
        if let Op::Composite(CompositeOp::Recurrent(p)) = &node.op {
            return self.recurrent(&node, p);
        }
        if let Op::Composite(CompositeOp::Attention(_)) = &node.op {
            return self.attention(&node);
        }
        let Some(side) = self.weight_side(&node) else {
            return Ok(None);
        };
        self.graph.set_origin(node.origins.first().cloned());
        let result = match self.dtype {
            DType::I8 => self.int8(&node, side)?,
            _ => Some(self.floats(&node, side)?),
        };
        Ok(result.map(|v| vec![v]))
    }

    /// Whether products take activations of the narrower float type.
    fn narrows_activations(&self) -> bool {
        match self.dtype {
            DType::BF16 => true,
            DType::F16 => self.target.is_some_and(|target| target.half_factors),
            _ => false,
        }
    }

    /// The product of floats of the narrower type, or by rounded weights.
    fn floats(&mut self, node: &Node, side: usize) -> Result<ValueId, IrError> {
        let (x, w) = (node.operands[1 - side], node.operands[side]);
        let in_order = |x, w| if side == 1 { [x, w] } else { [w, x] };
        if let Op::Composite(_) = &node.op
            && self.narrows_activations()
            && self.is_claimed(&node.op, [DType::F32, self.dtype], node)
        {
            let w = self.weights(w)?;
            return self.graph.one(node.op.clone(), &[x, w]);
        }
        let product =
            if self.narrows_activations() && self.is_claimed(&node.op, [self.dtype; 2], node) {
                let (x, w) = (self.narrow(x)?, self.weights(w)?);
                self.graph.one(node.op.clone(), &in_order(x, w))?
            } else {
                let w = self.rounded(w, self.converts(node))?;
                self.graph.one(node.op.clone(), &in_order(x, w))?
            };
        self.graph.cast(product, DType::F32)
    }

    /// A recurrent layer with weights of the narrower type.
    fn recurrent(&mut self, node: &Node, p: &Recurrent) -> Result<Replaced, IrError> {
        let roles = p.roles(&node.operands)?;
        let mut types: Vec<TensorType> = vec![];
        for v in &node.operands {
            let is_weight = [roles.w, roles.r].contains(v);
            if is_weight && (self.graph.dtype(*v) != DType::F32 || !self.is_constant(*v)) {
                return Ok(None);
            }
            let mut ty = self.graph.tensor(*v);
            if is_weight {
                ty.dtype = self.dtype;
            }
            types.push(ty);
        }
        let types: Vec<&TensorType> = types.iter().collect();
        let claim = self.target.map(|t| (t.claim)(&node.op, &types));
        let has_kernel = matches!(claim, None | Some(Claim::Yes { .. }));
        if self.dtype != DType::BF16 || p.quantized || !has_kernel {
            return Ok(None);
        }
        let mut operands = node.operands.to_vec();
        for v in &mut operands {
            if [roles.w, roles.r].contains(v) {
                *v = self.weights(*v)?;
            }
        }
        Ok(Some(self.graph.push(node.op.clone(), &operands)?.to_vec()))
    }

    /// Attention over queries, keys and values of the narrower type.
    fn attention(&mut self, node: &Node) -> Result<Replaced, IrError> {
        let inputs = &node.operands[..3];
        let is_wide = |v: &ValueId| self.graph.dtype(*v) == DType::F32;
        let mut types: Vec<TensorType> =
            (node.operands.iter().map(|v| self.graph.tensor(*v))).collect();
        for ty in &mut types[..3] {
            ty.dtype = self.dtype;
        }
        let types: Vec<&TensorType> = types.iter().collect();
        let claim = self.target.map(|t| (t.claim)(&node.op, &types));
        let has_kernel = matches!(claim, None | Some(Claim::Yes { .. }));
        if !self.narrows_activations() || !has_kernel || !inputs.iter().all(is_wide) {
            return Ok(None);
        }
        self.graph.set_origin(node.origins.first().cloned());
        let mut operands = node.operands.to_vec();
        for v in &mut operands[..3] {
            *v = self.narrow(*v)?;
        }
        let result = self.graph.one(node.op.clone(), &operands)?;
        self.floats.insert(node.results[0], result);
        Ok(Some(vec![self.graph.cast(result, DType::F32)?]))
    }

    /// An activation in the narrower type. What is only another view of a value is taken of the narrower value, which the kernel
    /// that computes the value can write.
    fn narrow(&mut self, value: ValueId) -> Result<ValueId, IrError> {
        if let Some(known) = self.floats.get(&value) {
            return Ok(*known);
        }
        let node = self.graph.def(value);
        let narrow = match (&node.op, &node.operands[..]) {
            (Op::Core(op @ (CoreOp::Reshape(_) | CoreOp::Permute(_))), [x]) => {
                let (op, x) = (op.clone(), *x);
                let x = self.narrow(x)?;
                self.graph.one(op, &[x])?
            }
            _ => self.graph.cast(value, self.dtype)?,
        };
        self.floats.insert(value, narrow);
        Ok(narrow)
    }

    /// Which operand of a product of f32 holds the weights.
    fn weight_side(&self, node: &Node) -> Option<usize> {
        let sides: &[usize] = match &node.op {
            Op::Core(CoreOp::Contract(p)) if p.out == DType::F32 => &[1, 0],
            Op::Composite(CompositeOp::Conv(_) | CompositeOp::ConvChannelsLast(_)) => &[1],
            _ => return None,
        };
        let [a, b] = node.operands[..] else {
            return None;
        };
        if [a, b].iter().any(|v| self.graph.dtype(*v) != DType::F32) {
            return None;
        }
        let [a, b] = [a, b].map(|v| self.is_constant(v));
        let is_weight = |side: &usize| [a && !b, b && !a][*side];
        sides.iter().copied().find(is_weight)
    }

    /// Whether a value is a view of a constant that is worth converting.
    fn is_constant(&self, value: ValueId) -> bool {
        match self.graph.as_const(value) {
            Some(t) => t.len() >= MIN_WEIGHTS,
            None => {
                let node = self.graph.def(value);
                matches!(node.op.class(), OpClass::View)
                    && node.operands.iter().all(|v| self.is_constant(*v))
            }
        }
    }

    /// The weights in the narrower type.
    fn weights(&mut self, value: ValueId) -> Result<ValueId, IrError> {
        if let Some(known) = self.constants.get(&value) {
            return Ok(*known);
        }
        let narrow = match self.graph.as_const(value) {
            Some(t) => {
                let narrow = convert::cast(t, self.dtype, true);
                let narrow = narrow.map_err(|what| IrError::op("cast", what))?;
                self.graph.constant(narrow)?
            }
            None => {
                let node = self.graph.def(value).clone();
                let operands = node.operands.iter().map(|v| self.weights(*v));
                let operands = operands.collect::<Result<Vec<_>, _>>()?;
                self.graph.one(node.op, &operands)?
            }
        };
        self.constants.insert(value, narrow);
        Ok(narrow)
    }

    /// The weights rounded to the narrower type, in f32: by the kernel that reads them (`converts`), or here.
    fn rounded(&mut self, value: ValueId, converts: bool) -> Result<ValueId, IrError> {
        let narrow = self.weights(value)?;
        if converts {
            return self.graph.cast(narrow, DType::F32);
        }
        match self.graph.as_const(narrow) {
            Some(t) => {
                let wide = convert::cast(t, DType::F32, true);
                let wide = wide.map_err(|what| IrError::op("cast", what))?;
                self.graph.constant(wide)
            }
            None => {
                let node = self.graph.def(value).clone();
                let operands = node.operands.iter().map(|v| self.rounded(*v, false));
                let operands = operands.collect::<Result<Vec<_>, _>>()?;
                self.graph.one(node.op, &operands)
            }
        }
    }

    /// A view of a constant as a constant of its own.
    fn constant_tensor(&self, value: ValueId) -> Result<Tensor, IrError> {
        if let Some(t) = self.graph.as_const(value) {
            return Ok(t.clone());
        }
        let node = self.graph.def(value);
        let operands = node.operands.iter().map(|v| self.constant_tensor(*v));
        let operands: Vec<Value> =
            (operands.map(|t| t.map(Value::Tensor))).collect::<Result<_, _>>()?;
        let refs: Vec<&Value> = operands.iter().collect();
        let types = [self.graph.ty(value).clone()];
        match eval_op(&node.op, &refs, &types, &mut Env::default())?.pop() {
            Some(Value::Tensor(t)) => Ok(t),
            _ => unreachable!("bug: a view of a tensor is a tensor"),
        }
    }

    /// Whether the device has a product of two operands of a node's shapes and other types.
    fn is_claimed(&self, op: &Op, dtypes: [DType; 2], node: &Node) -> bool {
        matches!(self.claim(op, dtypes, node), Some(Claim::Yes { .. })) || self.target.is_none()
    }

    /// Whether the device's kernel for a node converts operands as it reads them.
    fn converts(&self, node: &Node) -> bool {
        let claim = self.claim(&node.op, [DType::F32; 2], node);
        matches!(claim, Some(Claim::Yes { converts: true, .. }))
    }

    fn claim(&self, op: &Op, dtypes: [DType; 2], node: &Node) -> Option<Claim> {
        let types = node.operands.iter().zip(dtypes);
        let types = types.map(|(v, dtype)| TensorType {
            dtype,
            ..self.graph.tensor(*v)
        });
        let types: Vec<TensorType> = types.collect();
        let types: Vec<&TensorType> = types.iter().collect();
        Some((self.target?.claim)(op, &types))
    }
}
