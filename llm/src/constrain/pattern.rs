//! Regular expressions, whole texts or the contents of JSON strings.

use regex_syntax::hir::{Class, Hir, HirKind, Look};

use super::Read;
use super::error::ConstraintError;
use super::expression::{Expression, Rules, characters, empty, repeat};
use super::json;

/// Reads a pattern that must match a text from its beginning to its end.
pub fn read(pattern: &str) -> Result<Read, ConstraintError> {
    let hir = parse(pattern)?;
    let expression = Reader { in_string: false }.whole(&hir)?;
    let mut rules = Rules::default();
    let root = rules.add(expression);
    Ok(Read {
        rules,
        root,
        names: vec![],
    })
}

/// The contents of a JSON string, between its quotes, in which the pattern occurs. Without `^` and `$` anything may be
/// around it.
pub fn in_string(pattern: &str) -> Result<Expression, ConstraintError> {
    let hir = parse(pattern)?;
    let parts = match hir.kind() {
        HirKind::Concat(parts) => parts.as_slice(),
        _ => std::slice::from_ref(&hir),
    };
    let is_start = |hir: &Hir| matches!(hir.kind(), HirKind::Look(Look::Start));
    let is_end = |hir: &Hir| matches!(hir.kind(), HirKind::Look(Look::End));
    let around = || repeat(json::string_character(), 0, None);
    let mut sequence = vec![];
    if !parts.first().is_some_and(is_start) {
        sequence.push(around());
    }
    sequence.push(Reader { in_string: true }.whole(&hir)?);
    if !parts.last().is_some_and(is_end) {
        sequence.push(around());
    }
    Ok(Expression::Sequence(sequence))
}

fn parse(pattern: &str) -> Result<Hir, ConstraintError> {
    regex_syntax::parse(pattern).map_err(|error| {
        let last = error.to_string();
        let what = last.lines().last().unwrap_or_default();
        ConstraintError::Pattern(what.trim_start_matches("error: ").to_owned())
    })
}

struct Reader {
    /// Whether characters are written as in a JSON string.
    in_string: bool,
}

impl Reader {
    /// A whole pattern: a beginning and an end that it asks for are where they must be.
    fn whole(&self, hir: &Hir) -> Result<Expression, ConstraintError> {
        let HirKind::Concat(parts) = hir.kind() else {
            return match hir.kind() {
                HirKind::Look(Look::Start | Look::End) => Ok(empty()),
                HirKind::Capture(group) => self.whole(&group.sub),
                HirKind::Alternation(parts) if !self.in_string => {
                    let parts: Result<_, _> = parts.iter().map(|part| self.whole(part)).collect();
                    Ok(Expression::Choice(parts?))
                }
                _ => self.part(hir),
            };
        };
        let last = parts.len() - 1;
        let part = |(at, part): (usize, &Hir)| match part.kind() {
            HirKind::Look(Look::Start) if at == 0 => Ok(empty()),
            HirKind::Look(Look::End) if at == last => Ok(empty()),
            _ => self.part(part),
        };
        let parts: Result<_, _> = parts.iter().enumerate().map(part).collect();
        Ok(Expression::Sequence(parts?))
    }

    fn part(&self, hir: &Hir) -> Result<Expression, ConstraintError> {
        Ok(match hir.kind() {
            HirKind::Empty => empty(),
            HirKind::Literal(literal) => {
                let text = std::str::from_utf8(&literal.0).map_err(|_| bytes_not_text())?;
                let char = |char: char| self.characters(vec![(char, char)]);
                Expression::Sequence(text.chars().map(char).collect())
            }
            HirKind::Class(Class::Unicode(class)) => {
                let ranges = class.iter().map(|range| (range.start(), range.end()));
                self.characters(ranges.collect())
            }
            HirKind::Class(Class::Bytes(class)) => {
                let range = |range: &regex_syntax::hir::ClassBytesRange| {
                    let is_text = range.end().is_ascii();
                    is_text.then(|| (char::from(range.start()), char::from(range.end())))
                };
                let ranges: Option<_> = class.iter().map(range).collect();
                self.characters(ranges.ok_or_else(bytes_not_text)?)
            }
            HirKind::Look(_) => {
                return Err(ConstraintError::Unsupported {
                    what: "a condition on what is around (such as '\\b', or '^' in the middle)"
                        .to_owned(),
                    path: "the pattern".to_owned(),
                });
            }
            HirKind::Repetition(repetition) => {
                let part = self.part(&repetition.sub)?;
                repeat(part, repetition.min, repetition.max)
            }
            HirKind::Capture(group) => self.part(&group.sub)?,
            HirKind::Concat(parts) => Expression::Sequence(self.parts(parts)?),
            HirKind::Alternation(parts) => Expression::Choice(self.parts(parts)?),
        })
    }

    fn parts(&self, parts: &[Hir]) -> Result<Vec<Expression>, ConstraintError> {
        parts.iter().map(|part| self.part(part)).collect()
    }

    fn characters(&self, ranges: Vec<(char, char)>) -> Expression {
        if self.in_string {
            json::characters_in_string(&ranges)
        } else {
            characters(ranges)
        }
    }
}

fn bytes_not_text() -> ConstraintError {
    ConstraintError::Pattern("it matches bytes that are no text".to_owned())
}
