//! Values that are computed again instead of being kept.

use crate::support;
use cupola_ir::composite::{Gelu, LayerNorm};
use cupola_ir::eval::{self, Env};
use cupola_ir::ops::{Random, ReduceKind};
use cupola_ir::{Bindings, DType, Dim, Graph, Op, Scalar, Sym, Tensor, TensorType, Value, ValueId};
use cupola_passes::autodiff::{gradients, rematerialise};
use cupola_passes::plan::footprint;
use cupola_passes::{Options, compile};

const LAYERS: usize = 6;

/// Layers of norm, product, activation and dropout, with their gradients.
fn network() -> (Graph, ValueId) {
    let mut g = Graph::new("network");
    let rows = Dim::sym("n");
    let width = Dim::from(16usize);
    let ty = |dims: &[&Dim]| TensorType::new(DType::F32, dims.iter().map(|d| (*d).clone()));
    let x = g.input("x", ty(&[&rows, &width])).unwrap();
    let mut h = x;
    let mut weights = vec![];
    for k in 0..LAYERS {
        let w = g.input(&format!("w{k}"), ty(&[&width, &width])).unwrap();
        weights.push(w);
        let norm = LayerNorm {
            axis: 1,
            epsilon: 1e-5,
            stats: false,
        };
        let y = g.one(Op::Composite(norm.into()), &[h]).unwrap();
        let y = g.matmul_nt(y, w).unwrap();
        let y = g
            .one(Op::Composite(Gelu { tanh: true }.into()), &[y])
            .unwrap();
        let bits = Random {
            stream: k as u64,
            dims: vec![rows.clone(), width.clone()],
        };
        let bits = g.one(bits, &[]).unwrap();
        let half = g.number(f64::from(1u32 << 31), DType::U32).unwrap();
        let live = g.binary(Scalar::Lt, bits, half).unwrap();
        let live = g.cast(live, DType::F32).unwrap();
        let y = g.binary(Scalar::Mul, y, live).unwrap();
        h = g.binary(Scalar::Add, h, y).unwrap();
    }
    let square = g.binary(Scalar::Mul, h, h).unwrap();
    let loss = g.reduce(ReduceKind::Sum, square, &[0, 1]).unwrap();
    let grads = gradients(&mut g, loss, &weights).unwrap();
    g.output("loss", loss);
    for (k, v) in grads.into_iter().enumerate() {
        g.output(&format!("d{k}"), v.unwrap());
    }
    (g, loss)
}

fn inputs() -> Vec<Value> {
    let mut shapes = vec![vec![8, 16]];
    shapes.resize(LAYERS + 1, vec![16, 16]);
    let one = |(k, s): (usize, Vec<usize>)| {
        let v = crate::check::numbers(s.iter().product(), k as u64 + 1);
        let v: Vec<f32> = v.into_iter().map(|v| v as f32 * 0.3).collect();
        Tensor::from_slice(&s, &v).unwrap().into()
    };
    shapes.into_iter().enumerate().map(one).collect()
}

/// Bytes of working memory of the compiled graph.
fn memory(g: &Graph, rows: i64) -> u64 {
    let target = support::target(support::products);
    let options = Options {
        verify: true,
        ..Options::default()
    };
    let compiled = compile(g.clone(), &[&target], &options).unwrap();
    let mut bindings = Bindings::default();
    bindings.set(Sym::new("n"), rows);
    footprint(&compiled, &[&target], &bindings).activations
}

#[test]
fn a_budget_is_kept_and_nothing_else_changes() {
    let (g, _) = network();
    let want = eval::run(&g, &inputs(), &mut Env::default()).unwrap();
    let mut bindings = Bindings::default();
    bindings.set(Sym::new("n"), 4096);
    let (mut g, loss) = network();
    let whole = memory(&g, 4096);
    let all = rematerialise(&mut g, loss, u64::MAX, &bindings).unwrap();
    assert_eq!((all.before, all.again), (all.after, 0));
    let mut last = whole;
    for part in [2, 4] {
        let (mut g, loss) = network();
        let kept = rematerialise(&mut g, loss, all.before / part, &bindings).unwrap();
        assert!(
            kept.again > 0 && kept.after <= all.before / part,
            "{kept:?}"
        );
        cupola_ir::verify(&g).unwrap();
        let got = eval::run(&g, &inputs(), &mut Env::default()).unwrap();
        assert_eq!(got, want);
        let less = memory(&g, 4096);
        assert!(less < last, "a part of {part}: {less} of {last} bytes");
        last = less;
    }
    assert!(last * 10 < whole * 8, "{last} of {whole} bytes");
}

#[test]
fn what_is_computed_again_is_computed_late() {
    let mut bindings = Bindings::default();
    bindings.set(Sym::new("n"), 4096);
    let (mut g, loss) = network();
    let whole = memory(&g, 4096);
    let kept = rematerialise(&mut g, loss, 0, &bindings).unwrap();
    // What clears a graph up walks it from its results: copies must stay where they are used.
    g.compact().unwrap();
    let less = memory(&g, 4096);
    assert!(kept.again > LAYERS, "{kept:?}");
    assert!(less * 2 < whole, "{less} of {whole} bytes");
}

#[test]
fn open_sizes_are_named() {
    let (mut g, loss) = network();
    let error = rematerialise(&mut g, loss, 0, &Bindings::default()).unwrap_err();
    assert!(error.to_string().contains("is not known"), "{error}");
}
