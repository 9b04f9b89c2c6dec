//! Every GGUF file of the malformed corpus.

#[path = "../../source/tests/corpus/mod.rs"]
mod corpus;

use corpus::Expected;
use cupola_gguf::Gguf;
use cupola_source::Fault::{self, Limit, Malformed, Unsupported};

/// The fault of each refused file, where it is not simply malformed.
const FAULTS: &[(&str, Fault)] = &[
    ("gguf_version_99", Unsupported),
    ("gguf_arr_nested", Unsupported),
    ("gguf_ndims_9", Limit),
];

/// Files that the container layer reads: hyperparameters that make no sense are the importer's business.
const READ: &[&str] = &["gguf_control", "gguf_hparam_head_count"];

#[test]
fn the_corpus_is_taken_as_it_says() {
    corpus::check(
        "gguf",
        20,
        |path| {
            let file = Gguf::open(path);
            file.map(drop).map_err(|e| (e.fault(), e.to_string()))
        },
        |name, expect| match expect {
            _ if READ.contains(&name) => Expected::Read,
            "accept" => Expected::Read,
            "reject" => {
                let own = FAULTS.iter().find(|(known, _)| *known == name);
                Expected::Refuse(own.map_or(Malformed, |(_, fault)| *fault))
            }
            _ => Expected::Either,
        },
    );
}
