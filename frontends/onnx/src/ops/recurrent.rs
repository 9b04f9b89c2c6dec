//! RNN, GRU and LSTM: one recurrent composite per direction.

use cupola_ir::composite::{Activation, Cell, Recurrent};
use cupola_ir::{DType, Dim, Op, ValueId};

use super::{OpRow, op, op_in};
use crate::context::NodeCx;
use crate::import_error::{OpResult, invalid};

pub(super) const OPS: &[OpRow] = &[
    op("RNN", 1, |cx| layer(cx, Cell::Rnn)),
    op("GRU", 1, |cx| layer(cx, Cell::Gru)),
    op("LSTM", 1, |cx| layer(cx, Cell::Lstm)),
    op_in("com.microsoft", "DynamicQuantizeLSTM", 1, quantized_lstm),
];

/// The activation of an ONNX name with its default parameters.
fn activation(name: &str) -> Option<(Activation, f64, f64)> {
    Some(match name.to_ascii_lowercase().as_str() {
        "sigmoid" => (Activation::Sigmoid, 0.0, 0.0),
        "tanh" => (Activation::Tanh, 0.0, 0.0),
        "relu" => (Activation::Relu, 0.0, 0.0),
        "affine" => (Activation::Affine, 1.0, 0.0),
        "leakyrelu" => (Activation::LeakyRelu, 0.01, 0.0),
        "thresholdedrelu" => (Activation::ThresholdedRelu, 1.0, 0.0),
        "scaledtanh" => (Activation::ScaledTanh, 1.0, 1.0),
        "hardsigmoid" => (Activation::HardSigmoid, 0.2, 0.5),
        "elu" => (Activation::Elu, 1.0, 0.0),
        "softsign" => (Activation::Softsign, 0.0, 0.0),
        "softplus" => (Activation::Softplus, 0.0, 0.0),
        _ => return None,
    })
}

/// How many of the two parameters the attribute lists hold for an activation.
fn parameters(a: Activation) -> (bool, bool) {
    match a {
        Activation::Affine | Activation::ScaledTanh | Activation::HardSigmoid => (true, true),
        Activation::LeakyRelu | Activation::ThresholdedRelu | Activation::Elu => (true, false),
        Activation::Sigmoid
        | Activation::Tanh
        | Activation::Relu
        | Activation::Softsign
        | Activation::Softplus => (false, false),
    }
}

/// Text names and parameters of the activations of all directions.
fn activations(
    cx: &NodeCx<'_, '_>,
    cell: Cell,
    directions: usize,
) -> OpResult<Vec<(Activation, f64, f64)>> {
    let per_direction: &[&str] = match cell {
        Cell::Rnn => &["Tanh"],
        Cell::Gru => &["Sigmoid", "Tanh"],
        Cell::Lstm => &["Sigmoid", "Tanh", "Tanh"],
    };
    let names = cx.texts_attr("activations")?;
    let default = || {
        per_direction
            .iter()
            .cycle()
            .take(per_direction.len() * directions)
    };
    let names = names.unwrap_or_else(|| default().map(|s| (*s).to_string()).collect());
    if names.len() != per_direction.len() * directions {
        return invalid(format!(
            "{} activations for {directions} directions",
            names.len()
        ));
    }
    let mut alpha = cx
        .floats_attr("activation_alpha")?
        .unwrap_or_default()
        .into_iter();
    let mut beta = cx
        .floats_attr("activation_beta")?
        .unwrap_or_default()
        .into_iter();
    let mut all = vec![];
    for name in names {
        let Some((f, a, b)) = activation(&name) else {
            return invalid(format!("activation '{name}'"));
        };
        let (takes_a, takes_b) = parameters(f);
        let a = if takes_a {
            alpha.next().unwrap_or(a)
        } else {
            a
        };
        let b = if takes_b { beta.next().unwrap_or(b) } else { b };
        all.push((f, a, b));
    }
    Ok(all)
}

/// Weights `[directions, input, 4 * hidden]` as integers, with scales and zero points as operands 8 to 11.
fn quantized_lstm(cx: &mut NodeCx<'_, '_>) -> OpResult {
    for i in 1..3 {
        let w = cx.input(i)?;
        if cx.g.rank(w) != 3 || !cx.g.dtype(w).is_int() {
            return cx.bad_type(w);
        }
        cx.inputs[i] = Some(cx.g.permute(w, &[0, 2, 1])?);
    }
    layer(cx, Cell::Lstm)
}

/// A scale or zero point of one direction, one per row of the weights.
fn per_row(cx: &mut NodeCx<'_, '_>, operand: usize, at: &Dim, rows: &Dim) -> OpResult<ValueId> {
    let v = cx.input(operand)?;
    if !(1..=2).contains(&cx.g.rank(v)) {
        return cx.bad_type(v);
    }
    let v = cx.g.pick(v, 0, at)?;
    Ok(cx.g.broadcast_to(v, std::slice::from_ref(rows))?)
}

/// Operands: X, W, R, B, sequence_lens, initial_h, and for LSTM initial_c, P. Results: Y, Y_h, Y_c.
fn layer(cx: &mut NodeCx<'_, '_>, cell: Cell) -> OpResult {
    let (mut x, w, r) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    if cx.g.rank(x) != 3 || cx.g.rank(w) != 3 || cx.g.rank(r) != 3 {
        return invalid("X, W and R must have 3 axes");
    }
    let batch_first = cx.flag("layout", false)?;
    if batch_first {
        x = cx.g.permute(x, &[1, 0, 2])?;
    }
    let direction = cx.text_or("direction", "forward")?;
    let reverse: &[bool] = match direction.as_str() {
        "forward" => &[false],
        "reverse" => &[true],
        "bidirectional" => &[false, true],
        other => return invalid(format!("direction '{other}'")),
    };
    let functions = activations(cx, cell, reverse.len())?;
    let hidden = cx.g.dim(r, 2);
    let batch = cx.g.dim(x, 1);
    // Until opset 7 `output_sequence` and a per-gate clip existed; clip alone remains.
    let clip = cx.float_or("clip", 0.0)?;
    let lens = match cx.optional(4) {
        Some(l) => Some(cx.g.cast(l, DType::I64)?),
        None => None,
    };
    let mut outs: Vec<Vec<ValueId>> = vec![];
    for (d, reverse) in reverse.iter().enumerate() {
        let at = Dim::from(d);
        let (w, r) = (cx.g.pick(w, 0, &at)?, cx.g.pick(r, 0, &at)?);
        let mut operands = vec![x, w, r];
        for state in 0..(if cell == Cell::Lstm { 2 } else { 1 }) {
            operands.push(match cx.optional(5 + state) {
                Some(s) if batch_first => cx.g.pick(s, 1, &at)?,
                Some(s) => cx.g.pick(s, 0, &at)?,
                None => {
                    let zero = cx.g.number_like(0.0, x)?;
                    cx.g.broadcast_to(zero, &[batch.clone(), hidden.clone()])?
                }
            });
        }
        let bias = cx.optional(3);
        if let Some(b) = bias {
            operands.push(cx.g.pick(b, 0, &at)?);
        }
        operands.extend(lens);
        let peephole = if cell == Cell::Lstm {
            cx.optional(7)
        } else {
            None
        };
        if let Some(p) = peephole {
            operands.push(cx.g.pick(p, 0, &at)?);
        }
        let quantized = cx.g.dtype(w).is_int();
        if quantized {
            let rows = cx.g.dim(w, 0);
            for i in 8..12 {
                operands.push(per_row(cx, i, &at, &rows)?);
            }
        }
        let n = cell.activations();
        let own = &functions[d * n..(d + 1) * n];
        let composite = Recurrent {
            cell,
            activations: own.iter().map(|f| f.0.name().to_string()).collect(),
            alpha: own.iter().map(|f| f.1).collect(),
            beta: own.iter().map(|f| f.2).collect(),
            clip,
            input_forget: cell == Cell::Lstm && cx.flag("input_forget", false)?,
            linear_before_reset: cell == Cell::Gru && cx.flag("linear_before_reset", false)?,
            reverse: *reverse,
            bias: bias.is_some(),
            lens: lens.is_some(),
            peephole: peephole.is_some(),
            quantized,
        };
        outs.push(
            cx.g.push(Op::Composite(composite.into()), &operands)?
                .to_vec(),
        );
    }
    // y: [steps, batch, hidden] -> [steps, directions, batch, hidden] or [batch, steps, directions, hidden].
    let mut results = vec![];
    for which in 0..outs[0].len() {
        let axis = usize::from(which == 0);
        let parts: Vec<ValueId> = outs
            .iter()
            .map(|o| Ok(cx.g.unsqueeze(o[which], &[axis])?))
            .collect::<OpResult<_>>()?;
        let mut joined = cx.g.concat(&parts, axis)?;
        if batch_first {
            joined = cx.g.permute(
                joined,
                if which == 0 {
                    &[2, 0, 1, 3]
                } else {
                    &[1, 0, 2]
                },
            )?;
        }
        results.push(joined);
    }
    Ok(results)
}
