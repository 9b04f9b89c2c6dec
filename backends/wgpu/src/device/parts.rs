//! Memory over the limits: buffers of the graphics interface that hold one range of bytes together, and the windows of it
//! that kernels see.

use std::ops::Range;

use cupola_shaders::Windows;

use crate::adapter::AdapterLimits;

/// Where memory is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLimits {
    /// Bytes that one binding can see, at least 256.
    pub binding: u64,
    /// Bytes that one buffer can have, at least 256.
    pub buffer: u64,
}

impl MemoryLimits {
    pub(super) fn of(limits: &AdapterLimits) -> Self {
        Self {
            binding: limits.binding_size,
            buffer: limits.buffer_size,
        }
    }

    /// Bytes of each of several buffers for `size` bytes, as a power of two; more than there are bytes if one will do.
    fn part_log2(self, size: u64) -> u32 {
        match size <= self.buffer {
            true => 63,
            false => self.buffer.ilog2(),
        }
    }

    /// Windows for all `size` bytes of a buffer.
    pub(super) fn windows(self, size: u64) -> Windows {
        self.windows_at(0, size, self.part_log2(size))
    }

    /// Windows for `size` bytes from `offset` in buffers of so many bytes: none is larger than a binding can be, nor in
    /// two buffers.
    fn windows_at(self, offset: u64, size: u64, part_log2: u32) -> Windows {
        let size_log2 = self.window_log2();
        let last = offset + size.max(1) - 1;
        let divided = offset >> part_log2 != last >> part_log2;
        if !divided && size <= self.binding {
            return Windows::ONE;
        }
        // Where buffers meet, windows do.
        let start = match divided {
            true => offset & ((1 << size_log2) - 1),
            false => 0,
        };
        Windows {
            count: (start + size).div_ceil(1 << size_log2) as u32,
            size_log2,
            start: start as u32,
        }
    }

    /// Bytes of a window, as a power of two.
    fn window_log2(self) -> u32 {
        // Places within a window and what is before it are counted in 32 bits.
        self.binding.min(self.buffer).ilog2().min(31)
    }
}

/// The buffers that hold a range of bytes, one after the other.
#[derive(Debug)]
pub(super) struct Parts {
    handles: Vec<wgpu::Buffer>,
    /// Bytes of each but the last: whole windows.
    part_log2: u32,
    limits: MemoryLimits,
}

impl Parts {
    /// Buffers for `size` bytes, more than one only where the device has no buffer that large.
    pub fn create(device: &wgpu::Device, limits: MemoryLimits, size: u64) -> Self {
        let part_log2 = limits.part_log2(size);
        let part = 1 << part_log2;
        let starts = (0..size.div_ceil(part)).map(|at| at << part_log2);
        let handles = starts.map(|start| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: part.min(size - start),
                usage: wgpu::BufferUsages::STORAGE
                    | wgpu::BufferUsages::COPY_SRC
                    | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        });
        Self {
            handles: handles.collect(),
            part_log2,
            limits,
        }
    }

    /// The buffer with the byte at `offset`, and where in it.
    pub fn place(&self, offset: u64) -> (&wgpu::Buffer, u64) {
        let part = offset >> self.part_log2;
        let within = offset - (part << self.part_log2);
        (&self.handles[part as usize], within)
    }

    /// The pieces of `size` bytes from `offset`, each in one buffer and of at most `most` bytes: buffer, first byte there,
    /// and which of the bytes asked for it has.
    pub fn pieces(
        &self,
        offset: u64,
        size: u64,
        most: u64,
    ) -> impl Iterator<Item = (&wgpu::Buffer, u64, Range<u64>)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            if done >= size {
                return None;
            }
            let (handle, from) = self.place(offset + done);
            let left = (1 << self.part_log2) - from;
            let bytes = done..done + left.min(most).min(size - done);
            done = bytes.end;
            Some((handle, from, bytes))
        })
    }

    /// Windows for `size` bytes from `offset`.
    pub fn windows(&self, offset: u64, size: u64) -> Windows {
        self.limits.windows_at(offset, size, self.part_log2)
    }
}
