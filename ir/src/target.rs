//! What the passes know of a backend: plain facts.

use crate::dtype::DType;
use crate::ops::Op;
use crate::scalar::Scalar;
use crate::tensor_type::TensorType;

/// Answer to the question whether a backend has a library kernel for an op.
#[derive(Clone, Debug, PartialEq)]
pub enum Claim {
    /// It has.
    Yes {
        /// Whether operands may be strided views (transposed, sliced, broadcast); otherwise they are made dense first.
        strided: bool,
        /// Whether an elementwise epilogue can be fused.
        epilogue: bool,
        /// Whether operands may lie in memory as another one of f32, f16 and bf16, to be converted when read.
        converts: bool,
    },
    /// It has not, and why.
    No {
        /// Reason, for `explain`.
        reason: String,
    },
}

/// Which units may be given one buffer as an operand and as a result, where they read it only at the element that they write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aliasing {
    /// None.
    None,
    /// Generated kernels.
    Kernels,
    /// Library units too, for what their epilogues read.
    Units,
}

/// Facts about a device and the backend that compiles for it.
#[derive(Clone, Debug)]
pub struct Target {
    /// Device name as in `--device`.
    pub name: String,
    /// Dtypes that generated kernels can load, compute on and store.
    pub dtypes: Vec<DType>,
    /// Scalar functions that generated kernels have; `legalize` expands others where it can.
    pub scalars: Vec<Scalar>,
    /// Most buffer arguments of a unit.
    pub max_buffers: usize,
    /// Alignment of buffer offsets in bytes.
    pub alignment: usize,
    /// Most bytes one buffer argument may span.
    pub max_binding: u64,
    /// Which units may write a result over an operand.
    pub aliasing: Aliasing,
    /// Whether a scatter can write its updates into its data, given as both data and result: what no update goes to is
    /// neither read nor written then.
    pub scatters_in_place: bool,
    /// Whether a unit that joins parts best writes one part after the other; otherwise every element chooses its part.
    pub joins_in_turn: bool,
    /// Whether products of f16 are faster than those of f32, so that factors of that type are worth making. Sums are f32 all
    /// the same.
    pub half_factors: bool,
    /// Whether the backend has a library kernel for an op on these operands.
    pub claim: fn(&Op, &[&TensorType]) -> Claim,
}

impl Target {
    /// Whether generated kernels can handle a dtype.
    pub fn has_dtype(&self, dtype: DType) -> bool {
        self.dtypes.contains(&dtype)
    }
}
