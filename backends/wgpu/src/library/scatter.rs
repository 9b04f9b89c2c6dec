//! Scatter: a list of updates for each place, then the results; or the updates alone, written over the data.

use cupola_ir::DType;
use cupola_ir::ops::{self, Bounds, ScatterKind};
use cupola_ir::scalar::Scalar;
use cupola_shaders::binding::Width;
use cupola_shaders::scatter::{
    Old, Outside, SCATTER_AXES, SCATTER_INDICES, ScatterParams, apply, clear, link, put,
};
use cupola_shaders::{Element, Shader};

use super::{LibraryCall, LibraryProgram, Place, stride, word};
use crate::emit::{EmitError, combine_function};
use crate::error::Error;

/// Why the kernels do not take these attributes on data of this dtype and rank.
pub fn refusal(scatter: &ops::Scatter, dtype: DType, rank: usize) -> Option<String> {
    if rank > SCATTER_AXES || scatter.axes.len() > SCATTER_INDICES {
        return Some(format!(
            "no scatter over {} of {rank} axes",
            scatter.axes.len()
        ));
    }
    Meeting::new(scatter.kind, dtype).err().map(|error| error.0)
}

/// How updates meet old values, as WGSL; nothing where the last wins.
#[derive(Debug, Clone)]
struct Meeting {
    text: Option<String>,
    helpers: Vec<Element>,
}

impl Meeting {
    fn new(kind: ScatterKind, dtype: DType) -> Result<Self, EmitError> {
        let function = match kind {
            ScatterKind::Set => {
                return Ok(Self {
                    text: None,
                    helpers: Vec::new(),
                });
            }
            ScatterKind::Add => Scalar::Add,
            ScatterKind::Mul => Scalar::Mul,
            ScatterKind::Max => Scalar::Max,
            ScatterKind::Min => Scalar::Min,
        };
        let (text, helpers) = combine_function(function, dtype)?;
        Ok(Self {
            text: Some(text),
            helpers,
        })
    }
}

/// Most index tuples of a launch that look at each other.
const MOST_PUT: u32 = 2048;

/// A dispatch. The words of all steps: the parameters, then the number that faults are reported with.
fn call(shader: Shader, params: &ScatterParams, groups: u64) -> LibraryCall {
    let mut words = params.words();
    words.push(0);
    LibraryCall {
        shader,
        params: words,
        groups,
    }
}

/// A scatter with its extents. Data, indices and updates are dense.
#[derive(Debug)]
pub struct Scatter<'a> {
    /// Its attributes.
    pub op: &'a ops::Scatter,
    /// Element type of data and updates.
    pub dtype: DType,
    /// The same as stored.
    pub element: Element,
    /// Extents of the data.
    pub dims: &'a [u64],
    /// Index tuples.
    pub tuples: u64,
    /// Position of the first element of the data and of the updates.
    pub offsets: [i64; 2],
    /// Position of the first index of each indexed axis.
    pub index_offsets: Vec<i64>,
}

impl Scatter<'_> {
    /// The dispatches. Arguments: data, updates, an index tensor for each indexed axis, result.
    ///
    /// # Errors
    /// [`Error::Limit`] for 2^32 elements or places.
    pub fn plan(&self) -> Result<LibraryProgram, Error> {
        self.listed(Old::Apart)
    }

    /// The dispatches that write the updates over the data, where result and data are the same memory. Arguments as those
    /// of [`Self::plan`].
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub fn plan_over(&self) -> Result<LibraryProgram, Error> {
        match self.op.kind {
            ScatterKind::Set => self.put(),
            ScatterKind::Add | ScatterKind::Mul | ScatterKind::Max | ScatterKind::Min => {
                self.listed(Old::Under)
            }
        }
    }

    fn outside(&self) -> Outside {
        match self.op.bounds {
            Bounds::Check => Outside::Fault,
            Bounds::Clamp => Outside::Nearest,
            Bounds::Skip => Outside::Skip,
        }
    }

    /// Positions of the index tensors among the arguments, and of the result.
    fn places(&self) -> (Vec<Place>, Place) {
        let indices = self.op.axes.len();
        let lists = (0..indices).map(|at| Place::Argument(2 + at));
        (lists.collect(), Place::Argument(2 + indices))
    }

    /// Lists of the updates of each place, and the elements of those places.
    fn listed(&self, old: Old) -> Result<LibraryProgram, Error> {
        let meeting = Meeting::new(self.op.kind, self.dtype).map_err(|error| Error::Shader {
            label: "scatter".to_owned(),
            message: error.0,
        })?;
        let params = self.params()?;
        let (places, tuples) = (u64::from(params.places), u64::from(params.tuples));
        let [heads, nexts] = [0, 1].map(Place::Scratch);
        let (lists, result) = self.places();
        let step = |shader: Shader, threads: u64| call(shader, &params, threads.div_ceil(256));
        let last = apply(self.element, old, meeting.text.as_deref(), meeting.helpers);
        let mut bound = vec![Place::Argument(1), heads, nexts, result];
        if old == Old::Apart {
            bound.insert(0, Place::Argument(0));
        }
        let linked = lists.iter().copied().chain([heads, nexts]).collect();
        Ok(LibraryProgram {
            steps: vec![
                (step(clear(), places), vec![heads]),
                (step(link(lists.len(), self.outside()), tuples), linked),
                (step(last, u64::from(params.len)), bound),
            ],
            scratch: vec![places.max(1) * 4, tuples.max(1) * 4],
        })
    }

    /// The updates alone, so many tuples at a time: each looks at all later ones of its launch, and launches follow each
    /// other.
    fn put(&self) -> Result<LibraryProgram, Error> {
        let params = self.params()?;
        let (lists, result) = self.places();
        let bound: Vec<Place> = [Place::Argument(1)]
            .into_iter()
            .chain(lists.iter().copied())
            .chain([result])
            .collect();
        let width = match self.has_fours(&params) {
            true => Width::Four,
            false => Width::One,
        };
        let shader = put(self.element, lists.len(), self.outside(), width);
        let firsts = (0..params.tuples).step_by(MOST_PUT as usize);
        let steps = firsts.map(|first| {
            let end = params.tuples.min(first.saturating_add(MOST_PUT));
            let params = ScatterParams {
                first,
                end,
                ..params
            };
            let groups = u64::from(end - first);
            (call(shader.clone(), &params, groups), bound.clone())
        });
        Ok(LibraryProgram {
            steps: steps.collect(),
            scratch: vec![],
        })
    }

    /// Whether four elements of a window that follow each other do so in the data, from a multiple of four on.
    fn has_fours(&self, params: &ScatterParams) -> bool {
        let axes = &params.dims[..self.dims.len()];
        let Some((last, outer)) = axes.split_last() else {
            return false;
        };
        let is_inner = last[2] == 1 && last[0].is_multiple_of(4);
        let distances = outer.iter().map(|dim| dim[3]);
        let offsets = [params.data_offset, params.updates_offset, params.batch_len];
        self.element.has_fours()
            && is_inner
            && distances.chain(offsets).all(|n| n.is_multiple_of(4))
    }

    fn params(&self) -> Result<ScatterParams, Error> {
        let product = |mut lens: Box<dyn Iterator<Item = u64> + '_>| {
            lens.try_fold(1u64, |product, len| product.checked_mul(len))
                .unwrap_or(u64::MAX)
        };
        let batch = self.op.batch;
        let is_window = |axis: &usize| *axis >= batch && !self.op.axes.contains(axis);
        let batches = product(Box::new(self.dims[..batch].iter().copied()));
        let per_batch = product(Box::new(self.op.axes.iter().map(|&axis| self.dims[axis])));
        let mut dims = [[1, 0, 0, 0]; SCATTER_AXES];
        for (dim, &len) in dims.iter_mut().zip(self.dims) {
            dim[0] = word("an axis", len)?;
        }
        let mut step = word("places of a scatter", per_batch)?;
        for axis in (0..batch).rev() {
            dims[axis][1] = step;
            step = step.wrapping_mul(dims[axis][0]);
        }
        let mut step = 1u32;
        for axis in (0..self.dims.len()).rev().filter(is_window) {
            dims[axis][2] = step;
            step = step.wrapping_mul(dims[axis][0]);
        }
        let window = step;
        let mut step = 1u32;
        for dim in dims[..self.dims.len()].iter_mut().rev() {
            dim[3] = step;
            step = step.wrapping_mul(dim[0]);
        }
        let mut indexed = [[0; 4]; SCATTER_INDICES];
        let mut step = 1u32;
        for (at, &axis) in self.op.axes.iter().enumerate().rev() {
            dims[axis][1] = step;
            indexed[at] = [
                dims[axis][0],
                step,
                stride(self.index_offsets[at]),
                dims[axis][3],
            ];
            step = step.wrapping_mul(dims[axis][0]);
        }
        let places = word("places of a scatter", batches.saturating_mul(per_batch))?;
        let tuples = word("updates of a scatter", self.tuples)?;
        Ok(ScatterParams {
            places,
            tuples,
            tuples_per_batch: (u64::from(tuples) / batches.max(1)).max(1) as u32,
            places_per_batch: per_batch as u32,
            len: word(
                "elements of a scatter",
                product(Box::new(self.dims.iter().copied())),
            )?,
            window,
            data_offset: stride(self.offsets[0]),
            updates_offset: stride(self.offsets[1]),
            rank: self.dims.len() as u32,
            first: 0,
            end: tuples,
            batch_len: product(Box::new(self.dims[batch..].iter().copied())) as u32,
            dims,
            indexed,
        })
    }
}
