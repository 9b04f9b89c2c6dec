use super::*;
use crate::eval::random;
use crate::eval::scalar::{Num, eval_one};
use crate::kernel::{
    Access, AxisId, BufferDecl, BufferId, Extent, Index, Phase, Store, StoreKind, run_kernel,
    verify,
};
use crate::target::{Aliasing, Claim};

/// A target with only what every target has, and perhaps fused multiplication.
fn target(fma: bool) -> Target {
    use Scalar::*;
    let mut scalars = vec![
        Add, Sub, Mul, Div, And, Or, Xor, Not, Shl, Shr, Eq, Lt, Le, Select, Sqrt,
    ];
    if fma {
        scalars.push(Fma);
    }
    Target {
        name: "bare".into(),
        dtypes: vec![],
        scalars,
        max_buffers: 8,
        alignment: 1,
        max_binding: u64::MAX,
        aliasing: Aliasing::Units,
        scatters_in_place: true,
        joins_in_turn: false,
        half_factors: false,
        claim: |_, _| Claim::No {
            reason: String::new(),
        },
    }
}

/// `out[i] = f(x[i], y[i], ..)`.
fn kernel(f: Scalar, dtype: DType, len: usize) -> Kernel {
    let mut k = Kernel {
        axes: vec![Extent::Const(len as i64)],
        parallel: 1,
        ..Kernel::default()
    };
    let i = k.index(Index::Axis(AxisId(0)));
    let mut operands = vec![];
    let len = Extent::Const(len as i64);
    for n in 0..f.arity() {
        k.buffers.push(BufferDecl {
            dtype,
            access: Access::Read,
            len,
        });
        operands.push(k.expr(Expr::Load {
            buffer: BufferId(n as u32),
            index: i,
            guard: None,
        }));
    }
    let value = match operands[..] {
        [x] => k.expr(Expr::Unary(f, x)),
        [x, y] => k.expr(Expr::Binary(f, x, y)),
        [x, y, z] => k.expr(Expr::Ternary(f, x, y, z)),
        _ => unreachable!("no function has more operands"),
    };
    let dtype = k.dtype(value);
    let buffer = BufferId(k.buffers.len() as u32);
    k.buffers.push(BufferDecl {
        dtype,
        access: Access::Write,
        len,
    });
    let store = Store {
        buffer,
        index: i,
        value,
        guard: None,
        kind: StoreKind::Set,
    };
    k.phases = vec![Phase::Store {
        axes: vec![],
        stores: vec![store],
    }];
    k
}

const SPECIAL: [f32; 24] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    -0.5,
    1.5,
    -1.5,
    2.0,
    -2.0,
    2.5,
    3.0,
    -3.0,
    1e-45,
    -1e-45,
    1e-38,
    -1e-38,
    3e38,
    -3e38,
    8388609.0,
    1e9,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
];

/// Every pair of special values, then pseudo-random numbers: half of any exponent, half of moderate size.
fn arguments(arity: usize, random: usize) -> Vec<Vec<f32>> {
    let mut out = vec![vec![]; arity];
    if arity == 1 {
        out[0].extend(SPECIAL);
    } else {
        for x in SPECIAL {
            for y in SPECIAL {
                out[0].push(x);
                out[1].push(y);
            }
        }
    }
    for i in 0..random {
        for (n, list) in out.iter_mut().enumerate() {
            let bits = random::bits(7, n as u64, 0, i as u64);
            let any = f32::from_bits(bits);
            let moderate = (bits >> 8) as f32 / (1 << 20) as f32 - 8.0;
            list.push(match i % 4 {
                0 => any,
                1 => moderate,
                2 => moderate / 8.0,
                _ => moderate * 12.0,
            });
        }
    }
    out
}

fn bytes(v: &[f32]) -> Vec<u8> {
    v.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Distance in units in the last place of the exact result rounded to f32; infinite where the kinds differ.
fn distance(got: f32, exact: f64) -> f64 {
    let want = exact as f32;
    if got.is_nan() || want.is_nan() {
        return if got.is_nan() == want.is_nan() {
            0.0
        } else {
            f64::INFINITY
        };
    }
    if got == want {
        let sign = got != 0.0 || got.is_sign_negative() == want.is_sign_negative();
        return if sign { 0.0 } else { f64::INFINITY };
    }
    if got.is_infinite() || want.is_infinite() {
        // One step beyond the largest number counts as one unit.
        let near = got.abs().min(want.abs());
        return if near >= 3.402_822e38 && got.signum() == want.signum() {
            1.0
        } else {
            f64::INFINITY
        };
    }
    let unit = f64::from(want.abs().next_up()) - f64::from(want.abs());
    (f64::from(got) - exact).abs() / unit
}

fn worst(f: Scalar, fma: bool, random: usize) -> (f64, Vec<f32>, f32) {
    let arguments = arguments(f.arity(), random);
    let len = arguments[0].len();
    let plain = kernel(f, DType::F32, len);
    let expanded = legalize(&plain, &target(fma));
    verify(&expanded).unwrap();
    let lacks = |e: &Expr| match e {
        Expr::Unary(f, _) | Expr::Binary(f, ..) | Expr::Ternary(f, ..) => {
            !target(fma).scalars.contains(f)
        }
        _ => false,
    };
    assert!(
        !expanded.exprs.iter().any(lacks),
        "{} is not expanded",
        f.name()
    );
    let mut buffers: Vec<Vec<u8>> = arguments.iter().map(|v| bytes(v)).collect();
    let result = plain.dtype(crate::kernel::ExprId(plain.exprs.len() as u32 - 1));
    buffers.push(vec![0; len * result.size()]);
    run_kernel(&expanded, &mut buffers, &[]).unwrap();
    let mut worst = (0.0, vec![], 0.0);
    for i in 0..len {
        let xs: Vec<f32> = arguments.iter().map(|v| v[i]).collect();
        let nums: Vec<Num> = xs.iter().map(|x| Num::F(f64::from(*x))).collect();
        let out = buffers.last().unwrap();
        let (got, exact) = match eval_one(f, DType::F32, &nums).unwrap() {
            Num::F(v) => (
                f32::from_le_bytes(out[i * 4..i * 4 + 4].try_into().unwrap()),
                v,
            ),
            Num::U(v) => (f32::from(out[i]), v as f64),
            Num::I(_) => unreachable!("f32 gives no integers"),
        };
        if matches!(f, Scalar::Rem | Scalar::Mod) && (xs[0] / xs[1]).abs() > 8_000_000.0 {
            continue;
        }
        let error = distance(got, exact);
        if error > worst.0 {
            worst = (error, xs, got);
        }
    }
    worst
}

#[test]
fn expansions_keep_their_bounds() {
    for f in Scalar::ALL
        .iter()
        .copied()
        .filter(|f| expands(*f, DType::F32) && *f != Scalar::Fma)
    {
        for fma in [true, false] {
            let (error, at, got) = worst(f, fma, 8_000);
            let bound = error_bound(f);
            println!(
                "{} fma {fma}: {error:.2} ulp of {bound} at {at:?}: {got:e}",
                f.name()
            );
            assert!(
                error <= bound.max(0.5),
                "{} of {at:?} is {got:e}: {error} ulp",
                f.name()
            );
        }
    }
}

/// Runs the function as it stands and expanded over random elements and gives both results.
fn both(f: Scalar, dtype: DType, len: usize) -> [Vec<u8>; 2] {
    let plain = kernel(f, dtype, len);
    let expanded = legalize(&plain, &target(false));
    assert_ne!(plain, expanded);
    verify(&expanded).unwrap();
    let word = |n: usize, i: usize| random::bits(11, n as u64, 0, i as u64);
    let operands = (0..f.arity()).map(|n| {
        let len = dtype.storage_size(1, len).unwrap();
        // Small numbers and zeros are common, every byte occurs.
        (0..len)
            .map(|i| (word(n, i) >> (word(n, i) % 4 * 8)) as u8 & (word(n + 4, i / 8) >> 8) as u8)
            .collect()
    });
    let mut buffers: Vec<Vec<u8>> = operands.collect();
    buffers.push(vec![0; len * 8]);
    [plain, expanded].map(|k| {
        let mut buffers = buffers.clone();
        run_kernel(&k, &mut buffers, &[]).unwrap();
        buffers.pop().unwrap()
    })
}

#[test]
fn integer_expansions_are_exact() {
    use DType::*;
    for f in Scalar::ALL.iter().copied() {
        for dtype in [I2, I4, I8, I16, I32, I64, U2, U4, U8, U16, U32, U64] {
            // The remainder by zero is left to the backend's division.
            if expands(f, dtype)
                && f.infer(&vec![dtype; f.arity()]).is_ok()
                && !matches!(f, Scalar::Rem | Scalar::Mod)
            {
                let [plain, expanded] = both(f, dtype, 2000);
                assert_eq!(plain, expanded, "{} of {dtype}", f.name());
            }
        }
    }
}

#[test]
fn narrow_floats_are_expanded_in_f32() {
    for f in Scalar::ALL.iter().copied() {
        let rules = f.infer(&vec![DType::F16; f.arity()]);
        if !expands(f, DType::F16)
            || rules != Ok(DType::F16)
            || matches!(f, Scalar::Rem | Scalar::Mod | Scalar::Fma)
        {
            continue;
        }
        let [plain, expanded] = both(f, DType::F16, 2000);
        let codes = |b: &[u8]| {
            b.as_chunks::<2>()
                .0
                .iter()
                .map(|c| half::f16::from_le_bytes(*c))
                .collect::<Vec<_>>()
        };
        for (a, b) in codes(&plain).into_iter().zip(codes(&expanded)) {
            // Magnitude codes of neighbours differ by one.
            let near = (a.to_bits() & 0x7FFF).abs_diff(b.to_bits() & 0x7FFF) <= 1;
            assert!(
                near && a.is_sign_negative() == b.is_sign_negative() || a.is_nan() && b.is_nan(),
                "{} {a} {b}",
                f.name()
            );
        }
    }
}

#[test]
fn double_precision_is_expanded_where_no_polynomial_is_needed() {
    for f in [
        Scalar::Neg,
        Scalar::Abs,
        Scalar::Sign,
        Scalar::Min,
        Scalar::Max,
        Scalar::IsNan,
        Scalar::IsInf,
        Scalar::Recip,
    ] {
        let [plain, expanded] = both(f, DType::F64, 500);
        let floats = |b: &[u8]| {
            b.as_chunks::<8>()
                .0
                .iter()
                .map(|c| f64::from_le_bytes(*c))
                .collect::<Vec<_>>()
        };
        for (a, b) in floats(&plain).into_iter().zip(floats(&expanded)) {
            assert!(a == b || a.is_nan() && b.is_nan(), "{} {a} {b}", f.name());
        }
    }
    assert!(!expands(Scalar::Exp, DType::F64));
}
