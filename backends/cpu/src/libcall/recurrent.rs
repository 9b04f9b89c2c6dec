//! Recurrent layers: the product over all steps, then the steps.

use super::operand::Operand;
use super::{Call, Chain, Failure, Prepared};
use crate::library::Context;
use crate::library::gemm::{Finished, few};
use crate::library::lstm::{
    Activation, Cell, PackedRecurrent, PackedWeights, Recurrent as Layer, RecurrentOutputs,
    Weights, recur,
};
use crate::library::view::{Element, View, ViewMut};
use crate::schedule::extent;
use cupola_ir::composite::{self, Recurrent, Roles};
use cupola_ir::kernel::Library;
use cupola_ir::{DType, TensorType};

/// Why there is no layer of these operands.
pub(crate) fn refusal(p: &Recurrent, operands: &[&TensorType]) -> Option<String> {
    if p.quantized {
        return Some("quantised weights".into());
    }
    let roles = match p.roles(operands) {
        Ok(roles) => roles,
        Err(e) => return Some(e.to_string()),
    };
    let ranks = [(roles.x, 3), (roles.w, 2), (roles.r, 2), (roles.h, 2)];
    let more = [(roles.c, 2), (roles.b, 1), (roles.p, 1)];
    let all = ranks
        .into_iter()
        .chain(more.into_iter().filter_map(|(t, r)| Some((t?, r))));
    let weights = roles.w.dtype;
    if roles.r.dtype != weights || !matches!(weights, DType::F32 | DType::BF16) {
        return Some(format!("weights {} and {}", roles.w, roles.r));
    }
    for (t, rank) in all {
        let is_weights = std::ptr::eq(t, roles.w) || std::ptr::eq(t, roles.r);
        if t.dtype != DType::F32 && !is_weights || t.rank() != rank {
            return Some(format!("{t} where f32 with {rank} axes is taken"));
        }
    }
    if let Some(t) = roles
        .lens
        .filter(|t| t.dtype != DType::I64 || t.rank() != 1)
    {
        return Some(format!("lengths {t}"));
    }
    let count = p.cell.activations();
    let known = (0..count).all(|which| activation(p, which).is_some());
    (!known).then(|| "an activation that is not known".into())
}

/// The activation of a gate function.
fn activation(p: &Recurrent, which: usize) -> Option<Activation> {
    use composite::Activation as Name;
    let at = |v: &[f64]| v.get(which).copied().unwrap_or(0.0) as f32;
    let (a, b) = (at(&p.alpha), at(&p.beta));
    Some(match Name::from_name(p.activations.get(which)?)? {
        Name::Sigmoid => Activation::Sigmoid,
        Name::Tanh => Activation::Tanh,
        Name::Relu => Activation::Relu,
        Name::Affine => Activation::Affine(a, b),
        Name::LeakyRelu => Activation::LeakyRelu(a),
        Name::ThresholdedRelu => Activation::ThresholdedRelu(a),
        Name::ScaledTanh => Activation::ScaledTanh(a, b),
        Name::HardSigmoid => Activation::HardSigmoid(a, b),
        Name::Elu => Activation::Elu(a),
        Name::Softsign => Activation::Softsign,
        Name::Softplus => Activation::Softplus,
    })
}

/// The library's cell. `reset_bias` is what a GRU adds to the product that its reset gate multiplies.
fn cell<'a>(p: &Recurrent, peepholes: Option<&'a [f32]>, reset_bias: &'a [f32]) -> Cell<'a> {
    let f = |which| {
        let known = activation(p, which);
        known.unwrap_or_else(|| unreachable!("bug: the activation was refused before"))
    };
    match p.cell {
        composite::Cell::Rnn => Cell::Rnn { gate: f(0) },
        composite::Cell::Gru => Cell::Gru {
            gate: f(0),
            hidden: f(1),
            linear_before_reset: p.linear_before_reset.then_some(reset_bias),
        },
        composite::Cell::Lstm => Cell::Lstm {
            gate: f(0),
            cell: f(1),
            hidden: f(2),
            peepholes,
            coupled: p.input_forget,
        },
    }
}

/// Constant weights, packed once.
#[derive(Debug)]
pub(crate) struct Packed {
    /// Input weights, unless there are so few inputs that they are better read where they are.
    input: Option<PackedWeights>,
    recurrent: PackedRecurrent,
}

impl Packed {
    /// Positions of the operands that it stands for.
    pub(super) fn operands(&self) -> &'static [usize] {
        match self.input {
            Some(_) => &[1, 2],
            None => &[2],
        }
    }

    /// Bytes taken.
    pub(super) fn size(&self) -> usize {
        self.input.as_ref().map_or(0, PackedWeights::size) + self.recurrent.size()
    }
}

/// Packs the weights of a layer if both matrices are constant.
pub(super) fn prepare(
    p: &Recurrent,
    operands: &[Option<Operand>],
    cx: &Context,
) -> Result<Option<Packed>, Failure> {
    let refs: Vec<Option<&Operand>> = operands.iter().map(Option::as_ref).collect();
    let roles = p.roles(&refs).map_err(|e| Failure::Fault(e.to_string()))?;
    let (Some(w), Some(r)) = (roles.w, roles.r) else {
        return Ok(None);
    };
    let input = match few(w.dims[0]) || w.dims[1] == 0 {
        true => None,
        false => Some(weights(w).pack(cx)?),
    };
    let recurrent = PackedRecurrent::new(cx, &cell(p, None, &[]), weights(r))?;
    Ok(Some(Packed { input, recurrent }))
}

/// Seconds per byte of weights that a step reads, and per multiplication and addition, on one thread of a common machine.
const BYTE: f64 = 2e-11;
const FLOP: f64 = 1.5e-11;

/// The layer as a chain. Operands 0 and 2 are the sequence and the recurrent weights of every cell.
pub(super) fn chain(unit: &Library, sizes: &[i64]) -> Chain {
    let dims = |at: usize| {
        unit.operands[at]
            .dims
            .iter()
            .map(|e| extent(*e, sizes) as f64)
    };
    let [x, r] = [0, 2].map(|at| dims(at).collect::<Vec<f64>>());
    let (&[steps, batch, width], &[rows, hidden]) = (&x[..], &r[..]) else {
        return Chain::default();
    };
    let flops = 2.0 * batch * rows;
    let size = rows * hidden * unit.operands[2].dtype.bits() as f64 / 8.0;
    Chain {
        steps,
        step: (flops * hidden * FLOP).max(size * BYTE),
        before: steps * flops * width * FLOP,
    }
}

/// A dense matrix.
fn matrix<T: Element>(x: &Operand) -> View<'_, T, 2> {
    let [rows, cols] = [x.dims[0], x.dims[1]];
    // SAFETY: the operand is dense and lies inside its buffer.
    unsafe { View::from_raw(x.start.cast(), [rows, cols], [cols, 1]) }
}

/// A dense matrix of weights.
fn weights(x: &Operand) -> Weights<'_> {
    match x.dtype {
        DType::BF16 => Weights::Bf16(matrix(x)),
        _ => Weights::F32(matrix(x)),
    }
}

/// A dense vector.
fn vector<T>(x: &Operand) -> &[T] {
    // SAFETY: the operand is dense, lies inside its buffer, and holds as many elements as it says.
    unsafe { std::slice::from_raw_parts(x.start.cast::<T>(), x.len()) }
}

/// Extents of a layer.
struct Extents {
    steps: usize,
    batch: usize,
    width: usize,
    hidden: usize,
    /// Rows of the weights: gates times hidden.
    rows: usize,
}

/// The extents of a layer whose operands agree.
fn extents(p: &Recurrent, o: &Roles<&Operand>) -> Result<Extents, Failure> {
    let (x, hidden) = (&o.x.dims, o.h.dims[1]);
    let e = Extents {
        steps: x[0],
        batch: x[1],
        width: x[2],
        hidden,
        rows: p.cell.gates() * hidden,
    };
    let state = vec![e.batch, hidden];
    let wanted = [
        ("w", Some(o.w), vec![e.rows, e.width]),
        ("r", Some(o.r), vec![e.rows, hidden]),
        ("h0", Some(o.h), state.clone()),
        ("c0", o.c, state),
        ("b", o.b, vec![2 * e.rows]),
        ("lens", o.lens, vec![e.batch]),
        ("p", o.p, vec![3 * hidden]),
    ];
    for (name, operand, dims) in wanted {
        if let Some(x) = operand
            && x.dims[..] != dims[..]
        {
            return Err(Failure::Fault(format!(
                "{name} has extents {:?}, {dims:?} are taken",
                x.dims
            )));
        }
    }
    Ok(e)
}

/// Biases of the input product, and those that a GRU adds to its recurrent product before the reset.
fn biases(p: &Recurrent, o: &Roles<&Operand>, e: &Extents) -> (Vec<f32>, Vec<f32>) {
    let Some(b) = o.b else {
        return (vec![0.0; e.rows], vec![0.0; e.hidden]);
    };
    let (input, recurrent) = vector::<f32>(b).split_at(e.rows);
    let apart = match p.cell {
        composite::Cell::Gru if p.linear_before_reset => e.hidden,
        composite::Cell::Gru | composite::Cell::Rnn | composite::Cell::Lstm => 0,
    };
    let (joined, reset) = recurrent.split_at(e.rows - apart);
    let mut all = input.to_vec();
    all.iter_mut().zip(joined).for_each(|(x, y)| *x += y);
    (all, reset.to_vec())
}

/// Runs a layer.
pub(crate) fn run(call: &Call, p: &Recurrent) -> Result<(), Failure> {
    let refs: Vec<&Operand> = call.operands.iter().collect();
    let o = p.roles(&refs).map_err(|e| Failure::Fault(e.to_string()))?;
    let e = extents(p, &o)?;
    let (bias, reset_bias) = biases(p, &o, &e);
    let cell = cell(p, o.p.map(vector), &reset_bias);
    let own;
    let (input, recurrent) = match call.prepared {
        Some(Prepared::Recurrent(packed)) => (packed.input.as_ref(), &packed.recurrent),
        _ => {
            own = PackedRecurrent::new(&call.cx, &cell, weights(o.r))?;
            (None, &own)
        }
    };
    let len = e.steps.saturating_mul(e.batch).saturating_mul(e.rows);
    let inputs = call.cx.scratch.take::<f32>(len)?;
    input_product(call, &o, &e, input, &bias, inputs.as_ptr())?;
    let lens: Option<Vec<usize>> = o.lens.map(|lens| {
        let steps = |n: &i64| usize::try_from(*n).unwrap_or(0).min(e.steps);
        vector::<i64>(lens).iter().map(steps).collect()
    });
    let (rows, batch) = (e.rows, e.batch);
    // SAFETY: the product above filled that many elements.
    let inputs = unsafe {
        View::from_raw(
            inputs.as_ptr::<f32>().cast_const(),
            [e.steps, batch, rows],
            [batch * rows, rows, 1],
        )
    };
    let layer = Layer {
        cell,
        clip: (p.clip > 0.0).then_some(p.clip as f32),
        reverse: p.reverse,
        inputs,
        weights: recurrent,
        lens: lens.as_deref(),
        first_hidden: Some(matrix(o.h)),
        first_cell: o.c.map(matrix),
    };
    let hidden = e.hidden;
    // SAFETY: results are dense, lie inside their buffers, and this call has them alone.
    let outputs = unsafe {
        let state = |at: usize| {
            let x: &Operand = call.results.get(at)?;
            Some(ViewMut::from_raw(
                x.start.cast(),
                [batch, hidden],
                [hidden, 1],
            ))
        };
        RecurrentOutputs {
            states: Some(ViewMut::from_raw(
                call.results[0].start.cast(),
                [e.steps, batch, hidden],
                [batch * hidden, hidden, 1],
            )),
            last_hidden: state(1),
            last_cell: state(2),
        }
    };
    Ok(recur(&call.cx, &layer, outputs)?)
}

/// `x w^T + bias` for all steps at once.
fn input_product(
    call: &Call,
    o: &Roles<&Operand>,
    e: &Extents,
    packed: Option<&PackedWeights>,
    bias: &[f32],
    to: *mut f32,
) -> Result<(), Failure> {
    let count = e.steps * e.batch;
    // SAFETY: `x` is dense and lies inside its buffer; `to` has room for the product, and this call has it alone.
    let (left, output) = unsafe {
        (
            View::from_raw(o.x.start.cast(), [1, 1, count, e.width], [0, 0, e.width, 1]),
            ViewMut::from_raw(to, [1, 1, count, e.rows], [0, 0, e.rows, 1]),
        )
    };
    let add = |part: Finished<f32>| {
        for row in 0..part.rows {
            let start = part.start.wrapping_add(row * part.row_stride);
            // SAFETY: a part has that many columns in each of its rows, and they are the callee's.
            let sums = unsafe { std::slice::from_raw_parts_mut(start, part.cols) };
            let bias = &bias[part.col..part.col + part.cols];
            sums.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
        }
    };
    let weights = weights(o.w);
    let factor = packed.map_or_else(|| weights.factor(), PackedWeights::factor);
    factor.multiply(&call.cx, left, output, Some(&add))?;
    Ok(())
}
