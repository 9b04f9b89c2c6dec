//! Attention on matrix units: f16 in, scores and sums in f32.
//!
//! Matrices give no access to their elements, so scores go through workgroup memory, and so would the sums each time a
//! row's largest score changes. They are rescaled only when it outgrew the reference by enough to matter, which after the
//! first keys is rare: the quotient at the end does not depend on the reference.

use std::fmt::Write as _;

use crate::template::fill;

/// How a cooperative attention is divided. All threads of a workgroup belong to subgroups of exactly `lanes` threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AttentionMatrices {
    /// Rows, columns and inner positions of a matrix: 8 or 16.
    pub size: u32,
    /// Threads of a subgroup: a multiple of the rows of a subgroup.
    pub lanes: u32,
    /// Subgroups of a workgroup.
    pub subgroups: u32,
    /// Matrices along the rows of a subgroup.
    pub down: u32,
    /// Keys at a time; a multiple of `size` and of four for each thread of a row.
    pub keys: u32,
    /// Length of a query, a multiple of `size`; what is missing counts as zeros.
    pub depth: u32,
    /// Value columns of a workgroup, a multiple of `size`.
    pub cols: u32,
}

/// Distance between lines of f16 beyond their length: 16 bytes put the rows of a matrix on different banks and keep them
/// aligned.
const PAD: u32 = 8;

impl AttentionMatrices {
    /// Rows of a workgroup.
    pub fn rows(self) -> u32 {
        self.own_rows() * self.subgroups
    }

    /// Threads of a workgroup.
    pub fn threads(self) -> u32 {
        self.subgroups * self.lanes
    }

    /// Bytes of workgroup memory.
    pub fn memory_size(self) -> u32 {
        let halves =
            self.keys * (self.depth + self.cols + 2 * PAD) + self.rows() * (self.keys + PAD);
        halves * 2 + (self.rows() * self.score_pitch() + self.subgroups) * 4
    }

    /// 32-bit registers of a thread for the matrices that live as long as the kernel.
    pub fn registers(self) -> u32 {
        self.down * self.size * (self.depth / 2 + self.cols) / self.lanes
    }

    /// Most value columns that leave the matrices of one row of matrices within so many registers of a thread; none where
    /// queries alone take more.
    pub fn most_cols(size: u32, lanes: u32, depth: u32, registers: u32) -> Option<u32> {
        let cols = (registers * lanes / size).checked_sub(depth / 2)?;
        Some(cols / size * size)
    }

    /// Whether the rows of a subgroup can be shared out among its threads, and their keys among those of a row.
    pub fn is_even(self) -> bool {
        let rows = self.own_rows();
        rows <= self.lanes
            && self.lanes.is_multiple_of(rows)
            && self.keys.is_multiple_of(4 * self.parts())
            && self.keys.is_multiple_of(self.size)
    }

    fn own_rows(self) -> u32 {
        self.size * self.down
    }

    /// Threads of a row.
    fn parts(self) -> u32 {
        self.lanes / self.own_rows()
    }

    /// Neighbouring rows begin as many vectors of four apart as puts the threads of eight vectors on different banks.
    fn score_pitch(self) -> u32 {
        self.keys + 4 * self.parts()
    }

    fn weight_pitch(self) -> u32 {
        self.keys + PAD
    }

    fn matrix(self, scalar: &str, role: &str) -> String {
        format!("coop_mat{0}x{0}<{scalar}, {role}>", self.size)
    }

    /// The entry point.
    pub(super) fn kernel(self) -> String {
        let word = |value: u32| value.to_string();
        let (key_pitch, value_pitch) = (self.depth + PAD, self.cols + PAD);
        let grown: Vec<_> = (0..self.subgroups)
            .map(|n| format!("all_grown[{n}]"))
            .collect();
        fill(
            include_str!("../../wgsl/attention_cooperative.wgsl"),
            &[
                ("ROWS", &word(self.rows())),
                ("COLS", &word(self.cols)),
                ("KEYS", &word(self.keys)),
                ("SIZE", &word(self.size)),
                ("LANES", &word(self.lanes)),
                ("SUBGROUPS", &word(self.subgroups)),
                ("THREADS", &word(self.threads())),
                ("OWN_ROWS", &word(self.own_rows())),
                ("PARTS", &word(self.parts())),
                ("KEY_TILE", &word(self.keys * key_pitch)),
                ("VALUE_TILE", &word(self.keys * value_pitch)),
                ("SCORE_TILE", &word(self.rows() * self.score_pitch())),
                ("WEIGHT_TILE", &word(self.rows() * self.weight_pitch())),
                ("KEY_PITCH", &word(key_pitch)),
                ("VALUE_PITCH", &word(value_pitch)),
                ("SCORE_PITCH", &word(self.score_pitch())),
                ("WEIGHT_PITCH", &word(self.weight_pitch())),
                ("QUERY_FOURS", &word(self.rows() * self.keys / 4)),
                ("KEY_FOURS", &word(self.keys * self.depth / 4)),
                ("VALUE_FOURS", &word(self.keys * self.cols / 4)),
                ("KEYS_FOURS", &word(self.keys / 4)),
                ("DEPTH_FOURS", &word(self.depth / 4)),
                ("COLS_FOURS", &word(self.cols / 4)),
                ("QUERIES", &self.queries()),
                ("SCORES", &self.scores(key_pitch)),
                ("FINISH_SCORES", &self.finish_scores()),
                ("LARGEST", &self.largest()),
                ("WEIGHTS", &self.weights()),
                ("ANY_GROWN", &grown.join(" | ")),
                ("RESCALE", &self.rescale()),
                ("ACCUMULATE", &self.accumulate(value_pitch)),
                ("TOTAL", &self.total()),
                ("STORE", &self.store()),
            ],
        )
    }

    /// Queries become matrices by way of the weights' tile, which has no other use yet; the sums begin.
    fn queries(self) -> String {
        let mut code = String::new();
        for first in (0..self.depth).step_by(self.keys as usize) {
            let _ = writeln!(
                code,
                "    stage_queries(place, first_row, {first}u, local);\n    workgroupBarrier();"
            );
            let here = (self.depth - first).min(self.keys) / self.size;
            for (row, k) in pairs(self.down, here) {
                let _ = writeln!(
                    code,
                    "    let query_{row}_{} = {};",
                    first / self.size + k,
                    self.weight_matrix(row, k)
                );
            }
            code.push_str("    workgroupBarrier();\n");
        }
        for (row, col) in pairs(self.down, self.cols / self.size) {
            let _ = writeln!(
                code,
                "    var sum_{row}_{col} = {}();",
                self.matrix("f32", "C")
            );
        }
        code
    }

    /// Matrix `k` along row `row` of the subgroup's part of the weights' tile.
    fn weight_matrix(self, row: u32, k: u32) -> String {
        let pitch = self.weight_pitch();
        format!(
            "coopLoadT<{}>(&weight_tile[(own + {}u) * {pitch}u + {}u], {pitch}u)",
            self.matrix("f16", "A"),
            row * self.size,
            k * self.size
        )
    }

    /// Where matrix `n` along row `row` of the subgroup's part of the scores' tile begins, and the distance of its rows.
    fn score_place(self, row: u32, n: u32) -> String {
        let pitch = self.score_pitch();
        format!(
            "&score_tile[(own + {}u) * {pitch}u + {}u], {pitch}u",
            row * self.size,
            n * self.size
        )
    }

    fn scores(self, pitch: u32) -> String {
        let mut code = String::new();
        let size = self.size;
        for n in 0..self.keys / size {
            for row in 0..self.down {
                let zero = self.matrix("f32", "C");
                let _ = writeln!(code, "        var score_{row}_{n} = {zero}();");
            }
            for k in 0..self.depth / size {
                let _ = writeln!(
                    code,
                    "        let key_{n}_{k} = coopLoad<{}>(&key_tile[{}u], {pitch}u);",
                    self.matrix("f16", "B"),
                    n * size * pitch + k * size
                );
                for row in 0..self.down {
                    let _ = writeln!(
                        code,
                        "        score_{row}_{n} = coopMultiplyAdd(query_{row}_{k}, key_{n}_{k}, score_{row}_{n});"
                    );
                }
            }
            for row in 0..self.down {
                let place = self.score_place(row, n);
                let _ = writeln!(code, "        coopStoreT(score_{row}_{n}, {place});");
            }
        }
        code
    }

    /// A thread's elements of its row, in fours: number, distance from `part` and from the first of its elements.
    fn fours(self) -> impl Iterator<Item = (u32, u32)> {
        (0..self.keys / (4 * self.parts())).map(move |n| (n, n * 4 * self.parts()))
    }

    fn finish_scores(self) -> String {
        let mut code = String::new();
        for (n, first) in self.fours() {
            let each = [0, 1, 2, 3].map(|c| {
                let at = first + c;
                format!(
                    "            finished_score(score_tile[own_scores + {at}u], row, first_key + part + {at}u)"
                )
            });
            let _ = writeln!(
                code,
                "        let scores_{n} = vec4<f32>(\n{});",
                each.join(",\n")
            );
        }
        code
    }

    fn largest(self) -> String {
        let mut code = String::from("        var largest_of_four = scores_0;\n");
        for (n, _) in self.fours().skip(1) {
            let _ = writeln!(
                code,
                "        largest_of_four = max(largest_of_four, scores_{n});"
            );
        }
        code.push_str(
            "        var largest = max(max(largest_of_four.x, largest_of_four.y), \
             max(largest_of_four.z, largest_of_four.w));\n",
        );
        for apart in self.distances() {
            let _ = writeln!(
                code,
                "        largest = max(largest, subgroupShuffleXor(largest, {apart}u));"
            );
        }
        code
    }

    /// Distances at which the threads of a row find partners, until each has heard of all.
    fn distances(self) -> impl Iterator<Item = u32> {
        (0..self.parts().trailing_zeros()).map(|n| 1 << n)
    }

    fn weights(self) -> String {
        let mut code = String::new();
        for (n, first) in self.fours() {
            for (c, component) in (0u32..).zip(["x", "y", "z", "w"]) {
                let name = format!("weight_{n}_{component}");
                let _ = writeln!(
                    code,
                    "        let {name} = weight(scores_{n}.{component}, reference);
        total += {name};
        weight_tile[own_weights + {}u] = f16({name});",
                    first + c
                );
            }
        }
        code
    }

    /// Passes the sums through workgroup memory, as many side by side as the scores' tile holds; `visit` is what a thread
    /// does to its row in between, given the matrices' first column. `back` reads them again.
    fn visit_sums(self, visit: impl Fn(u32) -> String, back: bool) -> String {
        let mut code = String::new();
        let slots = self.keys / self.size;
        let all = self.cols / self.size;
        for first in (0..all).step_by(slots as usize) {
            let here = slots.min(all - first);
            for (row, n) in pairs(self.down, here) {
                let place = self.score_place(row, n);
                let _ = writeln!(code, "    coopStoreT(sum_{row}_{}, {place});", first + n);
            }
            code.push_str("    workgroupBarrier();\n");
            code.push_str(&visit(first * self.size));
            code.push_str("    workgroupBarrier();\n");
            if back {
                for (row, n) in pairs(self.down, here) {
                    let _ = writeln!(
                        code,
                        "    sum_{row}_{} = coopLoadT<{}>({});",
                        first + n,
                        self.matrix("f32", "C"),
                        self.score_place(row, n)
                    );
                }
                code.push_str("    workgroupBarrier();\n");
            }
        }
        code
    }

    fn rescale(self) -> String {
        let scale = self.fours().fold(String::new(), |mut code, (_, first)| {
            for at in first..first + 4 {
                let _ = writeln!(code, "    score_tile[own_scores + {at}u] *= factor;");
            }
            code
        });
        self.visit_sums(|_| scale.clone(), true)
    }

    fn accumulate(self, pitch: u32) -> String {
        let mut code = String::new();
        let size = self.size;
        for k in 0..self.keys / size {
            for row in 0..self.down {
                let matrix = self.weight_matrix(row, k);
                let _ = writeln!(code, "        let weights_{row}_{k} = {matrix};");
            }
            for col in 0..self.cols / size {
                let _ = writeln!(
                    code,
                    "        let value_{k}_{col} = coopLoadT<{}>(&value_tile[{}u], {pitch}u);",
                    self.matrix("f16", "B"),
                    k * size * pitch + col * size
                );
                for row in 0..self.down {
                    let _ = writeln!(
                        code,
                        "        sum_{row}_{col} = coopMultiplyAdd(weights_{row}_{k}, value_{k}_{col}, sum_{row}_{col});"
                    );
                }
            }
        }
        code
    }

    fn total(self) -> String {
        let mut code = String::new();
        for apart in self.distances() {
            let _ = writeln!(code, "    total += subgroupShuffleXor(total, {apart}u);");
        }
        code
    }

    /// Results leave in fours, each thread's from its row. A row that sees no key gives 0.
    fn store(self) -> String {
        let visit = |first_col: u32| {
            let mut code = String::new();
            for (_, first) in self.fours().filter(|(_, at)| first_col + at < self.cols) {
                let each = [0, 1, 2, 3].map(|c| format!("score_tile[own_scores + {}u]", first + c));
                let column = first_col + first;
                let _ = writeln!(
                    code,
                    "    if row.present && part + {column}u < {cols}u && first_col + part + {column}u < params.value_depth {{
        let sums = vec4<f32>({});
        store4_out(row.out + first_col + part + {column}u, select(sums / total, vec4<f32>(), total == 0.0));
    }}",
                    each.join(", "),
                    cols = self.cols,
                );
            }
            code
        };
        self.visit_sums(visit, false)
    }
}

fn pairs(rows: u32, cols: u32) -> impl Iterator<Item = (u32, u32)> {
    (0..rows).flat_map(move |row| (0..cols).map(move |col| (row, col)))
}
