//! The update of one row of state: gates, activations, new state, in one pass.

use std::ops::Range;

use super::{Activation, Cell, Recurrent};
use crate::library::math::{sigmoid, tanh};
use crate::library::simd::{Float, Kernel, MAX_LANES, Simd};
use crate::library::view::Shared;

/// One step of all rows.
pub(super) struct Step<'a> {
    pub layer: &'a Recurrent<'a>,
    /// States of all steps, and their strides.
    pub states: Option<(Shared<f32>, [usize; 3])>,
    /// Index of the step in the inputs and states, for each row.
    pub place: &'a (dyn Fn(usize) -> usize + Sync),
    /// Whether a row's sequence still runs.
    pub active: &'a (dyn Fn(usize) -> bool + Sync),
    pub batch: usize,
    pub hidden: usize,
}

/// State and product, rows dense.
#[derive(Clone, Copy)]
pub(super) struct Pointers {
    pub hidden: Shared<f32>,
    pub next: Shared<f32>,
    pub cell: Shared<f32>,
    pub product: Shared<f32>,
}

/// Updates some units of one row.
pub(super) struct Update<'a> {
    pub step: &'a Step<'a>,
    pub pointers: Pointers,
    pub row: usize,
    pub units: Range<usize>,
    /// Only writes the state times the reset gate to `next`, for the second product of a GRU.
    pub reset_only: bool,
}

impl Kernel for Update<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Update {
            step,
            pointers,
            row,
            units,
            reset_only,
        } = self;
        let (hidden, layer) = (step.hidden, step.layer);
        let state = row * hidden;
        if !(step.active)(row) {
            let (from, to) = (pointers.hidden.get(), pointers.next.get());
            // SAFETY: units of this row, in buffers of `batch * hidden` elements.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    from.add(state + units.start),
                    to.add(state + units.start),
                    units.len(),
                )
            };
            return;
        }
        let place = (step.place)(row);
        let [step_stride, row_stride, _] = layer.inputs.strides();
        let line = Line {
            inputs: layer
                .inputs
                .as_ptr()
                .wrapping_add(place * step_stride + row * row_stride),
            product: pointers
                .product
                .get()
                .wrapping_add(row * layer.cell.gates() * hidden),
            hidden,
            clip: layer.clip,
        };
        let to = step.states.map(|(to, [step_stride, row_stride, _])| {
            to.get()
                .wrapping_add(place * step_stride + row * row_stride)
        });
        let c = |unit: usize| pointers.cell.get().wrapping_add(state + unit);
        let rows = Rows {
            h: pointers.hidden.get().wrapping_add(state),
            next: pointers.next.get().wrapping_add(state),
            to: to.filter(|_| !reset_only),
            units,
        };
        // SAFETY: units of a row are inside every gate, the state and the output row.
        unsafe {
            match &layer.cell {
                cell if layer.clip.is_none() && is_usual(cell) => {
                    rows.each(s, |unit, len, _| usual_lstm(s, &line, c(unit), unit, len));
                }
                cell @ Cell::Lstm { .. } => {
                    rows.each(s, |unit, len, _| lstm(s, cell, &line, c(unit), unit, len));
                }
                cell @ Cell::Gru { .. } if reset_only => rows.each(s, |unit, len, h| {
                    s.mul(gru_gate(s, cell, &line, 1, unit, len), h)
                }),
                cell @ Cell::Gru { .. } => {
                    rows.each(s, |unit, len, h| gru(s, cell, &line, h, unit, len));
                }
                Cell::Rnn { gate } => rows.each(s, |unit, len, _| {
                    let sum = line.gate(s, 0, unit, len);
                    apply(s, *gate, line.clipped(s, sum))
                }),
            }
        }
    }
}

/// Where the state of a row is and goes.
struct Rows {
    h: *const f32,
    next: *mut f32,
    /// The output, where it is wanted.
    to: Option<*mut f32>,
    units: Range<usize>,
}

impl Rows {
    /// Gives the units, a vector at a time, the state that `next` makes of the unit's index, a number of units and their
    /// state.
    #[inline(always)]
    unsafe fn each<S: Simd>(&self, s: S, next: impl Fn(usize, usize, S::F) -> S::F) {
        for unit in self.units.clone().step_by(S::LANES) {
            let len = (self.units.end - unit).min(S::LANES);
            // SAFETY: by the caller.
            unsafe {
                let h = f32::load_first_or_all(s, self.h.add(unit), len);
                let next = next(unit, len, h);
                f32::store_first_or_all(s, self.next.add(unit), len, next);
                if let Some(to) = self.to {
                    f32::store_first_or_all(s, to.add(unit), len, next);
                }
            }
        }
    }
}

/// Whether a cell is an LSTM as it was published: no other activations, no peepholes, every gate its own.
fn is_usual(cell: &Cell<'_>) -> bool {
    matches!(
        cell,
        Cell::Lstm {
            gate: Activation::Sigmoid,
            cell: Activation::Tanh,
            hidden: Activation::Tanh,
            peepholes: None,
            coupled: false,
        }
    )
}

/// Inputs and product of one row.
struct Line {
    inputs: *const f32,
    product: *const f32,
    hidden: usize,
    clip: Option<f32>,
}

impl Line {
    #[inline(always)]
    unsafe fn input<S: Simd>(&self, s: S, gate: usize, unit: usize, len: usize) -> S::F {
        // SAFETY: passed on.
        unsafe { f32::load_first_or_all(s, self.inputs.add(gate * self.hidden + unit), len) }
    }

    #[inline(always)]
    unsafe fn product<S: Simd>(&self, s: S, gate: usize, unit: usize, len: usize) -> S::F {
        // SAFETY: passed on.
        unsafe { f32::load_first_or_all(s, self.product.add(gate * self.hidden + unit), len) }
    }

    #[inline(always)]
    unsafe fn gate<S: Simd>(&self, s: S, gate: usize, unit: usize, len: usize) -> S::F {
        // SAFETY: passed on.
        unsafe {
            s.add(
                self.input(s, gate, unit, len),
                self.product(s, gate, unit, len),
            )
        }
    }

    /// The argument of an activation within its bounds; NaN stays.
    #[inline(always)]
    fn clipped<S: Simd>(&self, s: S, v: S::F) -> S::F {
        match self.clip {
            Some(clip) => s.max(s.splat(-clip), s.min(s.splat(clip), v)),
            None => v,
        }
    }
}

/// As [`lstm`] for a cell that [`is_usual`], without bounds: short enough for the processor to work on several vectors at once.
#[inline(always)]
unsafe fn usual_lstm<S: Simd>(s: S, line: &Line, state: *mut f32, unit: usize, len: usize) -> S::F {
    // SAFETY: passed on.
    unsafe {
        let c = f32::load_first_or_all(s, state, len);
        let input = sigmoid(s, line.gate(s, 0, unit, len));
        let forget = sigmoid(s, line.gate(s, 2, unit, len));
        let candidate = tanh(s, line.gate(s, 3, unit, len));
        let c = s.mul_add(forget, c, s.mul(input, candidate));
        f32::store_first_or_all(s, state, len, c);
        s.mul(sigmoid(s, line.gate(s, 1, unit, len)), tanh(s, c))
    }
}

/// New state; the new cell state is stored.
#[inline(always)]
unsafe fn lstm<S: Simd>(
    s: S,
    cell: &Cell<'_>,
    line: &Line,
    state: *mut f32,
    unit: usize,
    len: usize,
) -> S::F {
    let Cell::Lstm {
        gate,
        cell,
        hidden,
        peepholes,
        coupled,
    } = cell
    else {
        unreachable!("bug: not an LSTM")
    };
    // SAFETY: passed on; peepholes have three times `hidden` elements.
    unsafe {
        let c = f32::load_first_or_all(s, state, len);
        let input = lstm_gate(s, *gate, *peepholes, line, c, 0, unit, len);
        let forget = if *coupled {
            s.sub(s.splat(1.0), input)
        } else {
            lstm_gate(s, *gate, *peepholes, line, c, 2, unit, len)
        };
        let candidate = apply(s, *cell, line.clipped(s, line.gate(s, 3, unit, len)));
        let c = s.mul_add(forget, c, s.mul(input, candidate));
        f32::store_first_or_all(s, state, len, c);
        let output = lstm_gate(s, *gate, *peepholes, line, c, 1, unit, len);
        s.mul(output, apply(s, *hidden, c))
    }
}

/// Gate number `index` of an LSTM, which sees the cell state `c` through its peephole.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a gate's operands and its place")]
unsafe fn lstm_gate<S: Simd>(
    s: S,
    activation: Activation,
    peepholes: Option<&[f32]>,
    line: &Line,
    c: S::F,
    index: usize,
    unit: usize,
    len: usize,
) -> S::F {
    // SAFETY: passed on; peepholes have three times `hidden` elements.
    unsafe {
        let mut v = line.gate(s, index, unit, len);
        if let Some(weights) = peepholes {
            let w =
                f32::load_first_or_all(s, weights.as_ptr().add(index * line.hidden + unit), len);
            v = s.mul_add(w, c, v);
        }
        apply(s, activation, line.clipped(s, v))
    }
}

/// The update (0) or reset (1) gate.
#[inline(always)]
unsafe fn gru_gate<S: Simd>(
    s: S,
    cell: &Cell<'_>,
    line: &Line,
    index: usize,
    unit: usize,
    len: usize,
) -> S::F {
    let Cell::Gru { gate, .. } = cell else {
        unreachable!("bug: not a GRU")
    };
    // SAFETY: passed on.
    unsafe { apply(s, *gate, line.clipped(s, line.gate(s, index, unit, len))) }
}

#[inline(always)]
unsafe fn gru<S: Simd>(
    s: S,
    cell: &Cell<'_>,
    line: &Line,
    h: S::F,
    unit: usize,
    len: usize,
) -> S::F {
    let Cell::Gru {
        hidden,
        linear_before_reset,
        ..
    } = cell
    else {
        unreachable!("bug: not a GRU")
    };
    // SAFETY: passed on; the bias has `hidden` elements.
    unsafe {
        let update = gru_gate(s, cell, line, 0, unit, len);
        let mut product = line.product(s, 2, unit, len);
        if let Some(bias) = linear_before_reset {
            let bias = f32::load_first_or_all(s, bias.as_ptr().add(unit), len);
            product = s.mul(gru_gate(s, cell, line, 1, unit, len), s.add(product, bias));
        }
        let candidate = apply(
            s,
            *hidden,
            line.clipped(s, s.add(line.input(s, 2, unit, len), product)),
        );
        s.mul_add(update, h, s.mul(s.sub(s.splat(1.0), update), candidate))
    }
}

/// `activation(v)`.
#[inline(always)]
fn apply<S: Simd>(s: S, activation: Activation, v: S::F) -> S::F {
    let zero = s.splat(0.0);
    match activation {
        // `max` yields its second operand, `v`, if that is NaN.
        Activation::Relu => s.max(zero, v),
        Activation::Tanh => tanh(s, v),
        Activation::Sigmoid => sigmoid(s, v),
        Activation::Affine(alpha, beta) => affine(s, alpha, beta, v),
        Activation::LeakyRelu(alpha) => s.select(s.lt(v, zero), s.mul(s.splat(alpha), v), v),
        Activation::ThresholdedRelu(alpha) => s.select(s.lt(v, s.splat(alpha)), zero, v),
        Activation::ScaledTanh(alpha, beta) => {
            s.mul(s.splat(alpha), tanh(s, s.mul(s.splat(beta), v)))
        }
        Activation::HardSigmoid(alpha, beta) => {
            s.min(s.splat(1.0), s.max(zero, affine(s, alpha, beta, v)))
        }
        Activation::Elu(alpha) => each(s, v, |x| if x < 0.0 { alpha * x.exp_m1() } else { x }),
        Activation::Softsign => s.div(v, s.add(s.splat(1.0), s.abs(v))),
        // The larger part is taken out of the logarithm, so that nothing overflows.
        Activation::Softplus => each(s, v, |x| x.max(0.0) + (-x.abs()).exp().ln_1p()),
    }
}

/// `alpha * v + beta`
#[inline(always)]
fn affine<S: Simd>(s: S, alpha: f32, beta: f32, v: S::F) -> S::F {
    s.mul_add(s.splat(alpha), v, s.splat(beta))
}

/// Lane by lane, for functions without a vector form.
#[inline(always)]
fn each<S: Simd>(s: S, v: S::F, f: impl Fn(f32) -> f32) -> S::F {
    let mut lanes = [0f32; MAX_LANES];
    // SAFETY: the array holds any vector.
    unsafe {
        s.store(lanes.as_mut_ptr(), v);
        lanes.iter_mut().take(S::LANES).for_each(|x| *x = f(*x));
        s.load(lanes.as_ptr())
    }
}
