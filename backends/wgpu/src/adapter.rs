//! GPU adapters: which are installed and what each can do.
//!
//! Facts only. Opening an adapter is [`GpuDevice::open`](crate::GpuDevice::open).

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::Error;

/// The graphics interface an adapter is reached through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interface {
    /// Vulkan 1.x.
    Vulkan,
    /// Apple Metal.
    Metal,
    /// Direct3D 12.
    Dx12,
    /// Anything else wgpu may offer.
    Other,
}

impl Interface {
    /// Lower-case name for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vulkan => "vulkan",
            Self::Metal => "metal",
            Self::Dx12 => "dx12",
            Self::Other => "other",
        }
    }
}

/// What kind of hardware an adapter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AdapterKind {
    /// A card with memory of its own.
    Discrete,
    /// Shares memory with the CPU.
    Integrated,
    /// A slice of a card given to a virtual machine.
    Virtual,
    /// The driver does not say.
    Unknown,
    /// A driver that computes on the CPU (lavapipe, SwiftShader, WARP).
    Software,
}

impl AdapterKind {
    /// Lower-case name for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Discrete => "discrete",
            Self::Integrated => "integrated",
            Self::Virtual => "virtual",
            Self::Unknown => "unknown",
            Self::Software => "software",
        }
    }
}

/// Element type of a cooperative matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CoopScalar {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// 32-bit signed integer.
    I32,
    /// 32-bit unsigned integer.
    U32,
}

impl CoopScalar {
    /// WGSL name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::I32 => "i32",
            Self::U32 => "u32",
        }
    }
}

/// One shape of matrix product that the adapter's matrix units compute: `[rows, inner] x [inner, cols]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoopShape {
    /// Rows of the left operand and of the result.
    pub rows: u32,
    /// Columns of the right operand and of the result.
    pub cols: u32,
    /// Contracted length.
    pub inner: u32,
    /// Type of both operands.
    pub operand: CoopScalar,
    /// Type of accumulator and result.
    pub result: CoopScalar,
}

impl std::fmt::Display for CoopShape {
    /// As rows x columns x inner, operands to result.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (operand, result) = (self.operand.name(), self.result.name());
        let Self {
            rows, cols, inner, ..
        } = self;
        write!(f, "{rows}x{cols}x{inner} {operand} to {result}")
    }
}

impl CoopShape {
    /// True for the shapes WGSL can name: square tiles of 8 or 16 with float elements.
    pub fn in_wgsl(self) -> bool {
        let float = |s| matches!(s, CoopScalar::F32 | CoopScalar::F16);
        self.rows == self.cols
            && self.cols == self.inner
            && matches!(self.rows, 8 | 16)
            && float(self.operand)
            && float(self.result)
    }
}

/// Where a timestamp may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timestamps {
    /// Nowhere.
    Absent,
    /// At the beginning and the end of a pass.
    PassBoundary,
    /// Between any two dispatches.
    Anywhere,
}

/// Optional features that the kernels of this crate know how to use.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterFeatures {
    /// 16-bit float arithmetic and storage (`enable f16`).
    pub f16: bool,
    /// Smallest and largest subgroup size, where subgroup operations exist. The driver picks a size in between.
    pub subgroups: Option<(u32, u32)>,
    /// 64-bit integers.
    pub int64: bool,
    /// 16-bit integers.
    pub int16: bool,
    /// Addition of 32-bit floats in memory.
    pub float_atomics: bool,
    /// Matrix products on matrix units; empty without them.
    pub cooperative: Vec<CoopShape>,
    /// Device-side time measurement.
    pub timestamps: Timestamps,
    /// Bytes of parameters passed inside a command; 0 without the feature.
    pub immediate_size: u32,
    /// Compiled pipelines can be stored and given back.
    pub pipeline_cache: bool,
    /// Storage buffers can be mapped by the CPU.
    pub mappable_storage: bool,
}

/// The limits that decide how kernels are cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterLimits {
    /// Largest buffer, bytes.
    pub buffer_size: u64,
    /// Largest range of a buffer one kernel argument may see, bytes.
    pub binding_size: u64,
    /// Storage buffers one kernel may use.
    pub storage_buffers: u32,
    /// Memory shared by a workgroup, bytes.
    pub workgroup_memory_size: u32,
    /// Threads of a workgroup.
    pub workgroup_threads: u32,
    /// Workgroups along one axis of a dispatch.
    pub groups_per_axis: u32,
    /// Alignment of a storage binding's offset, bytes.
    pub storage_alignment: u32,
    /// Alignment of a parameter block's offset, bytes.
    pub uniform_alignment: u32,
}

impl AdapterLimits {
    pub(crate) fn of(limits: &wgpu::Limits) -> Self {
        Self {
            buffer_size: limits.max_buffer_size,
            binding_size: limits.max_storage_buffer_binding_size,
            storage_buffers: limits.max_storage_buffers_per_shader_stage,
            workgroup_memory_size: limits.max_compute_workgroup_storage_size,
            workgroup_threads: limits.max_compute_invocations_per_workgroup,
            groups_per_axis: limits.max_compute_workgroups_per_dimension,
            storage_alignment: limits.min_storage_buffer_offset_alignment,
            uniform_alignment: limits.min_uniform_buffer_offset_alignment,
        }
    }
}

/// Everything known about an adapter before it is opened.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterFacts {
    /// Position in [`AdapterList`], the N of `gpu:N`.
    pub index: usize,
    /// The driver's name for it.
    pub name: String,
    /// PCI vendor number, or another registry's.
    pub vendor_id: u32,
    /// Name of the vendor where known, else `unknown`.
    pub vendor: &'static str,
    /// PCI device number.
    pub device_id: u32,
    /// How it is reached.
    pub interface: Interface,
    /// What it is.
    pub kind: AdapterKind,
    /// Driver name and version, as the driver words them.
    pub driver: String,
    /// Largest sizes.
    pub limits: AdapterLimits,
    /// Optional features.
    pub features: AdapterFeatures,
    /// Why it cannot be used, if so.
    pub refusal: Option<String>,
}

/// An adapter that can be opened.
#[derive(Debug, Clone)]
pub struct Adapter {
    pub(crate) handle: wgpu::Adapter,
    facts: AdapterFacts,
}

impl Adapter {
    /// What it is and can do.
    pub fn facts(&self) -> &AdapterFacts {
        &self.facts
    }
}

/// The adapters of this machine, real hardware first.
#[derive(Debug)]
pub struct AdapterList {
    adapters: Vec<Adapter>,
}

impl AdapterList {
    /// Asks every graphics interface of this machine. No adapter at all is an empty list, not an error.
    pub fn enumerate() -> Self {
        // A broken driver makes wgpu panic here on some machines; such a machine simply has no GPU for us.
        let handles = catch_unwind(AssertUnwindSafe(|| {
            let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
            descriptor.backends =
                wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
            descriptor.flags = wgpu::InstanceFlags::empty();
            let instance = wgpu::Instance::new(descriptor);
            pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()))
        }))
        .unwrap_or_else(|_| {
            tracing::warn!("a graphics driver failed while adapters were listed; no GPU is used");
            Vec::new()
        });
        let mut adapters: Vec<Adapter> = handles
            .into_iter()
            .map(|handle| Adapter {
                facts: facts_of(&handle),
                handle,
            })
            .collect();
        adapters.sort_by_key(|adapter| (adapter.facts.refusal.is_some(), adapter.facts.kind));
        for (index, adapter) in adapters.iter_mut().enumerate() {
            adapter.facts.index = index;
        }
        Self { adapters }
    }

    /// All of them, the preferred one first.
    pub fn adapters(&self) -> &[Adapter] {
        &self.adapters
    }

    /// The adapter `gpu:INDEX`.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] if there is none with that index.
    pub fn get(&self, index: usize) -> Result<&Adapter, Error> {
        self.adapters.get(index).ok_or(Error::NoAdapter {
            index,
            count: self.adapters.len(),
        })
    }
}

fn facts_of(adapter: &wgpu::Adapter) -> AdapterFacts {
    let info = adapter.get_info();
    let limits = adapter.limits();
    let mut driver = info.driver.clone();
    if !info.driver_info.is_empty() {
        driver = format!("{driver} {}", info.driver_info).trim().to_owned();
    }
    AdapterFacts {
        index: 0,
        vendor: vendor_name(info.vendor),
        vendor_id: info.vendor,
        device_id: info.device,
        interface: match info.backend {
            wgpu::Backend::Vulkan => Interface::Vulkan,
            wgpu::Backend::Metal => Interface::Metal,
            wgpu::Backend::Dx12 => Interface::Dx12,
            _ => Interface::Other,
        },
        kind: match info.device_type {
            wgpu::DeviceType::DiscreteGpu => AdapterKind::Discrete,
            wgpu::DeviceType::IntegratedGpu => AdapterKind::Integrated,
            wgpu::DeviceType::VirtualGpu => AdapterKind::Virtual,
            wgpu::DeviceType::Cpu => AdapterKind::Software,
            wgpu::DeviceType::Other => AdapterKind::Unknown,
        },
        driver,
        features: features_of(adapter, &info, &limits),
        refusal: refusal(adapter, &limits),
        limits: AdapterLimits::of(&limits),
        name: info.name,
    }
}

fn features_of(
    adapter: &wgpu::Adapter,
    info: &wgpu::AdapterInfo,
    limits: &wgpu::Limits,
) -> AdapterFeatures {
    use wgpu::Features;
    let features = adapter.features();
    let has = |feature| features.contains(feature);
    let cooperative = if has(Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        adapter
            .cooperative_matrix_properties()
            .iter()
            .map(coop_shape)
            .collect()
    } else {
        Vec::new()
    };
    AdapterFeatures {
        f16: has(Features::SHADER_F16),
        subgroups: has(Features::SUBGROUP)
            .then_some((info.subgroup_min_size, info.subgroup_max_size)),
        int64: has(Features::SHADER_INT64),
        int16: has(Features::SHADER_I16),
        float_atomics: has(Features::SHADER_FLOAT32_ATOMIC),
        cooperative,
        timestamps: match (
            has(Features::TIMESTAMP_QUERY),
            has(Features::TIMESTAMP_QUERY_INSIDE_PASSES),
        ) {
            (false, _) => Timestamps::Absent,
            (true, false) => Timestamps::PassBoundary,
            (true, true) => Timestamps::Anywhere,
        },
        immediate_size: if has(Features::IMMEDIATES) {
            limits.max_immediate_size
        } else {
            0
        },
        pipeline_cache: has(Features::PIPELINE_CACHE),
        mappable_storage: has(Features::MAPPABLE_PRIMARY_BUFFERS),
    }
}

fn coop_shape(properties: &wgpu::CooperativeMatrixProperties) -> CoopShape {
    let scalar = |kind| match kind {
        wgpu::CooperativeScalarType::F32 => CoopScalar::F32,
        wgpu::CooperativeScalarType::F16 => CoopScalar::F16,
        wgpu::CooperativeScalarType::I32 => CoopScalar::I32,
        wgpu::CooperativeScalarType::U32 => CoopScalar::U32,
    };
    CoopShape {
        rows: properties.m_size,
        cols: properties.n_size,
        inner: properties.k_size,
        operand: scalar(properties.ab_type),
        result: scalar(properties.cr_type),
    }
}

/// Why no kernel can run there: WebGPU's default limits are what every kernel is written for.
fn refusal(adapter: &wgpu::Adapter, limits: &wgpu::Limits) -> Option<String> {
    if !adapter
        .get_downlevel_capabilities()
        .flags
        .contains(wgpu::DownlevelFlags::COMPUTE_SHADERS)
    {
        return Some("it has no compute shaders".to_owned());
    }
    let mut missing = None;
    wgpu::Limits::default().check_limits_with_fail_fn(limits, true, |name, wanted, offered| {
        missing = Some(format!(
            "its {name} is {offered}, below the {wanted} that every kernel may use"
        ));
    });
    missing
}

fn vendor_name(id: u32) -> &'static str {
    // PCI-SIG numbers, and Khronos' own above 0x10000.
    match id {
        0x1002 => "AMD",
        0x106b => "Apple",
        0x10de => "NVIDIA",
        0x13b5 => "Arm",
        0x1414 => "Microsoft",
        0x14e4 => "Broadcom",
        0x1010 => "Imagination",
        0x1ae0 => "Google",
        0x5143 => "Qualcomm",
        0x8086 => "Intel",
        0x10005 => "Mesa",
        _ => "unknown",
    }
}
