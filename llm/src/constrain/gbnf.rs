//! GBNF: rules `name ::= alternatives` of strings, classes of characters, groups, repetitions and other rules.

use std::collections::HashMap;

use super::Read;
use super::error::ConstraintError;
use super::expression::{Expression, RuleId, Rules, characters, literal, other_characters, repeat};

/// Groups within groups.
const MAX_NESTING: usize = 200;

/// Reads a grammar. The first rules are those with names.
pub fn read(source: &str) -> Result<Read> {
    let mut reader = Reader {
        source,
        at: 0,
        rules: Rules::default(),
        names: vec![],
        ids: HashMap::new(),
        defined: vec![],
        nesting: 0,
    };
    reader.space(true);
    while !reader.rest().is_empty() {
        reader.rule()?;
        reader.space(true);
    }
    reader.finish()
}

struct Reader<'a> {
    source: &'a str,
    at: usize,
    rules: Rules,
    names: Vec<String>,
    ids: HashMap<String, RuleId>,
    defined: Vec<bool>,
    nesting: usize,
}

type Result<T> = std::result::Result<T, ConstraintError>;

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let char = self.peek()?;
        self.at += char.len_utf8();
        Some(char)
    }

    fn take(&mut self, text: &str) -> bool {
        let is_next = self.rest().starts_with(text);
        if is_next {
            self.at += text.len();
        }
        is_next
    }

    fn wrong<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(ConstraintError::Grammar {
            what: what.into(),
            line: self.source[..self.at].matches('\n').count() + 1,
        })
    }

    /// Skips spaces and comments, and ends of lines where they mean nothing.
    fn space(&mut self, lines: bool) {
        while let Some(char) = self.peek() {
            match char {
                ' ' | '\t' => {}
                '\n' | '\r' if lines => {}
                '#' => {
                    let comment = self.rest();
                    self.at += comment.find('\n').unwrap_or(comment.len());
                    continue;
                }
                _ => break,
            }
            self.at += 1;
        }
    }

    fn name(&mut self) -> Option<&'a str> {
        let rest = self.rest();
        let is_name = |char: char| char.is_ascii_alphanumeric() || char == '-' || char == '_';
        let size = rest.find(|char| !is_name(char)).unwrap_or(rest.len());
        self.at += size;
        (size > 0).then(|| &rest[..size])
    }

    fn id(&mut self, name: &str) -> RuleId {
        if let Some(&id) = self.ids.get(name) {
            return id;
        }
        let id = self.rules.reserve();
        self.names.push(name.to_owned());
        self.defined.push(false);
        self.ids.insert(name.to_owned(), id);
        id
    }

    fn rule(&mut self) -> Result<()> {
        let Some(name) = self.name() else {
            return self.wrong("a rule's name is missing");
        };
        let id = self.id(name);
        self.space(false);
        if !self.take("::=") {
            return self.wrong(format!("'::=' is missing behind '{name}'"));
        }
        if std::mem::replace(&mut self.defined[id.0 as usize], true) {
            return self.wrong(format!("the rule '{name}' is there twice"));
        }
        self.space(true);
        let expression = self.alternatives(false)?;
        self.rules.set(id, expression);
        match self.peek() {
            None | Some('\n' | '\r') => Ok(()),
            Some(char) => self.wrong(format!("'{char}' is not expected")),
        }
    }

    fn alternatives(&mut self, in_group: bool) -> Result<Expression> {
        let mut choices = vec![self.sequence(in_group)?];
        while self.bar() {
            self.space(true);
            choices.push(self.sequence(in_group)?);
        }
        Ok(match choices.pop() {
            Some(only) if choices.is_empty() => only,
            last => {
                choices.extend(last);
                Expression::Choice(choices)
            }
        })
    }

    /// Takes the mark of another alternative, which may stand on a line of its own.
    fn bar(&mut self) -> bool {
        let start = self.at;
        self.space(true);
        let found = self.take("|");
        if !found {
            self.at = start;
        }
        found
    }

    fn sequence(&mut self, in_group: bool) -> Result<Expression> {
        let mut parts = vec![];
        while let Some(char) = self.peek() {
            let part = match char {
                '"' => self.string()?,
                '[' => self.class()?,
                '(' => self.group()?,
                '.' => {
                    self.at += 1;
                    characters([('\0', char::MAX)])
                }
                '<' => return self.wrong("tokens in grammars are not supported"),
                _ => match self.name() {
                    Some(name) => Expression::Rule(self.id(name)),
                    None => break,
                },
            };
            let part = self.repetition(part)?;
            parts.push(part);
            self.space(in_group);
        }
        Ok(match parts.pop() {
            Some(only) if parts.is_empty() => only,
            last => {
                parts.extend(last);
                Expression::Sequence(parts)
            }
        })
    }

    fn group(&mut self) -> Result<Expression> {
        self.at += 1;
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            return Err(ConstraintError::TooLarge("200 groups within groups"));
        }
        self.space(true);
        let group = self.alternatives(true)?;
        self.nesting -= 1;
        if self.take(")") {
            Ok(group)
        } else {
            self.wrong("')' is missing")
        }
    }

    fn string(&mut self) -> Result<Expression> {
        self.at += 1;
        let mut text = String::new();
        loop {
            match self.peek() {
                Some('"') => break,
                Some(_) => text.push(self.char()?),
                None => return self.wrong("'\"' is missing"),
            }
        }
        self.at += 1;
        Ok(literal(&text))
    }

    fn class(&mut self) -> Result<Expression> {
        self.at += 1;
        let negated = self.take("^");
        let mut ranges = vec![];
        while !self.take("]") {
            if self.peek().is_none() {
                return self.wrong("']' is missing");
            }
            let first = self.char()?;
            let mut last = first;
            if self.rest().starts_with('-') && !self.rest().starts_with("-]") {
                self.at += 1;
                if self.peek().is_none() {
                    return self.wrong("']' is missing");
                }
                last = self.char()?;
            }
            if last < first {
                return self.wrong("a range of characters ends before it begins");
            }
            ranges.push((first, last));
        }
        if negated {
            ranges = other_characters(ranges);
        }
        Ok(characters(ranges))
    }

    /// A character as strings and classes write it.
    fn char(&mut self) -> Result<char> {
        let char = self.next();
        if char != Some('\\') {
            return char.map_or_else(|| self.wrong("a character is missing"), Ok);
        }
        let escape = self.next();
        let digits = match escape {
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            Some('t') => return Ok('\t'),
            Some('n') => return Ok('\n'),
            Some('r') => return Ok('\r'),
            Some(char @ ('\\' | '"' | '[' | ']' | '-' | '^')) => return Ok(char),
            _ => return self.wrong("an escape of this kind does not exist"),
        };
        let code = self.rest().get(..digits);
        let code = code.filter(|code| code.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let char = code
            .and_then(|code| u32::from_str_radix(code, 16).ok())
            .and_then(char::from_u32);
        let Some(char) = char else {
            return self.wrong("an escape is no character");
        };
        self.at += digits;
        Ok(char)
    }

    fn repetition(&mut self, mut part: Expression) -> Result<Expression> {
        loop {
            let (min, max) = match self.peek() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => {
                    let counts = self.counts()?;
                    part = repeat(part, counts.0, counts.1);
                    continue;
                }
                _ => return Ok(part),
            };
            self.at += 1;
            part = repeat(part, min, max);
        }
    }

    /// `{n}`, `{n,}` or `{n,m}`.
    fn counts(&mut self) -> Result<(u32, Option<u32>)> {
        self.at += 1;
        let Some(min) = self.number()? else {
            return self.wrong("a count is missing");
        };
        self.space(false);
        let max = if self.take(",") {
            self.space(false);
            self.number()?
        } else {
            Some(min)
        };
        self.space(false);
        if !self.take("}") {
            return self.wrong("'}' is missing");
        }
        if max.is_some_and(|max| max < min) {
            return self.wrong("a repetition has fewer times at most than at least");
        }
        Ok((min, max))
    }

    fn number(&mut self) -> Result<Option<u32>> {
        let rest = self.rest();
        let size = rest
            .find(|char: char| !char.is_ascii_digit())
            .unwrap_or(rest.len());
        if size == 0 {
            return Ok(None);
        }
        self.at += size;
        match rest[..size].parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => self.wrong("a count is too large"),
        }
    }

    fn finish(self) -> Result<Read> {
        let missing = self.defined.iter().position(|&defined| !defined);
        if let Some(missing) = missing {
            return self.wrong(format!("the rule '{}' does not exist", self.names[missing]));
        }
        match self.ids.get("root") {
            Some(&root) => Ok(Read {
                rules: self.rules,
                root,
                names: self.names,
            }),
            None => self.wrong("there is no rule 'root'"),
        }
    }
}
