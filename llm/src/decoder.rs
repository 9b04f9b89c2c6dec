//! A compiled decoder with its cache: tokens in, logits out.
//!
//! What is taken of the graph: inputs `tokens`, `positions`, `sequences: i64[rows]`, `table: i64[batch, blocks]` and
//! `wanted: i64[outs]`; a first output `logits: f32[outs, vocab]`, and perhaps `likeliest: i32[outs]`; state slots `[pages, heads, page_len, width]`, where
//! a sequence's positions lie in the pages that its row of the table names. Nothing else is known of a model here.

use crate::batch::{self, Batch, Input};
use crate::error::{LlmError, Result};
use crate::likeliest::LIKELIEST;
use crate::pages::PageId;
use cupola_ir::eval::Stop;
use cupola_ir::{DType, Dim, Graph, Tensor, TensorType, ValueId};
use cupola_runtime::{DeviceSpec, Place, Program, RunStats, RunValue, State};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The cache of a decoder, as its graph declares it.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheShape {
    /// Positions of a page.
    pub page_len: usize,
    /// Bytes of a page in all slots together.
    pub page_size: usize,
    /// Slots with the type of one page.
    slots: Vec<(String, DType, [usize; 3])>,
}

impl CacheShape {
    /// The cache that a graph declares.
    ///
    /// # Errors
    /// [`LlmError::NoDecoder`].
    pub fn of(graph: &Graph) -> Result<CacheShape> {
        let refused = |what: String| LlmError::NoDecoder(graph.name.clone(), what);
        let mut shape = CacheShape {
            page_len: 0,
            page_size: 0,
            slots: vec![],
        };
        for (name, slot) in &graph.slots {
            let ty = slot.ty.as_tensor();
            let (dtype, page) = (ty.and_then(page_of)).ok_or_else(|| {
                refused(format!(
                    "state slot {name} of type {} holds no pages",
                    slot.ty
                ))
            })?;
            if shape.page_len != 0 && shape.page_len != page[1] {
                return Err(refused(format!(
                    "pages of {} and of {} positions",
                    shape.page_len, page[1]
                )));
            }
            shape.page_len = page[1];
            let size = Tensor::size_of(dtype, &page);
            let total = size.and_then(|s| s.checked_add(shape.page_size));
            shape.page_size =
                total.ok_or_else(|| refused(format!("a page of slot {name} is too large")))?;
            shape.slots.push((name.clone(), dtype, page));
        }
        match shape.page_len {
            0 => Err(refused("it keeps no keys and values".into())),
            _ => Ok(shape),
        }
    }
}

/// Sizes of a decoder's cache and of its largest step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepSizes {
    /// Rows.
    pub rows: usize,
    /// Texts that they are of.
    pub texts: usize,
    /// Rows whose logits are wanted.
    pub wanted: usize,
    /// Most positions of a text.
    pub context_len: usize,
    /// Pages of the cache.
    pub pages: usize,
}

impl StepSizes {
    /// The sizes under the names of the graph's symbols, to plan the memory of a run.
    ///
    /// # Errors
    /// [`LlmError::NoDecoder`] for a graph that is none.
    pub fn symbols(&self, graph: &Graph) -> Result<BTreeMap<String, i64>> {
        let blocks = batch::table_width(self.context_len.div_ceil(CacheShape::of(graph)?.page_len));
        let mut sizes = BTreeMap::new();
        let mut put = |ty: Option<&TensorType>, axis: usize, size: usize| {
            let sym = ty.and_then(|t| t.dims.get(axis)).and_then(Dim::as_sym);
            if let Some(sym) = sym {
                sizes.insert(sym.name().to_string(), size as i64);
            }
        };
        for (input, value) in inputs_of(graph)?.into_iter().zip(graph.inputs()) {
            let ty = graph.ty(*value).as_tensor();
            match input {
                Input::Tokens | Input::Positions | Input::Sequences => put(ty, 0, self.rows),
                Input::Wanted => put(ty, 0, self.wanted),
                Input::Table => {
                    put(ty, 0, self.texts);
                    put(ty, 1, blocks);
                }
            }
        }
        for slot in graph.slots.values() {
            put(slot.ty.as_tensor(), 0, self.pages);
        }
        Ok(sizes)
    }
}

/// Type of one page of a slot.
fn page_of(ty: &TensorType) -> Option<(DType, [usize; 3])> {
    let [_, page @ ..] = &ty.dims[..] else {
        return None;
    };
    let extent = |d: &Dim| {
        d.as_const()
            .and_then(|d| usize::try_from(d).ok())
            .filter(|d| *d > 0)
    };
    let page: Vec<usize> = page.iter().map(extent).collect::<Option<_>>()?;
    Some((ty.dtype, page.try_into().ok()?))
}

/// A decoder and the memory of its cache.
pub struct Decoder {
    program: Arc<Program>,
    state: State,
    inputs: Vec<Input>,
    cache: CacheShape,
    pages: usize,
    vocab_len: usize,
    /// Where among the outputs the likeliest tokens are, if anywhere.
    likeliest: Option<usize>,
    stop: Stop,
}

/// Logits of the rows that a batch wanted.
pub struct Logits {
    values: Vec<f32>,
    shared: Option<Tensor>,
    vocab_len: usize,
}

/// What is known of the rows that a batch wanted.
pub(crate) enum Found {
    Logits(Logits),
    /// The likeliest token of each.
    Likeliest(Vec<u32>),
}

/// What is known of one row.
#[derive(Clone, Copy)]
pub(crate) enum Row<'a> {
    Logits(&'a [f32]),
    Likeliest(u32),
}

impl Found {
    /// The wanted row at this place.
    pub fn row(&self, at: usize) -> Row<'_> {
        match self {
            Found::Logits(logits) => Row::Logits(logits.row(at)),
            Found::Likeliest(tokens) => Row::Likeliest(tokens[at]),
        }
    }
}

impl Logits {
    fn new(tensor: Tensor, vocab_len: usize) -> Logits {
        // Shared memory is aligned for any vector; a copy is made where it is not.
        let aligned = bytemuck::try_cast_slice::<u8, f32>(tensor.bytes()).is_ok();
        Logits {
            values: match aligned {
                true => vec![],
                false => tensor.to_vec().unwrap_or_default(),
            },
            shared: aligned.then_some(tensor),
            vocab_len,
        }
    }

    /// The logits of the wanted row at this place.
    pub fn row(&self, at: usize) -> &[f32] {
        let all = match &self.shared {
            Some(tensor) => bytemuck::cast_slice(tensor.bytes()),
            None => &self.values,
        };
        &all[at * self.vocab_len..(at + 1) * self.vocab_len]
    }
}

impl Decoder {
    /// A decoder with a cache of so many empty pages.
    ///
    /// # Errors
    /// [`LlmError::NoDecoder`] for a program that is none; memory that the device refuses.
    pub fn new(program: Arc<Program>, pages: usize) -> Result<Decoder> {
        let graph = program.graph();
        let cache = CacheShape::of(graph)?;
        let inputs = inputs_of(graph)?;
        let vocab_len = vocab_of(graph)?;
        let likeliest = likeliest_of(graph);
        let mut state = program.new_state(0);
        // A prompt of many different tokens would keep most of the table of embeddings.
        state.gives_back_picked = true;
        for (name, dtype, [heads, len, width]) in &cache.slots {
            let shape = [pages, *heads, *len, *width];
            let memory: RunValue = match program.device {
                DeviceSpec::Reference => host_zeros(*dtype, &shape)?.into(),
                _ => program.zeros(*dtype, &shape)?.into(),
            };
            state.set_slot(name, memory)?;
        }
        Ok(Decoder {
            program,
            state,
            inputs,
            cache,
            pages,
            vocab_len,
            likeliest,
            stop: Stop::default(),
        })
    }

    /// The program.
    pub fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// The cache's shape.
    pub fn cache(&self) -> &CacheShape {
        &self.cache
    }

    /// Pages of the cache.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Tokens that logits are given for.
    pub fn vocab_len(&self) -> usize {
        self.vocab_len
    }

    /// Figures of the last run.
    pub fn stats(&self) -> RunStats {
        self.state.stats
    }

    /// What stops a run early.
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// What stops a run early: flags that other threads set, a deadline.
    pub fn stop_mut(&mut self) -> &mut Stop {
        &mut self.stop
    }

    /// Runs a batch: its keys and values are in the cache afterwards, and the logits of wanted rows are given.
    ///
    /// # Errors
    /// What the run finds; the rows may then be in the cache or not.
    pub fn run(&mut self, batch: &Batch) -> Result<Logits> {
        let outputs = self.outputs(batch, 0)?;
        self.logits(&outputs[0])
    }

    /// As [`Decoder::run`], for texts that take the likeliest token. Where the program finds it, logits stay on the device,
    /// unless those of a row are not finite.
    pub(crate) fn run_for_likeliest(&mut self, batch: &Batch) -> Result<Found> {
        let Some(at) = self.likeliest else {
            return Ok(Found::Logits(self.run(batch)?));
        };
        let outputs = self.outputs(batch, at)?;
        let tokens = host_tensor(&outputs[at])?
            .to_vec::<i32>()
            .unwrap_or_default();
        let known: Option<Vec<u32>> = tokens.iter().map(|t| u32::try_from(*t).ok()).collect();
        Ok(match known {
            Some(tokens) => Found::Likeliest(tokens),
            None => Found::Logits(self.logits(&outputs[0])?),
        })
    }

    /// Runs a batch. Outputs stay on the device, except the one at this position.
    fn outputs(&mut self, batch: &Batch, wanted: usize) -> Result<Vec<RunValue>> {
        let inputs = self.inputs.iter().map(|i| batch.input(*i).into()).collect();
        let place = |at| match at == wanted {
            true => Place::Host,
            false => Place::Device,
        };
        let outputs = self.program.graph().outputs().len();
        let places = (0..outputs).map(place).collect();
        Ok(self
            .program
            .run(&mut self.state, inputs, places, &self.stop)?)
    }

    fn logits(&self, value: &RunValue) -> Result<Logits> {
        Ok(Logits::new(host_tensor(value)?, self.vocab_len))
    }
}

fn host_tensor(value: &RunValue) -> Result<Tensor> {
    let value = value.to_host()?;
    let tensor = value.as_tensor().cloned();
    Ok(tensor.unwrap_or_else(|| unreachable!("bug: an output is a tensor")))
}

/// The output with the likeliest tokens.
fn likeliest_of(graph: &Graph) -> Option<usize> {
    let is_it = |(name, value): &(Arc<str>, ValueId)| {
        let ty = graph.ty(*value).as_tensor();
        &**name == LIKELIEST && ty.is_some_and(|t| t.dtype == DType::I32 && t.rank() == 1)
    };
    graph.outputs().iter().position(is_it)
}

/// Pages of the cache, out of it and into it.
impl Decoder {
    /// What these pages hold, by slot: `[pages, heads, page_len, width]`.
    ///
    /// # Errors
    /// A device that fails.
    pub(crate) fn read_pages(&self, pages: &[PageId]) -> Result<BTreeMap<String, Tensor>> {
        let mut slots = BTreeMap::new();
        for (name, dtype, page) in &self.cache.slots {
            let all = self.slot(name)?;
            let size = page_bytes(*dtype, page);
            let mut bytes = Vec::with_capacity(pages.len() * size);
            for id in pages {
                let from = *id as usize * size;
                bytes.extend_from_slice(&all.bytes()[from..from + size]);
            }
            let shape = [&[pages.len()], &page[..]].concat();
            let tensor = Tensor::new(*dtype, shape, bytes.into());
            let tensor = tensor.unwrap_or_else(|| unreachable!("bug: size of pages"));
            slots.insert(name.clone(), tensor);
        }
        Ok(slots)
    }

    /// Overwrites pages with what `slots` has from the page `from` on. The slots fit, as [`Decoder::check_pages`] finds.
    ///
    /// # Errors
    /// A device that fails; the pages may then hold anything.
    pub(crate) fn write_pages(
        &mut self,
        pages: &[PageId],
        slots: &BTreeMap<String, Tensor>,
        from: usize,
    ) -> Result<()> {
        if pages.is_empty() {
            return Ok(());
        }
        for (name, dtype, page) in &self.cache.slots {
            let all = self.slot(name)?;
            let size = page_bytes(*dtype, page);
            let mut bytes = all.bytes().to_vec();
            let new = slots[name].bytes()[from * size..].chunks_exact(size);
            for (id, new) in pages.iter().zip(new) {
                bytes[*id as usize * size..][..size].copy_from_slice(new);
            }
            let tensor = Tensor::new(*dtype, all.shape().to_vec(), bytes.into());
            let tensor = tensor.unwrap_or_else(|| unreachable!("bug: size of a slot"));
            let memory: RunValue = match self.program.device {
                DeviceSpec::Reference => tensor.into(),
                _ => self.program.upload(&tensor)?.into(),
            };
            self.state.set_slot(name, memory)?;
        }
        Ok(())
    }

    /// Whether `slots` holds so many pages of this cache.
    ///
    /// # Errors
    /// [`LlmError::Snapshot`] names the first slot that differs.
    pub(crate) fn check_pages(&self, slots: &BTreeMap<String, Tensor>, pages: usize) -> Result<()> {
        for (name, dtype, page) in &self.cache.slots {
            let shape = [&[pages], &page[..]].concat();
            let what = match slots.get(name) {
                Some(t) if t.dtype() == *dtype && t.shape() == shape => continue,
                Some(t) => format!(
                    "has {} for {name}, the model keeps {dtype}{shape:?}",
                    t.ty()
                ),
                None => format!("has nothing for {name}"),
            };
            return Err(LlmError::Snapshot(what));
        }
        let known = |name: &String| self.cache.slots.iter().any(|(n, ..)| n == name);
        match slots.keys().find(|name| !known(name)) {
            Some(name) => Err(LlmError::Snapshot(format!(
                "has '{name}', which the model does not keep"
            ))),
            None => Ok(()),
        }
    }

    /// A slot on the host.
    fn slot(&self, name: &str) -> Result<Tensor> {
        let slot = self.state.slot(name).map(RunValue::to_host).transpose()?;
        let tensor = slot.and_then(|v| v.as_tensor().cloned());
        Ok(tensor.unwrap_or_else(|| unreachable!("bug: slot {name} is no tensor")))
    }
}

fn page_bytes(dtype: DType, page: &[usize]) -> usize {
    Tensor::size_of(dtype, page).unwrap_or_else(|| unreachable!("bug: a page that was checked"))
}

/// Which input each of the graph's is.
fn inputs_of(graph: &Graph) -> Result<Vec<Input>> {
    let refused = |what: String| LlmError::NoDecoder(graph.name.clone(), what);
    let names: Vec<&str> = graph
        .inputs()
        .iter()
        .map(|v| graph.input_name(*v))
        .collect();
    if let Some((missing, _)) = Input::ALL.iter().find(|(name, _)| !names.contains(name)) {
        return Err(refused(format!("it takes no '{missing}'")));
    }
    let known = |name: &str| Input::ALL.iter().find(|(n, _)| *n == name).map(|(_, i)| *i);
    let each = names.iter();
    each.map(|name| known(name).ok_or_else(|| refused(format!("it takes '{name}' too"))))
        .collect()
}

/// The width of the logits.
pub(crate) fn vocab_of(graph: &Graph) -> Result<usize> {
    let refused = |what: String| LlmError::NoDecoder(graph.name.clone(), what);
    let Some((_, logits)) = graph.outputs().first() else {
        return Err(refused("it gives nothing".into()));
    };
    let ty = graph.ty(*logits);
    let tensor = ty
        .as_tensor()
        .filter(|t| t.dtype == DType::F32 && t.rank() == 2);
    let vocab = tensor
        .and_then(|t| t.dims[1].as_const())
        .and_then(|v| usize::try_from(v).ok());
    let found = vocab.filter(|v| (1..=u32::MAX as usize).contains(v));
    found.ok_or_else(|| {
        refused(format!(
            "its first output is {ty}, not f32 logits of a vocabulary"
        ))
    })
}

fn host_zeros(dtype: DType, shape: &[usize]) -> Result<Tensor> {
    let size = Tensor::size_of(dtype, shape);
    let zeros = size.and_then(|size| Tensor::new(dtype, shape.to_vec(), vec![0u8; size].into()));
    let refused = || cupola_ir::IrError::Limit(format!("a cache of {dtype}{shape:?}"));
    Ok(zeros
        .ok_or_else(refused)
        .map_err(cupola_runtime::RuntimeError::from)?)
}
