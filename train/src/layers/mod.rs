//! Layers: functions of [`crate::Net`] that declare parameters, named and initialised as those of PyTorch's modules, and append
//! the forward pass. A layer's name is the prefix of its parameters: `fc1` has `fc1.weight` and `fc1.bias`.
//!
//! Functions of the same kind take a settings struct where there is something to set, whose `new` has the usual settings.

mod activation;
mod attention;
mod conv;
mod linear;
mod norm;
mod pool;
mod recurrent;
mod shape;

pub use attention::SelfAttention;
pub use conv::{Conv, ConvTranspose};
pub use linear::Embedding;
pub use norm::BatchNorm;
pub use pool::Pool;
pub use recurrent::{Recurrent, RecurrentOut};

use crate::error::{Result, TrainError};
use cupola_ir::{Graph, ValueId};

/// A constant extent, which parameters take their shape from.
pub(crate) fn known(g: &Graph, layer: &str, x: ValueId, axis: usize) -> Result<usize> {
    let extent = g.dims(x).get(axis).and_then(|d| d.as_const());
    extent.and_then(|n| usize::try_from(n).ok()).ok_or_else(|| {
        let what = format!("axis {axis} of {} must have a known extent", g.ty(x));
        TrainError::layer(layer, what)
    })
}

/// A settings list with one entry per axis, or one entry for all.
pub(crate) fn per_axis<T: Copy>(layer: &str, what: &str, values: &[T], n: usize) -> Result<Vec<T>> {
    match values {
        [one] => Ok(vec![*one; n]),
        all if all.len() == n => Ok(all.to_vec()),
        all => {
            let what = format!("{} values of {what} for {n} axes", all.len());
            Err(TrainError::layer(layer, what))
        }
    }
}
