#!/usr/bin/env python3
"""Compares `cupola train` with PyTorch: the losses of every step, and what the trained models reach on the test samples.

    python scripts/compare_training.py examples/train/digits.toml [--steps 200] [--double] [--perturb 3] [--store FOLDER]
    python scripts/compare_training.py --check benches/results/curves/digits.json [--steps 20] [--double]

Both begin with the same weights (which `--steps 0 --export` writes), see the same samples in the same order (made again here from
the files by what docs/training.md says), drop the same elements and use the same optimiser and rates. Prints the largest relative
difference of the losses and the scores on the test samples; status 1 where a loss differs by more than --most.

Losses of two f32 runs part where training amplifies rounding. Two options tell that from a difference in what is computed: with
--double both compute in f64 too, where the two must agree, and the f32 runs are held against that; --perturb N trains PyTorch
again N times, in f32, from weights changed by a part in ten million.

--store keeps what was found as FOLDER/NAME.json, with the options of the command line that make the same run; --check runs them
again and compares with what was kept, without PyTorch's part.

Needs torch, numpy and safetensors. Reads the layers and data that the configurations of examples/train have.
"""
import argparse
import csv
import gzip
import json
import math
import os
import re
import shlex
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
from torch_models import Model, optimiser, spec

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


def dealt_rows(data, x):
    """The rows that are trained on and those that are tested with."""
    count = len(x)
    rows = list(range(count))
    if data.get("unique"):
        # Rows are compared as a whole.
        _, first = np.unique(x.reshape(count, -1), axis=0, return_index=True)
        rows = sorted(first.tolist())
    if data.get("split_end", data.get("kind") == "text"):
        dealt = rows[::-1]
    else:
        dealt = [rows[i] for i in order(len(rows), data.get("split_seed", 0), MASK)]
    tested = int(data.get("test", 0.0) * len(rows))
    held = tested + int(data.get("validation", 0.0) * len(rows))
    return sorted(dealt[held:]), sorted(dealt[:tested])


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


def read(data, files, known=None):
    """Inputs, targets, tokens by text; inputs are a list of sequences where they have different lengths. `known` are the tokens and
    classes of other files."""
    kind = data.get("kind")
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
        return x, np.stack([tokens[s + 1 : s + length + 1] for s in starts]), ids
    if files[0].endswith(".tab"):
        rows = tabbed(files[0])[2]
        ids = known if known is not None else vocabulary([r[1] for r in rows], data)
        classes = sorted({r[0] for r in rows})
        x = [[ids.get(w, 1) for w in words(r[1], data)][: data["length"]] for r in rows]
        return x, np.array([classes.index(r[0]) for r in rows]), ids
    if kind == "table" or files[0].endswith(".csv"):
        x, y = table(files[0], data)
        if data.get("standardise"):
            rows = dealt_rows(data, x)[0]
            wide = x.astype(np.float64)
            mean, deviation = wide[rows].mean(0), wide[rows].std(0)
            scale = np.where(deviation > 0, 1 / np.where(deviation > 0, deviation, 1), 0)
            x = ((wide - mean) * scale).astype(np.float32)
        return x, y, {}
    parts = [digits(path) for path in files]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]), {}


def batch_of(x, y, rows, data):
    if isinstance(x, list):
        chosen = [x[r] for r in rows]
        width = data["length"] if data.get("pad_to_length") else max(1, max(map(len, chosen)))
        pad = lambda s: [0] * (width - len(s)) + s if data.get("pad") == "left" else s + [0] * (width - len(s))
        return torch.tensor([pad(s) for s in chosen]), torch.tensor(y[rows])
    picked = torch.tensor(x[rows])
    return (picked.float() / 255 if x.dtype == np.uint8 else picked), torch.tensor(y[rows])


# --- the comparison -------------------------------------------------------------------------------------------------


def without_end(config, batches):
    """The schedule with the number of steps that it has by itself, so that a run of fewer steps has the same rates."""
    text = config.get("schedule", "constant")
    name, _, keys = spec(text)
    if name not in ("cosine", "one_cycle", "linear", "polynomial") or "steps" in keys:
        return text
    ends = [config["epochs"] * batches] if "epochs" in config else []
    total = min(ends + ([config["steps"]] if "steps" in config else []))
    return f"{text}{',' if ':' in text else ':'}steps={total - int(keys.get('warmup', 0))}"


def ours(path, options, steps, args, folder):
    """Lines of all steps, and the scores on the test samples. Long runs are several processes that go on with each other."""
    lines, at, scores = [], 0, {}
    while at < steps:
        at = min(at + args.piece, steps)
        command = [*shlex.split(args.cupola), "train", path, *options, "--steps", str(at), "--json", "--checkpoints", folder]
        resume = ["--resume"] if lines else []
        output = subprocess.run(command + resume, check=True, capture_output=True, text=True).stdout
        new = list(map(json.loads, output.splitlines()))
        lines += [line for line in new if "epoch" in line]
        scores = new[-1].get("test", {})
    return lines, scores


def loss_of(config, scores, targets):
    if config["loss"].startswith("ce"):
        return F.cross_entropy(scores.flatten(0, -2), targets.flatten())
    return F.mse_loss(scores, targets)


def clip(parameters, most):
    """clip_grad_norm_ with its norm summed in f64. PyTorch's own norm on a CPU, in f32, is 2.5e-3 short for the gradient of a matrix
    of ten million elements, and the whole gradient's 1e-3, which the losses show after some clipped steps."""
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = math.sqrt(sum((g.double() ** 2).sum().item() for g in grads))
    for g in grads:
        g.mul_(min(most / (norm + 1e-6), 1.0))


class Reference:
    """A configuration's data and model in PyTorch, in f32 or f64."""

    def __init__(self, config):
        data = self.data = config["data"]
        self.config, self.x_y = config, read(data, data["files"])
        x, y, ids = self.x_y
        self.rows, self.tested = dealt_rows(data, x)
        self.test_x_y = (x, y)
        if "test_files" in data:
            self.test_x_y = read(data, data["test_files"], ids)[:2]
            self.tested = list(range(len(self.test_x_y[0])))
        kinds = len(ids) + 2 if ids else 0
        classes = 0 if data.get("kind") == "text" or y.dtype != np.int64 else int(y.max()) + 1
        shape = config["model"].get("input") or [data["length"]] if isinstance(x, list) else config["model"].get("input") or x.shape[1:]
        self.shape = config["model"].get("input")
        self.model = Model(config["model"]["layers"], shape, kinds, classes, config.get("seed", 0))
        self.dtype = torch.float32

    def batches(self):
        """Batches of an epoch."""
        size = self.config.get("batch", 32)
        return len(self.rows) // size if self.config.get("drop_last") else -(-len(self.rows) // size)

    def batch(self, x_y, rows):
        x, y = (t.to(self.dtype) if t.is_floating_point() else t for t in batch_of(*x_y[:2], rows, self.data))
        return (x.reshape(len(x), *self.shape) if self.shape else x), y

    def train(self, rates, weights, dtype=torch.float32):
        """Losses of as many steps as there are rates."""
        self.dtype = dtype
        self.model.to(dtype)
        for name, p in self.model.named_parameters():
            p.data = weights[name].to(self.dtype, copy=True)
        config, count, size = self.config, self.batches(), self.config.get("batch", 32)
        update = optimiser(config["optim"], list(self.model.parameters()))
        self.model.train()
        losses = []
        for step, rate in enumerate(rates):
            epoch, at = divmod(step, count)
            if at == 0:
                shuffled = [self.rows[i] for i in order(len(self.rows), config.get("seed", 0), epoch)]
            inputs, targets = self.batch(self.x_y, shuffled[at * size : (at + 1) * size])
            self.model.runs[0] = step
            loss = loss_of(config, self.model(inputs), targets)
            update.zero_grad()
            loss.backward()
            if "clip_norm" in config:
                clip(list(self.model.parameters()), config["clip_norm"])
            for group in update.param_groups:
                group["lr"] = rate
            update.step()
            losses.append(loss.item())
        return losses

    @torch.no_grad()
    def scores(self):
        """Loss and metrics on the test samples."""
        self.model.eval()
        total, right, seen, size = 0.0, 0, 0, self.config.get("batch", 32)
        for at in range(0, len(self.tested), size):
            inputs, targets = self.batch(self.test_x_y, self.tested[at : at + size])
            said = self.model(inputs)
            total += loss_of(self.config, said, targets).item() * len(inputs)
            if targets.dtype == torch.int64:
                right += (said.argmax(-1) == targets).sum().item()
                seen += targets.numel()
        loss = total / max(len(self.tested), 1)
        scores = {"loss": loss, "perplexity": math.exp(min(loss, 700)), "accuracy": right / max(seen, 1), "mse": loss}
        return {k: v for k, v in scores.items() if k == "loss" or k in self.config.get("metrics", [])} if self.tested else {}


def largest(got, want, most=0.01):
    """The largest relative difference, its step, and how many steps there are before the first difference above `most`."""
    differences = [abs(a - b) / max(abs(b), 1e-12) if math.isfinite(a) else math.inf for a, b in zip(got, want, strict=True)]
    worst = max(range(len(differences)), key=differences.__getitem__)
    within = next((i for i, d in enumerate(differences) if d > most), len(differences))
    return differences[worst], worst + 1, within


def short(numbers, digits=7):
    return [float(f"{x:.{digits}g}") for x in numbers]


def perturbed(weights, seed, by=1e-7):
    """Weights that are changed by a part of themselves, normally distributed."""
    draw = torch.Generator().manual_seed(seed)
    noise = lambda w: 1 + by * torch.randn(w.shape, generator=draw, dtype=torch.float64)
    return {name: (w.double() * noise(w)).to(w.dtype) for name, w in sorted(weights.items())}


def told(what, got, want, most):
    """Prints how far losses are from others; the largest relative difference, and the steps before one above `most`."""
    difference, worst, within = largest(got, want, most)
    print(f"    {what}: largest relative difference {difference:.2e}, at step {worst}; {within} steps within {most:g}", flush=True)
    return {"largest": float(f"{difference:.3g}"), "within": within}


def compare(path, args):
    config = tomllib.load(open(path, "rb"))
    base, data = os.path.dirname(os.path.abspath(path)), config["data"]
    for key in "files", "test_files":
        if key in data:
            data[key] = [os.path.join(base, f) for f in data[key]]
    given = {k: v for k, v in (("batch", args.batch), ("optim", args.optim), ("seed", args.seed)) if v}
    config.update(given)
    options = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    reference = Reference(config)
    schedule = without_end(config, reference.batches())
    options += [] if schedule == config.get("schedule", "constant") else ["--schedule", schedule]
    steps = args.steps or config["epochs"] * reference.batches()
    with tempfile.TemporaryDirectory() as folder:
        first = os.path.join(folder, "first.safetensors")
        subprocess.run([*shlex.split(args.cupola), "train", path, *options, "--steps", "0", "--export", first, "--checkpoints", folder + "/0"], check=True, capture_output=True)
        lines, scores = ours(path, options, steps, args, os.path.join(folder, "checkpoints"))
        if args.double:
            wide = ours(path, [*options, "--double"], steps, args, os.path.join(folder, "double"))[0]
        weights, rates = load_file(first), [line["lr"] for line in lines]
    got, name = [line["loss"] for line in lines], os.path.basename(path)
    want = reference.train(rates, weights)
    theirs = reference.scores()
    scores = {k: v for k, v in scores.items() if k in theirs}
    print(f"{name}: {steps} steps, loss {want[0]:.6f} to {want[-1]:.6f}")
    found = told("f32", got, want, args.most)
    document = {"config": name, "options": options, "torch": torch.__version__, **found}
    good = found["largest"] <= args.most
    for key, value in theirs.items():
        print(f"    test {key}: {scores.get(key, math.nan):.6g}, PyTorch {value:.6g}")
    if args.double:
        truth = reference.train(rates, weights, torch.float64)
        both = told("f64", [line["loss"] for line in wide], truth, args.most)
        own = told("f32, beside PyTorch's f64", got, truth, args.most)
        document |= {"f64": both, "f32_from_f64": {"cupola": own, "pytorch": told("PyTorch's f32, beside its f64", want, truth, args.most)}}
        good = both["largest"] <= args.most
    again = [reference.train(rates, perturbed(weights, seed)) for seed in range(1, args.perturb + 1)]
    if again:
        document |= {"perturbed": [told(f"PyTorch from other weights ({i + 1})", losses, want, args.most) for i, losses in enumerate(again)]}
    if args.store:
        document |= {"test": {"cupola": scores, "pytorch": theirs}, "pytorch": short(want)} | ({"pytorch_f64": short(truth, 12)} if args.double else {})
        rows = [json.dumps({key: value}, separators=(",", ":"))[1:-1] for key, value in document.items()]
        with open(os.path.join(args.store, os.path.splitext(name)[0] + ".json"), "w") as f:
            f.write("{" + ",\n".join(rows) + "}\n")
    return good


def check(path, args):
    """Runs what was stored again."""
    stored = json.load(open(path))
    config = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "examples/train", stored["config"])
    want = stored["pytorch_f64" if args.double else "pytorch"][: args.steps or None]
    options = stored["options"] + ["--double"] * args.double
    with tempfile.TemporaryDirectory() as folder:
        lines, _ = ours(config, options, len(want), args, folder)
    print(f"{stored['config']}: {len(want)} steps")
    return told("f64" if args.double else "f32", [line["loss"] for line in lines], want, args.most)["largest"] <= args.most


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", help="configurations; with --check, what --store wrote")
    parser.add_argument("--steps", type=int, default=0, help="all of the configuration's epochs (or all that are stored) by itself")
    parser.add_argument("--batch", type=int, help="samples of a step, instead of the configuration's")
    parser.add_argument("--optim", help="optimiser, instead of the configuration's")
    parser.add_argument("--seed", type=int, help="instead of the configuration's")
    parser.add_argument("--cupola", default="target/release/cupola", help="the program, perhaps behind others")
    parser.add_argument("--piece", type=int, default=1 << 40, help="steps of one process of ours; longer runs are resumed")
    parser.add_argument("--double", action="store_true", help="both compute in f64 too; status 1 where those differ")
    parser.add_argument("--perturb", type=int, default=0, help="runs of PyTorch from weights changed by a part in ten million")
    parser.add_argument("--most", type=float, default=0.01)
    parser.add_argument("--store", help="folder to keep results in")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    good = [(check if args.check else compare)(path, args) for path in args.files]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
