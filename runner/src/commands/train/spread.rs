//! Replicas: devices of this process, or the processes of an MPI job.

use crate::args::CompileArgs;
use crate::commands::{host, options_for};
use crate::fail::{Failure, Outcome};
use cupola::DeviceSpec;
use cupola::runtime::{Idle, Link};
use cupola::train::{Config, Spread};
use cupola_mpi::{Job, MpiError};
use std::sync::Arc;
use std::time::Duration;

/// How long other processes than the first wait before they tell an error: most are found by all, and told once is enough.
const POLITE: Duration = Duration::from_millis(300);

/// The other processes of a job, for the runtime.
struct Others(Arc<Job>);

impl Link for Others {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn size(&self) -> usize {
        self.0.size()
    }

    fn exchange(&mut self, with: usize, bytes: Vec<u8>, idle: &Idle) -> Result<Vec<u8>, String> {
        let idle = idle.clone();
        let got = self.0.exchange(with, bytes, move || idle.holds());
        got.map_err(|e| e.to_string())
    }
}

/// Runs as a process of the job that this one was started in. An error ends all of its processes.
pub fn as_process(run: impl FnOnce(&Arc<Job>) -> Outcome) -> Outcome {
    let job = Job::join().map_err(|e| match e {
        MpiError::Without => Failure::usage(e.to_string()),
        MpiError::Library(_) => Failure::new(1, "run", e.to_string()),
    })?;
    let job = Arc::new(job);
    crate::interrupt::tell_when_ended();
    let outcome = run(&job);
    if let (Err(failure), true) = (&outcome, job.size() > 1) {
        if job.rank() > 0 {
            std::thread::sleep(POLITE);
        }
        let told = Failure {
            message: format!("process {}: {}", job.rank(), failure.message),
            ..Failure::new(failure.status, failure.code, "")
        };
        eprintln!("{}", told.line());
        job.abort(failure.status);
    }
    outcome
}

/// Where the replicas of this process are.
pub fn places(config: &Config, args: &CompileArgs, job: Option<&Arc<Job>>) -> Outcome<Spread> {
    let devices: Vec<&str> = args.device.split(',').map(str::trim).collect();
    let is_gpu = |device: &&str| device.starts_with("gpu");
    if devices.iter().any(|d| is_gpu(d) != is_gpu(&devices[0])) {
        let what = "--device: a CPU and a GPU round differently, so replicas on both would come apart; name devices of one kind";
        return Err(Failure::usage(what));
    }
    // Those of one machine share its devices and threads.
    let (first, count, sharing) = match job {
        Some(job) => {
            let (rank, size) = job.on_machine();
            (rank, 1, size)
        }
        None => {
            let count = config.replicas.unwrap_or(devices.len());
            (0, count, count)
        }
    };
    let shared = host(args);
    let mut places = vec![];
    for at in first..first + count {
        let mut options = options_for(devices[at % devices.len()], args)?;
        options.threads = match (args.threads, job) {
            (0, _) => (cupola::runtime::physical_cores() / sharing.max(1)).max(1),
            (threads, Some(_)) => threads,
            (threads, None) => (threads / sharing.max(1)).max(1),
        };
        if sharing == 1 {
            options.threads = args.threads;
        }
        // Replicas on the processor have threads of their own.
        let own = match options.device {
            DeviceSpec::Gpu(_) | DeviceSpec::Reference => shared.clone(),
            DeviceSpec::Cpu | DeviceSpec::Auto => host(args),
        };
        places.push((own, options));
    }
    if places.is_empty() {
        return Err(Failure::usage("--replicas 0: a run needs one at least"));
    }
    let link = job.filter(|job| job.size() > 1);
    let link = link.map(|job| -> Box<dyn Link> { Box::new(Others(job.clone())) });
    Ok(Spread { places, link })
}
