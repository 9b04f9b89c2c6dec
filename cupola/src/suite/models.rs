//! Whole networks with made-up weights: the structure and sizes of well-known models.

use super::{Builder, Case, Group};
use cupola_ir::composite::{Attention, Conv, Gelu, LayerNorm, RmsNorm, Swiglu};
use cupola_ir::ops::{Bounds, Gather, ReduceKind, Window};
use cupola_ir::{CompositeOp, CoreOp, DType, Dim, IrError, Op, Scalar, ValueId};

type Built<T = ValueId> = Result<T, IrError>;

/// All models, from small to large.
pub(super) fn cases() -> Vec<Case> {
    vec![
        perceptron(64),
        encoder(1, 16),
        encoder(1, 128),
        encoder(8, 128),
        decoder_step(1024),
        residual_network(1),
        residual_network(32),
    ]
}

/// Bytes of f32 weights, once.
fn weights(count: f64) -> f64 {
    4.0 * count
}

/// 784, 1024, 1024, 10: the usual classifier of digits.
fn perceptron(batch: usize) -> Case {
    const WIDTHS: [usize; 4] = [784, 1024, 1024, 10];
    let count: usize = WIDTHS.windows(2).map(|w| w[0] * w[1]).sum();
    let flops = 2.0 * (batch * count) as f64;
    let name = format!("perceptron 784-1024-1024-10, batch {batch}");
    Case::new(Group::Model, name, flops, weights(count as f64), move |b| {
        let mut x = b.input("x", DType::F32, &[batch, WIDTHS[0]])?;
        for (layer, w) in WIDTHS.windows(2).enumerate() {
            x = linear(b, x, w[0], w[1])?;
            if layer + 2 < WIDTHS.len() {
                x = relu(b, x)?;
            }
        }
        b.output(x);
        Ok(())
    })
}

/// A text encoder of six layers of 384 units and 12 heads, as in all-MiniLM-L6-v2.
fn encoder(batch: usize, tokens: usize) -> Case {
    const LAYERS: usize = 6;
    const WIDTH: usize = 384;
    const HEADS: usize = 12;
    const VOCABULARY: usize = 30_522;
    let count = LAYERS * 12 * WIDTH * WIDTH;
    let products = 2.0 * (batch * tokens * count) as f64;
    let scores = (LAYERS * 4 * batch * tokens * tokens * WIDTH) as f64;
    let name = format!("encoder 6x384 (MiniLM), batch {batch}, {tokens} tokens");
    Case::new(
        Group::Model,
        name,
        products + scores,
        weights(count as f64),
        move |b| {
            let ids = b.ids("ids", &[batch, tokens], VOCABULARY)?;
            let table = b.weight(DType::F32, &[VOCABULARY, WIDTH], 1.0)?;
            let gather = Gather {
                axes: vec![0],
                batch: 0,
                bounds: Bounds::Check,
            };
            let mut x = b.g.one(Op::Core(CoreOp::Gather(gather)), &[table, ids])?;
            x = layer_norm(b, x, WIDTH)?;
            for _ in 0..LAYERS {
                let own = self_attention(b, x, [batch, tokens, WIDTH], HEADS)?;
                let sum = b.g.binary(Scalar::Add, x, own)?;
                x = layer_norm(b, sum, WIDTH)?;
                let wide = linear(b, x, WIDTH, 4 * WIDTH)?;
                let wide = composite(b, Gelu { tanh: false }, &[wide])?;
                let narrow = linear(b, wide, 4 * WIDTH, WIDTH)?;
                let sum = b.g.binary(Scalar::Add, x, narrow)?;
                x = layer_norm(b, sum, WIDTH)?;
            }
            let mean = b.g.mean_keep(x, &[1])?;
            b.output(mean);
            Ok(())
        },
    )
}

/// One token through 16 layers of 2,048 units with 8-fold gated units and shared key heads, as in Llama 3.2 1B, after
/// `keys` others.
fn decoder_step(keys: usize) -> Case {
    const LAYERS: usize = 16;
    const WIDTH: usize = 2048;
    const HIDDEN: usize = 8192;
    const HEADS: usize = 32;
    const SHARED: usize = 8;
    const DEPTH: usize = 64;
    let layer = 2 * WIDTH * WIDTH + 2 * WIDTH * SHARED * DEPTH + 3 * WIDTH * HIDDEN;
    let cache = 2 * SHARED * keys * DEPTH;
    let flops = 2.0 * (LAYERS * (layer + 2 * HEADS * keys * DEPTH)) as f64;
    let bytes = (2 * LAYERS * (layer + cache)) as f64;
    let name = format!("decoder step 16x2048 f16 (Llama 3.2 1B), {keys} keys");
    let mut case = Case::new(Group::Model, name, flops, bytes, move |b| {
        let mut x = b.input("x", DType::F16, &[1, WIDTH])?;
        for layer in 0..LAYERS {
            let normal = rms_norm(b, x, WIDTH)?;
            let q = half_linear(b, normal, WIDTH, WIDTH)?;
            let q = shape(b, q, &[1, HEADS, 1, DEPTH])?;
            let k = half_linear(b, normal, WIDTH, SHARED * DEPTH)?;
            let v = half_linear(b, normal, WIDTH, SHARED * DEPTH)?;
            let past = [1, SHARED, keys, DEPTH];
            let [mut all_k, mut all_v] = [k, v];
            for (all, kind) in [(&mut all_k, "k"), (&mut all_v, "v")] {
                let past = b.input(&format!("{kind}{layer}"), DType::F16, &past)?;
                let new = shape(b, *all, &[1, SHARED, 1, DEPTH])?;
                *all = b.g.concat(&[past, new], 2)?;
            }
            let own = composite(b, attention(DEPTH, true), &[q, all_k, all_v])?;
            let own = shape(b, own, &[1, WIDTH])?;
            let own = half_linear(b, own, WIDTH, WIDTH)?;
            let sum = b.g.binary(Scalar::Add, x, own)?;
            let normal = rms_norm(b, sum, WIDTH)?;
            let gate = half_linear(b, normal, WIDTH, HIDDEN)?;
            let up = half_linear(b, normal, WIDTH, HIDDEN)?;
            let hidden = composite(b, Swiglu { alpha: 1.0 }, &[gate, up])?;
            let down = half_linear(b, hidden, HIDDEN, WIDTH)?;
            x = b.g.binary(Scalar::Add, sum, down)?;
        }
        b.output(x);
        Ok(())
    });
    case.arithmetic = super::Arithmetic::F16;
    case
}

/// ResNet-50 on images of 224 x 224, normalisation folded into the convolutions.
fn residual_network(batch: usize) -> Case {
    const STAGES: [(usize, usize, i64); 4] = [(3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2)];
    let name = format!("ResNet-50, batch {batch}");
    let bytes = weights(25.5e6) + (batch * 3 * 224 * 224 * 4) as f64;
    Case::new(Group::Model, name, 8.18e9 * batch as f64, bytes, move |b| {
        let x = b.input("x", DType::F32, &[batch, 3, 224, 224])?;
        let x = conv(b, x, [3, 64], 7, 2)?;
        let x = relu(b, x)?;
        let mut x = max_pool(b, x)?;
        let mut channels = 64;
        for (blocks, width, stride) in STAGES {
            for block in 0..blocks {
                let stride = if block == 0 { stride } else { 1 };
                x = bottleneck(b, x, channels, width, stride)?;
                channels = 4 * width;
            }
        }
        let pooled = b.g.mean_keep(x, &[2, 3])?;
        let flat = shape(b, pooled, &[batch, channels])?;
        let y = linear(b, flat, channels, 1000)?;
        b.output(y);
        Ok(())
    })
}

/// 1x1, 3x3 and 1x1 convolutions beside a shortcut.
fn bottleneck(b: &mut Builder, x: ValueId, channels: usize, width: usize, stride: i64) -> Built {
    let shortcut = match channels == 4 * width {
        true => x,
        false => conv(b, x, [channels, 4 * width], 1, stride)?,
    };
    let y = conv(b, x, [channels, width], 1, 1)?;
    let y = relu(b, y)?;
    let y = conv(b, y, [width, width], 3, stride)?;
    let y = relu(b, y)?;
    let y = conv(b, y, [width, 4 * width], 1, 1)?;
    let sum = b.g.binary(Scalar::Add, y, shortcut)?;
    relu(b, sum)
}

fn conv(b: &mut Builder, x: ValueId, [from, to]: [usize; 2], kernel: usize, stride: i64) -> Built {
    let scale = (3.0 / (from * kernel * kernel) as f64).sqrt();
    let w = b.weight(DType::F32, &[to, from, kernel, kernel], scale)?;
    let pad: Vec<Dim> = vec![Dim::from(kernel / 2); 2];
    let conv = Conv {
        strides: vec![stride; 2],
        dilations: vec![1; 2],
        pads_low: pad.clone(),
        pads_high: pad,
        groups: 1,
    };
    let y = composite(b, conv, &[x, w])?;
    let bias = b.weight(DType::F32, &[to, 1, 1], 0.1)?;
    b.g.binary(Scalar::Add, y, bias)
}

/// Windows of 3 x 3, two apart.
fn max_pool(b: &mut Builder, x: ValueId) -> Built {
    let low = b.g.number_like(f64::NEG_INFINITY, x)?;
    let pad: Vec<Dim> = [0usize, 0, 1, 1].into_iter().map(Dim::from).collect();
    let padded = b.g.pad(x, low, &pad, &pad)?;
    let window = Window {
        axes: vec![2, 3],
        sizes: vec![Dim::from(3usize); 2],
        strides: vec![2; 2],
        dilations: vec![1; 2],
    };
    let windows = b.g.one(Op::Core(CoreOp::Window(window)), &[padded])?;
    b.g.reduce(ReduceKind::Max, windows, &[4, 5])
}

fn self_attention(
    b: &mut Builder,
    x: ValueId,
    [batch, tokens, width]: [usize; 3],
    heads: usize,
) -> Built {
    let mut parts = [x; 3];
    for part in &mut parts {
        let projected = linear(b, x, width, width)?;
        let split = shape(b, projected, &[batch, tokens, heads, width / heads])?;
        *part = b.g.permute(split, &[0, 2, 1, 3])?;
    }
    let own = composite(b, attention(width / heads, false), &parts)?;
    let joined = b.g.permute(own, &[0, 2, 1, 3])?;
    let joined = shape(b, joined, &[batch, tokens, width])?;
    linear(b, joined, width, width)
}

fn attention(depth: usize, causal: bool) -> Attention {
    Attention {
        scale: 1.0 / (depth as f64).sqrt(),
        causal,
        softcap: 0.0,
    }
}

fn composite(b: &mut Builder, op: impl Into<CompositeOp>, operands: &[ValueId]) -> Built {
    b.g.one(Op::Composite(op.into()), operands)
}

fn shape(b: &mut Builder, x: ValueId, dims: &[usize]) -> Built {
    let dims: Vec<Dim> = dims.iter().map(|d| Dim::from(*d)).collect();
    b.g.reshape(x, &dims)
}

fn relu(b: &mut Builder, x: ValueId) -> Built {
    let zero = b.g.number_like(0.0, x)?;
    b.g.binary(Scalar::Max, x, zero)
}

fn linear(b: &mut Builder, x: ValueId, from: usize, to: usize) -> Built {
    let w = b.weight(DType::F32, &[from, to], (3.0 / from as f64).sqrt())?;
    let bias = b.weight(DType::F32, &[to], 0.1)?;
    let y = b.g.matmul(x, w)?;
    b.g.binary(Scalar::Add, y, bias)
}

fn half_linear(b: &mut Builder, x: ValueId, from: usize, to: usize) -> Built {
    let w = b.weight(DType::F16, &[from, to], (3.0 / from as f64).sqrt())?;
    b.g.matmul(x, w)
}

fn layer_norm(b: &mut Builder, x: ValueId, width: usize) -> Built {
    let scale = b.weight(DType::F32, &[width], 1.0)?;
    let bias = b.weight(DType::F32, &[width], 0.1)?;
    let norm = LayerNorm {
        axis: b.g.rank(x) - 1,
        epsilon: 1e-5,
        stats: false,
    };
    composite(b, norm, &[x, scale, bias])
}

fn rms_norm(b: &mut Builder, x: ValueId, width: usize) -> Built {
    let scale = b.weight(DType::F16, &[width], 1.0)?;
    let norm = RmsNorm {
        axis: 1,
        epsilon: 1e-5,
    };
    composite(b, norm, &[x, scale])
}
