//! Probabilities of classes from comparisons of pairs of classes.

use super::{HostDef, numbers, only, tensor};
use crate::attr::payload;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::{OpDef, may_equal};
use crate::tensor::{Tensor, Value};
use crate::tensor_type::{TensorType, ValueType};

payload! {
    /// Operand `[rows, pairs]` f32: for each pair `i < j` of classes, in order, the probability of `i` against `j`.
    /// Result `[rows, classes]`: the probabilities of the classes that agree best with those of the pairs, by the
    /// second method of Wu, Lin and Weng, "Probability estimates for multi-class classification by pairwise coupling"
    /// (2004): `min sum_{i != j} (r_ji p_i - r_ij p_j)^2`, found iteratively.
    CoupleProbabilities {
        /// Number of classes.
        classes: usize,
    }
}

impl OpDef for CoupleProbabilities {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let x = only(operands, Some(DType::F32))?;
        let pairs = self.classes.checked_mul(self.classes.saturating_sub(1));
        match (&x.dims[..], pairs) {
            ([rows, own], Some(pairs)) if may_equal(own, &Dim::from(pairs / 2)) => Ok(vec![
                TensorType::new(DType::F32, [rows.clone(), Dim::from(self.classes)]).into(),
            ]),
            _ => Err(format!("{x} for pairs of {} classes", self.classes)),
        }
    }
}

impl CoupleProbabilities {
    fn row(&self, pairs: &[f64]) -> Vec<f64> {
        // Of libsvm, whose models these are: probabilities are kept off 0 and 1, and iterated until no residual is
        // above 0.005 / classes, 100 times at most for up to 100 classes.
        const LEAST: f64 = 1e-7;
        let k = self.classes;
        let mut r = vec![0.0; k * k];
        let all = (0..k).flat_map(|i| (i + 1..k).map(move |j| (i, j)));
        for ((i, j), x) in all.zip(pairs) {
            r[i * k + j] = x.clamp(LEAST, 1.0 - LEAST);
            r[j * k + i] = 1.0 - r[i * k + j];
        }
        let mut q = vec![0.0; k * k];
        for t in 0..k {
            for j in (0..k).filter(|j| *j != t) {
                q[t * k + t] += r[j * k + t] * r[j * k + t];
                q[t * k + j] = -r[j * k + t] * r[t * k + j];
            }
        }
        let mut p = vec![1.0 / k as f64; k];
        for _ in 0..k.max(100) {
            let mut qp: Vec<f64> = (0..k)
                .map(|t| (0..k).map(|j| q[t * k + j] * p[j]).sum())
                .collect();
            let mut pqp: f64 = p.iter().zip(&qp).map(|(p, q)| p * q).sum();
            let error = qp.iter().map(|x| (x - pqp).abs()).fold(0.0, f64::max);
            if error < 0.005 / k as f64 {
                break;
            }
            for t in 0..k {
                let step = (pqp - qp[t]) / q[t * k + t];
                let grown = 1.0 + step;
                p[t] += step;
                pqp = (pqp + step * (step * q[t * k + t] + 2.0 * qp[t])) / grown / grown;
                for j in 0..k {
                    qp[j] = (qp[j] + step * q[t * k + j]) / grown;
                    p[j] /= grown;
                }
            }
        }
        p
    }
}

impl HostDef for CoupleProbabilities {
    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String> {
        let x = tensor(operands, 0)?;
        let [rows, pairs] = x.shape() else {
            return Err(format!("takes [rows, pairs], not {x:?}"));
        };
        if *pairs != self.classes * self.classes.saturating_sub(1) / 2 {
            return Err(format!("{pairs} pairs of {} classes", self.classes));
        }
        let all = numbers(operands, 0)?;
        let out = (0..*rows).flat_map(|i| self.row(&all[i * pairs..(i + 1) * pairs]));
        let out: Vec<f32> = out.map(|p| p as f32).collect();
        let out = Tensor::from_slice(&[*rows, self.classes], &out);
        Ok(vec![out.ok_or("a result of another length")?.into()])
    }
}
