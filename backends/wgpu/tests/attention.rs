//! Attention against the textbook formula in f64 on the host.

mod common;

use common::{Random, assert_close, loaded, rounding, run_program, stored};
use cupola_shaders::element::Element;
use cupola_wgpu::choice::Choices;
use cupola_wgpu::library::attention::{Attention, Tensor4};
use cupola_wgpu::library::plans::Problem as _;
use cupola_wgpu::{DeviceModel, GpuDevice, Tier};
use std::sync::Arc;

/// Dense, in the order batch, head, row, column.
fn dense(element: Element, dims: [u64; 4]) -> Tensor4 {
    let [_, b, c, d] = dims.map(|d| d as i64);
    Tensor4 {
        element,
        offset: 0,
        strides: [b * c * d, c * d, d, 1],
    }
}

struct Sizes {
    batches: u64,
    kv_heads: u64,
    group: u64,
    queries: u64,
    keys: u64,
    depth: u64,
    value_depth: u64,
}

fn attention(element: Element, s: &Sizes) -> Attention {
    let heads = s.kv_heads * s.group;
    Attention {
        batches: s.batches,
        kv_heads: s.kv_heads,
        group: s.group,
        queries: s.queries,
        keys: s.keys,
        depth: s.depth,
        value_depth: s.value_depth,
        scale: 1.0 / (s.depth as f32).sqrt(),
        softcap: 0.0,
        last_distance: None,
        first_distance: None,
        query: dense(element, [s.batches, heads, s.queries, s.depth]),
        key: dense(element, [s.batches, s.kv_heads, s.keys, s.depth]),
        value: dense(element, [s.batches, s.kv_heads, s.keys, s.value_depth]),
        mask: None,
        out: dense(element, [s.batches, heads, s.queries, s.value_depth]),
    }
}

fn len(dims: [u64; 4]) -> usize {
    dims.iter().product::<u64>() as usize
}

fn at(tensor: &Tensor4, position: [u64; 4]) -> usize {
    let along: i64 = position
        .iter()
        .zip(tensor.strides)
        .map(|(&p, s)| p as i64 * s)
        .sum();
    (tensor.offset + along) as usize
}

/// Runs `problem` with `mask` values and compares the whole result.
fn check(device: &GpuDevice, problem: &Attention, mask: &[f32]) {
    check_planned(device, problem, mask, &device.model());
}

/// As [`check`], with the kernels chosen for `model`; gives their labels.
fn check_planned(
    device: &GpuDevice,
    problem: &Attention,
    mask: &[f32],
    model: &DeviceModel,
) -> Vec<String> {
    let p = problem;
    let heads = p.kv_heads * p.group;
    let mut random = Random::new(p.queries * 131 + p.keys * 17 + p.depth);
    let mut operand = |dims: [u64; 4], element| {
        stored(
            &random
                .units(len(dims))
                .iter()
                .map(|v| v * 2.0)
                .collect::<Vec<_>>(),
            element,
        )
    };
    let (query_bytes, query) = operand([p.batches, heads, p.queries, p.depth], p.query.element);
    let (key_bytes, key) = operand([p.batches, p.kv_heads, p.keys, p.depth], p.key.element);
    let (value_bytes, value) = operand(
        [p.batches, p.kv_heads, p.keys, p.value_depth],
        p.value.element,
    );
    let out_len = len([p.batches, heads, p.queries, p.value_depth]);
    let mut want = vec![0.0; out_len];
    for b in 0..p.batches {
        for h in 0..heads {
            for i in 0..p.queries {
                let scores: Vec<Option<f64>> = (0..p.keys)
                    .map(|j| score(p, &query, &key, mask, [b, h, i, j]))
                    .collect();
                let largest = scores
                    .iter()
                    .flatten()
                    .fold(f64::NEG_INFINITY, |m, &s| m.max(s));
                let weights: Vec<f64> = scores
                    .iter()
                    .map(|s| {
                        s.map_or(0.0, |s| {
                            if largest.is_finite() {
                                (s - largest).exp()
                            } else {
                                0.0
                            }
                        })
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                for c in 0..p.value_depth {
                    let sum: f64 = (0..p.keys)
                        .map(|j| {
                            weights[j as usize]
                                * f64::from(value[at(&p.value, [b, h / p.group, j, c])])
                        })
                        .sum();
                    want[at(&p.out, [b, h, i, c])] = if total == 0.0 { 0.0 } else { sum / total };
                }
            }
        }
    }
    let (out_bytes, _) = stored(&vec![9.0; out_len], p.out.element);
    let mask_bytes = p.mask.map(|m| match m.element {
        Element::Bool => mask.iter().map(|&v| u8::from(v != 0.0)).collect(),
        element => stored(mask, element).0,
    });
    let mut arguments: Vec<&[u8]> = vec![&query_bytes, &key_bytes, &value_bytes];
    arguments.extend(mask_bytes.as_deref());
    arguments.push(&out_bytes);
    let program = p.plan(model).expect("plans");
    let got = loaded(
        &run_program(device, &program, &arguments, arguments.len() - 1),
        p.out.element,
    );
    let labels: Vec<_> = program
        .steps
        .iter()
        .map(|(call, _)| call.shader.label.clone())
        .collect();
    let relative = f64::from(rounding(p.out.element)) + 1e-5;
    let what = format!(
        "{labels:?} queries {} keys {} depth {}",
        p.queries, p.keys, p.depth
    );
    // Matrix units take the weights as f16.
    let absolute = match labels.iter().any(|label| label.contains("cooperative")) {
        true => 2.0 * f64::from(rounding(Element::F16)),
        false => 1e-5,
    };
    assert_close(&got, &want, absolute, relative, &what);
    labels
}

/// The score of a key, or none where the query does not see it.
fn score(
    p: &Attention,
    query: &[f32],
    key: &[f32],
    mask: &[f32],
    [b, h, i, j]: [u64; 4],
) -> Option<f64> {
    let distance = j as i64 - i as i64;
    let seen = p.last_distance.is_none_or(|last| distance <= last)
        && p.first_distance.is_none_or(|first| distance >= first);
    let dot: f64 = (0..p.depth)
        .map(|d| {
            f64::from(query[at(&p.query, [b, h, i, d])])
                * f64::from(key[at(&p.key, [b, h / p.group, j, d])])
        })
        .sum();
    let mut score = dot * f64::from(p.scale);
    if p.softcap != 0.0 {
        let cap = f64::from(p.softcap);
        score = cap * (score / cap).tanh();
    }
    match &p.mask {
        None => seen.then_some(score),
        Some(m) if m.element == Element::Bool => {
            (seen && mask[at(m, [b, h, i, j])] != 0.0).then_some(score)
        }
        Some(m) => seen.then_some(score + f64::from(mask[at(m, [b, h, i, j])])),
    }
}

const SHAPES: [Sizes; 8] = [
    Sizes {
        batches: 1,
        kv_heads: 1,
        group: 1,
        queries: 1,
        keys: 1,
        depth: 1,
        value_depth: 1,
    },
    Sizes {
        batches: 2,
        kv_heads: 3,
        group: 1,
        queries: 5,
        keys: 7,
        depth: 16,
        value_depth: 8,
    },
    Sizes {
        batches: 1,
        kv_heads: 2,
        group: 4,
        queries: 1,
        keys: 100,
        depth: 64,
        value_depth: 64,
    },
    Sizes {
        batches: 1,
        kv_heads: 2,
        group: 1,
        queries: 33,
        keys: 70,
        depth: 24,
        value_depth: 40,
    },
    Sizes {
        batches: 2,
        kv_heads: 1,
        group: 3,
        queries: 40,
        keys: 40,
        depth: 80,
        value_depth: 200,
    },
    Sizes {
        batches: 1,
        kv_heads: 2,
        group: 2,
        queries: 2,
        keys: 1000,
        depth: 32,
        value_depth: 72,
    },
    Sizes {
        batches: 1,
        kv_heads: 1,
        group: 1,
        queries: 3,
        keys: 65,
        depth: 300,
        value_depth: 130,
    },
    Sizes {
        batches: 1,
        kv_heads: 1,
        group: 8,
        queries: 1,
        keys: 520,
        depth: 256,
        value_depth: 256,
    },
];

#[test]
fn shapes_of_every_form() {
    for device in common::devices() {
        for sizes in &SHAPES {
            check(&device, &attention(Element::F32, sizes), &[]);
        }
    }
}

#[test]
fn no_keys_and_no_queries() {
    let Some(device) = common::device(Tier::Base) else {
        return;
    };
    for (queries, keys) in [(0, 5), (5, 0), (40, 0)] {
        let sizes = Sizes {
            batches: 1,
            kv_heads: 1,
            group: 1,
            queries,
            keys,
            depth: 4,
            value_depth: 4,
        };
        check(&device, &attention(Element::F32, &sizes), &[]);
    }
}

#[test]
fn causal_windows_and_soft_limits() {
    let Some(device) = common::device(Tier::Full) else {
        return;
    };
    for sizes in &SHAPES {
        let offset = sizes.keys as i64 - sizes.queries as i64;
        for (last_distance, first_distance) in [
            (Some(offset), None),
            (Some(0), Some(-5)),
            (Some(-2), None),
            (None, Some(3)),
        ] {
            let problem = Attention {
                last_distance,
                first_distance,
                softcap: if first_distance.is_some() { 2.5 } else { 0.0 },
                ..attention(Element::F32, sizes)
            };
            check(&device, &problem, &[]);
        }
    }
}

#[test]
fn masks_of_every_kind() {
    let Some(device) = common::device(Tier::Full) else {
        return;
    };
    for sizes in &SHAPES {
        let heads = sizes.kv_heads * sizes.group;
        let full = [sizes.batches, heads, sizes.queries, sizes.keys];
        let mut random = Random::new(sizes.keys);
        for element in [Element::Bool, Element::F32, Element::F16] {
            let values: Vec<f32> = (0..len(full))
                .map(|_| match (element, random.below(3)) {
                    (Element::Bool, n) => f32::from(u8::from(n > 0)),
                    (_, 0) => f32::NEG_INFINITY,
                    (_, n) => n as f32 * 0.5,
                })
                .collect();
            let base = attention(Element::F32, sizes);
            check(
                &device,
                &Attention {
                    mask: Some(dense(element, full)),
                    ..base.clone()
                },
                &values,
            );
            // One row for all heads and batches, and none visible at all.
            let row = Tensor4 {
                element,
                offset: 0,
                strides: [0, 0, 0, 1],
            };
            let mask = Some(row);
            check(
                &device,
                &Attention {
                    mask,
                    ..base.clone()
                },
                &values[..sizes.keys as usize],
            );
            let nothing = if element == Element::Bool {
                0.0
            } else {
                f32::NEG_INFINITY
            };
            check(
                &device,
                &Attention { mask, ..base },
                &vec![nothing; sizes.keys as usize],
            );
        }
    }
}

#[test]
fn narrow_storage_and_other_layouts() {
    for device in common::devices() {
        for sizes in &SHAPES {
            for element in [Element::F16, Element::Bf16] {
                check(&device, &attention(element, sizes), &[]);
            }
            // Batch, row, head, column: as projections leave them.
            let seq_first = |rows: u64, heads: u64, cols: u64| {
                let (rows, heads, cols) = (rows as i64, heads as i64, cols as i64);
                Tensor4 {
                    element: Element::F32,
                    offset: 0,
                    strides: [rows * heads * cols, cols, heads * cols, 1],
                }
            };
            let heads = sizes.kv_heads * sizes.group;
            let problem = Attention {
                query: seq_first(sizes.queries, heads, sizes.depth),
                key: seq_first(sizes.keys, sizes.kv_heads, sizes.depth),
                value: seq_first(sizes.keys, sizes.kv_heads, sizes.value_depth),
                out: seq_first(sizes.queries, heads, sizes.value_depth),
                ..attention(Element::F32, sizes)
            };
            check(&device, &problem, &[]);
        }
    }
}

#[test]
fn long_key_lists_are_divided() {
    let Some(device) = common::device(Tier::Full) else {
        return;
    };
    let sizes = Sizes {
        batches: 1,
        kv_heads: 2,
        group: 2,
        queries: 1,
        keys: 3000,
        depth: 16,
        value_depth: 16,
    };
    let problem = attention(Element::F32, &sizes);
    assert_eq!(
        problem
            .plan(&DeviceModel::default())
            .expect("plans")
            .steps
            .len(),
        2
    );
    check(&device, &problem, &[]);
    check(
        &device,
        &Attention {
            first_distance: Some(2000),
            ..problem.clone()
        },
        &[],
    );
    check(
        &device,
        &Attention {
            first_distance: Some(4000),
            ..problem
        },
        &[],
    );
}

#[test]
fn every_plan_gives_the_same_and_the_table_decides() {
    let Some(device) = common::device(Tier::Full) else {
        return;
    };
    let sizes = |queries, keys| Sizes {
        batches: 1,
        kv_heads: 2,
        group: 2,
        queries,
        keys,
        depth: 16,
        value_depth: 16,
    };
    for (sizes, several) in [
        (sizes(1, 700), true),
        (sizes(2, 100), false),
        (sizes(40, 50), false),
    ] {
        let problem = attention(Element::F32, &sizes);
        let mut model = DeviceModel::clone(&device.model());
        model.rates.cores = 8;
        let plans = problem.plans(&model).expect("plans");
        assert_eq!(plans.len() > 1, several, "{plans:?}");
        let usual = problem.plan(&model).expect("plans");
        assert_eq!(problem.planned(&plans[0]), Ok(usual));
        for plan in &plans {
            assert!(problem.seconds(plan, &model) > 0.0);
            let mut choices = Choices::default();
            choices.set(&problem.class(), &problem.name(plan));
            model.choices = Arc::new(choices);
            assert_eq!(problem.plan(&model), problem.planned(plan));
            check_planned(&device, &problem, &[], &model);
        }
    }
}

/// A device model whose matrix units are the fastest choice.
fn with_fast_matrices(device: &GpuDevice) -> DeviceModel {
    let mut model = DeviceModel::clone(&device.model());
    model.rates.matrix = 2.0 * model.rates.f32;
    model
}

#[test]
fn matrix_units_compute_every_shape() {
    let Some(device) = common::matrix_device() else {
        return;
    };
    let model = with_fast_matrices(&device);
    // Batches, key heads, heads for each, queries, keys, depth, value depth.
    for [batches, kv_heads, group, queries, keys, depth, value_depth] in [
        [1, 1, 1, 9, 1, 8, 8],
        [2, 3, 1, 33, 70, 32, 32],
        [1, 2, 4, 17, 45, 64, 24],
        [1, 1, 3, 40, 40, 20, 12],
        [1, 1, 1, 20, 33, 128, 72],
    ] {
        let sizes = Sizes {
            batches,
            kv_heads,
            group,
            queries,
            keys,
            depth,
            value_depth,
        };
        let base = attention(Element::F16, &sizes);
        let offset = keys as i64 - queries as i64;
        let mut problems = vec![base.clone()];
        for (last_distance, first_distance) in
            [(Some(offset), None), (Some(3), Some(-9)), (None, Some(70))]
        {
            problems.push(Attention {
                last_distance,
                first_distance,
                softcap: if first_distance.is_some() { 2.5 } else { 0.0 },
                ..base.clone()
            });
        }
        // Large scores: what a row has seen is rescaled again and again.
        problems.push(Attention {
            scale: 20.0 * base.scale,
            ..base.clone()
        });
        for problem in &problems {
            let labels = check_planned(&device, problem, &[], &model);
            assert!(labels[0].contains("cooperative"), "{labels:?}");
        }
        let full = [batches, kv_heads * group, queries, keys];
        let mut random = Random::new(keys);
        for element in [Element::Bool, Element::F32]
            .into_iter()
            .filter(|_| depth <= 32)
        {
            let values: Vec<f32> = (0..len(full))
                .map(|_| match (element, random.below(3)) {
                    (Element::Bool, n) => f32::from(u8::from(n > 0)),
                    (_, 0) => f32::NEG_INFINITY,
                    (_, n) => n as f32 * 9.0,
                })
                .collect();
            let mask = Some(dense(element, full));
            let problem = Attention {
                mask,
                ..base.clone()
            };
            check_planned(&device, &problem, &values, &model);
        }
    }
}

#[test]
fn matrix_units_are_left_alone_where_operands_do_not_suit() {
    let Some(device) = common::matrix_device() else {
        return;
    };
    let model = with_fast_matrices(&device);
    let sizes = |depth, value_depth| Sizes {
        batches: 1,
        kv_heads: 1,
        group: 2,
        queries: 12,
        keys: 20,
        depth,
        value_depth,
    };
    for problem in [
        attention(Element::F32, &sizes(16, 16)),
        attention(Element::Bf16, &sizes(16, 16)),
        attention(Element::F16, &sizes(18, 16)),
        attention(Element::F16, &sizes(16, 9)),
        attention(Element::F16, &sizes(300, 16)),
    ] {
        let labels = check_planned(&device, &problem, &[], &model);
        assert_eq!(labels, ["attention_tile"]);
    }
}
