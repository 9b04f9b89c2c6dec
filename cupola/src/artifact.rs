//! Programs compiled ahead of time: a graph, and what was made of it for one kind of processor, in one file.
//!
//! Layout, little-endian: magic `CUPOLAOT`, version `u32`, optimisation level and precision (a byte each), 2 bytes of zero,
//! size of the graph and size of the store (`u64` each), the content hash of the graph `u128`, and the hash of these 48
//! bytes; zeros up to byte 4096; the graph as a `.cupola` file; zeros up to a multiple of 4096; the store
//! ([`cupola_runtime::store`]). Constants are named by the graph's hash and their places in it, so that a file may be
//! moved and copied.

use crate::error::{Error, Result};
use crate::model::Model;
use crate::runner::Options;
use bytes::Bytes;
use cupola_ir::Graph;
use cupola_passes::Precision;
use cupola_runtime::store::{self, Store};
use cupola_runtime::{Host, Identify, Keep, Key, Program};
use cupola_source::{ContentHash, Source};
use std::io::{self, Write};

/// First bytes of every file; `cupola_source::sniff` knows them.
const MAGIC: &[u8; 8] = b"CUPOLAOT";
const VERSION: u32 = 1;
/// Bytes of the header that its hash covers.
const HASHED_SIZE: usize = 48;
const PAGE: usize = 4096;

/// In the order of the numbers that stand for them.
const PRECISIONS: [Precision; 4] = [
    Precision::F32,
    Precision::Bf16,
    Precision::F16,
    Precision::Int8,
];

/// A program compiled ahead of time, to be written.
pub struct Artifact {
    graph: Bytes,
    id: ContentHash,
    level: u8,
    precision: Precision,
    key: Key,
    pieces: Vec<(Key, Bytes)>,
}

impl Artifact {
    /// Compiles a model for the processor this runs on.
    ///
    /// # Errors
    /// What import and compilation find; a model whose structure inputs decide; a device other than the CPU, of which
    /// nothing can be kept.
    pub fn compile(model: &Model, host: &Host, options: &Options) -> Result<Artifact> {
        let graph = model.graph()?;
        let graph = Bytes::from(cupola_native::write(&graph));
        let id = ContentHash::of(&graph);
        let options = Options {
            keep: Keep {
                all: true,
                ..Keep::default()
            },
            identify: Some(identify(graph.clone(), id)),
            ..options.clone()
        };
        let program = Program::compile(cupola_native::read(&graph)?, host, &options)?;
        let Some((key, pieces)) = program.pieces() else {
            return Err(Error::NoGraph(format!(
                "nothing compiled for {} can be kept; compile for the cpu",
                program.device
            )));
        };
        Ok(Artifact {
            graph,
            id,
            level: options.level,
            precision: options.precision,
            key,
            pieces,
        })
    }

    /// Pieces of machine code and packed weights.
    pub fn piece_count(&self) -> usize {
        self.pieces.len()
    }

    /// Writes the file.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        let mut kept = vec![];
        // In memory, because the header says its size; the pieces are there already.
        store::write(self.key, &self.pieces, &mut kept)?;
        let precision = PRECISIONS.iter().position(|p| *p == self.precision);
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend([self.level, precision.unwrap_or(0) as u8, 0, 0]);
        header.extend_from_slice(&(self.graph.len() as u64).to_le_bytes());
        header.extend_from_slice(&(kept.len() as u64).to_le_bytes());
        header.extend_from_slice(&self.id.0.to_le_bytes());
        header.extend_from_slice(&ContentHash::of(&header).0.to_le_bytes());
        header.resize(PAGE, 0);
        to.write_all(&header)?;
        to.write_all(&self.graph)?;
        to.write_all(&[0; PAGE][..padding(self.graph.len())])?;
        to.write_all(&kept)
    }
}

/// Bytes up to the next multiple of a page.
fn padding(size: usize) -> usize {
    size.next_multiple_of(PAGE) - size
}

/// An artifact that was read.
pub(crate) struct Opened {
    pub graph: Graph,
    pub prepared: Prepared,
}

/// What an artifact has beside the graph.
pub(crate) struct Prepared {
    store: Store,
    identify: Identify,
    level: u8,
    precision: Precision,
}

impl Prepared {
    /// Options for running the artifact: those it was compiled with, where others were not asked for.
    pub fn apply(&self, options: &mut Options) {
        let usual = Options::default();
        if options.level == usual.level {
            options.level = self.level;
        }
        if options.precision == usual.precision {
            options.precision = self.precision;
        }
        options.keep.store = Some(self.store.clone());
        options.identify = Some(self.identify.clone());
    }
}

/// Reads a file that begins as an artifact does.
pub(crate) fn read(source: &Source) -> Result<Opened> {
    let bad = |what: &str| Error::Format(format!("the compiled program is damaged: {what}"));
    let bytes = source.bytes();
    let cut = || bad("it is cut off");
    let header = bytes.get(..PAGE).ok_or_else(cut)?;
    let number = |at: usize, size: usize| {
        let raw = header[at..at + size].iter().rev();
        raw.fold(0, |n: u128, b| n << 8 | u128::from(*b))
    };
    match number(8, 4) as u32 {
        VERSION => {}
        version => {
            return Err(Error::Format(format!(
                "version {version} of compiled programs is not known; this release reads {VERSION}"
            )));
        }
    }
    if number(HASHED_SIZE, 16) != ContentHash::of(&header[..HASHED_SIZE]).0 {
        return Err(bad("its header does not match its checksum"));
    }
    let size = |at| usize::try_from(number(at, 8)).map_err(|_| cut());
    let graph_end = PAGE.checked_add(size(16)?).ok_or_else(cut)?;
    let store_at = graph_end.checked_next_multiple_of(PAGE).ok_or_else(cut)?;
    let store_end = store_at.checked_add(size(24)?).ok_or_else(cut)?;
    if store_end != bytes.len() {
        return Err(cut());
    }
    let precision = PRECISIONS.get(header[13] as usize);
    let precision = *precision.ok_or_else(|| bad("its precision is not known"))?;
    let graph_bytes = bytes.slice(PAGE..graph_end);
    let store = Store::read(&bytes.slice(store_at..store_end));
    let store = store.ok_or_else(|| bad("its code does not match its checksum"))?;
    let id = ContentHash(number(32, 16));
    Ok(Opened {
        graph: cupola_native::read(&graph_bytes)?,
        prepared: Prepared {
            store,
            identify: identify(graph_bytes, id),
            level: header[12].min(3),
            precision,
        },
    })
}

/// Names constants by their places in a graph's bytes.
fn identify(graph: Bytes, id: ContentHash) -> Identify {
    Identify::new(move |part| {
        let from = (part.as_ptr() as usize).checked_sub(graph.as_ptr() as usize)?;
        let inside = from.checked_add(part.len())? <= graph.len();
        inside.then(|| Key::of(&(id.0, from, part.len())))
    })
}
