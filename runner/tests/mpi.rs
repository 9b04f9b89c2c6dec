//! `cupola train --mpi` with real processes, started by `mpirun`. Built with the feature `mpi` only.

#![cfg(feature = "mpi")]

mod support;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use support::training::{digits, last, losses, tensors};
use support::{Folder, run, text};

/// `cupola` in so many processes.
fn mpirun(processes: usize, args: &[&str]) -> Command {
    let mut command = Command::new("mpirun");
    // Tests may run as root, in containers, on fewer cores than there are processes.
    command
        .args([
            "--oversubscribe",
            "--allow-run-as-root",
            "--bind-to",
            "none",
        ])
        .args(["--mca", "btl", "self,vader", "-n", &processes.to_string()])
        .arg(env!("CARGO_BIN_EXE_cupola"))
        .args(args)
        .args(["--mpi", "--threads", "1"])
        .current_dir(support::repository())
        .stdin(Stdio::null())
        .env("CUPOLA_CACHE", "off")
        .env_remove("RUST_BACKTRACE");
    command
}

fn succeed(out: &Output) -> String {
    let errors = text(&out.stderr);
    assert!(out.status.success(), "{}: {errors}", out.status);
    text(&out.stdout)
}

#[test]
fn processes_have_the_bits_of_one_and_resume_on_another_number() {
    let folder = Folder::new("mpi-bits");
    let config = folder.write("digits.toml", &digits("steps = 16\nclip_norm = 0.5"));
    let train = |name: &str, processes: usize, more: &[&str]| {
        let checkpoints = folder.path(name);
        let base = [
            "train",
            &config,
            "--deterministic",
            "--json",
            "--checkpoints",
            &checkpoints,
        ];
        let args = [&base[..], more].concat();
        let out = match processes {
            0 => run(&args),
            n => mpirun(n, &args).output().expect("mpirun starts"),
        };
        (
            losses(&succeed(&out)),
            tensors(&last(Path::new(&checkpoints))),
        )
    };
    let shards = ["--shards", "4"];
    let one = train("one", 0, &shards);
    // Only the first process speaks.
    assert_eq!(one.0.len(), 16);
    assert_eq!(train("two", 2, &shards), one);
    assert_eq!(train("four", 4, &shards), one);
    train("parts", 4, &["--shards", "4", "--steps", "7"]);
    let rest = train("parts", 2, &["--resume"]);
    assert_eq!((rest.0.as_slice(), &rest.1), (&one.0[7..], &one.1));
}

/// Processes that were started for a configuration, by their rank.
fn process(config: &str, rank: usize) -> Option<u32> {
    let wanted = format!("OMPI_COMM_WORLD_RANK={rank}");
    std::fs::read_dir("/proc")
        .ok()?
        .flatten()
        .find_map(|entry| {
            let number: u32 = entry.file_name().to_string_lossy().parse().ok()?;
            let read = |what: &str| std::fs::read(entry.path().join(what)).unwrap_or_default();
            let holds = |bytes: &[u8], part: &str| {
                bytes.split(|b| *b == 0).any(|word| word == part.as_bytes())
            };
            let is_it = holds(&read("cmdline"), config) && holds(&read("environ"), &wanted);
            is_it.then_some(number)
        })
}

#[test]
fn a_killed_process_ends_the_job_and_the_run_goes_on_from_its_checkpoint() {
    let folder = Folder::new("mpi-killed");
    let config = folder.write(
        "digits.toml",
        &digits("steps = 40\n[checkpoint]\nevery = 5\nkeep = 100"),
    );
    let (whole, parts) = (folder.path("whole"), folder.path("parts"));
    let base = ["train", &config, "--deterministic"];
    let out = mpirun(2, &[&base[..], &["--checkpoints", &whole]].concat()).output();
    succeed(&out.expect("mpirun starts"));
    // As many steps as nobody waits for.
    let endless = ["--checkpoints", &parts, "--steps", "1000000"];
    let child = mpirun(2, &[&base[..], &endless].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mpirun starts");
    let start = Instant::now();
    let third = Path::new(&parts).join("step-00000015.safetensors");
    while !third.exists() {
        assert!(
            start.elapsed() < Duration::from_secs(120),
            "no checkpoint comes"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let killed = process(&config, 1).expect("the second process");
    let done = Command::new("kill")
        .args(["-9", &killed.to_string()])
        .status();
    assert!(done.expect("kill").success());
    let start = Instant::now();
    let out = child.wait_with_output().expect("mpirun ends");
    assert!(
        start.elapsed() < Duration::from_secs(30),
        "{:?}",
        start.elapsed()
    );
    assert!(!out.status.success());
    let errors = text(&out.stderr);
    assert!(
        errors.contains("--resume goes on from the last checkpoint"),
        "{errors}"
    );
    // Later checkpoints were on their way when it ended; the run goes on from the third, and has the bits of the whole one.
    let third = third.to_string_lossy().into_owned();
    let again = ["--checkpoints", &parts, "--resume", &third];
    let out = mpirun(2, &[&base[..], &again].concat()).output();
    succeed(&out.expect("mpirun starts"));
    let end = |folder: &str| tensors(&Path::new(folder).join("step-00000040.safetensors"));
    assert_eq!(end(&parts), end(&whole));
}

#[test]
fn an_error_ends_all_processes() {
    let folder = Folder::new("mpi-error");
    let config = folder.write("digits.toml", &digits("steps = 3"));
    let checkpoints = folder.write("file", "no folder");
    let start = Instant::now();
    // Only the first process writes, and it cannot.
    let args = ["train", &config, "--checkpoints", &checkpoints];
    let out = mpirun(2, &args).output().expect("mpirun starts");
    assert!(start.elapsed() < Duration::from_secs(60));
    assert_eq!(out.status.code(), Some(1));
    let errors = text(&out.stderr);
    assert!(
        errors.contains("error[run]: process 0: cannot write"),
        "{errors}"
    );
    let out = mpirun(2, &["train", "no/such.toml"]).output();
    assert_eq!(out.expect("mpirun starts").status.code(), Some(2));
}
