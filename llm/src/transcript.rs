//! The text of a sequence while its tokens come: whole characters, and never a part of what ends it.

use cupola_text::{Decoder, Tokenizer};

/// Turns the tokens of one sequence into text, up to the first of several strings that end it.
#[derive(Clone, Debug)]
pub struct Transcript {
    decoder: Decoder,
    stops: Vec<String>,
    /// Text that may be the beginning of a string that ends the text.
    held: String,
    stopped: bool,
}

impl Transcript {
    /// The text of tokens to come. Special tokens are left out; empty strings in `stops` end nothing.
    pub fn new(tokenizer: &Tokenizer, stops: &[String]) -> Transcript {
        Transcript {
            decoder: Decoder::new(tokenizer, true),
            stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(),
            held: String::new(),
            stopped: false,
        }
    }

    /// The text that is certain with one more token.
    pub fn push(&mut self, token: u32) -> String {
        let text = self.decoder.push(token);
        self.add(&text)
    }

    /// What is left when no more tokens come.
    pub fn finish(&mut self) -> String {
        let rest = self.decoder.finish();
        let mut text = self.add(&rest);
        text.push_str(&std::mem::take(&mut self.held));
        text
    }

    /// Whether a string that ends the text has come. It is no part of the text, nor is anything after it.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    fn add(&mut self, text: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(text);
        let found = self
            .stops
            .iter()
            .filter_map(|s| self.held.find(s.as_str()))
            .min();
        if let Some(at) = found {
            self.stopped = true;
            let mut text = std::mem::take(&mut self.held);
            text.truncate(at);
            return text;
        }
        let kept = self
            .stops
            .iter()
            .map(|s| begun(&self.held, s))
            .max()
            .unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        std::mem::replace(&mut self.held, rest)
    }
}

/// Bytes at the end of a text that `stop`, which is not empty, begins with: fewer than all of it.
pub fn begun(text: &str, stop: &str) -> usize {
    let most = text.len().min(stop.len() - 1);
    let lengths = (1..=most).rev();
    let begins = |len: &usize| text.as_bytes().ends_with(&stop.as_bytes()[..*len]);
    lengths
        .filter(|len| stop.is_char_boundary(*len))
        .find(begins)
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::begun;

    #[test]
    fn the_longest_beginning_of_a_string_is_held() {
        assert_eq!(begun("abc\n", "\n\n"), 1);
        assert_eq!(begun("ab", "abab"), 2);
        assert_eq!(begun("abab", "abac"), 2);
        assert_eq!(begun("xyz", "abc"), 0);
        assert_eq!(begun("stop", "stop"), 0);
        assert_eq!(begun("", "s"), 0);
        assert_eq!(begun("né", "éa"), 2);
    }
}
