//! The alphabet in which byte-level vocabularies are written: one printable character for every byte.
//!
//! Bytes that are printable in Latin-1 stand for themselves; the others, in order, are the characters from U+0100 on.

const PRINTABLE: [(u8, u8); 3] = [(b'!', b'~'), (0xa1, 0xac), (0xae, 0xff)];

/// Characters of the alphabet are smaller than this.
const CHAR_LIMIT: usize = 0x100 + 68;

/// The byte of each character, or [`NONE`].
const BYTES: [u16; CHAR_LIMIT] = bytes_of_chars();

const NONE: u16 = u16::MAX;

const fn bytes_of_chars() -> [u16; CHAR_LIMIT] {
    let mut table = [NONE; CHAR_LIMIT];
    let mut shifted = 0x100;
    let mut byte = 0;
    while byte < 256 {
        let mut printable = false;
        let mut range = 0;
        while range < PRINTABLE.len() {
            let (first, last) = PRINTABLE[range];
            printable |= byte >= first as usize && byte <= last as usize;
            range += 1;
        }
        let char = if printable { byte } else { shifted };
        if !printable {
            shifted += 1;
        }
        table[char] = byte as u16;
        byte += 1;
    }
    table
}

/// Appends the bytes that `text` stands for. `false`, with `bytes` unchanged, if a character is not of the alphabet.
pub fn decode(text: &str, bytes: &mut Vec<u8>) -> bool {
    let start = bytes.len();
    for char in text.chars() {
        match BYTES.get(char as usize) {
            Some(&byte) if byte != NONE => bytes.push(byte as u8),
            _ => {
                bytes.truncate(start);
                return false;
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_character() {
        let mut seen: Vec<u16> = BYTES.iter().copied().filter(|&b| b != NONE).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..256).collect::<Vec<u16>>());
    }

    #[test]
    fn spaces_newlines_and_wide_characters() {
        let mut bytes = vec![];
        assert!(decode("ĠhiĊÃ©", &mut bytes));
        assert_eq!(bytes, " hi\né".as_bytes());
        assert!(!decode("a b", &mut bytes));
        assert_eq!(bytes, " hi\né".as_bytes());
    }
}
