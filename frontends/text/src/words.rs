//! How byte-pair tokenizers split a text into words, by the names that GGUF files use (`tokenizer.ggml.pre`).
//!
//! Words are found by patterns, applied one after the other: each splits the pieces that the one before left, and both
//! its matches and what lies between them are pieces.

use std::ops::Range;

use fancy_regex::Regex;

use crate::error::TextError;

/// Patterns in order.
#[derive(Clone, Debug)]
pub struct Words {
    patterns: Vec<Regex>,
}

impl Words {
    /// Compiles patterns.
    ///
    /// # Errors
    /// [`TextError::Split`] for a pattern that is none.
    pub fn new(patterns: &[&str]) -> Result<Words, TextError> {
        let compile =
            |pattern: &&str| Regex::new(pattern).map_err(|e| TextError::Split(e.to_string()));
        Ok(Words {
            patterns: patterns.iter().map(compile).collect::<Result<_, _>>()?,
        })
    }

    /// The words of a text, as ranges of bytes that cover it in order.
    ///
    /// # Errors
    /// [`TextError::Split`] when a pattern takes too many steps.
    pub fn split(&self, text: &str) -> Result<Vec<Range<usize>>, TextError> {
        let mut pieces: Vec<Range<usize>> = std::iter::once(0..text.len()).collect();
        for pattern in &self.patterns {
            let mut finer = Vec::with_capacity(pieces.len());
            for piece in pieces {
                split_piece(pattern, text, piece, &mut finer)?;
            }
            pieces = finer;
        }
        Ok(pieces)
    }
}

fn split_piece(
    pattern: &Regex,
    text: &str,
    piece: Range<usize>,
    pieces: &mut Vec<Range<usize>>,
) -> Result<(), TextError> {
    let mut push = |range: Range<usize>| {
        if !range.is_empty() {
            pieces.push(range);
        }
    };
    let mut at = piece.start;
    for found in pattern.find_iter(&text[piece.clone()]) {
        let found = found.map_err(|e| TextError::Split(e.to_string()))?;
        let range = piece.start + found.start()..piece.start + found.end();
        push(at..range.start);
        push(range.clone());
        at = range.end;
    }
    push(at..piece.end);
    Ok(())
}

/// A way to split that GGUF files name.
pub struct Named {
    /// Names in `tokenizer.ggml.pre`.
    pub names: &'static [&'static str],
    /// Patterns in order.
    pub patterns: &'static [&'static str],
    /// Differences from byte-level vocabularies that look pairs up for every word.
    pub traits: Traits,
}

/// What else the name of a way to split says about a tokenizer.
#[derive(Clone, Copy, Default)]
pub struct Traits {
    /// A word that is a token is that token.
    pub whole_words: bool,
    /// Texts begin with the begin token unless the file says otherwise.
    pub begins: bool,
    /// Tokens are text with marks for spaces, and tokens for single bytes, instead of the byte-level alphabet.
    pub marks_spaces: bool,
}

const PLAIN: Traits = Traits {
    whole_words: false,
    begins: false,
    marks_spaces: false,
};
const WHOLE: Traits = Traits {
    whole_words: true,
    ..PLAIN
};
const WHOLE_BEGINS: Traits = Traits {
    begins: true,
    ..WHOLE
};
const BEGINS: Traits = Traits {
    begins: true,
    ..PLAIN
};
const MARKS: Traits = Traits {
    marks_spaces: true,
    ..PLAIN
};
const MARKS_BEGINS: Traits = Traits {
    begins: true,
    ..MARKS
};

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const DIGIT: &str = r"\p{N}";
const THREE_DIGITS: &str = r"\p{N}{1,3}";
const CJK: &str = "[一-龥\u{3040}-ゟ゠-ヿ]+";
const LINES: &str = r"[^\n]+|[\n]+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const NO_PUNCTUATION: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";

/// Letters with case, after at most one space.
const CASED_LETTERS: &str = concat!(
    r"\s?[A-Za-z",
    r"\x{b5}\x{c0}-\x{d6}\x{d8}-\x{f6}\x{f8}-\x{1ba}\x{1bc}-\x{1bf}\x{1c4}-\x{293}",
    r"\x{295}-\x{2af}\x{370}-\x{373}\x{376}\x{377}\x{37b}-\x{37d}\x{37f}\x{386}\x{388}-\x{38a}",
    r"\x{38c}\x{38e}-\x{3a1}\x{3a3}-\x{3f5}\x{3f7}-\x{481}\x{48a}-\x{52f}\x{531}-\x{556}",
    r"\x{10a0}-\x{10c5}\x{13a0}-\x{13f5}\x{13f8}-\x{13fd}\x{1c90}-\x{1cba}\x{1cbd}-\x{1cbf}",
    r"\x{1d00}-\x{1d2b}\x{1d6b}-\x{1d77}\x{1d79}-\x{1d9a}\x{1e00}-\x{1f15}\x{1f18}-\x{1f1d}",
    r"\x{1f20}-\x{1f45}\x{1f48}-\x{1f4d}\x{1f50}-\x{1f57}\x{1f59}\x{1f5b}\x{1f5d}",
    r"\x{1f5f}-\x{1f7d}\x{1f80}-\x{1fb4}\x{1fb6}-\x{1fbc}\x{1fbe}\x{1fc2}-\x{1fc4}",
    r"\x{1fc6}-\x{1fcc}\x{1fd0}-\x{1fd3}\x{1fd6}-\x{1fdb}\x{1fe0}-\x{1fec}\x{1ff2}-\x{1ff4}",
    r"\x{1ff6}-\x{1ffc}\x{2102}\x{2107}\x{210a}-\x{2113}\x{2115}\x{2119}-\x{211d}\x{2124}",
    r"\x{2126}\x{2128}\x{212a}-\x{212d}\x{212f}-\x{2134}\x{2139}\x{213c}-\x{213f}",
    r"\x{2145}-\x{2149}\x{214e}\x{2183}\x{2184}\x{2c00}-\x{2c7b}\x{2c7e}-\x{2ce4}",
    r"\x{2ceb}-\x{2cee}\x{2cf2}\x{2cf3}\x{a640}-\x{a66d}\x{a680}-\x{a69b}\x{a722}-\x{a76f}",
    r"\x{a771}-\x{a787}\x{a78b}-\x{a78e}\x{ab70}-\x{abbf}\x{fb00}-\x{fb06}\x{fb13}-\x{fb17}",
    r"\x{ff21}-\x{ff3a}\x{ff41}-\x{ff5a}\x{10400}-\x{1044f}\x{104b0}-\x{104d3}",
    r"\x{104d8}-\x{104fb}\x{10c80}-\x{10cb2}\x{10cc0}-\x{10cf2}\x{118a0}-\x{118df}",
    r"\x{1e900}-\x{1e943}",
    "]+",
);

/// Every way to split that is known, by name.
pub const NAMED: &[Named] = &[
    Named {
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        traits: PLAIN,
    },
    Named {
        names: &[
            "gpt-2",
            "gpt2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
        ],
        patterns: &[GPT2],
        traits: PLAIN,
    },
    Named {
        names: &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        patterns: &[DIGIT, GPT2],
        traits: PLAIN,
    },
    Named {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        patterns: &[LLAMA3],
        traits: WHOLE_BEGINS,
    },
    Named {
        names: &["dbrx", "smaug-bpe", "chatglm-bpe"],
        patterns: &[LLAMA3],
        traits: PLAIN,
    },
    Named {
        names: &["glm4", "glm5"],
        patterns: &[LLAMA3],
        traits: WHOLE,
    },
    Named {
        names: &["jais-2"],
        patterns: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}",
        ],
        traits: PLAIN,
    },
    Named {
        names: &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        patterns: &[QWEN2],
        traits: PLAIN,
    },
    Named {
        names: &["qwen35"],
        patterns: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        traits: PLAIN,
    },
    Named {
        names: &["laguna"],
        patterns: &[LINES, QWEN2],
        traits: PLAIN,
    },
    Named {
        names: &["minicpm5"],
        patterns: &[
            THREE_DIGITS,
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        traits: WHOLE,
    },
    Named {
        names: &["seed-coder"],
        patterns: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        traits: PLAIN,
    },
    Named {
        names: &["ufakzeka"],
        patterns: &[
            r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        traits: PLAIN,
    },
    Named {
        names: &["exaone-moe"],
        patterns: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        ],
        traits: PLAIN,
    },
    Named {
        names: &["bailingmoe", "bailingmoe2", "llada-moe"],
        patterns: &[
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        ],
        traits: PLAIN,
    },
    Named {
        names: &["deepseek-llm"],
        patterns: &[
            r"[\r\n]",
            CASED_LETTERS,
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            "[一-龥ࠀ-一가-\u{d7ff}]+",
            r"\p{N}+",
        ],
        traits: PLAIN,
    },
    Named {
        names: &["deepseek-coder"],
        patterns: &[
            r"[\r\n]",
            r"\s?\p{L}+",
            r"\s?\p{P}+",
            "[一-龥ࠀ-一가-\u{d7ff}]+",
            DIGIT,
        ],
        traits: PLAIN,
    },
    Named {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        patterns: &[THREE_DIGITS, CJK, DEEPSEEK3],
        traits: PLAIN,
    },
    Named {
        names: &["youtu"],
        patterns: &[
            "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u{3040}-ゟ゠-ヿ]+",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        traits: WHOLE,
    },
    Named {
        names: &["falcon"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
        traits: PLAIN,
    },
    Named {
        names: &["bloom", "poro-chat", "gpt3-finnish"],
        patterns: &[NO_PUNCTUATION],
        traits: PLAIN,
    },
    Named {
        names: &["viking"],
        patterns: &[NO_PUNCTUATION, DIGIT],
        traits: PLAIN,
    },
    Named {
        names: &["tekken"],
        patterns: &[
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        traits: WHOLE_BEGINS,
    },
    Named {
        names: &["chameleon"],
        patterns: &[
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            DIGIT,
            r"[\p{P}!-/:-@\[-`{-~]",
            GPT2,
        ],
        traits: BEGINS,
    },
    Named {
        names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        patterns: &[GPT4O],
        traits: PLAIN,
    },
    Named {
        names: &["granite-embed-multi-97m"],
        patterns: &[GPT4O],
        traits: WHOLE,
    },
    Named {
        names: &["tiny_aya", "cohere2moe"],
        patterns: &[r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O],
        traits: PLAIN,
    },
    Named {
        names: &["superbpe"],
        patterns: &[r"\p{N}+", r"(?=(\d{3})+(?!\d))"],
        traits: PLAIN,
    },
    Named {
        names: &["afmoe"],
        patterns: &[
            r"\p{Nd}{1,3}(?=(?:\p{Nd}{3})*(?:\P{Nd}|$))",
            "[一-鿿㐀-䶿\u{f900}-\u{faff}\u{3040}-ゟ゠-ヿ･-ﾟ⼀-\u{2fdf}เ-\u{e7f}\u{e80}-\u{eff}ក-\u{17ff}က-႟ꩠ-ꩿꧠ-\u{a9ff}가-\u{d7af}ᄀ-ᇿ]+",
            DEEPSEEK3,
        ],
        traits: PLAIN,
    },
    Named {
        names: &["gemma4", "granite-embed-multi-311m"],
        patterns: &[LINES],
        traits: MARKS_BEGINS,
    },
    Named {
        names: &["sarvam-moe"],
        patterns: &[LINES],
        traits: MARKS,
    },
];

/// The way to split of this name.
///
/// # Errors
/// [`TextError::PreTokenizer`] for a name that is not known.
pub fn named(name: &str) -> Result<&'static Named, TextError> {
    NAMED
        .iter()
        .find(|named| named.names.contains(&name))
        .ok_or_else(|| TextError::PreTokenizer(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split<'a>(name: &str, text: &'a str) -> Vec<&'a str> {
        let words = Words::new(named(name).expect("a known name").patterns).expect("patterns");
        let ranges = words.split(text).expect("few steps");
        ranges.into_iter().map(|range| &text[range]).collect()
    }

    #[test]
    fn every_pattern_compiles_and_covers_the_text() {
        let text = "It's 12345 o'clock…\r\n\n  世界! ünï \u{301}ß\t<|x|> DON'T  ";
        for named in NAMED {
            let words = Words::new(named.patterns)
                .unwrap_or_else(|error| panic!("{:?}: {error}", named.names));
            let ranges = words.split(text).expect("few steps");
            let mut at = 0;
            for range in ranges {
                assert_eq!(range.start, at, "{:?}", named.names);
                assert!(!range.is_empty());
                at = range.end;
            }
            assert_eq!(at, text.len(), "{:?}", named.names);
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = NAMED.iter().flat_map(|n| n.names).copied().collect();
        let len = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), len);
    }

    #[test]
    fn words_of_some_families() {
        assert_eq!(
            split("gpt-2", "It's 123  ok\n\nnext"),
            ["It", "'s", " 123", " ", " ok", "\n", "\n", "next"]
        );
        assert_eq!(split("smollm", "a 12 b"), ["a", " ", "1", "2", " b"]);
        assert_eq!(
            split("llama-bpe", "IT'S 12345\n\n x"),
            ["IT", "'S", " ", "123", "45", "\n\n", " x"]
        );
        assert_eq!(split("qwen2", "12 (x)"), ["1", "2", " (", "x", ")"]);
        assert!(matches!(
            named("nobody"),
            Err(TextError::PreTokenizer(name)) if name == "nobody"
        ));
    }
}
