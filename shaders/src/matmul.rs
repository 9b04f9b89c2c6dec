//! Matrix products: tiled for matrices, skinny for a few rows.

use std::fmt::Write as _;

use crate::element::{Binding, Element, Width};
use crate::shader::{Epilogue, Param, Shader, params};
use crate::template::fill;
use crate::tile::{FastAxis, Staging, Tile, tiled_product};

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
}

/// How the contracted axis is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InnerAxes {
    /// One stride for each operand.
    One,
    /// Several axes (`inner_dims`), taken apart at each load; operands are read one by one.
    Many,
}

/// The way the work is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MatmulForm {
    /// A tile of the result for each workgroup.
    Tiled(Tile),
    /// At most [`SkinnyRows::most`] rows, any number of columns.
    Skinny(SkinnyRows),
}

/// Rows of a skinny product, rounded up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SkinnyRows {
    /// One.
    One,
    /// Two.
    Two,
    /// Three or four.
    Four,
    /// Five to eight.
    Eight,
}

impl SkinnyRows {
    /// All of them, ascending.
    pub const ALL: [Self; 4] = [Self::One, Self::Two, Self::Four, Self::Eight];

    /// The most rows it computes.
    pub fn most(self) -> u32 {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// The smallest that holds `rows`.
    pub fn holding(rows: u64) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|form| u64::from(form.most()) >= rows)
    }
}

/// What makes one product kernel's text differ from another's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MatmulShader {
    /// Storage of the left operand.
    pub lhs: Element,
    /// Storage of the right operand.
    pub rhs: Element,
    /// Storage of the result.
    pub out: Element,
    /// Type of the sums; operands are converted to it.
    pub accumulator: Accumulator,
    /// Layout of the contracted axis.
    pub inner: InnerAxes,
    /// How the left operand is read.
    pub lhs_staging: Staging,
    /// How the right operand is read.
    pub rhs_staging: Staging,
    /// How the work is divided.
    pub form: MatmulForm,
    /// What happens to each result instead of the plain store.
    pub epilogue: Epilogue,
    /// Which way round the epilogue sees rows and columns.
    pub orientation: Orientation,
}

/// How a skinny workgroup is divided.
struct SkinnyShape {
    threads: u32,
    /// Threads that share one column, or one four of columns.
    lanes: u32,
    /// Columns of a thread: 1, or 4 where the right operand is read in fours along them.
    thread_cols: u32,
}

impl SkinnyShape {
    /// Neighbouring threads read along the fast axis of the right operand. Fours of columns take four times the
    /// workgroup memory, so there are half as many threads: 8 rows x 128 threads x 16 bytes fill 16 KiB.
    fn of(rhs: Staging) -> Self {
        match (rhs.fast, rhs.width) {
            (FastAxis::Inner, _) => Self {
                threads: 256,
                lanes: 64,
                thread_cols: 1,
            },
            (FastAxis::Outer, Width::One) => Self {
                threads: 256,
                lanes: 8,
                thread_cols: 1,
            },
            (FastAxis::Outer, Width::Four) => Self {
                threads: 128,
                lanes: 8,
                thread_cols: 4,
            },
        }
    }

    /// Threads side by side along the columns.
    fn slots(&self) -> u32 {
        self.threads / self.lanes
    }
}

impl MatmulShader {
    /// Columns that one workgroup computes.
    pub fn group_cols(&self) -> u32 {
        match self.form {
            MatmulForm::Tiled(tile) => tile.cols,
            MatmulForm::Skinny(_) => {
                let shape = SkinnyShape::of(self.rhs_staging);
                shape.slots() * shape.thread_cols
            }
        }
    }

    /// Rows that one workgroup computes.
    pub fn group_rows(&self) -> u32 {
        match self.form {
            MatmulForm::Tiled(tile) => tile.rows,
            MatmulForm::Skinny(rows) => rows.most(),
        }
    }

    /// The kernel. Buffers: the operands as the product was asked, the result, then the epilogue's.
    pub fn shader(&self) -> Shader {
        let value = self.accumulator.name();
        let mut body = fill(
            include_str!("../wgsl/matmul.wgsl"),
            &[
                ("V", value),
                ("LHS_VALUE", &self.value_functions("lhs", self.lhs_staging)),
                ("RHS_VALUE", &self.value_functions("rhs", self.rhs_staging)),
                (
                    "EPILOGUE_POSITION",
                    match self.orientation {
                        Orientation::Normal => "row, col",
                        Orientation::Swapped => "col, row",
                    },
                ),
                ("EPILOGUE", &self.epilogue.code_for(value, self.out)),
            ],
        );
        body.push_str(&match self.form {
            MatmulForm::Tiled(tile) => {
                tiled_product(tile, value, self.lhs_staging, self.rhs_staging, "batches")
            }
            MatmulForm::Skinny(rows) => self.skinny_product(rows.most(), value),
        });
        let mut bindings = vec![
            Binding::read_as("lhs", self.lhs, self.lhs_staging.width),
            Binding::read_as("rhs", self.rhs, self.rhs_staging.width),
            Binding::write("out", self.out),
        ];
        if self.orientation == Orientation::Swapped {
            bindings.swap(0, 1);
        }
        bindings.extend(self.epilogue.bindings.iter().cloned());
        let mut params = MatmulParams::members();
        params.extend(self.epilogue.params.iter().cloned().map(Param::Word));
        let form = match self.form {
            MatmulForm::Tiled(tile) => format!("{}x{}", tile.rows, tile.cols),
            MatmulForm::Skinny(rows) => format!("skinny{}", rows.most()),
        };
        Shader {
            label: format!("matmul_{form}_{:?}_{:?}", self.lhs, self.rhs),
            bindings,
            params,
            extensions: Vec::new(),
            helpers: Vec::new(),
            body,
        }
    }

    fn skinny_product(&self, rows: u32, value: &str) -> String {
        let shape = SkinnyShape::of(self.rhs_staging);
        let slots = shape.slots();
        let (lane, slot) = match self.rhs_staging.fast {
            FastAxis::Inner => (
                format!("local % {}u", shape.lanes),
                format!("local / {}u", shape.lanes),
            ),
            FastAxis::Outer => (format!("local / {slots}u"), format!("local % {slots}u")),
        };
        let inner_fours = self.rhs_staging
            == Staging {
                fast: FastAxis::Inner,
                width: Width::Four,
            };
        let width = if inner_fours { 4 } else { 1 };
        let sum_type = if shape.thread_cols == 4 {
            format!("vec4<{value}>")
        } else {
            value.to_owned()
        };
        let right = match self.rhs_staging.width {
            Width::One => "rhs_value(right, k)",
            Width::Four => "rhs_value4(right, k)",
        };
        let (mut setup, mut multiply, mut finish) = (String::new(), String::new(), String::new());
        let _ = writeln!(multiply, "        let b = {right};");
        for row in 0..rows {
            let _ = writeln!(setup, "    let left_{row} = lhs_item(batch, {row}u);");
            let _ = writeln!(setup, "    var sum_{row} = {sum_type}();");
            let product = match inner_fours {
                true => format!("dot(lhs_value4(left_{row}, k), b)"),
                false => format!("lhs_value(left_{row}, k) * b"),
            };
            let _ = writeln!(multiply, "        sum_{row} += {product};");
            if shape.thread_cols == 4 {
                for (column, component) in ["x", "y", "z", "w"].iter().enumerate() {
                    let _ = writeln!(
                        finish,
                        "        finish(batch, {row}u, col + {column}u, sum_{row}.{component});"
                    );
                }
            } else {
                let _ = writeln!(finish, "        finish(batch, {row}u, col, sum_{row});");
            }
        }
        fill(
            include_str!("../wgsl/skinny.wgsl"),
            &[
                ("ROWS", &rows.to_string()),
                ("LANES", &shape.lanes.to_string()),
                ("SLOTS", &slots.to_string()),
                ("THREAD_COLS", &shape.thread_cols.to_string()),
                ("THREADS", &shape.threads.to_string()),
                ("SUM", &sum_type),
                ("PARTIAL", &(shape.threads * rows).to_string()),
                ("LANE", &lane),
                ("SLOT", &slot),
                ("SETUP", &setup),
                ("WIDTH", &width.to_string()),
                ("STRIDE", &(shape.lanes * width).to_string()),
                ("MULTIPLY", &multiply),
                ("REDUCE", &reduce_lanes(rows, &shape, self.rhs_staging.fast)),
                ("FINISH", &finish),
            ],
        )
    }
}

/// Adds the lanes' sums up; lane 0 ends with the total in `sum_ROW`.
fn reduce_lanes(rows: u32, shape: &SkinnyShape, fast: FastAxis) -> String {
    let distance = match fast {
        FastAxis::Inner => 1,
        FastAxis::Outer => shape.slots(),
    };
    let mut code = String::new();
    for row in 0..rows {
        let _ = writeln!(
            code,
            "    partial[{}u + local] = sum_{row};",
            row * shape.threads
        );
    }
    let mut half = shape.lanes / 2;
    while half > 0 {
        let _ = writeln!(code, "    workgroupBarrier();\n    if lane < {half}u {{");
        for row in 0..rows {
            let at = row * shape.threads;
            let other = at + half * distance;
            let _ = writeln!(code, "        sum_{row} += partial[{other}u + local];");
            if half > 1 {
                let _ = writeln!(code, "        partial[{at}u + local] = sum_{row};");
            }
        }
        code.push_str("    }\n");
        half /= 2;
    }
    code
}

impl MatmulShader {
    /// `SIDE_value` and, where a kernel may ask for it, `SIDE_value4`: zero outside the operand.
    fn value_functions(&self, side: &str, staging: Staging) -> String {
        let value = self.accumulator.name();
        let four = |along: &str, at: &str| {
            format!(
                "// Four along {along}.
fn {side}_value4(item: Item, inner: u32) -> vec4<{value}> {{
    if item.present && inner < params.inner {{
        return vec4<{value}>(load4_{side}({at}));
    }}
    return vec4<{value}>();
}}
"
            )
        };
        match (staging.width, staging.fast) {
            (Width::One, _) => {
                let offset = match self.inner {
                    InnerAxes::One => format!("inner * params.{side}_inner"),
                    InnerAxes::Many => format!(
                        "inner_offsets(inner).{}",
                        if side == "lhs" { "x" } else { "y" }
                    ),
                };
                format!(
                    "fn {side}_value(item: Item, inner: u32) -> {value} {{
    if item.present && inner < params.inner {{
        return {value}(load_{side}(item.base + {offset}));
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
            (Width::Four, FastAxis::Inner) => four("the inner axis", "item.base + inner"),
            (Width::Four, FastAxis::Outer) => four(
                "the outer axis",
                &format!("item.base + inner * params.{side}_inner"),
            ),
        }
    }
}
