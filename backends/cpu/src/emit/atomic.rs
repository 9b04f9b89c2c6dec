//! Atomic additions to tensor elements.
#![allow(unsafe_code)]

use cupola_ir::DType;
use half::{bf16, f16};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

macro_rules! adder {
    ($atomic:ty, $arg:ty, $sum:expr) => {{
        extern "C" fn add(address: *const $atomic, x: $arg) {
            // SAFETY: generated code passes the address of an element inside a buffer argument, which is aligned to
            // the element's size, and reaches that buffer's elements only through these functions in this kernel.
            let cell = unsafe { &*address };
            let _ = cell.fetch_update(Relaxed, Relaxed, |old| Some($sum(old, x)));
        }
        add as *const u8
    }};
}

/// A function `(address, value)` that adds to an element; integers come as 64 bits, short floats as f32.
pub(super) fn add_function(dtype: DType) -> Option<*const u8> {
    Some(match dtype {
        DType::I8 | DType::U8 => adder!(AtomicU8, u64, |a: u8, b: u64| a.wrapping_add(b as u8)),
        DType::I16 | DType::U16 => {
            adder!(AtomicU16, u64, |a: u16, b: u64| a.wrapping_add(b as u16))
        }
        DType::I32 | DType::U32 => {
            adder!(AtomicU32, u64, |a: u32, b: u64| a.wrapping_add(b as u32))
        }
        DType::I64 | DType::U64 => adder!(AtomicU64, u64, |a: u64, b: u64| a.wrapping_add(b)),
        DType::F16 => adder!(AtomicU16, f32, |a: u16, b: f32| f16::from_f32(
            f16::from_bits(a).to_f32() + b
        )
        .to_bits()),
        DType::BF16 => adder!(AtomicU16, f32, |a: u16, b: f32| bf16::from_f32(
            bf16::from_bits(a).to_f32() + b
        )
        .to_bits()),
        DType::F32 => adder!(AtomicU32, f32, |a: u32, b: f32| (f32::from_bits(a) + b)
            .to_bits()),
        DType::F64 => adder!(AtomicU64, f64, |a: u64, b: f64| (f64::from_bits(a) + b)
            .to_bits()),
        _ => return None,
    })
}
