//! What is known of an opened device for choosing between kernels.
//!
//! Features and limits are facts; rates are typical of the adapter's kind until they are measured
//! ([`GpuDevice::learn`](crate::GpuDevice::learn)). Rates decide between kernels that are all right, so a wrong one costs
//! time, never a result. Where kernels were timed on the problem itself, [`Choices`] say which was the fastest.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::adapter::{AdapterKind, AdapterLimits, CoopScalar, CoopShape, Timestamps};
use crate::device::{DeviceFeatures, Forms};

/// A device as the choice of kernels sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceModel {
    /// Optional features it was opened with.
    pub features: DeviceFeatures,
    /// Limits it was opened with.
    pub limits: AdapterLimits,
    /// How fast it is.
    pub rates: Rates,
    /// Which forms of kernels it runs.
    pub forms: Forms,
    /// Whose figures the rates are.
    pub origin: Origin,
    /// What timing kernels on their problems decided.
    pub choices: Arc<Choices>,
}

/// Where rates come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Data sheets of adapters of the same kind and vendor.
    Typical,
    /// Measurements of this adapter with this driver.
    Measured,
}

impl Origin {
    /// Lower-case name for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Typical => "typical",
            Self::Measured => "measured",
        }
    }
}

/// Plans by class of problem (`library::plans`) that were the fastest when they were timed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Choices {
    plans: BTreeMap<String, String>,
    revision: u64,
}

impl Choices {
    /// The plan of a class, if one was decided on.
    pub fn plan(&self, class: &str) -> Option<&str> {
        self.plans.get(class).map(String::as_str)
    }

    /// Decides on a plan.
    pub fn set(&mut self, class: &str, plan: &str) {
        self.plans.insert(class.to_owned(), plan.to_owned());
        self.revision += 1;
    }

    /// Whether nothing was decided.
    pub fn is_empty(&self) -> bool {
        self.plans.is_empty()
    }

    /// Grows with every decision.
    pub fn revision(&self) -> u64 {
        self.revision
    }
}

/// How fast a device is at each kind of work.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Bytes read and written by a plain copy, per second.
    pub copy: f64,
    /// 32-bit float operations per second; a multiply-add is two.
    pub f32: f64,
    /// 16-bit float operations per second outside matrix units.
    pub f16: f64,
    /// Operations per second of the matrix units on 16-bit floats summed in 32 bits.
    pub matrix: f64,
    /// Seconds that a dispatch takes beside its work, when it waits for the one before.
    pub dispatch: f64,
    /// Parts that run workgroups side by side (streaming multiprocessors, compute units, cores).
    pub cores: u32,
    /// What threads cost that wait for each other, or read apart from each other.
    pub threading: Threading,
}

/// How a core runs many threads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threading {
    /// Threads of a core that hide its latencies.
    pub busy: u32,
    /// Seconds of a core for each thread that meets a barrier.
    pub barrier: f64,
    /// How many times as long memory takes where neighbouring threads read from lines of their own.
    pub apart: f64,
}

impl Threading {
    /// Cores that switch between threads at no cost, and read whole lines for neighbours.
    pub const GPU: Self = Self {
        busy: 1024,
        barrier: 1e-11,
        apart: 4.0,
    };

    /// A processor's cores: threads are lanes of vectors and turns of a loop, at a barrier all of them are put away.
    pub const PROCESSOR: Self = Self {
        busy: 256,
        barrier: 1e-8,
        apart: 1.0,
    };
}

impl Rates {
    /// Figures of a middling adapter of this kind and vendor, from data sheets of 2020 to 2025.
    pub fn typical(kind: AdapterKind, vendor: &str) -> Self {
        let of = |copy: f64, f32: f64, f16: f64, matrix: f64, cores: u32| Self {
            copy: copy * 1e9,
            f32: f32 * 1e12,
            f16: f16 * 1e12,
            matrix: matrix * 1e12,
            dispatch: 5e-6,
            cores,
            threading: Threading::GPU,
        };
        match (kind, vendor) {
            (AdapterKind::Software, _) => Self {
                dispatch: 1e-5,
                threading: Threading::PROCESSOR,
                ..of(5.0, 0.006, 0.006, 0.003, 2)
            },
            (_, "Apple") => of(180.0, 5.0, 5.0, 6.0, 16),
            (AdapterKind::Integrated, "AMD") => of(90.0, 5.0, 10.0, 12.0, 12),
            (AdapterKind::Integrated, _) => of(60.0, 2.0, 4.0, 4.0, 8),
            (_, "NVIDIA") => of(600.0, 25.0, 25.0, 80.0, 60),
            (_, "AMD") => of(550.0, 25.0, 50.0, 80.0, 50),
            (_, "Intel") => of(450.0, 14.0, 28.0, 80.0, 28),
            _ => of(200.0, 5.0, 5.0, 10.0, 16),
        }
    }
}

impl Default for DeviceModel {
    /// A device of unknown make with WebGPU's default limits and no optional feature.
    fn default() -> Self {
        Self {
            features: DeviceFeatures {
                f16: false,
                subgroups: None,
                int64: false,
                cooperative: Vec::new(),
                timestamps: Timestamps::Absent,
                immediate_size: 0,
            },
            limits: AdapterLimits::of(&wgpu::Limits::default()),
            rates: Rates::typical(AdapterKind::Unknown, "unknown"),
            forms: Forms::Chosen,
            origin: Origin::Typical,
            choices: Arc::default(),
        }
    }
}

impl DeviceModel {
    /// Workgroups that keep every core busy: two each, so that one computes while the other loads.
    pub fn busy_groups(&self) -> u64 {
        2 * u64::from(self.rates.cores)
    }

    /// Threads that keep every core busy.
    pub fn busy_threads(&self) -> u64 {
        u64::from(self.rates.threading.busy) * u64::from(self.rates.cores)
    }

    /// Whether products of f16 can run on matrix units that sum in f32. Other units multiply them no faster than f32 here.
    pub fn multiplies_halves(&self) -> bool {
        let sums = |shape: &CoopShape| {
            (shape.operand, shape.result) == (CoopScalar::F16, CoopScalar::F32) && shape.in_wgsl()
        };
        let known = self.features.f16 && self.subgroup_size().is_some();
        known && self.features.cooperative.iter().any(sums)
    }

    /// The subgroup size, where the device has subgroup operations and but one size.
    pub fn subgroup_size(&self) -> Option<u32> {
        let (least, most) = self.features.subgroups?;
        (least == most).then_some(least)
    }
}

/// The units that compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    /// 32-bit floats and integers.
    F32,
    /// Matrix units.
    Matrix,
}

/// What a dispatch does, as far as its time depends on it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// Bytes that come from memory or go there.
    pub bytes: f64,
    /// Bytes that are read again, from a cache that the cores share.
    pub cached: f64,
    /// Operations, those on the padding of tiles included; a multiply-add is two.
    pub operations: f64,
    /// What computes them.
    pub arithmetic: Arithmetic,
    /// Share of the peak that the kernel's inner loop can reach.
    pub share: f64,
    /// Workgroups.
    pub groups: f64,
    /// Threads of a workgroup.
    pub threads: f64,
}

/// How much faster than memory the cache is that the cores share: 2 to 4 on the cards of 2020 to 2025.
const CACHE_FACTOR: f64 = 3.0;

/// Threads of a core that hide the latency of memory, and of arithmetic.
const MEMORY_THREADS: f64 = 512.0;
const ARITHMETIC_THREADS: f64 = 128.0;

impl DeviceModel {
    /// Predicted seconds of a dispatch: the slower of memory and arithmetic, each at the rate that its workgroups, spread
    /// evenly over the cores, can draw; and the dispatch itself.
    pub fn seconds(&self, work: &Work) -> f64 {
        let cores = f64::from(self.rates.cores.max(1));
        let rounds = (work.groups / cores).ceil().max(1.0);
        // The last round of workgroups leaves cores idle; a core with several at a time averages that out.
        let balance = work.groups.max(1.0) / (rounds * cores);
        let resident = rounds * work.threads;
        let filled = |threads: f64| balance * (resident / threads).min(1.0);
        let rate = match work.arithmetic {
            Arithmetic::F32 => self.rates.f32,
            Arithmetic::Matrix => self.rates.matrix,
        };
        let memory = (work.bytes + work.cached / CACHE_FACTOR) / self.rates.copy;
        let arithmetic = work.operations / (rate * work.share);
        let memory = memory / filled(MEMORY_THREADS);
        let arithmetic = arithmetic / filled(ARITHMETIC_THREADS);
        self.rates.dispatch + memory.max(arithmetic)
    }
}
