//! The verifier of kernels: every id points somewhere, entries refer to earlier ones, dtypes agree.

use super::{
    Access, AccumKind, AxisId, Expr, ExprId, Extent, Index, IndexId, Item, Kernel, Phase, StoreKind,
};
use crate::dtype::{Class, DType};
use crate::error::{IrError, Result};

/// Checks a kernel.
///
/// # Errors
/// [`IrError::Invalid`] with one line per finding.
pub fn verify(kernel: &Kernel) -> Result<()> {
    let mut check = Check {
        k: kernel,
        found: vec![],
        dtypes: vec![],
    };
    check.all();
    if check.found.is_empty() {
        Ok(())
    } else {
        Err(IrError::Invalid(check.found.join("\n")))
    }
}

struct Check<'a> {
    k: &'a Kernel,
    found: Vec<String>,
    /// Dtypes of the expressions checked so far.
    dtypes: Vec<Option<DType>>,
}

impl Check<'_> {
    fn all(&mut self) {
        let k = self.k;
        for (what, extent) in
            (k.buffers.iter().map(|b| ("buffer", b.len))).chain(k.axes.iter().map(|a| ("axis", *a)))
        {
            match extent {
                Extent::Const(n) if n < 0 => self.found.push(format!("{what} of extent {n}")),
                Extent::Size(s) if s as usize >= k.sizes.len() => {
                    self.found.push(format!("{what}: size {s} does not exist"));
                }
                _ => {}
            }
        }
        if k.parallel > k.axes.len() {
            self.found
                .push(format!("{} parallel axes of {}", k.parallel, k.axes.len()));
        }
        for (at, index) in k.indices.iter().enumerate() {
            self.index(at, index);
        }
        for (at, expr) in k.exprs.iter().enumerate() {
            let dtype = self.expr(at, expr);
            self.dtypes.push(dtype);
        }
        for (at, index) in k.indices.iter().enumerate() {
            if let Index::Checked { value, .. } = index
                && !matches!(self.dtype(*value), Some(DType::I64 | DType::I32))
            {
                self.found
                    .push(format!("index {at}: the element is no i64 or i32"));
            }
        }
        if self.found.is_empty() {
            self.phases();
            self.cycles();
        }
    }

    fn dtype(&self, e: ExprId) -> Option<DType> {
        self.dtypes.get(e.0 as usize).copied().flatten()
    }

    fn index(&mut self, at: usize, index: &Index) {
        let k = self.k;
        let good = match *index {
            Index::Const(_) => true,
            Index::Size(s) => (s as usize) < k.sizes.len(),
            Index::Axis(a) => (a.0 as usize) < k.axes.len(),
            operation => {
                let mut good = true;
                operation.for_each_operand(|operand| {
                    good &= match operand {
                        Item::Index(i) => (i.0 as usize) < at,
                        Item::Expr(e) => (e.0 as usize) < k.exprs.len(),
                    };
                });
                good
            }
        };
        if !good {
            self.found.push(format!(
                "index {at}: {index:?} refers to what does not exist before it"
            ));
        }
    }

    /// The dtype of an expression whose operands exist.
    fn expr(&mut self, at: usize, expr: &Expr) -> Option<DType> {
        let k = self.k;
        let index = |i: IndexId| (i.0 as usize) < k.indices.len();
        let result = match *expr {
            Expr::Const(l) => Ok(l.dtype),
            Expr::Index(i, dtype) if index(i) && (dtype.is_int() || dtype.is_float()) => Ok(dtype),
            Expr::Less(a, b) if index(a) && index(b) => Ok(DType::Bool),
            Expr::Load {
                buffer,
                index: i,
                guard,
            } => match k.buffers.get(buffer.0 as usize) {
                Some(b) if index(i) && b.access != Access::Write => {
                    match guard.map(|g| self.dtype(g)) {
                        None | Some(Some(DType::Bool)) => Ok(b.dtype),
                        Some(_) => Err("the guard is no bool".into()),
                    }
                }
                _ => Err("loads from what cannot be read".into()),
            },
            Expr::Unary(f, x) => self.scalar(f, &[x]),
            Expr::Binary(f, x, y) => self.scalar(f, &[x, y]),
            Expr::Ternary(f, x, y, z) => self.scalar(f, &[x, y, z]),
            Expr::Cast { x, to, .. } => match self.dtype(x).map(DType::class) {
                Some(Class::String | Class::Block) | None => Err("casts what is no number".into()),
                Some(_) if matches!(to.class(), Class::String | Class::Block) => {
                    Err(format!("casts to {to}"))
                }
                Some(_) => Ok(to),
            },
            Expr::Bitcast { x, to } => match self.dtype(x) {
                Some(from) if from.bits() == to.bits() && to.bits() > 0 => Ok(to),
                _ => Err(format!("bits of another width as {to}")),
            },
            Expr::Accum { phase, accum } => self.accum(phase, accum),
            Expr::Random {
                index: i,
                seed,
                run,
                ..
            } if index(i) && (seed as usize) < k.sizes.len() && (run as usize) < k.sizes.len() => {
                Ok(DType::U32)
            }
            Expr::Index(..) | Expr::Less(..) | Expr::Random { .. } => {
                Err("refers to what does not exist".into())
            }
        };
        result
            .map_err(|what| {
                self.found
                    .push(format!("expression {at}: {expr:?}: {what}"))
            })
            .ok()
    }

    fn scalar(&self, f: crate::Scalar, operands: &[ExprId]) -> Result<DType, String> {
        let dtypes: Option<Vec<DType>> = operands.iter().map(|x| self.dtype(*x)).collect();
        f.infer(&dtypes.ok_or("uses what is not defined before it")?)
    }

    fn accum(&self, phase: u32, accum: u32) -> Result<DType, String> {
        let Some(Phase::Reduce { accums, .. }) = self.k.phases.get(phase as usize) else {
            return Err("is no reduce phase".into());
        };
        let a = accums.get(accum as usize).ok_or("is no accumulator")?;
        match a.kind {
            AccumKind::ArgMax { .. } | AccumKind::ArgMin { .. } => Ok(DType::I64),
            AccumKind::Sum | AccumKind::Prod | AccumKind::Max | AccumKind::Min => {
                // Without a cycle the value's dtype is decided by earlier entries.
                self.dtype(a.value)
                    .ok_or_else(|| "of a value that is defined later".into())
            }
        }
    }

    fn phases(&mut self) {
        let k = self.k;
        let mut owner = vec![None; k.axes.len()];
        for (p, phase) in k.phases.iter().enumerate() {
            let axes = match phase {
                Phase::Reduce { axes, .. } | Phase::Store { axes, .. } => axes,
            };
            for AxisId(a) in axes {
                match owner.get_mut(*a as usize) {
                    Some(o @ None) if *a as usize >= k.parallel => *o = Some(p),
                    _ => self
                        .found
                        .push(format!("phase {p}: axis {a} is not its own")),
                }
            }
        }
        for (p, phase) in k.phases.iter().enumerate() {
            match phase {
                Phase::Reduce { accums, .. } => {
                    for a in accums {
                        self.value(p, a.value, &owner);
                    }
                }
                Phase::Store { stores, .. } => {
                    for s in stores {
                        self.store(p, s);
                        self.value(p, s.value, &owner);
                        self.axes_of(p, None, Some(s.index), &owner);
                        if let Some(g) = s.guard {
                            self.value(p, g, &owner);
                        }
                    }
                }
            }
        }
    }

    fn store(&mut self, p: usize, s: &super::Store) {
        let k = self.k;
        let buffer = k.buffers.get(s.buffer.0 as usize);
        let good = buffer
            .is_some_and(|b| b.access != Access::Read && self.dtype(s.value) == Some(b.dtype))
            && (s.index.0 as usize) < k.indices.len()
            && s.guard.is_none_or(|g| self.dtype(g) == Some(DType::Bool));
        if !good {
            self.found
                .push(format!("phase {p}: {s:?} does not fit its buffer"));
        }
        if s.kind == StoreKind::AtomicAdd && buffer.is_some_and(|b| b.dtype == DType::Bool) {
            self.found.push(format!("phase {p}: adds to bool"));
        }
    }

    fn value(&mut self, p: usize, e: ExprId, owner: &[Option<usize>]) {
        if e.0 as usize >= self.k.exprs.len() {
            self.found
                .push(format!("phase {p}: expression {} does not exist", e.0));
        } else {
            self.axes_of(p, Some(e), None, owner);
        }
    }

    /// Reports axes of other phases, and accumulators of this or later ones, that a value of phase `p` uses.
    fn axes_of(
        &mut self,
        p: usize,
        e: Option<ExprId>,
        i: Option<IndexId>,
        owner: &[Option<usize>],
    ) {
        let mut used = Reach::new(self.k);
        e.into_iter().for_each(|e| used.expr(e));
        i.into_iter().for_each(|i| used.index(i));
        used.close(self.k);
        for (at, _) in used.indices.iter().enumerate().filter(|(_, u)| **u) {
            if let Index::Axis(a) = self.k.indices[at]
                && a.0 as usize >= self.k.parallel
                && owner[a.0 as usize] != Some(p)
            {
                self.found
                    .push(format!("phase {p}: uses axis {} of another phase", a.0));
            }
        }
        for (at, _) in used.exprs.iter().enumerate().filter(|(_, u)| **u) {
            if let Expr::Accum { phase, .. } = self.k.exprs[at]
                && phase as usize >= p
            {
                self.found
                    .push(format!("phase {p}: uses accumulators of phase {phase}"));
            }
        }
    }

    /// Reports a load whose index depends, through a checked element, on that load.
    fn cycles(&mut self) {
        if order(self.k, &all_roots(self.k)).is_none() {
            self.found
                .push("an index depends on an element that it addresses".into());
        }
    }
}

fn all_roots(k: &Kernel) -> Vec<Item> {
    (0..k.exprs.len() as u32)
        .map(|e| Item::Expr(ExprId(e)))
        .collect()
}

/// What a set of expressions and indices depends on.
struct Reach {
    exprs: Vec<bool>,
    indices: Vec<bool>,
    open: Vec<Item>,
}

impl Reach {
    fn new(k: &Kernel) -> Reach {
        Reach {
            exprs: vec![false; k.exprs.len()],
            indices: vec![false; k.indices.len()],
            open: vec![],
        }
    }

    fn expr(&mut self, e: ExprId) {
        if !std::mem::replace(&mut self.exprs[e.0 as usize], true) {
            self.open.push(Item::Expr(e));
        }
    }

    fn index(&mut self, i: IndexId) {
        if !std::mem::replace(&mut self.indices[i.0 as usize], true) {
            self.open.push(Item::Index(i));
        }
    }

    fn close(&mut self, k: &Kernel) {
        while let Some(item) = self.open.pop() {
            for needed in needs(k, item) {
                match needed {
                    Item::Expr(e) => self.expr(e),
                    Item::Index(i) => self.index(i),
                }
            }
        }
    }
}

/// The entries that an entry refers to.
fn needs(k: &Kernel, item: Item) -> Vec<Item> {
    let mut all = vec![];
    item.for_each_operand(k, |operand| all.push(operand));
    all
}

/// The entries that `roots` depend on, each after those it needs; `None` when there is a cycle.
pub(super) fn order(k: &Kernel, roots: &[Item]) -> Option<Vec<Item>> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let mut exprs = vec![Mark::New; k.exprs.len()];
    let mut indices = vec![Mark::New; k.indices.len()];
    let mut out = vec![];
    for root in roots {
        let mut stack = vec![(*root, false)];
        while let Some((item, expanded)) = stack.pop() {
            let mark = match item {
                Item::Expr(e) => &mut exprs[e.0 as usize],
                Item::Index(i) => &mut indices[i.0 as usize],
            };
            if expanded {
                *mark = Mark::Done;
                out.push(item);
                continue;
            }
            match *mark {
                Mark::Done => continue,
                Mark::Open => return None,
                Mark::New => *mark = Mark::Open,
            }
            stack.push((item, true));
            for needed in needs(k, item) {
                let mark = match needed {
                    Item::Expr(e) => exprs[e.0 as usize],
                    Item::Index(i) => indices[i.0 as usize],
                };
                match mark {
                    Mark::Done => {}
                    Mark::New => stack.push((needed, false)),
                    // Open entries are those on the way from the root to this one.
                    Mark::Open => return None,
                }
            }
        }
    }
    Some(out)
}
