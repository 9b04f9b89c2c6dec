//! Runs kernels on the CPU backend.

use cupola_backend::{Backend, BackendError, BufferRange, Command, Launch};
use cupola_cpu::CpuBackend;
use cupola_ir::Dim;
use cupola_ir::kernel::*;

/// Runs one unit over host bytes; every buffer is uploaded before and downloaded after.
pub fn run(
    backend: &CpuBackend,
    unit: &Unit,
    sizes: &[i64],
    buffers: &mut [Vec<u8>],
) -> Result<(), BackendError> {
    let executable = backend.compile(&[unit]).remove(0)?;
    let device = backend.device();
    let ranges: Vec<BufferRange> = buffers
        .iter()
        .map(|b| {
            let buffer = device.alloc(b.len())?;
            let range = BufferRange {
                buffer,
                offset: 0,
                size: b.len(),
            };
            device.upload(&range, b)?;
            Ok(range)
        })
        .collect::<Result<_, BackendError>>()?;
    let launch = Launch {
        executable,
        buffers: ranges.clone(),
        sizes: sizes.to_vec(),
    };
    let result = device.submit(&[Command::Launch(launch)]);
    for (range, bytes) in ranges.iter().zip(buffers) {
        device.download(range, bytes)?;
    }
    result
}

/// Little-endian bytes of numbers.
pub fn bytes<T: bytemuck::Pod>(values: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

/// Numbers of little-endian bytes.
pub fn numbers<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    bytemuck::pod_collect_to_vec(bytes)
}

/// A size bound at launch.
pub fn size(kernel: &mut Kernel, name: &str) -> Extent {
    kernel.extent(&Dim::sym(name))
}

/// An index that is an axis.
pub fn axis(kernel: &mut Kernel, axis: u32) -> IndexId {
    kernel.index(Index::Axis(AxisId(axis)))
}

/// `a * extent + b`.
pub fn row_major(kernel: &mut Kernel, a: IndexId, extent: Extent, b: IndexId) -> IndexId {
    let n = kernel.index(match extent {
        Extent::Const(c) => Index::Const(c),
        Extent::Size(s) => Index::Size(s),
    });
    let p = kernel.index(Index::Mul(a, n));
    kernel.index(Index::Add(p, b))
}
