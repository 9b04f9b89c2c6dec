//! Attention: which kernels for which shapes.

use cupola_shaders::attention::{
    AttentionForm, AttentionParams, AttentionShader, FEW_DEPTH, Mask, ValueCols,
};
use cupola_shaders::element::{Element, Width};
use cupola_shaders::matmul::SkinnyRows;

use super::{LibraryCall, LibraryProgram, Place, stride, word};
use crate::choice::DeviceModel;
use crate::error::Error;

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
const GROUPS_OF_CORE: u64 = 16;

/// Keys worth a workgroup of their own: below, joining costs more than it saves.
const SPLIT_KEYS: u64 = 128;

impl Attention {
    /// The dispatches that compute it. Arguments: query, key, value, mask if present, result.
    ///
    /// # Errors
    /// [`Error::Limit`] for lengths beyond 32 bits.
    pub fn plan(&self, device: &DeviceModel) -> Result<LibraryProgram, Error> {
        let arguments = 4 + usize::from(self.mask.is_some());
        let heads = product(&[self.batches, self.kv_heads])?;
        let rows = product(&[self.queries, self.group])?;
        let few = SkinnyRows::holding(rows).filter(|_| self.depth <= FEW_DEPTH);
        let cols = if self.value_depth <= 64 {
            ValueCols::Narrow
        } else {
            ValueCols::Wide
        };
        let col_tiles = self.value_depth.div_ceil(u64::from(cols.cols()));
        let splits = match few {
            None => 1,
            Some(_) => {
                let groups = heads.max(1) * col_tiles.max(1);
                (GROUPS_OF_CORE * u64::from(device.rates.cores))
                    .div_ceil(groups)
                    .min(self.keys / SPLIT_KEYS)
                    .max(1)
            }
        };
        let split_keys = self.keys.div_ceil(splits).next_multiple_of(64).max(64);
        let splits = self.keys.div_ceil(split_keys).max(1);
        let form = match few {
            None => AttentionForm::Tile,
            Some(rows) if splits == 1 => AttentionForm::Few(rows),
            Some(rows) => AttentionForm::FewSplit(rows),
        };
        let row_tiles = rows.div_ceil(32);
        let call = |form, groups| {
            let shader = self.shader(form, cols).shader();
            let params = self.params(row_tiles, col_tiles, splits, split_keys)?;
            Ok::<_, Error>(LibraryCall {
                shader,
                params: params.words(),
                groups,
            })
        };
        let all: Vec<_> = (0..arguments).map(Place::Argument).collect();
        let groups = match form {
            AttentionForm::Tile => product(&[heads, row_tiles, col_tiles])?,
            AttentionForm::Few(_) | AttentionForm::FewSplit(_) | AttentionForm::Join => {
                product(&[heads, splits, col_tiles])?
            }
        };
        if splits == 1 {
            return Ok(LibraryProgram {
                steps: vec![(call(form, groups)?, all)],
                scratch: vec![],
            });
        }
        let mut parts = all;
        let out = parts.pop().unwrap_or(Place::Argument(arguments - 1));
        parts.push(Place::Scratch(0));
        let join = call(AttentionForm::Join, product(&[heads, rows])?)?;
        let scratch = product(&[heads, splits, rows, self.value_depth + 2, 4])?;
        Ok(LibraryProgram {
            steps: vec![
                (call(form, groups)?, parts),
                (join, vec![Place::Scratch(0), out]),
            ],
            scratch: vec![scratch],
        })
    }

    fn shader(&self, form: AttentionForm, cols: ValueCols) -> AttentionShader {
        AttentionShader {
            query: self.query.element,
            key: self.key.element,
            value: self.value.element,
            mask: self
                .mask
                .map_or(Mask::Absent, |mask| Mask::Present(mask.element)),
            out: self.out.element,
            key_width: match form {
                AttentionForm::Few(_) | AttentionForm::FewSplit(_) => self.key_width(),
                AttentionForm::Tile | AttentionForm::Join => Width::One,
            },
            form,
            cols,
        }
    }

    fn key_width(&self) -> Width {
        let [outer @ .., along] = self.key.strides;
        let aligned = |distance: &i64| distance % 4 == 0;
        let fours = along == 1
            && self.depth.is_multiple_of(4)
            && aligned(&self.key.offset)
            && outer.iter().all(aligned)
            && self.key.element.has_fours();
        if fours { Width::Four } else { Width::One }
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
fn position(what: &'static str, value: u64) -> Result<u32, Error> {
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

fn product(factors: &[u64]) -> Result<u64, Error> {
    let product = factors
        .iter()
        .try_fold(1u64, |product, &factor| product.checked_mul(factor));
    product.ok_or(Error::Limit {
        what: "an attention",
        needed: u64::MAX,
        allowed: u64::from(u32::MAX),
    })
}
