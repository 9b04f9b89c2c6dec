//! What an engine must know of a model beside its graph.

use crate::error::{LanguageError, Result};
use cupola_ir::{DType, Graph};
use cupola_source::Source;

/// A language model ready to be compiled.
#[derive(Debug)]
pub struct LanguageModel {
    /// The graph; see [`Kind`] for its inputs and outputs.
    pub graph: Graph,
    /// Sizes of the model.
    pub config: Config,
    /// The files whose bytes the graph's constants are.
    pub files: Vec<Source>,
}

/// What a graph takes and gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Continues text. One run is one step of a batch. Inputs, all i64: `tokens: [rows]`; `positions: [rows]`, from 0 in
    /// each sequence; `sequences: [rows]`, a row of `table`; `table: [batch, blocks]`, the page of each
    /// [`Config::page_len`] positions of a sequence, 0 where there is none yet; `wanted: [outs]`, the rows whose logits
    /// are wanted. Rows of one sequence are neighbours in order of position. Output `logits: f32[outs, vocab_len]`.
    /// State slots `key.N` and `value.N` of block N are `[pages, kv_heads, page_len, head_len]` of
    /// [`Config::cache_dtype`] and hold no page at first; where that is i8, `key_scale.N` and `value_scale.N` are
    /// `f16[pages, kv_heads, page_len, scales]` ([`Options::cache_dtype`]). The keys and values of the rows are written before anything
    /// is read, so a row sees itself.
    Decoder,
    /// Describes whole texts. Inputs: `tokens`, `positions` and, where the model tells segments apart, `segments`, all
    /// `i64[batch, length]`; `mask: bool[batch, length]`, true where there is a token. Outputs
    /// `hidden: f32[batch, length, width]` and `embedding: f32[batch, width]` of length 1.
    Encoder,
}

/// Keys and values of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheBlock {
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Elements of a key of one head.
    pub key_len: usize,
    /// Elements of a value of one head.
    pub value_len: usize,
    /// How many positions a row sees at most, its own included; 0 for all.
    pub window: usize,
}

/// Sizes of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of the architecture, as GGUF files spell it.
    pub architecture: String,
    /// Which contract the graph follows.
    pub kind: Kind,
    /// Tokens of the vocabulary, as many as there are logits.
    pub vocab_len: usize,
    /// Positions that the model was made for.
    pub context_len: usize,
    /// Elements of a row between blocks.
    pub width: usize,
    /// One entry per block of a decoder; none of an encoder, which keeps nothing.
    pub blocks: Vec<CacheBlock>,
    /// Positions of a page.
    pub page_len: usize,
    /// Type of keys and values.
    pub cache_dtype: DType,
}

impl Config {
    /// Bytes of one page over all blocks.
    pub fn page_size(&self) -> usize {
        let row = |len: usize| match self.cache_dtype {
            DType::I8 => len + scales_of(len) * DType::F16.size(),
            dtype => len * dtype.size(),
        };
        let position = |b: &CacheBlock| b.kv_heads * (row(b.key_len) + row(b.value_len));
        let sizes = self.blocks.iter().map(position);
        sizes.sum::<usize>() * self.page_len
    }
}

/// Neighbours that share a scale where keys and values are kept in 8 bits.
const GROUP: usize = 32;

/// Scales of a key or value of so many elements in 8 bits.
pub(crate) fn scales_of(len: usize) -> usize {
    match len.is_multiple_of(GROUP) {
        true => len / GROUP,
        false => 1,
    }
}

/// How to build the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Type of keys and values between runs: f16, bf16, f32; or i8, 127 steps to either side of zero with a scale of f16 for
    /// each 32 neighbours, or for a whole head whose elements are no multiple of that.
    pub cache_dtype: DType,
    /// Positions of a page.
    pub page_len: usize,
    /// Positions that will be used, where the model's own number is not meant. Some rotary scalings depend on it: without
    /// it they are those of short texts.
    pub context_len: Option<usize>,
    /// Positions that no text will pass, where [`Options::context_len`] says nothing and the model was made for more. Only
    /// those scalings look at it: a model that turns the heads of long texts in another way does so from the first
    /// position on, since what is in the cache is not turned again.
    pub text_len: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            cache_dtype: DType::F16,
            page_len: 16,
            context_len: None,
            text_len: None,
        }
    }
}

impl Options {
    /// Positions of the longest text, as far as somebody said; the model was made for `trained`.
    pub(crate) fn longest_text(&self, trained: usize) -> Option<usize> {
        let most = self.text_len.map(|len| len.min(trained));
        self.context_len.or(most)
    }

    pub(crate) fn check(&self) -> Result<()> {
        let dtype = self.cache_dtype;
        if !matches!(dtype, DType::F16 | DType::BF16 | DType::F32 | DType::I8) {
            let what = format!("keys and values are kept as f16, bf16, f32 or i8, not as {dtype}");
            return Err(LanguageError::Option(what));
        }
        if !(1..=4096).contains(&self.page_len) {
            let what = format!(
                "a page of {} positions; 1 to 4096 are possible",
                self.page_len
            );
            return Err(LanguageError::Option(what));
        }
        match self.context_len {
            Some(0) => Err(LanguageError::Option("a context of 0 positions".into())),
            _ => Ok(()),
        }
    }
}
