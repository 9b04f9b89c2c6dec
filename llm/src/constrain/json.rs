//! The rules of JSON that schemas build on.

use super::Read;
use super::expression::{
    Expression, RuleId, Rules, characters, empty, literal, optional, other_characters, repeat,
};

/// Digits of numbers, so that no text is a number forever: as many as 64-bit numbers need.
const MAX_DIGITS: u32 = 16;

/// Rules that most schemas need.
#[derive(Clone, Copy, Debug)]
pub struct Basics {
    /// Space between tokens: nothing, one space, or a new line with up to 20 spaces or tabs.
    pub space: RuleId,
    /// One character of a string.
    pub character: RuleId,
    pub string: RuleId,
    pub number: RuleId,
    pub integer: RuleId,
    /// Any value, and any object.
    pub value: RuleId,
    pub object: RuleId,
}

/// Any object.
pub fn any_object() -> Read {
    let mut rules = Rules::default();
    let root = Basics::add(&mut rules).object;
    Read {
        rules,
        root,
        names: vec![],
    }
}

impl Basics {
    /// Adds the rules.
    pub fn add(rules: &mut Rules) -> Basics {
        let indent = Expression::Bytes(vec![(b' ', b' '), (b'\t', b'\t')]);
        let line = Expression::Sequence(vec![literal("\n"), repeat(indent, 0, Some(20))]);
        let space = rules.add(Expression::Choice(vec![empty(), literal(" "), line]));
        let character = rules.add(string_character());
        let string = rules.add(quoted(repeat(Expression::Rule(character), 0, None)));
        let minus = || optional(literal("-"));
        // A zero with a sign is a number, but to many readers no whole one.
        let integer = rules.add(Expression::Choice(vec![
            literal("0"),
            Expression::Sequence(vec![minus(), positive()]),
        ]));
        let number = rules.add(Expression::Sequence(vec![
            minus(),
            Expression::Choice(vec![literal("0"), positive()]),
            optional(fraction()),
            optional(exponent()),
        ]));
        let (value, object, array) = (rules.reserve(), rules.reserve(), rules.reserve());
        let basics = Basics {
            space,
            character,
            string,
            number,
            integer,
            value,
            object,
        };
        let pair = basics.pair(Expression::Rule(string), Expression::Rule(value));
        let pair = rules.add(pair);
        rules.set(
            object,
            basics.list("{", Expression::Rule(pair), (0, None), "}"),
        );
        rules.set(
            array,
            basics.list("[", Expression::Rule(value), (0, None), "]"),
        );
        rules.set(
            value,
            Expression::Choice(vec![
                Expression::Rule(object),
                Expression::Rule(array),
                Expression::Rule(string),
                Expression::Rule(number),
                literal("true"),
                literal("false"),
                literal("null"),
            ]),
        );
        basics
    }

    /// A key and its value.
    pub fn pair(&self, key: Expression, value: Expression) -> Expression {
        Expression::Sequence(vec![key, literal(":"), Expression::Rule(self.space), value])
    }

    /// What comes between two items.
    pub fn comma(&self) -> Expression {
        Expression::Sequence(vec![literal(","), Expression::Rule(self.space)])
    }

    /// Items with commas between them, in brackets.
    pub fn list(
        &self,
        open: &str,
        item: Expression,
        (min, max): (u32, Option<u32>),
        close: &str,
    ) -> Expression {
        let space = || Expression::Rule(self.space);
        let some = || {
            let more = Expression::Sequence(vec![self.comma(), item.clone()]);
            let max = max.map(|max| max.saturating_sub(1));
            let rest = repeat(more, min.saturating_sub(1), max);
            Expression::Sequence(vec![space(), item.clone(), rest, space(), literal(close)])
        };
        let none = Expression::Sequence(vec![space(), literal(close)]);
        let inside = match (min, max) {
            (_, Some(0)) => none,
            (0, _) => Expression::Choice(vec![none, some()]),
            _ => some(),
        };
        Expression::Sequence(vec![literal(open), inside])
    }
}

/// A string with these contents.
pub fn quoted(contents: Expression) -> Expression {
    Expression::Sequence(vec![literal("\""), contents, literal("\"")])
}

/// Digits without a zero in front.
fn positive() -> Expression {
    let first = Expression::Bytes(vec![(b'1', b'9')]);
    let more = repeat(digit(), 0, Some(MAX_DIGITS - 1));
    Expression::Sequence(vec![first, more])
}

/// One digit.
pub fn digit() -> Expression {
    Expression::Bytes(vec![(b'0', b'9')])
}

/// A point and digits.
pub fn fraction() -> Expression {
    Expression::Sequence(vec![literal("."), repeat(digit(), 1, Some(MAX_DIGITS))])
}

/// Two digits at most, so that the number is finite.
fn exponent() -> Expression {
    let mark = Expression::Bytes(vec![(b'e', b'e'), (b'E', b'E')]);
    let sign = Expression::Bytes(vec![(b'+', b'+'), (b'-', b'-')]);
    Expression::Sequence(vec![mark, optional(sign), repeat(digit(), 1, Some(2))])
}

/// Characters that strings must escape.
const ESCAPED: [(char, char); 3] = [('\0', '\u{1f}'), ('"', '"'), ('\\', '\\')];

/// Characters with an escape of one letter.
const LETTERS: [(char, &str); 7] = [
    ('"', "\\\""),
    ('\\', "\\\\"),
    ('\u{8}', "\\b"),
    ('\u{c}', "\\f"),
    ('\n', "\\n"),
    ('\r', "\\r"),
    ('\t', "\\t"),
];

/// Any character of a string. Escapes by number name characters of one unit only: two of a pair need not fit.
pub fn string_character() -> Expression {
    let hexadecimal = || Expression::Bytes(vec![(b'0', b'9'), (b'a', b'f'), (b'A', b'F')]);
    let not_d = Expression::Bytes(vec![
        (b'0', b'9'),
        (b'a', b'c'),
        (b'e', b'f'),
        (b'A', b'C'),
        (b'E', b'F'),
    ]);
    let low = Expression::Bytes(vec![(b'0', b'7')]);
    let d = Expression::Bytes(vec![(b'd', b'd'), (b'D', b'D')]);
    let unit = Expression::Choice(vec![
        Expression::Sequence(vec![not_d, hexadecimal()]),
        Expression::Sequence(vec![d, low]),
    ]);
    let number = Expression::Sequence(vec![literal("\\u"), unit, hexadecimal(), hexadecimal()]);
    let escapes = LETTERS.iter().map(|(_, escape)| literal(escape));
    let mut choices: Vec<Expression> = escapes.collect();
    choices.extend([literal("\\/"), number]);
    choices.push(characters(other_characters(ESCAPED.to_vec())));
    Expression::Choice(choices)
}

/// One character of the ranges as strings write it: as it is, or by an escape of one letter.
pub fn characters_in_string(ranges: &[(char, char)]) -> Expression {
    let is_in = |char: char| {
        ranges
            .iter()
            .any(|&(first, last)| (first..=last).contains(&char))
    };
    let mut others = other_characters(ranges.to_vec());
    others.extend(ESCAPED);
    let mut choices = vec![characters(other_characters(others))];
    for (char, escape) in LETTERS {
        if is_in(char) {
            choices.push(literal(escape));
        }
    }
    Expression::Choice(choices)
}
