//! Recurrent layers, one direction: LSTM, GRU and plain RNN with every variant of the ONNX operators, in f32 with weights of f32 or
//! bf16.
//!
//! The part that does not recur, `x W^T` plus biases, is one product over all steps and is given as `inputs`. A step multiplies
//! the state by the recurrent weights, packed once, and then updates the cell in one pass over gates and state (`cell`).
//!
//! Formulas and the order of gates follow the ONNX operator definitions (LSTM, GRU, RNN, opset 22).

mod cell;
mod weights;

#[cfg(test)]
mod tests;

use crate::error::Result;
use crate::library::Context;
use crate::library::simd::dispatch;
use crate::library::view::{Shared, View, ViewMut, mismatch};
use crate::memory::Lent;
use cell::{Step, Update};
pub use weights::{Factor, PackedWeights, Weights};

/// A function of the cell. Parameters are the operators' `activation_alpha` (`a`) and `activation_beta` (`b`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `max(x, 0)`
    Relu,
    /// `tanh(x)`
    Tanh,
    /// `1 / (1 + e^-x)`
    Sigmoid,
    /// `a * x + b`
    Affine(f32, f32),
    /// `x < 0 ? a * x : x`
    LeakyRelu(f32),
    /// `x >= a ? x : 0`
    ThresholdedRelu(f32),
    /// `a * tanh(b * x)`
    ScaledTanh(f32, f32),
    /// `min(max(a * x + b, 0), 1)`
    HardSigmoid(f32, f32),
    /// `x < 0 ? a * (e^x - 1) : x`
    Elu(f32),
    /// `x / (1 + |x|)`
    Softsign,
    /// `ln(1 + e^x)`
    Softplus,
}

/// The cell. Gates are laid out one after the other, `hidden` each, in the order given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cell<'a> {
    /// Gates input, output, forget, cell: `c' = f(forget) * c + f(input) * g(cell)`, `h' = f(output) * h(c')`.
    Lstm {
        /// For input, output, forget gate.
        gate: Activation,
        /// For the cell gate.
        cell: Activation,
        /// For the new cell state.
        hidden: Activation,
        /// Weights of the cell state in the gates input, output, forget: `[3 * hidden]`.
        peepholes: Option<&'a [f32]>,
        /// The forget gate is `1 - f(input)`.
        coupled: bool,
    },
    /// Gates update, reset, hidden: `h' = (1 - f(update)) * g(hidden) + f(update) * h`.
    Gru {
        /// For update and reset gate.
        gate: Activation,
        /// For the hidden gate.
        hidden: Activation,
        /// With `Some(bias)`, `[hidden]`, the reset gate multiplies the product of the state plus this bias
        /// (`linear_before_reset`); with None the state before the product, and all biases are part of the inputs.
        linear_before_reset: Option<&'a [f32]>,
    },
    /// `h' = f(gate)`
    Rnn {
        /// For the only gate.
        gate: Activation,
    },
}

impl Cell<'_> {
    /// Number of gates.
    pub fn gates(&self) -> usize {
        match self {
            Cell::Lstm { .. } => 4,
            Cell::Gru { .. } => 3,
            Cell::Rnn { .. } => 1,
        }
    }
}

/// Recurrent weights, packed once.
#[derive(Debug)]
pub struct PackedRecurrent {
    /// All gates, or all but the hidden one of a GRU that resets before the product.
    gates: PackedWeights,
    /// The hidden gate of such a GRU.
    hidden_gate: Option<PackedWeights>,
    hidden: usize,
    rows: usize,
}

impl PackedRecurrent {
    /// Packs `weights`, `[gates * hidden, hidden]`, for `cell` at the context's level. Errors: a shape that does not fit the cell, out
    /// of memory.
    pub fn new(cx: &Context, cell: &Cell<'_>, weights: Weights<'_>) -> Result<PackedRecurrent> {
        let [rows, hidden] = weights.shape();
        if rows != cell.gates() * hidden {
            return Err(mismatch(
                "recurrent weights",
                [rows, hidden],
                [cell.gates() * hidden, hidden],
            ));
        }
        let split = if matches!(
            cell,
            Cell::Gru {
                linear_before_reset: None,
                ..
            }
        ) {
            2 * hidden
        } else {
            rows
        };
        let part = |first, count| weights.pack_rows(cx, first, count);
        let hidden_gate = if split < rows {
            Some(part(split, rows - split)?)
        } else {
            None
        };
        Ok(PackedRecurrent {
            gates: part(0, split)?,
            hidden_gate,
            hidden,
            rows,
        })
    }

    /// Bytes taken.
    pub fn size(&self) -> usize {
        self.gates.size() + self.hidden_gate.as_ref().map_or(0, PackedWeights::size)
    }
}

/// One direction of a recurrent layer.
#[derive(Debug)]
pub struct Recurrent<'a> {
    /// The cell.
    pub cell: Cell<'a>,
    /// Bounds the arguments of gates to `-clip..=clip`; not the state that an LSTM shows.
    pub clip: Option<f32>,
    /// Steps are taken from the last to the first of each sequence.
    pub reverse: bool,
    /// `x W^T` plus biases, `[steps, batch, gates * hidden]`, the last dimension dense.
    pub inputs: View<'a, f32, 3>,
    /// Recurrent weights, packed for the same cell.
    pub weights: &'a PackedRecurrent,
    /// Steps of each sequence of the batch; None: all have all.
    pub lens: Option<&'a [usize]>,
    /// State before the first step, `[batch, hidden]`; None: zeros.
    pub first_hidden: Option<View<'a, f32, 2>>,
    /// Cell state before the first step, `[batch, hidden]`; LSTM only; None: zeros.
    pub first_cell: Option<View<'a, f32, 2>>,
}

/// What a recurrent layer yields; each may be left out. The last dimensions must be dense.
#[derive(Debug, Default)]
pub struct RecurrentOutputs<'a> {
    /// States after each step, `[steps, batch, hidden]`; zeros beyond the end of a sequence.
    pub states: Option<ViewMut<'a, f32, 3>>,
    /// State after the last step of each sequence, `[batch, hidden]`.
    pub last_hidden: Option<ViewMut<'a, f32, 2>>,
    /// Cell state after the last step of each sequence, `[batch, hidden]`; LSTM only.
    pub last_cell: Option<ViewMut<'a, f32, 2>>,
}

/// Runs all steps. Errors: extents that do not agree, dimensions that must be dense and are not, out of memory.
pub fn recur(cx: &Context, layer: &Recurrent<'_>, outputs: RecurrentOutputs<'_>) -> Result<()> {
    let [steps, batch, width] = layer.inputs.shape();
    let hidden = layer.weights.hidden;
    check(layer, &outputs)?;
    let gates = layer.weights.rows;
    let mut state = State {
        hidden: cx.scratch.take::<f32>(batch * hidden)?,
        next: cx.scratch.take::<f32>(batch * hidden)?,
        cell: cx.scratch.take::<f32>(batch * hidden)?,
        product: cx.scratch.take::<f32>(batch * gates.max(1))?,
    };
    fill(
        &mut state.hidden,
        batch,
        hidden,
        layer.first_hidden.as_ref(),
    );
    fill(&mut state.cell, batch, hidden, layer.first_cell.as_ref());
    let states = outputs
        .states
        .map(|view| (Shared(view.as_ptr()), view.strides()));
    let len = |row: usize| layer.lens.map_or(steps, |lens| lens[row]);
    if let Some((to, [step_stride, row_stride, _])) = states {
        for row in 0..batch {
            for step in len(row)..steps {
                // SAFETY: a row of the output, which is exclusively ours.
                unsafe {
                    to.get()
                        .add(step * step_stride + row * row_stride)
                        .write_bytes(0, hidden)
                };
            }
        }
    }
    debug_assert_eq!(width, gates);
    let longest = (0..batch).map(len).max().unwrap_or(0);
    for step in 0..longest {
        let place = |row: usize| {
            if layer.reverse {
                len(row).wrapping_sub(1 + step)
            } else {
                step
            }
        };
        let rows = Step {
            layer,
            states,
            place: &place,
            active: &|row| step < len(row),
            batch,
            hidden,
        };
        one_step(cx, &rows, &mut state)?;
    }
    for (output, from) in [
        (outputs.last_hidden, &state.hidden),
        (outputs.last_cell, &state.cell),
    ] {
        let Some(output) = output else { continue };
        for row in 0..batch {
            let to = output.as_ptr().wrapping_add(row * output.strides()[0]);
            // SAFETY: a row of the output, a row of the state.
            unsafe {
                std::ptr::copy_nonoverlapping(from.as_ptr::<f32>().add(row * hidden), to, hidden)
            };
        }
    }
    Ok(())
}

/// The state between steps, rows dense.
struct State<'a> {
    hidden: Lent<'a>,
    /// Receives the new state while the old one is still read.
    next: Lent<'a>,
    cell: Lent<'a>,
    /// State times recurrent weights.
    product: Lent<'a>,
}

/// Elements of state that a thread should have to update, about 5 us of work.
const GRAIN: usize = 4096;

fn one_step(cx: &Context, step: &Step<'_>, state: &mut State<'_>) -> Result<()> {
    let (batch, hidden, weights) = (step.batch, step.hidden, step.layer.weights);
    if batch == 0 || hidden == 0 {
        return Ok(());
    }
    let gates = weights.rows;
    // SAFETY: the buffers have that many elements, and the calls below borrow them one at a time.
    let (left, product) = unsafe {
        (
            View::from_raw(
                state.hidden.as_ptr::<f32>().cast_const(),
                [1, 1, batch, hidden],
                [0, 0, hidden, 1],
            ),
            |first: usize, count: usize| {
                ViewMut::from_raw(
                    state.product.as_ptr::<f32>().wrapping_add(first),
                    [1, 1, batch, count],
                    [0, 0, gates, 1],
                )
            },
        )
    };
    let split = if weights.hidden_gate.is_some() {
        gates - hidden
    } else {
        gates
    };
    weights
        .gates
        .factor()
        .multiply(cx, left, product(0, split), None)?;
    let pointers = cell::Pointers {
        hidden: Shared(state.hidden.as_ptr()),
        next: Shared(state.next.as_ptr()),
        cell: Shared(state.cell.as_ptr()),
        product: Shared(state.product.as_ptr()),
    };
    let update = |reset_only: bool| {
        // Rows are cut too, so that a batch of one can use all threads.
        let cuts = hidden.div_ceil(GRAIN);
        cx.pool
            .run_ranges(batch * cuts, (GRAIN / hidden).max(1), |range| {
                for index in range {
                    let (row, cut) = (index / cuts, index % cuts);
                    let units = cut * GRAIN..hidden.min((cut + 1) * GRAIN);
                    dispatch(
                        cx.isa,
                        Update {
                            step,
                            pointers,
                            row,
                            units,
                            reset_only,
                        },
                    );
                }
            });
    };
    if let Some(hidden_gate) = &weights.hidden_gate {
        // The reset gate multiplies the state before its product: `next` holds that in between.
        update(true);
        // SAFETY: as above.
        let left = unsafe {
            View::from_raw(
                state.next.as_ptr::<f32>().cast_const(),
                [1, 1, batch, hidden],
                [0, 0, hidden, 1],
            )
        };
        hidden_gate
            .factor()
            .multiply(cx, left, product(split, hidden), None)?;
    }
    update(false);
    std::mem::swap(&mut state.hidden, &mut state.next);
    Ok(())
}

fn fill(to: &mut Lent<'_>, batch: usize, hidden: usize, from: Option<&View<'_, f32, 2>>) {
    let to = &mut to.as_mut_slice::<f32>()[..batch * hidden];
    match from {
        None => to.fill(0.0),
        Some(from) => {
            for (index, x) in to.iter_mut().enumerate() {
                *x = from.at([index / hidden, index % hidden]);
            }
        }
    }
}

fn check(layer: &Recurrent<'_>, outputs: &RecurrentOutputs<'_>) -> Result<()> {
    let [steps, batch, width] = layer.inputs.shape();
    let (hidden, gates) = (layer.weights.hidden, layer.cell.gates());
    if width != gates * hidden || layer.weights.rows != width {
        return Err(mismatch(
            "gates of a recurrent layer's inputs",
            width,
            gates * hidden,
        ));
    }
    let splits = matches!(
        layer.cell,
        Cell::Gru {
            linear_before_reset: None,
            ..
        }
    );
    if splits != layer.weights.hidden_gate.is_some() && hidden > 0 {
        return Err(mismatch(
            "recurrent weights",
            "packed for another cell",
            "packed for this one",
        ));
    }
    let dense = |what, strides: &[usize]| match strides.last() {
        Some(&last) if last != 1 && hidden > 1 => Err(mismatch(what, last, 1)),
        _ => Ok(()),
    };
    dense(
        "last stride of a recurrent layer's inputs",
        &layer.inputs.strides(),
    )?;
    if let Some(lens) = layer.lens
        && (lens.len() != batch || lens.iter().any(|&len| len > steps))
    {
        return Err(mismatch(
            "sequence lengths",
            lens,
            format!("{batch} of at most {steps}"),
        ));
    }
    let extra = match &layer.cell {
        Cell::Lstm {
            peepholes: Some(weights),
            ..
        } => Some((weights.len(), 3 * hidden)),
        Cell::Gru {
            linear_before_reset: Some(bias),
            ..
        } => Some((bias.len(), hidden)),
        Cell::Lstm {
            peepholes: None, ..
        }
        | Cell::Gru {
            linear_before_reset: None,
            ..
        }
        | Cell::Rnn { .. } => None,
    };
    if let Some((got, wanted)) = extra
        && got != wanted
    {
        return Err(mismatch("peepholes or recurrent bias", got, wanted));
    }
    for (what, view) in [
        ("first state", &layer.first_hidden),
        ("first cell state", &layer.first_cell),
    ] {
        if let Some(view) = view
            && view.shape() != [batch, hidden]
        {
            return Err(mismatch(what, view.shape(), [batch, hidden]));
        }
    }
    if let Some(view) = &outputs.states {
        if view.shape() != [steps, batch, hidden] {
            return Err(mismatch("states", view.shape(), [steps, batch, hidden]));
        }
        dense("last stride of the states", &view.strides())?;
    }
    for (what, view) in [
        ("last state", &outputs.last_hidden),
        ("last cell state", &outputs.last_cell),
    ] {
        if let Some(view) = view {
            if view.shape() != [batch, hidden] {
                return Err(mismatch(what, view.shape(), [batch, hidden]));
            }
            dense(what, &view.strides())?;
        }
    }
    Ok(())
}
