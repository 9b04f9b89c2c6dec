//! Matrix products as [`Problem`]s: classes and plans by name.

use cupola_shaders::matmul::{MatmulForm, Orientation};
use cupola_shaders::skinny::{Reduction, Skinny};
use cupola_shaders::tile::{FastAxis, Tile};

use super::{Matmul, Plan, Reading};
use crate::choice::DeviceModel;
use crate::error::Error;
use crate::library::LibraryProgram;
use crate::library::plans::{Problem, class_len};
use cupola_shaders::{Element, Width};

impl Problem for Matmul {
    type Plan = Plan;

    fn class(&self) -> String {
        let [rows, inner, cols] = [self.rows, self.inner, self.cols].map(class_len);
        let batches = (self.batch.iter()).fold(1u64, |all, axis| all.saturating_mul(axis.len));
        let stagings = self.stagings(MatmulForm::Tiled(Tile::MEDIUM), &self.batch);
        let operand = |element: Element, reading, (fast, width)| {
            let stored = match reading {
                Reading::Stored => name(element),
                Reading::Rounded(to) => format!("{} as {}", name(element), name(to)),
                Reading::Blocks(format) => return format.name().to_owned(),
            };
            let along = match fast {
                FastAxis::Inner => "inner",
                FastAxis::Outer => "outer",
            };
            let width = match width {
                Width::One => "",
                Width::Four | Width::Halves => " by 4",
            };
            format!("{stored} along {along}{width}")
        };
        let [lhs, rhs] = [stagings.0, stagings.1].map(|staging| (staging.fast, staging.width));
        format!(
            "product {rows}x{inner}x{cols}, {} of {}, {}{} to {}",
            class_len(batches),
            operand(self.lhs.element, self.readings[0], lhs),
            operand(self.rhs.element, self.readings[1], rhs),
            if self.narrow { ", narrow" } else { "" },
            name(self.out.element),
        )
    }

    fn plans(&self, device: &DeviceModel) -> Result<Vec<Plan>, Error> {
        Self::plans(self, device)
    }

    fn name(&self, plan: &Plan) -> String {
        let mut text = form_name(plan.shader.form);
        if plan.splits > 1 {
            text.push_str(&format!(" in {} parts", plan.splits));
        }
        if plan.shader.orientation == Orientation::Swapped {
            text.push_str(" swapped");
        }
        text
    }

    fn seconds(&self, plan: &Plan, device: &DeviceModel) -> f64 {
        Self::seconds(self, plan, device)
    }

    fn planned(&self, plan: &Plan) -> Result<LibraryProgram, Error> {
        Self::planned(self, plan)
    }
}

fn name(element: Element) -> String {
    format!("{element:?}").to_lowercase()
}

/// A form on one line, with all that makes its text differ.
fn form_name(form: MatmulForm) -> String {
    match form {
        MatmulForm::Tiled(Tile {
            rows,
            cols,
            step,
            thread_rows,
            thread_cols,
        }) => format!("tile {rows}x{cols} step {step} thread {thread_rows}x{thread_cols}"),
        MatmulForm::Direct(direct) => format!("direct {}x{}", direct.rows, direct.cols),
        MatmulForm::Cooperative(tile) => {
            let ([down, across], [rows, cols]) = (tile.subgroups, tile.matrices);
            format!(
                "matrices of {} subgroups {down}x{across} each {rows}x{cols} step {}",
                tile.size, tile.step
            )
        }
        MatmulForm::Skinny(Skinny {
            rows,
            threads,
            lanes,
            cols,
            reduction,
        }) => {
            let joined = match reduction {
                Reduction::Tree => "a tree",
                Reduction::Subgroups => "subgroups",
            };
            let rows = rows.most();
            format!("{rows} rows by {joined} threads {threads} lanes {lanes} columns {cols}")
        }
    }
}
