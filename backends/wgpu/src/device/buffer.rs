//! Device memory, and bytes between host and device.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::Duration;

use cupola_ir::BlockFormat;
use cupola_shaders::Windows;
use cupola_shaders::blocks::book_buffer;

use super::inject::Mishap;
use super::parts::{MemoryLimits, Parts};
use super::reuse::BindCache;
use super::{GpuDevice, STORAGE_ALIGNMENT, lock};
use crate::error::Error;

/// Copies in WebGPU have word granularity.
const WORD: u64 = 4;

/// Bytes read back in one piece; larger reads go in several, so that the host copy stays small.
const READ_CHUNK: u64 = 64 << 20;

/// Bytes of the largest buffer: 2^31 elements, the most an index reaches, of 64 bits.
pub(crate) const LARGEST_BUFFER: u64 = 1 << 34;

/// How long finished work may take to be reported.
const PATIENCE: Duration = Duration::from_secs(10);

/// A range of device memory that kernels can read and write. Fresh buffers hold zeros. Dropping it frees the memory once
/// no submission uses it any more.
#[derive(Debug)]
pub struct GpuBuffer {
    pub(super) parts: Parts,
    /// Tells it from every other buffer of this process, also from those that are gone.
    pub(super) number: u64,
    size: u64,
    account: Arc<MemoryAccount>,
    bound: Arc<BindCache>,
}

/// Buffers made so far.
static COUNT: AtomicU64 = AtomicU64::new(0);

impl GpuBuffer {
    /// Bytes asked for. The memory behind is rounded up to 16.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The whole buffer as a kernel argument.
    pub fn whole(&self) -> BufferRange<'_> {
        BufferRange {
            buffer: self,
            offset: 0,
            size: self.size,
        }
    }

    /// The first bytes as a kernel argument, as many as `size` says or there are.
    pub fn first(&self, size: u64) -> BufferRange<'_> {
        BufferRange {
            buffer: self,
            offset: 0,
            size: size.min(self.size),
        }
    }

    /// `size` bytes from `offset` as a kernel argument.
    ///
    /// # Errors
    /// [`Error::Range`] if the range leaves the buffer or `offset` is not a multiple of [`STORAGE_ALIGNMENT`].
    pub fn range(&self, offset: u64, size: u64) -> Result<BufferRange<'_>, Error> {
        let fits = offset.checked_add(size).is_some_and(|end| end <= self.size);
        if !fits || !offset.is_multiple_of(STORAGE_ALIGNMENT) {
            return Err(Error::Range {
                what: "kernel argument",
                reason: format!(
                    "{size} bytes at {offset} of a buffer of {} bytes; offsets are multiples of {STORAGE_ALIGNMENT}",
                    self.size
                ),
            });
        }
        // An empty range may lie at the very end, where no binding may start.
        let offset = if size == 0 { 0 } else { offset };
        Ok(BufferRange {
            buffer: self,
            offset,
            size,
        })
    }

    /// Bytes that really exist.
    pub(super) fn padded_size(&self) -> u64 {
        padded(self.size)
    }

    /// Checks a host transfer or copy: word-aligned start, end within the buffer. Returns the size in whole words.
    pub(super) fn transfer(
        &self,
        what: &'static str,
        offset: u64,
        size: u64,
    ) -> Result<u64, Error> {
        let fits = offset.checked_add(size).is_some_and(|end| end <= self.size);
        if !fits || !offset.is_multiple_of(WORD) {
            return Err(Error::Range {
                what,
                reason: format!(
                    "{size} bytes at {offset} of a buffer of {} bytes; offsets are multiples of {WORD}",
                    self.size
                ),
            });
        }
        Ok(size.next_multiple_of(WORD))
    }
}

impl Drop for GpuBuffer {
    fn drop(&mut self) {
        self.bound.forget(self.number);
        self.account.release(self.padded_size());
    }
}

/// Whole fours of words, at least one: the smallest range that kernels reading fours can be given.
fn padded(size: u64) -> u64 {
    size.max(1).next_multiple_of(4 * WORD)
}

/// Part of a buffer, as a kernel sees it.
#[derive(Debug, Clone, Copy)]
pub struct BufferRange<'a> {
    /// The buffer.
    pub(super) buffer: &'a GpuBuffer,
    /// First byte, a multiple of [`STORAGE_ALIGNMENT`].
    pub(super) offset: u64,
    /// Bytes.
    pub(super) size: u64,
}

impl<'a> BufferRange<'a> {
    /// Whether both are of one buffer.
    pub(crate) fn same_buffer(&self, other: &BufferRange<'_>) -> bool {
        self.buffer.number == other.buffer.number
    }

    /// Whether both are the same bytes.
    pub(crate) fn same_range(&self, other: &BufferRange<'_>) -> bool {
        self.same_buffer(other) && (self.offset, self.size) == (other.offset, other.size)
    }

    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The windows that a kernel sees it through.
    pub(crate) fn windows(&self) -> Windows {
        self.buffer.parts.windows(self.offset, padded(self.size))
    }

    /// What each of the windows binds.
    pub(super) fn bindings(&self) -> impl Iterator<Item = wgpu::BufferBinding<'a>> {
        let parts = &self.buffer.parts;
        let windows = parts.windows(self.offset, padded(self.size));
        let first = self.offset - u64::from(windows.start);
        let end = self.offset + padded(self.size);
        (0..u64::from(windows.count)).map(move |window| {
            let (from, to) = match windows.count {
                1 => (first, end),
                _ => (
                    first + (window << windows.size_log2),
                    end.min(first + ((window + 1) << windows.size_log2)),
                ),
            };
            let (buffer, offset) = parts.place(from);
            wgpu::BufferBinding {
                buffer,
                offset,
                size: std::num::NonZeroU64::new(to - from),
            }
        })
    }
}

/// Bytes in use on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryUse {
    /// Bytes of buffers alive.
    pub live: u64,
    /// The most that was alive at once.
    pub peak: u64,
    /// Buffers alive.
    pub buffers: usize,
}

/// Counts the bytes of a device's buffers and refuses those over the budget.
#[derive(Debug)]
pub(super) struct MemoryAccount {
    budget: Option<u64>,
    used: Mutex<MemoryUse>,
}

impl MemoryAccount {
    pub(super) fn new(budget: Option<u64>) -> Self {
        Self {
            budget,
            used: Mutex::new(MemoryUse::default()),
        }
    }

    pub(super) fn snapshot(&self) -> MemoryUse {
        *lock(&self.used)
    }

    fn reserve(&self, size: u64) -> Result<(), Error> {
        let mut used = lock(&self.used);
        let live = used.live.checked_add(size);
        match live.filter(|&live| self.budget.is_none_or(|budget| live <= budget)) {
            Some(live) => {
                used.live = live;
                used.peak = used.peak.max(live);
                used.buffers += 1;
                Ok(())
            }
            None => Err(Error::OutOfMemory {
                requested: size,
                live: used.live,
                budget: self.budget,
            }),
        }
    }

    fn release(&self, size: u64) {
        let mut used = lock(&self.used);
        used.live = used.live.saturating_sub(size);
        used.buffers = used.buffers.saturating_sub(1);
    }
}

/// Copies from the host that are on their way.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    /// Bytes staged since the last submission made for uploads.
    staged: u64,
    /// That submission.
    before: Option<wgpu::SubmissionIndex>,
}

/// Bytes of uploads that are submitted together. Twice as many are staged in host memory at most: the driver copies one
/// portion while the next is written.
const PORTION: u64 = 32 << 20;

/// Codebooks of block formats, in the order of their table, uploaded when first used.
#[derive(Debug)]
pub(super) struct Books([OnceLock<GpuBuffer>; BlockFormat::TABLE.len()]);

impl Default for Books {
    fn default() -> Self {
        Self([const { OnceLock::new() }; BlockFormat::TABLE.len()])
    }
}

impl GpuDevice {
    /// The codebook of a format as kernels read it; an empty buffer for formats without a large one.
    ///
    /// # Errors
    /// Those of [`Self::allocate_with`].
    pub fn book(&self, format: BlockFormat) -> Result<&GpuBuffer, Error> {
        let is_it = |row: &(BlockFormat, &str, usize, usize)| row.0 == format;
        let at = BlockFormat::TABLE.iter().position(is_it).unwrap_or(0);
        let place = &self.books.0[at];
        if let Some(book) = place.get() {
            return Ok(book);
        }
        let book = self.allocate_with(book_buffer(format).unwrap_or_default())?;
        Ok(place.get_or_init(|| book))
    }
    /// Allocates `size` bytes of zeros. Zero bytes is allowed.
    ///
    /// # Errors
    /// [`Error::Limit`] above [`LARGEST_BUFFER`], [`Error::OutOfMemory`] over the budget or when the driver has no more.
    pub fn allocate(&self, size: u64) -> Result<GpuBuffer, Error> {
        if size > LARGEST_BUFFER {
            return Err(Error::Limit {
                what: "a buffer",
                needed: size,
                allowed: LARGEST_BUFFER,
            });
        }
        let limits = MemoryLimits::of(self.limits());
        if self.injector.strikes(Mishap::Allocation) {
            return Err(Error::OutOfMemory {
                requested: size,
                live: self.memory().live,
                budget: None,
            });
        }
        let account = Arc::clone(&self.memory);
        account.reserve(padded(size))?;
        let created = self.scoped("allocation", || {
            Parts::create(&self.device, limits, padded(size))
        });
        match created {
            Ok(parts) => Ok(GpuBuffer {
                parts,
                number: COUNT.fetch_add(1, Ordering::Relaxed),
                size,
                account,
                bound: Arc::clone(&self.bound),
            }),
            Err(error) => {
                account.release(padded(size));
                Err(match error {
                    Error::OutOfMemory { live, .. } => Error::OutOfMemory {
                        requested: size,
                        live: live.saturating_sub(padded(size)),
                        budget: None,
                    },
                    other => other,
                })
            }
        }
    }

    /// The windows of `size` bytes at the start of a buffer of that size.
    pub(crate) fn windows(&self, size: u64) -> Windows {
        MemoryLimits::of(self.limits()).windows(padded(size))
    }

    /// Allocates a buffer that holds `bytes`.
    ///
    /// # Errors
    /// Those of [`Self::allocate`] and [`Self::upload`].
    pub fn allocate_with(&self, bytes: &[u8]) -> Result<GpuBuffer, Error> {
        let buffer = self.allocate(bytes.len() as u64)?;
        self.upload(&buffer, 0, bytes)?;
        Ok(buffer)
    }

    /// Memory held by this device's buffers now.
    pub fn memory(&self) -> MemoryUse {
        self.memory.snapshot()
    }

    /// Copies `bytes` into `buffer` from byte `offset`, a multiple of four. Work submitted before sees the old content,
    /// work submitted afterwards the new. If the length is no multiple of four, the bytes that fill the last word
    /// become zero.
    ///
    /// # Errors
    /// [`Error::Range`] outside the buffer, [`Error::OutOfMemory`] or [`Error::Lost`] from the driver.
    pub fn upload(&self, buffer: &GpuBuffer, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        buffer.transfer("upload", offset, bytes.len() as u64)?;
        let whole = bytes.len() / WORD as usize * WORD as usize;
        // Each piece is staged in host memory until it is submitted, so weights go in portions.
        for (handle, at, bytes_of) in buffer.parts.pieces(offset, whole as u64, PORTION) {
            let piece = &bytes[bytes_of.start as usize..bytes_of.end as usize];
            self.scoped("upload", || self.queue.write_buffer(handle, at, piece))?;
            self.staged(piece.len() as u64)?;
        }
        let tail = &bytes[whole..];
        if tail.is_empty() {
            return Ok(());
        }
        let mut word = [0; WORD as usize];
        word[..tail.len()].copy_from_slice(tail);
        let (handle, at) = buffer.parts.place(offset + whole as u64);
        self.scoped("upload", || self.queue.write_buffer(handle, at, &word))
    }

    /// Counts staged bytes; submits a full portion and waits for the one before.
    fn staged(&self, size: u64) -> Result<(), Error> {
        let mut uploads = lock(&self.uploads);
        uploads.staged += size;
        if uploads.staged < PORTION {
            return Ok(());
        }
        let portion = self.scoped("upload", || self.queue.submit([]))?;
        uploads.staged = 0;
        match uploads.before.replace(portion) {
            Some(before) => {
                drop(uploads);
                self.poll_until(before)
            }
            None => Ok(()),
        }
    }

    /// Copies `target.len()` bytes of `buffer` from byte `offset`, a multiple of four, to the host. Waits for all work
    /// submitted before.
    ///
    /// # Errors
    /// [`Error::Range`] outside the buffer, [`Error::OutOfMemory`] or [`Error::Lost`] from the driver.
    pub fn download(
        &self,
        buffer: &GpuBuffer,
        offset: u64,
        target: &mut [u8],
    ) -> Result<(), Error> {
        self.download_all(&mut [Download {
            buffer,
            offset,
            target,
        }])
    }

    /// Several downloads with one wait for each 64 MiB of data.
    ///
    /// # Errors
    /// As [`Self::download`], for the first that fails; the contents of the targets are then unspecified.
    pub fn download_all(&self, downloads: &mut [Download<'_>]) -> Result<(), Error> {
        let mut pieces = Vec::new();
        for (which, download) in downloads.iter().enumerate() {
            let size = download.target.len() as u64;
            download
                .buffer
                .transfer("download", download.offset, size)?;
            pieces.extend(
                (0..size)
                    .step_by(READ_CHUNK as usize)
                    .map(|start| (which, start, READ_CHUNK.min(size - start))),
            );
        }
        let mut rest = pieces.as_slice();
        while !rest.is_empty() {
            let mut total = 0;
            let count = rest
                .iter()
                .take_while(|&&(_, _, size)| {
                    total += size.next_multiple_of(WORD);
                    total <= READ_CHUNK
                })
                .count()
                .max(1);
            let (batch, later) = rest.split_at(count);
            self.download_batch(downloads, batch)?;
            rest = later;
        }
        Ok(())
    }

    /// Copies `(download, start, size)` pieces through one staging buffer.
    fn download_batch(
        &self,
        downloads: &mut [Download<'_>],
        batch: &[(usize, u64, u64)],
    ) -> Result<(), Error> {
        let total: u64 = batch
            .iter()
            .map(|&(_, _, size)| size.next_multiple_of(WORD))
            .sum();
        let (staging, index) = self.scoped("download", || {
            let staging = self.staging.take(&self.device, total);
            let mut encoder = self
                .device
                .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let mut at = 0;
            for &(which, start, size) in batch {
                let Download { buffer, offset, .. } = &downloads[which];
                let whole = size.next_multiple_of(WORD);
                for (handle, from, bytes) in buffer.parts.pieces(offset + start, whole, whole) {
                    let size = bytes.end - bytes.start;
                    encoder.copy_buffer_to_buffer(handle, from, &staging, at + bytes.start, size);
                }
                at += whole;
            }
            let index = self.queue.submit([encoder.finish()]);
            (staging, index)
        })?;
        self.map(&staging, total, index)?;
        let refused = |message: String| Error::Refused {
            what: "download",
            message,
        };
        let view = staging
            .get_mapped_range(..total)
            .map_err(|error| refused(error.to_string()))?;
        let mut at = 0;
        for &(which, start, size) in batch {
            let (start, size) = (start as usize, size as usize);
            downloads[which].target[start..start + size].copy_from_slice(&view[at..at + size]);
            at += size.next_multiple_of(WORD as usize);
        }
        drop(view);
        staging.unmap();
        self.staging.give(staging);
        Ok(())
    }

    /// Waits for the submission that fills `size` bytes of a staging buffer, and maps them.
    fn map(
        &self,
        staging: &wgpu::Buffer,
        size: u64,
        filled: wgpu::SubmissionIndex,
    ) -> Result<(), Error> {
        let refused = |message: String| Error::Refused {
            what: "download",
            message,
        };
        if self.injector.strikes(Mishap::Map) {
            return Err(refused("a failure was ordered".to_owned()));
        }
        let (report, outcome) = mpsc::channel();
        self.scoped("download", || {
            staging.map_async(wgpu::MapMode::Read, ..size, move |result| {
                // Nobody listens any more when the wait below failed.
                let _ = report.send(result);
            });
        })?;
        self.poll_until(filled)?;
        // Another thread that polled meanwhile may have taken the report and be about to make it.
        match outcome.recv_timeout(PATIENCE) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(refused(error.to_string())),
            Err(_) => Err(refused(
                "the copy was not finished by the driver".to_owned(),
            )),
        }
    }
}

/// One read-back: `target.len()` bytes of `buffer` from byte `offset`.
#[derive(Debug)]
pub struct Download<'a> {
    /// Where from.
    pub buffer: &'a GpuBuffer,
    /// First byte, a multiple of four.
    pub offset: u64,
    /// Where to.
    pub target: &'a mut [u8],
}
