//! Products: both operands' gradients are products again, in the order of operands that leaves their axes in place.

use super::{Grads, Ir, Site};
use cupola_ir::dtype::Class;
use cupola_ir::ops::Contract;
use cupola_ir::{DType, Graph, ValueId};

pub(super) fn contract(g: &mut Graph, site: &Site, p: &Contract, dy: ValueId) -> Grads {
    let (lhs, rhs) = (site.operands[0], site.operands[1]);
    let batch = p.lhs_batch.len();
    let lhs_free = Contract::free(g.rank(lhs), &p.lhs_batch, &p.lhs_contract);
    let rhs_free = Contract::free(g.rank(rhs), &p.rhs_batch, &p.rhs_contract);
    // The axes of dy: batch, those of lhs, those of rhs.
    let (of_lhs, of_rhs) = (batch, batch + lhs_free.len());
    let end = of_rhs + rhs_free.len();
    let lhs_side = Side {
        dtype: g.dtype(lhs),
        batch: &p.lhs_batch,
        contract: &p.lhs_contract,
        free: &lhs_free,
    };
    let rhs_side = Side {
        dtype: g.dtype(rhs),
        batch: &p.rhs_batch,
        contract: &p.rhs_contract,
        free: &rhs_free,
    };
    let mut grads = vec![None, None];
    if site.wanted[0] {
        let own = (of_lhs..of_rhs).collect();
        let summed = (of_rhs..end).collect();
        grads[0] = Some(operand(g, p, &lhs_side, &rhs_side, rhs, dy, (own, summed))?);
    }
    if site.wanted[1] {
        let own = (of_rhs..end).collect();
        let summed = (of_lhs..of_rhs).collect();
        grads[1] = Some(operand(g, p, &rhs_side, &lhs_side, lhs, dy, (own, summed))?);
    }
    Ok(grads)
}

/// The axes of an operand by role.
struct Side<'a> {
    dtype: DType,
    batch: &'a [usize],
    contract: &'a [usize],
    free: &'a [usize],
}

/// The gradient of the operand `this`: `dy` times the other operand, summed over the other's free axes. Of dy's axes
/// `own` are the free ones of this operand and `summed` those of the other.
fn operand(
    g: &mut Graph,
    p: &Contract,
    this: &Side,
    that: &Side,
    other: ValueId,
    dy: ValueId,
    (own, summed): (Vec<usize>, Vec<usize>),
) -> Ir<ValueId> {
    // Both factors in the type of the other operand, as in the product itself.
    let (mut other, mut dy) = (other, dy);
    if that.dtype.class() == Class::Block {
        other = g.cast_like(other, dy)?;
    } else {
        dy = g.cast_like(dy, other)?;
    }
    let batch: Vec<usize> = (0..p.lhs_batch.len()).collect();
    // What is left of the other operand are its contracted axes, in its own order.
    let mut rest: Vec<usize> = (0..that.contract.len()).collect();
    rest.sort_unstable_by_key(|k| that.contract[*k]);
    let rest: Vec<usize> = rest.into_iter().map(|k| this.contract[k]).collect();
    let own_first: Vec<usize> = [this.batch, this.free, &rest].concat();
    let rest_first: Vec<usize> = [this.batch, &rest, this.free].concat();
    let in_place = |axes: &[usize]| axes.iter().enumerate().all(|(i, a)| i == *a);
    let swap = !in_place(&own_first) && (in_place(&rest_first) || own.is_empty());
    let accum = g.accumulator(g.dtype(dy));
    let product = |lhs_batch: &[usize], rhs_batch: &[usize], l: &[usize], r: &[usize]| Contract {
        lhs_batch: lhs_batch.to_vec(),
        rhs_batch: rhs_batch.to_vec(),
        lhs_contract: l.to_vec(),
        rhs_contract: r.to_vec(),
        accum,
        out: this.dtype,
    };
    let (result, places) = if swap {
        let c = product(that.batch, &batch, that.free, &summed);
        (g.one(c, &[other, dy])?, rest_first)
    } else {
        let c = product(&batch, that.batch, &summed, that.free);
        (g.one(c, &[dy, other])?, own_first)
    };
    let back = super::view::inverse(&places);
    g.permute(result, &back)
}
