//! A ladder of kernels, from sizes that fit in the first cache to some far beyond the last: each case is a small graph
//! with what it must compute and move. The program of this package times it into a file that `cupola bench compare` reads;
//! `cargo bench` runs it under criterion.

use anyhow::{Context, Result};
use cupola::ir::composite::{Conv, Gelu, LayerNorm, Softmax};
use cupola::ir::{CompositeOp, Op};
use cupola::runtime::Rates;
use cupola::{DType, Dim, Graph, Host, Options, Program, Session, Tensor, TensorType, Value};
use std::sync::Arc;
use std::time::Duration;

/// A graph of one kernel.
pub struct Case {
    /// Name: kernel and sizes.
    pub name: String,
    graph: Graph,
    inputs: Vec<(String, Tensor)>,
    /// Operations, a multiply-add counted as two.
    pub flops: f64,
    /// Bytes of operands and results, each once.
    pub bytes: f64,
}

impl Case {
    fn new(name: String, graph: Graph, flops: f64) -> Result<Case> {
        let mut inputs = vec![];
        let mut len = 0;
        for v in graph.inputs() {
            let shape = graph.tensor(*v).const_shape().context("constant extents")?;
            let tensor = numbers(&shape, inputs.len())?;
            len += tensor.len();
            inputs.push((graph.input_name(*v).to_string(), tensor));
        }
        for (_, v) in graph.outputs() {
            let shape = graph.tensor(*v).const_shape().context("constant extents")?;
            len += shape.iter().product::<usize>();
        }
        Ok(Case {
            name,
            graph,
            inputs,
            flops,
            bytes: 4.0 * len as f64,
        })
    }

    /// Adds the bytes of a constant operand.
    fn with_weights(mut self, shape: &[usize]) -> Case {
        self.bytes += 4.0 * shape.iter().product::<usize>() as f64;
        self
    }

    /// A session on this machine's processor, and inputs for it.
    pub fn session(&self, host: &Host, threads: usize) -> Result<(Session, Vec<(&str, Value)>)> {
        let options = Options {
            threads,
            ..Options::default()
        };
        let program = Program::compile(self.graph.clone(), host, &options)?;
        let inputs = self
            .inputs
            .iter()
            .map(|(n, t)| (n.as_str(), t.clone().into()));
        Ok((Session::new(Arc::new(program)), inputs.collect()))
    }

    /// The least time that the machine's measured limits allow; everything is charged at the rate of the level of memory
    /// that holds all of it.
    pub fn limit(&self, rates: &Rates) -> Duration {
        let memory = self.bytes / rates.read_rate(self.bytes as u64);
        Duration::from_secs_f64((self.flops / rates.f32_ops).max(memory))
    }
}

/// Numbers between -1 and 1 without a short period.
fn numbers(shape: &[usize], seed: usize) -> Result<Tensor> {
    let len: usize = shape.iter().product();
    let one = |i: usize| ((i * 7919 + seed * 104_729) % 10_007) as f32 / 5003.5 - 1.0;
    let values: Vec<f32> = (0..len).map(one).collect();
    Tensor::from_slice(shape, &values).context("as many numbers as the shape has")
}

/// All cases, each kind from small to large.
///
/// # Errors
/// A graph that does not fit together.
pub fn ladder() -> Result<Vec<Case>> {
    let mut all = vec![];
    for n in [32usize, 64, 128, 256, 512, 1024] {
        all.push(matmul(n, n, n)?);
    }
    for rows in [1usize, 8, 32] {
        all.push(matmul(rows, 2048, 2048)?);
    }
    for (channels, size, kernel) in [
        (64usize, 56usize, 1usize),
        (64, 56, 3),
        (256, 14, 1),
        (256, 14, 3),
        (512, 7, 3),
    ] {
        all.push(conv(channels, size, kernel, 1)?);
    }
    all.push(conv(192, 28, 3, 192)?);
    for (rows, cols) in [(16usize, 64usize), (256, 512), (4096, 4096)] {
        let softmax = Softmax {
            axis: 1,
            log: false,
        };
        all.push(rowwise("softmax", rows, cols, softmax.into(), 5.0)?);
        let norm = LayerNorm {
            axis: 1,
            epsilon: 1e-5,
            stats: false,
        };
        all.push(rowwise("layer norm", rows, cols, norm.into(), 8.0)?);
        let gelu = Gelu { tanh: false };
        all.push(rowwise("gelu", rows, cols, gelu.into(), 20.0)?);
    }
    Ok(all)
}

fn matmul(rows: usize, cols: usize, inner: usize) -> Result<Case> {
    let mut g = Graph::new("matmul");
    let x = g.input("x", TensorType::new(DType::F32, [rows, inner]))?;
    let w = g.constant(numbers(&[inner, cols], 1)?)?;
    let y = g.matmul(x, w)?;
    g.output("y", y);
    let flops = 2.0 * (rows * cols * inner) as f64;
    let case = Case::new(format!("matmul f32 {rows}x{cols}x{inner}"), g, flops)?;
    Ok(case.with_weights(&[inner, cols]))
}

fn conv(channels: usize, size: usize, kernel: usize, groups: usize) -> Result<Case> {
    let mut g = Graph::new("conv");
    let x = g.input("x", TensorType::new(DType::F32, [1, channels, size, size]))?;
    let shape = [channels, channels / groups, kernel, kernel];
    let w = g.constant(numbers(&shape, 1)?)?;
    let pad: Vec<Dim> = vec![Dim::from(kernel / 2); 2];
    let conv = Conv {
        strides: vec![1; 2],
        dilations: vec![1; 2],
        pads_low: pad.clone(),
        pads_high: pad,
        groups,
    };
    let y = g.one(Op::Composite(conv.into()), &[x, w])?;
    g.output("y", y);
    let flops = 2.0 * (shape.iter().product::<usize>() * size * size) as f64;
    let name = match groups {
        1 => format!("conv f32 {channels}x{size}x{size} k{kernel}"),
        _ => format!("depthwise conv f32 {channels}x{size}x{size} k{kernel}"),
    };
    Ok(Case::new(name, g, flops)?.with_weights(&shape))
}

/// An op over rows, with about so many operations for each element.
fn rowwise(kind: &str, rows: usize, cols: usize, op: CompositeOp, work: f64) -> Result<Case> {
    let mut g = Graph::new(kind);
    let x = g.input("x", TensorType::new(DType::F32, [rows, cols]))?;
    let y = g.one(Op::Composite(op), &[x])?;
    g.output("y", y);
    Case::new(
        format!("{kind} f32 {rows}x{cols}"),
        g,
        work * (rows * cols) as f64,
    )
}
