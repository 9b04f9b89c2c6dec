#!/usr/bin/env python3
"""Compares the losses of `cupola train` with those of PyTorch, step by step.

    python scripts/compare_training.py examples/train/digits.toml [--steps 200] [--cupola target/release/cupola] [--json FILE]

Both begin with the same weights (which `--steps 0 --export` writes), see the same samples in the same order (made again here from the
files by what docs/training.md says) and use the same optimiser. Dropout is taken out of the model, since its draws differ. Prints the
largest relative difference of the losses; status 1 where it is above --most.

Needs torch, numpy and safetensors. Reads the layers and data that the configurations of examples/train have.
"""
import argparse
import csv
import gzip
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

MASK = (1 << 64) - 1
STRIDE = 0x9E3779B97F4A7C15


# --- order of samples -----------------------------------------------------------------------------------------------


def splitmix(state):
    """One step of SplitMix64: the next state and a number."""
    state = (state + STRIDE) & MASK
    z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return state, z ^ (z >> 31)


def order(count, seed, epoch):
    """The order of an epoch."""
    state = splitmix(seed)[1] ^ (((epoch + 1) & MASK) * STRIDE & MASK)
    rows = list(range(count))
    for i in range(count - 1, 0, -1):
        state, draw = splitmix(state)
        j = (draw * (i + 1)) >> 64
        rows[i], rows[j] = rows[j], rows[i]
    return rows


def training_rows(data, count, x):
    """The rows that are neither validated nor tested with."""
    rows = list(range(count))
    if data.get("unique"):
        _, first = np.unique(x.reshape(count, -1), axis=0, return_index=True)
        rows = sorted(first.tolist())
    if data.get("split_end", data.get("kind") == "text"):
        dealt = rows[::-1]
    else:
        dealt = [rows[i] for i in order(len(rows), data.get("split_seed", 0), MASK)]
    held = int(data.get("test", 0.0) * len(rows))
    held += int(data.get("validation", 0.0) * len(rows))
    return sorted(dealt[held:])


# --- data -----------------------------------------------------------------------------------------------------------


def read_text(path):
    raw = open(path, "rb").read()
    return (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode()


def table(path, data):
    rows = list(csv.reader(read_text(path).splitlines()))
    names = rows.pop(0) if not re.fullmatch(r"-?[\d.e+-]+", rows[0][0]) else [str(i + 1) for i in range(len(rows[0]))]
    target = names.index(data["target"][0]) if "target" in data else len(names) - 1
    values = np.array(rows, np.float64)
    y = values[:, [target]]
    return np.delete(values, target, 1).astype(np.float32), y[:, 0].astype(np.int64) if data.get("class_target") else y.astype(np.float32)


def digits(path):
    if os.path.isdir(path):
        x, y = [], []
        for name in sorted(n for n in os.listdir(path) if n.endswith(".json")):
            values = np.array(json.load(open(os.path.join(path, name)))["data"]).reshape(-1, 784)
            x.append(np.rint(values * 255).astype(np.uint8))
            y += [int(name[0])] * len(values)
        return np.concatenate(x), np.array(y)
    rows = np.array([line.split(",") for line in read_text(path).split()], np.int64)
    return rows[:, :-1].astype(np.uint8), rows[:, -1]


def tabbed(path):
    """Names of the columns, and rows, of a tab-separated file with three lines of description."""
    rows = [r for r in csv.reader(open(path, encoding="utf8", newline=""), delimiter="\t") if r]
    return rows[0], rows[2], rows[3:]


def words(text, data):
    text = text.lower() if data.get("lowercase") else text
    if data.get("units") == "characters":
        return list(text)
    return re.findall(r"[^\W_]+(?:['’](?=[^\W_])[^\W_]+)*|\n|[^\w\s]|_", text)


def vocabulary(texts, data):
    counts = Counter(w for t in texts for w in words(t, data))
    kept = sorted(counts, key=lambda w: (-counts[w], w))[: data.get("vocabulary", 1 << 40) - 2]
    return {w: i + 2 for i, w in enumerate(kept)}


def read(data):
    """Inputs, targets, kinds of tokens; a list of sequences where they have different lengths."""
    files, kind = data["files"], data.get("kind")
    if kind == "text":
        texts = []
        for path in files:
            names, flags, rows = tabbed(path)
            at = next((i for i, f in enumerate(flags) if "include=True" in f), len(names) - 1)
            texts += [r[at] for r in rows]
        text = "\n".join(texts)
        ids = vocabulary([text], data)
        tokens = np.array([ids.get(w, 1) for w in words(text, data)])
        length = data["length"]
        starts = range(0, len(tokens) - length, data.get("stride", length))
        x = np.stack([tokens[s : s + length] for s in starts])
        return x, np.stack([tokens[s + 1 : s + length + 1] for s in starts]), len(ids) + 2
    if files[0].endswith(".tab"):
        rows = tabbed(files[0])[2]
        ids = vocabulary([r[1] for r in rows], data)
        classes = sorted({r[0] for r in rows})
        x = [[ids.get(w, 1) for w in words(r[1], data)][: data["length"]] for r in rows]
        return x, np.array([classes.index(r[0]) for r in rows]), len(ids) + 2
    if kind == "table" or files[0].endswith(".csv"):
        x, y = table(files[0], data)
        if data.get("standardise"):
            rows = training_rows(data, len(x), x)
            wide = x.astype(np.float64)
            mean, deviation = wide[rows].mean(0), wide[rows].std(0)
            scale = np.where(deviation > 0, 1 / np.where(deviation > 0, deviation, 1), 0)
            x = ((wide - mean) * scale).astype(np.float32)
        return x, y, 0
    parts = [digits(path) for path in files]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]), 0


def batch_of(x, y, rows, data):
    if isinstance(x, list):
        chosen = [x[r] for r in rows]
        width = data["length"] if data.get("pad_to_length") else max(1, max(map(len, chosen)))
        pad = lambda s: [0] * (width - len(s)) + s if data.get("pad") == "left" else s + [0] * (width - len(s))
        return torch.tensor([pad(s) for s in chosen]), torch.tensor(y[rows])
    picked = torch.tensor(x[rows])
    return (picked.float() / 255 if x.dtype == np.uint8 else picked), torch.tensor(y[rows])


# --- models ---------------------------------------------------------------------------------------------------------


def spec(text):
    """`name:value,key=value` taken apart."""
    name, _, rest = text.partition(":")
    parts = [p.strip() for p in rest.split(",") if p.strip()]
    return name, [p for p in parts if "=" not in p], dict(p.split("=") for p in parts if "=" in p)


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.o = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.f1, self.f2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, d))
        return x + self.f2(F.gelu(self.f1(self.n2(x)), approximate="tanh"))


class Model(nn.Module):
    """The layers of a configuration."""

    def __init__(self, layers, kinds, classes):
        super().__init__()
        self.steps, counts, width = [], Counter(), None
        number = lambda v: {"tokens": kinds, "classes": classes}.get(v) or int(v)
        for text in layers:
            kind, values, keys = spec(text)
            counts[kind] += 1
            name = keys.get("name", f"{kind}{counts[kind]}")
            step = None
            if kind == "linear":
                step = nn.LazyLinear(number(values[0]), bias=keys.get("bias") != "false")
                width = number(values[0])
            elif kind == "conv":
                step = nn.LazyConv2d(int(values[0]), int(keys.get("kernel", 3)))
            elif kind == "embedding":
                padding = int(keys["padding"]) if "padding" in keys else None
                width = int(values[0])
                step = nn.Embedding(kinds, width, padding_idx=padding)
            elif kind == "lstm":
                step = nn.LSTM(width, int(values[0]), int(keys.get("layers", 1)), batch_first=True)
                width = int(values[0])
            elif kind == "blocks":
                step = nn.ModuleList(Block(width, int(keys["heads"])) for _ in range(int(values[0])))
            elif kind == "layer_norm":
                step = nn.LayerNorm(width)
            elif kind == "attention":
                step = nn.MultiheadAttention(width, int(values[0]), batch_first=True)
            elif kind == "positions":
                step = nn.ParameterDict({"weight": nn.Parameter(torch.zeros(1))})
            if step is not None:
                self.add_module(name, step)
            self.steps.append((kind, values, name))

    def forward(self, x):
        for kind, values, name in self.steps:
            layer = getattr(self, name, None)
            if kind == "positions":
                x = x + layer["weight"]
            elif kind == "lstm":
                x = layer(x)[0]
            elif kind == "attention":
                x = layer(x, x, x, need_weights=False)[0]
            elif kind == "blocks":
                for block in layer:
                    x = block(x)
            elif layer is not None:
                x = layer(x)
            elif kind == "relu":
                x = F.relu(x)
            elif kind == "max_pool":
                x = F.max_pool2d(x, int(values[0]))
            elif kind == "flatten":
                x = x.flatten(1)
            elif kind == "last":
                x = x[:, -1]
            elif kind == "mean":
                x = x.mean(int(values[0]))
            else:
                raise SystemExit(f"layer {kind} is not read here")
        return x


def optimiser(text, parameters):
    name, _, keys = spec(text)
    rate = float(keys.get("lr", 1e-3))
    decay = {"weight_decay": float(keys["weight_decay"])} if "weight_decay" in keys else {}
    if name == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=float(keys.get("momentum", 0)), **decay)
    betas = tuple(map(float, keys.get("betas", "0.9/0.999").split("/")))
    if keys.get("no_vector_decay") == "true":
        vectors = [p for p in parameters if p.dim() < 2]
        matrices = [p for p in parameters if p.dim() >= 2]
        parameters = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return (torch.optim.AdamW if name == "adamw" else torch.optim.Adam)(parameters, rate, betas=betas, **decay)


# --- the comparison -------------------------------------------------------------------------------------------------


def toml(value):
    """A value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def without_dropout(config):
    layers = []
    for text in config["model"]["layers"]:
        if not text.startswith("dropout"):
            layers.append(re.sub(r",dropout=[\d.]+", "", text))
    config["model"]["layers"] = layers


def write(config, path):
    tables = {k: v for k, v in config.items() if isinstance(v, dict)}
    with open(path, "w") as f:
        for key, value in config.items():
            if key not in tables:
                f.write(f"{key} = {toml(value)}\n")
        for name, values in tables.items():
            f.write(f"[{name}]\n" + "".join(f"{k} = {toml(v)}\n" for k, v in values.items()))


def ours(config, steps, program, folder):
    """First weights by name, and lines of all steps."""
    path = os.path.join(folder, "run.toml")
    weights = os.path.join(folder, "first.safetensors")
    write(config, path)
    run = lambda *more: subprocess.run([program, "train", path, "--json", *more], check=True, capture_output=True, text=True).stdout
    run("--steps", "0", "--export", weights)
    lines = map(json.loads, run("--steps", str(steps)).splitlines())
    return load_file(weights), [line for line in lines if "epoch" in line]


def theirs(config, lines, weights):
    """Losses of PyTorch with the learning rates of our steps."""
    data = config["data"]
    x, y, kinds = read(data)
    rows = training_rows(data, len(x), x if not isinstance(x, list) else np.zeros(len(x)))
    classes = 0 if data.get("kind") == "text" or y.dtype != np.int64 else int(y.max()) + 1
    model = Model(config["model"]["layers"], kinds, classes)
    shape = config["model"].get("input")
    form = lambda x: x.reshape(len(x), *shape) if shape else x
    batch, epoch, at = config.get("batch", 32), 0, 0
    shuffled = lambda e: [rows[i] for i in order(len(rows), config.get("seed", 0), e)]
    current, step_of = shuffled(0), None
    losses = []
    for line in lines:
        if at >= len(current) or (config.get("drop_last") and at + batch > len(current)):
            epoch, at = epoch + 1, 0
            current = shuffled(epoch)
        inputs, targets = batch_of(x, y, current[at : at + batch], data)
        at += batch
        inputs = form(inputs)
        if step_of is None:
            model(inputs)  # lazy layers take their extents
            for name, p in model.named_parameters():
                p.data = weights[name].clone()
            step_of = optimiser(config["optim"], list(model.parameters()))
        scores = model(inputs)
        if config["loss"].startswith("ce"):
            loss = F.cross_entropy(scores.flatten(0, -2), targets.flatten())
        else:
            loss = F.mse_loss(scores, targets)
        step_of.zero_grad()
        loss.backward()
        if "clip_norm" in config:
            nn.utils.clip_grad_norm_(model.parameters(), config["clip_norm"])
        for group in step_of.param_groups:
            group["lr"] = line["lr"]
        step_of.step()
        losses.append(loss.item())
    return losses


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--cupola", default="target/release/cupola")
    parser.add_argument("--most", type=float, default=0.01)
    parser.add_argument("--json")
    args = parser.parse_args()
    config = tomllib.load(open(args.config, "rb"))
    base = os.path.dirname(os.path.abspath(args.config))
    config["data"]["files"] = [os.path.join(base, f) for f in config["data"]["files"]]
    # Nothing is held against them but the loss.
    config["data"].pop("test_files", None)
    config.pop("metrics", None)
    config.pop("epochs", None)
    without_dropout(config)
    with tempfile.TemporaryDirectory() as folder:
        config["checkpoint"] = {"folder": os.path.join(folder, "checkpoints"), "every": 1 << 30}
        config["validation"] = {"every": 1 << 30}
        config["steps"] = max(args.steps, 1)
        weights, lines = ours(config, args.steps, args.cupola, folder)
    want = theirs(config, lines, weights)
    got = [line["loss"] for line in lines]
    differences = [abs(a - b) / max(abs(b), 1e-12) for a, b in zip(got, want)]
    worst = max(range(len(differences)), key=differences.__getitem__)
    name = os.path.basename(args.config)
    print(f"{name}: {len(got)} steps, loss {want[0]:.6f} to {want[-1]:.6f}; largest relative difference {differences[worst]:.2e}, at step {worst + 1}")
    if args.json:
        document = {"config": name, "torch": torch.__version__, "cupola": got, "pytorch": want, "largest": differences[worst]}
        json.dump(document, open(args.json, "w"))
    if not math.isfinite(differences[worst]) or differences[worst] > args.most:
        sys.exit(1)


if __name__ == "__main__":
    main()
