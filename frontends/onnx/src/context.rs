//! [`NodeCx`]: what an operator's importer sees of its node and of the graph around it.
//!
//! An importer is a function `fn(&mut NodeCx) -> OpResult`: it takes operands with [`NodeCx::input`], attributes with
//! [`NodeCx::int`] and its like, appends nodes through [`NodeCx::g`], and gives one value per output, in order (fewer
//! when the last ones were not asked for). It never looks at names.
//!
//! Sizes that operands hold: [`NodeCx::ints`] when they must be numbers at import (they decide rank or structure; if
//! they are not, the caller is asked for the inputs behind them), [`NodeCx::extents`] when any expression will do
//! (elements known only at run time become symbols bound there).

use std::rc::Rc;

use cupola_ir::ops::BindDim;
use cupola_ir::tensor::Tensor;
use cupola_ir::{DType, Dim, Graph, Sym, SymRange, TensorType, ValueId, ValueType};
use cupola_source::quote;
use smallvec::SmallVec;

use crate::import::{Env, Region, Scope, Shared, Slot};
use crate::import_error::{OpError, OpResult, invalid};
use crate::ops::control::Formal;
use crate::proto::attribute_proto::AttributeType;
use crate::proto::{AttributeProto, GraphProto, NodeProto, TypeProto};
use crate::shape::{self, Elem, Facts};
use crate::symbols::Mark;

/// One node under import.
pub(crate) struct NodeCx<'a, 'm> {
    /// The graph under construction.
    pub(crate) g: &'a mut Graph,
    /// Imported version of the node's domain.
    pub(crate) opset: i64,
    pub(crate) node: &'m NodeProto,
    pub(crate) inputs: SmallVec<[Option<ValueId>; 4]>,
    pub(crate) facts: &'a mut Facts,
    pub(crate) scope: &'a Scope<'a, 'm>,
    pub(crate) env: &'a Env<'a, 'm>,
    pub(crate) shared: &'a mut Shared<'m>,
}

/// Attributes.
impl<'m> NodeCx<'_, 'm> {
    /// The attribute, with references to the attributes of the enclosing function resolved.
    fn attribute(&self, name: &str) -> Option<&'m AttributeProto> {
        let own = self.node.attribute.iter().find(|a| a.name() == name)?;
        match own.ref_attr_name() {
            "" => Some(own),
            outer => self.env.attributes.get(outer).copied(),
        }
    }

    fn typed(&self, name: &str, kind: AttributeType) -> OpResult<Option<&'m AttributeProto>> {
        match self.attribute(name) {
            Some(a) if a.r#type() == kind => Ok(Some(a)),
            Some(a) => invalid(format!(
                "attribute {} is of type {}, it should be {}",
                quote(name),
                a.r#type().as_str_name(),
                kind.as_str_name()
            )),
            None => Ok(None),
        }
    }

    /// Whether the node has this attribute.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.attribute(name).is_some()
    }

    /// An integer attribute.
    pub(crate) fn int(&self, name: &str) -> OpResult<Option<i64>> {
        Ok(self.typed(name, AttributeType::Int)?.map(|a| a.i()))
    }

    /// An integer attribute or its default.
    pub(crate) fn int_or(&self, name: &str, default: i64) -> OpResult<i64> {
        Ok(self.int(name)?.unwrap_or(default))
    }

    /// An integer attribute that means true or false.
    pub(crate) fn flag(&self, name: &str, default: bool) -> OpResult<bool> {
        Ok(self.int(name)?.map_or(default, |v| v != 0))
    }

    /// An integer attribute that must be there.
    pub(crate) fn required_int(&self, name: &str) -> OpResult<i64> {
        self.int(name)?
            .ok_or_else(|| OpError::Invalid(format!("attribute {} is missing", quote(name))))
    }

    /// A float attribute or its default.
    pub(crate) fn float_or(&self, name: &str, default: f64) -> OpResult<f64> {
        Ok(self.float(name)?.unwrap_or(default))
    }

    /// A float attribute.
    pub(crate) fn float(&self, name: &str) -> OpResult<Option<f64>> {
        Ok(self
            .typed(name, AttributeType::Float)?
            .map(|a| f64::from(a.f())))
    }

    /// An attribute of integers.
    pub(crate) fn ints_attr(&self, name: &str) -> OpResult<Option<Vec<i64>>> {
        Ok(self
            .typed(name, AttributeType::Ints)?
            .map(|a| a.ints.clone()))
    }

    /// An attribute of floats.
    pub(crate) fn floats_attr(&self, name: &str) -> OpResult<Option<Vec<f64>>> {
        Ok(self
            .typed(name, AttributeType::Floats)?
            .map(|a| a.floats.iter().map(|v| f64::from(*v)).collect()))
    }

    /// A text attribute.
    pub(crate) fn text(&self, name: &str) -> OpResult<Option<String>> {
        match self.typed(name, AttributeType::String)? {
            Some(a) => Ok(Some(text(a.s.as_deref().unwrap_or_default())?)),
            None => Ok(None),
        }
    }

    /// A text attribute or its default.
    pub(crate) fn text_or(&self, name: &str, default: &str) -> OpResult<String> {
        Ok(self.text(name)?.unwrap_or_else(|| default.to_string()))
    }

    /// An attribute of texts.
    pub(crate) fn texts_attr(&self, name: &str) -> OpResult<Option<Vec<String>>> {
        match self.typed(name, AttributeType::Strings)? {
            Some(a) => Ok(Some(
                a.strings.iter().map(|s| text(s)).collect::<OpResult<_>>()?,
            )),
            None => Ok(None),
        }
    }

    /// A tensor attribute.
    pub(crate) fn tensor_attr(&self, name: &str) -> OpResult<Option<Tensor>> {
        match self
            .typed(name, AttributeType::Tensor)?
            .and_then(|a| a.t.as_ref())
        {
            Some(t) => Ok(Some(self.shared.tensor(t)?)),
            None => Ok(None),
        }
    }

    /// A sparse tensor attribute, made dense.
    pub(crate) fn sparse_attr(&self, name: &str) -> OpResult<Option<Tensor>> {
        let found = self.typed(name, AttributeType::SparseTensor)?;
        match found.and_then(|a| a.sparse_tensor.as_ref()) {
            Some(t) => Ok(Some(self.shared.sparse(t)?)),
            None => Ok(None),
        }
    }

    /// A type attribute.
    pub(crate) fn type_attr(&self, name: &str) -> OpResult<Option<&'m TypeProto>> {
        let found = self.typed(name, AttributeType::TypeProto)?;
        Ok(found.and_then(|a| a.tp.as_deref()))
    }

    /// A graph attribute, which must be there.
    pub(crate) fn graph_attr(&self, name: &str) -> OpResult<&'m GraphProto> {
        let found = self.typed(name, AttributeType::Graph)?;
        found
            .and_then(|a| a.g.as_deref())
            .ok_or_else(|| OpError::Invalid(format!("attribute {} is missing", quote(name))))
    }

    /// An element type attribute.
    pub(crate) fn dtype_attr(&self, name: &str) -> OpResult<Option<DType>> {
        match self.int(name)? {
            Some(number) => Ok(Some(crate::import::dtype_of_number(number)?)),
            None => Ok(None),
        }
    }
}

fn text(bytes: &[u8]) -> OpResult<String> {
    match std::str::from_utf8(bytes) {
        Ok(s) => Ok(s.to_string()),
        Err(_) => invalid("a text attribute is not UTF-8"),
    }
}

/// Operands and results.
impl NodeCx<'_, '_> {
    /// Number of operands, missing ones at the end not counted.
    pub(crate) fn input_count(&self) -> usize {
        let last = self.inputs.iter().rposition(Option::is_some);
        last.map_or(0, |i| i + 1)
    }

    /// An operand that must be there.
    pub(crate) fn input(&self, index: usize) -> OpResult<ValueId> {
        match self.optional(index) {
            Some(v) => Ok(v),
            None => invalid(format!("operand {index} is missing")),
        }
    }

    /// A tensor operand that must be there.
    pub(crate) fn tensor_input(&self, index: usize) -> OpResult<(ValueId, TensorType)> {
        let v = self.input(index)?;
        match self.g.ty(v) {
            ValueType::Tensor(t) => Ok((v, t.clone())),
            other => invalid(format!("operand {index} is {other}, it should be a tensor")),
        }
    }

    /// An operand that may be missing.
    pub(crate) fn optional(&self, index: usize) -> Option<ValueId> {
        self.inputs.get(index).copied().flatten()
    }

    /// All operands from `first` on; none may be missing.
    pub(crate) fn inputs_from(&self, first: usize) -> OpResult<Vec<ValueId>> {
        (first..self.input_count()).map(|i| self.input(i)).collect()
    }

    /// Number of results that the node names, missing ones at the end not counted.
    pub(crate) fn output_count(&self) -> usize {
        let last = self.node.output.iter().rposition(|n| !n.is_empty());
        last.map_or(0, |i| i + 1)
    }

    /// Whether a result is asked for.
    pub(crate) fn wants(&self, index: usize) -> bool {
        self.node.output.get(index).is_some_and(|n| !n.is_empty())
    }
}

/// Axes and sizes.
impl NodeCx<'_, '_> {
    /// An axis counted from the end when negative.
    pub(crate) fn axis(&self, axis: i64, rank: usize) -> OpResult<usize> {
        let n = rank as i64;
        if (-n..n).contains(&axis) {
            Ok(axis.rem_euclid(n) as usize)
        } else {
            invalid(format!("axis {axis} of {rank} axes"))
        }
    }

    /// Distinct axes counted from the end when negative, in the order given.
    pub(crate) fn axes(&self, axes: &[i64], rank: usize) -> OpResult<Vec<usize>> {
        let all: Vec<usize> = axes
            .iter()
            .map(|a| self.axis(*a, rank))
            .collect::<OpResult<_>>()?;
        for (i, a) in all.iter().enumerate() {
            if all[..i].contains(a) {
                return invalid(format!("axis {a} twice in {axes:?}"));
            }
        }
        Ok(all)
    }

    /// Elements of a small tensor as far as they are known.
    pub(crate) fn elems(&mut self, v: ValueId) -> Option<Rc<[Elem]>> {
        self.facts.update(self.g, &mut self.shared.symbols);
        self.facts.elems(v).cloned()
    }

    /// A tensor known at import, of any size and type.
    pub(crate) fn known(&mut self, v: ValueId) -> Option<Tensor> {
        self.facts.update(self.g, &mut self.shared.symbols);
        self.facts.constant(self.g, v)
    }

    /// A tensor that must be known at import.
    ///
    /// # Errors
    /// A request for the inputs behind it.
    pub(crate) fn must_know(&mut self, v: ValueId) -> OpResult<Tensor> {
        self.known(v).ok_or(OpError::NeedsValue(v))
    }

    /// Integers that must be known at import.
    ///
    /// # Errors
    /// A request for the inputs behind them, or a tensor of other elements.
    pub(crate) fn ints(&mut self, v: ValueId) -> OpResult<Vec<i64>> {
        let ty = self.g.ty(v).clone();
        if !ty
            .as_tensor()
            .is_some_and(|t| t.dtype.is_int() && t.rank() <= 1)
        {
            return invalid(format!("{ty} where a vector of integers is needed"));
        }
        let t = self.must_know(v)?;
        t.to_i64s()
            .ok_or_else(|| OpError::Invalid(format!("{ty} where a vector of integers is needed")))
    }

    /// Floats (or integers) that must be known at import.
    pub(crate) fn floats(&mut self, v: ValueId) -> OpResult<Vec<f64>> {
        let t = self.must_know(v)?;
        match cupola_ir::convert::lanes(&t) {
            Some(cupola_ir::convert::Lanes::F(v)) => Ok(v),
            Some(cupola_ir::convert::Lanes::I(v)) => Ok(v.into_iter().map(|x| x as f64).collect()),
            Some(cupola_ir::convert::Lanes::U(v)) => Ok(v.into_iter().map(|x| x as f64).collect()),
            None => invalid(format!("{} where numbers are needed", t.ty())),
        }
    }

    /// The one number of a scalar (or one-element) operand known at import.
    pub(crate) fn known_number(&mut self, v: ValueId) -> OpResult<f64> {
        match self.floats(v)?[..] {
            [x] => Ok(x),
            _ => invalid(format!("{} where one number is needed", self.g.ty(v))),
        }
    }

    /// The elements of an integer vector (or scalar) as expressions. An element that only run time knows becomes a
    /// symbol, bound there; the run fails when it is below `min`.
    ///
    /// # Errors
    /// When the value is no integer vector, or its length is not known at import.
    pub(crate) fn extents(&mut self, v: ValueId, min: i64) -> OpResult<Vec<Dim>> {
        let ty = self.g.ty(v).clone();
        let vector = ty.as_tensor().filter(|t| t.dtype.is_int() && t.rank() <= 1);
        let Some(t) = vector else {
            return invalid(format!("{ty} where a vector of integers is needed"));
        };
        let len = match t.dims.first().map(Dim::as_const) {
            None => 1,
            Some(Some(n)) if n <= 64 => n as usize,
            Some(Some(n)) => return invalid(format!("{n} sizes, more than there can be axes")),
            Some(None) => return Err(OpError::NeedsShape(v)),
        };
        let known = self.elems(v);
        (0..len)
            .map(|i| match known.as_ref().map(|k| &k[i]) {
                Some(Elem::Int(d)) => Ok(d.clone()),
                _ => {
                    let x = match t.rank() {
                        0 => v,
                        _ => self.g.pick(v, 0, &Dim::from(i))?,
                    };
                    self.bind(x, min)
                }
            })
            .collect()
    }

    /// A scalar integer as an expression; bound at run time when nothing is known of it.
    pub(crate) fn extent(&mut self, v: ValueId, min: i64) -> OpResult<Dim> {
        match &self.extents(v, min)?[..] {
            [d] => Ok(d.clone()),
            _ => invalid(format!("{} where one size is needed", self.g.ty(v))),
        }
    }

    fn bind(&mut self, x: ValueId, min: i64) -> OpResult<Dim> {
        let x = self.g.cast(x, DType::I64)?;
        let x = self.g.reshape(x, &[])?;
        let sym = self.fresh_sym("size");
        if min != 0 {
            let range = SymRange {
                min,
                ..SymRange::default()
            };
            self.shared.symbols.ranges.insert(sym.clone(), range);
        }
        self.g.one(
            BindDim {
                sym: sym.clone(),
                min,
            },
            &[x],
        )?;
        Ok(Dim::from(&sym))
    }

    /// A symbol that nothing else uses.
    pub(crate) fn fresh_sym(&mut self, hint: &str) -> Sym {
        self.shared.symbols.fresh(hint)
    }

    /// Sizes as a constant or computed i64 vector.
    pub(crate) fn sizes(&mut self, dims: &[Dim]) -> OpResult<ValueId> {
        let known: Option<Vec<i64>> = dims.iter().map(Dim::as_const).collect();
        Ok(match known {
            Some(v) => self.g.i64s(&v)?,
            None => self.g.one(
                cupola_ir::ops::Dims {
                    dims: dims.to_vec(),
                },
                &[],
            )?,
        })
    }

    /// Random `u32` bits. The node's `seed` attribute, where given, selects the stream of numbers.
    pub(crate) fn random_bits(&mut self, dims: &[Dim]) -> OpResult<ValueId> {
        let own = self.shared.next_stream();
        // Most operators have a float here, dropout an integer.
        let stream = match self.attribute("seed") {
            Some(a) => (u64::from(a.f().to_bits()) ^ a.i() as u64) << 32 | own,
            None => own,
        };
        let dims = dims.to_vec();
        Ok(self.g.one(cupola_ir::ops::Random { stream, dims }, &[])?)
    }

    /// The smallest and largest value of an expression.
    pub(crate) fn bounds(&self, dim: &Dim) -> (i64, i64) {
        shape::bounds(dim, &self.shared.symbols.ranges)
    }

    /// `max(dim, 0)`.
    pub(crate) fn at_least_zero(&self, dim: &Dim) -> Dim {
        shape::at_least_zero(dim, &self.shared.symbols.ranges)
    }

    /// The smaller of two expressions.
    pub(crate) fn smaller(&self, a: &Dim, b: &Dim) -> Dim {
        shape::smaller(a, b, &self.shared.symbols.ranges)
    }

    /// An extent that must be a number at import.
    ///
    /// # Errors
    /// A request for the shapes behind the value.
    pub(crate) fn const_extent(&self, v: ValueId, axis: usize) -> OpResult<usize> {
        let dims = self.g.dims(v);
        let Some(dim) = dims.get(axis) else {
            return invalid(format!("{} has no axis {axis}", self.g.ty(v)));
        };
        let n = dim.as_const().ok_or(OpError::NeedsShape(v))?;
        usize::try_from(n).map_err(|_| OpError::Invalid(format!("extent {n} is negative")))
    }

    /// The error for a type that the operator does not take.
    pub(crate) fn bad_type<T>(&self, v: ValueId) -> OpResult<T> {
        invalid(format!("does not take {}", self.g.ty(v)))
    }
}

/// Subgraphs.
impl<'m> NodeCx<'_, 'm> {
    /// The values that subgraphs of this node use from outside, by name, each once, constants left out.
    pub(crate) fn captures(&self, graphs: &[&'m GraphProto]) -> OpResult<Vec<(&'m str, ValueId)>> {
        let mut names = vec![];
        for graph in graphs {
            crate::import::free_names(graph, &mut names);
        }
        let mut found: Vec<(&'m str, ValueId)> = vec![];
        for name in names {
            match self.scope.lookup(name) {
                Some(Slot::Value(v)) => {
                    if self.g.as_const(v).is_none() && !found.iter().any(|(n, _)| *n == name) {
                        found.push((name, v));
                    }
                }
                Some(Slot::Poison) => return Err(OpError::Poisoned),
                None => return invalid(format!("the value {} is not made anywhere", quote(name))),
            }
        }
        Ok(found)
    }

    /// A subgraph as a region: its own inputs as `given`, then the captures.
    ///
    /// # Errors
    /// Those of the nodes in it.
    pub(crate) fn region(
        &mut self,
        graph: &'m GraphProto,
        given: Vec<Formal>,
        captures: &[(&'m str, ValueId)],
    ) -> OpResult<Region> {
        crate::import::region(self, graph, given, captures)
    }

    /// Imports a subgraph's nodes into this graph, with `given` for its inputs; gives its outputs.
    ///
    /// # Errors
    /// Those of the nodes in it.
    pub(crate) fn inline(
        &mut self,
        graph: &'m GraphProto,
        given: &[ValueId],
    ) -> OpResult<Vec<ValueId>> {
        crate::import::inline(self, graph, given)
    }

    /// The type of a TypeProto, with fresh symbols for extents it leaves open; `None` when it lacks a rank.
    pub(crate) fn declared(&mut self, ty: &TypeProto, hint: &str) -> OpResult<Option<ValueType>> {
        crate::import::declared_type(self.shared, ty, hint)
    }

    /// Asks the caller for the inputs that decide a value; false when that would not help.
    pub(crate) fn ask_for(&mut self, v: ValueId) -> bool {
        self.facts.update(self.g, &mut self.shared.symbols);
        self.shared.needs_value(v, self.g, self.facts)
    }

    /// A point in time, for [`NodeCx::seen_from_outside`].
    pub(crate) fn mark(&self) -> Mark {
        self.shared.symbols.mark()
    }

    /// A region's type as the graph around it sees it: extents made of symbols younger than the mark become fresh
    /// symbols, which are added to `binds`.
    pub(crate) fn seen_from_outside(
        &mut self,
        ty: &ValueType,
        mark: Mark,
        binds: &mut Vec<Sym>,
    ) -> ValueType {
        match ty {
            ValueType::Tensor(t) => {
                let mut dims = t.dims.clone();
                for d in &mut dims {
                    if !self.shared.symbols.older(d, mark) {
                        let sym = self.fresh_sym("result");
                        *d = Dim::from(&sym);
                        binds.push(sym);
                    }
                }
                TensorType {
                    dtype: t.dtype,
                    dims,
                }
                .into()
            }
            // Extents inside are bound where an element is taken out.
            ValueType::Sequence(t) => {
                ValueType::Sequence(Box::new(self.seen_from_outside(t, mark, &mut vec![])))
            }
            ValueType::Optional(t) => {
                ValueType::Optional(Box::new(self.seen_from_outside(t, mark, &mut vec![])))
            }
        }
    }
}
