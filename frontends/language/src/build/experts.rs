//! Feed-forward parts of experts: every row goes to the few that its weights choose, every expert works on its own rows.

use super::Builder;
use crate::error::Result;
use crate::recipe::Experts;
use cupola_ir::composite::Softmax;
use cupola_ir::dim::Sym;
use cupola_ir::ops::host::NonZero;
use cupola_ir::ops::{Bounds, ReduceKind, Scatter, ScatterKind, Sort};
use cupola_ir::{CoreOp, DType, Dim, HostOp, Op, Scalar, Tensor, ValueId};

/// The three matrices of every expert, as they are stored.
struct Matrices {
    gate: Vec<Tensor>,
    up: Vec<Tensor>,
    down: Vec<Tensor>,
}

impl Builder<'_> {
    /// What the experts of block `i` add to the rows.
    pub(super) fn experts(&mut self, x: ValueId, i: usize, experts: Experts) -> Result<ValueId> {
        let weights = self.routing(x, i, experts)?;
        let matrices = self.matrices(i, experts)?;
        self.part(&format!("blk.{i}.ffn_exps"), "experts");
        let dims = self.graph.dims(x);
        let zero = self.graph.number(0.0, DType::F32)?;
        let mut sum = self.graph.broadcast_to(zero, &dims)?;
        for e in 0..experts.len {
            let own = self.graph.pick(weights, 1, &Dim::from(e))?;
            let chosen = self.chosen(own, &format!("rows.{i}.{e}"))?;
            let rows = self.picked(x, chosen)?;
            let gate = self.product(rows, matrices.gate[e].clone(), false)?;
            let up = self.product(rows, matrices.up[e].clone(), false)?;
            let inner = self.gated(gate, up)?;
            let y = self.product(inner, matrices.down[e].clone(), false)?;
            let own = self.picked(own, chosen)?;
            let own = self.graph.unsqueeze(own, &[1])?;
            let y = self.graph.binary(Scalar::Mul, y, own)?;
            let add = Scatter {
                axes: vec![0],
                batch: 0,
                kind: ScatterKind::Add,
                bounds: Bounds::Check,
            };
            sum = self.graph.one(add, &[sum, y, chosen])?;
        }
        Ok(sum)
    }

    /// The weight of every expert for every row `[rows, experts]`, 0 where it is not chosen.
    fn routing(&mut self, x: ValueId, i: usize, experts: Experts) -> Result<ValueId> {
        let Experts { len, used, .. } = experts;
        let scores = self.linear(x, &format!("blk.{i}.ffn_gate_inp"), len)?;
        let g = &mut self.graph;
        let softmax = Softmax {
            axis: 1,
            log: false,
        };
        let all = g.one(Op::Composite(softmax.into()), &[scores])?;
        let sort = Op::Core(CoreOp::Sort(Sort {
            axis: 1,
            descending: true,
        }));
        let sorted = g.push(sort, &[all])?;
        let first = |g: &mut cupola_ir::Graph, v| g.slice_axis(v, 1, &Dim::ZERO, &used.into());
        let (mut best, which) = (first(g, sorted[0])?, first(g, sorted[1])?);
        if experts.normalised {
            let sum = g.reduce_keep(ReduceKind::Sum, best, &[1])?;
            best = g.binary(Scalar::Div, best, sum)?;
        }
        let dims = g.dims(all);
        let zero = g.number(0.0, DType::F32)?;
        let none = g.broadcast_to(zero, &dims)?;
        let place = Scatter {
            axes: vec![1],
            batch: 1,
            kind: ScatterKind::Set,
            bounds: Bounds::Check,
        };
        Ok(g.one(place, &[none, best, which])?)
    }

    /// Which rows have a weight, as many as the symbol of this name says.
    fn chosen(&mut self, weights: ValueId, name: &str) -> Result<ValueId> {
        let g = &mut self.graph;
        let count = Sym::new(name);
        let op = Op::Host(HostOp::NonZero(NonZero { count }));
        let index = g.one(op, &[weights])?;
        Ok(g.pick(index, 0, &Dim::ZERO)?)
    }

    /// Stored together (gate and value perhaps in one tensor) or expert by expert.
    fn matrices(&self, i: usize, experts: Experts) -> Result<Matrices> {
        let Experts { len, feed_len, .. } = experts;
        let width = self.recipe.width;
        let read = |part: &str, rows: usize, cols: usize| {
            let joined = format!("blk.{i}.ffn_{part}_exps.weight");
            if self.weights.has(&joined) {
                return self.weights.parts(&joined, [len, rows, cols]);
            }
            let one = |e| format!("blk.{i}.ffn_{part}.{e}.weight");
            let each = (0..len).map(|e| self.weights.get(&one(e), &[rows, cols]));
            each.collect()
        };
        let both = format!("blk.{i}.ffn_gate_up_exps.weight");
        let (gate, up) = match self.weights.has(&both) {
            true => {
                let halves = self.weights.parts(&both, [2 * len, feed_len, width])?;
                let (gate, up): (Vec<_>, Vec<_>) = halves
                    .into_iter()
                    .enumerate()
                    .partition(|(at, _)| at % 2 == 0);
                let plain = |half: Vec<(usize, Tensor)>| half.into_iter().map(|(_, t)| t).collect();
                (plain(gate), plain(up))
            }
            false => (read("gate", feed_len, width)?, read("up", feed_len, width)?),
        };
        Ok(Matrices {
            gate,
            up,
            down: read("down", width, feed_len)?,
        })
    }
}
