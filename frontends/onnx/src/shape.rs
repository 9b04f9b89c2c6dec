//! What the importer knows of values beside their types: elements of small tensors as expressions over symbols, and
//! which graph inputs a value depends on.
//!
//! [`Facts`] follows the graph as it grows: it looks at every new node once, in order, and evaluates small integer,
//! float and bool tensors symbolically. Operators never pass sizes along themselves; they ask [`Facts::elems`] for the
//! elements of a shape operand, and get `Shape`, `Gather`, `Concat`, arithmetic and casts seen through, whatever
//! operator made the nodes. Elements that stay unknown are bound at run time (see `NodeCx::extents`).

use std::collections::BTreeMap;
use std::rc::Rc;

use cupola_ir::eval::{Env, eval_op};
use cupola_ir::ops::{CoreOp, Op, OpClass, ReduceKind};
use cupola_ir::tensor::{Tensor, Value};
use cupola_ir::{
    DType, Dim, Graph, Node, NodeId, Scalar, Sym, SymRange, TensorType, ValueId, convert,
};
use rustc_hash::FxHashMap;

use crate::symbols::{Source, Symbols};

/// Tensors with more elements are not followed: no shape, and few lookup tables of one, are as long.
const MAX_ELEMS: usize = 512;

/// Ops on constants with at most this many elements are run at import.
const MAX_FOLDED: i64 = 4096;

/// A value that depends on more inputs than this is not worth a variant of its own.
const MAX_DEPENDENCIES: usize = 8;

/// Ranges of symbols that are not from 0 up.
pub(crate) type Ranges = BTreeMap<Sym, SymRange>;

/// One element of a small tensor.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Elem {
    /// An integer.
    Int(Dim),
    /// A float known at import.
    Real(f64),
    /// The float `dim * factor`, from a size that was cast to float.
    Scaled(Dim, f64),
    /// A truth value.
    Bool(bool),
    /// Only run time knows.
    Unknown,
}

/// The graph inputs that decide a value.
#[derive(Clone, Debug)]
pub(crate) enum Deps {
    /// These inputs of the main graph, by name, sorted.
    Inputs(Rc<[String]>),
    /// Too many inputs, or something that is no input (an iteration, state, random numbers).
    Other,
}

impl Deps {
    pub(crate) fn none() -> Deps {
        Deps::Inputs(Rc::from([]))
    }

    pub(crate) fn input(name: &str) -> Deps {
        Deps::Inputs(Rc::from([name.to_string()]))
    }

    fn union(&self, other: &Deps) -> Deps {
        match (self, other) {
            (Deps::Inputs(a), Deps::Inputs(b)) => {
                if b.iter().all(|n| a.contains(n)) {
                    return self.clone();
                }
                let mut all = [&a[..], &b[..]].concat();
                all.sort();
                all.dedup();
                if all.len() > MAX_DEPENDENCIES {
                    return Deps::Other;
                }
                Deps::Inputs(all.into())
            }
            (Deps::Other, _) | (_, Deps::Other) => Deps::Other,
        }
    }
}

/// Facts about the values of one graph or region.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    elems: FxHashMap<ValueId, Rc<[Elem]>>,
    /// Results that the interpreter computed from constants.
    folded: FxHashMap<ValueId, Tensor>,
    deps: Vec<Deps>,
    seen: usize,
}

impl Facts {
    /// Looks at the nodes that are new since the last call.
    pub(crate) fn update(&mut self, g: &Graph, symbols: &mut Symbols) {
        while self.seen < g.node_count() {
            let node = g.node(NodeId(self.seen as u32));
            self.seen += 1;
            let deps = match &node.op {
                Op::Core(
                    CoreOp::Input(_)
                    | CoreOp::Param(_)
                    | CoreOp::ReadState(_)
                    | CoreOp::Random(_)
                    | CoreOp::Collective(_),
                ) => Deps::Other,
                _ => node.operands.iter().fold(Deps::none(), |all, v| {
                    all.union(self.deps.get(v.index()).unwrap_or(&Deps::Other))
                }),
            };
            for sym in node.op.binds() {
                symbols.state_source(&sym, Source::Values(deps.clone()));
            }
            self.deps.resize(self.deps.len() + node.results.len(), deps);
            self.evaluate(g, node, &symbols.ranges);
        }
    }

    fn evaluate(&mut self, g: &Graph, node: &Node, ranges: &Ranges) {
        if let [result] = node.results[..]
            && let Some(ty) = g.ty(result).as_tensor()
            && small(ty).is_some()
        {
            let get = |v: ValueId| self.elems.get(&v).cloned();
            if let Some(elems) = eval_node(g, node, ty, &get, ranges) {
                let complete = !elems.contains(&Elem::Unknown);
                if elems.iter().any(|e| *e != Elem::Unknown) {
                    self.elems.insert(result, elems.into());
                }
                if complete {
                    return;
                }
            }
        }
        self.fold(g, node);
    }

    /// Runs an op on small constants. A run that fails is left to run time, which says why.
    fn fold(&mut self, g: &Graph, node: &Node) {
        let host = node.op.class() == OpClass::Host;
        let skipped = matches!(
            node.op.class(),
            OpClass::Leaf | OpClass::Control | OpClass::Effect
        );
        let bounded = |v: &ValueId| {
            let len = g.ty(*v).as_tensor().map(|t| t.len().as_const());
            match len {
                Some(Some(n)) => n <= MAX_FOLDED,
                // Host ops decide extents by data, and give no more than a few times what they take.
                Some(None) => host,
                None => false,
            }
        };
        if skipped || !node.operands.iter().chain(&node.results).all(bounded) {
            return;
        }
        let operands = node
            .operands
            .iter()
            .map(|v| self.constant(g, *v).map(Value::Tensor));
        let Some(operands) = operands.collect::<Option<Vec<Value>>>() else {
            return;
        };
        let operands: Vec<&Value> = operands.iter().collect();
        let types: Vec<_> = node.results.iter().map(|v| g.ty(*v).clone()).collect();
        let Ok(values) = eval_op(&node.op, &operands, &types, &mut Env::default()) else {
            return;
        };
        for (v, value) in node.results.iter().zip(values) {
            let Value::Tensor(t) = value else { continue };
            if let Some(elems) = elems_of(&t) {
                self.elems.insert(*v, elems.into());
            }
            self.folded.insert(*v, t);
        }
    }

    /// The tensor that a value always is, when that is known.
    pub(crate) fn constant(&self, g: &Graph, v: ValueId) -> Option<Tensor> {
        if let Some(t) = g.as_const(v).or_else(|| self.folded.get(&v)) {
            return Some(t.clone());
        }
        tensor_of(self.elems.get(&v)?, g.ty(v).as_tensor()?)
    }

    /// Elements of a small tensor in row-major order; `None` when nothing is known of any.
    pub(crate) fn elems(&self, v: ValueId) -> Option<&Rc<[Elem]>> {
        self.elems.get(&v)
    }

    /// States the elements of a value that the facts cannot see by themselves (an input of a region).
    pub(crate) fn set_elems(&mut self, v: ValueId, elems: Rc<[Elem]>) {
        self.elems.insert(v, elems);
    }

    /// What decides a value.
    pub(crate) fn deps(&self, v: ValueId) -> Deps {
        self.deps.get(v.index()).cloned().unwrap_or(Deps::Other)
    }

    /// States what decides an input.
    pub(crate) fn set_deps(&mut self, v: ValueId, deps: Deps) {
        if let Some(d) = self.deps.get_mut(v.index()) {
            *d = deps;
        }
    }
}

/// Extents and element count of a type that is followed.
fn small(ty: &TensorType) -> Option<(Vec<usize>, usize)> {
    let followed = matches!(
        ty.dtype,
        DType::I64 | DType::I32 | DType::Bool | DType::F32 | DType::F64 | DType::F16
    );
    let shape = if followed {
        ty.const_shape()?
    } else {
        return None;
    };
    let len = shape.iter().try_fold(1usize, |p, n| p.checked_mul(*n))?;
    (len <= MAX_ELEMS).then_some((shape, len))
}

/// The smallest and the largest value of an expression.
pub(crate) fn bounds(dim: &Dim, ranges: &Ranges) -> (i64, i64) {
    dim.range(&|s| ranges.get(s).copied().unwrap_or_default())
}

/// `max(dim, 0)`, without the maximum where it changes nothing.
pub(crate) fn at_least_zero(dim: &Dim, ranges: &Ranges) -> Dim {
    if bounds(dim, ranges).0 >= 0 {
        dim.clone()
    } else {
        dim.larger(&Dim::ZERO)
    }
}

/// The smaller of two, without the minimum where the ranges decide.
pub(crate) fn smaller(a: &Dim, b: &Dim, ranges: &Ranges) -> Dim {
    let (lo, hi) = bounds(&(a - b), ranges);
    match (lo >= 0, hi <= 0) {
        (_, true) => a.clone(),
        (true, _) => b.clone(),
        _ => a.smaller(b),
    }
}

/// The elements of a constant; `None` when it is large or no number.
pub(crate) fn elems_of(t: &Tensor) -> Option<Vec<Elem>> {
    small(&t.ty())?;
    Some(match (convert::lanes(t)?, t.dtype()) {
        (convert::Lanes::F(v), _) => v.into_iter().map(Elem::Real).collect(),
        (convert::Lanes::I(v), _) => v.into_iter().map(|x| Elem::Int(Dim::Const(x))).collect(),
        (convert::Lanes::U(v), DType::Bool) => v.into_iter().map(|x| Elem::Bool(x != 0)).collect(),
        (convert::Lanes::U(v), _) => v
            .into_iter()
            .map(|x| Elem::Int(Dim::Const(x as i64)))
            .collect(),
    })
}

/// The constant of known elements; `None` when one is symbolic or unknown.
pub(crate) fn tensor_of(elems: &[Elem], ty: &TensorType) -> Option<Tensor> {
    let (shape, len) = small(ty)?;
    if len != elems.len() {
        return None;
    }
    let lanes = match ty.dtype {
        DType::Bool => convert::Lanes::U(
            elems
                .iter()
                .map(|e| match e {
                    Elem::Bool(b) => Some(u64::from(*b)),
                    _ => None,
                })
                .collect::<Option<_>>()?,
        ),
        d if d.is_int() => convert::Lanes::I(
            elems
                .iter()
                .map(|e| match e {
                    Elem::Int(d) => d.as_const(),
                    _ => None,
                })
                .collect::<Option<_>>()?,
        ),
        _ => convert::Lanes::F(
            elems
                .iter()
                .map(|e| match e {
                    Elem::Real(x) => Some(*x),
                    _ => None,
                })
                .collect::<Option<_>>()?,
        ),
    };
    convert::tensor(&lanes, ty.dtype, &shape)
}

type Get<'a> = &'a dyn Fn(ValueId) -> Option<Rc<[Elem]>>;

fn eval_node(
    g: &Graph,
    node: &Node,
    ty: &TensorType,
    get: Get,
    ranges: &Ranges,
) -> Option<Vec<Elem>> {
    let Op::Core(op) = &node.op else { return None };
    let (shape, len) = small(ty)?;
    // Operands with nothing known count as all unknown where the op picks single elements.
    let operand = |i: usize| -> Option<Rc<[Elem]>> {
        let v = *node.operands.get(i)?;
        let n = small(g.ty(v).as_tensor()?)?.1;
        Some(get(v).unwrap_or_else(|| vec![Elem::Unknown; n].into()))
    };
    let shape_of = |i: usize| g.tensor(node.operands[i]).const_shape();
    match op {
        CoreOp::Const(p) => elems_of(&p.value),
        CoreOp::Dims(p) => Some(p.dims.iter().cloned().map(Elem::Int).collect()),
        CoreOp::BindDim(p) => Some(vec![Elem::Int(Dim::from(&p.sym))]),
        CoreOp::Iota(p) if p.dtype.is_int() => Some(
            (0..len)
                .map(|i| Elem::Int(Dim::from(unflatten(i, &shape)[p.axis])))
                .collect(),
        ),
        CoreOp::Reshape(_) => Some(operand(0)?.to_vec()),
        CoreOp::Cast(p) => {
            let xs = operand(0)?;
            Some(xs.iter().map(|x| cast(x, p.to, ranges)).collect())
        }
        CoreOp::Map(p) => {
            let xs: Vec<Rc<[Elem]>> = (0..node.operands.len())
                .map(operand)
                .collect::<Option<_>>()?;
            let dtype = g.dtype(node.operands[0]);
            Some(
                (0..len)
                    .map(|i| {
                        let args: Vec<&Elem> = xs.iter().map(|x| &x[i]).collect();
                        scalar(p.f, &args, dtype, ranges)
                    })
                    .collect(),
            )
        }
        CoreOp::Permute(p) => {
            let (xs, from) = (operand(0)?, shape_of(0)?);
            Some(
                (0..len)
                    .map(|i| {
                        let at = unflatten(i, &shape);
                        let mut source = vec![0; at.len()];
                        for (k, a) in p.perm.iter().enumerate() {
                            source[*a] = at[k];
                        }
                        xs[flatten(&source, &from)].clone()
                    })
                    .collect(),
            )
        }
        CoreOp::Broadcast(_) => {
            let (xs, from) = (operand(0)?, shape_of(0)?);
            Some(
                (0..len)
                    .map(|i| {
                        let at = unflatten(i, &shape);
                        let source: Vec<usize> = at
                            .iter()
                            .zip(&from)
                            .map(|(i, n)| *i.min(&(n.max(&1) - 1)))
                            .collect();
                        xs[flatten(&source, &from)].clone()
                    })
                    .collect(),
            )
        }
        CoreOp::Slice(p) => {
            let (xs, from) = (operand(0)?, shape_of(0)?);
            let starts: Vec<i64> = p.starts.iter().map(Dim::as_const).collect::<Option<_>>()?;
            (0..len)
                .map(|i| {
                    let at = unflatten(i, &shape);
                    let source: Option<Vec<usize>> = (0..at.len())
                        .map(|a| {
                            let k = (at[a] as i64)
                                .checked_mul(p.steps[a])?
                                .checked_add(starts[a])?;
                            usize::try_from(k).ok().filter(|k| *k < from[a])
                        })
                        .collect();
                    Some(xs[flatten(&source?, &from)].clone())
                })
                .collect()
        }
        CoreOp::Concat(p) => {
            let parts: Vec<(Rc<[Elem]>, Vec<usize>)> = (0..node.operands.len())
                .map(|i| Some((operand(i)?, shape_of(i)?)))
                .collect::<Option<_>>()?;
            Some(
                (0..len)
                    .map(|i| {
                        let mut at = unflatten(i, &shape);
                        let mut part = 0;
                        while at[p.axis] >= parts[part].1[p.axis] {
                            at[p.axis] -= parts[part].1[p.axis];
                            part += 1;
                        }
                        parts[part].0[flatten(&at, &parts[part].1)].clone()
                    })
                    .collect(),
            )
        }
        CoreOp::Gather(p) if p.axes.len() == 1 && p.batch == 0 => {
            let (xs, from) = (operand(0)?, shape_of(0)?);
            let (index, picked) = (operand(1)?, shape_of(1)?);
            let axis = p.axes[0];
            (0..len)
                .map(|i| {
                    let at = unflatten(i, &shape);
                    let (pick, window) = at.split_at(picked.len());
                    let Elem::Int(Dim::Const(k)) = index[flatten(pick, &picked)] else {
                        return Some(Elem::Unknown);
                    };
                    let k = usize::try_from(k).ok().filter(|k| *k < from[axis])?;
                    let mut source = window.to_vec();
                    source.insert(axis, k);
                    Some(xs[flatten(&source, &from)].clone())
                })
                .collect()
        }
        CoreOp::Reduce(p) => {
            let (xs, from) = (operand(0)?, shape_of(0)?);
            reduce(p.kind, &p.axes, &xs, &from, &shape, ty.dtype, ranges)
        }
        _ => None,
    }
}

fn reduce(
    kind: ReduceKind,
    axes: &[usize],
    xs: &[Elem],
    from: &[usize],
    to: &[usize],
    dtype: DType,
    ranges: &Ranges,
) -> Option<Vec<Elem>> {
    let (f, empty) = match kind {
        ReduceKind::Sum => (Scalar::Add, 0),
        ReduceKind::Prod => (Scalar::Mul, 1),
        ReduceKind::Max => (Scalar::Max, 0),
        ReduceKind::Min => (Scalar::Min, 0),
    };
    if !matches!(dtype, DType::I64 | DType::I32) {
        return None;
    }
    let mut out: Vec<Option<Elem>> = vec![None; to.iter().product()];
    for (i, x) in xs.iter().enumerate() {
        let at = unflatten(i, from);
        let kept: Vec<usize> = (0..at.len())
            .filter(|a| !axes.contains(a))
            .map(|a| at[a])
            .collect();
        let slot = &mut out[flatten(&kept, to)];
        *slot = Some(match slot.take() {
            None => x.clone(),
            Some(y) => scalar(f, &[&y, x], dtype, ranges),
        });
    }
    let order = matches!(kind, ReduceKind::Max | ReduceKind::Min);
    Some(
        out.into_iter()
            .map(|e| match e {
                Some(e) => e,
                None if order => Elem::Unknown,
                None => Elem::Int(Dim::Const(empty)),
            })
            .collect(),
    )
}

fn unflatten(mut i: usize, shape: &[usize]) -> Vec<usize> {
    let mut at = vec![0; shape.len()];
    for a in (0..shape.len()).rev() {
        at[a] = i % shape[a];
        i /= shape[a];
    }
    at
}

fn flatten(at: &[usize], shape: &[usize]) -> usize {
    at.iter().zip(shape).fold(0, |i, (k, n)| i * n + k)
}

fn round_to(x: f64, dtype: DType) -> f64 {
    match dtype {
        DType::F32 => f64::from(x as f32),
        DType::F16 => half::f16::from_f64(x).to_f64(),
        _ => x,
    }
}

fn cast(x: &Elem, to: DType, ranges: &Ranges) -> Elem {
    match (x, to) {
        (Elem::Int(_), DType::I64) | (Elem::Bool(_), DType::Bool) => x.clone(),
        (Elem::Int(d), DType::I32) => match d.as_const() {
            Some(c) => Elem::Int(Dim::Const(i64::from(c as i32))),
            None => x.clone(),
        },
        (Elem::Int(d), DType::Bool) => match (d.as_const(), bounds(d, ranges)) {
            (Some(c), _) => Elem::Bool(c != 0),
            (None, (lo, hi)) if lo > 0 || hi < 0 => Elem::Bool(true),
            _ => Elem::Unknown,
        },
        (Elem::Int(d), DType::F32 | DType::F64 | DType::F16) => match d.as_const() {
            Some(c) => Elem::Real(round_to(c as f64, to)),
            None => Elem::Scaled(d.clone(), 1.0),
        },
        (Elem::Bool(b), DType::I64 | DType::I32) => Elem::Int(Dim::Const(i64::from(*b))),
        (Elem::Bool(b), DType::F32 | DType::F64 | DType::F16) => {
            Elem::Real(f64::from(u8::from(*b)))
        }
        (Elem::Real(v), DType::I64 | DType::I32) => match v.is_finite() && v.abs() < 9.0e15 {
            true => Elem::Int(Dim::Const(v.trunc() as i64)),
            false => Elem::Unknown,
        },
        (Elem::Real(v), DType::Bool) => Elem::Bool(*v != 0.0),
        (Elem::Real(v), DType::F32 | DType::F64 | DType::F16) => Elem::Real(round_to(*v, to)),
        (Elem::Scaled(..), DType::F32 | DType::F64 | DType::F16) => x.clone(),
        (Elem::Scaled(..), DType::I64 | DType::I32) => match round_scaled(x, Scalar::Trunc, ranges)
        {
            Elem::Scaled(d, 1.0) => Elem::Int(d),
            _ => Elem::Unknown,
        },
        _ => Elem::Unknown,
    }
}

/// Rounds `dim * factor` to an integer expression when the factor is a fraction that floats hold exactly.
fn round_scaled(x: &Elem, f: Scalar, ranges: &Ranges) -> Elem {
    let Elem::Scaled(d, factor) = x else {
        return Elem::Unknown;
    };
    let denominator = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
        .into_iter()
        .find(|q| (factor * q).fract() == 0.0 && (factor * q).abs() < 1e9);
    let Some(q) = denominator else {
        return Elem::Unknown;
    };
    let n = d.clone() * Dim::Const((factor * q) as i64);
    let q = Dim::Const(q as i64);
    let whole = match f {
        _ if q.is(1) => n,
        Scalar::Floor => n.floor_div(&q),
        Scalar::Ceil => n.ceil_div(&q),
        Scalar::Trunc if bounds(&n, ranges).0 >= 0 => n.floor_div(&q),
        _ => return Elem::Unknown,
    };
    Elem::Scaled(whole, 1.0)
}

fn scalar(f: Scalar, args: &[&Elem], dtype: DType, ranges: &Ranges) -> Elem {
    match args {
        [x] => unary(f, x, dtype, ranges),
        [Elem::Int(a), Elem::Int(b)] => integers(f, a, b, ranges),
        [Elem::Real(a), Elem::Real(b)] => reals(f, *a, *b, dtype),
        [Elem::Bool(a), Elem::Bool(b)] => match f {
            Scalar::And => Elem::Bool(a & b),
            Scalar::Or => Elem::Bool(a | b),
            Scalar::Xor => Elem::Bool(a ^ b),
            Scalar::Eq => Elem::Bool(a == b),
            _ => Elem::Unknown,
        },
        [Elem::Bool(false), _] | [_, Elem::Bool(false)] if f == Scalar::And => Elem::Bool(false),
        [Elem::Bool(true), _] | [_, Elem::Bool(true)] if f == Scalar::Or => Elem::Bool(true),
        [Elem::Scaled(d, s), Elem::Real(r)] => match f {
            Scalar::Mul => Elem::Scaled(d.clone(), round_to(s * r, dtype)),
            Scalar::Div if *r != 0.0 && round_to(s / r, dtype) * r == *s => {
                Elem::Scaled(d.clone(), s / r)
            }
            _ => Elem::Unknown,
        },
        [Elem::Real(r), Elem::Scaled(d, s)] if f == Scalar::Mul => {
            Elem::Scaled(d.clone(), round_to(s * r, dtype))
        }
        [Elem::Scaled(a, s), Elem::Scaled(b, t)] if s == t => {
            match (f, integers(f, a, b, ranges)) {
                (Scalar::Add | Scalar::Sub | Scalar::Min | Scalar::Max, Elem::Int(d))
                    if *s > 0.0 =>
                {
                    Elem::Scaled(d, *s)
                }
                (Scalar::Div, _) if *s == 1.0 && b.as_const().is_none() => match a.exact_div(b) {
                    Some(q) => match q.as_const() {
                        Some(c) => Elem::Real(c as f64),
                        None => Elem::Scaled(q, 1.0),
                    },
                    None => Elem::Unknown,
                },
                _ => Elem::Unknown,
            }
        }
        [Elem::Bool(c), x, y] if f == Scalar::Select => {
            if *c {
                (*x).clone()
            } else {
                (*y).clone()
            }
        }
        [_, x, y] if f == Scalar::Select && x == y => (*x).clone(),
        _ => Elem::Unknown,
    }
}

fn unary(f: Scalar, x: &Elem, dtype: DType, ranges: &Ranges) -> Elem {
    match (f, x) {
        (Scalar::Neg, Elem::Int(d)) => Elem::Int(-d.clone()),
        (Scalar::Abs, Elem::Int(d)) => match bounds(d, ranges) {
            (lo, _) if lo >= 0 => x.clone(),
            (_, hi) if hi <= 0 => Elem::Int(-d.clone()),
            _ => Elem::Int(d.larger(&-d.clone())),
        },
        (Scalar::Not, Elem::Bool(b)) => Elem::Bool(!b),
        (Scalar::Floor | Scalar::Ceil | Scalar::Round | Scalar::Trunc, Elem::Scaled(..)) => {
            round_scaled(x, f, ranges)
        }
        (Scalar::Neg, Elem::Scaled(d, s)) => Elem::Scaled(d.clone(), -s),
        (_, Elem::Real(v)) => {
            let y = match f {
                Scalar::Neg => -v,
                Scalar::Abs => v.abs(),
                Scalar::Floor => v.floor(),
                Scalar::Ceil => v.ceil(),
                Scalar::Round => v.round_ties_even(),
                Scalar::Trunc => v.trunc(),
                Scalar::Sqrt => v.sqrt(),
                Scalar::Recip => 1.0 / v,
                _ => return Elem::Unknown,
            };
            Elem::Real(round_to(y, dtype))
        }
        _ => Elem::Unknown,
    }
}

fn reals(f: Scalar, a: f64, b: f64, dtype: DType) -> Elem {
    let y = match f {
        Scalar::Add => a + b,
        Scalar::Sub => a - b,
        Scalar::Mul => a * b,
        Scalar::Div => a / b,
        Scalar::Eq => return Elem::Bool(a == b),
        Scalar::Lt => return Elem::Bool(a < b),
        Scalar::Le => return Elem::Bool(a <= b),
        _ => return Elem::Unknown,
    };
    Elem::Real(round_to(y, dtype))
}

fn integers(f: Scalar, a: &Dim, b: &Dim, ranges: &Ranges) -> Elem {
    if [a, b].iter().any(|d| d.is_longer_than(Dim::FOLLOWED)) {
        return Elem::Unknown;
    }
    let (a_lo, _) = bounds(a, ranges);
    let (b_lo, _) = bounds(b, ranges);
    let difference = bounds(&(a - b), ranges);
    Elem::Int(match f {
        Scalar::Add => a.clone() + b.clone(),
        Scalar::Sub => a - b,
        Scalar::Mul => a.clone() * b.clone(),
        Scalar::Min => smaller(a, b, ranges),
        Scalar::Max => match difference {
            (lo, _) if lo >= 0 => a.clone(),
            (_, hi) if hi <= 0 => b.clone(),
            _ => a.larger(b),
        },
        Scalar::Div => match (a.as_const(), b.as_const()) {
            (Some(x), Some(y)) => match x.checked_div(y) {
                Some(q) => Dim::Const(q),
                None => return Elem::Unknown,
            },
            // Division truncates: it is the floor only where nothing is negative.
            _ if a_lo >= 0 && b_lo > 0 => a.floor_div(b),
            _ => match a.exact_div(b) {
                Some(q) if b_lo > 0 || bounds(b, ranges).1 < 0 => q,
                _ => return Elem::Unknown,
            },
        },
        Scalar::Mod | Scalar::Rem => match (a.as_const(), b.as_const()) {
            (Some(x), Some(y)) => match (f, x.checked_rem(y)) {
                (_, None) => return Elem::Unknown,
                (Scalar::Mod, Some(r)) if r != 0 && (r < 0) != (y < 0) => Dim::Const(r + y),
                (_, Some(r)) => Dim::Const(r),
            },
            _ if a_lo >= 0 && b_lo > 0 => a - &(a.floor_div(b) * b.clone()),
            _ => return Elem::Unknown,
        },
        Scalar::Eq => {
            return match difference {
                (0, 0) => Elem::Bool(true),
                (lo, hi) if lo > 0 || hi < 0 => Elem::Bool(false),
                _ => Elem::Unknown,
            };
        }
        Scalar::Lt => {
            return match difference {
                (_, hi) if hi < 0 => Elem::Bool(true),
                (lo, _) if lo >= 0 => Elem::Bool(false),
                _ => Elem::Unknown,
            };
        }
        Scalar::Le => {
            return match difference {
                (_, hi) if hi <= 0 => Elem::Bool(true),
                (lo, _) if lo > 0 => Elem::Bool(false),
                _ => Elem::Unknown,
            };
        }
        _ => return Elem::Unknown,
    })
}
