//! Matrix products: a problem with its shapes becomes a dispatch, or two where the inner axis is divided.

use cupola_ir::BlockFormat;
use cupola_shaders::binding::Width;
use cupola_shaders::element::Element;
use cupola_shaders::matmul::{
    Accumulator, BATCH_AXES, INNER_AXES, InnerAxes, JoinShader, MatmulForm, MatmulParams,
    MatmulShader, Operand, Orientation, Source,
};
use cupola_shaders::shader::Epilogue;
use cupola_shaders::tile::{FastAxis, Split, Staging};

use super::{LibraryCall, LibraryProgram, Place, accumulator_of, closeness, plans, stride, word};
use crate::choice::DeviceModel;
use crate::error::Error;

mod forms;
mod naming;

/// A matrix in a buffer: element type, first element and strides, all in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    /// Storage.
    pub element: Element,
    /// Position of its first element in the buffer.
    pub offset: i64,
    /// Distance between rows.
    pub row_stride: i64,
    /// Distance between columns.
    pub col_stride: i64,
}

impl Matrix {
    fn transposed(self) -> Self {
        Self {
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// One batch axis, outermost first in a problem. Strides are 0 where an operand is broadcast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchAxis {
    /// Length.
    pub len: u64,
    /// Distance in the left operand.
    pub lhs: i64,
    /// Distance in the right operand.
    pub rhs: i64,
    /// Distance in the result.
    pub out: i64,
}

/// One of several contracted axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InnerAxis {
    /// Length.
    pub len: u64,
    /// Distance in the left operand.
    pub lhs: i64,
    /// Distance in the right operand.
    pub rhs: i64,
}

/// How the elements of a factor become numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reading {
    /// As they are stored.
    #[default]
    Stored,
    /// Rounded to f16 or bf16 first, from f32 or another type of 16 bits.
    Rounded(Element),
    /// From blocks that lie along the inner axis, whose length is a multiple of theirs; the matrix's `element` does not
    /// count, and its offset and outer strides are multiples of a block's length, in elements.
    Blocks(BlockFormat),
}

/// `out[b, r, c] = sum over k of lhs[b, r, k] * rhs[b, k, c]`, stored by the epilogue if there is one.
///
/// Floats accumulate in f32, integers in 32 bits with wrap-around. The batch number `b` given to the epilogue counts in
/// row-major order of the batch axes.
#[derive(Debug, Clone, PartialEq)]
pub struct Matmul {
    /// Result rows.
    pub rows: u64,
    /// Result columns.
    pub cols: u64,
    /// Contracted length: the product of the contracted axes.
    pub inner: u64,
    /// The contracted axes, outermost first, where they are more than one; the operands' own inner strides do not
    /// count then.
    pub inner_axes: Vec<InnerAxis>,
    /// Batch axes, outermost first.
    pub batch: Vec<BatchAxis>,
    /// `[rows, inner]`.
    pub lhs: Matrix,
    /// `[inner, cols]`.
    pub rhs: Matrix,
    /// `[rows, cols]`.
    pub out: Matrix,
    /// How the left and the right operand are read.
    pub readings: [Reading; 2],
    /// Whether factors may be rounded to f16 on their way to matrix units.
    pub narrow: bool,
    /// What happens to each result instead of the plain store.
    pub epilogue: Epilogue,
}

/// A way to compute a product.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The product's kernel.
    pub shader: MatmulShader,
    /// Parts that the inner axis is divided into.
    pub splits: u64,
}

impl Matmul {
    /// The dispatches that compute it on a device. Arguments: left, right, result, then the epilogue's.
    ///
    /// # Errors
    /// [`Error::Limit`] for lengths beyond 32 bits or more than [`BATCH_AXES`] batch axes that cannot be merged.
    pub fn plan(&self, device: &DeviceModel) -> Result<LibraryProgram, Error> {
        plans::plan(self, device)
    }

    /// Every way that the device has, none of which may be missing from the tests.
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub fn plans(&self, device: &DeviceModel) -> Result<Vec<Plan>, Error> {
        let mut plans = Vec::new();
        for (problem, orientation) in [
            (self.clone(), Orientation::Normal),
            (self.transposed(), Orientation::Swapped),
        ] {
            let is_upright = orientation == Orientation::Normal;
            for form in forms::all(&problem, device) {
                // A few columns are a few rows of the transposed product; tiles gain nothing by that.
                let wants_upright = match form {
                    MatmulForm::Skinny(_) => self.rows <= self.cols,
                    MatmulForm::Tiled(_) | MatmulForm::Cooperative(_) | MatmulForm::Direct(_) => {
                        true
                    }
                };
                if is_upright != wants_upright {
                    continue;
                }
                let shader = problem.shader(form, orientation)?;
                if forms::fits(&shader, device) {
                    plans.extend(problem.splits(&shader, device));
                }
            }
        }
        Ok(plans)
    }

    /// Predicted seconds of a plan.
    pub fn seconds(&self, plan: &Plan, device: &DeviceModel) -> f64 {
        match plan.shader.orientation {
            Orientation::Normal => forms::seconds(self, plan, device),
            Orientation::Swapped => forms::seconds(&self.transposed(), plan, device),
        }
    }

    /// The dispatches of a plan of this product.
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub fn planned(&self, plan: &Plan) -> Result<LibraryProgram, Error> {
        match plan.shader.orientation {
            Orientation::Normal => self.dispatches(plan),
            Orientation::Swapped => self.transposed().dispatches(plan),
        }
    }

    fn transposed(&self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            batch: self
                .batch
                .iter()
                .map(|axis| BatchAxis {
                    lhs: axis.rhs,
                    rhs: axis.lhs,
                    ..*axis
                })
                .collect(),
            lhs: self.rhs.transposed(),
            rhs: self.lhs.transposed(),
            out: self.out.transposed(),
            readings: [self.readings[1], self.readings[0]],
            narrow: self.narrow,
            inner: self.inner,
            inner_axes: (self.inner_axes.iter())
                .map(|axis| InnerAxis {
                    lhs: axis.rhs,
                    rhs: axis.lhs,
                    ..*axis
                })
                .collect(),
            epilogue: self.epilogue.clone(),
        }
    }

    fn batches(&self) -> Result<(Vec<BatchAxis>, u64), Error> {
        let batch = merged(&self.batch);
        if batch.len() > BATCH_AXES {
            return Err(Error::Limit {
                what: "batch axes of a matrix product",
                needed: batch.len() as u64,
                allowed: BATCH_AXES as u64,
            });
        }
        let batches = batch
            .iter()
            .try_fold(1u64, |product, axis| product.checked_mul(axis.len));
        let batches = batches.ok_or_else(|| too_many(u64::MAX))?;
        Ok((batch, batches))
    }

    /// The kernel of a form, over the whole inner axis.
    fn shader(&self, form: MatmulForm, orientation: Orientation) -> Result<MatmulShader, Error> {
        let (batch, _) = self.batches()?;
        let [lhs, rhs] = self.operands(form, &batch);
        let accumulator = match self.readings {
            [Reading::Blocks(_), _] | [_, Reading::Blocks(_)] => Accumulator::F32,
            _ => accumulator_of(self.lhs.element, self.rhs.element),
        };
        Ok(MatmulShader {
            lhs,
            rhs,
            out: self.out.element,
            accumulator,
            inner: match self.inner_axes.is_empty() {
                true => InnerAxes::One,
                false => InnerAxes::Many,
            },
            form,
            split: Split::Whole,
            epilogue: self.epilogue.clone(),
            orientation,
        })
    }

    /// The kernel as it is, and with the inner axis divided where that gives a device more to do at a time.
    fn splits(&self, shader: &MatmulShader, device: &DeviceModel) -> Vec<Plan> {
        let mut plans = vec![Plan {
            shader: shader.clone(),
            splits: 1,
        }];
        if matches!(shader.form, MatmulForm::Direct(_)) {
            return plans;
        }
        let step = u64::from(shader.inner_step());
        let steps = self.inner.div_ceil(step);
        let groups = forms::groups(self, shader);
        let parts = MatmulShader {
            split: Split::Parts,
            out: shader.accumulator.element(),
            epilogue: Epilogue::default(),
            ..shader.clone()
        };
        let mut splits = 2;
        while splits <= steps / 2
            && groups.saturating_mul(splits) <= 4 * device.busy_groups()
            && self
                .parts_size(splits)
                .is_some_and(|size| size <= device.limits.binding_size)
        {
            // Whole steps for each, and none without work.
            let each = steps.div_ceil(splits);
            plans.push(Plan {
                shader: parts.clone(),
                splits: steps.div_ceil(each),
            });
            splits *= 2;
        }
        plans
    }

    /// Bytes of the parts' results.
    fn parts_size(&self, splits: u64) -> Option<u64> {
        let (_, batches) = self.batches().ok()?;
        [self.rows, self.cols, batches, splits]
            .iter()
            .try_fold(4u64, |size, &len| size.checked_mul(len))
    }

    fn dispatches(&self, plan: &Plan) -> Result<LibraryProgram, Error> {
        let shader = &plan.shader;
        let groups = forms::groups(self, shader).saturating_mul(plan.splits);
        let books: Vec<Place> = shader.books().map(Place::Book).collect();
        if plan.splits == 1 {
            let mut program = LibraryProgram::one(LibraryCall {
                shader: shader.shader(),
                params: self.params(plan)?.words(),
                groups,
            });
            for (_, places) in &mut program.steps {
                let first = places.len() - books.len();
                places[first..].copy_from_slice(&books);
            }
            return Ok(program);
        }
        let size = self
            .parts_size(plan.splits)
            .ok_or_else(|| too_many(u64::MAX))?;
        let mut parts = self.clone();
        parts.out = Matrix {
            element: shader.out,
            offset: 0,
            row_stride: self.cols as i64,
            col_stride: 1,
        };
        parts.batch = merged(&self.batch);
        let mut distance = (self.rows * self.cols) as i64;
        for axis in parts.batch.iter_mut().rev() {
            axis.out = distance;
            distance = distance.wrapping_mul(axis.len as i64);
        }
        let join = JoinShader {
            out: self.out.element,
            accumulator: shader.accumulator,
            epilogue: self.epilogue.clone(),
            orientation: shader.orientation,
        }
        .shader();
        let (_, batches) = self.batches()?;
        let results = word("results of a divided product", size / 4)? / plan.splits as u32;
        let rest = (3..join.bindings.len() + 1).map(Place::Argument);
        Ok(LibraryProgram {
            steps: vec![
                (
                    LibraryCall {
                        shader: shader.shader(),
                        params: MatmulParams {
                            split_out: word("results", self.rows * self.cols * batches)?,
                            ..parts.params(plan)?
                        }
                        .words(),
                        groups,
                    },
                    [Place::Argument(0), Place::Argument(1), Place::Scratch(0)]
                        .into_iter()
                        .chain(books)
                        .collect(),
                ),
                (
                    LibraryCall {
                        shader: join,
                        params: self.params(plan)?.words(),
                        groups: u64::from(results.div_ceil(JoinShader::GROUP_LEN)),
                    },
                    [Place::Scratch(0), Place::Argument(2)]
                        .into_iter()
                        .chain(rest)
                        .collect(),
                ),
            ],
            scratch: vec![size],
        })
    }

    fn params(&self, plan: &Plan) -> Result<MatmulParams, Error> {
        let shader = &plan.shader;
        let (batch, batches) = self.batches()?;
        let mut inner_dims = [[1, 0, 0, 0]; INNER_AXES];
        if self.inner_axes.len() > INNER_AXES {
            return Err(Error::Limit {
                what: "contracted axes of a matrix product",
                needed: self.inner_axes.len() as u64,
                allowed: INNER_AXES as u64,
            });
        }
        for (dim, axis) in inner_dims.iter_mut().zip(self.inner_axes.iter().rev()) {
            *dim = [
                word("a contracted axis", axis.len)?,
                stride(axis.lhs),
                stride(axis.rhs),
                0,
            ];
        }
        let mut batch_dims = [[1, 0, 0, 0]; BATCH_AXES];
        for (dim, axis) in batch_dims.iter_mut().zip(batch.iter().rev()) {
            *dim = [
                word("a batch axis", axis.len)?,
                stride(axis.lhs),
                stride(axis.rhs),
                stride(axis.out),
            ];
        }
        for (reading, outer) in self.readings.iter().zip([self.rows, self.cols]) {
            if matches!(reading, Reading::Blocks(_)) {
                word(
                    "elements of a block-quantised matrix",
                    outer.saturating_mul(self.inner),
                )?;
            }
        }
        let step = u64::from(shader.inner_step());
        let split_inner = self.inner.div_ceil(step).div_ceil(plan.splits) * step;
        Ok(MatmulParams {
            rows: word("matrix rows", self.rows)?,
            cols: word("matrix columns", self.cols)?,
            // The loops count one step further.
            inner: word("a contracted length", self.inner.saturating_add(4096))? - 4096,
            batches: word("batches", batches)?,
            row_tiles: word("tiles", self.rows.div_ceil(u64::from(shader.group_rows())))?,
            col_tiles: word("tiles", self.cols.div_ceil(u64::from(shader.group_cols())))?,
            batch_rank: batch.len() as u32,
            inner_rank: self.inner_axes.len() as u32,
            lhs_offset: stride(self.lhs.offset),
            lhs_row: stride(self.lhs.row_stride),
            lhs_inner: stride(self.lhs.col_stride),
            rhs_offset: stride(self.rhs.offset),
            rhs_inner: stride(self.rhs.row_stride),
            rhs_col: stride(self.rhs.col_stride),
            out_offset: stride(self.out.offset),
            out_row: stride(self.out.row_stride),
            out_col: stride(self.out.col_stride),
            splits: word("parts", plan.splits)?,
            split_inner: word("a part", split_inner)?,
            split_out: 0,
            batch_dims,
            inner_dims,
        })
    }

    /// How a form reads the operands.
    fn operands(&self, form: MatmulForm, batch: &[BatchAxis]) -> [Operand; 2] {
        let (lhs, rhs) = self.stagings(form, batch);
        let operand = |matrix: Matrix, reading, staging| match reading {
            Reading::Blocks(format) => Operand::blocks(format),
            Reading::Stored => Operand::plain(matrix.element, staging),
            // Matrix units round by themselves.
            Reading::Rounded(Element::F16) if matches!(form, MatmulForm::Cooperative(_)) => {
                Operand::plain(matrix.element, staging)
            }
            Reading::Rounded(to) => Operand {
                source: Source::Plain(matrix.element),
                staging,
                rounded: Some(to),
            },
        };
        [
            operand(self.lhs, self.readings[0], lhs),
            operand(self.rhs, self.readings[1], rhs),
        ]
    }

    fn stagings(&self, form: MatmulForm, batch: &[BatchAxis]) -> (Staging, Staging) {
        if !self.inner_axes.is_empty() {
            let one = Staging::new(FastAxis::Inner, Width::One);
            return (one, one);
        }
        let lhs_batch = batch.iter().all(|axis| axis.lhs % 4 == 0);
        let rhs_batch = batch.iter().all(|axis| axis.rhs % 4 == 0);
        let lhs = staging(
            self.lhs,
            lhs_batch,
            (self.inner, self.lhs.col_stride),
            (self.rows, self.lhs.row_stride),
        );
        let rhs = staging(
            self.rhs,
            rhs_batch,
            (self.inner, self.rhs.row_stride),
            (self.cols, self.rhs.col_stride),
        );
        let halves = |staging: Staging, matrix: Matrix| match (staging.width, matrix.element) {
            (Width::Four, Element::F16) => Staging::new(staging.fast, Width::Halves),
            _ => staging,
        };
        match form {
            MatmulForm::Tiled(_) => (lhs, rhs),
            MatmulForm::Direct(_) => {
                let one = |staging: Staging| Staging::new(staging.fast, Width::One);
                (one(lhs), one(rhs))
            }
            MatmulForm::Cooperative(_) => (halves(lhs, self.lhs), halves(rhs, self.rhs)),
            // Rows are few: they are read along the inner axis whatever their layout.
            MatmulForm::Skinny(_) => match lhs.fast {
                FastAxis::Inner => (lhs, rhs),
                FastAxis::Outer => (Staging::new(FastAxis::Inner, Width::One), rhs),
            },
        }
    }
}

/// How to read a matrix whose inner and outer axes are given as `(length, stride)`.
fn staging(matrix: Matrix, batch_in_fours: bool, inner: (u64, i64), outer: (u64, i64)) -> Staging {
    let (fast, near, far) = if closeness(outer.0, outer.1) < closeness(inner.0, inner.1) {
        (FastAxis::Outer, outer, inner)
    } else {
        (FastAxis::Inner, inner, outer)
    };
    let packable = matrix.element.has_fours();
    let in_fours = batch_in_fours
        && packable
        && near.1 == 1
        && near.0.is_multiple_of(4)
        && (far.0 <= 1 || far.1 % 4 == 0)
        && matrix.offset % 4 == 0;
    Staging::new(fast, if in_fours { Width::Four } else { Width::One })
}

/// Batch axes without those of length one, and with neighbours joined that step evenly through all three matrices.
fn merged(axes: &[BatchAxis]) -> Vec<BatchAxis> {
    let mut out: Vec<BatchAxis> = Vec::new();
    for &axis in axes.iter().filter(|axis| axis.len != 1) {
        let len = axis.len as i64;
        match out.last_mut() {
            Some(outer)
                if outer.lhs == axis.lhs.wrapping_mul(len)
                    && outer.rhs == axis.rhs.wrapping_mul(len)
                    && outer.out == axis.out.wrapping_mul(len)
                    && outer.len.checked_mul(axis.len).is_some() =>
            {
                *outer = BatchAxis {
                    len: outer.len * axis.len,
                    ..axis
                };
            }
            _ => out.push(axis),
        }
    }
    out
}

fn too_many(needed: u64) -> Error {
    Error::Limit {
        what: "workgroups of a matrix product",
        needed,
        allowed: u64::from(u32::MAX),
    }
}
