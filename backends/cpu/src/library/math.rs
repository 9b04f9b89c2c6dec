//! Elementary functions on vectors of `f32`, written once for all levels.
//!
//! Error bounds are the largest found by the tests below against f64, in units in the last place (ULP) of the result.

use super::simd::Simd;

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts; the first has 9 significant bits, so its product with an exponent is exact.
const LN2_HIGH: f32 = 355.0 / 512.0;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// `(e^r - 1 - r) / r^2` on `|r| <= ln 2 / 2`, least maximal relative error of the whole, 3e-9 (fitted by Lawson's iteration).
const EXP: [f32; 5] = [
    0.499_999_94,
    0.166_665_2,
    0.041_668_393,
    0.008_368_781,
    0.001_381_446_7,
];

/// `(tanh(x) / x - 1) / x^2` as a polynomial in `x^2` on `|x| <= 0.625`, 5e-9.
const TANH: [f32; 5] = [
    -0.333_332_8,
    0.133_314_25,
    -0.053_737_614,
    0.020_630_41,
    -0.005_693_518,
];

/// `e^x`, within 1 ULP (2 without fused multiply-add); subnormal results included, overflow gives infinity.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    // Beyond these limits the result is 0 or infinity anyway. `min` and `max` pass NaN on in their second operand.
    let x = s.max(s.splat(-104.0), s.min(s.splat(89.0), x));
    let n = s.round(s.mul(x, s.splat(LOG2_E)));
    let r = s.neg_mul_add(n, s.splat(LN2_HIGH), x);
    let r = s.neg_mul_add(n, s.splat(LN2_LOW), r);
    let mut p = s.splat(EXP[4]);
    for c in [EXP[3], EXP[2], EXP[1], EXP[0]] {
        p = s.mul_add(p, r, s.splat(c));
    }
    let p = s.add(s.mul_add(s.mul(r, r), p, r), s.splat(1.0));
    s.scale(p, n)
}

/// `tanh(x)`, within 2 ULP.
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let size = s.abs(x);
    let square = s.mul(x, x);
    let mut p = s.splat(TANH[4]);
    for c in [TANH[3], TANH[2], TANH[1], TANH[0]] {
        p = s.mul_add(p, square, s.splat(c));
    }
    let near = s.mul_add(s.mul(p, square), size, size);
    let grown = s.add(exp(s, s.add(size, size)), s.splat(1.0));
    let far = s.sub(s.splat(1.0), s.div(s.splat(2.0), grown));
    let result = s.select(s.lt(size, s.splat(0.625)), near, far);
    let sign = s.and(s.bits(x), s.int_splat(i32::MIN));
    s.float_of_bits(s.or(s.bits(result), sign))
}

/// `1 / (1 + e^-x)`, within 3 ULP where the result is normal; 0 below -88.8.
#[inline(always)]
pub fn sigmoid<S: Simd>(s: S, x: S::F) -> S::F {
    s.div(s.splat(1.0), s.add(s.splat(1.0), exp(s, s.neg(x))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::library::simd::{Kernel, MAX_LANES, dispatch};

    #[derive(Clone, Copy)]
    enum Function {
        Exp,
        Tanh,
        Sigmoid,
    }

    struct Apply<'a>(Function, &'a [f32], &'a mut [f32]);

    impl Kernel for Apply<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for (x, y) in self.1.chunks(S::LANES).zip(self.2.chunks_mut(S::LANES)) {
                unsafe {
                    let v = s.load_first(x.as_ptr(), x.len());
                    let v = match self.0 {
                        Function::Exp => exp(s, v),
                        Function::Tanh => tanh(s, v),
                        Function::Sigmoid => sigmoid(s, v),
                    };
                    s.store_first(y.as_mut_ptr(), y.len(), v);
                }
            }
        }
    }

    fn ulp(x: f64) -> f64 {
        let exponent = (x.abs() as f32).max(f32::MIN_POSITIVE).to_bits() >> 23;
        2f64.powi(exponent as i32 - 127 - 23)
    }

    fn worst(isa: Isa, function: Function, inputs: &[f32]) -> f64 {
        let mut outputs = vec![0f32; inputs.len()];
        dispatch(isa, Apply(function, inputs, &mut outputs));
        let mut worst = 0f64;
        for (&x, &got) in inputs.iter().zip(&outputs) {
            let wide = f64::from(x);
            let want = match function {
                Function::Exp => wide.exp(),
                Function::Tanh => wide.tanh(),
                Function::Sigmoid => 1.0 / (1.0 + (-wide).exp()),
            };
            if x.is_nan() {
                assert!(got.is_nan());
            } else if !(want as f32).is_finite() {
                assert_eq!(got, want as f32, "at {x}");
            } else if matches!(function, Function::Sigmoid) && want < 1e-38 {
                assert!(got < 2e-38, "at {x}: {got}");
            } else {
                worst = worst.max((f64::from(got) - want).abs() / ulp(want));
            }
        }
        worst
    }

    #[test]
    fn error_bounds() {
        let mut inputs: Vec<f32> = (0..1u64 << 32)
            .step_by(30_011)
            .map(|bits| f32::from_bits(bits as u32))
            .collect();
        inputs.extend((0..200_000).map(|i| (i as f32 - 100_000.0) * 1.1e-3));
        inputs.extend([
            0.0,
            -0.0,
            f32::INFINITY,
            f32::NEG_INFINITY,
            88.722_83,
            88.722_84,
            -103.97,
            -103.98,
            -87.4,
            0.625,
        ]);
        assert!(
            !inputs.len().is_multiple_of(MAX_LANES),
            "a tail is tested too"
        );
        for isa in Isa::available() {
            let bounds = [
                (Function::Exp, 2.0),
                (Function::Tanh, 2.0),
                (Function::Sigmoid, 3.0),
            ];
            for (function, bound) in bounds {
                let error = worst(isa, function, &inputs);
                assert!(error <= bound, "{isa:?}: {error} ULP");
            }
        }
    }

    #[test]
    fn signed_zero_stays() {
        for isa in Isa::available() {
            let mut out = [1f32; 2];
            dispatch(isa, Apply(Function::Tanh, &[-0.0, 0.0], &mut out));
            assert_eq!(out.map(f32::to_bits), [(-0.0f32).to_bits(), 0]);
        }
    }
}
