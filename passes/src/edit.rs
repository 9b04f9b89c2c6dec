//! How passes change a graph: replacements are collected during a walk and applied at its end, together with what the
//! walk learned of symbols.

use crate::Work;
use crate::region::{Symbols, substitute};
use cupola_ir::{IrError, ValueId};
use rustc_hash::FxHashMap;

/// Values to be replaced.
#[derive(Debug, Default)]
pub(crate) struct Edits {
    replaced: FxHashMap<ValueId, ValueId>,
    /// Symbols that turned out to be other dimensions.
    pub symbols: Symbols,
}

impl Edits {
    /// What stands for a value now.
    pub fn follow(&self, mut v: ValueId) -> ValueId {
        while let Some(n) = self.replaced.get(&v) {
            v = *n;
        }
        v
    }

    /// Makes every use of `old` one of `new`.
    pub fn replace(&mut self, old: ValueId, new: ValueId) {
        let new = self.follow(new);
        if old != new {
            self.replaced.insert(old, new);
        }
    }

    /// Applies everything and drops what is dead. Whether anything changed.
    pub fn apply(mut self, work: &mut Work) -> Result<bool, IrError> {
        let changed = !self.replaced.is_empty() || !self.symbols.is_empty();
        let graph = &mut work.graph;
        graph.set_origin(None);
        graph.replace_all(&self.replaced);
        // A symbol that stands for itself needs no replacing, and would loop.
        self.symbols.retain(|s, d| d.as_sym() != Some(s));
        substitute(graph, &self.symbols)?;
        let map = graph.compact_replaced(&self.replaced)?;
        work.renumber(|v| map.get(self.follow(v).index()).copied().flatten());
        Ok(changed)
    }
}
