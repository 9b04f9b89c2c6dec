//! Devices known by name, to predict what they would do without having one.
//!
//! Rates are those of data sheets, bandwidths times 0.9: what a copy can reach. Features and limits are what their drivers
//! offered through wgpu in 2025.

use crate::adapter::{AdapterLimits, CoopScalar, CoopShape, Timestamps};
use crate::choice::{DeviceModel, Rates, Threading};
use crate::device::DeviceFeatures;

/// A line of the table of devices.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Known {
    /// Name, lower case.
    pub name: &'static str,
    /// Memory bandwidth of the data sheet, GB/s.
    bandwidth: f64,
    /// Operations per second in f32, in f16, and in f16 by matrix units, each in units of 1e12.
    operations: [f64; 3],
    /// Multiprocessors, compute units or cores.
    cores: u32,
    /// Smallest and largest subgroup.
    subgroups: (u32, u32),
    /// Side of the matrices that WGSL can give its matrix units; 0 for none.
    matrix_side: u32,
    /// Workgroup memory, KiB.
    workgroup_memory: u32,
}

const fn line(
    name: &'static str,
    (bandwidth, operations): (f64, [f64; 3]),
    (cores, subgroups): (u32, (u32, u32)),
    (matrix_side, workgroup_memory): (u32, u32),
) -> Known {
    Known {
        name,
        bandwidth,
        operations,
        cores,
        subgroups,
        matrix_side,
        workgroup_memory,
    }
}

/// The devices.
pub const KNOWN: &[Known] = &[
    line(
        "h200",
        (4800.0, [66.9, 133.8, 989.0]),
        (132, (32, 32)),
        (16, 48),
    ),
    line(
        "a100",
        (2039.0, [19.5, 78.0, 312.0]),
        (108, (32, 32)),
        (16, 48),
    ),
    line(
        "rtx-4090",
        (1008.0, [82.6, 82.6, 165.2]),
        (128, (32, 32)),
        (16, 48),
    ),
    line(
        "rx-7900-xtx",
        (960.0, [61.4, 122.8, 122.8]),
        (96, (32, 64)),
        (16, 64),
    ),
    line(
        "arc-a770",
        (560.0, [19.7, 39.3, 157.0]),
        (32, (8, 32)),
        (16, 64),
    ),
    line(
        "m2-max",
        (400.0, [13.6, 13.6, 13.6]),
        (38, (32, 32)),
        (8, 32),
    ),
];

/// The model of a known device, with all its optional features or, as `base`, with none and the default limits of WebGPU.
/// `None` for a name that is not in the table.
pub fn known(name: &str, base: bool) -> Option<DeviceModel> {
    let of = KNOWN.iter().find(|known| known.name == name)?;
    let [f32, f16, matrix] = of.operations.map(|rate| rate * 1e12);
    let rates = Rates {
        copy: of.bandwidth * 0.9e9,
        f32,
        f16,
        matrix,
        dispatch: 3e-6,
        cores: of.cores,
        threading: Threading::GPU,
    };
    let plain = DeviceModel {
        rates,
        ..DeviceModel::default()
    };
    if base {
        return Some(plain);
    }
    let shape = |result| CoopShape {
        rows: of.matrix_side,
        cols: of.matrix_side,
        inner: of.matrix_side,
        operand: CoopScalar::F16,
        result,
    };
    let shapes = [CoopScalar::F16, CoopScalar::F32].map(shape);
    Some(DeviceModel {
        features: DeviceFeatures {
            f16: true,
            subgroups: Some(of.subgroups),
            int64: true,
            cooperative: (shapes.into_iter())
                .filter(|shape| shape.in_wgsl())
                .collect(),
            timestamps: Timestamps::Anywhere,
            immediate_size: 128,
        },
        limits: AdapterLimits {
            buffer_size: 2 << 30,
            binding_size: (2 << 30) - 4,
            storage_buffers: 16,
            workgroup_memory_size: of.workgroup_memory << 10,
            workgroup_threads: 1024,
            ..plain.limits
        },
        ..plain
    })
}

#[cfg(test)]
mod tests {
    use super::{KNOWN, known};

    #[test]
    fn known_devices_have_features_that_the_base_lacks() {
        for device in KNOWN {
            let full = known(device.name, false).expect("is in the table");
            let base = known(device.name, true).expect("is in the table");
            assert!(full.features.f16 && !full.features.cooperative.is_empty());
            assert!(!base.features.f16 && base.features.cooperative.is_empty());
            assert_eq!(full.rates, base.rates);
        }
        assert_eq!(known("abacus", false), None);
    }
}
