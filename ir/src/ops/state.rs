//! Effects: state slots, random numbers, communication, devices and run-time sizes.

use super::{OpDef, tensors};
use crate::attr::{attr_enum, payload};
use crate::dim::{Dim, Sym};
use crate::dtype::DType;
use crate::tensor_type::{TensorType, ValueType};

payload! {
    /// The value that a state slot had when the run began.
    ReadState {
        /// Slot name.
        slot: String,
        /// Type; its symbols are bound by what the slot holds.
        ty: ValueType,
    }
}

impl OpDef for ReadState {
    fn infer(&self, _: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        Ok(vec![self.ty.clone()])
    }
}

payload! {
    /// Makes the operand the slot's value after the run; one writer per slot and run. The result is the operand.
    WriteState {
        /// Slot name.
        slot: String,
    }
}

impl OpDef for WriteState {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let [x] = operands else {
            return Err("takes 1 operand".into());
        };
        Ok(vec![(*x).clone()])
    }
}

payload! {
    /// Random bits `u32` by Philox-4x32-10 (Salmon et al., 2011), the same on every device. Element `i` is word
    /// `i mod 4` of the block whose counter words are (low and high half of `i / 4`, low and high half of the run
    /// number) and whose key words are the low and high half of `seed xor (stream * 0x9E3779B97F4A7C15 mod 2^64)`.
    Random {
        /// Distinguishes the random ops of a graph.
        stream: u64,
        /// Extents.
        dims: Vec<Dim>,
    }
}

impl OpDef for Random {
    fn infer(&self, _: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        Ok(vec![
            TensorType {
                dtype: DType::U32,
                dims: self.dims.clone(),
            }
            .into(),
        ])
    }
}

attr_enum! {
    /// A communication pattern between replicas.
    CollectiveKind {
        /// Sum over replicas, the same everywhere.
        AllReduceSum = "all_reduce_sum",
        /// Largest over replicas, the same everywhere.
        AllReduceMax = "all_reduce_max",
        /// Operands of all replicas joined along axis 0.
        AllGather = "all_gather",
        /// The first replica's operand.
        Broadcast = "broadcast",
    }
}

payload! {
    /// Communication between `replicas` copies of the program: one result for each operand, taken together so that they travel
    /// together. With one replica it is the identity. Sums and largest values are taken in a fixed order, in the operands' type:
    /// neighbours first, then neighbouring pairs, and so on, so `(x0 + x1) + (x2 + x3)` of four. Every replica runs the same
    /// collectives in the same order, on operands of equal types.
    Collective {
        /// Pattern.
        kind: CollectiveKind,
        /// Number of replicas.
        replicas: usize,
    }
}

impl OpDef for Collective {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let all = tensors(operands, None)?;
        if all.is_empty() {
            return Err("takes operands".into());
        }
        let results = all.into_iter().map(|t| {
            let mut t = t.clone();
            if self.kind == CollectiveKind::AllGather {
                let first = t.dims.first_mut().ok_or("a scalar cannot be gathered")?;
                *first = first.clone() * Dim::from(self.replicas);
            }
            Ok(t.into())
        });
        results.collect()
    }
}

payload! {
    /// A copy of the operand on another device.
    Transfer {
        /// Device name as the runtime knows it.
        to: String,
    }
}

impl OpDef for Transfer {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        Ok(vec![tensors(operands, Some(1))?[0].clone().into()])
    }
}

payload! {
    /// Binds a symbol to the operand (`i64[]`) when run; the result is the operand. Ops that use the symbol run after.
    BindDim {
        /// The symbol.
        sym: Sym,
        /// Smallest allowed value; a smaller one fails the run.
        min: i64,
    }
}

impl OpDef for BindDim {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let x = tensors(operands, Some(1))?[0];
        if x.dtype != DType::I64 || x.rank() != 0 {
            return Err(format!("takes a scalar i64, not {x}"));
        }
        Ok(vec![ValueType::Tensor(x.clone())])
    }
}
