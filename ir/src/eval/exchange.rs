//! What collectives of several replicas compute, and the way to the others.

use super::{join, op};
use crate::dtype::DType;
use crate::ops::{Collective, CollectiveKind, Map};
use crate::scalar::Scalar;
use crate::tensor::Tensor;
use std::fmt;
use std::sync::Arc;

/// Results of a collective for this replica's operands.
pub type Exchanging = dyn Fn(&Collective, &[&Tensor]) -> Result<Vec<Tensor>, String> + Send + Sync;

/// The way to the other replicas: gives the results of a collective for this replica's operands.
#[derive(Clone)]
pub struct Exchange(pub Arc<Exchanging>);

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exchange")
    }
}

/// What two neighbours, or two neighbouring groups of replicas, make of one operand; `lower` is that with the lower numbers.
///
/// # Errors
/// Operands of different types, and dtypes that cannot be added or compared.
pub fn combine(kind: CollectiveKind, lower: &Tensor, upper: &Tensor) -> Result<Tensor, String> {
    let apart = || {
        let [lower, upper] = [lower.ty(), upper.ty()];
        format!("replicas give {lower} and {upper}")
    };
    if kind != CollectiveKind::Broadcast && lower.ty() != upper.ty() {
        return Err(apart());
    }
    let map = |f: Scalar| op::map(&Map { f }, &[lower, upper]);
    match kind {
        CollectiveKind::AllReduceSum => map(Scalar::Add),
        CollectiveKind::AllReduceMax if lower.dtype() == DType::Bool => map(Scalar::Or),
        CollectiveKind::AllReduceMax => map(Scalar::Max),
        CollectiveKind::AllGather => join(&[lower, upper], 0),
        CollectiveKind::Broadcast => Ok(lower.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_joined_in_their_order() {
        let (a, b) = (
            Tensor::vector(&[1.0f32, -2.0]),
            Tensor::vector(&[3.0f32, 5.0]),
        );
        let got = |kind| combine(kind, &a, &b).expect("a tensor").to_vec::<f32>();
        assert_eq!(got(CollectiveKind::AllReduceSum), Some(vec![4.0, 3.0]));
        assert_eq!(got(CollectiveKind::AllReduceMax), Some(vec![3.0, 5.0]));
        assert_eq!(
            got(CollectiveKind::AllGather),
            Some(vec![1.0, -2.0, 3.0, 5.0])
        );
        assert_eq!(got(CollectiveKind::Broadcast), Some(vec![1.0, -2.0]));
        let other = Tensor::vector(&[1i32, 2]);
        let error = combine(CollectiveKind::AllReduceSum, &a, &other).expect_err("types");
        assert!(error.contains("replicas give"), "{error}");
        let bools = [[1, 0], [0, 0]].map(|bits| {
            let bytes = bytes::Bytes::copy_from_slice(&bits);
            Tensor::new(DType::Bool, vec![2], bytes).expect("bools")
        });
        let any = combine(CollectiveKind::AllReduceMax, &bools[0], &bools[1]);
        assert_eq!(any.expect("bools").bytes(), [1, 0]);
        assert!(combine(CollectiveKind::AllReduceSum, &bools[0], &bools[1]).is_err());
    }
}
