//! What simplification removes, seen through the public pipeline, and that the meaning stays.

mod support;

use cupola_ir::ops::*;
use cupola_ir::{CoreOp, DType, Dim, Graph, Op, Scalar, Tensor, TensorType, ValueId};
use support::*;

/// Names of the ops after simplification, inputs left out.
fn ops(graph: &Graph) -> Vec<String> {
    let g = after(graph, "simplify", nothing).0;
    g.nodes()
        .filter(|(_, n)| !matches!(n.op, Op::Core(CoreOp::Input(_))))
        .map(|(_, n)| match &n.op {
            Op::Core(CoreOp::Map(p)) => p.f.name().to_string(),
            op => op.name(),
        })
        .collect()
}

fn input(g: &mut Graph, name: &str, dtype: DType, dims: &[i64]) -> ValueId {
    g.input(name, TensorType::new(dtype, dims.iter().copied()))
        .unwrap()
}

/// One-input graphs: what is built from `x: f32[2, 3]` and which ops remain.
fn case(build: impl Fn(&mut Graph, ValueId) -> ValueId, remain: &[&str]) {
    let mut g = Graph::new("case");
    let x = input(&mut g, "x", DType::F32, &[2, 3]);
    let y = build(&mut g, x);
    g.output("y", y);
    assert_eq!(ops(&g), remain);
    let x = Rng(4).tensor(DType::F32, &[2, 3]);
    check(&g, &target(nothing), &[x], &[]);
}

#[test]
fn identities_vanish_and_near_ones_stay() {
    case(|g, x| g.scale(x, 1.0).unwrap(), &[]);
    let with = |f: Scalar, c: f64| {
        move |g: &mut Graph, x: ValueId| {
            let c = g.number_like(c, x).unwrap();
            g.binary(f, x, c).unwrap()
        }
    };
    case(with(Scalar::Mul, 1.0), &[]);
    case(with(Scalar::Sub, 0.0), &[]);
    case(with(Scalar::Add, -0.0), &[]);
    // -0 + 0 is +0.
    case(with(Scalar::Add, 0.0), &["const", "broadcast", "add"]);
    // inf * 0 is NaN.
    case(with(Scalar::Mul, 0.0), &["const", "broadcast", "mul"]);
    case(with(Scalar::Div, 8.0), &["const", "broadcast", "mul"]);
    case(with(Scalar::Div, 3.0), &["const", "broadcast", "div"]);
    case(with(Scalar::Pow, 2.0), &["mul"]);
    case(
        |g, x| {
            let y = g.unary(Scalar::Neg, x).unwrap();
            g.unary(Scalar::Neg, y).unwrap()
        },
        &[],
    );
}

#[test]
fn views_of_views_are_one_view() {
    case(
        |g, x| {
            let y = g.permute(x, &[1, 0]).unwrap();
            g.permute(y, &[1, 0]).unwrap()
        },
        &[],
    );
    case(
        |g, x| {
            let y = g.reshape(x, &[3i64.into(), 2i64.into()]).unwrap();
            g.reshape(y, &[6i64.into()]).unwrap()
        },
        &["reshape"],
    );
    case(
        |g, x| {
            let y = g.slice_axis(x, 1, &1i64.into(), &2i64.into()).unwrap();
            g.slice_axis(y, 1, &1i64.into(), &1i64.into()).unwrap()
        },
        &["slice"],
    );
    case(
        |g, x| {
            let y = g.concat(&[x, x, x], 1).unwrap();
            g.slice_axis(y, 1, &3i64.into(), &3i64.into()).unwrap()
        },
        &[],
    );
    case(
        |g, x| {
            let i = g.constant(Tensor::scalar(1i64)).unwrap();
            let p = Gather {
                axes: vec![0],
                batch: 0,
                bounds: Bounds::Check,
            };
            g.one(p, &[x, i]).unwrap()
        },
        &["slice", "reshape"],
    );
}

#[test]
fn heads_are_joined_before_they_are_merged() {
    let heads = |g: &mut Graph, name: &str, count: i64, depth: i64| {
        let x = input(g, name, DType::F32, &[count, 3, depth]);
        let y = g.permute(x, &[1, 0, 2]).unwrap();
        let merged = [3i64.into(), (count * depth).into()];
        g.reshape(y, &merged).unwrap()
    };
    let joined = ["permute", "permute", "concat", "reshape"];
    let merged = ["permute", "reshape", "permute", "reshape", "concat"];
    for (depths, remain) in [([4, 4], &joined[..]), ([4, 2], &merged[..])] {
        let mut g = Graph::new("heads");
        let a = heads(&mut g, "a", 2, depths[0]);
        let b = heads(&mut g, "b", 5, depths[1]);
        let y = g.concat(&[a, b], 1).unwrap();
        g.output("y", y);
        assert_eq!(ops(&g), remain);
        let mut rng = Rng(9);
        let mut given = |count, depth: i64| rng.tensor(DType::F32, &[count, 3, depth as usize]);
        let inputs = [given(2, depths[0]), given(5, depths[1])];
        check(&g, &target(nothing), &inputs, &[]);
    }
}

#[test]
fn exact_conversions_cancel() {
    let mut g = Graph::new("casts");
    let h = input(&mut g, "h", DType::F16, &[4]);
    let w = g.cast(h, DType::F32).unwrap();
    let back = g.cast(w, DType::F16).unwrap();
    g.output("back", back);
    let f = input(&mut g, "f", DType::F32, &[4]);
    let narrow = g.cast(f, DType::F16).unwrap();
    let wide = g.cast(narrow, DType::F32).unwrap();
    g.output("wide", wide);
    assert_eq!(ops(&g), ["cast", "cast"]);
}

#[test]
fn equal_nodes_merge_but_random_ones_do_not() {
    let mut g = Graph::new("cse");
    let x = input(&mut g, "x", DType::F32, &[4]);
    let a = g.unary(Scalar::Exp, x).unwrap();
    let b = g.unary(Scalar::Exp, x).unwrap();
    let y = g.binary(Scalar::Add, a, b).unwrap();
    g.output("y", y);
    assert_eq!(ops(&g), ["exp", "add"]);
    let mut g = Graph::new("random");
    let random = |g: &mut Graph| {
        let p = Random {
            stream: 1,
            dims: vec![4i64.into()],
        };
        g.one(p, &[]).unwrap()
    };
    let (a, b) = (random(&mut g), random(&mut g));
    let y = g.binary(Scalar::Add, a, b).unwrap();
    g.output("y", y);
    assert_eq!(ops(&g), ["random", "random", "add"]);
}

#[test]
fn small_constants_fold_and_failing_ones_wait_for_the_run() {
    let mut g = Graph::new("fold");
    let a = g.constant(Tensor::vector(&[1.0f32, 2.0, 3.0])).unwrap();
    let b = g.constant(Tensor::vector(&[4.0f32, 5.0, 6.0])).unwrap();
    let c = g.binary(Scalar::Mul, a, b).unwrap();
    let s = g.reduce(ReduceKind::Sum, c, &[0]).unwrap();
    g.output("s", s);
    assert_eq!(ops(&g), ["const"]);
    check(&g, &target(nothing), &[], &[]);
    let mut g = Graph::new("fault");
    let a = g.constant(Tensor::vector(&[1i64, 2])).unwrap();
    let z = g.constant(Tensor::vector(&[0i64, 1])).unwrap();
    let q = g.binary(Scalar::Div, a, z).unwrap();
    g.output("q", q);
    assert_eq!(ops(&g), ["const", "const", "div"]);
}

#[test]
fn symbols_bound_to_dimensions_disappear() {
    let mut g = Graph::new("shape");
    let x = g
        .input(
            "x",
            TensorType::new(DType::F32, [Dim::sym("n"), 4i64.into()]),
        )
        .unwrap();
    // reshape(x, [shape(x)[0] * 2, 2]) as an importer that knows nothing would write it.
    let shape = g
        .one(
            Dims {
                dims: vec![Dim::sym("n"), 4i64.into()],
            },
            &[],
        )
        .unwrap();
    let zero = g.i64s(&[0]).unwrap();
    let gather = Gather {
        axes: vec![0],
        batch: 0,
        bounds: Bounds::Check,
    };
    let rows = g.one(gather, &[shape, zero]).unwrap();
    let two = g.i64s(&[2]).unwrap();
    let rows = g.binary(Scalar::Mul, rows, two).unwrap();
    let rows = g.reshape(rows, &[]).unwrap();
    let sym = g.fresh_sym("rows");
    let bind = BindDim {
        sym: sym.clone(),
        min: 0,
    };
    g.one(bind, &[rows]).unwrap();
    let y = g.reshape(x, &[Dim::from(&sym), 2i64.into()]).unwrap();
    let y = g.unary(Scalar::Neg, y).unwrap();
    g.output("y", y);
    assert_eq!(ops(&g), ["reshape", "neg"]);
    let simple = after(&g, "simplify", nothing).0;
    let out = simple.outputs()[0].1;
    assert_eq!(simple.dim(out, 0), Dim::sym("n") * 2i64.into());
    let x = Rng(6).tensor(DType::F32, &[3, 4]);
    check(&g, &target(nothing), &[x], &[("n", 3)]);
}

#[test]
fn a_known_branch_is_taken() {
    let branch = |name: &str, f: Scalar| {
        let mut r = Graph::new(name);
        // The region's own name for the extent.
        let x = r
            .input("x", TensorType::new(DType::F32, [Dim::sym("inner")]))
            .unwrap();
        let y = r.unary(f, x).unwrap();
        let y = r
            .slice_axis(y, 0, &Dim::ZERO, &(Dim::sym("inner") - Dim::ONE))
            .unwrap();
        r.output("y", y);
        r
    };
    for (condition, op) in [(true, "neg"), (false, "exp")] {
        let mut g = Graph::new("if");
        let x = g
            .input("x", TensorType::new(DType::F32, [Dim::sym("n")]))
            .unwrap();
        let c = g
            .constant(Tensor::new(DType::Bool, vec![], vec![u8::from(condition)].into()).unwrap())
            .unwrap();
        let sym = g.fresh_sym("len");
        let p = If {
            then_branch: branch("then", Scalar::Neg),
            else_branch: branch("else", Scalar::Exp),
            results: vec![TensorType::new(DType::F32, [Dim::from(&sym)]).into()],
            binds: vec![sym],
        };
        let y = g.one(p, &[c, x]).unwrap();
        let y = g.unary(Scalar::Abs, y).unwrap();
        g.output("y", y);
        let mut names = ops(&g);
        names.retain(|n| n != "slice");
        assert_eq!(names, [op, "abs"]);
        let simple = after(&g, "simplify", nothing).0;
        let out = simple.outputs()[0].1;
        assert_eq!(simple.dim(out, 0), Dim::sym("n") - Dim::ONE);
    }
}

#[test]
fn short_loops_are_unrolled() {
    // The carried value grows by its iteration and a capture; each case says when the body goes on.
    let looped = |trips: i64, first: bool, go_on: &dyn Fn(&mut Graph, ValueId) -> ValueId| {
        let ty = TensorType::new(DType::F32, [Dim::sym("n")]);
        let mut body = Graph::new("body");
        let at = input(&mut body, "at", DType::I64, &[]);
        let y = body.input("y", ty.clone()).unwrap();
        let x = body.input("x", ty.clone()).unwrap();
        let at = body.cast(at, DType::F32).unwrap();
        let at = body.broadcast_to(at, &[Dim::sym("n")]).unwrap();
        let y = body.binary(Scalar::Mul, y, x).unwrap();
        let y = body.binary(Scalar::Add, y, at).unwrap();
        let more = go_on(&mut body, y);
        body.output("more", more);
        body.output("y", y);
        let mut g = Graph::new("loop");
        let x = g.input("x", ty.clone()).unwrap();
        let trips = g.constant(Tensor::scalar(trips)).unwrap();
        let first = g.number(f64::from(u8::from(first)), DType::Bool).unwrap();
        let op = Loop {
            body,
            carried: 1,
            results: vec![ty.into()],
            binds: vec![],
        };
        let y = g.one(op, &[trips, first, x, x]).unwrap();
        g.output("y", y);
        let stays = ops(&g).iter().any(|name| name == "loop");
        if !stays {
            let x = Rng(8).tensor(DType::F32, &[5]);
            check(&g, &target(nothing), &[x], &[("n", 5)]);
        }
        stays
    };
    let always = |g: &mut Graph, _: ValueId| g.number(1.0, DType::Bool).unwrap();
    let never = |g: &mut Graph, _: ValueId| g.number(0.0, DType::Bool).unwrap();
    let until_large = |g: &mut Graph, y: ValueId| {
        let y = g.reduce(ReduceKind::Max, y, &[0]).unwrap();
        let limit = g.number_like(3.0, y).unwrap();
        g.binary(Scalar::Lt, y, limit).unwrap()
    };
    assert!(!looped(3, true, &always));
    assert!(!looped(0, true, &always));
    assert!(looped(-1, true, &until_large));
    assert!(looped(1000, true, &always));
    assert!(looped(3, false, &always));
    assert!(looped(3, true, &never));
    assert!(looped(3, true, &until_large));
}
