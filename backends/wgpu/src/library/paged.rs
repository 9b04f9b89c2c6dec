//! Attention over pages: which kernels for which shapes.
//!
//! What is known when a launch is prepared are extents: how many rows there are, of how many sequences, and how many keys a
//! sequence can have. Which rows see which keys is read on the device, so plans are chosen for what could be.

use cupola_shaders::attention::{
    AttentionForm, AttentionShader, FEW_DEPTH, Mask, PagedParams, Source, ValueCols,
};
use cupola_shaders::binding::Width;
use cupola_shaders::element::Element;
use cupola_shaders::matmul::SkinnyRows;

use super::attention::{
    AttentionPlan, FEW_SHARE, GROUPS_OF_CORE, SPLIT_KEYS, THREADS, TILE_ROWS, TILE_SHARE, position,
    product, split_keys,
};
use super::plans::{Problem, class_len};
use super::{LibraryCall, LibraryProgram, Place, stride, word};
use crate::choice::{Arithmetic, DeviceModel, Work};
use crate::error::Error;

/// A tensor in a buffer, offset and strides in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strided<const N: usize> {
    /// Storage.
    pub element: Element,
    /// Position of its first element.
    pub offset: i64,
    /// Distance along each axis.
    pub strides: [i64; N],
}

/// `out[r, h] = sum over j of softmax_j(cap(scale * query[r, h] . key[j])) * value[j]` over the keys `j` of row r's sequence
/// that it sees, which lie in pages.
#[derive(Debug, Clone, PartialEq)]
pub struct PagedAttention {
    /// Queries.
    pub rows: u64,
    /// Key heads.
    pub kv_heads: u64,
    /// Query heads for each key head.
    pub group: u64,
    /// Length of a query.
    pub depth: u64,
    /// Length of a value.
    pub value_depth: u64,
    /// Pages.
    pub pages: u64,
    /// Keys of a page.
    pub page_len: u64,
    /// Sequences that the table knows.
    pub sequences: u64,
    /// Pages of each.
    pub blocks: u64,
    /// Factor of the scores.
    pub scale: f32,
    /// `cap(x) = softcap * tanh(x / softcap)`; 0 for none.
    pub softcap: f32,
    /// Most keys that a row sees; 0 for all.
    pub window: u64,
    /// `[row, head, depth]`.
    pub query: Strided<3>,
    /// `[page, kv head, key, depth]`.
    pub key: Strided<4>,
    /// `[page, kv head, key, value depth]`.
    pub value: Strided<4>,
    /// `[sequence, block]`, i64.
    pub table: Strided<2>,
    /// `[row]`, i64.
    pub sequence_of: Strided<1>,
    /// `[row]`, i64.
    pub position_of: Strided<1>,
    /// `[row, head, value depth]`.
    pub out: Strided<3>,
}

/// How the work of a form is divided.
struct Grid {
    /// Groups of queries, and key heads with the parts of their query heads.
    batches: u64,
    kv_heads: u64,
    chunks: u64,
    /// Query heads of a part, and queries of a group.
    group: u64,
    queries: u64,
    row_tiles: u64,
    col_tiles: u64,
    /// Workgroups in all.
    groups: u64,
}

impl PagedAttention {
    /// The dispatches that compute it. Arguments: query, key, value, table, sequences, positions, result.
    ///
    /// # Errors
    /// [`Error::Limit`] for lengths beyond 32 bits.
    pub fn plan(&self, device: &DeviceModel) -> Result<LibraryProgram, Error> {
        super::plans::plan(self, device)
    }

    /// Keys that a sequence can have.
    fn keys(&self) -> u64 {
        self.blocks.saturating_mul(self.page_len)
    }

    /// Keys that a row can see.
    fn seen(&self) -> u64 {
        match self.window {
            0 => self.keys(),
            window => self.keys().min(window),
        }
    }

    fn grid(&self, plan: &AttentionPlan) -> Result<Grid, Error> {
        let col_tiles = self.value_depth.div_ceil(self.value_cols().cols().into());
        match plan.form {
            AttentionForm::Tile | AttentionForm::Cooperative(_) => {
                let rows = product(&[self.rows, self.group])?;
                let row_tiles = rows.div_ceil(TILE_ROWS.into());
                Ok(Grid {
                    batches: 1,
                    kv_heads: self.kv_heads,
                    chunks: 1,
                    group: self.group,
                    queries: self.rows,
                    row_tiles,
                    col_tiles,
                    groups: product(&[self.kv_heads, row_tiles, col_tiles])?,
                })
            }
            AttentionForm::Few(_) | AttentionForm::FewSplit(_) | AttentionForm::Join => {
                let group = self.group.clamp(1, MOST_FEW);
                let chunks = self.group.div_ceil(group);
                let kv_heads = product(&[self.kv_heads, chunks])?;
                Ok(Grid {
                    batches: self.rows,
                    kv_heads,
                    chunks,
                    group,
                    queries: 1,
                    row_tiles: 1,
                    col_tiles,
                    groups: product(&[self.rows, kv_heads, plan.splits, col_tiles])?,
                })
            }
        }
    }

    fn value_cols(&self) -> ValueCols {
        match self.value_depth <= 64 {
            true => ValueCols::Narrow,
            false => ValueCols::Wide,
        }
    }

    fn dispatches(&self, plan: &AttentionPlan) -> Result<LibraryProgram, Error> {
        let grid = self.grid(plan)?;
        let params = self.params(&grid, plan)?;
        let call = |form, groups| LibraryCall {
            shader: self.shader(form).shader(),
            params: params.words(),
            groups,
        };
        let mut main: Vec<Place> = (0..7).map(Place::Argument).collect();
        if plan.splits == 1 {
            return Ok(LibraryProgram {
                steps: vec![(call(plan.form, grid.groups), main)],
                scratch: vec![],
            });
        }
        main[6] = Place::Scratch(0);
        let heads = product(&[grid.batches, grid.kv_heads])?;
        let vectors = product(&[heads, plan.splits, grid.group])?;
        let joined = product(&[heads, grid.group])?;
        Ok(LibraryProgram {
            steps: vec![
                (call(plan.form, grid.groups), main),
                (
                    call(AttentionForm::Join, joined),
                    vec![Place::Scratch(0), Place::Argument(6)],
                ),
            ],
            scratch: vec![product(&[vectors, self.value_depth + 2, 4])?],
        })
    }

    fn shader(&self, form: AttentionForm) -> AttentionShader {
        AttentionShader {
            source: Source::Paged,
            query: self.query.element,
            key: self.key.element,
            value: self.value.element,
            mask: Mask::Absent,
            out: self.out.element,
            key_width: match form {
                AttentionForm::Few(_) | AttentionForm::FewSplit(_) => self.key_width(),
                _ => Width::One,
            },
            form,
            cols: self.value_cols(),
        }
    }

    fn key_width(&self) -> Width {
        let [outer @ .., along] = self.key.strides;
        let distances = outer.iter().chain([&self.key.offset]);
        let whole = along == 1 && self.depth.is_multiple_of(4) && self.key.element.has_fours();
        match whole && distances.into_iter().all(|n| n % 4 == 0) {
            true => Width::Four,
            false => Width::One,
        }
    }

    fn params(&self, grid: &Grid, plan: &AttentionPlan) -> Result<PagedParams, Error> {
        let [query, out] = [self.query, self.out].map(|t| t.strides.map(stride));
        let [key, value] = [self.key, self.value].map(|t| t.strides.map(stride));
        let table = self.table.strides.map(stride);
        // A window past all keys says the same as one of that length.
        let window = self.window.min(u64::from(u32::MAX >> 1));
        Ok(PagedParams {
            batches: word("rows", grid.batches)?,
            kv_heads: word("heads", grid.kv_heads)?,
            chunks: word("heads", grid.chunks)?,
            group: word("heads", grid.group.max(1))?,
            heads_each: word("heads", self.group)?,
            queries: position("queries", grid.queries)?,
            keys: position("keys", self.keys())?,
            depth: word("a query", self.depth)?,
            value_depth: word("a value", self.value_depth)?,
            scale: self.scale.to_bits(),
            softcap: self.softcap.to_bits(),
            window: window as u32,
            row_tiles: word("tiles", grid.row_tiles)?,
            col_tiles: word("tiles", grid.col_tiles)?,
            splits: word("key ranges", plan.splits)?,
            split_keys: word("keys", split_keys(self.keys(), plan.splits))?,
            pages: word("pages", self.pages)?,
            page_len: word("keys of a page", self.page_len)?,
            table_rows: word("sequences", self.sequences)?,
            table_offset: stride(self.table.offset),
            table_row: table[0],
            table_block: table[1],
            sequences_offset: stride(self.sequence_of.offset),
            sequences_step: stride(self.sequence_of.strides[0]),
            positions_offset: stride(self.position_of.offset),
            positions_step: stride(self.position_of.strides[0]),
            query_offset: stride(self.query.offset),
            query_row: query[0],
            query_head: query[1],
            query_depth: query[2],
            key_offset: stride(self.key.offset),
            key_page: key[0],
            key_head: key[1],
            key_row: key[2],
            key_depth: key[3],
            value_offset: stride(self.value.offset),
            value_page: value[0],
            value_head: value[1],
            value_row: value[2],
            value_col: value[3],
            out_offset: stride(self.out.offset),
            out_row: out[0],
            out_head: out[1],
            out_col: out[2],
            launch: 0,
        })
    }

    /// Plans in which every row has workgroups of its own, the keys in as many ranges as keep the device busy first.
    fn few(&self, device: &DeviceModel) -> Result<Vec<AttentionPlan>, Error> {
        let rows = SkinnyRows::holding(self.group.clamp(1, MOST_FEW));
        let Some(rows) = rows.filter(|_| self.depth <= FEW_DEPTH) else {
            return Ok(Vec::new());
        };
        let whole = AttentionPlan {
            form: AttentionForm::Few(rows),
            splits: 1,
        };
        let groups = self.grid(&whole)?.groups.max(1);
        let busy = GROUPS_OF_CORE * u64::from(device.rates.cores);
        let most = (self.keys() / SPLIT_KEYS).max(1);
        let usual = busy.div_ceil(groups).min(most).max(1);
        let others = std::iter::successors(Some(1u64), |splits| Some(2 * splits))
            .take_while(|&splits| splits <= most && groups.saturating_mul(splits) <= 4 * busy);
        let plan = |wanted| {
            let splits = self.keys().div_ceil(split_keys(self.keys(), wanted)).max(1);
            let form = match splits {
                1 => AttentionForm::Few(rows),
                _ => AttentionForm::FewSplit(rows),
            };
            AttentionPlan { form, splits }
        };
        let mut plans: Vec<AttentionPlan> = Vec::new();
        for plan in std::iter::once(usual).chain(others).map(plan) {
            if !plans.contains(&plan) {
                plans.push(plan);
            }
        }
        Ok(plans)
    }
}

/// Most query heads that one workgroup computes for a row.
const MOST_FEW: u64 = 8;

impl Problem for PagedAttention {
    type Plan = AttentionPlan;

    fn class(&self) -> String {
        let name = |element: Element| format!("{element:?}").to_lowercase();
        format!(
            "attention over pages of {}, {} heads of {}, {} rows of {} sequences, {} keys, depth {} and {}, {} {} {} to {}{}",
            self.page_len,
            self.kv_heads,
            self.group,
            class_len(self.rows),
            class_len(self.sequences),
            class_len(self.seen()),
            self.depth,
            self.value_depth,
            name(self.query.element),
            name(self.key.element),
            name(self.value.element),
            name(self.out.element),
            match self.key_width() {
                Width::One => "",
                Width::Four | Width::Halves => " by 4",
            },
        )
    }

    fn plans(&self, device: &DeviceModel) -> Result<Vec<AttentionPlan>, Error> {
        let mut plans = self.few(device)?;
        plans.push(AttentionPlan {
            form: AttentionForm::Tile,
            splits: 1,
        });
        Ok(plans)
    }

    fn name(&self, plan: &AttentionPlan) -> String {
        match plan.form {
            AttentionForm::Tile | AttentionForm::Cooperative(_) => "tile".to_owned(),
            AttentionForm::Few(_) | AttentionForm::FewSplit(_) | AttentionForm::Join => {
                format!("rows apart, keys in {} ranges", plan.splits)
            }
        }
    }

    /// As if all sequences were full: what grows beyond a prediction made for less costs more than what stays below.
    fn seconds(&self, plan: &AttentionPlan, device: &DeviceModel) -> f64 {
        let Ok(grid) = self.grid(plan) else {
            return f64::INFINITY;
        };
        let size = |element: Element| f64::from(element.bits()) / 8.0;
        let [rows, heads, seen] =
            [self.rows, self.kv_heads * self.group, self.seen()].map(|n| n as f64);
        let [depth, value_depth] = [self.depth, self.value_depth].map(|n| n as f64);
        let key = depth * size(self.key.element) + value_depth * size(self.value.element);
        let read = self.rows.min(self.sequences) as f64 * self.kv_heads as f64 * seen * key;
        let ends = rows
            * heads
            * (depth * size(self.query.element) + value_depth * size(self.out.element));
        // Rows of a workgroup, as many as the kernel has, and how often any reads all the keys of a sequence.
        let (share, lines, passes) = match plan.form {
            AttentionForm::Tile | AttentionForm::Cooperative(_) => {
                let runs = grid.row_tiles + self.rows.min(self.sequences).saturating_sub(1);
                (TILE_SHARE, f64::from(TILE_ROWS), runs as f64)
            }
            AttentionForm::Few(few) | AttentionForm::FewSplit(few) => {
                let lines = f64::from(few.most());
                (FEW_SHARE, lines, rows * grid.chunks as f64)
            }
            AttentionForm::Join => (FEW_SHARE, 1.0, rows),
        };
        let passes = passes * self.kv_heads as f64;
        let scratch = match plan.splits {
            1 => 0.0,
            splits => rows * heads * splits as f64 * (value_depth + 2.0) * 4.0,
        };
        let main = device.seconds(&Work {
            bytes: read + ends + scratch,
            cached: (passes * seen * key - read).max(0.0),
            operations: 2.0 * passes * lines * seen * (depth + value_depth),
            arithmetic: Arithmetic::F32,
            share,
            groups: grid.groups as f64,
            threads: THREADS,
        });
        let join = Work {
            bytes: scratch + ends,
            cached: 0.0,
            operations: scratch / 2.0,
            arithmetic: Arithmetic::F32,
            share: FEW_SHARE,
            groups: rows * heads,
            threads: THREADS,
        };
        match plan.splits {
            1 => main,
            _ => main + device.seconds(&join),
        }
    }

    fn planned(&self, plan: &AttentionPlan) -> Result<LibraryProgram, Error> {
        self.dispatches(plan)
    }
}
