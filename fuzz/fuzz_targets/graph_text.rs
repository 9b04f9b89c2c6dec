//! A text graph from any text: what is accepted passes the verifier or is refused by it, and prints to a text that reads
//! back as the same graph.
#![no_main]

use cupola_ir::graph::text;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|source: &str| {
    let Ok(graph) = text::parse(source) else { return };
    cupola_ir::verify(&graph).ok();
    let printed = text::print(&graph);
    let again = text::parse(&printed).expect("a printed graph reads back");
    assert_eq!(text::print(&again), printed);
});
