//! Attention of many rows, in tiles of 32.

use std::fmt::Write as _;

use super::{AttentionShader, Source};
use crate::template::fill;

/// What pages need of workgroup memory, and how rows of one sequence that follow each other are found: a run of queries,
/// the keys that any of them sees, and their sequence.
const PAGED_MEMORY: &str = "var<workgroup> key_rows: array<vec2<u32>, 32>;
var<workgroup> queries: array<vec4<u32>, 32>;
var<workgroup> found: vec4<u32>;

fn run_from(first: u32, start: u32, end: u32) -> vec4<u32> {
    let sequence = queries[start - first].x;
    var seen = vec2<u32>(NO_ROW, 0u);
    var query = start;
    while query < end && queries[query - first].x == sequence {
        let own = queries[query - first].yz;
        if own.x < own.y {
            seen = vec2<u32>(min(seen.x, own.x), max(seen.y, own.y));
        }
        query += 1u;
    }
    return vec4<u32>(query, seen, sequence);
}

fn is_between(row: Row, start: u32, end: u32) -> bool {
    return row.query >= start && row.query < end;
}
";

/// Queries of a tile by sequence, the keys of one after the other.
const PAGED_RUNS: &str = "    let first_query = first_row / params.group;
    let end_query = min(params.queries, (first_row + 31u) / params.group + 1u);
    if first_query + local < end_query {
        let query = first_query + local;
        queries[local] = vec4<u32>(sequence_of(query), keys_of(query), 0u);
    }
    workgroupBarrier();
    var start = first_query;
    while start < end_query {
    if local == 0u {
        found = run_from(first_query, start, end_query);
    }
    let run = workgroupUniformLoad(&found);
    let seen = run.yz;";

const PAGED_ROWS: &str = "        if local < 32u {
            var own = vec2<u32>(NO_ROW, NO_ROW);
            if first_key + local < seen.y {
                own = key_row(place, run.w, first_key + local);
            }
            key_rows[local] = own;
        }
        workgroupBarrier();";

impl AttentionShader {
    pub(super) fn tile(&self) -> String {
        let cols = self.cols.cols();
        // 8 threads side by side with 4 columns each make 32 columns a vector.
        let vectors = cols / 32;
        let mut code = [const { String::new() }; 8];
        let [
            setup,
            stage,
            clear,
            scores,
            finish,
            rescale,
            accumulate,
            store,
        ] = &mut code;
        for n in 0..8 {
            let line = format!("local / 16u + {}u", n * 4);
            let key = match self.source {
                Source::Strided => format!("place, first_key + {line}"),
                Source::Paged => format!("key_rows[{line}].x"),
            };
            let _ = writeln!(
                stage,
                "            query_tile[own_depth * 36u + {line}] = query_value(own_{n}, at);
            key_tile[own_depth * 36u + {line}] = key_value({key}, at);"
            );
            let _ = writeln!(
                setup,
                "    let own_{n} = row_of(place, first_row + {line});"
            );
        }
        for vector in 0..vectors {
            let at = |lane: u32| format!("value_tile[v + {}u]", vector * 32 + lane);
            let _ = writeln!(
                accumulate,
                "                let value_{vector} = vec4<f32>({}, {}, {}, {});",
                at(0),
                at(1),
                at(2),
                at(3)
            );
        }
        for row in 0..4 {
            let _ = writeln!(
                setup,
                "    let row_{row} = row_of(place, first_row + thread_row + {row}u);"
            );
            let _ = writeln!(clear, "        var score_{row} = vec4<f32>();");
            let _ = writeln!(
                scores,
                "                score_{row} += query_tile[q + {row}u] * keys;"
            );
            let _ = writeln!(
                rescale,
                "        let factor_{row} = row_factor[thread_row + {row}u];"
            );
            let _ = writeln!(
                accumulate,
                "                let weight_{row} = weight_tile[w + {row}u];"
            );
            let _ = writeln!(
                store,
                "    let at_{row} = (thread_row + {row}u) * 2u;\n    \
                 let total_{row} = half_row[at_{row}] + half_row[at_{row} + 1u];"
            );
            for (lane, component) in (0u32..4).zip(["x", "y", "z", "w"]) {
                let score = format!(
                    "finished_score(score_{row}.{component}, row_{row}, first_key + thread_slot + {lane}u)"
                );
                let score = match self.source {
                    Source::Strided => score,
                    Source::Paged => {
                        format!("select(HIDDEN, {score}, is_between(row_{row}, start, run.x))")
                    }
                };
                let _ = writeln!(
                    finish,
                    "        weight_tile[(thread_slot + {lane}u) * 36u + thread_row + {row}u] = {score};"
                );
            }
            for vector in 0..vectors {
                let _ = writeln!(setup, "    var sum_{row}_{vector} = vec4<f32>();");
                let _ = writeln!(rescale, "        sum_{row}_{vector} *= factor_{row};");
                let product = format!("weight_{row} * value_{vector}");
                let product = match self.source {
                    Source::Strided => product,
                    // What other rows see is nothing to this one, even if it is no number.
                    Source::Paged => {
                        format!("select({product}, vec4<f32>(), weight_{row} == 0.0)")
                    }
                };
                let _ = writeln!(
                    accumulate,
                    "                sum_{row}_{vector} += {product};"
                );
                for (lane, component) in (0..4).zip(["x", "y", "z", "w"]) {
                    let _ = writeln!(
                        store,
                        "    finish(row_{row}, first_col + thread_slot + {}u, sum_{row}_{vector}.{component}, total_{row});",
                        vector * 32 + lane
                    );
                }
            }
        }
        let value_row = format!("part + item / {cols}u");
        let value_col = format!("first_col + item % {cols}u");
        let (memory, runs, runs_end, key_rows, value) = match self.source {
            Source::Strided => (
                "",
                "    let seen = keys_of_rows(first_row, 32u);",
                "",
                "",
                format!("value_value(place, first_key + {value_row}, {value_col})"),
            ),
            Source::Paged => (
                PAGED_MEMORY,
                PAGED_RUNS,
                "    start = run.x;\n    }",
                PAGED_ROWS,
                format!("value_value(key_rows[{value_row}].y, {value_col})"),
            ),
        };
        fill(
            include_str!("../../wgsl/attention_tile.wgsl"),
            &[
                ("MEMORY", memory),
                ("RUNS", runs),
                ("RUNS_END", runs_end),
                ("KEY_ROWS", key_rows),
                ("VALUE", &value),
                ("COLS", &cols.to_string()),
                ("VECTORS", &vectors.to_string()),
                ("VALUE_STEP", &(1024 / cols).to_string()),
                ("SETUP", setup),
                ("STAGE", stage),
                ("CLEAR", clear),
                ("SCORES", scores),
                ("FINISH_SCORES", finish),
                ("RESCALE", rescale),
                ("ACCUMULATE", accumulate),
                ("STORE", store),
            ],
        )
    }
}
