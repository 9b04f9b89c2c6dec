//! Epilogues of channels-last convolutions that need no code of their own: their library kernels finish sums in registers.

use super::Call;
use super::epilogue::{Epilogue, overlap};
use crate::library::conv::pixels::{Gate, Tail};
use crate::library::view::Shared;
use cupola_ir::kernel::{AxisId, BufferId, Expr, ExprId, Index, IndexId, Kernel, Phase};
use cupola_ir::{DType, Scalar};

/// The epilogue as a tail without its bias, and the sum of all biases, empty without one; `None` where a tail cannot say it.
pub(super) fn tail(call: &Call, code: &Epilogue) -> Option<(Tail<'static>, Vec<f32>)> {
    let kernel = call.unit.epilogue.as_deref()?;
    let found = recognise(kernel)?;
    let buffer = |id: BufferId| code.buffers[id.0 as usize];
    let result = &call.results[0];
    let size = result.len() * size_of::<f32>();
    let residual = match found.terms.residual.map(buffer) {
        // What is read where something else was written already would be lost.
        Some((at, len)) if at != result.start && overlap((at, len), (result.start, size)) => {
            return None;
        }
        Some((at, _)) => Some(Shared(at.cast::<f32>())),
        None => None,
    };
    let bias = bias(&found.terms, *result.dims.last()?, |id| {
        let (at, len) = buffer(id);
        (!overlap((at, len), (result.start, size))).then_some((at.cast(), len))
    })?;
    let tail = Tail {
        residual,
        clamp: found.clamp,
        gate: found.gate,
        ..Tail::NONE
    };
    Some((tail, bias))
}

/// The sum of what is added to each channel; `buffer` gives a buffer's address and bytes if it may be read.
fn bias(
    terms: &Terms,
    channels: usize,
    buffer: impl Fn(BufferId) -> Option<(*const f32, usize)>,
) -> Option<Vec<f32>> {
    if terms.biases.is_empty() && terms.constant == 0.0 {
        return Some(vec![]);
    }
    let mut sums = vec![terms.constant; channels];
    for &(id, sign) in &terms.biases {
        let (at, len) = buffer(id)?;
        if len < channels * size_of::<f32>() {
            return None;
        }
        for (c, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the buffer holds a number for each channel, and nothing writes to it during the call.
            *sum += sign * unsafe { *at.add(c) };
        }
    }
    Some(sums)
}

/// What an epilogue kernel does to each sum, when that is what [`Tail`] can say.
struct Recognised {
    terms: Terms,
    clamp: [f32; 2],
    gate: Option<Gate>,
}

/// What is added to the sums.
#[derive(Default)]
struct Terms {
    /// With their signs.
    biases: Vec<(BufferId, f32)>,
    constant: f32,
    residual: Option<BufferId>,
}

/// Reads the one store of an epilogue: `min(max(sum + bias + residual, low), high)`, any part of it absent, perhaps behind a
/// gate.
fn recognise(kernel: &Kernel) -> Option<Recognised> {
    let [Phase::Store { axes, stores }] = &kernel.phases[..] else {
        return None;
    };
    let ([], [store]) = (&axes[..], &stores[..]) else {
        return None;
    };
    if store.guard.is_some() || kernel.buffers.iter().any(|b| b.dtype != DType::F32) {
        return None;
    }
    let reader = Reader {
        kernel,
        own: store.index,
    };
    let (value, gate) = match reader.gated(store.value) {
        Some((value, gate)) => (value, Some(gate)),
        None => (store.value, None),
    };
    let (value, clamp) = reader.clamped(value)?;
    let mut terms = Terms::default();
    let found = reader.added(value, 1.0, &mut terms)?;
    found.then_some(Recognised { terms, clamp, gate })
}

/// Reads the expressions of an epilogue.
struct Reader<'a> {
    kernel: &'a Kernel,
    /// Where the result is stored.
    own: IndexId,
}

impl Reader<'_> {
    fn expr(&self, id: ExprId) -> &Expr {
        &self.kernel.exprs[id.0 as usize]
    }

    fn number(&self, id: ExprId) -> Option<f32> {
        match self.expr(id) {
            Expr::Const(l) if l.dtype == DType::F32 => Some(f32::from_bits(l.bits as u32)),
            _ => None,
        }
    }

    /// The operand of `f(x, number)`, in any order, and the number.
    fn by_number(&self, f: Scalar, id: ExprId) -> Option<(ExprId, f32)> {
        match *self.expr(id) {
            Expr::Binary(g, x, y) if f == g => match (self.number(x), self.number(y)) {
                (_, Some(c)) => Some((x, c)),
                (Some(c), None) if f != Scalar::Div => Some((y, c)),
                _ => None,
            },
            _ => None,
        }
    }

    /// What is multiplied or divided by numbers, and their product: 1 where nothing is.
    fn scaled(&self, mut id: ExprId) -> (ExprId, f32) {
        let mut factor = 1.0;
        loop {
            if let Some((x, c)) = self.by_number(Scalar::Mul, id) {
                (id, factor) = (x, factor * c);
            } else if let Some((x, c)) = self.by_number(Scalar::Div, id) {
                (id, factor) = (x, factor / c);
            } else {
                return (id, factor);
            }
        }
    }

    /// The operand of an addition of a number, and the number: 0 where nothing is added.
    fn shifted(&self, id: ExprId) -> (ExprId, f32) {
        self.by_number(Scalar::Add, id).unwrap_or((id, 0.0))
    }

    /// `x * clamp(x * scale + shift)`, times factors anywhere, plus a number; and `x`.
    fn gated(&self, id: ExprId) -> Option<(ExprId, Gate)> {
        let (product, offset) = self.shifted(id);
        let (product, outer) = self.scaled(product);
        let Expr::Binary(Scalar::Mul, a, b) = *self.expr(product) else {
            return None;
        };
        [(a, b), (b, a)].into_iter().find_map(|(x, gate)| {
            let (gate, inner) = self.scaled(gate);
            let (line, bounds) = self.clamped(gate)?;
            let (line, shift) = self.shifted(line);
            let (line, scale) = if line == x {
                (x, 1.0)
            } else {
                self.scaled(line)
            };
            let gate = Gate {
                scale,
                shift,
                bounds,
                factor: outer * inner,
                offset,
            };
            (line == x).then_some((x, gate))
        })
    }

    /// What is clamped, and the bounds, infinite where there are none; `None` where bounds are NaN or exclude each other.
    fn clamped(&self, mut value: ExprId) -> Option<(ExprId, [f32; 2])> {
        let mut bounds = [None, None];
        loop {
            let next = [Scalar::Max, Scalar::Min]
                .into_iter()
                .enumerate()
                .find_map(|(at, f)| Some((at, self.by_number(f, value)?)));
            match next {
                Some((at, (x, limit))) if bounds[at].is_none() => {
                    bounds[at] = Some(limit);
                    value = x;
                }
                _ => break,
            }
        }
        let bounds = [
            bounds[0].unwrap_or(f32::NEG_INFINITY),
            bounds[1].unwrap_or(f32::INFINITY),
        ];
        (bounds[0] <= bounds[1]).then_some((value, bounds))
    }

    /// Whether the raw result is among the terms of a sum; notes what the others are.
    fn added(&self, id: ExprId, sign: f32, terms: &mut Terms) -> Option<bool> {
        if let Some(c) = self.number(id) {
            terms.constant += sign * c;
            return Some(false);
        }
        match *self.expr(id) {
            Expr::Binary(f @ (Scalar::Add | Scalar::Sub), x, y) => {
                let other = if f == Scalar::Sub { -sign } else { sign };
                let (x, y) = (self.added(x, sign, terms)?, self.added(y, other, terms)?);
                // The raw result is one term.
                (x != y || !x).then_some(x || y)
            }
            Expr::Load {
                buffer,
                index,
                guard: None,
            } => self.term(buffer, index, sign, terms),
            _ => None,
        }
    }

    fn term(&self, buffer: BufferId, index: IndexId, sign: f32, terms: &mut Terms) -> Option<bool> {
        let whole = index == self.own && sign > 0.0;
        if buffer == BufferId(0) {
            return whole.then_some(true);
        }
        if whole {
            return terms.residual.replace(buffer).is_none().then_some(false);
        }
        let channel = Index::Axis(AxisId(self.kernel.parallel.checked_sub(1)? as u32));
        (self.kernel.indices[index.0 as usize] == channel).then(|| {
            terms.biases.push((buffer, sign));
            false
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cupola_ir::kernel::text;

    /// An epilogue over 5 pixels of 8 channels that stores `result`; `e0` is the raw result, `e1` a residual, `e2` and `e3` are
    /// biases.
    fn epilogue(steps: &str, result: &str) -> Kernel {
        let text = format!(
            "kernel @epilogue {{
  b0 = read f32[40]
  b1 = write f32[40]
  b2 = read f32[40]
  b3 = read f32[8]
  b4 = read f32[8]
  a0 = parallel 5
  a1 = parallel 8
  i0 = a0
  i1 = 8
  i2 = i0 * i1
  i3 = a1
  i4 = i2 + i3
  e0 = load b0[i4]
  e1 = load b2[i4]
  e2 = load b3[i3]
  e3 = load b4[i3]
{steps}
  store [] {{b1[i4] = {result}}}
}}"
        );
        text::parse(&text).expect("a kernel")
    }

    #[test]
    fn sums_and_clamps_are_recognised() {
        let steps = "  e4 = sub(e0, e2)
  e5 = add(e4, e3)
  e6 = add(e5, e1)
  e7 = const f32 0.5
  e8 = const f32 -1.0
  e9 = add(e6, e7)
  e10 = max(e9, e8)
  e11 = min(e10, e7)
  e12 = max(e7, e9)
  e13 = min(e8, e12)
  e14 = sub(e2, e0)";
        for (result, clamp) in [
            ("e9", [f32::NEG_INFINITY, f32::INFINITY]),
            ("e10", [-1.0, f32::INFINITY]),
            ("e11", [-1.0, 0.5]),
        ] {
            let found = recognise(&epilogue(steps, result)).expect(result);
            assert_eq!(found.clamp, clamp);
            assert_eq!(
                found.terms.biases,
                [(BufferId(3), -1.0), (BufferId(4), 1.0)]
            );
            assert_eq!(found.terms.constant, 0.5);
            assert_eq!(found.terms.residual, Some(BufferId(2)));
            assert_eq!(found.gate, None);
        }
        // Bounds that exclude each other, a negated result, none at all.
        for result in ["e13", "e14", "e2"] {
            assert!(recognise(&epilogue(steps, result)).is_none(), "{result}");
        }
    }

    #[test]
    fn gates_are_recognised() {
        let steps = "  e4 = add(e0, e2)
  e5 = const f32 3.0
  e6 = const f32 0.0
  e7 = const f32 6.0
  e8 = add(e4, e5)
  e9 = max(e8, e6)
  e10 = min(e9, e7)
  e11 = mul(e4, e10)
  e12 = div(e11, e7)
  e13 = add(e12, e5)
  e14 = mul(e0, e10)";
        let gate = Gate {
            scale: 1.0,
            shift: 3.0,
            bounds: [0.0, 6.0],
            factor: 1.0 / 6.0,
            offset: 3.0,
        };
        let found = recognise(&epilogue(steps, "e13")).expect("a gate");
        assert_eq!(found.gate, Some(gate));
        assert_eq!(found.terms.biases, [(BufferId(3), 1.0)]);
        // What is multiplied is not what is clamped.
        assert!(recognise(&epilogue(steps, "e14")).is_none());
    }
}
