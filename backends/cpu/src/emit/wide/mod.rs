//! Vector programs as AVX-512 or AVX2 code, encoded from our own table.
//!
//! `select` turns a program into instructions over values, `allocate` gives these registers or stack slots, `write` makes
//! bytes of them with `encode` and the table `forms`. Each register of many lanes becomes several machine registers, whose
//! independent work hides latencies. Both levels compute the same numbers: the same lanes, the same order of sums, one
//! rounding for each fused multiplication.
//!
//! The function is `fn(arguments, begin, end)` of the System V convention, as that of [`super::clif`]. Programs with host
//! functions are left to that emitter.

mod allocate;
mod code;
mod encode;
mod forms;
mod select;
#[cfg(test)]
mod tests;
mod write;

use crate::isa::{Isa, Level};
use crate::vector::Program;

/// Whether this processor and system can run what [`emit`] makes.
pub(crate) fn exists(isa: Isa) -> bool {
    cfg!(all(target_arch = "x86_64", unix)) && isa.level() >= Level::Avx2
}

/// The function of a program; `None` if it needs something that this emitter lacks.
pub(crate) fn emit(program: &Program, isa: Isa) -> Option<Vec<u8>> {
    if !exists(isa) {
        return None;
    }
    let wide = isa.level() >= Level::Avx512;
    let code = select::select(program, wide)?;
    Some(write::write(&code, wide))
}

/// Bytes that the function of [`emit`] is aligned to.
pub(crate) const ALIGNMENT: u64 = 64;
