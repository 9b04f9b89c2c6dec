//! What is made once and used again: bind groups by what they bind, and memory that results are read back through.

use std::sync::{Arc, Mutex};

use rustc_hash::FxHashMap;

use super::lock;
use super::pipeline::{Access, Bindings};

/// Bind groups kept; a run over ever new buffers does not fill the memory.
const MOST_BOUND: usize = 1 << 14;

/// What a bind group binds: how its buffers are used, and each by number with offset and size.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct BindKey {
    pub(super) accesses: Vec<Access>,
    pub(super) ranges: Vec<(u64, u64, u64)>,
}

/// Bind groups of buffers that are alive.
#[derive(Debug, Default)]
pub(super) struct BindCache(Mutex<Bound>);

#[derive(Debug, Default)]
struct Bound {
    groups: FxHashMap<Arc<BindKey>, Bindings>,
    /// Groups by the buffers in them; those of a group that is gone may still be listed.
    by_buffer: FxHashMap<u64, Vec<Arc<BindKey>>>,
    listed: usize,
}

impl BindCache {
    pub(super) fn find(&self, key: &BindKey) -> Option<Bindings> {
        lock(&self.0).groups.get(key).cloned()
    }

    pub(super) fn insert(&self, key: BindKey, bindings: &Bindings) {
        let mut bound = lock(&self.0);
        if bound.groups.len() >= MOST_BOUND || bound.listed >= 16 * MOST_BOUND {
            *bound = Bound::default();
        }
        let key = Arc::new(key);
        for (buffer, ..) in &key.ranges {
            let of_buffer = bound.by_buffer.entry(*buffer).or_default();
            of_buffer.push(Arc::clone(&key));
        }
        bound.listed += key.ranges.len();
        bound.groups.insert(key, bindings.clone());
    }

    /// Lets go of all groups with a buffer, so that its memory is freed.
    pub(super) fn forget(&self, buffer: u64) {
        let mut bound = lock(&self.0);
        let keys = bound.by_buffer.remove(&buffer).unwrap_or_default();
        bound.listed -= keys.len();
        for key in keys {
            bound.groups.remove(&key);
        }
    }
}

/// The smallest piece of staging memory.
const LEAST_STAGED: u64 = 4 << 10;

/// Staging buffers kept.
const MOST_STAGED: usize = 8;

/// Host-visible buffers that results are copied through, lent to one read-back at a time.
#[derive(Debug, Default)]
pub(super) struct StagingPool(Mutex<Vec<wgpu::Buffer>>);

impl StagingPool {
    /// One of at least `size` bytes.
    pub(super) fn take(&self, device: &wgpu::Device, size: u64) -> wgpu::Buffer {
        let wanted = size.next_power_of_two().max(LEAST_STAGED);
        let mut free = lock(&self.0);
        if let Some(at) = free.iter().position(|buffer| buffer.size() == wanted) {
            return free.swap_remove(at);
        }
        drop(free);
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("staging"),
            size: wanted,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }

    /// Takes an unmapped one back; the one unused for the longest goes.
    pub(super) fn give(&self, buffer: wgpu::Buffer) {
        let mut free = lock(&self.0);
        if free.len() >= MOST_STAGED {
            free.remove(0);
        }
        free.push(buffer);
    }

    pub(super) fn clear(&self) {
        lock(&self.0).clear();
    }
}
