//! Extents as values of the model: where symbols come from, and arithmetic on them.
//!
//! An extent is an `int64` tensor of shape `[1]`, so that a shape is a concatenation.

use cupola_ir::dim::Atom;
use cupola_ir::{Dim, Sym, ValueType};

use super::{ExportError, Exporter, Result};
use crate::write::attribute;

/// Where the value of a symbol comes from.
#[derive(Clone)]
pub(super) enum Binding {
    /// An extent of a value; read when it is first needed.
    Axis { value: String, axis: usize },
    /// A scalar computed at run time.
    Value(String),
}

impl Exporter<'_> {
    /// From here on the symbols among the extents of a type are those of `value`.
    pub(super) fn bind_shape(&mut self, kind: &ValueType, value: &str) {
        let Some(tensor) = kind.as_tensor() else {
            return;
        };
        for (axis, dim) in tensor.dims.iter().enumerate() {
            if let Some(sym) = dim.as_sym() {
                self.bind_axis(sym, value, axis);
            }
        }
    }

    /// From here on `sym` is an extent of `value`.
    pub(super) fn bind_axis(&mut self, sym: &Sym, value: &str, axis: usize) {
        self.bind(
            sym,
            Binding::Axis {
                value: value.to_owned(),
                axis,
            },
        );
    }

    /// From here on `sym` is the scalar `value`.
    pub(super) fn bind_value(&mut self, sym: &Sym, value: &str) {
        self.bind(sym, Binding::Value(value.to_owned()));
    }

    fn bind(&mut self, sym: &Sym, binding: Binding) {
        let uses = |dim: &Dim| {
            let mut found = false;
            dim.for_each_sym(&mut |used| found |= used == sym);
            found
        };
        self.extents.retain(|dim, _| !uses(dim));
        self.symbols.insert(sym.clone(), binding);
    }

    /// A shape.
    pub(super) fn shape(&mut self, dims: &[Dim]) -> Result<String> {
        let mut parts = Vec::new();
        let mut known = Vec::new();
        for dim in dims {
            match dim.as_const() {
                Some(size) => known.push(size),
                None => {
                    if !known.is_empty() {
                        parts.push(self.ints(&known));
                        known.clear();
                    }
                    parts.push(self.extent(dim)?);
                }
            }
        }
        if !known.is_empty() || parts.is_empty() {
            parts.push(self.ints(&known));
        }
        Ok(match &parts[..] {
            [part] => part.clone(),
            _ => {
                let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
                self.emit("Concat", &parts, &[attribute("axis", 0)])
            }
        })
    }

    /// An extent as a scalar.
    pub(super) fn extent_scalar(&mut self, dim: &Dim) -> Result<String> {
        match dim.as_const() {
            Some(size) => self.number(size as f64, cupola_ir::DType::I64),
            None => {
                let extent = self.extent(dim)?;
                let axes = self.ints(&[0]);
                Ok(self.emit("Squeeze", &[&extent, &axes], &[]))
            }
        }
    }

    /// An extent as a vector of one.
    pub(super) fn extent(&mut self, dim: &Dim) -> Result<String> {
        if let Some(size) = dim.as_const() {
            return Ok(self.ints(&[size]));
        }
        if let Some(name) = self.extents.get(dim) {
            return Ok(name.clone());
        }
        let mut sum: Option<String> = None;
        for term in dim.terms() {
            let mut product: Option<String> = None;
            for atom in &term.factors {
                let factor = self.atom(atom)?;
                product = Some(match product {
                    Some(product) => self.emit("Mul", &[&product, &factor], &[]),
                    None => factor,
                });
            }
            let value = match (product, term.coef) {
                (Some(product), 1) => product,
                (Some(product), coef) => {
                    let coef = self.ints(&[coef]);
                    self.emit("Mul", &[&product, &coef], &[])
                }
                (None, constant) => self.ints(&[constant]),
            };
            sum = Some(match sum {
                Some(sum) => self.emit("Add", &[&sum, &value], &[]),
                None => value,
            });
        }
        let name =
            sum.unwrap_or_else(|| unreachable!("bug: an extent that is not constant has terms"));
        self.extents.insert(dim.clone(), name.clone());
        Ok(name)
    }

    fn atom(&mut self, atom: &Atom) -> Result<String> {
        let pair = |exporter: &mut Self, lhs: &Dim, rhs: &Dim| {
            Ok((exporter.extent(lhs)?, exporter.extent(rhs)?))
        };
        match atom {
            Atom::Sym(sym) => self.symbol(sym),
            Atom::FloorDiv(lhs, rhs) => {
                // Division truncates; `Mod` takes the sign of the divisor.
                let (lhs, rhs) = pair(self, lhs, rhs)?;
                let rest = self.emit("Mod", &[&lhs, &rhs], &[]);
                let whole = self.emit("Sub", &[&lhs, &rest], &[]);
                Ok(self.emit("Div", &[&whole, &rhs], &[]))
            }
            Atom::Min(lhs, rhs) => {
                let (lhs, rhs) = pair(self, lhs, rhs)?;
                Ok(self.emit("Min", &[&lhs, &rhs], &[]))
            }
            Atom::Max(lhs, rhs) => {
                let (lhs, rhs) = pair(self, lhs, rhs)?;
                Ok(self.emit("Max", &[&lhs, &rhs], &[]))
            }
            Atom::Broadcast(lhs, rhs) => {
                let (lhs, rhs) = pair(self, lhs, rhs)?;
                let one = self.ints(&[1]);
                let is_one = self.emit("Equal", &[&lhs, &one], &[]);
                Ok(self.emit("Where", &[&is_one, &rhs, &lhs], &[]))
            }
        }
    }

    fn symbol(&mut self, sym: &Sym) -> Result<String> {
        let dim = Dim::from(sym);
        if let Some(name) = self.extents.get(&dim) {
            return Ok(name.clone());
        }
        let binding = self.symbols.get(sym).cloned();
        let name = match binding.ok_or_else(|| ExportError::Symbol(dim.to_string()))? {
            Binding::Axis { value, axis } => {
                let range = [
                    attribute("start", axis as i64),
                    attribute("end", axis as i64 + 1),
                ];
                self.emit("Shape", &[&value], &range)
            }
            Binding::Value(value) => {
                let shape = self.ints(&[1]);
                self.emit("Reshape", &[&value, &shape], &[])
            }
        };
        self.extents.insert(dim, name.clone());
        Ok(name)
    }
}
