//! Compiled units and their launches.
#![allow(unsafe_code)]

use crate::device::{Argument, CpuDevice, is_aligned};
use crate::error::Error;
use crate::isa::Isa;
use crate::jit::{self, Arguments, CompiledProgram};
use crate::last::Last;
use crate::libcall::{self, Bound, Call, Chain, Failure, Prepared, epilogue::Epilogue};
use crate::library::Context;
use crate::memory::{Lent, Recall, Scratch};
use crate::schedule;
use crate::vector::Fault;
use bytes::Bytes;
use cupola_backend::{BackendError, Binding, Executable, Result};
use cupola_ir::kernel::{Access, BufferDecl, Kernel, Library};
use smallvec::SmallVec;
use std::any::Any;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Launches with less work than this (in scalar operations) run on the calling thread: waking another costs as much.
const SMALL: i64 = 100_000;

/// Positions whose elements, of a byte or more, fill whole lines of the cache.
const LINE: usize = 64;

/// Generated code with what it came from; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Generated {
    /// Name for messages; kernels that are alike but for their names share the rest.
    pub name: String,
    pub kernel: Arc<Kernel>,
    pub code: CompiledProgram,
    pub isa: Isa,
}

/// A compiled unit.
#[derive(Debug)]
pub struct CpuExecutable(Kind);

#[derive(Debug)]
enum Kind {
    Loops {
        code: Generated,
        last: Last<Amount>,
    },
    Library {
        unit: Arc<Library>,
        epilogue: Option<Generated>,
        /// Made of operands that are constants.
        prepared: Option<Prepared>,
        last: Last<Bound>,
    },
}

/// How much there is to do in a launch of generated code.
#[derive(Clone, Copy, Debug)]
struct Amount {
    /// Parallel positions.
    total: i64,
    /// Scalar operations at each.
    work: i64,
    /// Whether a result is so large that it will be gone from the cache before anyone reads it.
    streams: bool,
}

impl Executable for CpuExecutable {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn listing(&self) -> String {
        let code = match &self.0 {
            Kind::Loops { code, .. } => Some(code),
            Kind::Library { epilogue, .. } => epilogue.as_ref(),
        };
        code.map_or(String::new(), |c| {
            let (program, _) = schedule::lower(&c.kernel, c.isa);
            let machine = jit::listing(&program, c.isa).unwrap_or_else(|e| e);
            format!("{program}\n{machine}")
        })
    }

    fn constant_size(&self) -> usize {
        match &self.0 {
            Kind::Loops { .. } => 0,
            Kind::Library { prepared, .. } => prepared.as_ref().map_or(0, Prepared::size),
        }
    }

    fn replaces(&self, argument: usize) -> bool {
        match &self.0 {
            Kind::Loops { .. } => false,
            Kind::Library { prepared, .. } => {
                let operands = prepared.as_ref().map(Prepared::operands);
                operands.is_some_and(|all| all.contains(&argument))
            }
        }
    }

    /// Generated code does; kernels of the library read whole elements, also of what their epilogues take.
    fn takes_any_address(&self, argument: usize) -> bool {
        match &self.0 {
            Kind::Loops { .. } => true,
            Kind::Library { .. } => self.replaces(argument),
        }
    }
}

impl CpuExecutable {
    pub(crate) fn loops(code: Generated) -> CpuExecutable {
        CpuExecutable(Kind::Loops {
            code,
            last: Last::default(),
        })
    }

    pub(crate) fn library(unit: Library, epilogue: Option<Generated>) -> CpuExecutable {
        CpuExecutable(Kind::Library {
            unit: Arc::new(unit),
            epilogue,
            prepared: None,
            last: Last::default(),
        })
    }

    /// The executable with what is worth making of its constants; `None` when nothing is.
    pub(crate) fn with_constants(
        &self,
        device: &CpuDevice,
        binding: &Binding,
    ) -> Result<Option<CpuExecutable>> {
        let Kind::Library { unit, epilogue, .. } = &self.0 else {
            return Ok(None);
        };
        let recall = |only| {
            let kept = binding.kept.as_ref()?;
            let recall = Recall::new(kept.keeper.clone(), kept.key, only);
            Some(device.scratch.recalling(recall))
        };
        let constants = &binding.constants;
        let known = recall(true).map(|scratch| {
            // Nothing is read, so that nothing need be aligned.
            let as_they_are = constants.iter().map(|c| c.as_ref().map(argument));
            let as_they_are: Vec<Option<Argument>> = as_they_are.collect();
            libcall::prepare(unit, &as_they_are, &device.context_with(&scratch))
        });
        let prepared = match known {
            Some(known) if !matches!(known, Err(Error::NotKept)) => known,
            _ if !binding.lasts => make(unit, constants, device, Some(device.scratch.passing())),
            _ => make(unit, constants, device, recall(false)),
        };
        let prepared = prepared.map_err(|e| out_of_memory(&e))?;
        Ok(prepared.map(|prepared| {
            CpuExecutable(Kind::Library {
                unit: unit.clone(),
                epilogue: epilogue.clone(),
                prepared: Some(prepared),
                last: Last::default(),
            })
        }))
    }

    /// How long the unit is likely to take, as far as it is a chain of steps.
    pub(crate) fn chain(&self, sizes: &[i64]) -> Chain {
        match &self.0 {
            Kind::Loops { .. } => Chain::default(),
            Kind::Library { unit, .. } => libcall::chain(unit, sizes),
        }
    }

    /// Runs the unit.
    pub(crate) fn launch(
        &self,
        device: &CpuDevice,
        arguments: &[Argument],
        sizes: &[i64],
    ) -> Result<()> {
        match &self.0 {
            Kind::Loops { code, last } => {
                let amount = last.get(arguments, sizes, || code.check(arguments, sizes))?;
                code.launch(device, arguments, sizes, *amount)
            }
            Kind::Library {
                unit,
                epilogue,
                prepared,
                last,
            } => {
                let epilogue = epilogue.as_ref();
                let bound =
                    last.get(arguments, sizes, || bind(unit, epilogue, arguments, sizes))?;
                let prepared = prepared.as_ref();
                launch_library(device, unit, epilogue, prepared, &bound, sizes)
            }
        }
    }
}

/// What is worth making of a unit's constants.
fn make(
    unit: &Library,
    constants: &[Option<Bytes>],
    device: &CpuDevice,
    scratch: Option<Scratch>,
) -> crate::Result<Option<Prepared>> {
    let cx = device.context();
    let aligned: Vec<Option<Aligned>> = (constants.iter())
        .map(|c| c.as_ref().map(|c| Aligned::new(c, &cx)).transpose())
        .collect::<crate::Result<_>>()?;
    let arguments = aligned.iter().map(|a| a.as_ref().map(Aligned::argument));
    let arguments: Vec<Option<Argument>> = arguments.collect();
    let scratch = scratch.as_ref().unwrap_or(&device.scratch);
    libcall::prepare(unit, &arguments, &device.context_with(scratch))
}

/// Constant bytes where they lie.
fn argument(bytes: &Bytes) -> Argument {
    Argument {
        start: bytes.as_ptr().cast_mut(),
        size: bytes.len(),
        constant: true,
    }
}

/// The bytes of a constant where kernels can read them: as they lie, or copied for as long as this lives.
enum Aligned<'a> {
    AsIs(&'a Bytes),
    Copy(Lent<'a>, usize),
}

impl<'a> Aligned<'a> {
    fn new(bytes: &'a Bytes, cx: &Context<'a>) -> crate::Result<Aligned<'a>> {
        if is_aligned(bytes) {
            return Ok(Aligned::AsIs(bytes));
        }
        let mut copy = cx.scratch.take::<u8>(bytes.len())?;
        copy.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
        Ok(Aligned::Copy(copy, bytes.len()))
    }

    fn argument(&self) -> Argument {
        match self {
            Aligned::AsIs(bytes) => argument(bytes),
            Aligned::Copy(copy, size) => Argument {
                start: copy.as_ptr(),
                size: *size,
                constant: true,
            },
        }
    }
}

fn fault(unit: &str, what: impl Into<String>) -> BackendError {
    BackendError::Fault {
        unit: unit.to_string(),
        what: what.into(),
    }
}

fn out_of_memory(e: &Error) -> BackendError {
    let size = match e {
        Error::OutOfMemory { size, .. } => *size as u64,
        _ => 0,
    };
    BackendError::OutOfMemory {
        device: "cpu".into(),
        size,
        what: e.to_string(),
    }
}

/// The numbers of buffers and sizes must be those of the unit.
fn check_counts(have: (usize, usize), want: (usize, usize)) -> Result<(), String> {
    if have == want {
        return Ok(());
    }
    Err(format!(
        "{} buffers and {} sizes for a unit of {} and {}",
        have.0, have.1, want.0, want.1
    ))
}

/// A buffer argument must hold what the kernel declares.
fn check_buffer(at: usize, a: &Argument, decl: &BufferDecl, sizes: &[i64]) -> Result<(), String> {
    let len = usize::try_from(schedule::extent(decl.len, sizes)).unwrap_or(0);
    let needed = decl.dtype.storage_size(1, len);
    if needed.is_none_or(|n| n > a.size) {
        return Err(format!(
            "buffer {at} has {} bytes, {len} elements of {} are needed",
            a.size, decl.dtype
        ));
    }
    if a.constant && decl.access != Access::Read {
        return Err(format!("buffer {at} is constant"));
    }
    Ok(())
}

/// What the fault word says.
fn report(faults: &AtomicU32) -> Result<(), String> {
    match faults.load(Relaxed) {
        0 => Ok(()),
        f if f & Fault::Division as u32 != 0 => Err("integer division by zero".into()),
        _ => Err("index out of range".into()),
    }
}

impl Generated {
    /// Checks the arguments of a launch; how much there is to do in it.
    fn check(&self, arguments: &[Argument], sizes: &[i64]) -> Result<Amount> {
        let kernel = &self.kernel;
        let fault = |what: String| fault(&self.name, what);
        let want = (kernel.buffers.len(), kernel.sizes.len());
        check_counts((arguments.len(), sizes.len()), want).map_err(fault)?;
        for (i, (a, decl)) in arguments.iter().zip(&kernel.buffers).enumerate() {
            check_buffer(i, a, decl, sizes).map_err(fault)?;
        }
        let mut total = 1i64;
        for e in &kernel.axes[..kernel.parallel] {
            let n = schedule::extent(*e, sizes).max(0);
            let more = total.checked_mul(n);
            let what = "more parallel positions than 64 bits count";
            total = more.ok_or_else(|| fault(what.into()))?;
        }
        Ok(Amount {
            total,
            work: schedule::work(kernel, sizes),
            streams: self.streams(sizes),
        })
    }

    /// Whether a result is so large that it will be gone from the cache before anyone reads it.
    fn streams(&self, sizes: &[i64]) -> bool {
        let size = |b: &BufferDecl| {
            let len = schedule::extent(b.len, sizes).max(0) as usize;
            b.dtype.storage_size(1, len).unwrap_or(usize::MAX)
        };
        let buffers = self.kernel.buffers.iter();
        let results = buffers.filter(|b| b.access == Access::Write);
        results.map(size).max().unwrap_or(0) > crate::isa::caches().l3
    }

    /// Runs the code on arguments that were checked.
    fn launch(
        &self,
        device: &CpuDevice,
        arguments: &[Argument],
        sizes: &[i64],
        amount: Amount,
    ) -> Result<()> {
        struct Shared<'a>(Arguments, &'a CompiledProgram);
        // SAFETY: the pointers are only followed by the compiled code, whose ranges write disjoint elements.
        unsafe impl Sync for Shared<'_> {}
        let Amount {
            total,
            work,
            streams,
        } = amount;
        let pointers: SmallVec<[*mut u8; 8]> = arguments.iter().map(|a| a.start).collect();
        let faults = AtomicU32::new(0);
        let shared = Shared(
            Arguments {
                buffers: pointers.as_ptr(),
                sizes: sizes.as_ptr(),
                faults: faults.as_ptr(),
                streams: streams.into(),
                ..Arguments::default()
            },
            &self.code,
        );
        let range = |begin: i64, end: i64| {
            let Shared(arguments, code) = &shared;
            // SAFETY: `check` has checked number and length of buffers and sizes against the kernel that the code was
            // compiled from; indices inside those lengths are the kernel's contract.
            unsafe { code.run(arguments, begin, end) };
        };
        if work.saturating_mul(total) < SMALL {
            range(0, total);
        } else {
            let grain = (SMALL / 2 / work).max(1) as usize;
            let count = usize::try_from(total).unwrap_or(usize::MAX);
            // Ranges of cheap positions start where lines of the cache do.
            let step = if grain >= 4 * LINE { LINE } else { 1 };
            let ranges = |r: Range<usize>| {
                range((r.start * step) as i64, (r.end * step).min(count) as i64);
            };
            let (count, grain) = (count.div_ceil(step), grain.div_ceil(step));
            device.pool.run_ranges(count, grain, ranges);
        }
        report(&faults).map_err(|what| fault(&self.name, what))
    }
}

/// Puts a unit's operands and results, and the buffers of its epilogue, on the arguments of a launch.
fn bind(
    unit: &Library,
    epilogue: Option<&Generated>,
    arguments: &[Argument],
    sizes: &[i64],
) -> Result<Bound> {
    let own = unit.operands.len() + unit.results.len();
    let extra = epilogue.map_or(0, |e| e.kernel.buffers.len() - 2);
    let fault = |what: String| fault(&unit.op.name(), what);
    let want = (own + extra, unit.sizes.len());
    check_counts((arguments.len(), sizes.len()), want).map_err(fault)?;
    let mut bound = libcall::bind(unit, arguments, sizes).map_err(fault)?;
    if let Some(e) = epilogue {
        let last = arguments[unit.operands.len()];
        let mut all = vec![last, last];
        all.extend_from_slice(&arguments[own..]);
        // Buffer 0 is the raw result, which has no memory of its own.
        for (i, (a, decl)) in all.iter().zip(&e.kernel.buffers).enumerate().skip(1) {
            check_buffer(i, a, decl, sizes).map_err(fault)?;
        }
        bound.epilogue = all.iter().map(|a| (a.start, a.size)).collect();
    }
    Ok(bound)
}

fn launch_library(
    device: &CpuDevice,
    unit: &Library,
    epilogue: Option<&Generated>,
    prepared: Option<&Prepared>,
    bound: &Bound,
    sizes: &[i64],
) -> Result<()> {
    let fault = |what: String| fault(&unit.op.name(), what);
    let faults = AtomicU32::new(0);
    let call = Call {
        unit,
        sizes,
        cx: device.context(),
        operands: &bound.operands,
        results: &bound.results,
        epilogue: epilogue.map(|e| Epilogue {
            kernel: &e.kernel,
            code: &e.code,
            buffers: &bound.epilogue,
            sizes,
            faults: &faults,
        }),
        prepared,
    };
    match call.run() {
        Ok(()) => report(&faults).map_err(fault),
        Err(Failure::Fault(what)) => Err(fault(what)),
        Err(Failure::Error(e @ Error::OutOfMemory { .. })) => Err(out_of_memory(&e)),
        Err(Failure::Error(e)) => Err(fault(e.to_string())),
    }
}
