//! Scaled dot-product attention that never stores the scores.

use super::operand::Operand;
use super::{Call, Failure};
use crate::library::attention::{self, Band, Mask, Rows, Unseeing};
use crate::library::gemm::formats::FloatWords;
use crate::library::view::{View, ViewMut};
use cupola_ir::composite::Attention;
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

/// Runs attention.
pub(crate) fn run(call: &Call, p: &Attention) -> Result<(), Failure> {
    let [q, k, v, mask @ ..] = call.operands else {
        unreachable!("bug: attention with {} operands", call.operands.len());
    };
    let (heads, kv_heads) = (q.dims[1], k.dims[1]);
    if kv_heads == 0 || heads % kv_heads != 0 {
        return Err(Failure::Fault(format!(
            "{heads} query heads over {kv_heads} key heads"
        )));
    }
    let scores = [q.dims[0], heads, q.dims[2], k.dims[2]];
    let mask = match mask.first() {
        Some(m) => Some(mask_view(m, scores)?),
        None => None,
    };
    let inputs = Inputs {
        operands: [q, k, v],
        mask,
    };
    match (q.read, call.results[0].dtype) {
        (DType::F32, DType::F32) => inputs.run::<f32>(call, p),
        (DType::BF16, DType::BF16) => inputs.run::<bf16>(call, p),
        (read, to) => unreachable!("bug: attention of {read} into {to} was refused before"),
    }
}

/// Operands with extents that agree.
struct Inputs<'a> {
    operands: [&'a Operand; 3],
    mask: Option<Mask<'a>>,
}

impl Inputs<'_> {
    /// Runs attention in which queries, keys and values count as `R`, however they are stored.
    fn run<R: FloatWords>(&self, call: &Call, p: &Attention) -> Result<(), Failure> {
        let stored = self.operands.map(|x| x.dtype);
        match stored {
            [DType::F32, DType::F32, DType::F32] => self.attend::<f32, R>(call, p, self.operands),
            [DType::BF16, DType::BF16, DType::BF16] => {
                self.attend::<bf16, R>(call, p, self.operands)
            }
            _ => {
                let [q, k, v] = self.operands.map(|x| x.converted(&call.cx, 2));
                let ((q, _q), (k, _k), (v, _v)) = (q?, k?, v?);
                self.attend::<R, R>(call, p, [&q, &k, &v])
            }
        }
    }

    /// Runs attention over operands stored as `T`.
    fn attend<T: FloatWords, R: FloatWords>(
        &self,
        call: &Call,
        p: &Attention,
        [q, k, v]: [&Operand; 3],
    ) -> Result<(), Failure> {
        let view = |o: &Operand| -> Result<View<'_, T, 4>, Failure> {
            let (shape, strides) = (shape(o), strides(o)?);
            // SAFETY: `bind` checked that every element of the view lies inside its buffer, which nothing writes meanwhile;
            // a converted copy is dense.
            Ok(unsafe { View::from_raw(o.start.cast(), shape, strides) })
        };
        let work = attention::Attention {
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
        };
        let result = &call.results[0];
        // SAFETY: the result is dense, lies inside its buffer, and is no other argument's memory.
        let output = unsafe {
            ViewMut::<R, 4>::from_raw(result.start.cast(), shape(result), strides(result)?)
        };
        Ok(attention::attend(&call.cx, &work, output)?)
    }
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
