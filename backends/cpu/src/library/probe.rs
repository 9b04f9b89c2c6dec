//! Short measurements of what the processor reaches: multiply-adds, reads from each level of memory, copies.
//!
//! All threads of the pool work at once, each on memory of its own, as kernels do. Every figure is the best of two
//! dozen short rounds: what disturbs a round only makes it slower.

use cupola_backend::Rates;
use std::hint::black_box;
use std::time::{Duration, Instant};

use super::Context;
use super::simd::{Kernel, Simd, dispatch};
use crate::error::Result;
use crate::isa::caches;
use crate::memory::Buffer;

/// Rounds of each measurement.
const ROUNDS: usize = 24;
/// A round takes at least so long, once a pass over the data has been timed.
const ROUND: Duration = Duration::from_millis(1);
/// Most bytes taken for measuring memory.
const MOST: usize = 128 << 20;
/// Chains of multiply-adds: two ports of a latency of four keep eight busy.
const CHAINS: usize = 12;

/// Measures the processor with the threads of `cx`.
///
/// # Errors
/// Out of memory.
pub fn rates(cx: &Context<'_>) -> Result<Rates> {
    let caches = caches();
    let threads = cx.pool.threads();
    // Beyond the caches: what four times the last level holds cannot be left in it from the round before.
    let memory = caches.l3.saturating_mul(4).clamp(16 << 20, MOST) / threads;
    let mut buffers = Vec::with_capacity(threads);
    for _ in 0..threads {
        // Not from the shelf, which would keep it.
        buffers.push(Buffer::zeroed(memory, cx.scratch.usage())?);
    }
    let starts: Vec<Start> = buffers.iter().map(|b| Start(b.as_ptr().cast())).collect();
    let read = |size: usize| {
        let len = (size.min(memory) / 4).max(1);
        let pass = |thread: usize, passes: usize| {
            let from = starts[thread].0;
            dispatch(cx.isa, Read { from, len, passes });
        };
        (threads * len * 4) as f64 * best_rate(cx, &pass)
    };
    let copy = |thread: usize, passes: usize| {
        let (from, len) = (starts[thread].0, memory / 8);
        // SAFETY: the second half of the buffer begins there.
        let to = unsafe { from.add(len) };
        dispatch(
            cx.isa,
            Copy {
                from,
                to,
                len,
                passes,
            },
        );
    };
    let shared = caches.l3 / threads;
    Ok(Rates {
        f32_ops: multiply_add_rate(cx),
        reads: vec![
            (caches.l2 * threads, read(caches.l2 / 2)),
            (caches.l3, read(shared / 2)),
            (usize::MAX, read(memory)),
        ],
        copy: (threads * memory / 8 * 8) as f64 * best_rate(cx, &copy),
        ..Rates::default()
    })
}

/// Start of a thread's memory.
struct Start(*mut f32);

// SAFETY: every thread only follows the pointer to its own memory.
unsafe impl Sync for Start {}

fn multiply_add_rate(cx: &Context<'_>) -> f64 {
    const STEPS: usize = 1 << 12;
    let lanes = dispatch(cx.isa, Lanes);
    let pass = |_: usize, passes: usize| {
        let steps = STEPS * passes;
        black_box(dispatch(cx.isa, MultiplyAdd { steps }));
    };
    let operations = 2 * lanes * CHAINS * STEPS * cx.pool.threads();
    operations as f64 * best_rate(cx, &pass)
}

/// Passes per second when all threads make passes at once, in the best round. `pass` is called with a thread's number
/// and how many passes to make.
fn best_rate(cx: &Context<'_>, pass: &(dyn Fn(usize, usize) + Sync)) -> f64 {
    let time = |passes: usize| {
        let start = Instant::now();
        cx.pool
            .run(cx.pool.threads(), |thread| pass(thread, passes));
        start.elapsed().max(Duration::from_nanos(1))
    };
    time(1);
    let once = time(1);
    let passes = ROUND.as_nanos().div_ceil(once.as_nanos()).clamp(1, 1 << 20) as usize;
    let best = (0..ROUNDS).map(|_| time(passes)).min().unwrap_or(once);
    passes as f64 / best.as_secs_f64()
}

struct Lanes;

impl Kernel for Lanes {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        s.lanes()
    }
}

struct MultiplyAdd {
    steps: usize,
}

impl Kernel for MultiplyAdd {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (a, b) = (s.splat(black_box(0.999)), s.splat(black_box(0.001)));
        let mut chains = [s.splat(1.0); CHAINS];
        for _ in 0..self.steps {
            for chain in &mut chains {
                *chain = s.mul_add(*chain, a, b);
            }
        }
        let mut sum = chains[0];
        for chain in chains {
            sum = s.add(sum, chain);
        }
        s.sum(sum)
    }
}

/// Reads `len` elements, `passes` times over.
struct Read {
    from: *const f32,
    len: usize,
    passes: usize,
}

impl Kernel for Read {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const WIDE: usize = 8;
        let step = WIDE * s.lanes();
        for _ in 0..self.passes {
            let mut sums = [s.splat(0.0); WIDE];
            for at in (0..self.len / step * step).step_by(step) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: the vector ends before `len`, which the buffer of this thread holds.
                    let x = unsafe { s.load(self.from.add(at + i * s.lanes())) };
                    *sum = s.max(*sum, x);
                }
            }
            let mut all = sums[0];
            for sum in sums {
                all = s.max(all, sum);
            }
            black_box(s.sum(all));
        }
    }
}

/// Copies `len` elements around the caches, `passes` times over.
struct Copy {
    from: *const f32,
    to: *mut f32,
    len: usize,
    passes: usize,
}

impl Kernel for Copy {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for _ in 0..self.passes {
            for at in (0..self.len / s.lanes() * s.lanes()).step_by(s.lanes()) {
                // SAFETY: the vector ends before `len`; source and destination are two halves of this thread's buffer.
                unsafe { s.stream(self.to.add(at), s.load(self.from.add(at))) };
            }
            s.end_streaming();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::memory::{Scratch, Usage};
    use crate::threads::Pool;

    #[test]
    fn every_level_measures_something_plausible() {
        let usage = Usage::unlimited();
        let scratch = Scratch::new(1, &usage);
        let pool = Pool::new(1);
        for isa in Isa::available() {
            let cx = Context {
                isa,
                pool: &pool,
                scratch: &scratch,
            };
            let rates = rates(&cx).expect("memory");
            assert!(rates.f32_ops > 1e8 && rates.f32_ops < 1e13, "{rates:?}");
            assert!(rates.copy > 1e8 && rates.copy < 1e13, "{rates:?}");
            assert_eq!(rates.reads.len(), 3);
            assert!(
                rates.reads.iter().all(|(_, r)| *r > 1e8 && *r < 1e14),
                "{rates:?}"
            );
            assert!(rates.reads.is_sorted_by_key(|(size, _)| *size), "{rates:?}");
            assert_eq!(rates.read_rate(u64::MAX), rates.reads[2].1);
        }
    }
}
