//! Scaled dot-product attention with an online softmax: the scores are never stored.

mod cooperative;
mod few;
mod paged;
mod tile;

use crate::binding::{Binding, Stores, Width};
use crate::element::Element;
use crate::matmul::SkinnyRows;
use crate::shader::{Extension, FAULTS, Shader, params};
use crate::template::fill;

pub use cooperative::AttentionMatrices;
pub use paged::PagedParams;

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

/// Where keys and values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// In operands of four axes.
    Strided,
    /// In pages that a table names for each sequence. Without a mask, and not with [`AttentionForm::Cooperative`].
    Paged,
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
    /// Where keys and values are.
    pub source: Source,
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
    /// The kernel. Buffers: query, key, value, mask if present or table, sequences and positions (i64) of pages, result; for
    /// [`AttentionForm::FewSplit`] scratch takes the result's place, for [`AttentionForm::Join`] the buffers are scratch
    /// and result. Over pages the word for faults comes last, but for the join.
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
        let common = match (self.source, self.form) {
            (Source::Strided, _) => fill(include_str!("../wgsl/attention.wgsl"), &[("MASK", mask)]),
            (Source::Paged, AttentionForm::Join) => {
                include_str!("../wgsl/attention_pages_join.wgsl").to_owned()
            }
            (Source::Paged, _) => include_str!("../wgsl/attention_pages.wgsl").to_owned(),
        };
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
                if self.source == Source::Paged {
                    let lists = ["table", "sequences", "positions"];
                    bindings.extend(lists.map(|name| Binding::read(name, Element::I64)));
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
        if self.source == Source::Paged && self.form != AttentionForm::Join {
            bindings.push(Binding::write_as(FAULTS, Element::U32, Stores::Sums));
        }
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
            label: match self.source {
                Source::Strided => format!("attention_{form}"),
                Source::Paged => format!("attention_pages_{form}"),
            },
            bindings,
            params: match self.source {
                Source::Strided => AttentionParams::members(),
                Source::Paged => PagedParams::members(),
            },
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
}
