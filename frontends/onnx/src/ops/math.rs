//! Arithmetic over graph values, written as formulas: numbers stand beside values and take their dtype.

use cupola_ir::{DType, Dim, Graph, Scalar, ValueId};

use crate::import_error::OpResult;

/// An operand of a formula.
#[derive(Clone, Copy)]
pub(super) enum Term {
    Value(ValueId),
    /// A number in the dtype of the other operand.
    Number(f64),
}

impl From<ValueId> for Term {
    fn from(v: ValueId) -> Term {
        Term::Value(v)
    }
}

impl From<f64> for Term {
    fn from(x: f64) -> Term {
        Term::Number(x)
    }
}

/// A graph to which formulas are appended. Operands broadcast.
pub(super) struct Math<'a> {
    pub(super) g: &'a mut Graph,
}

macro_rules! binary {
    ($($(#[$m:meta])* $name:ident = $f:ident;)*) => { $(
        $(#[$m])*
        pub(super) fn $name(&mut self, x: impl Into<Term>, y: impl Into<Term>) -> OpResult<ValueId> {
            self.f(Scalar::$f, x, y)
        }
    )* };
}

impl Math<'_> {
    /// A scalar function of two operands, one of them a value.
    pub(super) fn f(
        &mut self,
        f: Scalar,
        x: impl Into<Term>,
        y: impl Into<Term>,
    ) -> OpResult<ValueId> {
        let [x, y] = self.pair(x.into(), y.into())?;
        Ok(self.g.binary(f, x, y)?)
    }

    binary! {
        /// `x + y`.
        add = Add;
        /// `x - y`.
        sub = Sub;
        /// `x * y`.
        mul = Mul;
        /// `x / y`.
        div = Div;
        /// The smaller.
        min = Min;
        /// The larger.
        max = Max;
        /// `x < y`.
        lt = Lt;
        /// `x <= y`.
        le = Le;
        /// `x == y`.
        eq = Eq;
        /// Both.
        and = And;
        /// Either.
        or = Or;
    }

    /// `c ? x : y`.
    pub(super) fn select(
        &mut self,
        c: ValueId,
        x: impl Into<Term>,
        y: impl Into<Term>,
    ) -> OpResult<ValueId> {
        let [x, y] = self.pair(x.into(), y.into())?;
        Ok(self.g.select(c, x, y)?)
    }

    /// A scalar function of one operand.
    pub(super) fn unary(&mut self, f: Scalar, x: ValueId) -> OpResult<ValueId> {
        Ok(self.g.unary(f, x)?)
    }

    /// `x` held between two numbers.
    pub(super) fn clamp(
        &mut self,
        x: ValueId,
        low: impl Into<Term>,
        high: impl Into<Term>,
    ) -> OpResult<ValueId> {
        let x = self.max(x, low)?;
        self.min(x, high)
    }

    /// A size as a scalar of this dtype.
    pub(super) fn dim(&mut self, d: &Dim, dtype: DType) -> OpResult<ValueId> {
        let v = self.g.dim_value(d)?;
        Ok(self.g.cast(v, dtype)?)
    }

    fn pair(&mut self, x: Term, y: Term) -> OpResult<[ValueId; 2]> {
        Ok(match (x, y) {
            (Term::Value(x), Term::Value(y)) => [x, y],
            (Term::Value(x), Term::Number(y)) => [x, self.g.number_like(y, x)?],
            (Term::Number(x), Term::Value(y)) => [self.g.number_like(x, y)?, y],
            (Term::Number(_), Term::Number(_)) => unreachable!("bug: a formula of numbers only"),
        })
    }
}
