//! Convolution: a problem with its shapes becomes a dispatch, or two where the inner axis is divided.

use cupola_shaders::convolution::{
    ConvolutionForm, ConvolutionParams, ConvolutionShader, Direction, SPATIAL_AXES,
};
use cupola_shaders::element::Element;
use cupola_shaders::matmul::{JoinShader, MatmulParams, Orientation};
use cupola_shaders::shader::Epilogue;

use super::matmul::{BatchAxis, Matmul, Matrix};
use super::{LibraryCall, LibraryProgram, Place, accumulator_of, plans, stride, word};
use crate::choice::DeviceModel;
use crate::error::Error;

mod forms;
mod naming;

/// One spatial axis. Strides of input and weights are in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpatialAxis {
    /// Input length.
    pub input_len: u64,
    /// Kernel length.
    pub kernel_len: u64,
    /// Output length.
    pub out_len: u64,
    /// Distance of windows.
    pub stride: u64,
    /// Distance of elements in a window.
    pub dilation: u64,
    /// Zeros before the input; for a transposed convolution, outputs cut off. May be negative.
    pub before: i64,
    /// Input elements from one position to the next.
    pub input_stride: i64,
    /// Weights from one kernel position to the next.
    pub weight_stride: i64,
}

/// An axis that does nothing.
const UNUSED_AXIS: SpatialAxis = SpatialAxis {
    input_len: 1,
    kernel_len: 1,
    out_len: 1,
    stride: 1,
    dilation: 1,
    before: 0,
    input_stride: 0,
    weight_stride: 0,
};

/// A tensor with two leading axes, in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Channels {
    /// Storage.
    pub element: Element,
    /// Position of its first element.
    pub offset: i64,
    /// Distance along the first axis: batches, or for weights output channels.
    pub outer_stride: i64,
    /// Distance along the second: channels, or for weights input channels.
    pub inner_stride: i64,
}

/// `out[n, g * O + o, p] = sum over i, k of input[n, g * I + i, source(p, k)] * weight[.., k]` for group g, with zeros
/// around the input. Weights are at `(g * O + o) * outer + i * inner` in a forward convolution and at
/// `o * outer + (g * I + i) * inner` in a transposed one. Positions of the result are dense.
#[derive(Debug, Clone, PartialEq)]
pub struct Convolution {
    /// Forward or transposed.
    pub direction: Direction,
    /// Batches.
    pub batches: u64,
    /// Channel groups.
    pub groups: u64,
    /// Output channels of a group.
    pub out_channels: u64,
    /// Input channels of a group.
    pub in_channels: u64,
    /// At most [`SPATIAL_AXES`], outermost first.
    pub spatial: Vec<SpatialAxis>,
    /// Input.
    pub input: Channels,
    /// Weights.
    pub weight: Channels,
    /// Result.
    pub out: Channels,
    /// What happens to each result instead of the plain store; row, column and batch are channel, position and batch.
    pub epilogue: Epilogue,
}

/// Kernel lengths up to which each has a text of its own.
const MOST_KERNEL: u64 = 16;

/// A way to compute a convolution.
#[derive(Debug, Clone, PartialEq)]
pub struct ConvolutionPlan {
    /// The convolution's kernel.
    pub shader: ConvolutionShader,
    /// Parts that the inner axis is divided into.
    pub splits: u64,
}

/// The lengths of a convolution, checked.
struct Lengths {
    /// Three spatial axes.
    axes: [SpatialAxis; SPATIAL_AXES],
    /// Output positions of a batch.
    positions: u64,
    /// Batches times output positions.
    cols: u64,
    /// Kernel positions.
    kernel: u64,
    /// Input channels of a group times kernel positions.
    inner: u64,
    /// Elements of the result.
    results: u64,
}

impl Convolution {
    /// The dispatches that compute it. Arguments: input, weight, result, then the epilogue's.
    ///
    /// # Errors
    /// [`Error::Limit`] for more than [`SPATIAL_AXES`] spatial axes and lengths beyond 31 bits.
    pub fn plan(&self, device: &DeviceModel) -> Result<LibraryProgram, Error> {
        if let Some(product) = self.pointwise() {
            let mut program = product.plan(device)?;
            naming::weights_last(&mut program);
            return Ok(program);
        }
        plans::plan(self, device)
    }

    /// Every way that the device has, none of which may be missing from the tests.
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub fn plans(&self, device: &DeviceModel) -> Result<Vec<ConvolutionPlan>, Error> {
        Ok(forms::all(self, &self.lengths()?, device))
    }

    /// Predicted seconds of a plan.
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub fn seconds(&self, plan: &ConvolutionPlan, device: &DeviceModel) -> Result<f64, Error> {
        Ok(forms::seconds(self, &self.lengths()?, plan, device))
    }

    /// The dispatches of a plan of this convolution.
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub fn planned(&self, plan: &ConvolutionPlan) -> Result<LibraryProgram, Error> {
        let lengths = self.lengths()?;
        let grid = forms::Grid::new(self, &lengths, plan);
        let call = |params: ConvolutionParams| LibraryCall {
            shader: plan.shader.shader(),
            params: params.words(),
            groups: grid.groups,
        };
        let params = self.params(&lengths, &grid, plan)?;
        if plan.splits == 1 {
            return Ok(LibraryProgram::one(call(params)));
        }
        let all_out = self.groups * self.out_channels;
        let parts = ConvolutionParams {
            out_offset: 0,
            out_batch: word("results", all_out * lengths.positions)?,
            out_channel: params.positions,
            ..params
        };
        let (join, join_params) = self.join(&lengths, plan)?;
        let rest = (3..join.bindings.len() + 1).map(Place::Argument);
        let places = [Place::Scratch(0), Place::Argument(2)].into_iter();
        let join = LibraryCall {
            groups: lengths.results.div_ceil(u64::from(JoinShader::GROUP_LEN)),
            shader: join,
            params: join_params.words(),
        };
        Ok(LibraryProgram {
            steps: vec![
                (
                    call(parts),
                    vec![Place::Argument(0), Place::Argument(1), Place::Scratch(0)],
                ),
                (join, places.chain(rest).collect()),
            ],
            scratch: vec![lengths.results * plan.splits * 4],
        })
    }

    /// What adds up the parts of a plan: a product's parts whose rows are channels and whose columns positions.
    fn join(
        &self,
        lengths: &Lengths,
        plan: &ConvolutionPlan,
    ) -> Result<(cupola_shaders::Shader, MatmulParams), Error> {
        let batches = word("batches", self.batches)?;
        let mut params = MatmulParams {
            rows: word("output channels", self.groups * self.out_channels)?,
            cols: word("output positions", lengths.positions)?,
            batches,
            batch_rank: 1,
            out_offset: stride(self.out.offset),
            out_row: stride(self.out.inner_stride),
            out_col: 1,
            splits: word("parts", plan.splits)?,
            ..MatmulParams::default()
        };
        params.batch_dims[0] = [batches, 0, 0, stride(self.out.outer_stride)];
        let join = JoinShader {
            out: self.out.element,
            accumulator: plan.shader.accumulator,
            epilogue: self.epilogue.clone(),
            orientation: Orientation::Normal,
        };
        Ok((join.shader(), params))
    }

    /// The kernel of a form, over the whole inner axis.
    fn shader(&self, lengths: &Lengths, form: ConvolutionForm) -> ConvolutionShader {
        ConvolutionShader {
            input: self.input.element,
            weight: self.weight.element,
            out: self.out.element,
            accumulator: accumulator_of(self.input.element, self.weight.element),
            direction: self.direction,
            kernel: lengths.axes.map(|axis| match axis.kernel_len {
                len @ 1..=MOST_KERNEL => len as u32,
                _ => 0,
            }),
            form,
            epilogue: self.epilogue.clone(),
        }
    }

    fn params(
        &self,
        lengths: &Lengths,
        grid: &forms::Grid,
        plan: &ConvolutionPlan,
    ) -> Result<ConvolutionParams, Error> {
        let (mut source, mut window) = ([[0; 4]; SPATIAL_AXES], [[0; 4]; SPATIAL_AXES]);
        for (position, axis) in lengths.axes.iter().enumerate() {
            source[position] = [
                word("an input length", axis.input_len)?,
                stride(axis.input_stride),
                stride(axis.weight_stride),
                word("a kernel length", axis.kernel_len)?,
            ];
            window[position] = [
                word("a stride", axis.stride)?,
                word("a dilation", axis.dilation)?,
                stride(axis.before),
                word("an output length", axis.out_len)?,
            ];
        }
        // Threads are numbered over all results, the last workgroup's beyond them too.
        word("results", lengths.results.saturating_add(256))?;
        Ok(ConvolutionParams {
            rows: word("output channels", self.out_channels)?,
            cols: word("output positions", lengths.cols)?,
            // The loops count one step further.
            inner: word("a contracted length", grid.inner.saturating_add(4096))? - 4096,
            inner_channels: word("input channels", self.in_channels)?,
            groups: word("channel groups", self.groups)?,
            positions: word("output positions", lengths.positions)?,
            row_tiles: word("tiles", grid.row_tiles)?,
            col_tiles: word("tiles", grid.col_tiles)?,
            input_offset: stride(self.input.offset),
            input_batch: stride(self.input.outer_stride),
            input_group: stride((self.in_channels as i64).wrapping_mul(self.input.inner_stride)),
            input_channel: stride(self.input.inner_stride),
            weight_offset: stride(self.weight.offset),
            weight_group: stride(self.weight_group()),
            weight_out: stride(self.weight.outer_stride),
            weight_in: stride(self.weight.inner_stride),
            out_offset: stride(self.out.offset),
            out_batch: stride(self.out.outer_stride),
            out_channel: stride(self.out.inner_stride),
            blocks: word("blocks", grid.blocks)?,
            block_cols: word("blocks", grid.blocks.saturating_mul(self.batches))?,
            splits: word("parts", plan.splits)?,
            split_inner: word("a part", grid.split_inner)?,
            split_out: match plan.splits {
                1 => 0,
                _ => word("results", lengths.results)?,
            },
            source,
            window,
        })
    }

    /// Weights from group to group.
    fn weight_group(&self) -> i64 {
        match self.direction {
            Direction::Forward => (self.out_channels as i64).wrapping_mul(self.weight.outer_stride),
            Direction::Transposed => {
                (self.in_channels as i64).wrapping_mul(self.weight.inner_stride)
            }
        }
    }

    fn lengths(&self) -> Result<Lengths, Error> {
        let axes = self.axes()?;
        let product = |factors: &[u64]| {
            let product = factors
                .iter()
                .try_fold(1u64, |product, &factor| product.checked_mul(factor));
            product.ok_or_else(|| too_large(u64::MAX))
        };
        let positions = product(&axes.map(|axis| axis.out_len))?;
        let kernel = product(&axes.map(|axis| axis.kernel_len))?;
        let cols = product(&[positions, self.batches])?;
        Ok(Lengths {
            axes,
            positions,
            cols,
            kernel,
            inner: product(&[self.in_channels, kernel])?,
            results: product(&[cols, self.groups, self.out_channels])?,
        })
    }

    /// The spatial axes padded to three, all positions checked to fit signed 32 bits.
    fn axes(&self) -> Result<[SpatialAxis; SPATIAL_AXES], Error> {
        let missing = SPATIAL_AXES
            .checked_sub(self.spatial.len())
            .ok_or(Error::Limit {
                what: "spatial axes of a convolution",
                needed: self.spatial.len() as u64,
                allowed: SPATIAL_AXES as u64,
            })?;
        let mut axes = [UNUSED_AXIS; SPATIAL_AXES];
        axes[missing..].copy_from_slice(&self.spatial);
        for axis in &axes {
            let reach = axis.kernel_len.checked_mul(axis.dilation);
            let span = axis.out_len.max(axis.input_len).checked_mul(axis.stride);
            let total = reach
                .and_then(|reach| reach.checked_add(span?))
                .and_then(|total| total.checked_add(axis.before.unsigned_abs()))
                .unwrap_or(u64::MAX);
            if total >= 1 << 31 || axis.stride == 0 {
                return Err(too_large(total));
            }
        }
        Ok(axes)
    }

    /// The product it is, where every output position reads just the input position of the same place.
    fn pointwise(&self) -> Option<Matmul> {
        let trivial = |axis: &SpatialAxis| {
            axis.kernel_len == 1
                && axis.stride == 1
                && axis.before == 0
                && axis.input_len == axis.out_len
        };
        if self.groups != 1 || !self.spatial.iter().all(trivial) {
            return None;
        }
        // Positions are one axis of the input if each spatial axis steps over the whole of the next.
        let mut position_stride = 1;
        let mut next: Option<i64> = None;
        for axis in self.spatial.iter().rev().filter(|axis| axis.input_len != 1) {
            match next {
                None => position_stride = axis.input_stride,
                Some(expected) if expected == axis.input_stride => {}
                Some(_) => return None,
            }
            next = Some(axis.input_stride.wrapping_mul(axis.input_len as i64));
        }
        let positions = self
            .spatial
            .iter()
            .try_fold(1u64, |product, axis| product.checked_mul(axis.out_len))?;
        Some(Matmul {
            rows: self.out_channels,
            cols: positions,
            inner: self.in_channels,
            inner_axes: vec![],
            batch: vec![BatchAxis {
                len: self.batches,
                lhs: 0,
                rhs: self.input.outer_stride,
                out: self.out.outer_stride,
            }],
            lhs: Matrix {
                element: self.weight.element,
                offset: self.weight.offset,
                row_stride: self.weight.outer_stride,
                col_stride: self.weight.inner_stride,
            },
            rhs: Matrix {
                element: self.input.element,
                offset: self.input.offset,
                row_stride: self.input.inner_stride,
                col_stride: position_stride,
            },
            out: Matrix {
                element: self.out.element,
                offset: self.out.offset,
                row_stride: self.out.inner_stride,
                col_stride: 1,
            },
            readings: Default::default(),
            narrow: false,
            epilogue: self.epilogue.clone(),
        })
    }
}

fn too_large(needed: u64) -> Error {
    Error::Limit {
        what: "positions of a convolution",
        needed,
        allowed: (1 << 31) - 1,
    }
}
