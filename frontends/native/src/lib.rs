//! Cupola's own binary graph file (`.cupola`).
//!
//! Layout, little-endian: magic `CUPOLA\0\0`, version `u32`, tensor count `u32`, text size `u64`, then one entry of
//! offset and size (`u64` each, from the start of the file) per tensor, the text, and the tensors, each at a multiple of
//! 64 bytes. The text is the graph's text form in which every constant of the outermost graph that is not small stands
//! as a weight named `\u{1}N`, N being its entry. Reading copies no tensor: they are slices of the mapped file.
//!
//! Version 1 is the first. A reader refuses versions it does not know.

use bytes::Bytes;
use cupola_ir::ops::{Const, Param};
use cupola_ir::{CoreOp, DType, Graph, IrError, NodeId, Op, Tensor, ValueType};
use thiserror::Error;

/// First bytes of every file.
pub const MAGIC: &[u8; 8] = b"CUPOLA\0\0";
/// Version that is written.
pub const VERSION: u32 = 1;
/// Tensors begin at multiples of this, so that vector loads and page maps are aligned.
const ALIGNMENT: usize = 64;
/// Constants up to this many bytes stay in the text, where people can read them.
const SMALL: usize = 64;
/// Marks the names of weights that stand for tensors of the file.
const MARK: char = '\u{1}';

/// What can be wrong with a file.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NativeError {
    /// Not such a file, or cut off. *User input.*
    #[error("{0}")]
    Layout(&'static str),
    /// Made by a later release. *User input.*
    #[error("version {0} of the file format is not known; this release reads up to {VERSION}")]
    Version(u32),
    /// The graph in it is wrong. *User input.*
    #[error(transparent)]
    Graph(#[from] IrError),
}

/// The bytes of a file that holds the graph.
pub fn write(graph: &Graph) -> Vec<u8> {
    let mut graph = graph.clone();
    let mut tensors: Vec<Bytes> = vec![];
    let large: Vec<(NodeId, Tensor)> = graph
        .nodes()
        .filter_map(|(id, node)| match &node.op {
            Op::Core(CoreOp::Const(c)) if c.value.bytes().len() > SMALL => {
                Some((id, c.value.clone()))
            }
            _ => None,
        })
        .collect();
    for (id, value) in large {
        let ty: ValueType = value.ty().into();
        let name = format!("{MARK}{}", tensors.len());
        graph.node_mut(id).op = Param { name, ty }.into();
        tensors.extend(value.shared_bytes());
    }
    let text = cupola_ir::graph::text::print(&graph);
    let mut at = 24 + 16 * tensors.len() + text.len();
    let mut out = Vec::with_capacity(at);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(tensors.len() as u32).to_le_bytes());
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    for t in &tensors {
        at = at.next_multiple_of(ALIGNMENT);
        out.extend_from_slice(&(at as u64).to_le_bytes());
        out.extend_from_slice(&(t.len() as u64).to_le_bytes());
        at += t.len();
    }
    out.extend_from_slice(text.as_bytes());
    for t in &tensors {
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out.extend_from_slice(t);
    }
    out
}

/// The graph of a file. Large constants are slices of `bytes`.
///
/// # Errors
/// [`NativeError`] for anything that [`write`] would not have written.
pub fn read(bytes: &Bytes) -> Result<Graph, NativeError> {
    let cut = || NativeError::Layout("the file is cut off");
    let number = |at: usize, size: usize| -> Result<u64, NativeError> {
        let raw = at
            .checked_add(size)
            .and_then(|end| bytes.get(at..end))
            .ok_or_else(cut)?;
        Ok(raw.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
    };
    if bytes.get(..8) != Some(MAGIC) {
        return Err(NativeError::Layout(
            "the file does not begin as a .cupola file does",
        ));
    }
    let version = number(8, 4)? as u32;
    if version == 0 || version > VERSION {
        return Err(NativeError::Version(version));
    }
    let count = number(12, 4)? as usize;
    let text_size = usize::try_from(number(16, 8)?).map_err(|_| cut())?;
    let text_at = count
        .checked_mul(16)
        .and_then(|t| t.checked_add(24))
        .ok_or_else(cut)?;
    let text = text_at
        .checked_add(text_size)
        .and_then(|end| bytes.get(text_at..end))
        .ok_or_else(cut)?;
    let text =
        std::str::from_utf8(text).map_err(|_| NativeError::Layout("the text is not UTF-8"))?;
    let mut graph = cupola_ir::graph::text::parse(text)?;
    let marked: Vec<(NodeId, usize, ValueType)> = graph
        .nodes()
        .filter_map(|(id, node)| match &node.op {
            Op::Core(CoreOp::Param(p)) => {
                Some((id, p.name.strip_prefix(MARK)?.parse().ok()?, p.ty.clone()))
            }
            _ => None,
        })
        .collect();
    for (id, entry, ty) in marked {
        if entry >= count {
            return Err(NativeError::Layout(
                "a tensor of the graph is not in the table",
            ));
        }
        let (offset, size) = (number(24 + 16 * entry, 8)?, number(32 + 16 * entry, 8)?);
        let range = usize::try_from(offset).ok().zip(usize::try_from(size).ok());
        let range = range
            .and_then(|(o, s)| Some(o..o.checked_add(s)?))
            .filter(|r| r.end <= bytes.len());
        let data = bytes.slice(range.ok_or_else(cut)?);
        let tensor = ty.as_tensor().and_then(|t| {
            let shape = t.const_shape().filter(|_| t.dtype != DType::String)?;
            Tensor::new(t.dtype, shape, data)
        });
        let value = tensor.ok_or(NativeError::Layout(
            "a tensor's size does not match its type",
        ))?;
        graph.node_mut(id).op = Const { value }.into();
    }
    Ok(graph)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cupola_ir::Scalar;
    use cupola_ir::TensorType;

    fn sample() -> Graph {
        let mut g = Graph::new("sample");
        let x = g
            .input("x", TensorType::new(DType::F32, [100usize]))
            .expect("input");
        let weights: Vec<f32> = (0..100).map(|i| i as f32).collect();
        let w = g.constant(Tensor::vector(&weights)).expect("constant");
        let y = g.binary(Scalar::Mul, x, w).expect("map");
        let half = g.scale(y, 0.5).expect("scale");
        g.output("y", half);
        g
    }

    #[test]
    fn a_graph_comes_back_as_it_was() {
        let bytes = Bytes::from(write(&sample()));
        let back = read(&bytes).expect("own file");
        assert_eq!(
            cupola_ir::graph::text::print(&back),
            cupola_ir::graph::text::print(&sample())
        );
        assert_eq!(write(&back), bytes);
    }

    #[test]
    fn damaged_files_are_refused() {
        let whole = write(&sample());
        for cut in 0..whole.len() {
            assert!(
                read(&Bytes::copy_from_slice(&whole[..cut])).is_err(),
                "cut at {cut}"
            );
        }
        let mut later = whole.clone();
        later[8] = 9;
        assert_eq!(read(&Bytes::from(later)), Err(NativeError::Version(9)));
        for at in 0..whole.len().min(600) {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x41;
            let _ = read(&Bytes::from(flipped));
        }
    }
}
