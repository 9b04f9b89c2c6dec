//! Masks that depend on the distance to the diagonal alone, however they were made: comparisons of positions,
//! constant triangles, selections between two numbers, and parts of those. Causal masks are of this kind.

use super::look::axes_through_reshape;
use cupola_ir::convert::{self, Lanes};
use cupola_ir::{Class, CoreOp, DType, Dim, Graph, Op, Scalar, Tensor, ValueId, eval};
use rustc_hash::FxHashMap;

/// Most values looked at for one mask: masks are made in a dozen steps.
const MAX_VALUES: usize = 64;

/// A value whose element at row `i` and column `j` of the last two axes is `below` where `j <= i + offset`, and
/// `above` elsewhere, for all indices of the other axes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Triangle {
    /// Element on and below the diagonal.
    pub below: f64,
    /// Element above the diagonal.
    pub above: f64,
    /// Column of the diagonal in row 0.
    pub offset: Dim,
}

/// The value as a triangle.
pub(super) fn triangle(g: &Graph, v: ValueId) -> Option<Triangle> {
    let mut finder = Finder {
        g,
        known: FxHashMap::default(),
    };
    finder.triangle(v)
}

/// `constant` plus multiples of the positions along axes.
#[derive(Clone, Debug, Default)]
struct Position {
    factors: FxHashMap<usize, i64>,
    constant: Option<Dim>,
}

struct Finder<'g> {
    g: &'g Graph,
    known: FxHashMap<ValueId, Option<Triangle>>,
}

impl Finder<'_> {
    fn triangle(&mut self, v: ValueId) -> Option<Triangle> {
        if let Some(known) = self.known.get(&v) {
            return known.clone();
        }
        if self.known.len() >= MAX_VALUES || self.g.rank(v) < 2 {
            return None;
        }
        // Should the value depend on itself, it is none.
        self.known.insert(v, None);
        let found = self.look(v);
        self.known.insert(v, found.clone());
        found
    }

    fn look(&mut self, v: ValueId) -> Option<Triangle> {
        let g = self.g;
        let operands = &g.def(v).operands;
        let x = operands.first().copied();
        match g.op_of(v) {
            Op::Core(CoreOp::Const(c)) => constant(&c.value),
            Op::Core(CoreOp::Broadcast(_)) => {
                let (from, to) = (plane(g, x?)?, plane(g, v)?);
                let kept = from.iter().zip(&to).all(|(a, b)| a == b || a.is_clip_of(b));
                kept.then(|| self.triangle(x?))?
            }
            Op::Core(CoreOp::Reshape(_)) => {
                (plane(g, x?)? == plane(g, v)?).then(|| self.triangle(x?))?
            }
            Op::Core(CoreOp::Slice(p)) => {
                let [i, j] = [p.steps.len() - 2, p.steps.len() - 1];
                (p.steps[i] == 1 && p.steps[j] == 1).then_some(())?;
                let inner = self.triangle(x?)?;
                let shift = p.starts[i].clone() - p.starts[j].clone();
                Some(Triangle {
                    offset: inner.offset + shift,
                    ..inner
                })
            }
            Op::Core(CoreOp::Cast(p)) => {
                let inner = self.triangle(x?)?;
                let of = |c: f64| match p.to {
                    DType::Bool => Some(f64::from(u8::from(c != 0.0))),
                    to => (to.is_float() || c.fract() == 0.0).then_some(c),
                };
                Some(Triangle {
                    below: of(inner.below)?,
                    above: of(inner.above)?,
                    ..inner
                })
            }
            Op::Core(CoreOp::Map(p)) => self.compared(v, p.f).or_else(|| self.mapped(v, p.f)),
            _ => None,
        }
    }

    /// A comparison of positions along the last two axes.
    fn compared(&mut self, v: ValueId, f: Scalar) -> Option<Triangle> {
        let [x, y] = self.g.def(v).operands[..] else {
            return None;
        };
        let strict = match f {
            Scalar::Le => Dim::ZERO,
            Scalar::Lt => Dim::ONE,
            _ => return None,
        };
        let (x, y) = (self.position(x)?, self.position(y)?);
        let rank = self.g.rank(v);
        // True where the difference is not negative.
        let difference = y.plus(Some(x.plus(None, -1)?), 1)?;
        let factor = |axis: usize| difference.factors.get(&axis).copied().unwrap_or(0);
        if (0..rank - 2).any(|a| factor(a) != 0) {
            return None;
        }
        let rest = difference.constant.clone()? - strict;
        match (factor(rank - 2), factor(rank - 1)) {
            (1, -1) => Some(Triangle {
                below: 1.0,
                above: 0.0,
                offset: rest,
            }),
            (-1, 1) => Some(Triangle {
                below: 0.0,
                above: 1.0,
                offset: -rest - Dim::ONE,
            }),
            _ => None,
        }
    }

    /// A function of triangles with one diagonal and of numbers.
    fn mapped(&mut self, v: ValueId, f: Scalar) -> Option<Triangle> {
        let operands = self.g.def(v).operands.clone();
        let mut offset = None;
        let mut sides = [vec![], vec![]];
        for x in operands.iter() {
            let (below, above) = match self.g.as_uniform(*x) {
                Some(c) => (c, c),
                None => {
                    let t = self.triangle(*x)?;
                    if *offset.get_or_insert(t.offset.clone()) != t.offset {
                        return None;
                    }
                    (t.below, t.above)
                }
            };
            sides[0].push(below);
            sides[1].push(above);
        }
        let dtype = self.g.dtype(operands[0]);
        Some(Triangle {
            below: number(f, dtype, &sides[0])?,
            above: number(f, dtype, &sides[1])?,
            offset: offset?,
        })
    }

    /// A whole number made of positions along axes. Chains, not graphs: no value is looked at twice.
    fn position(&self, v: ValueId) -> Option<Position> {
        let g = self.g;
        let x = g.def(v).operands.first().copied();
        if let Some(c) = g.as_uniform(v) {
            let whole = c.fract() == 0.0 && c.abs() < 1e15;
            return whole.then(|| Position {
                constant: Some(Dim::Const(c as i64)),
                ..Position::default()
            });
        }
        match g.op_of(v) {
            Op::Core(CoreOp::Iota(p)) => Some(Position {
                factors: FxHashMap::from_iter([(p.axis, 1)]),
                constant: Some(Dim::ZERO),
            }),
            Op::Core(CoreOp::Dims(p)) => match &p.dims[..] {
                [d] => Some(Position {
                    constant: Some(d.clone()),
                    ..Position::default()
                }),
                _ => None,
            },
            Op::Core(CoreOp::Broadcast(_) | CoreOp::Cast(_)) => self.position(x?),
            Op::Core(CoreOp::Reshape(p)) => {
                let inner = self.position(x?)?;
                let moved = axes_through_reshape(&g.dims(x?), &p.dims)?;
                inner.moved(|axis| moved.get(&axis).copied())
            }
            Op::Core(CoreOp::Permute(p)) => {
                let inner = self.position(x?)?;
                inner.moved(|axis| p.perm.iter().position(|a| *a == axis))
            }
            Op::Core(CoreOp::Slice(p)) => {
                let mut out = self.position(x?)?;
                for (axis, factor) in &mut out.factors {
                    let start = p.starts[*axis].clone() * Dim::Const(*factor);
                    out.constant = Some(out.constant? + start);
                    *factor = factor.checked_mul(p.steps[*axis])?;
                }
                Some(out)
            }
            Op::Core(CoreOp::Map(p)) => match (p.f, &g.def(v).operands[..]) {
                (Scalar::Neg, [x]) => self.position(*x)?.plus(None, -1),
                (Scalar::Add, [x, y]) => self.position(*x)?.plus(Some(self.position(*y)?), 1),
                (Scalar::Sub, [x, y]) => {
                    let negative = self.position(*y)?.plus(None, -1)?;
                    self.position(*x)?.plus(Some(negative), 1)
                }
                _ => None,
            },
            _ => None,
        }
    }
}

impl Position {
    fn moved(self, to: impl Fn(usize) -> Option<usize>) -> Option<Position> {
        let factors = self.factors.into_iter().map(|(a, f)| Some((to(a)?, f)));
        Some(Position {
            factors: factors.collect::<Option<_>>()?,
            ..self
        })
    }

    /// `sign * (self + other)`.
    fn plus(mut self, other: Option<Position>, sign: i64) -> Option<Position> {
        for (axis, factor) in other.iter().flat_map(|o| &o.factors) {
            let own = self.factors.entry(*axis).or_default();
            *own = own.checked_add(*factor)?;
        }
        for factor in self.factors.values_mut() {
            *factor = factor.checked_mul(sign)?;
        }
        let constant = match other {
            Some(o) => self.constant? + o.constant?,
            None => self.constant?,
        };
        self.constant = Some(constant * Dim::Const(sign));
        Some(self)
    }
}

/// Extents of the last two axes.
fn plane(g: &Graph, v: ValueId) -> Option<[Dim; 2]> {
    let dims = g.dims(v);
    match &dims[..] {
        [.., i, j] => Some([i.clone(), j.clone()]),
        _ => None,
    }
}

/// A function of numbers.
fn number(f: Scalar, dtype: DType, xs: &[f64]) -> Option<f64> {
    if let (Scalar::Select, [c, x, y]) = (f, xs) {
        return Some(if *c != 0.0 { *x } else { *y });
    }
    let lanes = |x: &f64| match dtype.class() {
        Class::Float => Some(Lanes::F(vec![*x])),
        Class::Signed => Some(Lanes::I(vec![*x as i64])),
        Class::Bool | Class::Unsigned => Some(Lanes::U(vec![*x as u64])),
        _ => None,
    };
    let xs: Vec<Lanes> = xs.iter().map(lanes).collect::<Option<_>>()?;
    let refs: Vec<&Lanes> = xs.iter().collect();
    match eval::scalar::eval(f, dtype, &refs).ok()? {
        Lanes::F(v) => v.first().copied(),
        Lanes::I(v) => v.first().map(|x| *x as f64),
        Lanes::U(v) => v.first().map(|x| *x as f64),
    }
}

/// A constant triangle: the bytes of elements are compared, which is quick for large masks of whole models.
fn constant(t: &Tensor) -> Option<Triangle> {
    let [.., rows, columns] = *t.shape() else {
        return None;
    };
    let size = t.dtype().size();
    if size == 0 || rows < 2 || columns < 2 || t.is_empty() {
        return None;
    }
    let element = |i: usize, j: usize| {
        let at = (i * columns + j) * size;
        &t.bytes()[at..at + size]
    };
    let (below, above) = (element(rows - 1, 0), element(0, columns - 1));
    if below == above {
        return None;
    }
    // The first row with an element of the lower part says where the diagonal is.
    let first = (0..rows).find(|i| element(*i, 0) == below)?;
    let width = (0..columns).take_while(|j| element(first, *j) == below);
    let offset = width.count() as i64 - 1 - first as i64;
    let fits = t.bytes().chunks_exact(size).enumerate().all(|(k, e)| {
        let (i, j) = ((k / columns) % rows, k % columns);
        e == if j as i64 <= i as i64 + offset {
            below
        } else {
            above
        }
    });
    let value = |e: &[u8]| {
        let one = Tensor::new(t.dtype(), vec![], e.to_vec().into())?;
        convert::uniform(&one)
    };
    fits.then(|| {
        Some(Triangle {
            below: value(below)?,
            above: value(above)?,
            offset: Dim::Const(offset),
        })
    })?
}
