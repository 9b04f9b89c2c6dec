//! Layers as other exporters write them: `Relu`, `BatchNormalization`, biases as an operand of `Gemm` and `Conv`.

use cupola_ir::{CompositeOp, CoreOp, DType, Dim, Graph, Node, Op, Scalar, ValueId};

use super::{Exporter, Result};
use crate::proto::NodeProto;
use crate::write::attribute;

impl Exporter<'_> {
    /// `max(x, 0)` as `Relu`; a sum with a bias as an operand of what it is added to; `(x - mean) / sqrt(var + epsilon)`, scaled
    /// and shifted or not, as `BatchNormalization`.
    pub(super) fn layer(
        &mut self,
        graph: &Graph,
        node: &Node,
        f: Scalar,
        operands: &[&str],
    ) -> Result<Option<String>> {
        let [lhs, rhs] = node.operands[..] else {
            return Ok(None);
        };
        if !is_float(graph.dtype(lhs)) {
            return Ok(None);
        }
        Ok(match f {
            Scalar::Max if is_zero(graph, rhs) => Some(self.emit("Relu", &operands[..1], &[])),
            Scalar::Max if is_zero(graph, lhs) => Some(self.emit("Relu", &operands[1..], &[])),
            Scalar::Mul => match normalised(graph, node.results[0]) {
                Some(found) => Some(self.batch_norm(graph, &found)?),
                None => None,
            },
            Scalar::Add => match affine(graph, node.results[0]) {
                Some(found) => Some(self.batch_norm(graph, &found)?),
                None => {
                    let first = self.biased(graph, lhs, rhs);
                    first.or_else(|| self.biased(graph, rhs, lhs))
                }
            },
            _ => None,
        })
    }

    /// The operator in its form for inference. What is no operand of the layer is 1 or 0 for each channel.
    fn batch_norm(&mut self, graph: &Graph, found: &BatchNorm) -> Result<String> {
        let name = |v: ValueId| self.value(v).to_owned();
        let (x, mean, var) = (name(found.x), name(found.mean), name(found.var));
        let [scale, bias] = match found.affine {
            Some(affine) => affine.map(name),
            None => {
                let dims = graph.dims(found.mean);
                let mut plain = [String::new(), String::new()];
                for (value, made) in [1.0, 0.0].into_iter().zip(&mut plain) {
                    let number = self.number(value, graph.dtype(found.mean))?;
                    *made = self.expand(&number, &dims)?;
                }
                plain
            }
        };
        let epsilon = [attribute("epsilon", found.epsilon as f32)];
        let operands: [&str; 5] = [&x, &scale, &bias, &mean, &var];
        Ok(self.emit("BatchNormalization", &operands, &epsilon))
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
}

/// A value that is normalised along its second axis by given statistics.
struct BatchNorm {
    x: ValueId,
    mean: ValueId,
    var: ValueId,
    epsilon: f64,
    /// Scale and shift.
    affine: Option<[ValueId; 2]>,
}

/// `normalised * scale + bias`.
fn affine(graph: &Graph, v: ValueId) -> Option<BatchNorm> {
    let dims = graph.dims(v);
    let find = |[product, bias]: [ValueId; 2]| {
        let bias = vector_along(graph, bias, &dims)?;
        let scaled = |[y, scale]: [ValueId; 2]| {
            let scale = vector_along(graph, scale, &dims)?;
            let found = normalised(graph, y)?;
            let affine = Some([scale, bias]);
            Some(BatchNorm { affine, ..found })
        };
        orders(graph, product, Scalar::Mul)?
            .into_iter()
            .find_map(scaled)
    };
    orders(graph, v, Scalar::Add)?.into_iter().find_map(find)
}

/// `(x - mean) / sqrt(var + epsilon)`, in f32: the operator's epsilon is one.
fn normalised(graph: &Graph, v: ValueId) -> Option<BatchNorm> {
    let dims = graph.dims(v);
    let find = |[centred, inverse]: [ValueId; 2]| {
        let [[x, mean], _] = orders(graph, centred, Scalar::Sub)?;
        let mean = vector_along(graph, mean, &dims)?;
        let root = map_of(graph, along_channels(graph, inverse, &dims)?, Scalar::Rsqrt)?[0];
        let sum = |[var, epsilon]: [ValueId; 2]| {
            let var = unrepeated(graph, var);
            let epsilon = number_of(graph, epsilon)?;
            let fits = graph.dims(var) == dims[1..2];
            fits.then_some(BatchNorm {
                x,
                mean,
                var,
                epsilon,
                affine: None,
            })
        };
        orders(graph, root, Scalar::Add)?.into_iter().find_map(sum)
    };
    let is_single = graph.dtype(v) == DType::F32 && dims.len() >= 2;
    let found = orders(graph, v, Scalar::Mul).filter(|_| is_single)?;
    found.into_iter().find_map(find)
}

/// The operands of the scalar function that makes a value.
fn map_of(graph: &Graph, v: ValueId, f: Scalar) -> Option<&[ValueId]> {
    match graph.op_of(v) {
        Op::Core(CoreOp::Map(p)) if p.f == f => Some(&graph.def(v).operands),
        _ => None,
    }
}

/// Both orders of the two operands of a function.
fn orders(graph: &Graph, v: ValueId, f: Scalar) -> Option<[[ValueId; 2]; 2]> {
    let &[a, b] = map_of(graph, v, f)? else {
        return None;
    };
    Some([[a, b], [b, a]])
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

/// The one number that a constant value has throughout.
fn number_of(graph: &Graph, v: ValueId) -> Option<f64> {
    let one = graph.as_const(unrepeated(graph, v));
    let one = one.filter(|t| t.shape().iter().product::<usize>() == 1)?;
    cupola_ir::convert::lanes(one)?.into_f64s().first().copied()
}

/// Whether a value is the constant 0 throughout.
pub(super) fn is_zero(graph: &Graph, v: ValueId) -> bool {
    number_of(graph, v) == Some(0.0)
}

/// The vector that `bias` repeats along the second of these axes.
fn vector_along(graph: &Graph, bias: ValueId, dims: &[Dim]) -> Option<ValueId> {
    let vector = along_channels(graph, bias, dims)?;
    (graph.dims(vector) == dims[1..2]).then_some(vector)
}

/// What `bias` repeats along the second of these axes, under views that only add and remove axes of extent 1.
fn along_channels(graph: &Graph, mut bias: ValueId, dims: &[Dim]) -> Option<ValueId> {
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
    Some(bias)
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
