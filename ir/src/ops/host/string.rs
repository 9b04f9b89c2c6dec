//! Strings.

use super::{HostDef, i64s, only, strings, tensor, texts};
use crate::attr::{attr_enum, payload};
use crate::dim::{Dim, Sym};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::{OpDef, may_equal, tensors};
use crate::tensor::{Tensor, Value};
use crate::tensor_type::{TensorType, ValueType};

attr_enum! {
    /// What becomes of letters.
    Case {
        /// They stay.
        Keep = "keep",
        /// They become lower case.
        Lower = "lower",
        /// They become upper case.
        Upper = "upper",
    }
}

payload! {
    /// Removes the stop words from strings `[n]` or `[1, n]`, then changes the case. When nothing is left the result
    /// is one empty string.
    StringNormalize {
        /// Change of case.
        case: Case,
        /// Stop words are compared with the case they have.
        case_sensitive: bool,
        /// Removed words.
        stop_words: Vec<String>,
        /// Symbol for the number of strings left.
        count: Sym,
    }
}

impl OpDef for StringNormalize {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let x = only(operands, Some(DType::String))?;
        let mut dims = x.dims.clone();
        let vector = dims.len() == 1 || (dims.len() == 2 && may_equal(&dims[0], &Dim::ONE));
        match dims.last_mut() {
            Some(last) if vector => *last = Dim::from(&self.count),
            _ => return Err(format!("takes [n] or [1, n], not {x}")),
        }
        Ok(vec![
            TensorType {
                dtype: DType::String,
                dims,
            }
            .into(),
        ])
    }
}

impl HostDef for StringNormalize {
    fn binds(&self) -> Vec<Sym> {
        vec![self.count.clone()]
    }

    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String> {
        let all = strings(operands, 0)?;
        let folded = |s: &str| match self.case_sensitive {
            true => s.to_string(),
            false => s.to_lowercase(),
        };
        let stops: Vec<String> = self.stop_words.iter().map(|s| folded(s)).collect();
        let kept = all
            .iter()
            .filter(|s| stops.is_empty() || !stops.contains(&folded(s)));
        let mut out: Vec<String> = kept
            .map(|s| match self.case {
                Case::Keep => s.clone(),
                Case::Lower => s.to_lowercase(),
                Case::Upper => s.to_uppercase(),
            })
            .collect();
        if out.is_empty() {
            out.push(String::new());
        }
        let mut shape = tensor(operands, 0)?.shape().to_vec();
        match shape.last_mut() {
            Some(last) => *last = out.len(),
            None => return Err("takes [n] or [1, n]".into()),
        }
        Ok(vec![texts(shape, out)?])
    }
}

payload! {
    /// Operands `(x, y)` of equal extents: `x` followed by `y`.
    StringConcat {}
}

impl OpDef for StringConcat {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let xs = tensors(operands, Some(2))?;
        let (x, y) = (xs[0], xs[1]);
        let fits = x.rank() == y.rank() && x.dims.iter().zip(&y.dims).all(|(a, b)| may_equal(a, b));
        match fits && x.dtype == DType::String && y.dtype == DType::String {
            true => Ok(vec![ValueType::Tensor(x.clone())]),
            false => Err(format!("{x} followed by {y}")),
        }
    }
}

impl HostDef for StringConcat {
    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String> {
        let (x, y) = (strings(operands, 0)?, strings(operands, 1)?);
        if x.len() != y.len() {
            return Err(format!("{} strings followed by {}", x.len(), y.len()));
        }
        let joined = x.iter().zip(y).map(|(a, b)| format!("{a}{b}")).collect();
        Ok(vec![texts(tensor(operands, 0)?.shape().to_vec(), joined)?])
    }
}

payload! {
    /// Splits every string: the parts along a new last axis, filled up with empty strings, and how many there are as
    /// i64.
    StringSplit {
        /// What separates parts; empty for runs of white space, leading and trailing ones ignored.
        delimiter: String,
        /// Most splits; the rest stays whole.
        most: Option<usize>,
        /// Symbol for the largest number of parts.
        width: Sym,
    }
}

impl OpDef for StringSplit {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let x = only(operands, Some(DType::String))?;
        let mut dims = x.dims.clone();
        dims.push(Dim::from(&self.width));
        let parts = TensorType {
            dtype: DType::String,
            dims,
        };
        let counts = TensorType {
            dtype: DType::I64,
            dims: x.dims.clone(),
        };
        Ok(vec![parts.into(), counts.into()])
    }
}

impl StringSplit {
    fn split(&self, text: &str) -> Vec<String> {
        let most = self.most.unwrap_or(usize::MAX);
        if !self.delimiter.is_empty() {
            let parts = text.splitn(most.saturating_add(1), &self.delimiter);
            return parts.map(str::to_string).collect();
        }
        let mut parts = vec![];
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
            if parts.len() == most || end == rest.len() {
                parts.push(rest.to_string());
                break;
            }
            parts.push(rest[..end].to_string());
            rest = rest[end..].trim_start();
        }
        parts
    }
}

impl HostDef for StringSplit {
    fn binds(&self) -> Vec<Sym> {
        vec![self.width.clone()]
    }

    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String> {
        let shape = tensor(operands, 0)?.shape().to_vec();
        let all = strings(operands, 0)?;
        let parts: Vec<Vec<String>> = all.iter().map(|s| self.split(s)).collect();
        let counts: Vec<i64> = parts.iter().map(|p| p.len() as i64).collect();
        let width = parts.iter().map(Vec::len).max().unwrap_or(0);
        let filled = parts.into_iter().flat_map(|p| {
            let missing = width - p.len();
            p.into_iter()
                .chain(std::iter::repeat_n(String::new(), missing))
        });
        let out = filled.collect();
        Ok(vec![
            texts([&shape[..], &[width]].concat(), out)?,
            i64s(&shape, &counts)?,
        ])
    }
}

payload! {
    /// Whether each string matches the pattern from its first to its last character: bool.
    RegexFullMatch {
        /// Regular expression without look-around and back references.
        pattern: String,
    }
}

impl OpDef for RegexFullMatch {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let x = only(operands, Some(DType::String))?;
        Ok(vec![
            TensorType {
                dtype: DType::Bool,
                dims: x.dims.clone(),
            }
            .into(),
        ])
    }
}

impl HostDef for RegexFullMatch {
    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String> {
        let whole = format!(r"\A(?:{})\z", self.pattern);
        let regex =
            regex::Regex::new(&whole).map_err(|_| "the pattern is malformed or too large")?;
        let hits: Vec<u8> = strings(operands, 0)?
            .iter()
            .map(|s| u8::from(regex.is_match(s)))
            .collect();
        let shape = tensor(operands, 0)?.shape().to_vec();
        let out = Tensor::new(DType::Bool, shape, hits.into());
        Ok(vec![out.ok_or("a result of another length")?.into()])
    }
}
