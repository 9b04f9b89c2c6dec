//! How the tensors of a folder are called, in the words of GGUF files.

/// The spelling of one family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names {
    /// Tables of names in GGUF files and in folders, without `.weight` or `.bias`; `{}` stands for a number. The first
    /// that fits counts.
    pub tables: &'static [Table],
    /// Parts of names of tensors that a model carries without using them.
    pub ignored: &'static [&'static str],
}

/// Modules around the text model; which of them there are depends on what else the model can do.
const WRAPPERS: [&str; 6] = [
    "language_model.",
    "model.",
    "transformer.",
    "bert.",
    "text_model.",
    "backbone.",
];

/// Parts of every model that are no weights, or do not belong to text.
const IGNORED: [&str; 4] = [
    "rotary_emb.inv_freq",
    "vision_tower.",
    "multi_modal_projector.",
    "vision_model.",
];

/// What a module's tensors are called, and what that means; the last two by old checkpoints.
const SUFFIXES: [(&str, &str); 4] = [
    (".weight", "weight"),
    (".bias", "bias"),
    (".gamma", "weight"),
    (".beta", "bias"),
];

impl Names {
    /// Whether a tensor has no part in the model.
    pub fn ignores(&self, name: &str) -> bool {
        let mut parts = IGNORED.iter().chain(self.ignored);
        parts.any(|part| name.contains(part))
    }

    /// The name in GGUF files; the name itself where the family knows none.
    pub fn translate(&self, name: &str) -> String {
        let mut short = name;
        while let Some(rest) = WRAPPERS.iter().find_map(|w| short.strip_prefix(w)) {
            short = rest;
        }
        let (stem, suffix) = SUFFIXES
            .iter()
            .find_map(|(spelled, suffix)| Some((short.strip_suffix(spelled)?, *suffix)))
            .unwrap_or((short, "weight"));
        let found = self
            .tables
            .iter()
            .copied()
            .flatten()
            .find_map(|(known, pattern)| {
                let numbers = numbers(pattern, stem)?;
                let mut numbers = numbers.into_iter();
                let filled: Vec<&str> = (known.split('.'))
                    .map(|part| {
                        if part == "{}" {
                            numbers.next().unwrap_or("{}")
                        } else {
                            part
                        }
                    })
                    .collect();
                Some(filled.join("."))
            });
        match found {
            Some(known) => format!("{known}.{suffix}"),
            None => name.to_owned(),
        }
    }
}

/// What stands for each `{}` when the name fits the pattern.
fn numbers<'a>(pattern: &str, name: &'a str) -> Option<Vec<&'a str>> {
    let mut found = vec![];
    let mut parts = name.split('.');
    for wanted in pattern.split('.') {
        let part = parts.next()?;
        match wanted {
            "{}" if !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) => {
                found.push(part);
            }
            _ if wanted == part => {}
            _ => return None,
        }
    }
    parts.next().is_none().then_some(found)
}

type Table = &'static [(&'static str, &'static str)];

/// Families that follow Llama's modules.
const SHARED: Table = &[
    ("token_embd", "embed_tokens"),
    ("output_norm", "norm"),
    ("output", "lm_head"),
    ("blk.{}.attn_norm", "layers.{}.input_layernorm"),
    ("blk.{}.attn_q", "layers.{}.self_attn.q_proj"),
    ("blk.{}.attn_k", "layers.{}.self_attn.k_proj"),
    ("blk.{}.attn_v", "layers.{}.self_attn.v_proj"),
    ("blk.{}.attn_qkv", "layers.{}.self_attn.qkv_proj"),
    ("blk.{}.attn_output", "layers.{}.self_attn.o_proj"),
    ("blk.{}.attn_q_norm", "layers.{}.self_attn.q_norm"),
    ("blk.{}.attn_k_norm", "layers.{}.self_attn.k_norm"),
    ("blk.{}.ffn_gate", "layers.{}.mlp.gate_proj"),
    ("blk.{}.ffn_up", "layers.{}.mlp.up_proj"),
    ("blk.{}.ffn_up", "layers.{}.mlp.gate_up_proj"),
    ("blk.{}.ffn_down", "layers.{}.mlp.down_proj"),
    ("blk.{}.ffn_gate_inp", "layers.{}.mlp.gate"),
    ("blk.{}.ffn_gate_inp", "layers.{}.block_sparse_moe.gate"),
    (
        "blk.{}.ffn_gate_up_exps",
        "layers.{}.mlp.experts.gate_up_proj",
    ),
    ("blk.{}.ffn_down_exps", "layers.{}.mlp.experts.down_proj"),
    ("blk.{}.ffn_gate.{}", "layers.{}.mlp.experts.{}.gate_proj"),
    ("blk.{}.ffn_up.{}", "layers.{}.mlp.experts.{}.up_proj"),
    ("blk.{}.ffn_down.{}", "layers.{}.mlp.experts.{}.down_proj"),
    (
        "blk.{}.ffn_gate.{}",
        "layers.{}.block_sparse_moe.experts.{}.w1",
    ),
    (
        "blk.{}.ffn_down.{}",
        "layers.{}.block_sparse_moe.experts.{}.w2",
    ),
    (
        "blk.{}.ffn_up.{}",
        "layers.{}.block_sparse_moe.experts.{}.w3",
    ),
];

/// Two norms in a block, each before its part.
const NORMS_BEFORE: Table = &[("blk.{}.ffn_norm", "layers.{}.post_attention_layernorm")];

/// Most decoders.
pub(crate) const LLAMA: Names = Names {
    tables: &[NORMS_BEFORE, SHARED],
    ignored: &[],
};

/// Norms before and after each part of a block.
pub(crate) const GEMMA: Names = Names {
    tables: &[
        &[
            (
                "blk.{}.post_attention_norm",
                "layers.{}.post_attention_layernorm",
            ),
            ("blk.{}.ffn_norm", "layers.{}.pre_feedforward_layernorm"),
            (
                "blk.{}.post_ffw_norm",
                "layers.{}.post_feedforward_layernorm",
            ),
        ],
        SHARED,
    ],
    ignored: &[],
};

pub(crate) const GPT2: Names = Names {
    tables: &[&[
        ("token_embd", "wte"),
        ("position_embd", "wpe"),
        ("output_norm", "ln_f"),
        ("output", "lm_head"),
        ("blk.{}.attn_norm", "h.{}.ln_1"),
        ("blk.{}.attn_qkv", "h.{}.attn.c_attn"),
        ("blk.{}.attn_output", "h.{}.attn.c_proj"),
        ("blk.{}.ffn_norm", "h.{}.ln_2"),
        ("blk.{}.ffn_up", "h.{}.mlp.c_fc"),
        ("blk.{}.ffn_down", "h.{}.mlp.c_proj"),
    ]],
    ignored: &[".attn.bias", ".attn.masked_bias"],
};

pub(crate) const BERT: Names = Names {
    tables: &[&[
        ("token_embd", "embeddings.word_embeddings"),
        ("position_embd", "embeddings.position_embeddings"),
        ("token_types", "embeddings.token_type_embeddings"),
        ("token_embd_norm", "embeddings.LayerNorm"),
        ("blk.{}.attn_q", "encoder.layer.{}.attention.self.query"),
        ("blk.{}.attn_k", "encoder.layer.{}.attention.self.key"),
        ("blk.{}.attn_v", "encoder.layer.{}.attention.self.value"),
        (
            "blk.{}.attn_output",
            "encoder.layer.{}.attention.output.dense",
        ),
        (
            "blk.{}.attn_output_norm",
            "encoder.layer.{}.attention.output.LayerNorm",
        ),
        ("blk.{}.ffn_up", "encoder.layer.{}.intermediate.dense"),
        ("blk.{}.ffn_down", "encoder.layer.{}.output.dense"),
        (
            "blk.{}.layer_output_norm",
            "encoder.layer.{}.output.LayerNorm",
        ),
    ]],
    ignored: &["pooler.", "cls.", "embeddings.position_ids"],
};
