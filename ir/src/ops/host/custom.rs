//! Ops that a program brings along, given by value.

use super::HostDef;
use crate::attr::{Attr, AttrList, Payload};
use crate::dim::Sym;
use crate::ops::OpDef;
use crate::tensor::Value;
use crate::tensor_type::ValueType;
use std::fmt;
use std::sync::Arc;

/// Contract and meaning of a [`Custom`] op. A pure function: equal operands give equal results, in any order of calls and
/// from any thread.
pub trait CustomKernel: Send + Sync {
    /// Name, for messages and listings.
    fn name(&self) -> &str;

    /// Result types for operand types.
    ///
    /// # Errors
    /// What is wrong with the operands, without the op's name.
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String>;

    /// Symbols in the result types that only a run decides: they are bound from the extents of the results.
    fn binds(&self) -> Vec<Sym> {
        vec![]
    }

    /// The results for these operands; their types are checked against those of [`CustomKernel::infer`].
    ///
    /// # Errors
    /// A value outside what the op allows, without the op's name.
    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String>;
}

/// An op whose meaning is code of the program that built the graph. Its text and binary forms hold the name alone, so a
/// graph with one can be looked at, but not read back.
#[derive(Clone)]
pub struct Custom {
    /// Contract and meaning.
    pub kernel: Arc<dyn CustomKernel>,
}

impl fmt::Debug for Custom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Custom({})", self.kernel.name())
    }
}

impl PartialEq for Custom {
    fn eq(&self, other: &Custom) -> bool {
        Arc::ptr_eq(&self.kernel, &other.kernel)
    }
}

impl Payload for Custom {
    fn attrs(&self) -> AttrList {
        vec![("name", Attr::Str(self.kernel.name().to_string()))]
    }

    fn from_attrs(_: Vec<(String, Attr)>) -> Result<Custom, String> {
        Err("a custom op is given by value; no file can hold it".into())
    }
}

impl OpDef for Custom {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        self.kernel.infer(operands)
    }
}

impl HostDef for Custom {
    fn binds(&self) -> Vec<Sym> {
        self.kernel.binds()
    }

    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String> {
        self.kernel.eval(operands)
    }
}
