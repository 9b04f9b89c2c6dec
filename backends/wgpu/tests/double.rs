//! 64-bit floats, which the GPU computes in integers, against the host's: arithmetic and conversions bit by bit, functions
//! within a few units in the last place.

mod common;

use common::Random;
use common::backends;
use common::units::elementwise;
use cupola_backend::testing::run;
use cupola_ir::convert::{Lanes, encode, lanes};
use cupola_ir::eval::scalar;
use cupola_ir::kernel::{Expr, Unit};
use cupola_ir::{DType, Scalar, Tensor};
use cupola_wgpu::WgpuBackend;

/// Bits at every edge: zeros, subnormals, powers of two and their neighbours, ends of other formats, infinities, NaN.
fn edges() -> Vec<u64> {
    let mut magnitudes: Vec<u64> = vec![0, 1, 2, 3, 0x7ff0_0000_0000_0000, 0x7ff8_0000_0000_0000];
    for value in [
        f64::MIN_POSITIVE,
        f64::MAX,
        1.0,
        1.5,
        2.0,
        0.5,
        0.1,
        3.0,
        1.0 / 3.0,
        std::f64::consts::PI,
        1e-310,
        f64::from(f32::MAX),
        f64::from(f32::MIN_POSITIVE),
        f64::from(f32::from_bits(1)),
        65504.0,
        65520.0,
        2f64.powi(31),
        2f64.powi(32),
        2f64.powi(52),
        2f64.powi(53),
        2f64.powi(63),
        2f64.powi(64),
        1e300,
        1e-300,
    ] {
        let bits = value.to_bits();
        magnitudes.extend([bits - 1, bits, bits + 1]);
    }
    let negative = magnitudes.iter().map(|bits| bits | 1 << 63);
    magnitudes.iter().copied().chain(negative).collect()
}

fn word(random: &mut Random) -> u64 {
    u64::from(random.bits()) << 33 ^ u64::from(random.bits()) << 11 ^ u64::from(random.bits())
}

/// Any bits.
fn anything(random: &mut Random) -> f64 {
    f64::from_bits(word(random))
}

/// Numbers of a few binades, many of them short, so that sums cancel and products tie.
fn close(random: &mut Random) -> f64 {
    let bits = word(random);
    let kept = random.below(53);
    let exponent = 1023 - 30 + u64::from(random.below(60));
    let mantissa = (bits & ((1 << 52) - 1)) >> (52 - kept.min(52)) << (52 - kept.min(52));
    f64::from_bits(bits & 1 << 63 | exponent << 52 | mantissa)
}

/// All pairs of edges, then random ones.
fn pairs(random_len: usize, seed: u64) -> [Vec<f64>; 2] {
    let edges = edges();
    let (mut left, mut right) = (vec![], vec![]);
    for &x in &edges {
        for &y in &edges {
            left.push(f64::from_bits(x));
            right.push(f64::from_bits(y));
        }
    }
    let mut random = Random::new(seed);
    for turn in 0..random_len {
        let pick = if turn % 2 == 0 { anything } else { close };
        left.push(pick(&mut random));
        right.push(pick(&mut random));
    }
    [left, right]
}

fn tensor(values: &[f64]) -> Tensor {
    encode(
        &Lanes::F(values.to_vec()),
        DType::F64,
        &[values.len()],
        false,
    )
    .expect("encodes")
}

fn launch(backend: &WgpuBackend, unit: &Unit, operands: &[&Tensor], out: DType) -> Tensor {
    let shape = operands[0].shape().to_vec();
    let size = Tensor::size_of(out, &shape).expect("a size");
    let mut buffers: Vec<Vec<u8>> = operands.iter().map(|x| x.bytes().to_vec()).collect();
    buffers.push(vec![0; size]);
    run(backend, unit, &[operands[0].len() as i64], &mut buffers).expect("runs");
    Tensor::new(out, shape, buffers.swap_remove(operands.len()).into()).expect("a tensor")
}

fn applied(backend: &WgpuBackend, f: Scalar, operands: &[&Tensor]) -> (Tensor, Tensor) {
    let dtypes = vec![DType::F64; operands.len()];
    let out = f.infer(&dtypes).expect("takes floats");
    let unit = elementwise(&dtypes, out, |k, v| {
        k.expr(match *v {
            [x] => Expr::Unary(f, x),
            [x, y] => Expr::Binary(f, x, y),
            _ => unreachable!("one or two"),
        })
    });
    let values: Vec<Lanes> = operands
        .iter()
        .map(|x| lanes(x).expect("numbers"))
        .collect();
    let want = scalar::eval(f, DType::F64, &values.iter().collect::<Vec<_>>()).expect("computes");
    let want = encode(&want, out, operands[0].shape(), false).expect("encodes");
    (launch(backend, &unit, operands, out), want)
}

/// Equal bits; any NaN is as good as another.
fn assert_bits(got: &Tensor, want: &Tensor, what: &str) {
    if let (Some(Lanes::F(got)), Some(Lanes::F(want))) = (lanes(got), lanes(want)) {
        for (at, (got, want)) in got.iter().zip(&want).enumerate() {
            let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
            assert!(same, "{what}: element {at} is {got:e}, should be {want:e}");
        }
        return;
    }
    assert_eq!(got.bytes(), want.bytes(), "{what}");
}

#[test]
fn arithmetic_is_correctly_rounded() {
    use Scalar::*;
    for backend in backends() {
        for f in [Add, Sub, Mul, Div, Min, Max, Eq, Lt, Le] {
            let [x, y] = pairs(1 << 18, f as u64);
            // Which of two zeros is the smaller is open.
            let (x, y): (Vec<f64>, Vec<f64>) = x
                .into_iter()
                .zip(y)
                .filter(|(x, y)| !matches!(f, Min | Max) || *x != 0.0 || *y != 0.0)
                .unzip();
            let (got, want) = applied(&backend, f, &[&tensor(&x), &tensor(&y)]);
            assert_bits(&got, &want, f.name());
        }
        for f in [Rem, Mod] {
            let [x, y] = pairs(1 << 12, 3);
            let (got, want) = applied(&backend, f, &[&tensor(&x), &tensor(&y)]);
            assert_bits(&got, &want, f.name());
        }
        for f in [
            Sqrt, Recip, Rsqrt, Neg, Abs, Sign, Floor, Ceil, Round, Trunc, IsNan, IsInf,
        ] {
            let [mut x, _] = pairs(1 << 16, 5);
            // Minus zero has the sign of zero.
            x.retain(|x| f != Sign || *x != 0.0);
            let (got, want) = applied(&backend, f, &[&tensor(&x)]);
            assert_bits(&got, &want, f.name());
        }
    }
}

/// Millions of sums and products of random bits on one of the backends.
#[test]
fn many_random_patterns() {
    let Some(backend) = backends().into_iter().next() else {
        return;
    };
    for seed in 0..4 {
        for f in [Scalar::Add, Scalar::Mul] {
            let [x, y] = pairs(1 << 19, 100 + seed);
            let (got, want) = applied(&backend, f, &[&tensor(&x), &tensor(&y)]);
            assert_bits(&got, &want, f.name());
        }
    }
}

fn converted(backend: &WgpuBackend, x: &Tensor, to: DType, saturate: bool) -> Tensor {
    let unit = elementwise(&[x.dtype()], to, |k, v| {
        k.expr(Expr::Cast {
            x: v[0],
            to,
            saturate,
        })
    });
    launch(backend, &unit, &[x], to)
}

#[test]
fn conversions_round_once() {
    for backend in backends() {
        let [values, _] = pairs(1 << 15, 7);
        let x = tensor(&values);
        for to in [
            DType::Bool,
            DType::I8,
            DType::U8,
            DType::I16,
            DType::I32,
            DType::U32,
            DType::I64,
            DType::U64,
            DType::F16,
            DType::BF16,
            DType::F32,
            DType::F8E4M3FN,
            DType::F8E5M2,
            DType::F8E8M0,
        ] {
            let want = cupola_ir::convert::cast(&x, to, true).expect("converts");
            let got = converted(&backend, &x, to, true);
            assert_bits(&got, &want, &format!("f64 to {to}"));
            if to.bits() >= 8 && to != DType::Bool {
                let back = converted(&backend, &want, DType::F64, true);
                let wide = cupola_ir::convert::cast(&want, DType::F64, true).expect("converts");
                assert_bits(&back, &wide, &format!("{to} to f64"));
            }
        }
    }
}

/// Distance in units in the last place of the larger.
fn distance(got: f64, want: f64) -> f64 {
    if got == want || got.is_nan() && want.is_nan() {
        return 0.0;
    }
    let order = |x: f64| {
        let bits = x.to_bits() as i64;
        i128::from(if bits < 0 {
            i64::MIN.wrapping_sub(bits)
        } else {
            bits
        })
    };
    match got.is_finite() && want.is_finite() {
        true => (order(got) - order(want)).unsigned_abs() as f64,
        false => f64::INFINITY,
    }
}

fn assert_near(got: &Tensor, want: &Tensor, units: f64, operands: &[&[f64]], what: &str) {
    let (Some(Lanes::F(got)), Some(Lanes::F(want))) = (lanes(got), lanes(want)) else {
        unreachable!("floats");
    };
    for (at, (&got, &want)) in got.iter().zip(&want).enumerate() {
        let arguments: Vec<f64> = operands.iter().map(|x| x[at]).collect();
        let off = distance(got, want);
        assert!(
            off <= units,
            "{what} of {arguments:?} is {got:e}, should be {want:e} ({off} units)"
        );
    }
}

/// The host's own functions of these lose digits next to their zeros and overflow early.
fn inverse_hyperbolic(f: Scalar) -> Option<fn(f64) -> f64> {
    Some(match f {
        Scalar::Asinh => |x| {
            let a = x.abs();
            let value = match a > 1e10 {
                true => a.ln() + std::f64::consts::LN_2,
                false => (a + a * a / (1.0 + (1.0 + a * a).sqrt())).ln_1p(),
            };
            value.copysign(x)
        },
        Scalar::Acosh => |x| {
            let t = x - 1.0;
            match x > 1e10 {
                true => x.ln() + std::f64::consts::LN_2,
                false if x < 1.0 => f64::NAN,
                false => (t + (t * (2.0 + t)).sqrt()).ln_1p(),
            }
        },
        Scalar::Atanh => |x| {
            let a = x.abs();
            (0.5 * (2.0 * a / (1.0 - a)).ln_1p()).copysign(x)
        },
        _ => return None,
    })
}

#[test]
fn functions_are_within_a_few_units() {
    use Scalar::*;
    let Some(backend) = backends().into_iter().next() else {
        return;
    };
    let mut x: Vec<f64> = edges().into_iter().map(f64::from_bits).collect();
    let mut random = Random::new(11);
    x.extend((0..2000).map(|i| f64::from(i - 1000) * 0.007_31));
    x.extend((0..2000).map(|i| f64::from(i - 1000) * 0.713_9));
    x.extend((0..2000).map(|_| anything(&mut random)));
    x.extend((0..4000).map(|_| close(&mut random)));
    for f in [
        Exp, Expm1, Log, Log1p, Sin, Cos, Tan, Asin, Acos, Atan, Sinh, Cosh, Tanh, Asinh, Acosh,
        Atanh, Erf, Sigmoid,
    ] {
        let (got, mut want) = applied(&backend, f, &[&tensor(&x)]);
        if let Some(exact) = inverse_hyperbolic(f) {
            want = tensor(&x.iter().map(|&x| exact(x)).collect::<Vec<_>>());
        }
        let units = match f {
            Exp | Log | Sin | Cos | Atan => 2.0,
            Sigmoid | Asin | Acos | Tan | Expm1 | Log1p => 4.0,
            _ => 8.0,
        };
        assert_near(&got, &want, units, &[&x], f.name());
    }
}

#[test]
fn powers_and_angles_are_within_a_few_units() {
    let Some(backend) = backends().into_iter().next() else {
        return;
    };
    let [mut x, mut y] = pairs(1 << 12, 13);
    let mut random = Random::new(17);
    for _ in 0..4000 {
        x.push(f64::from(random.below(40)) * 0.25);
        y.push(f64::from(random.below(80)) * 0.5 - 20.0);
        x.push(close(&mut random).abs());
        y.push(close(&mut random) * 2f64.powi(-8));
    }
    for (f, units) in [(Scalar::Atan2, 4.0), (Scalar::Pow, 10.0)] {
        let (got, want) = applied(&backend, f, &[&tensor(&x), &tensor(&y)]);
        assert_near(&got, &want, units, &[&x, &y], f.name());
    }
}
