//! The backend: units to executables.

use crate::coalesce::coalesce;
use crate::device::{ALIGNMENT, CpuDevice};
use crate::executable::{CpuExecutable, Generated};
use crate::isa::Isa;
use crate::jit::{self, CompiledProgram, Source};
use crate::libcall;
use crate::library::probe;
use crate::memory::{Scratch, Usage};
use crate::schedule;
use crate::threads::Pool;
use crate::vector::Program;
use bytes::Bytes;
use cupola_backend::{
    Backend, BackendError, Binding, Device, Executable, Forgetful, Keeper, Key, Rates, Replacement,
    Result,
};
use cupola_ir::kernel::{Expr, Kernel, Phase, StoreKind, Unit, legalize};
use cupola_ir::target::{Aliasing, Target};
use cupola_ir::{DType, Scalar};
use rustc_hash::FxHashMap;
use std::sync::{Arc, OnceLock};

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

    /// The kernel that a unit needs code for, if any; or why there is none.
    fn kernel(&self, unit: &Unit) -> Result<Option<Kernel>> {
        let kernel = match unit {
            Unit::Loops(k) => Some(k.clone()),
            Unit::Library(l) => match libcall::refusal(l) {
                Some(what) => return Err(self.unsupported(unit, what)),
                None => libcall::epilogue_kernel(l),
            },
        };
        if let Some(kernel) = &kernel {
            check(kernel).map_err(|e| self.unsupported(unit, e))?;
        }
        Ok(kernel)
    }

    /// An executable with what is worth making of its constants.
    fn bind(&self, binding: &Binding) -> Result<Arc<dyn Executable>> {
        let Some(own) = binding.executable.as_any().downcast_ref::<CpuExecutable>() else {
            return Ok(binding.executable.clone());
        };
        let ready = own.with_constants(&self.device, binding)?;
        Ok(ready.map_or_else(|| binding.executable.clone(), |e| Arc::new(e)))
    }

    /// Code for kernels, made by all threads; for each what the code generator said if it could not.
    fn generate(&self, kernels: &[Kernel], keeper: &dyn Keeper) -> Vec<Result<Generated, String>> {
        let parts = kernels.len().min(PARTS * self.device.pool.threads());
        let done: Vec<OnceLock<Vec<Result<Generated, String>>>> =
            (0..parts).map(|_| OnceLock::new()).collect();
        self.device.pool.run(parts, |first| {
            // Every so many kernels: neighbours are often alike, and expensive together.
            let part = kernels.iter().skip(first).step_by(parts);
            let drafts = part.map(|kernel| self.draft(kernel, keeper)).collect();
            let fresh = done[first].set(self.finish(drafts, keeper)).is_ok();
            debug_assert!(fresh, "bug: a part made twice");
        });
        let mut parts: Vec<_> = (done.into_iter())
            .map(|part| part.into_inner().unwrap_or_default().into_iter())
            .collect();
        let count = parts.len();
        (0..kernels.len())
            .filter_map(|i| parts[i % count].next())
            .collect()
    }

    /// The code of a kernel as it is kept, or all that is needed to make it.
    fn draft(&self, kernel: &Kernel, keeper: &dyn Keeper) -> Draft {
        let unnamed = Kernel {
            name: String::new(),
            ..kernel.clone()
        };
        let key = Key::of(&unnamed);
        let kernel = legalize(&coalesce(kernel.clone()), &self.native);
        let code = match keeper.find(key) {
            Some(bytes) => Code::Kept(bytes),
            None => match schedule::lower(&kernel, self.isa) {
                (_, Some(bytes)) => Code::Wide(bytes),
                (program, None) => Code::Portable(program),
            },
        };
        Draft { key, kernel, code }
    }

    /// Functions of drafts; those that were not kept are given to be.
    fn finish(&self, drafts: Vec<Draft>, keeper: &dyn Keeper) -> Vec<Result<Generated, String>> {
        let sources: Vec<Source> = drafts.iter().map(|d| d.code.source()).collect();
        let codes = match jit::compile(&sources, self.isa) {
            Ok(codes) => codes,
            Err(what) => return drafts.iter().map(|_| Err(what.clone())).collect(),
        };
        let finished = drafts.into_iter().zip(codes);
        let one = |(draft, (code, movable)): (Draft, (CompiledProgram, Option<Vec<u8>>))| {
            let made = match draft.code {
                Code::Kept(_) => None,
                Code::Wide(bytes) => Some(bytes),
                Code::Portable(_) => movable,
            };
            if let Some(bytes) = made {
                keeper.keep(draft.key, bytes.into());
            }
            Ok(Generated {
                name: draft.kernel.name.clone(),
                kernel: Arc::new(draft.kernel),
                code,
                isa: self.isa,
            })
        };
        finished.map(one).collect()
    }
}

/// A kernel on its way to a function.
struct Draft {
    key: Key,
    /// As code is generated for it.
    kernel: Kernel,
    code: Code,
}

enum Code {
    Kept(Bytes),
    Wide(Vec<u8>),
    Portable(Program),
}

impl Code {
    fn source(&self) -> Source<'_> {
        match self {
            Code::Kept(bytes) => Source::Bytes(bytes),
            Code::Wide(bytes) => Source::Bytes(bytes),
            Code::Portable(program) => Source::Portable(program),
        }
    }
}

/// Parts per thread into which compilation is divided.
const PARTS: usize = 4;

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
        aliasing: Aliasing::Units,
        scatters_in_place: true,
        joins_in_turn: true,
        half_factors: false,
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

    fn measure(&self) -> Option<Rates> {
        probe::rates(&self.device.context()).ok()
    }

    fn compile(&self, units: &[&Unit]) -> Vec<Result<Arc<dyn Executable>>> {
        self.compile_kept(units, &Forgetful)
    }

    fn identity(&self) -> Option<Key> {
        let settings = std::env::var_os("CUPOLA_WINOGRAD");
        let checked = cfg!(debug_assertions);
        Some(Key::of(&(
            env!("CUPOLA_CPU_SOURCES"),
            std::env::consts::ARCH,
            std::env::consts::OS,
            self.isa,
            settings,
            checked,
        )))
    }

    fn compile_kept(
        &self,
        units: &[&Unit],
        keeper: &dyn Keeper,
    ) -> Vec<Result<Arc<dyn Executable>>> {
        let kernels: Vec<Result<Option<Kernel>>> = units.iter().map(|u| self.kernel(u)).collect();
        let (distinct, places) = distinct(&kernels);
        let generated = self.generate(&distinct, keeper);
        let finish = |(i, (kernel, unit)): (usize, (Result<Option<Kernel>>, &&Unit))| {
            let code = match (kernel?, places[i]) {
                (Some(kernel), Some(at)) => {
                    let code = generated[at].clone();
                    let code = code.map_err(|what| self.unsupported(unit, what))?;
                    Some(Generated {
                        name: kernel.name,
                        ..code
                    })
                }
                _ => None,
            };
            let executable = match (*unit, code) {
                (Unit::Library(l), epilogue) => CpuExecutable::library(l.clone(), epilogue),
                (Unit::Loops(_), Some(code)) => CpuExecutable::loops(code),
                (Unit::Loops(_), None) => unreachable!("bug: loops without code"),
            };
            Ok(Arc::new(executable) as Arc<dyn Executable>)
        };
        let all = kernels.into_iter().zip(units).enumerate();
        all.map(finish).collect()
    }

    fn bind_constants(&self, bindings: &[Binding]) -> Vec<Result<Arc<dyn Executable>>> {
        let done: Vec<OnceLock<Result<Arc<dyn Executable>>>> =
            bindings.iter().map(|_| OnceLock::new()).collect();
        self.device.pool.run(bindings.len(), |at| {
            let fresh = done[at].set(self.bind(&bindings[at])).is_ok();
            debug_assert!(fresh, "bug: bound twice");
        });
        let results = done.into_iter().map(OnceLock::into_inner);
        results
            .map(|r| r.unwrap_or_else(|| unreachable!("bug: every binding is worked on")))
            .collect()
    }

    fn replacement(&self, unit: &Unit, is_constant: &[bool]) -> Replacement {
        match unit {
            Unit::Library(call) => libcall::replacement(call, is_constant, &self.device.context()),
            Unit::Loops(_) => Replacement::default(),
        }
    }
}

/// Kernels that differ in more than their name, and for each given one its place among them.
fn distinct(kernels: &[Result<Option<Kernel>>]) -> (Vec<Kernel>, Vec<Option<usize>>) {
    let mut seen: FxHashMap<Kernel, usize> = FxHashMap::default();
    let mut all = vec![];
    let mut place = |kernel: &Kernel| {
        let unnamed = Kernel {
            name: String::new(),
            ..kernel.clone()
        };
        *seen.entry(unnamed).or_insert_with(|| {
            all.push(kernel.clone());
            all.len() - 1
        })
    };
    let places = kernels
        .iter()
        .map(|k| k.as_ref().ok()?.as_ref().map(&mut place));
    let places = places.collect();
    (all, places)
}
