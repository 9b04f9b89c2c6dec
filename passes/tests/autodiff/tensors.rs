//! Views, reductions, products and indices.

use crate::check::*;
use cupola_ir::ops::*;
use cupola_ir::{DType, Dim, Graph, Result, Scalar, ValueId};

fn dims(shape: &[usize]) -> Vec<Dim> {
    shape.iter().map(|n| Dim::from(*n)).collect()
}

/// Something bent after what is linear, so that the second derivative says something.
fn bent(g: &mut Graph, x: ValueId) -> Result<ValueId> {
    g.binary(Scalar::Mul, x, x)
}

#[test]
fn views() {
    check_twice("reshape and permute", &[floats(&[2, 3, 5], 1)], &|g, x| {
        let y = g.reshape(x[0], &dims(&[6, 5]))?;
        let y = g.permute(y, &[1, 0])?;
        bent(g, y)
    });
    check_twice("permute", &[floats(&[2, 3, 4], 1)], &|g, x| {
        let y = g.permute(x[0], &[2, 0, 1])?;
        bent(g, y)
    });
    check_twice("broadcast", &[floats(&[3, 1], 2)], &|g, x| {
        let y = g.broadcast_to(x[0], &dims(&[2, 3, 4]))?;
        bent(g, y)
    });
    check(
        "concat",
        &[floats(&[2, 3], 1), floats(&[2, 0], 2), floats(&[2, 5], 3)],
        &|g, x| {
            let y = g.concat(x, 1)?;
            bent(g, y)
        },
    );
    let named = [
        floats(&[2, 3], 1).named(&["a", "b"]),
        floats(&[4, 3], 2).named(&["c", "b"]),
    ];
    check_twice("concat of symbols", &named, &|g, x| {
        let y = g.concat(x, 0)?;
        bent(g, y)
    });
}

#[test]
fn repetition_that_bound_symbols_decide() {
    for (n, m) in [(1, 4), (4, 4), (4, 1), (1, 1), (0, 1)] {
        let given = [
            floats(&[n, 2], 1).named(&["n", "w"]),
            floats(&[m, 2], 2).named(&["m", "w"]),
        ];
        check("broadcast of symbols", &given, &|g, x| {
            let y = g.binary(Scalar::Mul, x[0], x[1])?;
            bent(g, y)
        });
    }
}

#[test]
fn slices() {
    for (n, start, step, len) in [
        (7, 1, 1, 4),
        (7, 1, 2, 3),
        (7, 0, 3, 3),
        (8, 1, 3, 2),
        (7, 6, -1, 7),
        (7, 5, -2, 3),
        (7, 6, -3, 2),
        (5, 2, 1, 0),
        (5, 2, 2, 0),
        (0, 0, 1, 0),
    ] {
        let cut = |g: &mut Graph, x: &[ValueId], len: Dim| {
            let other = g.dim(x[0], 1);
            let slice = Slice {
                starts: vec![Dim::Const(start), Dim::ZERO],
                steps: vec![step, 1],
                dims: vec![len, other],
            };
            let y = g.one(slice, x)?;
            bent(g, y)
        };
        let what = format!("slice of {n} from {start} by {step}, {len}");
        check_twice(&what, &[floats(&[n, 2], 5)], &|g, x| {
            cut(g, x, Dim::from(len as usize))
        });
        check(&what, &[floats(&[n, 2], 5).named(&["n", "m"])], &|g, x| {
            let all = g.dim(x[0], 0);
            cut(g, x, all - Dim::Const(n as i64 - len))
        });
    }
    for n in [0, 1, 4] {
        check("flip", &[floats(&[n, 2], 5).named(&["n", "m"])], &|g, x| {
            let y = g.flip(x[0], 0)?;
            bent(g, y)
        });
    }
}

#[test]
fn gradients_of_slices_are_joined() {
    let build = |len: Dim| {
        move |g: &mut Graph, x: &[ValueId]| {
            let x = g.scale(x[0], 1.5)?;
            let mut sum = None;
            for (k, f) in [Scalar::Sin, Scalar::Exp, Scalar::Tanh]
                .into_iter()
                .enumerate()
            {
                let part = g.slice_axis(x, 1, &(Dim::from(k) * len.clone()), &len)?;
                let part = g.unary(f, part)?;
                sum = Some(match sum {
                    Some(sum) => g.binary(Scalar::Mul, sum, part)?,
                    None => part,
                });
            }
            Ok(sum.unwrap())
        }
    };
    check_twice(
        "three parts",
        &[floats(&[2, 6], 1)],
        &build(Dim::from(2usize)),
    );
    let mut given = floats(&[2, 6], 1);
    given.dims = vec![Dim::sym("n"), Dim::sym("h") * Dim::from(3usize)];
    check(
        "three parts of symbols",
        &[given.clone()],
        &build(Dim::sym("h")),
    );
    let mut g = Graph::new("joined");
    let x = g
        .input("x", cupola_ir::TensorType::new(DType::F64, given.dims))
        .unwrap();
    let y = build(Dim::sym("h"))(&mut g, &[x]).unwrap();
    cupola_passes::autodiff::vjp(&mut g, &[(y, y)], &[x]).unwrap();
    let ops = |op: &str| g.nodes().filter(|(_, n)| n.op.name() == op).count();
    assert_eq!((ops("concat"), ops("add")), (1, 0));
}

#[test]
fn pads_and_windows() {
    let given = [floats(&[2, 3], 1), floats(&[], 2)];
    check_twice("pad", &given, &|g, x| {
        let y = g.pad(x[0], x[1], &dims(&[1, 0]), &dims(&[0, 2]))?;
        bent(g, y)
    });
    for (sizes, strides, dilations) in [([2, 3], [1, 2], [1, 1]), ([2, 2], [2, 1], [2, 3])] {
        let window = Window {
            axes: vec![1, 2],
            sizes: dims(&sizes),
            strides: strides.to_vec(),
            dilations: dilations.to_vec(),
        };
        let given = floats(&[2, 5, 7], 3);
        let build: Build = &|g, x| {
            let y = g.one(window.clone(), x)?;
            bent(g, y)
        };
        check_twice("window", std::slice::from_ref(&given), build);
        check("window of symbols", &[given.named(&["b", "h", "w"])], build);
    }
    check_twice("fold", &[floats(&[3, 2], 1)], &|g, x| {
        let fold = Fold {
            axes: vec![0],
            sizes: dims(&[2]),
            strides: vec![1],
            dilations: vec![2],
            dims: dims(&[5]),
        };
        let y = g.one(fold, x)?;
        bent(g, y)
    });
}

#[test]
fn reductions() {
    for kind in [
        ReduceKind::Sum,
        ReduceKind::Prod,
        ReduceKind::Max,
        ReduceKind::Min,
    ] {
        for axes in [&[1][..], &[0, 2], &[0, 1, 2]] {
            let build: Build = &|g, x| {
                let y = g.reduce(kind, x[0], axes)?;
                bent(g, y)
            };
            check_twice(kind.name(), &[floats(&[2, 3, 4], 8)], build);
            let named = floats(&[2, 3, 2], 9).named(&["a", "b", "c"]);
            check(kind.name(), &[named], build);
        }
        check(kind.name(), &[floats(&[0, 3], 1)], &|g, x| {
            g.reduce(kind, x[0], &[1])
        });
    }
    let total = |kind| move |g: &mut Graph, x: &[ValueId]| g.reduce(kind, x[0], &[0]);
    let tied = slope(&[1.0, 3.0, 3.0, 2.0], &total(ReduceKind::Max));
    assert_eq!(tied, [0.0, 0.5, 0.5, 0.0]);
    let product = total(ReduceKind::Prod);
    assert_eq!(slope(&[2.0, 0.0, 5.0], &product), [0.0, 10.0, 0.0]);
    assert_eq!(slope(&[2.0, 0.0, 0.0], &product), [0.0, 0.0, 0.0]);
}

#[test]
fn pooling_gives_all_to_the_first_largest() {
    let pool = |g: &mut Graph, x: ValueId| {
        let window = Window {
            axes: vec![1, 2],
            sizes: dims(&[2, 3]),
            strides: vec![1, 2],
            dilations: vec![1, 1],
        };
        let y = g.one(window, &[x])?;
        g.reduce(ReduceKind::Max, y, &[3, 4])
    };
    check("max of windows", &[floats(&[2, 4, 7], 6)], &|g, x| {
        pool(g, x[0])
    });
    for (sizes, strides, dilation) in [
        ([2, 3], [2, 3], 1),
        ([1, 2], [1, 2], 1),
        ([2, 2], [2, 2], 2),
        ([9, 8], [1, 1], 1),
    ] {
        let build: Build = &|g, x| {
            let window = Window {
                axes: vec![1, 2],
                sizes: dims(&sizes),
                strides: strides.to_vec(),
                dilations: vec![dilation; 2],
            };
            let y = g.one(window, x)?;
            let y = g.reduce(ReduceKind::Max, y, &[3, 4])?;
            bent(g, y)
        };
        check_twice("max of windows", &[floats(&[2, 9, 8], 6)], build);
        check(
            "max of windows",
            &[floats(&[2, 9, 8], 6).named(&["b", "h", "w"])],
            build,
        );
    }
    let named = floats(&[2, 4, 7], 6).named(&["b", "h", "w"]);
    check("max of windows", &[named], &|g, x| pool(g, x[0]));
    let ties = slope(&[1.0; 6], &|g, x| {
        let window = Window {
            axes: vec![0],
            sizes: dims(&[3]),
            strides: vec![2],
            dilations: vec![1],
        };
        let y = g.one(window, x)?;
        g.reduce(ReduceKind::Max, y, &[1])
    });
    assert_eq!(ties, [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
}

#[test]
fn products() {
    let contract = |lb: &[usize], rb: &[usize], lc: &[usize], rc: &[usize]| Contract {
        lhs_batch: lb.to_vec(),
        rhs_batch: rb.to_vec(),
        lhs_contract: lc.to_vec(),
        rhs_contract: rc.to_vec(),
        accum: DType::F64,
        out: DType::F64,
    };
    let cases = [
        (contract(&[], &[], &[1], &[0]), vec![2, 3], vec![3, 4]),
        (contract(&[], &[], &[1], &[1]), vec![2, 3], vec![4, 3]),
        (contract(&[], &[], &[0], &[0]), vec![3, 2], vec![3, 4]),
        (
            contract(&[0], &[0], &[2], &[1]),
            vec![2, 3, 4],
            vec![2, 4, 5],
        ),
        (
            contract(&[2, 0], &[1, 3], &[1, 4], &[0, 2]),
            vec![2, 3, 4, 2, 5],
            vec![3, 4, 5, 2, 3],
        ),
        (contract(&[], &[], &[0, 1], &[1, 0]), vec![2, 3], vec![3, 2]),
        (contract(&[], &[], &[0], &[0]), vec![3], vec![3]),
        (contract(&[], &[], &[], &[]), vec![2], vec![3]),
        (contract(&[0, 1], &[0, 1], &[], &[]), vec![2, 3], vec![2, 3]),
        (contract(&[], &[], &[1], &[0]), vec![2, 0], vec![0, 4]),
    ];
    for (op, l, r) in cases {
        let what = format!("{l:?} times {r:?}");
        check_twice(&what, &[floats(&l, 1), floats(&r, 2)], &|g, x| {
            let y = g.one(op.clone(), x)?;
            bent(g, y)
        });
    }
    let named = [
        floats(&[2, 3, 4], 1).named(&["b", "m", "k"]),
        floats(&[4, 5], 2).named(&["k", "n"]),
    ];
    check_twice("matmul of symbols", &named, &|g, x| g.matmul(x[0], x[1]));
}

#[test]
fn products_of_ordinary_layers_need_no_permutation() {
    for (op, rhs) in [(true, [4, 3]), (false, [3, 4])] {
        let mut g = Graph::new("layer");
        let ty = |d: &[usize]| cupola_ir::TensorType::new(DType::F32, dims(d));
        let x = g.input("x", ty(&[2, 3])).unwrap();
        let w = g.input("w", ty(&rhs)).unwrap();
        let y = match op {
            true => g.matmul_nt(x, w),
            false => g.matmul(x, w),
        };
        let y = y.unwrap();
        let before = g.node_count();
        let grads = cupola_passes::autodiff::vjp(&mut g, &[(y, y)], &[x, w]).unwrap();
        assert_eq!(g.node_count() - before, 2);
        assert!(grads.iter().all(|v| matches!(
            g.op_of(v.unwrap()),
            cupola_ir::Op::Core(CoreOp::Contract(_))
        )));
    }
}

#[test]
fn gathers_and_scatters() {
    for bounds in [Bounds::Check, Bounds::Clamp, Bounds::Skip] {
        let at = match bounds {
            Bounds::Check => [2, 0, 2, 1],
            _ => [2, 0, 7, 1],
        };
        let gather = Gather {
            axes: vec![0],
            batch: 0,
            bounds,
        };
        let given = [floats(&[3, 2], 1), indices(&[2, 2], &at)];
        check_twice("gather", &given, &|g, x| {
            let y = g.one(gather.clone(), x)?;
            bent(g, y)
        });
        for kind in [
            ScatterKind::Set,
            ScatterKind::Add,
            ScatterKind::Mul,
            ScatterKind::Max,
            ScatterKind::Min,
        ] {
            // What is set twice has no order.
            let at = match (kind, bounds) {
                (ScatterKind::Set, Bounds::Clamp) => [2, 0, 3, 1],
                (ScatterKind::Set, Bounds::Check) => [2, 0, 3, 1],
                _ => at,
            };
            let scatter = Scatter {
                axes: vec![1],
                batch: 0,
                kind,
                bounds,
            };
            let given = [floats(&[2, 4], 1), floats(&[4, 2], 2), indices(&[4], &at)];
            let what = format!("scatter {} {}", kind.name(), bounds.name());
            check_twice(&what, &given, &|g, x| {
                let y = g.one(scatter.clone(), x)?;
                bent(g, y)
            });
        }
    }
    for (bounds, at) in [(Bounds::Check, 2), (Bounds::Clamp, 9), (Bounds::Skip, 9)] {
        let given = [floats(&[3, 4, 2], 1), indices(&[3], &[1, at, 0])];
        check_twice("one of each row", &given, &|g, x| {
            let gather = Gather {
                axes: vec![1],
                batch: 1,
                bounds,
            };
            let y = g.one(gather, x)?;
            bent(g, y)
        });
    }
    let given = [
        floats(&[2, 3, 2, 4], 1).named(&["b", "i", "w", "j"]),
        indices(&[2, 3], &[0, 2, 2, 1, 1, 0]).named(&["b", "p"]),
        indices(&[2, 3], &[3, 1, 1, 0, 2, 3]).named(&["b", "p"]),
    ];
    check("gather with batch", &given, &|g, x| {
        let gather = Gather {
            axes: vec![1, 3],
            batch: 1,
            bounds: Bounds::Check,
        };
        let y = g.one(gather, x)?;
        bent(g, y)
    });
}

#[test]
fn sorts() {
    for (axis, descending) in [(0, false), (1, true), (2, false)] {
        check_twice("sort", &[floats(&[3, 4, 2], 4)], &|g, x| {
            let y = g.push(Sort { axis, descending }, x)?[0];
            bent(g, y)
        });
    }
}
