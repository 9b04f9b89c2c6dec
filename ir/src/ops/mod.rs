//! The core ops: a closed enum, one payload struct per op, grouped in one file per family.
//!
//! Reading order: `leaf`, `map`, `view`, `reduce`, `contract`, `index`, `control`, `state`, `host`.
//! Broadcasting is always explicit. A payload implements [`OpDef`]; its `infer` is the op's contract.

pub mod contract;
pub mod control;
pub mod host;
pub mod index;
pub mod leaf;
pub mod map;
pub mod reduce;
pub mod state;
pub mod view;

pub use contract::*;
pub use control::*;
pub use host::HostOp;
pub use index::*;
pub use leaf::*;
pub use map::*;
pub use reduce::*;
pub use state::*;
pub use view::*;

use crate::attr::{Attr, AttrList, op_family};
use crate::composite::CompositeOp;
use crate::dim::{Dim, Sym};
use crate::dtype::DType;
use crate::graph::Graph;
use crate::tensor_type::{TensorType, ValueType};

/// The contract of a core op's payload.
pub trait OpDef {
    /// Result types for operand types.
    ///
    /// # Errors
    /// What is wrong with the operands or attributes, without the op's name.
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String>;
}

op_family! {
    /// A core op that works on tensors or regions.
    CoreOp {
        /// A named input of the graph.
        Input = "input",
        /// A named trainable or shared weight, bound when a session is made.
        Param = "param",
        /// A constant tensor.
        Const = "const",
        /// Index along an axis.
        Iota = "iota",
        /// Dimensions as an i64 vector.
        Dims = "dims",
        /// A scalar function over equal extents.
        Map = "map",
        /// Conversion of values.
        Cast = "cast",
        /// Reinterpretation of bits.
        Bitcast = "bitcast",
        /// Other extents over the same row-major elements.
        Reshape = "reshape",
        /// Reordered axes.
        Permute = "permute",
        /// Repetition of axes of extent 1.
        Broadcast = "broadcast",
        /// A strided part.
        Slice = "slice",
        /// A constant border.
        Pad = "pad",
        /// Joined along an axis.
        Concat = "concat",
        /// Sliding windows as new inner axes.
        Window = "window",
        /// Sum of overlapping windows; the adjoint of `window`.
        Fold = "fold",
        /// Reduction over axes.
        Reduce = "reduce",
        /// Position of the largest or smallest element along an axis.
        ArgReduce = "arg_reduce",
        /// Product summed over contracted axes.
        Contract = "contract",
        /// Elements by index.
        Gather = "gather",
        /// Elements written by index.
        Scatter = "scatter",
        /// Sorted values and their positions.
        Sort = "sort",
        /// Either of two regions.
        If = "if",
        /// A region repeated while a condition holds.
        Loop = "loop",
        /// A region over slices of an axis.
        Scan = "scan",
        /// A region run once.
        Call = "call",
        /// The value of a state slot at the start of the run.
        ReadState = "read_state",
        /// The value of a state slot at the end of the run.
        WriteState = "write_state",
        /// Counter-based random bits.
        Random = "random",
        /// Communication between replicas.
        Collective = "collective",
        /// A copy to another device.
        Transfer = "transfer",
        /// Binds a symbol to a number computed at run time.
        BindDim = "bind_dim",
    }
}

/// Any operation of a graph.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// A core op.
    Core(CoreOp),
    /// An op on host values (sequences, optionals, strings) or with data-dependent result sizes.
    Host(HostOp),
    /// An op with a mandatory decomposition into core ops.
    Composite(CompositeOp),
}

/// How an op moves or computes elements; passes ask this instead of listing ops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpClass {
    /// No operands.
    Leaf,
    /// One result element per operand element at the same index.
    Elementwise,
    /// Result elements are operand elements (or a pad value) at other indices.
    View,
    /// Many operand elements to one result element.
    Reduction,
    /// Matrix product or another op with its own kernel.
    Contraction,
    /// Elements addressed by data.
    Indexed,
    /// Holds regions.
    Control,
    /// Reads or writes state, random counters, other replicas or devices.
    Effect,
    /// Runs on the host.
    Host,
    /// Composite.
    Composite,
}

impl Op {
    /// Text name: `map`, or the family's prefix for host ops (`host.non_zero`) and composites (`composite.softmax`).
    pub fn name(&self) -> String {
        match self {
            Op::Core(op) => op.name().to_string(),
            Op::Host(op) => format!("host.{}", op.name()),
            Op::Composite(op) => format!("composite.{}", op.name()),
        }
    }

    /// Attributes in declaration order.
    pub fn attrs(&self) -> AttrList {
        match self {
            Op::Core(op) => op.attrs(),
            Op::Host(op) => op.attrs(),
            Op::Composite(op) => op.attrs(),
        }
    }

    /// The op of a text name with these attributes.
    ///
    /// # Errors
    /// An unknown name or wrong attributes.
    pub fn from_name(name: &str, attrs: Vec<(String, Attr)>) -> Result<Op, String> {
        let found = if let Some(rest) = name.strip_prefix("host.") {
            HostOp::from_name(rest, attrs).map(|r| r.map(Op::Host))
        } else if let Some(rest) = name.strip_prefix("composite.") {
            CompositeOp::from_name(rest, attrs).map(|r| r.map(Op::Composite))
        } else {
            CoreOp::from_name(name, attrs).map(|r| r.map(Op::Core))
        };
        found.unwrap_or_else(|| Err(format!("unknown op '{name}'")))
    }

    /// Result types for operand types.
    ///
    /// # Errors
    /// What is wrong with the operands or attributes.
    pub fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        match self {
            Op::Core(op) => op.def().infer(operands),
            Op::Host(op) => op.def().infer(operands),
            Op::Composite(op) => op.infer(operands),
        }
    }

    /// Regions held by the op.
    pub fn regions(&self) -> Vec<&Graph> {
        match self {
            Op::Core(op) => op.regions(),
            Op::Host(_) | Op::Composite(_) => vec![],
        }
    }

    /// Regions held by the op, to change.
    pub fn regions_mut(&mut self) -> Vec<&mut Graph> {
        match self {
            Op::Core(CoreOp::If(p)) => vec![&mut p.then_branch, &mut p.else_branch],
            Op::Core(CoreOp::Loop(p)) => vec![&mut p.body],
            Op::Core(CoreOp::Scan(p)) => vec![&mut p.body],
            Op::Core(CoreOp::Call(p)) => vec![&mut p.body],
            Op::Core(_) | Op::Host(_) | Op::Composite(_) => vec![],
        }
    }

    /// Class of the op.
    pub fn class(&self) -> OpClass {
        use CoreOp::*;
        match self {
            Op::Host(_) => OpClass::Host,
            Op::Composite(_) => OpClass::Composite,
            Op::Core(op) => match op {
                Input(_) | Param(_) | Const(_) | Iota(_) | Dims(_) => OpClass::Leaf,
                Map(_) | Cast(_) | Bitcast(_) => OpClass::Elementwise,
                Reshape(_) | Permute(_) | Broadcast(_) | Slice(_) | Pad(_) | Concat(_)
                | Window(_) => OpClass::View,
                Reduce(_) | ArgReduce(_) | Fold(_) => OpClass::Reduction,
                Contract(_) => OpClass::Contraction,
                Gather(_) | Scatter(_) | Sort(_) => OpClass::Indexed,
                If(_) | Loop(_) | Scan(_) | Call(_) => OpClass::Control,
                ReadState(_) | WriteState(_) | Random(_) | Collective(_) | Transfer(_)
                | BindDim(_) => OpClass::Effect,
            },
        }
    }

    /// Whether two equal nodes on equal operands compute the same value and may be merged or dropped.
    pub fn is_pure(&self) -> bool {
        self.class() != OpClass::Effect
            && self
                .regions()
                .iter()
                .all(|g| g.nodes().all(|(_, n)| n.op.is_pure()))
    }

    /// Symbols that running the op binds (from a number, or from the extents of its results).
    pub fn binds(&self) -> Vec<Sym> {
        match self {
            Op::Core(CoreOp::BindDim(p)) => vec![p.sym.clone()],
            Op::Core(CoreOp::If(p)) => p.binds.clone(),
            Op::Core(CoreOp::Loop(p)) => p.binds.clone(),
            Op::Core(CoreOp::Scan(p)) => p.binds.clone(),
            Op::Core(CoreOp::Call(p)) => p.binds.clone(),
            Op::Host(op) => op.def().binds(),
            Op::Core(_) | Op::Composite(_) => vec![],
        }
    }

    /// Calls `visit` for every dimension among the attributes (regions aside).
    pub fn for_each_dim(&self, visit: &mut dyn FnMut(&Dim)) {
        for (_, attr) in self.attrs() {
            match attr {
                Attr::Dim(d) => visit(&d),
                Attr::Dims(ds) => ds.iter().for_each(&mut *visit),
                Attr::Type(t) => t.for_each_dim(visit),
                Attr::Types(ts) => ts.iter().for_each(|t| t.for_each_dim(visit)),
                _ => {}
            }
        }
    }

    /// The op with every dimension among its attributes rewritten (regions, and the result types of ops that hold
    /// them, aside).
    pub fn map_dims(&self, f: &dyn Fn(&Dim) -> Dim) -> Op {
        let mut any = false;
        self.for_each_dim(&mut |_| any = true);
        if self.class() == OpClass::Control || !any {
            return self.clone();
        }
        let map = |attr: Attr| match attr {
            Attr::Dim(d) => Attr::Dim(f(&d)),
            Attr::Dims(ds) => Attr::Dims(ds.iter().map(f).collect()),
            Attr::Type(t) => Attr::Type(t.map_dims(f)),
            Attr::Types(ts) => Attr::Types(ts.iter().map(|t| t.map_dims(f)).collect()),
            other => other,
        };
        let attrs = self.attrs().into_iter();
        let attrs = attrs.map(|(n, a)| (n.to_string(), map(a))).collect();
        Op::from_name(&self.name(), attrs).unwrap_or_else(|what| {
            unreachable!("bug: {} from its own attributes: {what}", self.name())
        })
    }
}

impl CoreOp {
    /// Regions held by the op.
    pub fn regions(&self) -> Vec<&Graph> {
        match self {
            CoreOp::If(p) => vec![&p.then_branch, &p.else_branch],
            CoreOp::Loop(p) => vec![&p.body],
            CoreOp::Scan(p) => vec![&p.body],
            CoreOp::Call(p) => vec![&p.body],
            _ => vec![],
        }
    }

    /// The payload as its contract.
    pub fn def(&self) -> &dyn OpDef {
        use CoreOp::*;
        match self {
            Input(p) => p,
            Param(p) => p,
            Const(p) => p,
            Iota(p) => p,
            Dims(p) => p,
            Map(p) => p,
            Cast(p) => p,
            Bitcast(p) => p,
            Reshape(p) => p,
            Permute(p) => p,
            Broadcast(p) => p,
            Slice(p) => p,
            Pad(p) => p,
            Concat(p) => p,
            Window(p) => p,
            Fold(p) => p,
            Reduce(p) => p,
            ArgReduce(p) => p,
            Contract(p) => p,
            Gather(p) => p,
            Scatter(p) => p,
            Sort(p) => p,
            If(p) => p,
            Loop(p) => p,
            Scan(p) => p,
            Call(p) => p,
            ReadState(p) => p,
            WriteState(p) => p,
            Random(p) => p,
            Collective(p) => p,
            Transfer(p) => p,
            BindDim(p) => p,
        }
    }
}

impl<T: Into<CoreOp>> From<T> for Op {
    fn from(p: T) -> Self {
        Op::Core(p.into())
    }
}

/// The operands as tensor types.
///
/// # Errors
/// When the count differs (unless `count` is `None`) or an operand is no tensor.
pub(crate) fn tensors<'a>(
    operands: &[&'a ValueType],
    count: Option<usize>,
) -> Result<Vec<&'a TensorType>, String> {
    if let Some(n) = count
        && operands.len() != n
    {
        return Err(format!("takes {n} operands, not {}", operands.len()));
    }
    let all = operands.iter().map(|t| {
        t.as_tensor()
            .ok_or_else(|| format!("operand of type {t} is no tensor"))
    });
    all.collect()
}

/// The same dtype for all.
pub(crate) fn same_dtype(tensors: &[&TensorType]) -> Result<DType, String> {
    let first = tensors.first().ok_or("takes at least one operand")?.dtype;
    match tensors.iter().find(|t| t.dtype != first) {
        Some(t) => Err(format!("operands have dtypes {first} and {}", t.dtype)),
        None => Ok(first),
    }
}

/// Whether two extents can be equal: not two different constants.
pub(crate) fn may_equal(a: &Dim, b: &Dim) -> bool {
    !matches!((a - b).as_const(), Some(d) if d != 0)
}
