//! Generated code against plain Rust on every vector level: tails of every length, special values, faults.

mod common;

use common::*;
use cupola_backend::BackendError;
use cupola_cpu::CpuBackend;
use cupola_ir::kernel::*;
use cupola_ir::{DType, Scalar};

const LENGTHS: [usize; 12] = [0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 33, 1001];

#[test]
fn elementwise_chain_of_every_length() {
    let unit = elementwise(&[DType::F32, DType::F32], DType::F32, |k, x| {
        let p = k.expr(Expr::Binary(Scalar::Mul, x[0], x[1]));
        let e = k.expr(Expr::Unary(Scalar::Exp, p));
        k.expr(Expr::Binary(Scalar::Max, e, x[1]))
    });
    for backend in backends() {
        for n in LENGTHS {
            let x: Vec<f32> = (0..n).map(|i| i as f32 * 0.01 - 2.0).collect();
            let y: Vec<f32> = (0..n)
                .map(|i| {
                    if i % 5 == 3 {
                        f32::NAN
                    } else {
                        1.5 - i as f32 * 0.003
                    }
                })
                .collect();
            let mut buffers = vec![bytes(&x), bytes(&y), vec![0; n * 4]];
            run(&backend, &unit, &[n as i64], &mut buffers).expect("runs");
            let got: Vec<f32> = numbers(&buffers[2]);
            for i in 0..n {
                let e = (x[i] * y[i]).exp();
                let want = if y[i].is_nan() { f32::NAN } else { e.max(y[i]) };
                let close =
                    (got[i] - want).abs() <= 2e-6 * want.abs() || got[i].is_nan() && want.is_nan();
                assert!(close, "{n} {i}: {} {want}", got[i]);
            }
        }
    }
}

#[test]
fn integers_of_every_width_never_trap() {
    fn check<T: bytemuck::Pod + PartialEq + std::fmt::Debug>(
        dtype: DType,
        x: &[T],
        y: &[T],
        want: impl Fn(T, T) -> T,
        f: Scalar,
    ) {
        let unit = elementwise(&[dtype, dtype], dtype, |k, v| {
            k.expr(Expr::Binary(f, v[0], v[1]))
        });
        for backend in backends() {
            let mut buffers = vec![bytes(x), bytes(y), vec![0; std::mem::size_of_val(x)]];
            run(&backend, &unit, &[x.len() as i64], &mut buffers).expect("runs");
            let got: Vec<T> = numbers(&buffers[2]);
            let want: Vec<T> = x.iter().zip(y).map(|(a, b)| want(*a, *b)).collect();
            assert_eq!(got, want, "{dtype} {f:?}");
        }
    }
    macro_rules! signed {
        ($t:ty, $d:expr) => {
            let x: Vec<$t> = [<$t>::MIN, -7, -1, 0, 1, 5, <$t>::MAX].repeat(7);
            let y: Vec<$t> = (0..49)
                .map(|i| [-1, -3, 2, 7, 1, <$t>::MIN, <$t>::MAX][(i / 7 + i) % 7])
                .collect();
            check($d, &x, &y, <$t>::wrapping_div, Scalar::Div);
            check($d, &x, &y, <$t>::wrapping_rem, Scalar::Rem);
            check($d, &x, &y, <$t>::wrapping_add, Scalar::Add);
            check($d, &x, &y, <$t>::wrapping_mul, Scalar::Mul);
            check($d, &x, &y, <$t>::min, Scalar::Min);
            check($d, &x, &y, <$t>::max, Scalar::Max);
            check(
                $d,
                &x,
                &y,
                |a, b| {
                    if (0..<$t>::BITS as i64).contains(&(b as i64)) {
                        a << b
                    } else {
                        0
                    }
                },
                Scalar::Shl,
            );
            check(
                $d,
                &x,
                &y,
                |a, b| {
                    if (0..<$t>::BITS as i64).contains(&(b as i64)) {
                        a >> b
                    } else {
                        a >> (<$t>::BITS - 1)
                    }
                },
                Scalar::Shr,
            );
        };
    }
    signed!(i8, DType::I8);
    signed!(i16, DType::I16);
    signed!(i32, DType::I32);
    signed!(i64, DType::I64);
    macro_rules! unsigned {
        ($t:ty, $d:expr) => {
            let x: Vec<$t> = [<$t>::MAX, 7, 1, 0, 100, 5, <$t>::MAX - 1].repeat(7);
            let y: Vec<$t> = (0..49)
                .map(|i| [1, 3, 2, 7, 1, <$t>::MAX, <$t>::MAX / 2 + 1][(i / 7 + i) % 7])
                .collect();
            check($d, &x, &y, |a, b| a / b, Scalar::Div);
            check($d, &x, &y, |a, b| a % b, Scalar::Mod);
            check($d, &x, &y, <$t>::wrapping_sub, Scalar::Sub);
            check($d, &x, &y, <$t>::min, Scalar::Min);
            check($d, &x, &y, <$t>::max, Scalar::Max);
        };
    }
    unsigned!(u8, DType::U8);
    unsigned!(u16, DType::U16);
    unsigned!(u32, DType::U32);
    unsigned!(u64, DType::U64);
}

#[test]
fn division_by_zero_is_a_fault() {
    let unit = elementwise(&[DType::I32, DType::I32], DType::I32, |k, v| {
        k.expr(Expr::Binary(Scalar::Div, v[0], v[1]))
    });
    for backend in backends() {
        let mut buffers = vec![bytes(&[4i32; 21]), bytes(&[2i32; 21]), vec![0; 84]];
        run(&backend, &unit, &[21], &mut buffers).expect("runs");
        buffers[1][40..44].fill(0);
        let error = run(&backend, &unit, &[21], &mut buffers).expect_err("faults");
        assert!(matches!(error, BackendError::Fault { .. }), "{error}");
    }
}

#[test]
fn halves_round_trip() {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    for (dtype, value) in [
        (
            DType::F16,
            (|b| half::f16::from_bits(b).to_f32()) as fn(u16) -> f32,
        ),
        (DType::BF16, |b| half::bf16::from_bits(b).to_f32()),
    ] {
        let up = elementwise(&[dtype], DType::F32, |k, v| {
            k.expr(Expr::Cast {
                x: v[0],
                to: DType::F32,
                saturate: false,
            })
        });
        for backend in backends() {
            let mut buffers = vec![bytes(&all), vec![0; all.len() * 4]];
            run(&backend, &up, &[all.len() as i64], &mut buffers).expect("runs");
            for (bits, got) in all.iter().zip(numbers::<f32>(&buffers[1])) {
                let want = value(*bits);
                assert!(
                    got == want || got.is_nan() && want.is_nan(),
                    "{dtype} {bits:#x} {got} {want}"
                );
            }
        }
    }
    let mut x: Vec<f32> = (0..200_000u32)
        .map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761)))
        .collect();
    x.extend([
        0.0,
        -0.0,
        65504.0,
        65519.99,
        65520.0,
        1e-8,
        5.96e-8,
        2.98e-8,
        6.1e-5,
        f32::NAN,
        f32::INFINITY,
    ]);
    for dtype in [DType::F16, DType::BF16] {
        let down = elementwise(&[DType::F32], dtype, |k, v| {
            k.expr(Expr::Cast {
                x: v[0],
                to: dtype,
                saturate: false,
            })
        });
        for backend in backends() {
            let mut buffers = vec![bytes(&x), vec![0; x.len() * 2]];
            run(&backend, &down, &[x.len() as i64], &mut buffers).expect("runs");
            for (x, got) in x.iter().zip(numbers::<u16>(&buffers[1])) {
                let (want, nan) = match dtype {
                    DType::F16 => (
                        half::f16::from_f32(*x).to_bits(),
                        half::f16::from_bits(got).is_nan(),
                    ),
                    _ => (
                        half::bf16::from_f32(*x).to_bits(),
                        half::bf16::from_bits(got).is_nan(),
                    ),
                };
                assert!(
                    got == want || x.is_nan() && nan,
                    "{dtype} {x:e} {got:#x} {want:#x}"
                );
            }
        }
    }
}

/// Softmax over rows: three phases.
fn softmax(rows: i64, columns: Option<i64>) -> Unit {
    let mut k = Kernel {
        name: "softmax".into(),
        ..Kernel::default()
    };
    let c = match columns {
        Some(c) => Extent::Const(c),
        None => size(&mut k, "c"),
    };
    k.axes = vec![Extent::Const(rows), c, c, c];
    k.parallel = 1;
    let len = size(&mut k, "len");
    k.buffers = vec![
        buffer(DType::F32, Access::Read, len),
        buffer(DType::F32, Access::Write, len),
    ];
    let r = axis(&mut k, 0);
    let load = |k: &mut Kernel, a| {
        let i = axis(k, a);
        let index = row_major(k, r, c, i);
        let x = k.expr(Expr::Load {
            buffer: BufferId(0),
            index,
            guard: None,
        });
        (index, x)
    };
    let (_, x1) = load(&mut k, 1);
    k.phases.push(Phase::Reduce {
        axes: vec![AxisId(1)],
        accums: vec![Accum {
            kind: AccumKind::Max,
            value: x1,
        }],
    });
    let max = k.expr(Expr::Accum { phase: 0, accum: 0 });
    let e = |k: &mut Kernel, x| {
        let d = k.expr(Expr::Binary(Scalar::Sub, x, max));
        k.expr(Expr::Unary(Scalar::Exp, d))
    };
    let (_, x2) = load(&mut k, 2);
    let e2 = e(&mut k, x2);
    k.phases.push(Phase::Reduce {
        axes: vec![AxisId(2)],
        accums: vec![Accum {
            kind: AccumKind::Sum,
            value: e2,
        }],
    });
    let sum = k.expr(Expr::Accum { phase: 1, accum: 0 });
    let (index, x3) = load(&mut k, 3);
    let e3 = e(&mut k, x3);
    let value = k.expr(Expr::Binary(Scalar::Div, e3, sum));
    k.phases.push(Phase::Store {
        axes: vec![AxisId(3)],
        stores: vec![Store {
            buffer: BufferId(1),
            index,
            value,
            guard: None,
            kind: StoreKind::Set,
        }],
    });
    Unit::Loops(k)
}

#[test]
fn softmax_rows() {
    for backend in backends() {
        for c in [1usize, 3, 8, 17, 100] {
            for fixed in [true, false] {
                let rows = 5;
                let unit = softmax(rows as i64, fixed.then_some(c as i64));
                let x: Vec<f32> = (0..rows * c)
                    .map(|i| ((i * 37) % 19) as f32 * 0.7 - 3.0)
                    .collect();
                let mut buffers = vec![bytes(&x), vec![0; x.len() * 4]];
                let len = x.len() as i64;
                let sizes = if fixed {
                    vec![len]
                } else {
                    vec![c as i64, len]
                };
                run(&backend, &unit, &sizes, &mut buffers).expect("runs");
                let got: Vec<f32> = numbers(&buffers[1]);
                for r in 0..rows {
                    let row = &x[r * c..(r + 1) * c];
                    let max = row.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
                    let sum: f64 = row.iter().map(|v| f64::from(v - max).exp()).sum();
                    for i in 0..c {
                        let want = f64::from(row[i] - max).exp() / sum;
                        let got = f64::from(got[r * c + i]);
                        assert!((got - want).abs() < 1e-6 * want, "{r} {i}: {got} {want}");
                    }
                }
            }
        }
    }
}

/// Reduction of `x[a, b, c]` over one of its axes.
fn reduction(dims: [usize; 3], over: usize, dtype: DType, out: DType, kind: AccumKind) -> Unit {
    let mut k = Kernel {
        name: "reduce".into(),
        ..Kernel::default()
    };
    let kept: Vec<usize> = (0..3).filter(|a| *a != over).collect();
    let extents: Vec<Extent> = (dims.iter().enumerate())
        .map(|(i, _)| size(&mut k, &format!("d{i}")))
        .collect();
    let (all, result) = (size(&mut k, "all"), size(&mut k, "result"));
    k.axes = vec![extents[kept[0]], extents[kept[1]], extents[over]];
    k.parallel = 2;
    k.buffers = vec![
        buffer(dtype, Access::Read, all),
        buffer(out, Access::Write, result),
    ];
    let mut places = [IndexId(0); 3];
    places[kept[0]] = axis(&mut k, 0);
    places[kept[1]] = axis(&mut k, 1);
    places[over] = axis(&mut k, 2);
    let outer = row_major(&mut k, places[0], extents[1], places[1]);
    let index = row_major(&mut k, outer, extents[2], places[2]);
    let value = k.expr(Expr::Load {
        buffer: BufferId(0),
        index,
        guard: None,
    });
    k.phases.push(Phase::Reduce {
        axes: vec![AxisId(2)],
        accums: vec![Accum { kind, value }],
    });
    let value = k.expr(Expr::Accum { phase: 0, accum: 0 });
    let index = row_major(&mut k, places[kept[0]], extents[kept[1]], places[kept[1]]);
    k.phases.push(Phase::Store {
        axes: vec![],
        stores: vec![Store {
            buffer: BufferId(1),
            index,
            value,
            guard: None,
            kind: StoreKind::Set,
        }],
    });
    Unit::Loops(k)
}

#[test]
fn reductions_over_every_axis() {
    let kinds = [
        AccumKind::Sum,
        AccumKind::Max,
        AccumKind::Min,
        AccumKind::ArgMax { last: false },
        AccumKind::ArgMax { last: true },
        AccumKind::ArgMin { last: false },
        AccumKind::ArgMin { last: true },
    ];
    for backend in backends() {
        for dims in [[3, 5, 19], [2, 33, 4], [21, 2, 3], [1, 1, 1], [2, 0, 3]] {
            for over in 0..3 {
                for kind in kinds {
                    for with_nan in [false, true] {
                        check_reduction(&backend, dims, over, kind, with_nan);
                    }
                }
            }
        }
    }
}

fn check_reduction(
    backend: &CpuBackend,
    dims: [usize; 3],
    over: usize,
    kind: AccumKind,
    with_nan: bool,
) {
    let total: usize = dims.iter().product();
    let value = |i: usize| match i % 7 {
        3 if with_nan => f32::NAN,
        _ => ((i * 31) % 11) as f32 - 5.0,
    };
    let x: Vec<f32> = (0..total).map(value).collect();
    let kept: Vec<usize> = (0..3).filter(|a| *a != over).collect();
    let result = dims[kept[0]] * dims[kept[1]];
    let is_position = matches!(kind, AccumKind::ArgMax { .. } | AccumKind::ArgMin { .. });
    if is_position && dims[over] == 0 {
        return;
    }
    let out = if is_position { DType::I64 } else { DType::F32 };
    let unit = reduction(dims, over, DType::F32, out, kind);
    let mut buffers = vec![bytes(&x), vec![0; result * out.size()]];
    let mut sizes: Vec<i64> = dims.iter().map(|d| *d as i64).collect();
    sizes.extend([total as i64, result as i64]);
    run(backend, &unit, &sizes, &mut buffers).expect("runs");
    for a in 0..dims[kept[0]] {
        for b in 0..dims[kept[1]] {
            let line: Vec<f32> = (0..dims[over])
                .map(|c| {
                    let mut at = [0; 3];
                    (at[kept[0]], at[kept[1]], at[over]) = (a, b, c);
                    x[(at[0] * dims[1] + at[1]) * dims[2] + at[2]]
                })
                .collect();
            let i = a * dims[kept[1]] + b;
            let what = format!("{dims:?} over {over} {kind:?} at {a} {b}: {line:?}");
            if is_position {
                assert_eq!(
                    numbers::<i64>(&buffers[1])[i],
                    position(&line, kind),
                    "{what}"
                );
                continue;
            }
            let got = numbers::<f32>(&buffers[1])[i];
            let nan = line.iter().any(|v| v.is_nan());
            let want = match kind {
                AccumKind::Sum => line.iter().sum(),
                _ if nan => f32::NAN,
                AccumKind::Max => line.iter().fold(f32::NEG_INFINITY, |p, v| p.max(*v)),
                _ => line.iter().fold(f32::INFINITY, |p, v| p.min(*v)),
            };
            assert!(
                got == want || got.is_nan() && want.is_nan(),
                "{got} {want} {what}"
            );
        }
    }
}

/// The position that an argmax or argmin accumulator finds; NaN is most extreme.
fn position(line: &[f32], kind: AccumKind) -> i64 {
    let (largest, last) = match kind {
        AccumKind::ArgMax { last } => (true, last),
        AccumKind::ArgMin { last } => (false, last),
        _ => unreachable!("not a position"),
    };
    let key = |v: f32| match (v.is_nan(), largest) {
        (true, _) => f32::INFINITY,
        (false, true) => v,
        (false, false) => -v,
    };
    let mut best = 0;
    for (i, v) in line.iter().enumerate().skip(1) {
        let (a, b) = (key(*v), key(line[best]));
        if a > b || last && a == b {
            best = i;
        }
    }
    best as i64
}

#[test]
fn gather_checks_its_indices() {
    let mut k = Kernel {
        name: "gather".into(),
        ..Kernel::default()
    };
    let (n, d) = (size(&mut k, "n"), Extent::Const(5));
    let (rows, table) = (Extent::Const(7), Extent::Const(35));
    let len = size(&mut k, "len");
    k.axes = vec![n, d];
    k.parallel = 2;
    k.buffers = vec![
        buffer(DType::I64, Access::Read, n),
        buffer(DType::F32, Access::Read, table),
        buffer(DType::F32, Access::Write, len),
    ];
    let (i, j) = (axis(&mut k, 0), axis(&mut k, 1));
    let at = k.expr(Expr::Load {
        buffer: BufferId(0),
        index: i,
        guard: None,
    });
    let extent = k.index(Index::Const(7));
    let row = k.index(Index::Checked {
        value: at,
        extent,
        fault: true,
    });
    let index = row_major(&mut k, row, d, j);
    let value = k.expr(Expr::Load {
        buffer: BufferId(1),
        index,
        guard: None,
    });
    let out = row_major(&mut k, i, d, j);
    k.phases = vec![Phase::Store {
        axes: vec![],
        stores: vec![Store {
            buffer: BufferId(2),
            index: out,
            value,
            guard: None,
            kind: StoreKind::Set,
        }],
    }];
    let _ = rows;
    let unit = Unit::Loops(k);
    let table: Vec<f32> = (0..35).map(|i| i as f32).collect();
    for backend in backends() {
        let picked = [6i64, 0, 3, 3];
        let mut buffers = vec![bytes(&picked), bytes(&table), vec![0; 80]];
        run(&backend, &unit, &[4, 20], &mut buffers).expect("runs");
        let got: Vec<f32> = numbers(&buffers[2]);
        for (i, v) in got.iter().enumerate() {
            assert_eq!(*v, (picked[i / 5] * 5 + (i % 5) as i64) as f32);
        }
        for bad in [7i64, -1, i64::MIN] {
            let mut buffers = vec![bytes(&[0, 1, bad, 2]), bytes(&table), vec![0; 80]];
            let error = run(&backend, &unit, &[4, 20], &mut buffers).expect_err("faults");
            assert!(matches!(error, BackendError::Fault { .. }), "{error}");
        }
    }
}

#[test]
fn guarded_loads_pad_with_zero() {
    // y[i] = 0 <= i - 3 < n ? x[i - 3] : 0
    let mut k = Kernel {
        name: "pad".into(),
        ..Kernel::default()
    };
    let (n, m) = (size(&mut k, "n"), size(&mut k, "m"));
    k.axes = vec![m];
    k.parallel = 1;
    k.buffers = vec![
        buffer(DType::F32, Access::Read, n),
        buffer(DType::F32, Access::Write, m),
    ];
    let i = axis(&mut k, 0);
    let three = k.index(Index::Const(3));
    let two = k.index(Index::Const(2));
    let at = k.index(Index::Sub(i, three));
    let len = k.index(Index::Size(0));
    let low = k.expr(Expr::Less(two, i));
    let high = k.expr(Expr::Less(at, len));
    let guard = k.expr(Expr::Binary(Scalar::And, low, high));
    let value = k.expr(Expr::Load {
        buffer: BufferId(0),
        index: at,
        guard: Some(guard),
    });
    k.phases = vec![Phase::Store {
        axes: vec![],
        stores: vec![Store {
            buffer: BufferId(1),
            index: i,
            value,
            guard: None,
            kind: StoreKind::Set,
        }],
    }];
    let unit = Unit::Loops(k);
    for backend in backends() {
        for n in [0usize, 1, 4, 30] {
            let x: Vec<f32> = (0..n).map(|i| i as f32 + 1.0).collect();
            let m = n + 11;
            let mut buffers = vec![bytes(&x), vec![0xFF; m * 4]];
            run(&backend, &unit, &[n as i64, m as i64], &mut buffers).expect("runs");
            let mut want = vec![0f32; m];
            want[3..3 + n].copy_from_slice(&x);
            assert_eq!(numbers::<f32>(&buffers[1]), want);
        }
    }
}

#[test]
fn small_floats_and_packed_integers_round_trip() {
    use DType::*;
    let mut random = Random(7);
    for dtype in [
        I2, I4, U2, U4, F8E4M3FN, F8E4M3FNUZ, F8E5M2, F8E5M2FNUZ, F8E8M0, F4E2M1,
    ] {
        let up = elementwise(&[dtype], F32, |k, v| {
            k.expr(Expr::Cast {
                x: v[0],
                to: F32,
                saturate: false,
            })
        });
        let down = elementwise(&[F32], dtype, |k, v| {
            k.expr(Expr::Cast {
                x: v[0],
                to: dtype,
                saturate: true,
            })
        });
        let same = elementwise(&[dtype], dtype, |_, v| v[0]);
        for backend in backends() {
            for n in [1usize, 7, 8, 301] {
                let size = dtype.storage_size(1, n).expect("size");
                let codes: Vec<u8> = (0..size).map(|_| random.next() as u8).collect();
                let t =
                    cupola_ir::Tensor::new(dtype, vec![n], codes.clone().into()).expect("a tensor");
                let want = cupola_ir::convert::cast(&t, F32, true).expect("a cast");
                let mut buffers = vec![codes.clone(), vec![0; n * 4]];
                run(&backend, &up, &[n as i64], &mut buffers).expect("runs");
                assert_close(&buffers[1], &want, 0.0, dtype.name());
                let mut buffers = vec![codes, vec![0; size]];
                run(&backend, &same, &[n as i64], &mut buffers).expect("runs");
                let copy = cupola_ir::Tensor::new(dtype, vec![n], buffers[1].clone().into())
                    .expect("a tensor");
                let copy = cupola_ir::convert::cast(&copy, F32, true).expect("a cast");
                assert_close(copy.bytes(), &want, 0.0, dtype.name());
                let x: Vec<f32> = (0..n).map(|i| (i as f32 - 60.0) * 0.37).collect();
                let x = cupola_ir::Tensor::from_slice(&[n], &x).expect("a tensor");
                let want = cupola_ir::convert::cast(&x, dtype, true).expect("a cast");
                let mut buffers = vec![x.bytes().to_vec(), vec![0; size]];
                run(&backend, &down, &[n as i64], &mut buffers).expect("runs");
                assert_close(&buffers[1], &want, 0.0, dtype.name());
            }
        }
    }
}

#[test]
fn random_bits_are_those_of_the_reference() {
    // Elements next to each other from the start of a block and from within one, apart, and beyond 2^34, where the number of the
    // block takes two words.
    for (step, offset) in [(1, 0), (1, 3), (3, 1), (5, (1 << 35) - 70), (0, 6)] {
        let mut k = Kernel {
            name: "random".into(),
            ..Kernel::default()
        };
        let (n, seed, turn) = (size(&mut k, "n"), size(&mut k, "seed"), size(&mut k, "run"));
        let (Extent::Size(seed), Extent::Size(turn)) = (seed, turn) else {
            unreachable!("symbols are sizes")
        };
        k.axes = vec![n];
        k.parallel = 1;
        k.buffers = vec![buffer(DType::U32, Access::Write, n)];
        let index = axis(&mut k, 0);
        let [factor, first] = [step, offset].map(|c| k.index(Index::Const(c)));
        let element = k.index(Index::Mul(index, factor));
        let element = k.index(Index::Add(element, first));
        let value = k.expr(Expr::Random {
            index: element,
            stream: u64::MAX - 5,
            seed,
            run: turn,
        });
        k.phases = vec![Phase::Store {
            axes: vec![],
            stores: vec![Store {
                buffer: BufferId(0),
                index,
                value,
                guard: None,
                kind: StoreKind::Set,
            }],
        }];
        let unit = Unit::Loops(k);
        let runs = [9, 1 << 33];
        for (backend, run_number) in backends().iter().flat_map(|b| runs.map(|r| (b, r))) {
            let mut buffers = vec![vec![0; 4 * 137]];
            run(backend, &unit, &[137, -3, run_number], &mut buffers).expect("runs");
            for (i, got) in numbers::<u32>(&buffers[0]).into_iter().enumerate() {
                let element = (i as i64 * step + offset) as u64;
                let (seed, stream) = (-3i64 as u64, u64::MAX - 5);
                let want = cupola_ir::eval::random::bits(seed, stream, run_number as u64, element);
                assert_eq!(got, want, "element {element}");
            }
        }
    }
}
