//! Every ONNX file of the malformed corpus: what the container layer must refuse, it refuses with
//! the right fault and one short line; everything else it reads.

#[path = "../../source/tests/corpus/mod.rs"]
mod corpus;

use corpus::Expected;
use cupola_onnx::Model;
use cupola_source::Fault::{self, Limit, Malformed, Unsupported};

/// The cases that are wrong whatever the operators mean, with the fault. Operator rules are the
/// importer's: those files must pass here.
const STRUCTURAL: &[(&str, Fault)] = &[
    ("onnx_empty_file", Malformed),
    ("onnx_text", Malformed),
    ("onnx_truncated_3", Malformed),
    ("onnx_truncated_8", Malformed),
    ("onnx_len_2g", Malformed),
    ("onnx_groups_deep", Malformed),
    ("onnx_type_nest_50k", Limit),
    ("onnx_subgraph_nest_3000", Limit),
    ("onnx_opset_999", Unsupported),
    ("onnx_dims_2e62x4", Malformed),
    ("onnx_dims_negative", Malformed),
    ("onnx_raw_short", Malformed),
    ("onnx_huge_no_data", Malformed),
    ("onnx_dtype_999", Malformed),
    ("onnx_sparse_index_out", Malformed),
    ("onnx_ext_traversal", Malformed),
    ("onnx_ext_traversal_mid", Malformed),
    ("onnx_ext_absolute", Malformed),
    ("onnx_ext_symlink", Malformed),
    ("onnx_ext_missing", Malformed),
    ("onnx_ext_offset_past", Malformed),
    ("onnx_ext_overflow", Malformed),
    ("onnx_cycle_2", Malformed),
    ("onnx_undefined_input", Malformed),
    ("onnx_dup_output", Malformed),
    ("onnx_output_unmade", Malformed),
    ("onnx_unknown_domain", Malformed),
    ("onnx_function_laughs", Limit),
    ("onnx_function_recursive", Malformed),
    ("onnx_if_undefined_capture", Malformed),
];

#[test]
fn the_corpus_is_taken_as_it_says() {
    corpus::check(
        "onnx",
        60,
        |path| {
            let model = Model::open(path);
            model.map(drop).map_err(|e| (e.fault(), e.to_string()))
        },
        |name, expect| {
            let structural = STRUCTURAL.iter().find(|(known, _)| *known == name);
            match structural {
                Some((_, fault)) => Expected::Refuse(*fault),
                None if expect == "survive" => Expected::Either,
                None => Expected::Read,
            }
        },
    );
}
