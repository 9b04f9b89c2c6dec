//! Recurrent layers with constant weights as `RNN`, `GRU` and `LSTM`, both directions of a layer as one operator.

use cupola_ir::composite::{Cell, Recurrent, Roles};
use cupola_ir::{CompositeOp, CoreOp, DType, Graph, Node, Op, Tensor, ValueId, eval};

use super::layers::is_zero;
use super::{Exporter, Result};
use crate::proto::AttributeProto;
use crate::write::{AttributeValue, attribute};

/// Views that a weight may be behind. More are nothing that a layer makes.
const MOST_VIEWS: usize = 16;

impl Exporter<'_> {
    /// A recurrent layer with constant weights as its operator, where that has its types and activations: with the layer over the
    /// same steps in the other direction, where there is one that differs in its weights alone.
    pub(super) fn recurrent(
        &mut self,
        graph: &Graph,
        node: &Node,
        p: &Recurrent,
    ) -> Result<Option<Vec<String>>> {
        // It may be written already, with the other direction.
        if let Some(made) = self.directions.remove(&node.results[0]) {
            return Ok(Some(made));
        }
        let other = self.other_direction(graph, node, p);
        let Some(attributes) = attributes_of(graph, node, p, other.is_some()) else {
            return Ok(None);
        };
        let layers: Vec<&Node> = match other {
            Some(other) if p.reverse => vec![other, node],
            Some(other) => vec![node, other],
            None => vec![node],
        };
        let roles = layers.iter().map(|n| p.roles(&n.operands).ok());
        let Some(roles) = roles.collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        let each = |role: &dyn Fn(&Roles<ValueId>) -> Option<ValueId>| -> Vec<ValueId> {
            roles.iter().filter_map(role).collect()
        };
        let state = |v: ValueId| (!is_zero(graph, v)).then_some(v);
        let mut inputs = vec![self.value(roles[0].x).to_owned()];
        inputs.push(self.of_directions(graph, &each(&|r| Some(r.w))));
        inputs.push(self.of_directions(graph, &each(&|r| Some(r.r))));
        inputs.push(self.of_directions(graph, &each(&|r| r.b)));
        inputs.push(match roles[0].lens {
            Some(v) => {
                let name = self.value(v).to_owned();
                self.cast(&name, graph.dtype(v), DType::I32)?
            }
            None => String::new(),
        });
        inputs.push(self.of_directions(graph, &each(&|r| state(r.h))));
        inputs.push(self.of_directions(graph, &each(&|r| r.c.and_then(state))));
        inputs.push(self.of_directions(graph, &each(&|r| r.p)));
        let given = inputs.iter().rposition(|i| !i.is_empty()).unwrap_or(0) + 1;
        let inputs: Vec<&str> = inputs[..given].iter().map(String::as_str).collect();
        let op = match p.cell {
            Cell::Rnn => "RNN",
            Cell::Gru => "GRU",
            Cell::Lstm => "LSTM",
        };
        let results = self.emit_list(op, &inputs, &attributes, node.results.len());
        if layers.len() == 1 {
            let each = results.iter().enumerate().map(|(at, result)| {
                let axes = self.ints(&[direction_axis(at)]);
                self.emit("Squeeze", &[result, &axes], &[])
            });
            return Ok(Some(each.collect()));
        }
        Ok(Some(self.both_directions(&results, &layers, p.reverse)?))
    }

    /// The results of one direction of an operator of both; those of the other, and what both together are, are kept.
    fn both_directions(
        &mut self,
        results: &[String],
        layers: &[&Node],
        reverse: bool,
    ) -> Result<Vec<String>> {
        let mut halves = [vec![], vec![]];
        for (direction, half) in halves.iter_mut().enumerate() {
            for (at, result) in results.iter().enumerate() {
                let index = self.number(direction as f64, DType::I64)?;
                let axis = [attribute("axis", direction_axis(at))];
                half.push(self.emit("Gather", &[result, &index], &axis));
            }
        }
        let pair = [halves[0][0].clone(), halves[1][0].clone()];
        self.joined.insert(pair, results[0].clone());
        let [forward, back] = halves;
        let (own, other) = match reverse {
            true => (back, forward),
            false => (forward, back),
        };
        let at = usize::from(!reverse);
        self.directions.insert(layers[at].results[0], other);
        Ok(own)
    }

    /// `[steps, batch, 2 * hidden]` of both directions' states, where that is what is joined.
    pub(super) fn joined_directions(&mut self, operands: &[&str], axis: usize) -> Option<String> {
        let [forward, back] = operands else {
            return None;
        };
        let pair = [(*forward).to_owned(), (*back).to_owned()];
        let both = self.joined.get(&pair).filter(|_| axis == 2)?.clone();
        let moved = self.permute(&both, &[0, 2, 1, 3]);
        // A 0 stands for the operand's extent.
        let shape = self.ints(&[0, 0, -1]);
        Some(self.emit("Reshape", &[&moved, &shape], &[]))
    }

    /// The layer that differs from `node` in direction and weights alone, and is not written yet. Its operands may be made later,
    /// so they must be constants.
    fn other_direction<'g>(
        &self,
        graph: &'g Graph,
        node: &Node,
        p: &Recurrent,
    ) -> Option<&'g Node> {
        let own = p.roles(&node.operands).ok()?;
        let is_known = |v: Option<ValueId>| v.is_none_or(|v| self.folded(graph, v).is_some());
        let is_begin = |v: Option<ValueId>| v.is_none_or(|v| is_zero(graph, v));
        let is_constant = |r: &Roles<ValueId>| {
            let weights = [Some(r.w), Some(r.r), r.b, r.p];
            is_begin(Some(r.h)) && is_begin(r.c) && weights.into_iter().all(is_known)
        };
        let is_other = |n: &&Node| {
            let Op::Composite(CompositeOp::Recurrent(q)) = &n.op else {
                return false;
            };
            let turned = Recurrent {
                reverse: p.reverse,
                ..q.clone()
            };
            let fits = q.reverse != p.reverse
                && turned == *p
                && !self.values.contains_key(&n.results[0])
                && graph.dims(n.operands[1]) == graph.dims(own.w)
                && graph.dims(n.operands[2]) == graph.dims(own.r);
            let roles = q.roles(&n.operands).ok().filter(|_| fits);
            roles.is_some_and(|r| r.x == own.x && r.lens == own.lens && is_constant(&r))
        };
        let mut all = graph.nodes().map(|(_, n)| n);
        all.find(is_other).filter(|_| is_constant(&own))
    }

    /// Operands of all directions with an axis of directions before their own, as an initializer where they are known; nothing
    /// where there are none.
    fn of_directions(&mut self, graph: &Graph, operands: &[ValueId]) -> String {
        let Some(first) = operands.first() else {
            return String::new();
        };
        let known = operands.iter().map(|v| self.folded(graph, *v));
        if let Some(known) = known.collect::<Option<Vec<_>>>()
            && let Some((source, tensor)) = stacked(known)
        {
            let name = self.tensor(&source, &tensor);
            self.wishes.insert(name.clone(), source);
            return name;
        }
        let name = self.value(*first).to_owned();
        let axes = self.ints(&[0]);
        self.emit("Unsqueeze", &[&name, &axes], &[])
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

/// The axis of directions of a result of a recurrent operator.
fn direction_axis(result: usize) -> i64 {
    i64::from(result == 0)
}

/// Tensors of equal extents along a new first axis, and the name of the first.
fn stacked(tensors: Vec<(String, Tensor)>) -> Option<(String, Tensor)> {
    let count = tensors.len();
    let (source, first) = tensors.first()?;
    let shape = [&[count], first.shape()].concat();
    let bytes: Vec<u8> = (tensors.iter())
        .flat_map(|(_, t)| t.bytes().to_vec())
        .collect();
    let all = Tensor::new(first.dtype(), shape, bytes.into())?;
    Some((source.clone(), all))
}

/// The attributes of a recurrent operator; `None` where it has not what the layer is.
fn attributes_of(
    graph: &Graph,
    node: &Node,
    p: &Recurrent,
    is_both: bool,
) -> Option<Vec<AttributeProto>> {
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
    if is_both {
        attributes.push(attribute("direction", "bidirectional"));
    } else if p.reverse {
        attributes.push(attribute("direction", "reverse"));
    }
    if names != usual {
        let names = names.repeat(1 + usize::from(is_both));
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
