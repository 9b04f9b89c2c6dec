//! Kernels whose result is the memory of an operand: both become one buffer, read and written.
//!
//! WebGPU refuses one memory bound for reading and for writing in the same launch, and two bindings for writing would leave
//! it to drivers whether the second is known to be the first.

use std::borrow::Cow;

use cupola_ir::kernel::{Access, BufferId, Expr, Kernel, Phase};

use crate::device::BufferRange;

/// Operands of a launch that are the memory of a result, each with that result; of several operands the first.
pub fn pairs(kernel: &Kernel, ranges: &[BufferRange<'_>]) -> Vec<(usize, usize)> {
    let is = |at: usize, access: Access| kernel.buffers[at].access == access;
    let count = kernel.buffers.len().min(ranges.len());
    let written = (0..count).filter(|&w| is(w, Access::Write));
    let operand = |w| (0..count).find(|&r| is(r, Access::Read) && ranges[r].same_range(&ranges[w]));
    written.filter_map(|w| Some((operand(w)?, w))).collect()
}

/// The kernel with each of these operands and results as one buffer where it may be one, and the arguments of the original
/// that its buffers are.
pub fn write_over<'k>(
    kernel: &'k Kernel,
    pairs: &[(usize, usize)],
) -> (Cow<'k, Kernel>, Vec<usize>) {
    let stores = kernel.last_stores();
    let may = |(read, written): &&(usize, usize)| {
        let mut own = stores.iter().filter(|s| s.buffer.0 as usize == *written);
        let first = own.next();
        first.is_some_and(|store| kernel.writes_over(store, BufferId(*read as u32)))
            && own.next().is_none()
    };
    let pairs: Vec<(usize, usize)> = pairs.iter().filter(may).copied().collect();
    let mut arguments: Vec<usize> = (0..kernel.buffers.len()).collect();
    if pairs.is_empty() {
        return (Cow::Borrowed(kernel), arguments);
    }
    arguments.retain(|at| pairs.iter().all(|(read, _)| read != at));
    let renamed = |buffer: &mut BufferId| {
        let at = buffer.0 as usize;
        let at = pairs
            .iter()
            .find(|(read, _)| *read == at)
            .map_or(at, |p| p.1);
        let now = arguments.iter().position(|argument| *argument == at);
        *buffer = BufferId(now.unwrap_or(at) as u32);
    };
    let mut one = kernel.clone();
    for (_, written) in &pairs {
        one.buffers[*written].access = Access::ReadWrite;
    }
    one.buffers = arguments.iter().map(|at| one.buffers[*at]).collect();
    for expr in &mut one.exprs {
        if let Expr::Load { buffer, .. } = expr {
            renamed(buffer);
        }
    }
    for phase in &mut one.phases {
        if let Phase::Store { stores, .. } = phase {
            stores
                .iter_mut()
                .for_each(|store| renamed(&mut store.buffer));
        }
    }
    (Cow::Owned(one), arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cupola_ir::kernel::{BufferDecl, Extent, Index, Store, StoreKind};
    use cupola_ir::{DType, Scalar};

    /// `y[i] = x[at] + z[i]` and the buffers x, z, y.
    fn sum(at: impl Fn(&mut Kernel) -> Index) -> Kernel {
        let mut k = Kernel {
            axes: vec![Extent::Const(8)],
            parallel: 1,
            ..Kernel::default()
        };
        for access in [Access::Read, Access::Read, Access::Write] {
            k.buffers.push(BufferDecl {
                dtype: DType::F32,
                access,
                len: Extent::Const(8),
            });
        }
        let own = k.index(Index::Axis(cupola_ir::kernel::AxisId(0)));
        let at = at(&mut k);
        let at = k.index(at);
        let load = |buffer, index| Expr::Load {
            buffer: BufferId(buffer),
            index,
            guard: None,
        };
        let x = k.expr(load(0, at));
        let z = k.expr(load(1, own));
        let value = k.expr(Expr::Binary(Scalar::Add, x, z));
        k.phases.push(Phase::Store {
            axes: vec![],
            stores: vec![Store {
                buffer: BufferId(2),
                index: own,
                value,
                guard: None,
                kind: StoreKind::Set,
            }],
        });
        k
    }

    #[test]
    fn an_operand_read_at_its_own_element_is_the_result() {
        let k = sum(|_| Index::Axis(cupola_ir::kernel::AxisId(0)));
        let (one, arguments) = write_over(&k, &[(0, 2)]);
        assert_eq!(arguments, [1, 2]);
        let access: Vec<Access> = one.buffers.iter().map(|b| b.access).collect();
        assert_eq!(access, [Access::Read, Access::ReadWrite]);
        let loads: Vec<u32> = (one.exprs.iter())
            .filter_map(|e| match e {
                Expr::Load { buffer, .. } => Some(buffer.0),
                _ => None,
            })
            .collect();
        assert_eq!(loads, [1, 0]);
        assert_eq!(one.last_stores()[0].buffer, BufferId(1));
    }

    #[test]
    fn an_operand_read_elsewhere_stays_apart() {
        let k = sum(|k| {
            let last = k.index(Index::Const(7));
            let own = k.index(Index::Axis(cupola_ir::kernel::AxisId(0)));
            Index::Sub(last, own)
        });
        let (same, arguments) = write_over(&k, &[(0, 2)]);
        assert_eq!((arguments.len(), &*same), (3, &k));
    }
}
