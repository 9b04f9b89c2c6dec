//! Aligned buffers with accounting.
//!
//! Every byte the backend allocates for tensors, packed weights and scratch goes through [`Buffer`], under a [`Usage`] that
//! counts it, keeps the peak and enforces a budget. [`Scratch`] lends buffers that are reused from call to call, because fresh
//! pages cost more than the work of a small kernel. What stays as long as its program shares regions of huge pages. Nothing here
//! knows tensors.
#![allow(unsafe_code)]

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use bytemuck::Pod;
use bytes::Bytes;
use cupola_backend::{Keeper, Key};

use crate::error::{Error, Result};

/// Alignment of every buffer: one cache line, one 512-bit vector.
pub const ALIGNMENT: usize = 64;

/// Buffers of at least this size are aligned to it and backed by huge pages where the system has them (measured: DRAM reads
/// 1.5 to 1.9 times as fast as with 4 KiB pages).
pub const HUGE_PAGE: usize = 2 << 20;

/// Bytes in use and their peak, shared by the buffers of one session, with a budget. Cloning shares the counters.
#[derive(Debug, Clone)]
pub struct Usage {
    counters: Arc<Counters>,
    recall: Option<Recall>,
    /// Where [`Buffer::made`] takes its bytes from, if they are not to last.
    passing: Option<Arc<Shelf>>,
}

/// Where [`Buffer::made`] finds what was made before, and leaves what is made.
#[derive(Debug, Clone)]
pub(crate) struct Recall {
    pub keeper: Arc<dyn Keeper>,
    /// Names the unit and its constants.
    pub key: Key,
    /// Whether nothing may be made: what has not been kept is [`Error::NotKept`].
    pub only: bool,
    /// Buffers asked for so far.
    asked: Arc<AtomicUsize>,
}

impl Recall {
    pub fn new(keeper: Arc<dyn Keeper>, key: Key, only: bool) -> Recall {
        Recall {
            keeper,
            key,
            only,
            asked: Arc::default(),
        }
    }

    /// The key of the next buffer.
    fn next(&self, form: &dyn std::fmt::Debug, size: usize) -> Key {
        let at = self.asked.fetch_add(1, Relaxed);
        Key::of(&(self.key, at, format!("{form:?}"), size))
    }
}

#[derive(Debug)]
struct Counters {
    current: AtomicUsize,
    peak: AtomicUsize,
    limit: usize,
    /// Where the next lasting buffer goes.
    region: Mutex<Weak<Region>>,
}

impl Usage {
    /// Counters without a budget.
    pub fn unlimited() -> Usage {
        Usage::with_limit(usize::MAX)
    }

    /// Counters that refuse to go above `limit` bytes.
    pub fn with_limit(limit: usize) -> Usage {
        Usage {
            counters: Arc::new(Counters {
                current: AtomicUsize::new(0),
                peak: AtomicUsize::new(0),
                limit,
                region: Mutex::new(Weak::new()),
            }),
            recall: None,
            passing: None,
        }
    }

    /// Bytes in use now.
    pub fn current(&self) -> usize {
        self.counters.current.load(Relaxed)
    }

    /// The most bytes ever in use at a time since creation or [`Usage::reset_peak`].
    pub fn peak(&self) -> usize {
        self.counters.peak.load(Relaxed)
    }

    /// Starts a new measurement of the peak from what is in use now.
    pub fn reset_peak(&self) {
        self.counters.peak.store(self.current(), Relaxed);
    }

    fn limit(&self) -> usize {
        self.counters.limit
    }

    fn take(&self, size: usize) -> Result<()> {
        let limit = self.limit();
        let grown = |current: usize| current.checked_add(size).filter(|&sum| sum <= limit);
        let counters = &self.counters;
        match counters.current.fetch_update(Relaxed, Relaxed, grown) {
            Ok(before) => {
                counters.peak.fetch_max(before + size, Relaxed);
                Ok(())
            }
            Err(in_use) => Err(Error::OutOfMemory {
                size,
                in_use,
                limit,
            }),
        }
    }
}

impl Counters {
    fn give(&self, size: usize) {
        self.current.fetch_sub(size, Relaxed);
    }
}

impl Default for Usage {
    fn default() -> Usage {
        Usage::unlimited()
    }
}

/// Gives empty buffers an aligned address, which is never dereferenced.
#[repr(align(64))]
struct Line;

/// Bytes aligned to [`ALIGNMENT`]: owned ones (large ones aligned to [`HUGE_PAGE`]), zero at creation, or such as were kept,
/// which are only read.
#[derive(Debug)]
pub struct Buffer {
    start: NonNull<u8>,
    layout: Layout,
    hold: Hold,
}

/// What keeps the bytes of a buffer.
#[derive(Debug)]
enum Hold {
    Own(Arc<Counters>),
    Part(
        Arc<Counters>,
        #[expect(dead_code, reason = "keeps the bytes alive")] Arc<Region>,
    ),
    Shared(#[expect(dead_code, reason = "keeps the bytes alive")] Bytes),
    /// Goes back to where it was lent.
    Lent(Option<Box<Buffer>>, Arc<Shelf>),
}

// SAFETY: a Buffer owns its bytes; shared access only reads (`as_slice`) or hands out a raw pointer.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `size` zero bytes, counted under `usage`. Errors when the budget or the system does not allow it. `size` may be 0.
    pub fn zeroed(size: usize, usage: &Usage) -> Result<Buffer> {
        let huge = size >= HUGE_PAGE;
        let alignment = if huge { HUGE_PAGE } else { ALIGNMENT };
        let refused = || Error::OutOfMemory {
            size,
            in_use: usage.current(),
            limit: usage.limit(),
        };
        let layout = Layout::from_size_align(size, alignment).map_err(|_| refused())?;
        usage.take(size)?;
        let start = match size {
            0 => NonNull::<Line>::dangling().cast(),
            _ => pages::zeroed(layout).ok_or_else(|| {
                usage.counters.give(size);
                refused()
            })?,
        };
        Ok(Buffer {
            start,
            layout,
            hold: Hold::Own(usage.counters.clone()),
        })
    }

    /// As [`Buffer::zeroed`], for bytes that stay as long as their program. Those of many buffers lie side by side in huge
    /// pages: a weight of half a megabyte that lies alone in small ones is read at a quarter of the speed.
    pub(crate) fn lasting(size: usize, usage: &Usage) -> Result<Buffer> {
        if size == 0 || size > REGION / 4 {
            return Buffer::zeroed(size, usage);
        }
        let Ok(layout) = Layout::from_size_align(size, ALIGNMENT) else {
            return Buffer::zeroed(size, usage);
        };
        usage.take(size)?;
        let Some((region, start)) = usage.counters.place(size) else {
            usage.counters.give(size);
            return Buffer::zeroed(size, usage);
        };
        Ok(Buffer {
            start,
            layout,
            hold: Hold::Part(usage.counters.clone(), region),
        })
    }

    /// `size` zero bytes that go back to the shelf when they are dropped.
    fn lent(size: usize, usage: &Usage, shelf: &Arc<Shelf>) -> Result<Buffer> {
        let whole = shelf.take(size, usage)?;
        // SAFETY: the buffer is at least as long, and nobody else has it.
        unsafe { whole.as_ptr().write_bytes(0, size) };
        Ok(Buffer {
            start: whole.start,
            layout: Layout::from_size_align(size, ALIGNMENT).unwrap_or(whole.layout),
            hold: Hold::Lent(Some(Box::new(whole)), shelf.clone()),
        })
    }

    /// As many zero bytes that `make` writes over, once and for all: they are only read from then on. `form` says all that the bytes
    /// depend on beside the unit and the constants that `usage` recalls by; what was kept of them is used instead.
    /// Errors: out of memory, nothing kept where only that is wanted.
    pub(crate) fn made(
        size: usize,
        usage: &Usage,
        form: impl std::fmt::Debug,
        make: impl FnOnce(&Buffer),
    ) -> Result<Buffer> {
        if let Some(shelf) = &usage.passing {
            let buffer = Buffer::lent(size, usage, shelf)?;
            make(&buffer);
            return Ok(buffer);
        }
        let Some(recall) = &usage.recall else {
            let buffer = Buffer::lasting(size, usage)?;
            make(&buffer);
            return Ok(buffer);
        };
        let key = recall.next(&form, size);
        let found = recall.keeper.find(key);
        if let Some(bytes) = found.and_then(|bytes| Buffer::shared(bytes, size)) {
            return Ok(bytes);
        }
        if recall.only {
            return Err(Error::NotKept);
        }
        let buffer = Buffer::lasting(size, usage)?;
        make(&buffer);
        let bytes = Bytes::from_owner(Made(buffer));
        recall.keeper.keep(key, bytes.clone());
        Ok(Buffer::shared(bytes, size).unwrap_or_else(|| unreachable!("bug: made as kept")))
    }

    /// Kept bytes, if they are as long and as aligned as wanted.
    fn shared(bytes: Bytes, size: usize) -> Option<Buffer> {
        let start = NonNull::new(bytes.as_ptr().cast_mut())?;
        let aligned = bytes.is_empty() || (start.as_ptr() as usize).is_multiple_of(ALIGNMENT);
        let layout = Layout::from_size_align(size, ALIGNMENT).ok()?;
        (aligned && bytes.len() == size).then_some(Buffer {
            start,
            layout,
            hold: Hold::Shared(bytes),
        })
    }

    /// Zeros for `len` elements of `T`. Errors as [`Buffer::zeroed`], also when the size overflows.
    pub fn zeroed_for<T>(len: usize, usage: &Usage) -> Result<Buffer> {
        let overflow = Error::OutOfMemory {
            size: usize::MAX,
            in_use: usage.current(),
            limit: usage.limit(),
        };
        Buffer::zeroed(len.checked_mul(size_of::<T>()).ok_or(overflow)?, usage)
    }

    /// Bytes.
    pub fn size(&self) -> usize {
        self.layout.size()
    }

    /// First byte. Writing through it is up to the caller's care: no reference to the same bytes may be alive.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The whole elements that fit, as `T`.
    pub fn as_slice<T: Pod>(&self) -> &[T] {
        const { assert!(align_of::<T>() <= ALIGNMENT && size_of::<T>() > 0) };
        // SAFETY: aligned (above), initialised (zeroed at creation, `T: Pod` writes only), and borrowed from `self`.
        unsafe {
            std::slice::from_raw_parts(self.start.as_ptr().cast(), self.size() / size_of::<T>())
        }
    }

    /// The whole elements that fit, as `T`, for writing.
    pub fn as_mut_slice<T: Pod>(&mut self) -> &mut [T] {
        const { assert!(align_of::<T>() <= ALIGNMENT && size_of::<T>() > 0) };
        if let Hold::Shared(_) = self.hold {
            unreachable!("bug: kept bytes are only read");
        }
        // SAFETY: as in `as_slice`, exclusively borrowed.
        unsafe {
            std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.size() / size_of::<T>())
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let size = self.size();
        match &mut self.hold {
            Hold::Own(counters) => {
                if size > 0 {
                    // SAFETY: allocated with this very layout, once; the owner is gone.
                    unsafe { pages::free(self.start, self.layout) };
                }
                counters.give(size);
            }
            Hold::Part(counters, _) => counters.give(size),
            Hold::Shared(_) => {}
            Hold::Lent(whole, shelf) => {
                if let Some(whole) = whole.take() {
                    shelf.put(*whole);
                }
            }
        }
    }
}

/// Bytes of a region: many weights, and few of them left unused at its end.
const REGION: usize = 32 << 20;

/// Huge pages that lasting buffers share; given back with the last of them.
#[derive(Debug)]
struct Region {
    start: NonNull<u8>,
    layout: Layout,
    /// Bytes given out.
    used: AtomicUsize,
}

// SAFETY: a Region hands out every byte once, and touches none itself.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    fn new() -> Option<Region> {
        let layout = Layout::from_size_align(REGION, HUGE_PAGE).ok()?;
        Some(Region {
            start: pages::zeroed(layout)?,
            layout,
            used: AtomicUsize::new(0),
        })
    }

    /// Zero bytes that nobody else has, aligned to [`ALIGNMENT`].
    fn take(&self, size: usize) -> Option<NonNull<u8>> {
        let size = size.next_multiple_of(ALIGNMENT);
        let grown = |used: usize| Some(used + size).filter(|end| *end <= self.layout.size());
        let at = self.used.fetch_update(Relaxed, Relaxed, grown).ok()?;
        NonNull::new(self.start.as_ptr().wrapping_add(at))
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; every buffer in it is gone.
        unsafe { pages::free(self.start, self.layout) };
    }
}

impl Counters {
    /// Room in a region.
    fn place(&self, size: usize) -> Option<(Arc<Region>, NonNull<u8>)> {
        let mut open = self.region.lock().unwrap_or_else(|e| e.into_inner());
        let fits = |region: &Arc<Region>| Some((region.clone(), region.take(size)?));
        if let Some(placed) = open.upgrade().as_ref().and_then(fits) {
            return Some(placed);
        }
        let fresh = Arc::new(Region::new()?);
        *open = Arc::downgrade(&fresh);
        fits(&fresh)
    }
}

/// A finished buffer, whose bytes somebody keeps.
struct Made(Buffer);

impl AsRef<[u8]> for Made {
    fn as_ref(&self) -> &[u8] {
        self.0.as_slice()
    }
}

/// Zero bytes from the system.
mod pages {
    use super::HUGE_PAGE;
    use std::alloc::Layout;
    use std::ptr::NonNull;

    /// Memory of a layout whose size is not 0; `None` when the system has none.
    pub fn zeroed(layout: Layout) -> Option<NonNull<u8>> {
        match layout.align() == HUGE_PAGE {
            true => map(layout),
            // SAFETY: the caller's size is above zero.
            false => NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }),
        }
    }

    /// Gives memory back.
    ///
    /// # Safety
    /// It came from [`zeroed`] with this layout, and is not used any more.
    pub unsafe fn free(start: NonNull<u8>, layout: Layout) {
        match layout.align() == HUGE_PAGE {
            // SAFETY: the caller's contract.
            true => unsafe { unmap(start, layout) },
            // SAFETY: the caller's contract.
            false => unsafe { std::alloc::dealloc(start.as_ptr(), layout) },
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn map(layout: Layout) -> Option<NonNull<u8>> {
        // SAFETY: the caller's size is above zero.
        NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })
    }

    #[cfg(not(target_os = "linux"))]
    unsafe fn unmap(start: NonNull<u8>, layout: Layout) {
        // SAFETY: as `free`.
        unsafe { std::alloc::dealloc(start.as_ptr(), layout) }
    }

    #[cfg(target_os = "linux")]
    use linux::{map, unmap};

    /// Fresh mappings are zero already, so that nobody writes them twice, and their pages come as they are touched.
    #[cfg(target_os = "linux")]
    mod linux {
        use super::HUGE_PAGE;
        use std::alloc::Layout;
        use std::ffi::{c_int, c_long, c_void};
        use std::ptr::NonNull;

        unsafe extern "C" {
            fn mmap(
                address: *mut c_void,
                size: usize,
                protection: c_int,
                flags: c_int,
                file: c_int,
                offset: c_long,
            ) -> *mut c_void;
            fn munmap(address: *mut c_void, size: usize) -> c_int;
            fn madvise(address: *mut c_void, size: usize, advice: c_int) -> c_int;
        }

        const PAGE: usize = 4096;
        const READ_WRITE: c_int = 3;
        const PRIVATE_ANONYMOUS: c_int = 0x22;
        const ADVISE_HUGE: c_int = 14;

        /// Whole pages, from a multiple of [`HUGE_PAGE`] on.
        pub fn map(layout: Layout) -> Option<NonNull<u8>> {
            let size = layout.size().checked_next_multiple_of(PAGE)?;
            let all = size.checked_add(HUGE_PAGE)?;
            // SAFETY: a new private mapping touches no memory of ours.
            let start = unsafe {
                mmap(
                    std::ptr::null_mut(),
                    all,
                    READ_WRITE,
                    PRIVATE_ANONYMOUS,
                    -1,
                    0,
                )
            };
            if start as isize == -1 {
                return None;
            }
            let before = start.cast::<u8>().align_offset(HUGE_PAGE);
            let start = start.cast::<u8>().wrapping_add(before);
            // SAFETY: what is cut off lies inside the mapping, in whole pages, before and after the part that is kept;
            // the advice changes no contents, and a refusal only costs speed.
            unsafe {
                if before > 0 {
                    munmap(start.wrapping_sub(before).cast(), before);
                }
                if before < HUGE_PAGE {
                    munmap(start.wrapping_add(size).cast(), HUGE_PAGE - before);
                }
                let _ = madvise(start.cast(), size / HUGE_PAGE * HUGE_PAGE, ADVISE_HUGE);
            }
            NonNull::new(start)
        }

        /// # Safety
        /// As [`super::free`].
        pub unsafe fn unmap(start: NonNull<u8>, layout: Layout) {
            let size = layout.size().next_multiple_of(PAGE);
            // SAFETY: `map` kept exactly these pages.
            let _ = unsafe { munmap(start.as_ptr().cast(), size) };
        }
    }
}

/// Buffers that are not used just now.
#[derive(Debug)]
struct Shelf {
    buffers: Mutex<Vec<Buffer>>,
    /// Beyond so many the smallest is freed.
    kept: usize,
}

impl Shelf {
    fn buffers(&self) -> MutexGuard<'_, Vec<Buffer>> {
        let locked = self.buffers.lock();
        locked.unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The smallest buffer of at least `room` bytes, or a new one. Error: out of memory.
    fn take(&self, room: usize, usage: &Usage) -> Result<Buffer> {
        let mut buffers = self.buffers();
        let fitting = buffers.iter().enumerate().filter(|(_, b)| b.size() >= room);
        let found = fitting.min_by_key(|(_, b)| b.size()).map(|(at, _)| at);
        let reused = found.map(|at| buffers.swap_remove(at));
        drop(buffers);
        match reused {
            Some(buffer) => Ok(buffer),
            None => Buffer::zeroed(room.checked_next_multiple_of(4096).unwrap_or(room), usage),
        }
    }

    fn put(&self, buffer: Buffer) {
        let mut buffers = self.buffers();
        buffers.push(buffer);
        if buffers.len() > self.kept {
            let smallest = buffers.iter().enumerate().min_by_key(|(_, b)| b.size());
            if let Some(at) = smallest.map(|(at, _)| at) {
                buffers.swap_remove(at);
            }
        }
    }
}

/// A shelf of buffers for temporary use inside kernels: borrowed by [`Scratch::take`], put back on drop, kept for the next
/// call. Contents are whatever the previous user left.
#[derive(Debug)]
pub struct Scratch {
    shelf: Arc<Shelf>,
    usage: Usage,
}

impl Scratch {
    /// An empty shelf whose buffers count under `usage`. It keeps up to two unused buffers for each of `threads` and four
    /// more; beyond that the smallest is freed.
    pub fn new(threads: usize, usage: &Usage) -> Scratch {
        Scratch {
            shelf: Arc::new(Shelf {
                buffers: Mutex::default(),
                kept: threads.saturating_mul(2).saturating_add(4),
            }),
            usage: usage.clone(),
        }
    }

    /// The same shelf; what is made to last is looked for and left where `recall` says. Where only what is kept is wanted,
    /// nothing is lent: [`Error::NotKept`].
    pub(crate) fn recalling(&self, recall: Recall) -> Scratch {
        Scratch {
            shelf: self.shelf.clone(),
            usage: Usage {
                recall: Some(recall),
                ..self.usage.clone()
            },
        }
    }

    /// The same shelf, from which what is made to last is taken too: for what is dropped soon.
    pub(crate) fn passing(&self) -> Scratch {
        Scratch {
            shelf: self.shelf.clone(),
            usage: Usage {
                passing: Some(self.shelf.clone()),
                ..self.usage.clone()
            },
        }
    }

    /// A buffer of at least `len` elements of `T`, contents arbitrary. Error: out of memory.
    pub fn take<T: Pod>(&self, len: usize) -> Result<Lent<'_>> {
        if self.usage.recall.as_ref().is_some_and(|r| r.only) {
            return Err(Error::NotKept);
        }
        let size = len.checked_mul(size_of::<T>()).ok_or(Error::OutOfMemory {
            size: usize::MAX,
            in_use: self.usage.current(),
            limit: self.usage.limit(),
        })?;
        let room = size.saturating_add(GUARD.len());
        let buffer = self.shelf.take(room, &self.usage)?;
        // SAFETY: the buffer has room for the guard after `size` bytes.
        unsafe {
            buffer
                .as_ptr()
                .add(size)
                .copy_from(GUARD.as_ptr(), GUARD.len())
        };
        Ok(Lent {
            buffer: Some(buffer),
            size,
            scratch: self,
        })
    }

    /// The counters that the buffers count under.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Frees every buffer on the shelf.
    pub fn clear(&self) {
        self.shelf.buffers().clear();
    }
}

/// What stands behind lent memory in debug builds: a kernel that writes past what it asked for is found when it returns it.
const GUARD: &[u8] = if cfg!(debug_assertions) {
    &[0xa5; 64]
} else {
    &[]
};

/// A buffer on loan from a [`Scratch`].
#[derive(Debug)]
pub struct Lent<'a> {
    buffer: Option<Buffer>,
    /// Bytes asked for.
    size: usize,
    scratch: &'a Scratch,
}

impl Lent<'_> {
    fn buffer(&self) -> &Buffer {
        match &self.buffer {
            Some(buffer) => buffer,
            None => unreachable!("bug: the buffer is only taken on drop"),
        }
    }

    /// First byte, see [`Buffer::as_ptr`].
    pub fn as_ptr<T>(&self) -> *mut T {
        self.buffer().as_ptr().cast()
    }

    /// The elements asked for, for writing.
    pub fn as_mut_slice<T: Pod>(&mut self) -> &mut [T] {
        match &mut self.buffer {
            Some(buffer) => &mut buffer.as_mut_slice()[..self.size / size_of::<T>()],
            None => unreachable!("bug: the buffer is only taken on drop"),
        }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        // SAFETY: the guard lies inside the buffer, and nobody else has the buffer any more.
        let guard =
            unsafe { std::slice::from_raw_parts(self.as_ptr::<u8>().add(self.size), GUARD.len()) };
        assert!(
            guard == GUARD || std::thread::panicking(),
            "bug: a kernel wrote past {} bytes of scratch memory",
            self.size
        );
        if let Some(buffer) = self.buffer.take() {
            self.scratch.shelf.put(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zero_and_counted() {
        let usage = Usage::unlimited();
        for size in [0, 1, 63, 64, 4096, HUGE_PAGE, HUGE_PAGE + 5] {
            let mut buffer = Buffer::zeroed(size, &usage).expect("memory");
            assert_eq!(buffer.size(), size);
            assert_eq!(usage.current(), size);
            let alignment = if size >= HUGE_PAGE {
                HUGE_PAGE
            } else {
                ALIGNMENT
            };
            assert_eq!(buffer.as_ptr() as usize % alignment, 0);
            assert!(buffer.as_slice::<u8>().iter().all(|&byte| byte == 0));
            assert_eq!(buffer.as_mut_slice::<f32>().len(), size / 4);
        }
        assert_eq!(usage.current(), 0);
        assert_eq!(usage.peak(), HUGE_PAGE + 5);
        usage.reset_peak();
        assert_eq!(usage.peak(), 0);
    }

    #[test]
    fn lasting_buffers_lie_side_by_side() {
        let usage = Usage::unlimited();
        let first = Buffer::lasting(100, &usage).expect("memory");
        let second = Buffer::lasting(5000, &usage).expect("memory");
        assert_eq!(second.as_ptr() as usize - first.as_ptr() as usize, 128);
        assert!(second.as_slice::<u8>().iter().all(|&byte| byte == 0));
        drop(first);
        assert_eq!(usage.current(), 5000);
        let large = Buffer::lasting(REGION, &usage).expect("memory");
        assert_eq!(large.as_ptr() as usize % HUGE_PAGE, 0);
        let many: Vec<_> = (0..5)
            .map(|_| Buffer::lasting(REGION / 4, &usage).expect("memory"))
            .collect();
        assert!(many.iter().all(|b| b.as_slice::<u8>()[REGION / 4 - 1] == 0));
        drop((second, large, many));
        assert_eq!(usage.current(), 0);
    }

    #[test]
    fn too_much_is_an_error() {
        let usage = Usage::with_limit(1000);
        let first = Buffer::zeroed(600, &usage).expect("within the budget");
        let error = Buffer::zeroed(500, &usage).expect_err("beyond the budget");
        assert_eq!(
            error,
            Error::OutOfMemory {
                size: 500,
                in_use: 600,
                limit: 1000
            }
        );
        drop(first);
        assert!(Buffer::zeroed(1000, &usage).is_ok());
        let unlimited = Usage::unlimited();
        assert!(Buffer::zeroed(usize::MAX / 2, &unlimited).is_err());
        assert!(Buffer::zeroed(1 << 60, &unlimited).is_err());
        assert!(Buffer::zeroed_for::<u64>(usize::MAX / 4, &unlimited).is_err());
        assert_eq!(unlimited.current(), 0);
    }

    #[test]
    fn scratch_is_reused() {
        let usage = Usage::unlimited();
        let scratch = Scratch::new(1, &usage);
        let address = {
            let mut first = scratch.take::<f32>(1000).expect("memory");
            first.as_mut_slice::<f32>()[999] = 1.0;
            first.as_ptr::<f32>()
        };
        let again = scratch.take::<f32>(500).expect("memory");
        assert_eq!(again.as_ptr::<f32>(), address);
        let other = scratch.take::<f32>(500).expect("memory");
        assert_ne!(other.as_ptr::<f32>(), address);
        drop((again, other));
        scratch.clear();
        assert_eq!(usage.current(), 0);
    }

    #[test]
    fn what_does_not_last_is_taken_from_the_shelf() {
        let usage = Usage::unlimited();
        let scratch = Scratch::new(1, &usage);
        let passing = scratch.passing();
        let make = || Buffer::made(5000, passing.usage(), (), |b| assert_eq!(b.size(), 5000));
        let first = make().expect("memory");
        let address = first.as_ptr();
        let other = scratch.take::<u8>(5000).expect("memory");
        assert_ne!(other.as_ptr(), address);
        drop(first);
        assert_eq!(make().expect("memory").as_ptr(), address);
        drop((other, passing));
        scratch.clear();
        assert_eq!(usage.current(), 0);
    }

    #[test]
    fn the_shelf_is_bounded() {
        let usage = Usage::unlimited();
        let scratch = Scratch::new(1, &usage);
        let lent: Vec<_> = (0..20)
            .map(|_| scratch.take::<u8>(4000).expect("memory"))
            .collect();
        assert_eq!(usage.current(), 20 * 4096);
        drop(lent);
        assert_eq!(usage.current(), 6 * 4096);
    }
}
