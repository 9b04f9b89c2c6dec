//! The thread pool: parallel regions over chunk indices.
//!
//! Kernels run hundreds of short regions per inference, so a region must cost well below a microsecond while the pool is hot:
//! workers spin between regions for [`SPIN`], then park. A region never waits for a worker that has not joined it yet, so a
//! slow wake-up costs nothing but the help. Every thread begins with a run of neighbouring chunks of its own, so that what it
//! fetches ahead is its own next chunk; one that has finished takes half of what another has left. Which thread runs a chunk is
//! not determined; what a chunk computes must not depend on it.
//!
//! The protocol is one word, `state`: region number, open flag, number of workers inside. The caller fills the job and the
//! shares while the region is closed and empty, opens it, works along, closes it and waits until the last worker has left.
#![allow(unsafe_code)]

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long an idle worker spins before it parks. Waking a parked thread was measured at 60-70 us, so spinning longer than
/// about twice that does not pay.
const SPIN: Duration = Duration::from_micros(120);

/// Chunks in one when there are more than 2^32 (on 64-bit machines 2^52 then fit, more than anybody can wait for).
const MANY: usize = 1 << 20;

/// The most threads a pool may have.
pub const MAX_THREADS: usize = 1024;

const OPEN: u64 = 1 << 31;
const ACTIVE: u64 = OPEN - 1;
const REGION: u64 = 1 << 32;

/// Workers of all pools that are spinning now; together with one caller they never outnumber the processors.
static SPINNING: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static IN_REGION: Cell<bool> = const { Cell::new(false) };
}

/// Threads that execute parallel regions together with the calling thread. Dropping it ends the threads.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// Keeps a hot word on a cache line pair of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded<T>(T);

#[derive(Debug)]
struct Shared {
    state: Padded<AtomicU64>,
    /// Chunks not begun yet, by thread; the caller's come first. All are empty between regions.
    shares: Vec<Padded<Share>>,
    /// A chunk has panicked: begin no other.
    abort: AtomicBool,
    job: UnsafeCell<Option<Job>>,
    busy: AtomicBool,
    stop: AtomicBool,
    sleepers: AtomicUsize,
    slots: Vec<Slot>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

#[derive(Debug, Default)]
struct Slot {
    sleeping: AtomicBool,
    thread: OnceLock<Thread>,
}

#[derive(Clone, Copy)]
struct Job {
    body: *const (dyn Fn(usize) + Sync),
    chunks: u32,
    /// Threads that began with a share.
    shares: usize,
}

/// A range of chunks: its owner takes from the front, others from the back. Begin in the low half, end in the high half.
#[derive(Debug, Default)]
struct Share(AtomicU64);

impl Share {
    fn pack(range: Range<u32>) -> u64 {
        u64::from(range.end) << 32 | u64::from(range.start)
    }

    fn unpack(word: u64) -> Range<u32> {
        word as u32..(word >> 32) as u32
    }

    /// Gives an empty share a new range. A chunk is in one share at most and never comes back, so whoever still compares with
    /// an older range of this region fails.
    fn set(&self, range: Range<u32>) {
        self.0.store(Share::pack(range), Release);
    }

    /// Takes a part away; None when it is empty. `cut` divides what is there into what is taken and what stays.
    fn take(&self, cut: impl Fn(Range<u32>) -> [Range<u32>; 2]) -> Option<Range<u32>> {
        let mut word = self.0.load(Acquire);
        loop {
            let range = Share::unpack(word);
            if range.is_empty() {
                return None;
            }
            let [taken, rest] = cut(range);
            match self
                .0
                .compare_exchange_weak(word, Share::pack(rest), AcqRel, Acquire)
            {
                Ok(_) => return Some(taken),
                Err(found) => word = found,
            }
        }
    }

    fn first(&self) -> Option<u32> {
        self.take(|r| [r.start..r.start + 1, r.start + 1..r.end])
            .map(|r| r.start)
    }

    fn later_half(&self) -> Option<Range<u32>> {
        self.take(|r| {
            let middle = r.start + (r.end - r.start) / 2;
            [middle..r.end, r.start..middle]
        })
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Job({} chunks)", self.chunks)
    }
}

// SAFETY: `job` is written only by the thread that set `busy`, while the region is closed and nobody is inside; it is read only
// by threads inside an open region. The body it points to is Sync and outlives the region.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer inside is only followed under that protocol.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads` threads, the calling one included, so `threads - 1` are started. The number is brought into
    /// `1..=`[`MAX_THREADS`]; when the system refuses a thread, the pool has as many as it could get.
    pub fn new(threads: usize) -> Pool {
        let helpers = threads.clamp(1, MAX_THREADS) - 1;
        let shared = Arc::new(Shared {
            state: Padded::default(),
            shares: (0..=helpers).map(|_| Padded::default()).collect(),
            abort: AtomicBool::new(false),
            job: UnsafeCell::new(None),
            busy: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            slots: (0..helpers).map(|_| Slot::default()).collect(),
            panic: Mutex::new(None),
        });
        let start = |index: usize| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name(format!("cupola-{}", index + 1))
                .spawn(move || shared.work(index))
                .ok()
        };
        let workers = (0..helpers).map_while(start).collect();
        Pool { shared, workers }
    }

    /// The process-wide pool with that many threads, started when first asked for and ended when its last user drops it.
    /// Sessions that share it do not compete for cores: a region that finds the pool busy runs on its caller's thread alone.
    pub fn shared(threads: usize) -> Arc<Pool> {
        static POOLS: Mutex<Vec<(usize, Weak<Pool>)>> = Mutex::new(Vec::new());
        let mut pools = POOLS
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        pools.retain(|(_, pool)| pool.strong_count() > 0);
        let existing = pools
            .iter()
            .find(|(size, _)| *size == threads)
            .and_then(|(_, pool)| pool.upgrade());
        existing.unwrap_or_else(|| {
            let pool = Arc::new(Pool::new(threads));
            pools.push((threads, Arc::downgrade(&pool)));
            pool
        })
    }

    /// Threads that can work on a region, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `body` once with every index in `0..chunks`, on any threads in any order, and returns when all are done. Runs
    /// serially on the calling thread when there is nothing to share, when called from inside a region of any pool, or while
    /// another thread uses the pool. A panic of `body` is passed on to the caller after all threads have stopped; chunks that
    /// were not begun by then are not run.
    pub fn run<F: Fn(usize) + Sync>(&self, chunks: usize, body: F) {
        let alone = chunks <= 1 || self.workers.is_empty() || IN_REGION.get();
        if alone || self.shared.busy.swap(true, Acquire) {
            (0..chunks).for_each(body);
            return;
        }
        IN_REGION.set(true);
        match u32::try_from(chunks) {
            Ok(chunks) => self.shared.region(chunks, &body),
            // So many go by the million.
            Err(_) => self.shared.region(chunks.div_ceil(MANY) as u32, &|group| {
                (group * MANY..chunks.min((group + 1) * MANY)).for_each(&body);
            }),
        }
        let panic = self.shared.take_panic();
        IN_REGION.set(false);
        self.shared.busy.store(false, Release);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Cuts `0..len` into ranges of at least `grain` (except one that holds the rest), about four for each thread, and calls
    /// `body` once with each as in [`Pool::run`]. The cut depends on `len`, `grain` and the number of threads only.
    pub fn run_ranges<F: Fn(Range<usize>) + Sync>(&self, len: usize, grain: usize, body: F) {
        if len == 0 {
            return;
        }
        let chunks = (len / grain.max(1)).clamp(
            1,
            if self.threads() == 1 {
                1
            } else {
                self.threads() * 4
            },
        );
        let step = len.div_ceil(chunks);
        self.run(len.div_ceil(step), |chunk| {
            body(chunk * step..len.min((chunk + 1) * step))
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of chunks, so joining cannot fail.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Runs one region as its caller. The caller holds `busy`.
    fn region(&self, chunks: u32, body: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only the lifetime changes; `region` returns after the last thread has left the region.
        let body: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(body) };
        let shares = self.shares.len().min(chunks as usize);
        // SAFETY: the region is closed, nobody is inside, and `busy` keeps other callers out.
        unsafe {
            *self.job.get() = Some(Job {
                body,
                chunks,
                shares,
            })
        };
        for (index, share) in self.shares[..shares].iter().enumerate() {
            let bound = |index: usize| (u64::from(chunks) * index as u64 / shares as u64) as u32;
            share.0.set(bound(index)..bound(index + 1));
        }
        let number = self.state.0.load(Relaxed) / REGION + 1;
        // SeqCst pairs with the sleeper's announcement: either it sees the open region or we see it asleep.
        self.state.0.store((number << 32) | OPEN, SeqCst);
        if self.sleepers.load(SeqCst) > 0 {
            self.wake(chunks);
        }
        self.pull(0);
        let mut state = self.state.0.fetch_and(!OPEN, AcqRel) & !OPEN;
        let mut spins = 0u32;
        while state & ACTIVE != 0 {
            spins += 1;
            if spins < 20_000 {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
            state = self.state.0.load(Acquire);
        }
        if self.abort.swap(false, Relaxed) {
            self.shares.iter().for_each(|share| share.0.set(0..0));
        }
    }

    /// Runs chunks until none is left, as thread `index`. The caller is inside the open region.
    fn pull(&self, index: usize) {
        // SAFETY: inside a region the job is not written.
        let Some(Job { body, shares, .. }) = (unsafe { *self.job.get() }) else {
            unreachable!("bug: an open region has a job")
        };
        // SAFETY: the body outlives the region, see `region`.
        let body = unsafe { &*body };
        let own = &self.shares[index].0;
        let all = || {
            loop {
                while let Some(chunk) = own.first() {
                    if self.abort.load(Relaxed) {
                        return;
                    }
                    body(chunk as usize);
                }
                let others = (1..=shares).map(|step| &self.shares[(index + step) % shares].0);
                match others.into_iter().find_map(Share::later_half) {
                    Some(range) => own.set(range),
                    None => return,
                }
            }
        };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(all)) {
            self.abort.store(true, Relaxed);
            self.panic
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .get_or_insert(payload);
        }
    }

    fn take_panic(&self) -> Option<Box<dyn Any + Send>> {
        self.panic
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .take()
    }

    /// Wakes up to two sleepers; each of them wakes up to two more, so that waking many does not delay the caller.
    /// None is woken for the waker's own share of `chunks`.
    fn wake(&self, chunks: u32) {
        let mut left = chunks.saturating_sub(1).min(2);
        for slot in &self.slots {
            if left == 0 {
                break;
            }
            if slot.sleeping.load(Relaxed) && slot.sleeping.swap(false, AcqRel) {
                self.sleepers.fetch_sub(1, SeqCst);
                left -= 1;
                if let Some(thread) = slot.thread.get() {
                    thread.unpark();
                }
            }
        }
    }

    /// A worker's life.
    fn work(&self, index: usize) {
        IN_REGION.set(true);
        let slot = &self.slots[index];
        slot.thread.get_or_init(std::thread::current);
        let mut last_region = 0;
        while let Some(region) = self.wait(last_region, slot) {
            last_region = region;
            if !self.join(region) {
                continue;
            }
            if self.sleepers.load(Relaxed) > 0 {
                // SAFETY: inside a region the job is not written.
                let chunks = unsafe { *self.job.get() }.map_or(0, |job| job.chunks);
                self.wake(chunks);
            }
            self.pull(index + 1);
            self.state.0.fetch_sub(1, Release);
        }
    }

    /// Enters region number `region` unless it is closed already.
    fn join(&self, region: u64) -> bool {
        let enter = |state: u64| (state >> 32 == region && state & OPEN != 0).then_some(state + 1);
        self.state.0.fetch_update(AcqRel, Relaxed, enter).is_ok()
    }

    /// The number of the open region, if it is not the one this worker has already seen.
    fn news(&self, last_region: u64) -> Option<u64> {
        let state = self.state.0.load(SeqCst);
        (state & OPEN != 0 && state >> 32 != last_region).then_some(state >> 32)
    }

    /// Waits for a region other than `last_region`: spinning at first, then parked. None when the pool ends.
    fn wait(&self, last_region: u64, slot: &Slot) -> Option<u64> {
        if let Some(region) = self.spin(last_region) {
            return Some(region);
        }
        loop {
            slot.sleeping.store(true, SeqCst);
            self.sleepers.fetch_add(1, SeqCst);
            while slot.sleeping.load(Acquire)
                && !self.stop.load(SeqCst)
                && self.news(last_region).is_none()
            {
                std::thread::park();
            }
            if slot.sleeping.swap(false, AcqRel) {
                self.sleepers.fetch_sub(1, SeqCst);
            }
            if self.stop.load(SeqCst) {
                return None;
            }
            if let Some(region) = self.news(last_region).or_else(|| self.spin(last_region)) {
                return Some(region);
            }
        }
    }

    /// Spins for [`SPIN`] as long as there are processors to spare.
    fn spin(&self, last_region: u64) -> Option<u64> {
        static PROCESSORS: OnceLock<usize> = OnceLock::new();
        let processors =
            *PROCESSORS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from));
        let spare = SPINNING.fetch_add(1, Relaxed) + 1 < processors;
        let begin = Instant::now();
        let mut found = None;
        while spare && found.is_none() && !self.stop.load(Relaxed) && begin.elapsed() < SPIN {
            for _ in 0..64 {
                found = self.news(last_region);
                if found.is_some() {
                    break;
                }
                std::hint::spin_loop();
            }
        }
        SPINNING.fetch_sub(1, Relaxed);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(pool: &Pool, chunks: usize) -> Vec<usize> {
        let hits: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
        pool.run(chunks, |chunk| {
            hits[chunk].fetch_add(1, Relaxed);
        });
        hits.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn every_chunk_runs_once() {
        for threads in [0, 1, 2, 3, 8] {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads.max(1));
            for chunks in [0, 1, 2, 3, 17, 1000] {
                assert_eq!(counts(&pool, chunks), vec![1; chunks]);
            }
        }
    }

    #[test]
    fn many_short_regions_and_pauses() {
        let pool = Pool::new(3);
        for round in 0..3000 {
            assert_eq!(counts(&pool, 5), vec![1; 5]);
            if round % 1000 == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    #[test]
    fn ranges_cover_everything_once() {
        let pool = Pool::new(2);
        for (len, grain) in [(0, 1), (1, 0), (7, 100), (100, 7), (1001, 1)] {
            let hits: Vec<AtomicUsize> = (0..len).map(|_| AtomicUsize::new(0)).collect();
            pool.run_ranges(len, grain, |range| {
                assert!(!range.is_empty());
                for index in range {
                    hits[index].fetch_add(1, Relaxed);
                }
            });
            assert!(hits.iter().all(|hit| hit.load(Relaxed) == 1));
        }
    }

    #[test]
    fn neighbours_run_on_one_thread_and_idle_threads_take_over() {
        let pool = Pool::new(2);
        let caller = std::thread::current().id();
        let mine = AtomicUsize::new(0);
        // The caller's first chunk is as long as all the others.
        pool.run(200, |chunk| {
            let is_mine = std::thread::current().id() == caller;
            mine.fetch_add(usize::from(is_mine), Relaxed);
            std::thread::sleep(Duration::from_micros(if chunk == 0 { 20_000 } else { 100 }));
        });
        let mine = mine.into_inner();
        assert!(
            (1..150).contains(&mine),
            "the other thread did not help: {mine} of 200 chunks"
        );
    }

    #[test]
    fn a_share_is_taken_from_both_ends() {
        let share = Share::default();
        assert_eq!((share.first(), share.later_half()), (None, None));
        share.set(3..8);
        assert_eq!(share.first(), Some(3));
        assert_eq!(share.later_half(), Some(6..8));
        assert_eq!(share.later_half(), Some(5..6));
        assert_eq!((share.first(), share.first()), (Some(4), None));
    }

    #[test]
    fn nested_regions_run_serially() {
        let pool = Pool::new(2);
        let other = Pool::new(2);
        let total = AtomicUsize::new(0);
        pool.run(4, |_| {
            let thread = std::thread::current().id();
            for inner in [&pool, &other] {
                inner.run(3, |_| {
                    assert_eq!(std::thread::current().id(), thread);
                    total.fetch_add(1, Relaxed);
                });
            }
        });
        assert_eq!(total.into_inner(), 24);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let pool = Pool::new(3);
        for bad in [0, 63] {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.run(64, |chunk| assert_ne!(chunk, bad, "chunk {bad}"))
            }));
            let payload = outcome.expect_err("the panic is passed on");
            let message = payload
                .downcast_ref::<String>()
                .expect("a formatted message");
            assert!(message.contains(&format!("chunk {bad}")), "{message}");
            assert_eq!(counts(&pool, 9), vec![1; 9]);
        }
    }

    #[test]
    fn callers_on_several_threads_share_a_pool() {
        let pool = Pool::shared(3);
        assert!(Arc::ptr_eq(&pool, &Pool::shared(3)));
        assert!(!Arc::ptr_eq(&pool, &Pool::shared(2)));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        assert_eq!(counts(&pool, 6), vec![1; 6]);
                    }
                });
            }
        });
    }
}
