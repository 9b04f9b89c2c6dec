"""What the references made with PyTorch share: the random numbers of Cupola's dropout, a GPT's block, and the models and optimisers
that configurations of `cupola train` describe. Needs torch and numpy."""
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def random_bits(stream, run, n, seed=0):
    """The random bits of Cupola's graphs (Philox-4x32-10), as ir/src/ops/state.rs defines them."""
    low = np.uint64(0xFFFFFFFF)
    key = seed ^ (stream * 0x9E3779B97F4A7C15 % 2**64)
    k = [np.uint64(key & 0xFFFFFFFF), np.uint64(key >> 32)]
    block = np.arange((n + 3) // 4, dtype=np.uint64)
    c = [block & low, block >> np.uint64(32), np.full_like(block, run & 0xFFFFFFFF), np.full_like(block, run >> 32)]
    for _ in range(10):
        p, q = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(q >> np.uint64(32)) ^ c[1] ^ k[0], q & low, (p >> np.uint64(32)) ^ c[3] ^ k[1], p & low]
        k = [(k[0] + np.uint64(0x9E3779B9)) & low, (k[1] + np.uint64(0xBB67AE85)) & low]
    return np.stack(c, 1).reshape(-1)[:n]


class Dropout(nn.Module):
    """Dropout with the masks that Cupola draws: `stream` numbers the layer among all that drop, from 1; `runs` holds the number of
    the step and is shared by a model's layers."""

    def __init__(self, p, stream, runs, seed=0):
        super().__init__()
        self.p, self.stream, self.runs, self.seed = p, stream, runs, seed

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        kept = random_bits(self.stream, self.runs[0], x.numel(), self.seed) >= np.uint64(int(self.p * 2**32))
        return x * torch.tensor(kept.reshape(x.shape)) / (1 - self.p)


class Block(nn.Module):
    """A block of a GPT; `drop` makes the dropout behind each of its halves."""

    def __init__(self, width, heads, factor=4, drop=nn.Identity):
        super().__init__()
        self.heads = heads
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.o = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.f1, self.f2 = nn.Linear(width, factor * width), nn.Linear(factor * width, width)
        self.d1, self.d2 = drop(), drop()

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.d1(self.o(y.transpose(1, 2).reshape(b, t, d)))
        return x + self.d2(self.f2(F.gelu(self.f1(self.n2(x)), approximate="tanh")))


def spec(text):
    """`name:value,key=value` taken apart."""
    name, _, rest = text.partition(":")
    parts = [p.strip() for p in rest.split(",") if p.strip()]
    return name, [p for p in parts if "=" not in p], dict(p.split("=") for p in parts if "=" in p)


class Model(nn.Module):
    """The layers of a configuration, as far as the examples use them, for inputs of `shape` (without the batch)."""

    def __init__(self, layers, shape, kinds, classes, seed=0):
        super().__init__()
        self.runs, self.steps, counts, streams = [0], [], Counter(), 0
        shape = list(shape)
        number = lambda v: {"tokens": kinds, "classes": classes}.get(v) or int(v)

        def drop(p):
            nonlocal streams
            streams += 1
            return Dropout(p, streams, self.runs, seed)

        for text in layers:
            kind, values, keys = spec(text)
            counts[kind] += 1
            width = shape[-1] if shape else 0
            call, layer = None, None
            if kind == "linear":
                layer = nn.Linear(width, number(values[0]), bias=keys.get("bias") != "false")
                shape[-1] = number(values[0])
            elif kind == "conv":
                size = int(keys.get("kernel", 3))
                layer = nn.Conv2d(shape[0], int(values[0]), size)
                shape = [int(values[0]), shape[1] - size + 1, shape[2] - size + 1]
            elif kind == "embedding":
                padding = int(keys["padding"]) if "padding" in keys else None
                layer = nn.Embedding(kinds, int(values[0]), padding_idx=padding)
                shape = [*shape, int(values[0])]
            elif kind == "lstm":
                assert "dropout" not in keys, "masks between layers are not drawn here"
                layer = nn.LSTM(width, int(values[0]), int(keys.get("layers", 1)), batch_first=True)
                call = lambda x, layer=layer: layer(x)[0]
                shape[-1] = int(values[0])
            elif kind == "blocks":
                p = float(keys.get("dropout", 0))
                make = (lambda: drop(p)) if p else nn.Identity
                layer = nn.Sequential(*(Block(width, int(keys["heads"]), int(keys.get("factor", 4)), make) for _ in range(int(values[0]))))
            elif kind == "layer_norm":
                layer = nn.LayerNorm(width)
            elif kind == "attention":
                layer = nn.MultiheadAttention(width, int(values[0]), batch_first=True)
                call = lambda x, layer=layer: layer(x, x, x, need_weights=False)[0]
            elif kind == "positions":
                layer = nn.ParameterDict({"weight": nn.Parameter(torch.zeros(shape))})
                call = lambda x, layer=layer: x + layer["weight"]
            elif kind == "dropout":
                layer = drop(float(values[0]))
            elif kind == "relu":
                call = F.relu
            elif kind == "max_pool":
                size = int(values[0])
                call = lambda x, size=size: F.max_pool2d(x, size)
                shape = [shape[0], shape[1] // size, shape[2] // size]
            elif kind == "flatten":
                call, shape = lambda x: x.flatten(1), [int(np.prod(shape))]
            elif kind == "last":
                call, shape = lambda x: x[:, -1], shape[1:]
            elif kind == "mean":
                axis = int(values[0])
                call = lambda x, axis=axis: x.mean(axis)
                shape.pop(axis - 1)
            else:
                raise SystemExit(f"layer {kind} is not read here")
            if layer is not None:
                self.add_module(keys.get("name", f"{kind}{counts[kind]}"), layer)
            self.steps.append(call or layer)

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x


def optimiser(text, parameters):
    """The optimiser of a description; the rate of each step is set by whoever runs it."""
    name, _, keys = spec(text)
    decay = {"weight_decay": float(keys["weight_decay"])} if "weight_decay" in keys else {}
    rate = float(keys.get("lr", 1e-3))
    if name == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=float(keys.get("momentum", 0)), **decay)
    betas = tuple(map(float, keys.get("betas", "0.9/0.999").split("/")))
    if keys.get("no_vector_decay") == "true":
        vectors = [p for p in parameters if p.dim() < 2]
        matrices = [p for p in parameters if p.dim() >= 2]
        parameters = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return (torch.optim.AdamW if name == "adamw" else torch.optim.Adam)(parameters, rate, betas=betas, **decay)
