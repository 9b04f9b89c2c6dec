//! Elements chosen by their values: how many there are only data decides.

use std::cmp::Ordering;

use super::{HostDef, i64s, integer, number, numbers, only, pick, tensor};
use crate::attr::payload;
use crate::convert::{self, Lanes};
use crate::dim::{Dim, Sym};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::{OpDef, tensors};
use crate::tensor::{Tensor, Value};
use crate::tensor_type::{TensorType, ValueType};

payload! {
    /// Indices of the elements that are not 0 (or false), in row-major order: `out: i64[rank, count]`.
    NonZero {
        /// Symbol for the number of such elements.
        count: Sym,
    }
}

impl OpDef for NonZero {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let x = only(operands, None)?;
        if x.dtype.bits() < 8 {
            return Err(format!("not of {}", x.dtype));
        }
        Ok(vec![
            TensorType::new(DType::I64, [Dim::from(x.rank()), Dim::from(&self.count)]).into(),
        ])
    }
}

impl HostDef for NonZero {
    fn binds(&self) -> Vec<Sym> {
        vec![self.count.clone()]
    }

    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String> {
        let x = tensor(operands, 0)?;
        let lanes = convert::lanes(x).ok_or("takes numbers")?;
        let set: Vec<usize> = match lanes {
            Lanes::F(v) => (0..v.len()).filter(|i| v[*i] != 0.0).collect(),
            Lanes::I(v) => (0..v.len()).filter(|i| v[*i] != 0).collect(),
            Lanes::U(v) => (0..v.len()).filter(|i| v[*i] != 0).collect(),
        };
        let mut out = Vec::with_capacity(set.len() * x.shape().len());
        let mut stride = x.len();
        for n in x.shape() {
            stride /= (*n).max(1);
            out.extend(set.iter().map(|i| (i / stride.max(1) % n) as i64));
        }
        Ok(vec![i64s(&[x.shape().len(), set.len()], &out)?])
    }
}

payload! {
    /// Distinct elements of `x` (flattened), or distinct slices along an axis. Results: the values, then as
    /// `i64[count]` where each occurs first, as `i64[n]` which one each element or slice is, and as `i64[count]` how
    /// often each occurs. NaN equals NaN.
    Unique {
        /// Axis of the slices; none for elements.
        axis: Option<usize>,
        /// Ascending (slices by their elements in order) instead of by first occurrence.
        sorted: bool,
        /// Symbol for the number of distinct values.
        count: Sym,
    }
}

impl OpDef for Unique {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let x = only(operands, None)?;
        let count = Dim::from(&self.count);
        let (dims, n) = match self.axis {
            None => (vec![count.clone()], x.len()),
            Some(axis) if axis < x.rank() => {
                let mut dims = x.dims.clone();
                dims[axis] = count.clone();
                (dims, x.dims[axis].clone())
            }
            Some(axis) => return Err(format!("axis {axis} of rank {}", x.rank())),
        };
        let index = |n: Dim| ValueType::from(TensorType::new(DType::I64, [n]));
        let values = TensorType {
            dtype: x.dtype,
            dims,
        };
        Ok(vec![
            values.into(),
            index(count.clone()),
            index(n),
            index(count),
        ])
    }
}

impl HostDef for Unique {
    fn binds(&self) -> Vec<Sym> {
        vec![self.count.clone()]
    }

    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String> {
        let x = tensor(operands, 0)?;
        let shape = x.shape();
        // Slices are [outer, n, inner]; elements are slices of one.
        let (outer, n, inner) = match self.axis {
            None => (1, x.len(), 1),
            Some(a) => (
                shape[..a].iter().product::<usize>(),
                shape[a],
                shape[a + 1..].iter().product::<usize>(),
            ),
        };
        let places = |row: usize| {
            (0..outer).flat_map(move |o| (0..inner).map(move |i| (o * n + row) * inner + i))
        };
        let element = order(x)?;
        let compare = |a: &usize, b: &usize| {
            let pairs = places(*a).zip(places(*b));
            let mut unequal = pairs.map(|(i, j)| element(i, j)).filter(|o| o.is_ne());
            unequal.next().unwrap_or(Ordering::Equal)
        };
        let mut rows: Vec<usize> = (0..n).collect();
        rows.sort_by(compare);
        let mut groups: Vec<Vec<usize>> = vec![];
        for row in rows {
            match groups.last_mut() {
                Some(g) if compare(&g[0], &row).is_eq() => g.push(row),
                _ => groups.push(vec![row]),
            }
        }
        if !self.sorted {
            groups.sort_by_key(|g| g[0]);
        }
        let mut inverse = vec![0i64; n];
        for (at, group) in groups.iter().enumerate() {
            for row in group {
                inverse[*row] = at as i64;
            }
        }
        let firsts: Vec<i64> = groups.iter().map(|g| g[0] as i64).collect();
        let counts: Vec<i64> = groups.iter().map(|g| g.len() as i64).collect();
        let groups = &groups;
        let taken: Vec<usize> = (0..outer)
            .flat_map(|o| {
                let rows = groups.iter().map(move |g| (o * n + g[0]) * inner);
                rows.flat_map(move |base| base..base + inner)
            })
            .collect();
        let mut out = shape.to_vec();
        match self.axis {
            None => out = vec![groups.len()],
            Some(a) => out[a] = groups.len(),
        }
        Ok(vec![
            pick(x, &taken, &out)?.into(),
            i64s(&[firsts.len()], &firsts)?,
            i64s(&[n], &inverse)?,
            i64s(&[counts.len()], &counts)?,
        ])
    }
}

/// Compares the elements at two flat positions; NaN is the largest and equals itself.
fn order(x: &Tensor) -> Result<Box<dyn Fn(usize, usize) -> Ordering + '_>, String> {
    if let Some(s) = x.strings() {
        return Ok(Box::new(move |i, j| s[i].cmp(&s[j])));
    }
    Ok(match convert::lanes(x).ok_or("takes numbers or strings")? {
        Lanes::F(v) => Box::new(move |i, j| {
            let nan = v[i].is_nan().cmp(&v[j].is_nan());
            v[i].partial_cmp(&v[j]).unwrap_or(nan)
        }),
        Lanes::I(v) => Box::new(move |i, j| v[i].cmp(&v[j])),
        Lanes::U(v) => Box::new(move |i, j| v[i].cmp(&v[j])),
    })
}

payload! {
    /// Operands `(boxes: [batch, n, 4], scores: [batch, classes, n], most: i64[], overlap: f32[], least: f32[])`. For
    /// every batch and class, boxes by falling score (the first of equal ones first): a box is kept unless its score
    /// is not above `least`, `most` are kept already, or its intersection with a kept one, over their union, is above
    /// `overlap`. Result: `i64[count, 3]` of batch, class and box.
    NonMaxSuppression {
        /// Boxes are centre x, centre y, width, height instead of two opposite corners y, x, y, x.
        centred: bool,
        /// Symbol for the number of kept boxes.
        count: Sym,
    }
}

impl OpDef for NonMaxSuppression {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let xs = tensors(operands, Some(5))?;
        if xs[0].rank() != 3 || xs[1].rank() != 3 {
            return Err(format!("boxes {} with scores {}", xs[0], xs[1]));
        }
        Ok(vec![
            TensorType::new(DType::I64, [Dim::from(&self.count), Dim::Const(3)]).into(),
        ])
    }
}

/// Corners with low coordinates first.
type Corners = [f64; 4];

impl NonMaxSuppression {
    fn corners(&self, b: &[f64]) -> Corners {
        if self.centred {
            let (w, h) = (b[2] / 2.0, b[3] / 2.0);
            [b[1] - h, b[0] - w, b[1] + h, b[0] + w]
        } else {
            [
                b[0].min(b[2]),
                b[1].min(b[3]),
                b[0].max(b[2]),
                b[1].max(b[3]),
            ]
        }
    }
}

/// Intersection over union; 0 for boxes without area.
fn overlap(a: &Corners, b: &Corners) -> f64 {
    let side = |i: usize| a[i + 2].min(b[i + 2]) - a[i].max(b[i]);
    let (h, w) = (side(0), side(1));
    if h <= 0.0 || w <= 0.0 {
        return 0.0;
    }
    let area = |c: &Corners| (c[2] - c[0]) * (c[3] - c[1]);
    let both = h * w;
    both / (area(a) + area(b) - both)
}

impl HostDef for NonMaxSuppression {
    fn binds(&self) -> Vec<Sym> {
        vec![self.count.clone()]
    }

    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String> {
        let (boxes, scores) = (tensor(operands, 0)?, tensor(operands, 1)?);
        let ([batch, n, 4], [batches, classes, m]) = (boxes.shape(), scores.shape()) else {
            return Err(format!("boxes {boxes:?} with scores {scores:?}"));
        };
        if batch != batches || n != m {
            return Err(format!("boxes {boxes:?} with scores {scores:?}"));
        }
        let (all, score) = (numbers(operands, 0)?, numbers(operands, 1)?);
        let most = usize::try_from(integer(operands, 2)?).unwrap_or(0);
        let (limit, least) = (number(operands, 3)?, number(operands, 4)?);
        let all: Vec<Corners> = all.chunks_exact(4).map(|b| self.corners(b)).collect();
        let mut out = vec![];
        for b in 0..*batch {
            let boxes = &all[b * n..(b + 1) * n];
            for c in 0..*classes {
                let score = &score[(b * classes + c) * n..][..*n];
                let mut order: Vec<usize> = (0..*n).filter(|i| score[*i] > least).collect();
                order.sort_by(|i, j| score[*j].total_cmp(&score[*i]));
                let mut kept: Vec<usize> = vec![];
                for i in order {
                    if kept.len() >= most {
                        break;
                    }
                    if kept.iter().all(|k| overlap(&boxes[i], &boxes[*k]) <= limit) {
                        kept.push(i);
                    }
                }
                out.extend(kept.iter().flat_map(|i| [b as i64, c as i64, *i as i64]));
            }
        }
        Ok(vec![i64s(&[out.len() / 3, 3], &out)?])
    }
}
