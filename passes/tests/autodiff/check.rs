//! Gradients beside central differences.

use cupola_ir::eval::{self, Env};
use cupola_ir::graph::verify;
use cupola_ir::ops::ReduceKind;
use cupola_ir::{DType, Dim, Graph, Result, Scalar, Tensor, TensorType, Value, ValueId};
use cupola_passes::autodiff::vjp;

/// An operand: extents as they are declared, and values.
#[derive(Clone)]
pub struct Given {
    pub dims: Vec<Dim>,
    pub value: Tensor,
    /// Whether its gradient is checked.
    pub differs: bool,
}

/// Numbers without pattern or ties, between -2 and 2.
pub fn numbers(len: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..len).map(|_| next() * 4.0 - 2.0).collect()
}

/// A float operand with constant extents.
pub fn floats(shape: &[usize], seed: u64) -> Given {
    valued(shape, &numbers(shape.iter().product(), seed))
}

/// A float operand with these values.
pub fn valued(shape: &[usize], values: &[f64]) -> Given {
    Given {
        dims: shape.iter().map(|n| Dim::from(*n)).collect(),
        value: Tensor::from_slice(shape, values).unwrap(),
        differs: true,
    }
}

/// Indices.
pub fn indices(shape: &[usize], values: &[i64]) -> Given {
    Given {
        dims: shape.iter().map(|n| Dim::from(*n)).collect(),
        value: Tensor::from_slice(shape, values).unwrap(),
        differs: false,
    }
}

impl Given {
    /// The same with every extent a symbol of its own name, `names` for each axis.
    pub fn named(mut self, names: &[&str]) -> Given {
        self.dims = names.iter().map(|n| Dim::sym(n)).collect();
        self
    }

    /// The values mapped.
    pub fn map(mut self, f: impl Fn(f64) -> f64) -> Given {
        let values: Vec<f64> = self.value.to_vec().unwrap();
        let values: Vec<f64> = values.into_iter().map(f).collect();
        self.value = Tensor::from_slice(self.value.shape(), &values).unwrap();
        self
    }
}

/// What is built from the operands.
pub type Build<'a> = &'a dyn Fn(&mut Graph, &[ValueId]) -> Result<ValueId>;

/// Numbers of the extents of `like` that are all different.
fn weights(g: &mut Graph, like: ValueId, seed: f64) -> Result<ValueId> {
    let dims = g.dims(like);
    let mut sum = g.number(seed, DType::F64)?;
    for axis in 0..dims.len() {
        let at = g.iota(DType::F64, &dims, axis)?;
        let at = g.scale(at, 0.7 + axis as f64 * 0.9)?;
        sum = g.binary(Scalar::Add, sum, at)?;
    }
    g.unary(Scalar::Sin, sum)
}

pub fn weighted_sum(g: &mut Graph, y: ValueId, seed: f64) -> Result<ValueId> {
    let y = g.cast(y, DType::F64)?;
    let w = weights(g, y, seed)?;
    let y = g.binary(Scalar::Mul, y, w)?;
    let axes: Vec<usize> = (0..g.rank(y)).collect();
    g.reduce(ReduceKind::Sum, y, &axes)
}

/// A graph with a weighted sum of what is built (`order` 0), or of its gradients (1), and that number's gradients.
fn graph(given: &[Given], build: Build, order: usize) -> (Graph, Vec<Option<ValueId>>) {
    let mut g = Graph::new("checked");
    let inputs: Vec<ValueId> = (given.iter().enumerate())
        .map(|(i, x)| {
            let ty = TensorType::new(x.value.dtype(), x.dims.clone());
            g.input(&format!("x{i}"), ty).unwrap()
        })
        .collect();
    let wrt: Vec<ValueId> = (inputs.iter().zip(given))
        .filter(|(_, x)| x.differs)
        .map(|(v, _)| *v)
        .collect();
    let y = build(&mut g, &inputs).expect("builds");
    let mut loss = weighted_sum(&mut g, y, 0.4).unwrap();
    for k in 0..order {
        let grads = gradients(&mut g, loss, &wrt);
        let mut sum = g.number(0.0, DType::F64).unwrap();
        for (i, v) in grads.into_iter().flatten().enumerate() {
            let part = weighted_sum(&mut g, v, 1.3 + (i + k) as f64).unwrap();
            sum = g.binary(Scalar::Add, sum, part).unwrap();
        }
        loss = sum;
    }
    g.output("loss", loss);
    let grads = gradients(&mut g, loss, &wrt);
    verify(&g).expect("valid");
    (g, grads)
}

fn gradients(g: &mut Graph, loss: ValueId, wrt: &[ValueId]) -> Vec<Option<ValueId>> {
    let one = g.number(1.0, DType::F64).unwrap();
    let grads = vjp(g, &[(loss, one)], wrt).expect("differentiates");
    for (v, grad) in wrt.iter().zip(&grads) {
        if let Some(grad) = grad {
            assert_eq!(g.dtype(*v), g.dtype(*grad));
            assert_eq!(g.rank(*v), g.rank(*grad));
        }
    }
    grads
}

pub fn run(g: &Graph, given: &[Given]) -> Vec<Tensor> {
    let inputs: Vec<Value> = given.iter().map(|x| x.value.clone().into()).collect();
    let out = eval::run(g, &inputs, &mut Env::default()).expect("runs");
    out.into_iter()
        .map(|v| v.as_tensor().unwrap().clone())
        .collect()
}

fn loss(g: &Graph, given: &[Given]) -> f64 {
    run(g, given)[0].to_vec::<f64>().unwrap()[0]
}

/// Checks the gradients of what is built with respect to every operand that differs.
pub fn check(what: &str, given: &[Given], build: Build) {
    check_order(what, given, build, 0, 1e-6);
}

/// Checks first and second derivatives.
pub fn check_twice(what: &str, given: &[Given], build: Build) {
    check(what, given, build);
    check_order(&format!("second order of {what}"), given, build, 1, 1e-5);
}

fn check_order(what: &str, given: &[Given], build: Build, order: usize, tolerance: f64) {
    let (mut g, grads) = graph(given, build, order);
    let mut plain = g.clone();
    plain.compact().unwrap();
    for (i, v) in grads.iter().enumerate() {
        if let Some(v) = v {
            g.output(&format!("d{i}"), *v);
        }
    }
    g.compact().unwrap();
    verify(&g).expect("valid");
    let mut got = run(&g, given).into_iter().skip(1);
    let differing = given.iter().enumerate().filter(|(_, x)| x.differs);
    for ((at, x), grad) in differing.zip(&grads) {
        let len = x.value.len();
        let got: Vec<f64> = match grad {
            Some(_) => {
                let t = got.next().unwrap();
                assert_eq!(t.shape(), x.value.shape(), "{what}: gradient {at}");
                t.to_vec().unwrap()
            }
            None => vec![0.0; len],
        };
        let values: Vec<f64> = x.value.to_vec().unwrap();
        for i in 0..len {
            let step = 1e-5;
            let at_step = |d: f64| {
                let mut given = given.to_vec();
                let mut values = values.clone();
                values[i] += d;
                given[at].value = Tensor::from_slice(x.value.shape(), &values).unwrap();
                loss(&plain, &given)
            };
            let want = (at_step(step) - at_step(-step)) / (2.0 * step);
            assert!(
                want.is_finite(),
                "{what}: operand {at}, element {i}: {want}"
            );
            let off = (got[i] - want).abs();
            assert!(
                off <= tolerance * (1.0 + want.abs()),
                "{what}: operand {at}, element {i}: {} should be {want}",
                got[i]
            );
        }
    }
}

/// The gradient of the sum of what is built, at its only operand.
pub fn slope(values: &[f64], build: Build) -> Vec<f64> {
    let given = [valued(&[values.len()], values)];
    let mut g = Graph::new("slope");
    let x = g
        .input("x", TensorType::new(DType::F64, [values.len()]))
        .unwrap();
    let y = build(&mut g, &[x]).unwrap();
    let dims = g.dims(y);
    let one = g.number(1.0, DType::F64).unwrap();
    let one = g.broadcast_to(one, &dims).unwrap();
    let grad = vjp(&mut g, &[(y, one)], &[x]).unwrap()[0].expect("a gradient");
    g.output("d", grad);
    run(&g, &given)[0].to_vec().unwrap()
}
