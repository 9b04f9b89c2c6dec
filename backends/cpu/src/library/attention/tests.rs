//! Attention against plain loops in f64.

use half::{bf16, f16};

use super::*;
use crate::library::simd::Float;
use crate::library::testing::{Rng, contexts};

#[derive(Debug, Clone, Copy)]
struct Case {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    rows: usize,
    keys: usize,
    depth: usize,
    value_depth: usize,
}

const fn case(sizes: [usize; 7]) -> Case {
    let [batch, heads, kv_heads, rows, keys, depth, value_depth] = sizes;
    Case {
        batch,
        heads,
        kv_heads,
        rows,
        keys,
        depth,
        value_depth,
    }
}

const CASES: [Case; 12] = [
    case([1, 1, 1, 1, 1, 1, 1]),
    case([2, 2, 1, 3, 5, 8, 4]),
    case([1, 3, 3, 17, 33, 20, 33]),
    case([1, 4, 2, 70, 150, 64, 64]),
    case([2, 6, 2, 1, 1100, 32, 64]),
    case([1, 9, 3, 1, 130, 64, 64]),
    case([1, 2, 2, 2, 600, 16, 10]),
    case([0, 2, 1, 3, 4, 8, 8]),
    case([1, 2, 1, 0, 4, 8, 8]),
    case([1, 2, 1, 3, 0, 8, 8]),
    case([1, 2, 1, 3, 4, 0, 8]),
    case([1, 2, 1, 3, 4, 8, 0]),
];

/// Options by number, so that every combination of a few is met.
struct Options {
    float_mask: Vec<f32>,
    keep_mask: Vec<u8>,
    offsets: Vec<isize>,
    lens: Vec<usize>,
}

fn check<T: FloatWords>(cx: &Context, case: Case, choice: usize, relative: f64, narrow: bool) {
    let Case {
        batch,
        heads,
        kv_heads,
        rows,
        keys,
        depth,
        value_depth,
    } = case;
    let mut rng = Rng::new(choice as u64);
    let mut sample =
        |len: usize| -> Vec<T> { (0..len).map(|_| T::narrow(rng.float() * 2.0)).collect() };
    let q = sample(batch * heads * rows * depth);
    let k = sample(batch * kv_heads * keys * depth);
    let v = sample(batch * kv_heads * keys * value_depth);
    // Heads next to each other for every position, or positions for every head.
    let layout = |heads: usize, rows: usize, depth: usize| match choice % 2 {
        0 => [heads * rows * depth, rows * depth, depth, 1],
        _ => [heads * rows * depth, depth, heads * depth, 1],
    };
    let view = |data, shape: [usize; 4]| {
        View::new("x", data, shape, layout(shape[1], shape[2], shape[3])).expect("fits")
    };
    let options = Options {
        float_mask: (0..heads * keys)
            .map(|i| {
                if i % 7 == 3 {
                    f32::NEG_INFINITY
                } else {
                    (i % 5) as f32 * 0.3
                }
            })
            .collect(),
        keep_mask: (0..batch * rows * keys)
            .map(|i| u8::from(i % 3 != 1 && i / keys.max(1) != 1))
            .collect(),
        offsets: (0..batch)
            .map(|b| keys as isize - rows as isize - b as isize)
            .collect(),
        lens: (0..batch).map(|b| keys - (b + 1).min(keys)).collect(),
    };
    let mask_shape = [batch, heads, rows, keys];
    let mask = match choice % 3 {
        0 => None,
        1 => Some(Mask::Add(
            View::new("mask", &options.float_mask, mask_shape, [0, keys, 0, 1]).expect("fits"),
        )),
        _ => Some(Mask::Keep(
            View::new(
                "mask",
                &options.keep_mask,
                mask_shape,
                [rows * keys, 0, keys, 1],
            )
            .expect("fits"),
        )),
    };
    let attention = Attention {
        query: view(&q, [batch, heads, rows, depth]),
        key: Rows::At(view(&k, [batch, kv_heads, keys, depth])),
        value: Rows::At(view(&v, [batch, kv_heads, keys, value_depth])),
        scale: 0.3,
        softcap: (choice % 5 == 2).then_some(1.5),
        mask,
        band: match choice % 4 {
            0 => Band::default(),
            1 => Band::causal(0),
            2 => Band {
                before: Some(4),
                after: Some(2),
                offset: -1,
                offsets: None,
            },
            _ => Band {
                before: None,
                after: Some(0),
                offset: 0,
                offsets: Some(&options.offsets),
            },
        },
        key_lens: (choice % 7 == 4).then_some(&options.lens[..]),
        unseeing: if choice.is_multiple_of(2) {
            Unseeing::Zero
        } else {
            Unseeing::Nan
        },
        narrow,
    };
    let mut out = vec![T::narrow(7.0); batch * heads * rows * value_depth];
    let strides = layout(heads, rows, value_depth);
    let output =
        ViewMut::new("out", &mut out, [batch, heads, rows, value_depth], strides).expect("fits");
    attend(cx, &attention, output).expect("agrees");
    for b in 0..batch {
        for h in 0..heads {
            for i in 0..rows {
                let want = expected(&attention, [b, h, i]);
                for (d, &want) in want.iter().enumerate() {
                    let got = out[b * strides[0] + h * strides[1] + i * strides[2] + d].widen();
                    let near = (f64::from(got) - want).abs() <= relative * (1.0 + want.abs());
                    assert!(
                        near || (got.is_nan() && want.is_nan()),
                        "{case:?} choice {choice} {:?} at {b} {h} {i} {d}: {got} instead of {want}",
                        cx.isa
                    );
                }
            }
        }
    }
}

/// An element of rows that are no pages.
fn at<T: Float>(rows: &Rows<'_, T>, index: [usize; 4]) -> T {
    match rows {
        Rows::At(view) => view.at(index),
        Rows::In(_) => panic!("pages"),
    }
}

/// One row in f64, computed as the definition says.
fn expected<T: Float>(attention: &Attention<T>, [b, h, i]: [usize; 3]) -> Vec<f64> {
    let [_, heads, _, depth] = attention.query.shape();
    let [_, kv_heads, keys, _] = attention.key.shape();
    let kv = h / (heads / kv_heads);
    let wide = |x: T| f64::from(x.widen());
    let scores: Vec<f64> = (0..keys)
        .map(|j| {
            let dot: f64 = (0..depth)
                .map(|d| {
                    wide(attention.query.at([b, h, i, d])) * wide(at(&attention.key, [b, kv, j, d]))
                })
                .sum();
            let mut score = dot * f64::from(attention.scale);
            if let Some(cap) = attention.softcap {
                score = f64::from(cap) * (score / f64::from(cap)).tanh();
            }
            score += match &attention.mask {
                None => 0.0,
                Some(Mask::Add(view)) => f64::from(view.at([b, h, i, j])),
                Some(Mask::Keep(view)) => {
                    [f64::NEG_INFINITY, 0.0][usize::from(view.at([b, h, i, j]) != 0)]
                }
            };
            let position = i as isize
                + attention
                    .band
                    .offsets
                    .map_or(attention.band.offset, |offsets| offsets[b]);
            let distance = j as isize - position;
            let seen = attention
                .band
                .before
                .is_none_or(|before| -distance <= before as isize)
                && attention
                    .band
                    .after
                    .is_none_or(|after| distance <= after as isize)
                && attention.key_lens.is_none_or(|lens| j < lens[b]);
            if seen { score } else { f64::NEG_INFINITY }
        })
        .collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let value_depth = attention.value.shape()[3];
    if largest == f64::NEG_INFINITY {
        return vec![
            if attention.unseeing == Unseeing::Zero {
                0.0
            } else {
                f64::NAN
            };
            value_depth
        ];
    }
    let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let value = |d| {
        (0..keys)
            .map(|j| weights[j] * wide(at(&attention.value, [b, kv, j, d])))
            .sum::<f64>()
            / sum
    };
    (0..value_depth).map(value).collect()
}

// Scores reach about 10, so their rounding moves a weight by about 1e-6 of itself.
#[test]
fn f32_attention() {
    contexts(|cx| {
        for (index, &case) in CASES.iter().enumerate() {
            for choice in 0..14 {
                check::<f32>(cx, case, index + choice, 1e-5, false);
            }
        }
    });
}

#[test]
fn half_attention() {
    contexts(|cx| {
        for (index, &case) in CASES.iter().enumerate() {
            check::<f16>(cx, case, index, 1e-3, false);
            check::<bf16>(cx, case, index + 5, 8e-3, false);
        }
    });
}

// Rounding to 8 bits moves a score by about 0.01, a weight by as much of itself.
#[test]
fn narrow_attention() {
    contexts(|cx| {
        for (index, &case) in CASES.iter().enumerate() {
            for choice in 0..3 {
                check::<f32>(cx, case, index + 5 * choice, 4e-2, true);
            }
            check::<bf16>(cx, case, index, 4e-2, true);
        }
    });
}

/// The bits of attention over as many rows and keys.
fn bits(cx: &Context, heads: [usize; 2], [rows, keys, depth]: [usize; 3], band: Band) -> Vec<u32> {
    let [heads, kv_heads] = heads;
    let mut rng = Rng::new((rows * keys + depth) as u64);
    let (q, k) = (
        rng.floats(heads * rows * depth),
        rng.floats(kv_heads * keys * depth),
    );
    let key = View::dense("k", &k, [1, kv_heads, keys, depth]).expect("fits");
    let attention = Attention {
        query: View::dense("q", &q, [1, heads, rows, depth]).expect("fits"),
        key: Rows::At(key),
        value: Rows::At(key),
        scale: 1.3,
        softcap: None,
        mask: None,
        band,
        key_lens: None,
        unseeing: Unseeing::Zero,
        narrow: false,
    };
    let mut out = vec![0f32; heads * rows * depth];
    let output = ViewMut::dense("out", &mut out, [1, heads, rows, depth]).expect("fits");
    attend(cx, &attention, output).expect("agrees");
    out.into_iter().map(f32::to_bits).collect()
}

#[test]
fn threads_and_vectors_do_not_change_the_result() {
    let window = Band {
        before: Some(300),
        after: Some(0),
        offset: 500,
        offsets: None,
    };
    let cases = [
        ([3, 3], [1, 1300, 16], Band::default()),
        ([3, 3], [40, 1300, 16], Band::default()),
        ([8, 2], [1, 700, 33], Band::default()),
        ([2, 1], [5, 90, 20], Band::causal(85)),
        ([2, 2], [300, 800, 24], window),
    ];
    for (heads, sizes, band) in cases {
        let mut found: Vec<(crate::isa::Level, Vec<u32>)> = Vec::new();
        contexts(|cx| found.push((cx.isa.level(), bits(cx, heads, sizes, band))));
        for (level, result) in &found {
            // The baseline rounds products before it adds them.
            let alike = |other: &crate::isa::Level| {
                let fused = |level| level > crate::isa::Level::Baseline;
                other == level || (fused(*other) && fused(*level))
            };
            let other = found.iter().find(|(other, _)| alike(other));
            assert!(
                other.is_some_and(|(_, other)| other == result),
                "{heads:?} {sizes:?} {level:?}"
            );
        }
    }
}

#[test]
fn nan_in_a_score_reaches_the_result() {
    contexts(|cx| {
        let (q, mut k) = ([1f32; 4], [0f32; 3 * 4]);
        k[5] = f32::NAN;
        let key = View::dense("k", &k, [1, 1, 3, 4]).expect("fits");
        let value = View::dense("v", &q, [1, 1, 3, 1]).expect("fits");
        let attention = Attention {
            query: View::dense("q", &q, [1, 1, 1, 4]).expect("fits"),
            key: Rows::At(key),
            value: Rows::At(value),
            scale: 1.0,
            softcap: None,
            mask: None,
            band: Band::default(),
            key_lens: None,
            unseeing: Unseeing::Zero,
            narrow: false,
        };
        let mut out = [0f32; 1];
        attend(
            cx,
            &attention,
            ViewMut::dense("out", &mut out, [1, 1, 1, 1]).expect("fits"),
        )
        .expect("agrees");
        assert!(out[0].is_nan());
    });
}

#[test]
fn disagreement_is_an_error() {
    contexts(|cx| {
        let data = [0f32; 64];
        let view = |shape| View::dense("x", &data, shape).expect("fits");
        let good = Attention {
            query: view([1, 2, 3, 4]),
            key: Rows::At(view([1, 1, 5, 4])),
            value: Rows::At(view([1, 1, 5, 2])),
            scale: 1.0,
            softcap: None,
            mask: None,
            band: Band::default(),
            key_lens: None,
            unseeing: Unseeing::Zero,
            narrow: false,
        };
        let run = |attention: &Attention<f32>| {
            let mut out = [0f32; 12];
            attend(
                cx,
                attention,
                ViewMut::dense("out", &mut out, [1, 2, 3, 2]).expect("fits"),
            )
        };
        run(&good).expect("agrees");
        assert!(
            run(&Attention {
                key: Rows::At(view([1, 1, 5, 3])),
                ..good
            })
            .is_err()
        );
        assert!(
            run(&Attention {
                value: Rows::At(view([1, 1, 4, 2])),
                ..good
            })
            .is_err()
        );
        assert!(
            run(&Attention {
                key: Rows::At(view([1, 0, 5, 4])),
                value: Rows::At(view([1, 0, 5, 2])),
                ..good
            })
            .is_err()
        );
        assert!(
            run(&Attention {
                key_lens: Some(&[6]),
                ..good
            })
            .is_err()
        );
        assert!(
            run(&Attention {
                band: Band {
                    offsets: Some(&[1, 2]),
                    ..Band::default()
                },
                ..good
            })
            .is_err()
        );
        assert!(
            run(&Attention {
                mask: Some(Mask::Add(view([1, 1, 3, 5]))),
                ..good
            })
            .is_err()
        );
    });
}
