//! Scaled dot-product attention with an online softmax: the scores are never stored.

mod cooperative;

use std::fmt::Write as _;

use crate::binding::{Binding, Width};
use crate::element::Element;
use crate::matmul::SkinnyRows;
use crate::shader::{Extension, Shader, params};
use crate::template::fill;

pub use cooperative::AttentionMatrices;

params! {
    /// Parameters of every attention kernel. Lengths and strides in elements; strides are two's complement, 0 where an
    /// operand is broadcast. Floats are given by their bits.
    AttentionParams {
        /// Batches.
        batches,
        /// Key heads.
        kv_heads,
        /// Query heads for each key head.
        group,
        /// Queries.
        queries,
        /// Keys.
        keys,
        /// Length of a query and of a key.
        depth,
        /// Length of a value.
        value_depth,
        /// Factor of the scores (f32 bits).
        scale,
        /// Soft limit of the scores (f32 bits); 0 for none.
        softcap,
        /// 1 if a key may be at most `last_distance` after its query.
        bounded_above,
        /// Largest key position minus query position (two's complement).
        last_distance,
        /// 1 if a key must be at least `first_distance` after its query.
        bounded_below,
        /// Smallest key position minus query position (two's complement).
        first_distance,
        /// Workgroups along the rows of one key head; tile form only.
        row_tiles,
        /// Workgroups along the value columns.
        col_tiles,
        /// Key ranges; few-rows form only.
        splits,
        /// Keys of one range, a multiple of 64.
        split_keys,
        /// First query element.
        query_offset,
        /// Query stride from batch to batch.
        query_batch,
        /// Query stride from head to head.
        query_head,
        /// Query stride from row to row.
        query_row,
        /// Query stride from element to element.
        query_depth,
        /// First key element.
        key_offset,
        /// Key stride from batch to batch.
        key_batch,
        /// Key stride from head to head.
        key_head,
        /// Key stride from row to row.
        key_row,
        /// Key stride from element to element.
        key_depth,
        /// First value element.
        value_offset,
        /// Value stride from batch to batch.
        value_batch,
        /// Value stride from head to head.
        value_head,
        /// Value stride from row to row.
        value_row,
        /// Value stride from column to column.
        value_col,
        /// First mask element.
        mask_offset,
        /// Mask stride from batch to batch.
        mask_batch,
        /// Mask stride from head to head.
        mask_head,
        /// Mask stride from row to row.
        mask_row,
        /// Mask stride from key to key.
        mask_key,
        /// First result element.
        out_offset,
        /// Result stride from batch to batch.
        out_batch,
        /// Result stride from head to head.
        out_head,
        /// Result stride from row to row.
        out_row,
        /// Result stride from column to column.
        out_col,
    }
}

/// The mask operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mask {
    /// None.
    Absent,
    /// Numbers added to the scores; bool storage means true = attend.
    Present(Element),
}

/// The way the work is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AttentionForm {
    /// 32 rows at a time.
    Tile,
    /// Matrix units. Queries, keys, values and results are neighbours along their last axis, their other strides, offsets
    /// and lengths multiples of four.
    Cooperative(AttentionMatrices),
    /// A few rows, with the keys in one range.
    Few(SkinnyRows),
    /// A few rows, the keys in several ranges; results go to scratch for [`AttentionForm::Join`].
    FewSplit(SkinnyRows),
    /// Joins the ranges of [`AttentionForm::FewSplit`].
    Join,
}

/// Value columns of a workgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ValueCols {
    /// 64 columns.
    Narrow,
    /// 128 columns.
    Wide,
}

impl ValueCols {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Narrow, Self::Wide];

    /// Number of columns.
    pub fn cols(self) -> u32 {
        match self {
            Self::Narrow => 64,
            Self::Wide => 128,
        }
    }
}

/// Most query and key elements that the few-rows form keeps for each row: 8 rows x 256 x 4 bytes are half of 16 KiB.
pub const FEW_DEPTH: u64 = 256;

/// What makes one attention kernel's text differ from another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AttentionShader {
    /// Storage of the queries.
    pub query: Element,
    /// Storage of the keys.
    pub key: Element,
    /// Storage of the values.
    pub value: Element,
    /// The mask.
    pub mask: Mask,
    /// Storage of the result.
    pub out: Element,
    /// Whether the few-rows form loads keys in fours: their elements are neighbours, and depth, offset and all other
    /// strides multiples of four. [`AttentionForm::Cooperative`] always does.
    pub key_width: Width,
    /// How the work is divided.
    pub form: AttentionForm,
    /// Value columns of a workgroup; [`AttentionForm::Cooperative`] has its own.
    pub cols: ValueCols,
}

impl AttentionShader {
    /// The kernel. Buffers: query, key, value, mask if present, result; for [`AttentionForm::FewSplit`] scratch takes the
    /// result's place, for [`AttentionForm::Join`] the buffers are scratch and result.
    pub fn shader(&self) -> Shader {
        let mask = match (self.mask, self.form) {
            (_, AttentionForm::Join) | (Mask::Absent, _) => "",
            (Mask::Present(Element::Bool), _) => {
                "    if !load_mask(row.mask + key * params.mask_key) {\n        return HIDDEN;\n    }"
            }
            (Mask::Present(_), _) => {
                "    score += f32(load_mask(row.mask + key * params.mask_key));"
            }
        };
        let common = fill(include_str!("../wgsl/attention.wgsl"), &[("MASK", mask)]);
        let (mut bindings, body) = match self.form {
            AttentionForm::Join => {
                let accessors = common.find("fn query_value").unwrap_or(common.len());
                let body = format!(
                    "{}{}",
                    &common[..accessors],
                    include_str!("../wgsl/attention_join.wgsl")
                );
                (vec![Binding::read("parts", Element::F32)], body)
            }
            form => {
                let others = match form {
                    AttentionForm::Cooperative(_) => Width::Four,
                    _ => Width::One,
                };
                let mut bindings = vec![
                    Binding::read_as("query", self.query, others),
                    Binding::read_as("key", self.key, self.key_width),
                    Binding::read_as("value", self.value, others),
                ];
                if let Mask::Present(element) = self.mask {
                    bindings.push(Binding::read("mask", element));
                }
                let main = match form {
                    AttentionForm::Few(rows) => self.few(rows.most(), false),
                    AttentionForm::FewSplit(rows) => self.few(rows.most(), true),
                    AttentionForm::Cooperative(matrices) => matrices.kernel(),
                    AttentionForm::Tile | AttentionForm::Join => self.tile(),
                };
                (bindings, common + &main)
            }
        };
        bindings.push(match self.form {
            AttentionForm::FewSplit(_) => Binding::write("parts", Element::F32),
            AttentionForm::Cooperative(_) => Binding {
                width: Width::Four,
                ..Binding::write("out", self.out)
            },
            AttentionForm::Tile | AttentionForm::Few(_) | AttentionForm::Join => {
                Binding::write("out", self.out)
            }
        });
        let form = match self.form {
            AttentionForm::Tile => "tile".to_owned(),
            AttentionForm::Cooperative(matrices) => {
                format!("cooperative{}x{}", matrices.rows(), matrices.keys)
            }
            AttentionForm::Few(rows) => format!("few{}", rows.most()),
            AttentionForm::FewSplit(rows) => format!("split{}", rows.most()),
            AttentionForm::Join => "join".to_owned(),
        };
        Shader {
            label: format!("attention_{form}"),
            bindings,
            params: AttentionParams::members(),
            extensions: match self.form {
                AttentionForm::Cooperative(_) => vec![
                    Extension::F16,
                    Extension::Subgroups,
                    Extension::CooperativeMatrix,
                ],
                _ => Vec::new(),
            },
            helpers: Vec::new(),
            body,
        }
    }

    fn tile(&self) -> String {
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
            let _ = writeln!(
                stage,
                "            query_tile[own_depth * 36u + {line}] = query_value(own_{n}, at);
            key_tile[own_depth * 36u + {line}] = key_value(place, first_key + {line}, at);"
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
                let _ = writeln!(
                    finish,
                    "        weight_tile[(thread_slot + {lane}u) * 36u + thread_row + {row}u] = \
                     finished_score(score_{row}.{component}, row_{row}, first_key + thread_slot + {lane}u);"
                );
            }
            for vector in 0..vectors {
                let _ = writeln!(setup, "    var sum_{row}_{vector} = vec4<f32>();");
                let _ = writeln!(rescale, "        sum_{row}_{vector} *= factor_{row};");
                let _ = writeln!(
                    accumulate,
                    "                sum_{row}_{vector} += weight_{row} * value_{vector};"
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
        fill(
            include_str!("../wgsl/attention_tile.wgsl"),
            &[
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

    fn few(&self, rows: u32, split: bool) -> String {
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
                    "            let value_{column}_{next} = value_value(place, first_key + n + {next}u, col_{column});"
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
        fill(
            include_str!("../wgsl/attention_few.wgsl"),
            &[
                ("ROWS", &rows.to_string()),
                (
                    "KEY_STEP",
                    match self.key_width {
                        Width::One => "1",
                        Width::Four | Width::Halves => "4",
                    },
                ),
                (
                    "KEY_LOAD",
                    match self.key_width {
                        Width::One => {
                            "f32(load_key(place.key + key * params.key_row + at * params.key_depth))"
                        }
                        Width::Four | Width::Halves => {
                            "vec4<f32>(load4_key(place.key + key * params.key_row + at))"
                        }
                    },
                ),
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
