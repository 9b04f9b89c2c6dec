//! Convolution and transposed convolution over one to three spatial axes.

use crate::binding::{Binding, Width};
use crate::element::Element;
use crate::matmul::Accumulator;
use crate::shader::{Epilogue, Param, Shader, params};
use crate::template::fill;
use crate::tile::{FastAxis, Sides, Split, Staging, Tile, tiled_product};

mod block;

pub use block::Block;

/// Spatial axes of every kernel here; missing ones have length 1.
pub const SPATIAL_AXES: usize = 3;

params! {
    /// Parameters of every convolution kernel. Lengths and strides in elements; strides are two's complement.
    ConvolutionParams {
        /// Output channels of a group.
        rows,
        /// Batches times output positions.
        cols,
        /// Inner positions: input channels of a group times kernel positions; under [`Order::Positions`] the channels
        /// rounded up to a multiple of the tile's step.
        inner,
        /// Input channels of a group.
        inner_channels,
        /// Channel groups.
        groups,
        /// Output positions of one batch.
        positions,
        /// Workgroups along the rows of one group.
        row_tiles,
        /// Workgroups along the columns of one group.
        col_tiles,
        /// First input element.
        input_offset,
        /// Input stride from batch to batch.
        input_batch,
        /// Input stride from group to group.
        input_group,
        /// Input stride from channel to channel.
        input_channel,
        /// First weight.
        weight_offset,
        /// Weight stride from group to group.
        weight_group,
        /// Weight stride from output channel to output channel.
        weight_out,
        /// Weight stride from input channel to input channel.
        weight_in,
        /// First result element.
        out_offset,
        /// Result stride from batch to batch.
        out_batch,
        /// Result stride from channel to channel; positions are dense.
        out_channel,
        /// Blocks of one batch; block form only.
        blocks,
        /// Batches times blocks; block form only.
        block_cols,
        /// Parts that the inner axis is divided into.
        splits,
        /// Inner positions of a part, a multiple of the tile's step.
        split_inner,
        /// Distance of the parts' results.
        split_out,
    } [
        /// For each spatial axis: input length, input stride, weight stride, kernel length.
        source: 3,
        /// For each spatial axis: stride, dilation, zeros before (two's complement), output length.
        window: 3,
    ]
}

/// Which way windows run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Output `o` reads input `o * stride - before + k * dilation`.
    Forward,
    /// Its adjoint: output `o` reads the inputs `i` with `i * stride - before + k * dilation = o`.
    Transposed,
}

/// How the inner axis of a tiled convolution runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Order {
    /// As weights usually lie, kernel positions fastest: each staged element's input position is computed anew. The weights
    /// of an output channel are dense in that order if a width is given.
    Channels(Option<Width>),
    /// A step is some input channels at one kernel position, so that the input position is computed once for all of them.
    Positions {
        /// Outer is the output channel.
        weights: Staging,
        /// Fours only along the channels.
        input: Staging,
    },
}

/// The way the work is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConvolutionForm {
    /// A tile of channels and positions for each workgroup. With [`Split::Parts`] the result is that of the parts.
    Tiled(Tile, Order, Split),
    /// Some results of one channel for each thread; forward only.
    Block(Block),
    /// A thread for each result.
    Direct,
}

/// What makes one convolution kernel's text differ from another's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConvolutionShader {
    /// Storage of the input.
    pub input: Element,
    /// Storage of the weights.
    pub weight: Element,
    /// Storage of the result.
    pub out: Element,
    /// Type of the sums; operands are converted to it.
    pub accumulator: Accumulator,
    /// Forward or transposed.
    pub direction: Direction,
    /// Kernel lengths written into the text, so that inner positions are taken apart without divisions; 0 where the
    /// parameter is read. [`Block`] needs the last two.
    pub kernel: [u32; SPATIAL_AXES],
    /// How the work is divided.
    pub form: ConvolutionForm,
    /// What happens to each result instead of the plain store; row, column and batch are channel, position and batch.
    pub epilogue: Epilogue,
}

impl ConvolutionShader {
    /// Threads of a workgroup.
    pub fn threads(&self) -> u32 {
        match self.form {
            ConvolutionForm::Tiled(tile, ..) => tile.threads(),
            ConvolutionForm::Block(_) | ConvolutionForm::Direct => 256,
        }
    }

    /// Bytes of workgroup memory, at most.
    pub fn memory_size(&self) -> u32 {
        match self.form {
            ConvolutionForm::Tiled(tile, ..) => tile.memory_size(),
            ConvolutionForm::Block(_) | ConvolutionForm::Direct => 0,
        }
    }

    /// The kernel. Buffers: input, weight, result, then the epilogue's.
    pub fn shader(&self) -> Shader {
        let value = self.accumulator.name();
        let (origin, source) = self.positions();
        let mut body = fill(
            include_str!("../wgsl/convolution.wgsl"),
            &[
                ("V", value),
                ("ORIGIN", origin),
                ("SOURCE", source),
                ("VALUES", &self.values()),
                ("EPILOGUE", &self.epilogue.code_for(value, self.out)),
            ],
        );
        body.push_str(&match self.form {
            ConvolutionForm::Tiled(tile, order, split) => {
                tiled_product(tile, value, order.sides(), "groups", split)
            }
            ConvolutionForm::Block(block) => block.product(value, [self.kernel[1], self.kernel[2]]),
            ConvolutionForm::Direct => fill(
                include_str!("../wgsl/convolution_direct.wgsl"),
                &[("V", value)],
            ),
        });
        for (axis, &len) in self.kernel.iter().enumerate().filter(|&(_, &len)| len > 0) {
            body = body.replace(&format!("params.source[{axis}].w"), &format!("{len}u"));
        }
        let [input_width, weight_width] = match self.form {
            ConvolutionForm::Tiled(_, order, _) => order.widths(),
            ConvolutionForm::Block(_) | ConvolutionForm::Direct => [Width::One; 2],
        };
        let mut bindings = vec![
            Binding::read_as("input", self.input, input_width),
            Binding::read_as("weight", self.weight, weight_width),
            Binding::write("out", self.out),
        ];
        bindings.extend(self.epilogue.bindings.iter().cloned());
        let mut params = ConvolutionParams::members();
        params.extend(self.epilogue.params.iter().cloned().map(Param::Word));
        Shader {
            label: self.label(),
            bindings,
            params,
            extensions: Vec::new(),
            helpers: Vec::new(),
            body,
        }
    }

    fn label(&self) -> String {
        let form = match self.form {
            ConvolutionForm::Tiled(tile, order, split) => {
                let order = match order {
                    Order::Channels(_) => "_channels",
                    Order::Positions { .. } => "",
                };
                let parts = match split {
                    Split::Whole => "",
                    Split::Parts => "_parts",
                };
                format!("{}x{}x{}{order}{parts}", tile.rows, tile.cols, tile.step)
            }
            ConvolutionForm::Block(block) => format!("block{}x{}", block.down, block.across),
            ConvolutionForm::Direct => "direct".to_owned(),
        };
        match self.direction {
            Direction::Forward => format!("convolution_{form}"),
            Direction::Transposed => format!("convolution_transposed_{form}"),
        }
    }

    /// WGSL of an output position's first input position, and of a kernel position's from there.
    fn positions(&self) -> (&'static str, &'static str) {
        match self.direction {
            Direction::Forward => (
                "out * vec3<i32>(vec3<u32>(params.window[0].x, params.window[1].x, params.window[2].x)) - before",
                "    return bitcast<u32>(origin + reach);",
            ),
            Direction::Transposed => (
                "out + before",
                "    let distance = bitcast<u32>(origin - reach);
    let stride = max(params.window[axis].x, 1u);
    return select(0xffffffffu, distance / stride, origin >= reach && distance % stride == 0u);",
            ),
        }
    }

    /// The functions that a tiled product stages operands with.
    fn values(&self) -> String {
        let value = self.accumulator.name();
        match self.form {
            ConvolutionForm::Tiled(_, Order::Channels(dense), _) => {
                weights_by_channel(value, dense) + &input_by_channel(value)
            }
            ConvolutionForm::Tiled(tile, Order::Positions { weights, input }, _) => {
                let step = tile.step;
                let kernel = "params.source[0].w * params.source[1].w * params.source[2].w";
                format!(
                    "struct Step {{ channels: u32, first: u32 }}

// First input channel (w) and kernel position (xyz) of the step at an inner position.
fn step_of(inner: u32) -> vec4<u32> {{
    let number = inner / {step}u;
    let channel = (number / ({kernel})) * {step}u;
    return vec4<u32>(kernel_of(number % ({kernel})).xyz, channel);
}}

fn lhs_step(item: LhsItem, inner: u32) -> Step {{
    let at = step_of(inner);
    return Step(select(0u, params.inner_channels - at.w, item.present), item.base + weight_place(at));
}}

fn rhs_step(item: RhsItem, inner: u32) -> Step {{
    let at = step_of(inner);
    let source = source_of(item, at.w, at.xyz);
    return Step(select(0u, params.inner_channels - at.w, source.present), source.at);
}}

{}{}",
                    value_of_step("lhs", "weight", "weight_in", value, weights),
                    value_of_step("rhs", "input", "input_channel", value, input),
                )
            }
            ConvolutionForm::Block(_) | ConvolutionForm::Direct => String::new(),
        }
    }
}

impl Order {
    fn sides(self) -> Sides {
        match self {
            Self::Channels(dense) => Sides {
                lhs: Staging::new(FastAxis::Inner, dense.unwrap_or(Width::One)),
                rhs: Staging::new(FastAxis::Outer, Width::One),
                per_step: false,
            },
            Self::Positions { weights, input } => Sides {
                lhs: weights,
                rhs: input,
                per_step: true,
            },
        }
    }

    /// Of the input's binding and the weights'.
    fn widths(self) -> [Width; 2] {
        let Sides { lhs, rhs, .. } = self.sides();
        [rhs.width, lhs.width]
    }
}

/// `SIDE_value` or `SIDE_value4` of buffer `buffer`, whose channels are `params.stride` apart, within a [`Order::Positions`] step.
fn value_of_step(
    side: &str,
    buffer: &str,
    stride: &str,
    value: &str,
    Staging { fast, width }: Staging,
) -> String {
    let (function, ty) = match width {
        Width::One => ("", value.to_owned()),
        Width::Four | Width::Halves => ("4", format!("vec4<{value}>")),
    };
    let inner = match (width, fast) {
        (Width::Four | Width::Halves, FastAxis::Inner) => "inner".to_owned(),
        _ => format!("inner * params.{stride}"),
    };
    format!(
        "fn {side}_value{function}(item: Step, inner: u32) -> {ty} {{
    if inner < item.channels {{
        return {ty}(load{function}_{buffer}(item.first + {inner}));
    }}
    return {ty}();
}}

"
    )
}

fn weights_by_channel(value: &str, dense: Option<Width>) -> String {
    let (function, ty, place) = match dense {
        None => ("", value.to_owned(), "weight_place(kernel_of(inner))"),
        Some(Width::One) => ("", value.to_owned(), "inner"),
        Some(Width::Four | Width::Halves) => ("4", format!("vec4<{value}>"), "inner"),
    };
    format!(
        "fn lhs_value{function}(item: LhsItem, inner: u32) -> {ty} {{
    if item.present && inner < params.inner {{
        return {ty}(load{function}_weight(item.base + {place}));
    }}
    return {ty}();
}}

"
    )
}

fn input_by_channel(value: &str) -> String {
    format!(
        "fn rhs_value(item: RhsItem, inner: u32) -> {value} {{
    let at = kernel_of(inner);
    let source = source_of(item, at.w, at.xyz);
    if source.present && inner < params.inner {{
        return {value}(load_input(source.at));
    }}
    return {value}();
}}

"
    )
}
