//! Storage formats and casts.

use super::lower::{Lower, Machine};
use super::{BinOp, CmpOp, Conv, Elem, Reg, Type, UnOp};
use crate::emit::helpers::{Helper, register};
use cupola_ir::{Class, DType};

impl Lower<'_> {
    /// The value of stored bits (an integer register of the dtype's width).
    pub(crate) fn load_storage(&mut self, bits: Reg, dtype: DType) -> Reg {
        match dtype {
            DType::Bool => {
                let zero = self.int_like(0, bits);
                self.b.cmp(CmpOp::Ne, bits, zero)
            }
            DType::F32 | DType::F64 => self.b.convert(Conv::Bits, bits, register(dtype)),
            DType::F16 if self.machine == Machine::Wide => {
                self.b.convert(Conv::Half, bits, Elem::F32)
            }
            DType::F16 => self.f16_to_f32(bits),
            DType::BF16 => {
                let wide = self.b.convert(Conv::ZExt, bits, Elem::I32);
                let wide = self.b.shift(BinOp::Shl, wide, 16);
                self.b.convert(Conv::Bits, wide, Elem::F32)
            }
            DType::F8E4M3FN
            | DType::F8E4M3FNUZ
            | DType::F8E5M2
            | DType::F8E5M2FNUZ
            | DType::F8E8M0
            | DType::F4E2M1 => {
                let wide = self.b.convert(Conv::ZExt, bits, Elem::I32);
                self.call(Helper::Decode(dtype), &[wide])
            }
            DType::I2 | DType::I4 | DType::U2 | DType::U4 => self.wrap_packed(bits, dtype),
            _ => bits,
        }
    }

    /// The bits to store for a value, as an integer register of the dtype's width.
    pub(crate) fn store_storage(&mut self, x: Reg, dtype: DType) -> Reg {
        match dtype {
            DType::Bool => self.mask_to_int(x, Elem::I8),
            DType::F32 | DType::F64 => {
                let bits = dtype.bits() as u32;
                self.b.convert(Conv::Bits, x, Elem::int(bits))
            }
            DType::F16 if self.machine == Machine::Wide => self.b.convert(Conv::Half, x, Elem::I16),
            DType::F16 => self.f32_to_f16(x),
            DType::BF16 => self.f32_to_bf16(x),
            DType::F8E4M3FN
            | DType::F8E4M3FNUZ
            | DType::F8E5M2
            | DType::F8E5M2FNUZ
            | DType::F8E8M0
            | DType::F4E2M1 => {
                // The value is exactly representable, infinities included.
                let code = self.encode(x, dtype, false);
                self.b.convert(Conv::Wrap, code, Elem::I8)
            }
            _ => x,
        }
    }

    /// 1 or 0 in an integer or float register type.
    pub(crate) fn mask_to_int(&mut self, mask: Reg, elem: Elem) -> Reg {
        let ty = Type { elem, lanes: 1 };
        let (one, zero) = if elem.is_float() {
            (self.b.float(1.0, ty), self.b.float(0.0, ty))
        } else {
            (self.b.constant(1, ty), self.b.constant(0, ty))
        };
        self.b.select(mask, one, zero)
    }

    /// An f32 result rounded to what the dtype can hold.
    pub(crate) fn rounded(&mut self, x: Reg, dtype: DType) -> Reg {
        match dtype {
            DType::F32 | DType::F64 => x,
            _ if dtype.is_float() && dtype.bits() <= 8 => {
                let code = self.encode(x, dtype, true);
                self.call(Helper::Decode(dtype), &[code])
            }
            _ if dtype.is_float() => {
                let bits = self.store_storage(x, dtype);
                self.load_storage(bits, dtype)
            }
            DType::I2 | DType::I4 | DType::U2 | DType::U4 => self.wrap_packed(x, dtype),
            _ => x,
        }
    }

    /// The low bits of an I8 as a 2-bit or 4-bit integer, extended again.
    fn wrap_packed(&mut self, x: Reg, dtype: DType) -> Reg {
        let unused = 8 - dtype.bits() as u8;
        let up = self.b.shift(BinOp::Shl, x, unused);
        let down = if dtype.class() == Class::Signed {
            BinOp::ShrS
        } else {
            BinOp::ShrU
        };
        self.b.shift(down, up, unused)
    }

    /// Half to single precision: the exponent is rescaled by a multiplication, which also normalises subnormals.
    fn f16_to_f32(&mut self, bits: Reg) -> Reg {
        let wide = self.b.convert(Conv::ZExt, bits, Elem::I32);
        let magnitude_mask = self.int_like(0x7FFF, wide);
        let magnitude = self.b.binary(BinOp::And, wide, magnitude_mask);
        let sign = self.b.binary(BinOp::Xor, wide, magnitude);
        let sign = self.b.shift(BinOp::Shl, sign, 16);
        let shifted = self.b.shift(BinOp::Shl, magnitude, 13);
        let small = self.b.convert(Conv::Bits, shifted, Elem::F32);
        let scale = self.float_like(2f64.powi(112), small);
        let scaled = self.b.mul(small, scale);
        let scaled = self.b.convert(Conv::Bits, scaled, Elem::I32);
        let largest = self.int_like(0x7BFF, wide);
        let special = self.b.cmp(CmpOp::LtS, largest, magnitude);
        let ones = self.int_like(0x7F80_0000, wide);
        let infinite = self.b.binary(BinOp::Or, scaled, ones);
        let value = self.b.select(special, infinite, scaled);
        let value = self.b.binary(BinOp::Or, value, sign);
        self.b.convert(Conv::Bits, value, Elem::F32)
    }

    /// Single to half precision, to nearest even. Normal results round by an integer addition; subnormal ones by adding
    /// a float whose last place is that of the result.
    fn f32_to_f16(&mut self, x: Reg) -> Reg {
        let bits = self.b.convert(Conv::Bits, x, Elem::I32);
        let magnitude_mask = self.int_like(0x7FFF_FFFF, bits);
        let magnitude = self.b.binary(BinOp::And, bits, magnitude_mask);
        let sign = self.b.binary(BinOp::Xor, bits, magnitude);
        let sign = self.b.shift(BinOp::ShrU, sign, 16);
        let odd = self.b.shift(BinOp::ShrU, magnitude, 13);
        let one = self.int_like(1, bits);
        let odd = self.b.binary(BinOp::And, odd, one);
        let rebias = self.int_like((((15i64 - 127) << 23) + 0xFFF) & 0xFFFF_FFFF, bits);
        let normal = self.b.add(magnitude, rebias);
        let normal = self.b.add(normal, odd);
        let normal = self.b.shift(BinOp::ShrU, normal, 13);
        let half = self.float_like(0.5, x);
        let float = self.b.convert(Conv::Bits, magnitude, Elem::F32);
        let float = self.b.add(float, half);
        let float = self.b.convert(Conv::Bits, float, Elem::I32);
        let half_bits = self.int_like(0x3F00_0000, bits);
        let subnormal = self.b.sub(float, half_bits);
        let least_normal = self.int_like(0x3880_0000, bits);
        let is_small = self.b.cmp(CmpOp::LtS, magnitude, least_normal);
        let finite = self.b.select(is_small, subnormal, normal);
        let infinity = self.int_like(0x7F80_0000, bits);
        let (inf, nan) = (self.int_like(0x7C00, bits), self.int_like(0x7E00, bits));
        let is_nan = self.b.cmp(CmpOp::LtS, infinity, magnitude);
        let special = self.b.select(is_nan, nan, inf);
        let last = self.int_like(0x477F_FFFF, bits);
        let is_large = self.b.cmp(CmpOp::LtS, last, magnitude);
        let value = self.b.select(is_large, special, finite);
        let value = self.b.binary(BinOp::Or, value, sign);
        self.b.convert(Conv::Wrap, value, Elem::I16)
    }

    /// Single precision to its upper half, to nearest even; NaN stays NaN.
    fn f32_to_bf16(&mut self, x: Reg) -> Reg {
        let bits = self.b.convert(Conv::Bits, x, Elem::I32);
        let high = self.b.shift(BinOp::ShrU, bits, 16);
        let one = self.int_like(1, bits);
        let odd = self.b.binary(BinOp::And, high, one);
        let bias = self.int_like(0x7FFF, bits);
        let sum = self.b.add(bits, bias);
        let sum = self.b.add(sum, odd);
        let round = self.b.shift(BinOp::ShrU, sum, 16);
        let quiet_bit = self.int_like(0x40, bits);
        let quiet = self.b.binary(BinOp::Or, high, quiet_bit);
        let is_nan = self.b.cmp(CmpOp::Ne, x, x);
        let value = self.b.select(is_nan, quiet, round);
        self.b.convert(Conv::Wrap, value, Elem::I16)
    }

    /// Conversion of values, see [`cupola_ir::ops::Cast`].
    pub(crate) fn cast(&mut self, x: Reg, from: DType, to: DType, saturate: bool) -> Reg {
        if from == to {
            return x;
        }
        match (from.class(), to.class()) {
            (Class::Bool, Class::Bool) => x,
            (Class::Bool, _) => self.mask_to_int(x, register(to)),
            (Class::Float, Class::Bool) => {
                let zero = self.float_like(0.0, x);
                self.b.cmp(CmpOp::Ne, x, zero)
            }
            (_, Class::Bool) => {
                let zero = self.int_like(0, x);
                self.b.cmp(CmpOp::Ne, x, zero)
            }
            (Class::Float, Class::Float) => self.cast_float(x, to, saturate),
            (Class::Float, _) => self.float_to_int(x, to),
            (_, Class::Float) => self.int_to_float(x, from, to, saturate),
            _ => self.int_to_int(x, from, to),
        }
    }

    fn cast_float(&mut self, x: Reg, to: DType, saturate: bool) -> Reg {
        let wide = self.b.elem(x) == Elem::F64;
        match to {
            DType::F64 => self.b.convert(Conv::Float, x, Elem::F64),
            DType::F32 => self.b.convert(Conv::Float, x, Elem::F32),
            DType::F16 | DType::BF16 if wide => {
                let code = self.call(Helper::Shorten(to), &[x]);
                let code = self.b.convert(Conv::Wrap, code, Elem::I16);
                self.load_storage(code, to)
            }
            DType::F16 | DType::BF16 => self.rounded(x, to),
            _ => {
                let code = self.encode(x, to, saturate);
                self.call(Helper::Decode(to), &[code])
            }
        }
    }

    /// Bits (in an I32) of the 8-bit or 4-bit float nearest to a value.
    pub(crate) fn encode(&mut self, x: Reg, to: DType, saturate: bool) -> Reg {
        let x = self.b.convert(Conv::Float, x, Elem::F64);
        self.call(Helper::Encode { to, saturate }, &[x])
    }

    fn float_to_int(&mut self, x: Reg, to: DType) -> Reg {
        let signed = to.class() == Class::Signed;
        let f = if signed { Conv::FToS } else { Conv::FToU };
        if to.bits() < 8 {
            // Packed integers wrap.
            let wide = self.b.convert(Conv::FToS, x, Elem::I64);
            let low = self.b.convert(Conv::Wrap, wide, Elem::I8);
            return self.wrap_packed(low, to);
        }
        if to.bits() >= 32 {
            return self.b.convert(f, x, register(to));
        }
        // Through a signed 32-bit integer, whose saturation keeps the sign.
        let wide = self.b.convert(Conv::FToS, x, Elem::I32);
        let (lo, hi) = to.int_range().unwrap_or((0, 1));
        let (lo, hi) = (
            self.int_like(lo as i64, wide),
            self.int_like(hi as i64, wide),
        );
        let wide = self.b.binary(BinOp::MaxS, wide, lo);
        let wide = self.b.binary(BinOp::MinS, wide, hi);
        self.b.convert(Conv::Wrap, wide, register(to))
    }

    fn int_to_float(&mut self, x: Reg, from: DType, to: DType, saturate: bool) -> Reg {
        let signed = from.class() == Class::Signed;
        let (extend, f) = if signed {
            (Conv::SExt, Conv::SToF)
        } else {
            (Conv::ZExt, Conv::UToF)
        };
        if self.b.elem(x).bits() < 32 {
            let x = self.b.convert(extend, x, Elem::I32);
            let elem = register(to);
            let x = self.b.convert(Conv::SToF, x, elem);
            return self.narrowed(x, to, saturate);
        }
        // Integers above 2^24 are rounded once when they go through f64.
        let direct = matches!(to, DType::F32 | DType::F64 | DType::F16);
        let elem = if direct { register(to) } else { Elem::F64 };
        let x = self.b.convert(f, x, elem);
        self.narrowed(x, to, saturate)
    }

    fn narrowed(&mut self, x: Reg, to: DType, saturate: bool) -> Reg {
        match to {
            DType::F32 | DType::F64 => x,
            _ => self.cast_float(x, to, saturate),
        }
    }

    fn int_to_int(&mut self, x: Reg, from: DType, to: DType) -> Reg {
        let (have, want) = (self.b.elem(x).bits(), register(to).bits());
        let x = match have.cmp(&want) {
            std::cmp::Ordering::Less if from.class() == Class::Signed => {
                self.b.convert(Conv::SExt, x, register(to))
            }
            std::cmp::Ordering::Less => self.b.convert(Conv::ZExt, x, register(to)),
            std::cmp::Ordering::Equal => x,
            std::cmp::Ordering::Greater => self.b.convert(Conv::Wrap, x, register(to)),
        };
        if to.bits() < 8 {
            self.wrap_packed(x, to)
        } else {
            x
        }
    }

    /// `|x|` of a float and `-x` by bits keep NaN payloads; provided by the machine.
    pub(crate) fn abs(&mut self, x: Reg) -> Reg {
        self.b.unary(UnOp::Abs, x)
    }
}
