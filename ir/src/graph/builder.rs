//! Convenience for building graphs: the ops with broadcasting, constants and sizes spelled out for the caller.
//!
//! Every method appends nodes and gives the result; trivial ops (a reshape to the same extents) append nothing.
//! Errors are those of [`Graph::push`].

use super::{Graph, ValueId};
use crate::convert;
use crate::dim::Dim;
use crate::dtype::{Class, DType};
use crate::error::{IrError, Result};
use crate::ops::*;
use crate::scalar::Scalar;
use crate::tensor::Tensor;

impl Graph {
    /// A constant.
    ///
    /// # Errors
    /// None in practice.
    pub fn constant(&mut self, value: Tensor) -> Result<ValueId> {
        self.one(Const { value }, &[])
    }

    /// A scalar constant of this dtype, rounded or saturated to it.
    ///
    /// # Errors
    /// For strings and block types.
    pub fn number(&mut self, value: f64, dtype: DType) -> Result<ValueId> {
        let t = convert::splat(value, dtype)
            .ok_or_else(|| IrError::op("const", format!("no number of {dtype}")))?;
        self.constant(t)
    }

    /// A scalar constant of the dtype of `x`.
    ///
    /// # Errors
    /// As [`Graph::number`].
    pub fn number_like(&mut self, value: f64, x: ValueId) -> Result<ValueId> {
        let dtype = self.dtype(x);
        self.number(value, dtype)
    }

    /// A constant i64 vector.
    ///
    /// # Errors
    /// None in practice.
    pub fn i64s(&mut self, values: &[i64]) -> Result<ValueId> {
        self.constant(Tensor::vector(values))
    }

    /// A dimension as a scalar i64.
    ///
    /// # Errors
    /// None in practice.
    pub fn dim_value(&mut self, dim: &Dim) -> Result<ValueId> {
        if let Some(c) = dim.as_const() {
            return self.constant(Tensor::scalar(c));
        }
        let v = self.one(
            Dims {
                dims: vec![dim.clone()],
            },
            &[],
        )?;
        self.reshape(v, &[])
    }

    /// Type in which values of this dtype are accumulated: f64 for f64, f32 for other floats, i32 for narrow integers,
    /// the type itself otherwise.
    pub fn accumulator(&self, dtype: DType) -> DType {
        match dtype.class() {
            Class::Float if dtype != DType::F64 => DType::F32,
            Class::Signed | Class::Unsigned if dtype.bits() < 32 => DType::I32,
            _ => dtype,
        }
    }

    /// `x` in its accumulator type if it is a float.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn widen(&mut self, x: ValueId) -> Result<ValueId> {
        let dtype = self.dtype(x);
        if dtype.is_float() {
            self.cast(x, self.accumulator(dtype))
        } else {
            Ok(x)
        }
    }

    /// Conversion to a dtype (saturating for float8).
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn cast(&mut self, x: ValueId, to: DType) -> Result<ValueId> {
        if self.dtype(x) == to {
            Ok(x)
        } else {
            self.one(Cast { to, saturate: true }, &[x])
        }
    }

    /// Conversion to the dtype of `like`.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn cast_like(&mut self, x: ValueId, like: ValueId) -> Result<ValueId> {
        let to = self.dtype(like);
        self.cast(x, to)
    }

    /// Other extents.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn reshape(&mut self, x: ValueId, dims: &[Dim]) -> Result<ValueId> {
        if self.dims(x) == dims {
            Ok(x)
        } else {
            self.one(
                Reshape {
                    dims: dims.to_vec(),
                },
                &[x],
            )
        }
    }

    /// Reordered axes.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn permute(&mut self, x: ValueId, perm: &[usize]) -> Result<ValueId> {
        if perm.len() == self.rank(x) && perm.iter().enumerate().all(|(i, p)| i == *p) {
            return Ok(x);
        }
        self.one(
            Permute {
                perm: perm.to_vec(),
            },
            &[x],
        )
    }

    /// Axes of extent 1 inserted so that they are at these positions of the result (ascending).
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn unsqueeze(&mut self, x: ValueId, axes: &[usize]) -> Result<ValueId> {
        let mut dims = self.dims(x);
        for a in axes {
            if *a > dims.len() {
                return Err(IrError::op(
                    "reshape",
                    format!("axis {a} of rank {}", dims.len()),
                ));
            }
            dims.insert(*a, Dim::ONE);
        }
        self.reshape(x, &dims)
    }

    /// Axes of extent 1 removed.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn squeeze(&mut self, x: ValueId, axes: &[usize]) -> Result<ValueId> {
        let dims = self.dims(x);
        let kept: Vec<Dim> = (0..dims.len())
            .filter(|a| !axes.contains(a))
            .map(|a| dims[a].clone())
            .collect();
        self.reshape(x, &kept)
    }

    /// Repetition to the given extents, aligned from the right.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn broadcast_to(&mut self, x: ValueId, dims: &[Dim]) -> Result<ValueId> {
        if self.dims(x) == dims {
            return Ok(x);
        }
        let rank = self.rank(x);
        let missing = dims.len().checked_sub(rank);
        let missing =
            missing.ok_or_else(|| IrError::op("broadcast", format!("rank {rank} to {dims:?}")))?;
        let lead: Vec<usize> = (0..missing).collect();
        let x = self.unsqueeze(x, &lead)?;
        if self.dims(x) == dims {
            Ok(x)
        } else {
            self.one(
                Broadcast {
                    dims: dims.to_vec(),
                },
                &[x],
            )
        }
    }

    /// Extents of several operands broadcast together from the right (the rule of NumPy).
    ///
    /// # Errors
    /// When two known extents other than 1 differ.
    pub fn broadcast_dims(&self, xs: &[ValueId]) -> Result<Vec<Dim>> {
        let rank = xs.iter().map(|x| self.rank(*x)).max().unwrap_or(0);
        let mut dims = vec![Dim::ONE; rank];
        for x in xs {
            let own = self.dims(*x);
            for (i, d) in own.iter().enumerate() {
                let at = &mut dims[rank - own.len() + i];
                *at = at.broadcast(d).ok_or_else(|| {
                    let types: Vec<String> = xs.iter().map(|x| self.ty(*x).to_string()).collect();
                    IrError::op(
                        "broadcast",
                        format!("{} do not broadcast together", types.join(" and ")),
                    )
                })?;
            }
        }
        Ok(dims)
    }

    /// A scalar function with broadcasting.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn map(&mut self, f: Scalar, xs: &[ValueId]) -> Result<ValueId> {
        let dims = self.broadcast_dims(xs)?;
        let xs: Vec<ValueId> = xs
            .iter()
            .map(|x| self.broadcast_to(*x, &dims))
            .collect::<Result<_>>()?;
        self.one(Map { f }, &xs)
    }

    /// A scalar function of one operand.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn unary(&mut self, f: Scalar, x: ValueId) -> Result<ValueId> {
        self.one(Map { f }, &[x])
    }

    /// A scalar function of two operands, broadcast.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn binary(&mut self, f: Scalar, x: ValueId, y: ValueId) -> Result<ValueId> {
        self.map(f, &[x, y])
    }

    /// `condition ? x : y`, broadcast.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn select(&mut self, condition: ValueId, x: ValueId, y: ValueId) -> Result<ValueId> {
        self.map(Scalar::Select, &[condition, x, y])
    }

    /// `x * factor`.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn scale(&mut self, x: ValueId, factor: f64) -> Result<ValueId> {
        if factor == 1.0 {
            return Ok(x);
        }
        let c = self.number_like(factor, x)?;
        self.binary(Scalar::Mul, x, c)
    }

    /// Reduction over axes (any order, distinct), which vanish. Accumulates in [`Graph::accumulator`].
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn reduce(&mut self, kind: ReduceKind, x: ValueId, axes: &[usize]) -> Result<ValueId> {
        let mut axes = axes.to_vec();
        axes.sort_unstable();
        let accum = self.accumulator(self.dtype(x));
        if axes.is_empty() {
            Ok(x)
        } else {
            self.one(Reduce { kind, axes, accum }, &[x])
        }
    }

    /// Reduction over axes, which stay with extent 1.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn reduce_keep(&mut self, kind: ReduceKind, x: ValueId, axes: &[usize]) -> Result<ValueId> {
        let mut dims = self.dims(x);
        for a in axes {
            match dims.get_mut(*a) {
                Some(d) => *d = Dim::ONE,
                None => {
                    return Err(IrError::op(
                        "reduce",
                        format!("axis {a} of rank {}", self.rank(x)),
                    ));
                }
            }
        }
        let r = self.reduce(kind, x, axes)?;
        self.reshape(r, &dims)
    }

    /// Mean over axes, which stay with extent 1; a float type.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn mean_keep(&mut self, x: ValueId, axes: &[usize]) -> Result<ValueId> {
        let sum = self.reduce_keep(ReduceKind::Sum, x, axes)?;
        let dims = self.dims(x);
        let count = Dim::product(axes.iter().map(|a| &dims[*a]));
        let count = self.dim_value(&count)?;
        let count = self.cast_like(count, sum)?;
        self.binary(Scalar::Div, sum, count)
    }

    /// A strided part.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn slice(
        &mut self,
        x: ValueId,
        starts: &[Dim],
        steps: &[i64],
        dims: &[Dim],
    ) -> Result<ValueId> {
        if self.dims(x) == dims && steps.iter().all(|s| *s == 1) && starts.iter().all(|s| s.is(0)) {
            return Ok(x);
        }
        self.one(
            Slice {
                starts: starts.to_vec(),
                steps: steps.to_vec(),
                dims: dims.to_vec(),
            },
            &[x],
        )
    }

    /// `len` indices of one axis from `start` on.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn slice_axis(
        &mut self,
        x: ValueId,
        axis: usize,
        start: &Dim,
        len: &Dim,
    ) -> Result<ValueId> {
        let mut dims = self.dims(x);
        if axis >= dims.len() {
            return Err(IrError::op(
                "slice",
                format!("axis {axis} of rank {}", dims.len()),
            ));
        }
        let mut starts = vec![Dim::ZERO; dims.len()];
        starts[axis] = start.clone();
        dims[axis] = len.clone();
        self.slice(x, &starts, &vec![1; dims.len()], &dims)
    }

    /// The elements at one index of an axis, which vanishes.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn pick(&mut self, x: ValueId, axis: usize, index: &Dim) -> Result<ValueId> {
        let x = self.slice_axis(x, axis, index, &Dim::ONE)?;
        self.squeeze(x, &[axis])
    }

    /// The axis in reverse order.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn flip(&mut self, x: ValueId, axis: usize) -> Result<ValueId> {
        let dims = self.dims(x);
        let mut starts = vec![Dim::ZERO; dims.len()];
        let mut steps = vec![1; dims.len()];
        starts[axis] = dims[axis].clone() - Dim::ONE;
        steps[axis] = -1;
        self.one(
            Slice {
                starts,
                steps,
                dims,
            },
            &[x],
        )
    }

    /// A border of the scalar `value`.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn pad(
        &mut self,
        x: ValueId,
        value: ValueId,
        low: &[Dim],
        high: &[Dim],
    ) -> Result<ValueId> {
        if low.iter().chain(high).all(|d| d.is(0)) {
            return Ok(x);
        }
        self.one(
            Pad {
                low: low.to_vec(),
                high: high.to_vec(),
            },
            &[x, value],
        )
    }

    /// Joined along an axis.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn concat(&mut self, xs: &[ValueId], axis: usize) -> Result<ValueId> {
        if let [x] = xs {
            Ok(*x)
        } else {
            self.one(Concat { axis }, xs)
        }
    }

    /// Index along an axis.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn iota(&mut self, dtype: DType, dims: &[Dim], axis: usize) -> Result<ValueId> {
        self.one(
            Iota {
                dtype,
                dims: dims.to_vec(),
                axis,
            },
            &[],
        )
    }

    /// `x[.., m, k] * y[.., k, n]` with leading axes broadcast; both of rank 2 at least, equal dtype.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn matmul(&mut self, x: ValueId, y: ValueId) -> Result<ValueId> {
        self.matmul_with(x, y, false)
    }

    /// `x[.., m, k] * y[.., n, k]^T` with leading axes broadcast.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn matmul_nt(&mut self, x: ValueId, y: ValueId) -> Result<ValueId> {
        self.matmul_with(x, y, true)
    }

    fn matmul_with(&mut self, x: ValueId, y: ValueId, transposed: bool) -> Result<ValueId> {
        let (product, operands) = self.matmul_parts(x, y, transposed)?;
        self.one(product, &operands)
    }

    /// The product of [`Graph::matmul`] (or `transposed`, of [`Graph::matmul_nt`]) with its operands, not yet appended.
    ///
    /// # Errors
    /// Operands of fewer than two axes, or whose leading axes differ.
    pub fn matmul_parts(
        &mut self,
        x: ValueId,
        y: ValueId,
        transposed: bool,
    ) -> Result<(Contract, [ValueId; 2])> {
        let (xd, yd) = (self.dims(x), self.dims(y));
        if xd.len() < 2 || yd.len() < 2 {
            return Err(IrError::op(
                "contract",
                format!("{} times {}: needs 2 axes", self.ty(x), self.ty(y)),
            ));
        }
        let dtype = self.dtype(x);
        let (accum, out) = (self.accumulator(dtype), dtype);
        let rank = xd.len().max(yd.len());
        let (xb, yb) = (&xd[..xd.len() - 2], &yd[..yd.len() - 2]);
        // A right operand without batch axes is one product over all rows of the left.
        if yb.iter().all(|d| d.is(1)) && yd.len() <= xd.len() {
            let y2 = self.reshape(y, &yd[yd.len() - 2..])?;
            let c = Contract {
                lhs_batch: vec![],
                rhs_batch: vec![],
                lhs_contract: vec![xd.len() - 1],
                rhs_contract: vec![usize::from(transposed)],
                accum,
                out,
            };
            return Ok((c, [x, y2]));
        }
        let mut batch = vec![Dim::ONE; rank - 2];
        for own in [xb, yb] {
            for (i, d) in own.iter().enumerate() {
                let at = &mut batch[rank - 2 - own.len() + i];
                *at = at.broadcast(d).ok_or_else(|| {
                    IrError::op(
                        "contract",
                        format!("{} times {}: batch axes differ", self.ty(x), self.ty(y)),
                    )
                })?;
            }
        }
        let x = self.broadcast_to(x, &[&batch[..], &xd[xd.len() - 2..]].concat())?;
        let y = self.broadcast_to(y, &[&batch[..], &yd[yd.len() - 2..]].concat())?;
        let axes: Vec<usize> = (0..rank - 2).collect();
        let c = Contract {
            lhs_batch: axes.clone(),
            rhs_batch: axes,
            lhs_contract: vec![rank - 1],
            rhs_contract: vec![if transposed { rank - 1 } else { rank - 2 }],
            accum,
            out,
        };
        Ok((c, [x, y]))
    }
}
