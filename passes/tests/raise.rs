//! Composites are found in what exporters write, and not in what only looks like it.

mod support;

use cupola_ir::composite::*;
use cupola_ir::ops::*;
use cupola_ir::{CompositeOp, CoreOp, DType, Dim, Graph, Op, Scalar, Tensor, TensorType, ValueId};
use support::*;

type Build = fn(&mut Graph, ValueId) -> ValueId;

fn n(v: i64) -> Dim {
    Dim::Const(v)
}

fn composites(g: &Graph) -> Vec<CompositeOp> {
    let all = g.nodes().filter_map(|(_, n)| match &n.op {
        Op::Composite(c) => Some(c.clone()),
        _ => None,
    });
    all.collect()
}

/// Raises a graph, checks that its meaning stays, and gives its composites and near misses.
fn raise(g: &Graph, syms: &[(&str, i64)]) -> (Vec<CompositeOp>, Vec<String>) {
    let (raised, near) = after(g, "raise", everything);
    let mut rng = Rng(77);
    let mut bindings = cupola_ir::Bindings::default();
    for (s, v) in syms {
        bindings.set(cupola_ir::Sym::new(s), *v);
    }
    let inputs: Vec<T> = g
        .inputs()
        .iter()
        .map(|v| {
            let t = g.tensor(*v);
            rng.tensor(t.dtype, &t.shape(&bindings).expect("bound"))
        })
        .collect();
    let want = reference::run(g, &inputs, &mut bindings.clone());
    let got = reference::run(&raised, &inputs, &mut bindings.clone());
    for (a, b) in got.iter().zip(&want) {
        close(a, b, &format!("{raised:#?}"));
    }
    (composites(&raised), near)
}

/// A graph over `x: f32[2, $s, 6]`.
fn over_x(build: Build) -> Graph {
    let mut g = Graph::new("raise");
    let ty = TensorType::new(DType::F32, [n(2), Dim::sym("s"), n(6)]);
    let x = g.input("x", ty).unwrap();
    let y = build(&mut g, x);
    g.output("y", y);
    g
}

fn found(build: Build) -> Vec<CompositeOp> {
    raise(&over_x(build), &[("s", 3)]).0
}

fn missed(build: Build, what: &str) {
    let (found, near) = raise(&over_x(build), &[("s", 3)]);
    assert_eq!(found, vec![]);
    assert!(
        what.is_empty() || near.iter().any(|m| m.contains(what)),
        "{what}: {near:?}"
    );
}

fn c(g: &mut Graph, v: f64) -> ValueId {
    g.number(v, DType::F32).unwrap()
}

fn bin(g: &mut Graph, f: Scalar, x: ValueId, y: ValueId) -> ValueId {
    g.binary(f, x, y).unwrap()
}

fn un(g: &mut Graph, f: Scalar, x: ValueId) -> ValueId {
    g.unary(f, x).unwrap()
}

fn exps(g: &mut Graph, x: ValueId, axis: usize) -> ValueId {
    let max = g.reduce_keep(ReduceKind::Max, x, &[axis]).unwrap();
    let shifted = bin(g, Scalar::Sub, x, max);
    un(g, Scalar::Exp, shifted)
}

#[test]
fn softmax_in_its_spellings() {
    let softmax = |axis, log| vec![CompositeOp::from(Softmax { axis, log })];
    let plain: Build = |g, x| {
        let e = exps(g, x, 2);
        let sum = g.reduce_keep(ReduceKind::Sum, e, &[2]).unwrap();
        bin(g, Scalar::Div, e, sum)
    };
    assert_eq!(found(plain), softmax(2, false));
    let reciprocal: Build = |g, x| {
        let e = exps(g, x, 1);
        let sum = g.reduce_keep(ReduceKind::Sum, e, &[1]).unwrap();
        let r = un(g, Scalar::Recip, sum);
        bin(g, Scalar::Mul, r, e)
    };
    assert_eq!(found(reciprocal), softmax(1, false));
    let log: Build = |g, x| {
        let max = g.reduce_keep(ReduceKind::Max, x, &[2]).unwrap();
        let shifted = bin(g, Scalar::Sub, x, max);
        let e = un(g, Scalar::Exp, shifted);
        let sum = g.reduce_keep(ReduceKind::Sum, e, &[2]).unwrap();
        let log = un(g, Scalar::Log, sum);
        bin(g, Scalar::Sub, shifted, log)
    };
    assert_eq!(found(log), softmax(2, true));
}

#[test]
fn softmax_decoys() {
    missed(
        |g, x| {
            let e = un(g, Scalar::Exp, x);
            let sum = g.reduce_keep(ReduceKind::Sum, e, &[2]).unwrap();
            bin(g, Scalar::Div, e, sum)
        },
        "not subtracted",
    );
    missed(
        |g, x| {
            let e = exps(g, x, 1);
            let sum = g.reduce_keep(ReduceKind::Sum, e, &[2]).unwrap();
            bin(g, Scalar::Div, e, sum)
        },
        "maximum is of other elements",
    );
    missed(
        |g, x| {
            let e = exps(g, x, 2);
            let other = un(g, Scalar::Neg, e);
            let sum = g.reduce_keep(ReduceKind::Sum, other, &[2]).unwrap();
            bin(g, Scalar::Div, e, sum)
        },
        "not of the exponentials",
    );
    missed(
        |g, x| {
            let max = g.reduce_keep(ReduceKind::Max, x, &[1, 2]).unwrap();
            let shifted = bin(g, Scalar::Sub, x, max);
            let e = un(g, Scalar::Exp, shifted);
            let sum = g.reduce_keep(ReduceKind::Sum, e, &[1, 2]).unwrap();
            bin(g, Scalar::Div, e, sum)
        },
        "several axes",
    );
}

fn variance(g: &mut Graph, centred: ValueId, axes: &[usize]) -> ValueId {
    let square = bin(g, Scalar::Mul, centred, centred);
    let var = g.mean_keep(square, axes).unwrap();
    let eps = c(g, 1e-5);
    bin(g, Scalar::Add, var, eps)
}

fn centred(g: &mut Graph, x: ValueId, axes: &[usize]) -> ValueId {
    let mean = g.mean_keep(x, axes).unwrap();
    bin(g, Scalar::Sub, x, mean)
}

fn weights(g: &mut Graph, from: f32) -> ValueId {
    let v: Vec<f32> = (0..6).map(|i| from + i as f32 * 0.25).collect();
    g.constant(Tensor::vector(&v)).unwrap()
}

#[test]
fn norms_in_their_spellings() {
    let norms: [(Build, usize); 4] = [
        (
            |g, x| {
                let d = centred(g, x, &[2]);
                let var = variance(g, d, &[2]);
                let root = un(g, Scalar::Sqrt, var);
                let y = bin(g, Scalar::Div, d, root);
                let (w, b) = (weights(g, 0.5), weights(g, -1.0));
                let y = bin(g, Scalar::Mul, y, w);
                bin(g, Scalar::Add, b, y)
            },
            3,
        ),
        (
            |g, x| {
                let d = centred(g, x, &[2]);
                let two = c(g, 2.0);
                let square = bin(g, Scalar::Pow, d, two);
                let var = g.mean_keep(square, &[2]).unwrap();
                let eps = c(g, 1e-5);
                let var = bin(g, Scalar::Add, eps, var);
                let inverse = un(g, Scalar::Rsqrt, var);
                let y = bin(g, Scalar::Mul, inverse, d);
                let w = weights(g, 0.5);
                bin(g, Scalar::Mul, w, y)
            },
            2,
        ),
        (
            |g, x| {
                let d = centred(g, x, &[2]);
                let var = variance(g, d, &[2]);
                let e = c(g, -0.5);
                let inverse = bin(g, Scalar::Pow, var, e);
                bin(g, Scalar::Mul, d, inverse)
            },
            1,
        ),
        (
            // Over both trailing axes, one of them known only when bound.
            |g, x| {
                let d = centred(g, x, &[1, 2]);
                let var = variance(g, d, &[1, 2]);
                let root = un(g, Scalar::Sqrt, var);
                let one = c(g, 1.0);
                let inverse = bin(g, Scalar::Div, one, root);
                bin(g, Scalar::Mul, d, inverse)
            },
            1,
        ),
    ];
    for (i, (build, operands)) in norms.into_iter().enumerate() {
        let found = found(build);
        let axis = if i == 3 { 1 } else { 2 };
        assert!(
            matches!(&found[..], [CompositeOp::LayerNorm(p)] if p.axis == axis && (p.epsilon - 1e-5).abs() < 1e-9),
            "{i}: {found:?}"
        );
        let (g, _) = after(&over_x(build), "raise", everything);
        let node = g.nodes().find(|(_, n)| matches!(n.op, Op::Composite(_)));
        assert_eq!(node.unwrap().1.operands.len(), operands, "{i}");
    }
    let rms: [Build; 2] = [
        |g, x| {
            let var = variance(g, x, &[2]);
            let inverse = un(g, Scalar::Rsqrt, var);
            let y = bin(g, Scalar::Mul, x, inverse);
            let w = weights(g, 1.0);
            bin(g, Scalar::Mul, w, y)
        },
        |g, x| {
            let var = variance(g, x, &[2]);
            let root = un(g, Scalar::Sqrt, var);
            let inverse = un(g, Scalar::Recip, root);
            bin(g, Scalar::Mul, x, inverse)
        },
    ];
    for build in rms {
        let found = found(build);
        assert!(matches!(&found[..], [CompositeOp::RmsNorm(_)]), "{found:?}");
    }
}

#[test]
fn a_norm_that_widens_takes_narrow_operands() {
    let mut g = Graph::new("half");
    let x = g
        .input("x", TensorType::new(DType::F16, [n(3), n(8)]))
        .unwrap();
    let wide = g.cast(x, DType::F32).unwrap();
    let var = variance(&mut g, wide, &[1]);
    let inverse = un(&mut g, Scalar::Rsqrt, var);
    let y = bin(&mut g, Scalar::Mul, wide, inverse);
    let y = g.cast(y, DType::F16).unwrap();
    g.output("y", y);
    let (raised, _) = after(&g, "raise", everything);
    assert!(matches!(composites(&raised)[..], [CompositeOp::RmsNorm(_)]));
    assert_eq!(raised.node_count(), 2, "no conversion is left");
}

#[test]
fn norm_decoys() {
    missed(
        |g, x| {
            let d = centred(g, x, &[1]);
            let var = variance(g, d, &[1]);
            let root = un(g, Scalar::Sqrt, var);
            bin(g, Scalar::Div, d, root)
        },
        "not the last",
    );
    missed(
        |g, x| {
            let square = bin(g, Scalar::Mul, x, x);
            let mean_square = g.mean_keep(square, &[2]).unwrap();
            let mean = g.mean_keep(x, &[2]).unwrap();
            let mean2 = bin(g, Scalar::Mul, mean, mean);
            let var = bin(g, Scalar::Sub, mean_square, mean2);
            let eps = c(g, 1e-5);
            let var = bin(g, Scalar::Add, var, eps);
            let root = un(g, Scalar::Sqrt, var);
            let d = bin(g, Scalar::Sub, x, mean);
            bin(g, Scalar::Div, d, root)
        },
        "loses digits",
    );
    missed(
        |g, x| {
            let d = centred(g, x, &[2]);
            let var = variance(g, d, &[2]);
            let root = un(g, Scalar::Sqrt, var);
            bin(g, Scalar::Div, x, root)
        },
        "not of the value",
    );
    // A sum is no mean.
    missed(
        |g, x| {
            let square = bin(g, Scalar::Mul, x, x);
            let sum = g.reduce_keep(ReduceKind::Sum, square, &[2]).unwrap();
            let eps = c(g, 1e-5);
            let sum = bin(g, Scalar::Add, sum, eps);
            let root = un(g, Scalar::Sqrt, sum);
            bin(g, Scalar::Div, x, root)
        },
        "",
    );
}

fn gate(g: &mut Graph, x: ValueId, f: Scalar, factor: f64) -> ValueId {
    let s = g.scale(x, factor).unwrap();
    let e = un(g, f, s);
    let one = c(g, 1.0);
    bin(g, Scalar::Add, e, one)
}

const ROOT_HALF: f64 = std::f64::consts::FRAC_1_SQRT_2;

#[test]
fn gelu_in_its_spellings() {
    let exact: [Build; 3] = [
        |g, x| {
            let root = c(g, std::f64::consts::SQRT_2);
            let s = bin(g, Scalar::Div, x, root);
            let e = un(g, Scalar::Erf, s);
            let one = c(g, 1.0);
            let e = bin(g, Scalar::Add, e, one);
            let y = bin(g, Scalar::Mul, x, e);
            g.scale(y, 0.5).unwrap()
        },
        |g, x| {
            let e = gate(g, x, Scalar::Erf, ROOT_HALF);
            let h = g.scale(x, 0.5).unwrap();
            bin(g, Scalar::Mul, h, e)
        },
        |g, x| {
            let e = gate(g, x, Scalar::Erf, ROOT_HALF);
            let e = g.scale(e, 0.5).unwrap();
            bin(g, Scalar::Mul, e, x)
        },
    ];
    for build in exact {
        assert_eq!(found(build), [CompositeOp::from(Gelu { tanh: false })]);
    }
    let tanh: [Build; 2] = [
        |g, x| {
            let three = c(g, 3.0);
            let cube = bin(g, Scalar::Pow, x, three);
            let cube = g.scale(cube, 0.044715).unwrap();
            let sum = bin(g, Scalar::Add, x, cube);
            let e = gate(g, sum, Scalar::Tanh, (2.0 / std::f64::consts::PI).sqrt());
            let h = g.scale(x, 0.5).unwrap();
            bin(g, Scalar::Mul, h, e)
        },
        |g, x| {
            let square = bin(g, Scalar::Mul, x, x);
            let square = g.scale(square, 0.044715).unwrap();
            let one = c(g, 1.0);
            let p = bin(g, Scalar::Add, one, square);
            let p = bin(g, Scalar::Mul, x, p);
            let e = gate(g, p, Scalar::Tanh, 0.7978845608);
            let y = bin(g, Scalar::Mul, x, e);
            g.scale(y, 0.5).unwrap()
        },
    ];
    for build in tanh {
        assert_eq!(found(build), [CompositeOp::from(Gelu { tanh: true })]);
    }
}

#[test]
fn gelu_decoys() {
    missed(
        |g, x| {
            let e = gate(g, x, Scalar::Erf, 0.8);
            let h = g.scale(x, 0.5).unwrap();
            bin(g, Scalar::Mul, h, e)
        },
        "sqrt(2)",
    );
    missed(
        |g, x| {
            let e = gate(g, x, Scalar::Erf, ROOT_HALF);
            bin(g, Scalar::Mul, x, e)
        },
        "one half",
    );
    missed(
        |g, x| {
            let e = gate(g, x, Scalar::Erf, ROOT_HALF);
            let h = g.scale(x, 0.5).unwrap();
            let h = bin(g, Scalar::Mul, h, x);
            bin(g, Scalar::Mul, h, e)
        },
        "twice",
    );
}

/// Heads of `x: [2, s, 6]` by a constant product: `[2, 2, s, 3]`.
fn heads(g: &mut Graph, x: ValueId, seed: u64) -> ValueId {
    let w: Vec<f32> = (0..36)
        .map(|i| ((i * 7 + seed as i32 * 5) % 11) as f32 / 11.0 - 0.4)
        .collect();
    let w = g
        .constant(Tensor::from_slice(&[6, 6], &w).unwrap())
        .unwrap();
    let p = g.matmul(x, w).unwrap();
    let s = g.dim(x, 1);
    let p = g.reshape(p, &[n(2), s, n(2), n(3)]).unwrap();
    g.permute(p, &[0, 2, 1, 3]).unwrap()
}

fn softmax(g: &mut Graph, x: ValueId) -> ValueId {
    let axis = g.rank(x) - 1;
    let e = exps(g, x, axis);
    let sum = g.reduce_keep(ReduceKind::Sum, e, &[axis]).unwrap();
    bin(g, Scalar::Div, e, sum)
}

fn qkv(g: &mut Graph, x: ValueId) -> [ValueId; 3] {
    [heads(g, x, 1), heads(g, x, 2), heads(g, x, 3)]
}

/// A mask over keys: `[2, 1, 1, s]`, 0 or -10000.
fn padding(g: &mut Graph, x: ValueId) -> ValueId {
    let first = g.slice_axis(x, 2, &n(0), &n(1)).unwrap();
    let s = g.dim(x, 1);
    let m = g.reshape(first, &[n(2), n(1), n(1), s]).unwrap();
    let zero = c(g, 0.0);
    let m = bin(g, Scalar::Lt, m, zero);
    let m = g.cast(m, DType::F32).unwrap();
    g.scale(m, -10000.0).unwrap()
}

fn attends(build: Build, scale: f64, operands: usize) -> Attention {
    let g = over_x(build);
    let found = raise(&g, &[("s", 4)]).0;
    let [CompositeOp::Attention(p)] = &found[..] else {
        panic!("{found:?} {:?}", raise(&g, &[("s", 4)]).1)
    };
    assert!((p.scale - scale).abs() < 1e-6, "{p:?}");
    let (raised, _) = after(&g, "raise", everything);
    let node = raised
        .nodes()
        .find(|(_, n)| matches!(n.op, Op::Composite(_)));
    assert_eq!(node.unwrap().1.operands.len(), operands);
    p.clone()
}

#[test]
fn attention_in_the_dialects_of_exporters() {
    // Scores divided, additive mask, keys transposed by a permutation of their own.
    attends(
        |g, x| {
            let [q, k, v] = qkv(g, x);
            let kt = g.permute(k, &[0, 1, 3, 2]).unwrap();
            let s = g.matmul(q, kt).unwrap();
            let d = c(g, 3f64.sqrt());
            let s = bin(g, Scalar::Div, s, d);
            let m = padding(g, x);
            let s = bin(g, Scalar::Add, s, m);
            let p = softmax(g, s);
            let y = g.matmul(p, v).unwrap();
            g.permute(y, &[0, 2, 1, 3]).unwrap()
        },
        1.0 / 3f64.sqrt(),
        4,
    );
    // Queries scaled, no mask.
    attends(
        |g, x| {
            let [q, k, v] = qkv(g, x);
            let q = g.scale(q, 0.25).unwrap();
            let s = g.matmul_nt(q, k).unwrap();
            let p = softmax(g, s);
            g.matmul(p, v).unwrap()
        },
        0.25,
        3,
    );
    // The root of the scale on both sides, mask selected, NaN of empty rows repaired.
    attends(
        |g, x| {
            let [q, k, v] = qkv(g, x);
            let q = g.scale(q, 0.7).unwrap();
            let k = g.scale(k, 0.7).unwrap();
            let s = g.matmul_nt(q, k).unwrap();
            let m = padding(g, x);
            let zero = c(g, 0.0);
            let keep = bin(g, Scalar::Eq, m, zero);
            let low = c(g, f64::NEG_INFINITY);
            let s = g.select(keep, s, low).unwrap();
            let p = softmax(g, s);
            let nan = un(g, Scalar::IsNan, p);
            let p = g.select(nan, zero, p).unwrap();
            g.matmul(p, v).unwrap()
        },
        0.49,
        4,
    );
    // Batch and heads merged in one axis, and apart around the mask.
    attends(
        |g, x| {
            let [q, k, v] = qkv(g, x);
            let s = g.dim(x, 1);
            let merge = |g: &mut Graph, v: ValueId| {
                let d = g.dim(v, 3);
                g.reshape(v, &[n(4), g.dim(v, 2), d]).unwrap()
            };
            let (q, k, v) = (merge(g, q), merge(g, k), merge(g, v));
            let w = g.matmul_nt(q, k).unwrap();
            let w = g.reshape(w, &[n(2), n(2), s.clone(), s.clone()]).unwrap();
            let m = padding(g, x);
            let w = bin(g, Scalar::Add, m, w);
            let w = g.reshape(w, &[n(4), s.clone(), s]).unwrap();
            let p = softmax(g, w);
            g.matmul(p, v).unwrap()
        },
        1.0,
        4,
    );
    // A soft cap, a mask where true means drop, a second mask.
    let p = attends(
        |g, x| {
            let [q, k, v] = qkv(g, x);
            let s = g.matmul_nt(q, k).unwrap();
            let s = g.scale(s, 0.5).unwrap();
            let s = g.scale(s, 1.0 / 8.0).unwrap();
            let s = un(g, Scalar::Tanh, s);
            let s = g.scale(s, 8.0).unwrap();
            let m = padding(g, x);
            let zero = c(g, 0.0);
            let drop = bin(g, Scalar::Lt, m, zero);
            let low = c(g, -1e9);
            let s = g.select(drop, low, s).unwrap();
            let s = bin(g, Scalar::Add, s, m);
            let p = softmax(g, s);
            g.matmul(p, v).unwrap()
        },
        0.5,
        4,
    );
    assert_eq!(p.softcap, 8.0);
    // Rows without any key: all keys weigh alike, whatever the scores were.
    attends(
        |g, x| {
            let [q, k, v] = qkv(g, x);
            let s = g.matmul_nt(q, k).unwrap();
            let first = g.slice_axis(x, 2, &n(0), &n(1)).unwrap();
            let rows = g.dim(x, 1);
            let first = g.reshape(first, &[n(2), n(1), rows, n(1)]).unwrap();
            let zero = c(g, 0.0);
            let drop = bin(g, Scalar::Lt, first, zero);
            let low = c(g, -1e4);
            let s = g.select(drop, low, s).unwrap();
            let p = softmax(g, s);
            g.matmul(p, v).unwrap()
        },
        1.0,
        4,
    );
    // One head, rank 3.
    attends(
        |g, x| {
            let s = g.matmul_nt(x, x).unwrap();
            let p = softmax(g, s);
            g.matmul(p, x).unwrap()
        },
        1.0,
        3,
    );
}

#[test]
fn repeated_key_heads_are_undone() {
    let build: Build = |g, x| {
        let [q, k, v] = qkv(g, x);
        let repeat = |g: &mut Graph, v: ValueId| {
            let d = g.dims(v);
            let one = g.slice_axis(v, 1, &n(0), &n(1)).unwrap();
            let r = g
                .reshape(one, &[d[0].clone(), n(1), n(1), d[2].clone(), d[3].clone()])
                .unwrap();
            let r = g
                .broadcast_to(r, &[d[0].clone(), n(1), n(2), d[2].clone(), d[3].clone()])
                .unwrap();
            g.reshape(r, &d).unwrap()
        };
        let (k, v) = (repeat(g, k), repeat(g, v));
        let s = g.matmul_nt(q, k).unwrap();
        let p = softmax(g, s);
        g.matmul(p, v).unwrap()
    };
    let (raised, _) = after(&over_x(build), "raise", everything);
    let (_, node) = raised
        .nodes()
        .find(|(_, n)| matches!(n.op, Op::Composite(_)))
        .expect("attention");
    assert_eq!(raised.dim(node.operands[1], 1), n(1));
    assert_eq!(raised.dim(node.operands[0], 1), n(2));
    attends(build, 1.0, 3);
}

#[test]
fn attention_decoys() {
    let not = |build: Build, what: &str| {
        let (found, near) = raise(&over_x(build), &[("s", 3)]);
        let attention = found.iter().any(|c| matches!(c, CompositeOp::Attention(_)));
        assert!(!attention, "{what}");
        assert!(near.iter().any(|m| m.contains(what)), "{what}: {near:?}");
    };
    not(
        |g, x| {
            let [q, k, v] = qkv(g, x);
            let s = g.matmul_nt(q, k).unwrap();
            let m = padding(g, x);
            let s = bin(g, Scalar::Add, s, m);
            let s = g.scale(s, 0.5).unwrap();
            let p = softmax(g, s);
            g.matmul(p, v).unwrap()
        },
        "mask is applied before the scale",
    );
    not(
        |g, x| {
            let [q, k, v] = qkv(g, x);
            let s = g.matmul_nt(q, k).unwrap();
            let p = softmax(g, s);
            g.output("p", p);
            g.matmul(p, v).unwrap()
        },
        "used elsewhere",
    );
    not(
        |g, x| {
            let [q, k, v] = qkv(g, x);
            let s = g.matmul_nt(q, k).unwrap();
            let e = exps(g, s, 2);
            let sum = g.reduce_keep(ReduceKind::Sum, e, &[2]).unwrap();
            let p = bin(g, Scalar::Div, e, sum);
            g.matmul(p, v).unwrap()
        },
        "not over the last axis",
    );
    not(
        |g, x| {
            let [q, k, v] = qkv(g, x);
            let s = g.matmul_nt(q, k).unwrap();
            let p = softmax(g, s);
            let p = g.permute(p, &[0, 1, 3, 2]).unwrap();
            g.matmul(p, v).unwrap()
        },
        "attention",
    );
    not(
        |g, x| {
            let [q, k, v] = qkv(g, x);
            let s = g.matmul_nt(q, k).unwrap();
            let s = un(g, Scalar::Abs, s);
            let p = softmax(g, s);
            g.matmul(p, v).unwrap()
        },
        "go through abs",
    );
}

#[test]
fn batch_norm_moves_into_the_convolution() {
    let mut g = Graph::new("conv");
    let x = g
        .input("x", TensorType::new(DType::F32, [n(1), n(2), n(5), n(5)]))
        .unwrap();
    let w: Vec<f32> = (0..54).map(|i| i as f32 / 54.0 - 0.5).collect();
    let w = g
        .constant(Tensor::from_slice(&[3, 2, 3, 3], &w).unwrap())
        .unwrap();
    let conv = Conv {
        strides: vec![1, 1],
        dilations: vec![1, 1],
        pads_low: vec![n(1), n(1)],
        pads_high: vec![n(1), n(1)],
        groups: 1,
    };
    let y = g
        .one(Op::Composite(CompositeOp::Conv(conv)), &[x, w])
        .unwrap();
    let channel = |g: &mut Graph, v: [f32; 3]| {
        g.constant(Tensor::from_slice(&[1, 3, 1, 1], &v).unwrap())
            .unwrap()
    };
    let (mean, scale, bias) = (
        channel(&mut g, [0.1, 0.2, -0.3]),
        channel(&mut g, [1.5, 0.5, -2.0]),
        channel(&mut g, [0.3, 0.0, 1.0]),
    );
    let y = bin(&mut g, Scalar::Sub, y, mean);
    let y = bin(&mut g, Scalar::Mul, y, scale);
    let y = bin(&mut g, Scalar::Add, y, bias);
    g.output("y", y);
    raise(&g, &[]);
    let (raised, _) = after(&g, "clean", everything);
    let products = raised
        .nodes()
        .filter(|(_, n)| matches!(&n.op, Op::Core(CoreOp::Map(p)) if p.f == Scalar::Mul));
    assert_eq!(products.count(), 0);
}
