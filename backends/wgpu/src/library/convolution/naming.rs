//! Convolutions as [`Problem`]s: classes and plans by name.

use cupola_shaders::Element;
use cupola_shaders::convolution::{Block, ConvolutionForm, Direction, Order};

use super::{Convolution, ConvolutionPlan, Place, forms};
use crate::choice::DeviceModel;
use crate::error::Error;
use crate::library::LibraryProgram;
use crate::library::plans::{self, Contest, Entry, Problem, class_len};

impl Problem for Convolution {
    type Plan = ConvolutionPlan;

    fn class(&self) -> String {
        if let Some(product) = self.pointwise() {
            return product.class();
        }
        let direction = match self.direction {
            Direction::Forward => "convolution",
            Direction::Transposed => "transposed convolution",
        };
        let name = |element: Element| format!("{element:?}").to_lowercase();
        let windows = self.spatial.iter().map(|axis| {
            let (kernel, stride, dilation) = (axis.kernel_len, axis.stride, axis.dilation);
            let out = class_len(axis.out_len);
            format!("{out} by {kernel} every {stride} apart {dilation}")
        });
        format!(
            "{direction} {} of {} groups of {} to {} channels, {}, {} {} to {}",
            class_len(self.batches),
            self.groups,
            self.in_channels,
            self.out_channels,
            windows.collect::<Vec<_>>().join(" x "),
            name(self.input.element),
            name(self.weight.element),
            name(self.out.element),
        )
    }

    fn plans(&self, device: &DeviceModel) -> Result<Vec<ConvolutionPlan>, Error> {
        Self::plans(self, device)
    }

    fn name(&self, plan: &ConvolutionPlan) -> String {
        let form = match plan.shader.form {
            ConvolutionForm::Direct => "direct".to_owned(),
            ConvolutionForm::Block(Block { down, across, .. }) => format!("block {down}x{across}"),
            ConvolutionForm::Tiled(tile, order, _) => {
                let order = match order {
                    Order::Channels(_) => "channels",
                    Order::Positions { .. } => "positions",
                };
                format!(
                    "tile {}x{} step {} thread {}x{} by {order}",
                    tile.rows, tile.cols, tile.step, tile.thread_rows, tile.thread_cols
                )
            }
        };
        match plan.splits {
            1 => form,
            splits => format!("{form} in {splits} parts"),
        }
    }

    fn seconds(&self, plan: &ConvolutionPlan, device: &DeviceModel) -> f64 {
        Self::seconds(self, plan, device).unwrap_or(f64::INFINITY)
    }

    fn preferred(&self, plans: &[ConvolutionPlan], device: &DeviceModel) -> usize {
        let Ok(lengths) = self.lengths() else {
            return 0;
        };
        let seconds = |at: &usize| forms::seconds(self, &lengths, &plans[*at], device);
        let least = (0..plans.len()).min_by(|a, b| seconds(a).total_cmp(&seconds(b)));
        least.unwrap_or(0)
    }

    fn planned(&self, plan: &ConvolutionPlan) -> Result<LibraryProgram, Error> {
        Self::planned(self, plan)
    }
}

impl Convolution {
    /// The plans that may be the fastest, of the product that it is or of its own.
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub fn contest(&self, device: &DeviceModel, entry: Entry) -> Result<Contest, Error> {
        let Some(product) = self.pointwise() else {
            return plans::contest(self, device, entry);
        };
        let mut contest = plans::contest(&product, device, entry)?;
        for candidate in &mut contest.candidates {
            weights_last(&mut candidate.program);
        }
        Ok(contest)
    }
}

/// A product's left operand is the weights, its right one the input; a convolution's are the other way round.
pub(super) fn weights_last(program: &mut LibraryProgram) {
    for place in &mut program.steps[0].1 {
        *place = match *place {
            Place::Argument(0) => Place::Argument(1),
            Place::Argument(1) => Place::Argument(0),
            other => other,
        };
    }
}
