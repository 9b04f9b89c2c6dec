//! Which forms of kernels a device runs, and which of its features each needs: told by planning typical problems.

use std::collections::BTreeSet;

use cupola_shaders::element::Element;
use cupola_shaders::matmul::MatmulForm;
use cupola_shaders::shader::{Epilogue, Extension};
use cupola_shaders::skinny::Reduction;

use super::attention::{Attention, Tensor4};
use super::matmul::{Matmul, Matrix};
use crate::choice::DeviceModel;

/// The forms that need no feature, then by feature those that go without it.
pub fn by_feature(device: &DeviceModel) -> Vec<(Option<&'static str>, BTreeSet<String>)> {
    type Remove = fn(&mut DeviceModel);
    let features: [(&'static str, bool, Remove); 3] = [
        ("f16", device.features.f16, |d| d.features.f16 = false),
        ("subgroups", device.features.subgroups.is_some(), |d| {
            d.features.subgroups = None;
        }),
        (
            "cooperative matrices",
            !device.features.cooperative.is_empty(),
            |d| d.features.cooperative.clear(),
        ),
    ];
    let all = forms(device);
    let mut bare = device.clone();
    let mut found = Vec::new();
    for (name, _, remove) in features.iter().filter(|(_, used, _)| *used) {
        remove(&mut bare);
        let mut without = device.clone();
        remove(&mut without);
        let kept = forms(&without);
        found.push((Some(*name), all.difference(&kept).cloned().collect()));
    }
    found.insert(0, (None, forms(&bare)));
    found
}

/// The forms of a device.
fn forms(device: &DeviceModel) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (name, element) in [("f32", Element::F32), ("f16", Element::F16)] {
        for rows in [1, 2048] {
            // These lengths are within every limit.
            let plans = product(rows, element).plans(device).unwrap_or_default();
            let forms = plans.iter().map(|plan| form(plan.shader.form));
            found.extend(forms.map(|form| format!("{name} products {form}")));
        }
        let attention = attention(element).plan(device);
        let calls = attention.iter().flat_map(|program| &program.steps);
        found.extend(calls.map(|(call, _)| {
            let form = match call
                .shader
                .extensions
                .contains(&Extension::CooperativeMatrix)
            {
                true => "on matrix units",
                false => "in tiles",
            };
            format!("{name} attention {form}")
        }));
    }
    let joined = match device.features.subgroups {
        Some(_) => "subgroups",
        None => "trees",
    };
    found.insert(format!("row reductions joined by {joined}"));
    found
}

fn form(form: MatmulForm) -> String {
    match form {
        MatmulForm::Tiled(_) => "in tiles".to_owned(),
        MatmulForm::Direct(_) => "of a thread for each result".to_owned(),
        MatmulForm::Cooperative(tile) => format!("on matrix units of {0}x{0}", tile.size),
        MatmulForm::Skinny(skinny) => match skinny.reduction {
            Reduction::Tree => "of few rows joined by trees".to_owned(),
            Reduction::Subgroups => "of few rows joined by subgroups".to_owned(),
        },
    }
}

/// A product by weights that lie along the inner axis.
fn product(rows: u64, element: Element) -> Matmul {
    let side = 2048;
    let matrix = |row_stride, col_stride| Matrix {
        element,
        offset: 0,
        row_stride,
        col_stride,
    };
    Matmul {
        rows,
        cols: side,
        inner: side,
        inner_axes: Vec::new(),
        batch: Vec::new(),
        lhs: matrix(side as i64, 1),
        rhs: matrix(1, side as i64),
        out: matrix(side as i64, 1),
        readings: Default::default(),
        narrow: true,
        epilogue: Epilogue::default(),
    }
}

/// Attention of heads that lie one after the other.
fn attention(element: Element) -> Attention {
    let [heads, len, depth] = [16i64, 2048, 64];
    let tensor = Tensor4 {
        element,
        offset: 0,
        strides: [heads * len * depth, len * depth, depth, 1],
    };
    Attention {
        batches: 1,
        kv_heads: heads as u64,
        group: 1,
        queries: len as u64,
        keys: len as u64,
        depth: depth as u64,
        value_depth: depth as u64,
        scale: 0.125,
        softcap: 0.0,
        last_distance: None,
        first_distance: None,
        query: tensor,
        key: tensor,
        value: tensor,
        mask: None,
        out: tensor,
    }
}
