//! The cursor that the text forms share: tokens on demand, errors with their place.

use crate::dim::{Dim, Sym};
use crate::dtype::DType;
use crate::error::{IrError, Result};
use crate::tensor_type::{TensorType, ValueType};

/// Most types, dimensions, attributes or regions inside each other: far beyond what is written, far below what the
/// stack holds.
pub(crate) const MAX_DEPTH: usize = 48;
/// Most terms of one dimension, so that its arithmetic stays cheap.
const MAX_TERMS: usize = 256;

/// A position in a text.
pub(crate) struct Cursor<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(text: &'a str) -> Cursor<'a> {
        Cursor {
            text,
            at: 0,
            depth: 0,
        }
    }

    /// The rest after white space and comments (`//` to the end of the line).
    pub(crate) fn rest(&mut self) -> &'a str {
        loop {
            let rest = &self.text[self.at..];
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with("//") {
                return trimmed;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    pub(crate) fn position(&mut self) -> usize {
        self.rest();
        self.at
    }

    pub(crate) fn is_at_end(&mut self) -> bool {
        self.rest().is_empty()
    }

    /// An error at the next token.
    pub(crate) fn error(&mut self, what: impl Into<String>) -> IrError {
        let at = self.position();
        self.error_at(at, what)
    }

    /// An error at a byte position.
    pub(crate) fn error_at(&self, at: usize, what: impl Into<String>) -> IrError {
        const SHOWN: usize = 160;
        let before = &self.text[..at];
        let start = before.rfind('\n').map_or(0, |i| i + 1);
        let line = self.text[start..].lines().next().unwrap_or("");
        IrError::Parse {
            line: before.matches('\n').count() + 1,
            column: self.text[start..at].chars().count() + 1,
            what: what.into(),
            text: line.chars().take(SHOWN).collect(),
        }
    }

    /// What is there, for messages.
    pub(crate) fn found(&mut self) -> String {
        let rest = self.rest();
        let word: String = rest
            .chars()
            .take_while(|c| !c.is_whitespace())
            .take(24)
            .collect();
        if word.is_empty() {
            "the end".into()
        } else {
            format!("'{word}'")
        }
    }

    pub(crate) fn expected<T>(&mut self, what: &str) -> Result<T> {
        let found = self.found();
        Err(self.error(format!("expected {what}, found {found}")))
    }

    /// Consumes a piece of punctuation when it is next.
    pub(crate) fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    pub(crate) fn expect(&mut self, token: &str) -> Result<()> {
        if self.eat(token) {
            Ok(())
        } else {
            self.expected(&format!("'{token}'"))
        }
    }

    /// The identifier (letters, digits, `_` and `.`, not starting with a digit) that is next, not consumed.
    pub(crate) fn peek_word(&mut self) -> &'a str {
        let rest = self.rest();
        if rest.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
            return "";
        }
        &rest[..word_len(rest)]
    }

    pub(crate) fn eat_word(&mut self, word: &str) -> bool {
        let found = self.peek_word() == word;
        if found {
            self.at += word.len();
        }
        found
    }

    pub(crate) fn word(&mut self, what: &str) -> Result<&'a str> {
        let word = self.peek_word();
        if word.is_empty() {
            return self.expected(what);
        }
        self.at += word.len();
        Ok(word)
    }

    /// The letters and digits after a prefix such as `%` or `$`.
    pub(crate) fn prefixed(&mut self, prefix: char, what: &str) -> Result<&'a str> {
        let rest = self.rest();
        let name = rest.strip_prefix(prefix).unwrap_or("");
        let name = &name[..word_len(name)];
        if name.is_empty() {
            return self.expected(what);
        }
        self.at += 1 + name.len();
        Ok(name)
    }

    /// A number in any notation as it stands, sign included; `inf` and `nan` too.
    pub(crate) fn number_text(&mut self) -> Option<&'a str> {
        let rest = self.rest();
        let unsigned = rest.strip_prefix('-').unwrap_or(rest);
        let sign = rest.len() - unsigned.len();
        for word in ["inf", "nan"] {
            if unsigned.starts_with(word) && word_len(unsigned) == word.len() {
                self.at += sign + word.len();
                return Some(&rest[..sign + word.len()]);
            }
        }
        if !unsigned.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        let bytes = unsigned.as_bytes();
        let mut len = 0;
        while let Some(b) = bytes.get(len) {
            let exponent_sign = matches!(b, b'-' | b'+') && matches!(bytes[len - 1], b'e' | b'E');
            if !(b.is_ascii_alphanumeric() || *b == b'.' || exponent_sign) {
                break;
            }
            len += 1;
        }
        self.at += sign + len;
        Some(&rest[..sign + len])
    }

    pub(crate) fn int(&mut self, what: &str) -> Result<i64> {
        let at = self.position();
        let Some(text) = self.number_text() else {
            return self.expected(what);
        };
        text.parse()
            .map_err(|_| self.error_at(at, format!("expected {what}, found '{text}'")))
    }

    /// A small number that is not negative.
    pub(crate) fn index(&mut self, what: &str) -> Result<u32> {
        let at = self.position();
        u32::try_from(self.int(what)?).map_err(|_| self.error_at(at, format!("expected {what}")))
    }

    /// A quoted string.
    pub(crate) fn string(&mut self, what: &str) -> Result<String> {
        let start = self.position();
        if !self.eat("\"") {
            return self.expected(what);
        }
        let mut out = String::new();
        let mut chars = self.text[self.at..].char_indices();
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += i + 1;
                    return Ok(out);
                }
                '\n' => break,
                '\\' => {
                    let escape = match chars.next().map(|(_, c)| c) {
                        Some('n') => Some('\n'),
                        Some('t') => Some('\t'),
                        Some('r') => Some('\r'),
                        Some(c @ ('"' | '\\')) => Some(c),
                        Some('u') => {
                            let code: String = chars
                                .by_ref()
                                .skip(1)
                                .map(|(_, c)| c)
                                .take_while(|c| *c != '}')
                                .take(7)
                                .collect();
                            u32::from_str_radix(&code, 16).ok().and_then(char::from_u32)
                        }
                        _ => None,
                    };
                    match escape {
                        Some(c) => out.push(c),
                        None => {
                            let at = self.at + i;
                            return Err(self.error_at(at, "unknown escape in a string"));
                        }
                    }
                }
                c => out.push(c),
            }
        }
        Err(self.error_at(start, "the string has no end on its line"))
    }

    /// Runs a rule that may contain itself.
    pub(crate) fn nested<T>(&mut self, rule: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= MAX_DEPTH {
            return Err(self.error(format!("more than {MAX_DEPTH} levels inside each other")));
        }
        self.depth += 1;
        let out = rule(self);
        self.depth -= 1;
        out
    }

    /// Items separated by commas up to a closing token, which is consumed.
    pub(crate) fn list<T>(
        &mut self,
        close: &str,
        mut item: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let mut out = vec![];
        if self.eat(close) {
            return Ok(out);
        }
        loop {
            out.push(item(self)?);
            if self.eat(close) {
                return Ok(out);
            }
            if !self.eat(",") {
                return self.expected(&format!("',' or '{close}'"));
            }
        }
    }

    /// A dimension, as [`Dim`] prints it.
    pub(crate) fn dim(&mut self) -> Result<Dim> {
        self.nested(|c| {
            let mut sum = Dim::ZERO;
            let mut minus = c.eat("-");
            for _ in 0..MAX_TERMS {
                let term = c.term()?;
                sum = if minus { sum - term } else { sum + term };
                let at = c.at;
                minus = if c.eat("+") {
                    false
                } else if c.eat("-") {
                    true
                } else {
                    c.at = at;
                    return Ok(sum);
                };
            }
            Err(c.error(format!("a dimension of more than {MAX_TERMS} terms")))
        })
    }

    fn term(&mut self) -> Result<Dim> {
        let mut product = self.factor()?;
        let mut factors = 1;
        while self.eat("*") {
            factors += 1;
            if factors > MAX_TERMS {
                return Err(self.error(format!("a term of more than {MAX_TERMS} factors")));
            }
            product = product * self.factor()?;
            if product.terms().len() > MAX_TERMS {
                return Err(self.error(format!("a dimension of more than {MAX_TERMS} terms")));
            }
        }
        Ok(product)
    }

    fn factor(&mut self) -> Result<Dim> {
        let rest = self.rest();
        if rest.starts_with('$') {
            return Ok(Dim::from(&self.sym()?));
        }
        if rest.starts_with(|c: char| c.is_ascii_digit()) {
            // -9223372036854775808 is a minus and a number that does not fit.
            let at = self.position();
            let text = self.number_text().unwrap_or_default();
            let value = text.parse::<i128>().ok().filter(|v| *v <= 1 << 63);
            return match value {
                Some(v) => Ok(Dim::Const(i64::try_from(v).unwrap_or(i64::MAX))),
                None => Err(self.error_at(at, format!("expected a whole number, found '{text}'"))),
            };
        }
        let at = self.position();
        let word = self.word("a dimension")?;
        if !matches!(word, "floordiv" | "min" | "max" | "broadcast") {
            return Err(self.error_at(at, format!("expected a dimension, found '{word}'")));
        }
        self.expect("(")?;
        let x = self.dim()?;
        self.expect(",")?;
        let y = self.dim()?;
        self.expect(")")?;
        match word {
            "floordiv" => Ok(x.floor_div(&y)),
            "min" => Ok(x.smaller(&y)),
            "max" => Ok(x.larger(&y)),
            _ => x
                .broadcast(&y)
                .ok_or_else(|| self.error_at(at, format!("{x} and {y} do not broadcast"))),
        }
    }

    /// A symbol, `$name`.
    pub(crate) fn sym(&mut self) -> Result<Sym> {
        Ok(Sym::new(self.prefixed('$', "a symbol")?))
    }

    /// Extents in brackets.
    pub(crate) fn dims(&mut self) -> Result<Vec<Dim>> {
        self.expect("[")?;
        self.list("]", Cursor::dim)
    }

    /// A dtype name.
    pub(crate) fn dtype(&mut self) -> Result<DType> {
        let at = self.position();
        let word = self.word("a dtype")?;
        DType::from_name(word).ok_or_else(|| self.error_at(at, format!("unknown dtype '{word}'")))
    }

    /// A type of a value.
    pub(crate) fn value_type(&mut self) -> Result<ValueType> {
        self.nested(|c| {
            for (word, wrap) in [
                (
                    "seq",
                    ValueType::Sequence as fn(Box<ValueType>) -> ValueType,
                ),
                ("optional", ValueType::Optional),
            ] {
                if c.eat_word(word) {
                    c.expect("(")?;
                    let inner = c.value_type()?;
                    c.expect(")")?;
                    return Ok(wrap(Box::new(inner)));
                }
            }
            let dtype = c.dtype()?;
            let dims = c.dims()?;
            Ok(TensorType { dtype, dims }.into())
        })
    }
}

fn word_len(text: &str) -> usize {
    text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.'))
        .unwrap_or(text.len())
}

/// A string in quotes with escapes.
pub(crate) fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => out.push_str(&format!("\\u{{{:x}}}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A name after `@`: quoted unless it is an identifier.
pub(crate) fn at_name(name: &str) -> String {
    let plain = word_len(name) == name.len()
        && !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    if plain {
        format!("@{name}")
    } else {
        format!("@{}", quote(name))
    }
}

impl Cursor<'_> {
    /// A name after `@`.
    pub(crate) fn at_name(&mut self) -> Result<String> {
        self.expect("@")?;
        if self.text[self.at..].starts_with('"') {
            self.string("a name")
        } else {
            self.word("a name").map(str::to_string)
        }
    }
}
