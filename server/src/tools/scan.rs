//! One JSON object, character by character: the raw values of its keys while they come.

/// What a character was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Space, punctuation, or part of a key.
    Nothing,
    /// Part of the value of [`Scan::key`].
    Value(char),
    /// The end of that value; another key may follow.
    ValueEnd,
    /// The end of the object, and of its last value.
    End,
}

/// How far an object is read. What is no JSON is read somehow, to where its brackets close.
#[derive(Clone, Debug, Default)]
pub(super) struct Scan {
    depth: usize,
    in_string: bool,
    escaped: bool,
    in_value: bool,
    /// The key has had its value; the next text is another.
    had_value: bool,
    key: String,
}

impl Scan {
    /// The last key, without quotes.
    pub fn key(&self) -> &str {
        self.key.trim_matches('"')
    }

    /// Takes the next character; the first is the bracket that opens the object.
    pub fn feed(&mut self, c: char) -> Seen {
        if self.in_string {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => self.in_string = false,
                _ => {}
            }
            return self.keep(c);
        }
        match c {
            '{' | '[' => {
                self.depth += 1;
                match self.depth {
                    1 => Seen::Nothing,
                    _ => self.keep(c),
                }
            }
            '}' | ']' => {
                self.depth = self.depth.saturating_sub(1);
                match self.depth {
                    0 => Seen::End,
                    _ => self.keep(c),
                }
            }
            ':' if self.depth == 1 && !self.in_value => {
                self.in_value = true;
                Seen::Nothing
            }
            ',' if self.depth == 1 => {
                self.in_value = false;
                self.had_value = true;
                Seen::ValueEnd
            }
            _ if self.depth == 1 && c.is_whitespace() => Seen::Nothing,
            _ => {
                self.in_string = c == '"';
                self.keep(c)
            }
        }
    }

    fn keep(&mut self, c: char) -> Seen {
        if self.in_value {
            return Seen::Value(c);
        }
        if std::mem::take(&mut self.had_value) {
            self.key.clear();
        }
        self.key.push(c);
        Seen::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> (Vec<(String, String)>, Option<usize>) {
        let mut scan = Scan::default();
        let mut found = vec![];
        let mut value = String::new();
        for (at, c) in text.char_indices() {
            match scan.feed(c) {
                Seen::Nothing => {}
                Seen::Value(c) => value.push(c),
                seen => {
                    found.push((scan.key().to_owned(), std::mem::take(&mut value)));
                    if seen == Seen::End {
                        return (found, Some(at));
                    }
                }
            }
        }
        (found, None)
    }

    #[test]
    fn keys_have_their_values() {
        let text = r#"{ "name" : "a\"}b", "x": {"y": [1, "]"], "z": {}} , "n": 1.5 } rest"#;
        let (found, end) = values(text);
        let expected = [
            ("name", r#""a\"}b""#),
            ("x", r#"{"y": [1, "]"], "z": {}}"#),
            ("n", "1.5"),
        ];
        assert_eq!(found, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert_eq!(end, text.find(" rest").map(|at| at - 1));
        assert_eq!(values("{}").1, Some(1));
        assert_eq!(values("{\"a\": \"").1, None);
        assert_eq!(values("}}").1, Some(0));
    }
}
