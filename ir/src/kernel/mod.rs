//! Kernel IR: one loop nest over scalars, between the graph and machine or shader code.
//!
//! A [`Kernel`] says *what* is computed: parallel axes, then phases in order, each with axes of its own: a reduce
//! phase computes accumulators, a store phase writes elements. It has no tiles, threads, vectors or layouts beyond
//! explicit element offsets; *how* is the backend's schedule. Softmax is: parallel rows, reduce(max), reduce(sum of
//! exp), store over columns. A [`Library`] unit stands beside it for ops that a backend has a hand-written kernel for
//! (matrix products, convolution, attention, sort), with an optional elementwise epilogue that is itself a kernel.
//!
//! Expressions form two arenas: [`Index`] (integer offsets, `i64` in meaning; a backend may use fewer bits where the
//! bound sizes allow) and [`Expr`] (element values). Both are topologically ordered: an entry only refers to earlier
//! entries, except that an [`Expr`] may use any [`Index`] and [`Index::Checked`] may use any earlier-evaluable
//! [`Expr`]. Run-time sizes are [`Kernel::sizes`], evaluated from the bindings at launch: one compile serves all
//! shapes.
//!
//! Reading order: this file, `library`, `walk`, `verify`, `text`, `eval`, `legalize`.

mod eval;
mod legalize;
mod library;
pub mod text;
mod verify;
mod walk;

pub use eval::run_kernel;
pub use legalize::{error_bound, expands, legalize};
pub use library::{Library, Unit, View};
pub use verify::verify;
pub use walk::Item;

use crate::dim::Dim;
use crate::dtype::DType;
use crate::scalar::Scalar;

/// Position in [`Kernel::indices`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IndexId(pub u32);

/// Position in [`Kernel::exprs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExprId(pub u32);

/// Position in [`Kernel::axes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AxisId(pub u32);

/// Position in [`Kernel::buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub u32);

/// A size known when the kernel is compiled or when it is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Extent {
    /// Known at compile time.
    Const(i64),
    /// Entry of the unit's `sizes`.
    Size(u32),
}

/// How a kernel touches a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Only loads.
    Read,
    /// Only stores.
    Write,
    /// Loads and stores; a load reads what the buffer held before the launch unless the same parallel index stored it
    /// in an earlier phase.
    ReadWrite,
}

/// A buffer argument: dense elements of one dtype. Sub-byte types are packed little end first; bool is a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferDecl {
    /// Element type.
    pub dtype: DType,
    /// Loads, stores or both.
    pub access: Access,
    /// Number of elements.
    pub len: Extent,
}

/// An integer expression for offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Index {
    /// A constant.
    Const(i64),
    /// Entry of [`Kernel::sizes`].
    Size(u32),
    /// Current position along an axis.
    Axis(AxisId),
    /// Sum.
    Add(IndexId, IndexId),
    /// Difference.
    Sub(IndexId, IndexId),
    /// Product.
    Mul(IndexId, IndexId),
    /// Quotient rounded down; the divisor is positive.
    Div(IndexId, IndexId),
    /// Remainder of [`Index::Div`], not negative.
    Rem(IndexId, IndexId),
    /// The smaller.
    Min(IndexId, IndexId),
    /// The larger.
    Max(IndexId, IndexId),
    /// An i64 or i32 element value as an index, clamped into `0..extent`. When `fault` and it was outside, the launch
    /// reports a fault (an error of the run) after finishing.
    Checked {
        /// The element value.
        value: ExprId,
        /// Number of valid indices; when it is 0 the result is 0.
        extent: IndexId,
        /// Report values outside.
        fault: bool,
    },
}

/// A constant element, bit for bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Literal {
    /// Element type.
    pub dtype: DType,
    /// Low bits hold the element (for bool 0 or 1).
    pub bits: u64,
}

/// An element value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Expr {
    /// A constant.
    Const(Literal),
    /// An index as a number of this dtype.
    Index(IndexId, DType),
    /// Whether `a < b`, as bool.
    Less(IndexId, IndexId),
    /// An element of a buffer. With a guard that is false nothing is read and the value is 0.
    Load {
        /// Buffer.
        buffer: BufferId,
        /// Element offset.
        index: IndexId,
        /// Bool; false suppresses the load.
        guard: Option<ExprId>,
    },
    /// A scalar function of one operand.
    Unary(Scalar, ExprId),
    /// A scalar function of two operands.
    Binary(Scalar, ExprId, ExprId),
    /// A scalar function of three operands (select: condition first).
    Ternary(Scalar, ExprId, ExprId, ExprId),
    /// Conversion as [`crate::ops::Cast`] defines it.
    Cast {
        /// Operand.
        x: ExprId,
        /// Result dtype.
        to: DType,
        /// Saturate float8 and float4 results.
        saturate: bool,
    },
    /// The same bits as another dtype of equal width.
    Bitcast {
        /// Operand.
        x: ExprId,
        /// Result dtype.
        to: DType,
    },
    /// Result of an accumulator of an earlier reduce phase.
    Accum {
        /// Phase number.
        phase: u32,
        /// Accumulator of that phase.
        accum: u32,
    },
    /// Random bits (u32) of an element as [`crate::ops::Random`] defines them; seed and run number are the sizes
    /// `seed` and `run` (64 bits each).
    Random {
        /// Element index.
        index: IndexId,
        /// Distinguishes random ops.
        stream: u64,
        /// Entry of [`Kernel::sizes`] that holds the seed.
        seed: u32,
        /// Entry of [`Kernel::sizes`] that holds the run number.
        run: u32,
    },
}

/// What an accumulator computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccumKind {
    /// Sum from 0.
    Sum,
    /// Product from 1.
    Prod,
    /// Largest, NaN if any; from the type's smallest.
    Max,
    /// Smallest, NaN if any; from the type's largest.
    Min,
    /// Row-major position (i64, within the phase's axes) of the largest; NaN counts as largest.
    ArgMax {
        /// Of equal elements the last.
        last: bool,
    },
    /// Row-major position (i64) of the smallest; NaN counts as smallest.
    ArgMin {
        /// Of equal elements the last.
        last: bool,
    },
}

/// An accumulator of a reduce phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Accum {
    /// What is computed.
    pub kind: AccumKind,
    /// Element value; its dtype is the type of the running value (and of the result, but for positions).
    pub value: ExprId,
}

/// How a store meets the old element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreKind {
    /// Overwrites; different parallel indices write different elements.
    Set,
    /// Adds atomically; any parallel indices may meet.
    AtomicAdd,
}

/// A store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Store {
    /// Buffer.
    pub buffer: BufferId,
    /// Element offset.
    pub index: IndexId,
    /// Element value, of the buffer's dtype.
    pub value: ExprId,
    /// Bool; false suppresses the store.
    pub guard: Option<ExprId>,
    /// How it meets the old element.
    pub kind: StoreKind,
}

/// A step inside the parallel axes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Runs accumulators over the axes, in any order of elements.
    Reduce {
        /// Axes of this phase, outermost first.
        axes: Vec<AxisId>,
        /// Accumulators.
        accums: Vec<Accum>,
    },
    /// Stores at every position of the axes (none: once).
    Store {
        /// Axes of this phase, outermost first.
        axes: Vec<AxisId>,
        /// Stores.
        stores: Vec<Store>,
    },
}

/// A loop nest over scalars.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// Name for profiles and messages; no meaning.
    pub name: String,
    /// Buffer arguments.
    pub buffers: Vec<BufferDecl>,
    /// Run-time sizes.
    pub sizes: Vec<Dim>,
    /// Extents of all axes; the first `parallel` are the parallel ones (outermost first), the others belong to one
    /// phase each.
    pub axes: Vec<Extent>,
    /// Number of parallel axes.
    pub parallel: usize,
    /// Index arena.
    pub indices: Vec<Index>,
    /// Expression arena.
    pub exprs: Vec<Expr>,
    /// Steps.
    pub phases: Vec<Phase>,
}

impl Kernel {
    /// Interns an index expression.
    pub fn index(&mut self, index: Index) -> IndexId {
        let at = self
            .indices
            .iter()
            .position(|i| *i == index)
            .unwrap_or_else(|| {
                self.indices.push(index);
                self.indices.len() - 1
            });
        IndexId(at as u32)
    }

    /// Interns an element expression.
    pub fn expr(&mut self, expr: Expr) -> ExprId {
        let at = self
            .exprs
            .iter()
            .position(|e| *e == expr)
            .unwrap_or_else(|| {
                self.exprs.push(expr);
                self.exprs.len() - 1
            });
        ExprId(at as u32)
    }

    /// The stores of the last phase, after which nothing is read.
    pub fn last_stores(&self) -> &[Store] {
        match self.phases.last() {
            Some(Phase::Store { stores, .. }) => stores,
            _ => &[],
        }
    }

    /// Whether the buffer of a store may be the memory of another buffer: that one has as many elements of the same dtype,
    /// and is read only at the element that is stored, by whom stores it.
    pub fn writes_over(&self, store: &Store, read: BufferId) -> bool {
        let at = |buffer: BufferId| &self.buffers[buffer.0 as usize];
        let (x, y) = (at(read), at(store.buffer));
        let fits = x.dtype == y.dtype && x.len == y.len && x.dtype.is_whole_byte();
        let sets = store.kind == StoreKind::Set && store.guard.is_none();
        fits && sets && store.buffer != read && self.reads_only_at(read, store.index)
    }

    /// Whether all loads of a buffer are at this index.
    pub fn reads_only_at(&self, read: BufferId, at: IndexId) -> bool {
        self.exprs.iter().all(|expr| match expr {
            Expr::Load { buffer, index, .. } => *buffer != read || *index == at,
            _ => true,
        })
    }

    /// A dimension as an extent; a symbolic one becomes a run-time size.
    pub fn extent(&mut self, dim: &Dim) -> Extent {
        extent_in(&mut self.sizes, dim)
    }

    /// Dtype of an expression.
    pub fn dtype(&self, expr: ExprId) -> DType {
        match self.exprs[expr.0 as usize] {
            Expr::Const(l) => l.dtype,
            Expr::Index(_, dtype) => dtype,
            Expr::Less(..) => DType::Bool,
            Expr::Load { buffer, .. } => self.buffers[buffer.0 as usize].dtype,
            Expr::Unary(Scalar::IsNan | Scalar::IsInf, _) => DType::Bool,
            Expr::Unary(_, x) => self.dtype(x),
            Expr::Binary(Scalar::Eq | Scalar::Lt | Scalar::Le, ..) => DType::Bool,
            Expr::Binary(_, x, _) => self.dtype(x),
            Expr::Ternary(Scalar::Select, _, x, _) | Expr::Ternary(_, x, _, _) => self.dtype(x),
            Expr::Cast { to, .. } | Expr::Bitcast { to, .. } => to,
            Expr::Accum { phase, accum } => match &self.phases[phase as usize] {
                Phase::Reduce { accums, .. } => match accums[accum as usize].kind {
                    AccumKind::ArgMax { .. } | AccumKind::ArgMin { .. } => DType::I64,
                    AccumKind::Sum | AccumKind::Prod | AccumKind::Max | AccumKind::Min => {
                        self.dtype(accums[accum as usize].value)
                    }
                },
                Phase::Store { .. } => unreachable!("bug: accumulator of a store phase"),
            },
            Expr::Random { .. } => DType::U32,
        }
    }
}

/// A dimension as an extent over a list of run-time sizes.
pub(crate) fn extent_in(sizes: &mut Vec<Dim>, dim: &Dim) -> Extent {
    match dim.as_const() {
        Some(c) => Extent::Const(c),
        None => {
            let at = sizes.iter().position(|d| d == dim).unwrap_or_else(|| {
                sizes.push(dim.clone());
                sizes.len() - 1
            });
            Extent::Size(at as u32)
        }
    }
}
