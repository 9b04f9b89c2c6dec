//! The backend: units to executables.

use crate::device::{ALIGNMENT, CpuDevice};
use crate::executable::{CpuExecutable, Generated};
use crate::isa::Isa;
use crate::jit;
use crate::libcall;
use crate::memory::{Scratch, Usage};
use crate::schedule;
use crate::threads::Pool;
use crate::vector::{self, Program};
use cupola_backend::{Backend, BackendError, Device, Executable, Result};
use cupola_ir::kernel::{Expr, Kernel, Phase, StoreKind, Unit, legalize};
use cupola_ir::target::Target;
use cupola_ir::{DType, Scalar};
use std::sync::Arc;

/// Compiles for the processor it runs on.
#[derive(Debug)]
pub struct CpuBackend {
    target: Target,
    /// The target without the functions that are better expanded than called.
    native: Target,
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
            native: native(),
            device: CpuDevice {
                pool: Pool::shared(threads),
                scratch: Scratch::new(threads, &usage),
                isa,
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

    /// The kernel that a unit needs code for, if any, and its program; or why there is none.
    fn program(&self, unit: &Unit) -> Result<Option<(Kernel, Program)>> {
        let kernel = match unit {
            Unit::Loops(k) => Some(k.clone()),
            Unit::Library(l) => match libcall::refusal(l) {
                Some(what) => return Err(self.unsupported(unit, what)),
                None => libcall::epilogue_kernel(l),
            },
        };
        let Some(kernel) = kernel else {
            return Ok(None);
        };
        check(&kernel).map_err(|e| self.unsupported(unit, e))?;
        let kernel = legalize(&kernel, &self.native);
        let program = vector::lower(&kernel, &schedule::shape(&kernel));
        Ok(Some((kernel, program)))
    }
}

fn target() -> Target {
    use DType::*;
    Target {
        name: "cpu".into(),
        dtypes: vec![
            I2, I4, U2, U4, F8E4M3FN, F8E4M3FNUZ, F8E5M2, F8E5M2FNUZ, F8E8M0, F4E2M1, Bool, I8,
            I16, I32, I64, U8, U16, U32, U64, F16, BF16, F32, F64,
        ],
        scalars: Scalar::ALL.to_vec(),
        max_buffers: 1024,
        alignment: ALIGNMENT,
        max_binding: u64::MAX,
        aliasing: true,
        claim: libcall::claim,
    }
}

/// What the code generator has instructions or short sequences for; of the rest `legalize` expands what it can, and the
/// others (in f64) call a host function.
fn native() -> Target {
    use Scalar::*;
    let scalars = vec![
        Neg, Abs, Sign, Floor, Ceil, Round, Trunc, Sqrt, Rsqrt, Recip, Add, Sub, Mul, Div, Rem,
        Mod, Min, Max, And, Or, Xor, Not, Shl, Shr, PopCount, Eq, Lt, Le, IsNan, IsInf, Select,
        Fma,
    ];
    Target {
        scalars,
        ..target()
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
            _ => {}
        }
    }
    for phase in &kernel.phases {
        let Phase::Store { stores, .. } = phase else {
            continue;
        };
        for s in stores.iter().filter(|s| s.kind == StoreKind::AtomicAdd) {
            let dtype = kernel.buffers[s.buffer.0 as usize].dtype;
            if dtype == DType::Bool || dtype.bits() < 8 || dtype.is_float() && dtype.bits() < 16 {
                return Err(format!("atomic addition of {dtype}"));
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
        let programs: Vec<_> = units.iter().map(|unit| self.program(unit)).collect();
        let good: Vec<&Program> = programs
            .iter()
            .filter_map(|p| p.as_ref().ok()?.as_ref())
            .map(|p| &p.1)
            .collect();
        let mut compiled = match jit::compile(&good, self.isa) {
            Ok(all) => all.into_iter(),
            Err(what) => {
                let failed = |unit: &&Unit| Err(self.unsupported(unit, what.clone()));
                return units.iter().map(failed).collect();
            }
        };
        let mut finish = |(program, unit): (Result<Option<(Kernel, Program)>>, &&Unit)| {
            let code = program?.map(|(kernel, program)| {
                let code = compiled.next();
                let code = code.unwrap_or_else(|| unreachable!("bug: one function per program"));
                Generated {
                    kernel,
                    program,
                    code,
                    isa: self.isa,
                }
            });
            let executable = match (*unit, code) {
                (Unit::Library(l), epilogue) => CpuExecutable::library(l.clone(), epilogue),
                (Unit::Loops(_), Some(code)) => CpuExecutable::loops(code),
                (Unit::Loops(_), None) => unreachable!("bug: loops without code"),
            };
            Ok(Arc::new(executable) as Arc<dyn Executable>)
        };
        programs.into_iter().zip(units).map(&mut finish).collect()
    }
}
