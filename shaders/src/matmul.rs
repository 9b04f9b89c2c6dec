//! Matrix products: tiled for matrices, cooperative where there are matrix units, skinny for a few rows.
//!
//! One generator: operands of any storage, block-quantised ones too, in any layout; any form; the inner axis whole or
//! divided among workgroups, whose parts [`JoinShader`] adds up.

use cupola_ir::BlockFormat;

use crate::binding::{Binding, Width};
use crate::blocks;
use crate::cooperative::CooperativeTile;
use crate::element::Element;
use crate::shader::{Epilogue, Extension, Param, Shader, params};
pub use crate::skinny::SkinnyRows;
use crate::skinny::{Reduction, Right, Skinny};
use crate::template::fill;
use crate::tile::{Direct, FastAxis, Sides, Split, Staging, Tile, tiled_product};

/// Most batch axes of one product, after neighbours that can be merged have been.
pub const BATCH_AXES: usize = 8;

/// Most contracted axes of one product, after neighbours that can be merged have been.
pub const INNER_AXES: usize = 8;

params! {
    /// Parameters of every product here. Lengths and strides in elements; strides are two's complement.
    MatmulParams {
        /// Result rows.
        rows,
        /// Result columns.
        cols,
        /// Contracted length.
        inner,
        /// Batches.
        batches,
        /// Workgroups along the rows of one batch.
        row_tiles,
        /// Workgroups along the columns of one batch.
        col_tiles,
        /// Used entries of `batch_dims`.
        batch_rank,
        /// Used entries of `inner_dims`; 0 where one stride is enough.
        inner_rank,
        /// First element of the left operand.
        lhs_offset,
        /// Stride from row to row.
        lhs_row,
        /// Stride along the contracted axis.
        lhs_inner,
        /// First element of the right operand.
        rhs_offset,
        /// Stride along the contracted axis.
        rhs_inner,
        /// Stride from column to column.
        rhs_col,
        /// First element of the result.
        out_offset,
        /// Stride from row to row.
        out_row,
        /// Stride from column to column.
        out_col,
        /// Parts that the inner axis is divided into.
        splits,
        /// Inner positions of a part, a multiple of the form's step.
        split_inner,
        /// Distance of the parts' results.
        split_out,
    } [
        /// Batch axes, innermost first: length, then strides of left, right and result (0 where broadcast).
        batch_dims: 8,
        /// Contracted axes where there are several, innermost first: length, then strides of left and right, unused.
        inner_dims: 8,
    ]
}

/// Which of `epilogue`'s arguments is the kernel's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Orientation {
    /// The product as asked.
    Normal,
    /// The library swapped the operands and computes the transpose: the epilogue sees rows as columns.
    Swapped,
}

/// Type of the sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Accumulator {
    /// 32-bit float.
    F32,
    /// 32-bit signed, wrapping.
    I32,
    /// 32-bit unsigned, wrapping.
    U32,
}

impl Accumulator {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::I32, Self::U32];

    /// WGSL type.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::I32 => "i32",
            Self::U32 => "u32",
        }
    }

    /// Storage of sums as they are.
    pub fn element(self) -> Element {
        match self {
            Self::F32 => Element::F32,
            Self::I32 => Element::I32,
            Self::U32 => Element::U32,
        }
    }
}

/// How the contracted axis is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InnerAxes {
    /// One stride for each operand.
    One,
    /// Several axes (`inner_dims`), taken apart at each load; operands are read one by one.
    Many,
}

/// What an operand is stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// Single elements.
    Plain(Element),
    /// Block-quantised along the inner axis, whose length is a multiple of the block's; rows follow one another in
    /// multiples of it too. Read along the inner axis in fours.
    Blocks(BlockFormat),
}

/// An operand as a kernel reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Operand {
    /// Storage.
    pub source: Source,
    /// How it is read.
    pub staging: Staging,
    /// Values are rounded to this type of 16 bits, if any, before they are multiplied.
    pub rounded: Option<Element>,
}

impl Operand {
    /// An operand of single elements.
    pub fn plain(element: Element, staging: Staging) -> Self {
        Self {
            source: Source::Plain(element),
            staging,
            rounded: None,
        }
    }

    /// A block-quantised operand.
    pub fn blocks(format: BlockFormat) -> Self {
        Self {
            source: Source::Blocks(format),
            staging: Staging::new(FastAxis::Inner, Width::Four),
            rounded: None,
        }
    }

    fn name(&self) -> String {
        match self.source {
            Source::Plain(element) => format!("{element:?}"),
            Source::Blocks(format) => format.name().to_owned(),
        }
    }

    fn blocks_of(&self) -> Option<BlockFormat> {
        match self.source {
            Source::Plain(_) => None,
            Source::Blocks(format) => Some(format),
        }
    }

    /// The format whose codebook it reads from a buffer, if there is one.
    fn book(&self) -> Option<BlockFormat> {
        let is_large = |format: &BlockFormat| blocks::book_buffer(*format).is_some();
        self.blocks_of().filter(is_large)
    }

    /// Accessors beside those of the binding.
    fn accessors(&self, side: &str) -> String {
        self.blocks_of()
            .map_or(String::new(), |format| blocks::accessors(side, format))
    }

    fn binding(&self, side: &str) -> Binding {
        match self.source {
            Source::Plain(element) => Binding::read_as(side, element, self.staging.width),
            Source::Blocks(_) => Binding::read(side, Element::U32),
        }
    }
}

/// The way the work is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MatmulForm {
    /// A tile of the result for each workgroup.
    Tiled(Tile),
    /// A tile on matrix units; values are rounded to f16 before they are multiplied and summed in f32.
    Cooperative(CooperativeTile),
    /// A few rows, any number of columns.
    Skinny(Skinny),
    /// A thread for each result, over the whole inner axis. Plain operands are read one by one.
    Direct(Direct),
}

/// What makes one product kernel's text differ from another's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MatmulShader {
    /// Left operand.
    pub lhs: Operand,
    /// Right operand.
    pub rhs: Operand,
    /// Storage of the result.
    pub out: Element,
    /// Type of the sums; operands are converted to it.
    pub accumulator: Accumulator,
    /// Layout of the contracted axis.
    pub inner: InnerAxes,
    /// How the work is divided.
    pub form: MatmulForm,
    /// Whether the inner axis is divided too. Then the result is that of the parts, in `accumulator`'s type.
    pub split: Split,
    /// What happens to each result instead of the plain store.
    pub epilogue: Epilogue,
    /// Which way round the epilogue sees rows and columns.
    pub orientation: Orientation,
}

impl MatmulShader {
    /// Columns that one workgroup computes.
    pub fn group_cols(&self) -> u32 {
        match self.form {
            MatmulForm::Tiled(tile) => tile.cols,
            MatmulForm::Cooperative(tile) => tile.cols(),
            MatmulForm::Skinny(skinny) => skinny.group_cols(self.rhs.staging),
            MatmulForm::Direct(direct) => direct.cols,
        }
    }

    /// Rows that one workgroup computes.
    pub fn group_rows(&self) -> u32 {
        match self.form {
            MatmulForm::Tiled(tile) => tile.rows,
            MatmulForm::Cooperative(tile) => tile.rows(),
            MatmulForm::Skinny(skinny) => skinny.rows.most(),
            MatmulForm::Direct(direct) => direct.rows,
        }
    }

    /// Threads of a workgroup.
    pub fn threads(&self) -> u32 {
        match self.form {
            MatmulForm::Tiled(tile) => tile.threads(),
            MatmulForm::Cooperative(tile) => tile.threads(),
            MatmulForm::Skinny(skinny) => skinny.threads,
            MatmulForm::Direct(direct) => direct.threads(),
        }
    }

    /// Inner positions of a step: parts of a divided inner axis are multiples of it.
    pub fn inner_step(&self) -> u32 {
        match self.form {
            MatmulForm::Tiled(tile) => tile.step,
            MatmulForm::Cooperative(tile) => tile.step,
            MatmulForm::Skinny(skinny) => {
                let blocks = self.rhs.blocks_of();
                skinny.inner_step(
                    self.rhs.staging,
                    blocks.map(|format| format.group_len() as u32),
                )
            }
            MatmulForm::Direct(_) => 4,
        }
    }

    /// Bytes of workgroup memory, at most.
    pub fn memory_size(&self) -> u32 {
        match self.form {
            MatmulForm::Tiled(tile) => tile.memory_size(),
            MatmulForm::Cooperative(tile) => tile.memory_size(),
            MatmulForm::Skinny(skinny) => skinny.memory_size(self.rhs.staging),
            MatmulForm::Direct(_) => 0,
        }
    }

    /// The formats whose codebooks are buffers, the left operand's first.
    pub fn books(&self) -> impl Iterator<Item = BlockFormat> + use<> {
        [self.lhs.book(), self.rhs.book()].into_iter().flatten()
    }

    /// The kernel. Buffers: the operands as the product was asked, the result, the epilogue's, then those of [`Self::books`].
    pub fn shader(&self) -> Shader {
        let (lhs, rhs) = (self.lhs.staging, self.rhs.staging);
        let value = self.accumulator.name();
        let values = [("lhs", self.lhs), ("rhs", self.rhs)].map(|(side, operand)| {
            format!(
                "{}{}",
                operand.accessors(side),
                self.value_functions(side, operand)
            )
        });
        let mut body = prelude(
            value,
            &values.concat(),
            self.orientation,
            &self.epilogue.code_for(value, self.out),
        );
        body.push_str(&match self.form {
            MatmulForm::Tiled(tile) => {
                let sides = Sides {
                    lhs,
                    rhs,
                    per_step: false,
                };
                tiled_product(tile, value, sides, "batches", self.split)
            }
            MatmulForm::Cooperative(tile) => tile.product(lhs, rhs, "batches", self.split),
            MatmulForm::Skinny(skinny) => {
                let right = Right {
                    staging: rhs,
                    blocks: self.rhs.blocks_of(),
                };
                skinny.product(value, right, self.split)
            }
            MatmulForm::Direct(direct) => {
                let in_blocks = |operand: Operand| operand.blocks_of().is_some();
                direct.product(value, in_blocks(self.lhs) || in_blocks(self.rhs))
            }
        });
        let mut bindings = vec![
            self.lhs.binding("lhs"),
            self.rhs.binding("rhs"),
            Binding::write("out", self.out),
        ];
        if self.orientation == Orientation::Swapped {
            bindings.swap(0, 1);
        }
        bindings.extend(self.epilogue.bindings.iter().cloned());
        let books = [("lhs", self.lhs), ("rhs", self.rhs)].into_iter();
        bindings.extend(books.filter_map(|(side, operand)| {
            operand.book()?;
            Some(Binding::read(&format!("{side}_book"), Element::U32))
        }));
        Shader {
            label: format!(
                "matmul_{}_{}_{}",
                self.form_name(),
                self.lhs.name(),
                self.rhs.name()
            ),
            bindings,
            params: params_with(&self.epilogue),
            extensions: self.extensions(),
            helpers: [self.lhs.rounded, self.rhs.rounded]
                .into_iter()
                .flatten()
                .collect(),
            body,
        }
    }

    fn form_name(&self) -> String {
        let form = match self.form {
            MatmulForm::Tiled(tile) => format!("{}x{}", tile.rows, tile.cols),
            MatmulForm::Cooperative(tile) => {
                format!("cooperative{}_{}x{}", tile.size, tile.rows(), tile.cols())
            }
            MatmulForm::Skinny(skinny) => format!("skinny{}", skinny.rows.most()),
            MatmulForm::Direct(direct) => format!("direct{}x{}", direct.rows, direct.cols),
        };
        match self.split {
            Split::Whole => form,
            Split::Parts => format!("{form}_parts"),
        }
    }

    fn extensions(&self) -> Vec<Extension> {
        match self.form {
            MatmulForm::Cooperative(_) => vec![
                Extension::F16,
                Extension::Subgroups,
                Extension::CooperativeMatrix,
            ],
            MatmulForm::Skinny(Skinny {
                reduction: Reduction::Subgroups,
                ..
            }) => vec![Extension::Subgroups],
            MatmulForm::Tiled(_) | MatmulForm::Skinny(_) | MatmulForm::Direct(_) => Vec::new(),
        }
    }

    /// WGSL type that operands are multiplied in.
    fn factor(&self) -> &'static str {
        match self.form {
            MatmulForm::Cooperative(_) => "f16",
            MatmulForm::Tiled(_) | MatmulForm::Skinny(_) | MatmulForm::Direct(_) => {
                self.accumulator.name()
            }
        }
    }

    /// `SIDE_value`, where operands are read one by one, and `SIDE_value4`: zero outside the operand.
    fn value_functions(&self, side: &str, operand: Operand) -> String {
        let value = self.factor();
        let four = |load: String| {
            let loaded = rounded("loaded", operand.rounded, 4);
            format!(
                "fn {side}_value4(item: Item, inner: u32) -> vec4<{value}> {{
    if item.present && inner < params.inner {{
        let loaded = {load};
        return vec4<{value}>({loaded});
    }}
    return vec4<{value}>();
}}
"
            )
        };
        let Staging { fast, width } = operand.staging;
        match (operand.source, width, fast) {
            (Source::Blocks(_), ..) => four(format!("{side}_four(item.base + inner)")),
            (_, Width::One, _) => {
                let offset = match self.inner {
                    InnerAxes::One => format!("inner * params.{side}_inner"),
                    InnerAxes::Many => format!(
                        "inner_offsets(inner).{}",
                        if side == "lhs" { "x" } else { "y" }
                    ),
                };
                let load = format!("load_{side}(item.base + {offset})");
                let load = rounded(&load, operand.rounded, 1);
                format!(
                    "fn {side}_value(item: Item, inner: u32) -> {value} {{
    if item.present && inner < params.inner {{
        return {value}({load});
    }}
    return {value}();
}}
fn {side}_value4(item: Item, inner: u32) -> vec4<{value}> {{
    return vec4<{value}>({side}_value(item, inner), {side}_value(item, inner + 1u),
        {side}_value(item, inner + 2u), {side}_value(item, inner + 3u));
}}
"
                )
            }
            (_, Width::Four | Width::Halves, FastAxis::Inner) => {
                four(format!("load4_{side}(item.base + inner)"))
            }
            (_, Width::Four | Width::Halves, FastAxis::Outer) => four(format!(
                "load4_{side}(item.base + inner * params.{side}_inner)"
            )),
        }
    }
}

/// WGSL that rounds one value or four to a type of 16 bits.
fn rounded(value: &str, to: Option<Element>, len: u32) -> String {
    let Some(to) = to else {
        return value.to_owned();
    };
    let one = |value: &str| match to {
        Element::F16 => format!("unpack2x16float(f16_bits({value})).x"),
        Element::Bf16 => format!("bitcast<f32>(bf16_bits({value}) << 16u)"),
        other => unreachable!("bug: nothing is rounded to {other:?}"),
    };
    match len {
        1 => one(value),
        _ => {
            let parts = ["x", "y", "z", "w"].map(|part| one(&format!("{value}.{part}")));
            parts.join(", ")
        }
    }
}

/// Functions that all product kernels share.
fn prelude(value: &str, values: &str, orientation: Orientation, epilogue: &str) -> String {
    fill(
        include_str!("../wgsl/matmul.wgsl"),
        &[
            ("V", value),
            ("VALUES", values),
            (
                "EPILOGUE_POSITION",
                match orientation {
                    Orientation::Normal => "row, col",
                    Orientation::Swapped => "col, row",
                },
            ),
            ("EPILOGUE", epilogue),
        ],
    )
}

fn params_with(epilogue: &Epilogue) -> Vec<Param> {
    let mut params = MatmulParams::members();
    params.extend(epilogue.params.iter().cloned().map(Param::Word));
    params
}

/// The kernel that adds up the parts of a divided product, whose parameters it takes. Buffers: the parts, the result, then
/// the epilogue's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct JoinShader {
    /// Storage of the result.
    pub out: Element,
    /// Type of the parts.
    pub accumulator: Accumulator,
    /// What happens to each result instead of the plain store.
    pub epilogue: Epilogue,
    /// Which way round the epilogue sees rows and columns.
    pub orientation: Orientation,
}

impl JoinShader {
    /// Results of a workgroup.
    pub const GROUP_LEN: u32 = 256;

    /// The kernel.
    pub fn shader(&self) -> Shader {
        let value = self.accumulator.name();
        let epilogue = self.epilogue.code_for(value, self.out);
        let mut body = prelude(value, "", self.orientation, &epilogue);
        body.push_str(include_str!("../wgsl/matmul_join.wgsl"));
        let mut bindings = vec![
            Binding::read("parts", self.accumulator.element()),
            Binding::write("out", self.out),
        ];
        bindings.extend(self.epilogue.bindings.iter().cloned());
        Shader {
            label: "matmul_join".to_owned(),
            bindings,
            params: params_with(&self.epilogue),
            extensions: Vec::new(),
            helpers: Vec::new(),
            body,
        }
    }
}
