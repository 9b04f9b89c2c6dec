//! Library units: ops that a backend runs by a hand-written kernel.

use super::{Access, Extent, Kernel, extent_in};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::ops::Op;

/// A strided view of a buffer argument: element `i` is at `offset + sum(i[a] * strides[a])`. A stride of 0 repeats.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// Element type in memory.
    pub dtype: DType,
    /// Element type that the op takes: another one of f32, f16 and bf16 is converted when read, to nearest even. A
    /// result's is `dtype`.
    pub read: DType,
    /// Extents.
    pub dims: Vec<Extent>,
    /// Elements from one index to the next, per axis.
    pub strides: Vec<Extent>,
    /// Element offset of the first element.
    pub offset: Extent,
}

/// A call of a backend's hand-written kernel. Buffer arguments: one per operand view in order, one per result view,
/// then those of the epilogue after its first two (see there).
#[derive(Clone, Debug, PartialEq)]
pub struct Library {
    /// The claimed op: a core op (contract, sort, scatter, ...) or a composite.
    pub op: Op,
    /// Run-time sizes of views and epilogue.
    pub sizes: Vec<Dim>,
    /// Operands.
    pub operands: Vec<View>,
    /// Results, dense row-major.
    pub results: Vec<View>,
    /// An elementwise kernel applied to result 0 while it is hot. Its parallel axes are the axes of result 0; buffer 0
    /// (read) is the op's result 0 in the op's own dtype, buffer 1 (write) the final result, whose dtype is that of the
    /// result view; further buffers are further arguments. Its `sizes` equal this unit's.
    pub epilogue: Option<Box<Kernel>>,
}

impl Library {
    /// A dimension as an extent of this unit.
    pub fn extent(&mut self, dim: &Dim) -> Extent {
        extent_in(&mut self.sizes, dim)
    }
}

/// Something a backend compiles.
#[derive(Clone, Debug, PartialEq)]
pub enum Unit {
    /// A generated loop nest.
    Loops(Kernel),
    /// A hand-written kernel.
    Library(Library),
}

impl Unit {
    /// Run-time sizes, evaluated at launch in this order.
    pub fn sizes(&self) -> &[Dim] {
        match self {
            Unit::Loops(k) => &k.sizes,
            Unit::Library(l) => &l.sizes,
        }
    }

    /// Name for profiles and messages.
    pub fn name(&self) -> String {
        match self {
            Unit::Loops(k) => k.name.clone(),
            Unit::Library(l) => match &l.epilogue {
                Some(e) if !e.name.is_empty() => format!("{}+{}", l.op.name(), e.name),
                _ => l.op.name(),
            },
        }
    }

    /// Access of each buffer argument, in order.
    pub fn accesses(&self) -> Vec<Access> {
        match self {
            Unit::Loops(k) => k.buffers.iter().map(|b| b.access).collect(),
            Unit::Library(l) => {
                let own = l
                    .operands
                    .iter()
                    .map(|_| Access::Read)
                    .chain(l.results.iter().map(|_| Access::Write));
                own.chain(
                    l.epilogue
                        .iter()
                        .flat_map(|e| e.buffers[2..].iter().map(|b| b.access)),
                )
                .collect()
            }
        }
    }
}
