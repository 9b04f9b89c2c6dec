//! [`Constrainer`]: a grammar over the tokens of a model, and [`GrammarConstraint`]: one text held to it.

use std::sync::{Arc, Mutex, PoisonError};

use rustc_hash::FxHashMap;

use super::Grammar;
use super::automaton::{Automaton, DEAD, StateId};
use super::trie::TokenTrie;
use crate::mask::{Constraint, TokenMask};

/// Masks that are kept for states that may come again.
const MAX_MASKS: usize = 4096;

/// States that are kept, unless one text alone has more.
const MAX_STATES: usize = 16_384;

/// A grammar over the tokens of a model. What is found out for one text serves all others.
#[derive(Clone)]
pub struct Constrainer {
    shared: Arc<Shared>,
}

struct Shared {
    grammar: Grammar,
    trie: Arc<TokenTrie>,
    cache: Mutex<Cache>,
}

struct Cache {
    automaton: Automaton,
    masks: FxHashMap<StateId, TokenMask>,
    /// States above which everything is forgotten.
    state_limit: usize,
    /// How often everything was forgotten: numbers of states hold until then.
    generation: u64,
}

impl Constrainer {
    /// Holds texts of a model's tokens to a grammar.
    pub fn new(grammar: &Grammar, trie: Arc<TokenTrie>) -> Constrainer {
        let cache = Cache {
            automaton: Automaton::new(grammar.program.clone()),
            masks: FxHashMap::default(),
            state_limit: MAX_STATES,
            generation: 0,
        };
        Constrainer {
            shared: Arc::new(Shared {
                grammar: grammar.clone(),
                trie,
                cache: Mutex::new(cache),
            }),
        }
    }

    /// The constraint of a new text.
    pub fn start(&self) -> GrammarConstraint {
        GrammarConstraint {
            shared: self.shared.clone(),
            text: vec![],
            state: None,
            has_ended: false,
        }
    }
}

/// What one text was so far, and what may come next.
pub struct GrammarConstraint {
    shared: Arc<Shared>,
    text: Vec<u8>,
    /// The state behind the text, with the generation in which its number holds.
    state: Option<(u64, StateId)>,
    has_ended: bool,
}

impl GrammarConstraint {
    /// Whether the text may end here.
    pub fn accepts(&mut self) -> bool {
        self.with_state(|_, cache, state| cache.automaton.accepts(state))
    }

    fn with_state<T>(&mut self, work: impl FnOnce(&Shared, &mut Cache, StateId) -> T) -> T {
        let shared = &*self.shared;
        // What a thread that failed has left is a cache of true facts all the same.
        let mut cache = shared.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.bound(shared);
        let state = match self.state {
            Some((generation, state)) if generation == cache.generation => state,
            _ => {
                let start = cache.automaton.start();
                let state = cache.follow(start, &self.text);
                cache.state_limit = MAX_STATES.max(2 * cache.automaton.state_len());
                state
            }
        };
        self.state = Some((cache.generation, state));
        work(shared, &mut cache, state)
    }
}

impl Cache {
    fn bound(&mut self, shared: &Shared) {
        if self.automaton.state_len() > self.state_limit {
            self.automaton = Automaton::new(shared.grammar.program.clone());
            self.masks.clear();
            self.generation += 1;
        }
        if self.masks.len() > MAX_MASKS {
            self.masks.clear();
        }
    }

    fn follow(&mut self, state: StateId, text: &[u8]) -> StateId {
        text.iter()
            .fold(state, |state, &byte| self.automaton.step(state, byte))
    }
}

impl Constraint for GrammarConstraint {
    fn mask(&mut self, allowed: &mut TokenMask) {
        if self.has_ended {
            allowed.forbid_all();
            return;
        }
        self.with_state(|shared, cache, state| {
            if let Some(known) = cache.masks.get(&state).filter(|m| m.len() == allowed.len()) {
                allowed.copy_from(known);
                return;
            }
            shared.trie.mask(&mut cache.automaton, state, allowed);
            cache.masks.insert(state, allowed.clone());
        });
    }

    fn accept(&mut self, token: u32) {
        if self.shared.trie.ends().contains(&token) {
            self.has_ended = true;
            return;
        }
        let shared = self.shared.clone();
        let bytes = shared.trie.bytes(token);
        let next =
            self.with_state(|_, cache, state| (cache.generation, cache.follow(state, bytes)));
        self.text.extend_from_slice(bytes);
        self.state = Some(next);
        self.has_ended = next.1 == DEAD;
    }
}
