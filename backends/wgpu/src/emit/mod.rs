//! Kernel IR to WGSL.
//!
//! [`emit`] writes one [`Variant`] of a kernel: which part of the work a thread has, and how narrow elements are stored.
//! The variant is chosen when sizes are bound (`schedule`), so a kernel may have a few texts; each serves many shapes.
//!
//! Names in the text: `b0` buffers, `s0` sizes, `a0` axes, `i0` index expressions, `e0` element expressions, `acc0_1`
//! accumulator 1 of phase 0. Expressions that depend on the parallel axes alone are computed once, outside the loops
//! of the phases; all others where they are used. Index arithmetic is in 32 bits, which the launch checks to be enough.
//!
//! Reading order: this file, `phase` (loops and stores), `reduce`, `join`, `tiles`, `lanes`, `expr` (index and element
//! expressions), `scalar`, `prelude` (helper functions; `float_functions`, `long` and `double` hold most of them).

mod double;
mod double_functions;
mod expr;
mod float_functions;
mod join;
pub(crate) mod lanes;
mod long;
pub(crate) mod phase;
mod prelude;
mod reduce;
mod scalar;
mod tiles;

use cupola_ir::DType;
use cupola_ir::kernel::{
    Access, Expr, ExprId, Extent, Index, Item, Kernel, Phase, Store, StoreKind,
};
use cupola_ir::scalar::Scalar;
use cupola_shaders::shader::{Extension, FAULTS, LAUNCH, Param};
use cupola_shaders::{
    Access as BindingAccess, Binding, Element, Epilogue, Shader, Stores, Width, Windows,
};
use rustc_hash::FxHashSet;

use lanes::LaneView;

/// A kernel needs something that generated WGSL does not have; the text names it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EmitError(pub String);

/// Which part of the work a thread has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mapping {
    /// A parallel position for each thread, or several neighbouring ones where threads store whole words.
    Threads {
        /// Positions of a thread: 1, 2, 4, 8 or 16.
        lanes: u32,
        /// Whether they are four along the last parallel axis, computed side by side.
        fours: bool,
    },
    /// Squares of [`TILE`] positions along the last parallel axis and another one, along which some loads are contiguous:
    /// these go through workgroup memory, so that neighbouring threads load and store neighbours both ways.
    Tiles {
        /// The other axis.
        other: usize,
        /// Whether threads take four positions along the last axis.
        fours: bool,
    },
    /// Parallel positions shared by teams of threads, which divide the phases' axes among them.
    Group(Team),
}

/// One way to write a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Variant {
    /// Which part of the work a thread has.
    pub mapping: Mapping,
    /// Stores of narrow elements, by position among all stores of the kernel, whose words belong to one thread each. All
    /// stores to a buffer agree in this.
    pub words: u64,
    /// Buffers, by position, that are only read, but declared `read_write` because another argument writes to the same
    /// memory object.
    pub shared: u64,
    /// Buffers, by position, that are loaded and stored in vectors of four. Every store to one of them is such a vector.
    pub wide: u64,
    /// Phases, by number, in which threads take four neighbouring positions along the phase's last axis. Under
    /// [`Mapping::Threads`] with `fours` it is the last parallel axis, for all phases.
    pub fours: u64,
    /// Loads that go through tiles, by their number among the expressions; under [`Mapping::Tiles`].
    pub tiled: Vec<u32>,
    /// What this launch does of it.
    pub part: Part,
    /// For each size whether it is a multiple of four; without `fours` nothing looks at it.
    pub aligned: Vec<bool>,
    /// For each index whether it is never negative; empty if unknown.
    pub natural: Vec<bool>,
}

/// How a workgroup shares positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Team {
    /// Threads of a workgroup, a power of two.
    pub threads: u32,
    /// Positions of a workgroup, a power of two of at most as many.
    pub rows: u32,
    /// Whether neighbouring threads have neighbouring positions, instead of being of one team.
    pub across: bool,
    /// How its threads join what they have.
    pub join: Join,
}

impl Team {
    /// Threads that share a position.
    pub fn size(self) -> u32 {
        self.threads / self.rows
    }
}

/// How the threads of a team join their accumulators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Join {
    /// As a tree in workgroup memory.
    Tree,
    /// In subgroups of any size, then over these in workgroup memory. For teams of whole workgroups.
    Subgroups,
    /// In one subgroup: the smallest has as many threads as a team.
    Within,
}

/// Which part of a kernel a launch does. Where few positions have much work each, every phase with axes is a launch of its
/// own over `params.parts` parts of those axes; partial results of reductions go to the buffer `parts` between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Part {
    /// All of it.
    #[default]
    Whole,
    /// The phase with this number, for one part of its axes.
    Phase(usize),
    /// What is left: stores of phases without axes.
    Rest,
}

impl Default for Mapping {
    fn default() -> Self {
        Self::Threads {
            lanes: 1,
            fours: false,
        }
    }
}

/// How elements of a dtype live in storage buffers, if generated kernels can hold them.
pub fn element_of(dtype: DType) -> Option<Element> {
    scalar::element_of(dtype)
}

/// Threads of a workgroup under [`Mapping::Threads`] and [`Mapping::Tiles`].
pub const THREADS: u32 = 256;

/// Positions of a tile along each of its axes.
pub const TILE: u32 = 32;

/// Elements between the lines of a tile in workgroup memory: one more, so that both ways go through all banks.
pub const TILE_PITCH: u32 = TILE + 1;

/// All stores of a kernel with their phase, in order.
pub fn stores(kernel: &Kernel) -> impl Iterator<Item = (usize, &Store)> {
    let phases = kernel.phases.iter().enumerate();
    phases.flat_map(|(phase, step)| phase::phase_stores(step).iter().map(move |s| (phase, s)))
}

/// Whether a launch can report a fault: an index or an integer divisor that data decides.
pub fn can_fault(kernel: &Kernel) -> bool {
    let index = |index: &Index| matches!(index, Index::Checked { fault: true, .. });
    kernel.indices.iter().any(index)
        || (0..kernel.exprs.len()).any(|at| faulting_division(kernel, ExprId(at as u32)))
}

/// A division of integers by something else than a constant other than zero.
fn faulting_division(kernel: &Kernel, expr: ExprId) -> bool {
    match kernel.exprs[expr.0 as usize] {
        Expr::Binary(Scalar::Div | Scalar::Rem | Scalar::Mod, x, y) if kernel.dtype(x).is_int() => {
            !matches!(kernel.exprs[y.0 as usize], Expr::Const(literal) if literal.bits != 0)
        }
        _ => false,
    }
}

/// Entries of `sizes` that are used in 64 bits: seeds and run numbers.
fn long_sizes(kernel: &Kernel) -> Vec<u32> {
    let mut long: Vec<u32> = kernel
        .exprs
        .iter()
        .flat_map(|expr| match expr {
            Expr::Random { seed, run, .. } => vec![*seed, *run],
            _ => vec![],
        })
        .collect();
    long.sort_unstable();
    long.dedup();
    long
}

/// Parameter words of an emitted kernel, padded: positions, launch number for fault reports (0), parts, sizes.
pub fn param_words(kernel: &Kernel, positions: u32, parts: u32, sizes: &[i64]) -> Vec<u32> {
    let mut words = vec![positions, 0, parts];
    words.extend(size_words(kernel, sizes));
    words.resize(words.len().next_multiple_of(4), 0);
    words
}

/// The words for the sizes alone.
fn size_words(kernel: &Kernel, sizes: &[i64]) -> Vec<u32> {
    let mut words: Vec<u32> = sizes.iter().map(|&size| size as u32).collect();
    words.extend(
        long_sizes(kernel)
            .iter()
            .map(|&at| (sizes[at as usize] >> 32) as u32),
    );
    words
}

/// The buffer that faults are reported to.
fn faults() -> Binding {
    Binding::write_as(FAULTS, Element::U32, Stores::Sums)
}

/// The words of an epilogue, as [`emit_epilogue`] names them: those of the sizes, then the launch number if it can fault.
pub fn epilogue_words(kernel: &Kernel, sizes: &[i64]) -> Vec<u32> {
    let mut words = size_words(kernel, sizes);
    words.extend(can_fault(kernel).then_some(0));
    words
}

fn size_params(kernel: &Kernel) -> Vec<String> {
    let low = (0..kernel.sizes.len()).map(|at| format!("s{at}"));
    low.chain(long_sizes(kernel).iter().map(|at| format!("h{at}")))
        .collect()
}

/// The text being written.
struct Writer<'k> {
    kernel: &'k Kernel,
    variant: Variant,
    out: String,
    depth: usize,
    helpers: Vec<&'static str>,
    elements: Vec<Element>,
    /// Functions of this kernel alone.
    functions: String,
    /// Workgroup arrays: type and how many.
    trees: Vec<(&'static str, usize)>,
    /// What is computed in each open block.
    scopes: Vec<FxHashSet<(Item, u32)>>,
    /// In a block where threads take four positions, how they differ, and which of them is being written.
    view: Option<LaneView>,
    lane: u32,
    /// Whether tiled loads are read from their tiles here.
    from_tiles: bool,
    /// Whether each index and each expression depends on parallel axes and accumulators only.
    outer_indices: Vec<bool>,
    outer_exprs: Vec<bool>,
    /// In an epilogue, buffer 0 is the value in hand and the others are named as the library kernel binds them.
    epilogue: bool,
}

/// Words of the partial result of one position and part, as [`Part::Phase`] leaves it.
pub fn partial_words(kernel: &Kernel) -> u32 {
    let accums = kernel.phases.iter().map(|phase| match phase {
        Phase::Reduce { accums, .. } => accums.len() as u32,
        Phase::Store { .. } => 0,
    });
    accums.sum::<u32>() * reduce::ACCUM_WORDS
}

/// Writes `variant` of `kernel`. Buffers are those of the kernel, then, unless it does [`Part::Whole`], the partial results,
/// then, if [`can_fault`], one word that receives the launch number on a fault. Parameters are those of [`param_words`].
///
/// # Errors
/// What WGSL kernels lack: strings, block types.
pub fn emit(kernel: &Kernel, variant: Variant) -> Result<Shader, EmitError> {
    let mut writer = Writer::new(kernel, variant, false);
    writer.entry_point()?;
    let mut bindings = writer.bindings()?;
    if writer.variant.part != Part::Whole {
        bindings.push(Binding::write("parts", Element::U32));
    }
    if can_fault(kernel) {
        bindings.push(faults());
    }
    let names = ["positions", LAUNCH, "parts"]
        .map(str::to_owned)
        .into_iter()
        .chain(size_params(kernel));
    let params = names.map(Param::Word).collect();
    let extensions = match writer.variant.mapping {
        Mapping::Group(Team {
            join: Join::Subgroups | Join::Within,
            ..
        }) => vec![Extension::Subgroups],
        _ => Vec::new(),
    };
    let (helpers, body) = writer.finish();
    let name = if kernel.name.is_empty() {
        "kernel"
    } else {
        &kernel.name
    };
    Ok(Shader {
        label: name.to_owned(),
        bindings,
        params,
        extensions,
        helpers,
        body,
    })
}

/// An elementwise kernel as the epilogue of a library kernel whose result elements have `value_type` (`f32`, `i32` or
/// `u32`) and whose result, dense and in row-major order, has the kernel's parallel axes. Buffer 0 is the element in hand,
/// buffer 1 the library kernel's `out`. The elements whose helpers it calls come with it. Its parameters are those of
/// [`epilogue_words`]. If it can fault, its last buffer is the word for that.
///
/// # Errors
/// As [`emit`], and for a kernel that is not elementwise.
pub fn emit_epilogue(
    kernel: &Kernel,
    value_type: &str,
) -> Result<(Epilogue, Vec<Element>), EmitError> {
    let mut writer = Writer::new(kernel, Variant::default(), true);
    writer.epilogue_function(value_type)?;
    let mut bindings: Vec<Binding> = writer.bindings()?.into_iter().skip(2).collect();
    let mut params = size_params(kernel);
    if can_fault(kernel) {
        bindings.push(faults());
        params.push(LAUNCH.to_owned());
    }
    let (helpers, code) = writer.finish();
    Ok((
        Epilogue {
            code,
            bindings,
            params,
        },
        helpers,
    ))
}

/// `fn combine(old: V, update: V) -> V` for two elements of a dtype, after all that it calls; and the elements whose helpers
/// it needs.
///
/// # Errors
/// As [`emit`].
pub fn combine_function(f: Scalar, dtype: DType) -> Result<(String, Vec<Element>), EmitError> {
    let (mut helpers, mut elements) = (Vec::new(), Vec::new());
    let mut code = scalar::Code {
        helpers: &mut helpers,
        elements: &mut elements,
    };
    let value = code.binary(f, dtype, "old", "update")?;
    let held = scalar::held(dtype)?.name();
    let mut text = String::new();
    prelude::write(&helpers, &mut text);
    text.push_str(&format!(
        "fn combine(old: {held}, update: {held}) -> {held} {{\n    return {value};\n}}\n"
    ));
    Ok((text, elements))
}

impl<'k> Writer<'k> {
    fn new(kernel: &'k Kernel, variant: Variant, epilogue: bool) -> Self {
        let mut writer = Self {
            kernel,
            variant,
            out: String::new(),
            depth: 0,
            helpers: Vec::new(),
            elements: Vec::new(),
            functions: String::new(),
            trees: Vec::new(),
            scopes: vec![FxHashSet::default()],
            view: None,
            lane: 0,
            from_tiles: false,
            outer_indices: Vec::new(),
            outer_exprs: Vec::new(),
            epilogue,
        };
        writer.find_outer();
        writer
    }

    /// Helper elements and the finished text of all functions.
    fn finish(self) -> (Vec<Element>, String) {
        let mut text = String::new();
        for (value, count) in &self.trees {
            let threads = match self.variant.mapping {
                Mapping::Group(team) => team.threads,
                Mapping::Threads { .. } | Mapping::Tiles { .. } => THREADS,
            };
            for slot in 0..*count {
                let name = tree_name(value, slot);
                text.push_str(&format!(
                    "var<workgroup> {name}: array<{value}, {threads}>;\n"
                ));
            }
        }
        prelude::write(&self.helpers, &mut text);
        text.push_str(&self.functions);
        text.push_str(&self.out);
        (self.elements, text)
    }

    /// One line of text.
    fn line(&mut self, line: &str) {
        self.out.extend(std::iter::repeat_n("    ", self.depth));
        self.out.push_str(line);
        self.out.push('\n');
    }

    /// Opens a block; what is computed inside is unknown after it.
    fn open(&mut self, head: &str) {
        self.line(&format!("{head} {{"));
        self.depth += 1;
        self.scopes.push(FxHashSet::default());
    }

    fn close(&mut self) {
        self.scopes.pop();
        self.depth -= 1;
        self.line("}");
    }

    fn buffer_name(&self, buffer: usize) -> String {
        if self.epilogue && buffer == 1 {
            "out".to_owned()
        } else {
            format!("b{buffer}")
        }
    }

    fn bindings(&self) -> Result<Vec<Binding>, EmitError> {
        let describe = |(at, buffer): (usize, &cupola_ir::kernel::BufferDecl)| {
            let element = scalar::element(buffer.dtype)?;
            let access = match buffer.access {
                Access::Read if at < 64 && self.variant.shared >> at & 1 == 1 => {
                    BindingAccess::ReadShared
                }
                Access::Read => BindingAccess::Read,
                Access::Write | Access::ReadWrite => BindingAccess::ReadWrite,
            };
            let (mut sums, mut words) = (false, false);
            for (position, (_, store)) in stores(self.kernel).enumerate() {
                if store.buffer.0 as usize == at {
                    sums |= store.kind == StoreKind::AtomicAdd;
                    words |= self.in_words(position);
                }
            }
            if sums && element == Element::F64 {
                return Err(EmitError("sums of f64 from many threads".to_owned()));
            }
            let stores = match (sums, words) {
                (true, _) => Stores::Sums,
                (false, true) => Stores::Words,
                (false, false) => Stores::Elements,
            };
            let wide = at < 64 && self.variant.wide >> at & 1 == 1;
            Ok(Binding {
                name: self.buffer_name(at),
                element,
                access,
                width: if wide { Width::Four } else { Width::One },
                stores,
                windows: Windows::ONE,
            })
        };
        self.kernel
            .buffers
            .iter()
            .enumerate()
            .map(describe)
            .collect()
    }

    /// Whether the store at this position among all stores makes whole words.
    fn in_words(&self, position: usize) -> bool {
        position < 64 && self.variant.words >> position & 1 == 1
    }

    /// An extent as an `i32` expression.
    fn extent(&self, extent: Extent) -> String {
        match extent {
            Extent::Const(len) => len.to_string(),
            Extent::Size(at) => format!("s{at}"),
        }
    }

    /// The product of extents as an `i32` expression.
    fn product(&self, axes: &[usize]) -> String {
        let factors: Vec<String> = axes
            .iter()
            .map(|&axis| self.extent(self.kernel.axes[axis]))
            .collect();
        if factors.is_empty() {
            "1".to_owned()
        } else {
            factors.join(" * ")
        }
    }

    /// `let` lines for the sizes.
    fn declare_sizes(&mut self) {
        for at in 0..self.kernel.sizes.len() {
            self.line(&format!("let s{at} = bitcast<i32>(params.s{at});"));
        }
    }

    /// `let` lines that take the row-major position `from` (`i32`) apart into `axes`, a division for each but one.
    fn declare_axes(&mut self, axes: &[usize], from: &str) {
        let mut rest = from.to_owned();
        for (place, &axis) in axes.iter().enumerate().rev() {
            if place == 0 {
                self.line(&format!("let a{axis} = {rest};"));
                continue;
            }
            let extent = self.extent(self.kernel.axes[axis]);
            self.line(&format!(
                "let over{axis} = i32(u32({rest}) / u32({extent}));"
            ));
            self.line(&format!("let a{axis} = {rest} - over{axis} * {extent};"));
            rest = format!("over{axis}");
        }
    }
}

fn tree_name(value: &str, slot: usize) -> String {
    match value {
        "vec2<u32>" => format!("tree_u64_{slot}"),
        other => format!("tree_{other}_{slot}"),
    }
}

/// Bytes of workgroup memory that reductions of `kernel` take for each thread. Phases reuse arrays of the same type.
pub fn tree_bytes(kernel: &Kernel) -> u32 {
    let mut most: Vec<(scalar::Held, u32)> = Vec::new();
    for phase in &kernel.phases {
        let Phase::Reduce { accums, .. } = phase else {
            continue;
        };
        let mut own: Vec<(scalar::Held, u32)> = Vec::new();
        let mut count = |held| match own.iter_mut().find(|(other, _)| *other == held) {
            Some((_, count)) => *count += 1,
            None => own.push((held, 1)),
        };
        for accum in accums {
            if let Ok(held) = scalar::held(kernel.dtype(accum.value)) {
                count(held);
            }
            if reduce::is_position(accum.kind) {
                count(scalar::Held::Signed);
            }
        }
        for (held, count) in own {
            match most.iter_mut().find(|(other, _)| *other == held) {
                Some((_, most)) => *most = count.max(*most),
                None => most.push((held, count)),
            }
        }
    }
    most.iter()
        .map(|(held, count)| count * if held.name() == "vec2<u32>" { 8 } else { 4 })
        .sum()
}
