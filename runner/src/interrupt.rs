//! Ctrl-C: the first asks what runs to stop, the second ends the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether Ctrl-C came.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    came: Arc<AtomicBool>,
    /// Nothing runs that could stop: Ctrl-C ends the process.
    idle: Arc<AtomicBool>,
}

impl Interrupt {
    /// Watches for Ctrl-C from now on. Where that cannot be done it ends the process as ever.
    pub fn watch() -> Interrupt {
        let interrupt = Interrupt::default();
        let watching = interrupt.clone();
        let thread = std::thread::Builder::new().name("interrupt".into());
        if let Err(e) = thread.spawn(move || watching.wait()) {
            tracing::warn!("Ctrl-C is not watched for: {e}");
        }
        interrupt
    }

    fn wait(&self) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let Ok(runtime) = runtime.enable_all().build() else {
            return;
        };
        // The status of a program that the signal ended.
        const STATUS: i32 = 130;
        while runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            if self.idle.load(Ordering::SeqCst) || self.came.swap(true, Ordering::SeqCst) {
                std::process::exit(STATUS);
            }
        }
    }

    /// What is set when Ctrl-C comes.
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.came.clone()
    }

    /// Whether it came since [`Interrupt::set_idle`] was last called.
    pub fn is_set(&self) -> bool {
        self.came.load(Ordering::SeqCst)
    }

    /// Says whether there is nothing that could stop, and forgets that Ctrl-C came.
    pub fn set_idle(&self, idle: bool) {
        self.idle.store(idle, Ordering::SeqCst);
        self.came.store(false, Ordering::SeqCst);
    }
}

/// Tells why the process ends when a launcher ends it, which it does when another process of its job has failed.
#[cfg(unix)]
pub fn tell_when_ended() {
    let thread = std::thread::Builder::new().name("ended".into());
    let watched = thread.spawn(|| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let Ok(runtime) = runtime.enable_all().build() else {
            return;
        };
        runtime.block_on(async {
            let kind = tokio::signal::unix::SignalKind::terminate();
            if let Ok(mut ended) = tokio::signal::unix::signal(kind) {
                ended.recv().await;
                let what = "the launcher ended this process: another one of the job failed, or it was told to; --resume goes on from \
                            the last checkpoint";
                eprintln!("{}", crate::fail::Failure::new(1, "run", what).line());
                std::process::exit(1);
            }
        });
    });
    if let Err(e) = watched {
        tracing::warn!("the end of the job is not watched for: {e}");
    }
}

/// Nothing is told where there are no such signals.
#[cfg(not(unix))]
pub fn tell_when_ended() {}
