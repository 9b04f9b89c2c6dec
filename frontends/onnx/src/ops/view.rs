//! Operators that move elements without computing: reshapes, joins, parts, borders and repetition.

use cupola_ir::ops::ReduceKind;
use cupola_ir::{DType, Dim, Graph, Scalar, ValueId};

use super::{OpRow, op};
use crate::context::NodeCx;
use crate::import_error::{OpError, OpResult, invalid, unsupported};
use crate::shape::Elem;

pub(super) const OPS: &[OpRow] = &[
    op("Identity", 1, identity),
    op("Reshape", 1, reshape_attribute),
    op("Reshape", 5, reshape),
    op("Flatten", 1, flatten),
    op("Squeeze", 1, squeeze),
    op("Unsqueeze", 1, unsqueeze),
    op("Transpose", 1, transpose),
    op("Expand", 8, expand),
    op("Tile", 1, tile_axis),
    op("Tile", 6, tile),
    op("Concat", 1, concat),
    op("Split", 1, split),
    op("Slice", 1, slice_attributes),
    op("Slice", 10, slice),
    op("Pad", 1, pad_attributes),
    op("Pad", 11, pad),
    op("DepthToSpace", 1, depth_to_space),
    op("SpaceToDepth", 1, space_to_depth),
];

fn identity(cx: &mut NodeCx<'_, '_>) -> OpResult {
    Ok(vec![cx.input(0)?])
}

fn reshape_attribute(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, _) = cx.tensor_input(0)?;
    let Some(shape) = cx.ints_attr("shape")? else {
        return invalid("attribute 'shape' is missing");
    };
    let shape = cx.g.i64s(&shape)?;
    reshape_to(cx, x, shape)
}

fn reshape(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, _), (shape, _)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    reshape_to(cx, x, shape)
}

fn reshape_to(cx: &mut NodeCx<'_, '_>, x: ValueId, shape: ValueId) -> OpResult {
    let zero_copies = !cx.flag("allowzero", false)?;
    let from = cx.g.dims(x);
    let Some(rank) =
        cx.g.tensor(shape)
            .dims
            .first()
            .map_or(Some(1), Dim::as_const)
    else {
        return Err(OpError::NeedsShape(shape));
    };
    if rank as usize > crate::tensor::MAX_RANK || cx.g.rank(shape) != 1 {
        return invalid(format!("a shape of type {}", cx.g.ty(shape)));
    }
    let elems = cx.elems(shape);
    let given = (0..rank as usize).map(|i| match elems.as_ref().map(|e| &e[i]) {
        Some(Elem::Int(d)) if d.as_const().is_some() || cx.bounds(d).0 >= 0 => Some(d.clone()),
        _ => None,
    });
    let given: Option<Vec<Dim>> = given.collect();
    let dims = match given {
        Some(given) => static_shape(&from, &given, zero_copies)?,
        None => runtime_shape(cx, &from, shape, zero_copies)?,
    };
    Ok(vec![cx.g.reshape(x, &dims)?])
}

/// Extents for a shape whose elements are numbers or expressions that are not negative.
fn static_shape(from: &[Dim], given: &[Dim], zero_copies: bool) -> OpResult<Vec<Dim>> {
    let mut dims = given.to_vec();
    let mut open = None;
    for (i, d) in dims.iter_mut().enumerate() {
        match d.as_const() {
            Some(0) if zero_copies => match from.get(i) {
                Some(own) => *d = own.clone(),
                None => return invalid(format!("shape {given:?} copies axis {i} of {from:?}")),
            },
            Some(-1) if open.is_some() => return invalid(format!("shape {given:?} has two -1")),
            Some(-1) => {
                open = Some(i);
                *d = Dim::ONE;
            }
            Some(n) if n < 0 => return invalid(format!("shape {given:?} has a negative extent")),
            _ => {}
        }
    }
    let total = Dim::product(from);
    if let Some(i) = open {
        let rest = Dim::product(&dims);
        dims[i] = match (total.as_const(), rest.as_const()) {
            (Some(0), Some(0)) => Dim::ZERO,
            (Some(n), Some(k)) if k == 0 || n % k != 0 => {
                return invalid(format!("{from:?} cannot become {given:?}"));
            }
            _ => total.floor_div(&rest),
        };
    }
    Ok(dims)
}

/// Extents for a shape with elements that only run time knows: 0 and -1 are resolved there.
fn runtime_shape(
    cx: &mut NodeCx<'_, '_>,
    from: &[Dim],
    shape: ValueId,
    zero_copies: bool,
) -> OpResult<Vec<Dim>> {
    let rank = cx.const_extent(shape, 0)?;
    let mut own = from.to_vec();
    own.resize(rank, Dim::ZERO);
    let shape = cx.g.cast(shape, DType::I64)?;
    let mut sizes = shape;
    if zero_copies {
        let own = cx.sizes(&own)?;
        let zero = cx.g.number(0.0, DType::I64)?;
        let copies = cx.g.binary(Scalar::Eq, shape, zero)?;
        sizes = cx.g.select(copies, own, shape)?;
    }
    let (open, one) = (
        cx.g.number(-1.0, DType::I64)?,
        cx.g.number(1.0, DType::I64)?,
    );
    let is_open = cx.g.binary(Scalar::Eq, sizes, open)?;
    let known = cx.g.select(is_open, one, sizes)?;
    let rest = cx.g.reduce(ReduceKind::Prod, known, &[0])?;
    let rest = cx.g.binary(Scalar::Max, rest, one)?;
    let total = cx.g.dim_value(&Dim::product(from))?;
    let quotient = cx.g.binary(Scalar::Div, total, rest)?;
    let sizes = cx.g.select(is_open, quotient, sizes)?;
    cx.extents(sizes, 0)
}

fn flatten(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let axis = cx.int_or("axis", 1)?;
    let axis = match axis == ty.rank() as i64 {
        true => ty.rank(),
        false => cx.axis(axis, ty.rank())?,
    };
    let (rows, columns) = ty.dims.split_at(axis);
    let dims = [Dim::product(rows), Dim::product(columns)];
    Ok(vec![cx.g.reshape(x, &dims)?])
}

/// The `axes` of an operator that has them as an attribute or as an operand.
fn given_axes(cx: &mut NodeCx<'_, '_>) -> OpResult<Option<Vec<i64>>> {
    match cx.optional(1) {
        Some(v) => Ok(Some(cx.ints(v)?)),
        None => cx.ints_attr("axes"),
    }
}

fn squeeze(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let axes = match given_axes(cx)? {
        Some(axes) => cx.axes(&axes, ty.rank())?,
        None if ty.dims.iter().any(|d| d.as_const().is_none()) => {
            return Err(OpError::NeedsShape(x));
        }
        None => (0..ty.rank()).filter(|a| ty.dims[*a].is(1)).collect(),
    };
    if let Some(a) = axes
        .iter()
        .find(|a| ty.dims[**a].as_const().is_some_and(|n| n != 1))
    {
        return invalid(format!("axis {a} of {ty} is not 1"));
    }
    Ok(vec![cx.g.squeeze(x, &axes)?])
}

fn unsqueeze(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let Some(axes) = given_axes(cx)? else {
        return invalid("axes are missing");
    };
    let mut axes = cx.axes(&axes, ty.rank() + axes.len())?;
    axes.sort_unstable();
    Ok(vec![cx.g.unsqueeze(x, &axes)?])
}

fn transpose(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let perm = match cx.ints_attr("perm")? {
        Some(perm) if perm.len() != ty.rank() => {
            return invalid(format!("perm {perm:?} for {ty}"));
        }
        Some(perm) => cx.axes(&perm, ty.rank())?,
        None => (0..ty.rank()).rev().collect(),
    };
    Ok(vec![cx.g.permute(x, &perm)?])
}

fn expand(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let shape = cx.input(1)?;
    let shape = cx.extents(shape, 0)?;
    let rank = shape.len().max(ty.rank());
    let at = |dims: &[Dim], i: usize| match (i + dims.len()).checked_sub(rank) {
        Some(k) => dims[k].clone(),
        None => Dim::ONE,
    };
    let mut dims = Vec::with_capacity(rank);
    for i in 0..rank {
        let (own, wanted) = (at(&ty.dims, i), at(&shape, i));
        match own.broadcast(&wanted) {
            Some(d) => dims.push(d),
            None => return invalid(format!("{ty} does not expand to {shape:?}")),
        }
    }
    Ok(vec![cx.g.broadcast_to(x, &dims)?])
}

fn tile(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, _) = cx.tensor_input(0)?;
    let repeats = cx.input(1)?;
    let repeats = cx.extents(repeats, 0)?;
    Ok(vec![repeat(cx.g, x, &repeats)?])
}

/// Version 1: a number of tiles along one axis.
fn tile_axis(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let (tiles, axis) = (cx.input(1)?, cx.input(2)?);
    let axis = cx.known_number(axis)? as i64;
    let axis = cx.axis(axis, ty.rank())?;
    let tiles = cx.known_number(tiles)? as i64;
    let mut repeats = vec![Dim::ONE; ty.rank()];
    repeats[axis] = Dim::Const(tiles);
    Ok(vec![repeat(cx.g, x, &repeats)?])
}

/// The tensor repeated along each axis.
pub(super) fn repeat(g: &mut Graph, x: ValueId, repeats: &[Dim]) -> OpResult<ValueId> {
    let dims = g.dims(x);
    if repeats.len() != dims.len() {
        return invalid(format!("{} repeats for {} axes", repeats.len(), dims.len()));
    }
    let (mut apart, mut spread, mut joined) = (vec![], vec![], vec![]);
    for (d, n) in dims.iter().zip(repeats) {
        if !n.is(1) {
            apart.push(Dim::ONE);
            spread.push(n.clone());
        }
        apart.push(d.clone());
        spread.push(d.clone());
        joined.push(n.clone() * d.clone());
    }
    let x = g.reshape(x, &apart)?;
    let x = g.broadcast_to(x, &spread)?;
    Ok(g.reshape(x, &joined)?)
}

fn concat(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let xs = cx.inputs_from(0)?;
    let Some(first) = xs.first() else {
        return invalid("takes at least one operand");
    };
    let axis = match cx.opset < 4 {
        true => cx.int_or("axis", 1)?,
        false => cx.required_int("axis")?,
    };
    let axis = cx.axis(axis, cx.g.rank(*first))?;
    Ok(vec![cx.g.concat(&xs, axis)?])
}

fn split(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let axis = cx.int_or("axis", 0)?;
    let axis = cx.axis(axis, ty.rank())?;
    let n = ty.dims[axis].clone();
    let sizes: Vec<Dim> = match (cx.optional(1), cx.ints_attr("split")?) {
        (Some(v), _) => cx.extents(v, 0)?,
        (None, Some(sizes)) => sizes.into_iter().map(Dim::Const).collect(),
        (None, None) => {
            let count = cx.int_or("num_outputs", cx.node.output.len() as i64)?;
            if !(1..=65536).contains(&count) {
                return invalid(format!("{count} parts"));
            }
            let parts = Dim::Const(count);
            let even = n.exact_div(&parts).is_some() || cx.opset < 18;
            let part = match even {
                true => n.floor_div(&parts),
                false => n.ceil_div(&parts),
            };
            let mut sizes = vec![part.clone(); count as usize];
            if !even {
                let last = n.clone() - part * Dim::Const(count - 1);
                sizes[count as usize - 1] = cx.at_least_zero(&last);
            }
            sizes
        }
    };
    if sizes.iter().any(|s| s.as_const().is_some_and(|s| s < 0)) {
        return invalid(format!("parts of {sizes:?}"));
    }
    let total = sizes.iter().fold(Dim::ZERO, |sum, s| sum + s.clone());
    if (&total - &n).as_const().is_some_and(|d| d != 0) {
        return invalid(format!("parts {sizes:?} of {n} elements"));
    }
    let mut start = Dim::ZERO;
    let mut parts = vec![];
    for size in sizes {
        parts.push(cx.g.slice_axis(x, axis, &start, &size)?);
        start = start + size;
    }
    Ok(parts)
}

fn slice_attributes(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, _) = cx.tensor_input(0)?;
    let (Some(starts), Some(ends)) = (cx.ints_attr("starts")?, cx.ints_attr("ends")?) else {
        return invalid("starts or ends are missing");
    };
    let axes = cx.ints_attr("axes")?;
    let axes = axes.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let dims = |v: Vec<i64>| v.into_iter().map(Dim::Const).collect::<Vec<Dim>>();
    let steps = vec![1; starts.len()];
    let y = slice_axes(cx, x, &dims(starts), &dims(ends), &axes, &steps)?;
    Ok(vec![y])
}

fn slice(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, _) = cx.tensor_input(0)?;
    let (starts, ends) = (cx.input(1)?, cx.input(2)?);
    let starts = cx.extents(starts, i64::MIN)?;
    let ends = cx.extents(ends, i64::MIN)?;
    let axes = match cx.optional(3) {
        Some(v) => cx.ints(v)?,
        None => (0..starts.len() as i64).collect(),
    };
    let steps = match cx.optional(4) {
        Some(v) => cx.ints(v)?,
        None => vec![1; starts.len()],
    };
    let y = slice_axes(cx, x, &starts, &ends, &axes, &steps)?;
    Ok(vec![y])
}

/// `index` counted from the end when negative.
fn from_end(cx: &NodeCx<'_, '_>, index: &Dim, n: &Dim) -> Dim {
    let (lo, hi) = cx.bounds(index);
    if lo >= 0 {
        index.clone()
    } else if hi < 0 {
        index.clone() + n.clone()
    } else if (index - n).is(-1) {
        // `n - 1` is negative only where there is no element.
        index.clone()
    } else if (index.clone() + n.clone()).is(0) {
        // All of them from the end; also where there is none, and the index is 0.
        Dim::ZERO
    } else {
        // min(1, max(0, -i)) is 1 for negative i and 0 otherwise.
        let negative = (-index.clone()).larger(&Dim::ZERO).smaller(&Dim::ONE);
        index.clone() + n.clone() * negative
    }
}

/// The part from `starts` to before `ends` of some axes, with NumPy's rules for what is outside.
fn slice_axes(
    cx: &mut NodeCx<'_, '_>,
    x: ValueId,
    starts: &[Dim],
    ends: &[Dim],
    axes: &[i64],
    steps: &[i64],
) -> OpResult<ValueId> {
    let dims = cx.g.dims(x);
    let rank = dims.len();
    let axes = cx.axes(axes, rank)?;
    if [starts.len(), ends.len(), steps.len()] != [axes.len(); 3] {
        return invalid("starts, ends, axes and steps differ in length");
    }
    let mut first = vec![Dim::ZERO; rank];
    let mut stride = vec![1; rank];
    let mut out = dims.clone();
    for (k, a) in axes.iter().enumerate() {
        let (n, step) = (&dims[*a], steps[k]);
        let (start, end) = (from_end(cx, &starts[k], n), from_end(cx, &ends[k], n));
        if step == 0 {
            return invalid("a step is 0");
        }
        stride[*a] = step;
        let size = if step > 0 {
            first[*a] = cx.at_least_zero(&start);
            let end = cx.smaller(&end, n);
            let span = cx.at_least_zero(&(end - first[*a].clone()));
            span.ceil_div(&Dim::Const(step))
        } else {
            first[*a] = cx.smaller(&start, &(n.clone() - Dim::ONE));
            let end = cx.at_least_zero(&(end + Dim::ONE));
            let span = cx.at_least_zero(&(first[*a].clone() + Dim::ONE - end));
            let by = step.checked_neg().unwrap_or(i64::MAX);
            span.ceil_div(&Dim::Const(by))
        };
        if size.is(0) {
            (first[*a], stride[*a]) = (Dim::ZERO, 1);
        } else if size.is(1) {
            stride[*a] = 1;
        }
        out[*a] = size;
    }
    Ok(cx.g.slice(x, &first, &stride, &out)?)
}

fn pad_attributes(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let name = if cx.has("paddings") {
        "paddings"
    } else {
        "pads"
    };
    let Some(pads) = cx.ints_attr(name)? else {
        return invalid("pads are missing");
    };
    let value = cx.float_or("value", 0.0)?;
    let value = cx.g.number_like(value, x)?;
    let pads: Vec<Dim> = pads.into_iter().map(Dim::Const).collect();
    let axes: Vec<usize> = (0..ty.rank()).collect();
    pad_axes(cx, x, &pads, &axes, Some(value))
}

pub(super) fn pad(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let pads = cx.input(1)?;
    let pads = cx.extents(pads, i64::MIN)?;
    let axes = match cx.optional(3) {
        Some(v) => {
            let axes = cx.ints(v)?;
            cx.axes(&axes, ty.rank())?
        }
        None => (0..ty.rank()).collect(),
    };
    let value = cx.optional(2);
    pad_axes(cx, x, &pads, &axes, value)
}

fn pad_axes(
    cx: &mut NodeCx<'_, '_>,
    x: ValueId,
    pads: &[Dim],
    axes: &[usize],
    value: Option<ValueId>,
) -> OpResult {
    if pads.len() != 2 * axes.len() {
        return invalid(format!("{} pads for {} axes", pads.len(), axes.len()));
    }
    let rank = cx.g.rank(x);
    let (mut low, mut high) = (vec![Dim::ZERO; rank], vec![Dim::ZERO; rank]);
    for (k, a) in axes.iter().enumerate() {
        low[*a] = pads[k].clone();
        high[*a] = pads[k + axes.len()].clone();
    }
    let mode = cx.text_or("mode", "constant")?;
    if mode == "constant" {
        let value = match value {
            Some(v) => {
                let v = cx.g.reshape(v, &[])?;
                cx.g.cast_like(v, x)?
            }
            None => cx.g.number_like(0.0, x)?,
        };
        return Ok(vec![pad_constant(cx, x, &low, &high, value)?]);
    }
    let mut y = x;
    for a in 0..rank {
        if !low[a].is(0) || !high[a].is(0) {
            y = pad_mirror(cx, y, a, &low[a], &high[a], &mode)?;
        }
    }
    Ok(vec![y])
}

/// A border of one value; a negative amount cuts elements off.
fn pad_constant(
    cx: &mut NodeCx<'_, '_>,
    x: ValueId,
    low: &[Dim],
    high: &[Dim],
    value: ValueId,
) -> OpResult<ValueId> {
    let dims = cx.g.dims(x);
    let cut = |cx: &NodeCx<'_, '_>, d: &Dim| match cx.bounds(d).0 {
        0.. => Dim::ZERO,
        _ => (-d.clone()).larger(&Dim::ZERO),
    };
    let starts: Vec<Dim> = low.iter().map(|d| cut(cx, d)).collect();
    let kept: Vec<Dim> = (0..dims.len())
        .map(|a| {
            let lost = starts[a].clone() + cut(cx, &high[a]);
            match lost.is(0) {
                true => dims[a].clone(),
                false => cx.at_least_zero(&(dims[a].clone() - lost)),
            }
        })
        .collect();
    let x = cx.g.slice(x, &starts, &vec![1; dims.len()], &kept)?;
    let low: Vec<Dim> = low.iter().map(|d| cx.at_least_zero(d)).collect();
    let high: Vec<Dim> = high.iter().map(|d| cx.at_least_zero(d)).collect();
    Ok(cx.g.pad(x, value, &low, &high)?)
}

/// A border along one axis that repeats elements, by gathering: `reflect`, `edge` or `wrap`.
fn pad_mirror(
    cx: &mut NodeCx<'_, '_>,
    x: ValueId,
    axis: usize,
    low: &Dim,
    high: &Dim,
    mode: &str,
) -> OpResult<ValueId> {
    let n = cx.g.dim(x, axis);
    let total = cx.at_least_zero(&(n.clone() + low.clone() + high.clone()));
    let g = &mut *cx.g;
    let at = g.iota(DType::I64, &[total], 0)?;
    let first = g.dim_value(low)?;
    let at = g.binary(Scalar::Sub, at, first)?;
    let last = g.dim_value(&(n.clone() - Dim::ONE))?;
    let (zero, one) = (g.number(0.0, DType::I64)?, g.number(1.0, DType::I64)?);
    let index = match mode {
        "edge" => {
            let at = g.binary(Scalar::Max, at, zero)?;
            g.binary(Scalar::Min, at, last)?
        }
        "wrap" => {
            let n = g.dim_value(&n)?;
            let n = g.binary(Scalar::Max, n, one)?;
            g.binary(Scalar::Mod, at, n)?
        }
        "reflect" => {
            let period = g.binary(Scalar::Add, last, last)?;
            let period = g.binary(Scalar::Max, period, one)?;
            let at = g.binary(Scalar::Mod, at, period)?;
            let back = g.binary(Scalar::Sub, period, at)?;
            g.binary(Scalar::Min, at, back)?
        }
        other => return unsupported(format!("mode '{other}'")),
    };
    super::indexed::take(g, x, axis, index)
}

/// `[n, c, h, w]` split as block sizes allow, permuted, joined.
fn depth_to_space(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let block = block_size(cx)?;
    let [n, c, spatial @ ..] = &ty.dims[..] else {
        return cx.bad_type(x);
    };
    let k = spatial.len();
    let blocks = vec![block.clone(); k];
    let Some(depth) = c.exact_div(&Dim::product(&blocks)).or_else(|| {
        let open = c.as_const().is_none();
        open.then(|| c.floor_div(&Dim::product(&blocks)))
    }) else {
        return invalid(format!(
            "the channels of {ty} do not split into blocks of {block}"
        ));
    };
    // Axes after the split: n, then blocks and depth in the order of the mode, then spatial.
    let (apart, first_block, depth_axis) = match cx.text_or("mode", "DCR")?.as_str() {
        "DCR" => ([blocks, vec![depth.clone()]].concat(), 1, 1 + k),
        "CRD" => ([vec![depth.clone()], blocks].concat(), 2, 1),
        other => return invalid(format!("mode '{other}' does not exist")),
    };
    let split = [std::slice::from_ref(n), &apart[..], spatial].concat();
    let mut perm = vec![0, depth_axis];
    let mut joined = vec![n.clone(), depth];
    for (a, d) in spatial.iter().enumerate() {
        perm.extend([2 + k + a, first_block + a]);
        joined.push(d.clone() * block.clone());
    }
    let y = cx.g.reshape(x, &split)?;
    let y = cx.g.permute(y, &perm)?;
    Ok(vec![cx.g.reshape(y, &joined)?])
}

fn space_to_depth(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let block = block_size(cx)?;
    let [n, c, spatial @ ..] = &ty.dims[..] else {
        return cx.bad_type(x);
    };
    let k = spatial.len();
    let mut split = vec![n.clone(), c.clone()];
    let mut joined = vec![n.clone(), c.clone()];
    for d in spatial {
        if d.as_const().is_some() && d.exact_div(&block).is_none() {
            return invalid(format!(
                "the extents of {ty} do not split into blocks of {block}"
            ));
        }
        split.extend([d.floor_div(&block), block.clone()]);
        joined.push(d.floor_div(&block));
        joined[1] = joined[1].clone() * block.clone();
    }
    let mut perm = vec![0];
    perm.extend((0..k).map(|a| 3 + 2 * a));
    // Channels of the result count blocks first unless the mode says otherwise.
    match cx.text_or("mode", "DCR")?.as_str() {
        "DCR" => perm.push(1),
        "CRD" => perm.insert(1, 1),
        other => return invalid(format!("mode '{other}' does not exist")),
    }
    perm.extend((0..k).map(|a| 2 + 2 * a));
    let y = cx.g.reshape(x, &split)?;
    let y = cx.g.permute(y, &perm)?;
    Ok(vec![cx.g.reshape(y, &joined)?])
}

fn block_size(cx: &NodeCx<'_, '_>) -> OpResult<Dim> {
    match cx.required_int("blocksize")? {
        n @ 1.. => Ok(Dim::Const(n)),
        n => invalid(format!("blocksize {n}")),
    }
}
