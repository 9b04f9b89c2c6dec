//! Values that a run takes and gives: on the host, or in a device's memory.

use crate::error::{Result, RuntimeError};
use bytes::Bytes;
use cupola_backend::{Backend, Buffer, BufferRange};
use cupola_ir::{DType, Tensor, TensorType, Value};
use std::fmt;
use std::sync::Arc;

/// A tensor in a device's memory: dense, row-major. Clones share the memory.
///
/// [`crate::Program::upload`] and [`crate::Program::empty`] make one; a run gives one for an output that is to stay on
/// the device.
#[derive(Clone)]
pub struct DeviceTensor {
    dtype: DType,
    shape: Vec<usize>,
    pub(crate) range: BufferRange,
    pub(crate) backend: Arc<dyn Backend>,
}

impl fmt::Debug for DeviceTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceTensor({})", self.ty())
    }
}

impl DeviceTensor {
    /// Memory for a tensor, contents undefined.
    pub(crate) fn empty(
        backend: &Arc<dyn Backend>,
        dtype: DType,
        shape: &[usize],
    ) -> Result<DeviceTensor> {
        let size = size_in_memory(dtype, shape)?;
        let range = whole(backend.device().alloc(padded(size))?, size);
        Ok(DeviceTensor::over(backend, dtype, shape.to_vec(), range))
    }

    /// A tensor of zeros.
    pub(crate) fn zeros(
        backend: &Arc<dyn Backend>,
        dtype: DType,
        shape: &[usize],
    ) -> Result<DeviceTensor> {
        let size = size_in_memory(dtype, shape)?;
        let range = whole(backend.device().alloc_zeroed(padded(size))?, size);
        Ok(DeviceTensor::over(backend, dtype, shape.to_vec(), range))
    }

    /// A copy of a host tensor.
    pub(crate) fn upload(backend: &Arc<dyn Backend>, tensor: &Tensor) -> Result<DeviceTensor> {
        let made = DeviceTensor::empty(backend, tensor.dtype(), tensor.shape())?;
        backend.device().upload(&made.range, tensor.bytes())?;
        Ok(made)
    }

    pub(crate) fn over(
        backend: &Arc<dyn Backend>,
        dtype: DType,
        shape: Vec<usize>,
        range: BufferRange,
    ) -> DeviceTensor {
        DeviceTensor {
            dtype,
            shape,
            range,
            backend: backend.clone(),
        }
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extents.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Type.
    pub fn ty(&self) -> TensorType {
        TensorType::new(self.dtype, self.shape.iter().copied())
    }

    /// Bytes.
    pub fn size(&self) -> usize {
        self.range.size
    }

    /// Tells memory apart: no other has this number as long as this tensor lives.
    pub fn memory_number(&self) -> usize {
        Arc::as_ptr(&self.range.buffer).cast::<u8>() as usize
    }

    /// The tensor on the host: shared where the device's memory is the host's, else copied. Waits for submitted work.
    ///
    /// # Errors
    /// A device that fails, and faults of earlier launches.
    pub fn to_host(&self) -> Result<Tensor> {
        let device = self.backend.device();
        let bytes = match device.share(&self.range)? {
            Some(shared) => shared,
            None => download(&*self.backend, &self.range)?,
        };
        Ok(self.with_bytes(bytes))
    }

    /// A host tensor of the same type with these bytes, as many as it has.
    pub(crate) fn with_bytes(&self, bytes: Bytes) -> Tensor {
        let tensor = Tensor::new(self.dtype, self.shape.clone(), bytes);
        tensor.unwrap_or_else(|| unreachable!("bug: size of a device tensor"))
    }

    /// Copies the elements into `bytes`, which has exactly [`DeviceTensor::size`] bytes.
    ///
    /// # Errors
    /// As [`DeviceTensor::to_host`]; another length.
    pub fn copy_to(&self, bytes: &mut [u8]) -> Result<()> {
        Ok(self.backend.device().download(&self.range, bytes)?)
    }

    /// Overwrites the elements with those of a host tensor of the same type. Refused while the memory is shared.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] for another type or shared memory; a device that fails.
    pub fn fill(&mut self, tensor: &Tensor) -> Result<()> {
        if tensor.dtype() != self.dtype || tensor.shape() != self.shape {
            let what = format!("{} given, {} taken", tensor.ty(), self.ty());
            return Err(RuntimeError::input("*", what));
        }
        self.check_unshared("*")?;
        Ok(self.backend.device().upload(&self.range, tensor.bytes())?)
    }

    /// The same tensor at another place of its device.
    pub(crate) fn moved(self, range: BufferRange) -> DeviceTensor {
        DeviceTensor { range, ..self }
    }

    /// A view of the elements at a position of axis 0, which vanishes; positions are `pitch` bytes apart.
    pub(crate) fn row(&self, at: usize, pitch: usize) -> DeviceTensor {
        let shape = self.shape[1..].to_vec();
        let size = Tensor::size_of(self.dtype, &shape);
        let range = BufferRange {
            buffer: self.range.buffer.clone(),
            offset: self.range.offset + at * pitch,
            size: size.unwrap_or_else(|| unreachable!("bug: a row larger than the whole")),
        };
        DeviceTensor::over(&self.backend, self.dtype, shape, range)
    }

    /// So many tensors like this one along a new leading axis, which lie in `range`.
    pub(crate) fn stacked(&self, count: usize, range: BufferRange) -> DeviceTensor {
        let shape = [&[count], self.shape()].concat();
        DeviceTensor::over(&self.backend, self.dtype, shape, range)
    }

    /// Whether this is its memory.
    pub(crate) fn is_at(&self, range: &BufferRange) -> bool {
        Arc::ptr_eq(&self.range.buffer, &range.buffer) && self.range.offset == range.offset
    }

    /// Whether it lies in this device's memory.
    pub(crate) fn is_on(&self, backend: &Arc<dyn Backend>) -> bool {
        Arc::ptr_eq(&self.backend, backend)
    }

    /// Whether no other tensor has this memory.
    pub(crate) fn is_unshared(&self) -> bool {
        Arc::strong_count(&self.range.buffer) == 1
    }

    /// Memory that somebody else can read must not be written.
    pub(crate) fn check_unshared(&self, name: &str) -> Result<()> {
        if self.is_unshared() {
            return Ok(());
        }
        let what = "its memory is shared with other tensors and cannot be written";
        Err(RuntimeError::input(name, what))
    }
}

/// Bytes of a tensor of numbers; an error where no memory holds them.
fn size_in_memory(dtype: DType, shape: &[usize]) -> Result<usize> {
    let size = Tensor::size_of(dtype, shape).filter(|s| *s <= isize::MAX as usize);
    let size = size.filter(|_| dtype != DType::String);
    let refused = || cupola_ir::IrError::Limit(format!("{dtype}{shape:?} does not fit in memory"));
    Ok(size.ok_or_else(refused)?)
}

/// Allocations are padded so that nearly equal sizes can share pooled memory.
pub(crate) fn padded(size: usize) -> usize {
    size.max(1).next_multiple_of(64)
}

/// The first `size` bytes of a buffer.
pub(crate) fn whole(buffer: Buffer, size: usize) -> BufferRange {
    BufferRange {
        buffer,
        offset: 0,
        size,
    }
}

/// A copy of a range on the host.
pub(crate) fn download(backend: &dyn Backend, range: &BufferRange) -> Result<Bytes> {
    let mut bytes = vec![0u8; range.size];
    backend.device().download(range, &mut bytes)?;
    Ok(Bytes::from(bytes))
}

/// A value given to a run or got from one.
#[derive(Clone, Debug)]
pub enum RunValue {
    /// On the host.
    Host(Value),
    /// In a device's memory.
    Device(DeviceTensor),
}

impl RunValue {
    /// The value on the host; waits for the device.
    ///
    /// # Errors
    /// As [`DeviceTensor::to_host`].
    pub fn to_host(&self) -> Result<Value> {
        match self {
            RunValue::Host(v) => Ok(v.clone()),
            RunValue::Device(t) => Ok(t.to_host()?.into()),
        }
    }
}

impl From<Value> for RunValue {
    fn from(v: Value) -> RunValue {
        RunValue::Host(v)
    }
}

impl From<Tensor> for RunValue {
    fn from(t: Tensor) -> RunValue {
        RunValue::Host(t.into())
    }
}

impl From<DeviceTensor> for RunValue {
    fn from(t: DeviceTensor) -> RunValue {
        RunValue::Device(t)
    }
}

/// Where a run leaves an output.
#[derive(Debug, Default)]
pub enum Place {
    /// On the host.
    #[default]
    Host,
    /// In the memory of the program's device.
    Device,
    /// In this memory. It must have the output's type and extents, and nobody else may hold it; it comes back as the
    /// output, and is lost when the run fails.
    Into(DeviceTensor),
}
