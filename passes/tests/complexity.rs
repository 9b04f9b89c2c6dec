//! Compiling takes time in proportion to the graph: four times the nodes may not take much more than four times as
//! long. Time is that of the processor, best of a few attempts, so that what else runs does not count.

mod support;

use cupola_ir::ops::ReduceKind;
use cupola_ir::{DType, Dim, Graph, Scalar, Tensor, TensorType, ValueId};
use cupola_passes::{Level, Options, compile};
use std::time::{Duration, Instant};
use support::{products, target};

/// Time that this thread has had a processor, where the system says so.
fn clock(start: Instant) -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanos = stat.and_then(|s| s.split(' ').next()?.parse().ok());
    nanos.map_or(start.elapsed(), Duration::from_nanos)
}

fn compile_time(graph: &Graph) -> Duration {
    let t = target(products);
    let options = Options {
        level: Level::Merge,
        ..Options::default()
    };
    let once = || {
        let start = Instant::now();
        let before = clock(start);
        let mut count = 0;
        // The clock ticks in milliseconds.
        loop {
            compile(graph.clone(), &[&t], &options).expect("compiles");
            count += 1;
            let spent = clock(start) - before;
            if spent > Duration::from_millis(50) {
                return spent / count;
            }
        }
    };
    (0..2).map(|_| once()).min().unwrap()
}

/// Builds the graph with `n` and `4 n` repetitions; quadratic work would take 16 times as long.
fn grows_linearly(what: &str, n: usize, build: impl Fn(usize) -> Graph) {
    let (small, large) = (compile_time(&build(n)), compile_time(&build(4 * n)));
    let ratio = large.as_secs_f64() / small.as_secs_f64();
    println!("{what}: {small:?} and {large:?}, {ratio:.1} times");
    assert!(ratio < 9.0, "{what}: {small:?} and {large:?}");
}

fn start() -> (Graph, ValueId) {
    let mut g = Graph::new("long");
    let dims = [Dim::sym("b"), Dim::sym("s"), Dim::Const(8)];
    let x = g.input("x", TensorType::new(DType::F32, dims)).unwrap();
    (g, x)
}

fn linear(g: &mut Graph, x: ValueId) -> ValueId {
    let w: Vec<f32> = (0..64).map(|i| (i % 7) as f32 / 7.0).collect();
    let w = g
        .constant(Tensor::from_slice(&[8, 8], &w).unwrap())
        .unwrap();
    g.matmul(x, w).unwrap()
}

fn softmax(g: &mut Graph, x: ValueId, axis: usize) -> ValueId {
    let max = g.reduce_keep(ReduceKind::Max, x, &[axis]).unwrap();
    let d = g.binary(Scalar::Sub, x, max).unwrap();
    let e = g.unary(Scalar::Exp, d).unwrap();
    let sum = g.reduce_keep(ReduceKind::Sum, e, &[axis]).unwrap();
    g.binary(Scalar::Div, e, sum).unwrap()
}

fn layer(g: &mut Graph, x: ValueId) -> ValueId {
    let (b, s) = (Dim::sym("b"), Dim::sym("s"));
    let heads = |g: &mut Graph| {
        let y = linear(g, x);
        let y = g.reshape(y, &[b.clone(), s.clone(), Dim::Const(2), Dim::Const(4)]);
        g.permute(y.unwrap(), &[0, 2, 1, 3]).unwrap()
    };
    let (q, k, v) = (heads(g), heads(g), heads(g));
    let scores = g.matmul_nt(q, k).unwrap();
    let scores = g.scale(scores, 0.5).unwrap();
    let p = softmax(g, scores, 3);
    let y = g.matmul(p, v).unwrap();
    let y = g.permute(y, &[0, 2, 1, 3]).unwrap();
    let y = g
        .reshape(y, &[b.clone(), s.clone(), Dim::Const(8)])
        .unwrap();
    let y = linear(g, y);
    let x = g.binary(Scalar::Add, x, y).unwrap();
    let mean = g.mean_keep(x, &[2]).unwrap();
    let d = g.binary(Scalar::Sub, x, mean).unwrap();
    let y = linear(g, d);
    let y = g.unary(Scalar::Tanh, y).unwrap();
    let y = linear(g, y);
    g.binary(Scalar::Add, x, y).unwrap()
}

#[test]
fn a_deep_network() {
    grows_linearly("transformer", 6, |layers| {
        let (mut g, mut x) = start();
        for _ in 0..layers {
            x = layer(&mut g, x);
        }
        g.output("y", x);
        g
    });
}

#[test]
fn a_long_chain() {
    grows_linearly("chain", 300, |steps| {
        let (mut g, mut x) = start();
        for i in 0..steps {
            x = match i % 3 {
                0 => g.unary(Scalar::Tanh, x).unwrap(),
                1 => g.scale(x, 0.5).unwrap(),
                _ => g.binary(Scalar::Add, x, x).unwrap(),
            };
        }
        g.output("y", x);
        g
    });
}

#[test]
fn many_users_of_one_value() {
    grows_linearly("fan", 60, |users| {
        let (mut g, x) = start();
        let shared = softmax(&mut g, x, 2);
        let parts: Vec<ValueId> = (0..users)
            .map(|_| {
                let y = linear(&mut g, shared);
                softmax(&mut g, y, 2)
            })
            .collect();
        for (i, y) in parts.iter().enumerate() {
            g.output(&format!("y{i}"), *y);
        }
        let mut sum = parts[0];
        for y in &parts[1..] {
            sum = g.binary(Scalar::Add, sum, *y).unwrap();
        }
        g.output("sum", sum);
        g
    });
}

#[test]
fn shape_arithmetic() {
    grows_linearly("shapes", 40, |steps| {
        let (mut g, mut x) = start();
        for i in 0..steps {
            let s = g.dim(x, 1);
            x = g.concat(&[x, x], 1).unwrap();
            x = g.slice_axis(x, 1, &Dim::Const(i as i64 % 2), &s).unwrap();
            x = g.unary(Scalar::Abs, x).unwrap();
        }
        g.output("y", x);
        g
    });
}
