//! Scaled dot-product attention that never stores the scores.

use super::operand::Operand;
use super::{Call, Failure};
use crate::library::attention::{self, Band, Mask, Unseeing};
use crate::library::view::{View, ViewMut};
use cupola_ir::composite::Attention;
use cupola_ir::{DType, TensorType};

/// Why attention does not take these operands.
pub(crate) fn refusal(operands: &[&TensorType]) -> Option<String> {
    let [q, k, v, mask @ ..] = operands else {
        return Some("takes q, k and v".into());
    };
    if [q, k, v]
        .iter()
        .any(|t| t.dtype != DType::F32 || t.rank() != 4)
    {
        return Some("q, k and v must be f32 with 4 axes".into());
    }
    match mask {
        [] => None,
        [m] if matches!(m.dtype, DType::Bool | DType::F32) && m.rank() <= 4 => None,
        _ => Some("the mask must be bool or f32 with at most 4 axes".into()),
    }
}

/// Runs attention.
pub(crate) fn run(call: &Call, p: &Attention) -> Result<(), Failure> {
    let [q, k, v, mask @ ..] = &call.operands[..] else {
        unreachable!("bug: attention with {} operands", call.operands.len());
    };
    let result = &call.results[0];
    let (rows, keys) = (q.dims[2], k.dims[2]);
    let (heads, kv_heads) = (q.dims[1], k.dims[1]);
    if kv_heads == 0 || heads % kv_heads != 0 {
        return Err(Failure::Fault(format!(
            "{heads} query heads over {kv_heads} key heads"
        )));
    }
    let scores = [q.dims[0], heads, rows, keys];
    let mask = match mask.first() {
        Some(m) => Some(mask_view(m, scores)?),
        None => None,
    };
    let strides = |o: &Operand| -> Result<[usize; 4], Failure> {
        let all: Option<Vec<usize>> = o.strides.iter().map(|s| usize::try_from(*s).ok()).collect();
        let all = all.and_then(|v| <[usize; 4]>::try_from(v).ok());
        all.ok_or_else(|| Failure::Fault("an operand runs backwards".into()))
    };
    let shape = |o: &Operand| [o.dims[0], o.dims[1], o.dims[2], o.dims[3]];
    let view = |o: &Operand| -> Result<View<'_, f32, 4>, Failure> {
        // SAFETY: `bind` checked that every element of the view lies inside its buffer, which nothing writes meanwhile.
        Ok(unsafe { View::from_raw(o.start.cast(), shape(o), strides(o)?) })
    };
    let band = match p.causal {
        true => Band::causal(keys as isize - rows as isize),
        false => Band::default(),
    };
    let work = attention::Attention {
        query: view(q)?,
        key: view(k)?,
        value: view(v)?,
        scale: p.scale as f32,
        softcap: (p.softcap != 0.0).then_some(p.softcap as f32),
        mask,
        band,
        key_lens: None,
        unseeing: Unseeing::Zero,
        narrow: false,
    };
    // SAFETY: the result is dense, lies inside its buffer, and is no other argument's memory.
    let output = unsafe { ViewMut::from_raw(result.start.cast(), shape(result), strides(result)?) };
    Ok(attention::attend(&call.cx, &work, output)?)
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
