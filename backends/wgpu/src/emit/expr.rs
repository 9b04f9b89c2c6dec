//! Index and element expressions: which lines they need, in which order, and where.

use cupola_ir::kernel::{Access, Expr, ExprId, Index, IndexId};
use cupola_ir::scalar::Scalar;
use cupola_ir::{Class, DType};

use super::lanes::Step;
use super::scalar::{Code, Held, element, held, signed_literal};
use super::{EmitError, Item, Writer, faulting_division};

/// The constant that spreads random streams over keys, as [`cupola_ir::ops::Random`] defines it.
const STREAM: u64 = 0x9E37_79B9_7F4A_7C15;

impl Writer<'_> {
    fn code(&mut self) -> Code<'_> {
        Code {
            helpers: &mut self.helpers,
            elements: &mut self.elements,
        }
    }

    /// Notes a helper and writes a call of it.
    pub(super) fn call(&mut self, name: &'static str, arguments: &[&str]) -> String {
        self.code().call(name, arguments)
    }

    pub(super) fn index_at(&self, index: IndexId) -> Index {
        self.kernel.indices[index.0 as usize]
    }

    pub(super) fn expr_at(&self, expr: ExprId) -> Expr {
        self.kernel.exprs[expr.0 as usize]
    }

    /// Marks what depends on nothing but parallel axes, sizes and accumulators, may be computed early, and cannot fault.
    pub(super) fn find_outer(&mut self) {
        // The arenas refer to each other through checked indices, so the marks are taken back until none changes.
        self.outer_indices = vec![true; self.kernel.indices.len()];
        self.outer_exprs = vec![true; self.kernel.exprs.len()];
        loop {
            let mut changed = false;
            for at in 0..self.kernel.indices.len() {
                let item = Item::Index(IndexId(at as u32));
                if self.outer_indices[at] && !(self.may_be_outer(item) && self.operands_outer(item))
                {
                    self.outer_indices[at] = false;
                    changed = true;
                }
            }
            for at in 0..self.kernel.exprs.len() {
                let item = Item::Expr(ExprId(at as u32));
                if self.outer_exprs[at] && !(self.may_be_outer(item) && self.operands_outer(item)) {
                    self.outer_exprs[at] = false;
                    changed = true;
                }
            }
            if !changed {
                break;
            }
        }
    }

    fn operands_outer(&self, item: Item) -> bool {
        let mut operands = Vec::new();
        self.operands(item, true, &mut operands);
        operands.into_iter().all(|operand| self.is_outer(operand))
    }

    pub(super) fn is_outer(&self, item: Item) -> bool {
        match item {
            Item::Index(id) => self.outer_indices[id.0 as usize],
            Item::Expr(id) => self.outer_exprs[id.0 as usize],
        }
    }

    fn may_be_outer(&self, item: Item) -> bool {
        match item {
            Item::Index(id) => match self.index_at(id) {
                Index::Axis(axis) => (axis.0 as usize) < self.kernel.parallel,
                Index::Checked { fault, .. } => !fault,
                _ => true,
            },
            Item::Expr(id) => match self.expr_at(id) {
                Expr::Load { buffer, .. } => {
                    self.kernel.buffers[buffer.0 as usize].access == Access::Read
                }
                _ => !faulting_division(self.kernel, id),
            },
        }
    }

    /// Whether an item stands for itself in the text, without a line of its own.
    pub(super) fn is_inline(&self, item: Item) -> bool {
        match item {
            Item::Index(id) => matches!(
                self.index_at(id),
                Index::Const(_) | Index::Size(_) | Index::Axis(_)
            ),
            Item::Expr(id) => matches!(self.expr_at(id), Expr::Const(_) | Expr::Accum { .. }),
        }
    }

    /// An item with the lane that it is written for: one for all where they share it.
    fn key(&self, item: Item) -> (Item, u32) {
        match &self.view {
            Some(view) if !view.is_shared(item) => (item, self.lane),
            _ => (item, 0),
        }
    }

    fn is_computed(&self, item: Item) -> bool {
        let key = self.key(item);
        self.scopes.iter().any(|scope| scope.contains(&key))
    }

    /// What follows the name of an item of which each lane has its own.
    fn lane_suffix(&self, item: Item) -> String {
        match &self.view {
            Some(view) if !view.is_shared(item) => format!("_{}", self.lane),
            _ => String::new(),
        }
    }

    /// What follows the name of an accumulator.
    pub(super) fn accum_suffix(&self) -> String {
        match &self.view {
            Some(view) if view.parallel => format!("_{}", self.lane),
            _ => String::new(),
        }
    }

    /// What an item is made of. The index of a guarded load counts only with `guarded`: its line stands inside the
    /// guard.
    pub(super) fn operands(&self, item: Item, guarded: bool, out: &mut Vec<Item>) {
        if let Item::Expr(id) = item
            && let Expr::Load {
                guard: Some(guard), ..
            } = self.expr_at(id)
            && !guarded
        {
            out.push(Item::Expr(guard));
            return;
        }
        item.for_each_operand(self.kernel, |operand| out.push(operand));
    }

    /// Writes the lines that compute `roots`, operands first, without those already computed in an open block.
    pub(super) fn need(&mut self, roots: &[Item]) -> Result<(), EmitError> {
        let mut stack: Vec<(Item, bool)> = roots.iter().rev().map(|&item| (item, false)).collect();
        let mut operands = Vec::new();
        while let Some((item, ready)) = stack.pop() {
            if self.is_inline(item) || self.is_computed(item) {
                continue;
            }
            if ready {
                let key = self.key(item);
                // What lanes share is what the first of them has.
                let lane = self.lane;
                if self.view.as_ref().is_some_and(|view| view.is_shared(item)) {
                    self.lane = 0;
                }
                let computed = self.compute(item);
                self.lane = lane;
                computed?;
                if let Some(scope) = self.scopes.last_mut() {
                    scope.insert(key);
                }
            } else {
                stack.push((item, true));
                operands.clear();
                self.operands(item, false, &mut operands);
                stack.extend(operands.iter().rev().map(|&operand| (operand, false)));
            }
        }
        Ok(())
    }

    /// Writes the outer items that `roots` lead to.
    pub(super) fn need_outer(&mut self, roots: &[Item]) -> Result<(), EmitError> {
        let mut seen = rustc_hash::FxHashSet::default();
        let mut stack: Vec<Item> = roots.to_vec();
        let mut outer = Vec::new();
        while let Some(item) = stack.pop() {
            if !seen.insert(item) {
                continue;
            }
            if self.is_outer(item) {
                outer.push(item);
            } else {
                self.operands(item, true, &mut stack);
            }
        }
        outer.sort_by_key(|item| match item {
            Item::Index(id) => (0, id.0),
            Item::Expr(id) => (1, id.0),
        });
        self.need(&outer)
    }

    /// How an index is written where it is used.
    pub(super) fn index_name(&self, index: IndexId) -> String {
        let name = match self.index_at(index) {
            Index::Const(value) => signed_literal(value as i32),
            Index::Size(at) => format!("s{at}"),
            Index::Axis(axis) => format!("a{}", axis.0),
            _ => self.index_line(index),
        };
        match &self.view {
            Some(view) if self.lane > 0 && view.step(index) == Step::One => {
                format!("({name} + {})", self.lane)
            }
            _ => name,
        }
    }

    /// The name that an index has where it is computed.
    fn index_line(&self, index: IndexId) -> String {
        format!("at{}{}", index.0, self.lane_suffix(Item::Index(index)))
    }

    /// The name that an element has where it is computed.
    fn expr_line(&self, expr: ExprId) -> String {
        format!("e{}{}", expr.0, self.lane_suffix(Item::Expr(expr)))
    }

    /// How an element is written where it is used.
    pub(super) fn expr_name(&mut self, expr: ExprId) -> Result<String, EmitError> {
        Ok(match self.expr_at(expr) {
            Expr::Const(literal) => self.code().literal(literal.dtype, literal.bits)?,
            Expr::Accum { phase, accum } => format!("acc{phase}_{accum}{}", self.accum_suffix()),
            _ => match &self.view {
                Some(view) if view.is_four(expr) => {
                    let component = ["x", "y", "z", "w"][self.lane as usize];
                    format!("{}.{component}", self.expr_line(expr))
                }
                _ => self.expr_line(expr),
            },
        })
    }

    fn compute(&mut self, item: Item) -> Result<(), EmitError> {
        match item {
            Item::Index(id) => {
                let value = self.index_value(id)?;
                self.line(&format!("let {} = {value};", self.index_line(id)));
                Ok(())
            }
            Item::Expr(id) => self.compute_expr(id),
        }
    }

    fn index_value(&mut self, id: IndexId) -> Result<String, EmitError> {
        let index = self.index_at(id);
        let name = |index| self.index_name(index);
        Ok(match index {
            Index::Const(_) | Index::Size(_) | Index::Axis(_) => name(id),
            Index::Add(x, y) => format!("{} + {}", name(x), name(y)),
            Index::Sub(x, y) => format!("{} - {}", name(x), name(y)),
            Index::Mul(x, y) => format!("{} * {}", name(x), name(y)),
            Index::Min(x, y) => format!("min({}, {})", name(x), name(y)),
            Index::Max(x, y) => format!("max({}, {})", name(x), name(y)),
            Index::Div(x, y) if self.is_natural(x) => {
                format!("i32(u32({}) / u32({}))", name(x), name(y))
            }
            Index::Rem(x, y) if self.is_natural(x) => {
                format!("i32(u32({}) % u32({}))", name(x), name(y))
            }
            Index::Div(x, y) => {
                let (x, y) = (name(x), name(y));
                self.call("floor_div", &[&x, &y])
            }
            Index::Rem(x, y) => {
                let (x, y) = (name(x), name(y));
                self.call("floor_rem", &[&x, &y])
            }
            Index::Checked {
                value,
                extent,
                fault,
            } => {
                let extent = name(extent);
                let long = held(self.kernel.dtype(value))?;
                let value = self.expr_name(value)?;
                let (clamp, outside) = match long {
                    Held::Signed64 | Held::Unsigned64 => {
                        ("checked64", self.call("outside64", &[&value, &extent]))
                    }
                    Held::Signed => ("checked32", format!("{value} < 0 || {value} >= {extent}")),
                    Held::Bool | Held::Float | Held::Float64 | Held::Unsigned => {
                        return Err(EmitError("an index that is neither i32 nor i64".to_owned()));
                    }
                };
                if fault {
                    self.report_if(&outside);
                }
                self.call(clamp, &[&value, &extent])
            }
        })
    }

    /// Whether an index is never negative: with the sizes of this variant, or with any.
    fn is_natural(&self, index: IndexId) -> bool {
        if let Some(&natural) = self.variant.natural.get(index.0 as usize) {
            return natural;
        }
        match self.index_at(index) {
            Index::Const(value) => value >= 0,
            Index::Axis(_) | Index::Rem(..) | Index::Checked { .. } => true,
            Index::Size(at) => {
                let is_extent = |extent: &cupola_ir::kernel::Extent| {
                    *extent == cupola_ir::kernel::Extent::Size(at)
                };
                self.kernel.axes.iter().any(is_extent)
                    || self.kernel.buffers.iter().any(|b| is_extent(&b.len))
            }
            Index::Add(x, y) | Index::Mul(x, y) | Index::Min(x, y) => {
                self.is_natural(x) && self.is_natural(y)
            }
            Index::Div(x, _) => self.is_natural(x),
            Index::Max(x, y) => self.is_natural(x) || self.is_natural(y),
            Index::Sub(..) => false,
        }
    }

    /// Reports a fault of this launch under a condition.
    fn report_if(&mut self, condition: &str) {
        self.line(&format!(
            "if {condition} {{ store_faults(0u, params.launch); }}"
        ));
    }

    fn compute_expr(&mut self, id: ExprId) -> Result<(), EmitError> {
        let value = match self.expr_at(id) {
            Expr::Const(_) | Expr::Accum { .. } => self.expr_name(id)?,
            Expr::Index(index, dtype) => {
                let index = self.index_name(index);
                self.code().number_of_index(dtype, &index)?
            }
            Expr::Less(x, y) => format!("{} < {}", self.index_name(x), self.index_name(y)),
            Expr::Load {
                buffer,
                index,
                guard,
            } => {
                let buffer = buffer.0 as usize;
                return self.compute_load(id, buffer, index, guard);
            }
            Expr::Unary(f, x) => {
                let (dtype, x) = (self.kernel.dtype(x), self.expr_name(x)?);
                self.code().unary(f, dtype, &x)?
            }
            Expr::Binary(f, x, y) => {
                let dtype = self.kernel.dtype(x);
                let (x, y) = (self.expr_name(x)?, self.expr_name(y)?);
                if faulting_division(self.kernel, id) {
                    let zero = self.code().is_zero(dtype, &y)?;
                    self.report_if(&zero);
                }
                self.code().binary(f, dtype, &x, &y)?
            }
            Expr::Ternary(Scalar::Select, c, x, y) => {
                let (c, x, y) = (self.expr_name(c)?, self.expr_name(x)?, self.expr_name(y)?);
                format!("select({y}, {x}, {c})")
            }
            Expr::Ternary(Scalar::Fma, x, y, z) => {
                let dtype = self.kernel.dtype(x);
                let (x, y, z) = (self.expr_name(x)?, self.expr_name(y)?, self.expr_name(z)?);
                self.code().fma(dtype, &x, &y, &z)?
            }
            Expr::Ternary(f, ..) => {
                return Err(EmitError(format!("{} of three operands", f.name())));
            }
            Expr::Cast { x, to, saturate } => {
                let (from, x) = (self.kernel.dtype(x), self.expr_name(x)?);
                self.code().cast(from, to, saturate, &x)?
            }
            Expr::Bitcast { x, to } => {
                let (from, x) = (self.kernel.dtype(x), self.expr_name(x)?);
                self.code().bitcast(from, to, &x)?
            }
            Expr::Random {
                index,
                stream,
                seed,
                run,
            } => {
                let spread = stream.wrapping_mul(STREAM);
                let element = format!("u32({})", self.index_name(index));
                let key = format!(
                    "vec2<u32>(params.s{seed} ^ {:#x}u, params.h{seed} ^ {:#x}u)",
                    spread as u32,
                    spread >> 32
                );
                let run = format!("vec2<u32>(params.s{run}, params.h{run})");
                self.call("random_word", &[&element, &key, &run])
            }
        };
        self.line(&format!("let {} = {value};", self.expr_line(id)));
        Ok(())
    }

    fn compute_load(
        &mut self,
        id: ExprId,
        buffer: usize,
        index: IndexId,
        guard: Option<ExprId>,
    ) -> Result<(), EmitError> {
        let dtype = self.kernel.buffers[buffer].dtype;
        if self.epilogue && buffer == 0 {
            let value = self.value_in_hand(dtype)?;
            self.line(&format!("let e{} = {value};", id.0));
            return Ok(());
        }
        if self.from_tiles && self.variant.tiled.contains(&id.0) {
            let value = self.tile_value(id);
            self.line(&format!("let {} = {value};", self.expr_line(id)));
            return Ok(());
        }
        let four = self.view.as_ref().is_some_and(|view| view.is_four(id));
        let name = self.buffer_name(buffer);
        let (load, value_type) = match four {
            true => (format!("load4_{name}"), element(dtype)?.value_type4()),
            false => (format!("load_{name}"), held(dtype)?.name()),
        };
        let line = self.expr_line(id);
        let Some(guard) = guard else {
            let index = self.index_name(index);
            self.line(&format!("let {line} = {load}(u32({index}));"));
            return Ok(());
        };
        let guard = self.expr_name(guard)?;
        self.line(&format!("var {line} = {value_type}();"));
        self.open(&format!("if {guard}"));
        self.need(&[Item::Index(index)])?;
        let index = self.index_name(index);
        self.line(&format!("{line} = {load}(u32({index}));"));
        self.close();
        Ok(())
    }

    /// The library kernel's result as an element of the op's dtype; its parameter is `value`, already of that class.
    fn value_in_hand(&mut self, dtype: DType) -> Result<String, EmitError> {
        match dtype.class() {
            Class::Float => Ok("f32(value)".to_owned()),
            Class::Signed if dtype.bits() <= 32 => Ok("i32(value)".to_owned()),
            Class::Unsigned if dtype.bits() <= 32 => Ok("u32(value)".to_owned()),
            _ => Err(EmitError(format!("an epilogue over {dtype}"))),
        }
    }

    /// A float, integer or other constant by value, for the start of accumulators.
    pub(super) fn literal(&mut self, dtype: DType, bits: u64) -> Result<String, EmitError> {
        self.code().literal(dtype, bits)
    }

    /// `f(x, y)` of elements already computed.
    pub(super) fn combine(
        &mut self,
        f: Scalar,
        dtype: DType,
        x: &str,
        y: &str,
    ) -> Result<String, EmitError> {
        self.code().binary(f, dtype, x, y)
    }
}
