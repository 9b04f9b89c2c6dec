//! Measures what a device reaches: copies, multiply-adds, matrix units, and what handing work to it costs.
//!
//! Kernels are those of `cupola_shaders::peak`. Device time is taken where the device measures it, the host's otherwise, less the
//! cost of a submission. Every figure is the best of a few rounds of a millisecond or more: what disturbs a round only makes
//! it slower. [`Peaks::remember`] keeps the figures for later processes, [`Peaks::recall`] finds them.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use cupola_backend::Key;
use cupola_shaders::peak::{Number, Peak, PeakParams, THREADS};

use crate::adapter::{CoopScalar, Timestamps};
use crate::choice::Rates;
use crate::device::pipeline::Trust;
use crate::device::{
    Access, Bindings, Command, Dispatch, GpuBuffer, GpuDevice, KernelSource, ParamSpace, Pipeline,
    fold_groups, identity,
};
use crate::error::Error;

/// What a device reaches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peaks {
    /// Bytes read and written per second by a copy far larger than any cache.
    pub copy: f64,
    /// 32-bit float operations per second, a multiply-add counted as two.
    pub f32: f64,
    /// The same of 16-bit floats, where kernels can compute with them.
    pub f16: Option<f64>,
    /// Operations per second of matrix units on 16-bit floats with 32-bit sums, where kernels can use them.
    pub matrix: Option<f64>,
    /// Seconds from handing over an empty kernel to knowing that it has run.
    pub submit: f64,
    /// Seconds that one more kernel in the same submission takes, each waiting for the one before.
    pub dispatch: f64,
    /// How many times the arithmetic of one workgroup the whole device does: its parts that run workgroups side by side.
    pub cores: f64,
}

/// First line of figures that are kept; another version is not read.
const HEADING: &str = "cupola gpu rates 1";

/// A round that takes at least so long is measured well.
const ROUND: Duration = Duration::from_millis(1);

/// Time for repeating a measurement; twice at least.
const PATIENCE: Duration = Duration::from_millis(120);

/// Most repetitions.
const REPETITIONS: usize = 12;

/// Bytes copied, unless a device's memory or its limits are smaller, or it is so slow that a tenth of it does.
const COPIED: u64 = 256 << 20;

/// Workgroups of the arithmetic kernels: several for every core of the largest devices.
const GROUPS: u32 = 1024;

/// Threads that store what they computed, or matrices that are stored.
const STORED: u32 = 8;

/// Kernels of one submission when the cost of a kernel is measured.
const CHAIN: usize = 128;

/// Measures `gpu`, which should do nothing else meanwhile.
///
/// # Errors
/// What the device finds wrong; no memory for the smallest copy.
pub fn measure(gpu: &GpuDevice) -> Result<Peaks, Error> {
    let bench = Bench::new(gpu)?;
    let arithmetic = |number| bench.arithmetic(Peak::MultiplyAdd(number), THREADS, GROUPS);
    let f16 = gpu.features().f16.then(|| arithmetic(Number::F16));
    let f32 = arithmetic(Number::F32)?;
    let one = bench.arithmetic(Peak::MultiplyAdd(Number::F32), THREADS, 1)?;
    Ok(Peaks {
        copy: bench.copy()?,
        f32,
        f16: f16.transpose()?,
        matrix: bench.matrix()?,
        submit: bench.submit,
        dispatch: bench.dispatch()?,
        cores: f32 / one,
    })
}

impl Peaks {
    /// What kernels are chosen by, with what is not measured as it was.
    pub fn rates(&self, before: Rates) -> Rates {
        Rates {
            copy: self.copy,
            f32: self.f32,
            f16: self.f16.unwrap_or(self.f32),
            matrix: self.matrix.unwrap_or(before.matrix),
            dispatch: self.dispatch,
            cores: self.cores.round().clamp(1.0, f64::from(GROUPS)) as u32,
            threading: before.threading,
        }
    }

    /// Keeps them for the same adapter, driver and tier, if the device was opened with a place for that.
    pub fn remember(&self, gpu: &GpuDevice) {
        let Some(keeper) = gpu.keeper() else { return };
        let mut text = format!("{HEADING}\n");
        for (name, value) in self.figures() {
            if let Some(value) = value {
                let _ = writeln!(text, "{name} {value:e}");
            }
        }
        keeper.keep(key(gpu), text.into_bytes().into());
    }

    /// What was kept of this adapter, driver and tier; `None` without all figures.
    pub fn recall(gpu: &GpuDevice) -> Option<Self> {
        let bytes = gpu.keeper()?.find(key(gpu))?;
        let text = std::str::from_utf8(&bytes).ok()?;
        let (heading, lines) = text.split_once('\n')?;
        let figure = |name: &str| {
            let line = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
            let found: Option<f64> = lines.lines().find_map(line);
            found.filter(|value| value.is_finite() && *value > 0.0)
        };
        (heading == HEADING).then_some(())?;
        Some(Self {
            copy: figure("copy")?,
            f32: figure("f32")?,
            f16: figure("f16"),
            matrix: figure("matrix"),
            submit: figure("submit")?,
            dispatch: figure("dispatch")?,
            cores: figure("cores")?,
        })
    }

    /// Every figure by its name.
    fn figures(&self) -> [(&'static str, Option<f64>); 7] {
        [
            ("copy", Some(self.copy)),
            ("f32", Some(self.f32)),
            ("f16", self.f16),
            ("matrix", self.matrix),
            ("submit", Some(self.submit)),
            ("dispatch", Some(self.dispatch)),
            ("cores", Some(self.cores)),
        ]
    }
}

/// The key of a device's figures: features decide what kernels can compute with.
fn key(gpu: &GpuDevice) -> Key {
    let tier = gpu.tier().name();
    Key::of(&(HEADING, identity(gpu.facts()), tier))
}

/// The device with what all measurements need.
struct Bench<'a> {
    gpu: &'a GpuDevice,
    /// Read by arithmetic kernels, and written.
    source: GpuBuffer,
    sink: GpuBuffer,
    submit: f64,
}

/// A kernel with its buffers.
struct Ready {
    pipeline: std::sync::Arc<Pipeline>,
    bindings: Bindings,
    groups: [u32; 3],
}

impl<'a> Bench<'a> {
    fn new(gpu: &'a GpuDevice) -> Result<Self, Error> {
        let (source, sink) = (gpu.allocate(1 << 16)?, gpu.allocate(1 << 20)?);
        let mut bench = Self {
            gpu,
            source,
            sink,
            submit: 0.0,
        };
        let copy = bench.ready(Peak::Copy { each: 1 }, &bench.source, &bench.sink, 1)?;
        let mut least = f64::INFINITY;
        for _ in 0..2 * REPETITIONS {
            let start = Instant::now();
            bench.run(&copy, PeakParams::default())?;
            least = least.min(start.elapsed().as_secs_f64());
        }
        bench.submit = least;
        Ok(bench)
    }

    fn ready(
        &self,
        peak: Peak,
        source: &GpuBuffer,
        sink: &GpuBuffer,
        groups: u64,
    ) -> Result<Ready, Error> {
        let pipeline = self.gpu.pipeline(&KernelSource {
            label: format!("{peak:?}"),
            text: peak.wgsl(),
            bindings: vec![Access::Read, Access::ReadWrite],
            params_len: PeakParams::default().words().len() as u32,
            params_in: ParamSpace::Uniform,
            trust: Trust::Generated,
        })?;
        let bindings = self.gpu.bind(&pipeline, &[source.whole(), sink.whole()])?;
        let groups = fold_groups(groups, self.gpu.limits().groups_per_axis)?;
        Ok(Ready {
            pipeline,
            bindings,
            groups,
        })
    }

    fn run(&self, ready: &Ready, params: PeakParams) -> Result<(), Error> {
        let submission = self.gpu.submit(&[dispatch(ready, &params.words())])?;
        self.gpu.wait(&submission)
    }

    /// Seconds of one run.
    fn time(&self, ready: &Ready, params: PeakParams) -> Result<f64, Error> {
        if self.gpu.features().timestamps != Timestamps::Absent {
            let words = params.words();
            let times = self.gpu.run_timed(&[dispatch(ready, &words)])?;
            if let Some(time) = times.first().filter(|time| !time.is_zero()) {
                return Ok(time.as_secs_f64());
            }
        }
        let start = Instant::now();
        self.run(ready, params)?;
        Ok((start.elapsed().as_secs_f64() - self.submit).max(1e-9))
    }

    /// The least time of some runs, after one that does not count.
    fn best(&self, ready: &Ready, params: PeakParams) -> Result<f64, Error> {
        let start = Instant::now();
        let mut least = self.time(ready, params)?;
        for done in 0..REPETITIONS {
            if done >= 2 && start.elapsed() > PATIENCE {
                break;
            }
            least = least.min(self.time(ready, params)?);
        }
        Ok(least)
    }

    /// Bytes read and written per second.
    fn copy(&self) -> Result<f64, Error> {
        let limits = self.gpu.limits();
        let most = COPIED.min(limits.binding_size).min(limits.buffer_size / 2);
        let mut size = (most / 16) & !0xffff;
        let mut rate = self.copy_of(size)?;
        // A slow device shows its rate at once; a fast one has to leave its caches.
        while size < most && size as f64 / rate < ROUND.as_secs_f64() {
            size = (2 * size).min(most);
            match self.copy_of(size) {
                Ok(larger) => rate = larger,
                Err(Error::OutOfMemory { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(rate)
    }

    fn copy_of(&self, size: u64) -> Result<f64, Error> {
        let (source, sink) = (self.gpu.allocate(size)?, self.gpu.allocate(size)?);
        let len = size / 16;
        let mut best = 0.0f64;
        for each in [1, 4] {
            let groups = len.div_ceil(u64::from(each * THREADS));
            let ready = self.ready(Peak::Copy { each }, &source, &sink, groups)?;
            let params = PeakParams {
                len: len as u32,
                ..PeakParams::default()
            };
            best = best.max(2.0 * size as f64 / self.best(&ready, params)?);
        }
        Ok(best)
    }

    /// Operations per second of an arithmetic kernel, with so many threads to a subgroup and so many workgroups.
    fn arithmetic(&self, peak: Peak, subgroup: u32, groups: u32) -> Result<f64, Error> {
        let ready = self.ready(peak, &self.source, &self.sink, u64::from(groups))?;
        let mut params = PeakParams {
            len: STORED,
            rounds: 1,
            factor: 0.999f32.to_bits(),
            addend: 0.001f32.to_bits(),
        };
        self.time(&ready, params)?;
        while self.time(&ready, params)? < ROUND.as_secs_f64() && params.rounds < 1 << 16 {
            params.rounds *= 4;
        }
        let operations = peak.operations(THREADS / subgroup) * f64::from(groups);
        Ok(operations * f64::from(params.rounds) / self.best(&ready, params)?)
    }

    /// As [`Self::arithmetic`], of the best shape of matrix units with f16 operands and f32 sums. `None` without one, and
    /// where the size of subgroups is the driver's choice, so that nobody knows how many take part.
    fn matrix(&self) -> Result<Option<f64>, Error> {
        let features = self.gpu.features();
        let Some((least, most)) = features.subgroups else {
            return Ok(None);
        };
        if least != most || !features.f16 {
            return Ok(None);
        }
        let mut best = None;
        for shape in &features.cooperative {
            if shape.operand == CoopScalar::F16 && shape.result == CoopScalar::F32 {
                let rate = self.arithmetic(Peak::Matrix { side: shape.rows }, least, GROUPS)?;
                best = Some(best.map_or(rate, |best: f64| best.max(rate)));
            }
        }
        Ok(best)
    }

    /// Seconds of one more kernel in a submission.
    fn dispatch(&self) -> Result<f64, Error> {
        let ready = self.ready(Peak::Copy { each: 1 }, &self.source, &self.sink, 1)?;
        let words = PeakParams::default().words();
        let all: Vec<_> = (0..CHAIN).map(|_| dispatch(&ready, &words)).collect();
        let mut least = f64::INFINITY;
        for _ in 0..REPETITIONS {
            let start = Instant::now();
            let submission = self.gpu.submit(&all)?;
            self.gpu.wait(&submission)?;
            least = least.min(start.elapsed().as_secs_f64());
        }
        Ok(((least - self.submit) / CHAIN as f64).max(1e-9))
    }
}

/// One run of a kernel.
fn dispatch<'a>(ready: &'a Ready, words: &'a [u32]) -> Command<'a> {
    Command::Dispatch(Dispatch {
        pipeline: &ready.pipeline,
        bindings: &ready.bindings,
        params: words,
        groups: ready.groups,
    })
}
