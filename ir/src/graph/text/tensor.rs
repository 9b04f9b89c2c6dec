//! Constants as text: few elements as numbers, many as base64 of their bytes.

use super::print::float;
use crate::convert::{self, Lanes};
use crate::dtype::{Class, DType};
use crate::error::Result;
use crate::lexer::{Cursor, quote};
use crate::tensor::Tensor;
use bytes::Bytes;

/// Constants of at most this many elements are printed as numbers.
const INLINE: usize = 64;
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// `tensor TYPE [elements]` or `tensor TYPE base64 "..."`; with `elide`, large ones end in `...`.
pub(super) fn print(t: &Tensor, elide: bool) -> String {
    let head = format!("tensor {}", t.ty());
    if elide && t.len() > INLINE {
        return format!("{head} ...");
    }
    match elements(t) {
        Some(list) => format!("{head} [{}]", list.join(", ")),
        None => format!("{head} base64 \"{}\"", encode(t.bytes())),
    }
}

/// The one element of a constant: a number, or `bits(0x...)` where a number would not keep every bit.
pub(crate) fn print_scalar(t: &Tensor) -> String {
    match elements(t).as_deref() {
        Some([one]) => one.clone(),
        _ => {
            let digits: Vec<String> = t.bytes().iter().rev().map(|b| format!("{b:02x}")).collect();
            format!("bits(0x{})", digits.concat())
        }
    }
}

/// Undoes [`print_scalar`] for a dtype.
pub(crate) fn parse_scalar(c: &mut Cursor, dtype: DType) -> Result<Tensor> {
    let at = c.position();
    let made = if c.eat_word("bits") {
        c.expect("(")?;
        let text = c
            .number_text()
            .and_then(|t| t.strip_prefix("0x"))
            .unwrap_or_default();
        let bits = u64::from_str_radix(text, 16).ok();
        c.expect(")")?;
        bits.and_then(|b| {
            let size = dtype.bits().div_ceil(8);
            let bytes = b.to_le_bytes();
            let fits = size > 0 && bytes[size..].iter().all(|b| *b == 0);
            fits.then(|| Tensor::new(dtype, vec![], Bytes::copy_from_slice(&bytes[..size])))?
        })
    } else {
        one(c, dtype)?.and_then(|lanes| convert::encode(&lanes, dtype, &[], false))
    };
    made.ok_or_else(|| c.error_at(at, format!("expected a {dtype}")))
}

/// The next element of a number type.
fn one(c: &mut Cursor, dtype: DType) -> Result<Option<Lanes>> {
    Ok(Some(match dtype.class() {
        Class::Float => Lanes::F(vec![element(c, dtype)?]),
        Class::Bool => Lanes::U(vec![truth(c)?]),
        Class::Signed => Lanes::I(vec![int(c, dtype)? as i64]),
        Class::Unsigned => Lanes::U(vec![int(c, dtype)? as u64]),
        Class::String | Class::Block => return Ok(None),
    }))
}

/// Elements as numbers, when there are few and their text keeps every bit.
fn elements(t: &Tensor) -> Option<Vec<String>> {
    if let Some(strings) = t.strings() {
        return Some(strings.iter().map(|s| quote(s)).collect());
    }
    if t.len() > INLINE || t.dtype().class() == Class::Block {
        return None;
    }
    let mut lanes = convert::lanes(t)?;
    if let Lanes::F(v) = &mut lanes {
        // A NaN is read back as this one.
        v.iter_mut()
            .filter(|x| x.is_nan())
            .for_each(|x| *x = f64::NAN);
    }
    if convert::encode(&lanes, t.dtype(), t.shape(), false)? != *t {
        return None;
    }
    Some(match lanes {
        Lanes::F(v) if t.dtype() == DType::F64 => v.into_iter().map(float).collect(),
        Lanes::F(v) => v
            .into_iter()
            .map(|x| {
                if x.is_nan() {
                    "nan".into()
                } else {
                    format!("{:?}", x as f32)
                }
            })
            .collect(),
        Lanes::I(v) => v.iter().map(i64::to_string).collect(),
        Lanes::U(v) if t.dtype() == DType::Bool => {
            v.iter().map(|x| (*x != 0).to_string()).collect()
        }
        Lanes::U(v) => v.iter().map(u64::to_string).collect(),
    })
}

fn encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            if i <= chunk.len() {
                out.push(char::from(DIGITS[(bits >> (18 - 6 * i)) as usize & 63]));
            } else {
                out.push('=');
            }
        }
    }
    out
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut table = [255u8; 256];
    for (i, d) in DIGITS.iter().enumerate() {
        table[usize::from(*d)] = i as u8;
    }
    let digits = text.trim_end_matches('=').as_bytes();
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let mut out = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for chunk in digits.chunks(4) {
        let mut bits = 0u32;
        for (i, d) in chunk.iter().enumerate() {
            let value = table[usize::from(*d)];
            if value == 255 {
                return None;
            }
            bits |= u32::from(value) << (18 - 6 * i);
        }
        let len = chunk.len() * 6 / 8;
        // Bits beyond the last whole byte are zero, so that equal bytes have one text.
        if bits & ((1u32 << (24 - 8 * len)) - 1) != 0 {
            return None;
        }
        out.extend_from_slice(&bits.to_be_bytes()[1..1 + len]);
    }
    Some(out)
}

/// A constant after its word `tensor`.
pub(super) fn parse(c: &mut Cursor) -> Result<Tensor> {
    let at = c.position();
    let dtype = c.dtype()?;
    let dims = c.dims()?;
    let shape: Option<Vec<usize>> = dims
        .iter()
        .map(|d| d.as_const().and_then(|n| usize::try_from(n).ok()))
        .collect();
    let Some(shape) = shape else {
        return Err(c.error_at(at, "a constant has known extents"));
    };
    let made = if c.eat_word("base64") {
        let start = c.position();
        let text = c.string("base64 in quotes")?;
        let bytes = decode(&text).ok_or_else(|| c.error_at(start, "this is no base64"))?;
        Tensor::new(dtype, shape, Bytes::from(bytes))
    } else if c.eat("...") {
        return Err(c.error_at(
            at,
            "the elements of this constant were left out when it was printed",
        ));
    } else {
        c.expect("[")?;
        inline(c, dtype, &shape)?
    };
    made.ok_or_else(|| c.error_at(at, "the elements do not fill the type"))
}

fn inline(c: &mut Cursor, dtype: DType, shape: &[usize]) -> Result<Option<Tensor>> {
    let lanes = match dtype.class() {
        Class::String => {
            let strings = c.list("]", |c| c.string("a string"))?;
            return Ok(Tensor::from_strings(shape.to_vec(), strings));
        }
        Class::Block => return c.expected("base64"),
        Class::Float => Lanes::F(c.list("]", |c| element(c, dtype))?),
        Class::Bool => Lanes::U(c.list("]", truth)?),
        Class::Signed => Lanes::I(c.list("]", |c| Ok(int(c, dtype)? as i64))?),
        Class::Unsigned => Lanes::U(c.list("]", |c| Ok(int(c, dtype)? as u64))?),
    };
    Ok(convert::encode(&lanes, dtype, shape, false))
}

fn truth(c: &mut Cursor) -> Result<u64> {
    if c.eat_word("true") {
        Ok(1)
    } else if c.eat_word("false") {
        Ok(0)
    } else {
        c.expected("true or false")
    }
}

/// A float element, rounded once where it is an f32.
fn element(c: &mut Cursor, dtype: DType) -> Result<f64> {
    let at = c.position();
    let Some(text) = c.number_text() else {
        return c.expected("a number");
    };
    let value = match dtype {
        DType::F32 => text.parse::<f32>().map(f64::from),
        _ => text.parse::<f64>(),
    };
    value.map_err(|_| c.error_at(at, format!("'{text}' is no number")))
}

fn int(c: &mut Cursor, dtype: DType) -> Result<i128> {
    let at = c.position();
    let Some(text) = c.number_text() else {
        return c.expected("a whole number");
    };
    let (lo, hi) = dtype.int_range().unwrap_or((0, 0));
    match text.parse::<i128>() {
        Ok(v) if (lo..=hi).contains(&v) => Ok(v),
        _ => Err(c.error_at(at, format!("'{text}' is no {dtype}"))),
    }
}
