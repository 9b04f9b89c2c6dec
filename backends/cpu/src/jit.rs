//! Machine code in memory: programs in, callable functions out. The only place that runs generated code.
#![allow(unsafe_code)]

use crate::emit::{clif, helpers, wide};
use crate::isa::{Isa, Level};
use crate::vector::Program;
use cranelift_codegen::Context;
use cranelift_codegen::isa::OwnedTargetIsa;
use cranelift_codegen::settings::{self, Configurable};
use cranelift_frontend::FunctionBuilderContext;
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::Module;
use std::fmt;
use std::sync::Arc;

/// What a compiled program is called with.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Arguments {
    /// Start of each buffer argument.
    pub buffers: *const *mut u8,
    /// Run-time sizes.
    pub sizes: *const i64,
    /// Fault bits, added atomically.
    pub faults: *mut u32,
    /// Not 0 to write whole vectors around the caches, where the code can.
    pub streams: u64,
    /// 64 zero bytes.
    pub zeros: *const u8,
    /// The table of host functions.
    pub host: *const usize,
}

impl Default for Arguments {
    /// No buffers and sizes; what all code needs of the process.
    fn default() -> Arguments {
        Arguments {
            buffers: std::ptr::null(),
            sizes: std::ptr::null(),
            faults: std::ptr::null_mut(),
            streams: 0,
            zeros: zeros(),
            host: helpers::table().as_ptr(),
        }
    }
}

type Entry = unsafe extern "C" fn(*const Arguments, i64, i64);

/// Code of the programs of one compilation; freed with its last function.
struct Code(Option<JITModule>);

// SAFETY: the module is not touched after compilation except to free it, which needs no particular thread.
unsafe impl Send for Code {}
// SAFETY: as above; finished code is only read.
unsafe impl Sync for Code {}

impl Drop for Code {
    fn drop(&mut self) {
        if let Some(module) = self.0.take() {
            // SAFETY: every function keeps the code alive by its Arc, so none is running or callable any more.
            unsafe { module.free_memory() };
        }
    }
}

/// A compiled program.
#[derive(Clone)]
pub(crate) struct CompiledProgram {
    entry: Entry,
    code: Arc<Code>,
}

impl fmt::Debug for CompiledProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let loaded = self.code.0.is_some();
        write!(
            f,
            "CompiledProgram({:p}, loaded: {loaded})",
            self.entry as *const ()
        )
    }
}

impl CompiledProgram {
    /// Runs parallel positions `begin..end`.
    ///
    /// # Safety
    /// The arguments must point to what the kernel declares: a buffer of at least the declared length for each buffer
    /// argument (64 readable bytes at least), every run-time size, and a fault word; and nothing else may access the
    /// elements it writes meanwhile, other ranges of the same launch excepted.
    pub(crate) unsafe fn run(&self, arguments: &Arguments, begin: i64, end: i64) {
        // SAFETY: the code was compiled for this signature, lives as long as `self`, and the caller vouches for the
        // arguments.
        unsafe { (self.entry)(arguments, begin, end) }
    }
}

/// Zeros that guarded loads read instead of elements that must not be touched.
fn zeros() -> *const u8 {
    #[repr(align(64))]
    struct Line([u8; 64]);
    static ZEROS: Line = Line([0; 64]);
    ZEROS.0.as_ptr()
}

/// Cranelift's description of a vector level of this machine.
fn target(isa: Isa) -> Result<OwnedTargetIsa, String> {
    let mut flags = settings::builder();
    let set = |flags: &mut settings::Builder, name: &str, value: &str| {
        flags.set(name, value).map_err(|e| e.to_string())
    };
    set(&mut flags, "opt_level", "none")?;
    set(&mut flags, "is_pic", "false")?;
    set(&mut flags, "enable_probestack", "false")?;
    if cfg!(debug_assertions) {
        set(&mut flags, "enable_verifier", "true")?;
    } else {
        set(&mut flags, "enable_verifier", "false")?;
        set(&mut flags, "regalloc_checker", "false")?;
    }
    let mut builder = cranelift_native::builder_with_options(!cfg!(target_arch = "x86_64"))?;
    if cfg!(target_arch = "x86_64") {
        let v2 = [
            "has_sse3",
            "has_ssse3",
            "has_sse41",
            "has_sse42",
            "has_popcnt",
        ];
        let v3 = [
            "has_avx",
            "has_avx2",
            "has_fma",
            "has_bmi1",
            "has_bmi2",
            "has_lzcnt",
        ];
        let v4 = ["has_avx512f", "has_avx512vl", "has_avx512dq"];
        let mut enable = |names: &[&str]| {
            names
                .iter()
                .try_for_each(|n| builder.enable(n).map_err(|e| e.to_string()))
        };
        enable(&v2)?;
        if isa.level() >= Level::Avx2 {
            enable(&v3)?;
        }
        if isa.level() >= Level::Avx512 {
            enable(&v4)?;
        }
    }
    builder
        .finish(settings::Flags::new(flags))
        .map_err(|e| e.to_string())
}

/// What becomes a function.
#[derive(Clone, Debug)]
pub(crate) enum Source<'p> {
    /// A program for the portable emitter.
    Portable(&'p Program),
    /// Code that runs at any address: the bytes of [`wide::emit`], or what [`compile`] gave before.
    Bytes(&'p [u8]),
}

/// Compiles programs into one module; one function each, in order. With it go the bytes of a function that was made here and
/// runs at any address.
///
/// # Errors
/// What the code generator said, for a program it cannot compile.
pub(crate) fn compile(
    sources: &[Source],
    isa: Isa,
) -> Result<Vec<(CompiledProgram, Option<Vec<u8>>)>, String> {
    let target = target(isa)?;
    let has_fma = !cfg!(target_arch = "x86_64") || isa.level() >= Level::Avx2;
    let config = target.frontend_config();
    let mut module = JITModule::new(JITBuilder::with_isa(
        target,
        cranelift_module::default_libcall_names(),
    ));
    let mut context = Context::new();
    let mut builder = FunctionBuilderContext::new();
    let mut functions = vec![];
    for source in sources {
        module.clear_context(&mut context);
        context.func.signature = clif::signature(module.isa().default_call_conv());
        let id = module
            .declare_anonymous_function(&context.func.signature)
            .map_err(|e| e.to_string())?;
        match source {
            Source::Portable(program) => {
                clif::emit(program, &mut context.func, &mut builder, config, has_fma);
                module
                    .define_function(id, &mut context)
                    .map_err(|e| format!("{}: {e:?}", program.name))?;
                let code = context.compiled_code();
                let movable = code.filter(|c| c.buffer.relocs().is_empty());
                functions.push((id, movable.map(|c| c.code_buffer().to_vec())));
            }
            Source::Bytes(bytes) => {
                module
                    .define_function_bytes(id, wide::ALIGNMENT, bytes, &[])
                    .map_err(|e| e.to_string())?;
                functions.push((id, None));
            }
        }
    }
    module.finalize_definitions().map_err(|e| e.to_string())?;
    let address = |(f, bytes)| (module.get_finalized_function(f), bytes);
    let functions: Vec<(*const u8, Option<Vec<u8>>)> = functions.into_iter().map(address).collect();
    let code = Arc::new(Code(Some(module)));
    let finish = |(address, bytes): (*const u8, Option<Vec<u8>>)| {
        let program = CompiledProgram {
            // SAFETY: the address is the start of a finished function compiled for the signature of `Entry`.
            entry: unsafe { std::mem::transmute::<*const u8, Entry>(address) },
            code: code.clone(),
        };
        (program, bytes)
    };
    Ok(functions.into_iter().map(finish).collect())
}

/// The code of a program, for listings: the bytes of wide code, else Cranelift's text and disassembly.
pub(crate) fn listing(program: &Program, isa: Isa) -> Result<String, String> {
    if let Some(bytes) = wide::emit(program, isa) {
        let line = |line: &[u8]| line.iter().map(|b| format!("{b:02x} ")).collect::<String>();
        let lines: Vec<String> = bytes.chunks(32).map(line).collect();
        return Ok(lines.join("\n"));
    }
    let target = target(isa)?;
    let has_fma = !cfg!(target_arch = "x86_64") || isa.level() >= Level::Avx2;
    let mut context = Context::new();
    let mut builder = FunctionBuilderContext::new();
    context.func.signature = clif::signature(target.default_call_conv());
    clif::emit(
        program,
        &mut context.func,
        &mut builder,
        target.frontend_config(),
        has_fma,
    );
    let text = context.func.display().to_string();
    context.set_disasm(true);
    let code = context
        .compile(&*target, &mut Default::default())
        .map_err(|e| format!("{:?}", e.inner))?;
    let assembly = code.vcode.clone().unwrap_or_default();
    Ok(format!("{text}\n{assembly}"))
}
