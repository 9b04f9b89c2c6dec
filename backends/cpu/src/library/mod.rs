//! Library kernels: the loops that a code generator should not have to rediscover.
//!
//! Every kernel is an ordinary function over strided views. It checks its operands at the door, takes what it needs of the
//! machine from a [`Context`], and gives the same result whatever the number of threads. Vector code is written once, generic
//! over [`simd::Simd`], and instantiated for each level of [`crate::isa::Level`].
//!
//! Nothing here knows graphs, plans or devices.
#![allow(unsafe_code)]

pub mod attention;
pub mod conv;
pub mod gemm;
pub mod lstm;
pub mod math;
mod padded;
pub mod pool;
pub mod probe;
pub mod quantise;
pub mod rows;
pub mod simd;
pub mod sort;
#[cfg(test)]
mod testing;
pub mod view;
pub mod window;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::error::Result;
use crate::isa::Isa;
use crate::memory::Scratch;
use crate::threads::Pool;

pub use view::{Element, View, ViewMut};

/// What a kernel may use of the machine.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Instructions that may be executed.
    pub isa: Isa,
    /// Threads; a kernel called from inside a region runs serially.
    pub pool: &'a Pool,
    /// Temporary memory.
    pub scratch: &'a Scratch,
}

impl Context<'_> {
    /// As [`Pool::run`], for work that can fail: returns one of the errors, and begins no further chunk after one.
    pub fn try_run<E: Send>(
        &self,
        chunks: usize,
        work: impl Fn(usize) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        let failed = AtomicBool::new(false);
        let error = Mutex::new(None);
        self.pool.run(chunks, |chunk| {
            if failed.load(Relaxed) {
                return;
            }
            if let Err(found) = work(chunk) {
                failed.store(true, Relaxed);
                *error
                    .lock()
                    .unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(found);
            }
        });
        match error
            .into_inner()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
        {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}
