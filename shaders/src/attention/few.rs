//! Attention of a few rows: a thread for each key, and for each value column.

use std::fmt::Write as _;

use super::{AttentionShader, FEW_DEPTH, Source};
use crate::binding::Width;
use crate::template::fill;

/// Keys of a strided operand: those of the workgroup's range.
const STRIDED_RANGE: &str = "    let start_key = split * params.split_keys;
    let end_key = min(params.keys, start_key + params.split_keys);";

/// Keys in pages: those of the range that the query sees. Every row of a workgroup is the same query, of another head.
const PAGED_RANGE: &str = "    if local == 0u {
        range = keys_of(place.batch);
    }
    let seen = workgroupUniformLoad(&range);
    let sequence = sequence_of(place.batch);
    let start_key = max(seen.x, split * params.split_keys);
    let end_key = min(seen.y, (split + 1u) * params.split_keys);";

const PAGED_ROWS: &str = "        var own = vec2<u32>(NO_ROW, NO_ROW);
        if key < end_key {
            own = key_row(place, sequence, key);
        }
        key_rows[local] = own;";

impl AttentionShader {
    pub(super) fn few(&self, rows: u32, split: bool) -> String {
        let cols = self.cols.cols();
        let each = cols / 64;
        let depth = FEW_DEPTH as u32;
        let mut code = [const { String::new() }; 8];
        let [
            setup,
            stage,
            clear,
            scores,
            finish,
            weights,
            accumulate,
            store,
        ] = &mut code;
        for column in 0..each {
            let _ = writeln!(
                setup,
                "    let col_{column} = first_col + local + {}u;",
                column * 64
            );
            for next in 0..4 {
                let _ = writeln!(
                    accumulate,
                    "            let value_{column}_{next} = {};",
                    match self.source {
                        Source::Strided =>
                            format!("value_value(place, first_key + n + {next}u, col_{column})"),
                        Source::Paged =>
                            format!("value_value(key_rows[n + {next}u].y, col_{column})"),
                    }
                );
            }
        }
        for row in 0..rows {
            let at = row * 64;
            let _ = writeln!(setup, "    let row_{row} = row_of(place, {row}u);");
            let _ = writeln!(setup, "    var largest_{row} = HIDDEN;");
            let _ = writeln!(setup, "    var total_{row} = 0.0;");
            let _ = writeln!(
                stage,
                "        queries[{}u + item] = query_value(row_{row}, item);",
                row * depth
            );
            let _ = writeln!(clear, "        var score_{row} = 0.0;");
            let _ = writeln!(clear, "        var now_{row} = HIDDEN;");
            let query = |next: u32| format!("queries[{}u + at]", row * depth + next);
            let product = match self.key_width {
                Width::One => format!("{} * k", query(0)),
                Width::Four | Width::Halves => {
                    let queries = [0, 1, 2, 3].map(query).join(", ");
                    format!("dot(vec4<f32>({queries}), k)")
                }
            };
            let _ = writeln!(scores, "                score_{row} += {product};");
            let _ = writeln!(
                finish,
                "            now_{row} = finished_score(score_{row}, row_{row}, key);"
            );
            let _ = writeln!(
                weights,
                "        let largest_now_{row} = max(largest_{row}, tree[{at}u]);"
            );
            let _ = writeln!(
                weights,
                "        let factor_{row} = exp(largest_{row} - largest_now_{row});"
            );
            let _ = writeln!(
                weights,
                "        let weight_{row} = weight(now_{row}, largest_now_{row});"
            );
            let _ = writeln!(weights, "        weights[{at}u + local] = weight_{row};");
            let _ = writeln!(
                weights,
                "        total_{row} = total_{row} * factor_{row} + weight_{row};"
            );
            let _ = writeln!(weights, "        largest_{row} = largest_now_{row};");
            for column in 0..each {
                let _ = writeln!(setup, "    var sum_{row}_{column} = 0.0;");
                let _ = writeln!(weights, "        sum_{row}_{column} *= factor_{row};");
                for next in 0..4 {
                    let _ = writeln!(
                        accumulate,
                        "            sum_{row}_{column} += weights[{}u + n] * value_{column}_{next};",
                        at + next
                    );
                }
            }
            few_store(store, row, each, split);
        }
        let (start, memory, range, key_rows) = match self.source {
            Source::Strided => ("place.key + key * params.key_row", "", STRIDED_RANGE, ""),
            Source::Paged => (
                "own.x",
                "var<workgroup> key_rows: array<vec2<u32>, 64>;\nvar<workgroup> range: vec2<u32>;",
                PAGED_RANGE,
                PAGED_ROWS,
            ),
        };
        let load = match self.key_width {
            Width::One => format!("f32(load_key({start} + at * params.key_depth))"),
            Width::Four | Width::Halves => format!("vec4<f32>(load4_key({start} + at))"),
        };
        fill(
            include_str!("../../wgsl/attention_few.wgsl"),
            &[
                ("ROWS", &rows.to_string()),
                (
                    "KEY_STEP",
                    match self.key_width {
                        Width::One => "1",
                        Width::Four | Width::Halves => "4",
                    },
                ),
                ("KEY_LOAD", &load),
                ("MEMORY", memory),
                ("RANGE", range),
                ("KEY_ROWS", key_rows),
                ("COLS", &cols.to_string()),
                ("COLS_EACH", &each.to_string()),
                ("QUERY_SIZE", &(rows * depth).to_string()),
                ("WEIGHT_SIZE", &(rows * 64).to_string()),
                ("SETUP", setup),
                ("STAGE_QUERIES", stage),
                ("CLEAR", clear),
                ("SCORES", scores),
                ("FINISH_SCORES", finish),
                (
                    "TREE_MAX",
                    &tree(rows, "now", |a, b| format!("max({a}, {b})")),
                ),
                ("WEIGHTS", weights),
                ("ACCUMULATE", accumulate),
                (
                    "TREE_SUM",
                    &tree(rows, "total", |a, b| format!("{a} + {b}")),
                ),
                ("STORE", store),
            ],
        )
    }
}

/// Combines `NAME_row` of the 64 threads; the result of each row is at `tree[row * 64]`.
fn tree(rows: u32, name: &str, combine: impl Fn(String, String) -> String) -> String {
    let mut code = String::new();
    for row in 0..rows {
        let _ = writeln!(code, "    tree[{}u + local] = {name}_{row};", row * 64);
    }
    for half in [32, 16, 8, 4, 2, 1] {
        let _ = writeln!(code, "    workgroupBarrier();\n    if local < {half}u {{");
        for row in 0..rows {
            let own = format!("tree[{}u + local]", row * 64);
            let other = format!("tree[{}u + local]", row * 64 + half);
            let _ = writeln!(code, "        {own} = {};", combine(own.clone(), other));
        }
        code.push_str("    }\n");
    }
    code.push_str("    workgroupBarrier();\n");
    code
}

/// The end of one row: the quotient to the result, or its parts to scratch.
fn few_store(store: &mut String, row: u32, each: u32, split: bool) {
    let _ = writeln!(
        store,
        "    if row_{row}.present {{\n        let whole_{row} = tree[{}u];",
        row * 64
    );
    if split {
        let _ = writeln!(
            store,
            "        let part_{row} = (((group / pieces) * params.splits + split) * params.queries * params.group \
             + {row}u) * (params.value_depth + 2u);
        if local == 0u && first_col == 0u {{
            store_parts(part_{row}, largest_{row});
            store_parts(part_{row} + 1u, whole_{row});
        }}"
        );
    }
    for column in 0..each {
        let target = match split {
            true => format!("store_parts(part_{row} + 2u + col_{column}, sum_{row}_{column})"),
            false => format!(
                "store_out(row_{row}.out + col_{column} * params.out_col, \
                 select(sum_{row}_{column} / whole_{row}, 0.0, whole_{row} == 0.0))"
            ),
        };
        let _ = writeln!(
            store,
            "        if col_{column} < params.value_depth {{\n            {target};\n        }}"
        );
    }
    store.push_str("    }\n");
}
