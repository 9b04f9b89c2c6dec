//! Floats of 16 bits and fewer, by integer arithmetic on the bits of an `f64`: one rounding, to nearest even.

use crate::dtype::DType;

/// What the largest codes of a format mean.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Special {
    /// The top exponent holds infinities and NaNs (IEEE 754).
    Ieee,
    /// All ones is NaN; no infinities.
    Fn,
    /// Minus zero is NaN; no infinities.
    Fnuz,
    /// Every code is a number.
    Finite,
}

/// A sign, exponent and mantissa format.
#[derive(Clone, Copy)]
pub(super) struct Format {
    exponent_bits: u32,
    mantissa_bits: u32,
    bias: i32,
    special: Special,
}

impl Format {
    /// The format of a float dtype of 16 bits or fewer with a mantissa.
    pub(super) fn of(dtype: DType) -> Option<Format> {
        let (exponent_bits, mantissa_bits, bias, special) = match dtype {
            DType::F16 => (5, 10, 15, Special::Ieee),
            DType::BF16 => (8, 7, 127, Special::Ieee),
            DType::F8E4M3FN => (4, 3, 7, Special::Fn),
            DType::F8E4M3FNUZ => (4, 3, 8, Special::Fnuz),
            DType::F8E5M2 => (5, 2, 15, Special::Ieee),
            DType::F8E5M2FNUZ => (5, 2, 16, Special::Fnuz),
            DType::F4E2M1 => (2, 1, 1, Special::Finite),
            _ => return None,
        };
        Some(Format {
            exponent_bits,
            mantissa_bits,
            bias,
            special,
        })
    }

    fn sign_bit(self) -> u32 {
        1 << (self.exponent_bits + self.mantissa_bits)
    }

    /// Magnitude code of the largest finite value.
    fn max_code(self) -> u32 {
        match self.special {
            Special::Ieee => (((1 << self.exponent_bits) - 1) << self.mantissa_bits) - 1,
            Special::Fn => self.sign_bit() - 2,
            Special::Fnuz | Special::Finite => self.sign_bit() - 1,
        }
    }

    fn nan_code(self, sign: u32) -> u32 {
        match self.special {
            Special::Ieee => sign | (self.max_code() + 1) | (1 << (self.mantissa_bits - 1)),
            Special::Fn => sign | (self.sign_bit() - 1),
            Special::Fnuz => self.sign_bit(),
            // Without a code for NaN the reference implementation gives -0.
            Special::Finite => self.sign_bit(),
        }
    }

    /// The code nearest to `x`, ties to even. Out of range: the largest finite value when `saturate` (and for formats
    /// without infinity and NaN), otherwise infinity, or NaN where there is none. NaN without a code becomes
    /// -0.
    pub(super) fn encode(self, x: f64, saturate: bool) -> u32 {
        let sign = if x.is_sign_negative() {
            self.sign_bit()
        } else {
            0
        };
        if x.is_nan() {
            return self.nan_code(sign);
        }
        let code = self.magnitude(x.abs());
        if code > self.max_code() {
            return match self.special {
                Special::Finite => sign | self.max_code(),
                _ if saturate => sign | self.max_code(),
                Special::Ieee => sign | (self.max_code() + 1),
                Special::Fn | Special::Fnuz => self.nan_code(sign),
            };
        }
        if code == 0 && self.special == Special::Fnuz {
            return 0;
        }
        sign | code
    }

    /// The rounded code of a number that is not negative; beyond `max_code` when out of range.
    fn magnitude(self, x: f64) -> u32 {
        const F64_MANTISSA: u32 = 52;
        let bits = x.to_bits();
        let biased = (bits >> F64_MANTISSA) as i32;
        if biased == 0x7FF {
            return u32::MAX;
        }
        if biased == 0 {
            // Zero, and numbers far below every format's smallest.
            return 0;
        }
        let exponent = biased - 1023;
        let mantissa = (bits & ((1 << F64_MANTISSA) - 1)) | (1 << F64_MANTISSA);
        let least = 1 - self.bias;
        let dropped = (exponent.max(least) - exponent) as u32 + F64_MANTISSA - self.mantissa_bits;
        if dropped > F64_MANTISSA + 1 {
            return 0;
        }
        let half = 1u64 << (dropped - 1);
        let kept = mantissa >> dropped;
        let rest = mantissa & ((1 << dropped) - 1);
        let rounded = kept + u64::from(rest > half || (rest == half && kept & 1 == 1));
        if exponent < least {
            return rounded as u32;
        }
        // The implicit bit of `rounded` and a carry both add to the exponent field.
        let field = (exponent + self.bias - 1) as u64;
        ((field << self.mantissa_bits) + rounded).min(u64::from(u32::MAX)) as u32
    }

    /// The value of a code.
    pub(super) fn decode(self, code: u32) -> f64 {
        let magnitude = code & (self.sign_bit() - 1);
        let negative = code & self.sign_bit() != 0;
        let is_nan = match self.special {
            Special::Ieee => magnitude > self.max_code() + 1,
            Special::Fn => magnitude == self.sign_bit() - 1,
            Special::Fnuz => code == self.sign_bit(),
            Special::Finite => false,
        };
        let exponent = (magnitude >> self.mantissa_bits) as i32;
        let fraction = f64::from(magnitude & ((1 << self.mantissa_bits) - 1));
        let one = f64::from(1u32 << self.mantissa_bits);
        let value = if is_nan {
            f64::NAN
        } else if self.special == Special::Ieee && magnitude == self.max_code() + 1 {
            f64::INFINITY
        } else if exponent == 0 {
            fraction / one * power_of_two(1 - self.bias)
        } else {
            (1.0 + fraction / one) * power_of_two(exponent - self.bias)
        };
        if negative { -value } else { value }
    }
}

/// `2^e` for exponents of normal `f64` numbers.
pub(super) fn power_of_two(e: i32) -> f64 {
    f64::from_bits(((e + 1023) as u64) << 52)
}

/// The code of a power-of-two scale (`f8e8m0`): rounded up to a power of two; negative numbers count as 0, which is
/// the smallest scale when `saturate`, otherwise NaN, like every number out of range.
pub(super) fn encode_scale(x: f64, saturate: bool) -> u8 {
    const NAN: u8 = 255;
    let outside = |code: u8| if saturate { code } else { NAN };
    if x.is_nan() {
        return NAN;
    }
    if x <= 0.0 {
        return outside(0);
    }
    let bits = x.to_bits();
    let exponent = (bits >> 52) as i64 - 1023 + i64::from(bits & ((1 << 52) - 1) != 0);
    match exponent + 127 {
        ..=-1 => outside(0),
        code @ 0..=254 => code as u8,
        _ => outside(254),
    }
}

/// The value of a power-of-two scale.
pub(super) fn decode_scale(code: u8) -> f64 {
    if code == 255 {
        f64::NAN
    } else {
        power_of_two(i32::from(code) - 127)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_a_round_trip() {
        for dtype in [
            DType::F16,
            DType::BF16,
            DType::F8E4M3FN,
            DType::F8E4M3FNUZ,
            DType::F8E5M2,
            DType::F8E5M2FNUZ,
            DType::F4E2M1,
        ] {
            let f = Format::of(dtype).unwrap();
            for code in 0..f.sign_bit() * 2 {
                let x = f.decode(code);
                if x.is_nan() {
                    assert!(f.decode(f.encode(x, false)).is_nan());
                } else {
                    assert_eq!(f.encode(x, false), code, "{dtype} {code:#x} {x}");
                }
            }
        }
    }

    #[test]
    fn halves_agree_with_the_half_crate() {
        for code in 0..=u16::MAX {
            let x = half::f16::from_bits(code).to_f64();
            let y = Format::of(DType::F16).unwrap().decode(u32::from(code));
            assert!(x == y || x.is_nan() && y.is_nan());
        }
    }

    #[test]
    fn ties_go_to_even_and_are_not_rounded_twice() {
        let f = Format::of(DType::F16).unwrap();
        // 1 + 2^-11 is a tie; the least bit more is not, although f32 would lose it.
        assert_eq!(f.encode(1.0 + 2f64.powi(-11), false), 0x3C00);
        assert_eq!(
            f.encode(1.0 + 2f64.powi(-11) + 2f64.powi(-50), false),
            0x3C01
        );
        assert_eq!(f.encode(2f64.powi(-25), false), 0);
        assert_eq!(f.encode(2f64.powi(-25) * 1.01, false), 1);
        assert_eq!(f.encode(65520.0, false), 0x7C00);
        assert_eq!(f.encode(65519.9, false), 0x7BFF);
        let e4m3 = Format::of(DType::F8E4M3FN).unwrap();
        assert_eq!(e4m3.encode(1e6, true), 0x7E);
        assert_eq!(e4m3.encode(1e6, false), 0x7F);
        assert_eq!(e4m3.encode(f64::NEG_INFINITY, true), 0xFE);
        assert_eq!(e4m3.encode(464.0, false), 0x7E);
        assert_eq!(e4m3.encode(464.1, false), 0x7F);
    }

    #[test]
    fn scales_round_up() {
        assert_eq!(encode_scale(1.0, true), 127);
        assert_eq!(encode_scale(1.1, true), 128);
        assert_eq!(encode_scale(0.0, true), 0);
        assert_eq!(encode_scale(0.0, false), 255);
        assert_eq!(encode_scale(f64::INFINITY, true), 254);
        assert_eq!(decode_scale(0), 2f64.powi(-127));
        assert!(decode_scale(255).is_nan());
    }
}
