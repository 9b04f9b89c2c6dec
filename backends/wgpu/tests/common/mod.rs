//! Devices for tests. Without an adapter a test says so and passes, unless `CUPOLA_TEST_REQUIRE_GPU=1`.
#![allow(dead_code)]

use cupola_wgpu::device::{Command, Dispatch, KernelSource, ParamSpace, ShaderChecks};
use cupola_wgpu::{AdapterList, DeviceOptions, GpuDevice, Tier};

/// Every tier of the first adapter; empty without an adapter.
pub fn devices() -> Vec<GpuDevice> {
    [Tier::Base, Tier::Full]
        .iter()
        .filter_map(|&tier| device(tier))
        .collect()
}

/// The first adapter with `tier` and every run-time check, or none.
pub fn device(tier: Tier) -> Option<GpuDevice> {
    open(&DeviceOptions {
        tier,
        checks: ShaderChecks::Full,
        memory_budget: None,
    })
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
