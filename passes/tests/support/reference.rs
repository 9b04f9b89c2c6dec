//! The reference interpreter on test tensors, and element helpers of the kernel evaluator.

use super::{T, V};
use cupola_ir::convert::{self, Lanes};
use cupola_ir::eval::{self, Env};
use cupola_ir::ops::*;
use cupola_ir::{Bindings, Class, DType, Graph, Op, Scalar, Tensor, Value, ValueType};

/// As a host tensor.
pub fn tensor(t: &T) -> Tensor {
    let lanes = match t.dtype.class() {
        Class::Float => Lanes::F(t.v.iter().map(|v| v.f()).collect()),
        Class::Signed => Lanes::I(t.v.iter().map(|v| v.i()).collect()),
        _ => Lanes::U(t.v.iter().map(|v| v.i() as u64).collect()),
    };
    convert::tensor(&lanes, t.dtype, &t.shape).expect("a tensor")
}

fn back(value: &Value) -> T {
    let t = value.as_tensor().expect("a tensor");
    T {
        dtype: t.dtype(),
        shape: t.shape().to_vec(),
        v: elements(t),
    }
}

/// Runs a graph; the symbols bound on the way stay in `bindings`.
pub fn run(graph: &Graph, inputs: &[T], bindings: &mut Bindings) -> Vec<T> {
    let inputs: Vec<Value> = inputs.iter().map(|t| tensor(t).into()).collect();
    let mut env = Env::default();
    env.bindings = bindings.clone();
    let out = eval::run(graph, &inputs, &mut env).expect("runs");
    *bindings = env.bindings;
    out.iter().map(back).collect()
}

/// Runs one node.
pub fn op(op: &Op, x: &[&T], results: &[ValueType], bindings: &mut Bindings) -> Vec<T> {
    let operands: Vec<Value> = x.iter().map(|t| tensor(t).into()).collect();
    let refs: Vec<&Value> = operands.iter().collect();
    let mut env = Env::default();
    env.bindings = bindings.clone();
    let out = eval::eval_op(op, &refs, results, &mut env).expect("runs");
    *bindings = env.bindings;
    out.iter().map(back).collect()
}

pub fn elements(t: &Tensor) -> Vec<V> {
    match convert::lanes(t).expect("numbers") {
        Lanes::F(v) => v.into_iter().map(V::F).collect(),
        Lanes::I(v) => v.into_iter().map(V::I).collect(),
        Lanes::U(v) => v.into_iter().map(|x| V::I(x as i64)).collect(),
    }
}

pub fn scalar(f: Scalar, x: &[V], from: DType, to: DType) -> V {
    if f == Scalar::Select {
        return if x[0].i() != 0 { x[1] } else { x[2] };
    }
    let lanes: Vec<Lanes> = x
        .iter()
        .map(|v| match from.class() {
            Class::Float => Lanes::F(vec![v.f()]),
            Class::Signed => Lanes::I(vec![v.i()]),
            _ => Lanes::U(vec![v.i() as u64]),
        })
        .collect();
    let refs: Vec<&Lanes> = lanes.iter().collect();
    let v = match eval::scalar::eval(f, from, &refs).expect("computes") {
        Lanes::F(v) => V::F(v[0]),
        Lanes::I(v) => V::I(v[0]),
        Lanes::U(v) => V::I(v[0] as i64),
    };
    round(v, to)
}

pub fn round(v: V, dtype: DType) -> V {
    match dtype.class() {
        Class::Float if dtype == DType::F64 => V::F(v.f()),
        Class::Float => V::F(f64::from(v.f() as f32)),
        Class::Bool => V::I(i64::from(v.f() != 0.0)),
        _ => V::I(match (v, dtype) {
            (V::I(x), DType::I32) => i64::from(x as i32),
            _ => v.i(),
        }),
    }
}

pub fn each(shape: &[usize], f: &mut dyn FnMut(&[usize])) {
    let len: usize = shape.iter().product();
    let mut at = vec![0; shape.len()];
    for _ in 0..len {
        f(&at);
        for a in (0..shape.len()).rev() {
            at[a] += 1;
            if at[a] < shape[a] {
                break;
            }
            at[a] = 0;
        }
    }
}

impl T {
    pub fn get(&self, at: &[usize]) -> V {
        let mut i = 0;
        for (k, d) in at.iter().zip(&self.shape) {
            assert!(k < d);
            i = i * d + k;
        }
        self.v[i]
    }

    pub fn build(dtype: DType, shape: &[usize], mut f: impl FnMut(&[usize]) -> V) -> T {
        let mut v = vec![];
        each(shape, &mut |at| v.push(f(at)));
        T {
            dtype,
            shape: shape.to_vec(),
            v,
        }
    }
}

pub fn contract(p: &Contract, x: &T, y: &T) -> T {
    let lf = Contract::free(x.shape.len(), &p.lhs_batch, &p.lhs_contract);
    let rf = Contract::free(y.shape.len(), &p.rhs_batch, &p.rhs_contract);
    let mut shape: Vec<usize> = p.lhs_batch.iter().map(|a| x.shape[*a]).collect();
    shape.extend(lf.iter().map(|a| x.shape[*a]));
    shape.extend(rf.iter().map(|a| y.shape[*a]));
    let inner: Vec<usize> = p.lhs_contract.iter().map(|a| x.shape[*a]).collect();
    T::build(p.out, &shape, |at| {
        let (mut l, mut r) = (vec![0; x.shape.len()], vec![0; y.shape.len()]);
        let mut it = at.iter();
        for (a, b) in p.lhs_batch.iter().zip(&p.rhs_batch) {
            let i = *it.next().unwrap();
            (l[*a], r[*b]) = (i, i);
        }
        lf.iter().for_each(|a| l[*a] = *it.next().unwrap());
        rf.iter().for_each(|a| r[*a] = *it.next().unwrap());
        let mut sum = round(V::I(0), p.accum);
        each(&inner, &mut |k| {
            for (n, i) in k.iter().enumerate() {
                l[p.lhs_contract[n]] = *i;
                r[p.rhs_contract[n]] = *i;
            }
            let product = scalar(Scalar::Mul, &[x.get(&l), y.get(&r)], p.accum, p.accum);
            sum = scalar(Scalar::Add, &[sum, product], p.accum, p.accum);
        });
        round(sum, p.out)
    })
}
