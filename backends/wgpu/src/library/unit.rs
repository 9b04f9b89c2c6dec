//! Library units of the kernel IR: which problem a unit is once its sizes are bound.

use cupola_ir::composite::{self, CompositeOp};
use cupola_ir::kernel::{Extent, Kernel, Library, View};
use cupola_ir::ops::{self, Bounds, CoreOp, Op};
use cupola_ir::{Class, DType, TensorType};
use cupola_shaders::Element;
use cupola_shaders::convolution::Direction;
use cupola_shaders::shader::Epilogue;
use cupola_shaders::sort::KeyKind;

use super::attention::{Attention, Tensor4};
use super::claim::refusal;
use super::contraction::contraction;
use super::convolution::{Channels, Convolution, SpatialAxis};
use super::matmul::{Matmul, Reading};
use super::paged::{PagedAttention, Strided};
use super::plans::{self, Contest, Entry, Problem as _};
use super::scatter::Scatter;
use super::sort::{RowAxis, Sort};
use super::{LibraryProgram, accumulator_of};
use crate::choice::DeviceModel;
use crate::emit::{EmitError, can_fault, element_of, emit_epilogue};
use crate::error::Error;

/// A view with its numbers.
pub(super) struct Bound {
    pub element: Element,
    pub reading: Reading,
    pub dims: Vec<u64>,
    pub strides: Vec<i64>,
    pub offset: i64,
}

fn bound(view: &View, sizes: &[i64]) -> Result<Bound, Error> {
    let number = |extent: &Extent| match *extent {
        Extent::Const(value) => Ok(value),
        Extent::Size(at) => sizes.get(at as usize).copied().ok_or_else(|| Error::Range {
            what: "library unit",
            reason: format!("size {at} is not given"),
        }),
    };
    let dims = view
        .dims
        .iter()
        .map(|dim| number(dim).map(|len| len.max(0) as u64))
        .collect::<Result<_, _>>()?;
    let strides = view.strides.iter().map(number).collect::<Result<_, _>>()?;
    let missing = || Error::MissingFeature {
        what: "library unit",
        feature: view.dtype.name(),
    };
    let (element, reading) = match (view.dtype, view.read) {
        // Blocks are read from words.
        (DType::Block(format), _) => (Element::U32, Reading::Blocks(format)),
        (stored, read @ (DType::F16 | DType::BF16)) if stored != read => (
            element_of(stored).ok_or_else(missing)?,
            Reading::Rounded(element_of(read).ok_or_else(missing)?),
        ),
        (stored, _) => (element_of(stored).ok_or_else(missing)?, Reading::Stored),
    };
    Ok(Bound {
        element,
        reading,
        dims,
        strides,
        offset: number(&view.offset)?,
    })
}

/// A unit with its sizes.
enum Posed {
    Matmul(Matmul),
    Convolution(Convolution),
    Attention(Attention),
    Paged(PagedAttention),
    Sort(Sort),
    /// There is one way to compute it.
    Ready(LibraryProgram),
}

/// A library unit, compiled as far as it can be without sizes.
#[derive(Debug, Clone)]
pub struct LibraryUnit {
    library: Library,
    epilogue: Epilogue,
    /// Small float types whose helpers the epilogue calls.
    helpers: Vec<Element>,
}

impl LibraryUnit {
    /// Checks that the unit can be run and writes its epilogue.
    ///
    /// # Errors
    /// What is not supported.
    pub fn new(library: &Library) -> Result<Self, EmitError> {
        let types: Vec<TensorType> = library
            .operands
            .iter()
            .map(|view| stand_in(library, view))
            .collect();
        if let Some(reason) = refusal(&library.op, &types.iter().collect::<Vec<_>>()) {
            return Err(EmitError(reason));
        }
        if let Op::Composite(CompositeOp::Conv(conv)) = &library.op {
            known_dims(&conv.pads_low, library)?;
        }
        if let Op::Composite(CompositeOp::ConvTranspose(conv)) = &library.op {
            known_dims(&conv.pads_low, library)?;
        }
        let (epilogue, helpers) = match &library.epilogue {
            None => (Epilogue::default(), Vec::new()),
            Some(kernel) => emit_epilogue(kernel, accumulator_name(library))?,
        };
        Ok(Self {
            library: library.clone(),
            epilogue,
            helpers,
        })
    }

    /// Whether launches can report faults.
    pub fn can_fault(&self) -> bool {
        let own = match &self.library.op {
            Op::Core(CoreOp::Scatter(op)) => op.bounds == Bounds::Check,
            Op::Composite(CompositeOp::PagedAttention(_)) => true,
            Op::Core(_) | Op::Composite(_) | Op::Host(_) => false,
        };
        own || self.library.epilogue.as_deref().is_some_and(can_fault)
    }

    /// Whether the first operand's memory can be the result's, what is not changed staying as it is ([`Self::plan_over`]).
    pub fn can_write_over(&self) -> bool {
        matches!(self.library.op, Op::Core(CoreOp::Scatter(_)))
    }

    /// The epilogue kernel, if any.
    pub fn epilogue_kernel(&self) -> Option<&Kernel> {
        self.library.epilogue.as_deref()
    }

    /// Positions of the buffer arguments that are written.
    pub fn written(&self) -> Vec<usize> {
        let first = self.library.operands.len();
        (first..first + self.library.results.len()).collect()
    }

    /// The problem with these sizes.
    fn pose(&self, sizes: &[i64]) -> Result<Posed, Error> {
        let views = |views: &[View]| {
            views
                .iter()
                .map(|view| bound(view, sizes))
                .collect::<Result<Vec<_>, _>>()
        };
        let (operands, results) = (
            views(&self.library.operands)?,
            views(&self.library.results)?,
        );
        Ok(match &self.library.op {
            Op::Core(CoreOp::Contract(contract)) => Posed::Matmul(contraction(
                contract,
                &operands,
                &results[0],
                &self.epilogue,
            )),
            Op::Core(CoreOp::Sort(sort)) => {
                Posed::Sort(self.sort(sort.axis, sort.descending, &operands[0], &results[0]))
            }
            Op::Core(CoreOp::Scatter(op)) => Posed::Ready(self.scatter(op, &operands).plan()?),
            Op::Composite(CompositeOp::Conv(conv)) => {
                let before = dims_of(&conv.pads_low, &self.library, sizes)?;
                let windows = Windows {
                    strides: &conv.strides,
                    dilations: &conv.dilations,
                    before: &before,
                };
                let groups = conv.groups as u64;
                Posed::Convolution(convolution(
                    Direction::Forward,
                    groups,
                    &windows,
                    &operands,
                    &results[0],
                    &self.epilogue,
                ))
            }
            Op::Composite(CompositeOp::ConvTranspose(conv)) => {
                let before = dims_of(&conv.pads_low, &self.library, sizes)?;
                let windows = Windows {
                    strides: &conv.strides,
                    dilations: &conv.dilations,
                    before: &before,
                };
                let groups = conv.groups as u64;
                Posed::Convolution(convolution(
                    Direction::Transposed,
                    groups,
                    &windows,
                    &operands,
                    &results[0],
                    &self.epilogue,
                ))
            }
            Op::Composite(CompositeOp::Attention(attention)) => {
                let problem = attention_of(&operands, &results[0]);
                let causal = attention
                    .causal
                    .then_some(problem.keys as i64 - problem.queries as i64);
                Posed::Attention(Attention {
                    scale: attention.scale as f32,
                    softcap: attention.softcap as f32,
                    last_distance: causal,
                    ..problem
                })
            }
            Op::Composite(CompositeOp::PagedAttention(attention)) => {
                Posed::Paged(paged_attention_of(attention, &operands, &results[0]))
            }
            other => unreachable!("bug: {} was refused", other.name()),
        })
    }

    /// The dispatches for these sizes on a device. Arguments: operands, results, then the epilogue's.
    ///
    /// # Errors
    /// [`Error::Limit`] for lengths that the kernels cannot handle.
    pub fn plan(&self, sizes: &[i64], device: &DeviceModel) -> Result<LibraryProgram, Error> {
        let program = match self.pose(sizes)? {
            Posed::Matmul(problem) => problem.plan(device),
            Posed::Convolution(problem) => problem.plan(device),
            Posed::Attention(problem) => problem.plan(device),
            Posed::Paged(problem) => problem.plan(device),
            Posed::Sort(problem) => problem.plan(device),
            Posed::Ready(program) => Ok(program),
        };
        Ok(self.with_helpers(program?))
    }

    /// The dispatches for these sizes where the result is the first operand's memory. Arguments as those of
    /// [`Self::plan`].
    ///
    /// # Errors
    /// As [`Self::plan`]; [`Error::Range`] for a unit that [cannot do so](Self::can_write_over).
    pub fn plan_over(&self, sizes: &[i64]) -> Result<LibraryProgram, Error> {
        let Op::Core(CoreOp::Scatter(op)) = &self.library.op else {
            return Err(Error::Range {
                what: "library unit",
                reason: format!("{} does not write over its operand", self.library.op.name()),
            });
        };
        let operands = self.library.operands.iter();
        let operands: Vec<Bound> = operands
            .map(|view| bound(view, sizes))
            .collect::<Result<_, _>>()?;
        Ok(self.with_helpers(self.scatter(op, &operands).plan_over()?))
    }

    /// The class of the problem with these sizes, where there are several plans for it.
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub fn class(&self, sizes: &[i64]) -> Result<Option<String>, Error> {
        Ok(match self.pose(sizes)? {
            Posed::Matmul(problem) => Some(problem.class()),
            Posed::Attention(problem) => Some(problem.class()),
            Posed::Paged(problem) => Some(problem.class()),
            Posed::Convolution(problem) => Some(problem.class()),
            Posed::Sort(_) | Posed::Ready(_) => None,
        })
    }

    /// The plans for these sizes that may be the fastest, where there are several.
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub fn contest(
        &self,
        sizes: &[i64],
        device: &DeviceModel,
        entry: Entry,
    ) -> Result<Option<Contest>, Error> {
        let mut contest = match self.pose(sizes)? {
            Posed::Matmul(problem) => plans::contest(&problem, device, entry)?,
            Posed::Attention(problem) => plans::contest(&problem, device, entry)?,
            Posed::Paged(problem) => plans::contest(&problem, device, entry)?,
            Posed::Convolution(problem) => problem.contest(device, entry)?,
            Posed::Sort(_) | Posed::Ready(_) => {
                return Ok(None);
            }
        };
        for candidate in &mut contest.candidates {
            candidate.program = self.with_helpers(std::mem::take(&mut candidate.program));
        }
        Ok(Some(contest))
    }

    fn with_helpers(&self, mut program: LibraryProgram) -> LibraryProgram {
        for (call, _) in &mut program.steps {
            call.shader.helpers.extend(&self.helpers);
        }
        program
    }

    fn scatter<'a>(&self, op: &'a ops::Scatter, operands: &'a [Bound]) -> Scatter<'a> {
        Scatter {
            op,
            dtype: self.library.operands[0].dtype,
            element: operands[0].element,
            dims: &operands[0].dims,
            tuples: operands[2].dims.iter().product(),
            offsets: [operands[0].offset, operands[1].offset],
            index_offsets: operands[2..].iter().map(|list| list.offset).collect(),
        }
    }

    fn sort(&self, axis: usize, descending: bool, source: &Bound, result: &Bound) -> Sort {
        let dtype = self.library.operands[0].dtype;
        let kind = match dtype.class() {
            Class::Signed => KeyKind::Signed,
            Class::Float => KeyKind::Float {
                infinity: match dtype {
                    DType::F16 => 0x7c00,
                    DType::BF16 => 0x7f80,
                    _ => 0x7f80_0000,
                },
            },
            Class::Bool | Class::Unsigned | Class::String | Class::Block => KeyKind::Unsigned,
        };
        let others = (0..source.dims.len()).filter(|&other| other != axis);
        Sort {
            bits: dtype.bits() as u32,
            kind,
            descending,
            len: source.dims[axis],
            source_offset: source.offset,
            source_step: source.strides[axis],
            sink_step: result.strides[axis],
            rows: others
                .map(|other| RowAxis {
                    len: source.dims[other],
                    source: source.strides[other],
                    sink: result.strides[other],
                })
                .collect(),
        }
    }
}

/// A type as the op takes it, for asking what is supported.
fn stand_in(library: &Library, view: &View) -> TensorType {
    let dims = view.dims.iter().map(|dim| match *dim {
        Extent::Const(len) => len.into(),
        Extent::Size(at) => library.sizes[at as usize].clone(),
    });
    TensorType {
        dtype: view.read,
        dims: dims.collect(),
    }
}

/// WGSL type of the sums of a library unit.
fn accumulator_name(library: &Library) -> &'static str {
    match library.operands.as_slice() {
        [lhs, rhs, ..] => match (element_of(lhs.read), element_of(rhs.read)) {
            (Some(lhs), Some(rhs)) => accumulator_of(lhs, rhs).name(),
            _ => "f32",
        },
        _ => "f32",
    }
}

/// Dimensions of an attribute as numbers: constants, or sizes of the unit.
fn dims_of(dims: &[cupola_ir::Dim], library: &Library, sizes: &[i64]) -> Result<Vec<i64>, Error> {
    let number = |dim: &cupola_ir::Dim| {
        let size = || {
            library
                .sizes
                .iter()
                .position(|size| size == dim)
                .and_then(|at| sizes.get(at).copied())
        };
        dim.as_const().or_else(size).ok_or_else(|| Error::Range {
            what: "library unit",
            reason: format!("{dim} is not among its sizes"),
        })
    };
    dims.iter().map(number).collect()
}

/// Whether [`dims_of`] will find them.
fn known_dims(dims: &[cupola_ir::Dim], library: &Library) -> Result<(), EmitError> {
    let unknown = dims
        .iter()
        .find(|dim| dim.as_const().is_none() && !library.sizes.contains(dim));
    unknown.map_or(Ok(()), |dim| {
        Err(EmitError(format!(
            "padding {dim}, which is no size of the unit"
        )))
    })
}

/// Attributes of a convolution, per spatial axis.
struct Windows<'a> {
    strides: &'a [i64],
    dilations: &'a [i64],
    before: &'a [i64],
}

fn convolution(
    direction: Direction,
    groups: u64,
    windows: &Windows<'_>,
    operands: &[Bound],
    result: &Bound,
    epilogue: &Epilogue,
) -> Convolution {
    let (x, w) = (&operands[0], &operands[1]);
    let axis = |at: usize| SpatialAxis {
        input_len: x.dims[at + 2],
        kernel_len: w.dims[at + 2],
        out_len: result.dims[at + 2],
        stride: windows.strides[at].max(1) as u64,
        dilation: windows.dilations[at].max(0) as u64,
        before: windows.before[at],
        input_stride: x.strides[at + 2],
        weight_stride: w.strides[at + 2],
    };
    let channels = |view: &Bound, outer: usize, inner: usize| Channels {
        element: view.element,
        offset: view.offset,
        outer_stride: view.strides[outer],
        inner_stride: view.strides[inner],
    };
    // Weights are [out, in / groups, ..] forward and [in, out / groups, ..] transposed.
    let (weight, out_channels) = match direction {
        Direction::Forward => (channels(w, 0, 1), w.dims[0] / groups.max(1)),
        Direction::Transposed => (channels(w, 1, 0), w.dims[1]),
    };
    Convolution {
        direction,
        batches: x.dims[0],
        groups,
        out_channels,
        in_channels: x.dims[1] / groups.max(1),
        spatial: (0..x.dims.len() - 2).map(axis).collect(),
        input: channels(x, 0, 1),
        weight,
        out: channels(result, 0, 1),
        epilogue: epilogue.clone(),
    }
}

fn attention_of(operands: &[Bound], result: &Bound) -> Attention {
    let (q, k, v) = (&operands[0], &operands[1], &operands[2]);
    let four = |view: &Bound| Tensor4 {
        element: view.element,
        offset: view.offset,
        strides: std::array::from_fn(|axis| view.strides[axis]),
    };
    // A mask has up to four axes, aligned at the end; those of length 1 repeat.
    let mask = operands.get(3).map(|mask| {
        let missing = 4 - mask.dims.len();
        let stride = |axis: usize| match axis.checked_sub(missing) {
            Some(own) if mask.dims[own] != 1 => mask.strides[own],
            _ => 0,
        };
        Tensor4 {
            element: mask.element,
            offset: mask.offset,
            strides: std::array::from_fn(stride),
        }
    });
    Attention {
        batches: q.dims[0],
        kv_heads: k.dims[1],
        group: q.dims[1] / k.dims[1].max(1),
        queries: q.dims[2],
        keys: k.dims[2],
        depth: q.dims[3],
        value_depth: v.dims[3],
        scale: 1.0,
        softcap: 0.0,
        last_distance: None,
        first_distance: None,
        query: four(q),
        key: four(k),
        value: four(v),
        mask,
        out: four(result),
    }
}

fn paged_attention_of(
    attention: &composite::PagedAttention,
    operands: &[Bound],
    result: &Bound,
) -> PagedAttention {
    fn strided<const N: usize>(view: &Bound) -> Strided<N> {
        Strided {
            element: view.element,
            offset: view.offset,
            strides: std::array::from_fn(|axis| view.strides[axis]),
        }
    }
    let [q, k, v, table, sequences, positions] = [0, 1, 2, 3, 4, 5].map(|at| &operands[at]);
    PagedAttention {
        rows: q.dims[0],
        kv_heads: k.dims[1],
        group: q.dims[1] / k.dims[1].max(1),
        depth: q.dims[2],
        value_depth: v.dims[3],
        pages: k.dims[0],
        page_len: k.dims[2],
        sequences: table.dims[0],
        blocks: table.dims[1],
        scale: attention.scale as f32,
        softcap: attention.softcap as f32,
        window: attention.window.max(0) as u64,
        query: strided(q),
        key: strided(k),
        value: strided(v),
        table: strided(table),
        sequence_of: strided(sequences),
        position_of: strided(positions),
        out: strided(result),
    }
}
