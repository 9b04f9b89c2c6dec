//! The host as a device: its memory, and launches that run when they are submitted.
#![allow(unsafe_code)]

use crate::executable::CpuExecutable;
use crate::isa::Isa;
use crate::library::Context;
use crate::memory::{self, Scratch, Usage};
use crate::threads::Pool;
use bytes::Bytes;
use cupola_backend::{BackendError, Buffer, BufferRange, Command, Device, Launch, Memory, Result};
use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// Memory of the host.
pub struct CpuMemory {
    store: Store,
}

enum Store {
    Owned(memory::Buffer),
    /// Read only.
    Constant(Bytes),
}

impl fmt::Debug for CpuMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuMemory({} bytes)", self.size())
    }
}

impl CpuMemory {
    /// First byte. For reading only when the memory is a constant.
    pub fn as_ptr(&self) -> *mut u8 {
        match &self.store {
            Store::Owned(b) => b.as_ptr(),
            Store::Constant(b) => b.as_ptr().cast_mut(),
        }
    }

    fn is_constant(&self) -> bool {
        matches!(self.store, Store::Constant(_))
    }
}

impl Memory for CpuMemory {
    fn size(&self) -> usize {
        match &self.store {
            Store::Owned(b) => b.size(),
            Store::Constant(b) => b.len(),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Memory, threads and launches of the host. Launches run in `submit`, on the calling thread and the pool.
#[derive(Debug)]
pub struct CpuDevice {
    pub(crate) pool: Arc<Pool>,
    pub(crate) scratch: Scratch,
    pub(crate) isa: Isa,
    pub(crate) usage: Usage,
}

impl CpuDevice {
    /// What library kernels may use.
    pub(crate) fn context(&self) -> Context<'_> {
        self.context_with(&self.scratch)
    }

    /// As [`CpuDevice::context`], with other temporary memory.
    pub(crate) fn context_with<'a>(&'a self, scratch: &'a Scratch) -> Context<'a> {
        Context {
            isa: self.isa,
            pool: &self.pool,
            scratch,
        }
    }
}

/// Alignment of ranges in bytes.
pub(crate) const ALIGNMENT: usize = memory::ALIGNMENT;

/// Whether kernels can read constants where they are.
pub(crate) fn is_aligned(bytes: &Bytes) -> bool {
    (bytes.as_ptr() as usize).is_multiple_of(8)
}

const NAME: &str = "cpu";

fn failed(what: impl Into<String>) -> BackendError {
    BackendError::Device {
        device: NAME.into(),
        what: what.into(),
    }
}

/// The address of a range of host memory, checked to lie inside its buffer.
fn address(range: &BufferRange) -> Result<(*mut u8, bool)> {
    let memory = range
        .buffer
        .as_any()
        .downcast_ref::<CpuMemory>()
        .ok_or_else(|| failed("a buffer of another device"))?;
    let end = range.offset.checked_add(range.size);
    if end.is_none_or(|end| end > memory.size()) {
        return Err(failed(format!(
            "range {} + {} of a buffer of {} bytes",
            range.offset,
            range.size,
            memory.size()
        )));
    }
    // SAFETY: the offset lies inside the allocation, checked above.
    Ok((
        unsafe { memory.as_ptr().add(range.offset) },
        memory.is_constant(),
    ))
}

impl Device for CpuDevice {
    fn alloc(&self, size: usize) -> Result<Buffer> {
        let buffer =
            memory::Buffer::zeroed(size, &self.usage).map_err(|e| BackendError::OutOfMemory {
                device: NAME.into(),
                size: size as u64,
                what: e.to_string(),
            })?;
        Ok(Arc::new(CpuMemory {
            store: Store::Owned(buffer),
        }))
    }

    fn alloc_zeroed(&self, size: usize) -> Result<Buffer> {
        self.alloc(size)
    }

    fn constant(&self, bytes: Bytes) -> Result<Buffer> {
        if is_aligned(&bytes) {
            return self.constant_in_place(bytes);
        }
        let buffer = self.alloc(bytes.len())?;
        let size = bytes.len();
        let range = BufferRange {
            buffer: buffer.clone(),
            offset: 0,
            size,
        };
        self.upload(&range, &bytes)?;
        Ok(buffer)
    }

    fn constant_in_place(&self, bytes: Bytes) -> Result<Buffer> {
        Ok(Arc::new(CpuMemory {
            store: Store::Constant(bytes),
        }))
    }

    fn upload(&self, to: &BufferRange, bytes: &[u8]) -> Result<()> {
        let (start, constant) = address(to)?;
        if constant || bytes.len() != to.size {
            return Err(failed(format!(
                "{} bytes for a range of {}{}",
                bytes.len(),
                to.size,
                if constant { " of constant memory" } else { "" }
            )));
        }
        // SAFETY: the range lies inside its allocation and has the length of `bytes`; nothing runs between submits.
        unsafe { start.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn download(&self, from: &BufferRange, bytes: &mut [u8]) -> Result<()> {
        let (start, _) = address(from)?;
        if bytes.len() != from.size {
            return Err(failed(format!(
                "{} bytes from a range of {}",
                bytes.len(),
                from.size
            )));
        }
        // SAFETY: as in `upload`.
        unsafe { start.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn share(&self, range: &BufferRange) -> Result<Option<Bytes>> {
        let (start, _) = address(range)?;
        Ok(Some(Bytes::from_owner(Shared {
            start,
            size: range.size,
            _keep: range.buffer.clone(),
        })))
    }

    fn submit(&self, commands: &[Command]) -> Result<()> {
        for command in commands {
            match command {
                Command::Copy { from, to } => {
                    let ((source, _), (target, constant)) = (address(from)?, address(to)?);
                    if constant || from.size != to.size {
                        return Err(failed(format!(
                            "copy of {} bytes to {}",
                            from.size, to.size
                        )));
                    }
                    // SAFETY: both ranges lie inside their allocations and have equal sizes.
                    unsafe { target.copy_from(source, to.size) };
                }
                Command::Launch(launch) => self.launch(launch)?,
                Command::Concurrent(launches) => self.launch_all(launches)?,
            }
        }
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        Ok(())
    }

    fn trim(&self) {
        self.scratch.clear();
    }

    fn memory_used(&self) -> (u64, u64) {
        (self.usage.current() as u64, self.usage.peak() as u64)
    }
}

impl CpuDevice {
    fn launch(&self, launch: &Launch) -> Result<()> {
        let mut arguments = Vec::with_capacity(launch.buffers.len());
        for range in &launch.buffers {
            arguments.push(Argument::new(range)?);
        }
        executable(launch)?.launch(self, &arguments, &launch.sizes)
    }

    /// Runs launches that do not depend on each other: side by side, a thread for each, or one after the other with all
    /// threads, whichever is likely to end first.
    fn launch_all(&self, launches: &[Launch]) -> Result<()> {
        let mut alone = 0.0;
        let mut chains = Vec::with_capacity(launches.len());
        for launch in launches {
            let chain = executable(launch)?.chain(&launch.sizes);
            alone += chain.seconds(self.pool.threads());
            chains.push(chain.seconds(1));
        }
        if side_by_side(&chains, self.pool.threads()) > alone {
            return launches.iter().try_for_each(|launch| self.launch(launch));
        }
        self.context()
            .try_run(launches.len(), |at| self.launch(&launches[at]))
    }
}

/// Seconds that launches of so many seconds each take on as many threads.
fn side_by_side(launches: &[f64], threads: usize) -> f64 {
    let longest = launches.iter().copied().fold(0.0, f64::max);
    longest.max(launches.iter().sum::<f64>() / threads as f64)
}

fn executable(launch: &Launch) -> Result<&CpuExecutable> {
    let executable = launch.executable.as_any().downcast_ref();
    executable.ok_or_else(|| failed("code of another device"))
}

/// Bytes of a range that somebody reads outside of launches.
struct Shared {
    start: *const u8,
    size: usize,
    _keep: Buffer,
}

// SAFETY: the bytes are only read, and the buffer that keeps them is itself `Send`.
unsafe impl Send for Shared {}

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `share` has checked the range, the buffer is kept alive, and by the contract of `Device::share` nothing
        // writes to the range meanwhile.
        unsafe { std::slice::from_raw_parts(self.start, self.size) }
    }
}

/// A buffer argument of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Argument {
    /// First byte.
    pub start: *mut u8,
    /// Bytes.
    pub size: usize,
    /// Must not be written.
    pub constant: bool,
}

// SAFETY: an address alone does nothing; who follows it sees to that.
unsafe impl Send for Argument {}

impl Argument {
    /// The argument that a range is, checked to lie inside its buffer.
    pub(crate) fn new(range: &BufferRange) -> Result<Argument> {
        let (start, constant) = address(range)?;
        Ok(Argument {
            start,
            size: range.size,
            constant,
        })
    }
}
