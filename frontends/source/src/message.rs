//! The vocabulary of refusals that all readers share: whose fault an error is, and how names from a file are printed.

/// Whose fault a refusal is. Each reader's error has a method `fault()` that returns one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The file breaks the rules of its own format, or cannot be read at all.
    Malformed,
    /// The file is well formed, but needs something that is not implemented.
    Unsupported,
    /// The file asks for more than a stated limit (depth, rank, count, bytes).
    Limit,
}

impl Fault {
    /// The exit status that the command line documents for this kind of refusal: 3, 4 or 5.
    pub fn exit_status(self) -> u8 {
        match self {
            Fault::Malformed => 3,
            Fault::Unsupported => 4,
            Fault::Limit => 5,
        }
    }

    /// The short word between the brackets of `error[CODE]`.
    pub fn code(self) -> &'static str {
        match self {
            Fault::Malformed => "malformed",
            Fault::Unsupported => "unsupported",
            Fault::Limit => "limit",
        }
    }
}

/// A quoted name is cut here, so that a message with four names stays well under 400 bytes.
const MAX_QUOTED_SIZE: usize = 64;

/// `name` in single quotes for use in a message: control and other unprintable characters escaped, cut with `...` after
/// 64 bytes. The result is one line, printable, and at most 69 bytes.
pub fn quote(name: &str) -> String {
    let mut text = String::with_capacity(MAX_QUOTED_SIZE.min(name.len()) + 5);
    text.push('\'');
    for character in name.chars() {
        let before = text.len();
        match character {
            '"' => text.push('"'),
            _ => text.extend(character.escape_debug()),
        }
        if text.len() > MAX_QUOTED_SIZE + 1 {
            text.truncate(before);
            text.push_str("...");
            break;
        }
    }
    text.push('\'');
    text
}

/// Text from another library, such as a parser's message, on one line: control characters escaped, cut with `...` after
/// `max_size` bytes.
pub fn clip(text: &str, max_size: usize) -> String {
    let mut clipped = String::with_capacity(max_size.min(text.len()));
    for character in text.chars() {
        let before = clipped.len();
        match character {
            '"' | '\'' | '\\' => clipped.push(character),
            _ => clipped.extend(character.escape_debug()),
        }
        if clipped.len() > max_size {
            clipped.truncate(before);
            clipped.push_str("...");
            break;
        }
    }
    clipped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_and_cut() {
        assert_eq!(quote("conv.1"), "'conv.1'");
        assert_eq!(quote("\u{1b}[31m\n\r\0Bad"), r"'\u{1b}[31m\n\r\0Bad'");
        assert_eq!(quote("a'b\"c"), r#"'a\'b"c'"#);
        let long = quote(&"Nope".repeat(500_000));
        assert!(long.ends_with("...'") && long.len() <= 69, "{long}");
        let wide = quote(&"\u{10ffff}".repeat(100));
        assert!(wide.len() <= 69 && wide.is_ascii(), "{wide}");
    }

    #[test]
    fn messages_of_others_stay_on_one_line() {
        assert_eq!(clip("it's \"a\\b\"\n\u{1b}", 99), "it's \"a\\b\"\\n\\u{1b}");
        assert_eq!(clip("abcdef", 4), "abcd...");
        assert_eq!(clip("\u{10ffff}", 4), "...");
    }

    #[test]
    fn faults_have_the_documented_exit_status() {
        let status = [Fault::Malformed, Fault::Unsupported, Fault::Limit].map(Fault::exit_status);
        assert_eq!(status, [3, 4, 5]);
    }
}
