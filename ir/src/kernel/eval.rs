//! The interpreter of kernels over byte buffers: what a backend's code is held against.
//!
//! Positions run one after another, row-major; every expression is rounded to its dtype, sums of floats accumulate in
//! `f64`. Integer division by zero gives 0.

use super::verify::{order, verify};
use super::walk::Item;
use super::{
    Access, Accum, AccumKind, AxisId, Expr, ExprId, Extent, Index, Kernel, Phase, Store, StoreKind,
};
use crate::convert::{self, Lanes};
use crate::dtype::DType;
use crate::error::{IrError, Result};
use crate::eval::random;
use crate::eval::scalar::{Num, eval_one};
use crate::scalar::Scalar;
use crate::tensor::Tensor;
use bytes::Bytes;
use rustc_hash::FxHashMap;

/// Runs a kernel. `buffers` are its buffer arguments in order, `sizes` the values of its run-time sizes.
///
/// # Errors
/// [`IrError::Invalid`] for a kernel that breaks an invariant; [`IrError::Run`] for buffers or sizes that do not fit,
/// an offset outside a buffer, and, after finishing, an index outside its extent that the kernel reports.
pub fn run_kernel(kernel: &Kernel, buffers: &mut [Vec<u8>], sizes: &[i64]) -> Result<()> {
    verify(kernel)?;
    let wrong = |what: String| IrError::run(format!("kernel '{}'", kernel.name), what);
    if buffers.len() != kernel.buffers.len() || sizes.len() != kernel.sizes.len() {
        return Err(wrong(format!(
            "takes {} buffers and {} sizes, not {} and {}",
            kernel.buffers.len(),
            kernel.sizes.len(),
            buffers.len(),
            sizes.len()
        )));
    }
    let mut run = Run::new(kernel, buffers, sizes).map_err(wrong)?;
    run.all().map_err(wrong)?;
    for (at, decl) in kernel.buffers.iter().enumerate() {
        if decl.access == Access::Read {
            continue;
        }
        let lanes = &run.memory[at];
        let t = convert::encode(lanes, decl.dtype, &[lanes.len()], false)
            .ok_or_else(|| wrong(format!("no elements of {}", decl.dtype)))?;
        buffers[at][..t.bytes().len()].copy_from_slice(t.bytes());
    }
    match run.fault {
        Some(what) => Err(wrong(what)),
        None => Ok(()),
    }
}

struct Run<'a> {
    kernel: &'a Kernel,
    sizes: &'a [i64],
    dtypes: Vec<DType>,
    /// Buffers as loads see them.
    before: Vec<Lanes>,
    /// Buffers as stores leave them.
    memory: Vec<Lanes>,
    /// What the present parallel position stored.
    own: FxHashMap<(u32, usize), Num>,
    extents: Vec<i64>,
    axes: Vec<i64>,
    exprs: Vec<Num>,
    indices: Vec<i64>,
    accums: Vec<Vec<Num>>,
    fault: Option<String>,
}

impl<'a> Run<'a> {
    fn new(kernel: &'a Kernel, buffers: &[Vec<u8>], sizes: &'a [i64]) -> Result<Run<'a>, String> {
        let extent = |e: Extent| match e {
            Extent::Const(n) => n,
            Extent::Size(s) => sizes[s as usize],
        };
        let mut before = vec![];
        for (at, (decl, bytes)) in kernel.buffers.iter().zip(buffers).enumerate() {
            let len = usize::try_from(extent(decl.len))
                .map_err(|_| format!("buffer {at} has a negative length"))?;
            let size = decl.dtype.storage_size(1, len);
            let bytes = size.and_then(|n| bytes.get(..n)).ok_or_else(|| {
                format!(
                    "buffer {at} has {} bytes, too few for {len} of {}",
                    bytes.len(),
                    decl.dtype
                )
            })?;
            let t = Tensor::new(decl.dtype, vec![len], Bytes::copy_from_slice(bytes));
            let lanes = t.as_ref().and_then(convert::lanes);
            before.push(lanes.ok_or_else(|| format!("no elements of {}", decl.dtype))?);
        }
        Ok(Run {
            kernel,
            sizes,
            dtypes: (0..kernel.exprs.len() as u32)
                .map(|e| kernel.dtype(ExprId(e)))
                .collect(),
            memory: before.clone(),
            before,
            own: FxHashMap::default(),
            extents: kernel.axes.iter().map(|e| extent(*e)).collect(),
            axes: vec![0; kernel.axes.len()],
            exprs: vec![Num::U(0); kernel.exprs.len()],
            indices: vec![0; kernel.indices.len()],
            accums: vec![vec![]; kernel.phases.len()],
            fault: None,
        })
    }

    fn all(&mut self) -> Result<(), String> {
        let kernel = self.kernel;
        let mut programs = vec![];
        for phase in &kernel.phases {
            let roots: Vec<Item> = match phase {
                Phase::Reduce { accums, .. } => {
                    accums.iter().map(|a| Item::Expr(a.value)).collect()
                }
                Phase::Store { stores, .. } => stores
                    .iter()
                    .flat_map(|s| {
                        [
                            Some(Item::Expr(s.value)),
                            Some(Item::Index(s.index)),
                            s.guard.map(Item::Expr),
                        ]
                    })
                    .flatten()
                    .collect(),
            };
            programs.push(order(kernel, &roots).unwrap_or_default());
        }
        let parallel: Vec<AxisId> = (0..kernel.parallel as u32).map(AxisId).collect();
        self.first(&parallel);
        if self.is_empty(&parallel) {
            return Ok(());
        }
        loop {
            self.own.clear();
            for (p, (phase, program)) in kernel.phases.iter().zip(&programs).enumerate() {
                match phase {
                    Phase::Reduce { axes, accums } => self.reduce(p, axes, accums, program)?,
                    Phase::Store { axes, stores } => self.store(axes, stores, program)?,
                }
            }
            if !self.next(&parallel) {
                return Ok(());
            }
        }
    }

    fn is_empty(&self, axes: &[AxisId]) -> bool {
        axes.iter().any(|a| self.extents[a.0 as usize] <= 0)
    }

    fn first(&mut self, axes: &[AxisId]) {
        axes.iter().for_each(|a| self.axes[a.0 as usize] = 0);
    }

    /// Advances to the next position; false after the last.
    fn next(&mut self, axes: &[AxisId]) -> bool {
        for AxisId(a) in axes.iter().rev() {
            let at = &mut self.axes[*a as usize];
            *at += 1;
            if *at < self.extents[*a as usize] {
                return true;
            }
            *at = 0;
        }
        false
    }

    fn reduce(
        &mut self,
        p: usize,
        axes: &[AxisId],
        accums: &[Accum],
        program: &[Item],
    ) -> Result<(), String> {
        let dtypes: Vec<DType> = accums
            .iter()
            .map(|a| self.dtypes[a.value.0 as usize])
            .collect();
        let mut running: Vec<(Num, i64)> = accums
            .iter()
            .zip(&dtypes)
            .map(|(a, d)| (start(a.kind, *d), 0))
            .collect();
        let mut position = 0i64;
        self.first(axes);
        if !self.is_empty(axes) {
            loop {
                self.step(program)?;
                for ((a, d), (value, at)) in accums.iter().zip(&dtypes).zip(&mut running) {
                    let x = self.exprs[a.value.0 as usize];
                    if accumulate(a.kind, *d, *value, x, position == 0) {
                        (*value, *at) = (combine(a.kind, *d, *value, x), position);
                    }
                }
                position += 1;
                if !self.next(axes) {
                    break;
                }
            }
        }
        let done = accums.iter().zip(&dtypes).zip(running);
        self.accums[p] = done
            .map(|((a, d), (value, at))| match a.kind {
                AccumKind::ArgMax { .. } | AccumKind::ArgMin { .. } => Num::I(at),
                AccumKind::Sum | AccumKind::Prod | AccumKind::Max | AccumKind::Min => {
                    convert::round(value, *d)
                }
            })
            .collect();
        Ok(())
    }

    fn store(&mut self, axes: &[AxisId], stores: &[Store], program: &[Item]) -> Result<(), String> {
        self.first(axes);
        if self.is_empty(axes) {
            return Ok(());
        }
        loop {
            self.step(program)?;
            for s in stores {
                if s.guard.is_some_and(|g| !self.exprs[g.0 as usize].is_true()) {
                    continue;
                }
                let value = self.exprs[s.value.0 as usize];
                let dtype = self.kernel.buffers[s.buffer.0 as usize].dtype;
                let at = self.offset(s.buffer.0, self.indices[s.index.0 as usize])?;
                let memory = &mut self.memory[s.buffer.0 as usize];
                let value = match s.kind {
                    StoreKind::Set => value,
                    StoreKind::AtomicAdd => {
                        let old = Num::of(memory, at).unwrap_or(value);
                        let sum = eval_one(Scalar::Add, dtype, &[old, value]).unwrap_or(value);
                        convert::round(sum, dtype)
                    }
                };
                match (memory, value) {
                    (Lanes::F(v), Num::F(x)) => v[at] = x,
                    (Lanes::I(v), Num::I(x)) => v[at] = x,
                    (Lanes::U(v), Num::U(x)) => v[at] = x,
                    _ => return Err("a store of another kind of number".into()),
                }
                self.own.insert((s.buffer.0, at), value);
            }
            if !self.next(axes) {
                return Ok(());
            }
        }
    }

    fn offset(&self, buffer: u32, index: i64) -> Result<usize, String> {
        let len = self.memory[buffer as usize].len();
        let at = usize::try_from(index).ok().filter(|i| *i < len);
        at.ok_or_else(|| format!("buffer {buffer}: offset {index} of {len} elements"))
    }

    fn step(&mut self, program: &[Item]) -> Result<(), String> {
        for item in program {
            match *item {
                Item::Index(i) => {
                    self.indices[i.0 as usize] = self.index(self.kernel.indices[i.0 as usize])?
                }
                Item::Expr(e) => {
                    let value = self.expr(self.kernel.exprs[e.0 as usize])?;
                    self.exprs[e.0 as usize] = convert::round(value, self.dtypes[e.0 as usize]);
                }
            }
        }
        Ok(())
    }

    fn index(&mut self, index: Index) -> Result<i64, String> {
        let get = |i: super::IndexId| self.indices[i.0 as usize];
        let overflow = || "an index overflows".to_string();
        Ok(match index {
            Index::Const(c) => c,
            Index::Size(s) => self.sizes[s as usize],
            Index::Axis(a) => self.axes[a.0 as usize],
            Index::Add(a, b) => get(a).checked_add(get(b)).ok_or_else(overflow)?,
            Index::Sub(a, b) => get(a).checked_sub(get(b)).ok_or_else(overflow)?,
            Index::Mul(a, b) => get(a).checked_mul(get(b)).ok_or_else(overflow)?,
            Index::Div(a, b) => get(a).checked_div_euclid(get(b)).ok_or_else(overflow)?,
            Index::Rem(a, b) => get(a).checked_rem_euclid(get(b)).ok_or_else(overflow)?,
            Index::Min(a, b) => get(a).min(get(b)),
            Index::Max(a, b) => get(a).max(get(b)),
            Index::Checked {
                value,
                extent,
                fault,
            } => {
                let n = get(extent);
                let Num::I(i) = self.exprs[value.0 as usize] else {
                    return Err("an index of another kind of number".into());
                };
                let inside = (0..n).contains(&i);
                if fault && !inside && self.fault.is_none() {
                    self.fault = Some(format!("index {i} is outside an axis of extent {n}"));
                }
                i.clamp(0, (n - 1).max(0))
            }
        })
    }

    fn expr(&mut self, expr: Expr) -> Result<Num, String> {
        let get = |e: ExprId| self.exprs[e.0 as usize];
        let dtype = |e: ExprId| self.dtypes[e.0 as usize];
        let scalar = |f: Scalar, d: DType, xs: &[Num]| {
            eval_one(f, d, xs).ok_or_else(|| format!("{} of {d}", f.name()))
        };
        Ok(match expr {
            Expr::Const(l) => bits_to_num(l.dtype, l.bits).ok_or("a constant of no number type")?,
            Expr::Index(i, to) => cast(Num::I(self.indices[i.0 as usize]), DType::I64, to, true)
                .ok_or("an index as no number")?,
            Expr::Less(a, b) => Num::U(u64::from(
                self.indices[a.0 as usize] < self.indices[b.0 as usize],
            )),
            Expr::Load {
                buffer,
                index,
                guard,
            } => {
                let zero = match self.kernel.buffers[buffer.0 as usize].dtype.class() {
                    crate::Class::Float => Num::F(0.0),
                    crate::Class::Signed => Num::I(0),
                    _ => Num::U(0),
                };
                if guard.is_some_and(|g| !get(g).is_true()) {
                    return Ok(zero);
                }
                let at = self.offset(buffer.0, self.indices[index.0 as usize])?;
                match self.own.get(&(buffer.0, at)) {
                    Some(x) => *x,
                    None => Num::of(&self.before[buffer.0 as usize], at).unwrap_or(zero),
                }
            }
            Expr::Unary(f, x) => scalar(f, dtype(x), &[get(x)])?,
            Expr::Binary(f, x, y) => scalar(f, dtype(x), &[get(x), get(y)])?,
            Expr::Ternary(f, x, y, z) => scalar(f, dtype(y), &[get(x), get(y), get(z)])?,
            Expr::Cast { x, to, saturate } => {
                cast(get(x), dtype(x), to, saturate).ok_or_else(|| format!("no cast to {to}"))?
            }
            Expr::Bitcast { x, to } => num_to_bits(dtype(x), get(x))
                .and_then(|bits| bits_to_num(to, bits))
                .ok_or_else(|| format!("no bits of {to}"))?,
            Expr::Accum { phase, accum } => self.accums[phase as usize][accum as usize],
            Expr::Random {
                index,
                stream,
                seed,
                run,
            } => {
                let size = |s: u32| self.sizes[s as usize] as u64;
                let element = self.indices[index.0 as usize] as u64;
                Num::U(u64::from(random::bits(
                    size(seed),
                    stream,
                    size(run),
                    element,
                )))
            }
        })
    }
}

fn start(kind: AccumKind, dtype: DType) -> Num {
    let class = dtype.class();
    let (lo, hi) = dtype.int_range().unwrap_or((0, 0));
    let number = |f: f64, i: i128| match class {
        crate::Class::Float => Num::F(f),
        crate::Class::Signed => Num::I(i as i64),
        _ => Num::U(i as u64),
    };
    match kind {
        AccumKind::Sum => number(0.0, 0),
        AccumKind::Prod => number(1.0, 1),
        AccumKind::Max | AccumKind::ArgMax { .. } => number(f64::NEG_INFINITY, lo),
        AccumKind::Min | AccumKind::ArgMin { .. } => number(f64::INFINITY, hi),
    }
}

/// Whether an element changes the running value (and, for positions, its place).
fn accumulate(kind: AccumKind, dtype: DType, running: Num, x: Num, first: bool) -> bool {
    let (max, last) = match kind {
        AccumKind::ArgMax { last } => (true, last),
        AccumKind::ArgMin { last } => (false, last),
        AccumKind::Sum | AccumKind::Prod | AccumKind::Max | AccumKind::Min => return true,
    };
    if first {
        return true;
    }
    if let (Num::F(a), Num::F(b)) = (running, x)
        && (a.is_nan() || b.is_nan())
    {
        return b.is_nan() && (last || !a.is_nan());
    }
    let test = if last { Scalar::Le } else { Scalar::Lt };
    let pair = if max { [running, x] } else { [x, running] };
    eval_one(test, dtype, &pair).is_some_and(Num::is_true)
}

fn combine(kind: AccumKind, dtype: DType, running: Num, x: Num) -> Num {
    let f = match kind {
        AccumKind::Sum => Scalar::Add,
        AccumKind::Prod => Scalar::Mul,
        AccumKind::Max => Scalar::Max,
        AccumKind::Min => Scalar::Min,
        AccumKind::ArgMax { .. } | AccumKind::ArgMin { .. } => return x,
    };
    let value = eval_one(f, dtype, &[running, x]);
    match value.unwrap_or_else(|| unreachable!("bug: a verified accumulator of {dtype}")) {
        // Floats stay wide until the end.
        Num::F(v) => Num::F(v),
        other => convert::round(other, dtype),
    }
}

fn one(x: Num) -> Lanes {
    match x {
        Num::F(x) => Lanes::F(vec![x]),
        Num::I(x) => Lanes::I(vec![x]),
        Num::U(x) => Lanes::U(vec![x]),
    }
}

fn cast(x: Num, from: DType, to: DType, saturate: bool) -> Option<Num> {
    match (x, to) {
        (Num::F(_), DType::F64 | DType::F32) => return Some(convert::round(x, to)),
        (Num::F(v), DType::I32) => return Some(Num::I(i64::from(v as i32))),
        _ => {}
    }
    let t = convert::encode(&one(x), from, &[1], saturate)?;
    Num::of(&convert::lanes(&convert::cast(&t, to, saturate).ok()?)?, 0)
}

fn bits_to_num(dtype: DType, bits: u64) -> Option<Num> {
    match dtype {
        DType::F32 => return Some(Num::F(f64::from(f32::from_bits(bits as u32)))),
        DType::I32 => return Some(Num::I(i64::from(bits as u32 as i32))),
        DType::U32 => return Some(Num::U(u64::from(bits as u32))),
        _ => {}
    }
    let size = dtype.bits().div_ceil(8);
    let bytes = Bytes::copy_from_slice(&bits.to_le_bytes()[..size]);
    Num::of(&convert::lanes(&Tensor::new(dtype, vec![1], bytes)?)?, 0)
}

fn num_to_bits(dtype: DType, x: Num) -> Option<u64> {
    match (x, dtype) {
        (Num::F(v), DType::F32) => return Some(u64::from((v as f32).to_bits())),
        (Num::I(v), DType::I32) => return Some(u64::from(v as i32 as u32)),
        (Num::U(v), DType::U32) => return Some(u64::from(v as u32)),
        _ => {}
    }
    let t = convert::encode(&one(x), dtype, &[1], false)?;
    let mut bits = [0u8; 8];
    bits[..t.bytes().len()].copy_from_slice(t.bytes());
    Some(u64::from_le_bytes(bits))
}
