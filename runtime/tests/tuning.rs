//! Kernels that are timed on a GPU: the results stay, the winners are kept in a table, and a table is used.

mod common;

use common::{numbers, perceptron};
use cupola_ir::{Tensor, Value};
use cupola_runtime::{
    CompileOptions, DeviceSpec, Host, HostOptions, Program, RuntimeError, Session, Table,
    TuneObserver, TuneOptions, Tuning,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

fn gpu_is_required() -> bool {
    let required = std::env::var_os("CUPOLA_TEST_REQUIRE_GPU").is_some();
    if !required {
        eprintln!("CUPOLA_TEST_REQUIRE_GPU is not set: nothing is checked");
    }
    required
}

/// A file of this test alone, not there yet.
fn file(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("cupola-tuning-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join(name);
    let _ = std::fs::remove_file(&path);
    path
}

#[derive(Debug, Default)]
struct Watch {
    problems: AtomicUsize,
    ends: AtomicUsize,
}

impl TuneObserver for Watch {
    fn timing(&self, done: usize, total: usize, class: &str) {
        assert!(done <= total);
        let (which, named) = match done == total {
            true => (&self.ends, class.is_empty()),
            false => (&self.problems, class.starts_with("product")),
        };
        assert!(named, "{class}");
        which.fetch_add(1, Ordering::Relaxed);
    }
}

fn session(
    device: DeviceSpec,
    mode: Option<Tuning>,
    table: Option<&Path>,
    watch: &Arc<Watch>,
) -> Result<Session, RuntimeError> {
    let host = Host::with(HostOptions {
        tune: TuneOptions {
            mode,
            table: table.map(Path::to_owned),
            observer: Some(watch.clone()),
        },
        ..HostOptions::default()
    });
    let options = CompileOptions {
        device,
        threads: 1,
        ..CompileOptions::default()
    };
    let program = Program::compile(perceptron(), &host, &options)?;
    Ok(Session::new(Arc::new(program)))
}

fn run(session: &mut Session) -> Tensor {
    let x = numbers(&[23, 72], 5);
    let mut results = session.run(vec![("x", x.into())]).expect("runs");
    match results.remove(0).1 {
        Value::Tensor(tensor) => tensor,
        other => panic!("{other:?} is no tensor"),
    }
}

fn assert_close(got: &Tensor, want: &Tensor) {
    let values = |t: &Tensor| t.to_vec::<f32>().expect("f32");
    let (got, want) = (values(got), values(want));
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0f32, |most, x| most.max(x.abs()));
    for (got, want) in got.iter().zip(&want) {
        assert!((got - want).abs() <= 1e-5 * largest, "{got}, not {want}");
    }
}

#[test]
fn winners_are_kept_and_used() {
    if !gpu_is_required() {
        return;
    }
    let watch = Arc::new(Watch::default());
    let seen = || watch.problems.load(Ordering::Relaxed);
    let mut reference = session(DeviceSpec::Reference, None, None, &watch).expect("a session");
    let want = run(&mut reference);
    let path = file("table.json");
    let gpu = |mode, table| session(DeviceSpec::Gpu(0), mode, table, &watch).expect("a session");
    // Software is left alone unless that is asked for.
    assert_close(&run(&mut gpu(None, Some(&path))), &want);
    assert!(!path.exists() && seen() == 0);
    let mut tuned = gpu(Some(Tuning::First), Some(&path));
    assert_close(&run(&mut tuned), &want);
    assert!(seen() > 0 && watch.ends.load(Ordering::Relaxed) > 0);
    let table = Table::read(&path).expect("a table");
    let problems = &table.devices[0].problems;
    assert_eq!(problems.len(), seen());
    for (class, winner) in problems {
        assert!(class.starts_with("product"), "{class}");
        assert!(winner.seconds <= winner.predicted_seconds);
    }
    // What is known is not timed again: not in this process, nor in one that is given the file.
    let before = seen();
    assert_close(&run(&mut tuned), &want);
    assert_close(&run(&mut gpu(Some(Tuning::First), Some(&path))), &want);
    assert_close(&run(&mut gpu(Some(Tuning::Known), Some(&path))), &want);
    assert_eq!(seen(), before);
    assert_eq!(Table::read(&path), Ok(table.clone()));
    // Without a place to keep them they are found again.
    assert_close(&run(&mut gpu(Some(Tuning::First), None)), &want);
    assert_eq!(seen(), 2 * before);
    // Entries of other devices stay in the file.
    let mut other = table.clone();
    other.devices[0].device.adapter = "another".to_owned();
    other.write(&path).expect("written");
    assert_close(&run(&mut gpu(Some(Tuning::First), Some(&path))), &want);
    let both = Table::read(&path).expect("a table");
    assert_eq!(both.devices.len(), 2);
    assert_eq!(both.devices[0], other.devices[0]);
}

#[test]
fn the_background_decides_while_runs_go_on() {
    if !gpu_is_required() {
        return;
    }
    let watch = Arc::new(Watch::default());
    let mut reference = session(DeviceSpec::Reference, None, None, &watch).expect("a session");
    let want = run(&mut reference);
    let path = file("background.json");
    let mode = Some(Tuning::Background);
    let mut tuned = session(DeviceSpec::Gpu(0), mode, Some(&path), &watch).expect("a session");
    let start = Instant::now();
    while !path.exists() && start.elapsed() < Duration::from_secs(60) {
        assert_close(&run(&mut tuned), &want);
    }
    assert_close(&run(&mut tuned), &want);
    drop(tuned);
    let table = Table::read(&path).expect("a table");
    assert!(!table.devices[0].problems.is_empty());
    assert_eq!(watch.problems.load(Ordering::Relaxed), 0);
    // A session that ends at once takes its thread with it.
    for _ in 0..3 {
        let mode = Some(Tuning::Background);
        let mut short = session(DeviceSpec::Gpu(0), mode, None, &watch).expect("a session");
        assert_close(&run(&mut short), &want);
    }
}

#[test]
fn damaged_tables_are_refused_and_stay() {
    if !gpu_is_required() {
        return;
    }
    let watch = Arc::new(Watch::default());
    let sound = Table::default().text();
    for (name, text) in [
        ("empty", ""),
        ("cut", &sound[..sound.len() / 2]),
        ("other", "{\"format\": \"something else\", \"version\": 1}"),
        ("newer", &sound.replace("\"version\": 1", "\"version\": 2")),
    ] {
        let path = file(name);
        std::fs::write(&path, text).expect("written");
        let mode = Some(Tuning::First);
        let opened = session(DeviceSpec::Gpu(0), mode, Some(&path), &watch);
        let error = opened.err().expect("it is damaged");
        assert!(matches!(error, RuntimeError::Table(_)), "{error}");
        let said = error.to_string();
        assert!(said.contains(name) && !said.contains('\n'), "{said}");
        assert_eq!(std::fs::read_to_string(&path).expect("there"), text);
    }
}
