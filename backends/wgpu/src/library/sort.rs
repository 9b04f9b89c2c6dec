//! Sorting: which steps for which shapes.

use cupola_shaders::sort::{BlockSize, KeyKind, ROW_AXES, SortForm, SortParams, SortShader};

use super::{LibraryCall, LibraryProgram, Place, stride, word};
use crate::choice::DeviceModel;
use crate::error::Error;

/// An axis beside the sorted one; strides in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowAxis {
    /// Length.
    pub len: u64,
    /// Distance in the source.
    pub source: i64,
    /// Distance in both results.
    pub sink: i64,
}

/// A stable sort along one axis. NaN counts as largest, both zeros as equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sort {
    /// Bits of an element: 8, 16, 32 or 64 (no 64-bit floats).
    pub bits: u32,
    /// How elements compare.
    pub kind: KeyKind,
    /// Largest first.
    pub descending: bool,
    /// Elements along the sorted axis.
    pub len: u64,
    /// Position of the first element of the source.
    pub source_offset: i64,
    /// Distance of the source's elements along the sorted axis.
    pub source_step: i64,
    /// Distance of the results' elements along the sorted axis.
    pub sink_step: i64,
    /// The other axes, outermost first.
    pub rows: Vec<RowAxis>,
}

impl Sort {
    /// The dispatches that compute it. Arguments: source, values, positions (i64).
    ///
    /// # Errors
    /// [`Error::Limit`] for lengths beyond 31 bits or more than [`ROW_AXES`] other axes that cannot be merged.
    pub fn plan(&self, _device: &DeviceModel) -> Result<LibraryProgram, Error> {
        let axes = merged(&self.rows);
        if axes.len() > ROW_AXES {
            return Err(Error::Limit {
                what: "axes of a sort",
                needed: axes.len() as u64,
                allowed: ROW_AXES as u64,
            });
        }
        let rows = axes
            .iter()
            .try_fold(1u64, |product, axis| product.checked_mul(axis.len));
        let rows = rows.ok_or_else(|| too_large(u64::MAX))?;
        if self.len > 1 << 30 {
            return Err(too_large(self.len));
        }
        let block = u64::from(BlockSize::Large.entries());
        let padded = self.len.next_power_of_two().max(block);
        let mut dims = [[1, 0, 0, 0]; ROW_AXES];
        for (dim, axis) in dims.iter_mut().zip(axes.iter().rev()) {
            *dim = [
                word("an axis", axis.len)?,
                stride(axis.source),
                stride(axis.sink),
                0,
            ];
        }
        let params = SortParams {
            rows: word("rows of a sort", rows)?,
            len: self.len as u32,
            padded: padded as u32,
            blocks: (padded / block) as u32,
            groups: 0,
            distance: 1,
            mirror: 0,
            source_offset: stride(self.source_offset),
            source_step: stride(self.source_step),
            sink_step: stride(self.sink_step),
            rank: axes.len() as u32,
            dims,
        };
        if self.len <= block {
            let size = match self.len <= u64::from(BlockSize::Small.entries()) {
                true => BlockSize::Small,
                false => BlockSize::Large,
            };
            let params = SortParams {
                blocks: 1,
                ..params
            };
            let groups = if self.len == 0 { 0 } else { rows };
            return Ok(LibraryProgram::one(self.call(
                SortForm::Rows(size),
                params,
                groups,
            )));
        }
        self.long(params, rows, padded)
    }

    /// Rows longer than a block: blocks are sorted, then merged two by two through scratch memory.
    fn long(&self, params: SortParams, rows: u64, padded: u64) -> Result<LibraryProgram, Error> {
        let entries = rows
            .checked_mul(padded)
            .filter(|&entries| entries <= u64::from(u32::MAX));
        let entries = entries.ok_or_else(|| too_large(rows.saturating_mul(padded)))?;
        let [source, values, positions] = [0, 1, 2].map(Place::Argument);
        let [keys, places] = [0, 1].map(Place::Scratch);
        let block = u64::from(BlockSize::Large.entries());
        let blocks = entries / block;
        let mut steps = vec![(
            self.call(SortForm::Blocks, params, blocks),
            vec![source, keys, places],
        )];
        let mut half = block;
        while half < padded {
            let mut distance = half;
            while distance >= block {
                let groups = (entries / 2).div_ceil(256);
                let mirror = u32::from(distance == half);
                let merge = SortParams {
                    groups: word("tiles", groups)?,
                    distance: distance as u32,
                    mirror,
                    ..params
                };
                steps.push((
                    self.call(SortForm::Merge, merge, groups),
                    vec![keys, places],
                ));
                distance /= 2;
            }
            half *= 2;
            steps.push(if half < padded {
                (
                    self.call(SortForm::MergeBlocks, params, blocks),
                    vec![keys, places],
                )
            } else {
                (
                    self.call(SortForm::Finish, params, blocks),
                    vec![keys, places, source, values, positions],
                )
            });
        }
        let key_size = if self.bits == 64 { 8 } else { 4 };
        Ok(LibraryProgram {
            steps,
            scratch: vec![entries * key_size, entries * 4],
        })
    }

    fn call(&self, form: SortForm, params: SortParams, groups: u64) -> LibraryCall {
        let shader = SortShader {
            bits: self.bits,
            kind: self.kind,
            descending: self.descending,
            form,
        };
        LibraryCall {
            shader: shader.shader(),
            params: params.words(),
            groups,
        }
    }
}

/// Axes without those of length one, and with neighbours joined that step evenly through source and results.
fn merged(axes: &[RowAxis]) -> Vec<RowAxis> {
    let mut out: Vec<RowAxis> = Vec::new();
    for &axis in axes.iter().filter(|axis| axis.len != 1) {
        let len = axis.len as i64;
        match out.last_mut() {
            Some(outer)
                if outer.source == axis.source.wrapping_mul(len)
                    && outer.sink == axis.sink.wrapping_mul(len)
                    && outer.len.checked_mul(axis.len).is_some() =>
            {
                *outer = RowAxis {
                    len: outer.len * axis.len,
                    ..axis
                };
            }
            _ => out.push(axis),
        }
    }
    out
}

fn too_large(needed: u64) -> Error {
    Error::Limit {
        what: "elements of a sort",
        needed,
        allowed: u64::from(u32::MAX),
    }
}
