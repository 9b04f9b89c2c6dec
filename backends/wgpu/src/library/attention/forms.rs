//! The plans of an attention that a device has: their names, and what each is predicted to cost.

use cupola_shaders::Element;
use cupola_shaders::attention::{AttentionForm, AttentionMatrices, FEW_DEPTH};
use cupola_shaders::matmul::SkinnyRows;

use super::{
    Attention, AttentionPlan, GROUPS_OF_CORE, MATRIX_REGISTERS, MOST_MATRIX_COLS,
    MOST_MATRIX_DEPTH, SPLIT_KEYS, Tensor4, matrix_divisions, product, split_keys,
};
use crate::adapter::CoopScalar;
use crate::choice::{Arithmetic, DeviceModel, Work};
use crate::error::Error;
use crate::library::LibraryProgram;
use crate::library::plans::{Problem, class_len};

/// Shares of the peak that inner loops reach: exponentials, and scores that pass through workgroup memory, take the rest.
pub(crate) const FEW_SHARE: f64 = 0.3;
pub(crate) const TILE_SHARE: f64 = 0.2;
const MATRIX_SHARE: f64 = 0.3;

/// Threads of a workgroup without matrix units.
pub(crate) const THREADS: f64 = 64.0;

impl Problem for Attention {
    type Plan = AttentionPlan;

    fn class(&self) -> String {
        let name = |tensor: &Tensor4| format!("{:?}", tensor.element).to_lowercase();
        let heads = class_len(self.batches.saturating_mul(self.kv_heads));
        let [queries, keys] = [self.queries, self.keys].map(class_len);
        let is_bounded = self.last_distance.is_some() || self.first_distance.is_some();
        let fours = [self.query, self.key, self.value, self.out];
        format!(
            "attention {heads} heads of {}, {queries} queries, {keys} keys, depth {} and {}, {} {} {} to {}{}{}{}",
            self.group,
            self.depth,
            self.value_depth,
            name(&self.query),
            name(&self.key),
            name(&self.value),
            name(&self.out),
            if fours.iter().all(Tensor4::has_fours) {
                " by 4"
            } else {
                ""
            },
            if is_bounded { ", bounded" } else { "" },
            self.mask
                .map_or(String::new(), |mask| format!(", mask {}", name(&mask))),
        )
    }

    fn plans(&self, device: &DeviceModel) -> Result<Vec<AttentionPlan>, Error> {
        let heads = product(&[self.batches, self.kv_heads])?;
        let rows = product(&[self.queries, self.group])?;
        let mut plans = match SkinnyRows::holding(rows).filter(|_| self.depth <= FEW_DEPTH) {
            Some(rows) => self.few(rows, heads, device),
            None => {
                let whole = |form| AttentionPlan { form, splits: 1 };
                let matrices = self.matrices(device, heads).into_iter();
                let matrices = matrices.map(|m| whole(AttentionForm::Cooperative(m)));
                matrices.chain([whole(AttentionForm::Tile)]).collect()
            }
        };
        let mut seen: Vec<AttentionPlan> = Vec::new();
        plans.retain(|plan| {
            let is_new = !seen.contains(plan);
            seen.push(*plan);
            is_new
        });
        Ok(plans)
    }

    fn name(&self, plan: &AttentionPlan) -> String {
        match plan.form {
            AttentionForm::Tile => "tile".to_owned(),
            AttentionForm::Few(_) | AttentionForm::FewSplit(_) | AttentionForm::Join => {
                format!("few rows, keys in {} ranges", plan.splits)
            }
            AttentionForm::Cooperative(m) => format!(
                "matrices of {} subgroups {} each {} down, {} keys, {} columns",
                m.size, m.subgroups, m.down, m.keys, m.cols
            ),
        }
    }

    fn seconds(&self, plan: &AttentionPlan, device: &DeviceModel) -> f64 {
        self.grid(plan).map_or(f64::INFINITY, |grid| {
            let size = |tensor: Tensor4| f64::from(tensor.element.bits()) / 8.0;
            let [heads, rows, keys] = [grid.heads, grid.rows, self.keys].map(|n| n as f64);
            let [depth, value_depth] = [self.depth, self.value_depth].map(|n| n as f64);
            let pairs = heads * keys * (depth * size(self.key) + value_depth * size(self.value));
            let ends = heads * rows * (depth * size(self.query) + value_depth * size(self.out));
            let (arithmetic, share, threads, padded) = match plan.form {
                AttentionForm::Cooperative(m) => {
                    let rows = grid.row_tiles * u64::from(m.rows());
                    (
                        Arithmetic::Matrix,
                        MATRIX_SHARE,
                        f64::from(m.threads()),
                        rows,
                    )
                }
                AttentionForm::Tile => {
                    let rows = grid.row_tiles * u64::from(super::TILE_ROWS);
                    (Arithmetic::F32, TILE_SHARE, THREADS, rows)
                }
                AttentionForm::Few(r) | AttentionForm::FewSplit(r) => {
                    (Arithmetic::F32, FEW_SHARE, THREADS, r.most().into())
                }
                AttentionForm::Join => (Arithmetic::F32, FEW_SHARE, THREADS, grid.rows),
            };
            let again = match plan.form {
                AttentionForm::Cooperative(_) | AttentionForm::Tile => grid.row_tiles as f64 - 1.0,
                _ => 0.0,
            };
            let scratch = match plan.splits {
                1 => 0.0,
                splits => heads * rows * splits as f64 * (value_depth + 2.0) * 4.0,
            };
            let main = device.seconds(&Work {
                bytes: pairs + ends + scratch,
                cached: pairs * again.max(0.0),
                operations: 2.0 * heads * padded as f64 * keys * (depth + value_depth),
                arithmetic,
                share,
                groups: grid.groups as f64,
                threads,
            });
            let join = Work {
                bytes: scratch + ends,
                cached: 0.0,
                operations: scratch / 2.0,
                arithmetic: Arithmetic::F32,
                share: FEW_SHARE,
                groups: heads * rows,
                threads: THREADS,
            };
            main + if plan.splits > 1 {
                device.seconds(&join)
            } else {
                0.0
            }
        })
    }

    fn planned(&self, plan: &AttentionPlan) -> Result<LibraryProgram, Error> {
        self.dispatches(plan)
    }

    /// Ranges until a core has enough workgroups; matrix units where they are faster at all, with the most rows that leave
    /// no core idle.
    fn preferred(&self, _plans: &[AttentionPlan], _device: &DeviceModel) -> usize {
        0
    }
}

impl Attention {
    /// Plans for a few rows: the keys in as many ranges as keep the device busy first.
    fn few(&self, rows: SkinnyRows, heads: u64, device: &DeviceModel) -> Vec<AttentionPlan> {
        let col_tiles = self.value_depth.div_ceil(self.value_cols().cols().into());
        let groups = heads.max(1) * col_tiles.max(1);
        let busy = GROUPS_OF_CORE * u64::from(device.rates.cores);
        let most = (self.keys / SPLIT_KEYS).max(1);
        let usual = busy.div_ceil(groups).min(most).max(1);
        let others = std::iter::successors(Some(1u64), |splits| Some(2 * splits))
            .take_while(|&splits| splits <= most && groups.saturating_mul(splits) <= 4 * busy);
        let plan = |wanted| {
            let splits = self.keys.div_ceil(split_keys(self.keys, wanted)).max(1);
            let form = match splits {
                1 => AttentionForm::Few(rows),
                _ => AttentionForm::FewSplit(rows),
            };
            AttentionPlan { form, splits }
        };
        std::iter::once(usual).chain(others).map(plan).collect()
    }

    /// How matrix units compute it, where the device has faster ones than its other arithmetic and all operands suit them:
    /// the largest division that leaves no core without work, or else the smallest, then the others.
    fn matrices(&self, device: &DeviceModel, heads: u64) -> Vec<AttentionMatrices> {
        let Some(mut divisions) = self.divisions(device) else {
            return Vec::new();
        };
        let rows = self.queries.saturating_mul(self.group);
        let is_busy = |matrices: &AttentionMatrices| {
            let col_tiles = self.value_depth.div_ceil(matrices.cols.into());
            let tiles = rows.div_ceil(u64::from(matrices.rows()));
            tiles.saturating_mul(heads).saturating_mul(col_tiles) >= device.busy_groups()
        };
        if let Some(last) = divisions.len().checked_sub(1) {
            let usual = divisions.iter().position(is_busy).unwrap_or(last);
            divisions[..=usual].rotate_right(1);
        }
        divisions
    }

    /// Every division that fits, from most rows to fewest.
    fn divisions(&self, device: &DeviceModel) -> Option<Vec<AttentionMatrices>> {
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
        let all = matrix_divisions().map(|[subgroups, down, keys]| AttentionMatrices {
            size,
            lanes,
            subgroups,
            down,
            keys,
            depth,
            cols,
        });
        let fits = |matrices: &AttentionMatrices| {
            matrices.is_even()
                && matrices.registers() <= MATRIX_REGISTERS
                && matrices.threads() <= device.limits.workgroup_threads
                && matrices.memory_size() <= device.limits.workgroup_memory_size
        };
        Some(all.filter(fits).collect())
    }
}
