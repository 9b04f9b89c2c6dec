//! Sorting against the host's stable sort.

mod common;

use std::cmp::Ordering;

use common::{Random, run_program};
use cupola_shaders::sort::KeyKind;
use cupola_wgpu::library::sort::{RowAxis, Sort};
use cupola_wgpu::{DeviceModel, GpuDevice, Tier};
use half::{bf16, f16};

/// One element type: how it is stored, and how two raw values compare.
struct Kind {
    name: &'static str,
    bits: u32,
    kind: KeyKind,
    compare: fn(u64, u64) -> Ordering,
    special: &'static [u64],
}

/// NaN above everything, zeros equal.
fn floats(a: f32, b: f32) -> Ordering {
    a.partial_cmp(&b)
        .unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

const KINDS: [Kind; 8] = [
    Kind {
        name: "f32",
        bits: 32,
        kind: KeyKind::Float {
            infinity: 0x7f80_0000,
        },
        compare: |a, b| floats(f32::from_bits(a as u32), f32::from_bits(b as u32)),
        special: &[
            0,
            0x8000_0000,
            0x7f80_0000,
            0xff80_0000,
            0x7fc0_0000,
            0xffc0_0001,
            1,
            0x8000_0001,
        ],
    },
    Kind {
        name: "f16",
        bits: 16,
        kind: KeyKind::Float { infinity: 0x7c00 },
        compare: |a, b| {
            floats(
                f16::from_bits(a as u16).to_f32(),
                f16::from_bits(b as u16).to_f32(),
            )
        },
        special: &[0, 0x8000, 0x7c00, 0xfc00, 0x7e00, 0xfe00, 1, 0x8001],
    },
    Kind {
        name: "bf16",
        bits: 16,
        kind: KeyKind::Float { infinity: 0x7f80 },
        compare: |a, b| {
            floats(
                bf16::from_bits(a as u16).to_f32(),
                bf16::from_bits(b as u16).to_f32(),
            )
        },
        special: &[0, 0x8000, 0x7f80, 0xff80, 0x7fc0, 0xffc0, 1, 0x8001],
    },
    Kind {
        name: "i32",
        bits: 32,
        kind: KeyKind::Signed,
        compare: |a, b| (a as i32).cmp(&(b as i32)),
        special: &[0, 0x8000_0000, 0x7fff_ffff, 0xffff_ffff],
    },
    Kind {
        name: "u32",
        bits: 32,
        kind: KeyKind::Unsigned,
        compare: |a, b| (a as u32).cmp(&(b as u32)),
        special: &[0, 0x8000_0000, 0x7fff_ffff, 0xffff_ffff],
    },
    Kind {
        name: "i8",
        bits: 8,
        kind: KeyKind::Signed,
        compare: |a, b| (a as i8).cmp(&(b as i8)),
        special: &[0x80],
    },
    Kind {
        name: "i64",
        bits: 64,
        kind: KeyKind::Signed,
        compare: |a, b| (a as i64).cmp(&(b as i64)),
        special: &[0, 1 << 63, (1 << 63) - 1, u64::MAX, 1 << 32, 0xffff_ffff],
    },
    Kind {
        name: "u64",
        bits: 64,
        kind: KeyKind::Unsigned,
        compare: |a, b| a.cmp(&b),
        special: &[0, 1 << 63, (1 << 63) - 1, u64::MAX, 1 << 32, 0xffff_ffff],
    },
];

fn pack(values: &[u64], bits: u32) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes()[..bits as usize / 8].to_vec())
        .collect()
}

fn unpack(bytes: &[u8], bits: u32) -> Vec<u64> {
    let size = bits as usize / 8;
    let value = |piece: &[u8]| {
        piece
            .iter()
            .rev()
            .fold(0, |value, &byte| value << 8 | u64::from(byte))
    };
    bytes.chunks_exact(size).map(value).collect()
}

/// Sorts `[outer, len, inner]` along the middle axis, with few distinct values and the special ones among them.
fn check(device: &GpuDevice, kind: &Kind, descending: bool, [outer, len, inner]: [usize; 3]) {
    let mut random = Random::new((outer * 31 + len * 7 + inner) as u64);
    let mask = u64::MAX >> (64 - kind.bits);
    let data: Vec<u64> = (0..outer * len * inner)
        .map(|_| match random.below(4) {
            0 => kind.special[random.below(kind.special.len() as u32) as usize],
            1 => u64::from(random.below(5)),
            _ => (u64::from(random.bits()) << 33 | u64::from(random.bits()) << 2) & mask,
        })
        .collect();
    let mut values = vec![0; data.len()];
    let mut positions = vec![0; data.len()];
    for o in 0..outer {
        for i in 0..inner {
            let at = |p: usize| (o * len + p) * inner + i;
            let mut order: Vec<usize> = (0..len).collect();
            order.sort_by(|&a, &b| {
                let order = (kind.compare)(data[at(a)], data[at(b)]);
                if descending { order.reverse() } else { order }
            });
            for (place, &from) in order.iter().enumerate() {
                values[at(place)] = data[at(from)];
                positions[at(place)] = from as u64;
            }
        }
    }
    let (len_step, outer_step) = (inner as i64, (len * inner) as i64);
    let problem = Sort {
        bits: kind.bits,
        kind: kind.kind,
        descending,
        len: len as u64,
        source_offset: 0,
        source_step: len_step,
        sink_step: len_step,
        rows: vec![
            RowAxis {
                len: outer as u64,
                source: outer_step,
                sink: outer_step,
            },
            RowAxis {
                len: inner as u64,
                source: 1,
                sink: 1,
            },
        ],
    };
    let program = problem.plan(&device.model()).expect("plans");
    let source = pack(&data, kind.bits);
    let arguments: [&[u8]; 3] = [&source, &vec![0; source.len()], &vec![0; data.len() * 8]];
    let what = format!(
        "{} descending {descending} {outer}x{len}x{inner}",
        kind.name
    );
    let got = unpack(&run_program(device, &program, &arguments, 2), 64);
    assert_eq!(got, positions, "{what}: positions");
    let got = unpack(&run_program(device, &program, &arguments, 1), kind.bits);
    assert_eq!(got, values, "{what}: values");
}

#[test]
fn short_rows_of_every_type() {
    for device in common::devices() {
        for kind in &KINDS {
            for shape in [
                [1, 1, 1],
                [3, 7, 1],
                [2, 5, 3],
                [1, 128, 1],
                [2, 129, 2],
                [1, 1024, 1],
            ] {
                check(&device, kind, false, shape);
                check(&device, kind, true, shape);
            }
        }
    }
}

#[test]
fn long_rows() {
    let Some(device) = common::device(Tier::Full) else {
        return;
    };
    for kind in [&KINDS[0], &KINDS[1], &KINDS[6]] {
        for shape in [[1, 1025, 1], [2, 2048, 1], [2, 5000, 2], [1, 40_000, 1]] {
            check(&device, kind, kind.bits == 32, shape);
        }
    }
}

#[test]
fn empty_and_refused() {
    let Some(device) = common::device(Tier::Base) else {
        return;
    };
    check(&device, &KINDS[0], false, [3, 0, 2]);
    check(&device, &KINDS[0], false, [0, 4, 2]);
    check(&device, &KINDS[0], false, [0, 4000, 2]);
    let problem = Sort {
        bits: 32,
        kind: KeyKind::Signed,
        descending: false,
        len: 1 << 40,
        source_offset: 0,
        source_step: 1,
        sink_step: 1,
        rows: vec![],
    };
    assert!(problem.plan(&DeviceModel::default()).is_err());
    let rows = vec![RowAxis {
        len: 1 << 20,
        source: 0,
        sink: 1 << 12,
    }];
    assert!(
        Sort {
            len: 1 << 12,
            rows,
            ..problem
        }
        .plan(&DeviceModel::default())
        .is_err()
    );
}
