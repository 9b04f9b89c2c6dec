//! A plain evaluator of the ops that these tests use.

use super::{T, V};
use cupola_ir::ops::*;
use cupola_ir::{Bindings, Class, CoreOp, DType, Graph, Op, Scalar, Tensor};

pub fn from_bits(dtype: DType, bits: u64) -> V {
    match dtype {
        DType::F32 => V::F(f64::from(f32::from_bits(bits as u32))),
        DType::F64 => V::F(f64::from_bits(bits)),
        DType::I32 => V::I(i64::from(bits as i32)),
        DType::I64 | DType::U32 | DType::Bool => V::I(bits as i64),
        d => panic!("no literal of {d}"),
    }
}

pub fn elements(t: &Tensor) -> Vec<V> {
    t.bytes()
        .chunks_exact(t.dtype().size())
        .map(|c| {
            let mut b = [0; 8];
            b[..c.len()].copy_from_slice(c);
            from_bits(t.dtype(), u64::from_le_bytes(b))
        })
        .collect()
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

pub fn limit(dtype: DType, high: bool) -> V {
    match (dtype.is_float(), high) {
        (true, true) => V::F(f64::INFINITY),
        (true, false) => V::F(f64::NEG_INFINITY),
        (false, h) => {
            let (lo, hi) = dtype.int_range().expect("integer");
            V::I(if h { hi } else { lo } as i64)
        }
    }
}

pub fn scalar(f: Scalar, x: &[V], from: DType, to: DType) -> V {
    use Scalar::*;
    let float = from.is_float();
    let (a, b) = (x[0], x.get(1).copied().unwrap_or(V::I(0)));
    let v = match f {
        Select => {
            if a.i() != 0 {
                b
            } else {
                x[2]
            }
        }
        Add if float => V::F(a.f() + b.f()),
        Sub if float => V::F(a.f() - b.f()),
        Mul if float => V::F(a.f() * b.f()),
        Div if float => V::F(a.f() / b.f()),
        Max if float => V::F(a.f().max(b.f())),
        Min if float => V::F(a.f().min(b.f())),
        Add => V::I(a.i().wrapping_add(b.i())),
        Sub => V::I(a.i().wrapping_sub(b.i())),
        Mul => V::I(a.i().wrapping_mul(b.i())),
        Div => V::I(a.i().checked_div(b.i()).expect("no division by zero")),
        Max => V::I(a.i().max(b.i())),
        Min => V::I(a.i().min(b.i())),
        And => V::I(a.i() & b.i()),
        Or => V::I(a.i() | b.i()),
        Eq => V::I(i64::from(a.f() == b.f())),
        Lt => V::I(i64::from(a.f() < b.f())),
        Le => V::I(i64::from(a.f() <= b.f())),
        Neg if float => V::F(-a.f()),
        Neg => V::I(a.i().wrapping_neg()),
        Abs if float => V::F(a.f().abs()),
        Exp => V::F(a.f().exp()),
        Tanh => V::F(a.f().tanh()),
        Erf => V::F(a.f().tanh()),
        Log => V::F(a.f().ln()),
        Rsqrt => V::F(1.0 / a.f().sqrt()),
        Sqrt => V::F(a.f().sqrt()),
        other => panic!("not in these tests: {other:?}"),
    };
    round(v, to)
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

fn dims(d: &[cupola_ir::Dim], b: &Bindings) -> Vec<usize> {
    d.iter()
        .map(|d| d.eval(b).expect("bound") as usize)
        .collect()
}

pub fn op(op: &Op, x: &[&T], b: &Bindings) -> T {
    let Op::Core(op) = op else {
        panic!("not in these tests: {op:?}")
    };
    let first = x.first().copied();
    match op {
        CoreOp::Const(p) => T {
            dtype: p.value.dtype(),
            shape: p.value.shape().to_vec(),
            v: elements(&p.value),
        },
        CoreOp::Iota(p) => T::build(p.dtype, &dims(&p.dims, b), |at| {
            round(V::I(at[p.axis] as i64), p.dtype)
        }),
        CoreOp::Dims(p) => T {
            dtype: DType::I64,
            shape: vec![p.dims.len()],
            v: p.dims
                .iter()
                .map(|d| V::I(d.eval(b).expect("bound")))
                .collect(),
        },
        CoreOp::Map(p) => {
            let types: Vec<DType> = x.iter().map(|t| t.dtype).collect();
            let to = p.f.infer(&types).unwrap();
            T::build(to, &x[0].shape, |at| {
                let args: Vec<V> = x.iter().map(|t| t.get(at)).collect();
                scalar(p.f, &args, types[0], to)
            })
        }
        CoreOp::Cast(p) => T::build(p.to, &x[0].shape, |at| round(x[0].get(at), p.to)),
        CoreOp::Reshape(p) => {
            let shape = dims(&p.dims, b);
            assert_eq!(shape.iter().product::<usize>(), x[0].v.len());
            T {
                shape,
                ..x[0].clone()
            }
        }
        CoreOp::Permute(p) => {
            let shape: Vec<usize> = p.perm.iter().map(|a| x[0].shape[*a]).collect();
            T::build(x[0].dtype, &shape, |at| {
                let mut i = vec![0; at.len()];
                for (k, a) in p.perm.iter().enumerate() {
                    i[*a] = at[k];
                }
                x[0].get(&i)
            })
        }
        CoreOp::Broadcast(p) => T::build(x[0].dtype, &dims(&p.dims, b), |at| {
            let i: Vec<usize> = at
                .iter()
                .zip(&x[0].shape)
                .map(|(i, d)| if *d == 1 { 0 } else { *i })
                .collect();
            x[0].get(&i)
        }),
        CoreOp::Slice(p) => {
            let starts: Vec<i64> = p.starts.iter().map(|d| d.eval(b).unwrap()).collect();
            T::build(x[0].dtype, &dims(&p.dims, b), |at| {
                let i: Vec<usize> = (0..at.len())
                    .map(|a| (starts[a] + at[a] as i64 * p.steps[a]) as usize)
                    .collect();
                x[0].get(&i)
            })
        }
        CoreOp::Pad(p) => {
            let (low, high) = (dims(&p.low, b), dims(&p.high, b));
            let shape: Vec<usize> = (0..low.len())
                .map(|a| low[a] + x[0].shape[a] + high[a])
                .collect();
            T::build(x[0].dtype, &shape, |at| {
                let inside =
                    (0..at.len()).all(|a| at[a] >= low[a] && at[a] - low[a] < x[0].shape[a]);
                if inside {
                    let i: Vec<usize> = at.iter().zip(&low).map(|(i, l)| i - l).collect();
                    x[0].get(&i)
                } else {
                    x[1].v[0]
                }
            })
        }
        CoreOp::Concat(p) => {
            let mut shape = x[0].shape.clone();
            shape[p.axis] = x.iter().map(|t| t.shape[p.axis]).sum();
            T::build(x[0].dtype, &shape, |at| {
                let mut i = at.to_vec();
                for t in x {
                    if i[p.axis] < t.shape[p.axis] {
                        return t.get(&i);
                    }
                    i[p.axis] -= t.shape[p.axis];
                }
                panic!("outside")
            })
        }
        CoreOp::Window(p) => {
            let sizes = dims(&p.sizes, b);
            let mut shape = x[0].shape.clone();
            for (k, a) in p.axes.iter().enumerate() {
                let span = p.dilations[k] * (sizes[k] as i64 - 1) + 1;
                shape[*a] = ((shape[*a] as i64 - span).div_euclid(p.strides[k]) + 1) as usize;
            }
            let rank = shape.len();
            shape.extend(&sizes);
            T::build(x[0].dtype, &shape, |at| {
                let mut i = at[..rank].to_vec();
                for (k, a) in p.axes.iter().enumerate() {
                    i[*a] = i[*a] * p.strides[k] as usize + at[rank + k] * p.dilations[k] as usize;
                }
                x[0].get(&i)
            })
        }
        CoreOp::Fold(p) => {
            let shape = dims(&p.dims, b);
            let mut out = T::build(x[0].dtype, &shape, |_| round(V::I(0), x[0].dtype));
            let rank = shape.len();
            each(&x[0].shape, &mut |at| {
                let mut i = at[..rank].to_vec();
                for (k, a) in p.axes.iter().enumerate() {
                    i[*a] = i[*a] * p.strides[k] as usize + at[rank + k] * p.dilations[k] as usize;
                }
                let mut linear = 0;
                for (k, d) in i.iter().zip(&shape) {
                    linear = linear * d + k;
                }
                let args = [out.v[linear], x[0].get(at)];
                out.v[linear] = scalar(Scalar::Add, &args, out.dtype, out.dtype);
            });
            out
        }
        CoreOp::Reduce(p) => reduce(p, first.unwrap()),
        CoreOp::ArgReduce(p) => {
            let x = first.unwrap();
            let mut shape = x.shape.clone();
            let n = shape.remove(p.axis);
            T::build(DType::I64, &shape, |at| {
                let value = |k: usize| {
                    let mut i = at.to_vec();
                    i.insert(p.axis, k);
                    x.get(&i).f()
                };
                let sign = if p.kind == ReduceKind::Max { 1.0 } else { -1.0 };
                let mut best = 0;
                for k in 1..n {
                    let (a, b) = (sign * value(k), sign * value(best));
                    if a > b || p.last && a == b {
                        best = k;
                    }
                }
                V::I(best as i64)
            })
        }
        CoreOp::Contract(p) => contract(p, x[0], x[1]),
        CoreOp::Gather(p) => {
            let (data, indices) = (x[0], &x[1..]);
            let picked = indices[0].shape.len();
            let window: Vec<usize> = (p.batch..data.shape.len())
                .filter(|a| !p.axes.contains(a))
                .collect();
            let mut shape = indices[0].shape.clone();
            shape.extend(window.iter().map(|a| data.shape[*a]));
            T::build(data.dtype, &shape, |at| {
                let mut i = vec![0; data.shape.len()];
                i[..p.batch].copy_from_slice(&at[..p.batch]);
                for (a, w) in window.iter().zip(&at[picked..]) {
                    i[*a] = *w;
                }
                for (a, t) in p.axes.iter().zip(indices) {
                    let n = data.shape[*a] as i64;
                    let v = t.get(&at[..picked]).i();
                    if p.bounds == Bounds::Skip && !(0..n).contains(&v) {
                        return round(V::I(0), data.dtype);
                    }
                    i[*a] = v.clamp(0, n - 1) as usize;
                }
                data.get(&i)
            })
        }
        other => panic!("not in these tests: {other:?}"),
    }
}

fn reduce(p: &Reduce, x: &T) -> T {
    let kept: Vec<usize> = (0..x.shape.len()).filter(|a| !p.axes.contains(a)).collect();
    let shape: Vec<usize> = kept.iter().map(|a| x.shape[*a]).collect();
    let inner: Vec<usize> = p.axes.iter().map(|a| x.shape[*a]).collect();
    T::build(x.dtype, &shape, |at| {
        let mut i = vec![0; x.shape.len()];
        kept.iter().zip(at).for_each(|(a, k)| i[*a] = *k);
        let mut out: Option<V> = None;
        each(&inner, &mut |k| {
            p.axes.iter().zip(k).for_each(|(a, k)| i[*a] = *k);
            let v = x.get(&i);
            let f = match p.kind {
                ReduceKind::Sum => Scalar::Add,
                ReduceKind::Prod => Scalar::Mul,
                ReduceKind::Max => Scalar::Max,
                ReduceKind::Min => Scalar::Min,
            };
            out = Some(out.map_or(v, |o| scalar(f, &[o, v], p.accum, p.accum)));
        });
        round(
            out.unwrap_or(match p.kind {
                ReduceKind::Sum => V::I(0),
                ReduceKind::Prod => V::I(1),
                ReduceKind::Max => limit(x.dtype, false),
                ReduceKind::Min => limit(x.dtype, true),
            }),
            x.dtype,
        )
    })
}

pub fn run(graph: &Graph, inputs: &[T], bindings: &mut Bindings) -> Vec<T> {
    let mut values: Vec<Option<T>> = vec![None; graph.value_count()];
    for (v, t) in graph.inputs().iter().zip(inputs) {
        values[v.index()] = Some(t.clone());
    }
    for (_, node) in graph.nodes() {
        let xs: Vec<&T> = node
            .operands
            .iter()
            .map(|v| values[v.index()].as_ref().expect("in order"))
            .collect();
        let out = match &node.op {
            Op::Core(CoreOp::Input(_)) => continue,
            Op::Core(CoreOp::BindDim(p)) => {
                bindings.set(p.sym.clone(), xs[0].v[0].i());
                vec![xs[0].clone()]
            }
            Op::Composite(c) => {
                let types: Vec<_> = node.operands.iter().map(|v| graph.ty(*v)).collect();
                let (inner, _) = c.expand(&types).expect("decomposes");
                let xs: Vec<T> = xs.into_iter().cloned().collect();
                run(&inner, &xs, bindings)
            }
            other => vec![op(other, &xs, bindings)],
        };
        for (v, t) in node.results.iter().zip(out) {
            values[v.index()] = Some(t);
        }
    }
    graph
        .outputs()
        .iter()
        .map(|(_, v)| values[v.index()].clone().expect("computed"))
        .collect()
}
