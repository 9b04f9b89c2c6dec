//! `cupola train` on several replicas of one process: the bits of the same shards on one, resumed on another number, and what is
//! refused. `mpi.rs` does the same with processes.

mod support;

use std::path::Path;
use support::training::{digits, last, lines, losses, tensors};
use support::{Folder, run, text};

/// Runs to the end and succeeds.
fn cupola(args: &[&str]) -> String {
    let out = run(args);
    let errors = text(&out.stderr);
    assert!(out.status.success(), "{args:?}: {errors}");
    text(&out.stdout)
}

#[test]
fn replicas_have_the_bits_of_their_shards_in_turn() {
    let folder = Folder::new("train-replicas");
    let config = folder.write("digits.toml", &digits("steps = 17\nclip_norm = 0.5"));
    let train = |name: &str, more: &[&str]| {
        let checkpoints = folder.path(name);
        let mut args = vec![
            "train",
            &config,
            "--deterministic",
            "--shards",
            "4",
            "--json",
        ];
        args.extend(["--checkpoints", &checkpoints]);
        args.extend(more);
        (
            losses(&cupola(&args)),
            tensors(&last(Path::new(&checkpoints))),
        )
    };
    let one = train("one", &[]);
    assert_eq!(one.0.len(), 17);
    assert!(one.0[16] < one.0[0]);
    for replicas in ["2", "4"] {
        assert_eq!(
            train(replicas, &["--replicas", replicas]),
            one,
            "{replicas}"
        );
    }
    // Half of the run on two replicas, the rest on one: shards are those of the checkpoint.
    let halves = folder.path("halves");
    let base = [
        "train",
        &config,
        "--deterministic",
        "--checkpoints",
        &halves,
    ];
    let first = ["--shards", "4", "--replicas", "2", "--steps", "9"];
    cupola(&[&base[..], &first].concat());
    let second = cupola(&[&base[..], &["--resume", "--json"]].concat());
    assert_eq!(losses(&second), one.0[9..]);
    assert_eq!(tensors(&last(Path::new(&halves))), one.1);
    // Other shards are another run.
    let out = run(&[&base[..], &["--resume", "--shards", "2"]].concat());
    assert!(text(&out.stderr).contains("another number of shards"));
    assert_eq!(out.status.code(), Some(3));
}

#[test]
fn a_shard_alone_may_overflow_and_small_batches_leave_shards_empty() {
    let folder = Folder::new("train-overflow");
    // The fifth sample of six is too large for f16; the last batch has one sample for four shards.
    let rows: Vec<String> = (0..13)
        .map(|i| format!("{},{},{}", i, if i == 4 { 1e6 } else { 0.5 }, 2 * i))
        .collect();
    folder.write("rows.csv", &format!("a,b,y\n{}\n", rows.join("\n")));
    let config = folder.write(
        "rows.toml",
        "loss = \"mse\"\noptim = \"sgd:lr=1e-4\"\nepochs = 2\nbatch = 6\nshuffle = false\namp = \"f16\"\n\
         [data]\nfiles = [\"rows.csv\"]\n[model]\nlayers = [\"linear:4\", \"batch_norm\", \"linear:1\"]\n",
    );
    let train = |replicas: &str| {
        let checkpoints = folder.path(replicas);
        let output = cupola(&[
            "train",
            &config,
            "--deterministic",
            "--shards",
            "4",
            "--replicas",
            replicas,
            "--json",
            "--checkpoints",
            &checkpoints,
        ]);
        let skipped: Vec<bool> = (lines(&output).iter())
            .filter(|l| l.get("lr").is_some())
            .map(|l| l.get("skipped").is_some())
            .collect();
        (skipped, tensors(&last(Path::new(&checkpoints))))
    };
    let one = train("1");
    // Both times that the sample comes, by all shards; the first scales are too large as well.
    assert!(one.0[0] && one.0[3] && !one.0[4], "{:?}", one.0);
    assert_eq!(train("2"), one);
    assert_eq!(train("4"), one);
}

#[test]
fn means_of_shards_are_those_of_the_batch() {
    let folder = Folder::new("train-shards");
    // Without dropout shards compute what the whole batch does, up to rounding, batch norm included where it is synchronised.
    // Every checkpoint compares the states of all shards.
    let text = digits("steps = 6\n[checkpoint]\nevery = 1").replace("\"dropout:0.2\", ", "");
    let config = folder.write("digits.toml", &text);
    let checkpoints = folder.path("c");
    let train = |more: &[&str]| {
        let base = ["train", &config, "--json", "--checkpoints", &checkpoints];
        losses(&cupola(&[&base[..], more].concat()))
    };
    let whole = train(&[]);
    let parts = train(&["--shards", "4", "--replicas", "2", "--sync-batch-norm"]);
    for (a, b) in whole.iter().zip(&parts) {
        assert!((a - b).abs() < 2e-4 * a.abs(), "{whole:?} {parts:?}");
    }
    // With statistics of each shard it is another step.
    let local = train(&["--replicas", "2"]);
    assert!((local[5] - whole[5]).abs() > 1e-6 && local.iter().all(|l| l.is_finite()));
}

/// Digits of which the class 0 is not learnt, and which lie by class, so that whole shards have no target that counts.
#[test]
fn targets_that_are_ignored_count_in_no_shard() {
    let folder = Folder::new("train-ignored");
    let rows: Vec<String> = (0..40)
        .map(|i| {
            let class = if i % 8 < 4 { 0 } else { 1 + i % 2 };
            format!(
                "{},{},{class}",
                (i as f32 * 0.3).sin(),
                class as f32 - 0.1 * i as f32
            )
        })
        .collect();
    folder.write("rows.csv", &format!("a,b,y\n{}\n", rows.join("\n")));
    let text = "loss = \"ce:ignore=0\"\noptim = \"adam:lr=0.02\"\nclip_norm = 0.5\nepochs = 3\nbatch = 8\nshuffle = false\n\
         metrics = [\"accuracy\", \"perplexity\"]\n[data]\nfiles = [\"rows.csv\"]\nclass_target = true\n\
         [validation]\nbatch = 3\n[model]\nlayers = [\"linear:8\", \"relu\", \"linear:classes\"]\n";
    let config = folder.write("rows.toml", text);
    let train = |name: &str, more: &[&str]| {
        let checkpoints = folder.path(name);
        let base = ["train", &config, "--deterministic", "--json"];
        let base = [&base[..], &["--checkpoints", &checkpoints]].concat();
        let output = cupola(&[&base[..], more].concat());
        (losses(&output), tensors(&last(Path::new(&checkpoints))))
    };
    let whole = train("whole", &[]);
    let one = train("one", &["--shards", "4"]);
    assert_eq!(one.0.len(), 15);
    for (a, b) in whole.0.iter().zip(&one.0) {
        assert!(a.is_finite() && (a - b).abs() < 1e-5, "{whole:?} {one:?}");
    }
    for replicas in ["2", "4"] {
        assert_eq!(
            train(replicas, &["--shards", "4", "--replicas", replicas]),
            one
        );
    }
    // Of batches of three some have no target that counts, others one or three; one of forty has all.
    let scores = |batch: &str| -> serde_json::Value {
        let text = text.replace("batch = 3", batch);
        let config = folder.write("other.toml", &text);
        let checkpoints = folder.path(batch);
        let args = ["train", &config, "--checkpoints", &checkpoints];
        cupola(&args);
        let data = folder.path("rows.csv");
        let args = ["eval", &checkpoints, "--data", &data, "--json"];
        serde_json::from_str(&cupola(&args)).expect("JSON")
    };
    let (small, large) = (scores("batch = 3"), scores("batch = 40"));
    for key in ["loss", "accuracy", "perplexity"] {
        let number = |line: &serde_json::Value| line[key].as_f64().expect(key);
        let (small, large) = (number(&small), number(&large));
        assert!((small - large).abs() < 1e-5, "{key}: {small} {large}");
    }
    assert!(large["accuracy"].as_f64().is_some_and(|a| a > 0.5));
}

#[test]
fn a_trace_shows_buckets_beside_the_backward_pass() {
    let folder = Folder::new("train-trace");
    let config = folder.write("digits.toml", &digits("steps = 10"));
    let (checkpoints, trace) = (folder.path("c"), folder.path("t.json"));
    cupola(&[
        "train",
        &config,
        "--replicas",
        "2",
        "--checkpoints",
        &checkpoints,
        "--trace",
        &trace,
    ]);
    let trace = std::fs::read_to_string(trace).expect("a trace");
    let trace: serde_json::Value = serde_json::from_str(&trace).expect("JSON");
    let events = trace["traceEvents"].as_array().expect("events");
    let named = |name: &str| events.iter().filter(|e| e["name"] == name).count();
    assert_eq!(named("step"), 8);
    assert!(named("bucket") >= 8 && named("wait") >= 8 && named("hand over") >= 8);
}

#[test]
fn numbers_that_do_not_fit_are_refused() {
    let folder = Folder::new("train-refused");
    let config = folder.write("digits.toml", &digits("steps = 1"));
    let checkpoints = folder.path("c");
    for (more, what) in [
        (&["--replicas", "3"][..], "powers of two"),
        (
            &["--replicas", "4", "--shards", "2"],
            "4 replicas cannot share 2 shards",
        ),
        (&["--shards", "128"], "too few samples for 128 shards"),
        (&["--replicas", "0"], "powers of two"),
        (&["--device", "cpu,gpu"], "name devices of one kind"),
    ] {
        let base = ["train", &config, "--checkpoints", &checkpoints];
        let out = run(&[&base[..], more].concat());
        let errors = text(&out.stderr);
        assert!(errors.contains(what), "{more:?}: {errors}");
        assert!(matches!(out.status.code(), Some(2 | 3)), "{more:?}");
    }
    if !cfg!(feature = "mpi") {
        let out = run(&["train", &config, "--mpi"]);
        assert_eq!(out.status.code(), Some(2));
        let errors = text(&out.stderr);
        assert!(errors.contains("--features mpi"), "{errors}");
    }
}
