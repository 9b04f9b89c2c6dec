//! Linear layers and embeddings.

use super::known;
use crate::error::{Result, TrainError};
use crate::init::Init;
use crate::net::Net;
use cupola_ir::ops::{Bounds, Gather};
use cupola_ir::{DType, Scalar, ValueId};

/// Settings of [`Net::embedding`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Embedding {
    /// Number of rows.
    pub rows: usize,
    /// Elements of a row.
    pub width: usize,
    /// A row that begins with zeros and is never learnt.
    pub padding: Option<usize>,
}

impl Embedding {
    /// An embedding without a row for padding.
    pub fn new(rows: usize, width: usize) -> Embedding {
        Embedding {
            rows,
            width,
            padding: None,
        }
    }
}

impl Net {
    /// `x w^T + b` for `x: [.., inputs]`: `[.., outputs]`. Parameters `weight: [outputs, inputs]` and `bias: [outputs]`.
    ///
    /// # Errors
    /// An operand with fewer than two axes, or whose last extent is not known.
    pub fn linear(&mut self, name: &str, x: ValueId, outputs: usize) -> Result<ValueId> {
        let inputs = self.inputs_of_linear(name, x)?;
        let y = self.linear_without_bias(name, x, outputs)?;
        let b = self.parameter(&format!("{name}.bias"), &[outputs], Init::fan_in(inputs))?;
        self.add(y, b)
    }

    /// `x w^T` for `x: [.., inputs]`. Parameter `weight: [outputs, inputs]`.
    ///
    /// # Errors
    /// As [`Net::linear`].
    pub fn linear_without_bias(
        &mut self,
        name: &str,
        x: ValueId,
        outputs: usize,
    ) -> Result<ValueId> {
        let inputs = self.inputs_of_linear(name, x)?;
        let shape = [outputs, inputs];
        let w = self.parameter(&format!("{name}.weight"), &shape, Init::fan_in(inputs))?;
        let w = self.graph.cast_like(w, x)?;
        Ok(self.graph.matmul_nt(x, w)?)
    }

    fn inputs_of_linear(&self, name: &str, x: ValueId) -> Result<usize> {
        match self.graph.rank(x) {
            rank @ 2.. => known(&self.graph, name, x, rank - 1),
            _ => {
                let what = format!(
                    "takes [.., inputs] with a batch axis, not {}",
                    self.graph.ty(x)
                );
                Err(TrainError::layer(name, what))
            }
        }
    }

    /// Rows of a table for indices of any extents: `[.., width]`. Parameter `weight: [rows, width]`. An index outside the table
    /// fails the run.
    ///
    /// # Errors
    /// Indices of no integer type, a row for padding that the table has not.
    pub fn embedding(
        &mut self,
        name: &str,
        index: ValueId,
        settings: &Embedding,
    ) -> Result<ValueId> {
        if !self.graph.dtype(index).is_int() {
            let what = format!("takes whole numbers, not {}", self.graph.ty(index));
            return Err(TrainError::layer(name, what));
        }
        let init = match settings.padding {
            Some(row) if row >= settings.rows => {
                let what = format!("row {row} for padding of {} rows", settings.rows);
                return Err(TrainError::layer(name, what));
            }
            Some(row) => Init::NormalButRow { row },
            None => Init::Normal { deviation: 1.0 },
        };
        let shape = [settings.rows, settings.width];
        let w = self.parameter(&format!("{name}.weight"), &shape, init)?;
        let index = self.graph.cast(index, DType::I64)?;
        let rows = Gather {
            axes: vec![0],
            batch: 0,
            bounds: Bounds::Check,
        };
        let y = self.graph.one(rows, &[w, index])?;
        let Some(row) = settings.padding else {
            return Ok(y);
        };
        let row = self.graph.number(row as f64, DType::I64)?;
        let pads = self.graph.binary(Scalar::Eq, index, row)?;
        let last = self.graph.rank(index);
        let pads = self.graph.unsqueeze(pads, &[last])?;
        let still = self.stop_gradient(y)?;
        let learnt = self.graph.select(pads, still, y)?;
        // The difference is one of gradients.
        self.switch(learnt, y);
        Ok(learnt)
    }
}
