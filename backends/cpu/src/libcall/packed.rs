//! Constant matrices of contractions, packed once.

use super::contract::{axes, matrices};
use super::operand::Operand;
use super::{Failure, blocks};
use crate::library::Context;
use crate::library::gemm::{
    Bytes, Half, Number, PackedBytesLeft, PackedBytesRight, PackedLeft, PackedRight, ZeroPoints,
    few,
};
use crate::library::view::{Element, View};
use cupola_ir::DType;
use cupola_ir::dtype::Class;
use cupola_ir::ops::Contract;
use half::{bf16, f16};
use std::any::Any;
use std::fmt;

/// Which operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Right,
}

impl Side {
    /// Position of the operand.
    pub(super) fn operands(self) -> &'static [usize] {
        match self {
            Side::Left => &[0],
            Side::Right => &[1],
        }
    }
}

/// A packed operand.
pub(crate) struct Packed {
    pub side: Side,
    /// Order of the summed axes.
    pub order: Vec<usize>,
    /// Bytes taken.
    pub size: usize,
    /// The library's packed operand of the side and number type.
    panels: Box<dyn Any + Send + Sync>,
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packed({:?}, {} bytes)", self.side, self.size)
    }
}

impl Packed {
    /// The panels, of the type that the operands' dtype implies.
    pub(super) fn get<T: 'static>(&self) -> &T {
        let panels = self.panels.downcast_ref();
        panels.unwrap_or_else(|| unreachable!("bug: packed for another dtype"))
    }
}

/// Whether an operand of these extents is worth packing; blocks always are. One with batch axes stays as it is.
pub(super) fn pays(p: &Contract, side: Side, dtype: DType, extents: &[usize]) -> bool {
    let (batch, free, summed) = axes(p, side, extents.len());
    let len = |axes: &[usize]| -> usize { axes.iter().map(|a| extents[*a]).product() };
    let is_small = few(len(&free)) && dtype.class() != Class::Block;
    batch.is_empty() && !is_small && len(summed) > 0
}

/// Packs the constant operand of a contraction, if one is and it [`pays`]; `zero_points` are those of either operand, if they
/// are of 8 bits.
pub(super) fn prepare(
    p: &Contract,
    operands: [Option<&Operand>; 2],
    zero_points: [ZeroPoints; 2],
    cx: &Context,
) -> Result<Option<Packed>, Failure> {
    let (side, x) = match operands {
        [_, Some(r)] => (Side::Right, r),
        [Some(l), _] => (Side::Left, l),
        _ => return Ok(None),
    };
    let zero_points = zero_points[side.operands()[0]];
    if !pays(p, side, x.read, &x.dims) {
        return Ok(None);
    }
    if let DType::Block(format) = x.read {
        let panels = blocks::pack(cx, format, p, x)?;
        return Ok(Some(Packed {
            side,
            order: vec![],
            size: panels.size(),
            panels: Box::new(panels),
        }));
    }
    // The axes in the order in which a dense other operand has them.
    let other = match side {
        Side::Left => &p.rhs_contract,
        Side::Right => &p.lhs_contract,
    };
    let mut order: Vec<usize> = (0..other.len()).collect();
    order.sort_by_key(|i| other[*i]);
    let (batch, free, summed) = axes(p, side, x.dims.len());
    let summed: Vec<usize> = order.iter().map(|i| summed[*i]).collect();
    // Narrow weights stay narrow and are widened as they are used.
    let narrow = side == Side::Right && x.dtype.bits() == 16 && x.read == DType::F32;
    let matrix = matrices(cx, x, batch, &free, &summed, narrow)?;
    let ((across, step), (along, next)) = (matrix.across, matrix.along);
    let source = Source {
        start: matrix.start,
        extents: [across, along],
        strides: [step as usize, next as usize],
        dtype: if narrow { x.dtype } else { x.read },
        narrow,
        zero_points,
        side,
        cx,
    };
    let (panels, size) = source.pack()?;
    Ok(Some(Packed {
        side,
        order,
        size,
        panels,
    }))
}

/// A matrix to pack: extents and strides across and along the summed axis.
struct Source<'a> {
    start: *mut u8,
    extents: [usize; 2],
    strides: [usize; 2],
    dtype: DType,
    /// Goes with f32.
    narrow: bool,
    /// Of 8-bit integers.
    zero_points: ZeroPoints<'a>,
    side: Side,
    cx: &'a Context<'a>,
}

type Panels = (Box<dyn Any + Send + Sync>, usize);

impl Source<'_> {
    fn pack(&self) -> crate::Result<Panels> {
        match self.dtype {
            DType::F32 => self.numbers::<f32>(),
            DType::F64 => self.numbers::<f64>(),
            DType::F16 if self.narrow => self.narrow::<f16>(),
            DType::BF16 if self.narrow => self.narrow::<bf16>(),
            DType::F16 => self.numbers::<f16>(),
            DType::BF16 => self.numbers::<bf16>(),
            DType::I32 => self.numbers::<i32>(),
            DType::U32 => self.numbers::<u32>(),
            DType::I64 => self.numbers::<i64>(),
            DType::U64 => self.numbers::<u64>(),
            DType::I8 | DType::U8 => self.bytes(),
            d => unreachable!("bug: product of {d} was refused before"),
        }
    }

    /// `[rows, inner]` of a left operand, `[inner, cols]` of a right one.
    fn view<T: Element>(&self) -> View<'_, T, 2> {
        let ([across, along], [step, next]) = (self.extents, self.strides);
        let (extents, strides) = match self.side {
            Side::Left => ([across, along], [step, next]),
            Side::Right => ([along, across], [next, step]),
        };
        // SAFETY: the operand was checked to lie inside its buffer when it was bound; strides are not negative.
        unsafe { View::from_raw(self.start.cast(), extents, strides) }
    }

    fn numbers<T: Number>(&self) -> crate::Result<Panels> {
        Ok(match self.side {
            Side::Left => {
                let packed = PackedLeft::<T>::new(self.cx, self.view())?;
                let size = packed.size();
                (Box::new(packed), size)
            }
            Side::Right => {
                let packed = PackedRight::<T>::new(self.cx, self.view())?;
                let size = packed.size();
                (Box::new(packed), size)
            }
        })
    }

    fn narrow<T: Half>(&self) -> crate::Result<Panels> {
        let packed = PackedRight::<f32>::narrow::<T>(self.cx, self.view())?;
        let size = packed.size();
        Ok((Box::new(packed), size))
    }

    fn bytes(&self) -> crate::Result<Panels> {
        let source = Bytes {
            view: self.view(),
            signed: self.dtype == DType::I8,
            zero_points: self.zero_points,
        };
        Ok(match self.side {
            Side::Left => {
                let packed = PackedBytesLeft::new(self.cx, &source)?;
                let size = packed.size();
                (Box::new(packed), size)
            }
            Side::Right => {
                let packed = PackedBytesRight::new(self.cx, &source)?;
                let size = packed.size();
                (Box::new(packed), size)
            }
        })
    }
}
