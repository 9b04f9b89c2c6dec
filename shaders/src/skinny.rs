//! Products with a few rows: each thread sums its share of the inner axis for its columns, then the threads' sums are
//! added up.

use std::fmt::Write as _;

use cupola_ir::BlockFormat;

use crate::binding::Width;
use crate::staging::{FastAxis, Staging};
use crate::template::fill;
use crate::tile::Split;

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

/// How the sums of the lanes that share a column are added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// As a tree in workgroup memory.
    Tree,
    /// By subgroups of any size, then over those in workgroup memory. All threads share the columns.
    Subgroups,
}

/// How a skinny product is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Skinny {
    /// Rows.
    pub rows: SkinnyRows,
    /// Threads of a workgroup, a power of two.
    pub threads: u32,
    /// Threads that share one column, or one four of columns; a power of two.
    pub lanes: u32,
    /// Columns of a thread where the right operand is read along the inner axis.
    pub cols: u32,
    /// How sums are added up.
    pub reduction: Reduction,
}

/// The right operand as the skinny product sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Right {
    pub staging: Staging,
    /// The format, where it is block-quantised.
    pub blocks: Option<BlockFormat>,
}

/// Loads along the inner axis that a thread has under way for each column.
const LOADS: u32 = 2;

impl Skinny {
    /// Whether the form is made for a right operand that is read like this: several columns of a thread, and sums over
    /// subgroups, are for those that lie along the inner axis.
    pub fn suits(self, right: Staging) -> bool {
        let (variables, elements) = self.columns(right);
        let sums = self.rows.most() * variables * elements;
        match right.fast {
            // More sums than that would leave the registers.
            FastAxis::Inner => sums <= 16,
            FastAxis::Outer => self.cols == 1 && self.reduction == Reduction::Tree,
        }
    }

    /// Threads side by side along the columns.
    fn slots(self) -> u32 {
        self.threads / self.lanes
    }

    /// Results that a thread sums for a row, as variables and as elements of each.
    fn columns(self, right: Staging) -> (u32, u32) {
        match (right.fast, right.width) {
            (FastAxis::Inner, _) => (self.cols, 1),
            (FastAxis::Outer, Width::One) => (1, 1),
            (FastAxis::Outer, Width::Four | Width::Halves) => (1, 4),
        }
    }

    /// Columns that one workgroup computes.
    pub fn group_cols(self, right: Staging) -> u32 {
        let (variables, elements) = self.columns(right);
        self.slots() * variables * elements
    }

    /// Inner positions of one round of all lanes; `group` is the length of a block group, if there are blocks.
    pub fn inner_step(self, right: Staging, group: Option<u32>) -> u32 {
        self.lanes
            * match (group, right.fast) {
                (Some(group), _) => group,
                (None, FastAxis::Inner) => 4 * LOADS,
                (None, FastAxis::Outer) => 4,
            }
    }

    /// Bytes of workgroup memory.
    pub fn memory_size(self, right: Staging) -> u32 {
        let (variables, elements) = self.columns(right);
        let sums = self.rows.most() * variables * elements * 4;
        match self.reduction {
            Reduction::Tree => self.threads * sums,
            Reduction::Subgroups => self.most_subgroups() * sums,
        }
    }

    /// Subgroups have at least four threads.
    fn most_subgroups(self) -> u32 {
        self.threads / 4
    }

    /// The entry point over values of type `value`.
    pub(crate) fn product(self, value: &str, right: Right, split: Split) -> String {
        let (variables, elements) = self.columns(right.staging);
        let sum = match elements {
            4 => format!("vec4<{value}>"),
            _ => value.to_owned(),
        };
        let slots = self.slots();
        let (lane, slot) = match right.staging.fast {
            FastAxis::Inner => (
                format!("local % {}u", self.lanes),
                format!("local / {}u", self.lanes),
            ),
            FastAxis::Outer => (format!("local / {slots}u"), format!("local % {slots}u")),
        };
        let mut setup = String::new();
        for column in 0..variables {
            let _ = writeln!(
                setup,
                "    let right_{column} = rhs_item(batch, min(col + {column}u, params.cols - 1u));"
            );
        }
        for row in 0..self.rows.most() {
            let _ = writeln!(setup, "    let left_{row} = lhs_item(batch, {row}u);");
            for column in 0..variables {
                let _ = writeln!(setup, "    var sum_{row}_{column} = {sum}();");
            }
        }
        let group = right.blocks.map(|format| format.group_len() as u32);
        let step = self.inner_step(right.staging, group);
        let multiply = match (right.blocks, right.staging.fast) {
            (Some(format), _) => self.multiply_blocks(value, format),
            (None, FastAxis::Inner) => self.multiply_inner(),
            (None, FastAxis::Outer) => self.multiply_outer(right.staging.width),
        };
        let along = match (group, right.staging.fast) {
            (Some(group), _) => group,
            (None, _) => 4,
        };
        fill(
            include_str!("../wgsl/skinny.wgsl"),
            &[
                ("ROWS", &self.rows.most().to_string()),
                ("LANES", &self.lanes.to_string()),
                ("SLOTS", &slots.to_string()),
                ("THREAD_COLS", &(variables * elements).to_string()),
                ("THREADS", &self.threads.to_string()),
                ("SUM", &sum),
                ("PARTIAL", &self.partial(variables).to_string()),
                ("BUILTINS", self.builtins()),
                ("BATCHES", &split.batches("batches")),
                ("SPLIT", &split.code("batches")),
                ("LANE", &lane),
                ("SLOT", &slot),
                ("SETUP", &setup),
                ("ALONG", &along.to_string()),
                ("STEP", &step.to_string()),
                ("MULTIPLY", &multiply),
                ("REDUCE", &self.reduce(right.staging, variables, elements)),
            ],
        )
    }

    /// Elements of the array through which sums are added up.
    fn partial(self, variables: u32) -> u32 {
        let sums = self.rows.most() * variables;
        match self.reduction {
            Reduction::Tree => self.threads * sums,
            Reduction::Subgroups => self.most_subgroups() * sums,
        }
    }

    fn builtins(self) -> &'static str {
        match self.reduction {
            Reduction::Tree => "",
            Reduction::Subgroups => {
                ",
        @builtin(subgroup_id) subgroup: u32, @builtin(num_subgroups) subgroups: u32,
        @builtin(subgroup_invocation_id) subgroup_lane: u32"
            }
        }
    }

    /// Fours along the inner axis, all columns of a thread.
    fn multiply_inner(self) -> String {
        let mut code = String::new();
        for load in 0..LOADS {
            let at = format!("k + {}u", load * self.lanes * 4);
            for row in 0..self.rows.most() {
                let _ = writeln!(
                    code,
                    "        let a{load}_{row} = lhs_value4(left_{row}, {at});"
                );
            }
            for column in 0..self.cols {
                let _ = writeln!(
                    code,
                    "        let b{load}_{column} = rhs_value4(right_{column}, {at});"
                );
            }
        }
        for load in 0..LOADS {
            for row in 0..self.rows.most() {
                for column in 0..self.cols {
                    let _ = writeln!(
                        code,
                        "        sum_{row}_{column} += dot(a{load}_{row}, b{load}_{column});"
                    );
                }
            }
        }
        code
    }

    /// Four inner positions, one after the other, of a column or a four of columns.
    fn multiply_outer(self, width: Width) -> String {
        let mut code = String::new();
        let function = match width {
            Width::One => "rhs_value",
            Width::Four | Width::Halves => "rhs_value4",
        };
        for k in 0..4 {
            let _ = writeln!(code, "        let b{k} = {function}(right_0, k + {k}u);");
        }
        for row in 0..self.rows.most() {
            let _ = writeln!(code, "        let a{row} = lhs_value4(left_{row}, k);");
            for k in 0..4 {
                let _ = writeln!(code, "        sum_{row}_0 += a{row}[{k}] * b{k};");
            }
        }
        code
    }

    /// A group of a block: codes are multiplied first, the scale comes last.
    fn multiply_blocks(self, value: &str, format: BlockFormat) -> String {
        let mut code = String::new();
        let (len, size) = (format.block_len(), format.block_size());
        let (group, rows) = (format.group_len(), self.rows.most());
        for column in 0..self.cols {
            let _ = writeln!(
                code,
                "        let at{column} = right_{column}.base + k;
        let block{column} = (at{column} / {len}u) * {size}u;
        let four{column} = (at{column} % {len}u) / 4u;
        let scale{column} = rhs_scale(block{column}, four{column} / {}u);",
                group / 4
            );
            for row in 0..rows {
                let _ = writeln!(code, "        var part_{row}_{column} = {value}();");
            }
        }
        for row in 0..rows {
            if format.has_min() {
                let _ = writeln!(code, "        var all_{row} = vec4<{value}>();");
            }
        }
        for four in 0..group / 4 {
            for row in 0..rows {
                let _ = writeln!(
                    code,
                    "        let a{four}_{row} = lhs_value4(left_{row}, k + {}u);",
                    four * 4
                );
                if format.has_min() {
                    let _ = writeln!(code, "        all_{row} += a{four}_{row};");
                }
            }
            for column in 0..self.cols {
                let _ = writeln!(
                    code,
                    "        let b{four}_{column} = rhs_codes(block{column}, four{column} + {four}u);"
                );
                for row in 0..rows {
                    let _ = writeln!(
                        code,
                        "        part_{row}_{column} += dot(a{four}_{row}, b{four}_{column});"
                    );
                }
            }
        }
        for row in 0..rows {
            for column in 0..self.cols {
                let _ = writeln!(
                    code,
                    "        sum_{row}_{column} += scale{column}.x * part_{row}_{column};"
                );
                if format.has_min() {
                    let _ = writeln!(
                        code,
                        "        sum_{row}_{column} += scale{column}.y * dot(all_{row}, vec4<{value}>(1.0));"
                    );
                }
            }
        }
        code
    }

    fn reduce(self, right: Staging, variables: u32, elements: u32) -> String {
        match self.reduction {
            Reduction::Tree => self.reduce_tree(right.fast, variables, elements),
            Reduction::Subgroups => self.reduce_subgroups(variables),
        }
    }

    /// Lane 0 ends with the totals in its sums.
    fn reduce_tree(self, fast: FastAxis, variables: u32, elements: u32) -> String {
        let distance = match fast {
            FastAxis::Inner => 1,
            FastAxis::Outer => self.slots(),
        };
        let sums: Vec<(u32, String)> = (0..self.rows.most() * variables)
            .map(|at| {
                let name = format!("sum_{}_{}", at / variables, at % variables);
                (at * self.threads, name)
            })
            .collect();
        let mut code = String::new();
        for (at, name) in &sums {
            let _ = writeln!(code, "    partial[{at}u + local] = {name};");
        }
        let mut half = self.lanes / 2;
        while half > 0 {
            let _ = writeln!(code, "    workgroupBarrier();\n    if lane < {half}u {{");
            for (at, name) in &sums {
                let other = at + half * distance;
                let _ = writeln!(code, "        {name} += partial[{other}u + local];");
                if half > 1 {
                    let _ = writeln!(code, "        partial[{at}u + local] = {name};");
                }
            }
            code.push_str("    }\n");
            half /= 2;
        }
        code.push_str("    if lane == 0u {\n");
        for row in 0..self.rows.most() {
            for column in 0..variables * elements {
                let value = match elements {
                    4 => format!("sum_{row}_0[{column}]"),
                    _ => format!("sum_{row}_{column}"),
                };
                let _ = writeln!(
                    code,
                    "        finish(batch, {row}u, col + {column}u, {value});"
                );
            }
        }
        code.push_str("    }\n");
        code
    }

    fn reduce_subgroups(self, variables: u32) -> String {
        let sums = self.rows.most() * variables;
        let mut code = String::new();
        for at in 0..sums {
            let _ = writeln!(
                code,
                "    let total_{at} = subgroupAdd(sum_{}_{});",
                at / variables,
                at % variables
            );
        }
        code.push_str("    if subgroup_lane == 0u {\n");
        for at in 0..sums {
            let _ = writeln!(
                code,
                "        partial[subgroup * {sums}u + {at}u] = total_{at};"
            );
        }
        let _ = writeln!(
            code,
            "    }}
    workgroupBarrier();
    for (var at = local; at < {sums}u; at += {threads}u) {{
        var total = partial[at];
        for (var other = 1u; other < subgroups; other += 1u) {{
            total += partial[other * {sums}u + at];
        }}
        finish(batch, at / {variables}u, col + at % {variables}u, total);
    }}",
            threads = self.threads
        );
        code
    }
}
