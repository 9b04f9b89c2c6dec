//! Compiled kernels: WGSL text in, a pipeline out, each text compiled once.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use cupola_shaders::check::check_kernel;
pub use cupola_shaders::{Access, ParamSpace};
use rustc_hash::FxHashMap;

use cupola_backend::{Keeper, Key};

use super::buffer::BufferRange;
use super::inject::Mishap;
use super::optional::identity;
use super::reuse::BindKey;
use super::{GpuDevice, ShaderChecks, lock, one_line};
use crate::adapter::AdapterFacts;
use crate::error::Error;

/// Who vouches for a kernel's indices and loops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Trust {
    /// Nobody: wgpu's run-time checks stay on.
    Foreign,
    /// Our generator: every index is in range or clamped, every loop ends, every divisor is guarded.
    Generated,
}

/// A kernel before it is compiled.
///
/// The entry point is `main`. Buffers are `@group(0) @binding(i)` in the order of `bindings`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KernelSource {
    /// Name for messages and traces.
    pub label: String,
    /// The WGSL text.
    pub text: String,
    /// Use of each buffer.
    pub bindings: Vec<Access>,
    /// Number of `u32` parameters; 0 for a kernel without.
    pub params_len: u32,
    /// Where the parameters are.
    pub params_in: ParamSpace,
    /// Who vouches for the text.
    pub trust: Trust,
}

/// A compiled kernel.
#[derive(Debug)]
pub struct Pipeline {
    pub(super) handle: wgpu::ComputePipeline,
    pub(super) layout: wgpu::BindGroupLayout,
    pub(super) source: Arc<KernelSource>,
}

impl Pipeline {
    /// What it was compiled from.
    pub fn source(&self) -> &KernelSource {
        &self.source
    }
}

/// The buffers of a dispatch, checked against a pipeline. Can be used in any number of submissions, with that pipeline or
/// another that uses its buffers the same way; keeps the memory alive.
#[derive(Debug, Clone)]
pub struct Bindings {
    pub(super) handle: wgpu::BindGroup,
    pub(super) accesses: Arc<[Access]>,
}

type Slot = Arc<Mutex<Option<Arc<Pipeline>>>>;

/// Pipelines by source. The lock of a slot is held while it compiles, so that one text is compiled once and different
/// texts compile at the same time.
#[derive(Debug, Default)]
pub(super) struct PipelineCache {
    slots: Mutex<FxHashMap<Arc<KernelSource>, Slot>>,
    layouts: Mutex<FxHashMap<Vec<Access>, wgpu::BindGroupLayout>>,
    kept: Option<KeptPipelines>,
}

/// What the driver made of kernels, for later processes.
#[derive(Debug)]
struct KeptPipelines {
    handle: wgpu::PipelineCache,
    keeper: Arc<dyn Keeper>,
    key: Key,
    /// Whether a kernel was compiled since it was last kept.
    changed: AtomicBool,
}

impl PipelineCache {
    /// With what earlier processes compiled for this adapter and driver, where the device can be given that.
    pub(super) fn new(
        device: &wgpu::Device,
        facts: &AdapterFacts,
        keeper: Option<&Arc<dyn Keeper>>,
    ) -> Self {
        let able = device.features().contains(wgpu::Features::PIPELINE_CACHE);
        let keeper = keeper.filter(|_| able);
        let kept = keeper.map(|keeper| {
            let key = Key::of(&("pipelines of wgpu 30", identity(facts)));
            let data = keeper.find(key);
            let descriptor = wgpu::PipelineCacheDescriptor {
                label: Some("cupola"),
                data: data.as_deref(),
                fallback: true,
            };
            // SAFETY: the data came from `get_data` of the same adapter and driver, as the key says, and the keeper
            // gives back whole pieces only; wgpu looks at the driver's own header too, and starts empty where that
            // does not fit.
            let handle = unsafe { device.create_pipeline_cache(&descriptor) };
            KeptPipelines {
                handle,
                keeper: Arc::clone(keeper),
                key,
                changed: AtomicBool::new(false),
            }
        });
        Self {
            kept,
            ..Self::default()
        }
    }

    /// Keeps what was compiled since the last time.
    pub(super) fn keep(&self) {
        let Some(kept) = &self.kept else { return };
        if kept.changed.swap(false, Ordering::Relaxed)
            && let Some(data) = kept.handle.get_data()
        {
            kept.keeper.keep(kept.key, data.into());
        }
    }
}

impl GpuDevice {
    /// The compiled form of `source`; compiled now, unless this device compiled the same text before.
    ///
    /// # Errors
    /// [`Error::Shader`] with the compiler's message, [`Error::Limit`] for more buffers or parameters than the device
    /// allows, [`Error::Lost`] if the driver died over it.
    pub fn pipeline(&self, source: &KernelSource) -> Result<Arc<Pipeline>, Error> {
        let slot = {
            let mut slots = lock(&self.pipelines.slots);
            match slots.get(source) {
                Some(slot) => Arc::clone(slot),
                None => Arc::clone(slots.entry(Arc::new(source.clone())).or_default()),
            }
        };
        let mut place = lock(&slot);
        if let Some(pipeline) = &*place {
            return Ok(Arc::clone(pipeline));
        }
        let pipeline = Arc::new(self.compile(source)?);
        *place = Some(Arc::clone(&pipeline));
        Ok(pipeline)
    }

    /// Number of kernels compiled and kept.
    pub fn pipelines_len(&self) -> usize {
        lock(&self.pipelines.slots)
            .values()
            .filter(|slot| lock(slot).is_some())
            .count()
    }

    fn compile(&self, source: &KernelSource) -> Result<Pipeline, Error> {
        self.check_interface(source)?;
        if self.injector.strikes(Mishap::Pipeline) {
            return Err(Error::Shader {
                label: source.label.clone(),
                message: "a failure was ordered".to_owned(),
            });
        }
        if self.translate {
            check_kernel(&source.text).map_err(|error| Error::Shader {
                label: source.label.clone(),
                message: one_line(&error.to_string()),
            })?;
        }
        let started = std::time::Instant::now();
        let layout = self.bind_group_layout(&source.bindings)?;
        let uniform = source.params_len > 0 && source.params_in == ParamSpace::Uniform;
        let built = self.scoped("kernel", || {
            let module = self.shader_module(source);
            let groups = [Some(&layout), uniform.then(|| self.params.layout())];
            let pipeline_layout =
                self.device
                    .create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                        label: None,
                        bind_group_layouts: if uniform { &groups } else { &groups[..1] },
                        immediate_size: if uniform { 0 } else { source.params_len * 4 },
                    });
            self.device
                .create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                    label: Some(&source.label),
                    layout: Some(&pipeline_layout),
                    module: &module,
                    entry_point: Some("main"),
                    compilation_options: wgpu::PipelineCompilationOptions {
                        constants: &[],
                        // Every kernel here writes workgroup memory before it reads it.
                        zero_initialize_workgroup_memory: source.trust == Trust::Foreign,
                    },
                    cache: self.pipelines.kept.as_ref().map(|kept| &kept.handle),
                })
        });
        let handle = built.map_err(|error| match error {
            Error::Refused { message, .. } => Error::Shader {
                label: source.label.clone(),
                message,
            },
            other => other,
        })?;
        if let Some(kept) = &self.pipelines.kept {
            kept.changed.store(true, Ordering::Relaxed);
        }
        tracing::debug!(
            kernel = source.label,
            micros = started.elapsed().as_micros() as u64,
            "compiled"
        );
        Ok(Pipeline {
            handle,
            layout,
            source: Arc::new(source.clone()),
        })
    }

    fn check_interface(&self, source: &KernelSource) -> Result<(), Error> {
        let buffers = source.bindings.len() as u64;
        let allowed = u64::from(self.limits().storage_buffers);
        if buffers > allowed {
            return Err(Error::Limit {
                what: "a kernel's buffers, each tensor over the binding limit counted by windows",
                needed: buffers,
                allowed,
            });
        }
        let needed = u64::from(source.params_len) * 4;
        let allowed = match source.params_in {
            ParamSpace::Uniform => super::submit::LARGEST_PARAMS,
            ParamSpace::Immediate => u64::from(self.features().immediate_size),
        };
        if needed > allowed {
            return Err(Error::Limit {
                what: "a kernel's parameters",
                needed,
                allowed,
            });
        }
        Ok(())
    }

    fn shader_module(&self, source: &KernelSource) -> wgpu::ShaderModule {
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(&source.label),
            source: wgpu::ShaderSource::Wgsl(source.text.as_str().into()),
        };
        match (source.trust, self.checks) {
            (Trust::Foreign, _) | (_, ShaderChecks::Full) => {
                self.device.create_shader_module(descriptor)
            }
            (Trust::Generated, ShaderChecks::Trusted) => {
                let checks = wgpu::ShaderRuntimeChecks {
                    int_div_checks: true,
                    ..wgpu::ShaderRuntimeChecks::unchecked()
                };
                // SAFETY: `Trust::Generated` is given only by this crate's generators, which bound every loop and
                // keep every index inside its buffer; the test suite runs the same kernels with all checks on.
                unsafe { self.device.create_shader_module_trusted(descriptor, checks) }
            }
        }
    }

    fn bind_group_layout(&self, accesses: &[Access]) -> Result<wgpu::BindGroupLayout, Error> {
        if let Some(layout) = lock(&self.pipelines.layouts).get(accesses) {
            return Ok(layout.clone());
        }
        let entries: Vec<_> = (0u32..)
            .zip(accesses)
            .map(|(binding, &access)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage {
                        read_only: access == Access::Read,
                    },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let layout = self.scoped("kernel interface", || {
            self.device
                .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                    label: None,
                    entries: &entries,
                })
        })?;
        lock(&self.pipelines.layouts).insert(accesses.to_vec(), layout.clone());
        Ok(layout)
    }

    /// The buffers of a dispatch of `pipeline`, in binding order; a range above the binding limit takes as many bindings as
    /// it has windows. The same ranges used the same way are bound once.
    ///
    /// # Errors
    /// [`Error::Range`] for a wrong number of buffers or windows, or a buffer bound both for reading alone and for writing
    /// (WebGPU forbids that even where the ranges are apart).
    pub fn bind(&self, pipeline: &Pipeline, ranges: &[BufferRange<'_>]) -> Result<Bindings, Error> {
        let accesses = &pipeline.source.bindings;
        let windows = ranges.iter().map(|range| range.windows().count as usize);
        let windows: usize = windows.sum();
        if windows != accesses.len() {
            return Err(bind_error(
                pipeline,
                format!(
                    "takes {} buffers, got {windows}, those over the binding limit counted by windows",
                    accesses.len()
                ),
            ));
        }
        let key = BindKey {
            accesses: accesses.clone(),
            ranges: ranges
                .iter()
                .map(|range| (range.buffer.number, range.offset, range.size))
                .collect(),
        };
        if let Some(bindings) = self.bound.find(&key) {
            return Ok(bindings);
        }
        let bindings = self.bind_anew(pipeline, ranges)?;
        self.bound.insert(key, &bindings);
        Ok(bindings)
    }

    fn bind_anew(
        &self,
        pipeline: &Pipeline,
        ranges: &[BufferRange<'_>],
    ) -> Result<Bindings, Error> {
        let accesses = &pipeline.source.bindings;
        let mut bound: Vec<(u64, wgpu::BufferBinding<'_>)> = Vec::with_capacity(accesses.len());
        for range in ranges {
            bound.extend(
                range
                    .bindings()
                    .map(|binding| (range.buffer.number, binding)),
            );
        }
        for (position, ((buffer, _), access)) in bound.iter().zip(accesses).enumerate() {
            let clash = bound[..position]
                .iter()
                .zip(accesses)
                .position(|((other, _), used)| {
                    other == buffer && (*used == Access::Read) != (*access == Access::Read)
                });
            if let Some(other) = clash {
                let mut reason = String::new();
                let _ = write!(
                    reason,
                    "arguments {other} and {position} are one buffer, read in one and written in the other"
                );
                return Err(bind_error(pipeline, reason));
            }
        }
        let entries: Vec<_> = (0u32..)
            .zip(bound)
            .map(|(binding, (_, resource))| wgpu::BindGroupEntry {
                binding,
                resource: wgpu::BindingResource::Buffer(resource),
            })
            .collect();
        let handle = self.scoped("kernel arguments", || {
            self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &pipeline.layout,
                entries: &entries,
            })
        })?;
        Ok(Bindings {
            handle,
            accesses: accesses.as_slice().into(),
        })
    }
}

fn bind_error(pipeline: &Pipeline, reason: String) -> Error {
    Error::Range {
        what: "kernel arguments",
        reason: one_line(&format!("kernel `{}`: {reason}", pipeline.source.label)),
    }
}
