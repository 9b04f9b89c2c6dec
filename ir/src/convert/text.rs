//! Numbers as strings, both ways.

use super::{Lanes, lanes};
use crate::dtype::{Class, DType};
use crate::tensor::Tensor;

/// Elements as text: integers in decimal, bools as 0 and 1, floats with as many digits as tell them from their
/// neighbours of the same dtype (16-bit and narrower floats as f32), `NaN`, `INF` and `-INF`. `None` for strings and
/// undecodable block types.
pub(super) fn format(t: &Tensor) -> Option<Vec<String>> {
    let wide = t.dtype() == DType::F64;
    Some(match lanes(t)? {
        Lanes::F(v) => v.into_iter().map(|x| float(x, wide)).collect(),
        Lanes::I(v) => v.into_iter().map(|x| x.to_string()).collect(),
        Lanes::U(v) => v.into_iter().map(|x| x.to_string()).collect(),
    })
}

fn float(x: f64, wide: bool) -> String {
    if x.is_nan() {
        return "NaN".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "INF".into() } else { "-INF".into() };
    }
    let plain = x == 0.0 || (1e-4..1e16).contains(&x.abs());
    match (plain, wide) {
        (true, true) => format!("{x:?}"),
        (true, false) => format!("{:?}", x as f32),
        (false, true) => format!("{x:e}"),
        (false, false) => format!("{:e}", x as f32),
    }
}

/// Numbers in plain or scientific notation; `inf` and `nan` in any case, with a sign. For integers a fraction is cut
/// off and out-of-range numbers saturate.
///
/// # Errors
/// The first string that is no number.
pub(super) fn parse(strings: &[String], to: DType) -> Result<Lanes, String> {
    let no_number = |s: &String| format!("'{s}' is no number");
    let floats = || -> Result<Vec<f64>, String> {
        let one = |s: &String| s.trim().parse::<f64>().map_err(|_| no_number(s));
        strings.iter().map(one).collect()
    };
    let ints = || -> Result<Vec<i128>, String> {
        let one = |s: &String| {
            let text = s.trim();
            text.parse::<i128>()
                .or_else(|_| text.parse::<f64>().map(|x| x as i128))
                .map_err(|_| no_number(s))
        };
        strings.iter().map(one).collect()
    };
    let (lo, hi) = to.int_range().unwrap_or((0, 0));
    Ok(match to.class() {
        // Rounded to f32 by the parser itself where that is the result, so that there is one rounding.
        Class::Float if to == DType::F32 => {
            let one = |s: &String| s.trim().parse::<f32>().map_err(|_| no_number(s));
            Lanes::F(
                strings
                    .iter()
                    .map(|s| one(s).map(f64::from))
                    .collect::<Result<_, _>>()?,
            )
        }
        Class::Float => Lanes::F(floats()?),
        Class::Signed => Lanes::I(
            ints()?
                .into_iter()
                .map(|x| x.clamp(lo, hi) as i64)
                .collect(),
        ),
        Class::Unsigned => Lanes::U(
            ints()?
                .into_iter()
                .map(|x| x.clamp(lo, hi) as u64)
                .collect(),
        ),
        Class::Bool => Lanes::U(floats()?.into_iter().map(|x| u64::from(x != 0.0)).collect()),
        Class::String | Class::Block => return Err(format!("no conversion from string to {to}")),
    })
}
