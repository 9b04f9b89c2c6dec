//! Elements written by index.

use super::{Call, Failure};
use crate::library::view::Shared;
use cupola_ir::ops::{Bounds, Scatter, ScatterKind};
use cupola_ir::{DType, TensorType};
use half::{bf16, f16};

/// Why scatter does not take these operands.
pub(crate) fn refusal(p: &Scatter, operands: &[&TensorType]) -> Option<String> {
    let dtype = operands.first()?.dtype;
    let number = matches!(
        dtype,
        DType::F32
            | DType::F64
            | DType::F16
            | DType::BF16
            | DType::I8
            | DType::I16
            | DType::I32
            | DType::I64
            | DType::U8
            | DType::U16
            | DType::U32
            | DType::U64
    );
    let moves = p.kind == ScatterKind::Set && dtype.is_whole_byte();
    (!number && !moves).then(|| format!("no {} of {dtype} by index", p.kind.name()))
}

/// A number that updates combine with.
trait Number: Copy {
    fn add(self, x: Self) -> Self;
    fn mul(self, x: Self) -> Self;
    fn larger(self, x: Self) -> Self;
    fn smaller(self, x: Self) -> Self;
}

macro_rules! integers {
    ($($t:ty),*) => {
        $(impl Number for $t {
            fn add(self, x: Self) -> Self { self.wrapping_add(x) }
            fn mul(self, x: Self) -> Self { self.wrapping_mul(x) }
            fn larger(self, x: Self) -> Self { self.max(x) }
            fn smaller(self, x: Self) -> Self { self.min(x) }
        })*
    };
}
integers!(i8, i16, i32, i64, u8, u16, u32, u64);

macro_rules! floats {
    ($($t:ty),*) => {
        $(impl Number for $t {
            fn add(self, x: Self) -> Self { self + x }
            fn mul(self, x: Self) -> Self { self * x }
            fn larger(self, x: Self) -> Self { if self.is_nan() || self > x { self } else { x } }
            fn smaller(self, x: Self) -> Self { if self.is_nan() || self < x { self } else { x } }
        })*
    };
}
floats!(f32, f64, f16, bf16);

/// Where updates go.
struct Meets {
    /// Element offset in data of each index tuple's window; nothing when it is left out.
    bases: Vec<Option<usize>>,
    /// Element offset of each run of neighbours in a window.
    runs: Vec<usize>,
    /// Elements of a run.
    run_len: usize,
}

/// Runs the scatter: copies data, unless the result is where data is, then applies the updates in order.
pub(crate) fn run(call: &Call, p: &Scatter) -> Result<(), Failure> {
    let (data, updates, result) = (&call.operands[0], &call.operands[1], &call.results[0]);
    let meets = meets(call, p)?;
    if data.start != result.start {
        super::operand::copy_elements(&call.cx, data, result);
    }
    let (from, to) = (Shared(updates.start), Shared(result.start));
    macro_rules! apply {
        ($t:ty, $f:expr) => {
            // SAFETY: data, updates and result are dense and lie inside their buffers; offsets are inside data.
            unsafe { apply::<$t>(call, &meets, from, to, $f) }
        };
    }
    macro_rules! combine {
        ($t:ty) => {
            match p.kind {
                ScatterKind::Set => apply!($t, |_, x| x),
                ScatterKind::Add => apply!($t, <$t as Number>::add),
                ScatterKind::Mul => apply!($t, <$t as Number>::mul),
                ScatterKind::Max => apply!($t, <$t as Number>::larger),
                ScatterKind::Min => apply!($t, <$t as Number>::smaller),
            }
        };
    }
    match data.dtype {
        DType::F32 => combine!(f32),
        DType::F64 => combine!(f64),
        DType::F16 => combine!(f16),
        DType::BF16 => combine!(bf16),
        DType::I8 => combine!(i8),
        DType::I16 => combine!(i16),
        DType::I32 => combine!(i32),
        DType::I64 => combine!(i64),
        DType::U16 => combine!(u16),
        DType::U32 => combine!(u32),
        DType::U64 => combine!(u64),
        // Other types of a byte are only moved.
        _ => combine!(u8),
    }
    Ok(())
}

fn meets(call: &Call, p: &Scatter) -> Result<Meets, Failure> {
    let data = &call.operands[0];
    let lists = &call.operands[2..];
    let shape = &data.dims;
    let count = lists[0].len();
    let per_batch: usize = lists[0].dims[p.batch..].iter().product();
    let batch_stride: usize = shape[p.batch..].iter().product();
    let stride = |axis: usize| shape[axis + 1..].iter().product::<usize>();
    let mut bases = Vec::with_capacity(count);
    for at in 0..count {
        let mut base = Some(at / per_batch.max(1) * batch_stride);
        for (list, axis) in lists.iter().zip(&p.axes) {
            // SAFETY: indices are dense i64 inside their buffer.
            let i = unsafe { list.start.cast::<i64>().add(at).read_unaligned() };
            let n = shape[*axis] as i64;
            let inside = match p.bounds {
                _ if (0..n).contains(&i) => Some(i),
                Bounds::Check => {
                    return Err(Failure::Fault(format!(
                        "index {i} is outside axis {axis} of extent {n}"
                    )));
                }
                Bounds::Clamp if n > 0 => Some(i.clamp(0, n - 1)),
                Bounds::Clamp | Bounds::Skip => None,
            };
            base = base
                .zip(inside)
                .map(|(b, i)| b + i as usize * stride(*axis));
        }
        bases.push(base);
    }
    let others = (p.batch..shape.len()).filter(|a| !p.axes.contains(a));
    let (mut runs, mut run_len) = (vec![0], 1);
    for axis in others.rev() {
        let step = stride(axis);
        if step == run_len {
            run_len *= shape[axis];
            continue;
        }
        let outer = (0..shape[axis]).flat_map(|i| runs.iter().map(move |run| i * step + run));
        runs = outer.collect();
    }
    Ok(Meets {
        bases,
        runs,
        run_len,
    })
}

/// Applies updates in order; threads take different parts of the windows.
///
/// # Safety
/// `from` and `to` must hold the updates and the data as `T`.
unsafe fn apply<T: Copy>(
    call: &Call,
    meets: &Meets,
    from: Shared<u8>,
    to: Shared<u8>,
    combine: impl Fn(T, T) -> T + Sync,
) {
    let n = meets.runs.len() * meets.run_len;
    let grain = ((1 << 14) / meets.bases.len().max(1)).max(16);
    call.cx.pool.run_ranges(n, grain, |part| {
        let (from, to) = (from.get().cast::<T>(), to.get().cast::<T>());
        for (at, base) in meets.bases.iter().enumerate() {
            let Some(base) = base else { continue };
            let mut w = part.start;
            while w < part.end {
                let (run, first) = (w / meets.run_len, w % meets.run_len);
                let count = (meets.run_len - first).min(part.end - w);
                let slots = to.wrapping_add(base + meets.runs[run] + first);
                let updates = from.wrapping_add(at * n + w);
                for i in 0..count {
                    // SAFETY: the caller's contract; parts of windows are different elements.
                    unsafe {
                        let (slot, x) = (slots.add(i), updates.add(i).read_unaligned());
                        slot.write_unaligned(combine(slot.read_unaligned(), x));
                    }
                }
                w += count;
            }
        }
    });
}
