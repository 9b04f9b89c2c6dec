//! Library kernels: a problem with its shapes and strides becomes a shader variant, its parameters and its workgroups.
//!
//! Choosing looks at lengths, strides and alignment only and costs a few comparisons, so it is done each time symbolic
//! shapes are bound; the compiled variant is found again in the device's cache.

use cupola_ir::BlockFormat;
use cupola_shaders::matmul::Accumulator;
use cupola_shaders::{Element, ParamSpace, Shader};

use crate::device::pipeline::Trust;
use crate::device::{DeviceFeatures, KernelSource, fold_groups};
use crate::error::Error;

pub mod attention;
pub mod claim;
mod contraction;
pub mod convolution;
pub mod forms;
pub mod matmul;
pub mod paged;
pub mod plans;
pub mod scatter;
pub mod sort;
pub mod unit;

/// One dispatch, not yet bound to buffers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LibraryCall {
    /// The kernel; its buffers are listed in [`Shader::bindings`].
    pub shader: Shader,
    /// Parameter words of the kernel itself. Those of its epilogue follow, in their order.
    pub params: Vec<u32>,
    /// Workgroups in all.
    pub groups: u64,
}

impl LibraryCall {
    /// Parameter words with those of the epilogue if this kernel ends with it, padded as the kernel expects them.
    pub fn params_with(&self, epilogue: &[u32]) -> Vec<u32> {
        let mut words = self.params.clone();
        words.extend_from_slice(epilogue);
        words.resize(self.shader.params_len() as usize, 0);
        words
    }

    /// Workgroups along x, y, z.
    ///
    /// # Errors
    /// [`Error::Limit`] for more than fit a dispatch.
    pub fn folded(&self, groups_per_axis: u32) -> Result<[u32; 3], Error> {
        fold_groups(self.groups, groups_per_axis)
    }
}

/// Where a step finds a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Argument of the whole program, by position.
    Argument(usize),
    /// Scratch memory of the program, by position.
    Scratch(usize),
    /// The codebook of a format, which the device holds.
    Book(BlockFormat),
    /// The device's word for faults.
    Faults,
}

/// Several dispatches in order, with memory of their own between them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LibraryProgram {
    /// The dispatches, each with its buffers.
    pub steps: Vec<(LibraryCall, Vec<Place>)>,
    /// Bytes of each scratch buffer.
    pub scratch: Vec<u64>,
}

impl LibraryProgram {
    /// A program of one dispatch whose buffers are the arguments in order.
    pub fn one(call: LibraryCall) -> Self {
        let places = (0..call.shader.bindings.len())
            .map(Place::Argument)
            .collect();
        Self {
            steps: vec![(call, places)],
            scratch: Vec::new(),
        }
    }
}

/// The source of a library kernel for a device.
pub fn kernel_source(shader: &Shader, features: &DeviceFeatures) -> KernelSource {
    let params_len = shader.params_len();
    let params_in = if params_len * 4 <= features.immediate_size {
        ParamSpace::Immediate
    } else {
        ParamSpace::Uniform
    };
    KernelSource {
        label: shader.label.clone(),
        text: shader.wgsl(params_in),
        bindings: shader
            .bindings
            .iter()
            .flat_map(|binding| std::iter::repeat_n(binding.access, binding.windows.count as usize))
            .collect(),
        params_len,
        params_in,
        trust: Trust::Generated,
    }
}

/// The type that products of two element types are summed in, where the caller does not say.
fn accumulator_of(lhs: Element, rhs: Element) -> Accumulator {
    match (lhs.value_type(), rhs.value_type()) {
        ("f32", _) | (_, "f32") => Accumulator::F32,
        ("u32", "u32") => Accumulator::U32,
        _ => Accumulator::I32,
    }
}

/// A length as a parameter word.
fn word(what: &'static str, value: u64) -> Result<u32, Error> {
    u32::try_from(value).map_err(|_| Error::Limit {
        what,
        needed: value,
        allowed: u64::from(u32::MAX),
    })
}

/// A stride or offset as a two's complement parameter word. Index arithmetic in kernels wraps modulo 2^32, so only
/// the final index has to be in range, and a binding never holds 2^32 elements.
fn stride(value: i64) -> u32 {
    value as u32
}

/// The smaller distance, where a length of one has none.
fn closeness(len: u64, stride: i64) -> u64 {
    if len <= 1 {
        u64::MAX
    } else {
        stride.unsigned_abs()
    }
}
