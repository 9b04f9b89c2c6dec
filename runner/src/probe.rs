//! Tries the features of a GPU in a child process, which a bad driver may end.

use cupola::runtime::{Attempt, Cut, Prober};
use std::ffi::OsString;
use std::io::{self, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a child may take: its driver may have to compile a kernel for each feature.
const PATIENCE: Duration = Duration::from_secs(30);

/// Time between two looks at a child.
const PAUSE: Duration = Duration::from_millis(2);

/// Starts this program again as `cupola try-gpu`.
#[derive(Debug)]
pub struct ChildProber;

impl Prober for ChildProber {
    fn probe(&self, adapter: usize) -> Result<Attempt, String> {
        let mut command = this_program().map_err(|e| e.to_string())?;
        let started = command
            .args(["try-gpu", &adapter.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        attend(started.map_err(|e| e.to_string())?, PATIENCE).map_err(|e| e.to_string())
    }
}

/// Waits for a child's end or stops it; what it wrote.
fn attend(mut child: Child, patience: Duration) -> io::Result<Attempt> {
    let mut output = child.stdout.take();
    // Read beside the waiting, so that a child that stops answering does not stop us.
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = output.as_mut().map(|from| from.read_to_end(&mut bytes));
        read.transpose().map(|_| bytes)
    });
    let start = Instant::now();
    let cut = loop {
        match child.try_wait()? {
            Some(status) if status.success() => break None,
            Some(status) => break Some(Cut::Ended(ending(status))),
            None if start.elapsed() > patience => {
                child.kill()?;
                child.wait()?;
                break Some(Cut::Slow(patience));
            }
            None => thread::sleep(PAUSE),
        }
    };
    let bytes = reader
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("its output could not be read")))?;
    Ok(Attempt {
        text: String::from_utf8_lossy(&bytes).into_owned(),
        cut,
    })
}

fn ending(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return format!("by signal {signal}");
    }
    match status.code() {
        Some(code) => format!("with status {code}"),
        None => "without a status".to_string(),
    }
}

/// This program without arguments, as it was started: where a program loader was asked to run it, the same loader is.
fn this_program() -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    let all = command_line();
    let own = std::env::args_os().count().saturating_sub(1);
    // The file that runs comes first; what follows it up to our own arguments was meant for a loader.
    let loader = all.get(1..all.len().saturating_sub(own));
    command.args(loader.unwrap_or_default());
    Ok(command)
}

/// The whole command line of this process, where the system tells; else nothing.
fn command_line() -> Vec<OsString> {
    #[cfg(target_os = "linux")]
    if let Ok(bytes) = std::fs::read("/proc/self/cmdline") {
        use std::os::unix::ffi::OsStringExt;
        let parts = bytes.split_inclusive(|byte| *byte == 0);
        let text = |part: &[u8]| OsString::from_vec(part[..part.len() - 1].to_vec());
        return parts.map(text).collect();
    }
    vec![]
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn attended(script: &str, patience: Duration) -> Attempt {
        let child = Command::new("sh")
            .args(["-c", script])
            .stdout(Stdio::piped())
            .spawn();
        attend(child.expect("a shell"), patience).expect("an attempt")
    }

    #[test]
    fn every_ending_is_told() {
        let good = attended("echo one; echo two", PATIENCE);
        assert_eq!((good.text.as_str(), good.cut), ("one\ntwo\n", None));
        let crashed = attended("echo one; kill -SEGV $$", PATIENCE);
        assert_eq!(crashed.text, "one\n");
        assert_eq!(crashed.cut, Some(Cut::Ended("by signal 11".to_string())));
        let failed = attended("exit 3", PATIENCE);
        assert_eq!(failed.cut, Some(Cut::Ended("with status 3".to_string())));
        let short = Duration::from_millis(50);
        let slow = attended("echo one; exec sleep 20", short);
        assert_eq!(
            (slow.text.as_str(), slow.cut),
            ("one\n", Some(Cut::Slow(short)))
        );
    }
}
