//! Control flow as regions.
//!
//! A region is a [`Graph`] whose inputs are given by the node's operands in order; it captures nothing implicitly.
//! It sees the symbols bound outside, and binds those of its own inputs anew at each entry. Result types are
//! attributes, since branches and iterations may differ in extents: such extents are symbols listed in `binds`, bound
//! from the actual results.

use super::{CoreOp, OpDef, tensors};
use crate::attr::payload;
use crate::dim::Sym;
use crate::dtype::DType;
use crate::graph::Graph;
use crate::tensor_type::ValueType;

/// Whether two types agree in all but extents.
pub(crate) fn same_kind(a: &ValueType, b: &ValueType) -> bool {
    match (a, b) {
        (ValueType::Tensor(x), ValueType::Tensor(y)) => x.dtype == y.dtype && x.rank() == y.rank(),
        (ValueType::Sequence(x), ValueType::Sequence(y))
        | (ValueType::Optional(x), ValueType::Optional(y)) => same_kind(x, y),
        _ => false,
    }
}

impl CoreOp {
    /// How many of the first operands decide which region runs and how often; the others are what regions take.
    pub fn decisions(&self) -> usize {
        match self {
            CoreOp::If(_) => 1,
            CoreOp::Loop(_) => 2,
            _ => 0,
        }
    }
}

fn check_kinds<'a>(
    what: &str,
    got: impl ExactSizeIterator<Item = &'a ValueType>,
    want: impl ExactSizeIterator<Item = &'a ValueType>,
) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!(
            "{what}: {} values where {} are needed",
            got.len(),
            want.len()
        ));
    }
    for (i, (g, w)) in got.zip(want).enumerate() {
        if !same_kind(g, w) {
            return Err(format!("{what} {i}: {g} where {w} is needed"));
        }
    }
    Ok(())
}

payload! {
    /// Operands `(condition: bool[], captures..)`; both regions take the captures.
    If {
        /// Run when the condition holds.
        then_branch: Graph,
        /// Run otherwise.
        else_branch: Graph,
        /// Result types.
        results: Vec<ValueType>,
        /// Symbols of the result types bound here.
        binds: Vec<Sym>,
    }
}

impl OpDef for If {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let (condition, captures) = operands.split_first().ok_or("takes a condition")?;
        if tensors(&[condition], Some(1))?[0].dtype != DType::Bool {
            return Err("the condition must be bool".into());
        }
        for (name, region) in [("then", &self.then_branch), ("else", &self.else_branch)] {
            check_kinds(
                &format!("{name} input"),
                captures.iter().copied(),
                region.input_types().iter(),
            )?;
            check_kinds(
                &format!("{name} output"),
                region.output_types().iter(),
                self.results.iter(),
            )?;
        }
        Ok(self.results.clone())
    }
}

payload! {
    /// Operands `(max_trips: i64[], condition: bool[], carried.., captures..)`. The body takes
    /// `(iteration: i64[], carried.., captures..)` and gives `(condition: bool[], carried.., scanned..)`. It runs while
    /// the condition holds and fewer than `max_trips` iterations are done (a negative number means no limit).
    /// Results: the carried values, then each scanned value stacked along a new leading axis.
    Loop {
        /// The repeated region.
        body: Graph,
        /// Number of carried values.
        carried: usize,
        /// Result types.
        results: Vec<ValueType>,
        /// Symbols of the result types bound here.
        binds: Vec<Sym>,
    }
}

impl OpDef for Loop {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let [trips, condition, rest @ ..] = operands else {
            return Err("takes a trip count and a condition".into());
        };
        let control = tensors(&[trips, condition], Some(2))?;
        if control[0].dtype != DType::I64 || control[1].dtype != DType::Bool {
            return Err("the trip count must be i64 and the condition bool".into());
        }
        let ins = self.body.input_types();
        let outs = self.body.output_types();
        let Some((_, ins)) = ins.split_first() else {
            return Err("the body takes the iteration number".into());
        };
        let Some((_, outs)) = outs.split_first() else {
            return Err("the body gives a condition".into());
        };
        if self.carried > outs.len() || self.carried > self.results.len() {
            return Err(format!(
                "the body gives fewer than {} carried values",
                self.carried
            ));
        }
        check_kinds("operand", rest.iter().copied(), ins.iter())?;
        check_kinds(
            "carried",
            outs[..self.carried].iter(),
            self.results[..self.carried].iter(),
        )?;
        check_kinds(
            "carried",
            ins[..self.carried.min(ins.len())].iter(),
            outs[..self.carried].iter(),
        )?;
        if outs.len() != self.results.len() {
            return Err(format!(
                "{} results of a body that gives {}",
                self.results.len(),
                outs.len()
            ));
        }
        Ok(self.results.clone())
    }
}

payload! {
    /// Operands `(carried.., scanned.., captures..)`. The body takes `(carried.., slice of each scanned.., captures..)`
    /// and gives `(carried.., outputs..)`; slices are taken along axis 0 in order. Results: the carried values, then
    /// each output stacked along a new leading axis.
    Scan {
        /// The repeated region.
        body: Graph,
        /// Number of carried values.
        carried: usize,
        /// Number of scanned operands; at least one unless the extent is 0.
        scanned: usize,
        /// Result types.
        results: Vec<ValueType>,
        /// Symbols of the result types bound here.
        binds: Vec<Sym>,
    }
}

impl OpDef for Scan {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let ins = self.body.input_types();
        let outs = self.body.output_types();
        if operands.len() != ins.len()
            || outs.len() != self.results.len()
            || self.carried > outs.len()
        {
            return Err("operands and results do not match the body".into());
        }
        if self.scanned == 0 || self.carried + self.scanned > operands.len() {
            return Err("needs at least one scanned operand".into());
        }
        for i in self.carried..self.carried + self.scanned {
            if operands[i].as_tensor().is_none_or(|t| t.rank() == 0) {
                return Err(format!("operand {i} has no axis to scan"));
            }
        }
        check_kinds(
            "carried",
            outs[..self.carried].iter(),
            self.results[..self.carried].iter(),
        )?;
        Ok(self.results.clone())
    }
}

payload! {
    /// Runs a region once; operands are its inputs. Keeps a function or an outlined part together.
    Call {
        /// The region.
        body: Graph,
        /// Result types.
        results: Vec<ValueType>,
        /// Symbols of the result types bound here.
        binds: Vec<Sym>,
    }
}

impl OpDef for Call {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        check_kinds(
            "operand",
            operands.iter().copied(),
            self.body.input_types().iter(),
        )?;
        check_kinds(
            "result",
            self.body.output_types().iter(),
            self.results.iter(),
        )?;
        Ok(self.results.clone())
    }
}
