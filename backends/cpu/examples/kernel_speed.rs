//! Speed of generated code: `cargo run --release -p cupola-cpu --example kernel_speed [THREADS]`.
//!
//! Prints elements (or multiply-adds) per second of fused chains, rows and products on one thread or more.

use cupola_backend::{Backend, BufferRange, Command, Launch};
use cupola_cpu::CpuBackend;
use cupola_cpu::isa::Isa;
use cupola_cpu::memory::Usage;
use cupola_ir::kernel::*;
use cupola_ir::{DType, Scalar};
use std::time::Instant;

fn buffer(access: Access, len: i64) -> BufferDecl {
    BufferDecl {
        dtype: DType::F32,
        access,
        len: Extent::Const(len),
    }
}

fn number(k: &mut Kernel, x: f32) -> ExprId {
    k.expr(Expr::Const(Literal {
        dtype: DType::F32,
        bits: u64::from(x.to_bits()),
    }))
}

fn load(k: &mut Kernel, buffer: u32, index: IndexId) -> ExprId {
    k.expr(Expr::Load {
        buffer: BufferId(buffer),
        index,
        guard: None,
    })
}

fn store(k: &mut Kernel, axes: Vec<AxisId>, buffer: u32, index: IndexId, value: ExprId) {
    k.phases.push(Phase::Store {
        axes,
        stores: vec![Store {
            buffer: BufferId(buffer),
            index,
            value,
            guard: None,
            kind: StoreKind::Set,
        }],
    });
}

/// `y = f(x)` over one axis.
fn map(name: &str, len: i64, f: impl FnOnce(&mut Kernel, ExprId) -> ExprId) -> Kernel {
    let mut k = Kernel {
        name: name.into(),
        axes: vec![Extent::Const(len)],
        parallel: 1,
        buffers: vec![buffer(Access::Read, len), buffer(Access::Write, len)],
        ..Kernel::default()
    };
    let i = k.index(Index::Axis(AxisId(0)));
    let x = load(&mut k, 0, i);
    let y = f(&mut k, x);
    store(&mut k, vec![], 1, i, y);
    k
}

/// `gelu(x * a + b) + c` in the tanh form.
fn gelu_chain(k: &mut Kernel, x: ExprId) -> ExprId {
    let (a, b, c) = (number(k, 1.1), number(k, 0.1), number(k, 0.3));
    let t = k.expr(Expr::Ternary(Scalar::Fma, x, a, b));
    let square = k.expr(Expr::Binary(Scalar::Mul, t, t));
    let cube = k.expr(Expr::Binary(Scalar::Mul, square, t));
    let (p, q) = (number(k, 0.044_715), number(k, -1.595_769_1));
    let inner = k.expr(Expr::Ternary(Scalar::Fma, cube, p, t));
    let inner = k.expr(Expr::Binary(Scalar::Mul, inner, q));
    let e = k.expr(Expr::Unary(Scalar::Exp, inner));
    let one = number(k, 1.0);
    let below = k.expr(Expr::Binary(Scalar::Add, e, one));
    let gate = k.expr(Expr::Binary(Scalar::Div, t, below));
    k.expr(Expr::Binary(Scalar::Add, gate, c))
}

/// Rows of `c` elements: parallel rows and as many column axes as asked for.
fn rows(name: &str, r: i64, c: i64, phases: usize) -> (Kernel, Vec<IndexId>) {
    let mut k = Kernel {
        name: name.into(),
        axes: [vec![Extent::Const(r)], vec![Extent::Const(c); phases]].concat(),
        parallel: 1,
        buffers: vec![buffer(Access::Read, r * c), buffer(Access::Write, r * c)],
        ..Kernel::default()
    };
    let row = k.index(Index::Axis(AxisId(0)));
    let width = k.index(Index::Const(c));
    let base = k.index(Index::Mul(row, width));
    let at = |k: &mut Kernel, a| {
        let i = k.index(Index::Axis(AxisId(a)));
        k.index(Index::Add(base, i))
    };
    let all = (1..=phases as u32).map(|a| at(&mut k, a)).collect();
    (k, all)
}

fn reduce(k: &mut Kernel, axis: u32, kind: AccumKind, value: ExprId) -> ExprId {
    let phase = k.phases.len() as u32;
    k.phases.push(Phase::Reduce {
        axes: vec![AxisId(axis)],
        accums: vec![Accum { kind, value }],
    });
    k.expr(Expr::Accum { phase, accum: 0 })
}

fn softmax(r: i64, c: i64) -> Kernel {
    let (mut k, at) = rows("softmax", r, c, 3);
    let x = load(&mut k, 0, at[0]);
    let max = reduce(&mut k, 1, AccumKind::Max, x);
    let e = |k: &mut Kernel, at| {
        let x = load(k, 0, at);
        let d = k.expr(Expr::Binary(Scalar::Sub, x, max));
        k.expr(Expr::Unary(Scalar::Exp, d))
    };
    let e2 = e(&mut k, at[1]);
    let sum = reduce(&mut k, 2, AccumKind::Sum, e2);
    let inverse = k.expr(Expr::Unary(Scalar::Recip, sum));
    let e3 = e(&mut k, at[2]);
    let y = k.expr(Expr::Binary(Scalar::Mul, e3, inverse));
    store(&mut k, vec![AxisId(3)], 1, at[2], y);
    k
}

fn layer_norm(r: i64, c: i64) -> Kernel {
    let (mut k, at) = rows("layer_norm", r, c, 3);
    let x = load(&mut k, 0, at[0]);
    let sum = reduce(&mut k, 1, AccumKind::Sum, x);
    let scale = number(&mut k, 1.0 / c as f32);
    let mean = k.expr(Expr::Binary(Scalar::Mul, sum, scale));
    let centred = |k: &mut Kernel, at| {
        let x = load(k, 0, at);
        k.expr(Expr::Binary(Scalar::Sub, x, mean))
    };
    let d = centred(&mut k, at[1]);
    let square = k.expr(Expr::Binary(Scalar::Mul, d, d));
    let sum = reduce(&mut k, 2, AccumKind::Sum, square);
    let (scale, epsilon) = (number(&mut k, 1.0 / c as f32), number(&mut k, 1e-5));
    let var = k.expr(Expr::Ternary(Scalar::Fma, sum, scale, epsilon));
    let inverse = k.expr(Expr::Unary(Scalar::Rsqrt, var));
    let d = centred(&mut k, at[2]);
    let y = k.expr(Expr::Binary(Scalar::Mul, d, inverse));
    store(&mut k, vec![AxisId(3)], 1, at[2], y);
    k
}

/// Best of several timings, elements per nanosecond.
fn measure(backend: &CpuBackend, kernel: &Kernel, elements: i64, show: bool) -> f64 {
    let unit = Unit::Loops(kernel.clone());
    let executable = match backend.compile(&[&unit]).remove(0) {
        Ok(e) => e,
        Err(e) => {
            println!("{e}");
            return 0.0;
        }
    };
    if show {
        println!("{}", executable.listing());
    }
    let device = backend.device();
    let mut buffers = vec![];
    for b in &kernel.buffers {
        let Extent::Const(len) = b.len else { continue };
        let size = len as usize * b.dtype.size();
        let Ok(buffer) = device.alloc(size) else {
            continue;
        };
        buffers.push(BufferRange {
            buffer,
            offset: 0,
            size,
        });
    }
    let launch = Command::Launch(Launch {
        executable,
        buffers,
        sizes: vec![],
    });
    let repeats = (40_000_000 / elements.max(1)).clamp(1, 100_000);
    let commands = vec![launch; repeats as usize];
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let begin = Instant::now();
        if let Err(e) = device.submit(&commands) {
            println!("{e}");
        }
        best = best.min(begin.elapsed().as_nanos() as f64);
    }
    elements as f64 * repeats as f64 / best
}

fn main() {
    let mut args = std::env::args().skip(1);
    let threads = args.next().and_then(|t| t.parse().ok()).unwrap_or(1);
    let show = args.next();
    let backend = CpuBackend::with_isa(threads, Isa::detect(), Usage::unlimited());
    let mut kernels = vec![];
    for len in [2 << 10, 64 << 10, 1 << 20, 32 << 20] {
        kernels.push((map("gelu_chain", len, gelu_chain), len));
    }
    for f in [
        Scalar::Exp,
        Scalar::Log,
        Scalar::Tanh,
        Scalar::Erf,
        Scalar::Sigmoid,
        Scalar::Sin,
        Scalar::Sqrt,
    ] {
        kernels.push((map(f.name(), 4096, |k, x| k.expr(Expr::Unary(f, x))), 4096));
    }
    for (r, c) in [(16, 512), (64, 4096), (2048, 4096)] {
        kernels.push((softmax(r, c), r * c));
    }
    for (r, c) in [(16, 512), (64, 4096), (8192, 8192)] {
        kernels.push((layer_norm(r, c), r * c));
    }
    for (kernel, elements) in &kernels {
        let shown = show.as_ref() == Some(&kernel.name);
        let speed = measure(&backend, kernel, *elements, shown);
        println!(
            "{:12} {elements:>10} elements {speed:7.2} Gelem/s",
            kernel.name
        );
    }
    let all: Vec<Unit> = (0..100)
        .flat_map(|_| kernels.iter().take(14).map(|k| Unit::Loops(k.0.clone())))
        .take(500)
        .collect();
    let begin = Instant::now();
    let compiled = backend.compile(&all.iter().collect::<Vec<_>>());
    let good = compiled.iter().filter(|c| c.is_ok()).count();
    println!("{good} kernels compiled in {:?}", begin.elapsed());
}
