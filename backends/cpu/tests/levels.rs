//! Every scalar function, dtype and cast at every vector level against the interpreter: all lengths of tails, special values,
//! more live values than registers, and sums that are equal at both wide levels.

mod common;

use common::*;
use cupola_cpu::isa::Level;
use cupola_ir::convert::{self, Lanes};
use cupola_ir::kernel::*;
use cupola_ir::{Class, DType, Scalar, Tensor};

const SPECIAL: [f64; 16] = [
    0.0,
    -0.0,
    f64::NAN,
    f64::INFINITY,
    f64::NEG_INFINITY,
    1e-44,
    -6e-8,
    3e38,
    -3e38,
    2_147_483_648.0,
    -2_147_483_649.0,
    4_294_967_296.0,
    9.3e18,
    -1e19,
    0.5,
    -1.5,
];

/// Elements of a dtype: small numbers with every special value among them, no zero in divisors.
fn elements(random: &mut Random, dtype: DType, len: usize, divisor: bool) -> Vec<u8> {
    let mut small = || random.below(33) as i64 - 16;
    let lanes = match dtype.class() {
        Class::Float => Lanes::F(
            (0..len)
                .map(|i| match i % 3 {
                    0 => SPECIAL[(i / 3 + small().unsigned_abs() as usize) % SPECIAL.len()],
                    _ => small() as f64 / 4.0,
                })
                .collect(),
        ),
        class => {
            let (low, high) = dtype.int_range().unwrap_or((0, 1));
            let pick = |i: usize, x: i64| match (i % 5, class) {
                (0, _) => low,
                (1, _) => high,
                (_, Class::Signed) => i128::from(x).clamp(low, high),
                _ => i128::from(x.abs()).min(high),
            };
            let all = (0..len).map(|i| pick(i, small()));
            let all = all.map(|x| if divisor && x == 0 { 1 } else { x });
            match class {
                Class::Signed => Lanes::I(all.map(|x| x as i64).collect()),
                _ => Lanes::U(all.map(|x| x as u64).collect()),
            }
        }
    };
    let tensor = convert::tensor(&lanes, dtype, &[len]).expect("a tensor");
    tensor.bytes().to_vec()
}

fn values(dtype: DType, bytes: &[u8], len: usize) -> Vec<f64> {
    let t = Tensor::new(dtype, vec![len], bytes.to_vec().into()).expect("elements");
    convert::lanes(&t).expect("numbers").into_f64s()
}

/// Runs an elementwise unit at every level, and compares with the interpreter up to a relative error.
fn check(unit: &Unit, inputs: &[DType], output: DType, len: usize, tolerance: f64, what: &str) {
    let Unit::Loops(kernel) = unit else {
        unreachable!("a kernel")
    };
    let mut random = Random(len as u64 + 1);
    let divide = kernel
        .exprs
        .iter()
        .any(|e| matches!(e, Expr::Binary(Scalar::Div | Scalar::Rem | Scalar::Mod, ..)));
    let mut buffers: Vec<Vec<u8>> = (inputs.iter().enumerate())
        .map(|(i, d)| elements(&mut random, *d, len, divide && i == 1))
        .collect();
    let size = output.storage_size(1, len).expect("small");
    buffers.push(vec![0; size]);
    let mut want = buffers.clone();
    run_kernel(kernel, &mut want, &[len as i64]).expect(what);
    let want = values(output, &want[inputs.len()], len);
    for backend in backends() {
        let mut buffers = buffers.clone();
        // What lies behind the elements must stay as it is.
        buffers[inputs.len()].extend([0xA5; 64]);
        run(&backend, unit, &[len as i64], &mut buffers).expect(what);
        let result = &buffers[inputs.len()];
        assert_eq!(
            result[size..],
            [0xA5; 64],
            "{what}, {len} at {:?}",
            backend.isa()
        );
        let got = values(output, &result[..size], len);
        for (i, (x, y)) in got.iter().zip(&want).enumerate() {
            let near = (x - y).abs() <= tolerance * y.abs().max(f64::from(f32::MIN_POSITIVE));
            assert!(
                x == y || near || x.is_nan() && y.is_nan(),
                "{what} at {i} of {len}, {:?}: {x} {y}",
                backend.isa()
            );
        }
    }
}

#[test]
fn every_function_of_every_dtype() {
    let mut len = 0;
    for dtype in DTYPES {
        for f in Scalar::ALL.iter().copied() {
            let operands = match f {
                Scalar::Select => vec![DType::Bool, dtype, dtype],
                f => vec![dtype; f.arity()],
            };
            let Ok(output) = f.infer(&operands) else {
                continue;
            };
            // A quotient that is too large for the expansion has no stated remainder.
            let open = matches!(f, Scalar::Rem | Scalar::Mod | Scalar::Pow | Scalar::Fma);
            if open && dtype.class() == Class::Float {
                continue;
            }
            let unit = elementwise(&operands, output, |k, x| {
                k.expr(match *x {
                    [x] => Expr::Unary(f, x),
                    [x, y] => Expr::Binary(f, x, y),
                    [x, y, z] => Expr::Ternary(f, x, y, z),
                    _ => unreachable!("no function has more operands"),
                })
            });
            let exact = dtype.class() != Class::Float || error_bound(f) == 0.0;
            let digits = match output {
                DType::F64 => -44,
                DType::F16 => -10,
                DType::BF16 => -7,
                _ => -24,
            };
            let tolerance = match exact {
                true => 0.0,
                false => 2.0 * (error_bound(f).max(0.5)) * 2f64.powi(digits),
            };
            // Over all functions every length occurs.
            len = (len + 37) % 150;
            let what = format!("{} of {dtype}", f.name());
            check(&unit, &operands, output, len, tolerance, &what);
        }
    }
}

#[test]
fn every_cast() {
    let mut len = 60;
    for from in DTYPES {
        for to in DTYPES {
            let unit = elementwise(&[from], to, |k, x| {
                k.expr(Expr::Cast {
                    x: x[0],
                    to,
                    saturate: true,
                })
            });
            len = (len + 41) % 150;
            check(&unit, &[from], to, len, 0.0, &format!("{from} to {to}"));
        }
    }
}

#[test]
fn tails_of_every_length() {
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::I8, DType::I64] {
        let unit = elementwise(&[dtype, dtype], dtype, |k, x| {
            let sum = k.expr(Expr::Binary(Scalar::Add, x[0], x[1]));
            k.expr(Expr::Binary(Scalar::Max, sum, x[1]))
        });
        for len in 0..140 {
            check(&unit, &[dtype; 2], dtype, len, 0.0, &format!("{dtype}"));
        }
    }
}

/// The sum of `select(x[i] < x[k], x[i], x[j])` over many operands, all alive at once: comparisons first.
#[test]
fn more_values_than_registers() {
    const COUNT: usize = 44;
    for dtype in [DType::F32, DType::I32, DType::I64, DType::F16, DType::U8] {
        let inputs = [dtype; COUNT];
        let unit = elementwise(&inputs, dtype, |k, x| {
            let masks: Vec<ExprId> = (0..COUNT)
                .map(|i| k.expr(Expr::Binary(Scalar::Lt, x[i], x[(i * 7 + 3) % COUNT])))
                .collect();
            let chosen: Vec<ExprId> = (0..COUNT)
                .map(|i| {
                    let (a, b) = (x[(i * 5 + 1) % COUNT], x[(i * 11 + 2) % COUNT]);
                    k.expr(Expr::Ternary(Scalar::Select, masks[COUNT - 1 - i], a, b))
                })
                .collect();
            let first = chosen[0];
            chosen[1..].iter().fold(first, |sum, y| {
                let longer = k.expr(Expr::Binary(Scalar::Max, sum, *y));
                k.expr(Expr::Binary(Scalar::Min, longer, x[7]))
            })
        });
        for len in [1, 31, 100] {
            check(
                &unit,
                &inputs,
                dtype,
                len,
                0.0,
                &format!("pressure in {dtype}"),
            );
        }
    }
}

/// `y[r] = sum over c of x[r, c] * x[r, c]`
fn row_sums(rows: usize, cols: usize) -> Unit {
    let extent = |n: usize| Extent::Const(n as i64);
    let mut k = Kernel {
        name: "row_sums".into(),
        axes: vec![extent(rows), extent(cols)],
        parallel: 1,
        buffers: vec![
            buffer(DType::F32, Access::Read, extent(rows * cols)),
            buffer(DType::F32, Access::Write, extent(rows)),
        ],
        ..Kernel::default()
    };
    let (r, c) = (axis(&mut k, 0), axis(&mut k, 1));
    let at = row_major(&mut k, r, extent(cols), c);
    let x = k.expr(Expr::Load {
        buffer: BufferId(0),
        index: at,
        guard: None,
    });
    let value = k.expr(Expr::Binary(Scalar::Mul, x, x));
    let sum = k.expr(Expr::Accum { phase: 0, accum: 0 });
    let accums = vec![Accum {
        kind: AccumKind::Sum,
        value,
    }];
    let store = Store {
        buffer: BufferId(1),
        index: r,
        value: sum,
        guard: None,
        kind: StoreKind::Set,
    };
    k.phases = vec![
        Phase::Reduce {
            axes: vec![AxisId(1)],
            accums,
        },
        Phase::Store {
            axes: vec![],
            stores: vec![store],
        },
    ];
    Unit::Loops(k)
}

#[test]
fn sums_are_equal_at_both_wide_levels() {
    let mut random = Random(5);
    for cols in [1, 3, 15, 16, 17, 32, 33, 100, 1000] {
        let x: Vec<f32> = (0..3 * cols)
            .map(|_| random.below(1 << 20) as f32 * 1e-3 - 300.0)
            .collect();
        let unit = row_sums(3, cols);
        let results: Vec<(Level, Vec<u8>)> = (backends().iter())
            .filter(|b| b.isa().level() >= Level::Avx2)
            .map(|b| {
                let mut buffers = vec![bytes(&x), vec![0; 12]];
                run(b, &unit, &[], &mut buffers).expect("runs");
                (b.isa().level(), buffers.pop().expect("sums"))
            })
            .collect();
        assert!(
            results.windows(2).all(|two| two[0].1 == two[1].1),
            "{cols}: {results:?}"
        );
    }
}
