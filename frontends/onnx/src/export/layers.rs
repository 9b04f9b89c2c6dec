//! Layers as other exporters write them: `Relu`, biases as an operand of `Gemm` and `Conv`, recurrent layers with constant weights.

use cupola_ir::composite::{Cell, Recurrent};
use cupola_ir::{CompositeOp, CoreOp, DType, Dim, Graph, Node, Op, Scalar, Tensor, ValueId, eval};

use super::{Exporter, Result};
use crate::proto::{AttributeProto, NodeProto};
use crate::write::{AttributeValue, attribute};

/// Views that a weight may be behind. More are nothing that a layer makes.
const MOST_VIEWS: usize = 16;

impl Exporter<'_> {
    /// `max(x, 0)` as `Relu`; a sum with a bias as an operand of what it is added to.
    pub(super) fn layer(
        &mut self,
        graph: &Graph,
        node: &Node,
        f: Scalar,
        operands: &[&str],
    ) -> Option<String> {
        let [lhs, rhs] = node.operands[..] else {
            return None;
        };
        if !is_float(graph.dtype(lhs)) {
            return None;
        }
        match f {
            Scalar::Max if is_zero(graph, rhs) => Some(self.emit("Relu", &operands[..1], &[])),
            Scalar::Max if is_zero(graph, lhs) => Some(self.emit("Relu", &operands[1..], &[])),
            Scalar::Add => {
                let first = self.biased(graph, lhs, rhs);
                first.or_else(|| self.biased(graph, rhs, lhs))
            }
            _ => None,
        }
    }

    /// Makes a bias along the second axis the third operand of the operator that made `sum`, where nothing else uses that.
    fn biased(&mut self, graph: &Graph, sum: ValueId, bias: ValueId) -> Option<String> {
        let is_product = match graph.op_of(sum) {
            Op::Composite(CompositeOp::Conv(_) | CompositeOp::ConvTranspose(_)) => false,
            Op::Core(CoreOp::Contract(_)) if graph.rank(sum) == 2 => true,
            _ => return None,
        };
        if self.uses.get(sum.index()) != Some(&1) {
            return None;
        }
        let bias = self.value(vector_along(graph, bias, &graph.dims(sum))?);
        // What a node makes may come after the operator.
        let is_tensor = self.initializers.iter().any(|t| t.name() == bias);
        let is_there = is_tensor || self.inputs.iter().any(|i| i.name() == bias);
        let made = self.value(sum);
        let at = maker(&self.nodes, made).filter(|_| is_there)?;
        let (bias, made) = (bias.to_owned(), made.to_owned());
        match (self.nodes[at].op_type(), is_product) {
            ("Conv" | "ConvTranspose", false) if self.nodes[at].input.len() == 2 => {
                self.nodes[at].input.push(bias);
            }
            ("MatMul", true) => {
                let (mut inputs, mut attributes) = (vec![], vec![]);
                for (input, name) in self.nodes[at].input.iter().zip(["transA", "transB"]) {
                    inputs.push(match transposed(&self.nodes, input) {
                        Some(source) => {
                            attributes.push(attribute(name, 1));
                            source
                        }
                        None => input.clone(),
                    });
                }
                inputs.push(bias);
                let node = &mut self.nodes[at];
                node.op_type = Some("Gemm".into());
                (node.input, node.attribute) = (inputs, attributes);
            }
            _ => return None,
        }
        Some(made)
    }

    /// A recurrent layer of one direction as its operator, where that has its types and activations.
    pub(super) fn recurrent(
        &mut self,
        graph: &Graph,
        node: &Node,
        p: &Recurrent,
        operands: &[&str],
    ) -> Result<Option<Vec<String>>> {
        let Some(attributes) = attributes_of(graph, node, p) else {
            return Ok(None);
        };
        let mut rest = node.operands.iter().copied().zip(operands).skip(1);
        let mut next = |given: bool| if given { rest.next() } else { None };
        let (w, r, h) = (next(true), next(true), next(true));
        let c = next(p.cell == Cell::Lstm);
        let (b, lens, peephole) = (next(p.bias), next(p.lens), next(p.peephole));
        let mut inputs = vec![operands[0].to_owned()];
        for weight in [w, r, b] {
            inputs.push(self.of_direction(graph, weight));
        }
        inputs.push(match lens {
            Some((v, name)) => self.cast(name, graph.dtype(v), DType::I32)?,
            None => String::new(),
        });
        for state in [h, c] {
            let state = state.filter(|(v, _)| !is_zero(graph, *v));
            inputs.push(self.of_direction(graph, state));
        }
        inputs.push(self.of_direction(graph, peephole));
        let given = inputs.iter().rposition(|i| !i.is_empty()).unwrap_or(0) + 1;
        let inputs: Vec<&str> = inputs[..given].iter().map(String::as_str).collect();
        let op = match p.cell {
            Cell::Rnn => "RNN",
            Cell::Gru => "GRU",
            Cell::Lstm => "LSTM",
        };
        let results = self.emit_list(op, &inputs, &attributes, node.results.len());
        let each = results.iter().enumerate().map(|(at, result)| {
            // The axis of directions.
            let axes = self.ints(&[i64::from(at == 0)]);
            self.emit("Squeeze", &[result, &axes], &[])
        });
        Ok(Some(each.collect()))
    }

    /// An operand with an axis of directions before its own, as an initializer where it is known; nothing where it is none.
    fn of_direction(&mut self, graph: &Graph, operand: Option<(ValueId, &&str)>) -> String {
        let Some((v, name)) = operand else {
            return String::new();
        };
        if let Some((source, tensor)) = self.folded(graph, v) {
            let shape = [&[1], tensor.shape()].concat();
            if let Some(tensor) = tensor.reshaped(shape) {
                let name = self.tensor(&source, &tensor);
                self.wishes.insert(name.clone(), source);
                return name;
            }
        }
        let axes = self.ints(&[0]);
        self.emit("Unsqueeze", &[name, &axes], &[])
    }

    /// What is made of constants by moving elements, and the name of the first of them.
    fn folded(&self, graph: &Graph, v: ValueId) -> Option<(String, Tensor)> {
        let (mut views, mut source) = (Graph::new("views"), None);
        let copy = self.copied(graph, v, &mut views, &mut source, MOST_VIEWS)?;
        views.output("value", copy);
        let found = eval::run(&views, &[], &mut eval::Env::default()).ok()?;
        Some((source?, found.first()?.as_tensor()?.clone()))
    }

    fn copied(
        &self,
        graph: &Graph,
        v: ValueId,
        to: &mut Graph,
        source: &mut Option<String>,
        depth: usize,
    ) -> Option<ValueId> {
        let node = graph.def(v);
        let (name, tensor) = match &node.op {
            Op::Core(CoreOp::Const(p)) => {
                let name = graph.value(v).name.as_deref().unwrap_or("constant");
                (name.to_owned(), p.value.clone())
            }
            Op::Core(CoreOp::Param(p)) => (p.name.clone(), (self.weights)(&p.name)?),
            Op::Core(
                CoreOp::Reshape(_) | CoreOp::Permute(_) | CoreOp::Slice(_) | CoreOp::Concat(_),
            ) if depth > 0 => {
                let mut operands = vec![];
                for operand in &node.operands {
                    operands.push(self.copied(graph, *operand, to, source, depth - 1)?);
                }
                return to.push(node.op.clone(), &operands).ok()?.first().copied();
            }
            _ => return None,
        };
        source.get_or_insert(name);
        to.constant(tensor).ok()
    }
}

/// The attributes of a recurrent operator; `None` where it has not what the layer is.
fn attributes_of(graph: &Graph, node: &Node, p: &Recurrent) -> Option<Vec<AttributeProto>> {
    let dtype = graph.dtype(node.operands[0]);
    let alike = |v: &ValueId| graph.dtype(*v) == dtype || graph.dtype(*v) == DType::I64;
    let has_type = matches!(dtype, DType::F16 | DType::F32 | DType::F64);
    if p.quantized || !has_type || !node.operands.iter().all(alike) {
        return None;
    }
    let hidden = graph.dim(node.operands[2], 1).as_const()?;
    let names = p.activations.iter().map(|name| match name.as_str() {
        "sigmoid" => Some("Sigmoid"),
        "tanh" => Some("Tanh"),
        "relu" => Some("Relu"),
        _ => None,
    });
    let names: Vec<&str> = names.collect::<Option<_>>()?;
    let usual: &[&str] = match p.cell {
        Cell::Rnn => &["Tanh"],
        Cell::Gru => &["Sigmoid", "Tanh"],
        Cell::Lstm => &["Sigmoid", "Tanh", "Tanh"],
    };
    let mut attributes = vec![attribute("hidden_size", hidden)];
    if p.reverse {
        attributes.push(attribute("direction", "reverse"));
    }
    if names != usual {
        let names = names.into_iter().map(|n| n.as_bytes().to_vec().into());
        let names = AttributeValue::Strings(names.collect());
        attributes.push(attribute("activations", names));
    }
    if p.clip > 0.0 {
        attributes.push(attribute("clip", p.clip as f32));
    }
    if p.input_forget {
        attributes.push(attribute("input_forget", 1));
    }
    if p.linear_before_reset {
        attributes.push(attribute("linear_before_reset", 1));
    }
    Some(attributes)
}

/// Floats that all of these operators take.
fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
}

/// The operand under views that neither move nor leave out elements, but may repeat them.
fn unrepeated(graph: &Graph, mut v: ValueId) -> ValueId {
    while let Op::Core(CoreOp::Broadcast(_) | CoreOp::Reshape(_)) = graph.op_of(v) {
        v = graph.def(v).operands[0];
    }
    v
}

/// Whether a value is the constant 0 throughout.
fn is_zero(graph: &Graph, v: ValueId) -> bool {
    let zero = graph.as_const(unrepeated(graph, v));
    let zero = zero.filter(|t| t.shape().iter().product::<usize>() == 1);
    let number = zero.and_then(cupola_ir::convert::lanes);
    number.is_some_and(|n| n.into_f64s() == [0.0])
}

/// The vector that `bias` repeats along the second of these axes.
fn vector_along(graph: &Graph, mut bias: ValueId, dims: &[Dim]) -> Option<ValueId> {
    while let Op::Core(CoreOp::Broadcast(_)) = graph.op_of(bias) {
        bias = graph.def(bias).operands[0];
    }
    let own = graph.dims(bias);
    let mut each = own.iter().zip(dims).enumerate();
    let fits = each.all(|(axis, (own, all))| if axis == 1 { own == all } else { own.is(1) });
    if own.len() != dims.len() || own.len() < 2 || !fits {
        return None;
    }
    while let Op::Core(CoreOp::Reshape(_)) = graph.op_of(bias) {
        bias = graph.def(bias).operands[0];
    }
    (graph.dims(bias) == dims[1..2]).then_some(bias)
}

/// The node that makes a value.
fn maker(nodes: &[NodeProto], name: &str) -> Option<usize> {
    nodes
        .iter()
        .rposition(|n| n.output.iter().any(|o| o == name))
}

/// What a value is the transposed matrix of.
fn transposed(nodes: &[NodeProto], name: &str) -> Option<String> {
    let node = &nodes[maker(nodes, name)?];
    let is_swap = node.attribute.iter().any(|a| a.ints == [1, 0]);
    (node.op_type() == "Transpose" && is_swap).then(|| node.input[0].clone())
}
