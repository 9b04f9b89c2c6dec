//! Speed of matrix products: `cargo run --release -p cupola-cpu --example matmul [THREADS] [MxNxK ...]`.
//!
//! Prints the best GFLOP/s (Gop/s for integers) of products in memory and with a right operand packed ahead of time; with
//! block-quantised weights, of activations rounded to 8 bits and as they are, and the rate at which weights are read.

use std::time::{Duration, Instant};

use cupola_cpu::isa::Isa;
use cupola_cpu::library::gemm::{
    Activations, BlockOutput, Bytes, BytesLeft, BytesRight, Left, Number, Output, PackedBlocks,
    PackedBytesRight, PackedRight, Right, Sum, ZeroPoints, multiply, multiply_blocks,
    multiply_bytes,
};
use cupola_cpu::library::{Context, View, ViewMut};
use cupola_cpu::memory::{Buffer, Scratch, Usage};
use cupola_cpu::threads::Pool;
use cupola_ir::BlockFormat;

fn rate(rows: usize, cols: usize, inner: usize, mut run: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut samples = Vec::new();
    run();
    while begin.elapsed() < Duration::from_millis(400) || samples.len() < 3 {
        let start = Instant::now();
        run();
        samples.push(start.elapsed());
    }
    samples.sort();
    2.0 * (rows * cols * inner) as f64 / samples[0].as_nanos() as f64
}

fn measure<T: Number>(cx: &Context, rows: usize, cols: usize, inner: usize, one: T) -> [f64; 2] {
    let usage = Usage::unlimited();
    let filled = |len| {
        let mut buffer = Buffer::zeroed_for::<T>(len, &usage).expect("memory");
        buffer.as_mut_slice::<T>().fill(one);
        buffer
    };
    let (left, right) = (filled(rows * inner), filled(inner * cols));
    let mut out = Buffer::zeroed_for::<Sum<T>>(rows * cols, &usage).expect("memory");
    let left = View::dense("left", left.as_slice::<T>(), [1, 1, rows, inner]).expect("fits");
    let matrix = View::dense("right", right.as_slice::<T>(), [inner, cols]).expect("fits");
    let packed = PackedRight::new(cx, matrix).expect("memory");
    [Right::View(matrix.batched()), Right::Packed(&packed)].map(|right| {
        rate(rows, cols, inner, || {
            let view = ViewMut::dense("out", out.as_mut_slice(), [1, 1, rows, cols]).expect("fits");
            multiply(cx, Left::View(left), right, Output::Store(view), None).expect("agrees");
        })
    })
}

fn measure_bytes(cx: &Context, rows: usize, cols: usize, inner: usize) -> [f64; 2] {
    let (left, right) = (vec![3u8; rows * inner], vec![5u8; inner * cols]);
    let mut out = vec![0i32; rows * cols];
    let bytes = |data, shape, signed, point| Bytes {
        view: View::dense("operand", data, shape).expect("fits"),
        signed,
        zero_points: ZeroPoints::One(point),
    };
    let left = bytes(&left, [rows, inner], false, 3).batched();
    let right = bytes(&right, [inner, cols], true, 0);
    let packed = PackedBytesRight::new(cx, &right).expect("memory");
    [
        BytesRight::View(right.batched()),
        BytesRight::Packed(&packed),
    ]
    .map(|right| {
        rate(rows, cols, inner, || {
            let view = ViewMut::dense("out", &mut out, [1, 1, rows, cols]).expect("fits");
            multiply_bytes(cx, BytesLeft::View(left), right, view, false, None).expect("agrees");
        })
    })
}

/// Rates with activations rounded to 8 bits and as they are, and the bytes of a weight.
fn measure_blocks(cx: &Context, format: BlockFormat, m: usize, n: usize, k: usize) -> String {
    if !k.is_multiple_of(format.block_len()) {
        return format!("{} -", format.name());
    }
    let bytes = vec![1u8; n * k / format.block_len() * format.block_size()];
    let packed = PackedBlocks::new(cx, format, &bytes, [k, n]).expect("memory");
    let left: Vec<f32> = (0..m * k).map(|at| (at % 97) as f32 - 48.0).collect();
    let left = View::dense("left", &left, [m, k]).expect("fits");
    let mut out = vec![0f32; m * n];
    let [rounded, exact] = [Activations::Rounded, Activations::Exact].map(|how| {
        rate(m, n, k, || {
            let view = ViewMut::dense("out", &mut out, [m, n]).expect("fits");
            let output = BlockOutput::Store(view);
            multiply_blocks(cx, left, &packed, how, output, None).expect("agrees");
        })
    });
    let bytes = packed.size() as f64 / (2 * m * n * k) as f64;
    format!(
        "{} {rounded:.1} / {exact:.1} ({:.1} GB/s)",
        format.name(),
        rounded * bytes
    )
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let threads = arguments
        .next()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1);
    let parse = |text: String| {
        text.split('x')
            .map(|number| number.parse().expect("MxNxK"))
            .collect::<Vec<usize>>()
    };
    let mut sizes: Vec<Vec<usize>> = arguments.map(parse).collect();
    if sizes.is_empty() {
        sizes = [32, 64, 128, 256, 512, 1024, 2048]
            .map(|n| vec![n, n, n])
            .to_vec();
        sizes.extend([1, 8, 32].map(|m| vec![m, 2048, 2048]));
    }
    let isa = Isa::from_environment().expect("CUPOLA_CPU");
    let (pool, scratch) = (
        Pool::new(threads),
        Scratch::new(threads, &Usage::unlimited()),
    );
    let cx = Context {
        isa,
        pool: &pool,
        scratch: &scratch,
    };
    println!("{isa:?}, {threads} threads; in memory / right operand packed");
    for size in sizes {
        let [m, n, k] = size[..] else { panic!("MxNxK") };
        let rows = [
            ("f32", measure(&cx, m, n, k, 1f32)),
            ("bf16", measure(&cx, m, n, k, half::bf16::ONE)),
            ("f16", measure(&cx, m, n, k, half::f16::ONE)),
            ("f64", measure(&cx, m, n, k, 1f64)),
            ("u8*i8", measure_bytes(&cx, m, n, k)),
        ];
        let text: Vec<String> = rows
            .iter()
            .map(|(name, [plain, packed])| format!("{name} {plain:.1} / {packed:.1}"))
            .collect();
        println!("{m}x{n}x{k}: {}", text.join(", "));
        use BlockFormat as B;
        let formats = [B::Q4_0, B::Q4_1, B::Q8_0, B::Q4_K, B::Q6_K, B::IQ4_XS];
        let text = formats.map(|format| measure_blocks(&cx, format, m, n, k));
        println!("    {}", text.join(", "));
    }
}
