//! Accesses of tensor elements that machine instructions do not have: atomic additions, and elements smaller than a byte.
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

/// Elements of these bits in a byte, and the byte and shift of one of them.
fn packed_place(index: i64, bits: u32) -> (usize, u32) {
    let per_byte = 8 / bits as usize;
    (
        index as usize / per_byte,
        (index as usize % per_byte) as u32 * bits,
    )
}

macro_rules! packed {
    ($($d:ident, $bits:expr, $signed:expr;)*) => {
        /// A function `(first byte, index) -> i32` that reads an element, sign repeated; 0 for a negative index.
        pub(super) fn load_packed(dtype: DType) -> *const u8 {
            match dtype {
                $(DType::$d => {
                    extern "C" fn load(start: *const AtomicU8, index: i64) -> i32 {
                        if index < 0 {
                            return 0;
                        }
                        let (byte, shift) = packed_place(index, $bits);
                        // SAFETY: generated code passes an index inside the buffer argument that starts here.
                        let byte = unsafe { &*start.add(byte) }.load(Relaxed);
                        let unused = 32 - $bits;
                        let high = i32::from(byte >> shift) << unused;
                        if $signed { high >> unused } else { (high as u32 >> unused) as i32 }
                    }
                    load as *const u8
                })*
                d => unreachable!("bug: {d} is not packed"),
            }
        }

        /// A function `(first byte, index, code)` that writes an element and leaves its neighbours as they are.
        pub(super) fn store_packed(dtype: DType) -> *const u8 {
            match dtype {
                $(DType::$d => {
                    extern "C" fn store(start: *const AtomicU8, index: i64, code: u32) {
                        let (byte, shift) = packed_place(index, $bits);
                        let mask = ((1u32 << $bits) - 1) as u8;
                        // SAFETY: as above; neighbours in the byte may be written by other threads meanwhile.
                        let cell = unsafe { &*start.add(byte) };
                        let place = |old: u8| (old & !(mask << shift)) | ((code as u8 & mask) << shift);
                        let _ = cell.fetch_update(Relaxed, Relaxed, |old| Some(place(old)));
                    }
                    store as *const u8
                })*
                d => unreachable!("bug: {d} is not packed"),
            }
        }
    };
}

packed! {
    I2, 2, true;
    I4, 4, true;
    U2, 2, false;
    U4, 4, false;
    F4E2M1, 4, false;
}
