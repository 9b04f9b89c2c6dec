//! Scalar functions: one row per function of the table.

use super::{Grads, Ir, Site};
use cupola_ir::{Graph, Scalar, ValueId};
use std::f64::consts::PI;

/// Gradients of the operands of a scalar function whose result has the cotangent `dy`.
pub(super) fn map(g: &mut Graph, site: &Site, f: Scalar, dy: ValueId) -> Grads {
    let r = site.results[0];
    match site.operands[..] {
        [x] => Ok(vec![of_one(g, f, x, r, dy)?]),
        [x, y] => {
            let (dx, dy) = of_two(g, f, [x, y], r, dy, [site.wanted[0], site.wanted[1]])?;
            Ok(vec![dx, dy])
        }
        [x, y, z] => of_three(g, f, [x, y, z], dy, &site.wanted),
        _ => Ok(vec![None; site.operands.len()]),
    }
}

/// What a function of one operand gives: `dy` times its derivative, in terms of the operand `x` or the result `r`. `None`
/// where the derivative is zero or there is none.
fn of_one(g: &mut Graph, f: Scalar, x: ValueId, r: ValueId, dy: ValueId) -> Ir<Option<ValueId>> {
    use Scalar::*;
    let one = |g: &mut Graph| g.number_like(1.0, x);
    Ok(Some(match f {
        Neg => g.unary(Neg, dy)?,
        Abs => {
            let sign = g.unary(Sign, x)?;
            g.binary(Mul, dy, sign)?
        }
        Sqrt => {
            let half = g.scale(dy, 0.5)?;
            g.binary(Div, half, r)?
        }
        Rsqrt => {
            let square = g.binary(Mul, r, r)?;
            let cube = g.binary(Mul, square, r)?;
            let slope = g.scale(cube, -0.5)?;
            g.binary(Mul, dy, slope)?
        }
        Recip => {
            let square = g.binary(Mul, r, r)?;
            let part = g.binary(Mul, dy, square)?;
            g.unary(Neg, part)?
        }
        Exp => g.binary(Mul, dy, r)?,
        Expm1 => {
            let one = one(g)?;
            let slope = g.binary(Add, r, one)?;
            g.binary(Mul, dy, slope)?
        }
        Log => g.binary(Div, dy, x)?,
        Log1p => {
            let one = one(g)?;
            let below = g.binary(Add, x, one)?;
            g.binary(Div, dy, below)?
        }
        Sin | Cos | Sinh | Cosh => {
            let slope = match f {
                Sin => Cos,
                Cos => Sin,
                Sinh => Cosh,
                _ => Sinh,
            };
            let slope = g.unary(slope, x)?;
            let part = g.binary(Mul, dy, slope)?;
            if f == Cos { g.unary(Neg, part)? } else { part }
        }
        Tan => {
            let slope = one_and_square(g, Add, r)?;
            g.binary(Mul, dy, slope)?
        }
        Tanh => {
            let slope = one_and_square(g, Sub, r)?;
            g.binary(Mul, dy, slope)?
        }
        Asin | Acos | Asinh | Acosh => inverse_of_root(g, f, x, dy)?,
        Atan => {
            let below = one_and_square(g, Add, x)?;
            g.binary(Div, dy, below)?
        }
        Atanh => {
            let below = one_and_square(g, Sub, x)?;
            g.binary(Div, dy, below)?
        }
        Erf => {
            let square = g.binary(Mul, x, x)?;
            let square = g.unary(Neg, square)?;
            let bell = g.unary(Exp, square)?;
            let slope = g.scale(bell, 2.0 / PI.sqrt())?;
            g.binary(Mul, dy, slope)?
        }
        Sigmoid => {
            let one = one(g)?;
            let rest = g.binary(Sub, one, r)?;
            let slope = g.binary(Mul, r, rest)?;
            g.binary(Mul, dy, slope)?
        }
        // Steps: flat wherever they have a slope at all.
        Sign | Floor | Ceil | Round | Trunc => return Ok(None),
        // Of integers and bools, or to bools.
        Not | PopCount | IsNan | IsInf => return Ok(None),
        // Not of one operand.
        Add | Sub | Mul | Div | Rem | Mod | Pow | Atan2 | Min | Max | And | Or | Xor | Shl
        | Shr | Eq | Lt | Le | Select | Fma => return Ok(None),
    }))
}

/// `1 + x^2` or `1 - x^2`.
fn one_and_square(g: &mut Graph, f: Scalar, x: ValueId) -> Ir<ValueId> {
    let square = g.binary(Scalar::Mul, x, x)?;
    let one = g.number_like(1.0, x)?;
    g.binary(f, one, square)
}

/// Functions whose derivative is an inverse square root.
fn inverse_of_root(g: &mut Graph, f: Scalar, x: ValueId, dy: ValueId) -> Ir<ValueId> {
    let inner = match f {
        Scalar::Asinh => one_and_square(g, Scalar::Add, x)?,
        Scalar::Acosh => {
            // (x - 1)(x + 1) keeps what x^2 - 1 loses close to 1.
            let one = g.number_like(1.0, x)?;
            let below = g.binary(Scalar::Sub, x, one)?;
            let above = g.binary(Scalar::Add, x, one)?;
            g.binary(Scalar::Mul, below, above)?
        }
        _ => one_and_square(g, Scalar::Sub, x)?,
    };
    let slope = g.unary(Scalar::Rsqrt, inner)?;
    let part = g.binary(Scalar::Mul, dy, slope)?;
    if f == Scalar::Acos {
        g.unary(Scalar::Neg, part)
    } else {
        Ok(part)
    }
}

type Two = (Option<ValueId>, Option<ValueId>);

/// The same for a function of two operands; only what is wanted is made.
fn of_two(
    g: &mut Graph,
    f: Scalar,
    [x, y]: [ValueId; 2],
    r: ValueId,
    d: ValueId,
    [of_x, of_y]: [bool; 2],
) -> Ir<Two> {
    use Scalar::*;
    let when = |wanted: bool, make: &mut dyn FnMut() -> Ir<ValueId>| {
        if wanted { make().map(Some) } else { Ok(None) }
    };
    Ok(match f {
        Add => (Some(d), Some(d)),
        Sub => (Some(d), when(of_y, &mut || g.unary(Neg, d))?),
        Mul => (
            when(of_x, &mut || g.binary(Mul, d, y))?,
            when(of_y, &mut || g.binary(Mul, d, x))?,
        ),
        Div => {
            let dx = g.binary(Div, d, y)?;
            let dy = when(of_y, &mut || {
                let part = g.binary(Mul, dx, r)?;
                g.unary(Neg, part)
            })?;
            (Some(dx), dy)
        }
        // x - y * trunc(x / y), and with floor.
        Rem | Mod => {
            let dy = when(of_y, &mut || {
                let quotient = g.binary(Div, x, y)?;
                let whole = g.unary(if f == Rem { Trunc } else { Floor }, quotient)?;
                let part = g.binary(Mul, d, whole)?;
                g.unary(Neg, part)
            })?;
            (Some(d), dy)
        }
        Pow => (
            when(of_x, &mut || power_of(g, x, y, d))?,
            when(of_y, &mut || power_to(g, x, y, r, d))?,
        ),
        // atan2(y, x): the first operand is the ordinate.
        Atan2 => {
            let (xx, yy) = (g.binary(Mul, x, x)?, g.binary(Mul, y, y)?);
            let square = g.binary(Add, xx, yy)?;
            let part = g.binary(Div, d, square)?;
            let dx = when(of_x, &mut || g.binary(Mul, part, y))?;
            let dy = when(of_y, &mut || {
                let part = g.binary(Mul, part, x)?;
                g.unary(Neg, part)
            })?;
            (dx, dy)
        }
        Min | Max => (
            when(of_x, &mut || extreme(g, f, [x, y], r, d))?,
            when(of_y, &mut || extreme(g, f, [y, x], r, d))?,
        ),
        // Of integers and bools, or to bools.
        And | Or | Xor | Shl | Shr | Eq | Lt | Le => (None, None),
        // Not of two operands.
        Neg | Abs | Sign | Floor | Ceil | Round | Trunc | Sqrt | Rsqrt | Recip | Exp | Expm1
        | Log | Log1p | Sin | Cos | Tan | Asin | Acos | Atan | Sinh | Cosh | Tanh | Asinh
        | Acosh | Atanh | Erf | Sigmoid | Not | PopCount | IsNan | IsInf | Select | Fma => {
            (None, None)
        }
    })
}

/// `d * y * x^(y - 1)`; no slope where `y` is 0, also at `x = 0`.
fn power_of(g: &mut Graph, x: ValueId, y: ValueId, d: ValueId) -> Ir<ValueId> {
    match g.as_uniform(y) {
        Some(1.0) => return Ok(d),
        Some(2.0) => {
            let slope = g.scale(x, 2.0)?;
            return g.binary(Scalar::Mul, d, slope);
        }
        _ => {}
    }
    let one = g.number_like(1.0, y)?;
    let less = g.binary(Scalar::Sub, y, one)?;
    let power = g.binary(Scalar::Pow, x, less)?;
    let slope = g.binary(Scalar::Mul, y, power)?;
    let part = g.binary(Scalar::Mul, d, slope)?;
    if g.as_uniform(y).is_some_and(|y| y != 0.0) {
        return Ok(part);
    }
    let zero = g.number_like(0.0, y)?;
    let flat = g.binary(Scalar::Eq, y, zero)?;
    g.select(flat, zero, part)
}

/// `d * x^y * log(x)`; no slope at `x = 0` where the power is not infinite there.
fn power_to(g: &mut Graph, x: ValueId, y: ValueId, r: ValueId, d: ValueId) -> Ir<ValueId> {
    let log = g.unary(Scalar::Log, x)?;
    let slope = g.binary(Scalar::Mul, r, log)?;
    let part = g.binary(Scalar::Mul, d, slope)?;
    let zero = g.number_like(0.0, x)?;
    let none = g.binary(Scalar::Eq, x, zero)?;
    let finite = g.binary(Scalar::Le, zero, y)?;
    let flat = g.binary(Scalar::And, none, finite)?;
    g.select(flat, zero, part)
}

/// What `x` gets as an operand of `max` or `min` beside `other`; `r` is the larger or smaller.
fn extreme(
    g: &mut Graph,
    f: Scalar,
    [x, other]: [ValueId; 2],
    r: ValueId,
    d: ValueId,
) -> Ir<ValueId> {
    let zero = g.number_like(0.0, x)?;
    let less = |g: &mut Graph, a: ValueId, b: ValueId| match f {
        Scalar::Max => g.binary(Scalar::Lt, a, b),
        _ => g.binary(Scalar::Lt, b, a),
    };
    // relu, clamp and their like: no slope at the bound. The result tells as much as x does, which then need not be kept:
    // a product's or convolution's kernel may apply the function to what it stores.
    if g.as_uniform(other).is_some() {
        let inside = less(g, other, r)?;
        return g.select(inside, d, zero);
    }
    let half = g.scale(d, 0.5)?;
    let equal = g.binary(Scalar::Eq, x, other)?;
    let part = g.select(equal, half, d)?;
    let outside = less(g, x, other)?;
    g.select(outside, zero, part)
}

/// The same for a function of three operands.
fn of_three(
    g: &mut Graph,
    f: Scalar,
    [x, y, _]: [ValueId; 3],
    d: ValueId,
    wanted: &[bool],
) -> Grads {
    let when = |wanted: bool, make: &mut dyn FnMut() -> Ir<ValueId>| {
        if wanted { make().map(Some) } else { Ok(None) }
    };
    if f == Scalar::Fma {
        return Ok(vec![
            when(wanted[0], &mut || g.binary(Scalar::Mul, d, y))?,
            when(wanted[1], &mut || g.binary(Scalar::Mul, d, x))?,
            Some(d),
        ]);
    }
    debug_assert_eq!(f, Scalar::Select);
    let zero = g.number_like(0.0, d)?;
    Ok(vec![
        None,
        when(wanted[1], &mut || g.select(x, d, zero))?,
        when(wanted[2], &mut || g.select(x, zero, d))?,
    ])
}
