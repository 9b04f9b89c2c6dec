//! Attention: which kernels for which shapes.

use cupola_shaders::attention::{
    AttentionForm, AttentionMatrices, AttentionParams, AttentionShader, FEW_DEPTH, Mask, ValueCols,
};
use cupola_shaders::binding::Width;
use cupola_shaders::element::Element;
use cupola_shaders::matmul::SkinnyRows;

use super::{LibraryCall, LibraryProgram, Place, stride, word};
use crate::adapter::CoopScalar;
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

/// Longest queries that stay in the matrices of a subgroup.
const MOST_MATRIX_DEPTH: u64 = 256;

/// Most value columns of a workgroup on matrix units.
const MOST_MATRIX_COLS: u32 = 128;

/// Registers of a thread for queries and sums: as many again are for keys, values, scores and addresses, and 255 are all.
const MATRIX_REGISTERS: u32 = 128;

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
        let arguments = 4 + usize::from(self.mask.is_some());
        let heads = product(&[self.batches, self.kv_heads])?;
        let rows = product(&[self.queries, self.group])?;
        let few = SkinnyRows::holding(rows).filter(|_| self.depth <= FEW_DEPTH);
        let cols = if self.value_depth <= 64 {
            ValueCols::Narrow
        } else {
            ValueCols::Wide
        };
        let matrices = match few {
            None => self.matrices(device, heads),
            Some(_) => None,
        };
        let group_cols = matrices.map_or(cols.cols(), |matrices| matrices.cols);
        let col_tiles = self.value_depth.div_ceil(u64::from(group_cols));
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
            None => matrices.map_or(AttentionForm::Tile, AttentionForm::Cooperative),
            Some(rows) if splits == 1 => AttentionForm::Few(rows),
            Some(rows) => AttentionForm::FewSplit(rows),
        };
        let row_tiles = rows.div_ceil(u64::from(matrices.map_or(32, AttentionMatrices::rows)));
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
            AttentionForm::Tile | AttentionForm::Cooperative(_) => {
                product(&[heads, row_tiles, col_tiles])?
            }
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

    /// How matrix units compute it, where the device has faster ones than its other arithmetic and all operands suit them:
    /// the largest division that leaves no core without work, or else the smallest.
    fn matrices(&self, device: &DeviceModel, heads: u64) -> Option<AttentionMatrices> {
        let operands = [self.query, self.key, self.value];
        let suits = operands.iter().all(|t| t.element == Element::F16)
            && operands.iter().chain([&self.out]).all(Tensor4::has_fours)
            && self.depth.is_multiple_of(4)
            && self.value_depth.is_multiple_of(4)
            && (1..=MOST_MATRIX_DEPTH).contains(&self.depth)
            && self.value_depth > 0
            && device.features.f16
            && device.rates.matrix > device.rates.f32;
        if !suits {
            return None;
        }
        let lanes = device.subgroup_size()?;
        let shapes = device.features.cooperative.iter().filter(|shape| {
            shape.in_wgsl() && shape.operand == CoopScalar::F16 && shape.result == CoopScalar::F32
        });
        let size = shapes.map(|shape| shape.rows).max()?;
        let depth = (self.depth as u32).next_multiple_of(size);
        let most_cols = AttentionMatrices::most_cols(size, lanes, depth, MATRIX_REGISTERS);
        let most_cols = most_cols.filter(|&cols| cols > 0)?.min(MOST_MATRIX_COLS);
        let col_tiles = self.value_depth.div_ceil(u64::from(most_cols));
        let cols = (self.value_depth.div_ceil(col_tiles) as u32).next_multiple_of(size);
        let rows = self.queries.saturating_mul(self.group);
        let groups = |matrices: &AttentionMatrices| {
            let tiles = rows.div_ceil(u64::from(matrices.rows()));
            tiles.saturating_mul(heads).saturating_mul(col_tiles)
        };
        let mut smallest = None;
        for [subgroups, down, keys] in matrix_divisions() {
            let matrices = AttentionMatrices {
                size,
                lanes,
                subgroups,
                down,
                keys,
                depth,
                cols,
            };
            let fits = matrices.is_even()
                && matrices.registers() <= MATRIX_REGISTERS
                && matrices.threads() <= device.limits.workgroup_threads
                && matrices.memory_size() <= device.limits.workgroup_memory_size;
            if fits && groups(&matrices) >= device.busy_groups() {
                return Some(matrices);
            }
            if fits {
                smallest = Some(matrices);
            }
        }
        smallest
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
