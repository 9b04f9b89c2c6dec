//! Composites: as the ONNX operator with the same meaning, or by their decomposition.

use cupola_ir::composite::{Attention, Conv, ConvTranspose, LayerNorm, Softmax};
use cupola_ir::{Class, CompositeOp, DType, Dim, Graph, IrError, Node, Op, Scalar};

use super::{Exporter, Result, unsupported};
use crate::proto::AttributeProto;
use crate::write::attribute;

impl Exporter<'_> {
    pub(super) fn composite(
        &mut self,
        graph: &Graph,
        node: &Node,
        op: &CompositeOp,
        operands: &[&str],
    ) -> Result<Vec<String>> {
        let own = match op {
            CompositeOp::Softmax(p) => {
                let op = if p.log { "LogSoftmax" } else { "Softmax" };
                Some((op, vec![attribute("axis", p.axis as i64)]))
            }
            CompositeOp::Gelu(p) => {
                let approximate = if p.tanh { "tanh" } else { "none" };
                Some(("Gelu", vec![attribute("approximate", approximate)]))
            }
            CompositeOp::LayerNorm(p) => layer_norm(graph, node, p),
            CompositeOp::Conv(p) => conv(graph, node, p),
            CompositeOp::ConvTranspose(p) => conv_transpose(graph, node, p),
            CompositeOp::Recurrent(p) => match self.recurrent(graph, node, p)? {
                Some(results) => return Ok(results),
                None => None,
            },
            _ => None,
        };
        if let Some((op, attributes)) = own {
            return Ok(self.emit_list(op, operands, &attributes, node.results.len()));
        }
        let kinds: Vec<_> = node
            .operands
            .iter()
            .map(|&operand| graph.ty(operand))
            .collect();
        let body = match op {
            CompositeOp::Attention(p) => attention(graph, node, p).ok().flatten(),
            _ => None,
        };
        let body = match body {
            Some(body) => body,
            None => (op.expand(&kinds).map_err(|_| unsupported(node.op.name()))?).0,
        };
        let names: Vec<String> = operands.iter().map(|&name| name.to_owned()).collect();
        self.inline(&body, &names, false)
    }
}

/// An operator and its attributes.
type Own = Option<(&'static str, Vec<AttributeProto>)>;

/// ONNX wants scale and bias to have exactly the normalised extents, and computes in f32.
fn layer_norm(graph: &Graph, node: &Node, p: &LayerNorm) -> Own {
    let x = graph.tensor(node.operands[0]);
    let affine = &node.operands[1..];
    let fits = affine.iter().all(|&operand| {
        let operand = graph.tensor(operand);
        operand.dtype == x.dtype && operand.dims == x.dims[p.axis..]
    });
    let float = x.dtype.class() == Class::Float && x.dtype != DType::F64;
    (fits && float && !affine.is_empty()).then(|| {
        let attributes = vec![
            attribute("axis", p.axis as i64),
            attribute("epsilon", p.epsilon as f32),
        ];
        ("LayerNormalization", attributes)
    })
}

/// Attention in the operators that other exporters write and runtimes look for, with a softmax in one: where every query sees a
/// key, as ONNX's softmax of nothing is no number.
fn attention(
    graph: &Graph,
    node: &Node,
    p: &Attention,
) -> std::result::Result<Option<Graph>, IrError> {
    let &[q, k, v] = &node.operands[..] else {
        return Ok(None);
    };
    let (queries, keys) = (graph.dims(q), graph.dims(k));
    let is_square = queries[2] == keys[2];
    if p.softcap != 0.0 || queries[1] != keys[1] || (p.causal && !is_square) || keys[2].is(0) {
        return Ok(None);
    }
    let mut g = Graph::new("attention");
    let mut inputs = [q, k, v];
    for (name, v) in ["q", "k", "v"].into_iter().zip(&mut inputs) {
        let own = g.input(name, graph.tensor(*v))?;
        *v = g.widen(own)?;
    }
    let [q, k, v] = inputs;
    let scores = g.matmul_nt(q, k)?;
    let mut scores = g.scale(scores, p.scale)?;
    if p.causal {
        let plane = g.dims(scores)[2..].to_vec();
        let row = g.iota(DType::I64, &plane, 0)?;
        let column = g.iota(DType::I64, &plane, 1)?;
        let seen = g.binary(Scalar::Le, column, row)?;
        let low = g.number_like(f64::NEG_INFINITY, scores)?;
        scores = g.select(seen, scores, low)?;
    }
    let softmax = Softmax {
        axis: 3,
        log: false,
    };
    let weights = g.one(Op::Composite(softmax.into()), &[scores])?;
    let y = g.matmul(weights, v)?;
    let y = g.cast(y, graph.dtype(node.results[0]))?;
    g.output("y", y);
    Ok(Some(g))
}

fn conv(graph: &Graph, node: &Node, p: &Conv) -> Own {
    let low = constants(&p.pads_low)?;
    let high = constants(&p.pads_high)?;
    let attributes = vec![
        attribute("strides", p.strides.clone()),
        attribute("dilations", p.dilations.clone()),
        attribute("pads", [low, high].concat()),
        attribute("group", p.groups as i64),
    ];
    is_float(graph, node).then_some(("Conv", attributes))
}

/// ONNX cuts the same or less at the end than would be whole, or adds less than a stride.
fn conv_transpose(graph: &Graph, node: &Node, p: &ConvTranspose) -> Own {
    let x = constants(&graph.dims(node.operands[0])[2..])?;
    let kernel = constants(&graph.dims(node.operands[1])[2..])?;
    let low = constants(&p.pads_low)?;
    let spatial = constants(&p.spatial)?;
    let mut high = Vec::new();
    let mut extra = Vec::new();
    for axis in 0..spatial.len() {
        let span = (kernel[axis] - 1) * p.dilations[axis] + 1;
        let whole = (x[axis] - 1) * p.strides[axis] + span;
        let cut = whole - spatial[axis] - low[axis];
        high.push(cut.max(0));
        extra.push((-cut).max(0));
    }
    let allowed = low.iter().all(|&low| low >= 0)
        && extra
            .iter()
            .zip(&p.strides)
            .all(|(extra, stride)| extra < stride);
    let attributes = vec![
        attribute("strides", p.strides.clone()),
        attribute("dilations", p.dilations.clone()),
        attribute("pads", [low, high].concat()),
        attribute("output_padding", extra),
        attribute("group", p.groups as i64),
    ];
    (allowed && is_float(graph, node)).then_some(("ConvTranspose", attributes))
}

fn is_float(graph: &Graph, node: &Node) -> bool {
    let floats = [DType::F16, DType::BF16, DType::F32, DType::F64];
    node.operands
        .iter()
        .all(|&operand| floats.contains(&graph.dtype(operand)))
}

fn constants(dims: &[Dim]) -> Option<Vec<i64>> {
    dims.iter().map(Dim::as_const).collect()
}
