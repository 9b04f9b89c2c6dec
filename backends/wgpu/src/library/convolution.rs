//! Convolution: which kernel for which shapes.

use cupola_shaders::binding::Width;
use cupola_shaders::convolution::{
    ConvolutionForm, ConvolutionParams, ConvolutionShader, Direction, SPATIAL_AXES, WeightLayout,
};
use cupola_shaders::element::Element;
use cupola_shaders::shader::Epilogue;
use cupola_shaders::tile::Tile;

use super::matmul::{BatchAxis, Matmul, Matrix};
use super::{LibraryCall, LibraryProgram, Place, accumulator_of, stride, word};
use crate::choice::DeviceModel;
use crate::error::Error;

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

/// Output channels below which tiles would be mostly empty.
const TILED_CHANNELS: u64 = 8;

/// Kernel lengths up to which each has a text of its own.
const MOST_KERNEL: u64 = 16;

/// Workgroups below which a smaller tile is taken.
const BUSY_GROUPS: u64 = 192;

impl Convolution {
    /// The dispatch that computes it. Arguments: input, weight, result, then the epilogue's.
    ///
    /// # Errors
    /// [`Error::Limit`] for more than [`SPATIAL_AXES`] spatial axes and lengths beyond 31 bits.
    pub fn plan(&self, device: &DeviceModel) -> Result<LibraryProgram, Error> {
        if let Some(product) = self.pointwise() {
            let mut program = product.plan(device)?;
            // The product's left operand is the weights, its right one the input.
            for place in &mut program.steps[0].1 {
                *place = match *place {
                    Place::Argument(0) => Place::Argument(1),
                    Place::Argument(1) => Place::Argument(0),
                    other => other,
                };
            }
            return Ok(program);
        }
        let axes = self.axes()?;
        let positions = axes
            .iter()
            .try_fold(1u64, |product, axis| product.checked_mul(axis.out_len));
        let inner = axes.iter().try_fold(self.in_channels, |product, axis| {
            product.checked_mul(axis.kernel_len)
        });
        let (Some(positions), Some(inner)) = (positions, inner) else {
            return Err(too_large(u64::MAX));
        };
        let cols = positions
            .checked_mul(self.batches)
            .ok_or_else(|| too_large(u64::MAX))?;
        let weight_group = match self.direction {
            Direction::Forward => (self.out_channels as i64).wrapping_mul(self.weight.outer_stride),
            Direction::Transposed => {
                (self.in_channels as i64).wrapping_mul(self.weight.inner_stride)
            }
        };
        let form = self.form(cols);
        let shader = ConvolutionShader {
            input: self.input.element,
            weight: self.weight.element,
            out: self.out.element,
            accumulator: accumulator_of(self.input.element, self.weight.element),
            direction: self.direction,
            weights: match form {
                ConvolutionForm::Tiled(_) => self.weight_layout(&axes, inner, weight_group),
                ConvolutionForm::Direct => WeightLayout::Strided,
            },
            kernel: axes.map(|axis| match axis.kernel_len {
                len @ 1..=MOST_KERNEL => len as u32,
                _ => 0,
            }),
            form,
            epilogue: self.epilogue.clone(),
        };
        let row_tiles = self.out_channels.div_ceil(u64::from(shader.group_rows()));
        let col_tiles = cols.div_ceil(u64::from(shader.group_cols()));
        let groups = row_tiles
            .checked_mul(col_tiles)
            .and_then(|tiles| tiles.checked_mul(self.groups));
        let (mut source, mut window) = ([[0; 4]; SPATIAL_AXES], [[0; 4]; SPATIAL_AXES]);
        for (position, axis) in axes.iter().enumerate() {
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
        let params = ConvolutionParams {
            rows: word("output channels", self.out_channels)?,
            cols: word("output positions", cols)?,
            inner: word("a contracted length", inner)?,
            inner_channels: word("input channels", self.in_channels)?,
            groups: word("channel groups", self.groups)?,
            positions: word("output positions", positions)?,
            row_tiles: word("tiles", row_tiles)?,
            col_tiles: word("tiles", col_tiles)?,
            input_offset: stride(self.input.offset),
            input_batch: stride(self.input.outer_stride),
            input_group: stride((self.in_channels as i64).wrapping_mul(self.input.inner_stride)),
            input_channel: stride(self.input.inner_stride),
            weight_offset: stride(self.weight.offset),
            weight_group: stride(weight_group),
            weight_out: stride(self.weight.outer_stride),
            weight_in: stride(self.weight.inner_stride),
            out_offset: stride(self.out.offset),
            out_batch: stride(self.out.outer_stride),
            out_channel: stride(self.out.inner_stride),
            source,
            window,
        };
        let groups = groups.ok_or_else(|| too_large(u64::MAX))?;
        Ok(LibraryProgram::one(LibraryCall {
            shader: shader.shader(),
            params: params.words(),
            groups,
        }))
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

    fn form(&self, cols: u64) -> ConvolutionForm {
        if self.out_channels < TILED_CHANNELS {
            return ConvolutionForm::Direct;
        }
        let fits = |tile: &Tile| {
            let groups = (self.out_channels / u64::from(tile.rows))
                .saturating_mul(cols / u64::from(tile.cols))
                .saturating_mul(self.groups);
            groups >= BUSY_GROUPS
        };
        ConvolutionForm::Tiled(
            [Tile::LARGE, Tile::MEDIUM]
                .into_iter()
                .find(fits)
                .unwrap_or(Tile::SMALL),
        )
    }

    /// Whether input channel and kernel position run through the weights without gaps.
    fn weight_layout(&self, axes: &[SpatialAxis], inner: u64, group_stride: i64) -> WeightLayout {
        let mut next = 1i64;
        let mut dense = true;
        for (len, step) in axes
            .iter()
            .rev()
            .map(|axis| (axis.kernel_len, axis.weight_stride))
            .chain([(self.in_channels, self.weight.inner_stride)])
        {
            dense &= len <= 1 || step == next;
            next = next.wrapping_mul(len as i64);
        }
        let in_fours = inner.is_multiple_of(4)
            && self.weight.offset % 4 == 0
            && self.weight.outer_stride % 4 == 0
            && group_stride % 4 == 0
            && self.weight.element.has_fours();
        match (dense, in_fours) {
            (false, _) => WeightLayout::Strided,
            (true, false) => WeightLayout::Dense(Width::One),
            (true, true) => WeightLayout::Dense(Width::Four),
        }
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
