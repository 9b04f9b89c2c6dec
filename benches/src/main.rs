//! Micro-benchmarks through the public interface: each row is one small graph, compiled once and run until half a second
//! has passed. Prints the median, the rate, and the fraction of what the machine reaches in a plain loop of the same
//! kind (fused multiply-adds, or copying), measured in the same run.
//!
//! `cargo run --release -p cupola-benches [-- --json]`

use anyhow::{Context, Result};
use cupola::ir::composite::{Gelu, Softmax};
use cupola::ir::{CompositeOp, Op};
use cupola::{DType, Graph, Host, Options, Program, Session, Tensor, TensorType, Value};
use std::sync::Arc;
use std::time::{Duration, Instant};

struct Row {
    name: String,
    ms: f64,
    rate: f64,
    unit: &'static str,
    peak: f64,
}

fn main() -> Result<()> {
    let json = std::env::args().any(|a| a == "--json");
    let (copy, fma) = (copy_peak(), fma_peak());
    let host = Host::new();
    let mut rows = vec![];
    for n in [128usize, 256, 512, 1024] {
        let work = 2.0 * (n * n * n) as f64 / 1e9;
        rows.push(row(
            format!("matmul f32 {n}"),
            matmul(n)?,
            &host,
            work,
            "GFLOP/s",
            fma,
        )?);
    }
    for (rows_, cols) in [(64usize, 512usize), (1024, 1024), (4096, 4096)] {
        let moved = 8.0 * (rows_ * cols) as f64 / 1e9;
        let softmax = Softmax {
            axis: 1,
            log: false,
        };
        let graph = composite(&[rows_, cols], softmax.into())?;
        rows.push(row(
            format!("softmax f32 {rows_}x{cols}"),
            graph,
            &host,
            moved,
            "GB/s",
            copy,
        )?);
    }
    let moved = 8.0 * (1 << 22) as f64 / 1e9;
    let gelu = composite(&[1 << 22], Gelu { tanh: false }.into())?;
    rows.push(row(
        "gelu f32 4Mi".into(),
        gelu,
        &host,
        moved,
        "GB/s",
        copy,
    )?);
    if json {
        let all: Vec<_> = rows
            .iter()
            .map(|r| serde_json::json!({ "name": r.name, "ms": r.ms, "rate": r.rate, "unit": r.unit, "fraction": r.rate / r.peak }))
            .collect();
        println!(
            "{}",
            serde_json::json!({ "copy_gb_s": copy, "fma_gflop_s": fma, "rows": all })
        );
        return Ok(());
    }
    println!("copy {copy:.1} GB/s, one-thread multiply-add loop {fma:.1} GFLOP/s");
    println!(
        "{:24} {:>10} {:>10} {:8} {:>9}",
        "", "median ms", "rate", "", "of peak"
    );
    for r in rows {
        let percent = 100.0 * r.rate / r.peak;
        println!(
            "{:24} {:>10.3} {:>10.2} {:8} {percent:>8.0}%",
            r.name, r.ms, r.rate, r.unit
        );
    }
    Ok(())
}

fn row(
    name: String,
    graph: Graph,
    host: &Host,
    work: f64,
    unit: &'static str,
    peak: f64,
) -> Result<Row> {
    let ms = median_ms(graph, host).with_context(|| name.clone())?;
    Ok(Row {
        name,
        ms,
        rate: work / (ms / 1e3),
        unit,
        peak,
    })
}

fn matmul(n: usize) -> Result<Graph> {
    let mut g = Graph::new("matmul");
    let a = g.input("x", TensorType::new(DType::F32, [n, n]))?;
    let weights: Vec<f32> = (0..n * n).map(|i| (i % 17) as f32 * 0.1 - 0.8).collect();
    let b = g.constant(Tensor::from_slice(&[n, n], &weights).context("n * n weights")?)?;
    let y = g.matmul(a, b)?;
    g.output("y", y);
    Ok(g)
}

fn composite(shape: &[usize], op: CompositeOp) -> Result<Graph> {
    let mut g = Graph::new(op.name());
    let x = g.input("x", TensorType::new(DType::F32, shape.iter().copied()))?;
    let y = g.one(Op::Composite(op), &[x])?;
    g.output("y", y);
    Ok(g)
}

fn median_ms(graph: Graph, host: &Host) -> Result<f64> {
    let shape = graph
        .tensor(graph.inputs()[0])
        .const_shape()
        .context("constant extents")?;
    let len: usize = shape.iter().product();
    let values: Vec<f32> = (0..len).map(|i| (i % 31) as f32 * 0.05 - 0.7).collect();
    let x: Value = Tensor::from_slice(&shape, &values)
        .context("len values")?
        .into();
    let mut session = Session::new(Arc::new(Program::compile(
        graph,
        host,
        &Options::default(),
    )?));
    let mut samples = vec![];
    let start = Instant::now();
    while samples.len() < 5 || start.elapsed() < Duration::from_millis(500) {
        let one = Instant::now();
        session.run(vec![("x", x.clone())])?;
        samples.push(one.elapsed().as_secs_f64() * 1e3);
    }
    samples.sort_by(f64::total_cmp);
    Ok(samples[samples.len() / 2])
}

/// Bytes read and written per second by copying 64 MiB, best of a few.
fn copy_peak() -> f64 {
    let from = vec![1u8; 64 << 20];
    let mut to = vec![0u8; 64 << 20];
    let best = (0..8).map(|_| {
        let start = Instant::now();
        to.copy_from_slice(std::hint::black_box(&from));
        std::hint::black_box(&to);
        start.elapsed().as_secs_f64()
    });
    2.0 * from.len() as f64 / best.fold(f64::INFINITY, f64::min) / 1e9
}

/// Multiply-adds of one thread in a loop that the compiler vectorises for the baseline processor, best of a few. A lower
/// bound of the machine's peak where it has wider vectors than the baseline.
fn fma_peak() -> f64 {
    const LANES: usize = 64;
    const STEPS: usize = 1 << 18;
    let best = (0..8).map(|_| {
        let mut acc = [1.0f32; LANES];
        let (a, b) = (
            std::hint::black_box(0.999f32),
            std::hint::black_box(0.001f32),
        );
        let start = Instant::now();
        for _ in 0..STEPS {
            for x in &mut acc {
                *x = *x * a + b;
            }
        }
        std::hint::black_box(acc);
        start.elapsed().as_secs_f64()
    });
    2.0 * (LANES * STEPS) as f64 / best.fold(f64::INFINITY, f64::min) / 1e9
}
