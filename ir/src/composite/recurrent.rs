//! Recurrent layers over a sequence, one direction.

use super::{CompositeDef, DynamicQuantize, IntegerProduct};
use crate::attr::{attr_enum, payload};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::error::{IrError, Result};
use crate::graph::{Graph, ValueId};
use crate::ops::{Contract, Op, Scan};
use crate::scalar::Scalar;
use crate::tensor_type::TensorType;

attr_enum! {
    /// A recurrent cell.
    Cell {
        /// `h' = f(x w + h r + b)`.
        Rnn = "rnn",
        /// Gated recurrent unit, gates in the order z, r, h (Cho et al., 2014).
        Gru = "gru",
        /// Long short-term memory, gates in the order i, o, f, c (Hochreiter and Schmidhuber, 1997).
        Lstm = "lstm",
    }
}

impl Cell {
    /// Number of gates.
    pub fn gates(self) -> usize {
        match self {
            Cell::Rnn => 1,
            Cell::Gru => 3,
            Cell::Lstm => 4,
        }
    }

    /// Number of activations.
    pub fn activations(self) -> usize {
        match self {
            Cell::Rnn => 1,
            Cell::Gru => 2,
            Cell::Lstm => 3,
        }
    }
}

attr_enum! {
    /// An activation function; `a` and `b` are its parameters.
    Activation {
        /// `1 / (1 + e^-x)`.
        Sigmoid = "sigmoid",
        /// Hyperbolic tangent.
        Tanh = "tanh",
        /// `max(x, 0)`.
        Relu = "relu",
        /// `a x + b`.
        Affine = "affine",
        /// `x` or `a x` below 0.
        LeakyRelu = "leaky_relu",
        /// `x` from a on, 0 below.
        ThresholdedRelu = "thresholded_relu",
        /// `a tanh(b x)`.
        ScaledTanh = "scaled_tanh",
        /// `min(max(a x + b, 0), 1)`.
        HardSigmoid = "hard_sigmoid",
        /// `x` or `a (e^x - 1)` below 0.
        Elu = "elu",
        /// `x / (1 + |x|)`.
        Softsign = "softsign",
        /// `log(1 + e^x)`.
        Softplus = "softplus",
    }
}

impl Activation {
    /// Appends the function with its parameters.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn apply(self, g: &mut Graph, x: ValueId, a: f64, b: f64) -> Result<ValueId> {
        let zero = g.number_like(0.0, x)?;
        let one = g.number_like(1.0, x)?;
        match self {
            Activation::Sigmoid => g.unary(Scalar::Sigmoid, x),
            Activation::Tanh => g.unary(Scalar::Tanh, x),
            Activation::Relu => g.binary(Scalar::Max, x, zero),
            Activation::Affine | Activation::HardSigmoid => {
                let y = g.scale(x, a)?;
                let b = g.number_like(b, x)?;
                let y = g.binary(Scalar::Add, y, b)?;
                if self == Activation::Affine {
                    return Ok(y);
                }
                let y = g.binary(Scalar::Max, y, zero)?;
                g.binary(Scalar::Min, y, one)
            }
            Activation::LeakyRelu => {
                let low = g.scale(x, a)?;
                let negative = g.binary(Scalar::Lt, x, zero)?;
                g.select(negative, low, x)
            }
            Activation::ThresholdedRelu => {
                let a = g.number_like(a, x)?;
                let below = g.binary(Scalar::Lt, x, a)?;
                g.select(below, zero, x)
            }
            Activation::ScaledTanh => {
                let y = g.scale(x, b)?;
                let y = g.unary(Scalar::Tanh, y)?;
                g.scale(y, a)
            }
            Activation::Elu => {
                let low = g.unary(Scalar::Expm1, x)?;
                let low = g.scale(low, a)?;
                let negative = g.binary(Scalar::Lt, x, zero)?;
                g.select(negative, low, x)
            }
            Activation::Softsign => {
                let y = g.unary(Scalar::Abs, x)?;
                let y = g.binary(Scalar::Add, y, one)?;
                g.binary(Scalar::Div, x, y)
            }
            Activation::Softplus => {
                // max(x, 0) + log1p(e^-|x|) does not overflow.
                let y = g.unary(Scalar::Abs, x)?;
                let y = g.unary(Scalar::Neg, y)?;
                let y = g.unary(Scalar::Exp, y)?;
                let y = g.unary(Scalar::Log1p, y)?;
                let high = g.binary(Scalar::Max, x, zero)?;
                g.binary(Scalar::Add, high, y)
            }
        }
    }
}

payload! {
    /// Operands `(x: [steps, batch, input], w: [gates * hidden, input], r: [gates * hidden, hidden], h0: [batch, hidden],
    /// c0: [batch, hidden] for lstm, b: [2 * gates * hidden]?, lens: i64 [batch]?, p: [3 * hidden]?)`; `b` holds the
    /// input biases, then the recurrent ones, `p` the peepholes i, o, f. Results: `y: [steps, batch, hidden]`,
    /// `h: [batch, hidden]`, and for lstm `c`. Steps at or after `lens` leave the state and give 0.
    /// Equations as in the ONNX operators RNN, GRU and LSTM. `w` and `r` may be of a narrower float type than the rest, to
    /// which what they multiply is rounded.
    Recurrent {
        /// Cell.
        cell: Cell,
        /// Activations: f (rnn), f and g (gru), f, g and h (lstm); text names of [`Activation`].
        activations: Vec<String>,
        /// First parameters of the activations.
        alpha: Vec<f64>,
        /// Second parameters of the activations.
        beta: Vec<f64>,
        /// Limit of the gates before activation (not of the cell state in lstm); 0 for none.
        clip: f64,
        /// Lstm: the forget gate is 1 - i.
        input_forget: bool,
        /// Gru: the reset gate acts after the recurrent product.
        linear_before_reset: bool,
        /// Goes from the last step to the first.
        reverse: bool,
        /// Whether `b` is given.
        bias: bool,
        /// Whether `lens` is given.
        lens: bool,
        /// Whether `p` is given.
        peephole: bool,
        /// Lstm: `w` and `r` are integers, and `w_scale, w_zero, r_scale, r_zero`, each `[gates * hidden]`, follow.
        /// The input and each step's `h` are rounded to u8 over their range before the product.
        quantized: bool,
    }
}

/// Operands of a [`Recurrent`] by role, named as there.
#[derive(Clone, Debug)]
#[allow(
    missing_docs,
    reason = "the names are those of the composite's documentation"
)]
pub struct Roles<T> {
    pub x: T,
    pub w: T,
    pub r: T,
    pub h: T,
    pub c: Option<T>,
    pub b: Option<T>,
    pub lens: Option<T>,
    pub p: Option<T>,
    /// Scale and zero point.
    pub w_scale: Option<[T; 2]>,
    /// Scale and zero point.
    pub r_scale: Option<[T; 2]>,
}

impl Recurrent {
    /// Operands (values, types, whatever stands for them) by role.
    ///
    /// # Errors
    /// Fewer operands than the attributes ask for.
    pub fn roles<T: Copy>(&self, operands: &[T]) -> Result<Roles<T>> {
        let mut rest = operands.iter().copied();
        let wrong = || {
            IrError::op(
                "composite.recurrent",
                "operands do not match the attributes",
            )
        };
        let mut next = |there: bool| {
            if there {
                rest.next().ok_or_else(wrong).map(Some)
            } else {
                Ok(None)
            }
        };
        let (x, w, r, h) = (next(true)?, next(true)?, next(true)?, next(true)?);
        let (Some(x), Some(w), Some(r), Some(h)) = (x, w, r, h) else {
            return Err(wrong());
        };
        let c = next(self.cell == Cell::Lstm)?;
        let (b, lens, p) = (next(self.bias)?, next(self.lens)?, next(self.peephole)?);
        let mut pair = || {
            Ok(next(self.quantized)?
                .zip(next(self.quantized)?)
                .map(|(s, z)| [s, z]))
        };
        let (w_scale, r_scale) = (pair()?, pair()?);
        if self.quantized && self.cell != Cell::Lstm {
            return Err(wrong());
        }
        Ok(Roles {
            x,
            w,
            r,
            h,
            c,
            b,
            lens,
            p,
            w_scale,
            r_scale,
        })
    }

    fn activate(&self, g: &mut Graph, which: usize, x: ValueId) -> Result<ValueId> {
        let wrong = || {
            IrError::op(
                "composite.recurrent",
                "needs one known activation per gate function",
            )
        };
        let name = self.activations.get(which).ok_or_else(wrong)?;
        let f = Activation::from_name(name).ok_or_else(wrong)?;
        let at = |v: &[f64]| v.get(which).copied().unwrap_or(0.0);
        f.apply(g, x, at(&self.alpha), at(&self.beta))
    }

    /// Clips and activates.
    fn gate(&self, g: &mut Graph, which: usize, mut x: ValueId) -> Result<ValueId> {
        if self.clip > 0.0 {
            let (low, high) = (g.number_like(-self.clip, x)?, g.number_like(self.clip, x)?);
            x = g.binary(Scalar::Max, x, low)?;
            x = g.binary(Scalar::Min, x, high)?;
        }
        self.activate(g, which, x)
    }

    /// One step: new h and c from the input product, the old h and c and the weights.
    fn step(
        &self,
        g: &mut Graph,
        xw: ValueId,
        h: ValueId,
        c: Option<ValueId>,
        k: &Weights,
    ) -> Result<(ValueId, Option<ValueId>)> {
        let hidden = g.dim(h, 1);
        let part = |g: &mut Graph, x: ValueId, i: usize, n: usize| {
            let axis = g.rank(x) - 1;
            g.slice_axis(
                x,
                axis,
                &(Dim::from(i) * hidden.clone()),
                &(Dim::from(n) * hidden.clone()),
            )
        };
        match self.cell {
            Cell::Rnn => {
                let hr = product(g, h, k.r)?;
                let sum = g.binary(Scalar::Add, xw, hr)?;
                Ok((self.gate(g, 0, sum)?, None))
            }
            Cell::Gru => {
                let rows = |g: &mut Graph, i: usize, n: usize| {
                    g.slice_axis(
                        k.r,
                        0,
                        &(Dim::from(i) * hidden.clone()),
                        &(Dim::from(n) * hidden.clone()),
                    )
                };
                let (r_zr, r_h) = (rows(g, 0, 2)?, rows(g, 2, 1)?);
                let zr = product(g, h, r_zr)?;
                let x_zr = part(g, xw, 0, 2)?;
                let zr = g.binary(Scalar::Add, x_zr, zr)?;
                let zr = self.gate(g, 0, zr)?;
                let (z, r) = (part(g, zr, 0, 1)?, part(g, zr, 1, 1)?);
                let x_h = part(g, xw, 2, 1)?;
                let inner = if self.linear_before_reset {
                    let mut hr = product(g, h, r_h)?;
                    if let Some(rb) = k.rb {
                        let rb = part(g, rb, 2, 1)?;
                        hr = g.binary(Scalar::Add, hr, rb)?;
                    }
                    g.binary(Scalar::Mul, r, hr)?
                } else {
                    let rh = g.binary(Scalar::Mul, r, h)?;
                    product(g, rh, r_h)?
                };
                let inner = g.binary(Scalar::Add, x_h, inner)?;
                let n = self.gate(g, 1, inner)?;
                // (1 - z) n + z h
                let one = g.number_like(1.0, z)?;
                let rest = g.binary(Scalar::Sub, one, z)?;
                let fresh = g.binary(Scalar::Mul, rest, n)?;
                let kept = g.binary(Scalar::Mul, z, h)?;
                Ok((g.binary(Scalar::Add, fresh, kept)?, None))
            }
            Cell::Lstm => {
                let c = c.unwrap_or_else(|| unreachable!("bug: lstm without a cell state"));
                let hr = match k.r_scale {
                    Some(scale) => rounded_product(g, h, k.r, scale)?,
                    None => product(g, h, k.r)?,
                };
                let all = g.binary(Scalar::Add, xw, hr)?;
                let peep =
                    |g: &mut Graph, gate: ValueId, i: usize, c: ValueId| -> Result<ValueId> {
                        let Some(p) = k.p else { return Ok(gate) };
                        let p = part(g, p, i, 1)?;
                        let pc = g.binary(Scalar::Mul, p, c)?;
                        g.binary(Scalar::Add, gate, pc)
                    };
                let i = part(g, all, 0, 1)?;
                let i = peep(g, i, 0, c)?;
                let i = self.gate(g, 0, i)?;
                let f = if self.input_forget {
                    let one = g.number_like(1.0, i)?;
                    g.binary(Scalar::Sub, one, i)?
                } else {
                    let f = part(g, all, 2, 1)?;
                    let f = peep(g, f, 2, c)?;
                    self.gate(g, 0, f)?
                };
                let n = part(g, all, 3, 1)?;
                let n = self.gate(g, 1, n)?;
                let kept = g.binary(Scalar::Mul, f, c)?;
                let fresh = g.binary(Scalar::Mul, i, n)?;
                let c = g.binary(Scalar::Add, kept, fresh)?;
                let o = part(g, all, 1, 1)?;
                let o = peep(g, o, 1, c)?;
                let o = self.gate(g, 0, o)?;
                let shown = self.activate(g, 2, c)?;
                Ok((g.binary(Scalar::Mul, o, shown)?, Some(c)))
            }
        }
    }
}

/// What every step uses.
struct Weights {
    r: ValueId,
    rb: Option<ValueId>,
    p: Option<ValueId>,
    /// Scale and zero point.
    r_scale: Option<[ValueId; 2]>,
}

/// `x w^T` in the type of x, which is rounded to that of the weights first.
fn product(g: &mut Graph, x: ValueId, w: ValueId) -> Result<ValueId> {
    let (dtype, narrow) = (g.dtype(x), g.dtype(w));
    if dtype == narrow || !narrow.is_float() {
        return g.matmul_nt(x, w);
    }
    let x = g.cast(x, narrow)?;
    let contract = Contract {
        lhs_batch: vec![],
        rhs_batch: vec![],
        lhs_contract: vec![g.rank(x) - 1],
        rhs_contract: vec![1],
        accum: g.accumulator(dtype),
        out: dtype,
    };
    g.one(contract, &[x, w])
}

/// `x w^T` with x rounded to u8 over its whole range: exact products in i32, scaled back by row of `w`.
fn rounded_product(
    g: &mut Graph,
    x: ValueId,
    w: ValueId,
    [scale, zero]: [ValueId; 2],
) -> Result<ValueId> {
    let rounded = g.push(Op::Composite(DynamicQuantize {}.into()), &[x])?;
    let (q, step, point) = (rounded[0], rounded[1], rounded[2]);
    let product = IntegerProduct {
        lhs_batch: vec![],
        rhs_batch: vec![],
        lhs_contract: vec![g.rank(x) - 1],
        rhs_contract: vec![1],
    };
    let y = g.one(Op::Composite(product.into()), &[q, w, point, zero])?;
    let y = g.cast_like(y, x)?;
    let scale = g.cast_like(scale, x)?;
    let scale = g.binary(Scalar::Mul, scale, step)?;
    g.binary(Scalar::Mul, y, scale)
}

impl CompositeDef for Recurrent {
    fn arity(&self) -> std::ops::RangeInclusive<usize> {
        let optional = [self.cell == Cell::Lstm, self.bias, self.lens, self.peephole];
        let given = optional.iter().filter(|there| **there).count();
        let count = 4 + given + if self.quantized { 4 } else { 0 };
        count..=count
    }

    fn decompose(&self, g: &mut Graph, operands: &[ValueId]) -> Result<Vec<ValueId>> {
        let o = self.roles(operands)?;
        if g.rank(o.x) != 3 || g.rank(o.w) != 2 || g.rank(o.r) != 2 || g.rank(o.h) != 2 {
            return Err(IrError::op(
                "composite.recurrent",
                "x has 3 axes, w, r and h0 have 2",
            ));
        }
        let gates = self.cell.gates();
        let hidden = g.dim(o.h, 1);
        let steps = g.dim(o.x, 0);
        let mut xw = match o.w_scale {
            Some(scale) => rounded_product(g, o.x, o.w, scale)?,
            None => product(g, o.x, o.w)?,
        };
        let mut rb = None;
        if let Some(b) = o.b {
            let n = Dim::from(gates) * hidden.clone();
            let input = g.slice_axis(b, 0, &Dim::ZERO, &n)?;
            let mut recurrent = g.slice_axis(b, 0, &n, &n)?;
            xw = g.binary(Scalar::Add, xw, input)?;
            if self.cell == Cell::Gru && self.linear_before_reset {
                // The bias of the last gate acts inside the reset.
                rb = Some(recurrent);
                let two = Dim::from(2usize) * hidden.clone();
                let front = g.slice_axis(recurrent, 0, &Dim::ZERO, &two)?;
                let zero = g.number_like(0.0, recurrent)?;
                recurrent = g.pad(front, zero, &[Dim::ZERO], std::slice::from_ref(&hidden))?;
            }
            xw = g.binary(Scalar::Add, xw, recurrent)?;
        }
        let time = g.iota(DType::I64, std::slice::from_ref(&steps), 0)?;
        let (mut xw, mut time) = (xw, time);
        if self.reverse {
            xw = g.flip(xw, 0)?;
            time = g.flip(time, 0)?;
        }
        let carried: Vec<ValueId> = std::iter::once(o.h).chain(o.c).collect();
        let captures: Vec<ValueId> = std::iter::once(o.r)
            .chain(rb)
            .chain(o.p)
            .chain(o.lens)
            .chain(o.r_scale.into_iter().flatten())
            .collect();
        let body = self.body(g, &carried, [xw, time], &captures, rb.is_some())?;
        let state: Vec<_> = carried.iter().map(|v| g.ty(*v).clone()).collect();
        let h = g.tensor(o.h);
        let y = TensorType {
            dtype: h.dtype,
            dims: [&[steps], &h.dims[..]].concat(),
        };
        let results = state.into_iter().chain([y.into()]).collect();
        let scan = Scan {
            body,
            carried: carried.len(),
            scanned: 2,
            results,
            binds: vec![],
        };
        let all = [&carried[..], &[xw, time], &captures[..]].concat();
        let out = g.push(scan, &all)?;
        let mut y = out[carried.len()];
        if self.reverse {
            y = g.flip(y, 0)?;
        }
        Ok([&[y], &out[..carried.len()]].concat())
    }
}

impl Recurrent {
    fn body(
        &self,
        g: &Graph,
        carried: &[ValueId],
        [xw, time]: [ValueId; 2],
        captures: &[ValueId],
        has_rb: bool,
    ) -> Result<Graph> {
        let mut b = Graph::new(self.cell.name());
        let state: Vec<ValueId> = (carried.iter().enumerate())
            .map(|(i, v)| b.input(&format!("state{i}"), g.ty(*v).clone()))
            .collect::<Result<_>>()?;
        let slice = TensorType::new(g.dtype(xw), g.dims(xw)[1..].to_vec());
        let xw = b.input("x", slice)?;
        let time = b.input("time", TensorType::scalar(g.dtype(time)))?;
        let captured: Vec<ValueId> = (captures.iter().enumerate())
            .map(|(i, v)| b.input(&format!("weight{i}"), g.ty(*v).clone()))
            .collect::<Result<_>>()?;
        let mut rest = captured.into_iter();
        let mut next = |there: bool| if there { rest.next() } else { None };
        let r = next(true).unwrap_or_else(|| unreachable!("bug: recurrent weights"));
        let (rb, p, lens) = (next(has_rb), next(self.peephole), next(self.lens));
        let r_scale = (next(self.quantized).zip(next(self.quantized))).map(|(s, z)| [s, z]);
        let weights = Weights { r, rb, p, r_scale };
        let (h, c) = (state[0], state.get(1).copied());
        let (mut new_h, mut new_c) = self.step(&mut b, xw, h, c, &weights)?;
        let mut y = new_h;
        if let Some(lens) = lens {
            let live = b.binary(Scalar::Lt, time, lens)?;
            let live = b.unsqueeze(live, &[1])?;
            let zero = b.number_like(0.0, y)?;
            y = b.select(live, y, zero)?;
            new_h = b.select(live, new_h, h)?;
            new_c = match (new_c, c) {
                (Some(n), Some(c)) => Some(b.select(live, n, c)?),
                _ => None,
            };
        }
        b.output("h", new_h);
        if let Some(c) = new_c {
            b.output("c", c);
        }
        b.output("y", y);
        Ok(b)
    }
}
