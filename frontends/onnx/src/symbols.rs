//! [`Symbols`]: the symbols of one import, their ranges, and what binds them.

use cupola_ir::{Dim, Sym};
use rustc_hash::FxHashMap;

use crate::shape::{Deps, Ranges};

/// What decides the value of a symbol.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// An extent of this input.
    Input(String),
    /// The values of these inputs.
    Values(Deps),
}

/// All symbols handed out, over all regions: regions see the symbols of the graphs around them, so no name is used
/// twice.
#[derive(Debug, Default)]
pub(crate) struct Symbols {
    /// Ranges other than "0 or more".
    pub(crate) ranges: Ranges,
    sources: FxHashMap<Sym, Source>,
    named: FxHashMap<String, Sym>,
    /// Order of creation.
    ages: FxHashMap<Sym, u32>,
    count: u32,
}

/// A point in time: symbols made later are local to what was imported since.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark(u32);

impl Symbols {
    /// The symbol of a dimension that the file names.
    pub(crate) fn named(&mut self, name: &str) -> Sym {
        if let Some(s) = self.named.get(name) {
            return s.clone();
        }
        // Two names may become one when characters are replaced.
        let plain = Sym::new(name);
        let sym = match self.ages.contains_key(&plain) {
            true => self.fresh(name),
            false => self.enter(plain),
        };
        self.named.insert(name.to_owned(), sym.clone());
        sym
    }

    /// A new symbol. `hint` becomes part of its name.
    pub(crate) fn fresh(&mut self, hint: &str) -> Sym {
        let hint: String = hint.chars().take(40).collect();
        loop {
            self.count += 1;
            let sym = Sym::new(&format!("{hint}.{}", self.count));
            if !self.ages.contains_key(&sym) {
                return self.enter(sym);
            }
        }
    }

    fn enter(&mut self, sym: Sym) -> Sym {
        self.count += 1;
        self.ages.insert(sym.clone(), self.count);
        sym
    }

    /// Now.
    pub(crate) fn mark(&self) -> Mark {
        Mark(self.count)
    }

    /// Whether every symbol of the expression is older than the mark.
    pub(crate) fn older(&self, dim: &Dim, mark: Mark) -> bool {
        let mut all = true;
        dim.for_each_sym(&mut |s| all &= self.ages.get(s).is_some_and(|age| *age <= mark.0));
        all
    }

    /// States what decides a symbol, unless that is known.
    pub(crate) fn state_source(&mut self, sym: &Sym, source: Source) {
        self.sources.entry(sym.clone()).or_insert(source);
    }

    /// What decides a symbol.
    pub(crate) fn source(&self, sym: &Sym) -> Option<&Source> {
        self.sources.get(sym)
    }
}
