//! One step's tokens: rows of any sequences, and where the pages of each lie.

use crate::pages::PageId;
use cupola_ir::Tensor;

/// Tables are as wide as a multiple of this many blocks: few sizes, each planned once.
const BLOCKS: usize = 8;

/// Width of a table whose longest text has so many pages.
pub(crate) fn table_width(pages: usize) -> usize {
    pages.max(1).next_multiple_of(BLOCKS)
}

/// Rows up to which devices attend for the rows of a sequence as if each came alone. The CPU's kernel has this number too;
/// the tests of `deterministic` find out when they part.
const APART: usize = 16;

/// What one run of a decoder computes.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    tokens: Vec<i64>,
    positions: Vec<i64>,
    sequences: Vec<i64>,
    wanted: Vec<i64>,
    tables: Vec<Vec<PageId>>,
}

/// Whether rows of one sequence are computed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// As is fastest. How many there are may change the last bits of what each gives.
    Together,
    /// So that each gives the same bits whatever comes with it.
    Apart,
}

impl Batch {
    /// Nothing yet.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Adds a run of `tokens` of one sequence, the first at `position`. `pages` are the sequence's pages in order, room
    /// for all positions up to the last of them; positions before `position` are in them already.
    pub fn push(&mut self, tokens: &[u32], position: usize, pages: &[PageId]) {
        self.push_rows(tokens, position, pages, Rows::Together);
    }

    /// As [`Batch::push`], with a say in how the rows are computed.
    pub fn push_rows(&mut self, tokens: &[u32], position: usize, pages: &[PageId], rows: Rows) {
        let part = match rows {
            Rows::Together => tokens.len().max(1),
            Rows::Apart => APART,
        };
        // Parts are sequences of their own that share pages: all keys are written before any is read.
        for (i, tokens) in tokens.chunks(part).enumerate() {
            self.push_part(tokens, position + i * part, pages);
        }
    }

    fn push_part(&mut self, tokens: &[u32], position: usize, pages: &[PageId]) {
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
        let blocks = table_width(longest);
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
