//! Contractions as batches of matrix products.

use super::operand::{Operand, merged};
use super::packed::{Packed, Side};
use super::{Call, Failure, Prepared, blocks, sum_dtype};
use crate::library::Context;
use crate::library::gemm::{
    self, Bytes, BytesLeft, BytesRight, Finished, Left, Number, Output, Right, Sum, ZeroPoints,
};
use crate::library::view::{Element, View, ViewMut};
use crate::memory::Lent;
use cupola_ir::dtype::Class;
use cupola_ir::ops::Contract;
use cupola_ir::{DType, TensorType};
use half::{bf16, f16};

/// Why there is no product of these operands.
pub(crate) fn refusal(p: &Contract, operands: &[&TensorType]) -> Option<String> {
    let [l, r] = operands else {
        return Some("takes two operands".into());
    };
    if r.dtype.class() == Class::Block {
        return blocks::refusal(p, l.dtype, r);
    }
    let bytes = |d: DType| matches!(d, DType::I8 | DType::U8);
    let number = matches!(
        l.dtype,
        DType::F32
            | DType::F64
            | DType::F16
            | DType::BF16
            | DType::I32
            | DType::U32
            | DType::I64
            | DType::U64
    );
    let both = number && l.dtype == r.dtype || bytes(l.dtype) && bytes(r.dtype);
    if !both {
        return Some(format!("no product of {} and {}", l.dtype, r.dtype));
    }
    let sum = sum_dtype(l.dtype);
    let wider = p.accum.bits() > sum.bits();
    if wider || p.out != sum && p.out != l.dtype || bytes(l.dtype) && p.out != sum {
        return Some(format!(
            "no product of {} accumulated in {} to {}",
            l.dtype, p.accum, p.out
        ));
    }
    None
}

/// An operand as matrices: `[batch.., across, along]`.
pub(super) struct Matrices<'a> {
    pub start: *mut u8,
    batch: Vec<(usize, isize)>,
    pub across: (usize, isize),
    pub along: (usize, isize),
    /// Elements are f32, to be rounded to the type in which they are taken.
    pub wide: bool,
    _copy: Option<Lent<'a>>,
}

impl Matrices<'_> {
    /// The extents of an operand that is read in packed form.
    fn packed(x: &Operand, free: &[usize], summed: &[usize]) -> Self {
        let extent = |axes: &[usize]| (axes.iter().map(|a| x.dims[*a]).product(), 0);
        Matrices {
            start: x.start,
            batch: vec![],
            across: extent(free),
            along: extent(summed),
            wide: false,
            _copy: None,
        }
    }
}

/// Whether elements are f32 that products round as they pack them.
pub(super) fn rounds(x: &Operand) -> bool {
    x.dtype == DType::F32 && x.read.bits() == 16
}

/// Brings an operand into the form of matrices with these axes, copying it when its strides do not allow a view, or when it
/// has to be converted to another type and the kernel does not take it as it is (`as_is`).
pub(super) fn matrices<'a>(
    cx: &Context<'a>,
    x: &Operand,
    batch: &[usize],
    free: &[usize],
    summed: &[usize],
    as_is: bool,
) -> Result<Matrices<'a>, Failure> {
    let axes = [batch, free, summed].concat();
    let mut x = x.permuted(&axes);
    let (b, f) = (batch.len(), batch.len() + free.len());
    let whole = |x: &Operand| {
        let across = merged(&x.dims[b..f], &x.strides[b..f])?;
        let along = merged(&x.dims[f..], &x.strides[f..])?;
        Some((across, along))
    };
    let mut copy = None;
    if x.read != x.dtype && !as_is {
        let (dense, lent) = x.converted(cx, b)?;
        x = dense;
        copy = Some(lent);
    }
    let mut found = if x.has_negative_stride() {
        None
    } else {
        whole(&x)
    };
    if found.is_none() {
        let (dense, lent) = x.dense(cx, b)?;
        x = dense;
        copy = Some(lent);
        found = whole(&x);
    }
    let Some((across, along)) = found else {
        unreachable!("bug: a dense operand whose axes cannot be merged")
    };
    let batch = x.dims[..b]
        .iter()
        .copied()
        .zip(x.strides[..b].iter().copied());
    Ok(Matrices {
        start: x.start,
        batch: batch.collect(),
        across,
        along,
        wide: rounds(&x),
        _copy: copy,
    })
}

/// Order of the summed axes that both operands can run through without a copy, if there is one.
fn summed_order(p: &Contract, l: &Operand, r: &Operand) -> Vec<usize> {
    let given: Vec<usize> = (0..p.lhs_contract.len()).collect();
    let by = |x: &Operand, axes: &[usize]| {
        let mut order = given.clone();
        order.sort_by_key(|i| std::cmp::Reverse(x.strides[axes[*i]].unsigned_abs()));
        order
    };
    let fits = |x: &Operand, axes: &[usize], order: &[usize]| {
        let axes: Vec<usize> = order.iter().map(|i| axes[*i]).collect();
        let x = x.permuted(&axes);
        merged(&x.dims, &x.strides).is_some()
    };
    let candidates = [
        given.clone(),
        by(r, &p.rhs_contract),
        by(l, &p.lhs_contract),
    ];
    let score = |order: &Vec<usize>| {
        // A copy of the larger operand costs more.
        let cost = |x: &Operand, axes| if fits(x, axes, order) { 0 } else { x.len() };
        cost(l, &p.lhs_contract) + cost(r, &p.rhs_contract)
    };
    candidates.into_iter().min_by_key(score).unwrap_or(given)
}

/// Batch, free and summed axes of one operand.
pub(super) fn axes(p: &Contract, side: Side, rank: usize) -> (&[usize], Vec<usize>, &[usize]) {
    let (batch, summed) = match side {
        Side::Left => (&p.lhs_batch, &p.lhs_contract),
        Side::Right => (&p.rhs_batch, &p.rhs_contract),
    };
    (batch, Contract::free(rank, batch, summed), summed)
}

/// Runs the contraction.
pub(crate) fn run(call: &Call, p: &Contract) -> Result<(), Failure> {
    let (l, r) = (&call.operands[0], &call.operands[1]);
    if let DType::Block(format) = r.read {
        check(p, l, r)?;
        return blocks::run(call, p, format);
    }
    let product = bind(call, p)?;
    match (l.read, r.read) {
        (DType::F32, _) => product.numbers::<f32>(call, p, DType::F32),
        (DType::F64, _) => product.numbers::<f64>(call, p, DType::F64),
        (DType::F16, _) => product.numbers::<f16>(call, p, DType::F32),
        (DType::BF16, _) => product.numbers::<bf16>(call, p, DType::F32),
        (DType::I32, _) => product.numbers::<i32>(call, p, DType::I32),
        (DType::U32, _) => product.numbers::<u32>(call, p, DType::U32),
        (DType::I64, _) => product.numbers::<i64>(call, p, DType::I64),
        (DType::U64, _) => product.numbers::<u64>(call, p, DType::U64),
        (DType::I8 | DType::U8, _) => {
            product.bytes(call, [l.read, r.read], [ZeroPoints::One(0); 2])
        }
        (d, _) => unreachable!("bug: product of {d} was refused before"),
    }
}

/// Whether paired axes have equal extents.
fn check(p: &Contract, l: &Operand, r: &Operand) -> Result<(), Failure> {
    let pairs = p
        .lhs_batch
        .iter()
        .zip(&p.rhs_batch)
        .chain(p.lhs_contract.iter().zip(&p.rhs_contract));
    for (a, b) in pairs {
        if l.dims[*a] != r.dims[*b] {
            return Err(Failure::Fault(format!(
                "axis {a} of the left operand has {} elements, axis {b} of the right one {}",
                l.dims[*a], r.dims[*b]
            )));
        }
    }
    Ok(())
}

/// The first two operands of a call as matrices.
pub(super) fn bind<'a>(call: &Call<'a>, p: &Contract) -> Result<Product<'a>, Failure> {
    let (l, r) = (&call.operands[0], &call.operands[1]);
    check(p, l, r)?;
    let packed = match call.prepared {
        Some(Prepared::Contract(packed)) => Some(packed),
        _ => None,
    };
    let order = packed.map_or_else(|| summed_order(p, l, r), |k| k.order.clone());
    let operand = |side: Side, x: &Operand| {
        let (batch, free, summed) = axes(p, side, x.dims.len());
        let summed: Vec<usize> = order.iter().map(|i| summed[*i]).collect();
        if packed.is_some_and(|k| k.side == side) {
            return Ok(Matrices::packed(x, &free, &summed));
        }
        matrices(&call.cx, x, batch, &free, &summed, rounds(x))
    };
    let (left, right) = (operand(Side::Left, l)?, operand(Side::Right, r)?);
    Ok(Product::new(left, right, packed))
}

/// Batch axis: extent, strides of the left and right operand.
type Batch = (usize, isize, isize);

/// Matrices of both operands with batch axes merged as far as possible.
pub(super) struct Product<'a> {
    left: Matrices<'a>,
    right: Matrices<'a>,
    /// One of the operands, made ready before.
    packed: Option<&'a Packed>,
    /// Batch axes beyond the innermost two.
    outer: Vec<Batch>,
    inner: [Batch; 2],
}

impl<'a> Product<'a> {
    fn new(left: Matrices<'a>, right: Matrices<'a>, packed: Option<&'a Packed>) -> Product<'a> {
        let mut batch: Vec<Batch> = vec![];
        for ((n, s), (_, t)) in left.batch.iter().zip(&right.batch) {
            if *n == 1 {
                continue;
            }
            let i = *n as isize;
            match batch.last_mut() {
                Some(last) if last.1 == *s * i && last.2 == *t * i => *last = (last.0 * n, *s, *t),
                _ => batch.push((*n, *s, *t)),
            }
        }
        let mut inner = [(1, 0, 0); 2];
        for slot in inner.iter_mut().rev() {
            if let Some(b) = batch.pop() {
                *slot = b;
            }
        }
        Product {
            left,
            right,
            packed,
            outer: batch,
            inner,
        }
    }

    /// Rows of each matrix.
    pub(super) fn rows(&self) -> usize {
        self.left.across.0
    }

    /// Columns of each matrix.
    pub(super) fn cols(&self) -> usize {
        self.right.across.0
    }

    /// Calls `one` with the element offsets of both operands and the number of matrices before, for every index of the
    /// outer batch axes.
    fn for_each_outer(
        &self,
        mut one: impl FnMut(isize, isize, usize) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let count: usize = self.outer.iter().map(|b| b.0).product();
        let matrices = self.inner[0].0 * self.inner[1].0;
        for at in 0..count {
            let (mut rest, mut x, mut y) = (at, 0, 0);
            for (n, s, t) in self.outer.iter().rev() {
                let i = (rest % n) as isize;
                rest /= n;
                x += i * s;
                y += i * t;
            }
            one(x, y, at * matrices)?;
        }
        Ok(())
    }

    /// The left operand of one outer index.
    ///
    /// # Safety
    /// `offset` must be that of an outer index.
    unsafe fn left_view<T: Element>(&self, offset: isize) -> View<'_, T, 4> {
        let [(n0, s0, _), (n1, s1, _)] = self.inner;
        let (m, k) = (self.left.across, self.left.along);
        let start = self.left.start.cast::<T>().wrapping_offset(offset);
        // SAFETY: the operand was checked to lie inside its buffer when it was bound; strides are not negative.
        unsafe {
            View::from_raw(
                start,
                [n0, n1, m.0, k.0],
                [s0, s1, m.1, k.1].map(|s| s as usize),
            )
        }
    }

    /// The right operand of one outer index.
    ///
    /// # Safety
    /// As [`Self::left_view`].
    unsafe fn right_view<T: Element>(&self, offset: isize) -> View<'_, T, 4> {
        let [(n0, _, t0), (n1, _, t1)] = self.inner;
        let (n, k) = (self.right.across, self.right.along);
        let start = self.right.start.cast::<T>().wrapping_offset(offset);
        // SAFETY: as above.
        unsafe {
            View::from_raw(
                start,
                [n0, n1, k.0, n.0],
                [t0, t1, k.1, n.1].map(|s| s as usize),
            )
        }
    }

    /// The packed operand, if it is that side.
    fn packed<T: 'static>(&self, side: Side) -> Option<&T> {
        self.packed.filter(|k| k.side == side).map(Packed::get)
    }

    /// A dense result from matrix number `first` on.
    ///
    /// # Safety
    /// The result must hold the product, and nothing else may use it.
    unsafe fn output<T: Element>(&self, start: *mut u8, first: usize) -> ViewMut<'_, T, 4> {
        let (rows, cols) = (self.rows(), self.cols());
        let [(n0, ..), (n1, ..)] = self.inner;
        let start = start.cast::<T>().wrapping_add(first * rows * cols);
        let strides = [n1 * rows * cols, rows * cols, cols, 1];
        // SAFETY: the caller's contract.
        unsafe { ViewMut::from_raw(start, [n0, n1, rows, cols], strides) }
    }

    fn numbers<T: Number>(&self, call: &Call, p: &Contract, sum: DType) -> Result<(), Failure> {
        let result = &call.results[0];
        let [(n0, ..), (n1, ..)] = self.inner;
        let (rows, cols) = (self.rows(), self.cols());
        let code = call.epilogue.as_ref();
        self.for_each_outer(|x, y, first| {
            // SAFETY: the offsets are those of an outer index; what is packed is not viewed.
            let (left, right) = unsafe {
                (
                    match self.packed(Side::Left) {
                        Some(packed) => Left::Packed(packed),
                        None if self.left.wide => Left::Wide(self.left_view::<f32>(x)),
                        None => Left::View(self.left_view::<T>(x)),
                    },
                    match self.packed(Side::Right) {
                        Some(packed) => Right::Packed(packed),
                        None if self.right.wide => Right::Wide(self.right_view::<f32>(y)),
                        None => Right::View(self.right_view::<T>(y)),
                    },
                )
            };
            let finish = |part: Finished<Sum<T>>| {
                if let Some(e) = code {
                    let matrix = first + part.batch;
                    e.finish(&part, |row| {
                        (matrix * rows + part.row + row) * cols + part.col
                    });
                }
            };
            // SAFETY: the result is dense and holds the whole product; this call has it alone.
            let output = unsafe {
                match code {
                    Some(e) if result.dtype != sum || e.reads_result() => {
                        Output::Discard([n0, n1, rows, cols])
                    }
                    None if p.out != sum => Output::Narrow(self.output::<T>(result.start, first)),
                    _ => Output::Store(self.output::<Sum<T>>(result.start, first)),
                }
            };
            let epilogue: Option<gemm::Epilogue<'_, Sum<T>>> = match code {
                Some(_) => Some(&finish),
                None => None,
            };
            Ok(gemm::multiply(&call.cx, left, right, output, epilogue)?)
        })
    }

    /// Computes the product of 8-bit integers of these types less their zero points.
    pub(super) fn bytes(
        &self,
        call: &Call,
        [left, right]: [DType; 2],
        [left_zero, right_zero]: [ZeroPoints; 2],
    ) -> Result<(), Failure> {
        let result = &call.results[0];
        let [(n0, ..), (n1, ..)] = self.inner;
        let (rows, cols) = (self.rows(), self.cols());
        let elsewhere = match &call.epilogue {
            // Sums lie where the elements made of them will, if these take as much room.
            Some(e) if result.dtype.bits() != DType::I32.bits() || e.reads_result() => {
                let len = n0
                    .saturating_mul(n1)
                    .saturating_mul(rows)
                    .saturating_mul(cols);
                Some(call.cx.scratch.take::<i32>(len)?)
            }
            _ => None,
        };
        let code = call.epilogue.as_ref();
        self.for_each_outer(|x, y, first| {
            // SAFETY: the offsets are those of an outer index; what is packed is not viewed.
            let (left, right) = unsafe {
                (
                    match self.packed(Side::Left) {
                        Some(packed) => BytesLeft::Packed(packed),
                        None => BytesLeft::View(Bytes {
                            view: self.left_view(x),
                            signed: left == DType::I8,
                            zero_points: left_zero,
                        }),
                    },
                    match self.packed(Side::Right) {
                        Some(packed) => BytesRight::Packed(packed),
                        None => BytesRight::View(Bytes {
                            view: self.right_view(y),
                            signed: right == DType::I8,
                            zero_points: right_zero,
                        }),
                    },
                )
            };
            let finish = |part: Finished<i32>| {
                if let Some(e) = code {
                    let matrix = first + part.batch;
                    e.finish(&part, |row| {
                        (matrix * rows + part.row + row) * cols + part.col
                    });
                }
            };
            let epilogue: Option<gemm::Epilogue<'_, i32>> = match code {
                Some(_) => Some(&finish),
                None => None,
            };
            // SAFETY: the result (or scratch for one outer index) is dense and holds the product; this call has it alone.
            let output = unsafe {
                match &elsewhere {
                    Some(lent) => self.output::<i32>(lent.as_ptr(), 0),
                    None => self.output::<i32>(result.start, first),
                }
            };
            Ok(gemm::multiply_bytes(
                &call.cx, left, right, output, false, epilogue,
            )?)
        })
    }
}
