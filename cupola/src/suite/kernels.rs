//! Kernels: small graphs of one op or a short chain.

use super::{Case, Group};
use cupola_ir::composite::{Attention, Conv, Gelu, LayerNorm, RmsNorm, Softmax};
use cupola_ir::dtype::BlockFormat;
use cupola_ir::ops::{Bounds, Gather, ReduceKind, Sort};
use cupola_ir::{CompositeOp, CoreOp, DType, Dim, Op, Scalar};

/// All kernels, by group.
pub(super) fn cases() -> Vec<Case> {
    let mut all = vec![];
    for side in [1024usize, 4096, 8192] {
        all.extend([copy(side), cast(side), transpose(side)]);
    }
    all.extend([gather(32_768, 1024, 512), gather(65_536, 2048, 8192)]);
    for side in [1024usize, 4096, 8192] {
        all.extend([add(side), bias_gelu(side)]);
    }
    for (rows, cols) in [
        (16usize, 64usize),
        (256, 512),
        (1024, 1000),
        (4096, 4096),
        (16, 1 << 20),
    ] {
        all.extend([softmax(rows, cols), layer_norm(rows, cols)]);
    }
    all.push(rms_norm(4096, 4096));
    for len in [1usize << 20, 1 << 24, 1 << 26] {
        all.push(sum_all(len));
    }
    all.extend([sum_rows(4096, 4096), sum_columns(4096, 4096)]);
    all.extend([sort(1, 1 << 16), sort(64, 4096), sort(1, 1 << 20)]);
    for n in [64usize, 128, 256, 512, 1024, 2048, 4096, 8192] {
        all.push(product(Group::Product, 1, [n, n, n]));
    }
    for rows in [1usize, 8, 32] {
        all.push(product(Group::Product, 1, [rows, 4096, 4096]));
    }
    all.push(product(Group::Product, 96, [128, 128, 64]));
    // Few results of long sums, as in weight gradients.
    all.push(product(Group::Product, 1, [64, 64, 65_536]));
    for n in [256usize, 1024, 2048, 4096, 8192] {
        all.push(product(Group::HalfProduct, 1, [n, n, n]));
    }
    for rows in [1usize, 16] {
        all.push(product(Group::HalfProduct, 1, [rows, 4096, 4096]));
    }
    for format in [
        BlockFormat::Q4_0,
        BlockFormat::Q8_0,
        BlockFormat::Q4_K,
        BlockFormat::Q6_K,
    ] {
        for shape in [
            [1usize, 1024, 1024],
            [1, 4096, 4096],
            [1, 14_336, 4096],
            [512, 4096, 4096],
        ] {
            all.push(quantised(format, shape));
        }
    }
    for (heads, shared, queries, keys) in [
        (12usize, 12usize, 128usize, 128usize),
        (12, 12, 512, 512),
        (32, 8, 2048, 2048),
        (32, 8, 4096, 4096),
        (32, 8, 1, 1024),
        (32, 8, 1, 8192),
    ] {
        all.push(attention(DType::F32, heads, shared, queries, keys));
    }
    for keys in [512usize, 2048, 4096] {
        all.push(attention(DType::F16, 32, 8, keys, keys));
    }
    for (batch, channels, size, kernel, groups) in [
        (1usize, 64usize, 56usize, 1usize, 1usize),
        (1, 64, 56, 3, 1),
        (1, 256, 14, 3, 1),
        (1, 512, 7, 3, 1),
        (1, 192, 28, 3, 192),
        (32, 64, 56, 3, 1),
        (32, 256, 14, 3, 1),
        (32, 192, 28, 3, 192),
    ] {
        all.push(conv(batch, channels, size, kernel, groups));
    }
    all
}

/// A case of one matrix `[side, side]` and so many bytes for each element.
fn square(
    group: Group,
    kind: &str,
    side: usize,
    bytes: f64,
    flops: f64,
    make: impl Fn(&mut super::Builder) -> Result<(), cupola_ir::IrError> + Send + Sync + 'static,
) -> Case {
    let len = (side * side) as f64;
    Case::new(
        group,
        format!("{kind} {side}x{side}"),
        flops * len,
        bytes * len,
        make,
    )
}

/// Every element once in, once out. Negation, since a copy alone would be no kernel.
fn copy(side: usize) -> Case {
    square(Group::Movement, "negate f32", side, 8.0, 1.0, move |b| {
        let x = b.input("x", DType::F32, &[side, side])?;
        let y = b.g.unary(Scalar::Neg, x)?;
        b.output(y);
        Ok(())
    })
}

fn cast(side: usize) -> Case {
    square(
        Group::Movement,
        "cast f32 to f16",
        side,
        6.0,
        0.0,
        move |b| {
            let x = b.input("x", DType::F32, &[side, side])?;
            let y = b.g.cast(x, DType::F16)?;
            b.output(y);
            Ok(())
        },
    )
}

fn transpose(side: usize) -> Case {
    square(Group::Movement, "transpose f32", side, 8.0, 0.0, move |b| {
        let x = b.input("x", DType::F32, &[side, side])?;
        let y = b.g.permute(x, &[1, 0])?;
        b.output(y);
        Ok(())
    })
}

/// Rows of a table picked by number.
fn gather(table: usize, width: usize, picked: usize) -> Case {
    let name = format!("gather f32 {picked} of {table}x{width}");
    let bytes = (2 * picked * width * 4 + picked * 8) as f64;
    Case::new(Group::Movement, name, 0.0, bytes, move |b| {
        let table_value = b.weight(DType::F32, &[table, width], 1.0)?;
        let ids = b.ids("ids", &[picked], table)?;
        let gather = Gather {
            axes: vec![0],
            batch: 0,
            bounds: Bounds::Check,
        };
        let y =
            b.g.one(Op::Core(CoreOp::Gather(gather)), &[table_value, ids])?;
        b.output(y);
        Ok(())
    })
}

fn add(side: usize) -> Case {
    square(Group::Elementwise, "add f32", side, 12.0, 1.0, move |b| {
        let x = b.input("x", DType::F32, &[side, side])?;
        let z = b.input("z", DType::F32, &[side, side])?;
        let y = b.g.binary(Scalar::Add, x, z)?;
        b.output(y);
        Ok(())
    })
}

fn bias_gelu(side: usize) -> Case {
    square(
        Group::Elementwise,
        "bias gelu f32",
        side,
        8.0,
        20.0,
        move |b| {
            let x = b.input("x", DType::F32, &[side, side])?;
            let bias = b.weight(DType::F32, &[side], 1.0)?;
            let sum = b.g.binary(Scalar::Add, x, bias)?;
            let gelu = CompositeOp::from(Gelu { tanh: false });
            let y = b.g.one(Op::Composite(gelu), &[sum])?;
            b.output(y);
            Ok(())
        },
    )
}

/// A composite over the rows of a matrix.
fn rowwise(kind: &str, rows: usize, cols: usize, work: f64, op: CompositeOp) -> Case {
    let len = (rows * cols) as f64;
    let name = format!("{kind} f32 {rows}x{cols}");
    Case::new(Group::Rows, name, work * len, 8.0 * len, move |b| {
        let x = b.input("x", DType::F32, &[rows, cols])?;
        let y = b.g.one(Op::Composite(op.clone()), &[x])?;
        b.output(y);
        Ok(())
    })
}

fn softmax(rows: usize, cols: usize) -> Case {
    let op = Softmax {
        axis: 1,
        log: false,
    };
    rowwise("softmax", rows, cols, 5.0, op.into())
}

fn layer_norm(rows: usize, cols: usize) -> Case {
    let op = LayerNorm {
        axis: 1,
        epsilon: 1e-5,
        stats: false,
    };
    rowwise("layer norm", rows, cols, 8.0, op.into())
}

fn rms_norm(rows: usize, cols: usize) -> Case {
    let op = RmsNorm {
        axis: 1,
        epsilon: 1e-5,
    };
    rowwise("rms norm", rows, cols, 4.0, op.into())
}

fn sum_all(len: usize) -> Case {
    let bytes = 4.0 * len as f64;
    Case::new(
        Group::Rows,
        format!("sum f32 {len}"),
        len as f64,
        bytes,
        move |b| {
            let x = b.input("x", DType::F32, &[len])?;
            let y = b.g.reduce(ReduceKind::Sum, x, &[0])?;
            b.output(y);
            Ok(())
        },
    )
}

fn sum_axis(kind: &str, rows: usize, cols: usize, axis: usize) -> Case {
    let len = (rows * cols) as f64;
    let name = format!("sum of {kind} f32 {rows}x{cols}");
    Case::new(Group::Rows, name, len, 4.0 * len, move |b| {
        let x = b.input("x", DType::F32, &[rows, cols])?;
        let y = b.g.reduce(ReduceKind::Sum, x, &[axis])?;
        b.output(y);
        Ok(())
    })
}

fn sum_rows(rows: usize, cols: usize) -> Case {
    sum_axis("rows", rows, cols, 1)
}

fn sum_columns(rows: usize, cols: usize) -> Case {
    sum_axis("columns", rows, cols, 0)
}

/// Values and their places. Comparisons are counted as operations.
fn sort(rows: usize, len: usize) -> Case {
    let bytes = (rows * len * 16) as f64;
    let comparisons = (rows * len) as f64 * (len as f64).log2();
    Case::new(
        Group::Rows,
        format!("sort f32 {rows}x{len}"),
        comparisons,
        bytes,
        move |b| {
            let x = b.input("x", DType::F32, &[rows, len])?;
            let sort = Sort {
                axis: 1,
                descending: false,
            };
            for y in b.g.push(Op::Core(CoreOp::Sort(sort)), &[x])? {
                b.output(y);
            }
            Ok(())
        },
    )
}

/// A product of activations and constant weights, or of two inputs where there is a batch: `[rows, cols, inner]`.
fn product(group: Group, batch: usize, [rows, cols, inner]: [usize; 3]) -> Case {
    let dtype = match group {
        Group::HalfProduct => DType::F16,
        _ => DType::F32,
    };
    let len = batch * (rows * inner + inner * cols + rows * cols);
    let flops = 2.0 * (batch * rows * cols * inner) as f64;
    let shape = format!("{rows}x{cols}x{inner}");
    let name = match batch {
        1 => format!("matmul {} {shape}", dtype.name()),
        _ => format!("matmul {} {batch} of {shape}", dtype.name()),
    };
    Case::new(group, name, flops, (len * dtype.size()) as f64, move |b| {
        let y = match batch {
            1 => {
                let x = b.input("x", dtype, &[rows, inner])?;
                let w = b.weight(dtype, &[inner, cols], 1.0)?;
                b.g.matmul(x, w)?
            }
            _ => {
                let x = b.input("x", dtype, &[batch, rows, inner])?;
                let z = b.input("z", dtype, &[batch, inner, cols])?;
                b.g.matmul(x, z)?
            }
        };
        b.output(y);
        Ok(())
    })
}

/// Activations of f32 times a matrix of blocks.
fn quantised(format: BlockFormat, [rows, cols, inner]: [usize; 3]) -> Case {
    let weights = cols * inner / format.block_len() * format.block_size();
    let bytes = (weights + 4 * rows * (inner + cols)) as f64;
    let flops = 2.0 * (rows * cols * inner) as f64;
    let name = format!("matmul {} {rows}x{cols}x{inner}", format.name());
    Case::new(Group::QuantisedProduct, name, flops, bytes, move |b| {
        let x = b.input("x", DType::F32, &[rows, inner])?;
        let w = b.blocks(format, cols, inner)?;
        let y = b.g.matmul_nt(x, w)?;
        b.output(y);
        Ok(())
    })
}

/// Causal attention of heads of 64 or 128; `shared` key heads.
fn attention(dtype: DType, heads: usize, shared: usize, queries: usize, keys: usize) -> Case {
    let depth = if heads == shared { 64 } else { 128 };
    // Half of the scores are masked where there are as many queries as keys.
    let seen = match queries == keys {
        true => keys as f64 / 2.0,
        false => keys as f64,
    };
    let flops = 4.0 * (heads * queries * depth) as f64 * seen;
    let len = 2 * heads * queries * depth + 2 * shared * keys * depth;
    let name = format!(
        "attention {} {heads} heads ({shared} shared) {queries}x{keys}x{depth}",
        dtype.name()
    );
    let mut case = Case::new(
        Group::Attention,
        name,
        flops,
        (len * dtype.size()) as f64,
        move |b| {
            let q = b.input("q", dtype, &[1, heads, queries, depth])?;
            let k = b.input("k", dtype, &[1, shared, keys, depth])?;
            let v = b.input("v", dtype, &[1, shared, keys, depth])?;
            let attention = CompositeOp::from(Attention {
                scale: 1.0 / (depth as f64).sqrt(),
                causal: true,
                softcap: 0.0,
            });
            let y = b.g.one(Op::Composite(attention), &[q, k, v])?;
            b.output(y);
            Ok(())
        },
    );
    if dtype == DType::F16 {
        case.arithmetic = super::Arithmetic::F16;
    }
    case
}

fn conv(batch: usize, channels: usize, size: usize, kernel: usize, groups: usize) -> Case {
    let shape = [channels, channels / groups, kernel, kernel];
    let weights: usize = shape.iter().product();
    let images = batch * channels * size * size;
    let flops = 2.0 * (weights * batch * size * size) as f64;
    let kind = if groups == 1 {
        "conv"
    } else {
        "depthwise conv"
    };
    let name = format!("{kind} f32 {batch}x{channels}x{size}x{size} k{kernel}");
    let bytes = 4.0 * (2 * images + weights) as f64;
    Case::new(Group::Convolution, name, flops, bytes, move |b| {
        let x = b.input("x", DType::F32, &[batch, channels, size, size])?;
        let w = b.weight(DType::F32, &shape, 1.0)?;
        let pad: Vec<Dim> = vec![Dim::from(kernel / 2); 2];
        let conv = CompositeOp::from(Conv {
            strides: vec![1; 2],
            dilations: vec![1; 2],
            pads_low: pad.clone(),
            pads_high: pad,
            groups,
        });
        let y = b.g.one(Op::Composite(conv), &[x, w])?;
        b.output(y);
        Ok(())
    })
}
