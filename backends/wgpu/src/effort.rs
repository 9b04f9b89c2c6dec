//! How much a launch computes, for predicting how long it takes. Drivers end submissions that take too long, so this errs
//! on the side of too much.

use cupola_ir::kernel::{Expr, Extent, Kernel, Library, Phase, Unit};
use cupola_ir::{CompositeOp, CoreOp, DType, Op};

use crate::choice::{Arithmetic, DeviceModel, Work};

/// Operations that one of 64-bit floats takes, see `emit::double`.
const DOUBLE: f64 = 75.0;

/// Share of the peak that any kernel reaches.
const SHARE: f64 = 0.25;

/// Threads of a workgroup, of most kernels.
const THREADS: f64 = 64.0;

/// Predicted seconds of a dispatch that moves `bytes` and computes `operations` in so many workgroups.
pub(crate) fn seconds(device: &DeviceModel, bytes: f64, operations: f64, groups: [u32; 3]) -> f64 {
    device.seconds(&Work {
        bytes,
        cached: 0.0,
        operations,
        arithmetic: Arithmetic::F32,
        share: SHARE,
        groups: groups.iter().map(|&count| f64::from(count)).product(),
        threads: THREADS,
    })
}

/// Operations of a unit with these sizes; a multiply-add is two, moving an element is one.
pub(crate) fn operations(unit: &Unit, sizes: &[i64]) -> f64 {
    match unit {
        Unit::Loops(kernel) => of_kernel(kernel, sizes),
        Unit::Library(library) => of_library(library, sizes),
    }
}

fn len(extent: Extent, sizes: &[i64]) -> f64 {
    let len = match extent {
        Extent::Const(len) => len,
        Extent::Size(at) => sizes.get(at as usize).copied().unwrap_or(0),
    };
    len.max(0) as f64
}

fn of_kernel(kernel: &Kernel, sizes: &[i64]) -> f64 {
    let extents = |axes: &[Extent]| axes.iter().map(|axis| len(*axis, sizes)).product::<f64>();
    let positions = extents(&kernel.axes[..kernel.parallel]);
    let turns = kernel.phases.iter().map(|phase| {
        let (Phase::Reduce { axes, .. } | Phase::Store { axes, .. }) = phase;
        let each = axes
            .iter()
            .map(|axis| len(kernel.axes[axis.0 as usize], sizes));
        each.product::<f64>()
    });
    let cost = |expr: &Expr| match expr {
        Expr::Unary(f, _) | Expr::Binary(f, ..) | Expr::Ternary(f, ..) => f.cost(),
        _ => 1,
    };
    let body: u32 = kernel.exprs.iter().map(cost).sum();
    let is_double = kernel
        .buffers
        .iter()
        .any(|buffer| buffer.dtype == DType::F64);
    let factor = if is_double { DOUBLE } else { 1.0 };
    positions * turns.sum::<f64>() * f64::from(body.max(1)) * factor
}

fn of_library(library: &Library, sizes: &[i64]) -> f64 {
    let dims = |at: usize| -> Vec<f64> {
        let view = library.operands.get(at);
        let dims = view.map_or(&[][..], |view| &view.dims);
        dims.iter().map(|dim| len(*dim, sizes)).collect()
    };
    let total = |dims: &[f64]| dims.iter().product::<f64>();
    let results = library.results.iter().map(|view| {
        let lens = view.dims.iter().map(|dim| len(*dim, sizes));
        lens.product::<f64>()
    });
    let results: f64 = results.sum();
    let operands: f64 = (0..library.operands.len()).map(|at| total(&dims(at))).sum();
    let own = match &library.op {
        Op::Core(CoreOp::Contract(p)) => {
            let lhs = dims(0);
            let summed = p.lhs_contract.iter().map(|axis| lhs[*axis]);
            2.0 * results * summed.product::<f64>()
        }
        Op::Core(CoreOp::Sort(p)) => {
            let rounds = dims(0)[p.axis].max(2.0).log2().ceil();
            4.0 * results * rounds * rounds
        }
        Op::Composite(CompositeOp::Conv(_)) => 2.0 * results * total(&dims(1)[1..]),
        Op::Composite(CompositeOp::ConvTranspose(_)) => {
            2.0 * total(&dims(0)) * total(&dims(1)[1..])
        }
        // Queries times keys for scores and for values.
        Op::Composite(CompositeOp::Attention(_)) => {
            let keys = dims(1).get(2).copied().unwrap_or(1.0);
            2.0 * (total(&dims(0)) + results) * keys
        }
        _ => 0.0,
    };
    let epilogue = library.epilogue.as_deref();
    own + operands + results + epilogue.map_or(0.0, |kernel| of_kernel(kernel, sizes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cupola_ir::Scalar;
    use cupola_ir::kernel::{AxisId, ExprId};

    /// Sums `len` numbers at each of `rows` positions.
    fn sums(rows: i64, len: Extent) -> Kernel {
        Kernel {
            axes: vec![Extent::Const(rows), len],
            parallel: 1,
            exprs: vec![Expr::Unary(Scalar::Neg, ExprId(0))],
            phases: vec![Phase::Reduce {
                axes: vec![AxisId(1)],
                accums: vec![],
            }],
            ..Kernel::default()
        }
    }

    #[test]
    fn operations_grow_with_the_extents_that_are_bound() {
        let of = |len: i64| operations(&Unit::Loops(sums(10, Extent::Size(0))), &[len]);
        assert_eq!(of(100), 1000.0);
        assert_eq!(of(200), 2.0 * of(100));
        assert_eq!(of(-1), 0.0);
    }

    #[test]
    fn arithmetic_counts_where_few_bytes_are_moved() {
        let device = DeviceModel::default();
        let time = |operations: f64| seconds(&device, 4.0, operations, [1 << 12, 1, 1]);
        assert!(time(1e12) > 100.0 * time(1e9));
        assert!(time(1e12) > 0.5, "a submission of its own");
        assert!(seconds(&device, 1e9, 1.0, [1 << 12, 1, 1]) > time(1e6));
    }
}
