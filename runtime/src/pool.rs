//! Reuse of device memory between steps and runs.

use crate::error::Result;
use cupola_backend::{Buffer, Device};
use std::sync::Arc;

/// Free buffers of one device.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: Vec<Buffer>,
    /// Bytes of all buffers that came from here and still live, free or not.
    pub held: u64,
    /// Most bytes held at once.
    pub peak: u64,
}

/// Most free buffers kept.
const MOST_FREE: usize = 256;

impl Pool {
    /// A buffer of at least `size` bytes: the smallest free one that is not more than twice as large, or a new one.
    pub fn take(&mut self, device: &dyn Device, size: usize) -> Result<Buffer> {
        let fits = |b: &Buffer| b.size() >= size && b.size() / 2 <= size.max(4096) && Arc::strong_count(b) == 1;
        let best = (0..self.free.len()).filter(|i| fits(&self.free[*i])).min_by_key(|i| self.free[*i].size());
        if let Some(at) = best {
            return Ok(self.free.swap_remove(at));
        }
        // Pages are handed out whole, so nearly equal sizes can share.
        let buffer = device.alloc(size.max(1).next_multiple_of(64))?;
        self.held += buffer.size() as u64;
        self.peak = self.peak.max(self.held);
        Ok(buffer)
    }

    /// Takes a buffer back; it is handed out again once nobody else holds it.
    pub fn give(&mut self, buffer: Buffer) {
        if self.free.len() >= MOST_FREE {
            let dropped = self.free.remove(0);
            self.held = self.held.saturating_sub(dropped.size() as u64);
        }
        self.free.push(buffer);
    }
}
