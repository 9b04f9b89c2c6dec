//! Starting the program, and folders for what it writes.

#[allow(dead_code, reason = "only tests of the server start one")]
pub mod server;

#[allow(dead_code, reason = "only tests of training read what it writes")]
pub mod training;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The repository's root, where the program is started.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the runner lies in the repository")
        .to_path_buf()
}

/// `cupola` with arguments, started through the program that makes the software GPU adapter visible, if there is one.
pub fn cupola(args: &[&str]) -> Command {
    let binary = env!("CARGO_BIN_EXE_cupola");
    let mut command = match std::env::var_os("CUPOLA_TEST_RUNNER") {
        Some(runner) => {
            let mut c = Command::new(runner);
            c.arg(binary);
            c
        }
        None => Command::new(binary),
    };
    command
        .args(args)
        .current_dir(repository())
        .stdin(Stdio::null())
        .env("CUPOLA_CACHE", "off")
        .env_remove("RUST_BACKTRACE");
    command
}

/// Runs it to the end.
pub fn run(args: &[&str]) -> Output {
    cupola(args).output().expect("cupola starts")
}

/// Output as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs to the end and succeeds; gives what it prints.
#[allow(dead_code, reason = "for some of the tests")]
pub fn succeed(args: &[&str]) -> String {
    let out = run(args);
    let errors = text(&out.stderr);
    assert!(out.status.success(), "{args:?}: {errors}");
    text(&out.stdout)
}

/// The status and the one error line of a run that fails.
#[allow(dead_code, reason = "for some of the tests")]
pub fn failure(args: &[&str]) -> (i32, String) {
    let Output { status, stderr, .. } = run(args);
    let errors = text(&stderr);
    assert_eq!(errors.lines().count(), 1, "{args:?}: {errors}");
    (status.code().unwrap_or(-1), errors)
}

/// A folder that is removed at the end.
pub struct Folder(pub PathBuf);

impl Folder {
    /// An empty one.
    pub fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("cupola-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a folder");
        Folder(path)
    }

    /// The path of a file in it.
    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }

    /// Writes a file; gives its path.
    pub fn write(&self, name: &str, contents: &str) -> String {
        std::fs::write(self.0.join(name), contents).expect("a file");
        self.path(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
