//! Attributes: the one description of an op's payload that text form, binary form, hashing and printing share.
//!
//! Every op payload is declared with [`payload!`]; the macro gives it `attrs` and `from_attrs`.

use crate::dim::{Dim, Sym};
use crate::dtype::DType;
use crate::graph::Graph;
use crate::tensor::Tensor;
use crate::tensor_type::ValueType;

/// An attribute value.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Attr {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    Ints(Vec<i64>),
    Floats(Vec<f64>),
    Strs(Vec<String>),
    Sym(Sym),
    Syms(Vec<Sym>),
    Dim(Dim),
    Dims(Vec<Dim>),
    DType(DType),
    Type(ValueType),
    Types(Vec<ValueType>),
    Tensor(Tensor),
    Graph(Box<Graph>),
}

/// Named attributes in declaration order.
pub type AttrList = Vec<(&'static str, Attr)>;

/// A payload field that converts to and from an attribute.
pub trait AttrField: Sized {
    /// As an attribute.
    fn to_attr(&self) -> Attr;
    /// From an attribute; `None` when it is of another kind or out of range.
    fn from_attr(attr: Attr) -> Option<Self>;
}

/// A struct of attributes.
pub trait Payload: Sized {
    /// All fields, in declaration order.
    fn attrs(&self) -> AttrList;
    /// Builds the struct from named attributes.
    ///
    /// # Errors
    /// The name of a field that is missing or malformed, or of an attribute that is no field.
    fn from_attrs(attrs: Vec<(String, Attr)>) -> Result<Self, String>;
}

macro_rules! field {
    ($($t:ty, $v:ident);* $(;)?) => { $(
        impl AttrField for $t {
            fn to_attr(&self) -> Attr { Attr::$v(self.clone()) }
            fn from_attr(attr: Attr) -> Option<Self> { match attr { Attr::$v(v) => Some(v), _ => None } }
        }
    )* };
}
field!(bool, Bool; i64, Int; String, Str; Vec<i64>, Ints; Sym, Sym; DType, DType; Tensor, Tensor; ValueType, Type);

/// Lists that read an empty list of integers as an empty one of their own: text does not tell them apart.
macro_rules! list_field {
    ($($t:ty, $v:ident);* $(;)?) => { $(
        impl AttrField for Vec<$t> {
            fn to_attr(&self) -> Attr { Attr::$v(self.clone()) }
            fn from_attr(attr: Attr) -> Option<Self> {
                match attr {
                    Attr::$v(v) => Some(v),
                    Attr::Ints(v) if v.is_empty() => Some(vec![]),
                    _ => None,
                }
            }
        }
    )* };
}
list_field!(String, Strs; ValueType, Types);

impl AttrField for f64 {
    fn to_attr(&self) -> Attr {
        Attr::Float(*self)
    }
    fn from_attr(attr: Attr) -> Option<Self> {
        match attr {
            Attr::Float(v) => Some(v),
            Attr::Int(v) => Some(v as f64),
            _ => None,
        }
    }
}

impl AttrField for Vec<f64> {
    fn to_attr(&self) -> Attr {
        Attr::Floats(self.clone())
    }
    fn from_attr(attr: Attr) -> Option<Self> {
        match attr {
            Attr::Floats(v) => Some(v),
            Attr::Ints(v) => Some(v.into_iter().map(|x| x as f64).collect()),
            _ => None,
        }
    }
}

impl AttrField for Dim {
    fn to_attr(&self) -> Attr {
        Attr::Dim(self.clone())
    }
    fn from_attr(attr: Attr) -> Option<Self> {
        match attr {
            Attr::Dim(d) => Some(d),
            Attr::Int(v) => Some(Dim::from(v)),
            Attr::Sym(s) => Some(Dim::from(&s)),
            _ => None,
        }
    }
}

impl AttrField for Vec<Dim> {
    fn to_attr(&self) -> Attr {
        Attr::Dims(self.clone())
    }
    fn from_attr(attr: Attr) -> Option<Self> {
        match attr {
            Attr::Dims(d) => Some(d),
            Attr::Ints(v) => Some(v.into_iter().map(Dim::from).collect()),
            Attr::Syms(v) => Some(v.iter().map(Dim::from).collect()),
            _ => None,
        }
    }
}

impl AttrField for Vec<Sym> {
    fn to_attr(&self) -> Attr {
        Attr::Syms(self.clone())
    }
    fn from_attr(attr: Attr) -> Option<Self> {
        match attr {
            Attr::Syms(v) => Some(v),
            Attr::Dims(v) => v.iter().map(|d| d.as_sym().cloned()).collect(),
            Attr::Ints(v) if v.is_empty() => Some(vec![]),
            _ => None,
        }
    }
}

impl AttrField for usize {
    fn to_attr(&self) -> Attr {
        Attr::Int(*self as i64)
    }
    fn from_attr(attr: Attr) -> Option<Self> {
        match attr {
            Attr::Int(v) => usize::try_from(v).ok(),
            _ => None,
        }
    }
}

impl AttrField for u64 {
    fn to_attr(&self) -> Attr {
        Attr::Int(*self as i64)
    }
    fn from_attr(attr: Attr) -> Option<Self> {
        match attr {
            Attr::Int(v) => Some(v as u64),
            _ => None,
        }
    }
}

impl AttrField for Vec<usize> {
    fn to_attr(&self) -> Attr {
        Attr::Ints(self.iter().map(|v| *v as i64).collect())
    }
    fn from_attr(attr: Attr) -> Option<Self> {
        match attr {
            Attr::Ints(v) => v.into_iter().map(|x| usize::try_from(x).ok()).collect(),
            _ => None,
        }
    }
}

impl AttrField for Graph {
    fn to_attr(&self) -> Attr {
        Attr::Graph(Box::new(self.clone()))
    }
    fn from_attr(attr: Attr) -> Option<Self> {
        match attr {
            Attr::Graph(g) => Some(*g),
            _ => None,
        }
    }
}

impl<T: AttrField> AttrField for Option<T> {
    fn to_attr(&self) -> Attr {
        self.as_ref().map_or(Attr::None, AttrField::to_attr)
    }
    fn from_attr(attr: Attr) -> Option<Self> {
        match attr {
            Attr::None => Some(None),
            other => T::from_attr(other).map(Some),
        }
    }
}

/// Takes a named field out of an attribute list.
///
/// # Errors
/// The field's name, when it is missing or malformed.
pub fn take<T: AttrField>(attrs: &mut Vec<(String, Attr)>, name: &str) -> Result<T, String> {
    let attr = match attrs.iter().position(|(n, _)| n == name) {
        Some(at) => attrs.remove(at).1,
        None => Attr::None,
    };
    T::from_attr(attr).ok_or_else(|| format!("attribute '{name}' is missing or of the wrong kind"))
}

/// Declares a payload struct: public fields, `Clone`, `Debug`, `PartialEq` and [`Payload`].
macro_rules! payload {
    ($(#[$m:meta])* $name:ident { $($(#[$fm:meta])* $f:ident : $t:ty),* $(,)? }) => {
        $(#[$m])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name { $($(#[$fm])* pub $f: $t),* }
        impl $crate::attr::Payload for $name {
            fn attrs(&self) -> $crate::attr::AttrList {
                vec![$((stringify!($f), $crate::attr::AttrField::to_attr(&self.$f))),*]
            }
            #[allow(unused_mut)]
            fn from_attrs(mut attrs: Vec<(String, $crate::attr::Attr)>) -> Result<Self, String> {
                let value = $name { $($f: $crate::attr::take(&mut attrs, stringify!($f))?),* };
                match attrs.first() {
                    Some((extra, _)) => Err(format!("unknown attribute '{extra}'")),
                    None => Ok(value),
                }
            }
        }
    };
}
pub(crate) use payload;

/// Declares a closed enum of names that is an attribute: variants print as the given text.
macro_rules! attr_enum {
    ($(#[$m:meta])* $name:ident { $($(#[$vm:meta])* $v:ident = $text:literal),* $(,)? }) => {
        $(#[$m])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vm])* $v),* }
        impl $name {
            /// Every variant.
            pub const ALL: &'static [$name] = &[$($name::$v),*];
            /// Text name.
            pub fn name(self) -> &'static str { match self { $($name::$v => $text),* } }
            /// The variant of a text name.
            pub fn from_name(name: &str) -> Option<Self> { Self::ALL.iter().copied().find(|v| v.name() == name) }
        }
        impl $crate::attr::AttrField for $name {
            fn to_attr(&self) -> $crate::attr::Attr { $crate::attr::Attr::Str(self.name().to_string()) }
            fn from_attr(attr: $crate::attr::Attr) -> Option<Self> {
                match attr { $crate::attr::Attr::Str(s) => Self::from_name(&s), _ => None }
            }
        }
    };
}
pub(crate) use attr_enum;

/// Declares a closed family of ops: an enum with one payload struct per variant and a text name each.
///
/// The enum gets `name`, `attrs`, `from_name` (payload from named attributes) and `NAMES`.
macro_rules! op_family {
    ($(#[$m:meta])* $family:ident { $($(#[$vm:meta])* $v:ident = $text:literal),* $(,)? }) => {
        $(#[$m])*
        #[derive(Clone, Debug, PartialEq)]
        pub enum $family { $($(#[$vm])* $v($v)),* }
        impl $family {
            /// Text name of every op of the family.
            pub const NAMES: &'static [&'static str] = &[$($text),*];
            /// Text name.
            pub fn name(&self) -> &'static str { match self { $($family::$v(_) => $text),* } }
            /// Attributes in declaration order.
            pub fn attrs(&self) -> $crate::attr::AttrList {
                match self { $($family::$v(p) => $crate::attr::Payload::attrs(p)),* }
            }
            /// The op of a text name with these attributes; `None` for an unknown name.
            ///
            /// # Errors
            /// What is wrong with the attributes.
            pub fn from_name(name: &str, attrs: Vec<(String, $crate::attr::Attr)>) -> Option<Result<Self, String>> {
                match name {
                    $($text => Some(<$v as $crate::attr::Payload>::from_attrs(attrs).map($family::$v)),)*
                    _ => None,
                }
            }
        }
        $(impl From<$v> for $family { fn from(p: $v) -> Self { $family::$v(p) } })*
    };
}
pub(crate) use op_family;
