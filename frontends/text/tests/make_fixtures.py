"""Writes the tokenizers and the expected tokens that the tests compare with.

    python3 make_fixtures.py TEXTS COUNT OUT

TEXTS is a folder of text files to train small vocabularies on. For each kind of tokenizer OUT receives NAME.gguf (metadata
only) and NAME.json: COUNT texts with the tokens of a public implementation (`tokenizers`, `sentencepiece`).
"""

import json
import pathlib
import random
import sys

import gguf
import sentencepiece
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

PARTS = json.loads((pathlib.Path(__file__).parent / "parts.json").read_text())

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT4O = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
DEEPSEEK3 = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""


def random_char(r):
    ranges = [(0x20, 0x7F, 8), (0xA0, 0x800, 4), (0x800, 0xD800, 5), (0xE000, 0x110000, 2), (0, 0x20, 1)]
    low, high, _ = r.choices(ranges, [weight for *_, weight in ranges])[0]
    return chr(r.randrange(low, high))


def text(r):
    """A varied text: sentences of many languages, random characters, damaged UTF-8, runs of spaces, digits."""
    some = lambda most: [r.choice(PARTS) for _ in range(r.randrange(1, most))]
    kind = r.random()
    if kind < 0.45:
        return r.choice(["", " ", "\n", ", "]).join(some(7))
    if kind < 0.6:
        return "".join(random_char(r) for _ in range(r.randrange(40)))
    if kind < 0.7:
        return r.randbytes(r.randrange(1, 30)).decode("utf-8", "replace")
    if kind < 0.8:
        whole = " ".join(some(4)).encode()
        low, high = sorted(r.randrange(len(whole) + 1) for _ in range(2))
        return whole[low:high].decode("utf-8", "replace")
    if kind < 0.9:
        bits = [" ", "  ", "\t", "\n", "\r\n", "a", "B", "1", "23", ".", "'", "'s", "'RE", "é", "世"]
        return "".join(r.choice(bits) for _ in range(r.randrange(1, 30)))
    return "".join(r.choice(" 0123456789.,") for _ in range(r.randrange(1, 30)))


def write_gguf(path, model, tokens, types, **more):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for name, value in more.items():
        getattr(writer, name)(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def split(*patterns):
    parts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence(parts + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def byte_level(pre, pre_tokenizer, ignore_merges=False):
    """A byte-level vocabulary of pairs with two control tokens and one that is defined by the user."""

    def make(lines, path):
        tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
        tokenizer.pre_tokenizer = pre_tokenizer
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False)
        tokenizer.train_from_iterator(lines, trainer)
        tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
        vocab = tokenizer.get_vocab()
        tokens = sorted(vocab, key=vocab.get)
        types = [3 if token.startswith("<|im_") else 4 if token == "<tool>" else 1 for token in tokens]
        merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
        write_gguf(path, "gpt2", tokens, types, add_tokenizer_pre=pre, add_token_merges=merges, add_bos_token_id=0, add_eos_token_id=1, add_add_bos_token=False)
        return lambda text: tokenizer.encode(text, add_special_tokens=False).ids

    return make


def sentence(model, byte_fallback, **options):
    """SentencePiece's own vocabulary, of pairs or unigrams."""

    def make(lines, path):
        prefix = str(path.with_suffix(""))
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_prefix=prefix, vocab_size=800, byte_fallback=byte_fallback, character_coverage=0.995,
            user_defined_symbols=["<tool>"], minloglevel=2, **options)
        processor = sentencepiece.SentencePieceProcessor(model_file=prefix + ".model")
        from sentencepiece import sentencepiece_model_pb2 as schema
        proto = schema.ModelProto()
        proto.ParseFromString(pathlib.Path(prefix + ".model").read_bytes())
        for suffix in (".model", ".vocab"):
            pathlib.Path(prefix + suffix).unlink()
        more = {}
        if model == "t5":
            charsmap = proto.normalizer_spec.precompiled_charsmap
            more = dict(add_precompiled_charsmap=charsmap) if charsmap else {}
            more["add_remove_extra_whitespaces"] = proto.normalizer_spec.remove_extra_whitespaces
        write_gguf(
            path, model, [p.piece for p in proto.pieces], [int(p.type) for p in proto.pieces], add_token_scores=[p.score for p in proto.pieces],
            add_add_space_prefix=proto.normalizer_spec.add_dummy_prefix, add_unk_token_id=processor.unk_id(), add_bos_token_id=processor.bos_id(),
            add_eos_token_id=processor.eos_id(), add_add_bos_token=False, add_add_eos_token=False, **more)
        return lambda text: processor.encode(text)

    return make


def save(tokenizer, path, **config):
    """Writes a model's folder beside where the GGUF file would be."""
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return lambda text: tokenizer.encode(text).ids


def word_pieces(lines, path):
    """BERT's word pieces, as a folder and as a GGUF file."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(lines, trainers.WordPieceTrainer(vocab_size=700, special_tokens=special, show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    encode = save(tokenizer, path, cls_token="[CLS]", sep_token="[SEP]")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.get)
    types = [3 if token in special else 1 for token in tokens]
    phantom = [token if type == 3 else token[2:] if token.startswith("##") else "\u2581" + token for token, type in zip(tokens, types)]
    write_gguf(path, "bert", phantom, types, add_unk_token_id=1, add_bos_token_id=2, add_sep_token_id=3)
    return encode


def byte_fallback(lines, path):
    """Pairs of text with marks for spaces and tokens for bytes, as converters write SentencePiece's."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    lines = [word for line in lines for word in line.split(" ")]
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=700, special_tokens=special, limit_alphabet=200, show_progress=False))
    description = json.loads(tokenizer.to_str())
    description["added_tokens"] = description["added_tokens"][:3]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(description))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return save(tokenizer, path, bos_token="<s>", eos_token={"content": "</s>"})


DIGITS = pre_tokenizers.Digits(individual_digits=True)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
KINDS = {
    "gpt-2": byte_level("gpt-2", BYTES),
    "smollm": byte_level("smollm", pre_tokenizers.Sequence([DIGITS, BYTES])),
    "llama-bpe": byte_level("llama-bpe", split(LLAMA3), ignore_merges=True),
    "qwen2": byte_level("qwen2", split(QWEN2)),
    "gpt-4o": byte_level("gpt-4o", split(GPT4O)),
    "tekken": byte_level("tekken", split(TEKKEN), ignore_merges=True),
    "deepseek-v3": byte_level("deepseek-v3", split(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3)),
    "sentence": sentence("llama", True, model_type="bpe", normalization_rule_name="identity", remove_extra_whitespaces=False, max_sentence_length=100000),
    "sentence-no-bytes": sentence("llama", False, model_type="bpe", normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False),
    "unigram": sentence("t5", False, model_type="unigram"),
    "word-pieces": word_pieces,
    "byte-fallback": byte_fallback,
}


def main():
    folder, count, out = pathlib.Path(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3])
    out.mkdir(parents=True, exist_ok=True)
    corpus = [line for path in sorted(folder.iterdir()) for line in path.read_text(errors="replace").splitlines()[:400] if line.strip()]
    corpus = [line[:400].replace("\0", " ") for line in corpus] + [part.replace("\0", " ") for part in PARTS if part.strip("\0\n\r ")] * 3
    r = random.Random(7)
    texts = [text(r) for _ in range(count)]
    for name in sys.argv[4:] or KINDS:
        encode = KINDS[name](corpus, out / f"{name}.gguf")
        cases = [[text, encode(text)] for text in texts]
        (out / f"{name}.json").write_text("[\n" + ",\n".join(json.dumps(case, ensure_ascii=True, separators=(",", ":")) for case in cases) + "\n]\n")


main()
