//! The cache of machine code and packed weights, as processes share it.

mod support;

use serde_json::Value as Json;
use std::path::{Path, PathBuf};
use support::{Folder, cupola, run, text};

const MODEL: &str = "examples/digits/digits.onnx";
const INPUT: &str = "image=examples/digits/seven.png";

/// Statistics of a run with a cache, whose outputs go to a folder.
fn start(model: &str, cache: &str, outputs: &str) -> Json {
    let args = [
        "run",
        model,
        "-i",
        INPUT,
        "--outputs",
        outputs,
        "--stats",
        "json",
    ];
    let out = cupola(&args).env("CUPOLA_CACHE", cache).output();
    let out = out.expect("cupola starts");
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(text(&out.stderr), "", "a cache is not talked about");
    let stdout = text(&out.stdout);
    serde_json::from_str(stdout.lines().last().expect("statistics")).expect("JSON")
}

/// All files of a folder with their bytes.
fn contents(folder: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all: Vec<(PathBuf, Vec<u8>)> = std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .map(|path| {
            (
                path.file_name().expect("a name").into(),
                std::fs::read(path).expect("bytes"),
            )
        })
        .collect();
    all.sort();
    all
}

/// The only file of a cache.
fn store(cache: &str) -> PathBuf {
    let files = contents(cache);
    assert_eq!(files.len(), 1, "one program, one store");
    Path::new(cache).join(&files[0].0)
}

#[test]
fn the_second_start_compiles_nothing_and_gives_the_same_bits() {
    let folder = Folder::new("store-hit");
    let path = |name: &str| folder.path(name);
    let cache = path("cache");
    let first = start(MODEL, &cache, &path("a"));
    assert_eq!(first["compiles"], 1);
    let second = start(MODEL, &cache, &path("b"));
    assert_eq!(second["compiles"], 0);
    assert_eq!(second["weight_bytes"], first["weight_bytes"]);
    let without = start(MODEL, "off", &path("c"));
    assert_eq!(without["compiles"], 1);
    assert_eq!(contents(&path("a")), contents(&path("b")));
    assert_eq!(contents(&path("a")), contents(&path("c")));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |p: &Path| p.metadata().expect("facts").permissions().mode() & 0o777;
        assert_eq!(mode(Path::new(&cache)), 0o700);
        assert_eq!(mode(&store(&cache)), 0o600);
    }
}

#[test]
fn damaged_stores_are_replaced() {
    let folder = Folder::new("store-damage");
    let path = |name: &str| folder.path(name);
    let cache = path("cache");
    start(MODEL, &cache, &path("good"));
    let store = store(&cache);
    let whole = std::fs::read(&store).expect("a store");
    let damaged = |cut: usize, flip: Option<usize>| {
        let mut bytes = whole[..cut].to_vec();
        if let Some(at) = flip {
            bytes[at] ^= 0x10;
        }
        std::fs::write(&store, bytes).expect("written");
        let stats = start(MODEL, &cache, &path("out"));
        assert_eq!(
            contents(&path("good")),
            contents(&path("out")),
            "{cut} {flip:?}"
        );
        assert_eq!(
            std::fs::read(&store).expect("a store"),
            whole,
            "{cut} {flip:?}"
        );
        assert_eq!(stats["compiles"], 1, "{cut} {flip:?}");
    };
    for cut in [0, 7, 63, 64, 100, whole.len() / 2, whole.len() - 1] {
        damaged(cut, None);
    }
    // Magic, version, count, key, size, hash, table; then pieces, the last of which may be padding in between.
    for at in [0, 8, 12, 20, 33, 50, 70, 90, 100, whole.len() - 1] {
        damaged(whole.len(), Some(at));
    }
    assert_eq!(start(MODEL, &cache, &path("out"))["compiles"], 0);
}

#[test]
fn processes_that_start_at_once_share_a_cache() {
    let folder = Folder::new("store-race");
    let cache = folder.path("cache");
    let names: Vec<String> = (0..4).map(|i| folder.path(&format!("out{i}"))).collect();
    std::thread::scope(|scope| {
        for name in &names {
            scope.spawn(|| start(MODEL, &cache, name));
        }
    });
    for name in &names[1..] {
        assert_eq!(contents(&names[0]), contents(name));
    }
    store(&cache);
    assert_eq!(start(MODEL, &cache, &names[0])["compiles"], 0);
}

#[test]
fn other_options_and_other_models_have_stores_of_their_own() {
    let folder = Folder::new("store-keys");
    let cache = folder.path("cache");
    start(MODEL, &cache, &folder.path("out"));
    for flags in [["-O", "0"], ["--precision", "bf16"]] {
        let args = [
            "run", MODEL, "-i", INPUT, "--stats", "json", flags[0], flags[1],
        ];
        let out = cupola(&args)
            .env("CUPOLA_CACHE", &cache)
            .output()
            .expect("starts");
        let stats: Json = serde_json::from_str(text(&out.stdout).trim()).expect("JSON");
        assert_eq!(stats["compiles"], 1, "{flags:?}");
    }
    let copy = folder.path("copy.onnx");
    std::fs::copy(format!("{}/../{MODEL}", env!("CARGO_MANIFEST_DIR")), &copy).expect("copied");
    start(&copy, &cache, &folder.path("out"));
    assert!(contents(&cache).len() >= 3);
}

#[test]
fn a_cache_that_cannot_be_written_is_done_without() {
    let folder = Folder::new("store-refused");
    let file = folder.write("file", "no folder");
    assert_eq!(start(MODEL, &file, &folder.path("a"))["compiles"], 1);
    assert_eq!(
        start(MODEL, &format!("{file}/below"), &folder.path("a"))["compiles"],
        1
    );
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let open = folder.path("open");
        std::fs::create_dir(&open).expect("a folder");
        let everybody = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(&open, everybody).expect("permissions");
        start(MODEL, &open, &folder.path("a"));
        assert_eq!(
            contents(&open),
            vec![],
            "code is not kept where others can replace it"
        );
    }
}

/// The shipped model, compiled ahead of time.
fn compiled(folder: &Folder, flags: &[&str]) -> String {
    let artifact = folder.path("digits.program");
    let args = [&["compile", MODEL, "-o", &artifact][..], flags].concat();
    let out = run(&args);
    assert!(out.status.success(), "{}", text(&out.stderr));
    artifact
}

#[test]
fn a_compiled_program_starts_without_compiling() {
    let folder = Folder::new("artifact");
    let path = |name: &str| folder.path(name);
    let artifact = compiled(&folder, &[]);
    assert!(!Path::new(&format!("{artifact}.part")).exists());
    start(MODEL, "off", &path("model"));
    assert_eq!(start(&artifact, "off", &path("program"))["compiles"], 0);
    assert_eq!(contents(&path("model")), contents(&path("program")));
    let moved = path("moved");
    std::fs::rename(&artifact, &moved).expect("moved");
    assert_eq!(start(&moved, "off", &path("program"))["compiles"], 0);
    for command in ["inspect", "check", "explain"] {
        let out = run(&[command, &moved]);
        assert!(out.status.success(), "{command}: {}", text(&out.stderr));
    }
}

#[test]
fn a_program_for_another_processor_is_compiled_anew() {
    let folder = Folder::new("artifact-other");
    let artifact = compiled(&folder, &["--precision", "bf16"]);
    let stats = |level: &str, flags: &[&str]| -> (Json, String) {
        let args = [
            &["run", &artifact, "-i", INPUT, "--stats", "json", "-v"],
            flags,
        ]
        .concat();
        let out = cupola(&args)
            .env("CUPOLA_CPU", level)
            .output()
            .expect("starts");
        assert!(out.status.success(), "{}", text(&out.stderr));
        let stats = serde_json::from_str(text(&out.stdout).trim()).expect("JSON");
        (stats, text(&out.stderr))
    };
    let (same, _) = stats("native", &[]);
    assert_eq!(same["compiles"], 0, "its own precision is taken");
    for (level, flags) in [("native", ["-O", "0"]), ("native", ["--precision", "f16"])] {
        let (other, said) = stats(level, &flags);
        assert_eq!(other["compiles"], 1, "{flags:?}");
        assert!(said.contains("compiling it anew"), "{said}");
    }
    if cfg!(target_arch = "x86_64") {
        let (other, said) = stats("x86-64-v2", &[]);
        let same = said.contains("compiling it anew");
        assert_eq!(other["compiles"] == 1, same, "{said}");
    }
}

#[test]
fn a_damaged_program_is_one_error_or_none() {
    let folder = Folder::new("artifact-damage");
    let artifact = compiled(&folder, &[]);
    start(&artifact, "off", &folder.path("good"));
    let whole = std::fs::read(&artifact).expect("an artifact");
    let bad = folder.path("bad");
    let outputs = folder.path("bad-outputs");
    let read = |bytes: &[u8]| {
        std::fs::write(&bad, bytes).expect("written");
        let args = ["run", &bad, "-i", INPUT, "--outputs", &outputs];
        run(&args)
    };
    for cut in [
        8,
        11,
        40,
        63,
        4095,
        4096,
        5000,
        whole.len() / 2,
        whole.len() - 1,
    ] {
        let out = read(&whole[..cut]);
        assert_eq!(out.status.code(), Some(3), "cut at {cut}");
        let said = text(&out.stderr);
        assert!(
            said.starts_with("error[") && said.lines().count() == 1,
            "{said}"
        );
    }
    for at in (8..64).step_by(5).chain([whole.len() - 1]) {
        let mut flipped = whole.clone();
        flipped[at] ^= 4;
        let out = read(&flipped);
        let said = text(&out.stderr);
        match out.status.code() {
            Some(0) => assert_eq!(contents(&folder.path("good")), contents(&outputs), "{at}"),
            code => assert_eq!((code, said.lines().count()), (Some(3), 1), "{at}: {said}"),
        }
    }
}
