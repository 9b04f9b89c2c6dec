//! Index expressions by lane: the same in all, at a stride, or each for itself.

use super::lower::Lower;
use super::{BinOp, CmpOp, Conv, Elem, Fault, Op, Pattern, Place, Reg, Type};
use cupola_ir::DType;
use cupola_ir::kernel::{BufferId, Index, IndexId};
use std::rc::Rc;

/// An index in the lanes of the open loop.
#[derive(Clone, Debug)]
pub(crate) enum Lanes {
    /// The same in every lane.
    Uniform(Reg),
    /// `base` in lane 0, then at this stride.
    Affine(Reg, Stride),
    /// One register per lane.
    Each(Rc<[Reg]>),
}

/// Distance of lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stride {
    Const(i64),
    Run(Reg),
}

impl Lower<'_> {
    /// Evaluates an index.
    pub(crate) fn index(&mut self, id: IndexId) -> Lanes {
        if let Some(known) = self.known_index(id) {
            return known;
        }
        let lanes = match self.kernel.indices[id.0 as usize] {
            Index::Const(c) => Lanes::Uniform(self.b.index(c)),
            Index::Size(s) => Lanes::Uniform(self.b.op(Op::Size(s), Type::INDEX)),
            Index::Axis(axis) => {
                let at = self.axis(axis);
                if self.lane_axis() == Some(axis) {
                    Lanes::Affine(at, Stride::Const(1))
                } else {
                    Lanes::Uniform(at)
                }
            }
            Index::Add(a, b) => self.linear(BinOp::Add, a, b),
            Index::Sub(a, b) => self.linear(BinOp::Sub, a, b),
            Index::Mul(a, b) => self.product(a, b),
            Index::Div(a, b) => self.divided(a, b, false),
            Index::Rem(a, b) => self.divided(a, b, true),
            Index::Min(a, b) => self.each_binary(BinOp::MinS, a, b),
            Index::Max(a, b) => self.each_binary(BinOp::MaxS, a, b),
            Index::Checked { value, extent, .. } => {
                let extent = self.index(extent);
                let zero = self.b.index(0);
                let one = self.b.index(1);
                let value = self.value_as_index(value);
                self.zip(value, extent, &mut |s, v, n| {
                    let last = s.b.sub(n, one);
                    let v = s.b.binary(BinOp::MinS, v, last);
                    s.b.binary(BinOp::MaxS, v, zero)
                })
            }
        };
        self.remember_index(id, &lanes);
        lanes
    }

    /// An i32 or i64 element value as an index.
    fn value_as_index(&mut self, value: cupola_ir::kernel::ExprId) -> Lanes {
        let x = self.value(value);
        let x = self.b.convert(Conv::SExt, x, Elem::I64);
        match self.b.lanes(x) {
            1 => Lanes::Uniform(x),
            n => Lanes::Each(
                (0..n)
                    .map(|k| self.b.op(Op::Extract(x, k), Type::INDEX))
                    .collect(),
            ),
        }
    }

    fn linear(&mut self, f: BinOp, a: IndexId, b: IndexId) -> Lanes {
        let (a, b) = (self.index(a), self.index(b));
        let (x, s, y, t) = match (&a, &b) {
            (Lanes::Uniform(x), Lanes::Uniform(y)) => {
                return Lanes::Uniform(self.b.binary(f, *x, *y));
            }
            (Lanes::Affine(x, s), Lanes::Uniform(y)) => (*x, *s, *y, Stride::Const(0)),
            (Lanes::Uniform(x), Lanes::Affine(y, t)) => (*x, Stride::Const(0), *y, *t),
            (Lanes::Affine(x, s), Lanes::Affine(y, t)) => (*x, *s, *y, *t),
            _ => return self.zip(a, b, &mut |s, x, y| s.b.binary(f, x, y)),
        };
        let base = self.b.binary(f, x, y);
        let stride = match (s, t) {
            (Stride::Const(s), Stride::Const(t)) if f == BinOp::Add => {
                Stride::Const(s.wrapping_add(t))
            }
            (Stride::Const(s), Stride::Const(t)) => Stride::Const(s.wrapping_sub(t)),
            _ => {
                let (s, t) = (self.stride(s), self.stride(t));
                Stride::Run(self.b.binary(f, s, t))
            }
        };
        match stride {
            Stride::Const(0) => Lanes::Uniform(base),
            _ => Lanes::Affine(base, stride),
        }
    }

    fn product(&mut self, a: IndexId, b: IndexId) -> Lanes {
        let (a, b) = (self.index(a), self.index(b));
        match (&a, &b) {
            (Lanes::Uniform(x), Lanes::Uniform(y)) => Lanes::Uniform(self.b.mul(*x, *y)),
            (Lanes::Affine(x, s), Lanes::Uniform(y)) | (Lanes::Uniform(y), Lanes::Affine(x, s)) => {
                let base = self.b.mul(*x, *y);
                let stride = match (*s, self.b.as_const(*y)) {
                    (Stride::Const(s), Some(y)) => Stride::Const(s.wrapping_mul(y)),
                    (s, _) => {
                        let s = self.stride(s);
                        Stride::Run(self.b.mul(s, *y))
                    }
                };
                match stride {
                    Stride::Const(0) => Lanes::Uniform(base),
                    _ => Lanes::Affine(base, stride),
                }
            }
            _ => self.zip(a, b, &mut |s, x, y| s.b.mul(x, y)),
        }
    }

    fn stride(&mut self, s: Stride) -> Reg {
        match s {
            Stride::Const(c) => self.b.index(c),
            Stride::Run(r) => r,
        }
    }

    fn each_binary(&mut self, f: BinOp, a: IndexId, b: IndexId) -> Lanes {
        let (a, b) = (self.index(a), self.index(b));
        self.zip(a, b, &mut |s, x, y| s.b.binary(f, x, y))
    }

    /// Floor division or its remainder.
    fn divided(&mut self, a: IndexId, b: IndexId, rem: bool) -> Lanes {
        let unsigned = self.not_negative[a.0 as usize];
        let (a, b) = (self.index(a), self.index(b));
        self.zip(a, b, &mut |s, x, y| s.floor_div(x, y, unsigned, rem))
    }

    /// `x / y` rounded down, or the remainder, of scalars; a divisor below 1 counts as 1.
    pub(crate) fn floor_div(&mut self, x: Reg, y: Reg, not_negative: bool, rem: bool) -> Reg {
        let y = match self.b.as_const(y) {
            Some(c) if c >= 1 => y,
            _ => {
                let one = self.b.index(1);
                self.b.binary(BinOp::MaxS, y, one)
            }
        };
        let power = self.b.as_const(y).filter(|c| c.count_ones() == 1);
        if let Some(c) = power {
            return if rem {
                let mask = self.b.index(c - 1);
                self.b.binary(BinOp::And, x, mask)
            } else if c == 1 {
                x
            } else {
                self.b.shift(BinOp::ShrS, x, c.trailing_zeros() as u8)
            };
        }
        if not_negative {
            let f = if rem { BinOp::RemU } else { BinOp::DivU };
            return self.b.binary(f, x, y);
        }
        let r = self.b.binary(BinOp::RemS, x, y);
        // All ones when the remainder is negative.
        let low = self.b.shift(BinOp::ShrS, r, 63);
        if rem {
            let fix = self.b.binary(BinOp::And, low, y);
            self.b.add(r, fix)
        } else {
            let q = self.b.binary(BinOp::DivS, x, y);
            self.b.add(q, low)
        }
    }

    /// Combines lane by lane.
    fn zip(&mut self, a: Lanes, b: Lanes, f: &mut dyn FnMut(&mut Self, Reg, Reg) -> Reg) -> Lanes {
        if let (Lanes::Uniform(x), Lanes::Uniform(y)) = (&a, &b) {
            return Lanes::Uniform(f(self, *x, *y));
        }
        let (x, y) = (self.each(&a), self.each(&b));
        Lanes::Each(
            x.iter()
                .zip(y.iter())
                .map(|(x, y)| f(self, *x, *y))
                .collect(),
        )
    }

    /// One register per lane.
    pub(crate) fn each(&mut self, lanes: &Lanes) -> Rc<[Reg]> {
        let n = self.lanes();
        match lanes {
            Lanes::Each(all) => all.clone(),
            Lanes::Uniform(x) => std::iter::repeat_n(*x, usize::from(n)).collect(),
            Lanes::Affine(base, Stride::Const(s)) => (0..i64::from(n))
                .map(|k| {
                    let k = self.b.index(k.wrapping_mul(*s));
                    self.b.add(*base, k)
                })
                .collect(),
            Lanes::Affine(base, Stride::Run(s)) => {
                let mut all = vec![*base];
                for k in 1..usize::from(n) {
                    all.push(self.b.add(all[k - 1], *s));
                }
                all.into()
            }
        }
    }

    /// An index as a vector of 64-bit integers (a scalar when uniform).
    pub(crate) fn index_vector(&mut self, id: IndexId) -> Reg {
        let ty = Type {
            elem: Elem::I64,
            lanes: self.lanes(),
        };
        match self.index(id) {
            Lanes::Uniform(x) => x,
            Lanes::Affine(base, Stride::Const(s)) => self.b.op(Op::Ramp(base, s), ty),
            other => {
                let all: Box<[Reg]> = self.each(&other).iter().copied().collect();
                self.b.op(Op::Pack(all), ty)
            }
        }
    }

    /// Records the faults of indices outside their extents that this index depends on, where `guard` holds.
    pub(crate) fn check(&mut self, id: IndexId, guard: Option<Reg>) {
        for at in self.checks[id.0 as usize].clone() {
            let Index::Checked { value, extent, .. } = self.kernel.indices[at as usize] else {
                unreachable!("bug: only checked indices are checked")
            };
            let x = self.value(value);
            let x = self.b.convert(Conv::SExt, x, Elem::I64);
            let n = self.index_vector(extent);
            // One unsigned comparison finds both sides.
            let outside = self.b.cmp(CmpOp::LeU, n, x);
            let outside = match guard {
                Some(g) => self.b.binary(BinOp::And, outside, g),
                None => outside,
            };
            self.fault(outside, Fault::Index);
        }
    }

    /// The place of an element of a buffer.
    pub(crate) fn place(&mut self, buffer: BufferId, id: IndexId, dtype: DType) -> (Place, u16) {
        let size = dtype.size() as i64;
        let start = self.b.op(Op::Buffer(buffer.0), Type::INDEX);
        let (first, pattern, lanes) = match self.index(id) {
            Lanes::Uniform(x) => (x, Pattern::Dense, 1),
            Lanes::Affine(x, Stride::Const(1)) => (x, Pattern::Dense, self.lanes()),
            Lanes::Affine(x, Stride::Run(s)) => (x, Pattern::Strided(s), self.lanes()),
            Lanes::Affine(x, Stride::Const(s)) => {
                // From the first element's address all others are at distances that instructions hold.
                let steps = (0..i64::from(self.lanes())).map(|k| self.b.index(k.wrapping_mul(s)));
                let steps: Box<[Reg]> = steps.collect();
                let (base, moving) = self.base(id, x, start, size);
                let base = match moving {
                    None => base,
                    Some(offset) => self.beyond(base, offset, size),
                };
                let place = Place {
                    base,
                    index: None,
                    pattern: Pattern::Each(steps),
                };
                return (place, self.lanes());
            }
            other => {
                let all = self.each(&other);
                let place = Place {
                    base: start,
                    index: None,
                    pattern: Pattern::Each(all.iter().copied().collect()),
                };
                return (place, self.lanes());
            }
        };
        let (base, index) = self.base(id, first, start, size);
        let place = Place {
            base,
            index,
            pattern,
        };
        (place, lanes)
    }

    /// The address that an index is counted from, as far as that is known outside the innermost loop, and what is left of the
    /// index.
    fn base(&mut self, id: IndexId, first: Reg, start: Reg, size: i64) -> (Reg, Option<Reg>) {
        let (fixed, moving) = self.split(id, first);
        match fixed {
            None => (start, moving),
            Some(offset) => (self.beyond(start, offset, size), moving),
        }
    }

    /// An address so many elements further.
    fn beyond(&mut self, start: Reg, offset: Reg, size: i64) -> Reg {
        let bytes = self.b.index(size);
        let bytes = self.b.mul(offset, bytes);
        self.b.add(start, bytes)
    }

    /// Splits an index into a part that is known outside the innermost loop and the rest.
    fn split(&mut self, id: IndexId, whole: Reg) -> (Option<Reg>, Option<Reg>) {
        let depth = self.b.home(whole);
        if self.b.as_const(whole).is_some() || depth < self.b.depth() {
            return (Some(whole), None);
        }
        if let Index::Add(a, b) = self.kernel.indices[id.0 as usize] {
            for (fixed, moving) in [(a, b), (b, a)] {
                if let (Lanes::Uniform(f), Lanes::Uniform(m) | Lanes::Affine(m, _)) =
                    (self.index(fixed), self.index(moving))
                    && self.b.home(f) < depth
                {
                    return (Some(f), Some(m));
                }
            }
        }
        (None, Some(whole))
    }
}
