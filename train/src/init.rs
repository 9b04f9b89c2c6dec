//! Initial values of parameters: drawn from the counter-based generator of the graph's random numbers, keyed by a seed and the
//! parameter's name, so that they depend neither on the machine nor on the order of the parameters.
//!
//! Everything is computed in f64 by operations that IEEE 754 defines exactly (the logarithm and the cosine of the normal
//! distribution are series of such operations), then rounded once.

use crate::error::{Result, TrainError};
use bytes::Bytes;
use cupola_ir::convert::{self, Lanes};
use cupola_ir::eval::random::philox;
use cupola_ir::{DType, Tensor, TensorType};
use std::f64::consts::{FRAC_PI_2, LN_2, SQRT_2};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Values that are drawn at once; even, since two come of one pair of uniform numbers.
const AT_ONCE: usize = 1 << 16;

/// How the values of a state slot begin.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    /// One number everywhere.
    Constant(f64),
    /// Uniform between `-bound` and `bound`.
    Uniform {
        /// Largest magnitude.
        bound: f64,
    },
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        deviation: f64,
    },
    /// Normal with mean 0 and deviation 1, but for one row of 0: an embedding whose row stands for padding.
    NormalButRow {
        /// The row of zeros.
        row: usize,
    },
    /// These values.
    Values(Tensor),
}

impl Init {
    /// Zeros.
    pub const ZEROS: Init = Init::Constant(0.0);
    /// Ones.
    pub const ONES: Init = Init::Constant(1.0);

    /// The rule of linear layers and convolutions: uniform within `1 / sqrt(inputs of one output)`.
    pub fn fan_in(inputs: usize) -> Init {
        Init::Uniform {
            bound: match inputs {
                0 => 0.0,
                n => 1.0 / (n as f64).sqrt(),
            },
        }
    }

    /// The values of a slot of this name and type. Those of f64 have the digits of f32, so that a model begins with the same in
    /// both.
    ///
    /// # Errors
    /// [`TrainError::Options`] for types that are no number or of unknown extents, and values of another shape.
    pub fn draw(&self, seed: u64, name: &str, ty: &TensorType) -> Result<Tensor> {
        let wrong = |what: &str| TrainError::Options(format!("'{name}' of type {ty}: {what}"));
        let shape = ty.const_shape();
        let shape = shape.ok_or_else(|| wrong("its extents must be known"))?;
        let len = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let len = len.ok_or_else(|| wrong("too many elements"))?;
        if !has_memory(Tensor::size_of(ty.dtype, &shape).unwrap_or(usize::MAX)) {
            return Err(wrong("there is no memory for its values"));
        }
        let values = match self {
            Init::Values(t) if t.shape() == shape => {
                return convert::cast(t, ty.dtype, true).map_err(|e| wrong(&e));
            }
            Init::Values(t) => {
                return Err(wrong(&format!("initial values of shape {:?}", t.shape())));
            }
            Init::Constant(v) if *v == 0.0 => {
                let zeros = zeros(ty.dtype, &shape);
                return zeros.ok_or_else(|| wrong("there is no memory for its values"));
            }
            _ => self.drawn(hash(name) ^ seed, ty.dtype, &shape, len),
        };
        values.ok_or_else(|| wrong("no number type"))
    }

    /// Values that are computed in f64 and rounded, some at a time: those of a large embedding would take twice its memory.
    fn drawn(&self, key: u64, dtype: DType, shape: &[usize], len: usize) -> Option<Tensor> {
        let row = len / shape.first().copied().unwrap_or(1).max(1);
        let mut bytes = Vec::with_capacity(Tensor::size_of(dtype, shape)?);
        for from in (0..len).step_by(AT_ONCE) {
            let places = from..len.min(from + AT_ONCE);
            let mut values = self.values(key, places.clone(), row);
            if dtype == DType::F64 {
                values.iter_mut().for_each(|v| *v = f64::from(*v as f32));
            }
            let values = convert::convert(Lanes::F(values), dtype)?;
            bytes.extend_from_slice(convert::tensor(&values, dtype, &[places.len()])?.bytes());
        }
        Tensor::new(dtype, shape.to_vec(), bytes.into())
    }

    /// The values at these places, the first of which is even, of a tensor with rows of `row` elements.
    fn values(&self, key: u64, places: Range<usize>, row: usize) -> Vec<f64> {
        let normal = |deviation| pairs(key, places.clone(), |u| normal(u, deviation));
        match self {
            Init::Constant(v) => vec![*v; places.len()],
            Init::Uniform { bound } => pairs(key, places, |u| u.map(|u| bound * (2.0 * u - 1.0))),
            Init::Normal { deviation } => normal(*deviation),
            Init::NormalButRow { row: padding } => {
                let mut values = normal(1.0);
                let inside = |at: usize| at.clamp(places.start, places.end) - places.start;
                let start = padding.saturating_mul(row);
                values[inside(start)..inside(start.saturating_add(row))].fill(0.0);
                values
            }
            Init::Values(_) => unreachable!("given values are not drawn"),
        }
    }
}

/// Whether the system would give this many bytes: where it does not, a vector of them ends the process.
fn has_memory(size: usize) -> bool {
    Vec::<u8>::new().try_reserve_exact(size).is_ok()
}

/// Zeros, which all tensors of zeros share as long as one of them lives: the first values of an optimiser's states are as large
/// as the model several times over, and stand in every graph of it. `None` where the system has no memory for them.
pub(crate) fn zeros(dtype: DType, shape: &[usize]) -> Option<Tensor> {
    static SHARED: Zeros = Zeros::new();
    let size = Tensor::size_of(dtype, shape).filter(|size| has_memory(*size))?;
    Tensor::new(dtype, shape.to_vec(), SHARED.bytes(size))
}

/// Bytes of zero that are shared while somebody holds some.
struct Zeros(Mutex<Weak<Vec<u8>>>);

impl Zeros {
    const fn new() -> Zeros {
        Zeros(Mutex::new(Weak::new()))
    }

    fn bytes(&self, size: usize) -> Bytes {
        struct Owner(Arc<Vec<u8>>);
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let enough = last.upgrade().filter(|zeros| zeros.len() >= size);
        let zeros = enough.unwrap_or_else(|| {
            let zeros = Arc::new(vec![0; size]);
            *last = Arc::downgrade(&zeros);
            zeros
        });
        Bytes::from_owner(Owner(zeros)).slice(..size)
    }
}

/// A name as a number (FNV-1a), for the key of its random numbers.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Numbers at these places, the first of which is even: two at a time of two uniform numbers in [0, 1) with 53 bits each.
fn pairs(key: u64, places: Range<usize>, draw: impl Fn([f64; 2]) -> [f64; 2]) -> Vec<f64> {
    let key = [key as u32, (key >> 32) as u32];
    let unit = |high: u32, low: u32| {
        ((u64::from(high) << 32 | u64::from(low)) >> 11) as f64 / (1u64 << 53) as f64
    };
    let mut values = Vec::with_capacity(places.len() + 1);
    for block in places.start as u64 / 2..(places.end as u64).div_ceil(2) {
        let [a, b, c, d] = philox([block as u32, (block >> 32) as u32, 0, 0], key);
        values.extend(draw([unit(a, b), unit(c, d)]));
    }
    values.truncate(places.len());
    values
}

/// Two normal numbers by the transform of Box and Muller (1958).
fn normal([u, v]: [f64; 2], deviation: f64) -> [f64; 2] {
    // 1 - u is never 0.
    let radius = deviation * (-2.0 * ln(1.0 - u)).sqrt();
    [radius * cos_turn(v), radius * cos_turn((v + 0.75) % 1.0)]
}

/// The natural logarithm of a positive normal number.
fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = (bits >> 52) as i64 - 1023;
    let mut m = f64::from_bits(bits & 0x000f_ffff_ffff_ffff | 0x3ff0_0000_0000_0000);
    if m > SQRT_2 {
        m /= 2.0;
        exponent += 1;
    }
    // ln m = 2 artanh z with |z| < 0.172: the terms shrink by 0.03 each.
    let z = (m - 1.0) / (m + 1.0);
    let square = z * z;
    let sum = (0..14)
        .rev()
        .fold(0.0, |sum, k| sum * square + 1.0 / f64::from(2 * k + 1));
    exponent as f64 * LN_2 + 2.0 * z * sum
}

/// The cosine of `v` full turns, `v` in [0, 1).
fn cos_turn(v: f64) -> f64 {
    let quarters = (4.0 * v).floor();
    let x = (4.0 * v - quarters) * FRAC_PI_2;
    let square = x * x;
    let series = |first: f64, from: u32| {
        let (mut term, mut sum) = (first, first);
        for k in 0..12u32 {
            let n = f64::from(from + 2 * k);
            term *= -square / (n * (n + 1.0));
            sum += term;
        }
        sum
    };
    match quarters as i64 {
        0 => series(1.0, 1),
        1 => -series(x, 2),
        2 => -series(1.0, 1),
        _ => series(x, 2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(init: &Init, name: &str, shape: [usize; 2]) -> Vec<f32> {
        let t = init.draw(7, name, &TensorType::new(DType::F32, shape));
        t.expect("draws").to_vec().expect("f32")
    }

    #[test]
    fn elementary_functions_agree_with_those_of_the_system() {
        for i in 1..2000 {
            let x = f64::from(i) / 700.0;
            assert!(
                (ln(x) - x.ln()).abs() <= 4e-16 * x.ln().abs().max(1.0),
                "{x}"
            );
            let v = f64::from(i) / 2000.0;
            let want = (v * std::f64::consts::TAU).cos();
            assert!((cos_turn(v) - want).abs() < 2e-15, "{v}");
        }
    }

    #[test]
    fn draws_have_the_moments_of_their_distribution() {
        let n = 100_000.0;
        let normal = floats(&Init::Normal { deviation: 2.0 }, "w", [1000, 100]);
        let mean = normal.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        let square = normal.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n;
        assert!(
            mean.abs() < 0.02 && (square - 4.0).abs() < 0.06,
            "{mean} {square}"
        );
        let uniform = floats(&Init::fan_in(25), "w", [1000, 100]);
        let square = uniform.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n;
        assert!(uniform.iter().all(|x| x.abs() <= 0.2));
        assert!((square - 0.04 / 3.0).abs() < 2e-4, "{square}");
    }

    #[test]
    fn draws_depend_on_seed_and_name_and_stay_as_they_are() {
        let u = Init::Uniform { bound: 1.0 };
        assert_ne!(floats(&u, "a", [2, 2]), floats(&u, "b", [2, 2]));
        assert_eq!(floats(&u, "a", [2, 2]), floats(&u, "a", [2, 2]));
        assert_eq!(floats(&u, "a", [2, 2])[..3], floats(&u, "a", [1, 3])[..]);
        let padded = floats(&Init::NormalButRow { row: 1 }, "e", [3, 2]);
        assert_eq!(&padded[2..4], &[0.0, 0.0]);
        assert!(padded[4] != 0.0);
    }

    #[test]
    fn pieces_make_the_same_values_as_a_whole() {
        let long = AT_ONCE + 5;
        let whole = pairs(hash("w") ^ 7, 0..long, |u| normal(u, 1.0));
        let row = AT_ONCE / 2 + 1;
        let drawn = floats(&Init::NormalButRow { row: 1 }, "w", [2, row]);
        for (i, v) in drawn.iter().take(long).enumerate() {
            let padding = i / row == 1;
            assert_eq!(*v, if padding { 0.0 } else { whole[i] as f32 }, "{i}");
        }
        assert!(drawn.len() > AT_ONCE, "more than one piece");
    }

    #[test]
    fn zeros_share_their_memory_while_it_lives() {
        let zeros = Zeros::new();
        let large = zeros.bytes(1000);
        let small = zeros.bytes(10);
        assert_eq!((&small[..], large.as_ptr()), (&[0; 10][..], small.as_ptr()));
        let larger = zeros.bytes(2000);
        assert_eq!((larger.len(), larger.iter().max()), (2000, Some(&0)));
        assert_eq!(zeros.bytes(1000).as_ptr(), larger.as_ptr());
        drop((large, small, larger));
        assert!(zeros.0.lock().expect("no panic").upgrade().is_none());
    }

    #[test]
    fn values_of_another_shape_are_refused() {
        let init = Init::Values(Tensor::vector(&[1.0f32]));
        let e = init.draw(0, "w", &TensorType::new(DType::F32, [2usize]));
        assert!(e.expect_err("two elements").to_string().contains("'w'"));
    }
}
