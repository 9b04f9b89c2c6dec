//! Input data from any bytes: a NumPy array or archive.
#![no_main]

extern crate cupola_ir as cupola;

/// What the reader needs of the program's failures.
mod fail {
    pub type Outcome<T = ()> = Result<T, Failure>;

    pub struct Failure;

    impl Failure {
        pub fn io(_: &str, _: &std::path::Path, _: impl std::fmt::Display) -> Failure {
            Failure
        }

        pub fn malformed(_: impl Into<String>) -> Failure {
            Failure
        }
    }
}

#[allow(dead_code)]
#[path = "../../runner/src/npy.rs"]
mod npy;

use libfuzzer_sys::fuzz_target;
use std::io::Cursor;

fuzz_target!(|bytes: &[u8]| {
    npy::parse(bytes, bytes.len() as u64).ok();
    npy::parse_npz(Cursor::new(bytes)).ok();
});
