//! Composites: rules of their own beside central differences, and beside the decomposition's.

use crate::check::*;
use cupola_ir::composite::*;
use cupola_ir::{DType, Dim, Graph, Op, Result, Scalar, ValueId};

fn dims(shape: &[usize]) -> Vec<Dim> {
    shape.iter().map(|n| Dim::from(*n)).collect()
}

fn composite(
    op: impl Into<CompositeOp> + Clone,
) -> impl Fn(&mut Graph, &[ValueId]) -> Result<ValueId> {
    move |g, x| Ok(g.push(Op::Composite(op.clone().into()), x)?[0])
}

#[test]
fn softmax_and_its_logarithm() {
    for log in [false, true] {
        for axis in [0, 1] {
            let op = composite(Softmax { axis, log });
            check_twice("softmax", &[floats(&[3, 5], 2)], &op);
            check("softmax", &[floats(&[3, 5], 2).named(&["n", "m"])], &op);
            check("softmax", &[floats(&[0, 5], 2)], &op);
        }
    }
}

#[test]
fn norms() {
    for axis in [1, 2] {
        let scale = &[2, 3, 4][axis..];
        let given = [floats(&[2, 3, 4], 1), floats(scale, 2), floats(scale, 3)];
        let layer = LayerNorm {
            axis,
            epsilon: 0.1,
            stats: false,
        };
        let rms = RmsNorm { axis, epsilon: 0.1 };
        for count in 1..=3 {
            check_twice("layer_norm", &given[..count], &composite(layer.clone()));
            if count < 3 {
                check_twice("rms_norm", &given[..count], &composite(rms.clone()));
            }
        }
    }
    let named = [
        floats(&[2, 3], 1).named(&["n", "m"]),
        floats(&[3], 2).named(&["m"]),
        floats(&[1], 3),
    ];
    let stats = LayerNorm {
        axis: 1,
        epsilon: 0.1,
        stats: true,
    };
    check("layer_norm of symbols", &named, &composite(stats.clone()));
    check(
        "layer_norm with statistics",
        &[floats(&[2, 3], 1)],
        &|g, x| {
            let y = g.push(Op::Composite(stats.clone().into()), x)?;
            let sum = g.binary(Scalar::Mul, y[0], y[1])?;
            g.binary(Scalar::Mul, sum, y[2])
        },
    );
}

#[test]
fn activations() {
    for tanh in [false, true] {
        check_twice("gelu", &[floats(&[3, 5], 1)], &composite(Gelu { tanh }));
    }
    for alpha in [1.0, 1.702] {
        check_twice("swish", &[floats(&[3, 5], 1)], &composite(Swish { alpha }));
        let two = [floats(&[3, 5], 1), floats(&[3, 5], 2)];
        check_twice("swiglu", &two, &composite(Swiglu { alpha }));
    }
}

#[test]
fn rotations() {
    for interleaved in [false, true] {
        let mut given = [
            floats(&[2, 3, 6], 1),
            floats(&[3, 3], 2),
            floats(&[3, 3], 3),
        ];
        let op = composite(Rope { interleaved });
        check_twice("rope with angles", &given, &op);
        (given[1].differs, given[2].differs) = (false, false);
        check("rope", &given, &op);
    }
}

#[test]
fn attention() {
    let base = Attention {
        scale: 0.6,
        causal: false,
        softcap: 0.0,
    };
    let given = |heads: usize, kv: usize, t: usize, s: usize| {
        vec![
            floats(&[2, heads, t, 3], 1),
            floats(&[2, kv, s, 3], 2),
            floats(&[2, kv, s, 2], 3),
        ]
    };
    check_twice("attention", &given(2, 2, 3, 3), &composite(base.clone()));
    for (causal, softcap, heads, t, s) in [
        (true, 0.0, 2, 3, 3),
        (true, 1.5, 4, 2, 3),
        (true, 0.0, 2, 3, 2),
    ] {
        let op = Attention {
            causal,
            softcap,
            ..base.clone()
        };
        check("attention", &given(heads, 2, t, s), &composite(op));
    }
    for mask in [vec![3, 4], vec![2, 1, 3, 4], vec![4, 3, 4], vec![1, 1]] {
        let mut with = given(4, 2, 3, 4);
        with.push(floats(&mask, 5));
        check("attention with a mask", &with, &composite(base.clone()));
    }
    let mut named = given(2, 1, 3, 4);
    named[0] = named[0].clone().named(&["b", "h", "t", "d"]);
    named[1] = named[1].clone().named(&["b", "hk", "s", "d"]);
    named[2] = named[2].clone().named(&["b", "hk", "s", "dv"]);
    check("attention of symbols", &named, &composite(base.clone()));
    check("attention with a bool mask", &given(2, 2, 3, 4), &|g, x| {
        let i = g.iota(DType::I64, &dims(&[3, 4]), 0)?;
        let two = g.number(2.0, DType::I64)?;
        let seen = g.binary(Scalar::Lt, i, two)?;
        composite(base.clone())(g, &[x[0], x[1], x[2], seen])
    });
}

struct Case {
    x: Vec<usize>,
    w: Vec<usize>,
    groups: usize,
    strides: Vec<i64>,
    dilations: Vec<i64>,
    low: Vec<usize>,
    high: Vec<usize>,
}

fn case(
    x: &[usize],
    w: &[usize],
    groups: usize,
    strides: &[i64],
    dilations: &[i64],
    low: &[usize],
    high: &[usize],
) -> Case {
    Case {
        x: x.to_vec(),
        w: w.to_vec(),
        groups,
        strides: strides.to_vec(),
        dilations: dilations.to_vec(),
        low: low.to_vec(),
        high: high.to_vec(),
    }
}

fn cases() -> Vec<Case> {
    vec![
        case(
            &[2, 2, 4, 5],
            &[3, 2, 3, 2],
            1,
            &[1, 1],
            &[1, 1],
            &[1, 0],
            &[1, 1],
        ),
        case(
            &[2, 4, 5, 6],
            &[6, 2, 3, 2],
            2,
            &[2, 1],
            &[1, 2],
            &[1, 0],
            &[2, 1],
        ),
        case(&[1, 3, 8], &[2, 3, 3], 1, &[3], &[1], &[0], &[0]),
        case(&[2, 4, 4], &[4, 1, 3], 4, &[1], &[1], &[1], &[1]),
        case(&[1, 2, 3], &[2, 2, 1], 1, &[1], &[1], &[2], &[0]),
        case(&[0, 2, 5], &[3, 2, 2], 1, &[1], &[1], &[0], &[0]),
        // Rows of the kernel of many channels, three axes, and a kernel that hardly fits.
        case(
            &[2, 16, 3, 4],
            &[2, 16, 2, 2],
            1,
            &[1, 1],
            &[1, 2],
            &[0, 1],
            &[0, 0],
        ),
        case(
            &[2, 2, 3, 3, 2],
            &[2, 2, 2, 2, 2],
            1,
            &[1, 1, 1],
            &[1, 2, 1],
            &[0, 0, 1],
            &[0, 0, 0],
        ),
        case(
            &[1, 2, 5, 5],
            &[2, 2, 4, 5],
            1,
            &[1, 1],
            &[1, 1],
            &[0, 0],
            &[0, 0],
        ),
    ]
}

#[test]
fn convolutions() {
    for c in cases() {
        let conv = Conv {
            strides: c.strides.clone(),
            dilations: c.dilations.clone(),
            pads_low: dims(&c.low),
            pads_high: dims(&c.high),
            groups: c.groups,
        };
        let given = [floats(&c.x, 1), floats(&c.w, 2)];
        let what = format!("conv of {:?} by {:?}", c.x, c.w);
        check(&what, &given, &composite(conv.clone()));
        check_twice(&what, &given, &|g, x| {
            let y = composite(conv.clone())(g, x)?;
            g.binary(Scalar::Mul, y, y)
        });
        let names = ["n", "c", "h", "w", "v"];
        let mut named = given.clone();
        named[0] = named[0].clone().named(&names[..c.x.len()]);
        if c.groups == 1 {
            check(&what, &named, &composite(conv.clone()));
        }
        let last = ConvChannelsLast::from(conv);
        check("channels last", &given, &|g, x| {
            let rank = g.rank(x[0]);
            let moved = g.permute(x[0], &channels_last(rank))?;
            composite(last.clone())(g, &[moved, x[1]])
        });
    }
}

#[test]
fn transposed_convolutions() {
    for c in cases() {
        let n = c.strides.len();
        let windows: Vec<usize> = (0..n)
            .map(|a| {
                let span = c.dilations[a] * (c.w[2 + a] as i64 - 1) + 1;
                let padded = (c.x[2 + a] + c.low[a] + c.high[a]) as i64;
                ((padded - span) / c.strides[a] + 1) as usize
            })
            .collect();
        let shape = [&[c.x[0], c.w[0]], &windows[..]].concat();
        for beyond in [0, 2] {
            let spatial: Vec<usize> = c.x[2..].iter().map(|d| d + beyond).collect();
            let op = ConvTranspose {
                strides: c.strides.clone(),
                dilations: c.dilations.clone(),
                pads_low: c
                    .low
                    .iter()
                    .map(|p| Dim::Const(*p as i64 - beyond as i64 / 2))
                    .collect(),
                spatial: dims(&spatial),
                groups: c.groups,
            };
            let given = [floats(&shape, 1), floats(&c.w, 2)];
            let what = format!("conv_transpose of {shape:?} by {:?}", c.w);
            check_twice(&what, &given, &composite(op));
        }
    }
}
