//! Scaled dot-product attention that never stores the scores.

use super::operand::Operand;
use super::{Call, Failure};
use crate::library::Element;
use crate::library::attention::{self, Band, Cotangents, Gradient, Mask, Rows, Unseeing};
use crate::library::gemm::formats::FloatWords;
use crate::library::view::{View, ViewMut};
use crate::memory::Lent;
use cupola_ir::composite::{Attention, AttentionGradient};
use cupola_ir::{DType, TensorType};
use half::bf16;
use std::any::TypeId;

/// Why attention does not take these operands.
pub(crate) fn refusal(operands: &[&TensorType]) -> Option<String> {
    let [q, k, v, mask @ ..] = operands else {
        return Some("takes q, k and v".into());
    };
    let known = matches!(q.dtype, DType::F32 | DType::BF16);
    if !known
        || [q, k, v]
            .iter()
            .any(|t| t.dtype != q.dtype || t.rank() != 4)
    {
        return Some("q, k and v must be f32 or bf16 with 4 axes".into());
    }
    match mask {
        [] => None,
        [m] if matches!(m.dtype, DType::Bool | DType::F32) && m.rank() <= 4 => None,
        _ => Some("the mask must be bool or f32 with at most 4 axes".into()),
    }
}

/// Why attention's gradient does not take these operands.
pub(crate) fn gradient_refusal(operands: &[&TensorType]) -> Option<String> {
    let [q, k, v, y, dy, mask @ ..] = operands else {
        return Some("takes q, k, v, y and dy".into());
    };
    if [y, dy].iter().any(|t| t.dtype != q.dtype || t.rank() != 4) {
        return Some(format!("y and dy must be {} with 4 axes", q.dtype));
    }
    refusal(&[&[*q, *k, *v], mask].concat())
}

/// Runs attention.
pub(crate) fn run(call: &Call, p: &Attention) -> Result<(), Failure> {
    let inputs = Inputs::of(call, p, 3)?;
    match (inputs.operands[0].read, call.results[0].dtype) {
        (DType::F32, DType::F32) => inputs.run::<f32>(call),
        (DType::BF16, DType::BF16) => inputs.run::<bf16>(call),
        (read, to) => unreachable!("bug: attention of {read} into {to} was refused before"),
    }
}

/// Runs attention's gradient.
pub(crate) fn run_gradient(call: &Call, p: &AttentionGradient) -> Result<(), Failure> {
    let attention = p.attention();
    let inputs = Inputs::of(call, &attention, 5)?;
    match inputs.operands[0].read {
        DType::BF16 => inputs.run_gradient::<bf16>(call),
        _ => inputs.run_gradient::<f32>(call),
    }
}

/// Operands with extents that agree.
struct Inputs<'a> {
    p: &'a Attention,
    /// Those of floats: q, k and v first.
    operands: &'a [Operand],
    mask: Option<Mask<'a>>,
    /// What the mask is a view of, where it was converted.
    _copy: Option<Lent<'a>>,
}

impl<'a> Inputs<'a> {
    /// The first `count` operands are floats, what follows is the mask.
    fn of(call: &'a Call, p: &'a Attention, count: usize) -> Result<Inputs<'a>, Failure> {
        let (operands, mask) = call.operands.split_at(count);
        let (q, k) = (&operands[0], &operands[1]);
        let (heads, kv_heads) = (q.dims[1], k.dims[1]);
        if kv_heads == 0 || heads % kv_heads != 0 {
            return Err(Failure::Fault(format!(
                "{heads} query heads over {kv_heads} key heads"
            )));
        }
        let scores = [q.dims[0], heads, q.dims[2], k.dims[2]];
        let (mut view, mut copy) = (None, None);
        if let Some(m) = mask.first() {
            if m.dtype == m.read {
                view = Some(mask_view(m, scores)?);
            } else {
                let (converted, memory) = m.converted(&call.cx, m.dims.len())?;
                view = Some(mask_view(&converted, scores)?);
                copy = Some(memory);
            }
        }
        Ok(Inputs {
            p,
            operands,
            mask: view,
            _copy: copy,
        })
    }

    /// Runs attention in which queries, keys and values count as `R`, however they are stored.
    fn run<R: FloatWords>(&self, call: &Call) -> Result<(), Failure> {
        match self.stored() {
            Some(DType::F32) => self.attend::<f32, R>(call, self.operands),
            Some(DType::BF16) => self.attend::<bf16, R>(call, self.operands),
            _ => {
                let (operands, _copies) = self.converted(call)?;
                self.attend::<R, R>(call, &operands)
            }
        }
    }

    /// The same for the gradient.
    fn run_gradient<R: FloatWords>(&self, call: &Call) -> Result<(), Failure> {
        match self.stored() {
            Some(DType::F32) => self.differentiate::<f32, R>(call, self.operands),
            Some(DType::BF16) => self.differentiate::<bf16, R>(call, self.operands),
            _ => {
                let (operands, _copies) = self.converted(call)?;
                self.differentiate::<R, R>(call, &operands)
            }
        }
    }

    /// The type that all are stored in.
    fn stored(&self) -> Option<DType> {
        let first = self.operands[0].dtype;
        let same = self.operands.iter().all(|x| x.dtype == first);
        same.then_some(first)
    }

    /// Copies of the type in which operands are taken.
    fn converted<'c>(&self, call: &Call<'c>) -> Result<(Vec<Operand>, Vec<Lent<'c>>), Failure> {
        let copies = self.operands.iter().map(|x| x.converted(&call.cx, 2));
        let copies: Vec<(Operand, Lent)> = copies.collect::<crate::error::Result<_>>()?;
        Ok(copies.into_iter().unzip())
    }

    /// Runs attention over operands stored as `T`.
    fn attend<T: FloatWords, R: FloatWords>(
        &self,
        call: &Call,
        operands: &[Operand],
    ) -> Result<(), Failure> {
        let work = self.work::<T, R>(operands)?;
        Ok(attention::attend(
            &call.cx,
            &work,
            result::<R>(&call.results[0])?,
        )?)
    }

    /// Runs the gradient over operands stored as `T`.
    fn differentiate<T: FloatWords, R: FloatWords>(
        &self,
        call: &Call,
        operands: &[Operand],
    ) -> Result<(), Failure> {
        let gradient = Gradient {
            attention: self.work::<T, R>(operands)?,
            output: view(&operands[3])?,
            cotangent: view(&operands[4])?,
        };
        let into = Cotangents {
            query: result::<R>(&call.results[0])?,
            key: result(&call.results[1])?,
            value: result(&call.results[2])?,
        };
        Ok(attention::differentiate(&call.cx, &gradient, &into)?)
    }

    /// The kernel's operands.
    fn work<'o, T: FloatWords, R: FloatWords>(
        &self,
        operands: &'o [Operand],
    ) -> Result<attention::Attention<'o, T>, Failure>
    where
        'a: 'o,
    {
        let (q, k, v) = (&operands[0], &operands[1], &operands[2]);
        let p = self.p;
        Ok(attention::Attention {
            query: view(q)?,
            key: Rows::At(view(k)?),
            value: Rows::At(view(v)?),
            scale: p.scale as f32,
            softcap: (p.softcap != 0.0).then_some(p.softcap as f32),
            mask: self.mask,
            band: match p.causal {
                true => Band::causal(k.dims[2] as isize - q.dims[2] as isize),
                false => Band::default(),
            },
            key_lens: None,
            unseeing: Unseeing::Zero,
            narrow: TypeId::of::<R>() == TypeId::of::<bf16>(),
        })
    }
}

/// An operand of elements stored as `T`.
fn view<T: Element>(o: &Operand) -> Result<View<'_, T, 4>, Failure> {
    let (shape, strides) = (shape(o), strides(o)?);
    // SAFETY: `bind` checked that every element of the view lies inside its buffer, which nothing writes meanwhile; a
    // converted copy is dense.
    Ok(unsafe { View::from_raw(o.start.cast(), shape, strides) })
}

/// A result of elements of `R`.
fn result<R: Element>(o: &Operand) -> Result<ViewMut<'_, R, 4>, Failure> {
    // SAFETY: the result is dense, lies inside its buffer, and is no other argument's memory.
    Ok(unsafe { ViewMut::from_raw(o.start.cast(), shape(o), strides(o)?) })
}

fn shape(o: &Operand) -> [usize; 4] {
    [o.dims[0], o.dims[1], o.dims[2], o.dims[3]]
}

fn strides(o: &Operand) -> Result<[usize; 4], Failure> {
    let all: Option<Vec<usize>> = o.strides.iter().map(|s| usize::try_from(*s).ok()).collect();
    let all = all.and_then(|v| <[usize; 4]>::try_from(v).ok());
    all.ok_or_else(|| Failure::Fault("an operand runs backwards".into()))
}

/// The mask over the extents of the scores: missing axes and axes of extent 1 repeat.
fn mask_view<'a>(m: &Operand, scores: [usize; 4]) -> Result<Mask<'a>, Failure> {
    let mut strides = [0usize; 4];
    let lead = 4 - m.dims.len();
    for (axis, (d, s)) in m.dims.iter().zip(&m.strides).enumerate() {
        if *d == 1 {
            continue;
        }
        if *d != scores[lead + axis] {
            return Err(Failure::Fault(format!(
                "a mask of extents {:?} over scores of {scores:?}",
                m.dims
            )));
        }
        let back = |_| Failure::Fault("a mask runs backwards".into());
        strides[lead + axis] = usize::try_from(*s).map_err(back)?;
    }
    // SAFETY: `bind` checked that every element of the view lies inside its buffer; strides of 0 add none.
    Ok(unsafe {
        match m.dtype {
            DType::Bool => Mask::Keep(View::from_raw(m.start.cast_const(), scores, strides)),
            _ => Mask::Add(View::from_raw(m.start.cast_const().cast(), scores, strides)),
        }
    })
}
