//! Products of 8-bit integers with zero points.

use super::contract::{axes, bind};
use super::operand::Operand;
use super::packed::{self, Packed, Side};
use super::{Call, Failure};
use crate::library::Context;
use crate::library::gemm::ZeroPoints;
use cupola_ir::composite::IntegerProduct;
use cupola_ir::ops::Contract;
use cupola_ir::{DType, TensorType};

/// Why there is no product of these operands.
pub(crate) fn refusal(operands: &[&TensorType]) -> Option<String> {
    let [l, r, l_zero, r_zero] = operands else {
        return Some("takes two factors and their zero points".into());
    };
    let is_byte = |d: DType| matches!(d, DType::I8 | DType::U8);
    let fits = |x: &TensorType, zero: &TensorType| {
        is_byte(x.dtype) && x.dtype == zero.dtype && zero.rank() <= 1
    };
    (!fits(l, l_zero) || !fits(r, r_zero))
        .then(|| format!("no product of {l} and {r} less {l_zero} and {r_zero}"))
}

/// The zero points of an operand, repeated until there is one for each of `across` rows or columns.
pub(super) struct Zeros(Vec<i32>);

impl Zeros {
    pub(super) fn of(x: &Operand, across: usize) -> Zeros {
        let read = |at: usize| {
            let stride = x.strides.first().copied().unwrap_or(0);
            let from = x.start.wrapping_offset(at as isize * stride);
            // SAFETY: the operand was checked to lie inside its buffer when it was bound; elements are bytes.
            let byte = unsafe { *from };
            match x.dtype {
                DType::I8 => i32::from(byte as i8),
                _ => i32::from(byte),
            }
        };
        let own: Vec<i32> = (0..x.len()).map(read).collect();
        Zeros(match own.len() {
            0 | 1 => own,
            _ => own.iter().copied().cycle().take(across).collect(),
        })
    }

    pub(super) fn points(&self) -> ZeroPoints<'_> {
        match &self.0[..] {
            [] => ZeroPoints::One(0),
            [point] => ZeroPoints::One(*point),
            points => ZeroPoints::Each(points),
        }
    }
}

/// Rows of the left or columns of the right operand.
fn across(p: &Contract, side: Side, x: &Operand) -> usize {
    let (_, free, _) = axes(p, side, x.dims.len());
    free.iter().map(|a| x.dims[*a]).product()
}

/// Packs a constant factor whose zero points are constant too, if it pays.
pub(super) fn prepare(
    p: &IntegerProduct,
    operands: &[Option<Operand>],
    cx: &Context,
) -> Result<Option<Packed>, Failure> {
    let p = p.contract();
    let given = |side: Side| {
        let at = side.operands()[0];
        let (x, zero) = (operands[at].as_ref()?, operands[at + 2].as_ref()?);
        Some((x, Zeros::of(zero, across(&p, side, x))))
    };
    let sides = [given(Side::Left), given(Side::Right)];
    let factors = [0, 1].map(|at: usize| sides[at].as_ref().map(|(x, _)| *x));
    let zeros = [0, 1].map(|at: usize| match &sides[at] {
        Some((_, zeros)) => zeros.points(),
        None => ZeroPoints::One(0),
    });
    packed::prepare(&p, factors, zeros, cx)
}

/// Runs the product.
pub(crate) fn run(call: &Call, p: &IntegerProduct) -> Result<(), Failure> {
    let product = bind(call, &p.contract())?;
    let [l, r, l_zero, r_zero] = call.operands else {
        unreachable!("bug: a product of {} operands", call.operands.len())
    };
    let zeros = [
        Zeros::of(l_zero, product.rows()),
        Zeros::of(r_zero, product.cols()),
    ];
    product.bytes(
        call,
        [l.read, r.read],
        [zeros[0].points(), zeros[1].points()],
    )
}
