//! Attention over keys and values in pages.
//!
//! Rows of one sequence at positions that follow each other are a segment; neighbouring segments of equal length are computed
//! together, as a batch. What a row yields does not depend on the segments beside its own, nor on the length of its own while
//! that is short: tokens that were guessed ahead get the very logits that they get one by one.

use super::operand::Operand;
use super::{Call, Failure};
use crate::library::attention::{self, Band, PageStart, Pages, Rows, Scales, Unseeing};
use crate::library::gemm::formats::FloatWords;
use crate::library::view::{View, ViewMut};
use cupola_ir::composite::PagedAttention;
use cupola_ir::{DType, TensorType};
use half::bf16;
use std::any::TypeId;

/// Why paged attention does not take these operands.
pub(crate) fn refusal(operands: &[&TensorType]) -> Option<String> {
    let [q, k, v, _, _, _, scales @ ..] = operands else {
        return Some("takes q, k, v, a table, sequences and positions".into());
    };
    if !matches!(q.dtype, DType::F32 | DType::BF16) {
        return Some("q must be f32 or bf16".into());
    }
    if !scales.is_empty() {
        let are_halves = scales.iter().all(|t| t.dtype == DType::F16);
        return (!are_halves).then(|| "scales must be f16".into());
    }
    let stored = |t: &TensorType| matches!(t.dtype, DType::F32 | DType::F16 | DType::BF16);
    (!stored(k) || !stored(v)).then(|| "pages must hold f32, f16 or bf16".into())
}

/// Runs paged attention.
pub(crate) fn run(call: &Call, p: &PagedAttention) -> Result<(), Failure> {
    match call.operands[0].dtype {
        DType::BF16 => Paged::bind(call)?.run::<bf16>(call, p),
        _ => Paged::bind(call)?.run::<f32>(call, p),
    }
}

/// Rows up to which those of a segment are computed apart, each as if it came alone.
const FEW_ROWS: usize = 16;

/// Rows of one sequence at positions that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    first: usize,
    len: usize,
    sequence: usize,
    position: usize,
}

impl Segment {
    /// The segment, or where it is short its rows apart.
    fn parts(self) -> impl Iterator<Item = Segment> {
        let step = if self.len <= FEW_ROWS { 1 } else { self.len };
        (0..self.len).step_by(step).map(move |at| Segment {
            first: self.first + at,
            len: step,
            sequence: self.sequence,
            position: self.position + at,
        })
    }
}

/// Operands with extents that agree.
struct Paged<'a> {
    query: &'a Operand,
    key: &'a Operand,
    value: &'a Operand,
    /// Scales of keys and of values, where they are in 8 bits.
    scales: [Option<&'a Operand>; 2],
    table: &'a [i64],
    /// Entries of a sequence in the table.
    blocks: usize,
    segments: Vec<Segment>,
}

impl<'a> Paged<'a> {
    fn bind(call: &'a Call) -> Result<Paged<'a>, Failure> {
        let [query, key, value, table, sequences, positions, scales @ ..] = call.operands else {
            unreachable!("bug: paged attention with {} operands", call.operands.len());
        };
        let (heads, kv_heads) = (query.dims[1], key.dims[1]);
        if heads > 0 && (kv_heads == 0 || heads % kv_heads != 0) {
            return Err(Failure::Fault(format!(
                "{heads} query heads over {kv_heads} key heads"
            )));
        }
        if key.dims[..3] != value.dims[..3] || key.dims[3] != query.dims[2] {
            return Err(Failure::Fault(format!(
                "queries {:?} over keys {:?} and values {:?}",
                query.dims, key.dims, value.dims
            )));
        }
        if ![key, value]
            .into_iter()
            .chain(scales)
            .all(Operand::is_dense)
        {
            return Err(Failure::Fault("pages are not dense".into()));
        }
        for (x, scales) in [key, value].into_iter().zip(scales) {
            let groups = scales.dims[3];
            if x.dims[..3] != scales.dims[..3] || groups == 0 || x.dims[3] % groups != 0 {
                let what = format!("scales {:?} of pages {:?}", scales.dims, x.dims);
                return Err(Failure::Fault(what));
            }
        }
        let mut paged = Paged {
            query,
            key,
            value,
            scales: [scales.first(), scales.get(1)],
            table: integers(table)?,
            blocks: table.dims[1],
            segments: vec![],
        };
        let all = segments(integers(sequences)?, integers(positions)?, table.dims[0])?;
        paged.segments = all.into_iter().flat_map(Segment::parts).collect();
        Ok(paged)
    }

    /// Keys that exist for a segment.
    fn keys(&self, segment: &Segment) -> usize {
        let room = match self.key.dims[0] {
            0 => 0,
            _ => self.blocks.saturating_mul(self.key.dims[2]),
        };
        room.min(segment.position.saturating_add(segment.len))
    }

    /// Pages of a segment's sequence, as far as it reads them.
    fn pages(&self, segment: &Segment) -> &'a [i64] {
        let used = self.keys(segment).div_ceil(self.key.dims[2].max(1));
        let start = segment.sequence * self.blocks;
        &self.table[start..start + used]
    }

    fn run<T: FloatWords>(&self, call: &Call, p: &PagedAttention) -> Result<(), Failure> {
        let mut rest = &self.segments[..];
        while let [first, ..] = rest {
            let alike = rest.iter().take_while(|s| s.len == first.len).count();
            let (batch, others) = rest.split_at(alike);
            self.attend::<T>(call, p, batch)?;
            rest = others;
        }
        Ok(())
    }

    /// Attends for segments of equal length.
    fn attend<T: FloatWords>(
        &self,
        call: &Call,
        p: &PagedAttention,
        batch: &[Segment],
    ) -> Result<(), Failure> {
        let [_, heads, depth] = [0, 1, 2].map(|a| self.query.dims[a]);
        let value_depth = self.value.dims[3];
        let (first, len) = (batch[0].first, batch[0].len);
        let strides: Vec<usize> = (self.query.strides.iter())
            .map(|s| usize::try_from(*s))
            .collect::<Result<_, _>>()
            .map_err(|_| Failure::Fault("queries run backwards".into()))?;
        let shape = [batch.len(), heads, len, depth];
        let across = [len * strides[0], strides[1], strides[0], strides[2]];
        let start = self
            .query
            .start
            .cast::<T>()
            .wrapping_add(first * strides[0]);
        // SAFETY: `bind` checked that every element of the view lies inside its buffer, which nothing writes meanwhile.
        let query = unsafe { View::from_raw(start.cast_const(), shape, across) };
        let lens: Vec<usize> = batch.iter().map(|s| self.keys(s)).collect();
        let offsets: Vec<isize> = (batch.iter().map(|s| s.position as isize)).collect();
        let tables: Vec<&[i64]> = batch.iter().map(|s| self.pages(s)).collect();
        let keys = lens.iter().copied().max().unwrap_or(0);
        let work = attention::Attention {
            query,
            key: Rows::In(pages(self.key, self.scales[0], keys, &tables)),
            value: Rows::In(pages(self.value, self.scales[1], keys, &tables)),
            scale: p.scale as f32,
            softcap: (p.softcap != 0.0).then_some(p.softcap as f32),
            mask: None,
            band: Band {
                before: usize::try_from(p.window - 1).ok(),
                after: Some(0),
                offset: 0,
                offsets: Some(&offsets),
            },
            key_lens: Some(&lens),
            unseeing: Unseeing::Zero,
            narrow: TypeId::of::<T>() == TypeId::of::<bf16>(),
        };
        let shape = [batch.len(), heads, len, value_depth];
        let row = heads * value_depth;
        let to = call.results[0].start.cast::<T>().wrapping_add(first * row);
        // SAFETY: the result is dense, lies inside its buffer, and is no other argument's memory.
        let output =
            unsafe { ViewMut::<T, 4>::from_raw(to, shape, [len * row, value_depth, row, 1]) };
        Ok(attention::attend(&call.cx, &work, output)?)
    }
}

/// Cuts rows into segments.
fn segments(sequences: &[i64], positions: &[i64], batch: usize) -> Result<Vec<Segment>, Failure> {
    let mut all: Vec<Segment> = vec![];
    for (row, (sequence, position)) in sequences.iter().zip(positions).enumerate() {
        let inside = usize::try_from(*sequence).ok().filter(|s| *s < batch);
        let (Some(sequence), Ok(position)) = (inside, usize::try_from(*position)) else {
            return Err(Failure::Fault(format!(
                "row {row} is at position {position} of sequence {sequence}, of {batch}"
            )));
        };
        match all.last_mut() {
            Some(s) if s.sequence == sequence && s.position + s.len == position => s.len += 1,
            _ => all.push(Segment {
                first: row,
                len: 1,
                sequence,
                position,
            }),
        }
    }
    Ok(all)
}

fn pages<'a>(
    stored: &Operand,
    scales: Option<&Operand>,
    keys: usize,
    tables: &'a [&'a [i64]],
) -> Pages<'a> {
    let start = stored.start.cast_const();
    Pages {
        start: match (scales, stored.dtype) {
            (Some(scales), _) => {
                let by = scales.start.cast_const().cast();
                let groups = scales.dims[3];
                PageStart::I8(start.cast(), Scales { start: by, groups })
            }
            (_, DType::F16) => PageStart::F16(start.cast()),
            (_, DType::BF16) => PageStart::BF16(start.cast()),
            _ => PageStart::F32(start.cast()),
        },
        count: stored.dims[0],
        kv_heads: stored.dims[1],
        page_len: stored.dims[2],
        depth: stored.dims[3],
        keys,
        tables,
    }
}

/// The elements of a dense operand of i64.
fn integers(operand: &Operand) -> Result<&[i64], Failure> {
    if !operand.is_dense() || !operand.start.cast::<i64>().is_aligned() {
        return Err(Failure::Fault("indices are not dense".into()));
    }
    if operand.len() == 0 {
        return Ok(&[]);
    }
    // SAFETY: `bind` checked that the elements lie inside their buffer, which nothing writes while the call runs.
    Ok(unsafe { std::slice::from_raw_parts(operand.start.cast_const().cast(), operand.len()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_sequence_at_neighbouring_positions_are_a_segment() {
        let found = segments(&[0, 0, 2, 1, 1, 1], &[4, 5, 0, 0, 1, 3], 3);
        let found = found.unwrap_or_default();
        let lens: Vec<_> = found
            .iter()
            .map(|s| (s.sequence, s.position, s.len))
            .collect();
        assert_eq!(lens, [(0, 4, 2), (2, 0, 1), (1, 0, 2), (1, 3, 1)]);
    }

    #[test]
    fn a_sequence_that_the_table_lacks_is_refused() {
        assert!(segments(&[3], &[0], 3).is_err());
        assert!(segments(&[0], &[-1], 3).is_err());
    }
}
