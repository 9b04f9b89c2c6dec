//! Convolution and transposed convolution over one to three spatial axes.

use crate::binding::{Binding, Width};
use crate::element::Element;
use crate::matmul::Accumulator;
use crate::shader::{Epilogue, Param, Shader, params};
use crate::template::fill;
use crate::tile::{FastAxis, Split, Staging, Tile, tiled_product};

/// Spatial axes of every kernel here; missing ones have length 1.
pub const SPATIAL_AXES: usize = 3;

params! {
    /// Parameters of every convolution kernel. Lengths and strides in elements; strides are two's complement.
    ConvolutionParams {
        /// Output channels of a group.
        rows,
        /// Batches times output positions.
        cols,
        /// Input channels of a group times kernel positions.
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

/// How weights are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightLayout {
    /// Input channel and kernel position are one dense axis.
    Dense(Width),
    /// Any strides.
    Strided,
}

/// The way the work is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConvolutionForm {
    /// A tile of channels and positions for each workgroup.
    Tiled(Tile),
    /// A thread for each result; weights are read one by one.
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
    /// How weights are read; [`ConvolutionForm::Direct`] needs [`WeightLayout::Strided`].
    pub weights: WeightLayout,
    /// Kernel lengths written into the text, so that inner positions are taken apart without divisions; 0 where the
    /// parameter is read.
    pub kernel: [u32; SPATIAL_AXES],
    /// How the work is divided.
    pub form: ConvolutionForm,
    /// What happens to each result instead of the plain store; row, column and batch are channel, position and batch.
    pub epilogue: Epilogue,
}

impl ConvolutionShader {
    /// Output channels that one workgroup computes.
    pub fn group_rows(&self) -> u32 {
        match self.form {
            ConvolutionForm::Tiled(tile) => tile.rows,
            ConvolutionForm::Direct => 1,
        }
    }

    /// Batches times positions that one workgroup computes.
    pub fn group_cols(&self) -> u32 {
        match self.form {
            ConvolutionForm::Tiled(tile) => tile.cols,
            ConvolutionForm::Direct => 256,
        }
    }

    /// The kernel. Buffers: input, weight, result, then the epilogue's.
    pub fn shader(&self) -> Shader {
        let value = self.accumulator.name();
        let (weights, width) = self.weight_functions(value);
        let mut body = fill(
            include_str!("../wgsl/convolution.wgsl"),
            &[
                ("V", value),
                (
                    "ORIGIN",
                    match self.direction {
                        Direction::Forward => {
                            "out * vec3<i32>(vec3<u32>(params.window[0].x, params.window[1].x, params.window[2].x)) - before"
                        }
                        Direction::Transposed => "out + before",
                    },
                ),
                (
                    "SOURCE",
                    match self.direction {
                        Direction::Forward => "    return bitcast<u32>(origin + reach);",
                        Direction::Transposed => {
                            "    let distance = bitcast<u32>(origin - reach);
    let stride = max(params.window[axis].x, 1u);
    return select(0xffffffffu, distance / stride, origin >= reach && distance % stride == 0u);"
                        }
                    },
                ),
                ("WEIGHTS", &weights),
                ("EPILOGUE", &self.epilogue.code_for(value, self.out)),
            ],
        );
        body.push_str(&match self.form {
            ConvolutionForm::Tiled(tile) => {
                let lhs = Staging {
                    fast: FastAxis::Inner,
                    width,
                };
                let rhs = Staging {
                    fast: FastAxis::Outer,
                    width: Width::One,
                };
                tiled_product(tile, value, lhs, rhs, "groups", Split::Whole)
            }
            ConvolutionForm::Direct => fill(
                include_str!("../wgsl/convolution_direct.wgsl"),
                &[("V", value)],
            ),
        });
        for (axis, &len) in self.kernel.iter().enumerate().filter(|&(_, &len)| len > 0) {
            body = body.replace(&format!("params.source[{axis}].w"), &format!("{len}u"));
        }
        let mut bindings = vec![
            Binding::read("input", self.input),
            Binding::read_as("weight", self.weight, width),
            Binding::write("out", self.out),
        ];
        bindings.extend(self.epilogue.bindings.iter().cloned());
        let mut params = ConvolutionParams::members();
        params.extend(self.epilogue.params.iter().cloned().map(Param::Word));
        let form = match self.form {
            ConvolutionForm::Tiled(tile) => format!("{}x{}", tile.rows, tile.cols),
            ConvolutionForm::Direct => "direct".to_owned(),
        };
        let label = match self.direction {
            Direction::Forward => format!("convolution_{form}"),
            Direction::Transposed => format!("convolution_transposed_{form}"),
        };
        Shader {
            label,
            bindings,
            params,
            extensions: Vec::new(),
            helpers: Vec::new(),
            body,
        }
    }

    fn weight_functions(&self, value: &str) -> (String, Width) {
        match self.weights {
            WeightLayout::Dense(Width::One) => (
                format!(
                    "fn lhs_value(item: LhsItem, inner: u32) -> {value} {{
    if item.present && inner < params.inner {{
        return {value}(load_weight(item.base + inner));
    }}
    return {value}();
}}
"
                ),
                Width::One,
            ),
            WeightLayout::Dense(Width::Four | Width::Halves) => (
                format!(
                    "fn lhs_value4(item: LhsItem, inner: u32) -> vec4<{value}> {{
    if item.present && inner < params.inner {{
        return vec4<{value}>(load4_weight(item.base + inner));
    }}
    return vec4<{value}>();
}}
"
                ),
                Width::Four,
            ),
            WeightLayout::Strided => (
                format!(
                    "fn lhs_value(item: LhsItem, inner: u32) -> {value} {{
    if item.present && inner < params.inner {{
        let at = inner_of(inner);
        return {value}(load_weight(item.base + at.w * params.weight_in
            + at.x * params.source[0].z + at.y * params.source[1].z + at.z * params.source[2].z));
    }}
    return {value}();
}}
"
                ),
                Width::One,
            ),
        }
    }
}
