//! What a step computes together with the other shards of its batch.
//!
//! A batch may be cut into shards, each computed by a copy of the program (a virtual replica) on its own samples. The loss of
//! the batch is the sum of the shards' losses, each times the share of samples that the shard has; gradients are sums over
//! shards, taken in one order whatever process computes which (see [`Collective`]). A shard without samples computes some
//! with a share of 0, and changes nothing. A mean over targets that count (others are ignored) is divided by what the shards
//! have together, and not by the shard's own number, which may be 0.

use crate::error::Result;
use crate::net::Net;
use cupola_ir::ops::{Collective, CollectiveKind};
use cupola_ir::{DType, Graph, Scalar, TensorType, ValueId};

/// Input of a step of several shards: the shard's share of the samples of the batch (scalar of [`Net::dtype`]).
pub const SHARE: &str = "shard.share";

/// The other shards of a step under construction.
pub(crate) struct Shards {
    count: usize,
    share: ValueId,
}

impl Shards {
    /// Adds the input that tells a shard's share.
    pub fn declare(graph: &mut Graph, count: usize, dtype: DType) -> Result<Shards> {
        let share = graph.input(SHARE, TensorType::scalar(dtype))?;
        Ok(Shards { count, share })
    }

    /// The values as all shards together have them.
    fn collect(&self, g: &mut Graph, kind: CollectiveKind, x: ValueId) -> Result<ValueId> {
        let replicas = self.count;
        Ok(g.one(Collective { kind, replicas }, &[x])?)
    }

    /// A value times the shard's share.
    pub fn weigh(&self, g: &mut Graph, x: ValueId) -> Result<ValueId> {
        let share = g.cast_like(self.share, x)?;
        Ok(g.binary(Scalar::Mul, x, share)?)
    }

    /// The mean over the batch of a mean over the shard.
    pub fn mean(&self, g: &mut Graph, x: ValueId) -> Result<ValueId> {
        let weighed = self.weigh(g, x)?;
        self.collect(g, CollectiveKind::AllReduceSum, weighed)
    }

    /// The sum over shards.
    pub fn sum(&self, g: &mut Graph, x: ValueId) -> Result<ValueId> {
        self.collect(g, CollectiveKind::AllReduceSum, x)
    }

    /// What the first shard has.
    pub fn first(&self, g: &mut Graph, x: ValueId) -> Result<ValueId> {
        self.collect(g, CollectiveKind::Broadcast, x)
    }

    /// Makes shards agree on means over the batch, so that batch norm sees all of it.
    pub fn agree(&self, net: &Net, g: &mut Graph) -> Result<()> {
        for mean in &net.batch_means {
            let all = self.mean(g, *mean)?;
            redirect(g, *mean, all);
        }
        for count in &net.batch_counts {
            let all = self.total(g, *count)?.0;
            redirect(g, *count, all);
        }
        Ok(g.sort()?)
    }

    /// Makes shards divide their sums over targets by what all have together. Since losses are weighed by the share of samples,
    /// the divisor is that many times smaller. Totals need targets only, so they come first: they travel during the forward pass.
    pub fn agree_on_totals(&self, net: &Net, g: &mut Graph) -> Result<()> {
        let mut first = vec![];
        for total in &net.totals {
            let (all, has) = self.total(g, *total)?;
            first.push(all);
            let own = self.weigh(g, all)?;
            // A shard without samples has no share to divide by; what it computes counts for nothing.
            let one = g.number_like(1.0, own)?;
            let own = g.select(has, own, one)?;
            redirect(g, *total, own);
        }
        Ok(g.bring_forward(&first)?)
    }

    /// The sum over shards that have samples, and whether this one has some: samples that stand in are not counted.
    fn total(&self, g: &mut Graph, x: ValueId) -> Result<(ValueId, ValueId)> {
        let none = g.number_like(0.0, self.share)?;
        let has = g.binary(Scalar::Lt, none, self.share)?;
        let none = g.number_like(0.0, x)?;
        let own = g.select(has, x, none)?;
        Ok((self.sum(g, own)?, has))
    }
}

/// Makes all uses of a value uses of what the last nodes made of it.
fn redirect(g: &mut Graph, old: ValueId, new: ValueId) {
    let users = g.users()[old.index()].clone();
    g.replace(old, new);
    // The newest node that used the value is the one that `new` is made of.
    if let Some(own) = users.last() {
        for v in &mut g.node_mut(*own).operands {
            if *v == new {
                *v = old;
            }
        }
    }
}
