//! What the entries of a kernel's arenas refer to, for everything that follows or renames them.

use super::{Expr, ExprId, Index, IndexId, Kernel, Phase};

/// An entry of either arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// An element value.
    Expr(ExprId),
    /// An index.
    Index(IndexId),
}

impl Item {
    /// Visits the entries that this one refers to: values, then indices.
    pub fn for_each_operand(self, kernel: &Kernel, visit: impl FnMut(Item)) {
        match self {
            Item::Expr(e) => kernel.exprs[e.0 as usize].for_each_operand(visit),
            Item::Index(i) => kernel.indices[i.0 as usize].for_each_operand(visit),
        }
    }
}

impl Index {
    /// The same of other indices.
    #[must_use]
    pub fn map_indices(self, mut to: impl FnMut(IndexId) -> IndexId) -> Index {
        match self {
            Index::Const(_) | Index::Size(_) | Index::Axis(_) => self,
            Index::Add(x, y) => Index::Add(to(x), to(y)),
            Index::Sub(x, y) => Index::Sub(to(x), to(y)),
            Index::Mul(x, y) => Index::Mul(to(x), to(y)),
            Index::Div(x, y) => Index::Div(to(x), to(y)),
            Index::Rem(x, y) => Index::Rem(to(x), to(y)),
            Index::Min(x, y) => Index::Min(to(x), to(y)),
            Index::Max(x, y) => Index::Max(to(x), to(y)),
            Index::Checked {
                value,
                extent,
                fault,
            } => Index::Checked {
                value,
                extent: to(extent),
                fault,
            },
        }
    }

    /// Visits what it refers to: a value, then indices.
    pub fn for_each_operand(self, mut visit: impl FnMut(Item)) {
        if let Index::Checked { value, .. } = self {
            visit(Item::Expr(value));
        }
        let _ = self.map_indices(|i| {
            visit(Item::Index(i));
            i
        });
    }
}

impl Expr {
    /// The same of other indices.
    #[must_use]
    pub fn map_indices(self, mut to: impl FnMut(IndexId) -> IndexId) -> Expr {
        match self {
            Expr::Index(i, dtype) => Expr::Index(to(i), dtype),
            Expr::Less(a, b) => Expr::Less(to(a), to(b)),
            Expr::Load {
                buffer,
                index,
                guard,
            } => Expr::Load {
                buffer,
                index: to(index),
                guard,
            },
            Expr::Random {
                index,
                stream,
                seed,
                run,
            } => Expr::Random {
                index: to(index),
                stream,
                seed,
                run,
            },
            Expr::Const(_)
            | Expr::Unary(..)
            | Expr::Binary(..)
            | Expr::Ternary(..)
            | Expr::Cast { .. }
            | Expr::Bitcast { .. }
            | Expr::Accum { .. } => self,
        }
    }

    /// The same of other values.
    #[must_use]
    pub fn map_exprs(self, mut to: impl FnMut(ExprId) -> ExprId) -> Expr {
        match self {
            Expr::Load {
                buffer,
                index,
                guard,
            } => Expr::Load {
                buffer,
                index,
                guard: guard.map(to),
            },
            Expr::Unary(f, x) => Expr::Unary(f, to(x)),
            Expr::Binary(f, x, y) => Expr::Binary(f, to(x), to(y)),
            Expr::Ternary(f, x, y, z) => Expr::Ternary(f, to(x), to(y), to(z)),
            Expr::Cast {
                x,
                to: dtype,
                saturate,
            } => Expr::Cast {
                x: to(x),
                to: dtype,
                saturate,
            },
            Expr::Bitcast { x, to: dtype } => Expr::Bitcast {
                x: to(x),
                to: dtype,
            },
            Expr::Const(_)
            | Expr::Index(..)
            | Expr::Less(..)
            | Expr::Accum { .. }
            | Expr::Random { .. } => self,
        }
    }

    /// Visits what it refers to: values, then indices.
    pub fn for_each_operand(self, mut visit: impl FnMut(Item)) {
        let _ = self.map_exprs(|e| {
            visit(Item::Expr(e));
            e
        });
        let _ = self.map_indices(|i| {
            visit(Item::Index(i));
            i
        });
    }
}

impl Kernel {
    /// Visits every use of a value outside the arena of values: in indices, accumulators and stores.
    pub fn for_each_value_use(&mut self, mut visit: impl FnMut(&mut ExprId)) {
        for index in &mut self.indices {
            if let Index::Checked { value, .. } = index {
                visit(value);
            }
        }
        for phase in &mut self.phases {
            match phase {
                Phase::Reduce { accums, .. } => accums.iter_mut().for_each(|a| visit(&mut a.value)),
                Phase::Store { stores, .. } => {
                    for store in stores {
                        visit(&mut store.value);
                        store.guard.iter_mut().for_each(&mut visit);
                    }
                }
            }
        }
    }
}
