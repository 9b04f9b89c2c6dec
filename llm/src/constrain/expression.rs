//! [`Expression`]: what texts of bytes a grammar allows; [`Rules`]: expressions by number, that refer to each other.

use regex_syntax::utf8::{Utf8Sequence, Utf8Sequences};

/// A set of texts.
#[derive(Clone, Debug, PartialEq)]
pub enum Expression {
    /// One byte of any of the ranges, first and last included.
    Bytes(Vec<(u8, u8)>),
    /// All parts in order.
    Sequence(Vec<Expression>),
    /// One of the parts. Of no parts: no text at all.
    Choice(Vec<Expression>),
    /// Between `min` and `max` times; without `max`, any number of times from `min`.
    Repeat {
        part: Box<Expression>,
        min: u32,
        max: Option<u32>,
    },
    /// The texts of a rule.
    Rule(RuleId),
}

/// Number of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleId(pub u32);

/// Expressions that refer to each other.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    rules: Vec<Expression>,
}

impl Rules {
    /// Adds a rule.
    pub fn add(&mut self, expression: Expression) -> RuleId {
        self.rules.push(expression);
        RuleId(self.rules.len() as u32 - 1)
    }

    /// Adds a rule that is given later, and allows nothing until then.
    pub fn reserve(&mut self) -> RuleId {
        self.add(Expression::Choice(vec![]))
    }

    /// Gives a rule its expression.
    pub fn set(&mut self, rule: RuleId, expression: Expression) {
        self.rules[rule.0 as usize] = expression;
    }

    /// All rules in order.
    pub fn all(&self) -> &[Expression] {
        &self.rules
    }
}

/// The empty text.
pub fn empty() -> Expression {
    Expression::Sequence(vec![])
}

/// Exactly this text.
pub fn literal(text: &str) -> Expression {
    let byte = |byte: u8| Expression::Bytes(vec![(byte, byte)]);
    Expression::Sequence(text.bytes().map(byte).collect())
}

/// One character of the ranges, in UTF-8.
pub fn characters(ranges: impl IntoIterator<Item = (char, char)>) -> Expression {
    let mut single = vec![];
    let mut choices = vec![];
    for (first, last) in ranges {
        for sequence in Utf8Sequences::new(first, last) {
            match &sequence {
                Utf8Sequence::One(range) => single.push((range.start, range.end)),
                longer => choices.push(Expression::Sequence(
                    longer
                        .as_slice()
                        .iter()
                        .map(|range| Expression::Bytes(vec![(range.start, range.end)]))
                        .collect(),
                )),
            }
        }
    }
    if choices.is_empty() {
        return Expression::Bytes(single);
    }
    if !single.is_empty() {
        choices.push(Expression::Bytes(single));
    }
    Expression::Choice(choices)
}

/// Any character that is in none of the ranges.
pub fn other_characters(mut ranges: Vec<(char, char)>) -> Vec<(char, char)> {
    ranges.sort_unstable();
    let mut rest = vec![];
    let mut next = Some('\0');
    for (first, last) in ranges {
        let Some(start) = next else { break };
        if first > start
            && let Some(before) = previous(first)
        {
            rest.push((start, before));
        }
        if last >= start {
            next = following(last);
        }
    }
    rest.extend(next.map(|start| (start, char::MAX)));
    rest
}

fn previous(char: char) -> Option<char> {
    match char {
        '\u{e000}' => Some('\u{d7ff}'),
        _ => char::from_u32((char as u32).checked_sub(1)?),
    }
}

fn following(char: char) -> Option<char> {
    match char {
        '\u{d7ff}' => Some('\u{e000}'),
        _ => char::from_u32(char as u32 + 1),
    }
}

/// `part` or nothing.
pub fn optional(part: Expression) -> Expression {
    repeat(part, 0, Some(1))
}

/// `part` between `min` and `max` times.
pub fn repeat(part: Expression, min: u32, max: Option<u32>) -> Expression {
    Expression::Repeat {
        part: Box::new(part),
        min,
        max,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complements() {
        assert_eq!(other_characters(vec![]), [('\0', char::MAX)]);
        assert_eq!(
            other_characters(vec![('b', 'd'), ('a', 'c'), ('\u{d000}', '\u{d7ff}')]),
            [('\0', '`'), ('e', '\u{cfff}'), ('\u{e000}', char::MAX)]
        );
        assert!(other_characters(vec![('\0', char::MAX)]).is_empty());
    }
}
