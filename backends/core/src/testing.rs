//! Running one unit over bytes, for tests and measurements of backends.

use crate::{Backend, Binding, BufferRange, Command, Launch, Result};
use cupola_ir::kernel::Unit;

/// Compiles a unit and runs it over buffers given as bytes, which get their contents afterwards, also after a fault.
///
/// # Errors
/// What compilation, memory and the launch report.
pub fn run(
    backend: &dyn Backend,
    unit: &Unit,
    sizes: &[i64],
    buffers: &mut [Vec<u8>],
) -> Result<()> {
    run_with_constants(backend, unit, sizes, buffers, &[])
}

/// As [`run`], with the buffers at these places bound as constants before.
///
/// # Errors
/// As [`run`].
pub fn run_with_constants(
    backend: &dyn Backend,
    unit: &Unit,
    sizes: &[i64],
    buffers: &mut [Vec<u8>],
    constants: &[usize],
) -> Result<()> {
    let executable = backend.compile(&[unit]).remove(0)?;
    let device = backend.device();
    let ranges: Vec<BufferRange> = (buffers.iter())
        .map(|bytes| {
            let range = BufferRange {
                buffer: device.alloc(bytes.len())?,
                offset: 0,
                size: bytes.len(),
            };
            device.upload(&range, bytes)?;
            Ok(range)
        })
        .collect::<Result<_>>()?;
    let known = |(at, bytes): (usize, &Vec<u8>)| {
        let constant = constants.contains(&at);
        constant.then(|| bytes::Bytes::copy_from_slice(bytes))
    };
    let binding = Binding {
        executable,
        constants: buffers.iter().enumerate().map(known).collect(),
        kept: None,
        lasts: true,
    };
    let launch = Launch {
        executable: backend.bind_constants(&[binding]).remove(0)?,
        buffers: ranges.clone(),
        sizes: sizes.to_vec(),
    };
    let result = device
        .submit(&[Command::Launch(launch)])
        .and_then(|()| device.wait());
    for (range, bytes) in ranges.iter().zip(buffers) {
        device.download(range, bytes)?;
    }
    result
}
