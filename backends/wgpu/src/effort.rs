//! What a unit moves and computes, from its expressions and its sizes.

use cupola_ir::kernel::{
    AxisId, BufferDecl, Expr, ExprId, Extent, Item, Kernel, Library, Phase, Unit, View,
};
use cupola_ir::{CompositeOp, CoreOp, DType, Op};
use rustc_hash::FxHashSet;

use crate::choice::{Arithmetic, DeviceModel, Work};
use crate::emit::phase::{phase_axes, phase_stores, roots};

/// Instructions that an operation on 64-bit floats takes, see `emit::double`.
const DOUBLE: f64 = 75.0;

/// Share of the peak that any kernel reaches.
const SHARE: f64 = 0.25;

/// Threads of a workgroup, of most kernels.
const THREADS: f64 = 64.0;

/// What a unit with its sizes does.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Effort {
    /// Bytes of operands and results, each element once.
    pub bytes: f64,
    /// Operations: a multiply-add is two, a function of one element is one.
    pub operations: f64,
    /// Instructions, about: functions and 64-bit floats take several, moving an element takes one.
    pub instructions: f64,
}

impl Effort {
    /// Of a unit.
    pub fn of(unit: &Unit, sizes: &[i64]) -> Self {
        match unit {
            Unit::Loops(kernel) => of_kernel(kernel, sizes),
            Unit::Library(library) => of_library(library, sizes),
        }
    }
}

/// Predicted seconds of a dispatch that moves `bytes` and computes `instructions` in so many workgroups. Drivers end
/// submissions that take too long, so this errs on the side of too much.
pub(crate) fn seconds(
    device: &DeviceModel,
    bytes: f64,
    instructions: f64,
    groups: [u32; 3],
) -> f64 {
    device.seconds(&Work {
        bytes,
        cached: 0.0,
        operations: instructions,
        arithmetic: Arithmetic::F32,
        share: SHARE,
        groups: groups.iter().map(|&count| f64::from(count)).product(),
        threads: THREADS,
    })
}

fn number(extent: &Extent, sizes: &[i64]) -> f64 {
    let number = match *extent {
        Extent::Const(number) => number,
        Extent::Size(at) => sizes.get(at as usize).copied().unwrap_or(0),
    };
    number as f64
}

fn len(extent: &Extent, sizes: &[i64]) -> f64 {
    number(extent, sizes).max(0.0)
}

/// Bytes of one element, with its share of what a block has in common.
fn size_of(dtype: DType) -> f64 {
    match dtype {
        DType::Block(format) => format.block_size() as f64 / format.block_len() as f64,
        other => other.bits() as f64 / 8.0,
    }
}

fn of_kernel(kernel: &Kernel, sizes: &[i64]) -> Effort {
    let axis = |axis: &AxisId| len(&kernel.axes[axis.0 as usize], sizes);
    let outer = kernel.axes[..kernel.parallel].iter();
    let positions: f64 = outer.map(|extent| len(extent, sizes)).product();
    let mut accesses = vec![0.0; kernel.buffers.len()];
    let (mut operations, mut instructions) = (0.0, 0.0);
    for phase in &kernel.phases {
        let trips = positions * phase_axes(phase).iter().map(axis).product::<f64>();
        let sums = match phase {
            Phase::Reduce { accums, .. } => accums.len() as f64,
            Phase::Store { .. } => 0.0,
        };
        operations += trips * sums;
        instructions += trips * sums.max(1.0);
        for expr in computed(kernel, phase) {
            match &kernel.exprs[expr.0 as usize] {
                Expr::Load { buffer, .. } => {
                    accesses[buffer.0 as usize] += trips;
                    instructions += trips;
                }
                Expr::Unary(f, _) | Expr::Binary(f, ..) | Expr::Ternary(f, ..) => {
                    operations += trips;
                    instructions += trips * f64::from(f.cost());
                }
                Expr::Cast { .. } => {
                    operations += trips;
                    instructions += trips;
                }
                _ => instructions += trips,
            }
        }
        for store in phase_stores(phase) {
            accesses[store.buffer.0 as usize] += trips;
        }
    }
    let moved = |(decl, accesses): (&BufferDecl, &f64)| {
        len(&decl.len, sizes).min(*accesses) * size_of(decl.dtype)
    };
    let is_double = kernel.buffers.iter().any(|decl| decl.dtype == DType::F64);
    Effort {
        bytes: kernel.buffers.iter().zip(&accesses).map(moved).sum(),
        operations,
        instructions: if is_double {
            DOUBLE * instructions
        } else {
            instructions
        },
    }
}

/// Everything that a phase computes, each once.
fn computed(kernel: &Kernel, phase: &Phase) -> FxHashSet<ExprId> {
    let (mut exprs, mut indices) = (FxHashSet::default(), FxHashSet::default());
    let mut open = roots(phase);
    while let Some(item) = open.pop() {
        let is_new = match item {
            Item::Expr(id) => exprs.insert(id),
            Item::Index(id) => indices.insert(id),
        };
        if is_new {
            item.for_each_operand(kernel, |item| open.push(item));
        }
    }
    exprs
}

fn of_library(library: &Library, sizes: &[i64]) -> Effort {
    let views = library.operands.iter().chain(&library.results);
    let used = views.enumerate().map(|(at, view)| {
        let used = elements(view, sizes).min(reached(library, at, sizes));
        (used, used * size_of(view.dtype))
    });
    let shown: f64 = used.clone().map(|(elements, _)| elements).sum();
    let bytes = used.map(|(_, bytes)| bytes);
    let operations = library_operations(library, sizes);
    let own = Effort {
        bytes: bytes.sum(),
        operations,
        instructions: shown + operations.max(moves(library, sizes)),
    };
    let Some(epilogue) = &library.epilogue else {
        return own;
    };
    // What the op itself leaves and the epilogue takes never meets memory.
    let after = of_kernel(epilogue, sizes);
    let shared = epilogue.buffers.iter().take(2);
    let shared: f64 = shared.map(|decl| size_of(decl.dtype)).sum();
    let further = after.bytes - elements(&library.results[0], sizes) * shared;
    Effort {
        bytes: own.bytes + further.max(0.0),
        operations: own.operations + after.operations,
        instructions: own.instructions + after.instructions,
    }
}

/// Elements that a view shows, each once.
fn elements(view: &View, sizes: &[i64]) -> f64 {
    let shown = view.dims.iter().zip(&view.strides);
    let distinct = shown.filter(|(_, stride)| number(stride, sizes) != 0.0);
    distinct.map(|(dim, _)| len(dim, sizes)).product()
}

/// Most elements of an argument that a library unit can reach: of pages, those that a table names.
fn reached(library: &Library, at: usize, sizes: &[i64]) -> f64 {
    match &library.op {
        Op::Composite(CompositeOp::PagedAttention(_)) if at == 1 || at == 2 => {
            let page: f64 = dims(&library.operands[at], sizes)[1..].iter().product();
            page * dims(&library.operands[3], sizes).iter().product::<f64>()
        }
        _ => f64::INFINITY,
    }
}

fn dims(view: &View, sizes: &[i64]) -> Vec<f64> {
    view.dims.iter().map(|dim| len(dim, sizes)).collect()
}

/// Operations of the op itself. Sorting and scattering compare and move.
fn library_operations(library: &Library, sizes: &[i64]) -> f64 {
    let operands: Vec<Vec<f64>> = (library.operands.iter())
        .map(|view| dims(view, sizes))
        .collect();
    let total = |dims: &[f64]| dims.iter().product::<f64>();
    let results: f64 = (library.results.iter())
        .map(|view| total(&dims(view, sizes)))
        .sum();
    match &library.op {
        Op::Core(CoreOp::Contract(contract)) => {
            let inner = contract.lhs_contract.iter();
            2.0 * results * inner.map(|&axis| operands[0][axis]).product::<f64>()
        }
        Op::Composite(CompositeOp::Conv(_)) => 2.0 * results * total(&operands[1][1..]),
        Op::Composite(CompositeOp::ConvTranspose(_)) => {
            2.0 * total(&operands[0]) * total(&operands[1][1..])
        }
        // Queries times keys for scores, weights times values.
        Op::Composite(CompositeOp::Attention(_)) => {
            let keys = operands[1].get(2).copied().unwrap_or(1.0);
            2.0 * (total(&operands[0]) + results) * keys
        }
        // The same, of all keys that a sequence can have.
        Op::Composite(CompositeOp::PagedAttention(_)) => {
            let keys = operands[3][1] * operands[1][2];
            2.0 * (total(&operands[0]) + results) * keys
        }
        Op::Core(_) | Op::Composite(_) | Op::Host(_) => 0.0,
    }
}

/// Comparisons and moves of an op that computes nothing.
fn moves(library: &Library, sizes: &[i64]) -> f64 {
    match &library.op {
        Op::Core(CoreOp::Sort(sort)) => {
            let source = dims(&library.operands[0], sizes);
            let rounds = source[sort.axis].max(2.0).log2().ceil();
            4.0 * source.iter().product::<f64>() * rounds * rounds
        }
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cupola_ir::Scalar;
    use cupola_ir::kernel::{Access, Accum, AccumKind, BufferId, Index, IndexId};

    /// Sums `len` numbers at each of `rows` positions.
    fn sums(rows: i64, len: Extent) -> Kernel {
        Kernel {
            axes: vec![Extent::Const(rows), len],
            parallel: 1,
            buffers: vec![BufferDecl {
                dtype: DType::F32,
                access: Access::Read,
                len: Extent::Const(1000),
            }],
            indices: vec![Index::Axis(AxisId(1))],
            exprs: vec![
                Expr::Load {
                    buffer: BufferId(0),
                    index: IndexId(0),
                    guard: None,
                },
                Expr::Unary(Scalar::Neg, ExprId(0)),
            ],
            phases: vec![Phase::Reduce {
                axes: vec![AxisId(1)],
                accums: vec![Accum {
                    kind: AccumKind::Sum,
                    value: ExprId(1),
                }],
            }],
            ..Kernel::default()
        }
    }

    #[test]
    fn operations_grow_with_the_extents_that_are_bound() {
        let of = |len: i64| Effort::of(&Unit::Loops(sums(10, Extent::Size(0))), &[len]);
        // A change of sign and an addition for each element.
        assert_eq!(of(100).operations, 2000.0);
        assert_eq!(of(200).instructions, 2.0 * of(100).instructions);
        assert_eq!(of(-1), Effort::default());
        // No element more than the buffer has, however often it is read.
        assert_eq!(of(50).bytes, 2000.0);
        assert_eq!(of(200).bytes, 4000.0);
    }

    #[test]
    fn arithmetic_counts_where_few_bytes_are_moved() {
        let device = DeviceModel::default();
        let time = |instructions: f64| seconds(&device, 4.0, instructions, [1 << 12, 1, 1]);
        assert!(time(1e12) > 100.0 * time(1e9));
        assert!(time(1e12) > 0.5, "a submission of its own");
        assert!(seconds(&device, 1e9, 1.0, [1 << 12, 1, 1]) > time(1e6));
    }
}
