//! The `cupola` command. Results go to standard output, everything else to standard error; an error is one line.
//!
//! Reading order: `args` (the command line), `commands`, `inputs`, `outputs`, `compare`, `fail`.

mod args;
mod commands;
mod compare;
mod fail;
mod inputs;
mod interrupt;
mod npy;
mod outputs;
mod pb;
mod probe;
mod significance;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) if e.use_stderr() => {
            let text = e.to_string();
            let first = text.lines().next().unwrap_or_default();
            let what = first.strip_prefix("error: ").unwrap_or(first);
            eprintln!(
                "{}",
                fail::Failure::usage(format!("{what} (see 'cupola --help')")).line()
            );
            return ExitCode::from(2);
        }
        Err(help) => {
            // A closed pipe is no failure of ours.
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    start_logs(cli.verbose);
    match on_large_stack(move || commands::dispatch(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{}", failure.line());
            ExitCode::from(failure.status)
        }
    }
}

fn start_logs(verbose: u8) {
    let level = ["warn", "info", "debug", "trace"][usize::from(verbose.min(3))];
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}

/// Runs a command on a thread whose stack holds deeply nested models; a panic becomes a failure.
fn on_large_stack(command: impl FnOnce() -> fail::Outcome + Send + 'static) -> fail::Outcome {
    const STACK_SIZE: usize = 256 << 20;
    let usual = std::panic::take_hook();
    let backtrace = std::env::var_os("RUST_BACKTRACE").is_some_and(|v| v != "0");
    std::panic::set_hook(Box::new(move |info| {
        if backtrace && !is_closed_pipe(&commands::panic_text(info.payload())) {
            usual(info);
        }
    }));
    let bug = |what: &str| fail::Failure::new(1, "bug", format!("{what}; please report it"));
    match std::thread::Builder::new()
        .stack_size(STACK_SIZE)
        .spawn(command)
    {
        Err(e) => Err(bug(&format!("no thread: {e}"))),
        Ok(thread) => thread
            .join()
            .unwrap_or_else(|panic| match commands::panic_text(&*panic) {
                // The reader (head, a pager) has seen enough.
                text if is_closed_pipe(&text) => Ok(()),
                text => Err(bug(&text)),
            }),
    }
}

/// Whether a panic is that of printing to a pipe that nobody reads any more.
fn is_closed_pipe(panic: &str) -> bool {
    panic.contains("failed printing to stdout")
}
