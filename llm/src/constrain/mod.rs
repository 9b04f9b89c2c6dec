//! Output held to a grammar: a JSON schema, a pattern, or rules in GBNF, as sets of tokens that may come next.
//!
//! Every kind becomes rules over bytes (`expression`), a graph (`program`) and an automaton that remembers its states
//! (`automaton`). The vocabulary is a tree of bytes (`trie`): one walk gives the set for a state, which is kept
//! (`constraint`). How each kind is read: `gbnf`, `pattern`, `json` with `schema` and `number`.

mod automaton;
mod constraint;
mod error;
mod expression;
mod gbnf;
mod json;
mod number;
mod pattern;
mod program;
mod schema;
mod trie;

use std::sync::Arc;

pub use constraint::{Constrainer, GrammarConstraint};
pub use error::ConstraintError;
pub use trie::TokenTrie;

use automaton::Automaton;
use program::Program;

/// Which texts are allowed. Copies share it.
#[derive(Clone, Debug)]
pub struct Grammar {
    program: Arc<Program>,
}

impl Grammar {
    /// Rules in GBNF (the notation of llama.cpp); texts are those of the rule `root`.
    ///
    /// # Errors
    /// [`ConstraintError`] for the first thing that is wrong.
    pub fn gbnf(source: &str) -> Result<Grammar, ConstraintError> {
        Grammar::of(gbnf::read(source)?)
    }

    /// Texts that a regular expression matches from beginning to end.
    ///
    /// # Errors
    /// [`ConstraintError`] for a pattern that is wrong, or that looks at what is around a match.
    pub fn regex(pattern: &str) -> Result<Grammar, ConstraintError> {
        Grammar::of(pattern::read(pattern)?)
    }

    /// JSON texts that a schema allows. Properties come in the schema's order; where it names some and says nothing of
    /// others, there are no others.
    ///
    /// # Errors
    /// [`ConstraintError`] for a schema that is wrong, or that says what is not supported: nothing is ignored but what
    /// describes.
    pub fn json_schema(schema: &serde_json::Value) -> Result<Grammar, ConstraintError> {
        Grammar::of(schema::read(schema)?)
    }

    /// Any JSON object.
    pub fn json_object() -> Grammar {
        Grammar::of(json::any_object())
            .unwrap_or_else(|error| unreachable!("bug: the grammar of JSON: {error}"))
    }

    fn of(read: Read) -> Result<Grammar, ConstraintError> {
        let program = Program::new(&read.rules, read.root, |rule| {
            let name = read.names.get(rule.0 as usize);
            name.map_or_else(|| format!("rule {}", rule.0), Clone::clone)
        })?;
        Ok(Grammar {
            program: Arc::new(program),
        })
    }

    /// Whether a text is allowed.
    pub fn allows(&self, text: &[u8]) -> bool {
        let mut automaton = Automaton::new(self.program.clone());
        let mut state = automaton.start();
        for &byte in text {
            state = automaton.step(state, byte);
        }
        automaton.accepts(state)
    }
}

/// What a reader makes of a source.
struct Read {
    rules: expression::Rules,
    root: expression::RuleId,
    /// Names of the first rules, for messages.
    names: Vec<String>,
}
