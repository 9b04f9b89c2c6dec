//! Gather, scatter and sort.

use cupola_ir::ops::{Bounds, Gather, Scatter, ScatterKind, Sort};
use cupola_ir::{DType, Dim, Graph, Node, TensorType};

use super::{Exporter, Result};
use crate::write::attribute;

impl Exporter<'_> {
    /// `Gather` for one axis, `GatherND` for several or with batch axes.
    pub(super) fn gather(
        &mut self,
        operands: &[&str],
        graph: &Graph,
        node: &Node,
        p: &Gather,
    ) -> Result<String> {
        let data = graph.tensor(node.operands[0]);
        let index_rank = graph.rank(node.operands[1]);
        let (indices, inside) = self.bounded(&operands[1..], &data, &p.axes, p.bounds)?;
        let result = match (&p.axes[..], p.batch) {
            (&[axis], 0) => {
                let axis_attribute = [attribute("axis", axis as i64)];
                let found = self.emit("Gather", &[operands[0], &indices[0]], &axis_attribute);
                let rank = data.rank() - 1 + index_rank;
                let picked = axis..axis + index_rank;
                let others = (0..rank).filter(|other| !picked.contains(other));
                let perm: Vec<usize> = picked.clone().chain(others).collect();
                self.permute(&found, &perm)
            }
            _ => {
                let data = self.permute(operands[0], &indexed_first(&data, p.batch, &p.axes));
                let indices = self.stack(&indices, index_rank);
                let batch = [attribute("batch_dims", p.batch as i64)];
                self.emit("GatherND", &[&data, &indices], &batch)
            }
        };
        let (Bounds::Skip, Some(inside)) = (p.bounds, inside) else {
            return Ok(result);
        };
        let rank = graph.rank(node.results[0]);
        let mask = self.trailing_axes(&inside, index_rank, rank);
        let zero = self.number(0.0, data.dtype)?;
        Ok(self.emit("Where", &[&mask, &result, &zero], &[]))
    }

    /// `ScatterND` with batch axes as indices of their own. Updates that are to be left out go to an
    /// extra element of the first indexed axis, which is cut off again.
    pub(super) fn scatter(
        &mut self,
        operands: &[&str],
        graph: &Graph,
        node: &Node,
        p: &Scatter,
    ) -> Result<String> {
        let data = graph.tensor(node.operands[0]);
        let index_dims = graph.dims(node.operands[2]);
        let index_rank = index_dims.len();
        let (mut indices, inside) = self.bounded(&operands[2..], &data, &p.axes, p.bounds)?;
        let first = &data.dims[p.axes[0]];
        if let (Bounds::Skip, Some(inside)) = (p.bounds, &inside) {
            let extra = self.extent_scalar(first)?;
            indices[0] = self.emit("Where", &[inside, &indices[0], &extra], &[]);
        }
        let mut all = Vec::new();
        for (axis, dim) in index_dims.iter().enumerate().take(p.batch) {
            let counts = self.counting_along(dim, axis, index_rank)?;
            all.push(self.expand(&counts, &index_dims)?);
        }
        all.extend(indices);
        let perm = indexed_first(&data, p.batch, &p.axes);
        let mut target = self.permute(operands[0], &perm);
        if p.bounds == Bounds::Skip {
            target = self.one_more(&target, data.dtype, p.batch)?;
        }
        let indices = self.stack(&all, index_rank);
        let reduction = match p.kind {
            ScatterKind::Set => "none",
            ScatterKind::Add => "add",
            ScatterKind::Mul => "mul",
            ScatterKind::Max => "max",
            ScatterKind::Min => "min",
        };
        let attributes = [attribute("reduction", reduction)];
        let mut result = self.emit("ScatterND", &[&target, &indices, operands[1]], &attributes);
        if p.bounds == Bounds::Skip {
            let (start, axis) = (self.ints(&[0]), self.ints(&[p.batch as i64]));
            let end = self.extent(first)?;
            result = self.emit("Slice", &[&result, &start, &end, &axis], &[]);
        }
        let mut back = vec![0; perm.len()];
        perm.iter()
            .enumerate()
            .for_each(|(to, &from)| back[from] = to);
        Ok(self.permute(&result, &back))
    }

    pub(super) fn sort(&mut self, x: &str, kind: &TensorType, p: &Sort) -> Result<Vec<String>> {
        let inner = if kind.dtype == DType::Bool {
            DType::I32
        } else {
            kind.dtype
        };
        let x = self.cast(x, kind.dtype, inner)?;
        let count = self.extent(&kind.dims[p.axis])?;
        let attributes = [
            attribute("axis", p.axis as i64),
            attribute("largest", i64::from(p.descending)),
            attribute("sorted", 1),
        ];
        let [values, indices] = self.emit_all("TopK", &[&x, &count], &attributes);
        Ok(vec![self.cast(&values, inner, kind.dtype)?, indices])
    }

    /// Indices that are all inside where the op allows others, and for each position whether all
    /// its indices were.
    fn bounded(
        &mut self,
        indices: &[&str],
        data: &TensorType,
        axes: &[usize],
        bounds: Bounds,
    ) -> Result<(Vec<String>, Option<String>)> {
        if bounds == Bounds::Check {
            return Ok((
                indices.iter().map(|&index| index.to_owned()).collect(),
                None,
            ));
        }
        let zero = self.number(0.0, DType::I64)?;
        let mut bounded = Vec::new();
        let mut inside: Option<String> = None;
        for (&index, &axis) in indices.iter().zip(axes) {
            let last = self.extent_scalar(&(data.dims[axis].clone() - Dim::ONE))?;
            let low = self.emit("Max", &[index, &zero], &[]);
            let near = self.emit("Min", &[&low, &last], &[]);
            if bounds == Bounds::Skip {
                let here = self.emit("Equal", &[&near, index], &[]);
                inside = Some(match inside {
                    Some(before) => self.emit("And", &[&before, &here], &[]),
                    None => here,
                });
            }
            bounded.push(near);
        }
        Ok((bounded, inside))
    }

    /// Indices side by side along a new last axis.
    fn stack(&mut self, indices: &[String], rank: usize) -> String {
        let last = self.ints(&[rank as i64]);
        let columns: Vec<String> = indices
            .iter()
            .map(|index| self.emit("Unsqueeze", &[index, &last], &[]))
            .collect();
        match &columns[..] {
            [column] => column.clone(),
            _ => {
                let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
                self.emit("Concat", &columns, &[attribute("axis", -1)])
            }
        }
    }

    /// Axes of extent 1 behind the last, up to `rank`.
    fn trailing_axes(&mut self, x: &str, from: usize, rank: usize) -> String {
        if from == rank {
            return x.to_owned();
        }
        let axes: Vec<i64> = (from as i64..rank as i64).collect();
        let axes = self.ints(&axes);
        self.emit("Unsqueeze", &[x, &axes], &[])
    }

    /// One element of 0 more at the end of `axis`.
    fn one_more(&mut self, x: &str, dtype: DType, axis: usize) -> Result<String> {
        let zero = self.number(0.0, dtype)?;
        let (amounts, axes) = (self.ints(&[0, 1]), self.ints(&[axis as i64]));
        Ok(self.emit("Pad", &[x, &amounts, &zero, &axes], &[]))
    }
}

/// The order of axes with batch axes first, then the indexed ones, then the others.
fn indexed_first(data: &TensorType, batch: usize, axes: &[usize]) -> Vec<usize> {
    let others = (batch..data.rank()).filter(|axis| !axes.contains(axis));
    (0..batch)
        .chain(axes.iter().copied())
        .chain(others)
        .collect()
}
