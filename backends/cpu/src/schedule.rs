//! Which loops of a kernel get lanes, and how many.

use crate::emit::{helpers::register, wide};
use crate::isa::Isa;
use crate::vector::{self, Machine, Program, Shape};
use cupola_ir::kernel::{AxisId, Expr, Extent, Index, IndexId, Kernel, Phase};
use cupola_ir::{DType, Scalar};

/// The program of a kernel, and its code where the wide emitter can make it.
pub(crate) fn lower(kernel: &Kernel, isa: Isa) -> (Program, Option<Vec<u8>>) {
    let lower = |machine| {
        let program = vector::lower(kernel, &shape(kernel, machine), machine);
        debug_assert_eq!(vector::verify(&program), Ok(()), "bug: {program}");
        program
    };
    if wide::exists(isa) {
        let program = lower(Machine::Wide);
        if let Some(bytes) = wide::emit(&program, isa) {
            return (program, Some(bytes));
        }
    }
    (lower(Machine::Portable), None)
}

/// Chooses a shape. In wide code also short axes get lanes, and as many as give several wide registers.
pub(crate) fn shape(kernel: &Kernel, machine: Machine) -> Shape {
    let lanes = lanes(kernel, machine);
    let own_axes = kernel.phases.iter().any(|p| !axes(p).is_empty());
    if lanes > 1 && kernel.parallel > 0 && !needs_scalar(kernel) {
        let inner = AxisId(kernel.parallel as u32 - 1);
        if !own_axes
            || score(kernel, Some(inner), lanes, machine) > score(kernel, None, lanes, machine)
        {
            return Shape::Parallel { lanes };
        }
    }
    if needs_scalar(kernel) || kernel.parallel > 0 && !own_axes {
        return match own_axes {
            false if kernel.parallel > 0 => Shape::Parallel { lanes: 1 },
            _ => Shape::Phases {
                lanes: vec![1; kernel.phases.len()],
            },
        };
    }
    let per_phase = |p: &Phase| match axes(p).last() {
        Some(axis) if !is_short(kernel.axes[axis.0 as usize], lanes, machine) => lanes,
        _ => 1,
    };
    Shape::Phases {
        lanes: kernel.phases.iter().map(per_phase).collect(),
    }
}

fn axes(phase: &Phase) -> &[AxisId] {
    match phase {
        Phase::Reduce { axes, .. } | Phase::Store { axes, .. } => axes,
    }
}

fn is_short(extent: Extent, lanes: u16, machine: Machine) -> bool {
    let least = match machine {
        Machine::Portable => i64::from(lanes),
        Machine::Wide => 4,
    };
    matches!(extent, Extent::Const(n) if n < least)
}

/// A store under a guard must not evaluate its value where the guard is false; vectors would.
fn needs_scalar(kernel: &Kernel) -> bool {
    let guarded = |p: &Phase| matches!(p, Phase::Store { stores, .. } if stores.iter().any(|s| s.guard.is_some()));
    kernel.phases.iter().any(guarded)
}

/// Lanes such that the widest elements fill two machine vectors, of 128 or 512 bits.
fn lanes(kernel: &Kernel, machine: Machine) -> u16 {
    let widths = kernel.exprs.iter().filter_map(|e| match e {
        Expr::Load { buffer, .. } => Some(kernel.buffers[buffer.0 as usize].dtype),
        Expr::Cast { to, .. } | Expr::Bitcast { to, .. } => Some(*to),
        Expr::Index(_, dtype) => Some(*dtype),
        Expr::Random { .. } => Some(DType::U32),
        _ => None,
    });
    let stores = kernel.buffers.iter().map(|b| b.dtype);
    let widest = widths
        .chain(stores)
        .map(|d| register(d).bits())
        .max()
        .unwrap_or(32);
    match machine {
        Machine::Portable => (256 / widest.max(16)) as u16,
        Machine::Wide => (1024 / widest.max(16)) as u16,
    }
}

/// How well the accesses suit lanes along one parallel axis, or (none) along each phase's innermost axis.
fn score(kernel: &Kernel, axis: Option<AxisId>, lanes: u16, machine: Machine) -> i64 {
    let mut total = 0;
    for phase in &kernel.phases {
        let own = axes(phase).last().copied();
        let weight = if own.is_some() { 4 } else { 1 };
        let Some(lane) = axis.or(own) else { continue };
        if is_short(kernel.axes[lane.0 as usize], lanes, machine) {
            total -= 8 * weight;
        }
        let strides = strides(kernel, lane);
        let mut add = |i: IndexId| {
            total += weight
                * match strides[i.0 as usize] {
                    Some(0 | 1) => 1,
                    _ => -2,
                };
        };
        match phase {
            Phase::Store { stores, .. } => stores.iter().for_each(|s| add(s.index)),
            Phase::Reduce { .. } => {}
        }
        // Loads are attributed to the phases by the axes they use; all of them is close enough.
        for e in &kernel.exprs {
            if let Expr::Load { index, .. } = e {
                add(*index);
            }
        }
    }
    total
}

/// Per index: its constant step along an axis; `None` when it is not linear or the step is a run-time size.
fn strides(kernel: &Kernel, axis: AxisId) -> Vec<Option<i64>> {
    let mut all: Vec<Option<i64>> = vec![];
    for index in &kernel.indices {
        let at = |i: &IndexId| all[i.0 as usize];
        let stride = match index {
            Index::Const(_) | Index::Size(_) => Some(0),
            Index::Axis(a) => Some(i64::from(*a == axis)),
            Index::Add(a, b) => at(a).zip(at(b)).map(|(x, y)| x.wrapping_add(y)),
            Index::Sub(a, b) => at(a).zip(at(b)).map(|(x, y)| x.wrapping_sub(y)),
            Index::Mul(a, b) => match (at(a), at(b)) {
                (Some(0), Some(0)) => Some(0),
                (Some(s), Some(0)) => constant(kernel, *b).map(|c| s.wrapping_mul(c)),
                (Some(0), Some(s)) => constant(kernel, *a).map(|c| s.wrapping_mul(c)),
                _ => None,
            },
            Index::Div(a, b) | Index::Rem(a, b) | Index::Min(a, b) | Index::Max(a, b) => {
                (at(a) == Some(0) && at(b) == Some(0)).then_some(0)
            }
            Index::Checked { .. } => None,
        };
        all.push(stride);
    }
    all
}

fn constant(kernel: &Kernel, index: IndexId) -> Option<i64> {
    match kernel.indices[index.0 as usize] {
        Index::Const(c) => Some(c),
        _ => None,
    }
}

/// Rough number of scalar operations per parallel position, for the decision to use threads.
pub(crate) fn work(kernel: &Kernel, sizes: &[i64]) -> i64 {
    let cost: i64 = kernel
        .exprs
        .iter()
        .map(|e| match e {
            Expr::Unary(f, _) | Expr::Binary(f, ..) => match f {
                Scalar::Add
                | Scalar::Sub
                | Scalar::Mul
                | Scalar::Min
                | Scalar::Max
                | Scalar::Neg => 1,
                _ => 8,
            },
            Expr::Random { .. } => 40,
            _ => 1,
        })
        .sum();
    let phase = |p: &Phase| {
        axes(p).iter().fold(1i64, |n, a| {
            n.saturating_mul(extent(kernel.axes[a.0 as usize], sizes).max(0))
        })
    };
    let steps = kernel.phases.iter().map(phase).max().unwrap_or(1);
    cost.max(1).saturating_mul(steps.max(1))
}

/// The value of an extent at launch.
pub(crate) fn extent(extent: Extent, sizes: &[i64]) -> i64 {
    match extent {
        Extent::Const(c) => c,
        Extent::Size(s) => sizes[s as usize],
    }
}
