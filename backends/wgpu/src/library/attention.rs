//! Attention: which kernels for which shapes.

use cupola_shaders::attention::{
    AttentionForm, AttentionParams, AttentionShader, Mask, Source, ValueCols,
};
use cupola_shaders::binding::Width;
use cupola_shaders::element::Element;

use super::{LibraryCall, LibraryProgram, Place, plans, stride, word};
use crate::choice::DeviceModel;
use crate::error::Error;

mod forms;

pub(super) use forms::{FEW_SHARE, THREADS, TILE_SHARE};

/// A tensor of four axes in a buffer, offset and strides in elements; stride 0 repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tensor4 {
    /// Storage.
    pub element: Element,
    /// Position of its first element.
    pub offset: i64,
    /// Distance along each axis.
    pub strides: [i64; 4],
}

/// `out[b, h, i] = sum over j of softmax_j(s[b, h, i, j]) * value[b, h / group, j]` with
/// `s = cap(scale * query[b, h, i] . key[b, h / group, j]) + mask[b, h, i, j]`. A row that sees no key gives 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// Batches.
    pub batches: u64,
    /// Key heads.
    pub kv_heads: u64,
    /// Query heads for each key head.
    pub group: u64,
    /// Queries.
    pub queries: u64,
    /// Keys.
    pub keys: u64,
    /// Length of a query.
    pub depth: u64,
    /// Length of a value.
    pub value_depth: u64,
    /// Factor of the scores.
    pub scale: f32,
    /// `cap(x) = softcap * tanh(x / softcap)`; 0 for none.
    pub softcap: f32,
    /// Largest position of a key minus that of its query.
    pub last_distance: Option<i64>,
    /// Smallest position of a key minus that of its query.
    pub first_distance: Option<i64>,
    /// `[batch, head, query, depth]`.
    pub query: Tensor4,
    /// `[batch, kv head, key, depth]`.
    pub key: Tensor4,
    /// `[batch, kv head, key, value depth]`.
    pub value: Tensor4,
    /// `[batch, head, query, key]`.
    pub mask: Option<Tensor4>,
    /// `[batch, head, query, value depth]`.
    pub out: Tensor4,
}

/// Workgroups of 64 threads that hide a core's memory latency; fewer rows than that are divided along the keys.
pub(super) const GROUPS_OF_CORE: u64 = 16;

/// Keys worth a workgroup of their own: below, joining costs more than it saves.
pub(super) const SPLIT_KEYS: u64 = 128;

/// Longest queries that stay in the matrices of a subgroup.
const MOST_MATRIX_DEPTH: u64 = 256;

/// Most value columns of a workgroup on matrix units.
const MOST_MATRIX_COLS: u32 = 128;

/// Registers of a thread for queries and sums: as many again are for keys, values, scores and addresses, and 255 are all.
const MATRIX_REGISTERS: u32 = 128;

/// Rows of the form without matrix units.
pub(super) const TILE_ROWS: u32 = 32;

/// A way to compute an attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionPlan {
    /// Form of the kernel that reads keys and values.
    pub form: AttentionForm,
    /// Ranges that the keys are divided into.
    pub splits: u64,
}

/// How the work of a plan is divided.
struct Grid {
    /// Batches and key heads.
    heads: u64,
    /// Rows of the queries that share a key head.
    rows: u64,
    /// Workgroups along the rows, where they are tiled, and along the value columns.
    row_tiles: u64,
    col_tiles: u64,
    /// In all.
    groups: u64,
}

/// Keys of each of some ranges.
pub(super) fn split_keys(keys: u64, splits: u64) -> u64 {
    keys.div_ceil(splits).next_multiple_of(64).max(64)
}

/// Subgroups, matrices along their rows and keys at a time, from most rows to fewest.
fn matrix_divisions() -> impl Iterator<Item = [u32; 3]> {
    [[4, 4], [4, 2], [4, 1], [2, 1], [1, 1]]
        .into_iter()
        .flat_map(|[subgroups, down]| [32, 16].map(|keys| [subgroups, down, keys]))
}

impl Tensor4 {
    /// Whether elements along the last axis are neighbours, in aligned fours if its length is a multiple of four.
    fn has_fours(&self) -> bool {
        let [outer @ .., along] = self.strides;
        along == 1
            && outer
                .iter()
                .chain([&self.offset])
                .all(|distance| distance % 4 == 0)
            && self.element.has_fours()
    }
}

impl Attention {
    /// The dispatches that compute it. Arguments: query, key, value, mask if present, result.
    ///
    /// # Errors
    /// [`Error::Limit`] for lengths beyond 32 bits.
    pub fn plan(&self, device: &DeviceModel) -> Result<LibraryProgram, Error> {
        plans::plan(self, device)
    }

    /// Workgroups of a plan, and how it divides the keys.
    fn grid(&self, plan: &AttentionPlan) -> Result<Grid, Error> {
        let heads = product(&[self.batches, self.kv_heads])?;
        let rows = product(&[self.queries, self.group])?;
        let (tile_rows, tile_cols) = match plan.form {
            AttentionForm::Cooperative(matrices) => (matrices.rows(), matrices.cols),
            AttentionForm::Tile
            | AttentionForm::Few(_)
            | AttentionForm::FewSplit(_)
            | AttentionForm::Join => (TILE_ROWS, self.value_cols().cols()),
        };
        let row_tiles = rows.div_ceil(u64::from(tile_rows));
        let col_tiles = self.value_depth.div_ceil(u64::from(tile_cols));
        let parts = match plan.form {
            AttentionForm::Tile | AttentionForm::Cooperative(_) => row_tiles,
            AttentionForm::Few(_) | AttentionForm::FewSplit(_) | AttentionForm::Join => plan.splits,
        };
        Ok(Grid {
            heads,
            rows,
            row_tiles,
            col_tiles,
            groups: product(&[heads, parts, col_tiles])?,
        })
    }

    fn value_cols(&self) -> ValueCols {
        match self.value_depth <= 64 {
            true => ValueCols::Narrow,
            false => ValueCols::Wide,
        }
    }

    fn dispatches(&self, plan: &AttentionPlan) -> Result<LibraryProgram, Error> {
        let arguments = 4 + usize::from(self.mask.is_some());
        let grid = self.grid(plan)?;
        let call = |form, groups| {
            let shader = self.shader(form, self.value_cols()).shader();
            let split_keys = split_keys(self.keys, plan.splits);
            let params = self.params(grid.row_tiles, grid.col_tiles, plan.splits, split_keys)?;
            Ok::<_, Error>(LibraryCall {
                shader,
                params: params.words(),
                groups,
            })
        };
        let all: Vec<_> = (0..arguments).map(Place::Argument).collect();
        if plan.splits == 1 {
            return Ok(LibraryProgram {
                steps: vec![(call(plan.form, grid.groups)?, all)],
                scratch: vec![],
            });
        }
        let mut parts = all;
        let out = parts.pop().unwrap_or(Place::Argument(arguments - 1));
        parts.push(Place::Scratch(0));
        let join = call(AttentionForm::Join, product(&[grid.heads, grid.rows])?)?;
        let vectors = product(&[grid.heads, plan.splits, grid.rows])?;
        let scratch = product(&[vectors, self.value_depth + 2, 4])?;
        Ok(LibraryProgram {
            steps: vec![
                (call(plan.form, grid.groups)?, parts),
                (join, vec![Place::Scratch(0), out]),
            ],
            scratch: vec![scratch],
        })
    }

    fn shader(&self, form: AttentionForm, cols: ValueCols) -> AttentionShader {
        AttentionShader {
            source: Source::Strided,
            query: self.query.element,
            key: self.key.element,
            value: self.value.element,
            mask: self
                .mask
                .map_or(Mask::Absent, |mask| Mask::Present(mask.element)),
            out: self.out.element,
            key_width: match form {
                AttentionForm::Few(_) | AttentionForm::FewSplit(_) => self.key_width(),
                AttentionForm::Cooperative(_) => Width::Four,
                AttentionForm::Tile | AttentionForm::Join => Width::One,
            },
            form,
            cols,
        }
    }

    fn key_width(&self) -> Width {
        match self.key.has_fours() && self.depth.is_multiple_of(4) {
            true => Width::Four,
            false => Width::One,
        }
    }

    fn params(
        &self,
        row_tiles: u64,
        col_tiles: u64,
        splits: u64,
        split_keys: u64,
    ) -> Result<AttentionParams, Error> {
        let [query, key, value, out] =
            [self.query, self.key, self.value, self.out].map(|tensor| tensor.strides.map(stride));
        let mask = self.mask.map_or([0; 4], |mask| mask.strides.map(stride));
        // Distances beyond any position say the same as the farthest one.
        let distance = |limit: Option<i64>| {
            limit
                .unwrap_or(0)
                .clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as u32
        };
        Ok(AttentionParams {
            batches: word("batches", self.batches)?,
            kv_heads: word("heads", self.kv_heads)?,
            group: word("heads", self.group)?,
            queries: position("queries", self.queries)?,
            keys: position("keys", self.keys)?,
            depth: word("a query", self.depth)?,
            value_depth: word("a value", self.value_depth)?,
            scale: self.scale.to_bits(),
            softcap: self.softcap.to_bits(),
            bounded_above: u32::from(self.last_distance.is_some()),
            last_distance: distance(self.last_distance),
            bounded_below: u32::from(self.first_distance.is_some()),
            first_distance: distance(self.first_distance),
            row_tiles: word("tiles", row_tiles)?,
            col_tiles: word("tiles", col_tiles)?,
            splits: word("key ranges", splits)?,
            split_keys: word("keys", split_keys)?,
            query_offset: stride(self.query.offset),
            query_batch: query[0],
            query_head: query[1],
            query_row: query[2],
            query_depth: query[3],
            key_offset: stride(self.key.offset),
            key_batch: key[0],
            key_head: key[1],
            key_row: key[2],
            key_depth: key[3],
            value_offset: stride(self.value.offset),
            value_batch: value[0],
            value_head: value[1],
            value_row: value[2],
            value_col: value[3],
            mask_offset: stride(self.mask.map_or(0, |mask| mask.offset)),
            mask_batch: mask[0],
            mask_head: mask[1],
            mask_row: mask[2],
            mask_key: mask[3],
            out_offset: stride(self.out.offset),
            out_batch: out[0],
            out_head: out[1],
            out_row: out[2],
            out_col: out[3],
        })
    }
}

/// Positions are compared as signed numbers, with some room for the last tile.
pub(super) fn position(what: &'static str, value: u64) -> Result<u32, Error> {
    let allowed = (1 << 31) - 4096;
    if value > allowed {
        return Err(Error::Limit {
            what,
            needed: value,
            allowed,
        });
    }
    word(what, value)
}

pub(super) fn product(factors: &[u64]) -> Result<u64, Error> {
    let product = factors
        .iter()
        .try_fold(1u64, |product, &factor| product.checked_mul(factor));
    product.ok_or(Error::Limit {
        what: "an attention",
        needed: u64::MAX,
        allowed: u64::from(u32::MAX),
    })
}
