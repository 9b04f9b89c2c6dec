//! Generated kernels against the reference's scalar functions and plain Rust: every dtype and function, both mappings,
//! word and element stores, faults.

mod common;

use std::sync::Arc;

use common::units::{buffer, elementwise, kernel, load, set};
use cupola_backend::testing::run;
use cupola_backend::{Backend, BackendError, BufferRange, Command, Launch};
use cupola_ir::convert::{Lanes, encode, lanes};
use cupola_ir::eval::scalar;
use cupola_ir::kernel::*;
use cupola_ir::{DType, Scalar, Tensor};
use cupola_wgpu::WgpuBackend;

/// Names of generated values never hide those of WGSL's types, however many there are.
#[test]
fn kernels_of_many_indices() {
    for backend in common::backends() {
        let mut k = kernel("many", 1);
        let n = Extent::Size(0);
        k.axes = vec![n];
        k.parallel = 1;
        k.buffers = vec![buffer(DType::I32, Access::Write, n)];
        let (axis, one) = (k.index(Index::Axis(AxisId(0))), k.index(Index::Const(1)));
        let mut index = axis;
        for step in 2..90 {
            let by = k.index(Index::Const(step));
            let scaled = k.index(Index::Mul(index, by));
            let shifted = k.index(Index::Add(scaled, one));
            index = k.index(Index::Div(shifted, by));
        }
        let value = k.expr(Expr::Index(index, DType::I32));
        k.phases = vec![Phase::Store {
            axes: vec![],
            stores: vec![set(0, axis, value)],
        }];
        let mut buffers = vec![vec![0; 5 * 4]];
        run(&backend, &Unit::Loops(k), &[5], &mut buffers).expect("runs");
        let want: Vec<u8> = (0..5i32).flat_map(i32::to_le_bytes).collect();
        assert_eq!(buffers[0], want);
    }
}

/// Every dtype that kernels hold.
const DTYPES: [DType; 23] = [
    DType::Bool,
    DType::I2,
    DType::I4,
    DType::I8,
    DType::I16,
    DType::I32,
    DType::I64,
    DType::U2,
    DType::U4,
    DType::U8,
    DType::U16,
    DType::U32,
    DType::U64,
    DType::F16,
    DType::BF16,
    DType::F32,
    DType::F64,
    DType::F8E4M3FN,
    DType::F8E4M3FNUZ,
    DType::F8E5M2,
    DType::F8E5M2FNUZ,
    DType::F8E8M0,
    DType::F4E2M1,
];

/// Floats of every kind of size, including the special ones.
fn float_samples() -> Vec<f64> {
    let mut values = vec![
        0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, 3.0, -2.5, 1e-3, 0.3, 0.7, 1.2, 20.0, -30.0, 100.0,
    ];
    values.extend([
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        1e10,
        -1e10,
        1e30,
        12345.678,
        0.999,
        1e-8,
        5.5,
        85.0,
    ]);
    values.extend((0..50).map(|i| f64::from(i) * 0.173 - 4.0));
    values
}

fn int_samples(dtype: DType) -> Vec<i128> {
    let (least, most) = dtype.int_range().unwrap_or((0, 1));
    let mut values = vec![
        least,
        least + 1,
        -7,
        -3,
        -2,
        -1,
        0,
        1,
        2,
        3,
        5,
        31,
        63,
        64,
        1 << 33,
        most / 3,
        most - 1,
        most,
    ];
    values.retain(|value| (least..=most).contains(value));
    values
}

/// Sample values of a dtype as it stores them.
fn samples(dtype: DType) -> Tensor {
    let lanes = if dtype.is_float() {
        Lanes::F(float_samples())
    } else if dtype.int_range().is_some_and(|(least, _)| least < 0) {
        Lanes::I(int_samples(dtype).into_iter().map(|v| v as i64).collect())
    } else {
        Lanes::U(int_samples(dtype).into_iter().map(|v| v as u64).collect())
    };
    encode(&lanes, dtype, &[lanes.len()], false).expect("encodes")
}

/// All pairs of sample values.
fn pairs(dtype: DType) -> (Tensor, Tensor) {
    let all = lanes(&samples(dtype)).expect("numbers");
    macro_rules! cross {
        ($values:expr, $kind:ident) => {{
            let (mut left, mut right) = (vec![], vec![]);
            for &x in &$values {
                for &y in &$values {
                    left.push(x);
                    right.push(y);
                }
            }
            (Lanes::$kind(left), Lanes::$kind(right))
        }};
    }
    let (left, right) = match all {
        Lanes::F(values) => cross!(values, F),
        Lanes::I(values) => cross!(values, I),
        Lanes::U(values) => cross!(values, U),
    };
    let tensor = |lanes: &Lanes| encode(lanes, dtype, &[lanes.len()], false).expect("encodes");
    (tensor(&left), tensor(&right))
}

/// Compares numbers: integers exactly, floats within `relative`, f32's subnormals taken for zero.
fn assert_same(got: &Lanes, want: &Lanes, relative: f64, what: &str) {
    match (got, want) {
        (Lanes::F(got), Lanes::F(want)) => {
            for (at, (&got, &want)) in got.iter().zip(want).enumerate() {
                let tiny = want.abs() < f64::from(f32::MIN_POSITIVE)
                    && got.abs() < 2.0 * f64::from(f32::MIN_POSITIVE);
                let same = got == want
                    || got.is_nan() && want.is_nan()
                    || tiny
                    || (got - want).abs() <= relative * want.abs().max(1e-30)
                    || beyond_f32(got, want);
                assert!(same, "{what}: element {at} is {got:e}, should be {want:e}");
            }
        }
        _ => assert_eq!(got, want, "{what}"),
    }
}

/// At the end of f32's range one side may round to infinity.
fn beyond_f32(got: f64, want: f64) -> bool {
    let edge = f64::from(f32::MAX) * 0.999;
    got.signum() == want.signum() && got.abs() >= edge && want.abs() >= edge
}

/// Largest relative error of a function in f32.
fn error_of(f: Scalar) -> f64 {
    use Scalar::*;
    match f {
        // Built-in exponentials may be off by 3 + 2 |x| units, and powers by the exponent times that.
        Exp | Expm1 | Sigmoid | Sinh | Cosh => 3e-5,
        Pow => 1e-4,
        Tan => 1e-5,
        _ => 2e-6,
    }
}

fn check_unary(backend: &WgpuBackend, f: Scalar, dtype: DType, x: &Tensor) {
    let values = lanes(x).expect("numbers");
    let Ok(result) = scalar::eval(f, dtype, &[&values]) else {
        return;
    };
    let Ok(output) = f.infer(&[dtype]) else {
        return;
    };
    let unit = elementwise(&[dtype], output, |k, v| k.expr(Expr::Unary(f, v[0])));
    let want = encode(&result, output, x.shape(), false).expect("encodes");
    let mut buffers = vec![x.bytes().to_vec(), vec![0; want.bytes().len()]];
    run(backend, &unit, &[x.len() as i64], &mut buffers).expect("runs");
    compare(
        &buffers[1],
        &want,
        error_of(f),
        &format!("{} of {dtype}", f.name()),
    );
}

/// Compares stored elements with a tensor; narrow floats may round the other way.
fn compare(got: &[u8], want: &Tensor, relative: f64, what: &str) {
    let got =
        Tensor::new(want.dtype(), want.shape().to_vec(), got.to_vec().into()).expect("a tensor");
    let (got, mut want_lanes) = (lanes(&got).expect("numbers"), lanes(want).expect("numbers"));
    let step = match want.dtype() {
        DType::F16 => 1e-3,
        DType::BF16 => 8e-3,
        DType::F32 => 0.0,
        d if d.is_float() => 0.3,
        _ => 0.0,
    };
    let mut got = got;
    if let (Lanes::F(got), Lanes::F(want)) = (&mut got, &mut want_lanes)
        && step > 0.0
    {
        // Values near the smallest step of a narrow format differ by it absolutely.
        let least = match got.len() {
            _ if step > 0.1 => 0.05,
            _ => 1e-7,
        };
        for (got, want) in got.iter_mut().zip(want) {
            if (*got - *want).abs() <= least {
                *got = *want;
            }
        }
    }
    assert_same(&got, &want_lanes, relative + step, what);
}

/// Every function of so many operands.
fn functions_of(arity: usize) -> impl Iterator<Item = Scalar> {
    let all = Scalar::ALL.iter().copied();
    all.filter(move |f| f.arity() == arity)
}

#[test]
fn functions_of_one_operand() {
    for backend in common::backends() {
        for f in functions_of(1) {
            for dtype in [
                DType::F32,
                DType::F16,
                DType::BF16,
                DType::Bool,
                DType::I4,
                DType::I8,
                DType::U8,
                DType::I16,
            ] {
                check_unary(&backend, f, dtype, &samples(dtype));
            }
            for dtype in [DType::U16, DType::I32, DType::U32, DType::I64, DType::U64] {
                check_unary(&backend, f, dtype, &samples(dtype));
            }
        }
    }
}

#[test]
fn float_functions_over_their_range() {
    let Some(backend) = common::backends().into_iter().last() else {
        return;
    };
    let values: Vec<f64> = (-4000..4000).map(|i| f64::from(i) * 0.013_57).collect();
    let near: Vec<f64> = (-1000..1000).map(|i| f64::from(i) * 0.001_9).collect();
    let small: Vec<f64> = (-120..120i32)
        .map(|i| f64::from(i).signum() * 2f64.powi(i.abs() - 100))
        .collect();
    let all = Lanes::F([values, near, small].concat());
    let x = encode(&all, DType::F32, &[all.len()], false).expect("encodes");
    for f in functions_of(1) {
        check_unary(&backend, f, DType::F32, &x);
    }
}

fn check_binary(backend: &WgpuBackend, f: Scalar, dtype: DType) {
    let (mut x, mut y) = pairs(dtype);
    if matches!(f, Scalar::Div | Scalar::Rem | Scalar::Mod) && dtype.is_int() {
        (x, y) = without_zero_divisors(&x, &y);
    }
    let (left, right) = (lanes(&x).expect("numbers"), lanes(&y).expect("numbers"));
    let Ok(result) = scalar::eval(f, dtype, &[&left, &right]) else {
        return;
    };
    let Ok(output) = f.infer(&[dtype, dtype]) else {
        return;
    };
    let unit = elementwise(&[dtype, dtype], output, |k, v| {
        k.expr(Expr::Binary(f, v[0], v[1]))
    });
    let want = encode(&result, output, x.shape(), false).expect("encodes");
    let mut buffers = vec![
        x.bytes().to_vec(),
        y.bytes().to_vec(),
        vec![0; want.bytes().len()],
    ];
    run(backend, &unit, &[x.len() as i64], &mut buffers).expect("runs");
    compare(
        &buffers[2],
        &want,
        error_of(f),
        &format!("{} of {dtype}", f.name()),
    );
}

fn without_zero_divisors(x: &Tensor, y: &Tensor) -> (Tensor, Tensor) {
    let dtype = x.dtype();
    macro_rules! keep {
        ($x:expr, $y:expr, $kind:ident) => {{
            let both: Vec<_> = $x.into_iter().zip($y).filter(|(_, y)| *y != 0).collect();
            let (x, y): (Vec<_>, Vec<_>) = both.into_iter().unzip();
            (Lanes::$kind(x), Lanes::$kind(y))
        }};
    }
    let (x, y) = match (lanes(x), lanes(y)) {
        (Some(Lanes::I(x)), Some(Lanes::I(y))) => keep!(x, y, I),
        (Some(Lanes::U(x)), Some(Lanes::U(y))) => keep!(x, y, U),
        _ => unreachable!("integers"),
    };
    let tensor = |lanes: &Lanes| encode(lanes, dtype, &[lanes.len()], false).expect("encodes");
    (tensor(&x), tensor(&y))
}

#[test]
fn functions_of_two_operands() {
    for backend in common::backends() {
        for f in functions_of(2) {
            let remainder = matches!(f, Scalar::Rem | Scalar::Mod);
            for dtype in [
                DType::F32,
                DType::Bool,
                DType::I4,
                DType::I8,
                DType::U8,
                DType::I16,
                DType::U16,
            ] {
                check_binary(&backend, f, dtype);
            }
            for dtype in [DType::I32, DType::U32, DType::I64, DType::U64] {
                check_binary(&backend, f, dtype);
            }
            // The remainder of a rounded dividend is something else.
            if !remainder && f != Scalar::Pow {
                check_binary(&backend, f, DType::F16);
            }
        }
    }
}

#[test]
fn functions_of_three_operands() {
    for backend in common::backends() {
        for dtype in [
            DType::F32,
            DType::I8,
            DType::U16,
            DType::I32,
            DType::I64,
            DType::Bool,
        ] {
            let (x, y) = pairs(dtype);
            let choose = encode(
                &Lanes::U((0..x.len() as u64).map(|i| i % 3 / 2).collect()),
                DType::Bool,
                x.shape(),
                false,
            );
            let choose = choose.expect("encodes");
            let unit = elementwise(&[DType::Bool, dtype, dtype], dtype, |k, v| {
                k.expr(Expr::Ternary(Scalar::Select, v[0], v[1], v[2]))
            });
            let mut buffers: Vec<Vec<u8>> = [&choose, &x, &y].map(|t| t.bytes().to_vec()).into();
            buffers.push(vec![0; x.bytes().len()]);
            run(&backend, &unit, &[x.len() as i64], &mut buffers).expect("runs");
            let size = dtype.size();
            for i in 0..x.len() {
                let from = if choose.bytes()[i] != 0 { &x } else { &y };
                let at = i * size..(i + 1) * size;
                let (got, want) = (&buffers[3][at.clone()], &from.bytes()[at]);
                let flushed = dtype == DType::F32 && got == [0; 4];
                assert!(got == want || flushed, "{dtype} {i}: {got:?} {want:?}");
            }
        }
        for dtype in [DType::I8, DType::U16, DType::I32, DType::I64] {
            let (x, y) = pairs(dtype);
            let (a, b) = (lanes(&x).expect("numbers"), lanes(&y).expect("numbers"));
            let product = scalar::eval(Scalar::Mul, dtype, &[&a, &b]).expect("evaluates");
            let sum = scalar::eval(Scalar::Add, dtype, &[&product, &a]).expect("evaluates");
            let unit = elementwise(&[dtype, dtype], dtype, |k, v| {
                k.expr(Expr::Ternary(Scalar::Fma, v[0], v[1], v[0]))
            });
            let mut buffers = vec![
                x.bytes().to_vec(),
                y.bytes().to_vec(),
                vec![0; x.bytes().len()],
            ];
            run(&backend, &unit, &[x.len() as i64], &mut buffers).expect("runs");
            let want = encode(&sum, dtype, x.shape(), false).expect("encodes");
            compare(&buffers[2], &want, 0.0, &format!("fma of {dtype}"));
        }
    }
}

/// `x as to`, with the reference's rules: through one wide number.
fn cast(x: &Tensor, to: DType, saturate: bool) -> Tensor {
    let whole = |v: f64| -> Lanes {
        let (least, most) = to.int_range().expect("an integer");
        let value = if v.is_nan() {
            0
        } else {
            (v.trunc() as i128).clamp(least, most)
        };
        if least < 0 {
            Lanes::I(vec![value as i64])
        } else {
            Lanes::U(vec![value as u64])
        }
    };
    let one = |lanes: Lanes| -> Lanes {
        match (lanes, to) {
            (Lanes::F(v), DType::Bool) => Lanes::U(vec![u64::from(v[0] != 0.0)]),
            (Lanes::I(v), DType::Bool) => Lanes::U(vec![u64::from(v[0] != 0)]),
            (Lanes::U(v), DType::Bool) => Lanes::U(vec![u64::from(v[0] != 0)]),
            (Lanes::F(v), _) if to.is_float() => Lanes::F(v),
            (Lanes::F(v), _) => whole(v[0]),
            (Lanes::I(v), _) if to.is_float() => Lanes::F(vec![v[0] as f64]),
            (Lanes::U(v), _) if to.is_float() => Lanes::F(vec![v[0] as f64]),
            (Lanes::I(v), _) if to.int_range().is_some_and(|(least, _)| least < 0) => Lanes::I(v),
            (Lanes::I(v), _) => Lanes::U(vec![v[0] as u64]),
            (Lanes::U(v), _) if to.int_range().is_some_and(|(least, _)| least < 0) => {
                Lanes::I(vec![v[0] as i64])
            }
            (Lanes::U(v), _) => Lanes::U(v),
        }
    };
    let singles: Vec<Lanes> = match lanes(x).expect("numbers") {
        Lanes::F(v) => v.into_iter().map(|v| one(Lanes::F(vec![v]))).collect(),
        Lanes::I(v) => v.into_iter().map(|v| one(Lanes::I(vec![v]))).collect(),
        Lanes::U(v) => v.into_iter().map(|v| one(Lanes::U(vec![v]))).collect(),
    };
    let mut all = singles[0].clone();
    for single in &singles[1..] {
        match (&mut all, single) {
            (Lanes::F(all), Lanes::F(v)) => all.extend(v),
            (Lanes::I(all), Lanes::I(v)) => all.extend(v),
            (Lanes::U(all), Lanes::U(v)) => all.extend(v),
            _ => unreachable!("one kind"),
        }
    }
    encode(&all, to, x.shape(), saturate).expect("encodes")
}

#[test]
fn casts_between_all_dtypes() {
    for backend in common::backends() {
        for from in DTYPES {
            let x = samples(from);
            for to in DTYPES {
                let small = to.is_float() && to.bits() <= 8;
                for saturate in if small { vec![false, true] } else { vec![true] } {
                    let want = cast(&x, to, saturate);
                    let unit = elementwise(&[from], to, |k, v| {
                        k.expr(Expr::Cast {
                            x: v[0],
                            to,
                            saturate,
                        })
                    });
                    let mut buffers = vec![x.bytes().to_vec(), vec![0; want.bytes().len()]];
                    run(&backend, &unit, &[x.len() as i64], &mut buffers).expect("runs");
                    let got = Tensor::new(to, x.shape().to_vec(), buffers[1].clone().into())
                        .expect("a tensor");
                    let (got, want) = (
                        lanes(&got).expect("numbers"),
                        lanes(&want).expect("numbers"),
                    );
                    // 64-bit integers become f32 with one rounding, as in the reference.
                    assert_same(
                        &got,
                        &want,
                        0.0,
                        &format!("{from} to {to}, saturate {saturate}"),
                    );
                }
            }
        }
    }
}

#[test]
fn bits_keep_through_bitcasts() {
    let Some(backend) = common::backends().into_iter().last() else {
        return;
    };
    let groups: [&[DType]; 4] = [
        &[DType::I8, DType::U8, DType::F8E5M2],
        &[DType::I16, DType::U16, DType::F16, DType::BF16],
        &[DType::I32, DType::U32, DType::F32],
        &[DType::I64, DType::U64],
    ];
    for group in groups {
        for &from in group {
            for &to in group {
                let x = samples(from);
                let unit = elementwise(&[from], to, |k, v| k.expr(Expr::Bitcast { x: v[0], to }));
                let mut buffers = vec![x.bytes().to_vec(), vec![0; x.bytes().len()]];
                run(&backend, &unit, &[x.len() as i64], &mut buffers).expect("runs");
                let want = Tensor::new(to, x.shape().to_vec(), x.bytes().to_vec().into())
                    .expect("a tensor");
                compare(&buffers[1], &want, 0.0, &format!("{from} as {to}"));
            }
        }
    }
}

#[test]
fn copies_of_every_length() {
    for backend in common::backends() {
        for dtype in DTYPES {
            let unit = elementwise(&[dtype], dtype, |_, v| v[0]);
            for len in [
                0usize, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 255, 257, 1025,
            ] {
                let bytes = Tensor::size_of(dtype, &[len]).expect("a size");
                let source: Vec<u8> = (0..bytes)
                    .map(|i| match dtype {
                        DType::Bool => (i % 3 == 0).into(),
                        _ if dtype.is_float() => (i * 7 % 100) as u8,
                        _ => (i * 37 + len) as u8,
                    })
                    .collect();
                let mut buffers = vec![source.clone(), vec![0xff; bytes]];
                run(&backend, &unit, &[len as i64], &mut buffers).expect("runs");
                let tail = len * dtype.bits() % 8;
                let whole = if tail == 0 { bytes } else { bytes - 1 };
                assert_eq!(buffers[1][..whole], source[..whole], "{dtype} {len}");
                if tail != 0 {
                    let mask = (1u8 << tail) - 1;
                    assert_eq!(
                        buffers[1][whole] & mask,
                        source[whole] & mask,
                        "{dtype} {len}: tail"
                    );
                }
            }
        }
    }
}

fn bytes_of<T: bytemuck::Pod>(values: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

fn numbers<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    bytes
        .chunks_exact(size_of::<T>())
        .map(bytemuck::pod_read_unaligned)
        .collect()
}

/// `softmax` over the columns of `[rows, cols]`, stored as `out`: two reductions and a store phase.
fn softmax(out: DType) -> Unit {
    let mut k = kernel("softmax", 2);
    let (rows, cols) = (Extent::Size(0), Extent::Size(1));
    let len = Extent::Size(0);
    k.axes = vec![rows, cols, cols, cols];
    k.parallel = 1;
    k.buffers = vec![
        buffer(DType::F32, Access::Read, len),
        buffer(out, Access::Write, len),
    ];
    let row = k.index(Index::Axis(AxisId(0)));
    let width = k.index(Index::Size(1));
    let base = k.index(Index::Mul(row, width));
    let at: Vec<IndexId> = (1..4)
        .map(|axis| {
            let col = k.index(Index::Axis(AxisId(axis)));
            k.index(Index::Add(base, col))
        })
        .collect();
    let x0 = load(&mut k, 0, at[0]);
    let max = k.expr(Expr::Accum { phase: 0, accum: 0 });
    let exps: Vec<ExprId> = at[1..]
        .iter()
        .map(|&at| {
            let x = load(&mut k, 0, at);
            let shifted = k.expr(Expr::Binary(Scalar::Sub, x, max));
            k.expr(Expr::Unary(Scalar::Exp, shifted))
        })
        .collect();
    k.phases = vec![
        Phase::Reduce {
            axes: vec![AxisId(1)],
            accums: vec![Accum {
                kind: AccumKind::Max,
                value: x0,
            }],
        },
        Phase::Reduce {
            axes: vec![AxisId(2)],
            accums: vec![Accum {
                kind: AccumKind::Sum,
                value: exps[0],
            }],
        },
    ];
    let sum = k.expr(Expr::Accum { phase: 1, accum: 0 });
    let quotient = k.expr(Expr::Binary(Scalar::Div, exps[1], sum));
    let value = if out == DType::F32 {
        quotient
    } else {
        k.expr(Expr::Cast {
            x: quotient,
            to: out,
            saturate: true,
        })
    };
    k.phases.push(Phase::Store {
        axes: vec![AxisId(3)],
        stores: vec![set(1, at[2], value)],
    });
    Unit::Loops(k)
}

#[test]
fn softmax_of_every_width() {
    for backend in common::backends() {
        for out in [DType::F32, DType::F16] {
            let unit = softmax(out);
            // Few columns are a thread's work, many a workgroup's; odd ones keep narrow results from making words.
            for (rows, cols) in [
                (1usize, 1usize),
                (3, 5),
                (70, 8),
                (4, 32),
                (3, 33),
                (2, 100),
                (5, 256),
                (1, 1000),
                (2, 2047),
            ] {
                let x: Vec<f32> = common::Random::new(cols as u64).units(rows * cols);
                let mut buffers = vec![bytes_of(&x), vec![0; rows * cols * out.size()]];
                run(&backend, &unit, &[rows as i64, cols as i64], &mut buffers).expect("runs");
                let got: Vec<f32> = match out {
                    DType::F32 => numbers(&buffers[1]),
                    _ => numbers::<half::f16>(&buffers[1])
                        .into_iter()
                        .map(half::f16::to_f32)
                        .collect(),
                };
                let want: Vec<f64> = x
                    .chunks(cols)
                    .flat_map(|row| {
                        let sum: f64 = row.iter().map(|&v| f64::from(v).exp()).sum();
                        row.iter()
                            .map(move |&v| f64::from(v).exp() / sum)
                            .collect::<Vec<_>>()
                    })
                    .collect();
                let relative = if out == DType::F32 { 1e-5 } else { 1e-3 };
                common::assert_close(
                    &got,
                    &want,
                    1e-7,
                    relative,
                    &format!("softmax {rows}x{cols} {out}"),
                );
            }
        }
    }
}

/// Reduces the columns of `[rows, cols]` with every accumulator kind.
fn reduce(dtype: DType, kinds: &[AccumKind], result: impl Fn(AccumKind) -> DType) -> Unit {
    let mut k = kernel("reduce", 2);
    let (rows, cols) = (Extent::Size(0), Extent::Size(1));
    k.axes = vec![rows, cols];
    k.parallel = 1;
    k.buffers = vec![buffer(dtype, Access::Read, rows)];
    let row = k.index(Index::Axis(AxisId(0)));
    let col = k.index(Index::Axis(AxisId(1)));
    let width = k.index(Index::Size(1));
    let base = k.index(Index::Mul(row, width));
    let at = k.index(Index::Add(base, col));
    let value = load(&mut k, 0, at);
    let accums = kinds.iter().map(|&kind| Accum { kind, value }).collect();
    k.phases = vec![Phase::Reduce {
        axes: vec![AxisId(1)],
        accums,
    }];
    let mut stores = vec![];
    for (number, &kind) in kinds.iter().enumerate() {
        k.buffers.push(buffer(result(kind), Access::Write, rows));
        let value = k.expr(Expr::Accum {
            phase: 0,
            accum: number as u32,
        });
        stores.push(set(number as u32 + 1, row, value));
    }
    k.phases.push(Phase::Store {
        axes: vec![],
        stores,
    });
    Unit::Loops(k)
}

const ORDERS: [AccumKind; 6] = [
    AccumKind::Max,
    AccumKind::Min,
    AccumKind::ArgMax { last: false },
    AccumKind::ArgMax { last: true },
    AccumKind::ArgMin { last: false },
    AccumKind::ArgMin { last: true },
];

#[test]
fn reductions_of_integers() {
    for backend in common::backends() {
        for dtype in [
            DType::I8,
            DType::U8,
            DType::I16,
            DType::I32,
            DType::U32,
            DType::I64,
            DType::U64,
        ] {
            let position =
                |kind| matches!(kind, AccumKind::ArgMax { .. } | AccumKind::ArgMin { .. });
            let result = |kind| if position(kind) { DType::I64 } else { dtype };
            let orders = reduce(dtype, &ORDERS, result);
            let sums = reduce(dtype, &[AccumKind::Sum, AccumKind::Prod], result);
            let signed = dtype.int_range().is_some_and(|(least, _)| least < 0);
            for (rows, cols) in [
                (1usize, 1usize),
                (5, 3),
                (3, 31),
                (2, 33),
                (3, 300),
                (1, 1025),
            ] {
                let mut random = common::Random::new((rows * cols) as u64);
                let data: Vec<i64> = (0..rows * cols)
                    .map(|_| i64::from(random.below(12)) - if signed { 6 } else { 0 })
                    .collect();
                let tensor = |values: Vec<i64>, dtype: DType| {
                    let lanes = match dtype.int_range() {
                        Some((least, _)) if least < 0 => Lanes::I(values),
                        _ => Lanes::U(values.into_iter().map(|v| v as u64).collect()),
                    };
                    encode(&lanes, dtype, &[lanes.len()], false)
                        .expect("encodes")
                        .bytes()
                        .to_vec()
                };
                let of_row =
                    |f: &dyn Fn(&[i64]) -> i64| -> Vec<i64> { data.chunks(cols).map(f).collect() };
                let best = |row: &[i64], largest: bool| -> i64 {
                    let extreme = if largest {
                        row.iter().max()
                    } else {
                        row.iter().min()
                    };
                    *extreme.expect("not empty")
                };
                let place = |row: &[i64], largest: bool, last: bool| -> i64 {
                    let extreme = best(row, largest);
                    let found = if last {
                        row.iter().rposition(|&v| v == extreme)
                    } else {
                        row.iter().position(|&v| v == extreme)
                    };
                    found.expect("there") as i64
                };
                let want = [
                    tensor(of_row(&|row| best(row, true)), dtype),
                    tensor(of_row(&|row| best(row, false)), dtype),
                    tensor(of_row(&|row| place(row, true, false)), DType::I64),
                    tensor(of_row(&|row| place(row, true, true)), DType::I64),
                    tensor(of_row(&|row| place(row, false, false)), DType::I64),
                    tensor(of_row(&|row| place(row, false, true)), DType::I64),
                ];
                let source = tensor(data.clone(), dtype);
                let mut buffers = vec![source.clone()];
                buffers.extend(want.iter().map(|bytes| vec![0; bytes.len()]));
                run(&backend, &orders, &[rows as i64, cols as i64], &mut buffers).expect("runs");
                assert_eq!(buffers[1..], want, "{dtype} {rows}x{cols}");

                let want = [
                    tensor(
                        of_row(&|row| row.iter().fold(0i64, |s, &v| s.wrapping_add(v))),
                        dtype,
                    ),
                    tensor(
                        of_row(&|row| row.iter().fold(1i64, |s, &v| s.wrapping_mul(v))),
                        dtype,
                    ),
                ];
                let mut buffers = vec![source];
                buffers.extend(want.iter().map(|bytes| vec![0; bytes.len()]));
                run(&backend, &sums, &[rows as i64, cols as i64], &mut buffers).expect("runs");
                assert_eq!(buffers[1..], want, "{dtype} {rows}x{cols} sums");
            }
        }
    }
}

#[test]
fn reductions_of_floats_with_nan() {
    for backend in common::backends() {
        let result = |kind| {
            if matches!(kind, AccumKind::Max | AccumKind::Min) {
                DType::F32
            } else {
                DType::I64
            }
        };
        let unit = reduce(DType::F32, &ORDERS, result);
        for cols in [5usize, 40, 700] {
            let mut x = common::Random::new(9).units(4 * cols);
            x[cols + 3] = f32::NAN;
            x[cols + 4] = f32::NAN;
            x[2 * cols] = f32::INFINITY;
            x[2 * cols + 1] = f32::NEG_INFINITY;
            x[3 * cols..].fill(f32::NEG_INFINITY);
            let mut buffers = vec![bytes_of(&x), vec![0; 16], vec![0; 16]];
            buffers.extend(vec![vec![0; 32]; 4]);
            run(&backend, &unit, &[4, cols as i64], &mut buffers).expect("runs");
            let (max, min): (Vec<f32>, Vec<f32>) = (numbers(&buffers[1]), numbers(&buffers[2]));
            let places: Vec<Vec<i64>> = buffers[3..].iter().map(|bytes| numbers(bytes)).collect();
            let row = &x[..cols];
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(max[0], largest);
            assert_eq!(row[places[0][0] as usize], largest);
            assert!(max[1].is_nan() && min[1].is_nan());
            assert_eq!([0, 1, 2, 3].map(|p: usize| places[p][1]), [3, 4, 3, 4]);
            assert_eq!((max[2], min[2]), (f32::INFINITY, f32::NEG_INFINITY));
            assert_eq!((places[0][2], places[2][2]), (0, 1));
            assert_eq!((max[3], min[3]), (f32::NEG_INFINITY, f32::NEG_INFINITY));
            assert_eq!(
                [0, 1, 2, 3].map(|p: usize| places[p][3]),
                [0, cols as i64 - 1, 0, cols as i64 - 1]
            );
        }
    }
}

#[test]
fn reductions_over_nothing_give_their_start() {
    let Some(backend) = common::backends().into_iter().last() else {
        return;
    };
    let kinds = [
        AccumKind::Sum,
        AccumKind::Prod,
        AccumKind::Max,
        AccumKind::Min,
    ];
    let unit = reduce(DType::F32, &kinds, |_| DType::F32);
    let mut buffers = vec![vec![]];
    buffers.extend(vec![vec![0; 8]; 4]);
    run(&backend, &unit, &[2, 0], &mut buffers).expect("runs");
    let got: Vec<f32> = buffers[1..]
        .iter()
        .map(|bytes| numbers::<f32>(bytes)[1])
        .collect();
    assert_eq!(got, [0.0, 1.0, f32::NEG_INFINITY, f32::INFINITY]);
    let unit = reduce(DType::I8, &kinds, |_| DType::I8);
    let mut buffers = vec![vec![]];
    buffers.extend(vec![vec![9; 3]; 4]);
    run(&backend, &unit, &[3, 0], &mut buffers).expect("runs");
    assert_eq!(
        buffers[1..],
        [vec![0; 3], vec![1; 3], vec![128; 3], vec![127; 3]]
    );
}

/// `out[i] = data[index[i]]`, with the given treatment of indices outside.
fn gather(index: DType, fault: bool) -> Unit {
    let mut k = kernel("gather", 2);
    let (picked, len) = (Extent::Size(0), Extent::Size(1));
    k.axes = vec![picked];
    k.parallel = 1;
    k.buffers = vec![
        buffer(DType::F32, Access::Read, len),
        buffer(index, Access::Read, picked),
        buffer(DType::F32, Access::Write, picked),
    ];
    let i = k.index(Index::Axis(AxisId(0)));
    let value = load(&mut k, 1, i);
    let extent = k.index(Index::Size(1));
    let at = k.index(Index::Checked {
        value,
        extent,
        fault,
    });
    let element = load(&mut k, 0, at);
    k.phases = vec![Phase::Store {
        axes: vec![],
        stores: vec![set(2, i, element)],
    }];
    Unit::Loops(k)
}

#[test]
fn indices_from_data_are_clamped_or_reported() {
    for backend in common::backends() {
        let data: Vec<f32> = (0..10).map(|i| i as f32 * 1.5).collect();
        let inside: Vec<i64> = vec![3, 0, 9, 9, 1];
        let outside: Vec<i64> = vec![3, -1, 10, i64::MAX, i64::MIN];
        for (indices, ok) in [(&inside, true), (&outside, false)] {
            for dtype in [DType::I64, DType::I32] {
                let bytes = match dtype {
                    DType::I64 => bytes_of(indices),
                    _ => bytes_of(
                        &indices
                            .iter()
                            .map(|&i| i.clamp(-2, 2000) as i32)
                            .collect::<Vec<_>>(),
                    ),
                };
                for fault in [false, true] {
                    let mut buffers = vec![bytes_of(&data), bytes.clone(), vec![0; 20]];
                    let result = run(&backend, &gather(dtype, fault), &[5, 10], &mut buffers);
                    if fault && !ok {
                        assert!(
                            matches!(&result, Err(BackendError::Fault { unit, .. }) if unit == "gather"),
                            "{result:?}"
                        );
                    } else {
                        result.expect("runs");
                        let want: Vec<f32> = indices
                            .iter()
                            .map(|&i| data[i.clamp(0, 9) as usize])
                            .collect();
                        assert_eq!(numbers::<f32>(&buffers[2]), want, "{dtype}");
                    }
                }
            }
        }
        // A fault is reported once.
        let mut buffers = vec![bytes_of(&data), bytes_of(&inside), vec![0; 20]];
        run(&backend, &gather(DType::I64, true), &[5, 10], &mut buffers).expect("runs");
    }
}

#[test]
fn division_by_zero_is_a_fault() {
    for backend in common::backends() {
        for dtype in [DType::I32, DType::I64, DType::U8] {
            for f in [Scalar::Div, Scalar::Rem, Scalar::Mod] {
                let unit = elementwise(&[dtype, dtype], dtype, |k, v| {
                    k.expr(Expr::Binary(f, v[0], v[1]))
                });
                let size = dtype.size();
                let mut buffers = vec![vec![1; 21 * size], vec![1; 21 * size], vec![0; 21 * size]];
                run(&backend, &unit, &[21], &mut buffers).expect("runs");
                buffers[1][20 * size..].fill(0);
                let result = run(&backend, &unit, &[21], &mut buffers);
                assert!(
                    matches!(result, Err(BackendError::Fault { .. })),
                    "{dtype} {f:?}: {result:?}"
                );
            }
        }
    }
}

/// `out[i] = i - low inside x ? x[i - low] : 0`, then divided by x[0]: a guarded load and a guarded store.
#[test]
fn guards_keep_loads_and_stores_inside() {
    for backend in common::backends() {
        let mut k = kernel("pad", 2);
        let (len, padded) = (Extent::Size(0), Extent::Size(1));
        k.axes = vec![padded];
        k.parallel = 1;
        k.buffers = vec![
            buffer(DType::I16, Access::Read, len),
            buffer(DType::I16, Access::ReadWrite, padded),
        ];
        let i = k.index(Index::Axis(AxisId(0)));
        let low = k.index(Index::Const(3));
        let at = k.index(Index::Sub(i, low));
        let size = k.index(Index::Size(0));
        let minus_one = k.index(Index::Const(-1));
        let above = k.expr(Expr::Less(minus_one, at));
        let below = k.expr(Expr::Less(at, size));
        let inside = k.expr(Expr::Binary(Scalar::And, above, below));
        let x = k.expr(Expr::Load {
            buffer: BufferId(0),
            index: at,
            guard: Some(inside),
        });
        let two = k.index(Index::Const(2));
        let parity = k.index(Index::Rem(i, two));
        let zero = k.index(Index::Const(0));
        let odd = k.expr(Expr::Less(zero, parity));
        let store = Store {
            guard: Some(odd),
            ..set(1, i, x)
        };
        k.phases = vec![Phase::Store {
            axes: vec![],
            stores: vec![store],
        }];
        let unit = Unit::Loops(k);
        for len in [0usize, 1, 5, 40] {
            let x: Vec<i16> = (0..len as i16).map(|v| v * 100 - 7).collect();
            let padded = len + 7;
            let mut buffers = vec![bytes_of(&x), bytes_of(&vec![-5i16; padded])];
            run(&backend, &unit, &[len as i64, padded as i64], &mut buffers).expect("runs");
            let want: Vec<i16> = (0..padded)
                .map(|i| match i % 2 {
                    0 => -5,
                    _ => i
                        .checked_sub(3)
                        .and_then(|at| x.get(at))
                        .copied()
                        .unwrap_or(0),
                })
                .collect();
            assert_eq!(numbers::<i16>(&buffers[1]), want, "{len}");
        }
    }
}

/// `bins[index[i]] += value[i]` from all positions at once.
#[test]
fn atomic_sums_lose_nothing() {
    for backend in common::backends() {
        for dtype in [
            DType::F32,
            DType::F16,
            DType::I32,
            DType::U32,
            DType::I64,
            DType::I16,
            DType::U8,
        ] {
            let mut k = kernel("histogram", 2);
            let (len, bins) = (Extent::Size(0), Extent::Size(1));
            k.axes = vec![len];
            k.parallel = 1;
            k.buffers = vec![
                buffer(DType::I32, Access::Read, len),
                buffer(dtype, Access::Read, len),
                buffer(dtype, Access::ReadWrite, bins),
            ];
            let i = k.index(Index::Axis(AxisId(0)));
            let bin = load(&mut k, 0, i);
            let extent = k.index(Index::Size(1));
            let at = k.index(Index::Checked {
                value: bin,
                extent,
                fault: false,
            });
            let value = load(&mut k, 1, i);
            let store = Store {
                kind: StoreKind::AtomicAdd,
                ..set(2, at, value)
            };
            k.phases = vec![Phase::Store {
                axes: vec![],
                stores: vec![store],
            }];
            let (len, bins) = (600usize, 7usize);
            let index: Vec<i32> = (0..len as i32).map(|i| i * 5 % bins as i32).collect();
            let ones = |n: usize, value: f64| {
                let lanes = match dtype.int_range() {
                    None => Lanes::F(vec![value; n]),
                    Some((least, _)) if least < 0 => Lanes::I(vec![value as i64; n]),
                    Some(_) => Lanes::U(vec![value as u64; n]),
                };
                encode(&lanes, dtype, &[n], false)
                    .expect("encodes")
                    .bytes()
                    .to_vec()
            };
            let mut buffers = vec![bytes_of(&index), ones(len, 2.0), ones(bins, 1.0)];
            run(
                &backend,
                &Unit::Loops(k),
                &[len as i64, bins as i64],
                &mut buffers,
            )
            .expect("runs");
            let got = Tensor::new(dtype, vec![bins], buffers[2].clone().into()).expect("a tensor");
            let got = lanes(&got).expect("numbers").into_f64s();
            for (bin, got) in got.into_iter().enumerate() {
                let want = 1.0 + 2.0 * index.iter().filter(|&&i| i as usize == bin).count() as f64;
                assert_eq!(got, want, "{dtype} bin {bin}");
            }
        }
    }
}

#[test]
fn random_bits_are_the_references() {
    for backend in common::backends() {
        let mut k = kernel("random", 3);
        let n = Extent::Size(0);
        k.axes = vec![n];
        k.parallel = 1;
        k.buffers = vec![buffer(DType::U32, Access::Write, n)];
        let i = k.index(Index::Axis(AxisId(0)));
        let value = k.expr(Expr::Random {
            index: i,
            stream: 5,
            seed: 1,
            run: 2,
        });
        k.phases = vec![Phase::Store {
            axes: vec![],
            stores: vec![set(0, i, value)],
        }];
        let (seed, run_number) = (0x1234_5678_9abc_def0_i64, 0x0000_0007_8000_0001_i64);
        let mut buffers = vec![vec![0; 4 * 37]];
        run(
            &backend,
            &Unit::Loops(k),
            &[37, seed, run_number],
            &mut buffers,
        )
        .expect("runs");
        let want: Vec<u32> = (0..37)
            .map(|i| cupola_ir::eval::random::bits(seed as u64, 5, run_number as u64, i))
            .collect();
        assert_eq!(numbers::<u32>(&buffers[0]), want);
    }
}

/// A transposed copy of `[a, b, c]` to `[c, a, b]`, whose stores are not dense in the parallel axes.
#[test]
fn scattered_narrow_stores() {
    for backend in common::backends() {
        for dtype in [DType::I8, DType::F16, DType::I4, DType::I32, DType::I64] {
            let mut k = kernel("transpose", 3);
            k.axes = (0..3).map(Extent::Size).collect();
            k.parallel = 3;
            let len = Extent::Size(0);
            k.buffers = vec![
                buffer(dtype, Access::Read, len),
                buffer(dtype, Access::Write, len),
            ];
            let axis: Vec<IndexId> = (0..3).map(|a| k.index(Index::Axis(AxisId(a)))).collect();
            let size: Vec<IndexId> = (0..3).map(|a| k.index(Index::Size(a))).collect();
            let mut linear = |order: [usize; 3]| {
                let first = k.index(Index::Mul(axis[order[0]], size[order[1]]));
                let second = k.index(Index::Add(first, axis[order[1]]));
                let third = k.index(Index::Mul(second, size[order[2]]));
                k.index(Index::Add(third, axis[order[2]]))
            };
            let (from, to) = (linear([0, 1, 2]), linear([2, 0, 1]));
            let x = load(&mut k, 0, from);
            k.phases = vec![Phase::Store {
                axes: vec![],
                stores: vec![set(1, to, x)],
            }];
            let unit = Unit::Loops(k);
            for [a, b, c] in [[1usize, 1, 1], [2, 3, 5], [7, 1, 9], [4, 8, 16]] {
                let values: Vec<i64> = (0..(a * b * c) as i64).map(|i| i % 8 - 4).collect();
                let moved: Vec<i64> = (0..c)
                    .flat_map(|z| {
                        (0..a).flat_map(move |x| (0..b).map(move |y| (x * b + y) * c + z))
                    })
                    .map(|at| values[at])
                    .collect();
                let tensor = |values: &[i64]| {
                    let lanes = match dtype.is_float() {
                        true => Lanes::F(values.iter().map(|&v| v as f64).collect()),
                        false => Lanes::I(values.to_vec()),
                    };
                    encode(&lanes, dtype, &[values.len()], false)
                        .expect("encodes")
                        .bytes()
                        .to_vec()
                };
                let want = tensor(&moved);
                let mut buffers = vec![tensor(&values), vec![0; want.len()]];
                run(
                    &backend,
                    &unit,
                    &[a as i64, b as i64, c as i64],
                    &mut buffers,
                )
                .expect("runs");
                assert_eq!(buffers[1], want, "{dtype} {a}x{b}x{c}");
            }
        }
    }
}

#[test]
fn one_memory_object_is_read_and_written() {
    for backend in common::backends() {
        let unit = elementwise(&[DType::F32], DType::F32, |k, v| {
            k.expr(Expr::Unary(Scalar::Neg, v[0]))
        });
        let executable = backend.compile(&[&unit]).remove(0).expect("compiles");
        let device = backend.device();
        let memory = device.alloc(1024).expect("allocates");
        let half = |offset| BufferRange {
            buffer: Arc::clone(&memory),
            offset,
            size: 512,
        };
        let x: Vec<f32> = (0..128).map(|i| i as f32).collect();
        device.upload(&half(0), &bytes_of(&x)).expect("uploads");
        let launch = |from, to| {
            Command::Launch(Launch {
                executable: executable.clone(),
                buffers: vec![half(from), half(to)],
                sizes: vec![128],
            })
        };
        device
            .submit(&[launch(0, 512), launch(512, 0), launch(0, 512)])
            .expect("submits");
        let mut bytes = vec![0; 512];
        device.download(&half(512), &mut bytes).expect("downloads");
        assert_eq!(
            numbers::<f32>(&bytes),
            x.iter().map(|v| -v).collect::<Vec<_>>()
        );
        assert!(!executable.listing().is_empty());
    }
}

#[test]
fn too_large_launches_are_refused() {
    let Some(backend) = common::backends().into_iter().last() else {
        return;
    };
    let unit = elementwise(&[DType::U8], DType::U8, |_, v| v[0]);
    let result = run(&backend, &unit, &[1 << 40], &mut [vec![0; 4], vec![0; 4]]);
    assert!(
        matches!(result, Err(BackendError::Device { .. })),
        "{result:?}"
    );
    let unit = elementwise(&[DType::String], DType::String, |_, v| v[0]);
    let result = run(&backend, &unit, &[1], &mut [vec![0; 8], vec![0; 8]]);
    assert!(
        matches!(result, Err(BackendError::Unsupported { .. })),
        "{result:?}"
    );
}
