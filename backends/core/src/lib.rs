//! What a backend is: compile units, allocate buffers, launch. Backends never see a graph.
//!
//! A [`Backend`] turns kernel units into [`Executable`]s and owns a [`Device`] that holds memory and runs launches in
//! order. Handles are opaque; tensors, shapes and names do not exist here.

mod keep;
pub mod testing;

pub use keep::{Forgetful, Keeper, Key, KeyHasher};

use cupola_ir::kernel::Unit;
use cupola_ir::target::Target;
use std::any::Any;
use std::fmt;
use std::sync::Arc;
use thiserror::Error;

/// What can go wrong in a backend.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BackendError {
    /// The unit needs something that the backend lacks; place it elsewhere. *Unsupported.*
    #[error("{unit}: not supported on {device}: {what}")]
    Unsupported {
        /// Unit name.
        unit: String,
        /// Device name.
        device: String,
        /// What is missing.
        what: String,
    },
    /// The device refused memory. *Limit.*
    #[error("{device} has no {size} bytes left: {what}")]
    OutOfMemory {
        /// Device name.
        device: String,
        /// Bytes asked for.
        size: u64,
        /// What the device said.
        what: String,
    },
    /// A launch found an index, a divisor or a size outside what the op allows. *User input.*
    #[error("{unit}: {what}")]
    Fault {
        /// Unit name.
        unit: String,
        /// What happened.
        what: String,
    },
    /// The device or its driver failed. *Neither the user's fault nor ours.*
    #[error("{device} failed: {what}")]
    Device {
        /// Device name.
        device: String,
        /// What the driver said.
        what: String,
    },
}

/// Result with [`BackendError`].
pub type Result<T, E = BackendError> = std::result::Result<T, E>;

/// A region of device memory, freed when the last handle is dropped. Backends downcast to their own type.
pub trait Memory: Any + Send + Sync + fmt::Debug {
    /// Bytes.
    fn size(&self) -> usize;
    /// For the backend to get its own type back.
    fn as_any(&self) -> &dyn Any;
}

/// A shared handle to device memory.
pub type Buffer = Arc<dyn Memory>;

/// Part of a buffer.
#[derive(Clone, Debug)]
pub struct BufferRange {
    /// Memory.
    pub buffer: Buffer,
    /// First byte; a multiple of the target's alignment.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
}

/// Compiled code of one unit.
pub trait Executable: Any + Send + Sync + fmt::Debug {
    /// For the backend to get its own type back.
    fn as_any(&self) -> &dyn Any;
    /// Generated or source text of the code, for `explain` and debugging; empty when there is none.
    fn listing(&self) -> String {
        String::new()
    }
    /// Bytes of constants that it holds in a form of its own, see [`Backend::bind_constants`].
    fn constant_size(&self) -> usize {
        0
    }
    /// Whether launches leave the bytes of this buffer argument alone, because the executable holds them in a form of its
    /// own. The argument is passed as before.
    fn replaces(&self, _argument: usize) -> bool {
        false
    }
    /// Whether launches can end in [`BackendError::Fault`].
    fn can_fault(&self) -> bool {
        true
    }
    /// Whether this buffer argument may begin at any address, see [`Device::constant_in_place`].
    fn takes_any_address(&self, _argument: usize) -> bool {
        false
    }
}

/// An executable, and what is known of its buffer arguments: the bytes of those that never change, or not for as long as what
/// is made of them is used.
#[derive(Clone, Debug)]
pub struct Binding {
    /// Code.
    pub executable: Arc<dyn Executable>,
    /// One entry per buffer argument; bytes of a constant at any address.
    pub constants: Vec<Option<bytes::Bytes>>,
    /// Where forms of these constants are kept.
    pub kept: Option<Kept>,
    /// Whether they last as long as a program, not as a part of a run only.
    pub lasts: bool,
}

/// Where what is made of a unit's constants is kept.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The place.
    pub keeper: Arc<dyn Keeper>,
    /// Names the unit and the contents of its constants.
    pub key: Key,
}

/// One run of an executable.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Code.
    pub executable: Arc<dyn Executable>,
    /// Buffer arguments in the unit's order.
    pub buffers: Vec<BufferRange>,
    /// Values of the unit's `sizes`, in order.
    pub sizes: Vec<i64>,
}

/// Something a device does, in order.
#[derive(Clone, Debug)]
pub enum Command {
    /// Runs an executable.
    Launch(Launch),
    /// Runs executables that do not depend on each other, at the same time if that is quicker.
    Concurrent(Vec<Launch>),
    /// Copies bytes between (parts of) buffers of this device; ranges are of equal size and do not overlap.
    Copy {
        /// Source.
        from: BufferRange,
        /// Destination.
        to: BufferRange,
    },
}

/// One copy to the host: as many bytes as the range has.
#[derive(Debug)]
pub struct Download<'a> {
    /// Where from.
    pub from: &'a BufferRange,
    /// Where to.
    pub target: &'a mut [u8],
}

/// Memory and a queue.
pub trait Device: Send + Sync {
    /// Allocates; contents are undefined. Zero bytes are allowed.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`].
    fn alloc(&self, size: usize) -> Result<Buffer>;

    /// Allocates zero bytes.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`] or [`BackendError::Device`].
    fn alloc_zeroed(&self, size: usize) -> Result<Buffer> {
        const PART: usize = 16 << 20;
        let buffer = self.alloc(size)?;
        let zeros = vec![0u8; size.min(PART)];
        for offset in (0..size).step_by(PART) {
            let size = PART.min(size - offset);
            let to = BufferRange {
                buffer: buffer.clone(),
                offset,
                size,
            };
            self.upload(&to, &zeros[..size])?;
        }
        Ok(buffer)
    }

    /// Memory that holds these bytes and is only read from now on (a weight). A device that shares the host's memory
    /// may keep the handle instead of copying.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`] or [`BackendError::Device`].
    fn constant(&self, bytes: bytes::Bytes) -> Result<Buffer> {
        let buffer = self.alloc(bytes.len())?;
        let size = bytes.len();
        self.upload(
            &BufferRange {
                buffer: buffer.clone(),
                offset: 0,
                size,
            },
            &bytes,
        )?;
        Ok(buffer)
    }

    /// As [`Device::constant`], for launches of executables that take this argument at any address only.
    ///
    /// # Errors
    /// As [`Device::constant`].
    fn constant_in_place(&self, bytes: bytes::Bytes) -> Result<Buffer> {
        self.constant(bytes)
    }

    /// Copies from the host, after all submitted work.
    ///
    /// # Errors
    /// [`BackendError::Device`].
    fn upload(&self, to: &BufferRange, bytes: &[u8]) -> Result<()>;

    /// Copies to the host, after all submitted work.
    ///
    /// # Errors
    /// [`BackendError::Device`], and faults of earlier launches.
    fn download(&self, from: &BufferRange, bytes: &mut [u8]) -> Result<()>;

    /// Several copies to the host, after all submitted work, where possible with one wait.
    ///
    /// # Errors
    /// As [`Device::download`], for the first that fails; the contents of the targets are then unspecified.
    fn download_all(&self, downloads: &mut [Download<'_>]) -> Result<()> {
        (downloads.iter_mut()).try_for_each(|each| self.download(each.from, each.target))
    }

    /// The bytes themselves, where the device shares the host's memory: a handle that keeps the memory alive. Nothing
    /// may write to the range while the handle lives. Waits for submitted work. `None` when there is no sharing.
    ///
    /// # Errors
    /// As [`Device::download`].
    fn share(&self, _range: &BufferRange) -> Result<Option<bytes::Bytes>> {
        Ok(None)
    }

    /// Queues commands; each sees the effects of those before it. May return before they have run.
    ///
    /// # Errors
    /// [`BackendError::Device`] or [`BackendError::Fault`].
    fn submit(&self, commands: &[Command]) -> Result<()>;

    /// Whether the device has a clock of its own, so that [`Device::submit_timed`] can be used.
    fn has_clock(&self) -> bool {
        false
    }

    /// Runs commands and waits for them; the times at which each began and ended on the device, since the first began.
    ///
    /// # Errors
    /// As [`Device::submit`]; [`BackendError::Device`] without a clock.
    fn submit_timed(
        &self,
        _commands: &[Command],
    ) -> Result<Vec<(std::time::Duration, std::time::Duration)>> {
        Err(BackendError::Device {
            device: "the device".into(),
            what: "it has no clock".into(),
        })
    }

    /// Whether nothing on the device can be used any more: its driver failed, and it has to be opened anew.
    fn is_lost(&self) -> bool {
        false
    }

    /// Waits for all submitted work and reports faults of its launches.
    ///
    /// # Errors
    /// [`BackendError::Fault`] or [`BackendError::Device`].
    fn wait(&self) -> Result<()>;

    /// Frees what is kept only to be used again.
    fn trim(&self) {}

    /// Bytes allocated now and at most so far.
    fn memory_used(&self) -> (u64, u64);
}

/// What a device reaches in short measurements: the limits that profiles compare with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rates {
    /// Operations per second of fused multiply-adds in `f32` (two each), all threads together.
    pub f32_ops: f64,
    /// Bytes read per second by all threads together from working sets of at most so many bytes, smallest first. The
    /// last is memory, for sets of any size.
    pub reads: Vec<(usize, f64)>,
    /// Bytes read and written per second, both counted, when memory is copied.
    pub copy: f64,
    /// Operations per second of fused multiply-adds in `f16`, where kernels compute in it.
    pub f16_ops: Option<f64>,
    /// Operations per second of matrix units on `f16` with sums in `f32`, where kernels use them.
    pub matrix_ops: Option<f64>,
    /// Seconds from handing over an empty kernel to knowing that it has run; 0 where that is a function call.
    pub submit: f64,
    /// Seconds that one more kernel takes beside its work.
    pub dispatch: f64,
}

impl Rates {
    /// Bytes per second that can be read from a working set of this size.
    pub fn read_rate(&self, size: u64) -> f64 {
        let level = self.reads.iter().find(|(most, _)| *most as u64 >= size);
        level.or(self.reads.last()).map_or(0.0, |(_, rate)| *rate)
    }
}

/// A compiler and the device it compiles for.
pub trait Backend: Send + Sync {
    /// Facts for the passes.
    fn target(&self) -> &Target;

    /// The device.
    fn device(&self) -> &dyn Device;

    /// Measures what the device reaches, in well under a second; `None` where nothing is measured. Nothing else should
    /// run meanwhile.
    fn measure(&self) -> Option<Rates> {
        None
    }

    /// Compiles units; one result each, in order. A backend may compile them in parallel or into one module.
    fn compile(&self, units: &[&Unit]) -> Vec<Result<Arc<dyn Executable>>>;

    /// As [`Backend::compile`], with code that is kept where there is some; what had to be made is given to be kept.
    fn compile_kept(
        &self,
        units: &[&Unit],
        _keeper: &dyn Keeper,
    ) -> Vec<Result<Arc<dyn Executable>>> {
        self.compile(units)
    }

    /// Names all that what the backend makes depends on beside units and constants: its own sources, the instructions it
    /// uses, its settings. `None` when nothing it makes can be kept.
    fn identity(&self) -> Option<Key> {
        None
    }

    /// Executables made ready for operands that never change: the same code with what is worth computing from them once
    /// (packed weights). Launches pass all buffers as before, and at these places the same bytes. One result each, in
    /// order; a backend may work on several at once.
    fn bind_constants(&self, bindings: &[Binding]) -> Vec<Result<Arc<dyn Executable>>> {
        let same = |b: &Binding| Ok(b.executable.clone());
        bindings.iter().map(same).collect()
    }

    /// Which arguments [`Backend::bind_constants`] will replace, see [`Executable::replaces`], and about the bytes that
    /// their forms take, given which buffer arguments are constants; known without compiling the unit or having them.
    fn replacement(&self, _unit: &Unit, _is_constant: &[bool]) -> Replacement {
        Replacement::default()
    }
}

/// What a backend makes of a unit's constants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replacement {
    /// Buffer arguments that are no longer read.
    pub arguments: Vec<usize>,
    /// About the bytes held instead.
    pub size: usize,
}
