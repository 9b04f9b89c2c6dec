//! Conversions between element types, which change the number of registers.

use super::*;

const LOW_HALVES: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23];
const HIGH_HALVES: [u8; 16] = [8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31];
const EVEN_WORDS: [u8; 16] = [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27];

impl Emit<'_> {
    pub(super) fn convert(&mut self, f: Conv, x: Reg, to: Type) -> Parts {
        let from = self.ty(x);
        if from.lanes == 1 {
            let v = self.one(x);
            return vec![self.convert_scalar(f, v, to.elem)];
        }
        let parts = self.get(x);
        let (a, b) = (from.elem.bits(), to.elem.bits());
        let lanes = u32::from(to.lanes);
        match f {
            Conv::SExt => self.widen(parts, a, b, lanes, true),
            Conv::ZExt => self.widen(parts, a, b, lanes, false),
            Conv::Wrap => self.narrow(parts, a, b, false),
            Conv::Mask if a < b => self.widen(parts, a, b, lanes, true),
            Conv::Mask => self.narrow(parts, a, b, true),
            Conv::Bits => {
                let ty = vector_type(to.elem);
                parts
                    .into_iter()
                    .map(|p| self.f.ins().bitcast(ty, bits(), p))
                    .collect()
            }
            Conv::Half => unreachable!("bug: half precision in portable code"),
            Conv::SToF if a == 32 && b == 32 => parts
                .into_iter()
                .map(|p| self.f.ins().fcvt_from_sint(F32X4, p))
                .collect(),
            Conv::UToF if a == 32 && b == 32 => parts
                .into_iter()
                .map(|p| self.f.ins().fcvt_from_uint(F32X4, p))
                .collect(),
            Conv::SToF if a == 32 => {
                let halves = self.halves(parts, I32X4, lanes as usize / 2);
                let one = |s: &mut Self, p| {
                    let wide = s.f.ins().swiden_low(p);
                    s.f.ins().fcvt_from_sint(F64X2, wide)
                };
                halves.into_iter().map(|p| one(self, p)).collect()
            }
            Conv::FToS if a == 32 && b == 32 => parts
                .into_iter()
                .map(|p| self.f.ins().fcvt_to_sint_sat(I32X4, p))
                .collect(),
            Conv::FToU if a == 32 && b == 32 => parts
                .into_iter()
                .map(|p| self.f.ins().fcvt_to_uint_sat(I32X4, p))
                .collect(),
            Conv::Float if b == 64 => {
                let halves = self.halves(parts, F32X4, lanes as usize / 2);
                halves
                    .into_iter()
                    .map(|p| self.f.ins().fvpromote_low(p))
                    .collect()
            }
            Conv::Float => {
                let low: Parts = parts
                    .into_iter()
                    .map(|p| self.f.ins().fvdemote(p))
                    .collect();
                low.chunks(2)
                    .map(|pair| match pair {
                        [a, b] => self.shuffled(*a, *b, F32X4, LOW_HALVES),
                        _ => pair[0],
                    })
                    .collect()
            }
            Conv::SToF | Conv::UToF | Conv::FToS | Conv::FToU => {
                let lanes = self.lanes(x);
                let all: Vec<Value> = lanes
                    .into_iter()
                    .map(|v| self.convert_scalar(f, v, to.elem))
                    .collect();
                self.pack(to, &all)
            }
        }
    }

    pub(super) fn convert_scalar(&mut self, f: Conv, v: Value, to: Elem) -> Value {
        let ty = scalar_type(to);
        match f {
            Conv::SExt => self.f.ins().sextend(ty, v),
            Conv::ZExt => self.f.ins().uextend(ty, v),
            Conv::Wrap => self.f.ins().ireduce(ty, v),
            Conv::SToF => self.f.ins().fcvt_from_sint(ty, v),
            Conv::UToF => self.f.ins().fcvt_from_uint(ty, v),
            Conv::FToS => self.f.ins().fcvt_to_sint_sat(ty, v),
            Conv::FToU => self.f.ins().fcvt_to_uint_sat(ty, v),
            Conv::Float if to == Elem::F64 => self.f.ins().fpromote(F64, v),
            Conv::Float => self.f.ins().fdemote(F32, v),
            Conv::Bits => self.f.ins().bitcast(ty, bits(), v),
            Conv::Mask => v,
            Conv::Half => unreachable!("bug: half precision in portable code"),
        }
    }

    /// Low and high halves of each part, moved to the low half; `count` of them.
    pub(super) fn halves(&mut self, parts: Parts, ty: types::Type, count: usize) -> Parts {
        let mut all = vec![];
        for p in parts {
            all.push(p);
            if all.len() < count {
                all.push(self.shuffled(p, p, ty, HIGH_HALVES));
            }
        }
        all
    }

    /// A byte shuffle of two vectors of any type.
    pub(super) fn shuffled(
        &mut self,
        a: Value,
        b: Value,
        ty: types::Type,
        mask: [u8; 16],
    ) -> Value {
        let mut bytes = |v| {
            if ty == I8X16 {
                v
            } else {
                self.f.ins().bitcast(I8X16, bits(), v)
            }
        };
        let (a, b) = (bytes(a), bytes(b));
        let mask = self
            .f
            .func
            .dfg
            .immediates
            .push(ConstantData::from(&mask[..]));
        let v = self.f.ins().shuffle(a, b, mask);
        if ty == I8X16 {
            v
        } else {
            self.f.ins().bitcast(ty, bits(), v)
        }
    }

    /// Integers (or masks) of twice the bits until there are enough.
    pub(super) fn widen(
        &mut self,
        mut parts: Parts,
        from: u32,
        to: u32,
        lanes: u32,
        signed: bool,
    ) -> Parts {
        let mut width = from;
        while width < to {
            width *= 2;
            let count = (lanes * width / 8 / VECTOR).max(1) as usize;
            let mut wide = Vec::with_capacity(count);
            for p in parts {
                wide.push(if signed {
                    self.f.ins().swiden_low(p)
                } else {
                    self.f.ins().uwiden_low(p)
                });
                if wide.len() < count {
                    wide.push(if signed {
                        self.f.ins().swiden_high(p)
                    } else {
                        self.f.ins().uwiden_high(p)
                    });
                }
            }
            parts = wide;
        }
        parts
    }

    /// Integers of half the bits, low bits kept (of masks all are equal), until they are small enough.
    pub(super) fn narrow(&mut self, mut parts: Parts, from: u32, to: u32, mask: bool) -> Parts {
        let mut width = from;
        while width > to {
            width /= 2;
            if width < 32 && !mask {
                let ty = int_vector(width * 2);
                let mut bytes = [0u8; 16];
                bytes
                    .chunks_mut(width as usize / 4)
                    .for_each(|lane| lane[..width as usize / 8].fill(0xFF));
                let keep = self.vector_constant(ty, bytes);
                parts = parts
                    .into_iter()
                    .map(|p| self.f.ins().band(p, keep))
                    .collect();
            }
            let pairs: Vec<(Value, Value)> = parts
                .chunks(2)
                .map(|p| (p[0], *p.last().unwrap_or(&p[0])))
                .collect();
            parts = pairs
                .into_iter()
                .map(|(a, b)| match width {
                    32 => {
                        let a = self.f.ins().bitcast(I32X4, bits(), a);
                        let b = self.f.ins().bitcast(I32X4, bits(), b);
                        self.shuffled(a, b, I32X4, EVEN_WORDS)
                    }
                    _ if mask => self.f.ins().snarrow(a, b),
                    _ => self.f.ins().unarrow(a, b),
                })
                .collect();
        }
        parts
    }
}
