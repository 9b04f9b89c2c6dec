//! Recurrent layers, stacked, in one or both directions.

use super::known;
use crate::error::{Result, TrainError};
use crate::init::Init;
use crate::net::Net;
use cupola_ir::composite::{self, Cell};
use cupola_ir::{Dim, Op, ValueId};

/// Settings of [`Net::recurrent`].
#[derive(Clone, Debug, PartialEq)]
pub struct Recurrent {
    /// Kind of cell. A plain cell computes the hyperbolic tangent.
    pub cell: Cell,
    /// Elements of the state.
    pub hidden: usize,
    /// Layers above each other.
    pub layers: usize,
    /// A second layer from the last step to the first beside each.
    pub bidirectional: bool,
    /// Operand and result are `[batch, steps, ..]` instead of `[steps, batch, ..]`.
    pub batch_first: bool,
    /// Probability of dropout after each layer but the last.
    pub dropout: f64,
    /// Whether there are biases.
    pub bias: bool,
    /// A plain cell computes `max(x, 0)` instead.
    pub relu: bool,
}

impl Recurrent {
    /// One layer in one direction with biases, batch first.
    pub fn new(cell: Cell, hidden: usize) -> Recurrent {
        Recurrent {
            cell,
            hidden,
            layers: 1,
            bidirectional: false,
            batch_first: true,
            dropout: 0.0,
            bias: true,
            relu: false,
        }
    }

    /// Long short-term memory.
    pub fn lstm(hidden: usize) -> Recurrent {
        Recurrent::new(Cell::Lstm, hidden)
    }

    /// Gated recurrent units.
    pub fn gru(hidden: usize) -> Recurrent {
        Recurrent::new(Cell::Gru, hidden)
    }

    /// Where each gate's rows of the composite lie in PyTorch's parameters: i, o, f, c of i, f, g, o; z, r, h of r, z, n.
    fn gates(&self) -> &'static [usize] {
        match self.cell {
            Cell::Rnn => &[0],
            Cell::Gru => &[1, 0, 2],
            Cell::Lstm => &[0, 3, 1, 2],
        }
    }

    fn op(&self, reverse: bool) -> composite::Recurrent {
        let activations: &[&str] = match self.cell {
            Cell::Rnn if self.relu => &["relu"],
            Cell::Rnn => &["tanh"],
            Cell::Gru => &["sigmoid", "tanh"],
            Cell::Lstm => &["sigmoid", "tanh", "tanh"],
        };
        composite::Recurrent {
            cell: self.cell,
            activations: activations.iter().map(|a| a.to_string()).collect(),
            alpha: vec![],
            beta: vec![],
            clip: 0.0,
            input_forget: false,
            linear_before_reset: self.cell == Cell::Gru,
            reverse,
            bias: self.bias,
            lens: false,
            peephole: false,
            quantized: false,
        }
    }
}

/// Results of [`Net::recurrent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecurrentOut {
    /// States of the last layer at every step: `[batch, steps, directions * hidden]`, or steps first.
    pub y: ValueId,
    /// Last states: `[layers * directions, batch, hidden]`.
    pub h: ValueId,
    /// Last cell states of an lstm, of the same extents.
    pub c: Option<ValueId>,
}

impl Net {
    /// A recurrent network over `x: [batch, steps, inputs]` (or steps first) from states of zeros. For layer `k`, parameters
    /// `weight_ih_lk: [gates * hidden, inputs]`, `weight_hh_lk: [gates * hidden, hidden]`, `bias_ih_lk` and `bias_hh_lk`:
    /// `[gates * hidden]`, those of the other direction with `_reverse`; gates in the order i, f, g, o (lstm) and r, z, n (gru).
    ///
    /// # Errors
    /// An operand of other than three axes, or whose last extent is not known; no layers.
    pub fn recurrent(&mut self, name: &str, x: ValueId, r: &Recurrent) -> Result<RecurrentOut> {
        if self.graph.rank(x) != 3 || r.layers == 0 || r.hidden == 0 {
            let ty = self.graph.ty(x);
            let what =
                format!("takes [batch, steps, inputs], a state and a layer at least, not {ty}");
            return Err(TrainError::layer(name, what));
        }
        known(&self.graph, name, x, 2)?;
        let mut y = match r.batch_first {
            true => self.graph.permute(x, &[1, 0, 2])?,
            false => x,
        };
        let directions: &[bool] = if r.bidirectional {
            &[false, true]
        } else {
            &[false]
        };
        let (mut h, mut c) = (vec![], vec![]);
        for layer in 0..r.layers {
            let mut ys = vec![];
            for reverse in directions {
                let out = self.one_direction(name, y, r, layer, *reverse)?;
                ys.push(out[0]);
                h.push(self.graph.unsqueeze(out[1], &[0])?);
                if let Some(state) = out.get(2) {
                    c.push(self.graph.unsqueeze(*state, &[0])?);
                }
            }
            y = self.graph.concat(&ys, 2)?;
            if layer + 1 < r.layers {
                y = self.dropout(y, r.dropout)?;
            }
        }
        let y = match r.batch_first {
            true => self.graph.permute(y, &[1, 0, 2])?,
            false => y,
        };
        let h = self.graph.concat(&h, 0)?;
        let c = match c.is_empty() {
            true => None,
            false => Some(self.graph.concat(&c, 0)?),
        };
        Ok(RecurrentOut { y, h, c })
    }

    /// One layer in one direction over `x: [steps, batch, inputs]`: its states and the last ones.
    fn one_direction(
        &mut self,
        name: &str,
        x: ValueId,
        r: &Recurrent,
        layer: usize,
        reverse: bool,
    ) -> Result<Vec<ValueId>> {
        let suffix = if reverse { "_reverse" } else { "" };
        let label = |what: &str| match name.is_empty() {
            true => format!("{what}_l{layer}{suffix}"),
            false => format!("{name}.{what}_l{layer}{suffix}"),
        };
        let inputs = known(&self.graph, name, x, 2)?;
        let rows = r.cell.gates() * r.hidden;
        let init = Init::fan_in(r.hidden);
        let w = self.parameter(&label("weight_ih"), &[rows, inputs], init.clone())?;
        let u = self.parameter(&label("weight_hh"), &[rows, r.hidden], init.clone())?;
        let (w, u) = (self.reordered(w, r)?, self.reordered(u, r)?);
        let batch = self.graph.dim(x, 1);
        let zero = self.graph.number_like(0.0, x)?;
        let state = self
            .graph
            .broadcast_to(zero, &[batch, Dim::from(r.hidden)])?;
        let mut operands = vec![x, w, u, state];
        if r.cell == Cell::Lstm {
            operands.push(state);
        }
        if r.bias {
            let a = self.parameter(&label("bias_ih"), &[rows], init.clone())?;
            let b = self.parameter(&label("bias_hh"), &[rows], init)?;
            let (a, b) = (self.reordered(a, r)?, self.reordered(b, r)?);
            operands.push(self.graph.concat(&[a, b], 0)?);
        }
        let op = Op::Composite(r.op(reverse).into());
        Ok(self.graph.push(op, &operands)?.to_vec())
    }

    /// A parameter's rows with the gates in the composite's order.
    fn reordered(&mut self, w: ValueId, r: &Recurrent) -> Result<ValueId> {
        let hidden = Dim::from(r.hidden);
        let parts = r.gates().iter().map(|gate| {
            let start = Dim::from(gate * r.hidden);
            self.graph.slice_axis(w, 0, &start, &hidden)
        });
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        Ok(self.graph.concat(&parts, 0)?)
    }
}
