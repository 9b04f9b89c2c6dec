//! Largest errors of the elementary functions of generated code on f32, in units in the last place of the result:
//! `cargo run --release -p cupola-cpu --example math_errors [STEP [FUNCTION]]`.
//!
//! Every STEP-th bit pattern is an argument (1, all of them, unless given), at every vector level of this machine. Prints a
//! table, and ends with status 1 if any error is above the stated bound.

use cupola_backend::testing::run;
use cupola_cpu::CpuBackend;
use cupola_cpu::isa::Isa;
use cupola_cpu::memory::Usage;
use cupola_ir::eval::scalar::{Num, eval_one};
use cupola_ir::kernel::*;
use cupola_ir::{DType, Scalar};
use std::process::ExitCode;

/// Arguments of one launch.
const CHUNK: usize = 1 << 18;

const FUNCTIONS: [Scalar; 20] = [
    Scalar::Exp,
    Scalar::Expm1,
    Scalar::Log,
    Scalar::Log1p,
    Scalar::Sqrt,
    Scalar::Rsqrt,
    Scalar::Sigmoid,
    Scalar::Tanh,
    Scalar::Erf,
    Scalar::Sin,
    Scalar::Cos,
    Scalar::Tan,
    Scalar::Asin,
    Scalar::Acos,
    Scalar::Atan,
    Scalar::Sinh,
    Scalar::Cosh,
    Scalar::Asinh,
    Scalar::Acosh,
    Scalar::Atanh,
];

/// `y = f(x)` over a chunk.
fn kernel(f: Scalar) -> Unit {
    let len = Extent::Const(CHUNK as i64);
    let buffer = |access| BufferDecl {
        dtype: DType::F32,
        access,
        len,
    };
    let mut k = Kernel {
        name: f.name().into(),
        axes: vec![len],
        parallel: 1,
        buffers: vec![buffer(Access::Read), buffer(Access::Write)],
        ..Kernel::default()
    };
    let index = k.index(Index::Axis(AxisId(0)));
    let x = k.expr(Expr::Load {
        buffer: BufferId(0),
        index,
        guard: None,
    });
    let value = k.expr(Expr::Unary(f, x));
    let store = Store {
        buffer: BufferId(1),
        index,
        value,
        guard: None,
        kind: StoreKind::Set,
    };
    k.phases = vec![Phase::Store {
        axes: vec![],
        stores: vec![store],
    }];
    Unit::Loops(k)
}

/// Distance from the exact result in units of the result rounded to f32; infinite where the kinds differ.
fn error(got: f32, exact: f64) -> f64 {
    let want = exact as f32;
    if got == want || got.is_nan() && want.is_nan() {
        return 0.0;
    }
    let near_end = got.abs().min(want.abs()) == f32::MAX && got.signum() == want.signum();
    if !got.is_finite() || !want.is_finite() {
        return if near_end { 1.0 } else { f64::INFINITY };
    }
    let unit = f64::from(want.abs().next_up()) - f64::from(want.abs());
    (f64::from(got) - exact).abs() / unit
}

/// Largest error and its argument over every `step`-th bit pattern, for each of the backends.
fn worst(backends: &[CpuBackend], f: Scalar, step: usize) -> Vec<(f64, f32)> {
    let unit = kernel(f);
    let mut all = (0..1u64 << 32)
        .step_by(step)
        .map(|bits| f32::from_bits(bits as u32));
    let mut worst = vec![(0.0, 0.0); backends.len()];
    loop {
        let mut inputs: Vec<f32> = all.by_ref().take(CHUNK).collect();
        if inputs.is_empty() {
            return worst;
        }
        inputs.resize(CHUNK, 1.0);
        let exact: Vec<Option<f64>> = inputs.iter().map(|x| exact(f, *x)).collect();
        let bytes: Vec<u8> = inputs.iter().flat_map(|x| x.to_le_bytes()).collect();
        for (backend, worst) in backends.iter().zip(&mut worst) {
            let mut buffers = vec![bytes.clone(), vec![0; 4 * CHUNK]];
            if let Err(e) = run(backend, &unit, &[], &mut buffers) {
                println!("{}: {e}", f.name());
                *worst = (f64::INFINITY, 0.0);
                continue;
            }
            let results = buffers[1].as_chunks::<4>().0;
            for ((x, exact), y) in inputs.iter().zip(&exact).zip(results) {
                let Some(exact) = exact else { continue };
                let e = error(f32::from_le_bytes(*y), *exact);
                if e > worst.0 {
                    *worst = (e, *x);
                }
            }
        }
    }
}

/// The function in f64, where it is defined.
fn exact(f: Scalar, x: f32) -> Option<f64> {
    match eval_one(f, DType::F32, &[Num::F(f64::from(x))])? {
        Num::F(exact) => Some(exact),
        _ => None,
    }
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let step = args.next().and_then(|s| s.parse().ok()).unwrap_or(1).max(1);
    let only = args.next();
    let levels: Vec<Isa> = Isa::available()
        .into_iter()
        .filter(|isa| !isa.bf16())
        .collect();
    let backend = |isa: &Isa| CpuBackend::with_isa(1, *isa, Usage::unlimited());
    let backends: Vec<CpuBackend> = levels.iter().map(backend).collect();
    let mut good = true;
    println!(
        "{:8} {:>6}  largest error at each level",
        "function", "bound"
    );
    for f in FUNCTIONS {
        if only.as_ref().is_some_and(|name| name != f.name()) {
            continue;
        }
        let bound = error_bound(f);
        let mut line = format!("{:8} {bound:6.1}", f.name());
        for (isa, (error, at)) in levels.iter().zip(worst(&backends, f, step)) {
            good &= error <= bound;
            line += &format!("  {:?} {error:.2} ({at:e})", isa.level());
        }
        println!("{line}");
    }
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
