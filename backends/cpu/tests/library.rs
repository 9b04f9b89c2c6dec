//! Library units with epilogues against the reference interpreter: layouts, batches, dtypes, odd and empty extents.

mod common;

use common::*;
use cupola_backend::BackendError;
use cupola_cpu::CpuBackend;
use cupola_cpu::isa::Isa;
use cupola_cpu::memory::Usage;
use cupola_ir::composite::{Conv, ConvChannelsLast, ConvTranspose, LayerNorm, RmsNorm, Softmax};
use cupola_ir::kernel::*;
use cupola_ir::ops::Contract;
use cupola_ir::{CompositeOp, DType, Dim, Op, Scalar, Tensor};

/// Every order of axes.
fn orders(rank: usize) -> Vec<Vec<usize>> {
    if rank == 0 {
        return vec![vec![]];
    }
    let shorter = orders(rank - 1);
    let insert = |o: &Vec<usize>| {
        (0..rank)
            .map(|at| {
                let mut o = o.clone();
                o.insert(at, rank - 1);
                o
            })
            .collect::<Vec<_>>()
    };
    shorter.iter().flat_map(insert).collect()
}

/// `max(x, 0) + bias[last axis]`, cast to a dtype, over a result of this shape; with a full-size operand added when
/// `residual`.
fn epilogue(shape: &[usize], from: DType, to: DType, residual: bool) -> Kernel {
    let mut k = Kernel {
        name: "relu_add".into(),
        axes: shape.iter().map(|d| Extent::Const(*d as i64)).collect(),
        parallel: shape.len(),
        ..Kernel::default()
    };
    let len = Extent::Const(shape.iter().product::<usize>() as i64);
    let last = Extent::Const(*shape.last().expect("an axis") as i64);
    let decl = |dtype, access, len| BufferDecl { dtype, access, len };
    k.buffers = vec![
        decl(from, Access::Read, len),
        decl(to, Access::Write, len),
        decl(from, Access::Read, last),
    ];
    let mut at = axis(&mut k, 0);
    for (a, d) in shape.iter().enumerate().skip(1) {
        let i = axis(&mut k, a as u32);
        at = row_major(&mut k, at, Extent::Const(*d as i64), i);
    }
    let column = axis(&mut k, shape.len() as u32 - 1);
    let load = |k: &mut Kernel, b, index| {
        k.expr(Expr::Load {
            buffer: BufferId(b),
            index,
            guard: None,
        })
    };
    let x = load(&mut k, 0, at);
    let zero = k.expr(Expr::Const(Literal {
        dtype: from,
        bits: 0,
    }));
    let relu = k.expr(Expr::Binary(Scalar::Max, x, zero));
    let bias = load(&mut k, 2, column);
    let mut value = k.expr(Expr::Binary(Scalar::Add, relu, bias));
    if residual {
        k.buffers.push(decl(from, Access::Read, len));
        let r = load(&mut k, 3, at);
        value = k.expr(Expr::Binary(Scalar::Add, value, r));
    }
    if from != to {
        value = k.expr(Expr::Cast {
            x: value,
            to,
            saturate: true,
        });
    }
    k.phases = vec![Phase::Store {
        axes: vec![],
        stores: vec![Store {
            buffer: BufferId(1),
            index: at,
            value,
            guard: None,
            kind: StoreKind::Set,
        }],
    }];
    k
}

fn apply_reference(y: &Tensor, bias: &Tensor, residual: Option<&Tensor>, to: DType) -> Tensor {
    let zero = cupola_ir::convert::splat(0.0, y.dtype()).expect("zero");
    let broadcast = |t: &Tensor, every: bool| {
        let lanes: Vec<f64> = cupola_ir::convert::lanes(t).expect("numbers").into_f64s();
        let n = y.len();
        let lanes: Vec<f64> = (0..n)
            .map(|i| {
                if every {
                    lanes[0]
                } else {
                    lanes[i % lanes.len()]
                }
            })
            .collect();
        let f64s = Tensor::from_slice(y.shape(), &lanes).expect("a tensor");
        cupola_ir::convert::cast(&f64s, y.dtype(), true).expect("a cast")
    };
    let map = |f| Op::from(cupola_ir::ops::Map { f });
    let run = |f, a: &Tensor, b: &Tensor| reference(&map(f), &[a.clone(), b.clone()]).remove(0);
    let mut out = run(Scalar::Max, y, &broadcast(&zero, true));
    out = run(Scalar::Add, &out, &broadcast(bias, false));
    if let Some(r) = residual {
        out = run(Scalar::Add, &out, r);
    }
    cupola_ir::convert::cast(&out, to, true).expect("a cast")
}

struct Case<'a> {
    p: Contract,
    l: (DType, &'a [usize]),
    r: (DType, &'a [usize]),
}

fn check_contract(
    backend: &CpuBackend,
    case: &Case,
    random: &mut Random,
    orders: [&[usize]; 2],
    tolerance: f64,
) {
    let (l, r) = (
        tensor(random, case.l.0, case.l.1),
        tensor(random, case.r.0, case.r.1),
    );
    let op = Op::from(case.p.clone());
    let want = reference(&op, &[l.clone(), r.clone()]).remove(0);
    let ((lb, lv), (rb, rv)) = (stored(&l, orders[0]), stored(&r, orders[1]));
    let mut unit = Library {
        op: op.clone(),
        sizes: vec![],
        operands: vec![lv, rv],
        results: vec![dense(want.dtype(), want.shape())],
        epilogue: None,
    };
    let what = format!("{:?} {:?} {:?} orders {orders:?}", case.p, case.l, case.r);
    let mut buffers = vec![lb.clone(), rb.clone(), vec![0xAA; want.bytes().len()]];
    run(backend, &Unit::Library(unit.clone()), &[], &mut buffers).expect(&what);
    assert_close(&buffers[2], &want, tolerance, &what);
    if want.shape().is_empty() || want.dtype().class() == cupola_ir::Class::Unsigned {
        return;
    }
    for to in [want.dtype(), DType::F32, DType::I8] {
        let residual = to == want.dtype();
        let bias = tensor(
            random,
            want.dtype(),
            &want.shape()[want.shape().len() - 1..],
        );
        let extra = tensor(random, want.dtype(), want.shape());
        let finished = apply_reference(&want, &bias, residual.then_some(&extra), to);
        unit.epilogue = Some(Box::new(epilogue(want.shape(), want.dtype(), to, residual)));
        unit.results[0].dtype = to;
        let mut buffers = vec![
            lb.clone(),
            rb.clone(),
            vec![0xAA; finished.bytes().len()],
            bias.bytes().to_vec(),
        ];
        if residual {
            buffers.push(extra.bytes().to_vec());
        }
        run(backend, &Unit::Library(unit.clone()), &[], &mut buffers).expect(&what);
        assert_close(
            &buffers[2],
            &finished,
            tolerance,
            &format!("{what} with epilogue to {to}"),
        );
    }
}

#[test]
fn contractions_of_every_layout() {
    let mut random = Random(1);
    for backend in backends() {
        // [b, m, k] x [b, k, n], operands in every order of axes.
        let p = contract(&[0], &[0], &[2], &[1], DType::F32, DType::F32);
        for a in orders(3) {
            for b in orders(3) {
                let case = Case {
                    p: p.clone(),
                    l: (DType::F32, &[3, 5, 7]),
                    r: (DType::F32, &[3, 7, 4]),
                };
                check_contract(&backend, &case, &mut random, [&a, &b], 1e-6);
            }
        }
        // Two free axes on each side and two summed ones in crossed order.
        let p = contract(&[], &[], &[1, 3], &[2, 0], DType::F32, DType::F32);
        for a in orders(4) {
            let case = Case {
                p: p.clone(),
                l: (DType::F32, &[2, 3, 4, 5]),
                r: (DType::F32, &[5, 2, 3, 6]),
            };
            check_contract(&backend, &case, &mut random, [&a, &[0, 1, 2, 3]], 1e-6);
            check_contract(&backend, &case, &mut random, [&[0, 1, 2, 3], &a], 1e-6);
        }
        // Three batch axes.
        let p = contract(&[0, 1, 2], &[2, 0, 1], &[4], &[3], DType::F32, DType::F32);
        let case = Case {
            p,
            l: (DType::F32, &[2, 3, 2, 4, 5]),
            r: (DType::F32, &[3, 2, 2, 5, 3]),
        };
        check_contract(
            &backend,
            &case,
            &mut random,
            [&[0, 1, 2, 3, 4], &[0, 1, 2, 3, 4]],
            1e-6,
        );
    }
}

#[test]
fn contractions_of_every_dtype_and_odd_extents() {
    use DType::*;
    let mut random = Random(2);
    let types = [
        (F32, F32, F32, F32, 1e-6),
        (F64, F64, F64, F64, 1e-12),
        (F16, F16, F32, F16, 2e-3),
        (F16, F16, F32, F32, 1e-3),
        (BF16, BF16, F32, BF16, 2e-2),
        (I32, I32, I32, I32, 0.0),
        (I64, I64, I64, I64, 0.0),
        (U32, U32, U32, U32, 0.0),
        (I8, I8, I32, I32, 0.0),
        (U8, I8, I32, I32, 0.0),
        (I8, U8, I32, I32, 0.0),
    ];
    let shapes = [
        [1, 1, 1],
        [5, 3, 17],
        [17, 33, 9],
        [1, 40, 3],
        [40, 1, 65],
        [0, 3, 4],
        [3, 0, 4],
        [3, 4, 0],
        [70, 130, 90],
    ];
    for backend in backends() {
        for (l, r, accum, out, tolerance) in types {
            for [m, k, n] in shapes {
                let case = Case {
                    p: contract(&[], &[], &[1], &[0], accum, out),
                    l: (l, &[m, k]),
                    r: (r, &[k, n]),
                };
                check_contract(&backend, &case, &mut random, [&[0, 1], &[1, 0]], tolerance);
            }
        }
    }
}

/// More accumulators than are kept where only an epilogue sees them: the smaller operand is packed first.
#[test]
fn large_contractions_that_only_an_epilogue_sees() {
    use DType::*;
    let mut random = Random(3);
    let cases = [
        ([1301, 9, 811], F32, 1e-6),
        ([1301, 9, 811], BF16, 2e-2),
        ([811, 9, 1301], BF16, 2e-2),
    ];
    for backend in backends() {
        for ([m, k, n], dtype, tolerance) in cases {
            let case = Case {
                p: contract(&[], &[], &[1], &[0], F32, dtype),
                l: (dtype, &[m, k]),
                r: (dtype, &[k, n]),
            };
            check_contract(&backend, &case, &mut random, [&[1, 0], &[0, 1]], tolerance);
        }
    }
}

#[test]
fn views_outside_their_buffers_are_refused() {
    let backend = CpuBackend::with_isa(1, Isa::detect(), Usage::unlimited());
    let unit = Library {
        op: Op::from(contract(&[], &[], &[1], &[0], DType::F32, DType::F32)),
        sizes: vec![],
        operands: vec![dense(DType::F32, &[2, 3]), dense(DType::F32, &[3, 4])],
        results: vec![dense(DType::F32, &[2, 4])],
        epilogue: None,
    };
    let mut buffers = vec![vec![0; 24], vec![0; 44], vec![0; 32]];
    let error = run(&backend, &Unit::Library(unit), &[], &mut buffers).expect_err("too short");
    assert!(matches!(error, BackendError::Fault { .. }), "{error}");
}

/// Runs a library unit on dense operands, raw and with epilogues, against the reference.
fn check_dense(backend: &CpuBackend, op: &Op, operands: &[Tensor], tolerance: f64) {
    let want = reference(op, operands).remove(0);
    let what = format!("{op:?} {operands:?} {:?}", backend.isa());
    let mut unit = Library {
        op: op.clone(),
        sizes: vec![],
        operands: operands
            .iter()
            .map(|t| dense(t.dtype(), t.shape()))
            .collect(),
        results: vec![dense(want.dtype(), want.shape())],
        epilogue: None,
    };
    let inputs: Vec<Vec<u8>> = operands.iter().map(|t| t.bytes().to_vec()).collect();
    let mut buffers = inputs.clone();
    buffers.push(vec![0xAA; want.bytes().len()]);
    run(backend, &Unit::Library(unit.clone()), &[], &mut buffers).expect(&what);
    assert_close(&buffers[inputs.len()], &want, tolerance, &what);
    let mut random = Random(9);
    for to in [want.dtype(), DType::F16] {
        let residual = to == want.dtype();
        let bias = tensor(
            &mut random,
            want.dtype(),
            &want.shape()[want.shape().len() - 1..],
        );
        let extra = tensor(&mut random, want.dtype(), want.shape());
        let finished = apply_reference(&want, &bias, residual.then_some(&extra), to);
        unit.epilogue = Some(Box::new(epilogue(want.shape(), want.dtype(), to, residual)));
        unit.results[0].dtype = to;
        let mut buffers = inputs.clone();
        buffers.extend([vec![0xAA; finished.bytes().len()], bias.bytes().to_vec()]);
        if residual {
            buffers.push(extra.bytes().to_vec());
        }
        run(backend, &Unit::Library(unit.clone()), &[], &mut buffers).expect(&what);
        let tolerance = if to == DType::F16 {
            tolerance.max(2e-3)
        } else {
            tolerance
        };
        assert_close(
            &buffers[inputs.len()],
            &finished,
            tolerance,
            &format!("{what} with epilogue to {to}"),
        );
    }
}

#[test]
fn convolutions() {
    let mut random = Random(4);
    let dims = |v: &[i64]| v.iter().map(|d| Dim::from(*d)).collect::<Vec<_>>();
    for backend in backends() {
        for (l, r, tolerance) in [
            (DType::F32, DType::F32, 1e-5),
            (DType::F64, DType::F64, 1e-12),
            (DType::BF16, DType::BF16, 3e-2),
            (DType::U8, DType::I8, 0.0),
        ] {
            // input, weights, groups, strides, dilations, low, high
            let cases: [(&[usize], &[usize], usize, &[i64], &[i64], &[i64], &[i64]); 7] = [
                (
                    &[2, 34, 7, 9],
                    &[40, 34, 3, 3],
                    1,
                    &[1, 2],
                    &[1, 1],
                    &[1, 1],
                    &[1, 0],
                ),
                (
                    &[2, 3, 9, 8],
                    &[5, 3, 3, 3],
                    1,
                    &[1, 1],
                    &[1, 1],
                    &[1, 1],
                    &[1, 1],
                ),
                (
                    &[1, 4, 11, 7],
                    &[6, 2, 3, 2],
                    2,
                    &[2, 3],
                    &[2, 1],
                    &[0, 2],
                    &[3, 0],
                ),
                (
                    &[2, 4, 6, 6],
                    &[4, 1, 3, 3],
                    4,
                    &[1, 2],
                    &[1, 1],
                    &[1, 1],
                    &[1, 1],
                ),
                (&[2, 3, 17], &[4, 3, 5], 1, &[2], &[1], &[2], &[2]),
                (
                    &[1, 2, 4, 5, 6],
                    &[3, 2, 2, 3, 2],
                    1,
                    &[1, 1, 2],
                    &[1, 2, 1],
                    &[0, 1, 1],
                    &[1, 1, 0],
                ),
                (
                    &[1, 3, 8, 8],
                    &[2, 3, 1, 1],
                    1,
                    &[1, 1],
                    &[1, 1],
                    &[0, 0],
                    &[0, 0],
                ),
            ];
            for (x, w, groups, strides, dilations, low, high) in cases {
                let conv = Conv {
                    strides: strides.to_vec(),
                    dilations: dilations.to_vec(),
                    pads_low: dims(low),
                    pads_high: dims(high),
                    groups,
                };
                let op = Op::Composite(CompositeOp::from(conv.clone()));
                let operands = [tensor(&mut random, l, x), tensor(&mut random, r, w)];
                check_dense(&backend, &op, &operands, tolerance);
                // Groups of few channels stay channels first, and single ones in bf16.
                let is_taken = l == DType::F32 || l == DType::BF16 && groups == 1;
                if is_taken && groups != 2 {
                    let op = Op::Composite(CompositeOp::from(ConvChannelsLast::from(conv)));
                    let x = [&x[..1], &x[2..], &x[1..2]].concat();
                    let operands = [tensor(&mut random, l, &x), operands[1].clone()];
                    check_dense(&backend, &op, &operands, tolerance);
                }
            }
        }
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F16, 3e-3)] {
            let cases: [(&[usize], &[usize], usize, &[i64], &[i64], &[i64], &[i64]); 3] = [
                (
                    &[2, 3, 5, 4],
                    &[3, 4, 3, 3],
                    1,
                    &[2, 1],
                    &[1, 1],
                    &[1, 0],
                    &[10, 6],
                ),
                (&[1, 4, 6], &[4, 2, 2], 2, &[3], &[2], &[1], &[17]),
                (
                    &[1, 2, 3, 3],
                    &[2, 3, 2, 2],
                    1,
                    &[2, 2],
                    &[1, 1],
                    &[0, 0],
                    &[7, 6],
                ),
            ];
            for (x, w, groups, strides, dilations, low, spatial) in cases {
                let op = Op::Composite(CompositeOp::from(ConvTranspose {
                    strides: strides.to_vec(),
                    dilations: dilations.to_vec(),
                    pads_low: dims(low),
                    spatial: dims(spatial),
                    groups,
                }));
                let operands = [tensor(&mut random, dtype, x), tensor(&mut random, dtype, w)];
                check_dense(&backend, &op, &operands, tolerance);
            }
        }
    }
}

#[test]
fn rows() {
    let mut random = Random(6);
    let composite = |op: CompositeOp| Op::Composite(op);
    let shapes: [&[usize]; 7] = [
        &[3, 33],
        &[2, 3, 1],
        &[1, 1000],
        &[5, 16],
        &[7],
        &[0, 4],
        &[3, 2, 65],
    ];
    for backend in backends() {
        for (dtype, tolerance) in [(DType::F32, 3e-5), (DType::F16, 5e-3), (DType::BF16, 4e-2)] {
            for shape in shapes {
                let x = tensor(&mut random, dtype, shape);
                let last = shape.len() - 1;
                let check = |op: &Op, operands: &[Tensor]| match dtype == DType::F32
                    && !shape.contains(&0)
                {
                    true => check_dense(&backend, op, operands, tolerance),
                    false => check_results(&backend, op, operands, tolerance),
                };
                for log in [false, true] {
                    let softmax = Softmax { axis: last, log };
                    check(&composite(softmax.into()), std::slice::from_ref(&x));
                }
                let columns =
                    |random: &mut Random, axis: usize| tensor(random, dtype, &shape[axis..]);
                for axis in [0, last] {
                    let scale = columns(&mut random, axis);
                    let bias = columns(&mut random, axis);
                    let norm = |stats| {
                        let epsilon = 1e-2;
                        composite(
                            LayerNorm {
                                axis,
                                epsilon,
                                stats,
                            }
                            .into(),
                        )
                    };
                    let all = [x.clone(), scale.clone(), bias];
                    check(&norm(false), &all);
                    if !shape.contains(&0) {
                        check_results(&backend, &norm(true), &all, tolerance);
                    }
                    let epsilon = 1e-2;
                    let rms = composite(RmsNorm { axis, epsilon }.into());
                    check(&rms, &[x.clone(), scale]);
                    check(&rms, std::slice::from_ref(&x));
                }
            }
        }
    }
}
