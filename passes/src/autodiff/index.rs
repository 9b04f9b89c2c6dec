//! Elements by index: what was gathered is scattered back, and the other way round.

use super::{Grads, Ir, Site, splat, zeros};
use cupola_ir::ops::{Bounds, Gather, Scatter, ScatterKind, Sort};
use cupola_ir::{DType, Dim, Graph, Scalar, ValueId};

/// Elements that were taken more than once add up, in f32 at least.
pub(super) fn gather(g: &mut Graph, site: &Site, p: &Gather, dy: ValueId) -> Grads {
    let (data, indices) = (site.operands[0], &site.operands[1..]);
    let dtype = g.dtype(data);
    let mut grads = vec![None; site.operands.len()];
    if let [index] = indices
        && p.axes == [p.batch]
        && g.rank(*index) == p.batch
    {
        grads[0] = Some(picked(g, p, data, *index, dy)?);
        return Ok(grads);
    }
    let wide = g.accumulator(dtype);
    let zeros = splat(g, 0.0, wide, &g.dims(data))?;
    let dy = g.cast(dy, wide)?;
    let scatter = Scatter {
        axes: p.axes.clone(),
        batch: p.batch,
        kind: ScatterKind::Add,
        bounds: p.bounds,
    };
    let dx = g.one(scatter, &[&[zeros, dy], indices].concat())?;
    grads[0] = Some(g.cast(dx, dtype)?);
    Ok(grads)
}

/// One element along an axis for each of the batch (as of scores by label): a comparison with the index, which fuses with
/// whatever follows.
fn picked(g: &mut Graph, p: &Gather, data: ValueId, index: ValueId, dy: ValueId) -> Ir<ValueId> {
    let dims = g.dims(data);
    let mut index = index;
    if p.bounds == Bounds::Clamp {
        let last = g.dim_value(&(dims[p.batch].clone() - Dim::ONE))?;
        let first = g.number(0.0, DType::I64)?;
        index = g.binary(Scalar::Min, index, last)?;
        index = g.binary(Scalar::Max, index, first)?;
    }
    let own = g.iota(DType::I64, &dims, p.batch)?;
    let inner: Vec<Dim> = vec![Dim::ONE; dims.len() - p.batch];
    let index = g.reshape(index, &[&dims[..p.batch], &inner[..]].concat())?;
    let hit = g.binary(Scalar::Eq, own, index)?;
    let dy = g.unsqueeze(dy, &[p.batch])?;
    let dy = g.broadcast_to(dy, &dims)?;
    let zero = g.number_like(0.0, dy)?;
    g.select(hit, dy, zero)
}

/// Gradients of data and updates. Of updates that replace the same element each gets its cotangent, though only the last
/// counts: writing twice in one scatter has no order in most frameworks.
pub(super) fn scatter(g: &mut Graph, site: &Site, p: &Scatter, dy: ValueId) -> Grads {
    let [data, updates, indices @ ..] = &site.operands[..] else {
        return Ok(vec![None; site.operands.len()]);
    };
    let cx = Written {
        p,
        data: *data,
        updates: *updates,
        result: site.results[0],
        indices,
    };
    let (of_data, of_updates) = match p.kind {
        ScatterKind::Set => {
            let ty = g.ty(*updates).clone();
            let none = zeros(g, &ty)?;
            let old = cx.write(g, dy, none, ScatterKind::Set)?;
            (old, cx.read(g, dy)?)
        }
        ScatterKind::Add => (dy, cx.read(g, dy)?),
        ScatterKind::Mul => cx.multiplied(g, dy)?,
        ScatterKind::Max | ScatterKind::Min => cx.extreme(g, dy)?,
    };
    let mut grads = vec![None; site.operands.len()];
    (grads[0], grads[1]) = (Some(of_data), Some(of_updates));
    Ok(grads)
}

/// A scatter and its operands.
struct Written<'a> {
    p: &'a Scatter,
    data: ValueId,
    updates: ValueId,
    result: ValueId,
    indices: &'a [ValueId],
}

impl Written<'_> {
    /// What lies where the updates went; 0 for those that went nowhere.
    fn read(&self, g: &mut Graph, x: ValueId) -> Ir<ValueId> {
        let gather = Gather {
            axes: self.p.axes.clone(),
            batch: self.p.batch,
            bounds: self.p.bounds,
        };
        g.one(gather, &[&[x], self.indices].concat())
    }

    fn write(
        &self,
        g: &mut Graph,
        data: ValueId,
        updates: ValueId,
        kind: ScatterKind,
    ) -> Ir<ValueId> {
        let scatter = Scatter {
            kind,
            ..self.p.clone()
        };
        g.one(scatter, &[&[data, updates], self.indices].concat())
    }

    /// `r = data * u1 * u2 ..`: an update that is 0 gets its cotangent from the data alone, which is all there is unless
    /// several met.
    fn multiplied(&self, g: &mut Graph, dy: ValueId) -> Ir<(ValueId, ValueId)> {
        let ones = splat(g, 1.0, g.dtype(self.data), &g.dims(self.data))?;
        let factor = self.write(g, ones, self.updates, ScatterKind::Mul)?;
        let of_data = g.binary(Scalar::Mul, dy, factor)?;
        let whole = g.binary(Scalar::Mul, dy, self.result)?;
        let whole = self.read(g, whole)?;
        let shared = g.binary(Scalar::Div, whole, self.updates)?;
        let alone = g.binary(Scalar::Mul, dy, self.data)?;
        let alone = self.read(g, alone)?;
        let zero = g.number_like(0.0, dy)?;
        let is_zero = g.binary(Scalar::Eq, self.updates, zero)?;
        Ok((of_data, g.select(is_zero, alone, shared)?))
    }

    /// Old value and updates that are the result share alike.
    fn extreme(&self, g: &mut Graph, dy: ValueId) -> Ir<(ValueId, ValueId)> {
        let dtype = g.dtype(dy);
        let kept = g.binary(Scalar::Eq, self.data, self.result)?;
        let there = self.read(g, self.result)?;
        let taken = g.binary(Scalar::Eq, self.updates, there)?;
        let (old, new) = (g.cast(kept, dtype)?, g.cast(taken, dtype)?);
        let count = self.write(g, old, new, ScatterKind::Add)?;
        let share = g.binary(Scalar::Div, dy, count)?;
        let zero = g.number_like(0.0, dy)?;
        let of_data = g.select(kept, share, zero)?;
        let of_updates = self.read(g, share)?;
        Ok((of_data, g.select(taken, of_updates, zero)?))
    }
}

/// Sorted values go back where they came from.
pub(super) fn sort(
    g: &mut Graph,
    p: &Sort,
    x: ValueId,
    order: ValueId,
    dy: ValueId,
) -> Ir<ValueId> {
    let rank = g.rank(x);
    let last: Vec<usize> = (0..rank).filter(|a| *a != p.axis).chain([p.axis]).collect();
    let (dy, order) = (g.permute(dy, &last)?, g.permute(order, &last)?);
    let none = splat(g, 0.0, g.dtype(dy), &g.dims(dy))?;
    let scatter = Scatter {
        axes: vec![rank - 1],
        batch: rank - 1,
        kind: ScatterKind::Set,
        bounds: Bounds::Clamp,
    };
    let dx = g.one(scatter, &[none, dy, order])?;
    g.permute(dx, &super::view::inverse(&last))
}
