//! [`ConstraintError`]: why a grammar was refused.

/// What is wrong with a grammar, a pattern or a schema. All of it is user input, unless a variant says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// A grammar that cannot be read.
    #[error("the grammar is wrong: {what}, line {line}")]
    Grammar {
        /// What is wrong.
        what: String,
        /// Line, from 1.
        line: usize,
    },
    /// A pattern that cannot be read.
    #[error("the pattern is wrong: {0}")]
    Pattern(String),
    /// A schema that contradicts itself or is none.
    #[error("the schema is wrong: {what}, at {path}")]
    Schema {
        /// What is wrong.
        what: String,
        /// Where, as a JSON pointer.
        path: String,
    },
    /// Unsupported: a part that no set of tokens can hold a text to.
    #[error("{what} is not supported, at {path}")]
    Unsupported {
        /// The part.
        what: String,
        /// Where: a JSON pointer, or what it is part of.
        path: String,
    },
    /// A rule that begins with itself, so that no text tells how often.
    #[error("a rule begins with itself: {0}")]
    LeftRecursion(String),
    /// Limit: counted repetitions or nested parts beyond what is built.
    #[error("the constraint is too large: more than {0}")]
    TooLarge(&'static str),
}
