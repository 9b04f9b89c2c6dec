//! A kernel rewritten for the sizes of a launch: every index as a sum over as few axes as its accesses allow.
//!
//! Offsets become `base + axis * factor + ..`, with factors as run-time sizes of their own (or constants, where no run-time
//! size made them), so the text depends on which factors are 0 or 1 but on no other length. Quotients and remainders that
//! the lengths decide disappear, axes of length 1 are dropped, and neighbouring axes that every access runs through as if
//! they were one are merged: what is left to divide for each element is what the access patterns need.

use cupola_ir::Dim;
use cupola_ir::kernel::{AxisId, ExprId, Extent, Index, IndexId, Item, Kernel, Phase};

/// The kernel with its axes merged, and the values of its sizes: those of the original, then factors. Computes the same as
/// `kernel` with `sizes`, and nothing for other lengths. `lens` are the lengths of its axes.
pub fn canonical(kernel: &Kernel, sizes: &[i64], lens: &[i64]) -> (Kernel, Vec<i64>) {
    let mut forms = Forms {
        kernel,
        sizes,
        lens,
        all: Vec::with_capacity(kernel.indices.len()),
        opaques: Vec::new(),
    };
    for &index in &kernel.indices {
        let form = forms.of(index);
        forms.all.push(form);
    }
    Rebuilt::new(&forms).finish()
}

/// A number, and whether it is the same for all sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Num {
    value: i64,
    fixed: bool,
}

impl Num {
    const ZERO: Self = Self::fixed(0);

    const fn fixed(value: i64) -> Self {
        Self { value, fixed: true }
    }

    /// Numbers beyond 64 bits stay at the end, which is beyond what a launch accepts.
    fn plus(self, other: Self) -> Self {
        Self {
            value: self.value.saturating_add(other.value),
            fixed: self.fixed && other.fixed,
        }
    }

    fn times(self, other: Self) -> Self {
        Self {
            value: self.value.saturating_mul(other.value),
            fixed: self.fixed && other.fixed,
        }
    }

    /// The quotient where there is no remainder.
    fn over(self, divisor: Self) -> Option<Self> {
        (divisor.value > 0 && self.value % divisor.value == 0).then(|| Self {
            value: self.value / divisor.value,
            fixed: self.fixed && divisor.fixed,
        })
    }
}

/// What a sum is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Atom {
    Axis(usize),
    /// Position in [`Forms::opaques`].
    Opaque(usize),
}

/// `base + sum of factor * atom`, factors not 0, atoms in order.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Form {
    base: Num,
    terms: Vec<(Atom, Num)>,
}

/// An index that is no sum.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Opaque {
    Mul(Form, Form),
    Div(Form, Form),
    Rem(Form, Form),
    Min(Form, Form),
    Max(Form, Form),
    Checked {
        value: ExprId,
        extent: Form,
        fault: bool,
    },
}

impl Opaque {
    fn operands(&self) -> Vec<&Form> {
        match self {
            Self::Mul(x, y)
            | Self::Div(x, y)
            | Self::Rem(x, y)
            | Self::Min(x, y)
            | Self::Max(x, y) => vec![x, y],
            Self::Checked { extent, .. } => vec![extent],
        }
    }
}

impl Form {
    fn constant(base: Num) -> Self {
        Self {
            base,
            terms: Vec::new(),
        }
    }

    fn atom(atom: Atom) -> Self {
        Self {
            base: Num::ZERO,
            terms: vec![(atom, Num::fixed(1))],
        }
    }

    fn as_constant(&self) -> Option<Num> {
        self.terms.is_empty().then_some(self.base)
    }

    fn scaled(&self, by: Num) -> Self {
        let terms = self.terms.iter().map(|&(atom, f)| (atom, f.times(by)));
        Self {
            base: self.base.times(by),
            terms: terms.filter(|(_, factor)| factor.value != 0).collect(),
        }
    }

    fn plus(&self, other: &Self) -> Self {
        let mut terms = self.terms.clone();
        for &(atom, factor) in &other.terms {
            match terms.binary_search_by_key(&atom, |&(own, _)| own) {
                Ok(at) => terms[at].1 = terms[at].1.plus(factor),
                Err(at) => terms.insert(at, (atom, factor)),
            }
        }
        terms.retain(|(_, factor)| factor.value != 0);
        Self {
            base: self.base.plus(other.base),
            terms,
        }
    }

    fn factor(&self, atom: Atom) -> i64 {
        let place = self.terms.binary_search_by_key(&atom, |&(own, _)| own);
        place.map_or(0, |at| self.terms[at].1.value)
    }

    /// The part that `divisor` divides, divided, and the rest.
    fn split(&self, divisor: Num) -> (Self, Self) {
        let (mut quotient, mut rest) = (Self::constant(Num::ZERO), Self::constant(Num::ZERO));
        for &(atom, factor) in &self.terms {
            match factor.over(divisor) {
                Some(factor) => quotient.terms.push((atom, factor)),
                None => rest.terms.push((atom, factor)),
            }
        }
        match self.base.over(divisor) {
            Some(base) => quotient.base = base,
            None => rest.base = self.base,
        }
        (quotient, rest)
    }
}

struct Forms<'k> {
    kernel: &'k Kernel,
    sizes: &'k [i64],
    lens: &'k [i64],
    /// Of each index.
    all: Vec<Form>,
    opaques: Vec<Opaque>,
}

impl Forms<'_> {
    fn of(&mut self, index: Index) -> Form {
        let at = |id: IndexId| &self.all[id.0 as usize];
        match index {
            Index::Const(value) => Form::constant(Num::fixed(value)),
            Index::Size(at) => Form::constant(Num {
                value: self.sizes.get(at as usize).copied().unwrap_or(0),
                fixed: false,
            }),
            // An axis of length 1 stays at 0.
            Index::Axis(axis) if self.lens[axis.0 as usize] == 1 => Form::constant(Num::ZERO),
            Index::Axis(axis) => Form::atom(Atom::Axis(axis.0 as usize)),
            Index::Add(x, y) => at(x).plus(at(y)),
            Index::Sub(x, y) => at(x).plus(&at(y).scaled(Num::fixed(-1))),
            Index::Mul(x, y) => match (at(x).as_constant(), at(y).as_constant()) {
                (Some(by), _) => at(y).scaled(by),
                (None, Some(by)) => at(x).scaled(by),
                (None, None) => {
                    let opaque = Opaque::Mul(at(x).clone(), at(y).clone());
                    self.opaque(opaque)
                }
            },
            Index::Div(x, y) => self.quotient(x, y),
            Index::Rem(x, y) => self.remainder(x, y),
            Index::Min(x, y) => self.extreme(x, y, false),
            Index::Max(x, y) => self.extreme(x, y, true),
            Index::Checked {
                value,
                extent,
                fault,
            } => {
                let extent = at(extent).clone();
                self.opaque(Opaque::Checked {
                    value,
                    extent,
                    fault,
                })
            }
        }
    }

    fn opaque(&mut self, opaque: Opaque) -> Form {
        let found = self.opaques.iter().position(|other| *other == opaque);
        let place = found.unwrap_or_else(|| {
            self.opaques.push(opaque);
            self.opaques.len() - 1
        });
        Form::atom(Atom::Opaque(place))
    }

    /// Parts of a dividend, where the divisor is a positive number: what it divides (already divided), the rest, and
    /// whether that lies in `0..divisor`.
    fn parts(&self, x: IndexId, y: IndexId) -> Option<(Form, Form, bool)> {
        let divisor = self.all[y.0 as usize].as_constant()?;
        if divisor.value <= 0 {
            return None;
        }
        let (quotient, rest) = self.all[x.0 as usize].split(divisor);
        let (low, high) = self.range(&rest);
        let within = low >= 0 && high < i128::from(divisor.value);
        Some((quotient, rest, within))
    }

    fn quotient(&mut self, x: IndexId, y: IndexId) -> Form {
        match self.parts(x, y) {
            Some((quotient, _, true)) => quotient,
            Some((quotient, rest, false)) => {
                let divisor = self.all[y.0 as usize].clone();
                let own = self.opaque(Opaque::Div(rest, divisor));
                quotient.plus(&own)
            }
            None => {
                let (x, y) = (&self.all[x.0 as usize], &self.all[y.0 as usize]);
                let opaque = Opaque::Div(x.clone(), y.clone());
                self.opaque(opaque)
            }
        }
    }

    fn remainder(&mut self, x: IndexId, y: IndexId) -> Form {
        match self.parts(x, y) {
            Some((_, rest, true)) => rest,
            Some((_, rest, false)) => {
                let divisor = self.all[y.0 as usize].clone();
                self.opaque(Opaque::Rem(rest, divisor))
            }
            None => {
                let (x, y) = (&self.all[x.0 as usize], &self.all[y.0 as usize]);
                let opaque = Opaque::Rem(x.clone(), y.clone());
                self.opaque(opaque)
            }
        }
    }

    fn extreme(&mut self, x: IndexId, y: IndexId, largest: bool) -> Form {
        let (x, y) = (
            self.all[x.0 as usize].clone(),
            self.all[y.0 as usize].clone(),
        );
        let difference = self.range(&x.plus(&y.scaled(Num::fixed(-1))));
        let (x_is_larger, y_is_larger) = (difference.0 >= 0, difference.1 <= 0);
        match (largest, x_is_larger, y_is_larger) {
            (true, true, _) | (false, _, true) => x,
            (true, _, true) | (false, true, _) => y,
            (true, false, false) => self.opaque(Opaque::Max(x, y)),
            (false, false, false) => self.opaque(Opaque::Min(x, y)),
        }
    }

    fn range(&self, form: &Form) -> (i128, i128) {
        let base = i128::from(form.base.value);
        form.terms
            .iter()
            .fold((base, base), |(low, high), &(atom, factor)| {
                let (least, most) = match atom {
                    Atom::Axis(axis) => (0, i128::from((self.lens[axis] - 1).max(0))),
                    Atom::Opaque(at) => self.opaque_range(at),
                };
                let factor = i128::from(factor.value);
                let (a, b) = (least.saturating_mul(factor), most.saturating_mul(factor));
                (low.saturating_add(a.min(b)), high.saturating_add(a.max(b)))
            })
    }

    fn opaque_range(&self, at: usize) -> (i128, i128) {
        let everything = (i128::MIN, i128::MAX);
        match &self.opaques[at] {
            Opaque::Mul(..) => everything,
            Opaque::Div(x, y) => match (self.range(x), self.range(y)) {
                ((low, high), (least, _)) if least > 0 && low >= 0 => (0, high / least),
                _ => everything,
            },
            Opaque::Rem(_, y) => (0, (self.range(y).1 - 1).max(0)),
            Opaque::Min(x, y) => {
                let ((a, b), (c, d)) = (self.range(x), self.range(y));
                (a.min(c), b.min(d))
            }
            Opaque::Max(x, y) => {
                let ((a, b), (c, d)) = (self.range(x), self.range(y));
                (a.max(c), b.max(d))
            }
            Opaque::Checked { extent, .. } => (0, (self.range(extent).1 - 1).max(0)),
        }
    }

    /// Whether every access runs through two neighbouring axes as if they were one.
    fn joins(&self, used: &[&Form], outer: usize, inner: usize) -> bool {
        used.iter().all(|form| {
            let step = i128::from(form.factor(Atom::Axis(inner)));
            i128::from(form.factor(Atom::Axis(outer))) == step * i128::from(self.lens[inner])
        })
    }

    /// The axes of one list as runs that become one axis each, without those of length 1.
    fn runs(&self, axes: &[usize], used: &[&Form]) -> Vec<Vec<usize>> {
        let mut runs: Vec<Vec<usize>> = Vec::new();
        for &axis in axes.iter().filter(|&&axis| self.lens[axis] != 1) {
            match runs.last_mut() {
                Some(run) if self.joins(used, run[run.len() - 1], axis) => run.push(axis),
                _ => runs.push(vec![axis]),
            }
        }
        runs
    }

    fn extent(&self, axis: usize) -> Num {
        Num {
            value: self.lens[axis],
            fixed: matches!(self.kernel.axes[axis], Extent::Const(_)),
        }
    }
}

/// The new kernel while its arenas grow.
struct Rebuilt<'f> {
    forms: &'f Forms<'f>,
    kernel: Kernel,
    sizes: Vec<i64>,
    /// New number of the axes that are left.
    axes: Vec<Option<u32>>,
    opaques: Vec<Option<IndexId>>,
}

impl<'f> Rebuilt<'f> {
    fn new(forms: &'f Forms<'f>) -> Self {
        let old = forms.kernel;
        let mut kernel = old.clone();
        kernel.indices.clear();
        kernel.axes.clear();
        kernel.parallel = 0;
        let mut new = Self {
            forms,
            kernel,
            sizes: forms.sizes.to_vec(),
            axes: vec![None; old.axes.len()],
            opaques: vec![None; forms.opaques.len()],
        };
        new.place_axes();
        new
    }

    fn place_axes(&mut self) {
        let old = self.forms.kernel;
        let used = self.used();
        let parallel: Vec<usize> = (0..old.parallel).collect();
        let mut lists = vec![parallel];
        lists.extend(old.phases.iter().map(|phase| {
            let (Phase::Reduce { axes, .. } | Phase::Store { axes, .. }) = phase;
            axes.iter().map(|axis| axis.0 as usize).collect()
        }));
        for (list, axes) in lists.iter().enumerate() {
            let runs = self.forms.runs(axes, &used);
            let first = self.kernel.axes.len();
            for run in runs {
                self.place_run(&run);
            }
            let placed = first..self.kernel.axes.len();
            let Some(phase) = list.checked_sub(1) else {
                self.kernel.parallel = placed.len();
                continue;
            };
            let (Phase::Reduce { axes, .. } | Phase::Store { axes, .. }) =
                &mut self.kernel.phases[phase];
            *axes = placed.map(|axis| AxisId(axis as u32)).collect();
        }
    }

    /// Forms that something uses as they are: those of expressions and stores, and operands of what is no sum.
    fn used(&self) -> Vec<&'f Form> {
        let forms = self.forms;
        let mut used: Vec<&Form> = forms.opaques.iter().flat_map(Opaque::operands).collect();
        let mut add = |index: IndexId| used.push(&forms.all[index.0 as usize]);
        for expr in &forms.kernel.exprs {
            expr.for_each_operand(|operand| {
                if let Item::Index(index) = operand {
                    add(index);
                }
            });
        }
        for phase in &forms.kernel.phases {
            if let Phase::Store { stores, .. } = phase {
                stores.iter().for_each(|store| add(store.index));
            }
        }
        used
    }

    /// An axis for a run; it stands where the innermost of the run did.
    fn place_run(&mut self, run: &[usize]) {
        let extents = run.iter().map(|&axis| self.forms.extent(axis));
        let extent = extents.fold(Num::fixed(1), Num::times);
        let extent = match extent.fixed {
            true => Extent::Const(extent.value),
            false => Extent::Size(self.size(extent.value)),
        };
        if let Some(&inner) = run.last() {
            self.axes[inner] = Some(self.kernel.axes.len() as u32);
        }
        self.kernel.axes.push(extent);
    }

    fn size(&mut self, value: i64) -> u32 {
        self.kernel.sizes.push(Dim::Const(value));
        self.sizes.push(value);
        (self.sizes.len() - 1) as u32
    }

    fn number(&mut self, number: Num) -> IndexId {
        let index = match number.fixed {
            true => Index::Const(number.value),
            false => Index::Size(self.size(number.value)),
        };
        self.kernel.index(index)
    }

    fn build(&mut self, form: &Form) -> IndexId {
        let mut sum = None;
        for &(atom, factor) in &form.terms {
            let place = match atom {
                Atom::Axis(axis) => match self.axes[axis] {
                    Some(axis) => self.kernel.index(Index::Axis(AxisId(axis))),
                    // The axis that it was merged into counts it.
                    None => continue,
                },
                Atom::Opaque(at) => self.build_opaque(at),
            };
            let term = match factor.value {
                1 => place,
                _ => {
                    let factor = self.number(factor);
                    self.kernel.index(Index::Mul(place, factor))
                }
            };
            sum = Some(match sum {
                None => term,
                Some(sum) => self.kernel.index(Index::Add(sum, term)),
            });
        }
        match (sum, form.base.value) {
            (Some(sum), 0) => sum,
            (None, _) => self.number(form.base),
            (Some(sum), _) => {
                let base = self.number(form.base);
                self.kernel.index(Index::Add(sum, base))
            }
        }
    }

    fn build_opaque(&mut self, at: usize) -> IndexId {
        if let Some(done) = self.opaques[at] {
            return done;
        }
        let forms = self.forms;
        let operands: Vec<IndexId> = forms.opaques[at]
            .operands()
            .into_iter()
            .map(|form| self.build(form))
            .collect();
        let index = match forms.opaques[at] {
            Opaque::Mul(..) => Index::Mul(operands[0], operands[1]),
            Opaque::Div(..) => Index::Div(operands[0], operands[1]),
            Opaque::Rem(..) => Index::Rem(operands[0], operands[1]),
            Opaque::Min(..) => Index::Min(operands[0], operands[1]),
            Opaque::Max(..) => Index::Max(operands[0], operands[1]),
            Opaque::Checked { value, fault, .. } => Index::Checked {
                value,
                extent: operands[0],
                fault,
            },
        };
        let done = self.kernel.index(index);
        self.opaques[at] = Some(done);
        done
    }

    fn finish(mut self) -> (Kernel, Vec<i64>) {
        let forms = self.forms;
        let mut built: Vec<(&Form, IndexId)> = Vec::new();
        let mut new = Vec::with_capacity(forms.all.len());
        let used = self.used();
        for form in &forms.all {
            // What only other indices use is part of their sums.
            if !used.contains(&form) {
                new.push(IndexId(0));
                continue;
            }
            let known = built.iter().find(|(other, _)| *other == form);
            let index = match known {
                Some(&(_, index)) => index,
                None => {
                    let index = self.build(form);
                    built.push((form, index));
                    index
                }
            };
            new.push(index);
        }
        let renamed = |index: IndexId| new[index.0 as usize];
        for expr in &mut self.kernel.exprs {
            *expr = expr.map_indices(renamed);
        }
        for phase in &mut self.kernel.phases {
            if let Phase::Store { stores, .. } = phase {
                stores
                    .iter_mut()
                    .for_each(|store| store.index = renamed(store.index));
            }
        }
        (self.kernel, self.sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cupola_ir::kernel::{run_kernel, text, verify};

    /// The canonical form of a kernel in text, checked to compute the same on bytes that count up.
    fn checked(source: &str, sizes: &[i64]) -> Kernel {
        let kernel = text::parse(source).expect("a kernel");
        let len = |extent: &Extent| match *extent {
            Extent::Const(len) => len,
            Extent::Size(at) => sizes[at as usize],
        };
        let lens: Vec<i64> = kernel.axes.iter().map(len).collect();
        let (new, new_sizes) = canonical(&kernel, sizes, &lens);
        verify(&new).expect("still well formed");
        let fill = |buffer: &cupola_ir::kernel::BufferDecl| {
            let size = len(&buffer.len) as usize * 4;
            (0..size).map(|at| (at % 61) as u8).collect::<Vec<u8>>()
        };
        let mut want: Vec<Vec<u8>> = kernel.buffers.iter().map(fill).collect();
        let mut got = want.clone();
        run_kernel(&kernel, &mut want, sizes).expect("runs");
        run_kernel(&new, &mut got, &new_sizes).expect("runs");
        assert_eq!(got, want);
        new
    }

    #[test]
    fn dense_axes_become_one_without_arithmetic() {
        let new = checked(
            "kernel @copy {\n  s0 = $n\n  b0 = read f32[24]\n  b1 = write f32[24]\n  a0 = parallel 2\n  \
             a1 = parallel 3\n  a2 = parallel s0\n  i0 = a0\n  i1 = a1\n  i2 = a2\n  i3 = 3\n  i4 = s0\n  \
             i5 = i0 * i3\n  i6 = i5 + i1\n  i7 = i6 * i4\n  i8 = i7 + i2\n  e0 = load b0[i8]\n  \
             store [] {b1[i8] = e0}\n}\n",
            &[4],
        );
        assert_eq!(new.axes.len(), 1);
        assert_eq!(new.indices, [Index::Axis(AxisId(0))]);
    }

    #[test]
    fn quotients_that_lengths_decide_disappear() {
        // y[i, j] = x[(4 i + j) / 4 + 6 ((4 i + j) % 4)]: a transposition.
        let new = checked(
            "kernel @transpose {\n  b0 = read f32[24]\n  b1 = write f32[24]\n  a0 = parallel 6\n  a1 = parallel 4\n  \
             i0 = a0\n  i1 = a1\n  i2 = 4\n  i3 = i0 * i2\n  i4 = i3 + i1\n  i5 = i4 / i2\n  i6 = i4 % i2\n  i7 = 6\n  \
             i8 = i6 * i7\n  i9 = i5 + i8\n  e0 = load b0[i9]\n  store [] {b1[i4] = e0}\n}\n",
            &[],
        );
        let divides = |index: &Index| matches!(index, Index::Div(..) | Index::Rem(..));
        assert!(!new.indices.iter().any(divides));
        assert_eq!(new.axes.len(), 2);
    }

    #[test]
    fn what_lengths_do_not_decide_stays() {
        let new = checked(
            "kernel @wrap {\n  b0 = read f32[24]\n  b1 = write f32[24]\n  a0 = parallel 6\n  a1 = parallel 4\n  \
             i0 = a0\n  i1 = a1\n  i2 = 4\n  i3 = i0 * i2\n  i4 = i3 + i1\n  i5 = 5\n  i6 = i4 % i5\n  i7 = i4 / i5\n  \
             i8 = i7 + i6\n  e0 = load b0[i8]\n  store [] {b1[i4] = e0}\n}\n",
            &[],
        );
        assert!(
            new.indices
                .iter()
                .any(|index| matches!(index, Index::Rem(..)))
        );
        assert_eq!(new.axes.len(), 1);
    }

    #[test]
    fn axes_of_a_phase_are_merged_too() {
        let new = checked(
            "kernel @sum {\n  b0 = read f32[24]\n  b1 = write f32[2]\n  a0 = parallel 2\n  a1 = inner 3\n  a2 = inner 4\n  \
             i0 = a0\n  i1 = a1\n  i2 = a2\n  i3 = 3\n  i4 = 4\n  i5 = i0 * i3\n  i6 = i5 + i1\n  i7 = i6 * i4\n  \
             i8 = i7 + i2\n  e0 = load b0[i8]\n  e1 = accum(0, 0)\n  \
             reduce [a1, a2] {sum e0}\n  store [] {b1[i0] = e1}\n}\n",
            &[],
        );
        assert_eq!(new.axes, [Extent::Const(2), Extent::Const(12)]);
    }
}
