//! [`Decoder`]: text while it is generated, never half a character.

use crate::tokenizer::Tokenizer;

/// Turns tokens into text one by one. The text of all calls together is that of all tokens together; bytes that are no
/// UTF-8 become U+FFFD as soon as that is certain.
#[derive(Clone, Debug)]
pub struct Decoder {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// The beginning of a character whose other bytes are still to come: at most three bytes.
    pending: Vec<u8>,
}

impl Decoder {
    /// A decoder for tokens that continue a text. Special tokens are left out when `skip_special`.
    pub fn new(tokenizer: &Tokenizer, skip_special: bool) -> Decoder {
        Decoder {
            tokenizer: tokenizer.clone(),
            skip_special,
            pending: Vec::new(),
        }
    }

    /// The text that is complete with this token; empty while a character lacks bytes.
    pub fn push(&mut self, token: u32) -> String {
        if !(self.skip_special && self.tokenizer.is_special(token)) {
            self.pending
                .extend_from_slice(self.tokenizer.token_bytes(token));
        }
        take_complete(&mut self.pending)
    }

    /// What is left when no more tokens come: U+FFFD for a character that lacks bytes.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        rest
    }
}

/// Takes everything but the beginning of a character at the end.
fn take_complete(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut rest = bytes.as_slice();
    loop {
        match std::str::from_utf8(rest) {
            Ok(all) => {
                text.push_str(all);
                rest = &[];
                break;
            }
            Err(error) => {
                let (valid, after) = rest.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(valid));
                rest = after;
                match error.error_len() {
                    Some(len) => {
                        text.push(char::REPLACEMENT_CHARACTER);
                        rest = &rest[len..];
                    }
                    None => break,
                }
            }
        }
    }
    let taken = bytes.len() - rest.len();
    bytes.drain(..taken);
    text
}

#[cfg(test)]
mod tests {
    use super::take_complete;

    #[test]
    fn characters_come_whole_and_damage_at_once() {
        let mut bytes = vec![];
        let mut push = |more: &[u8]| {
            bytes.extend_from_slice(more);
            take_complete(&mut bytes)
        };
        assert_eq!(push(b"a\xf0\x9f"), "a");
        assert_eq!(push(b"\x98"), "");
        assert_eq!(push(b"\x80b\xc3"), "\u{1f600}b");
        assert_eq!(push(b"x"), "\u{fffd}x");
        assert_eq!(push(b"\xff\xfe"), "\u{fffd}\u{fffd}");
    }

    #[test]
    fn any_cuts_give_the_same_text() {
        let bytes = b"ab\xe4\xb8\x96\xff\xf0\x9f\x98\x80\xe4\xb8z\xed\xa0\x80";
        let whole = String::from_utf8_lossy(bytes);
        for step in 1..6 {
            let mut pending = vec![];
            let mut text = String::new();
            for part in bytes.chunks(step) {
                pending.extend_from_slice(part);
                text += &take_complete(&mut pending);
                assert!(pending.len() <= 3);
            }
            text += &String::from_utf8_lossy(&pending);
            assert_eq!(text, whole);
        }
    }
}
