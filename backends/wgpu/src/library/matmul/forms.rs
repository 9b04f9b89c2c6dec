//! The forms of a product that a device has, and what each is predicted to cost.

use cupola_shaders::Element;
use cupola_shaders::cooperative::CooperativeTile;
use cupola_shaders::matmul::{MatmulForm, MatmulShader, Operand, Source};
use cupola_shaders::skinny::{Reduction, Skinny, SkinnyRows};
use cupola_shaders::tile::{Direct, Tile};

use super::{Matmul, Plan, Reading};
use crate::adapter::CoopScalar;
use crate::choice::{Arithmetic, DeviceModel, Work};
use crate::device::Forms;

/// Subgroups and matrices of each of the cooperative tiles, largest first.
const COOPERATIVE: [([u32; 2], [u32; 2]); 4] = [
    ([2, 4], [4, 2]),
    ([2, 2], [4, 4]),
    ([2, 2], [2, 2]),
    ([1, 2], [2, 1]),
];

/// Inner positions that a cooperative tile stages at a time.
const COOPERATIVE_STEP: u32 = 32;

/// Every form that can compute the product.
pub(super) fn all(problem: &Matmul, device: &DeviceModel) -> Vec<MatmulForm> {
    let mut forms = Direct::ALL.map(MatmulForm::Direct).to_vec();
    if device.forms == Forms::Plain {
        return forms;
    }
    if let Some(rows) = SkinnyRows::holding(problem.rows) {
        forms.extend(skinny(rows, device).map(MatmulForm::Skinny));
    }
    forms.extend(Tile::ALL.map(MatmulForm::Tiled));
    if problem.narrow && problem.has_halves() {
        forms.extend(cooperative(device).map(MatmulForm::Cooperative));
    }
    forms
}

/// Forms for a few rows: all threads on the same columns where subgroups add up, or divided into columns and lanes.
fn skinny(rows: SkinnyRows, device: &DeviceModel) -> impl Iterator<Item = Skinny> + use<> {
    let subgroups = device
        .features
        .subgroups
        .is_some()
        .then_some((Reduction::Subgroups, [64, 128]));
    let trees = [(Reduction::Tree, [8, 16]), (Reduction::Tree, [32, 64])];
    (subgroups.into_iter().chain(trees)).flat_map(move |(reduction, lanes)| {
        lanes.into_iter().flat_map(move |lanes| {
            [1, 2, 4].into_iter().map(move |cols| Skinny {
                rows,
                threads: match reduction {
                    Reduction::Tree => 128,
                    Reduction::Subgroups => lanes,
                },
                lanes,
                cols,
                reduction,
            })
        })
    })
}

/// Tiles for matrix units that multiply f16 and sum in f32, where the device's subgroups have but one size.
fn cooperative(device: &DeviceModel) -> impl Iterator<Item = CooperativeTile> + use<> {
    let sizes = device.features.cooperative.iter().filter(|shape| {
        shape.in_wgsl() && shape.operand == CoopScalar::F16 && shape.result == CoopScalar::F32
    });
    let size = sizes.map(|shape| shape.rows).max();
    let lanes = device.subgroup_size().filter(|_| device.features.f16);
    let known = size.zip(lanes).into_iter();
    known.flat_map(|(size, lanes)| {
        COOPERATIVE.map(|(subgroups, matrices)| CooperativeTile {
            size,
            lanes,
            subgroups,
            matrices,
            step: COOPERATIVE_STEP,
        })
    })
}

impl Matmul {
    /// Whether both operands are f16 as they are read, or made of blocks.
    fn has_halves(&self) -> bool {
        let is_half = |element, reading| match reading {
            Reading::Stored => element == Element::F16,
            Reading::Rounded(to) => to == Element::F16,
            Reading::Blocks(_) => true,
        };
        is_half(self.lhs.element, self.readings[0]) && is_half(self.rhs.element, self.readings[1])
    }
}

/// Whether a device can run a kernel. Columns per thread are for operands that lie along the inner axis.
pub(super) fn fits(shader: &MatmulShader, device: &DeviceModel) -> bool {
    let suits = match shader.form {
        MatmulForm::Skinny(skinny) => skinny.suits(shader.rhs.staging),
        MatmulForm::Tiled(_) | MatmulForm::Cooperative(_) | MatmulForm::Direct(_) => true,
    };
    suits
        && shader.threads() <= device.limits.workgroup_threads
        && shader.memory_size() <= device.limits.workgroup_memory_size
}

/// Workgroups without a division of the inner axis.
pub(super) fn groups(problem: &Matmul, shader: &MatmulShader) -> u64 {
    let tiles = |len: u64, size: u32| len.div_ceil(u64::from(size));
    let batches = problem.batch.iter().map(|axis| axis.len);
    batches.fold(
        tiles(problem.rows, shader.group_rows())
            .saturating_mul(tiles(problem.cols, shader.group_cols())),
        u64::saturating_mul,
    )
}

/// Predicted seconds.
pub(super) fn seconds(problem: &Matmul, plan: &Plan, device: &DeviceModel) -> f64 {
    let shader = &plan.shader;
    let groups = groups(problem, shader) as f64;
    let (rows, cols) = (
        f64::from(shader.group_rows()),
        f64::from(shader.group_cols()),
    );
    let inner = problem.inner as f64;
    let lhs_size = bytes_each(&shader.lhs);
    let rhs_size = bytes_each(&shader.rhs);
    let batches: f64 = problem.batch.iter().map(|axis| axis.len as f64).product();
    let once = batches * inner * (problem.rows as f64 * lhs_size + problem.cols as f64 * rhs_size);
    let results = batches * problem.rows as f64 * problem.cols as f64;
    let staged = groups * inner * (rows * lhs_size + cols * rhs_size);
    let (arithmetic, share) = efficiency(shader);
    let product = Work {
        bytes: once + results * 4.0 * plan.splits as f64,
        cached: (staged - once).max(0.0),
        operations: groups * rows * cols * inner * 2.0,
        arithmetic,
        share,
        groups: groups * plan.splits as f64,
        threads: f64::from(shader.threads()),
    };
    let mut seconds = device.seconds(&product);
    if plan.splits > 1 {
        seconds += device.seconds(&Work {
            bytes: results * 4.0 * (plan.splits as f64 + 1.0),
            cached: 0.0,
            operations: results * plan.splits as f64,
            arithmetic: Arithmetic::F32,
            share: 1.0,
            groups: results / 256.0,
            threads: 256.0,
        });
    }
    seconds
}

fn bytes_each(operand: &Operand) -> f64 {
    match operand.source {
        Source::Plain(element) => f64::from(element.bits()) / 8.0,
        Source::Blocks(format) => format.block_size() as f64 / format.block_len() as f64,
    }
}

/// What a form computes with, and the share of its peak that the inner loop can reach: a multiply-add takes one slot, and
/// reading operands from workgroup memory takes others, which larger shares of a thread or a subgroup spread over more
/// products.
fn efficiency(shader: &MatmulShader) -> (Arithmetic, f64) {
    let reads = |down: u32, across: u32| f64::from(down + across) / f64::from(down * across);
    // Instructions to decode one element of a block, over two operations each.
    let decoding = |operand: &Operand, uses: f64| match operand.source {
        Source::Plain(_) => 0.0,
        Source::Blocks(_) => 4.0 / uses,
    };
    match shader.form {
        MatmulForm::Tiled(tile) => {
            let loads = reads(tile.thread_rows, tile.thread_cols);
            let decoding = decoding(&shader.lhs, f64::from(tile.cols))
                + decoding(&shader.rhs, f64::from(tile.rows));
            (Arithmetic::F32, 1.0 / (1.15 + 1.2 * loads + decoding))
        }
        MatmulForm::Direct(_) => {
            // Two loads for each product, from the first cache at the rate of workgroup memory, with an address each.
            let decoding = decoding(&shader.lhs, 1.0) + decoding(&shader.rhs, 1.0);
            (Arithmetic::F32, 1.0 / (7.0 + decoding))
        }
        MatmulForm::Cooperative(tile) => {
            let loads = reads(tile.matrices[0], tile.matrices[1]);
            (Arithmetic::Matrix, 1.0 / (1.3 + loads))
        }
        MatmulForm::Skinny(skinny) => {
            // Rows share a load of the right operand, columns one of the left.
            let loads = reads(skinny.rows.most(), skinny.cols);
            let decoding = decoding(&shader.rhs, f64::from(skinny.rows.most()));
            (Arithmetic::F32, 1.0 / (1.3 + loads + decoding))
        }
    }
}
