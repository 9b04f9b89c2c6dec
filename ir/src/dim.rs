//! Symbolic dimensions in a normal form.
//!
//! A [`Dim`] is an integer polynomial over atoms: named symbols, floor divisions, minima, maxima and broadcasts of
//! two extents. Terms are sorted and merged, so structural equality is mathematical equality for everything that
//! polynomial arithmetic can see. Symbols are identified by name: graphs and their regions share them without
//! renumbering. All arithmetic on constants saturates; [`Dim::eval`] is checked.

use rustc_hash::FxHashMap;
use std::fmt;
use std::sync::Arc;

/// A named run-time size, printed `$name`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sym(Arc<str>);

impl Sym {
    /// A symbol of this name. Characters outside `A-Za-z0-9_.` become `_`, so that every symbol prints and parses.
    pub fn new(name: &str) -> Sym {
        let mut clean: String = name
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || c == '_' || c == '.' {
                    c
                } else {
                    '_'
                }
            })
            .collect();
        if clean.is_empty() {
            clean.push('_');
        }
        Sym(clean.into())
    }

    /// The name without the `$`.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Sym {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "${}", self.0)
    }
}

impl fmt::Debug for Sym {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "${}", self.0)
    }
}

/// What is known of a symbol's value before it is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SymRange {
    /// Smallest value.
    pub min: i64,
    /// Largest value.
    pub max: i64,
    /// The value is a multiple of this (1 when nothing is known).
    pub multiple: i64,
}

impl Default for SymRange {
    fn default() -> Self {
        SymRange {
            min: 0,
            max: i64::MAX,
            multiple: 1,
        }
    }
}

/// Values of symbols in one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bindings(FxHashMap<Sym, i64>);

impl Bindings {
    /// The value of a symbol.
    pub fn get(&self, sym: &Sym) -> Option<i64> {
        self.0.get(sym).copied()
    }

    /// Binds a symbol, replacing an earlier value.
    pub fn set(&mut self, sym: Sym, value: i64) {
        self.0.insert(sym, value);
    }

    /// Forgets a symbol.
    pub fn remove(&mut self, sym: &Sym) {
        self.0.remove(sym);
    }

    /// All bound symbols, sorted by name.
    pub fn sorted(&self) -> Vec<(Sym, i64)> {
        let mut all: Vec<_> = self.0.iter().map(|(s, v)| (s.clone(), *v)).collect();
        all.sort();
        all
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
/// An indivisible factor of a term.
pub enum Atom {
    /// A named size.
    Sym(Sym),
    /// Quotient rounded toward minus infinity.
    FloorDiv(Dim, Dim),
    /// The smaller.
    Min(Dim, Dim),
    /// The larger.
    Max(Dim, Dim),
    /// The extent of two broadcast extents: the first unless it is 1, then the second.
    Broadcast(Dim, Dim),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
/// `coef * factors[0] * factors[1] ...`; no factors means the constant term.
pub struct Term {
    /// Sorted factors.
    pub factors: Vec<Atom>,
    /// Coefficient, never 0.
    pub coef: i64,
}

/// An integer expression over symbols: a tensor extent, an offset or a count.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dim {
    /// A number known at compile time.
    Const(i64),
    /// A sum of at least one term with factors; sorted by factors.
    Sum(Arc<[Term]>),
}

impl From<i64> for Dim {
    fn from(v: i64) -> Self {
        Dim::Const(bounded(v))
    }
}

impl From<usize> for Dim {
    fn from(v: usize) -> Self {
        Dim::Const(v as i64)
    }
}

impl From<&Sym> for Dim {
    fn from(s: &Sym) -> Self {
        Dim::atom(Atom::Sym(s.clone()))
    }
}

impl Dim {
    /// The constant 0.
    pub const ZERO: Dim = Dim::Const(0);
    /// The constant 1.
    pub const ONE: Dim = Dim::Const(1);

    /// A symbol by name.
    pub fn sym(name: &str) -> Dim {
        Dim::from(&Sym::new(name))
    }

    fn atom(atom: Atom) -> Dim {
        Dim::Sum(Arc::from(vec![Term {
            factors: vec![atom],
            coef: 1,
        }]))
    }

    /// The terms, constant term included.
    pub fn terms(&self) -> Vec<Term> {
        match self {
            Dim::Const(0) => vec![],
            Dim::Const(c) => vec![Term {
                factors: vec![],
                coef: *c,
            }],
            Dim::Sum(t) => t.to_vec(),
        }
    }

    fn from_terms(mut terms: Vec<Term>) -> Dim {
        terms.sort();
        let mut merged: Vec<Term> = Vec::with_capacity(terms.len());
        for t in terms {
            match merged.last_mut() {
                Some(last) if last.factors == t.factors => last.coef = sum(last.coef, t.coef),
                _ => merged.push(t),
            }
        }
        merged.retain(|t| t.coef != 0);
        match merged.as_slice() {
            [] => Dim::Const(0),
            [t] if t.factors.is_empty() => Dim::Const(t.coef),
            _ => Dim::Sum(Arc::from(merged)),
        }
    }

    /// The value when it is known at compile time.
    pub fn as_const(&self) -> Option<i64> {
        match self {
            Dim::Const(c) => Some(*c),
            Dim::Sum(_) => None,
        }
    }

    /// Whether this is the given constant.
    pub fn is(&self, value: i64) -> bool {
        self.as_const() == Some(value)
    }

    /// The symbol when the expression is just that.
    pub fn as_sym(&self) -> Option<&Sym> {
        match self {
            Dim::Sum(t) => match &t[..] {
                [Term { factors, coef: 1 }] => match &factors[..] {
                    [Atom::Sym(s)] => Some(s),
                    _ => None,
                },
                _ => None,
            },
            Dim::Const(_) => None,
        }
    }

    /// Quotient rounded toward minus infinity; simplified where the division is provably exact or splits.
    pub fn floor_div(&self, by: &Dim) -> Dim {
        if by.is(1) {
            return self.clone();
        }
        if let (Some(a), Some(b)) = (self.as_const(), by.as_const())
            && b != 0
        {
            let (a, b) = (i128::from(a), i128::from(b));
            let q = a.div_euclid(b) - i128::from(b < 0 && a.rem_euclid(b) != 0);
            return Dim::Const(i64::try_from(q).unwrap_or(i64::MAX));
        }
        if self == by || self.is(0) {
            // A zero extent divided by itself never decides a size: every use multiplies it with the same extent.
            return if self.is(0) { Dim::ZERO } else { Dim::ONE };
        }
        if let Some(q) = self.exact_div(by) {
            return q;
        }
        if let Some(c) = by.as_const()
            && c > 0
        {
            let (whole, rest): (Vec<Term>, Vec<Term>) =
                self.terms().into_iter().partition(|t| t.coef % c == 0);
            if !whole.is_empty() && !rest.is_empty() {
                let whole = whole
                    .into_iter()
                    .map(|t| Term {
                        coef: t.coef / c,
                        ..t
                    })
                    .collect();
                return Dim::from_terms(whole) + Dim::from_terms(rest).floor_div(by);
            }
        }
        Dim::atom(Atom::FloorDiv(self.clone(), by.clone()))
    }

    /// `Some(q)` when `self == q * by` as polynomials.
    pub fn exact_div(&self, by: &Dim) -> Option<Dim> {
        if by.is(0) {
            return None;
        }
        let divisor = by.terms();
        let lead = divisor.last()?;
        let mut rest = self.clone();
        let mut quotient = Dim::ZERO;
        for _ in 0..64 {
            let terms = rest.terms();
            let Some(t) = terms.last() else {
                return Some(quotient);
            };
            if t.coef.checked_rem(lead.coef) != Some(0) {
                return None;
            }
            let mut factors = t.factors.clone();
            for f in &lead.factors {
                let at = factors.iter().position(|x| x == f)?;
                factors.remove(at);
            }
            let q = Dim::from_terms(vec![Term {
                factors,
                coef: t.coef / lead.coef,
            }]);
            rest = rest - q.clone() * by.clone();
            quotient = quotient + q;
        }
        None
    }

    /// Quotient rounded up, for a positive divisor.
    pub fn ceil_div(&self, by: &Dim) -> Dim {
        (self.clone() + by.clone() - Dim::ONE).floor_div(by)
    }

    /// The smaller of two.
    pub fn smaller(&self, other: &Dim) -> Dim {
        match (self - other).as_const() {
            Some(d) if d <= 0 => self.clone(),
            Some(_) => other.clone(),
            None => {
                let (a, b) = if self <= other {
                    (self, other)
                } else {
                    (other, self)
                };
                Dim::atom(Atom::Min(a.clone(), b.clone()))
            }
        }
    }

    /// The larger of two.
    pub fn larger(&self, other: &Dim) -> Dim {
        match (self - other).as_const() {
            Some(d) if d >= 0 => self.clone(),
            Some(_) => other.clone(),
            None => {
                let (a, b) = if self <= other {
                    (self, other)
                } else {
                    (other, self)
                };
                Dim::atom(Atom::Max(a.clone(), b.clone()))
            }
        }
    }

    /// The extent of two extents broadcast together; `None` when two different constants other than 1 meet.
    /// Where neither is known, the choice is made when the symbols are bound.
    pub fn broadcast(&self, other: &Dim) -> Option<Dim> {
        if self == other || other.is(1) {
            return Some(self.clone());
        }
        if self.is(1) {
            return Some(other.clone());
        }
        match (self.as_const(), other.as_const()) {
            (Some(_), Some(_)) => None,
            (Some(_), None) => Some(self.clone()),
            (None, Some(_)) => Some(other.clone()),
            (None, None) if other.is_clip_of(self) || other.has_broadcast_part(self) => {
                Some(if other.is_clip_of(self) { self } else { other }.clone())
            }
            (None, None) if self.is_clip_of(other) || self.has_broadcast_part(other) => {
                Some(if self.is_clip_of(other) { other } else { self }.clone())
            }
            (None, None) => {
                let (a, b) = if self <= other {
                    (self, other)
                } else {
                    (other, self)
                };
                Some(Dim::atom(Atom::Broadcast(a.clone(), b.clone())))
            }
        }
    }

    /// The expression when it is a single atom.
    fn as_atom(&self) -> Option<&Atom> {
        match self {
            Dim::Sum(t) => match &t[..] {
                [Term { factors, coef: 1 }] if factors.len() == 1 => factors.first(),
                _ => None,
            },
            Dim::Const(_) => None,
        }
    }

    /// Whether this is `min(c, other)` with a constant `c` above 1. Such an extent broadcasts against `other` only
    /// when both are equal: it is 1 only when `other` is.
    pub fn is_clip_of(&self, other: &Dim) -> bool {
        let above = |d: &Dim| d.as_const().is_some_and(|c| c > 1);
        match self.as_atom() {
            Some(Atom::Min(a, b)) => a == other && above(b) || b == other && above(a),
            _ => false,
        }
    }

    /// Whether this is the broadcast of `part` with something.
    fn has_broadcast_part(&self, part: &Dim) -> bool {
        matches!(self.as_atom(), Some(Atom::Broadcast(a, b)) if a == part || b == part)
    }

    /// The value under these bindings; `None` for an unbound symbol, a division by zero or an overflow.
    pub fn eval(&self, bindings: &Bindings) -> Option<i64> {
        let terms = match self {
            Dim::Const(c) => return Some(*c),
            Dim::Sum(t) => t,
        };
        terms.iter().try_fold(0i64, |sum, t| {
            let product = t
                .factors
                .iter()
                .try_fold(t.coef, |p, a| p.checked_mul(a.eval(bindings)?))?;
            sum.checked_add(product)
        })
    }

    /// Replaces symbols; `None` from `with` keeps a symbol.
    pub fn substitute(&self, with: &dyn Fn(&Sym) -> Option<Dim>) -> Dim {
        let Dim::Sum(terms) = self else {
            return self.clone();
        };
        terms.iter().fold(Dim::ZERO, |sum, t| {
            let product = t.factors.iter().fold(Dim::Const(t.coef), |p, a| {
                p * match a {
                    Atom::Sym(s) => with(s).unwrap_or_else(|| Dim::from(s)),
                    Atom::FloorDiv(x, y) => x.substitute(with).floor_div(&y.substitute(with)),
                    Atom::Min(x, y) => x.substitute(with).smaller(&y.substitute(with)),
                    Atom::Max(x, y) => x.substitute(with).larger(&y.substitute(with)),
                    Atom::Broadcast(x, y) => {
                        let (x, y) = (x.substitute(with), y.substitute(with));
                        x.broadcast(&y).unwrap_or(x)
                    }
                }
            });
            sum + product
        })
    }

    /// Calls `visit` for every symbol in the expression (repeats included).
    pub fn for_each_sym(&self, visit: &mut dyn FnMut(&Sym)) {
        let Dim::Sum(terms) = self else { return };
        for atom in terms.iter().flat_map(|t| &t.factors) {
            atom.for_each_sym(visit);
        }
    }

    /// Atoms of an expression up to which arithmetic on values is followed symbolically: products of sums grow without end.
    pub const FOLLOWED: usize = 64;

    /// Whether the expression is made of more than `most` atoms, those inside of atoms counted. Takes time for `most` of them
    /// at the most, however long the expression is.
    pub fn is_longer_than(&self, most: usize) -> bool {
        let mut left = most;
        !self.spend(&mut left)
    }

    /// Takes one from `left` for each atom; false when that does not reach.
    fn spend(&self, left: &mut usize) -> bool {
        let Dim::Sum(terms) = self else { return true };
        terms.iter().flat_map(|t| &t.factors).all(|atom| {
            let Some(rest) = left.checked_sub(1) else {
                return false;
            };
            *left = rest;
            match atom {
                Atom::Sym(_) => true,
                Atom::FloorDiv(x, y)
                | Atom::Min(x, y)
                | Atom::Max(x, y)
                | Atom::Broadcast(x, y) => x.spend(left) && y.spend(left),
            }
        })
    }

    /// Interval that holds the value, given ranges of the symbols.
    pub fn range(&self, ranges: &dyn Fn(&Sym) -> SymRange) -> (i64, i64) {
        let Dim::Sum(terms) = self else {
            let c = self.as_const().unwrap_or(0);
            return (c, c);
        };
        terms.iter().fold((0i64, 0i64), |(lo, hi), t| {
            let (a, b) = t.factors.iter().fold((t.coef, t.coef), |acc, f| {
                interval_mul(acc, f.range(ranges))
            });
            (lo.saturating_add(a), hi.saturating_add(b))
        })
    }

    /// Product of extents.
    pub fn product<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Dim {
        dims.into_iter().fold(Dim::ONE, |p, d| p * d.clone())
    }
}

fn interval_mul((a, b): (i64, i64), (c, d): (i64, i64)) -> (i64, i64) {
    let all = [
        a.saturating_mul(c),
        a.saturating_mul(d),
        b.saturating_mul(c),
        b.saturating_mul(d),
    ];
    (
        all.into_iter().fold(i64::MAX, i64::min),
        all.into_iter().fold(i64::MIN, i64::max),
    )
}

impl Atom {
    /// Calls `visit` for every symbol in the factor (repeats included).
    pub fn for_each_sym(&self, visit: &mut dyn FnMut(&Sym)) {
        match self {
            Atom::Sym(s) => visit(s),
            Atom::FloorDiv(x, y) | Atom::Min(x, y) | Atom::Max(x, y) | Atom::Broadcast(x, y) => {
                x.for_each_sym(visit);
                y.for_each_sym(visit);
            }
        }
    }

    /// The value under these bindings; `None` as for [`Dim::eval`].
    pub fn eval(&self, bindings: &Bindings) -> Option<i64> {
        Some(match self {
            Atom::Sym(s) => bindings.get(s)?,
            Atom::FloorDiv(x, y) => {
                let (x, y) = (x.eval(bindings)?, y.eval(bindings)?);
                let q = x.checked_div(y)?;
                q - i64::from(x % y != 0 && (x < 0) != (y < 0))
            }
            Atom::Min(x, y) => x.eval(bindings)?.min(y.eval(bindings)?),
            Atom::Max(x, y) => x.eval(bindings)?.max(y.eval(bindings)?),
            Atom::Broadcast(x, y) => {
                let (x, y) = (x.eval(bindings)?, y.eval(bindings)?);
                if x == 1 { y } else { x }
            }
        })
    }

    fn range(&self, ranges: &dyn Fn(&Sym) -> SymRange) -> (i64, i64) {
        match self {
            Atom::Sym(s) => {
                let r = ranges(s);
                (r.min, r.max)
            }
            Atom::FloorDiv(x, y) => match (x.range(ranges), y.range(ranges)) {
                ((lo, hi), (c, d)) if c > 0 => {
                    let q = [
                        lo.div_euclid(c),
                        lo.div_euclid(d),
                        hi.div_euclid(c),
                        hi.div_euclid(d),
                    ];
                    (
                        q.into_iter().fold(i64::MAX, i64::min),
                        q.into_iter().fold(i64::MIN, i64::max),
                    )
                }
                _ => (i64::MIN, i64::MAX),
            },
            Atom::Min(x, y) => {
                let ((a, b), (c, d)) = (x.range(ranges), y.range(ranges));
                (a.min(c), b.min(d))
            }
            Atom::Max(x, y) => {
                let ((a, b), (c, d)) = (x.range(ranges), y.range(ranges));
                (a.max(c), b.max(d))
            }
            Atom::Broadcast(x, y) => {
                let ((a, b), (c, d)) = (x.range(ranges), y.range(ranges));
                (a.min(c), b.max(d))
            }
        }
    }
}

/// Numbers end where their negatives do, so that subtracting is adding the negative.
fn bounded(v: i64) -> i64 {
    v.max(-i64::MAX)
}

fn sum(a: i64, b: i64) -> i64 {
    bounded(a.saturating_add(b))
}

fn product(a: i64, b: i64) -> i64 {
    bounded(a.saturating_mul(b))
}

impl std::ops::Add for Dim {
    type Output = Dim;
    fn add(self, rhs: Dim) -> Dim {
        match (&self, &rhs) {
            (Dim::Const(a), Dim::Const(b)) => Dim::Const(sum(*a, *b)),
            _ => Dim::from_terms([self.terms(), rhs.terms()].concat()),
        }
    }
}

impl std::ops::Neg for Dim {
    type Output = Dim;
    fn neg(self) -> Dim {
        Dim::from_terms(
            self.terms()
                .into_iter()
                .map(|t| Term {
                    coef: t.coef.saturating_neg(),
                    ..t
                })
                .collect(),
        )
    }
}

impl std::ops::Sub for Dim {
    type Output = Dim;
    fn sub(self, rhs: Dim) -> Dim {
        self + -rhs
    }
}

impl std::ops::Sub for &Dim {
    type Output = Dim;
    fn sub(self, rhs: &Dim) -> Dim {
        self.clone() - rhs.clone()
    }
}

impl std::ops::Mul for Dim {
    type Output = Dim;
    fn mul(self, rhs: Dim) -> Dim {
        if let (Dim::Const(a), Dim::Const(b)) = (&self, &rhs) {
            return Dim::Const(product(*a, *b));
        }
        let mut terms = vec![];
        for a in self.terms() {
            for b in rhs.terms() {
                let mut factors = [a.factors.clone(), b.factors.clone()].concat();
                factors.sort();
                terms.push(Term {
                    factors,
                    coef: product(a.coef, b.coef),
                });
            }
        }
        Dim::from_terms(terms)
    }
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Atom::Sym(s) => write!(f, "{s}"),
            Atom::FloorDiv(a, b) => write!(f, "floordiv({a}, {b})"),
            Atom::Min(a, b) => write!(f, "min({a}, {b})"),
            Atom::Max(a, b) => write!(f, "max({a}, {b})"),
            Atom::Broadcast(a, b) => write!(f, "broadcast({a}, {b})"),
        }
    }
}

/// Text form: terms joined by ` + ` or ` - `, factors by `*`, constant last, as in `2*$n*$m - $k + 3`.
impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms = match self {
            Dim::Const(c) => return write!(f, "{c}"),
            Dim::Sum(t) => t,
        };
        let (constant, rest): (Vec<&Term>, Vec<&Term>) =
            terms.iter().partition(|t| t.factors.is_empty());
        for (i, t) in rest.into_iter().chain(constant).enumerate() {
            match (i, t.coef < 0) {
                (0, false) => {}
                (0, true) => f.write_str("-")?,
                (_, false) => f.write_str(" + ")?,
                (_, true) => f.write_str(" - ")?,
            }
            let coef = t.coef.unsigned_abs();
            if t.factors.is_empty() || coef != 1 {
                write!(f, "{coef}")?;
            }
            for (k, a) in t.factors.iter().enumerate() {
                if k > 0 || coef != 1 {
                    f.write_str("*")?;
                }
                write!(f, "{a}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(n: &str) -> Dim {
        Dim::sym(n)
    }

    #[test]
    fn normal_form_is_structural_equality() {
        let (n, m) = (s("n"), s("m"));
        assert_eq!(
            (n.clone() + m.clone()) * Dim::from(2i64),
            m.clone() * 2i64.into() + n.clone() + n.clone()
        );
        assert_eq!(n.clone() - n.clone(), Dim::ZERO);
        assert_eq!((n.clone() * m.clone()).floor_div(&n), m);
        assert_eq!(
            ((n.clone() + Dim::ONE) * m.clone()).exact_div(&(n.clone() + Dim::ONE)),
            Some(m.clone())
        );
        assert_eq!(
            (n.clone() * 4i64.into() + 3i64.into()).floor_div(&4i64.into()),
            n.clone()
        );
        assert_eq!(n.larger(&(n.clone() + Dim::ONE)), n.clone() + Dim::ONE);
        assert_eq!(n.broadcast(&Dim::ONE), Some(n.clone()));
        assert_eq!(Dim::from(2i64).broadcast(&Dim::from(3i64)), None);
        let clipped = n.smaller(&512i64.into());
        assert_eq!(n.broadcast(&clipped), Some(n.clone()));
        assert_eq!(clipped.broadcast(&n), Some(n.clone()));
        let both = n.broadcast(&m).unwrap();
        assert_eq!(both.broadcast(&m), Some(both.clone()));
    }

    #[test]
    fn length_counts_inner_atoms() {
        let (a, b) = (s("a"), s("b"));
        let product = a.clone() * a.clone() + b.clone() + Dim::ONE;
        assert!(product.is_longer_than(2) && !product.is_longer_than(3));
        let inner = product.larger(&b) + a;
        assert!(inner.is_longer_than(5) && !inner.is_longer_than(6));
        // Each step doubles what a walk over the tree would see.
        let mut long = s("c");
        for _ in 0..12 {
            long = long.larger(&(long.clone() * Dim::Const(2)));
        }
        assert!(long.is_longer_than(1000));
    }

    #[test]
    fn eval_is_checked() {
        let mut b = Bindings::default();
        b.set(Sym::new("n"), i64::MAX);
        assert_eq!((s("n") * 2i64.into()).eval(&b), None);
        assert_eq!(s("missing").eval(&b), None);
        b.set(Sym::new("n"), -7);
        assert_eq!(s("n").floor_div(&2i64.into()).eval(&b), Some(-4));
        assert_eq!(s("n").floor_div(&s("z")).eval(&b), None);
        assert_eq!(
            format!("{}", s("n") * 2i64.into() * s("k") - s("q") + 3i64.into()),
            "2*$k*$n - $q + 3"
        );
    }
}
