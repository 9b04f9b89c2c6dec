//! The backend: units to executables.
#![allow(unsafe_code)]

use crate::device::{ALIGNMENT, Argument, CpuDevice};
use crate::isa::Isa;
use crate::jit::{self, Arguments, CompiledProgram};
use crate::memory::{self, Usage};
use crate::schedule;
use crate::threads::Pool;
use crate::vector::{self, Fault, Program};
use cupola_backend::{Backend, BackendError, Device, Executable, Result};
use cupola_ir::kernel::{Access, Expr, Kernel, Phase, StoreKind, Unit};
use cupola_ir::target::{Claim, Target};
use cupola_ir::{DType, Op, Scalar, TensorType};
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Launches with less work than this (in scalar operations) run on the calling thread: waking another costs as much.
const SMALL: i64 = 40_000;

/// Compiles for the processor it runs on.
#[derive(Debug)]
pub struct CpuBackend {
    target: Target,
    device: CpuDevice,
    isa: Isa,
}

impl CpuBackend {
    /// A backend with so many threads (0: one per physical core), at the vector level that `CUPOLA_CPU` asks for.
    ///
    /// # Errors
    /// `CUPOLA_CPU` names no level of this processor.
    pub fn new(threads: usize) -> crate::Result<CpuBackend> {
        Ok(CpuBackend::with_isa(
            threads,
            Isa::from_environment()?,
            Usage::unlimited(),
        ))
    }

    /// A backend for a vector level whose memory is counted under `usage`.
    pub fn with_isa(threads: usize, isa: Isa, usage: Usage) -> CpuBackend {
        let threads = if threads == 0 {
            crate::isa::physical_cores()
        } else {
            threads
        };
        CpuBackend {
            target: target(),
            device: CpuDevice {
                pool: Pool::shared(threads),
                usage,
            },
            isa,
        }
    }

    /// The vector level code is compiled for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    fn unsupported(&self, unit: &Unit, what: impl Into<String>) -> BackendError {
        BackendError::Unsupported {
            unit: unit.name(),
            device: self.target.name.clone(),
            what: what.into(),
        }
    }

    /// The program of a loop kernel, or why there is none.
    fn program(&self, kernel: &Kernel) -> Result<Program, String> {
        check(kernel)?;
        Ok(vector::lower(kernel, &schedule::shape(kernel)))
    }
}

fn target() -> Target {
    use DType::*;
    Target {
        name: "cpu".into(),
        dtypes: vec![
            Bool, I8, I16, I32, I64, U8, U16, U32, U64, F16, BF16, F32, F64,
        ],
        scalars: scalars(),
        max_buffers: 1024,
        alignment: ALIGNMENT,
        max_binding: u64::MAX,
        aliasing: true,
        claim,
    }
}

/// Every function has at least a helper.
fn scalars() -> Vec<Scalar> {
    use Scalar::*;
    vec![
        Neg, Abs, Sign, Floor, Ceil, Round, Trunc, Sqrt, Rsqrt, Recip, Exp, Expm1, Log, Log1p, Sin,
        Cos, Tan, Asin, Acos, Atan, Sinh, Cosh, Tanh, Asinh, Acosh, Atanh, Erf, Sigmoid, Add, Sub,
        Mul, Div, Rem, Mod, Pow, Atan2, Min, Max, And, Or, Xor, Not, Shl, Shr, PopCount, Eq, Lt,
        Le, IsNan, IsInf, Select, Fma,
    ]
}

fn claim(_: &Op, _: &[&TensorType]) -> Claim {
    Claim::No {
        reason: "no library kernel".into(),
    }
}

/// Whether code can be generated for a kernel.
fn check(kernel: &Kernel) -> Result<(), String> {
    let dtypes = target().dtypes;
    let refuse = |d: DType| Err(format!("dtype {d} in generated code"));
    for b in &kernel.buffers {
        if !dtypes.contains(&b.dtype) {
            return refuse(b.dtype);
        }
    }
    for e in &kernel.exprs {
        match e {
            Expr::Const(l) if !dtypes.contains(&l.dtype) => return refuse(l.dtype),
            Expr::Cast { to, .. } | Expr::Bitcast { to, .. } | Expr::Index(_, to)
                if !dtypes.contains(to) =>
            {
                return refuse(*to);
            }
            Expr::Random { .. } => return Err("random numbers in generated code".into()),
            _ => {}
        }
    }
    for phase in &kernel.phases {
        let Phase::Store { stores, .. } = phase else {
            continue;
        };
        for s in stores.iter().filter(|s| s.kind == StoreKind::AtomicAdd) {
            let dtype = kernel.buffers[s.buffer.0 as usize].dtype;
            if dtype == DType::Bool {
                return Err("atomic addition of bool".into());
            }
        }
    }
    Ok(())
}

impl Backend for CpuBackend {
    fn target(&self) -> &Target {
        &self.target
    }

    fn device(&self) -> &dyn Device {
        &self.device
    }

    fn compile(&self, units: &[&Unit]) -> Vec<Result<Arc<dyn Executable>>> {
        let programs: Vec<Result<Program>> = units
            .iter()
            .map(|unit| match unit {
                Unit::Loops(k) => self.program(k).map_err(|e| self.unsupported(unit, e)),
                Unit::Library(l) => {
                    Err(self.unsupported(unit, format!("no library kernel for {}", l.op.name())))
                }
            })
            .collect();
        let good: Vec<&Program> = programs.iter().filter_map(|p| p.as_ref().ok()).collect();
        let mut compiled = match jit::compile(&good, self.isa) {
            Ok(all) => all.into_iter(),
            Err(what) => {
                let failed = |unit: &&Unit| Err(self.unsupported(unit, what.clone()));
                return units.iter().map(failed).collect();
            }
        };
        let finish = |(program, unit): (Result<Program>, &&Unit)| {
            let program = program?;
            let (Unit::Loops(kernel), Some(code)) = (unit, compiled.next()) else {
                unreachable!("bug: one function per program")
            };
            Ok(Arc::new(CpuExecutable {
                kernel: kernel.clone(),
                program,
                code,
                isa: self.isa,
            }) as Arc<dyn Executable>)
        };
        programs.into_iter().zip(units).map(finish).collect()
    }
}

/// A compiled unit.
#[derive(Debug)]
pub struct CpuExecutable {
    kernel: Kernel,
    program: Program,
    code: CompiledProgram,
    isa: Isa,
}

impl Executable for CpuExecutable {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn listing(&self) -> String {
        let machine = jit::listing(&self.program, self.isa).unwrap_or_else(|e| e);
        format!("{}\n{machine}", self.program)
    }
}

impl CpuExecutable {
    /// Runs the unit.
    pub(crate) fn launch(
        &self,
        device: &CpuDevice,
        arguments: &[Argument],
        sizes: &[i64],
    ) -> Result<()> {
        let kernel = &self.kernel;
        let fault = |what: String| BackendError::Fault {
            unit: kernel.name.clone(),
            what,
        };
        if arguments.len() != kernel.buffers.len() || sizes.len() != kernel.sizes.len() {
            return Err(fault(format!(
                "{} buffers and {} sizes for a kernel of {} and {}",
                arguments.len(),
                sizes.len(),
                kernel.buffers.len(),
                kernel.sizes.len()
            )));
        }
        let mut pointers = Vec::with_capacity(arguments.len());
        for (i, (a, decl)) in arguments.iter().zip(&kernel.buffers).enumerate() {
            let len = usize::try_from(schedule::extent(decl.len, sizes)).unwrap_or(0);
            let needed = decl.dtype.storage_size(1, len);
            if needed.is_none_or(|n| n > a.size) {
                let what = format!(
                    "buffer {i} has {} bytes, {len} elements of {} are needed",
                    a.size, decl.dtype
                );
                return Err(fault(what));
            }
            if a.constant && decl.access != Access::Read {
                return Err(fault(format!("buffer {i} is constant")));
            }
            pointers.push(a.start);
        }
        let mut total = 1i64;
        for e in &kernel.axes[..kernel.parallel] {
            let n = schedule::extent(*e, sizes).max(0);
            total = total
                .checked_mul(n)
                .ok_or_else(|| fault("more parallel positions than 64 bits count".into()))?;
        }
        let faults = AtomicU32::new(0);
        self.run(device, &pointers, sizes, total, &faults);
        match faults.load(Relaxed) {
            0 => Ok(()),
            f if f & Fault::Division as u32 != 0 => Err(fault("integer division by zero".into())),
            _ => Err(fault("index out of range".into())),
        }
    }

    fn run(
        &self,
        device: &CpuDevice,
        pointers: &[*mut u8],
        sizes: &[i64],
        total: i64,
        faults: &AtomicU32,
    ) {
        struct Shared<'a>(Arguments, &'a CompiledProgram);
        // SAFETY: the pointers are only followed by the compiled code, whose ranges write disjoint elements.
        unsafe impl Sync for Shared<'_> {}
        let shared = Shared(
            Arguments {
                buffers: pointers.as_ptr(),
                sizes: sizes.as_ptr(),
                faults: faults.as_ptr(),
            },
            &self.code,
        );
        let work = schedule::work(&self.kernel, sizes);
        let range = |begin: i64, end: i64| {
            let Shared(arguments, code) = &shared;
            // SAFETY: `launch` has checked number and length of buffers and sizes against the kernel that the code was
            // compiled from; indices inside those lengths are the kernel's contract.
            unsafe { code.run(arguments, begin, end) };
        };
        if work.saturating_mul(total) < SMALL {
            return range(0, total);
        }
        let grain = (SMALL / 2 / work).max(1) as usize;
        let count = usize::try_from(total).unwrap_or(usize::MAX);
        device
            .pool
            .run_ranges(count, grain, |r| range(r.start as i64, r.end as i64));
    }
}

const _: () = assert!(memory::ALIGNMENT >= 64);
