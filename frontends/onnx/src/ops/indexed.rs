//! Operators that address elements by data: gathers, scatters, sorting, selection and running sums.
//!
//! Indices of the standard count from the end when negative; the graph's do not, so they are wrapped here.

use cupola_ir::ops::host::NonZero;
use cupola_ir::ops::{Bounds, Gather, HostOp, Pad, ReduceKind, Scatter, ScatterKind, Sort, Window};
use cupola_ir::{Class, DType, Dim, Graph, Op, Scalar, ValueId};

use super::{OpRow, op};
use crate::context::NodeCx;
use crate::import_error::{OpResult, invalid, unsupported};
use crate::shape::Elem;

pub(super) const OPS: &[OpRow] = &[
    op("Gather", 1, gather),
    op("GatherElements", 11, gather_elements),
    op("GatherND", 11, gather_nd),
    op("Scatter", 9, scatter_elements),
    op("ScatterElements", 11, scatter_elements),
    op("ScatterND", 11, scatter_nd),
    op("TensorScatter", 24, tensor_scatter),
    op("OneHot", 9, one_hot),
    op("TopK", 1, top_k),
    op("NonZero", 9, non_zero),
    op("Compress", 9, compress),
    op("ReverseSequence", 10, reverse_sequence),
    op("CumSum", 11, |cx| cumulative(cx, ReduceKind::Sum)),
    op("CumProd", 26, |cx| cumulative(cx, ReduceKind::Prod)),
];

/// The elements of one axis at these positions: `x[.., index, ..]`. Positions are not negative.
pub(super) fn take(g: &mut Graph, x: ValueId, axis: usize, index: ValueId) -> OpResult<ValueId> {
    let (rank, picked) = (g.rank(x), g.rank(index));
    let op = Gather {
        axes: vec![axis],
        batch: 0,
        bounds: Bounds::Check,
    };
    let y = g.one(op, &[x, index])?;
    // The gathered axes come first; they belong where the axis was.
    let mut perm: Vec<usize> = (picked..picked + axis).collect();
    perm.extend(0..picked);
    perm.extend(picked + axis..picked + rank - 1);
    Ok(g.permute(y, &perm)?)
}

/// Indices into an axis of extent `n` as i64, negative ones counted from the end.
pub(super) fn wrap(cx: &mut NodeCx<'_, '_>, index: ValueId, n: &Dim) -> OpResult<ValueId> {
    if !cx.g.dtype(index).is_int() {
        return invalid(format!("{} where indices are needed", cx.g.ty(index)));
    }
    let known = cx.elems(index);
    let (mut all_known, mut none_negative) = (known.is_some(), known.is_some());
    for e in known.iter().flat_map(|k| k.iter()) {
        let Elem::Int(d) = e else {
            (all_known, none_negative) = (false, false);
            continue;
        };
        none_negative &= cx.bounds(d).0 >= 0;
        if let (Some(i), Some(n)) = (d.as_const(), n.as_const())
            && !(-n..n).contains(&i)
        {
            return invalid(format!("index {i} of {n} elements"));
        }
    }
    let unsigned = cx.g.dtype(index).class() == Class::Unsigned;
    let index = cx.g.cast(index, DType::I64)?;
    if unsigned || (all_known && none_negative) {
        return Ok(index);
    }
    let g = &mut *cx.g;
    let zero = g.number(0.0, DType::I64)?;
    let n = g.dim_value(n)?;
    let negative = g.binary(Scalar::Lt, index, zero)?;
    let wrapped = g.binary(Scalar::Add, index, n)?;
    Ok(g.select(negative, wrapped, index)?)
}

fn gather(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, ty), (index, index_ty)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    let axis = cx.int_or("axis", 0)?;
    let axis = cx.axis(axis, ty.rank())?;
    if index_ty.len().is(1)
        && let Some(t) = cx.known(index)
        && let Some(&[i]) = t.to_i64s().as_deref()
    {
        // One known index is a part, which needs no data at run time.
        let n = ty.dims[axis].clone();
        let at = match (n.as_const(), i) {
            (Some(n), _) if !(-n..n).contains(&i) => {
                return invalid(format!("index {i} of {n} elements"));
            }
            (_, 0..) => Dim::Const(i),
            (_, _) => n + Dim::Const(i),
        };
        let y = cx.g.slice_axis(x, axis, &at, &Dim::ONE)?;
        let dims = [&ty.dims[..axis], &index_ty.dims, &ty.dims[axis + 1..]].concat();
        return Ok(vec![cx.g.reshape(y, &dims)?]);
    }
    let index = wrap(cx, index, &ty.dims[axis])?;
    Ok(vec![take(cx.g, x, axis, index)?])
}

/// One index operand per axis for an element-wise gather or scatter: `index` at `axis`, the own position elsewhere.
fn element_indices(g: &mut Graph, index: ValueId, axis: usize) -> OpResult<Vec<ValueId>> {
    let dims = g.dims(index);
    (0..dims.len())
        .map(|a| {
            Ok(match a == axis {
                true => index,
                false => g.iota(DType::I64, &dims, a)?,
            })
        })
        .collect()
}

fn gather_elements(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, ty), (index, index_ty)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    if ty.rank() != index_ty.rank() {
        return invalid(format!("{ty} and {index_ty} differ in rank"));
    }
    let axis = cx.int_or("axis", 0)?;
    let axis = cx.axis(axis, ty.rank())?;
    let index = wrap(cx, index, &ty.dims[axis])?;
    let indices = element_indices(cx.g, index, axis)?;
    // Leading axes that agree are batch axes, which need no index operand.
    let batch = (0..axis)
        .take_while(|a| ty.dims[*a] == index_ty.dims[*a])
        .count();
    let op = Gather {
        axes: (batch..ty.rank()).collect(),
        batch,
        bounds: Bounds::Check,
    };
    let operands = [&[x], &indices[batch..]].concat();
    Ok(vec![cx.g.one(op, &operands)?])
}

/// The last axis of an index tensor taken apart into one wrapped operand per axis of data from `first` on.
fn tuple_indices(
    cx: &mut NodeCx<'_, '_>,
    index: ValueId,
    data: &[Dim],
    first: usize,
) -> OpResult<Vec<ValueId>> {
    let rank = cx.g.rank(index);
    let Some(last) = rank.checked_sub(1) else {
        return invalid("the indices are a scalar");
    };
    let count = cx.const_extent(index, last)?;
    if count == 0 || first + count > data.len() {
        return invalid(format!(
            "indices of {count} coordinates for {} axes",
            data.len()
        ));
    }
    (0..count)
        .map(|k| {
            let i = cx.g.pick(index, last, &Dim::from(k))?;
            wrap(cx, i, &data[first + k])
        })
        .collect()
}

fn gather_nd(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, ty), (index, _)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    let batch = cx.int_or("batch_dims", 0)?;
    let Ok(batch) = usize::try_from(batch) else {
        return invalid(format!("batch_dims {batch}"));
    };
    let indices = tuple_indices(cx, index, &ty.dims, batch)?;
    let op = Gather {
        axes: (batch..batch + indices.len()).collect(),
        batch,
        bounds: Bounds::Check,
    };
    Ok(vec![cx.g.one(op, &[&[x], &indices[..]].concat())?])
}

fn scatter_kind(cx: &NodeCx<'_, '_>) -> OpResult<ScatterKind> {
    match cx.text_or("reduction", "none")?.as_str() {
        "none" => Ok(ScatterKind::Set),
        "add" => Ok(ScatterKind::Add),
        "mul" => Ok(ScatterKind::Mul),
        "max" => Ok(ScatterKind::Max),
        "min" => Ok(ScatterKind::Min),
        other => invalid(format!("reduction '{other}' does not exist")),
    }
}

fn scatter_elements(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, ty), (index, index_ty)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    let (updates, _) = cx.tensor_input(2)?;
    if ty.rank() != index_ty.rank() {
        return invalid(format!("{ty} and {index_ty} differ in rank"));
    }
    let axis = cx.int_or("axis", 0)?;
    let axis = cx.axis(axis, ty.rank())?;
    let kind = scatter_kind(cx)?;
    let index = wrap(cx, index, &ty.dims[axis])?;
    let indices = element_indices(cx.g, index, axis)?;
    let op = Scatter {
        axes: (0..ty.rank()).collect(),
        batch: 0,
        kind,
        bounds: Bounds::Check,
    };
    Ok(vec![cx.g.one(op, &[&[x, updates], &indices[..]].concat())?])
}

fn scatter_nd(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, ty), (index, _)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    let (updates, _) = cx.tensor_input(2)?;
    let kind = scatter_kind(cx)?;
    let indices = tuple_indices(cx, index, &ty.dims, 0)?;
    let op = Scatter {
        axes: (0..indices.len()).collect(),
        batch: 0,
        kind,
        bounds: Bounds::Check,
    };
    Ok(vec![cx.g.one(op, &[&[x, updates], &indices[..]].concat())?])
}

/// Rows of `updates` written into a cache from a position per batch entry on, around the end when circular.
fn tensor_scatter(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, ty), (updates, update_ty)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    let axis = cx.int_or("axis", -2)?;
    let axis = cx.axis(axis, ty.rank())?;
    if axis == 0 || update_ty.rank() != ty.rank() {
        return invalid(format!("axis {axis}, cache {ty} and update {update_ty}"));
    }
    let circular = match cx.text_or("mode", "linear")?.as_str() {
        "linear" => false,
        "circular" => true,
        other => return invalid(format!("mode '{other}' does not exist")),
    };
    let start = cx.optional(2);
    Ok(vec![write_rows(cx.g, x, updates, start, axis, circular)?])
}

/// `updates` written into a cache along an axis, for each entry of the first axis from its own position on.
pub(super) fn write_rows(
    g: &mut Graph,
    cache: ValueId,
    updates: ValueId,
    start: Option<ValueId>,
    axis: usize,
    circular: bool,
) -> OpResult<ValueId> {
    let (dims, rank) = (g.dims(cache), g.rank(cache));
    let plane = [dims[0].clone(), g.dim(updates, axis)];
    let mut at = g.iota(DType::I64, &plane, 1)?;
    if let Some(start) = start {
        let start = g.cast(start, DType::I64)?;
        let start = g.reshape(start, &[dims[0].clone(), Dim::ONE])?;
        at = g.binary(Scalar::Add, at, start)?;
    }
    if circular {
        let n = g.dim_value(&dims[axis])?;
        at = g.binary(Scalar::Mod, at, n)?;
    }
    let row = g.iota(DType::I64, &plane, 0)?;
    let mut perm = vec![0, axis];
    perm.extend((1..rank).filter(|a| *a != axis));
    let updates = g.permute(updates, &perm)?;
    let op = Scatter {
        axes: vec![0, axis],
        batch: 0,
        kind: ScatterKind::Set,
        bounds: Bounds::Check,
    };
    Ok(g.one(op, &[cache, updates, row, at])?)
}

fn one_hot(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((index, ty), depth, values) = (cx.tensor_input(0)?, cx.input(1)?, cx.input(2)?);
    let axis = cx.int_or("axis", -1)?;
    let axis = cx.axis(axis, ty.rank() + 1)?;
    let depth = cx.g.cast(depth, DType::I64)?;
    let depth = cx.extent(depth, 0)?;
    let index = cx.g.cast(index, DType::I64)?;
    let mut dims = ty.dims;
    dims.insert(axis, depth.clone());
    let g = &mut *cx.g;
    let n = g.dim_value(&depth)?;
    let zero = g.number(0.0, DType::I64)?;
    let negative = g.binary(Scalar::Lt, index, zero)?;
    let wrapped = g.binary(Scalar::Add, index, n)?;
    let index = g.select(negative, wrapped, index)?;
    let index = g.unsqueeze(index, &[axis])?;
    let at = g.iota(DType::I64, &dims, axis)?;
    let hit = g.binary(Scalar::Eq, at, index)?;
    let off = g.pick(values, 0, &Dim::ZERO)?;
    let on = g.pick(values, 0, &Dim::ONE)?;
    Ok(vec![g.select(hit, on, off)?])
}

fn top_k(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let axis = cx.int_or("axis", -1)?;
    let axis = cx.axis(axis, ty.rank())?;
    let k = match cx.optional(1) {
        Some(v) => cx.extent(v, 0)?,
        None => Dim::Const(cx.required_int("k")?),
    };
    if let (Some(k), Some(n)) = (k.as_const(), ty.dims[axis].as_const())
        && !(0..=n).contains(&k)
    {
        return invalid(format!("k is {k} of {n} elements"));
    }
    let descending = cx.flag("largest", true)?;
    let sorted = cx.g.push(Sort { axis, descending }, &[x])?;
    sorted
        .into_iter()
        .map(|v| Ok(cx.g.slice_axis(v, axis, &Dim::ZERO, &k)?))
        .collect()
}

/// Positions of nonzero elements: `i64[rank, count]`.
fn positions(cx: &mut NodeCx<'_, '_>, x: ValueId) -> OpResult<ValueId> {
    let count = cx.fresh_sym("nonzero");
    Ok(cx
        .g
        .one(Op::Host(HostOp::NonZero(NonZero { count })), &[x])?)
}

fn non_zero(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, _) = cx.tensor_input(0)?;
    Ok(vec![positions(cx, x)?])
}

fn compress(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, ty), (condition, _)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    let (x, axis) = match cx.int("axis")? {
        Some(axis) => (x, cx.axis(axis, ty.rank())?),
        None => (cx.g.reshape(x, &[ty.len()])?, 0),
    };
    let at = positions(cx, condition)?;
    let at = cx.g.pick(at, 0, &Dim::ZERO)?;
    Ok(vec![take(cx.g, x, axis, at)?])
}

/// The first `lens[b]` elements of each batch entry in reverse order.
fn reverse_sequence(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, ty), (lens, _)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    let (batch, time) = (cx.int_or("batch_axis", 1)?, cx.int_or("time_axis", 0)?);
    let (batch, time) = (cx.axis(batch, ty.rank())?, cx.axis(time, ty.rank())?);
    if batch == time {
        return invalid("batch and time axis are the same");
    }
    let plane = [ty.dims[batch].clone(), ty.dims[time].clone()];
    let g = &mut *cx.g;
    let lens = g.cast(lens, DType::I64)?;
    let lens = g.reshape(lens, &[plane[0].clone(), Dim::ONE])?;
    let at = g.iota(DType::I64, &plane, 1)?;
    let inside = g.binary(Scalar::Lt, at, lens)?;
    let one = g.number(1.0, DType::I64)?;
    let back = g.binary(Scalar::Sub, lens, at)?;
    let back = g.binary(Scalar::Sub, back, one)?;
    let at = g.select(inside, back, at)?;
    let mut perm = vec![batch, time];
    perm.extend((0..ty.rank()).filter(|a| *a != batch && *a != time));
    let y = g.permute(x, &perm)?;
    let op = Gather {
        axes: vec![1],
        batch: 1,
        bounds: Bounds::Check,
    };
    let y = g.one(op, &[y, at])?;
    let mut back = vec![0; perm.len()];
    for (to, from) in perm.iter().enumerate() {
        back[*from] = to;
    }
    Ok(vec![g.permute(y, &back)?])
}

/// Elements of one block of a running reduction: prefixes inside a block and over blocks together cost
/// `n * BLOCK + (n / BLOCK)^2` operations, which for the lengths that occur is near `64 n`.
const BLOCK: i64 = 64;

fn cumulative(cx: &mut NodeCx<'_, '_>, kind: ReduceKind) -> OpResult {
    let ((x, ty), axis) = (cx.tensor_input(0)?, cx.input(1)?);
    let axis = cx.known_number(axis)? as i64;
    let axis = cx.axis(axis, ty.rank())?;
    let (exclusive, reverse) = (cx.flag("exclusive", false)?, cx.flag("reverse", false)?);
    let g = &mut *cx.g;
    let mut x = match reverse {
        true => g.flip(x, axis)?,
        false => x,
    };
    if exclusive {
        x = shift(g, x, axis, kind)?;
    }
    let y = running(g, x, axis, kind)?;
    Ok(vec![match reverse {
        true => g.flip(y, axis)?,
        false => y,
    }])
}

fn identity_of(g: &mut Graph, x: ValueId, kind: ReduceKind) -> OpResult<ValueId> {
    match kind {
        ReduceKind::Sum => Ok(g.number_like(0.0, x)?),
        ReduceKind::Prod => Ok(g.number_like(1.0, x)?),
        ReduceKind::Max | ReduceKind::Min => unsupported("a running maximum"),
    }
}

/// `x` moved by one along the axis, the identity of the reduction in front.
fn shift(g: &mut Graph, x: ValueId, axis: usize, kind: ReduceKind) -> OpResult<ValueId> {
    let dims = g.dims(x);
    let value = identity_of(g, x, kind)?;
    let mut low = vec![Dim::ZERO; dims.len()];
    low[axis] = Dim::ONE;
    let padded = g.pad(x, value, &low, &vec![Dim::ZERO; dims.len()])?;
    Ok(g.slice_axis(padded, axis, &Dim::ZERO, &dims[axis])?)
}

/// The reduction of all elements up to each position along an axis.
pub(super) fn running(
    g: &mut Graph,
    x: ValueId,
    axis: usize,
    kind: ReduceKind,
) -> OpResult<ValueId> {
    let dims = g.dims(x);
    let n = dims[axis].clone();
    if n.as_const().is_some_and(|n| n <= 2 * BLOCK) {
        return prefixes(g, x, axis, kind);
    }
    let f = match kind {
        ReduceKind::Sum => Scalar::Add,
        ReduceKind::Prod => Scalar::Mul,
        ReduceKind::Max => Scalar::Max,
        ReduceKind::Min => Scalar::Min,
    };
    let blocks = n.ceil_div(&Dim::Const(BLOCK));
    let padded = blocks.clone() * Dim::Const(BLOCK);
    let value = identity_of(g, x, kind)?;
    let mut high = vec![Dim::ZERO; dims.len()];
    high[axis] = padded.clone() - n.clone();
    let y = g.one(
        Pad {
            low: vec![Dim::ZERO; dims.len()],
            high,
        },
        &[x, value],
    )?;
    let mut split = dims.clone();
    split.splice(axis..=axis, [blocks, Dim::Const(BLOCK)]);
    let y = g.reshape(y, &split)?;
    let inner = prefixes(g, y, axis + 1, kind)?;
    let totals = g.slice_axis(inner, axis + 1, &Dim::Const(BLOCK - 1), &Dim::ONE)?;
    let before = prefixes(g, totals, axis, kind)?;
    let before = shift(g, before, axis, kind)?;
    let y = g.binary(f, inner, before)?;
    let mut joined = dims.clone();
    joined[axis] = padded;
    let y = g.reshape(y, &joined)?;
    Ok(g.slice_axis(y, axis, &Dim::ZERO, &n)?)
}

/// Prefix reductions by windows as long as the axis.
fn prefixes(g: &mut Graph, x: ValueId, axis: usize, kind: ReduceKind) -> OpResult<ValueId> {
    let dims = g.dims(x);
    let n = dims[axis].clone();
    if n.is(0) || n.is(1) {
        return Ok(x);
    }
    let value = identity_of(g, x, kind)?;
    let mut low = vec![Dim::ZERO; dims.len()];
    low[axis] = n.clone() - Dim::ONE;
    // With no element there is nothing to pad; the window below is then empty as well.
    low[axis] = low[axis].larger(&Dim::ZERO);
    let padded = g.pad(x, value, &low, &vec![Dim::ZERO; dims.len()])?;
    let window = Window {
        axes: vec![axis],
        sizes: vec![n.larger(&Dim::ONE)],
        strides: vec![1],
        dilations: vec![1],
    };
    let windows = g.one(window, &[padded])?;
    let y = g.reduce(kind, windows, &[dims.len()])?;
    Ok(g.reshape(y, &dims)?)
}
