//! Sets of tokens, and what restricts the next token to one.

/// A set of tokens, one bit each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u64>,
    len: usize,
}

impl TokenMask {
    /// The set of all of `len` tokens.
    pub fn all(len: usize) -> TokenMask {
        let mut mask = TokenMask::none(len);
        mask.allow_all();
        mask
    }

    /// The empty set, of a vocabulary of `len` tokens.
    pub fn none(len: usize) -> TokenMask {
        TokenMask {
            words: vec![0; len.div_ceil(64)],
            len,
        }
    }

    /// Tokens of the vocabulary.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Puts every token in.
    pub fn allow_all(&mut self) {
        self.words.fill(u64::MAX);
        let spare = self.words.len() * 64 - self.len;
        if let Some(last) = self.words.last_mut() {
            *last >>= spare;
        }
    }

    /// Takes every token out.
    pub fn forbid_all(&mut self) {
        self.words.fill(0);
    }

    /// Puts a token in; one outside the vocabulary is ignored.
    pub fn allow(&mut self, token: u32) {
        let token = token as usize;
        if token < self.len {
            self.words[token / 64] |= 1 << (token % 64);
        }
    }

    /// Takes a token out.
    pub fn forbid(&mut self, token: u32) {
        if let Some(word) = self.words.get_mut(token as usize / 64) {
            *word &= !(1 << (token % 64));
        }
    }

    /// Whether a token is in.
    pub fn contains(&self, token: u32) -> bool {
        let word = self.words.get(token as usize / 64);
        word.is_some_and(|word| word >> (token % 64) & 1 == 1)
    }

    /// Makes it the set of another mask of the same vocabulary.
    pub fn copy_from(&mut self, other: &TokenMask) {
        self.words.copy_from_slice(&other.words);
    }

    /// How many are in.
    pub fn count(&self) -> usize {
        self.words.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// The tokens that are in, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().enumerate().flat_map(|(i, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros())?;
                rest &= rest - 1;
                Some(i as u32 * 64 + bit)
            })
        })
    }
}

/// Restricts what is generated, token by token: a grammar, a schema, a pattern.
pub trait Constraint: Send {
    /// Makes `allowed`, which comes with any content, the set of tokens that may come next. A token that ends the text
    /// belongs to it where the text may end. The empty set ends the text at once.
    fn mask(&mut self, allowed: &mut TokenMask);

    /// Tells which token came: one of the last mask.
    fn accept(&mut self, token: u32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_hold_what_was_put_in_within_the_vocabulary() {
        for len in [0, 1, 63, 64, 65, 130] {
            let mut mask = TokenMask::all(len);
            assert_eq!(mask.count(), len);
            assert!(!mask.contains(len as u32));
            mask.forbid_all();
            mask.allow(len as u32);
            assert_eq!(mask, TokenMask::none(len));
        }
        let mut mask = TokenMask::none(130);
        [3, 64, 129].iter().for_each(|t| mask.allow(*t));
        assert_eq!(mask.iter().collect::<Vec<_>>(), [3, 64, 129]);
        mask.forbid(64);
        assert_eq!(mask.iter().collect::<Vec<_>>(), [3, 129]);
    }
}
