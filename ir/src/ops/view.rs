//! Ops that move elements without computing: views, pads, joins and sliding windows.

use super::{OpDef, may_equal, same_dtype, tensors};
use crate::attr::payload;
use crate::dim::Dim;
use crate::dtype::Class;
use crate::tensor_type::{TensorType, ValueType};

payload! {
    /// The same row-major elements under other extents. The element counts must be equal.
    Reshape {
        /// New extents.
        dims: Vec<Dim>,
    }
}

impl OpDef for Reshape {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let x = tensors(operands, Some(1))?[0];
        if !may_equal(&x.len(), &Dim::product(&self.dims)) {
            return Err(format!(
                "{x} has another number of elements than {:?}",
                self.dims
            ));
        }
        if let Some(d) = self
            .dims
            .iter()
            .find(|d| d.as_const().is_some_and(|c| c < 0))
        {
            return Err(format!("extent {d} is negative"));
        }
        Ok(vec![
            TensorType {
                dtype: x.dtype,
                dims: self.dims.clone(),
            }
            .into(),
        ])
    }
}

payload! {
    /// `out[i[perm[0]], i[perm[1]], ...] = x[i]`: axis `k` of the result is axis `perm[k]` of the operand.
    Permute {
        /// A permutation of the axes.
        perm: Vec<usize>,
    }
}

impl OpDef for Permute {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let x = tensors(operands, Some(1))?[0];
        let mut seen = vec![false; x.rank()];
        for p in &self.perm {
            match seen.get_mut(*p) {
                Some(s) if !*s => *s = true,
                _ => {
                    return Err(format!(
                        "{:?} is no permutation of {} axes",
                        self.perm,
                        x.rank()
                    ));
                }
            }
        }
        if self.perm.len() != x.rank() {
            return Err(format!(
                "{:?} is no permutation of {} axes",
                self.perm,
                x.rank()
            ));
        }
        let dims = self.perm.iter().map(|p| x.dims[*p].clone()).collect();
        Ok(vec![
            TensorType {
                dtype: x.dtype,
                dims,
            }
            .into(),
        ])
    }
}

payload! {
    /// Repeats axes of extent 1. Ranks are equal; each operand extent is 1 or the result's. Where that is not known
    /// at compile time it is decided when the symbols are bound.
    Broadcast {
        /// Result extents.
        dims: Vec<Dim>,
    }
}

impl OpDef for Broadcast {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let x = tensors(operands, Some(1))?[0];
        let fits = |a: &Dim, b: &Dim| a.is(1) || a.as_const().is_none() || may_equal(a, b);
        if x.rank() != self.dims.len() || !x.dims.iter().zip(&self.dims).all(|(a, b)| fits(a, b)) {
            return Err(format!("{x} does not broadcast to {:?}", self.dims));
        }
        Ok(vec![
            TensorType {
                dtype: x.dtype,
                dims: self.dims.clone(),
            }
            .into(),
        ])
    }
}

payload! {
    /// `out[i] = x[starts + i * steps]` with result extents `dims`. All addressed elements must exist.
    Slice {
        /// First index per axis.
        starts: Vec<Dim>,
        /// Step per axis, not 0.
        steps: Vec<i64>,
        /// Result extents.
        dims: Vec<Dim>,
    }
}

impl OpDef for Slice {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let x = tensors(operands, Some(1))?[0];
        let rank = x.rank();
        if self.starts.len() != rank
            || self.steps.len() != rank
            || self.dims.len() != rank
            || self.steps.contains(&0)
        {
            return Err(format!("needs {rank} starts, nonzero steps and extents"));
        }
        for axis in 0..rank {
            let (Some(n), Some(start), Some(extent)) = (
                x.dims[axis].as_const(),
                self.starts[axis].as_const(),
                self.dims[axis].as_const(),
            ) else {
                continue;
            };
            let last = (extent - 1)
                .checked_mul(self.steps[axis])
                .and_then(|d| d.checked_add(start));
            if extent < 0 || (extent > 0 && !(0..n).contains(&start)) {
                return Err(format!(
                    "axis {axis}: start {start} with extent {extent} is outside 0..{n}"
                ));
            }
            if extent > 0 && !last.is_some_and(|l| (0..n).contains(&l)) {
                return Err(format!("axis {axis}: the last index is outside 0..{n}"));
            }
        }
        Ok(vec![
            TensorType {
                dtype: x.dtype,
                dims: self.dims.clone(),
            }
            .into(),
        ])
    }
}

payload! {
    /// Operands `(x, value)`: a border of the scalar `value`; negative amounts are not allowed.
    Pad {
        /// Elements before, per axis.
        low: Vec<Dim>,
        /// Elements after, per axis.
        high: Vec<Dim>,
    }
}

impl OpDef for Pad {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let xs = tensors(operands, Some(2))?;
        let x = xs[0];
        let dtype = same_dtype(&xs)?;
        if xs[1].rank() != 0 || self.low.len() != x.rank() || self.high.len() != x.rank() {
            return Err(format!(
                "needs a scalar value and {} amounts on each side",
                x.rank()
            ));
        }
        if let Some(d) = self
            .low
            .iter()
            .chain(&self.high)
            .find(|d| d.as_const().is_some_and(|c| c < 0))
        {
            return Err(format!("amount {d} is negative; slice instead"));
        }
        let dims = (0..x.rank())
            .map(|a| self.low[a].clone() + x.dims[a].clone() + self.high[a].clone())
            .collect();
        Ok(vec![TensorType { dtype, dims }.into()])
    }
}

payload! {
    /// Operands of equal extents but for `axis`, joined along it.
    Concat {
        /// Joined axis.
        axis: usize,
    }
}

impl OpDef for Concat {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let xs = tensors(operands, None)?;
        let dtype = same_dtype(&xs)?;
        let mut dims = xs[0].dims.clone();
        if self.axis >= dims.len() {
            return Err(format!("axis {} of rank {}", self.axis, dims.len()));
        }
        for x in &xs[1..] {
            let differs = |a: usize| a != self.axis && !may_equal(&x.dims[a], &dims[a]);
            if x.rank() != dims.len() || (0..dims.len()).any(differs) {
                return Err(format!(
                    "{} and {x} differ outside axis {}",
                    xs[0], self.axis
                ));
            }
            for a in 0..dims.len() {
                if a == self.axis {
                    dims[a] = dims[a].clone() + x.dims[a].clone();
                } else if dims[a].as_const().is_none() {
                    dims[a] = x.dims[a].clone();
                }
            }
        }
        Ok(vec![TensorType { dtype, dims }.into()])
    }
}

payload! {
    /// Sliding windows: axis `axes[k]` of extent `n` becomes the window count
    /// `(n - dilation * (size - 1) - 1) / stride + 1`, and a new innermost axis of extent `sizes[k]` is appended:
    /// `out[.., o, .., w] = x[.., o * stride + w * dilation, ..]`.
    Window {
        /// Windowed axes.
        axes: Vec<usize>,
        /// Elements in a window, per windowed axis.
        sizes: Vec<Dim>,
        /// Distance of windows.
        strides: Vec<i64>,
        /// Distance of elements in a window.
        dilations: Vec<i64>,
    }
}

impl Window {
    /// Number of windows over an axis of extent `n`.
    pub fn count(n: &Dim, size: &Dim, stride: i64, dilation: i64) -> Dim {
        let span = (size.clone() - Dim::ONE) * Dim::Const(dilation) + Dim::ONE;
        let count = (n.clone() - span).floor_div(&Dim::Const(stride)) + Dim::ONE;
        match count.as_const() {
            Some(c) => Dim::Const(c.max(0)),
            None => count,
        }
    }

    fn check(&self, rank: usize) -> Result<(), String> {
        let k = self.axes.len();
        let lens = self.sizes.len() == k && self.strides.len() == k && self.dilations.len() == k;
        let mut axes = self.axes.clone();
        axes.sort_unstable();
        axes.dedup();
        if !lens || axes.len() != k || axes.last().is_some_and(|a| *a >= rank) {
            return Err("needs one size, stride and dilation for each of distinct axes".into());
        }
        if self.strides.iter().chain(&self.dilations).any(|v| *v <= 0) {
            return Err("strides and dilations must be positive".into());
        }
        Ok(())
    }
}

impl OpDef for Window {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let x = tensors(operands, Some(1))?[0];
        self.check(x.rank())?;
        let mut dims = x.dims.clone();
        for (k, &a) in self.axes.iter().enumerate() {
            dims[a] = Window::count(
                &x.dims[a],
                &self.sizes[k],
                self.strides[k],
                self.dilations[k],
            );
        }
        dims.extend(self.sizes.iter().cloned());
        Ok(vec![
            TensorType {
                dtype: x.dtype,
                dims,
            }
            .into(),
        ])
    }
}

payload! {
    /// Adjoint of [`Window`]: sums window elements into an axis of extent `dims[axis]`; positions that no window
    /// covers are 0.
    Fold {
        /// Windowed axes.
        axes: Vec<usize>,
        /// Elements in a window, per windowed axis.
        sizes: Vec<Dim>,
        /// Distance of windows.
        strides: Vec<i64>,
        /// Distance of elements in a window.
        dilations: Vec<i64>,
        /// Result extents.
        dims: Vec<Dim>,
    }
}

impl OpDef for Fold {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let x = tensors(operands, Some(1))?[0];
        let rank = self.dims.len();
        let window = Window {
            axes: self.axes.clone(),
            sizes: self.sizes.clone(),
            strides: self.strides.clone(),
            dilations: self.dilations.clone(),
        };
        window.check(rank)?;
        let back = window.infer(&[&TensorType {
            dtype: x.dtype,
            dims: self.dims.clone(),
        }
        .into()])?;
        let want = back[0]
            .as_tensor()
            .unwrap_or_else(|| unreachable!("bug: window of no tensor"));
        let number = matches!(
            x.dtype.class(),
            Class::Float | Class::Signed | Class::Unsigned
        );
        if !number
            || want.rank() != x.rank()
            || want.dims.iter().zip(&x.dims).any(|(a, b)| !may_equal(a, b))
        {
            return Err(format!(
                "{x} are not the windows of extents {:?}",
                self.dims
            ));
        }
        Ok(vec![
            TensorType {
                dtype: x.dtype,
                dims: self.dims.clone(),
            }
            .into(),
        ])
    }
}
