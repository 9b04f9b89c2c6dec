//! Products on matrix units: subgroups multiply matrices of f16 and sum them in f32.

use std::fmt::Write as _;

use crate::staging::{FastAxis, Side, Staging};
use crate::template::fill;
use crate::tile::{Split, Staged};

/// How a cooperative product is divided. All threads of a workgroup belong to subgroups of exactly `lanes` threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CooperativeTile {
    /// Rows, columns and inner positions of a matrix: 8 or 16.
    pub size: u32,
    /// Threads of a subgroup.
    pub lanes: u32,
    /// Subgroups along the rows and along the columns.
    pub subgroups: [u32; 2],
    /// Matrices of a subgroup along the rows and along the columns.
    pub matrices: [u32; 2],
    /// Inner positions staged at a time; a multiple of `size`.
    pub step: u32,
}

/// Distance between runs beyond their length, in elements of two bytes: 16 bytes put the rows of a matrix on different
/// banks and keep them aligned.
const PAD: u32 = 8;

impl CooperativeTile {
    /// Result rows of a workgroup.
    pub fn rows(self) -> u32 {
        self.size * self.subgroups[0] * self.matrices[0]
    }

    /// Result columns of a workgroup.
    pub fn cols(self) -> u32 {
        self.size * self.subgroups[1] * self.matrices[1]
    }

    /// Subgroups of a workgroup.
    pub fn subgroup_count(self) -> u32 {
        self.subgroups[0] * self.subgroups[1]
    }

    /// Threads of a workgroup.
    pub fn threads(self) -> u32 {
        self.subgroup_count() * self.lanes
    }

    /// Bytes of workgroup memory, at most.
    pub fn memory_size(self) -> u32 {
        let side = |outer: u32| {
            let inner_first = (self.step + PAD) * outer;
            inner_first.max((outer + PAD) * self.step) * 2
        };
        let results = self.subgroup_count() * self.size * self.size * 4;
        side(self.rows()) + side(self.cols()) + results
    }

    fn side(self, name: &'static str, first: &'static str, staging: Staging, outer: u32) -> Side {
        Side {
            name,
            first,
            staging,
            layout: staging.fast,
            value: "f16",
            outer,
            step: self.step,
            threads: self.threads(),
            per_step: false,
            pad: PAD,
        }
    }

    /// The entry point; `batches` is the parameter that counts batches.
    pub(crate) fn product(self, lhs: Staging, rhs: Staging, batches: &str, split: Split) -> String {
        let sides = [
            self.side("lhs", "first_row", lhs, self.rows()),
            self.side("rhs", "first_col", rhs, self.cols()),
        ];
        let staged = Staged::new(&sides, self.step);
        let [down, across] = self.matrices;
        let matrix = format!("coop_mat{0}x{0}", self.size);
        let mut setup = staged.setup;
        for (row, col) in pairs(down, across) {
            let _ = writeln!(setup, "    var sum_{row}_{col} = {matrix}<f32, C>();");
        }
        fill(
            include_str!("../wgsl/cooperative.wgsl"),
            &[
                ("TILE_ROWS", &self.rows().to_string()),
                ("TILE_COLS", &self.cols().to_string()),
                ("SUBGROUPS", &self.subgroup_count().to_string()),
                ("SUBGROUPS_ACROSS", &self.subgroups[1].to_string()),
                ("LANES", &self.lanes.to_string()),
                ("THREADS", &self.threads().to_string()),
                ("DOWN", &down.to_string()),
                ("ACROSS", &across.to_string()),
                ("SIZE", &self.size.to_string()),
                ("MATRIX", &(self.size * self.size).to_string()),
                (
                    "RESULTS",
                    &(self.subgroup_count() * self.size * self.size).to_string(),
                ),
                ("OWN_ROWS", &(self.size * down).to_string()),
                ("OWN_COLS", &(self.size * across).to_string()),
                ("STEP", &self.step.to_string()),
                ("BATCHES", &split.batches(batches)),
                ("SPLIT", &split.code(batches)),
                ("TILES", &staged.declarations),
                ("SETUP", &setup),
                ("LOAD_FIRST", &staged.load_first),
                ("LOAD_NEXT", &staged.load_next),
                ("STORE", &staged.store),
                ("MULTIPLY", &self.multiply(&matrix, &sides)),
                ("FINISH", &self.finish()),
            ],
        )
    }

    /// The matrix products of a step.
    fn multiply(self, matrix: &str, [lhs, rhs]: &[Side; 2]) -> String {
        let mut code = String::new();
        let [down, across] = self.matrices;
        for k in 0..self.step / self.size {
            for row in 0..down {
                let at = self.place(lhs, "own_row", row, k);
                let _ = writeln!(
                    code,
                    "        let a{k}_{row} = {};",
                    fragment(lhs, "A", matrix, &at)
                );
            }
            for col in 0..across {
                let at = self.place(rhs, "own_col", col, k);
                let _ = writeln!(
                    code,
                    "        let b{k}_{col} = {};",
                    fragment(rhs, "B", matrix, &at)
                );
            }
            for (row, col) in pairs(down, across) {
                let _ = writeln!(
                    code,
                    "        sum_{row}_{col} = coopMultiplyAdd(a{k}_{row}, b{k}_{col}, sum_{row}_{col});"
                );
            }
        }
        code
    }

    /// Where the subgroup's matrix `n` of inner position `k` begins in a tile, as WGSL.
    fn place(self, side: &Side, own: &str, n: u32, k: u32) -> String {
        let (outer, inner) = (n * self.size, k * self.size);
        match side.layout {
            FastAxis::Inner => format!("({own} + {outer}u) * {}u + {inner}u", side.pitch()),
            FastAxis::Outer => format!("{own} + {}u", inner * side.pitch() + outer),
        }
    }

    /// Matrix by matrix to workgroup memory, and from there element by element.
    fn finish(self) -> String {
        let mut code = String::new();
        let [down, across] = self.matrices;
        for (row, col) in pairs(down, across) {
            let _ = writeln!(
                code,
                "    coopStoreT(sum_{row}_{col}, &results[own_results], {size}u);
    workgroupBarrier();
    for (var at = lane; at < {matrix}u; at += {lanes}u) {{
        finish(batch, first_row + own_row + {down}u + at / {size}u, first_col + own_col + {across}u + at % {size}u, \
                 results[own_results + at]);
    }}
    workgroupBarrier();",
                size = self.size,
                matrix = self.size * self.size,
                lanes = self.lanes,
                down = row * self.size,
                across = col * self.size,
            );
        }
        code
    }
}

/// The load of a matrix: by rows where the axis that counts its columns is contiguous.
fn fragment(side: &Side, role: &str, matrix: &str, at: &str) -> String {
    let by_rows = (side.layout == FastAxis::Inner) == (role == "A");
    format!(
        "coopLoad{}<{matrix}<f16, {role}>>(&{}_tile[({at}) >> 2u], {}u)",
        if by_rows { "T" } else { "" },
        side.name,
        side.pitch() / 4
    )
}

fn pairs(rows: u32, cols: u32) -> impl Iterator<Item = (u32, u32)> {
    (0..rows).flat_map(move |row| (0..cols).map(move |col| (row, col)))
}
