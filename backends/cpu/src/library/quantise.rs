//! Floats rounded to 8-bit integers over their whole range.

use super::Context;
use super::simd::{Kernel, Simd, dispatch};
use super::view::{Shared, mismatch};
use crate::error::Result;
use std::sync::Mutex;

/// What stands for what: `x = (y - zero) * scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Steps {
    /// Distance of neighbouring integers.
    pub scale: f32,
    /// The integer of 0.
    pub zero: u8,
}

/// Elements below which a pass is not divided among threads (about 2 us).
const GRAIN: usize = 32 << 10;

/// The largest integer.
const TOP: f32 = 255.0;

/// Rounds `x` over its range, which includes 0: `scale = (max - min) / 255`, `zero = round(-min / scale)`,
/// `y = round(x / scale) + zero`, integers within 0 and 255, half to even. A scale of 0 gives zeros, one that is no finite number
/// what the same equations make of it, NaN being 0.
///
/// Errors: `y` of another length.
pub fn quantise(cx: &Context, x: &[f32], y: &mut [u8]) -> Result<Steps> {
    if x.len() != y.len() {
        return Err(mismatch("rounded elements", y.len(), x.len()));
    }
    let all = Mutex::new(Range::default());
    let join = |part: Range| {
        let mut all = all.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        *all = all.joined(part);
    };
    cx.pool.run_ranges(x.len(), GRAIN, |part| {
        join(dispatch(cx.isa, FindRange { x: &x[part] }));
    });
    let range = all
        .into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let steps = range.steps();
    let to = Shared(y.as_mut_ptr());
    cx.pool.run_ranges(x.len(), GRAIN, |part| {
        // SAFETY: ranges are disjoint and lie inside both.
        let y = unsafe { std::slice::from_raw_parts_mut(to.get().add(part.start), part.len()) };
        dispatch(
            cx.isa,
            Round {
                x: &x[part],
                y,
                steps,
            },
        );
    });
    Ok(steps)
}

/// What numbers lie between, 0 being one of them.
#[derive(Debug, Clone, Copy, Default)]
struct Range {
    low: f32,
    high: f32,
    has_nan: bool,
}

impl Range {
    fn joined(self, other: Range) -> Range {
        Range {
            low: self.low.min(other.low),
            high: self.high.max(other.high),
            has_nan: self.has_nan || other.has_nan,
        }
    }

    fn steps(self) -> Steps {
        if self.has_nan {
            return Steps {
                scale: f32::NAN,
                zero: 0,
            };
        }
        let scale = (self.high - self.low) / TOP;
        let step = if scale == 0.0 { 1.0 } else { scale };
        let zero = (0.0 - self.low / step).round_ties_even();
        Steps {
            scale,
            // Saturates, and makes 0 of NaN.
            zero: zero as u8,
        }
    }
}

struct FindRange<'a> {
    x: &'a [f32],
}

impl Kernel for FindRange<'_> {
    type Output = Range;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Range {
        const CHAINS: usize = 4;
        let FindRange { x } = self;
        let zero = s.splat(0.0);
        let mut low = [zero; CHAINS];
        let mut high = [zero; CHAINS];
        // 0 as long as there was no NaN.
        let mut odd = [zero; CHAINS];
        let step = CHAINS * S::LANES;
        let whole = x.len() / step * step;
        for first in (0..whole).step_by(step) {
            for chain in 0..CHAINS {
                // SAFETY: a whole vector lies inside the slice.
                let v = unsafe { s.load(x.as_ptr().add(first + chain * S::LANES)) };
                low[chain] = s.min(v, low[chain]);
                high[chain] = s.max(v, high[chain]);
                odd[chain] = s.select(s.is_nan(v), v, odd[chain]);
            }
        }
        for first in (whole..x.len()).step_by(S::LANES) {
            let count = (x.len() - first).min(S::LANES);
            // SAFETY: `count` elements lie inside the slice; zeros in the other lanes change nothing.
            let v = unsafe {
                match count == S::LANES {
                    true => s.load(x.as_ptr().add(first)),
                    false => s.load_first(x.as_ptr().add(first), count),
                }
            };
            low[0] = s.min(v, low[0]);
            high[0] = s.max(v, high[0]);
            odd[0] = s.select(s.is_nan(v), v, odd[0]);
        }
        for chain in 1..CHAINS {
            low[0] = s.min(low[chain], low[0]);
            high[0] = s.max(high[chain], high[0]);
            odd[0] = s.select(s.is_nan(odd[chain]), odd[chain], odd[0]);
        }
        Range {
            low: -s.largest(s.neg(low[0])),
            high: s.largest(high[0]),
            has_nan: s.any(s.is_nan(odd[0])),
        }
    }
}

struct Round<'a> {
    x: &'a [f32],
    y: &'a mut [u8],
    steps: Steps,
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Round { x, y, steps } = self;
        let zero = f32::from(steps.zero);
        if steps.scale == 0.0 {
            return y.fill(0);
        }
        // Numbers of which each quotient is one.
        let is_plain = steps.scale.is_finite() && steps.scale >= f32::MIN_POSITIVE;
        let whole = match is_plain {
            true => x.len() / S::LANES * S::LANES,
            false => 0,
        };
        let (scale, point) = (s.splat(steps.scale), s.splat(zero));
        let (bottom, top) = (s.splat(0.0), s.splat(TOP));
        // Integers below 2^23 are the low bits of their sum with it.
        let magic = s.splat((1u32 << 23) as f32);
        let mut words = [0i32; super::simd::MAX_LANES];
        for first in (0..whole).step_by(S::LANES) {
            // SAFETY: a whole vector lies inside the slice, and in the words.
            unsafe {
                let v = s.load(x.as_ptr().add(first));
                let v = s.add(s.round(s.div(v, scale)), point);
                let v = s.min(s.max(v, bottom), top);
                s.int_store(words.as_mut_ptr(), s.bits(s.add(v, magic)));
            }
            let to = &mut y[first..first + S::LANES];
            for lane in 0..S::LANES {
                to[lane] = words[lane] as u8;
            }
        }
        for at in whole..x.len() {
            // Saturates, and makes 0 of NaN.
            y[at] = ((x[at] / steps.scale).round_ties_even() + zero) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Rng, contexts};
    use super::*;

    /// Element by element, as the equations are written.
    fn expected(x: &[f32]) -> (Vec<u8>, Steps) {
        let high = x.iter().fold(0f32, |a, b| a.max(*b));
        let low = x.iter().fold(0f32, |a, b| a.min(*b));
        let scale = (high - low) / 255.0;
        let step = if scale == 0.0 { 1.0 } else { scale };
        let zero = (-(low / step)).round_ties_even().clamp(0.0, 255.0);
        let round = |v: &f32| ((v / step).round_ties_even() + zero).clamp(0.0, 255.0) as u8;
        let steps = Steps {
            scale,
            zero: zero as u8,
        };
        (x.iter().map(round).collect(), steps)
    }

    #[test]
    fn equals_the_equations() {
        contexts(|cx| {
            let mut rng = Rng::new(11);
            for len in [0, 1, 3, 16, 63, 64, 257, 100_003] {
                for shift in [-2.0, -0.3, 0.0, 0.7, 5.0] {
                    let x: Vec<f32> = (0..len).map(|_| rng.float() * 3.0 + shift).collect();
                    let mut y = vec![7; len];
                    let steps = quantise(cx, &x, &mut y).expect("same length");
                    assert_eq!((y, steps), expected(&x), "{len} about {shift}");
                }
            }
        });
    }

    #[test]
    fn odd_numbers() {
        contexts(|cx| {
            let run = |x: &[f32]| {
                let mut y = vec![7; x.len()];
                let steps = quantise(cx, x, &mut y).expect("same length");
                (y, steps)
            };
            let (y, steps) = run(&[0.0; 40]);
            assert_eq!((y, steps.scale, steps.zero), (vec![0; 40], 0.0, 0));
            for at in [0, 17, 39] {
                let mut x = vec![1.0; 40];
                x[at] = f32::NAN;
                let (y, steps) = run(&x);
                assert!(steps.scale.is_nan() && steps.zero == 0 && y == vec![0; 40]);
            }
            let (y, steps) = run(&[1.0, f32::INFINITY, -3.0]);
            assert_eq!((y, steps.scale, steps.zero), (vec![0; 3], f32::INFINITY, 0));
            let tiny = [f32::from_bits(3), f32::from_bits(700)];
            assert_eq!(run(&tiny), expected(&tiny));
        });
    }
}
