//! The devices of this host. The only file that names backends.

use crate::cache::Cache;
use crate::error::{Result, RuntimeError};
use cupola_backend::{Backend, BackendError, Keeper};
use cupola_cpu::CpuBackend;
use cupola_wgpu::adapter::{AdapterFacts, AdapterKind, Timestamps};
use cupola_wgpu::device::{DeviceFeatures, Optional};
pub use cupola_wgpu::device::{Injected, MemoryLimits, Mishap};
use cupola_wgpu::library::forms;
pub use cupola_wgpu::tune::table::{Table, TunedDevice, Winner};
use cupola_wgpu::{
    AdapterList, DeviceModel, DeviceOptions, Forms, GpuDevice, Rates, Tier, WgpuBackend,
};
pub use cupola_wgpu::{Attempt, Cut, Prober, TuneObserver, TuneOptions, Tuning};
use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

/// A device as a user names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DeviceSpec {
    /// Compiled code on the CPU.
    Cpu,
    /// A GPU adapter by position.
    Gpu(usize),
    /// The reference interpreter.
    Reference,
    /// The CPU or a GPU, whichever ran the graph faster when it was compiled.
    Auto,
}

impl FromStr for DeviceSpec {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "cpu" => Ok(DeviceSpec::Cpu),
            "gpu" => Ok(DeviceSpec::Gpu(0)),
            "reference" => Ok(DeviceSpec::Reference),
            "auto" => Ok(DeviceSpec::Auto),
            _ => match s.strip_prefix("gpu:").and_then(|n| n.parse().ok()) {
                Some(n) => Ok(DeviceSpec::Gpu(n)),
                None => Err(format!(
                    "'{s}' is no device; there are cpu, gpu, gpu:N, reference and auto"
                )),
            },
        }
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceSpec::Cpu => f.write_str("cpu"),
            DeviceSpec::Gpu(0) => f.write_str("gpu"),
            DeviceSpec::Gpu(n) => write!(f, "gpu:{n}"),
            DeviceSpec::Reference => f.write_str("reference"),
            DeviceSpec::Auto => f.write_str("auto"),
        }
    }
}

/// What opening a GPU may use.
#[derive(Clone, Debug, Default)]
pub struct HostOptions {
    /// Keeps what was found out about an adapter and its driver for later processes.
    pub cache: Option<Cache>,
    /// Tries features in another process whose use can end this one. Without it software adapters do without them.
    pub prober: Option<Arc<dyn Prober>>,
    /// A failure that GPUs are to have, to test what comes after; without one, that of `CUPOLA_GPU_FAIL`.
    pub inject: Option<Injected>,
    /// Divides the memory of GPUs as if their limits were these, to test that.
    pub memory_limits: Option<MemoryLimits>,
    /// Whether and when GPUs time kernels to choose among them.
    pub tune: TuneOptions,
}

/// Opened devices, shared by all programs of a process that are given the same host.
#[derive(Default)]
pub struct Host {
    options: HostOptions,
    cpus: Mutex<Vec<(usize, Arc<dyn Backend>)>>,
    gpus: Mutex<Vec<(usize, Arc<WgpuBackend>)>>,
}

impl Host {
    /// No device is opened before it is asked for.
    pub fn new() -> Host {
        Host::default()
    }

    /// As [`Host::new`], with more to use when a GPU is opened.
    pub fn with(options: HostOptions) -> Host {
        Host {
            options,
            ..Host::default()
        }
    }

    /// Resolves a device and opens what it needs: the CPU first, the device itself last.
    ///
    /// # Errors
    /// [`RuntimeError::NoDevice`] or a device that fails to open.
    pub fn open(
        &self,
        spec: &DeviceSpec,
        threads: usize,
    ) -> Result<(DeviceSpec, Vec<Arc<dyn Backend>>)> {
        match spec {
            DeviceSpec::Reference => Ok((spec.clone(), vec![])),
            DeviceSpec::Cpu => Ok((spec.clone(), vec![self.cpu(threads)?])),
            DeviceSpec::Gpu(n) => Ok((spec.clone(), vec![self.cpu(threads)?, self.gpu(*n)?])),
            // What looks at a graph without timing it takes the device that runs everything.
            DeviceSpec::Auto => Ok((DeviceSpec::Cpu, vec![self.cpu(threads)?])),
        }
    }

    /// GPU adapters that can be faster than the CPU: those that do not compute on it.
    pub(crate) fn worthwhile_gpus(&self) -> Vec<DeviceSpec> {
        let adapters = AdapterList::enumerate();
        let facts = adapters.adapters().iter().map(|a| a.facts());
        let usable = facts.filter(|f| f.refusal.is_none() && f.kind != AdapterKind::Software);
        usable.map(|f| DeviceSpec::Gpu(f.index)).collect()
    }

    fn cpu(&self, threads: usize) -> Result<Arc<dyn Backend>> {
        let mut open = self.cpus.lock().unwrap_or_else(|e| e.into_inner());
        if let Some((_, b)) = open.iter().find(|(t, _)| *t == threads) {
            return Ok(b.clone());
        }
        let backend: Arc<dyn Backend> = match CpuBackend::new(threads) {
            Ok(b) => Arc::new(b),
            Err(e) => {
                return Err(RuntimeError::NoDevice {
                    device: "cpu".into(),
                    what: e.to_string(),
                });
            }
        };
        open.push((threads, backend.clone()));
        Ok(backend)
    }

    /// A GPU, opened anew if the one that was open was lost.
    fn gpu(&self, position: usize) -> Result<Arc<WgpuBackend>> {
        let mut open = self.gpus.lock().unwrap_or_else(|e| e.into_inner());
        open.retain(|(p, b)| *p != position || !b.gpu().is_lost());
        if let Some((_, b)) = open.iter().find(|(p, _)| *p == position) {
            return Ok(b.clone());
        }
        let device = DeviceSpec::Gpu(position).to_string();
        let options = self.gpu_options()?;
        let adapters = AdapterList::enumerate();
        let opened = adapters
            .get(position)
            .and_then(|a| WgpuBackend::open(a, &options, &device));
        let backend = opened.map_err(|e| open_error(device, &e))?;
        let backend = Arc::new(backend);
        open.push((position, backend.clone()));
        Ok(backend)
    }

    /// How GPUs are opened: the one place that reads the environment variables of GPUs.
    fn gpu_options(&self) -> Result<DeviceOptions> {
        let setting = |e: cupola_wgpu::Error| RuntimeError::Setting(e.to_string());
        let tier = Tier::from_environment().map_err(setting)?;
        let forms = Forms::from_environment().map_err(setting)?;
        let ordered = Injected::from_environment().map_err(setting)?;
        let cache = self.options.cache.clone();
        Ok(DeviceOptions {
            tier,
            forms,
            prober: self.options.prober.clone(),
            inject: self.options.inject.or(ordered),
            memory_limits: self.options.memory_limits,
            tune: self.options.tune.clone(),
            keeper: cache.map(|cache| -> Arc<dyn Keeper> { Arc::new(cache) }),
            translate: std::env::var_os("CUPOLA_GPU_TRANSLATE").is_some_and(|v| !v.is_empty()),
            ..DeviceOptions::default()
        })
    }

    /// The CPU and every GPU adapter. Those that can be used are opened, to tell what works on them.
    ///
    /// # Errors
    /// [`RuntimeError::Setting`] where `CUPOLA_GPU_TIER` names no tier or `CUPOLA_GPU_FORMS` no forms.
    pub fn devices(&self) -> Result<Vec<DeviceInfo>> {
        self.gpu_options()?;
        let adapters = AdapterList::enumerate();
        let gpus = adapters.adapters().iter().map(|adapter| {
            let f = adapter.facts();
            let spec = DeviceSpec::Gpu(f.index);
            let mut facts = adapter_facts(f);
            match self.gpu(f.index) {
                Ok(backend) => facts.extend(opened_facts(backend.gpu())),
                Err(e) => facts.push(("refused".into(), e.to_string())),
            }
            DeviceInfo {
                spec,
                name: f.name.clone(),
                facts,
            }
        });
        Ok(std::iter::once(processor()).chain(gpus).collect())
    }
}

/// There is no such device, or there is and its driver failed.
fn open_error(device: String, error: &cupola_wgpu::Error) -> RuntimeError {
    let what = error.to_string();
    match error {
        cupola_wgpu::Error::NoAdapter { .. } | cupola_wgpu::Error::Unusable { .. } => {
            RuntimeError::NoDevice { device, what }
        }
        cupola_wgpu::Error::Table { .. } => RuntimeError::Table(what),
        _ => BackendError::Device { device, what }.into(),
    }
}

/// The part of a [`Prober`] in the other process: tries the adapter of this index and writes what works.
///
/// # Errors
/// Those of `to`, or why the adapter cannot be used at all.
pub fn try_gpu(index: usize, to: &mut dyn io::Write) -> io::Result<()> {
    let adapters = AdapterList::enumerate();
    let adapter = adapters.get(index).map_err(io::Error::other)?;
    cupola_wgpu::try_out(adapter, to)
}

/// A device of this host and what is known of it.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// How a user names it.
    pub spec: DeviceSpec,
    /// Product name.
    pub name: String,
    /// Facts in order: what, value.
    pub facts: Vec<(String, String)>,
}

/// Cores of the processor that this process may use, or the fewer threads where two share one.
pub fn physical_cores() -> usize {
    cupola_cpu::isa::physical_cores()
}

/// The host's processor.
pub fn processor() -> DeviceInfo {
    let isa = cupola_cpu::isa::Isa::detect();
    let caches = cupola_cpu::isa::caches();
    DeviceInfo {
        spec: DeviceSpec::Cpu,
        name: cpu_name(),
        facts: vec![
            ("vector level".into(), vector_level(isa)),
            (
                "physical cores".into(),
                cupola_cpu::isa::physical_cores().to_string(),
            ),
            (
                "caches".into(),
                format!(
                    "L1 {} KiB, L2 {} KiB, L3 {} KiB",
                    caches.l1 >> 10,
                    caches.l2 >> 10,
                    caches.l3 >> 10
                ),
            ),
        ],
    }
}

fn fact(what: &str, value: impl ToString) -> (String, String) {
    (what.to_string(), value.to_string())
}

/// What an adapter is and offers.
fn adapter_facts(f: &AdapterFacts) -> Vec<(String, String)> {
    let cooperative = f.features.cooperative.iter().map(ToString::to_string);
    vec![
        fact("kind", f.kind.name()),
        fact("backend", f.interface.name()),
        fact("vendor", format!("{} ({:#06x})", f.vendor, f.vendor_id)),
        fact("driver", &f.driver),
        fact("matrix units", listed(cooperative)),
    ]
}

/// What of an adapter is used.
fn opened_facts(gpu: &GpuDevice) -> Vec<(String, String)> {
    let limits = gpu.limits();
    let mut facts = vec![
        fact("tier", gpu.tier().name()),
        fact("features", listed(features(gpu))),
        fact("largest buffer", limits.buffer_size),
        fact("largest binding", limits.binding_size),
        fact("storage buffers", limits.storage_buffers),
        fact("workgroup memory", limits.workgroup_memory_size),
        fact("workgroup threads", limits.workgroup_threads),
    ];
    facts.extend(rate_facts(&gpu.model()));
    facts.extend(kernel_facts(&gpu.model()));
    let dropped = &gpu.findings().dropped;
    facts.extend(
        dropped
            .iter()
            .map(|(feature, why)| fact(&format!("without {feature}"), why)),
    );
    facts
}

/// How fast an adapter is taken to be.
fn rate_facts(model: &DeviceModel) -> Vec<(String, String)> {
    let Rates {
        copy,
        f32,
        f16,
        matrix,
        dispatch,
        cores,
        threading,
    } = model.rates;
    let giga = |rate: f64, unit: &str| format!("{:.4} {unit}", rate / 1e9);
    let mut facts = vec![
        fact("rates", model.origin.name()),
        fact("copy rate", giga(copy, "GB/s")),
        fact("f32 rate", giga(f32, "GFLOP/s")),
    ];
    if model.features.f16 {
        facts.push(fact("f16 rate", giga(f16, "GFLOP/s")));
    }
    if !model.features.cooperative.is_empty() {
        facts.push(fact("matrix rate", giga(matrix, "GFLOP/s")));
    }
    facts.extend([
        fact("kernel cost", format!("{:.2} us", dispatch * 1e6)),
        fact("cores", cores),
        fact("threads that keep a core busy", threading.busy),
        fact(
            "barrier cost of a thread",
            format!("{:.2} ns", threading.barrier * 1e9),
        ),
    ]);
    facts
}

/// The forms of kernels that an adapter runs: those that need no feature, then those that each feature adds.
fn kernel_facts(model: &DeviceModel) -> Vec<(String, String)> {
    let by_feature = forms::by_feature(model).into_iter();
    by_feature
        .map(|(feature, names)| match feature {
            None => fact("kernels", listed(names)),
            Some(feature) => fact(&format!("kernels with {feature}"), listed(names)),
        })
        .collect()
}

/// Joined by commas, or `none`.
fn listed(all: impl IntoIterator<Item = String>) -> String {
    match all.into_iter().collect::<Vec<_>>() {
        all if all.is_empty() => "none".into(),
        all => all.join(", "),
    }
}

fn vector_level(isa: cupola_cpu::isa::Isa) -> String {
    let extensions = [(isa.vnni(), ", vnni"), (isa.bf16(), ", bf16")];
    let own = extensions.iter().filter(|(there, _)| *there);
    let name = format!("{:?}", isa.level()).to_lowercase();
    own.fold(name, |text, (_, extension)| text + extension)
}

/// The optional features that are used.
fn features(gpu: &GpuDevice) -> Vec<String> {
    let DeviceFeatures {
        subgroups,
        timestamps,
        ..
    } = gpu.features();
    let name = |feature: &Optional| match (feature, subgroups) {
        (Optional::Subgroups, Some((least, most))) => format!("subgroups of {least} to {most}"),
        _ => feature.to_string(),
    };
    let timed = match timestamps {
        Timestamps::Absent => None,
        Timestamps::PassBoundary => Some("timestamps of passes".to_string()),
        Timestamps::Anywhere => Some("timestamps".to_string()),
    };
    gpu.findings().works.iter().map(name).chain(timed).collect()
}

/// The processor's name as the operating system knows it.
fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find_map(|l| l.strip_prefix("model name"));
    let name = line.map(|l| l.trim_start_matches([' ', '\t', ':']).to_string());
    name.unwrap_or_else(|| std::env::consts::ARCH.to_string())
}
