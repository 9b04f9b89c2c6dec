//! Compiled graphs compute what the graphs mean, and fuse what they should.

mod support;

use cupola_ir::composite::{
    Attention, Conv, ConvTranspose, Gelu, LayerNorm, RmsNorm, Rope, Softmax, Swiglu, Swish,
};
use cupola_ir::kernel::{Expr, Unit};
use cupola_ir::ops::*;
use cupola_ir::{CompositeOp, CoreOp, DType, Dim, Graph, Op, Scalar, Tensor, TensorType, ValueId};
use cupola_passes::{DeviceId, Level, MissCode};
use support::*;

fn composite(g: &mut Graph, op: impl Into<CompositeOp>, xs: &[ValueId]) -> ValueId {
    g.one(Op::Composite(op.into()), xs).expect("valid")
}

fn f32s(dims: &[Dim]) -> TensorType {
    TensorType {
        dtype: DType::F32,
        dims: dims.to_vec(),
    }
}

fn n(v: i64) -> Dim {
    Dim::Const(v)
}

fn launches(c: &cupola_passes::Compiled) -> usize {
    c.units.len()
}

#[test]
fn softmax_is_one_kernel_of_three_phases() {
    let mut g = Graph::new("softmax");
    let x = g.input("x", f32s(&[Dim::sym("n"), Dim::sym("m")])).unwrap();
    let y = composite(
        &mut g,
        Softmax {
            axis: 1,
            log: false,
        },
        &[x],
    );
    g.output("y", y);
    let t = target(nothing);
    for (rows, cols) in [(3, 5), (1, 1), (0, 4), (2, 0)] {
        let x = Rng(7).tensor(DType::F32, &[rows as usize, cols as usize]);
        let c = check(&g, &t, &[x], &[("n", rows), ("m", cols)]);
        assert_eq!(launches(&c), 1);
        let Unit::Loops(k) = &c.units[0].unit else {
            panic!("loops")
        };
        assert_eq!((k.parallel, k.phases.len()), (1, 3));
    }
}

#[test]
fn norms_of_the_same_rows_are_one_kernel() {
    let mut g = Graph::new("norms");
    let x = g
        .input("x", f32s(&[Dim::sym("b"), Dim::sym("s"), n(6)]))
        .unwrap();
    let r = g
        .input("r", f32s(&[Dim::sym("b"), Dim::sym("s"), n(6)]))
        .unwrap();
    let scale = g.input("scale", f32s(&[n(6)])).unwrap();
    let bias = g.input("bias", f32s(&[n(6)])).unwrap();
    let sum = g.binary(Scalar::Add, x, r).unwrap();
    let norm = LayerNorm {
        axis: 2,
        epsilon: 1e-5,
        stats: false,
    };
    let y = composite(&mut g, norm, &[sum, scale, bias]);
    g.output("y", y);
    let z = composite(
        &mut g,
        RmsNorm {
            axis: 2,
            epsilon: 1e-5,
        },
        &[x, scale],
    );
    g.output("z", z);
    let mut rng = Rng(11);
    let inputs = [
        rng.tensor(DType::F32, &[2, 3, 6]),
        rng.tensor(DType::F32, &[2, 3, 6]),
        rng.tensor(DType::F32, &[6]),
        rng.tensor(DType::F32, &[6]),
    ];
    let c = check(&g, &target(nothing), &inputs, &[("b", 2), ("s", 3)]);
    assert_eq!(launches(&c), 1, "{:#?}", c.misses);
    for u in &c.units {
        let Unit::Loops(k) = &u.unit else {
            panic!("loops")
        };
        // Rows of batch and sequence are one axis.
        assert_eq!(k.parallel, 1);
    }
}

#[test]
fn bias_activation_and_residual_join_a_product() {
    let mut g = Graph::new("mlp");
    let (b, s) = (Dim::sym("b"), Dim::sym("s"));
    let x = g.input("x", f32s(&[b.clone(), s.clone(), n(4)])).unwrap();
    let w = g.input("w", f32s(&[n(4), n(8)])).unwrap();
    let bias = g.input("bias", f32s(&[n(8)])).unwrap();
    let w2 = g.input("w2", f32s(&[n(8), n(4)])).unwrap();
    let h = g.matmul(x, w).unwrap();
    let h = g.binary(Scalar::Add, h, bias).unwrap();
    let h = composite(&mut g, Gelu { tanh: true }, &[h]);
    let y = g.matmul(h, w2).unwrap();
    let y = g.binary(Scalar::Add, y, x).unwrap();
    g.output("y", y);
    let mut rng = Rng(3);
    let inputs = [
        rng.tensor(DType::F32, &[2, 3, 4]),
        rng.tensor(DType::F32, &[4, 8]),
        rng.tensor(DType::F32, &[8]),
        rng.tensor(DType::F32, &[8, 4]),
    ];
    let c = check(&g, &target(products), &inputs, &[("b", 2), ("s", 3)]);
    assert_eq!(launches(&c), 2, "{:#?}", c.misses);
    for u in &c.units {
        assert!(matches!(&u.unit, Unit::Library(l) if l.epilogue.is_some()));
    }
    let cost = cupola_passes::explain::unit_cost(&c, 0);
    let rows = Dim::sym("b") * Dim::sym("s");
    // A product of 4 by 8, then bias and activation; operands, result and bias.
    let product = rows.clone() * n(2 * 4 * 8);
    let rest = cost.flops.clone() - product;
    assert_eq!(
        rest.exact_div(&(rows.clone() * n(8)))
            .map(|d| d.as_const().is_some()),
        Some(true)
    );
    assert_eq!(cost.bytes, rows * n(4 * (4 + 8)) + n(4 * (4 * 8 + 8)));
    // The same through generated products.
    check(&g, &target(nothing), &inputs, &[("b", 2), ("s", 3)]);
}

#[test]
fn attention_heads_are_strided_views_of_the_products() {
    let mut g = Graph::new("heads");
    let (b, s) = (Dim::sym("b"), Dim::sym("s"));
    let x = g.input("x", f32s(&[b.clone(), s.clone(), n(6)])).unwrap();
    let heads: Vec<ValueId> = ["wq", "wk"]
        .iter()
        .map(|name| {
            let w = g.input(name, f32s(&[n(6), n(6)])).unwrap();
            let p = g.matmul(x, w).unwrap();
            let p = g.reshape(p, &[b.clone(), s.clone(), n(2), n(3)]).unwrap();
            g.permute(p, &[0, 2, 1, 3]).unwrap()
        })
        .collect();
    let scores = g.matmul_nt(heads[0], heads[1]).unwrap();
    let scores = g.scale(scores, 0.5).unwrap();
    g.output("scores", scores);
    let mut rng = Rng(5);
    let inputs = [
        rng.tensor(DType::F32, &[2, 3, 6]),
        rng.tensor(DType::F32, &[6, 6]),
        rng.tensor(DType::F32, &[6, 6]),
    ];
    let c = check(&g, &target(products), &inputs, &[("b", 2), ("s", 3)]);
    assert_eq!(launches(&c), 3, "no copies: {:#?}", c.units);
}

#[test]
fn attention_and_convolutions_decompose() {
    let mut g = Graph::new("attention");
    let shape = |h: i64, s: &str| [n(1), n(h), Dim::sym(s), n(4)];
    let q = g.input("q", f32s(&shape(4, "q"))).unwrap();
    let k = g.input("k", f32s(&shape(2, "k"))).unwrap();
    let v = g.input("v", f32s(&shape(2, "k"))).unwrap();
    let a = Attention {
        scale: 0.5,
        causal: true,
        softcap: 0.0,
    };
    let y = composite(&mut g, a, &[q, k, v]);
    g.output("y", y);
    let mut rng = Rng(9);
    let inputs = [
        rng.tensor(DType::F32, &[1, 4, 3, 4]),
        rng.tensor(DType::F32, &[1, 2, 5, 4]),
        rng.tensor(DType::F32, &[1, 2, 5, 4]),
    ];
    for t in [target(nothing), target(products)] {
        check(&g, &t, &inputs, &[("q", 3), ("k", 5)]);
    }

    let mut g = Graph::new("conv");
    let x = g.input("x", f32s(&[n(2), n(4), n(7), n(6)])).unwrap();
    let w = g.input("w", f32s(&[n(6), n(2), n(3), n(3)])).unwrap();
    let conv = Conv {
        strides: vec![2, 1],
        dilations: vec![1, 2],
        pads_low: vec![n(1), n(2)],
        pads_high: vec![n(1), n(1)],
        groups: 2,
    };
    let y = composite(&mut g, conv, &[x, w]);
    g.output("y", y);
    let wt = g.input("wt", f32s(&[n(4), n(3), n(3), n(2)])).unwrap();
    let transposed = ConvTranspose {
        strides: vec![2, 3],
        dilations: vec![1, 1],
        pads_low: vec![n(1), n(0)],
        spatial: vec![n(13), n(17)],
        groups: 2,
    };
    let z = composite(&mut g, transposed, &[x, wt]);
    g.output("z", z);
    let inputs = [
        rng.tensor(DType::F32, &[2, 4, 7, 6]),
        rng.tensor(DType::F32, &[6, 2, 3, 3]),
        rng.tensor(DType::F32, &[4, 3, 3, 2]),
    ];
    for t in [target(nothing), target(products)] {
        check(&g, &t, &inputs, &[]);
    }
}

#[test]
fn broadcasts_between_unknown_extents_are_decided_at_launch() {
    let mut g = Graph::new("broadcast");
    let x = g.input("x", f32s(&[Dim::sym("a"), Dim::sym("b")])).unwrap();
    let y = g.input("y", f32s(&[Dim::sym("c"), Dim::sym("d")])).unwrap();
    let z = g.binary(Scalar::Add, x, y).unwrap();
    g.output("z", z);
    let t = target(nothing);
    for [a, b, c, d] in [
        [2, 3, 2, 3],
        [1, 3, 2, 1],
        [2, 1, 1, 4],
        [1, 1, 1, 1],
        [0, 3, 1, 3],
    ] {
        let mut rng = Rng(1 + a as u64);
        let inputs = [
            rng.tensor(DType::F32, &[a as usize, b as usize]),
            rng.tensor(DType::F32, &[c as usize, d as usize]),
        ];
        check(&g, &t, &inputs, &[("a", a), ("b", b), ("c", c), ("d", d)]);
    }
}

#[test]
fn sizes_that_do_not_fit_are_found_before_a_kernel_runs() {
    let mut g = Graph::new("sizes");
    let x = g.input("x", f32s(&[Dim::sym("a")])).unwrap();
    let y = g.slice_axis(x, 0, &n(2), &n(3)).unwrap();
    g.output("y", y);
    let c = compiled(&g, &target(nothing));
    let mut bindings = cupola_ir::Bindings::default();
    let holds = |c: &cupola_passes::Compiled, b: &cupola_ir::Bindings| {
        let mut requirements = c.plan.steps.iter().filter_map(|s| match s {
            cupola_passes::Step::Require { that, .. } => Some(that.holds(b)),
            _ => None,
        });
        requirements.all(|h| h)
    };
    bindings.set(cupola_ir::Sym::new("a"), 5);
    assert!(holds(&c, &bindings));
    bindings.set(cupola_ir::Sym::new("a"), 4);
    assert!(!holds(&c, &bindings));
}

#[test]
fn data_decides_sizes() {
    let mut g = Graph::new("bind");
    let count = g.input("count", TensorType::scalar(DType::I64)).unwrap();
    let sym = g.fresh_sym("n");
    g.one(
        BindDim {
            sym: sym.clone(),
            min: 0,
        },
        &[count],
    )
    .unwrap();
    let r = g.iota(DType::I64, &[Dim::from(&sym)], 0).unwrap();
    let r = g.binary(Scalar::Add, r, count).unwrap();
    g.output("r", r);
    let c = compiled(&g, &target(nothing));
    assert_eq!(c.units.len(), 1);
}

#[test]
fn constants_scalars_and_identities() {
    let mut g = Graph::new("small");
    let x = g.input("x", f32s(&[])).unwrap();
    let two = g.number(2.0, DType::F32).unwrap();
    let y = g.binary(Scalar::Mul, x, two).unwrap();
    g.output("y", y);
    g.output("x again", x);
    g.output("two", two);
    let r = g.reshape(x, &[n(1), n(1)]).unwrap();
    g.output("r", r);
    let table = g.constant(Tensor::vector(&[1.0f32, 5.0, 7.0])).unwrap();
    let sum = g.reduce(ReduceKind::Max, table, &[0]).unwrap();
    g.output("max", sum);
    let x = Rng(2).tensor(DType::F32, &[]);
    check(&g, &target(nothing), &[x], &[]);
}

#[test]
fn levels_agree_and_fuse_more_and_more() {
    let mut g = Graph::new("levels");
    let (b, s) = (Dim::sym("b"), Dim::sym("s"));
    let x = g.input("x", f32s(&[b.clone(), s.clone(), n(4)])).unwrap();
    let mut rng = Rng(21);
    let mut product = |g: &mut Graph, x: ValueId, bias: bool| {
        let w = reference::tensor(&rng.tensor(DType::F32, &[4, 4]));
        let w = g.constant(w).unwrap();
        let y = g.matmul(x, w).unwrap();
        if !bias {
            return y;
        }
        let v = reference::tensor(&rng.tensor(DType::F32, &[4]));
        let v = g.constant(v).unwrap();
        g.binary(Scalar::Add, y, v).unwrap()
    };
    // The keys have no bias.
    let heads: Vec<ValueId> = [true, false, true]
        .into_iter()
        .map(|bias| {
            let p = product(&mut g, x, bias);
            let p = g.reshape(p, &[b.clone(), s.clone(), n(2), n(2)]).unwrap();
            g.permute(p, &[0, 2, 1, 3]).unwrap()
        })
        .collect();
    let scores = g.matmul_nt(heads[0], heads[1]).unwrap();
    let p = composite(
        &mut g,
        Softmax {
            axis: 3,
            log: false,
        },
        &[scores],
    );
    let y = g.matmul(p, heads[2]).unwrap();
    let y = g.permute(y, &[0, 2, 1, 3]).unwrap();
    let y = g.reshape(y, &[b, s, n(4)]).unwrap();
    let y = g.binary(Scalar::Add, y, x).unwrap();
    let (gate, up) = (product(&mut g, y, false), product(&mut g, y, false));
    let sigmoid = g.unary(Scalar::Sigmoid, gate).unwrap();
    let swish = g.binary(Scalar::Mul, gate, sigmoid).unwrap();
    let y = g.binary(Scalar::Mul, swish, up).unwrap();
    g.output("y", y);
    let x = Rng(3).tensor(DType::F32, &[2, 3, 4]);
    let claims: [fn(&Op, &[&TensorType]) -> cupola_ir::target::Claim; 2] =
        [products, |op, t| match op {
            Op::Composite(CompositeOp::Attention(_)) => everything(op, t),
            _ => products(op, t),
        }];
    let mut units = vec![];
    for level in [Level::Separate, Level::Fuse, Level::Raise, Level::Merge] {
        // What the levels mean, by a device that runs here; what they raise and merge, by one that claims attention.
        let t = target(claims[0]);
        let c = compiled_at(level, &g, &[&t], DeviceId::HOST);
        check_compiled(c, &g, std::slice::from_ref(&x), &[("b", 2), ("s", 3)]);
        let t = target(claims[1]);
        units.push(compiled_at(level, &g, &[&t], DeviceId::HOST).units.len());
    }
    assert!(units.is_sorted_by(|a, b| a > b), "{units:?}");
}

fn aliases(c: &cupola_passes::Compiled) -> usize {
    let slots = c.plan.slots.iter();
    slots
        .filter(|s| matches!(s.storage, cupola_passes::Storage::Alias { .. }))
        .count()
}

#[test]
fn results_lie_over_operands_that_die() {
    // Products keep the maps apart: each of those reads what the product before it wrote.
    let mut g = Graph::new("in place");
    let dims = [Dim::sym("s"), n(4)];
    let x = g.input("x", f32s(&dims)).unwrap();
    let w = g.input("w", f32s(&[n(4), n(4)])).unwrap();
    let mut y = x;
    for _ in 0..3 {
        let p = g.matmul(y, w).unwrap();
        let sum = g.reduce_keep(ReduceKind::Sum, p, &[0]).unwrap();
        let d = g.binary(Scalar::Sub, p, sum).unwrap();
        y = g.unary(Scalar::Tanh, d).unwrap();
    }
    g.output("y", y);
    let mut rng = Rng(4);
    let inputs = [
        rng.tensor(DType::F32, &[3, 4]),
        rng.tensor(DType::F32, &[4, 4]),
    ];
    let t = target(products);
    let c = check(&g, &t, &inputs, &[("s", 3)]);
    assert_eq!(aliases(&c), 2, "all but the output: {:#?}", c.plan);
    // A device that cannot bind a buffer twice gets results of their own.
    let (host, device) = (target(nothing), small_device(products));
    let c = compiled_for(&g, &[&host, &device], DeviceId(1));
    assert_eq!(aliases(&c), 0);
    check_compiled(c, &g, &inputs, &[("s", 3)]);
}

#[test]
fn whole_rows_of_what_is_stored_are_no_copies() {
    let mut g = Graph::new("rows");
    let x = g.input("x", f32s(&[Dim::sym("s"), n(16)])).unwrap();
    let part = g.slice_axis(x, 0, &n(1), &n(2)).unwrap();
    // An op that runs on the host takes its operand from memory.
    let sorted = g
        .push(
            Sort {
                axis: 1,
                descending: false,
            },
            &[part],
        )
        .unwrap();
    g.output("y", sorted[0]);
    let x = Rng(4).tensor(DType::F32, &[4, 16]);
    let c = check(&g, &target(nothing), &[x], &[("s", 4)]);
    assert_eq!((launches(&c), aliases(&c)), (0, 1), "{:#?}", c.plan);
}

#[test]
fn merged_products_mean_the_same() {
    // Without a claim on attention the parts are read by generated kernels.
    let mut g = Graph::new("gate");
    let x = g.input("x", f32s(&[Dim::sym("s"), n(4)])).unwrap();
    let mut rng = Rng(8);
    let parts: Vec<ValueId> = (0..2)
        .map(|_| {
            let w = g
                .constant(reference::tensor(&rng.tensor(DType::F32, &[4, 6])))
                .unwrap();
            g.matmul(x, w).unwrap()
        })
        .collect();
    let y = composite(&mut g, Swiglu { alpha: 1.0 }, &parts);
    g.output("y", y);
    let t = target(products);
    let c = compiled_at(Level::Merge, &g, &[&t], DeviceId::HOST);
    let libraries = c
        .units
        .iter()
        .filter(|u| matches!(u.unit, Unit::Library(_)));
    assert_eq!(libraries.count(), 1, "{:#?}", c.units);
    let x = Rng(3).tensor(DType::F32, &[5, 4]);
    check_compiled(c, &g, &[x], &[("s", 5)]);
}

#[test]
fn joins_of_many_parts_fit_the_device() {
    let mut g = Graph::new("join");
    let parts: Vec<ValueId> = (0..40)
        .map(|i| {
            g.input(&format!("x{i}"), f32s(&[n(2), n(1 + i % 3)]))
                .unwrap()
        })
        .collect();
    let y = g.concat(&parts, 1).unwrap();
    g.output("y", y);
    let mut rng = Rng(5);
    let inputs: Vec<T> = (0..40)
        .map(|i| rng.tensor(DType::F32, &[2, 1 + i % 3]))
        .collect();
    let (host, device) = (target(nothing), small_device(nothing));
    let c = compiled_for(&g, &[&host, &device], DeviceId(1));
    for u in &c.units {
        assert!(u.device == DeviceId(1) && u.unit.accesses().len() <= device.max_buffers);
    }
    check_compiled(c, &g, &inputs, &[]);
}

#[test]
fn joined_parts_are_stored_in_turn() {
    let rows = Dim::sym("n");
    for (axis, lengths) in [(1, vec![3, 1, 1, 4]), (2, vec![2, 1, 5]), (0, vec![1; 6])] {
        let mut g = Graph::new("join");
        let parts = lengths.iter().enumerate().map(|(k, len)| {
            let mut dims = [rows.clone(), n(3), n(5)];
            dims[axis] = n(*len);
            let x = g.input(&format!("x{k}"), f32s(&dims)).unwrap();
            g.unary(Scalar::Exp, x).unwrap()
        });
        let parts: Vec<ValueId> = parts.collect();
        let join = g.concat(&parts, axis).unwrap();
        let y = g.unary(Scalar::Neg, join).unwrap();
        g.output("y", y);
        let mut rng = Rng(9);
        let inputs = lengths.iter().map(|len| {
            let mut shape = [2, 3, 5];
            shape[axis] = *len as usize;
            rng.tensor(DType::F32, &shape)
        });
        let inputs: Vec<T> = inputs.collect();
        let c = check(&g, &target(nothing), &inputs, &[("n", 2)]);
        let [unit] = &c.units[..] else {
            panic!("{:#?}", c.misses)
        };
        let Unit::Loops(k) = &unit.unit else {
            panic!("loops")
        };
        assert_eq!(k.phases.len(), lengths.len());
        let choices = k.exprs.iter().filter(|e| matches!(e, Expr::Ternary(..)));
        assert_eq!(choices.count(), 0, "{k:#?}");
    }
}

/// A rotation whose result is kept in half precision: the pairs are joined in another order than they are stored in.
#[test]
fn joined_parts_are_narrowed_where_they_are_computed() {
    let mut g = Graph::new("rope");
    let x = g.input("x", f32s(&[Dim::sym("n"), n(3), n(8)])).unwrap();
    let angles = [Scalar::Cos, Scalar::Sin].map(|f| {
        let a = g
            .input(&format!("{f:?}"), f32s(&[Dim::sym("n"), n(1), n(4)]))
            .unwrap();
        g.unary(f, a).unwrap()
    });
    let rope = Rope { interleaved: true };
    let y = composite(&mut g, rope, &[x, angles[0], angles[1]]);
    let y = g.cast(y, DType::F16).unwrap();
    g.output("y", y);
    for rows in [1usize, 4, 0] {
        let mut rng = Rng(3);
        let mut input = |shape: &[usize]| rng.tensor(DType::F32, shape);
        let inputs = [
            input(&[rows, 3, 8]),
            input(&[rows, 1, 4]),
            input(&[rows, 1, 4]),
        ];
        let c = check(&g, &target(nothing), &inputs, &[("n", rows as i64)]);
        let names: Vec<String> = c.units.iter().map(|u| u.unit.name()).collect();
        // Cosines, sines, and the rotation, which rounds what it stores.
        assert_eq!(names.len(), 3, "{names:?}");
    }
}

#[test]
fn what_many_places_use_is_computed_once() {
    let mut g = Graph::new("shifted");
    let x = g.input("x", f32s(&[n(6), n(40)])).unwrap();
    let heavy = g.unary(Scalar::Log, x).unwrap();
    let light = g.unary(Scalar::Neg, x).unwrap();
    let mut shifted = |of: ValueId| {
        let parts = (0..5).map(|k| {
            let slice = Slice {
                starts: vec![n(0), n(k)],
                steps: vec![1, 1],
                dims: vec![n(6), n(36)],
            };
            g.one(Op::Core(CoreOp::Slice(slice)), &[of]).unwrap()
        });
        let parts: Vec<ValueId> = parts.collect();
        let mut sum = parts[0];
        for part in &parts[1..] {
            sum = g.binary(Scalar::Add, sum, *part).unwrap();
        }
        sum
    };
    let (y, z) = (shifted(heavy), shifted(light));
    g.output("y", y);
    g.output("z", z);
    let x = T {
        v: (1..=240).map(|i| V::F(f64::from(i))).collect(),
        ..Rng(3).tensor(DType::F32, &[6, 40])
    };
    let c = check(&g, &target(nothing), &[x], &[]);
    assert_eq!(launches(&c), 3, "{:#?}", c.misses);
    let missed = c.misses.iter().filter(|m| m.code == MissCode::Recompute);
    assert_eq!(missed.count(), 1);
}

/// A random graph over small shapes.
fn random_graph(rng: &mut Rng) -> (Graph, Vec<T>) {
    let mut g = Graph::new("random");
    let mut inputs = vec![];
    let mut floats: Vec<ValueId> = vec![];
    let extents = [1usize, 2, 3, 4, 0];
    for i in 0..2 + rng.below(2) {
        let rank = rng.below(4);
        let shape: Vec<usize> = (0..rank)
            .map(|_| {
                let zero = rng.below(20) == 0;
                extents[rng.below(if zero { 5 } else { 4 })]
            })
            .collect();
        let ty = TensorType::new(DType::F32, shape.iter().copied());
        floats.push(g.input(&format!("x{i}"), ty).unwrap());
        inputs.push(rng.tensor(DType::F32, &shape));
    }
    let steps = 3 + rng.below(14);
    for _ in 0..steps {
        let x = floats[floats.len() - 1 - rng.below(floats.len().min(4))];
        let y = floats[rng.below(floats.len())];
        if let Some(z) = random_op(&mut g, rng, x, y) {
            let shape = g.tensor(z).const_shape().unwrap();
            let len = shape
                .iter()
                .fold(1usize, |n, d| n.saturating_mul((*d).max(1)));
            if len <= 2000 {
                floats.push(z);
            }
        }
    }
    let outputs = 1 + rng.below(3);
    for k in 0..outputs {
        let v = floats[floats.len() - 1 - rng.below(floats.len().min(1 + k * 3))];
        g.output(&format!("y{k}"), v);
    }
    (g, inputs)
}

fn random_op(g: &mut Graph, rng: &mut Rng, x: ValueId, y: ValueId) -> Option<ValueId> {
    let dims = g.dims(x);
    let rank = dims.len();
    let axis = rng.below(rank);
    let shape = g.tensor(x).const_shape()?;
    let all_some = shape.iter().all(|d| *d > 0);
    match rng.below(17) {
        0 => g
            .binary([Scalar::Add, Scalar::Mul, Scalar::Max][rng.below(3)], x, y)
            .ok(),
        1 => g
            .unary([Scalar::Tanh, Scalar::Abs, Scalar::Neg][rng.below(3)], x)
            .ok(),
        2 => g.scale(x, 0.5).ok(),
        3 if rank > 0 => {
            let mut perm: Vec<usize> = (0..rank).collect();
            perm.rotate_left(axis);
            g.permute(x, &perm).ok()
        }
        4 => {
            let len: usize = shape.iter().product();
            let split = [(2, len / 2), (len / 3, 3), (len, 1)][rng.below(3)];
            (split.0 * split.1 == len)
                .then(|| g.reshape(x, &[split.0.into(), split.1.into()]).ok())?
        }
        5 if rank < 4 => g.unsqueeze(x, &[rng.below(rank + 1)]).ok(),
        6 => {
            let lead = [n(2), n(1)][rng.below(2)].clone();
            g.broadcast_to(x, &[&[lead], &dims[..]].concat()).ok()
        }
        7 if rank > 0 && shape[axis] > 0 => {
            let len = 1 + rng.below(shape[axis]);
            let start = rng.below(shape[axis] - len + 1);
            g.slice_axis(x, axis, &start.into(), &len.into()).ok()
        }
        8 if rank > 0 => g.flip(x, axis).ok().filter(|_| all_some),
        9 if rank > 0 => {
            let v = g.number(1.5, DType::F32).ok()?;
            let mut low = vec![Dim::ZERO; rank];
            let mut high = low.clone();
            low[axis] = rng.below(3).into();
            high[rng.below(rank)] = rng.below(2).into();
            g.pad(x, v, &low, &high).ok()
        }
        10 if rank > 0 => g.concat(&[x, x, x][..1 + rng.below(3)], axis).ok(),
        11 if rank > 0 => g
            .reduce_keep(
                [ReduceKind::Sum, ReduceKind::Max, ReduceKind::Min][rng.below(3)],
                x,
                &[axis],
            )
            .ok(),
        12 if rank > 0 => g.reduce(ReduceKind::Sum, x, &[axis]).ok(),
        13 if rank > 0 => Some(match rng.below(4) {
            0 => composite(g, Swish { alpha: 1.702 }, &[x]),
            1 => composite(g, Swiglu { alpha: 1.0 }, &[x, x]),
            2 if shape[rank - 1] % 2 == 0 => {
                let half = g.slice_axis(x, rank - 1, &n(0), &n(shape[rank - 1] as i64 / 2));
                let interleaved = rng.below(2) == 0;
                let angles = half.ok()?;
                composite(g, Rope { interleaved }, &[x, angles, angles])
            }
            _ => composite(g, Softmax { axis, log: false }, &[x]),
        }),
        14 if rank > 0 && shape[axis] > 0 => {
            let ids = g.i64s(&[0, 5, 1]).ok()?;
            let bounds = [Bounds::Check, Bounds::Clamp, Bounds::Skip][1 + rng.below(2)];
            g.one(
                Gather {
                    axes: vec![axis],
                    batch: 0,
                    bounds,
                },
                &[x, ids],
            )
            .ok()
        }
        15 if rank > 0 && shape[axis] >= 2 => {
            let (size, stride) = (2usize, 1 + rng.below(2) as i64);
            let w = Window {
                axes: vec![axis],
                sizes: vec![size.into()],
                strides: vec![stride],
                dilations: vec![1],
            };
            let y = g.one(w.clone(), &[x]).ok()?;
            if rng.below(2) == 0 {
                return Some(y);
            }
            let f = Fold {
                axes: w.axes,
                sizes: w.sizes,
                strides: w.strides,
                dilations: w.dilations,
                dims,
            };
            g.one(f, &[y]).ok()
        }
        16 if rank == 2 => g.matmul_nt(x, x).ok(),
        _ => {
            let r = g
                .one(
                    ArgReduce {
                        kind: ReduceKind::Max,
                        axis,
                        last: rng.below(2) == 0,
                    },
                    &[x],
                )
                .ok()?;
            if !all_some {
                return None;
            }
            g.cast(r, DType::F32).ok()
        }
    }
}

#[test]
fn random_graphs_compute_the_same_fused() {
    let rounds = std::env::var("FUZZ_ROUNDS").map_or(400, |s| s.parse().unwrap());
    for seed in 1..=rounds {
        let mut rng = Rng(0x9E37_79B9_7F4A_7C15u64.wrapping_mul(seed));
        let (g, inputs) = random_graph(&mut rng);
        for t in [target(nothing), target(products)] {
            check(&g, &t, &inputs, &[]);
        }
        for level in [Level::Separate, Level::Fuse, Level::Merge] {
            let c = compiled_at(level, &g, &[&target(products)], DeviceId::HOST);
            check_compiled(c, &g, &inputs, &[]);
        }
        let (host, device) = (target(nothing), small_device(products));
        let c = compiled_for(&g, &[&host, &device], DeviceId(1));
        for u in c.units.iter().filter(|u| u.device == DeviceId(1)) {
            assert!(u.unit.accesses().len() <= device.max_buffers, "{u:#?}");
        }
        check_compiled(c, &g, &inputs, &[]);
    }
}

#[test]
fn a_gather_is_charged_for_what_it_reads() {
    let mut g = Graph::new("rows");
    let table = g.constant(Tensor::from_slice(&[1000, 8], &[0.5f32; 8000]).unwrap());
    let table = table.unwrap();
    let ids = g.input("ids", TensorType::new(DType::I64, [n(3)])).unwrap();
    let gather = Gather {
        axes: vec![0],
        batch: 0,
        bounds: Bounds::Check,
    };
    let y = g.one(gather, &[table, ids]).unwrap();
    g.output("y", y);
    let device = target(nothing);
    let c = cupola_passes::compile(g, &[&device], &Default::default()).unwrap();
    let cost = cupola_passes::explain::unit_cost(&c, 0);
    assert_eq!(cost.constant_bytes, n(3 * 8 * 4));
    assert_eq!(cost.bytes, n(3 * 8 * 4 * 2 + 3 * 8));
    assert_eq!(
        cupola_passes::explain::dependencies(&c).concat(),
        [0usize; 0]
    );
}
