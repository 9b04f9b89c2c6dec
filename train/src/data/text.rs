//! Texts as tokens: characters, words, or what a tokenizer makes; one long text in windows for language models.

use super::{Column, DataError, Dataset, Readers, Result, file, table};
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;

/// What a token is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Units {
    /// A character.
    Characters,
    /// A run of letters and digits (apostrophes inside belong to it), or any other character that is not white; line
    /// ends are words too, other white space is none.
    #[default]
    Words,
    /// What [`Readers::tokens`] makes.
    Tokenizer,
}

/// How texts become tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// What a token is.
    pub units: Units,
    /// Make all letters small.
    pub lowercase: bool,
    /// Most kinds of tokens, the two that mean something else included; `None` for all that occur.
    pub most: Option<usize>,
}

/// The token that stands for all that are not in the vocabulary.
const UNKNOWN: u32 = 1;

/// On which side sequences are filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Before the tokens, so that the last place of every sequence is its last token.
    Left,
    /// After the tokens.
    #[default]
    Right,
}

/// How sequences of a batch are brought to one length: that of the longest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padding {
    /// Tokens after these are dropped.
    pub most: Option<usize>,
    /// This length for all batches.
    pub exact: Option<usize>,
    /// On which side.
    pub side: Side,
    /// With what.
    pub token: u32,
}

/// What tokens stand for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vocabulary {
    units: Units,
    lowercase: bool,
    tokens: Vec<String>,
    #[serde(skip)]
    places: FxHashMap<String, u32>,
}

impl Vocabulary {
    /// The most frequent tokens of texts, after padding (0) and the unknown (1); of equally frequent ones the first
    /// in the order of their characters.
    fn new(words: &Words, texts: &[String]) -> Vocabulary {
        let mut counts: FxHashMap<String, u64> = FxHashMap::default();
        for text in texts {
            for_each_token(
                words.units,
                words.lowercase,
                text,
                &mut |token| match counts.get_mut(token) {
                    Some(count) => *count += 1,
                    None => {
                        counts.insert(token.to_string(), 1);
                    }
                },
            );
        }
        let mut sorted: Vec<(String, u64)> = counts.into_iter().collect();
        sorted.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        sorted.truncate(words.most.map_or(usize::MAX, |n| n.saturating_sub(2)));
        let special = ["<pad>", "<unk>"].map(String::from);
        let tokens = special.into_iter().chain(sorted.into_iter().map(|s| s.0));
        Vocabulary {
            units: words.units,
            lowercase: words.lowercase,
            tokens: tokens.collect(),
            places: FxHashMap::default(),
        }
        .indexed()
    }

    /// Ready to encode.
    fn indexed(mut self) -> Vocabulary {
        let kinds = self.tokens.iter().cloned().zip(0..).skip(2);
        self.places = kinds.collect();
        self
    }

    /// Reads one that was serialised.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn from_json(text: &str) -> Result<Vocabulary, String> {
        let read: Result<Vocabulary, _> = serde_json::from_str(text);
        Ok(read.map_err(|e| e.to_string())?.indexed())
    }

    /// Kinds of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The tokens of a text.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut all = vec![];
        for_each_token(self.units, self.lowercase, text, &mut |token| {
            all.push(self.places.get(token).copied().unwrap_or(UNKNOWN));
        });
        all
    }

    /// Whether tokens are words.
    pub fn is_words(&self) -> bool {
        self.units == Units::Words
    }

    /// What a token stands for within a text: a character, or a word behind a space. Marks that end something follow what is
    /// before them at once.
    pub fn piece(&self, token: u32) -> String {
        let text = self.tokens.get(token as usize).map_or("<unk>", |s| &**s);
        let is_close = matches!(
            text,
            "." | "," | ";" | ":" | "!" | "?" | ")" | "]" | "\n" | "’" | "”"
        );
        match self.is_words() && !is_close {
            true => format!(" {text}"),
            false => text.to_string(),
        }
    }

    /// The text of tokens; words are joined by spaces.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let text: String = tokens.iter().map(|t| self.piece(*t)).collect();
        match self.is_words() {
            true => text.trim_start_matches(' ').to_string(),
            false => text,
        }
    }
}

/// Visits the tokens of a text in order.
fn for_each_token(units: Units, lowercase: bool, text: &str, visit: &mut dyn FnMut(&str)) {
    let lowered;
    let text = match lowercase {
        true => {
            lowered = text.to_lowercase();
            &lowered
        }
        false => text,
    };
    if units != Units::Words {
        let mut buffer = [0; 4];
        text.chars().for_each(|c| visit(c.encode_utf8(&mut buffer)));
        return;
    }
    let mut start = None;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let next_is_word = chars.peek().is_some_and(|(_, n)| n.is_alphanumeric());
        let inside = start.is_some() && matches!(c, '\'' | '’') && next_is_word;
        if c.is_alphanumeric() || inside {
            start.get_or_insert(at);
            continue;
        }
        if let Some(from) = start.take() {
            visit(&text[from..at]);
        }
        if !c.is_whitespace() || c == '\n' {
            visit(&text[at..at + c.len_utf8()]);
        }
    }
    if let Some(from) = start {
        visit(&text[from..]);
    }
}

/// Makes tokens, by a vocabulary or a tokenizer.
pub(super) enum Encoder<'a> {
    Vocabulary(Vocabulary),
    Tokenizer(&'a dyn Fn(&str) -> Result<Vec<u32>, String>, usize),
}

impl<'a> Encoder<'a> {
    /// That of `known` data, or a new one for texts.
    pub fn new(
        words: &Words,
        known: Option<&Dataset>,
        texts: &[String],
        readers: &Readers<'a>,
    ) -> Result<Encoder<'a>> {
        if words.units == Units::Tokenizer {
            let (encode, kinds) = readers.tokens.ok_or_else(|| {
                DataError::Unfit("texts are to be cut by a tokenizer, but none is given".into())
            })?;
            return Ok(Encoder::Tokenizer(encode, kinds));
        }
        let known = known.and_then(|k| k.vocabulary.clone());
        let vocabulary = known.unwrap_or_else(|| Vocabulary::new(words, texts));
        Ok(Encoder::Vocabulary(vocabulary))
    }

    /// The tokens of a text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        match self {
            Encoder::Vocabulary(vocabulary) => Ok(vocabulary.encode(text)),
            Encoder::Tokenizer(encode, kinds) => {
                let tokens = encode(text)?;
                match tokens.iter().find(|t| **t as usize >= *kinds) {
                    Some(token) => Err(format!("the tokenizer gives token {token} of {kinds}")),
                    None => Ok(tokens),
                }
            }
        }
    }

    /// Says in a set what its tokens are.
    pub fn describe(self, set: &mut Dataset) {
        match self {
            Encoder::Vocabulary(vocabulary) => {
                set.token_kinds = vocabulary.len();
                set.vocabulary = Some(vocabulary);
            }
            Encoder::Tokenizer(_, kinds) => set.token_kinds = kinds,
        }
    }
}

/// How one long text is cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CorpusOptions {
    /// What a token is.
    pub words: Words,
    /// Tokens of a window.
    pub length: usize,
    /// From the begin of a window to that of the next; `None` for windows side by side.
    pub stride: Option<usize>,
    /// Column of tab-separated files; `None` for the one marked as text.
    pub column: Option<String>,
}

/// Windows over texts, of which each token is to be said from those before it. `.tab` and `.tsv` files hold a text on
/// every line, others are texts. `x`: i64 `[length]`, `y`: the same one token later. With `known` data, its vocabulary
/// is used.
///
/// # Errors
/// [`DataError`] with the file; texts that are shorter than a window.
pub fn corpus(
    paths: &[PathBuf],
    options: &CorpusOptions,
    known: Option<&Dataset>,
    readers: &Readers,
) -> Result<Dataset> {
    let mut texts = vec![];
    for path in paths {
        let suffix = path.extension().map(|e| e.to_string_lossy().to_lowercase());
        match suffix.as_deref() {
            Some("tab" | "tsv") => texts.extend(table::texts(path, options.column.as_deref())?),
            _ => texts.push(file::text(path)?.replace("\r\n", "\n")),
        }
    }
    // Texts begin on a line of their own.
    let joined = [texts.join("\n")];
    let encoder = Encoder::new(&options.words, known, &joined, readers)?;
    let tokens = encoder.encode(&joined[0]).map_err(DataError::Unfit)?;
    let length = options.length.max(1);
    let stride = options.stride.unwrap_or(length).max(1);
    if tokens.len() <= length {
        return Err(DataError::Unfit(format!(
            "the texts have {} tokens; a window of {length} takes one more than its length",
            tokens.len()
        )));
    }
    let starts: Vec<usize> = (0..tokens.len() - length).step_by(stride).collect();
    let text = Arc::new(tokens);
    let x = Column::Windows {
        text: text.clone(),
        starts: starts.clone(),
        len: length,
    };
    let y = Column::Windows {
        text,
        starts: starts.iter().map(|s| s + 1).collect(),
        len: length,
    };
    let mut set = Dataset::pair(x, y)?;
    encoder.describe(&mut set);
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::super::testing::Folder;
    use super::*;
    use cupola_ir::Tensor;
    use std::path::Path;

    fn split(units: Units, text: &str) -> Vec<String> {
        let mut all = vec![];
        for_each_token(units, true, text, &mut |t| all.push(t.to_string()));
        all
    }

    #[test]
    fn texts_are_cut_into_words_and_characters() {
        let words = split(Units::Words, "Don't go, 'tis 3.5\nÄrger!");
        let expected = [
            "don't", "go", ",", "'", "tis", "3", ".", "5", "\n", "ärger", "!",
        ];
        assert_eq!(words, expected);
        assert_eq!(split(Units::Characters, "Ab ä"), ["a", "b", " ", "ä"]);
        assert!(split(Units::Words, " ").is_empty());
    }

    #[test]
    fn vocabularies_hold_the_most_frequent() {
        let words = Words {
            most: Some(4),
            ..Words::default()
        };
        let vocabulary = Vocabulary::new(&words, &["b a c b a b".into()]);
        assert_eq!(vocabulary.tokens, ["<pad>", "<unk>", "b", "a"]);
        assert_eq!(vocabulary.encode("a c b d <pad>"), [3, 1, 2, 1, 1, 1, 1]);
        let text = serde_json::to_string(&vocabulary).expect("a vocabulary");
        assert_eq!(Vocabulary::from_json(&text), Ok(vocabulary.clone()));
        assert_eq!(vocabulary.decode(&[2, 3, 9]), "b a <unk>");
        let marks = Vocabulary::new(&Words::default(), &["a, b.\nc".into()]);
        assert_eq!(marks.decode(&marks.encode("A b, a.\nc")), "<unk> b, a.\n c");
    }

    #[test]
    fn windows_lie_side_by_side_or_overlap() {
        let folder = Folder::new("corpus");
        let path = folder.write("a.txt", b"abcdefg\r\nhi");
        let image = |_: &Path, _: [usize; 3]| Err("no pictures".into());
        let npy = |_: &Path| Err("no arrays".into());
        let count = |text: &str| Ok(text.bytes().map(|b| u32::from(b) % 16).collect());
        let readers = Readers {
            image: &image,
            npy: &npy,
            tokens: Some((&count, 16)),
        };
        let mut options = CorpusOptions {
            words: Words {
                units: Units::Characters,
                ..Words::default()
            },
            length: 4,
            ..CorpusOptions::default()
        };
        let paths = [path];
        let set = corpus(&paths, &options, None, &readers).expect("a set");
        assert_eq!((set.len(), set.token_kinds), (2, 12));
        let batch = set.batch(&[1], Default::default());
        let vocabulary = set.vocabulary.as_ref().expect("characters");
        let text = |name: &str| {
            let tokens: Vec<i64> = batch.column(name).and_then(Tensor::to_vec).expect("tokens");
            let tokens: Vec<u32> = tokens.iter().map(|t| *t as u32).collect();
            vocabulary.decode(&tokens)
        };
        assert_eq!([text("x"), text("y")], ["efg\n", "fg\nh"]);
        options.stride = Some(1);
        assert_eq!(
            corpus(&paths, &options, None, &readers)
                .expect("a set")
                .len(),
            6
        );
        options.words.units = Units::Tokenizer;
        let set = corpus(&paths, &options, None, &readers).expect("a set");
        assert_eq!((set.len(), set.token_kinds), (6, 16));
        options.length = 10;
        let error = corpus(&paths, &options, None, &readers).expect_err("short");
        assert!(error.to_string().starts_with("the texts have 10 tokens"));
        folder.write("a.txt", b"ab\n\xff");
        let error = corpus(&paths, &options, None, &readers).expect_err("no text");
        assert!(error.to_string().ends_with("a.txt, line 2: not UTF-8 text"));
    }
}
