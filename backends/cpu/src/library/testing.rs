//! What the kernels' tests share.

use super::Context;
use crate::isa::Isa;
use crate::memory::{Scratch, Usage};
use crate::threads::Pool;

/// A small generator of pseudo-random numbers (splitmix64).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// In -1..1.
    pub fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }

    /// In 0..bound.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// Runs a test on every level, alone and with three threads.
pub fn contexts(mut test: impl FnMut(&Context)) {
    for isa in Isa::available() {
        for threads in [1, 3] {
            let pool = Pool::new(threads);
            let scratch = Scratch::new(threads, &Usage::unlimited());
            test(&Context {
                isa,
                pool: &pool,
                scratch: &scratch,
            });
        }
    }
}
