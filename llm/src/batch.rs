//! One step's tokens: rows of any sequences, and where the pages of each lie.

use crate::pages::PageId;
use cupola_ir::Tensor;

/// Tables are as wide as a multiple of this many blocks: few sizes, each planned once.
const BLOCKS: usize = 8;

/// What one run of a decoder computes.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    tokens: Vec<i64>,
    positions: Vec<i64>,
    sequences: Vec<i64>,
    wanted: Vec<i64>,
    tables: Vec<Vec<PageId>>,
}

impl Batch {
    /// Nothing yet.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Adds a run of `tokens` of one sequence, the first at `position`. `pages` are the sequence's pages in order, room
    /// for all positions up to the last of them; positions before `position` are in them already.
    pub fn push(&mut self, tokens: &[u32], position: usize, pages: &[PageId]) {
        let sequence = self.tables.len() as i64;
        self.tables.push(pages.to_vec());
        for (token, position) in tokens.iter().zip(position as i64..) {
            self.tokens.push(i64::from(*token));
            self.positions.push(position);
            self.sequences.push(sequence);
        }
    }

    /// Asks for the logits of the last `count` rows that were added; gives the place of the first among the results.
    pub fn want(&mut self, count: usize) -> usize {
        let first = self.wanted.len();
        let rows = self.tokens.len() as i64;
        self.wanted.extend(rows - count as i64..rows);
        first
    }

    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Rows whose logits are asked for.
    pub fn wanted(&self) -> usize {
        self.wanted.len()
    }

    /// The value of an input of the graph, by name.
    pub(crate) fn input(&self, input: Input) -> Tensor {
        match input {
            Input::Tokens => Tensor::vector(&self.tokens),
            Input::Positions => Tensor::vector(&self.positions),
            Input::Sequences => Tensor::vector(&self.sequences),
            Input::Wanted => Tensor::vector(&self.wanted),
            Input::Table => self.table(),
        }
    }

    fn table(&self) -> Tensor {
        let longest = self.tables.iter().map(Vec::len).max().unwrap_or(0);
        let blocks = longest.max(1).next_multiple_of(BLOCKS);
        let mut entries = Vec::with_capacity(self.tables.len() * blocks);
        for pages in &self.tables {
            entries.extend(pages.iter().map(|p| i64::from(*p)));
            entries.resize(entries.len() + blocks - pages.len(), 0);
        }
        let table = Tensor::from_slice(&[self.tables.len(), blocks], &entries);
        table.unwrap_or_else(|| unreachable!("bug: size of a table"))
    }
}

/// An input of a decoder's graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    Tokens,
    Positions,
    Sequences,
    Table,
    Wanted,
}

impl Input {
    pub const ALL: [(&str, Input); 5] = [
        ("tokens", Input::Tokens),
        ("positions", Input::Positions),
        ("sequences", Input::Sequences),
        ("table", Input::Table),
        ("wanted", Input::Wanted),
    ];
}
