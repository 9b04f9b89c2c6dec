//! Speed of f32 convolutions: `cargo run --release -p cupola-cpu --example convolution [THREADS]`.
//!
//! Prints the best GFLOP/s of layers of common image networks, weights packed ahead of time.

use std::time::{Duration, Instant};

use cupola_cpu::isa::Isa;
use cupola_cpu::library::conv::{ConvOutput, PackedWeights, Weights, convolve};
use cupola_cpu::library::window::{Taps, Window};
use cupola_cpu::library::{Context, View, ViewMut};
use cupola_cpu::memory::{Scratch, Usage};
use cupola_cpu::threads::Pool;

/// Input channels, output channels, extent, kernel, stride, groups.
const LAYERS: [[usize; 6]; 14] = [
    [3, 64, 224, 7, 2, 1],
    [64, 64, 56, 1, 1, 1],
    [64, 64, 56, 3, 1, 1],
    [128, 128, 56, 3, 2, 1],
    [128, 128, 28, 3, 1, 1],
    [256, 512, 56, 1, 2, 1],
    [256, 256, 14, 3, 1, 1],
    [512, 2048, 7, 1, 1, 1],
    [512, 512, 7, 3, 1, 1],
    [3, 32, 224, 3, 2, 1],
    [96, 96, 112, 3, 2, 96],
    [144, 144, 56, 3, 1, 144],
    [192, 192, 28, 3, 1, 192],
    [960, 960, 7, 3, 1, 960],
];

fn main() {
    let threads = std::env::args()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .unwrap_or(1);
    let isa = Isa::from_environment().expect("CUPOLA_CPU");
    let usage = Usage::unlimited();
    let (pool, scratch) = (Pool::new(threads), Scratch::new(threads, &usage));
    let cx = Context {
        isa,
        pool: &pool,
        scratch: &scratch,
    };
    for [inputs, outputs, extent, kernel, stride, groups] in LAYERS {
        let taps = Taps {
            kernel,
            stride,
            dilation: 1,
            pads: [kernel / 2, kernel / 2],
        };
        let window = Window::new(&[extent, extent], &[taps, taps]).expect("fine");
        let [_, rows, cols] = window.output();
        let x = vec![1f32; inputs * extent * extent];
        let w = vec![1f32; outputs * inputs / groups * kernel * kernel];
        let mut y = vec![0f32; outputs * rows * cols];
        let input = View::dense("x", &x, [1, inputs, 1, extent, extent]).expect("fits");
        let weights =
            View::dense("w", &w, [outputs, inputs / groups, 1, kernel, kernel]).expect("fits");
        let packed = PackedWeights::new(&cx, weights, groups).expect("memory");
        let mut run = || {
            let output = ConvOutput::Store(
                ViewMut::dense("y", &mut y, [1, outputs, 1, rows, cols]).expect("fits"),
            );
            convolve(
                &cx,
                &window,
                groups,
                input,
                Weights::Packed(&packed),
                output,
                None,
            )
            .expect("agrees");
        };
        run();
        let (begin, mut samples) = (Instant::now(), Vec::new());
        while begin.elapsed() < Duration::from_millis(300) || samples.len() < 3 {
            let start = Instant::now();
            run();
            samples.push(start.elapsed());
        }
        samples.sort();
        let time = samples[0];
        let flops = 2.0 * (outputs * rows * cols * inputs / groups * kernel * kernel) as f64;
        println!(
            "{inputs} -> {outputs} channels, {extent}x{extent}, kernel {kernel}, stride {stride}, {groups} groups: {:.1} us, {:.1} GFLOP/s",
            time.as_nanos() as f64 / 1e3,
            flops / time.as_nanos() as f64
        );
    }
}
