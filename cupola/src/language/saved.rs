//! Saved texts as files: safetensors, with the model that they belong to and a hash of what is in them.

use crate::error::{Error, Result};
use cupola_ir::{CoreOp, DType, Graph, Op, Tensor};
use cupola_llm::{LlmError, Snapshot};
use cupola_safetensors::{SafeTensors, TensorToWrite, write};
use cupola_source::ContentHash;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// What the file is, in its metadata.
const FORMAT: &str = "cupola saved text 1";
/// The tensor with the tokens.
const TOKENS: &str = "tokens";

/// What tells a decoder from every other: all its operations, and the bytes of its weights. Reads all of them.
pub fn identity(graph: &Graph) -> ContentHash {
    let mut all = vec![];
    for (_, node) in graph.nodes() {
        let described = match &node.op {
            Op::Core(CoreOp::Const(c)) => {
                let hash = ContentHash::of(c.value.bytes());
                format!("{:?} {hash};", c.value)
            }
            op => format!("{op:?} {:?};", node.operands),
        };
        all.extend_from_slice(described.as_bytes());
    }
    ContentHash::of(&all)
}

/// The hash of a saved text: its tokens, and every slot by name and type.
fn content(tokens: &[u8], slots: &BTreeMap<&str, (DType, &[usize], &[u8])>) -> ContentHash {
    let mut all = ContentHash::of(tokens).to_string();
    for (name, (dtype, dims, data)) in slots {
        all.push_str(&format!(
            "{name} {dtype}{dims:?} {};",
            ContentHash::of(data)
        ));
    }
    ContentHash::of(all.as_bytes())
}

/// Writes a saved text of the decoder of this graph.
///
/// # Errors
/// Those of `to`.
pub fn write_snapshot(
    snapshot: &Snapshot,
    graph: &Graph,
    to: &mut impl io::Write,
) -> io::Result<()> {
    let tokens: Vec<u8> = snapshot
        .tokens
        .iter()
        .flat_map(|t| t.to_le_bytes())
        .collect();
    let slots = snapshot.slots.iter();
    let slots: BTreeMap<&str, _> = slots
        .map(|(name, t)| (name.as_str(), (t.dtype(), t.shape(), t.bytes())))
        .collect();
    let dims = [snapshot.tokens.len()];
    let mut tensors = vec![TensorToWrite {
        name: TOKENS,
        dtype: DType::U32,
        dims: &dims,
        data: &tokens,
    }];
    tensors.extend(
        slots
            .iter()
            .map(|(name, (dtype, dims, data))| TensorToWrite {
                name,
                dtype: *dtype,
                dims,
                data,
            }),
    );
    let model = identity(graph).to_string();
    let hash = content(&tokens, &slots).to_string();
    let metadata = [("format", FORMAT), ("model", &model), ("content", &hash)];
    write(to, &tensors, &metadata)?;
    to.flush()
}

/// Reads a saved text of the decoder of this graph. The file is mapped; nothing is allocated for what it merely claims.
///
/// # Errors
/// A file that cannot be read or is damaged; [`LlmError::Snapshot`] for one of another model or another kind.
pub fn read_snapshot(path: impl AsRef<Path>, graph: &Graph) -> Result<Snapshot> {
    let path = path.as_ref();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let refused = |what: &str| {
        let name = cupola_source::quote(&name);
        Error::Generate(LlmError::Snapshot(format!("{name} {what}")))
    };
    let file = SafeTensors::open(path)?;
    let stated = |key: &str| {
        let mut found = file.metadata().iter().filter(|(k, _)| k == key);
        found.next().map(|(_, value)| value.as_str())
    };
    if stated("format") != Some(FORMAT) {
        return Err(refused("is no saved text of this release"));
    }
    let is_tokens = |t: &&cupola_safetensors::Tensor| t.dtype == DType::U32 && t.dims.len() == 1;
    let Some(tokens) = file.tensor(TOKENS).filter(is_tokens) else {
        return Err(refused("says no tokens"));
    };
    let others = || file.tensors().iter().filter(|t| t.name != TOKENS);
    let slots: BTreeMap<&str, _> = others()
        .map(|t| (t.name.as_str(), (t.dtype, &t.dims[..], &t.data[..])))
        .collect();
    if stated("content") != Some(&content(&tokens.data, &slots).to_string()) {
        return Err(refused("is damaged"));
    }
    if stated("model") != Some(&identity(graph).to_string()) {
        return Err(refused(
            "is of another model, or of one that keeps its keys and values in another way",
        ));
    }
    let words = tokens.data.chunks_exact(4);
    let slots = others().map(|t| {
        let tensor = Tensor::new(t.dtype, t.dims.clone(), t.data.clone());
        let tensor = tensor.ok_or_else(|| refused("has a tensor of another size"))?;
        Ok((t.name.clone(), tensor))
    });
    Ok(Snapshot {
        tokens: words
            .map(|w| {
                w.iter()
                    .rev()
                    .fold(0, |all, byte| all << 8 | u32::from(*byte))
            })
            .collect(),
        slots: slots.collect::<Result<_>>()?,
    })
}
