//! Kernels in parts, for tests of generated code.

use cupola_ir::kernel::*;
use cupola_ir::{DType, Dim};

/// A buffer argument.
pub fn buffer(dtype: DType, access: Access, len: Extent) -> BufferDecl {
    BufferDecl { dtype, access, len }
}

/// An empty kernel with so many sizes.
pub fn kernel(name: &str, sizes: usize) -> Kernel {
    let mut kernel = Kernel {
        name: name.into(),
        ..Kernel::default()
    };
    // Sizes are given by number at the launch; what they are made of does not matter here.
    kernel.sizes = (0..sizes).map(|at| Dim::Const(at as i64)).collect();
    kernel
}

/// An element of a buffer.
pub fn load(k: &mut Kernel, buffer: u32, index: IndexId) -> ExprId {
    k.expr(Expr::Load {
        buffer: BufferId(buffer),
        index,
        guard: None,
    })
}

/// A plain store.
pub fn set(buffer: u32, index: IndexId, value: ExprId) -> Store {
    Store {
        buffer: BufferId(buffer),
        index,
        value,
        guard: None,
        kind: StoreKind::Set,
    }
}

/// `y[i] = f(x0[i], ..)` over one axis of run-time size.
pub fn elementwise(
    inputs: &[DType],
    output: DType,
    f: impl FnOnce(&mut Kernel, &[ExprId]) -> ExprId,
) -> Unit {
    let mut k = kernel("map", 1);
    let n = Extent::Size(0);
    k.axes = vec![n];
    k.parallel = 1;
    k.buffers = inputs.iter().map(|&d| buffer(d, Access::Read, n)).collect();
    k.buffers.push(buffer(output, Access::Write, n));
    let i = k.index(Index::Axis(AxisId(0)));
    let loads: Vec<ExprId> = (0..inputs.len() as u32)
        .map(|b| load(&mut k, b, i))
        .collect();
    let value = f(&mut k, &loads);
    k.phases = vec![Phase::Store {
        axes: vec![],
        stores: vec![set(inputs.len() as u32, i, value)],
    }];
    Unit::Loops(k)
}
