//! The project's own binary graph from any bytes: what is accepted writes to bytes that read back as the same graph.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(graph) = cupola_native::read(&Bytes::copy_from_slice(input)) else { return };
    let written = cupola_native::write(&graph);
    let again = cupola_native::read(&written.into()).expect("a written graph reads back");
    assert!(again == graph);
});
