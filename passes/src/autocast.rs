//! Autocast: products in a narrower float type, functions that need range or precision in f32, everything else in the type of
//! its operands.
//!
//! The classes are those of PyTorch for GPUs, on every device. Works on a graph before the pipeline, on composites and core ops,
//! and before differentiation: gradients then follow the types of the forward pass, and those of f32 weights are f32. Numbers
//! written into the graph take the type of what they meet, as Python's numbers do; a bias takes the type of the product that it
//! is added to, as in a linear layer. A value is converted once, however often it is used. f64 and integers are left alone.

use crate::{PassError, Result};
use cupola_ir::composite::CompositeOp;
use cupola_ir::ops::{Contract, CoreOp, ReduceKind};
use cupola_ir::{
    DType, Graph, IrError, Node, NodeId, Op, OpClass, Scalar, TensorType, ValueId, ValueType,
};
use rustc_hash::{FxHashMap, FxHashSet};

/// Rewrites a graph so that products are computed in `dtype` (bf16 or f16). Gives what stands for each of the values that the
/// graph had; its outputs and states keep their types. Regions keep their types, so what is in them stays f32. Effects may then
/// stand before what they take: [`Graph::compact`] restores the order.
///
/// # Errors
/// [`PassError::Options`] for other types; a graph that is invalid.
pub fn autocast(graph: &mut Graph, dtype: DType) -> Result<Vec<ValueId>> {
    if !matches!(dtype, DType::BF16 | DType::F16) {
        let what = format!("autocast computes in bf16 or f16, not in {dtype}");
        return Err(PassError::Options(what));
    }
    let mut cast = Autocast {
        map: (0..graph.value_count() as u32).map(ValueId).collect(),
        graph,
        dtype,
        casts: FxHashMap::default(),
        products: FxHashSet::default(),
    };
    cast.run().map_err(|error| PassError::Graph {
        pass: "autocast",
        error,
    })?;
    Ok(cast.map)
}

/// In what type an op computes.
enum Kind {
    /// In the narrower one.
    Low,
    /// By weights in the narrower one, the rest in f32.
    Weights,
    /// In f32.
    High,
    /// In the type of its operands, of different ones the widest.
    Same,
    /// As it stands in the graph.
    Fixed,
}

fn kind(op: &Op) -> Kind {
    match op {
        Op::Host(_) => Kind::Fixed,
        Op::Composite(op) => match op {
            CompositeOp::Conv(_)
            | CompositeOp::ConvChannelsLast(_)
            | CompositeOp::ConvTranspose(_)
            | CompositeOp::Attention(_) => Kind::Low,
            CompositeOp::Recurrent(p) if !p.quantized => Kind::Weights,
            CompositeOp::Softmax(_)
            | CompositeOp::LayerNorm(_)
            | CompositeOp::RmsNorm(_)
            | CompositeOp::CrossEntropy(_) => Kind::High,
            CompositeOp::Gelu(_) | CompositeOp::Swish(_) | CompositeOp::Swiglu(_) => Kind::Same,
            _ => Kind::Fixed,
        },
        Op::Core(op) => core_kind(op),
    }
}

fn core_kind(op: &CoreOp) -> Kind {
    use Scalar::*;
    match op {
        CoreOp::Contract(_) => Kind::Low,
        CoreOp::Map(p) => match p.f {
            Acos | Asin | Cosh | Exp | Expm1 | Log | Log1p | Pow | Recip | Rsqrt | Sinh | Tan => {
                Kind::High
            }
            _ => Kind::Same,
        },
        CoreOp::Reduce(p) => match p.kind {
            ReduceKind::Sum | ReduceKind::Prod => Kind::High,
            ReduceKind::Max | ReduceKind::Min => Kind::Same,
        },
        CoreOp::Reshape(_)
        | CoreOp::Permute(_)
        | CoreOp::Broadcast(_)
        | CoreOp::Slice(_)
        | CoreOp::Pad(_)
        | CoreOp::Concat(_)
        | CoreOp::Window(_)
        | CoreOp::Fold(_)
        | CoreOp::ArgReduce(_)
        | CoreOp::Gather(_)
        | CoreOp::Scatter(_)
        | CoreOp::Sort(_)
        | CoreOp::Cast(_) => Kind::Same,
        _ => Kind::Fixed,
    }
}

struct Autocast<'a> {
    graph: &'a mut Graph,
    dtype: DType,
    /// What stands for each value of the graph as it was.
    map: Vec<ValueId>,
    /// Values in other types.
    casts: FxHashMap<(ValueId, DType), ValueId>,
    /// New values that are products in the narrower type, or views of them.
    products: FxHashSet<ValueId>,
}

impl Autocast<'_> {
    fn run(&mut self) -> Result<(), IrError> {
        let nodes: Vec<NodeId> = self.graph.nodes().map(|(id, _)| id).collect();
        for id in nodes {
            let node = self.graph.node(id).clone();
            if !node.operands.is_empty() {
                self.graph.set_origin(node.origins.first().cloned());
                self.node(id, &node)?;
            }
        }
        self.graph.set_origin(None);
        for at in 0..self.graph.outputs().len() {
            let old = self.graph.outputs()[at].1;
            let new = self.as_before(old)?;
            self.graph.set_output(at, new);
        }
        Ok(())
    }

    fn node(&mut self, id: NodeId, node: &Node) -> Result<(), IrError> {
        let operands = match kind(&node.op) {
            Kind::Low => self.low(node)?,
            Kind::Weights => self.weights(node)?,
            Kind::High => self.all_to(node, DType::F32)?,
            Kind::Same => self.same(node)?,
            Kind::Fixed => {
                let all = node.operands.iter().map(|v| self.as_before(*v));
                all.collect::<Result<Vec<_>, _>>()?
            }
        };
        if operands[..] == node.operands[..] {
            return Ok(());
        }
        if node.op.class() == OpClass::Effect {
            // An effect happens once: the node itself takes the new operands.
            self.graph.node_mut(id).operands = operands.into();
            return Ok(());
        }
        let op = match &node.op {
            Op::Core(CoreOp::Contract(p)) if self.is_float(p.out) => Contract {
                out: self.dtype,
                ..p.clone()
            }
            .into(),
            op => op.clone(),
        };
        let results = self.graph.push(op, &operands)?;
        for (old, new) in node.results.iter().zip(results) {
            self.adopt(*old, new);
        }
        self.follow(node, &operands);
        Ok(())
    }

    /// Makes `new` stand for `old`, with its name and what is known of its extents.
    fn adopt(&mut self, old: ValueId, new: ValueId) {
        if let (Some(was), Some(is)) = (
            self.graph.ty(old).as_tensor(),
            self.graph.ty(new).as_tensor(),
        ) {
            let dims = was.dims.clone();
            let ty = TensorType {
                dtype: is.dtype,
                dims,
            };
            self.graph.refine(new, ValueType::Tensor(ty));
        }
        if let Some(name) = self.graph.value(old).name.clone() {
            self.graph.set_name(new, &name);
        }
        self.map[old.index()] = new;
    }

    /// Remembers products, their views, and their sums with a bias.
    fn follow(&mut self, node: &Node, operands: &[ValueId]) {
        let is_product = match &node.op {
            Op::Core(CoreOp::Contract(_)) => true,
            Op::Composite(op) => matches!(
                op,
                CompositeOp::Conv(_)
                    | CompositeOp::ConvChannelsLast(_)
                    | CompositeOp::ConvTranspose(_)
            ),
            op => op.class() == OpClass::View && self.products.contains(&operands[0]),
        };
        let result = self.map[node.results[0].index()];
        if is_product && self.graph.dtype(result) == self.dtype {
            self.products.insert(result);
        }
    }

    /// Whether values of this type are converted.
    fn is_float(&self, dtype: DType) -> bool {
        dtype == DType::F32 || dtype == self.dtype
    }

    /// The value in a type.
    fn to(&mut self, value: ValueId, dtype: DType) -> Result<ValueId, IrError> {
        if self.graph.dtype(value) == dtype {
            return Ok(value);
        }
        if let Some(known) = self.casts.get(&(value, dtype)) {
            return Ok(*known);
        }
        let cast = self.graph.cast(value, dtype)?;
        self.casts.insert((value, dtype), cast);
        Ok(cast)
    }

    /// What stands for an old value, in the type that it had.
    fn as_before(&mut self, old: ValueId) -> Result<ValueId, IrError> {
        let new = self.map[old.index()];
        match self.graph.ty(old).as_tensor().map(|t| t.dtype) {
            Some(dtype) => self.to(new, dtype),
            None => Ok(new),
        }
    }

    /// The new operands of a node, in `dtype` where they are floats that are converted.
    fn all_to(&mut self, node: &Node, dtype: DType) -> Result<Vec<ValueId>, IrError> {
        let mut all = vec![];
        for old in &node.operands {
            let new = self.map[old.index()];
            let is_tensor = self.graph.ty(new).as_tensor().is_some();
            all.push(match is_tensor && self.is_float(self.graph.dtype(new)) {
                true => self.to(new, dtype)?,
                false => new,
            });
        }
        Ok(all)
    }

    fn low(&mut self, node: &Node) -> Result<Vec<ValueId>, IrError> {
        // A product that is not of two floats of these types is none of ours.
        let factors = node.operands.iter().take(2);
        let ours = factors
            .copied()
            .all(|v| self.is_float(self.graph.dtype(self.map[v.index()])));
        if !ours {
            let all = node.operands.iter().map(|v| self.as_before(*v));
            return all.collect();
        }
        let mut all = self.all_to(node, self.dtype)?;
        if let Op::Composite(CompositeOp::Attention(_)) = node.op
            && let (Some(old), Some(mask)) = (node.operands.get(3), all.get_mut(3))
        {
            // What is added to the scores may be too large for the narrower type.
            *mask = self.map[old.index()];
        }
        Ok(all)
    }

    /// The operands of a recurrent layer: its states stay f32, what weights multiply is rounded by the layer itself.
    fn weights(&mut self, node: &Node) -> Result<Vec<ValueId>, IrError> {
        let mut all = self.all_to(node, DType::F32)?;
        for at in 1..3 {
            if let Some(w) = all
                .get(at)
                .copied()
                .filter(|w| self.graph.dtype(*w) == DType::F32)
            {
                all[at] = self.to(w, self.dtype)?;
            }
        }
        Ok(all)
    }

    /// The operands in one type: the narrower one if all that count have it, else f32.
    fn same(&mut self, node: &Node) -> Result<Vec<ValueId>, IrError> {
        if let Op::Core(CoreOp::Gather(_) | CoreOp::Cast(_)) = node.op {
            return Ok(node.operands.iter().map(|v| self.map[v.index()]).collect());
        }
        let added = matches!(&node.op, Op::Core(CoreOp::Map(p)) if p.f == Scalar::Add);
        let news: Vec<ValueId> = node.operands.iter().map(|v| self.map[v.index()]).collect();
        let product = news.iter().any(|v| self.products.contains(v));
        let mut wide = false;
        for v in &news {
            let is_float = self.graph.dtype(*v) == DType::F32;
            let weak =
                self.graph.as_uniform(*v).is_some() || added && product && self.is_weight(*v);
            wide |= is_float && !weak;
        }
        let low = news.iter().any(|v| self.graph.dtype(*v) == self.dtype);
        match (low, wide) {
            (false, _) => Ok(news),
            (true, true) => self.all_to(node, DType::F32),
            (true, false) => self.all_to(node, self.dtype),
        }
    }

    /// Whether a value is a view of a weight.
    fn is_weight(&self, value: ValueId) -> bool {
        let node = self.graph.def(value);
        match &node.op {
            Op::Core(CoreOp::ReadState(_) | CoreOp::Const(_) | CoreOp::Param(_)) => true,
            op if op.class() == OpClass::View => node.operands.iter().all(|v| self.is_weight(*v)),
            _ => false,
        }
    }
}
