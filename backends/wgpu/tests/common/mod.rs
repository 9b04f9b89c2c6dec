//! Devices for tests. Without an adapter a test says so and passes, unless `CUPOLA_TEST_REQUIRE_GPU=1`.
#![allow(dead_code)]

pub mod units;

use bytes::Bytes;
use cupola_backend::{Keeper, Key};
use cupola_shaders::element::Element;
use cupola_wgpu::adapter::AdapterKind;
use cupola_wgpu::device::{Command, Dispatch, KernelSource, ParamSpace, ShaderChecks};
use cupola_wgpu::library::{LibraryCall, LibraryProgram, Place, kernel_source};
use cupola_wgpu::{
    AdapterList, Attempt, DeviceOptions, Forms, GpuDevice, Prober, Tier, WgpuBackend, try_out,
};
use half::{bf16, f16};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Backends of both tiers that run the kernels of GPUs; empty without an adapter.
pub fn backends() -> Vec<WgpuBackend> {
    let both = [Tier::Base, Tier::Full].into_iter();
    both.filter_map(|tier| backend(tier, Forms::Parallel))
        .collect()
}

/// The backend that runs plain forms; none without an adapter.
pub fn plain_backend() -> Option<WgpuBackend> {
    backend(Tier::Full, Forms::Plain)
}

fn backend(tier: Tier, forms: Forms) -> Option<WgpuBackend> {
    let list = AdapterList::enumerate();
    let Some(adapter) = list.adapters().first() else {
        assert!(open(&DeviceOptions::default()).is_none());
        return None;
    };
    let options = DeviceOptions {
        tier,
        forms,
        checks: ShaderChecks::Full,
        ..DeviceOptions::default()
    };
    Some(WgpuBackend::open(adapter, &options, "gpu").expect("the adapter opens"))
}

/// Every tier of the first adapter; empty without an adapter.
pub fn devices() -> Vec<GpuDevice> {
    [Tier::Base, Tier::Full]
        .iter()
        .filter_map(|&tier| device(tier))
        .collect()
}

/// Every tier of the first adapter, the experimental one too.
pub fn all_devices() -> Vec<GpuDevice> {
    let mut all = devices();
    all.extend(device(Tier::Experimental));
    all
}

/// The first adapter with `tier` and every run-time check, or none.
pub fn device(tier: Tier) -> Option<GpuDevice> {
    open(&DeviceOptions {
        tier,
        checks: ShaderChecks::Full,
        ..DeviceOptions::default()
    })
}

/// The first adapter with its matrix units, or none with a message. Software adapters are known to survive them at
/// subgroups of eight only.
pub fn matrix_device() -> Option<GpuDevice> {
    let device = open(&DeviceOptions {
        prober: Some(Arc::new(ThisProcess)),
        checks: ShaderChecks::Full,
        ..DeviceOptions::default()
    })?;
    let usable = !device.features().cooperative.is_empty();
    if !usable {
        eprintln!("no matrix units here: nothing checked");
    }
    usable.then_some(device)
}

/// Tries features in this process, where that is safe.
#[derive(Debug)]
struct ThisProcess;

impl Prober for ThisProcess {
    fn probe(&self, adapter: usize) -> Result<Attempt, String> {
        let list = AdapterList::enumerate();
        let adapter = list.adapters().get(adapter).ok_or("no such adapter")?;
        let facts = adapter.facts();
        if facts.kind == AdapterKind::Software && facts.features.subgroups != Some((8, 8)) {
            return Err("software of another subgroup size".to_owned());
        }
        let mut text = Vec::new();
        try_out(adapter, &mut text).map_err(|error| error.to_string())?;
        Ok(Attempt {
            text: String::from_utf8_lossy(&text).into_owned(),
            cut: None,
        })
    }
}

/// Keeps pieces for as long as the test runs.
#[derive(Debug, Default)]
pub struct Kept(pub Mutex<HashMap<Key, Bytes>>);

impl Keeper for Kept {
    fn find(&self, key: Key) -> Option<Bytes> {
        self.0.lock().expect("pieces").get(&key).cloned()
    }

    fn keep(&self, key: Key, bytes: Bytes) {
        self.0.lock().expect("pieces").insert(key, bytes);
    }
}

/// The first adapter, or none with a message.
pub fn open(options: &DeviceOptions) -> Option<GpuDevice> {
    let list = AdapterList::enumerate();
    match list.adapters().first() {
        Some(adapter) => Some(GpuDevice::open(adapter, options).expect("the adapter opens")),
        None => {
            let required = std::env::var("CUPOLA_TEST_REQUIRE_GPU").is_ok_and(|v| v == "1");
            assert!(
                !required,
                "CUPOLA_TEST_REQUIRE_GPU=1, but there is no adapter"
            );
            eprintln!("no GPU adapter here: nothing checked");
            None
        }
    }
}

/// Runs `source` once over `buffers` (each given as bytes) and returns all of them afterwards.
pub fn run(
    device: &GpuDevice,
    source: &KernelSource,
    params: &[u32],
    groups: [u32; 3],
    buffers: &[&[u8]],
) -> Vec<Vec<u8>> {
    let pipeline = device.pipeline(source).expect("compiles");
    let held: Vec<_> = buffers
        .iter()
        .map(|bytes| device.allocate_with(bytes).expect("allocates"))
        .collect();
    let ranges: Vec<_> = held.iter().map(|buffer| buffer.whole()).collect();
    let bindings = device.bind(&pipeline, &ranges).expect("binds");
    let dispatch = Dispatch {
        pipeline: &pipeline,
        bindings: &bindings,
        params,
        groups,
    };
    device
        .submit(&[Command::Dispatch(dispatch)])
        .expect("submits");
    held.iter()
        .map(|buffer| {
            let mut bytes = vec![0; buffer.size() as usize];
            device.download(buffer, 0, &mut bytes).expect("downloads");
            bytes
        })
        .collect()
}

/// Both ways to pass parameters that `device` has.
pub fn param_spaces(device: &GpuDevice) -> Vec<ParamSpace> {
    match device.features().immediate_size {
        0 => vec![ParamSpace::Uniform],
        _ => vec![ParamSpace::Uniform, ParamSpace::Immediate],
    }
}

/// Runs a library kernel over `buffers` and returns the one at `result`.
pub fn run_library(
    device: &GpuDevice,
    call: &LibraryCall,
    epilogue_params: &[u32],
    buffers: &[&[u8]],
    result: usize,
) -> Vec<u8> {
    let source = kernel_source(&call.shader, device.features());
    let groups = call
        .folded(device.limits().groups_per_axis)
        .expect("fits a dispatch");
    let params = call.params_with(epilogue_params);
    run(device, &source, &params, groups, buffers).swap_remove(result)
}

/// Small pseudo-random numbers, the same in every run.
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 32 bits.
    pub fn bits(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    /// Below `limit`.
    pub fn below(&mut self, limit: u32) -> u32 {
        self.bits() % limit
    }

    /// Between -1 and 1.
    pub fn unit(&mut self) -> f32 {
        self.bits() as f32 / (1u32 << 30) as f32 - 1.0
    }

    /// As many values between -1 and 1.
    pub fn units(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.unit()).collect()
    }
}

/// `values` as stored with `element`, and what a kernel reads from there.
pub fn stored(values: &[f32], element: Element) -> (Vec<u8>, Vec<f32>) {
    match element {
        Element::F32 => (bytemuck::cast_slice(values).to_vec(), values.to_vec()),
        Element::F16 => {
            let halves: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
            (
                bytemuck::cast_slice(&halves).to_vec(),
                halves.iter().map(|h| h.to_f32()).collect(),
            )
        }
        Element::Bf16 => {
            let halves: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
            (
                bytemuck::cast_slice(&halves).to_vec(),
                halves.iter().map(|h| h.to_f32()).collect(),
            )
        }
        Element::I8 => {
            let bytes: Vec<i8> = values.iter().map(|&v| (v * 127.0) as i8).collect();
            (
                bytemuck::cast_slice(&bytes).to_vec(),
                bytes.iter().map(|&v| f32::from(v)).collect(),
            )
        }
        Element::U8 => {
            let bytes: Vec<u8> = values.iter().map(|&v| (v.abs() * 255.0) as u8).collect();
            (bytes.clone(), bytes.iter().map(|&v| f32::from(v)).collect())
        }
        Element::I32 => {
            let words: Vec<i32> = values.iter().map(|&v| (v * 1000.0) as i32).collect();
            (
                bytemuck::cast_slice(&words).to_vec(),
                words.iter().map(|&v| v as f32).collect(),
            )
        }
        other => panic!("no test data of {other:?}"),
    }
}

/// Bytes stored with `element` as numbers.
pub fn loaded(bytes: &[u8], element: Element) -> Vec<f32> {
    let pairs = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    let words = || bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
    match element {
        Element::F32 => words().map(f32::from_le_bytes).collect(),
        Element::I32 => words().map(|w| i32::from_le_bytes(w) as f32).collect(),
        Element::F16 => pairs().map(|p| f16::from_le_bytes(p).to_f32()).collect(),
        Element::Bf16 => pairs().map(|p| bf16::from_le_bytes(p).to_f32()).collect(),
        other => panic!("no test results of {other:?}"),
    }
}

/// Relative rounding of a stored result.
pub fn rounding(element: Element) -> f32 {
    match element {
        Element::F16 => 1.0 / 1024.0,
        Element::Bf16 => 1.0 / 128.0,
        _ => 0.0,
    }
}

/// Same kind of number, and finite ones within `absolute + relative * |want|`.
pub fn assert_close(got: &[f32], want: &[f64], absolute: f64, relative: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    for (at, (&got, &want)) in got.iter().zip(want).enumerate() {
        let got = f64::from(got);
        let close = if want.is_finite() {
            got.is_finite() && (got - want).abs() <= absolute + relative * want.abs()
        } else {
            got == want || (got.is_nan() && want.is_nan())
        };
        assert!(close, "{what}: element {at} is {got}, should be {want}");
    }
}

/// Runs a library program over its arguments, given as bytes, and returns the one at `result`.
pub fn run_program(
    device: &GpuDevice,
    program: &LibraryProgram,
    arguments: &[&[u8]],
    result: usize,
) -> Vec<u8> {
    run_program_with(device, program, &[], arguments, result)
}

/// As [`run_program`], with the parameter words of an epilogue.
pub fn run_program_with(
    device: &GpuDevice,
    program: &LibraryProgram,
    epilogue_params: &[u32],
    arguments: &[&[u8]],
    result: usize,
) -> Vec<u8> {
    let held: Vec<_> = arguments
        .iter()
        .map(|bytes| device.allocate_with(bytes).expect("allocates"))
        .collect();
    let scratch: Vec<_> = program
        .scratch
        .iter()
        .map(|&size| device.allocate(size).expect("allocates"))
        .collect();
    let steps: Vec<_> = program
        .steps
        .iter()
        .map(|(call, places)| {
            let pipeline = device
                .pipeline(&kernel_source(&call.shader, device.features()))
                .expect("compiles");
            let ranges: Vec<_> = places
                .iter()
                .map(|place| match place {
                    Place::Argument(n) => held[*n].whole(),
                    Place::Scratch(n) => scratch[*n].whole(),
                    Place::Book(format) => device.book(*format).expect("a codebook").whole(),
                    Place::Faults => panic!("nothing here reports faults"),
                })
                .collect();
            let bindings = device.bind(&pipeline, &ranges).expect("binds");
            let groups = call
                .folded(device.limits().groups_per_axis)
                .expect("fits a dispatch");
            (
                pipeline,
                bindings,
                call.params_with(epilogue_params),
                groups,
            )
        })
        .collect();
    let commands: Vec<_> = steps
        .iter()
        .map(|(pipeline, bindings, params, groups)| {
            Command::Dispatch(Dispatch {
                pipeline,
                bindings,
                params,
                groups: *groups,
            })
        })
        .collect();
    device.submit(&commands).expect("submits");
    let mut bytes = vec![0; held[result].size() as usize];
    device
        .download(&held[result], 0, &mut bytes)
        .expect("downloads");
    bytes
}
