//! Convolution against its definition in f64 on the host.

mod common;

use common::{Random, assert_close, loaded, rounding, run_program, stored};
use cupola_shaders::convolution::{ConvolutionForm, Direction};
use cupola_shaders::element::Element;
use cupola_shaders::shader::Epilogue;
use cupola_wgpu::choice::Choices;
use cupola_wgpu::library::LibraryProgram;
use cupola_wgpu::library::convolution::{Channels, Convolution, ConvolutionPlan, SpatialAxis};
use cupola_wgpu::library::plans::{Entry, Problem as _};
use cupola_wgpu::{DeviceModel, GpuDevice, Tier};
use std::sync::Arc;

/// `(input, kernel, stride, dilation, before, after)` of a spatial axis.
type Axis = (u64, u64, u64, u64, i64, i64);

/// Dense operands of f32.
fn dense(
    direction: Direction,
    batches: u64,
    groups: u64,
    channels: (u64, u64),
    axes: &[Axis],
) -> Convolution {
    let (out_channels, in_channels) = channels;
    let mut spatial: Vec<SpatialAxis> = axes
        .iter()
        .map(
            |&(input_len, kernel_len, stride, dilation, before, after)| {
                let reach = (kernel_len as i64 - 1) * dilation as i64 + 1;
                let out_len = match direction {
                    Direction::Forward => {
                        (input_len as i64 + before + after - reach) / stride as i64 + 1
                    }
                    Direction::Transposed => {
                        (input_len as i64 - 1) * stride as i64 + reach - before - after
                    }
                };
                SpatialAxis {
                    input_len,
                    kernel_len,
                    out_len: out_len.max(0) as u64,
                    stride,
                    dilation,
                    before,
                    input_stride: 0,
                    weight_stride: 0,
                }
            },
        )
        .collect();
    let (mut positions, mut kernel, mut outs) = (1i64, 1i64, 1i64);
    for axis in spatial.iter_mut().rev() {
        axis.input_stride = positions;
        axis.weight_stride = kernel;
        positions *= axis.input_len as i64;
        kernel *= axis.kernel_len as i64;
        outs *= axis.out_len as i64;
    }
    let channels = |outer_stride, inner_stride| Channels {
        element: Element::F32,
        offset: 0,
        outer_stride,
        inner_stride,
    };
    Convolution {
        direction,
        batches,
        groups,
        out_channels,
        in_channels,
        spatial,
        input: channels((groups * in_channels) as i64 * positions, positions),
        weight: match direction {
            Direction::Forward => channels(in_channels as i64 * kernel, kernel),
            Direction::Transposed => channels(kernel, out_channels as i64 * kernel),
        },
        out: channels((groups * out_channels) as i64 * outs, outs),
        epilogue: Epilogue::default(),
    }
}

/// Positions in row-major order.
fn positions(lens: &[u64]) -> Vec<Vec<i64>> {
    lens.iter().fold(vec![vec![]], |all, &len| {
        all.iter()
            .flat_map(|position| (0..len as i64).map(move |i| [position.as_slice(), &[i]].concat()))
            .collect()
    })
}

/// Where output `o` reads the input for kernel position `k`, if inside.
fn source(axis: &SpatialAxis, direction: Direction, o: i64, k: i64) -> Option<i64> {
    let (stride, reach) = (axis.stride as i64, k * axis.dilation as i64);
    let at = match direction {
        Direction::Forward => o * stride - axis.before + reach,
        Direction::Transposed => {
            let distance = o + axis.before - reach;
            if distance % stride != 0 {
                return None;
            }
            distance / stride
        }
    };
    (0..axis.input_len as i64).contains(&at).then_some(at)
}

/// Runs the plan that a device prefers.
fn check(device: &GpuDevice, p: &Convolution) {
    check_programs(device, p, &[p.plan(&device.model()).expect("plans")]);
}

/// Runs every kind of plan that a device has: blocks, tiles by order, step and division, the smallest first.
fn check_every_form(device: &GpuDevice, p: &Convolution) {
    let mut plans = p.plans(&device.model()).expect("plans");
    let kind = |plan: &ConvolutionPlan| match plan.shader.form {
        ConvolutionForm::Tiled(tile, order, split) => (tile.step, Some((order, split)), None),
        ConvolutionForm::Block(block) => (0, None, Some(block)),
        ConvolutionForm::Direct => (0, None, None),
    };
    plans.sort_by_key(|plan| plan.shader.memory_size());
    let mut seen = Vec::new();
    plans.retain(|plan| {
        let new = !seen.contains(&kind(plan));
        seen.push(kind(plan));
        new
    });
    let programs: Vec<_> = (plans.iter())
        .map(|plan| p.planned(plan).expect("dispatches"))
        .collect();
    check_programs(device, p, &programs);
}

fn check_programs(device: &GpuDevice, p: &Convolution, programs: &[LibraryProgram]) {
    let mut random =
        Random::new(p.batches * 3 + p.groups * 5 + p.in_channels * 7 + p.spatial.len() as u64);
    let lens = |of: fn(&SpatialAxis) -> u64| p.spatial.iter().map(of).collect::<Vec<_>>();
    let reach = |outer: (u64, i64), inner: (u64, i64), axes: Vec<(u64, i64)>| -> usize {
        let mut last = 0;
        for (len, stride) in [vec![outer, inner], axes].concat() {
            if len == 0 {
                return 0;
            }
            last += (len as i64 - 1) * stride;
        }
        last as usize + 1
    };
    let all_in = p.groups * p.in_channels;
    let input_len = reach(
        (p.batches, p.input.outer_stride),
        (all_in, p.input.inner_stride),
        p.spatial
            .iter()
            .map(|a| (a.input_len, a.input_stride))
            .collect(),
    );
    let (weight_outer, weight_inner) = match p.direction {
        Direction::Forward => (p.groups * p.out_channels, p.in_channels),
        Direction::Transposed => (p.out_channels, all_in),
    };
    let weight_len = reach(
        (weight_outer, p.weight.outer_stride),
        (weight_inner, p.weight.inner_stride),
        p.spatial
            .iter()
            .map(|a| (a.kernel_len, a.weight_stride))
            .collect(),
    );
    let outs = positions(&lens(|a| a.out_len));
    let kernels = positions(&lens(|a| a.kernel_len));
    let out_len = (p.batches * p.groups * p.out_channels) as usize * outs.len();
    let (input_bytes, input) = stored(&random.units(input_len), p.input.element);
    let (weight_bytes, weight) = stored(&random.units(weight_len), p.weight.element);
    let (out_bytes, untouched) = stored(&vec![7.0; out_len], p.out.element);
    let mut want: Vec<f64> = untouched.iter().map(|&v| f64::from(v)).collect();
    for n in 0..p.batches as i64 {
        for g in 0..p.groups as i64 {
            for o in 0..p.out_channels as i64 {
                for (at, position) in outs.iter().enumerate() {
                    let mut sum = 0.0;
                    for kernel in &kernels {
                        let sources: Option<Vec<i64>> = p
                            .spatial
                            .iter()
                            .zip(position.iter().zip(kernel))
                            .map(|(axis, (&o, &k))| source(axis, p.direction, o, k))
                            .collect();
                        let Some(sources) = sources else { continue };
                        let along: i64 = p
                            .spatial
                            .iter()
                            .zip(&sources)
                            .map(|(a, &s)| s * a.input_stride)
                            .sum();
                        let within: i64 = p
                            .spatial
                            .iter()
                            .zip(kernel)
                            .map(|(a, &k)| k * a.weight_stride)
                            .sum();
                        for i in 0..p.in_channels as i64 {
                            let channel = g * p.in_channels as i64 + i;
                            let x =
                                n * p.input.outer_stride + channel * p.input.inner_stride + along;
                            let (outer, inner) = match p.direction {
                                Direction::Forward => (g * p.out_channels as i64 + o, i),
                                Direction::Transposed => (o, channel),
                            };
                            let w = outer * p.weight.outer_stride
                                + inner * p.weight.inner_stride
                                + within;
                            sum += f64::from(input[x as usize]) * f64::from(weight[w as usize]);
                        }
                    }
                    let channel = g * p.out_channels as i64 + o;
                    let place = n * p.out.outer_stride + channel * p.out.inner_stride + at as i64;
                    want[place as usize] = sum;
                }
            }
        }
    }
    let relative = f64::from(rounding(p.out.element)) + 1e-6;
    for program in programs {
        let arguments: [&[u8]; 3] = [&input_bytes, &weight_bytes, &out_bytes];
        let got = run_program(device, program, &arguments, 2);
        let what = format!("{} {p:?}", program.steps[0].0.shader.label);
        assert_close(&loaded(&got, p.out.element), &want, 1e-5, relative, &what);
    }
}

const AXES: [&[Axis]; 9] = [
    &[(9, 3, 1, 1, 1, 1)],
    &[(20, 4, 3, 2, 2, 0)],
    &[(7, 3, 1, 1, 1, 1), (9, 3, 1, 1, 1, 1)],
    &[(8, 1, 1, 1, 0, 0), (6, 1, 1, 1, 0, 0)],
    &[(8, 1, 2, 1, 0, 0), (6, 1, 3, 1, 0, 0)],
    &[(10, 3, 2, 2, 3, 1), (11, 2, 1, 3, 0, 2)],
    &[(4, 5, 1, 1, 4, 4), (5, 2, 1, 1, 0, 0)],
    &[(4, 2, 1, 1, 1, 0), (5, 3, 2, 1, 1, 1), (6, 2, 1, 2, 0, 1)],
    &[(12, 3, 1, 1, -2, -1), (6, 3, 1, 1, 1, 1)],
];

#[test]
fn forward_of_every_shape() {
    for device in common::devices() {
        for axes in AXES {
            for (batches, groups, channels) in [
                (1, 1, (1, 1)),
                (2, 1, (9, 5)),
                (1, 1, (40, 8)),
                (2, 3, (2, 4)),
                (1, 2, (16, 3)),
                (2, 7, (1, 1)),
            ] {
                check(
                    &device,
                    &dense(Direction::Forward, batches, groups, channels, axes),
                );
            }
        }
    }
}

#[test]
fn every_form() {
    let Some(device) = common::device(Tier::Full) else {
        return;
    };
    let problems = [
        (Direction::Forward, 2, 1, (9, 5)),
        (Direction::Forward, 1, 2, (8, 8)),
        (Direction::Forward, 2, 3, (1, 1)),
        (Direction::Transposed, 2, 2, (5, 20)),
    ];
    for (at, axes) in AXES.into_iter().enumerate() {
        // Two of the four for each.
        let (first, step) = (at % 2, 2);
        for &(direction, batches, groups, channels) in problems.iter().skip(first).step_by(step) {
            check_every_form(&device, &dense(direction, batches, groups, channels, axes));
        }
    }
}

#[test]
fn plans_have_names_and_what_was_timed_decides() {
    let all = Entry {
        within: f64::INFINITY,
        most: usize::MAX,
    };
    for (kernel, before, is_product) in [(3, 1, false), (1, 0, true)] {
        let axis = (20, kernel, 1, 1, before, before);
        let problem = dense(Direction::Forward, 2, 1, (24, 16), &[axis, axis]);
        let mut model = DeviceModel::default();
        let contest = problem.contest(&model, all).expect("plans");
        assert_eq!(contest.class.starts_with("product"), is_product);
        assert_eq!(contest.class, problem.class());
        let usual = problem.plan(&model).expect("a plan");
        assert_eq!(contest.candidates[0].program, usual);
        let mut names: Vec<&str> = contest.candidates.iter().map(|c| c.name.as_str()).collect();
        names.sort();
        names.dedup();
        assert!(names.len() > 3 && names.len() == contest.candidates.len());
        for candidate in contest.candidates.iter().step_by(3) {
            let mut choices = Choices::default();
            choices.set(&contest.class, &candidate.name);
            model.choices = Arc::new(choices);
            assert_eq!(problem.plan(&model), Ok(candidate.program.clone()));
        }
    }
}

#[test]
fn transposed_of_every_shape() {
    let Some(device) = common::device(Tier::Full) else {
        return;
    };
    for axes in AXES {
        for (batches, groups, channels) in [
            (1, 1, (1, 1)),
            (2, 1, (9, 5)),
            (1, 2, (12, 4)),
            (2, 5, (1, 1)),
        ] {
            check(
                &device,
                &dense(Direction::Transposed, batches, groups, channels, axes),
            );
        }
    }
}

#[test]
fn storage_types() {
    let Some(device) = common::device(Tier::Full) else {
        return;
    };
    let axes = AXES[2];
    for (input, weight, out) in [
        (Element::F16, Element::F16, Element::F16),
        (Element::Bf16, Element::Bf16, Element::Bf16),
        (Element::F32, Element::F16, Element::F32),
        (Element::I8, Element::I8, Element::I32),
    ] {
        for (groups, channels) in [(1, (12, 6)), (1, (9, 4)), (4, (1, 1))] {
            let mut problem = dense(Direction::Forward, 2, groups, channels, axes);
            problem.input.element = input;
            problem.weight.element = weight;
            problem.out.element = out;
            check(&device, &problem);
        }
    }
}

#[test]
fn views_with_strides() {
    let Some(device) = common::device(Tier::Full) else {
        return;
    };
    // Channels last, as pictures come, with weights of the other order too.
    for (groups, channels) in [(1, (10, 4)), (2, (4, 2)), (1, (12, 3))] {
        for axes in [AXES[2], AXES[3]] {
            let mut problem = dense(Direction::Forward, 2, groups, channels, axes);
            let all_in = (groups * channels.1) as i64;
            problem.input.inner_stride = 1;
            problem.spatial[1].input_stride = all_in;
            problem.spatial[0].input_stride = all_in * problem.spatial[1].input_len as i64;
            problem.weight.inner_stride = 1;
            problem.spatial[1].weight_stride = channels.1 as i64;
            problem.spatial[0].weight_stride = (channels.1 * problem.spatial[1].kernel_len) as i64;
            check_every_form(&device, &problem);
            // Output channels fastest.
            let all_out = (groups * channels.0) as i64;
            problem.weight.outer_stride = 1;
            problem.weight.inner_stride = all_out;
            for axis in &mut problem.spatial {
                axis.weight_stride *= all_out;
            }
            check_every_form(&device, &problem);
        }
    }
}

#[test]
fn empty_and_refused() {
    let Some(device) = common::device(Tier::Base) else {
        return;
    };
    check(&device, &dense(Direction::Forward, 0, 1, (3, 2), AXES[2]));
    check(&device, &dense(Direction::Forward, 2, 1, (9, 0), AXES[2]));
    check(
        &device,
        &dense(Direction::Forward, 1, 1, (9, 2), &[(3, 5, 1, 1, 0, 0)]),
    );
    let four: Vec<Axis> = vec![(2, 1, 1, 1, 0, 0); 4];
    let mut problem = dense(Direction::Forward, 1, 1, (2, 2), &four);
    problem.spatial[0].stride = 2;
    assert!(problem.plan(&DeviceModel::default()).is_err());
    let mut problem = dense(Direction::Forward, 1, 1, (2, 2), AXES[0]);
    problem.spatial[0].dilation = 1 << 40;
    assert!(problem.plan(&DeviceModel::default()).is_err());
}
