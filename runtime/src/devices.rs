//! The devices of this host. The only file that names backends.

use crate::error::{Result, RuntimeError};
use cupola_backend::Backend;
use cupola_cpu::CpuBackend;
use cupola_wgpu::adapter::{AdapterFeatures, AdapterKind, CoopShape, Timestamps};
use cupola_wgpu::{AdapterList, DeviceOptions, Tier, WgpuBackend};
use std::fmt;
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

/// Opened devices, shared by all programs of a process that are given the same host.
#[derive(Default)]
pub struct Host {
    cpus: Mutex<Vec<(usize, Arc<dyn Backend>)>>,
    gpus: Mutex<Vec<(usize, Arc<dyn Backend>)>>,
}

impl Host {
    /// No device is opened before it is asked for.
    pub fn new() -> Host {
        Host::default()
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

    fn gpu(&self, position: usize) -> Result<Arc<dyn Backend>> {
        let mut open = self.gpus.lock().unwrap_or_else(|e| e.into_inner());
        if let Some((_, b)) = open.iter().find(|(p, _)| *p == position) {
            return Ok(b.clone());
        }
        let device = DeviceSpec::Gpu(position).to_string();
        let options = gpu_options()?;
        let adapters = AdapterList::enumerate();
        let opened = adapters
            .get(position)
            .and_then(|a| WgpuBackend::open(a, &options, &device));
        let backend: Arc<dyn Backend> = match opened {
            Ok(b) => Arc::new(b),
            Err(e) => {
                return Err(RuntimeError::NoDevice {
                    device,
                    what: e.to_string(),
                });
            }
        };
        open.push((position, backend.clone()));
        Ok(backend)
    }
}

/// How GPUs are opened: the one place that reads `CUPOLA_GPU_TIER`.
fn gpu_options() -> Result<DeviceOptions> {
    let tier = Tier::from_environment().map_err(|e| RuntimeError::Setting(e.to_string()))?;
    Ok(DeviceOptions {
        tier,
        ..DeviceOptions::default()
    })
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

/// The CPU and every GPU adapter.
///
/// # Errors
/// [`RuntimeError::Setting`] where `CUPOLA_GPU_TIER` names no tier.
pub fn list_devices() -> Result<Vec<DeviceInfo>> {
    let options = gpu_options()?;
    let adapters = AdapterList::enumerate();
    let gpus = adapters.adapters().iter().map(|a| {
        let f = a.facts();
        let facts = vec![
            ("kind".to_string(), f.kind.name().to_string()),
            ("backend".into(), f.interface.name().to_string()),
            (
                "vendor".into(),
                format!("{} ({:#06x})", f.vendor, f.vendor_id),
            ),
            ("driver".into(), f.driver.clone()),
            ("largest buffer".into(), f.limits.buffer_size.to_string()),
            ("largest binding".into(), f.limits.binding_size.to_string()),
            (
                "storage buffers".into(),
                f.limits.storage_buffers.to_string(),
            ),
            (
                "workgroup memory".into(),
                f.limits.workgroup_memory_size.to_string(),
            ),
            (
                "workgroup threads".into(),
                f.limits.workgroup_threads.to_string(),
            ),
            ("features".into(), features(&f.features)),
            ("matrix units".into(), matrix_units(&f.features)),
            ("kernel tier".into(), options.tier.name().to_string()),
            (
                "refused".into(),
                f.refusal.clone().unwrap_or_else(|| "no".into()),
            ),
        ];
        DeviceInfo {
            spec: DeviceSpec::Gpu(f.index),
            name: f.name.clone(),
            facts,
        }
    });
    Ok(std::iter::once(processor()).chain(gpus).collect())
}

fn vector_level(isa: cupola_cpu::isa::Isa) -> String {
    let extensions = [(isa.vnni(), ", vnni"), (isa.bf16(), ", bf16")];
    let own = extensions.iter().filter(|(there, _)| *there);
    let name = format!("{:?}", isa.level()).to_lowercase();
    own.fold(name, |text, (_, extension)| text + extension)
}

/// The optional features that kernels know how to use, of those an adapter has.
fn features(f: &AdapterFeatures) -> String {
    let subgroups = f
        .subgroups
        .map(|(least, most)| format!("subgroups of {least} to {most}"));
    let timestamps = match f.timestamps {
        Timestamps::Absent => None,
        Timestamps::PassBoundary => Some("timestamps of passes".to_string()),
        Timestamps::Anywhere => Some("timestamps".to_string()),
    };
    let plain = [
        (f.f16, "f16"),
        (f.int64, "64-bit integers"),
        (f.int16, "16-bit integers"),
        (f.float_atomics, "float atomics"),
        (!f.cooperative.is_empty(), "cooperative matrices"),
        (f.pipeline_cache, "pipeline cache"),
        (f.mappable_storage, "mappable storage"),
    ];
    let plain = plain
        .iter()
        .filter(|(there, _)| *there)
        .map(|(_, n)| n.to_string());
    let all: Vec<String> = plain.chain(subgroups).chain(timestamps).collect();
    all.join(", ")
}

/// Shapes of the matrix products that an adapter's matrix units compute, as rows x columns x inner.
fn matrix_units(f: &AdapterFeatures) -> String {
    let one = |c: &CoopShape| {
        let (operand, result) = (c.operand.name(), c.result.name());
        format!("{}x{}x{} {operand} to {result}", c.rows, c.cols, c.inner)
    };
    match f.cooperative.iter().map(one).collect::<Vec<_>>() {
        all if all.is_empty() => "none".into(),
        all => all.join(", "),
    }
}

/// The processor's name as the operating system knows it.
fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find_map(|l| l.strip_prefix("model name"));
    let name = line.map(|l| l.trim_start_matches([' ', '\t', ':']).to_string());
    name.unwrap_or_else(|| std::env::consts::ARCH.to_string())
}
