//! Index arithmetic while lowering: sums of axes with symbolic coefficients.
//!
//! Reshapes split and merge axes; kept as sums, the pieces of a split that meet again cancel, so that an element
//! offset stays a plain sum of axis times stride wherever the extents allow it. Only what does not is an opaque term:
//! a quotient, a remainder, or an index that data decides.
//!
//! An expression is only evaluated inside its loops, where every extent is at least 1; bounds rely on that.

use cupola_ir::kernel::ExprId;
use cupola_ir::{Dim, SymRange};
use rustc_hash::FxHashMap;

/// A factor of an index term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Term {
    /// Position along a loop axis.
    Axis(u32),
    /// Entry of [`Space::opaques`].
    Opaque(u32),
}

/// `constant + sum of coefficient * term`; terms sorted, coefficients not 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Affine {
    /// Terms with their coefficients.
    pub terms: Vec<(Term, Dim)>,
    /// Constant part.
    pub constant: Dim,
}

/// What an opaque term stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Opaque {
    /// Quotient rounded down.
    Div(Affine, Dim),
    /// Remainder, not negative.
    Rem(Affine, Dim),
    /// An element value clamped into `0..extent`.
    Checked {
        /// The value.
        value: ExprId,
        /// Number of valid indices.
        extent: Dim,
        /// Report values outside.
        fault: bool,
    },
}

impl Affine {
    /// Nothing.
    pub fn zero() -> Affine {
        Affine::constant(Dim::ZERO)
    }

    /// A number.
    pub fn constant(value: impl Into<Dim>) -> Affine {
        Affine {
            terms: vec![],
            constant: value.into(),
        }
    }

    /// A term.
    pub fn term(term: Term) -> Affine {
        Affine {
            terms: vec![(term, Dim::ONE)],
            constant: Dim::ZERO,
        }
    }

    /// Sum.
    pub fn add(&self, other: &Affine) -> Affine {
        let mut terms = Vec::with_capacity(self.terms.len() + other.terms.len());
        let (mut i, mut k) = (0, 0);
        while i < self.terms.len() || k < other.terms.len() {
            let (a, b) = (self.terms.get(i), other.terms.get(k));
            match (a, b) {
                (Some(a), Some(b)) if a.0 == b.0 => {
                    let sum = a.1.clone() + b.1.clone();
                    if !sum.is(0) {
                        terms.push((a.0, sum));
                    }
                    (i, k) = (i + 1, k + 1);
                }
                (Some(a), b) if b.is_none_or(|b| a.0 < b.0) => {
                    terms.push(a.clone());
                    i += 1;
                }
                (_, Some(b)) => {
                    terms.push(b.clone());
                    k += 1;
                }
                (_, None) => unreachable!("bug: merged past the end"),
            }
        }
        Affine {
            terms,
            constant: self.constant.clone() + other.constant.clone(),
        }
    }

    /// Product with a size.
    pub fn scale(&self, by: &Dim) -> Affine {
        if by.is(1) {
            return self.clone();
        }
        let scaled = self.terms.iter().map(|(t, c)| (*t, c.clone() * by.clone()));
        Affine {
            terms: scaled.filter(|(_, c)| !c.is(0)).collect(),
            constant: self.constant.clone() * by.clone(),
        }
    }

    /// Sum with a size.
    pub fn offset(&self, by: &Dim) -> Affine {
        Affine {
            terms: self.terms.clone(),
            constant: self.constant.clone() + by.clone(),
        }
    }

    /// Whether this is the given number.
    pub fn is(&self, value: i64) -> bool {
        self.terms.is_empty() && self.constant.is(value)
    }

    fn exact_div(&self, by: &Dim) -> Option<Affine> {
        let terms = self
            .terms
            .iter()
            .map(|(t, c)| Some((*t, c.exact_div(by)?)))
            .collect::<Option<_>>()?;
        Some(Affine {
            terms,
            constant: self.constant.exact_div(by)?,
        })
    }
}

/// The axes and opaque terms that affine expressions of one unit refer to.
#[derive(Debug, Default)]
pub struct Space {
    /// Extents of the axes.
    pub axes: Vec<Dim>,
    /// Opaque terms, each only over earlier ones.
    pub opaques: Vec<Opaque>,
    interned: FxHashMap<Opaque, u32>,
}

impl Space {
    /// A new axis as an index; an axis of extent 1 is just 0.
    pub fn axis(&mut self, extent: &Dim) -> Affine {
        if extent.is(1) {
            return Affine::zero();
        }
        self.axes.push(extent.clone());
        Affine::term(Term::Axis(self.axes.len() as u32 - 1))
    }

    /// An opaque term.
    pub fn opaque(&mut self, opaque: Opaque) -> Affine {
        let next = self.opaques.len() as u32;
        let at = *self.interned.entry(opaque.clone()).or_insert(next);
        if at == next {
            self.opaques.push(opaque);
        }
        Affine::term(Term::Opaque(at))
    }

    /// Quotient and remainder by a positive size.
    pub fn div_rem(&mut self, x: &Affine, by: &Dim) -> (Affine, Affine) {
        if by.is(1) {
            return (x.clone(), Affine::zero());
        }
        let mut whole = Affine::zero();
        let mut rest = Affine::zero();
        for (t, c) in &x.terms {
            match c.exact_div(by) {
                Some(q) => whole.terms.push((*t, q)),
                None => rest.terms.push((*t, c.clone())),
            }
        }
        match (x.constant.as_const(), by.as_const()) {
            (Some(c), Some(b)) if b > 0 => {
                whole.constant = Dim::Const(c.div_euclid(b));
                rest.constant = Dim::Const(c.rem_euclid(b));
            }
            _ => match x.constant.exact_div(by) {
                Some(q) => whole.constant = q,
                None => rest.constant = x.constant.clone(),
            },
        }
        if rest.is(0) {
            return (whole, rest);
        }
        if let Some((low, high)) = self.bounds(&rest)
            && non_negative(&low)
            && non_negative(&(by.clone() - Dim::ONE - high))
        {
            return (whole, rest);
        }
        let (q, r) = self.opaque_div_rem(&rest, by);
        (whole.add(&q), r)
    }

    fn opaque_div_rem(&mut self, x: &Affine, by: &Dim) -> (Affine, Affine) {
        // A common factor g of everything: floor(g x / g y) = floor(x / y), and the remainder is g times the rest's.
        let factors: Vec<Dim> = x.terms.iter().map(|(_, c)| c.clone()).collect();
        for g in factors {
            if g.is(1) || g.is(-1) {
                continue;
            }
            if let (Some(x2), Some(by2)) = (x.exact_div(&g), by.exact_div(&g))
                && non_negative(&(g.clone() - Dim::ONE))
            {
                let (q, r) = self.div_rem(&x2, &by2);
                return (q, r.scale(&g));
            }
        }
        let q = self.opaque(Opaque::Div(x.clone(), by.clone()));
        let r = self.opaque(Opaque::Rem(x.clone(), by.clone()));
        (q, r)
    }

    /// Smallest and largest value as sizes, where coefficients have known signs.
    fn bounds(&self, x: &Affine) -> Option<(Dim, Dim)> {
        let (mut low, mut high) = (x.constant.clone(), x.constant.clone());
        for (t, c) in &x.terms {
            let (a, b) = match t {
                Term::Axis(a) => (Dim::ZERO, self.axes[*a as usize].clone() - Dim::ONE),
                Term::Opaque(o) => match &self.opaques[*o as usize] {
                    Opaque::Rem(_, by) => (Dim::ZERO, by.clone() - Dim::ONE),
                    Opaque::Checked { extent, .. } => (Dim::ZERO, extent.clone() - Dim::ONE),
                    Opaque::Div(x, by) => {
                        let (low, high) = self.bounds(x)?;
                        (low.floor_div(by), high.floor_div(by))
                    }
                },
            };
            let (a, b) = if non_negative(c) {
                (a, b)
            } else if non_negative(&-c.clone()) {
                (b, a)
            } else {
                return None;
            };
            low = low + a * c.clone();
            high = high + b * c.clone();
        }
        Some((low, high))
    }

    /// Whether the value is known to be at least 0.
    pub fn is_non_negative(&self, x: &Affine) -> bool {
        self.bounds(x).is_some_and(|(low, _)| non_negative(&low))
    }

    /// Whether the value is known to be below a size.
    pub fn is_below(&self, x: &Affine, limit: &Dim) -> bool {
        self.bounds(x)
            .is_some_and(|(_, high)| non_negative(&(limit.clone() - Dim::ONE - high)))
    }
}

/// Whether a size is known to be at least 0, given that symbols are.
pub fn non_negative(d: &Dim) -> bool {
    d.range(&|_| SymRange::default()).0 >= 0
}

/// Where an element is: indices into extents whose row-major order is that of the value, though the extents may
/// be split or merged otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Coords {
    /// Extents.
    pub dims: Vec<Dim>,
    /// One index per extent.
    pub at: Vec<Affine>,
}

impl Coords {
    /// Row-major offset.
    pub fn linear(&self) -> Affine {
        let mut stride = Dim::ONE;
        let mut sum = Affine::zero();
        for (d, i) in self.dims.iter().zip(&self.at).rev() {
            sum = sum.add(&i.scale(&stride));
            stride = stride * d.clone();
        }
        sum
    }

    /// The indices for other extents over the same row-major order. Runs of extents with equal products are
    /// converted apart, so that an axis that stays keeps its index.
    pub fn reindex(&self, dims: &[Dim], space: &mut Space) -> Vec<Affine> {
        if self.dims == dims {
            return self.at.clone();
        }
        let mut out = vec![Affine::zero(); dims.len()];
        if dims.iter().any(|d| d.is(0)) {
            return out;
        }
        for (from, to) in runs(&self.dims, dims) {
            if let ([f], [t]) = (&from[..], &to[..])
                && self.dims[*f] == dims[*t]
            {
                out[*t] = self.at[*f].clone();
                continue;
            }
            let part = Coords {
                dims: from.iter().map(|f| self.dims[*f].clone()).collect(),
                at: from.iter().map(|f| self.at[*f].clone()).collect(),
            };
            let mut rest = part.linear();
            for (k, t) in to.iter().enumerate().rev() {
                if k == 0 {
                    out[*t] = rest;
                    break;
                }
                let (q, r) = space.div_rem(&rest, &dims[*t]);
                out[*t] = r;
                rest = q;
            }
        }
        out
    }
}

/// Pairs up runs of axes of two extent lists (axes of extent 1 left out) such that the products of a pair are equal;
/// what cannot be told apart ends up in the last pair.
pub fn runs(from: &[Dim], to: &[Dim]) -> Vec<(Vec<usize>, Vec<usize>)> {
    let axes = |dims: &[Dim]| {
        (0..dims.len())
            .filter(|a| !dims[*a].is(1))
            .collect::<Vec<_>>()
    };
    let (f, t) = (axes(from), axes(to));
    let (mut i, mut k) = (0, 0);
    let mut out = vec![];
    while i < f.len() && k < t.len() {
        let (first_i, first_k) = (i, k);
        let (mut p, mut q) = (from[f[i]].clone(), to[t[k]].clone());
        (i, k) = (i + 1, k + 1);
        while p != q {
            let grow_from = i < f.len() && (q.exact_div(&p).is_some() || smaller(&p, &q));
            let grow_to = k < t.len() && (p.exact_div(&q).is_some() || smaller(&q, &p));
            if grow_from {
                p = p * from[f[i]].clone();
                i += 1;
            } else if grow_to {
                q = q * to[t[k]].clone();
                k += 1;
            } else {
                // No common boundary can be proved: the rest is one run.
                (i, k) = (f.len(), t.len());
                break;
            }
        }
        out.push((f[first_i..i].to_vec(), t[first_k..k].to_vec()));
    }
    // Leftover axes have extent 1 at run time, though not provably.
    if i < f.len() || k < t.len() {
        match out.last_mut() {
            Some((a, b)) => {
                a.extend(&f[i..]);
                b.extend(&t[k..]);
            }
            None => out.push((f[i..].to_vec(), t[k..].to_vec())),
        }
    }
    out
}

fn smaller(a: &Dim, b: &Dim) -> bool {
    matches!((a.as_const(), b.as_const()), (Some(a), Some(b)) if a < b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(n: &str) -> Dim {
        Dim::sym(n)
    }

    #[test]
    fn split_and_merge_cancel() {
        let mut space = Space::default();
        let (b, n) = (space.axis(&s("b")), space.axis(&s("n")));
        let h = space.axis(&Dim::Const(12));
        let d = space.axis(&Dim::Const(32));
        let coords = Coords {
            dims: vec![s("b"), s("n"), 12i64.into(), 32i64.into()],
            at: vec![b.clone(), n.clone(), h.clone(), d.clone()],
        };
        let merged = coords.reindex(&[s("b") * s("n"), 384i64.into()], &mut space);
        assert_eq!(merged[1], h.scale(&32i64.into()).add(&d));
        let back = Coords {
            dims: vec![s("b") * s("n"), 384i64.into()],
            at: merged,
        }
        .reindex(&coords.dims, &mut space);
        assert_eq!(back, coords.at);
        assert!(space.opaques.is_empty());
    }

    #[test]
    fn uneven_splits_divide() {
        let mut space = Space::default();
        let i = space.axis(&6i64.into());
        let k = space.axis(&4i64.into());
        let coords = Coords {
            dims: vec![6i64.into(), 4i64.into()],
            at: vec![i, k],
        };
        coords.reindex(&[3i64.into(), 8i64.into()], &mut space);
        assert_eq!(space.opaques.len(), 2);
    }

    #[test]
    fn unprovable_runs_still_cover_every_axis() {
        let all = runs(&[s("a"), s("b")], &[s("c"), s("d"), 2i64.into()]);
        assert_eq!(all, vec![(vec![0, 1], vec![0, 1, 2])]);
        assert_eq!(runs(&[s("a")], &[]), vec![(vec![0], vec![])]);
        assert_eq!(runs(&[1i64.into()], &[1i64.into(), 1i64.into()]), vec![]);
    }
}
