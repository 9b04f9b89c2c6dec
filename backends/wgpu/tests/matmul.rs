//! Matrix products against a sum in f64 on the host.

mod common;

use common::{Random, assert_close, loaded, rounding, run_program, run_program_with, stored};
use cupola_ir::BlockFormat;
use cupola_ir::convert::dequantize;
use cupola_shaders::binding::Binding;
use cupola_shaders::element::Element;
use cupola_shaders::matmul::MatmulForm;
use cupola_shaders::shader::Epilogue;
use cupola_shaders::skinny::Reduction;
use cupola_wgpu::library::matmul::{BatchAxis, InnerAxis, Matmul, Matrix, Plan, Reading};
use cupola_wgpu::library::plans::fastest;
use cupola_wgpu::{DeviceModel, GpuDevice, Tier};

/// Row-major unless told otherwise.
fn matrix(element: Element, rows: u64, cols: u64, transposed: bool) -> Matrix {
    let (row_stride, col_stride) = if transposed {
        (1, rows as i64)
    } else {
        (cols as i64, 1)
    };
    Matrix {
        element,
        offset: 0,
        row_stride,
        col_stride,
    }
}

fn plain(rows: u64, cols: u64, inner: u64) -> Matmul {
    Matmul {
        rows,
        cols,
        inner,
        inner_axes: vec![],
        batch: vec![],
        lhs: matrix(Element::F32, rows, inner, false),
        rhs: matrix(Element::F32, inner, cols, false),
        out: matrix(Element::F32, rows, cols, false),
        readings: Default::default(),
        narrow: true,
        epilogue: Epilogue::default(),
    }
}

/// Highest index a strided walk reaches, plus one.
fn extent(offset: i64, axes: &[(u64, i64)]) -> usize {
    if axes.iter().any(|&(len, _)| len == 0) {
        return offset as usize;
    }
    let reach: i64 = axes
        .iter()
        .map(|&(len, stride)| (len as i64 - 1) * stride.max(0))
        .sum();
    (offset + reach + 1) as usize
}

fn batch_offsets(axes: &[BatchAxis]) -> Vec<(i64, i64, i64)> {
    let mut offsets = vec![(0, 0, 0)];
    for axis in axes {
        offsets = offsets
            .iter()
            .flat_map(|&(l, r, o)| {
                (0..axis.len as i64)
                    .map(move |i| (l + i * axis.lhs, r + i * axis.rhs, o + i * axis.out))
            })
            .collect();
    }
    offsets
}

/// Runs `problem` on random data and compares every element of the result buffer, those between strides included.
/// `finish(value, row, col, batch)` is what the epilogue computes.
fn check_with(
    device: &GpuDevice,
    problem: &Matmul,
    extra: &[Vec<u8>],
    words: &[u32],
    plans: &[Plan],
    finish: impl Fn(f64, usize, usize, usize) -> f64,
) {
    let Matmul {
        rows,
        cols,
        inner,
        batch,
        lhs,
        rhs,
        out,
        ..
    } = problem;
    let mut random = Random::new(rows * 7919 + cols * 31 + inner);
    let axes = |of: fn(&BatchAxis) -> i64| batch.iter().map(move |axis| (axis.len, of(axis)));
    let lhs_len = extent(
        lhs.offset,
        &axes(|b| b.lhs)
            .chain([(*rows, lhs.row_stride), (*inner, lhs.col_stride)])
            .collect::<Vec<_>>(),
    );
    let rhs_len = extent(
        rhs.offset,
        &axes(|b| b.rhs)
            .chain([(*inner, rhs.row_stride), (*cols, rhs.col_stride)])
            .collect::<Vec<_>>(),
    );
    let out_len = extent(
        out.offset,
        &axes(|b| b.out)
            .chain([(*rows, out.row_stride), (*cols, out.col_stride)])
            .collect::<Vec<_>>(),
    );
    let (lhs_bytes, left) = stored(&random.units(lhs_len), lhs.element);
    let (rhs_bytes, right) = stored(&random.units(rhs_len), rhs.element);
    let (out_bytes, untouched) = stored(&vec![0.5; out_len], out.element);

    let mut want: Vec<f64> = untouched.iter().map(|&v| f64::from(v)).collect();
    for (b, (l, r, o)) in batch_offsets(batch).into_iter().enumerate() {
        for row in 0..*rows as i64 {
            for col in 0..*cols as i64 {
                let sum: f64 = (0..*inner as i64)
                    .map(|k| {
                        let a = left
                            [(lhs.offset + l + row * lhs.row_stride + k * lhs.col_stride) as usize];
                        let c = right
                            [(rhs.offset + r + k * rhs.row_stride + col * rhs.col_stride) as usize];
                        f64::from(a) * f64::from(c)
                    })
                    .sum();
                let at = out.offset + o + row * out.row_stride + col * out.col_stride;
                want[at as usize] = finish(sum, row as usize, col as usize, b);
            }
        }
    }
    let mut buffers: Vec<&[u8]> = vec![&lhs_bytes, &rhs_bytes, &out_bytes];
    buffers.extend(extra.iter().map(Vec::as_slice));
    let exact = lhs.element.value_type() != "f32";
    let absolute = if exact {
        0.0
    } else {
        2e-7 * (*inner as f64 + 8.0)
    };
    let relative = f64::from(rounding(out.element)) + if exact { 0.0 } else { 1e-6 };
    for plan in plans {
        let program = problem.planned(plan).expect("is planned");
        let got = run_program_with(device, &program, words, &buffers, 2);
        let what = format!(
            "{:?} {} parts {rows}x{cols}x{inner} batch {batch:?}",
            plan.shader.form, plan.splits
        );
        assert_close(&loaded(&got, out.element), &want, absolute, relative, &what);
    }
}

/// Checks what is chosen.
fn check(device: &GpuDevice, problem: &Matmul) {
    let plans = [fastest(problem, &device.model()).expect("plans")];
    check_with(device, problem, &[], &[], &plans, |value, _, _, _| value);
}

/// Checks one plan of each kind, undivided and divided.
fn check_kinds(device: &GpuDevice, problem: &Matmul) {
    let plans = kinds(problem.plans(&device.model()).expect("plans"));
    check_with(device, problem, &[], &[], &plans, |value, _, _, _| value);
}

#[test]
fn every_form_and_division() {
    // Subgroups and matrix units come with the later tiers, all else is in the first too.
    for device in common::all_devices().into_iter().skip(1) {
        for (rows, cols, inner) in [(3, 70, 260), (41, 37, 130), (72, 3, 264)] {
            for rhs_transposed in [false, true] {
                for element in [Element::F32, Element::F16] {
                    check_kinds(
                        &device,
                        &Matmul {
                            lhs: matrix(element, rows, inner, rows == 41),
                            rhs: matrix(element, inner, cols, rhs_transposed),
                            ..plain(rows, cols, inner)
                        },
                    );
                }
            }
        }
    }
}

#[test]
fn operands_are_rounded_as_they_are_read() {
    for device in common::all_devices() {
        for rounded in [Element::F16, Element::Bf16] {
            for (rows, cols, inner) in [(2, 40, 36), (20, 36, 40)] {
                let problem = Matmul {
                    rhs: matrix(rounded, inner, cols, false),
                    readings: [Reading::Rounded(rounded), Reading::Stored],
                    ..plain(rows, cols, inner)
                };
                let mut random = Random::new(3);
                let left = random.units((rows * inner) as usize);
                let right = random.units((cols * inner) as usize);
                let (_, narrow) = stored(&left, rounded);
                let (right_bytes, right) = stored(&right, rounded);
                let mut want = Vec::new();
                for row in 0..rows as usize {
                    for col in 0..cols as usize {
                        let products = (0..inner as usize).map(|k| {
                            f64::from(narrow[row * inner as usize + k])
                                * f64::from(right[k * cols as usize + col])
                        });
                        want.push(products.sum::<f64>());
                    }
                }
                let left = bytemuck::cast_slice::<f32, u8>(&left);
                let out = vec![0; want.len() * 4];
                for plan in kinds(problem.plans(&device.model()).expect("plans")) {
                    let program = problem.planned(&plan).expect("is planned");
                    let got = run_program(&device, &program, &[left, &right_bytes, &out], 2);
                    let what = format!("{rounded:?} {:?}", plan.shader.form);
                    assert_close(&loaded(&got, Element::F32), &want, 1e-5, 1e-6, &what);
                }
            }
        }
    }
}

/// Blocks of ordinary size.
fn blocks(format: BlockFormat, len: usize) -> (Vec<u8>, Vec<f32>) {
    let mut random = Random::new(format.block_size() as u64);
    let (mut bytes, mut values) = (vec![], vec![]);
    let mut block = vec![0f32; format.block_len()];
    while values.len() < len {
        let codes: Vec<u8> = (0..format.block_size())
            .map(|_| random.bits() as u8)
            .collect();
        dequantize(format, &codes, &mut block).expect("one block");
        // Scales below the smallest normal number may be flushed.
        let is_ordinary = |x: &f32| x.is_finite() && x.abs() < 50.0;
        if block.iter().all(is_ordinary) && block.iter().any(|x| x.abs() > 0.01) {
            bytes.extend(&codes);
            values.extend(&block);
        }
    }
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    (bytes, values)
}

/// One plan of each kind, undivided and divided.
fn kinds(plans: Vec<Plan>) -> Vec<Plan> {
    let mut seen = Vec::new();
    let kind = |plan: &Plan| {
        let (form, is_tree) = match plan.shader.form {
            MatmulForm::Tiled(_) => (0, false),
            MatmulForm::Cooperative(_) => (1, false),
            MatmulForm::Skinny(skinny) => (2, skinny.reduction == Reduction::Tree),
            MatmulForm::Direct(_) => (3, false),
        };
        (form, is_tree, plan.splits > 1)
    };
    // The smaller kernels first.
    let mut plans = plans;
    plans.sort_by_key(|plan| plan.shader.group_rows() * plan.shader.group_cols());
    plans
        .into_iter()
        .filter(|plan| {
            let new = !seen.contains(&kind(plan));
            seen.push(kind(plan));
            new
        })
        .collect()
}

#[test]
fn block_quantised_weights_of_every_decoded_format() {
    // What the last tier lacks is that of the one before.
    for device in common::all_devices().into_iter().rev().take(1) {
        let formats = BlockFormat::TABLE.iter().map(|row| row.0);
        for format in formats {
            let inner = 512;
            for (rows, cols) in [(2, 13)] {
                let mut random = Random::new(rows);
                let left = random.units((rows * inner) as usize);
                let (right_bytes, right) = blocks(format, (cols * inner) as usize);
                let problem = Matmul {
                    lhs: matrix(Element::F32, rows, inner, false),
                    rhs: matrix(Element::U32, inner, cols, true),
                    readings: [Reading::Stored, Reading::Blocks(format)],
                    ..plain(rows, cols, inner)
                };
                let at = |row: u64| (row * inner) as usize..((row + 1) * inner) as usize;
                let mut want = Vec::new();
                for row in 0..rows {
                    for col in 0..cols {
                        let pairs = left[at(row)].iter().zip(&right[at(col)]);
                        want.push(pairs.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum());
                    }
                }
                let scale = want.iter().fold(0.0, |max: f64, x: &f64| max.max(x.abs()));
                let left = bytemuck::cast_slice::<f32, u8>(&left);
                let out = vec![0; want.len() * 4];
                let plans = problem.plans(&device.model()).expect("plans");
                for plan in kinds(plans) {
                    let program = problem.planned(&plan).expect("is planned");
                    let got = run_program(&device, &program, &[left, &right_bytes, &out], 2);
                    let what = format!("{format:?} {rows} rows {:?}", plan.shader.form);
                    assert_close(
                        &loaded(&got, Element::F32),
                        &want,
                        4e-6 * scale,
                        1e-5,
                        &what,
                    );
                }
            }
        }
    }
}

#[test]
fn shapes_of_every_size() {
    for device in common::devices() {
        for (rows, cols, inner) in [
            (1, 1, 1),
            (1, 7, 3),
            (1, 64, 256),
            (2, 33, 65),
            (3, 5, 1),
            (8, 130, 40),
            (9, 9, 9),
            (33, 31, 17),
            (64, 64, 64),
            (65, 3, 100),
            (200, 1, 77),
            (100, 70, 129),
        ] {
            check(&device, &plain(rows, cols, inner));
        }
    }
}

#[test]
fn large_tiles() {
    let Some(device) = common::device(Tier::Full) else {
        return;
    };
    for (rows, cols, inner, tile) in [
        (260, 140, 20, "128x128"),
        (259, 139, 9, "128x128"),
        (140, 133, 33, "64x64"),
    ] {
        let problem = plain(rows, cols, inner);
        let mut plans = problem.plans(&device.model()).expect("plans");
        plans.retain(|plan| plan.shader.shader().label.contains(tile));
        assert!(!plans.is_empty());
        check_with(&device, &problem, &[], &[], &plans, |value, _, _, _| value);
    }
}

#[test]
fn empty_axes() {
    let Some(device) = common::device(Tier::Base) else {
        return;
    };
    check(&device, &plain(5, 6, 0));
    check(&device, &plain(20, 60, 0));
    check(&device, &plain(0, 6, 4));
    check(&device, &plain(6, 0, 4));
    let batch = vec![BatchAxis {
        len: 0,
        lhs: 4,
        rhs: 4,
        out: 4,
    }];
    check(
        &device,
        &Matmul {
            batch,
            ..plain(2, 2, 2)
        },
    );
}

#[test]
fn transposed_operands() {
    let Some(device) = common::device(Tier::Full) else {
        return;
    };
    for (rows, cols, inner) in [
        (40, 44, 36),
        (41, 43, 37),
        (4, 64, 48),
        (3, 61, 47),
        (64, 4, 48),
        (700, 5, 33),
    ] {
        for lhs_transposed in [false, true] {
            for rhs_transposed in [false, true] {
                for out_transposed in [false, true] {
                    check(
                        &device,
                        &Matmul {
                            lhs: matrix(Element::F32, rows, inner, lhs_transposed),
                            rhs: matrix(Element::F32, inner, cols, rhs_transposed),
                            out: matrix(Element::F32, rows, cols, out_transposed),
                            ..plain(rows, cols, inner)
                        },
                    );
                }
            }
        }
    }
}

#[test]
fn batches_with_broadcast_and_gaps() {
    let Some(device) = common::device(Tier::Full) else {
        return;
    };
    for (rows, cols, inner) in [(20, 24, 28), (3, 17, 9), (13, 2, 40)] {
        let (l, r, o) = (
            (rows * inner) as i64,
            (inner * cols) as i64,
            (rows * cols) as i64,
        );
        let axis = |len, lhs, rhs, out| BatchAxis { len, lhs, rhs, out };
        for batch in [
            vec![axis(3, l, r, o)],
            vec![axis(3, 0, r, o)],
            vec![axis(3, l, 0, o)],
            vec![axis(2, 3 * l, 3 * r, 3 * o), axis(3, l, r, o)],
            vec![axis(2, l, 0, 3 * o), axis(3, 0, r, o)],
            vec![
                axis(2, 0, r, 12 * o),
                axis(1, 5, 5, 5),
                axis(4, l, 0, 3 * o),
                axis(3, 0, 2 * r, o),
            ],
        ] {
            check(
                &device,
                &Matmul {
                    batch,
                    ..plain(rows, cols, inner)
                },
            );
        }
    }
    // Offsets and row gaps, one of them negative: rows of the left operand taken backwards.
    let gaps = Matmul {
        lhs: Matrix {
            element: Element::F32,
            offset: 3 + 19 * 31,
            row_stride: -31,
            col_stride: 2,
        },
        rhs: Matrix {
            element: Element::F32,
            offset: 7,
            row_stride: 50,
            col_stride: 3,
        },
        out: Matrix {
            element: Element::F32,
            offset: 1,
            row_stride: 40,
            col_stride: 2,
        },
        ..plain(20, 15, 14)
    };
    let mut padded = gaps.clone();
    padded.lhs.offset = 3;
    padded.lhs.row_stride = 31;
    check(&device, &padded);
    let mut random = Random::new(5);
    let left = random.units(3 + 20 * 31);
    let right = random.units(7 + 14 * 50);
    let bytes = |v: &[f32]| bytemuck::cast_slice::<f32, u8>(v).to_vec();
    let run = |problem: &Matmul| {
        let program = problem.plan(&device.model()).expect("plans");
        let out = run_program(
            &device,
            &program,
            &[&bytes(&left), &bytes(&right), &vec![0; 4 * 801]],
            2,
        );
        loaded(&out, Element::F32)
    };
    let (forward, backward) = (run(&padded), run(&gaps));
    for row in 0..20 {
        for col in 0..15 {
            assert_eq!(
                forward[1 + (19 - row) * 40 + col * 2],
                backward[1 + row * 40 + col * 2]
            );
        }
    }
}

#[test]
fn several_contracted_axes() {
    let Some(device) = common::device(Tier::Full) else {
        return;
    };
    // Rows of the left operand are 3 x 5 blocks of a larger plane; the right operand holds them in the other order.
    for (rows, cols) in [(4, 6), (20, 40), (40, 3)] {
        let axis = |len, lhs, rhs| InnerAxis { len, lhs, rhs };
        let problem = Matmul {
            inner_axes: vec![axis(3, 10, 1), axis(5, 1, 3)],
            lhs: Matrix {
                element: Element::F32,
                offset: 2,
                row_stride: 30,
                col_stride: 0,
            },
            rhs: Matrix {
                element: Element::F32,
                offset: 1,
                row_stride: 0,
                col_stride: 15,
            },
            ..plain(rows, cols, 15)
        };
        let mut random = Random::new(rows);
        let (left, right) = (
            random.units(30 * rows as usize),
            random.units(15 * cols as usize + 1),
        );
        let mut want = Vec::new();
        for r in 0..rows as usize {
            for c in 0..cols as usize {
                let sum = (0..15).map(|k| {
                    let (i, j) = (k / 5, k % 5);
                    f64::from(left[2 + r * 30 + i * 10 + j])
                        * f64::from(right[1 + c * 15 + i + j * 3])
                });
                want.push(sum.sum::<f64>());
            }
        }
        let program = problem.plan(&device.model()).expect("plans");
        let out = vec![0; want.len() * 4];
        let bytes = |v: &[f32]| bytemuck::cast_slice::<f32, u8>(v).to_vec();
        let got = run_program(&device, &program, &[&bytes(&left), &bytes(&right), &out], 2);
        assert_close(
            &loaded(&got, Element::F32),
            &want,
            1e-5,
            1e-6,
            "several axes",
        );
    }
}

#[test]
fn too_many_batch_axes_are_refused() {
    let batch = (0..16)
        .map(|i| BatchAxis {
            len: 2,
            lhs: i % 2,
            rhs: 1 - i % 2,
            out: i,
        })
        .collect();
    assert!(
        Matmul {
            batch,
            ..plain(2, 2, 2)
        }
        .plan(&DeviceModel::default())
        .is_err()
    );
    assert!(plain(1 << 40, 2, 2).plan(&DeviceModel::default()).is_err());
    let batch = vec![
        BatchAxis {
            len: 1 << 40,
            lhs: 0,
            rhs: 0,
            out: 0
        };
        2
    ];
    assert!(
        Matmul {
            batch,
            ..plain(2, 2, 2)
        }
        .plan(&DeviceModel::default())
        .is_err()
    );
}

#[test]
fn narrow_storage() {
    for device in common::devices() {
        for lhs in [Element::F32, Element::F16, Element::Bf16] {
            for rhs in [Element::F16, Element::Bf16] {
                for (rows, cols, inner) in [(20, 36, 40), (21, 35, 41), (2, 68, 64), (3, 67, 33)] {
                    for rhs_transposed in [false, true] {
                        check(
                            &device,
                            &Matmul {
                                lhs: matrix(lhs, rows, inner, false),
                                rhs: matrix(rhs, inner, cols, rhs_transposed),
                                out: matrix(lhs, rows, cols, false),
                                ..plain(rows, cols, inner)
                            },
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn integers_are_exact() {
    let Some(device) = common::device(Tier::Base) else {
        return;
    };
    for (lhs, rhs) in [
        (Element::I8, Element::I8),
        (Element::I32, Element::I8),
        (Element::I8, Element::I32),
    ] {
        for (rows, cols, inner) in [(20, 36, 40), (21, 35, 41), (2, 68, 64), (3, 67, 33)] {
            for rhs_transposed in [false, true] {
                check(
                    &device,
                    &Matmul {
                        lhs: matrix(lhs, rows, inner, false),
                        rhs: matrix(rhs, inner, cols, rhs_transposed),
                        out: matrix(Element::I32, rows, cols, false),
                        ..plain(rows, cols, inner)
                    },
                );
            }
        }
    }
}

#[test]
fn epilogues_see_every_result() {
    let Some(device) = common::device(Tier::Full) else {
        return;
    };
    let epilogue = Epilogue {
        code: "fn epilogue(value: f32, index: u32, row: u32, col: u32, batch: u32) {
            store_out(index, max(value * bitcast<f32>(params.scale) + load_bias(col), 0.0) + f32(row) + 100.0 * f32(batch));
        }\n"
        .to_owned(),
        bindings: vec![Binding::read("bias", Element::F32)],
        params: vec!["scale".to_owned()],
    };
    for (rows, cols, inner) in [(40, 50, 30), (2, 50, 30), (50, 2, 30)] {
        let bias = Random::new(9).units(cols as usize);
        let bytes = bytemuck::cast_slice::<f32, u8>(&bias).to_vec();
        let problem = Matmul {
            batch: vec![BatchAxis {
                len: 2,
                lhs: (rows * inner) as i64,
                rhs: 0,
                out: (rows * cols) as i64,
            }],
            epilogue: epilogue.clone(),
            ..plain(rows, cols, inner)
        };
        check_with(
            &device,
            &problem,
            &[bytes],
            &[0.5f32.to_bits()],
            &kinds(problem.plans(&device.model()).expect("plans")),
            |value, row, col, batch| {
                (value * 0.5 + f64::from(bias[col])).max(0.0) + row as f64 + 100.0 * batch as f64
            },
        );
    }
}

#[test]
fn special_values_come_through() {
    let Some(device) = common::device(Tier::Base) else {
        return;
    };
    let values = [
        0.0,
        -0.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        65504.0,
        65520.0,
        1e-7,
        6e-8,
        1e-40,
        3.0e38,
    ];
    for out in [Element::F32, Element::F16, Element::Bf16] {
        let len = values.len() as u64;
        let problem = Matmul {
            out: matrix(out, len, 1, false),
            ..plain(len, 1, 1)
        };
        let (out_bytes, _) = stored(&vec![0.0; values.len()], out);
        let program = problem.plan(&device.model()).expect("plans");
        let left = bytemuck::cast_slice::<f32, u8>(&values).to_vec();
        let got = loaded(
            &run_program(
                &device,
                &program,
                &[&left, &1.0f32.to_le_bytes(), &out_bytes],
                2,
            ),
            out,
        );
        let (_, want) = stored(&values, out);
        for ((got, want), value) in got.iter().zip(want).zip(values) {
            // f32 subnormals may be flushed.
            let same =
                *got == want || (got.is_nan() && want.is_nan()) || value.abs() < f32::MIN_POSITIVE;
            assert!(same, "{value} as {out:?}: {got}, should be {want}");
        }
    }
}
