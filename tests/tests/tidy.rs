//! The rules of the repository that a compiler does not check: who may depend on whom, where unsafe code may be, and
//! what no file may hold.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Crates and the workspace crates they may depend on. Arrows go one way: a new edge is a decision.
const EDGES: &[(&str, &[&str])] = &[
    ("ir", &[]),
    ("passes", &["cupola-ir"]),
    ("train", &["cupola-ir", "cupola-passes"]),
    ("shaders", &["cupola-ir"]),
    ("backends/core", &["cupola-ir"]),
    ("backends/cpu", &["cupola-ir", "cupola-backend"]),
    (
        "backends/wgpu",
        &["cupola-ir", "cupola-backend", "cupola-shaders"],
    ),
    (
        "runtime",
        &[
            "cupola-ir",
            "cupola-passes",
            "cupola-backend",
            "cupola-cpu",
            "cupola-wgpu",
            "cupola-source",
        ],
    ),
    ("runtime/mpi", &[]),
    ("frontends/source", &[]),
    ("frontends/onnx", &["cupola-ir", "cupola-source"]),
    ("frontends/gguf", &["cupola-ir", "cupola-source"]),
    ("frontends/safetensors", &["cupola-ir", "cupola-source"]),
    ("frontends/native", &["cupola-ir", "cupola-source"]),
    ("frontends/text", &["cupola-gguf", "cupola-source"]),
    ("llm", &["cupola-ir", "cupola-runtime", "cupola-text"]),
    (
        "frontends/language",
        &[
            "cupola-ir",
            "cupola-source",
            "cupola-gguf",
            "cupola-safetensors",
        ],
    ),
    (
        "cupola",
        &[
            "cupola-ir",
            "cupola-passes",
            "cupola-runtime",
            "cupola-source",
            "cupola-onnx",
            "cupola-gguf",
            "cupola-safetensors",
            "cupola-native",
            "cupola-language",
            "cupola-text",
            "cupola-llm",
            "cupola-train",
        ],
    ),
    ("server", &["cupola-llm", "cupola-text"]),
    (
        "runner",
        &["cupola", "cupola-ir", "cupola-mpi", "cupola-server"],
    ),
    ("benches", &["cupola", "cupola-ir"]),
];

/// Where `unsafe` is allowed: a file, or everything below a folder.
const UNSAFE: &[&str] = &[
    "backends/cpu/src/jit",
    "backends/cpu/src/emit",
    "backends/cpu/src/memory.rs",
    "backends/cpu/src/threads",
    "backends/cpu/src/library",
    "backends/cpu/src/libcall",
    "backends/cpu/src/backend",
    "backends/cpu/src/device",
    "backends/cpu/src/executable",
    "backends/wgpu/src/device",
    "frontends/source/src/map.rs",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests lie in the repository")
        .to_path_buf()
}

fn files(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder)
        .expect("a readable folder")
        .flatten()
    {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                files(&path, extension, found);
            }
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
}

fn sources() -> BTreeMap<String, String> {
    let root = root();
    let mut paths = vec![];
    files(&root, "rs", &mut paths);
    let short = |p: &Path| {
        p.strip_prefix(&root)
            .expect("below the root")
            .to_string_lossy()
            .replace('\\', "/")
    };
    paths
        .iter()
        .map(|p| (short(p), std::fs::read_to_string(p).expect("text")))
        .collect()
}

#[test]
fn crates_depend_only_along_the_listed_edges() {
    for (folder, allowed) in EDGES {
        let manifest =
            std::fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("a manifest");
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap_or_default();
        let dependencies = dependencies.split("\n[").next().unwrap_or_default();
        for line in dependencies.lines() {
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            if name == "cupola" || name.starts_with("cupola-") {
                assert!(allowed.contains(&name), "{folder} may not depend on {name}");
            }
        }
    }
}

#[test]
fn every_library_crate_is_in_the_table_of_edges() {
    let manifest =
        std::fs::read_to_string(root().join("Cargo.toml")).expect("the workspace manifest");
    let members = manifest
        .split("members = [")
        .nth(1)
        .and_then(|m| m.split(']').next())
        .expect("members");
    for member in members
        .split(',')
        .map(|m| m.trim().trim_matches('"'))
        .filter(|m| !m.is_empty())
    {
        let known = member == "tests" || EDGES.iter().any(|(folder, _)| *folder == member);
        assert!(known, "{member} is not in the table of edges");
    }
}

#[test]
fn the_graph_ir_does_not_know_the_kernel_ir() {
    for (path, text) in sources() {
        let graph_side = path.starts_with("ir/src/graph/") || path.starts_with("ir/src/ops/");
        assert!(
            !(graph_side && text.contains("crate::kernel")),
            "{path} uses the kernel IR"
        );
    }
}

#[test]
fn unsafe_code_stays_where_it_is_listed() {
    // Written in two parts so that this file does not count itself.
    let allowance = concat!("allow(", "unsafe_code");
    let mut seen = 0;
    for (path, text) in sources() {
        if text.contains(allowance) {
            seen += 1;
            assert!(
                UNSAFE.iter().any(|u| path.starts_with(u)),
                "{path} allows unsafe code and is not listed"
            );
        }
    }
    assert!(seen > 0, "the search finds nothing at all");
}

#[test]
fn nothing_is_left_unfinished() {
    let marks = [
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("#[", "ignore"),
    ];
    for (path, text) in sources() {
        for mark in marks {
            assert!(!text.contains(mark), "{path} holds {mark}");
        }
    }
}
