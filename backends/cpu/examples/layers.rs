//! Speed of attention, recurrent, row and sorting kernels: `cargo run --release -p cupola-cpu --example layers
//! [THREADS] [attention|rows|lstm|sort]`.
//!
//! Prints the best time of each, and what it means per second.

use std::time::{Duration, Instant};

use cupola_cpu::isa::Isa;
use cupola_cpu::library::attention::{Attention, Band, Rows, Unseeing, attend};
use cupola_cpu::library::lstm::{
    Activation, Cell, PackedRecurrent, Recurrent, RecurrentOutputs, Weights, recur,
};
use cupola_cpu::library::rows::{Norm, NormExtras, RowsOutput, Softmax, normalize, softmax};
use cupola_cpu::library::sort::{Order, Selection, select};
use cupola_cpu::library::{Context, View, ViewMut};
use cupola_cpu::memory::{Buffer, Scratch, Usage};
use cupola_cpu::threads::Pool;

fn best(mut run: impl FnMut()) -> f64 {
    run();
    let (begin, mut best) = (Instant::now(), Duration::MAX);
    while begin.elapsed() < Duration::from_millis(400) {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed());
    }
    best.as_secs_f64()
}

/// Numbers in -1..1 that repeat after a while.
fn numbers(len: usize) -> Buffer {
    let mut buffer = Buffer::zeroed_for::<f32>(len, &Usage::unlimited()).expect("memory");
    for (index, x) in buffer.as_mut_slice::<f32>().iter_mut().enumerate() {
        *x = ((index * 7919) % 2003) as f32 / 1001.0 - 1.0;
    }
    buffer
}

fn attention(
    cx: &Context,
    [heads, kv_heads, rows, keys, depth]: [usize; 5],
    causal: bool,
    narrow: bool,
) {
    let (q, k, v) = (
        numbers(heads * rows * depth),
        numbers(kv_heads * keys * depth),
        numbers(kv_heads * keys * depth),
    );
    let mut out = numbers(heads * rows * depth);
    let attention = Attention {
        query: View::dense("q", q.as_slice::<f32>(), [1, heads, rows, depth]).expect("fits"),
        key: Rows::At(
            View::dense("k", k.as_slice::<f32>(), [1, kv_heads, keys, depth]).expect("fits"),
        ),
        value: Rows::At(
            View::dense("v", v.as_slice::<f32>(), [1, kv_heads, keys, depth]).expect("fits"),
        ),
        scale: 1.0 / (depth as f32).sqrt(),
        softcap: None,
        mask: None,
        band: if causal {
            Band::causal(keys as isize - rows as isize)
        } else {
            Band::default()
        },
        key_lens: None,
        unseeing: Unseeing::Zero,
        narrow,
    };
    let time = best(|| {
        let output = ViewMut::dense("out", out.as_mut_slice::<f32>(), [1, heads, rows, depth])
            .expect("fits");
        attend(cx, &attention, output).expect("agrees");
    });
    let flops =
        4.0 * (heads * rows * keys * depth) as f64 * if causal && rows > 1 { 0.5 } else { 1.0 };
    let bytes = 8.0 * (kv_heads * keys * depth) as f64;
    println!(
        "attention {heads}/{kv_heads} heads, {rows} rows, {keys} keys, depth {depth}, causal {causal}, narrow {narrow}: {:.1} us, {:.1} GFLOP/s, {:.1} GB/s of keys and values",
        time * 1e6,
        flops / time / 1e9,
        bytes / time / 1e9
    );
}

fn rows(cx: &Context, rows: usize, cols: usize) {
    let (from, mut to) = (numbers(rows * cols), numbers(rows * cols));
    let from = View::dense("x", from.as_slice::<f32>(), [rows, cols]).expect("fits");
    let rate = |time: f64| (rows * cols) as f64 / time / 1e9;
    let soft = best(|| {
        let output = ViewMut::dense("y", to.as_mut_slice(), [rows, cols]).expect("fits");
        softmax(cx, Softmax::Plain, from, RowsOutput::Store(output)).expect("agrees");
    });
    let norm = best(|| {
        let output = ViewMut::dense("y", to.as_mut_slice(), [rows, cols]).expect("fits");
        normalize(
            cx,
            Norm::Layer,
            1e-5,
            NormExtras::default(),
            from,
            RowsOutput::Store(output),
        )
        .expect("agrees");
    });
    println!(
        "rows {rows}x{cols}: softmax {:.2}, layer norm {:.2} Gelem/s",
        rate(soft),
        rate(norm)
    );
}

fn lstm(cx: &Context, steps: usize, batch: usize, hidden: usize) {
    let cell = Cell::Lstm {
        gate: Activation::Sigmoid,
        cell: Activation::Tanh,
        hidden: Activation::Tanh,
        peepholes: None,
        coupled: false,
    };
    let (inputs, weights, mut states) = (
        numbers(steps * batch * 4 * hidden),
        numbers(4 * hidden * hidden),
        numbers(steps * batch * hidden),
    );
    let matrix = View::dense("r", weights.as_slice::<f32>(), [4 * hidden, hidden]).expect("fits");
    let packed = PackedRecurrent::new(cx, &cell, Weights::F32(matrix)).expect("memory");
    let layer = Recurrent {
        cell,
        clip: None,
        reverse: false,
        inputs: View::dense("x", inputs.as_slice::<f32>(), [steps, batch, 4 * hidden])
            .expect("fits"),
        weights: &packed,
        lens: None,
        first_hidden: None,
        first_cell: None,
    };
    let time = best(|| {
        let states =
            ViewMut::dense("y", states.as_mut_slice(), [steps, batch, hidden]).expect("fits");
        recur(
            cx,
            &layer,
            RecurrentOutputs {
                states: Some(states),
                ..RecurrentOutputs::default()
            },
        )
        .expect("agrees");
    });
    println!(
        "lstm {steps} steps, batch {batch}, hidden {hidden}: {:.2} ms, {:.1} GFLOP/s, {:.1} GB/s of weights",
        time * 1e3,
        8.0 * (steps * batch * hidden * hidden) as f64 / time / 1e9,
        16.0 * (steps * hidden * hidden) as f64 / time / 1e9
    );
}

fn sort(cx: &Context, lines: usize, len: usize, count: usize) {
    let (from, mut to) = (numbers(lines * len), vec![0i64; lines * count]);
    let from = View::dense("x", from.as_slice::<f32>(), [lines, len, 1]).expect("fits");
    let time = best(|| {
        let output = ViewMut::dense("p", &mut to, [lines, count, 1]).expect("fits");
        select(
            cx,
            Order::Descending,
            Selection::Sorted,
            from,
            None,
            Some(output),
        )
        .expect("agrees");
    });
    println!(
        "first {count} of {lines}x{len}: {:.1} us, {:.1} Melem/s",
        time * 1e6,
        (lines * len) as f64 / time / 1e6
    );
}

fn main() {
    let threads = std::env::args()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .unwrap_or(1);
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
    println!("{isa:?}, {threads} threads");
    let chosen = std::env::args().nth(2);
    let wanted = |name: &str| chosen.as_ref().is_none_or(|chosen| chosen == name);
    if wanted("attention") {
        for narrow in [false, true] {
            attention(&cx, [12, 12, 128, 128, 32], false, narrow);
            attention(&cx, [12, 12, 512, 512, 32], false, narrow);
            attention(&cx, [12, 12, 512, 512, 64], false, narrow);
            attention(&cx, [32, 8, 1024, 1024, 128], true, narrow);
        }
        attention(&cx, [9, 3, 1, 1024, 64], true, false);
        attention(&cx, [32, 8, 1, 4096, 128], true, false);
        attention(&cx, [32, 32, 1, 4096, 128], true, false);
    }
    if wanted("rows") {
        rows(&cx, 16, 512);
        rows(&cx, 64, 4096);
        rows(&cx, 4096, 4096);
        rows(&cx, 4096, 1024);
    }
    if wanted("lstm") {
        lstm(&cx, 128, 1, 1024);
        lstm(&cx, 128, 16, 1024);
        lstm(&cx, 128, 1, 128);
    }
    if wanted("sort") {
        sort(&cx, 1, 1 << 16, 1 << 16);
        sort(&cx, 64, 1000, 5);
        sort(&cx, 1, 50_000, 40);
    }
}
