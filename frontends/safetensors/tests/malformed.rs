//! Every safetensors file of the malformed corpus.

#[path = "../../source/tests/corpus/mod.rs"]
mod corpus;

use corpus::Expected;
use cupola_safetensors::SafeTensors;
use cupola_source::Fault;

#[test]
fn the_corpus_is_taken_as_it_says() {
    corpus::check(
        "safetensors",
        15,
        |path| {
            let file = SafeTensors::open(path);
            file.map(drop).map_err(|e| (e.fault(), e.to_string()))
        },
        |_, expect| match expect {
            "accept" => Expected::Read,
            "reject" => Expected::Refuse(Fault::Malformed),
            _ => Expected::Either,
        },
    );
}
