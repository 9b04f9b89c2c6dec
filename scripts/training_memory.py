#!/usr/bin/env python3
"""Compares the peak memory of training steps with PyTorch's.

    python scripts/training_memory.py [cnn lstm gpt] [--cupola target/release/cupola] [--threads 1] [--most 0.8] [--json FILE]

Three models on made-up data: two convolutions (Adam, batch 64), an LSTM language model (SGD, 16 texts of 64 words) and a GPT (AdamW, 8
texts of 256 words). Each engine runs alone in a process of its own; what is compared is the most that the process had resident
when its last step ended (VmHWM of /proc, so Linux only). Also printed: what PyTorch's process had before its first step, program
and libraries mostly. Status 1 where a ratio is above --most.

Needs torch and numpy, and torch_models.py beside it, whose models these are.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib

STEPS = 6
WORDS = {"kind": "text", "units": "words", "length": 64, "vocabulary": 10_000}
CASES = {
    "cnn": {
        "loss": "ce",
        "optim": "adam:lr=1e-3",
        "batch": 64,
        "data": {"kind": "digits-csv"},
        "model": {
            "input": [1, 28, 28],
            "layers": ["conv:32,name=c1", "relu", "conv:64,name=c2", "relu", "max_pool:2", "flatten", "linear:128,name=f1", "relu", "linear:classes,name=f2"],
        },
    },
    "lstm": {
        "loss": "ce",
        "optim": "sgd:lr=0.1",
        "batch": 16,
        "data": WORDS,
        "model": {"layers": ["embedding:300,name=e", "lstm:1024,name=l", "linear:tokens,name=o"]},
    },
    "gpt": {
        "loss": "ce",
        "optim": "adamw:lr=3e-4",
        "batch": 8,
        "data": {**WORDS, "length": 256, "vocabulary": 8_192},
        "model": {
            "layers": ["embedding:384,name=e", "positions:name=p", "blocks:6,heads=6,name=b", "layer_norm:name=n", "linear:tokens,bias=false,name=o"]
        },
    },
}


def resident(pid="self"):
    """Most bytes that were resident, and those that are."""
    status = open(f"/proc/{pid}/status").read()
    return [int(re.search(rf"{key}:\s+(\d+)", status)[1]) << 10 for key in ("VmHWM", "VmRSS")]


def data(case, folder):
    """A file of made-up samples."""
    path = os.path.join(folder, "data.csv" if case == "cnn" else "data.txt")
    with open(path, "w") as f:
        if case == "cnn":
            for i in range(64 * STEPS):
                f.write(",".join(str((i * 31 + k * 7) % 256) for k in range(784)) + f",{i % 10}\n")
        else:
            # More kinds than the vocabulary takes, in an order without a pattern.
            f.write(" ".join(f"w{i * 7919 % 12_007}" for i in range(60_000)))
    return path


def write(config, path):
    """The configuration as TOML, whose values are written as in JSON."""
    tables = {k: v for k, v in config.items() if isinstance(v, dict)}
    with open(path, "w") as f:
        f.writelines(f"{k} = {json.dumps(v)}\n" for k, v in config.items() if k not in tables)
        for name, values in tables.items():
            f.write(f"[{name}]\n")
            f.writelines(f"{k} = {json.dumps(v)}\n" for k, v in values.items())


def ours(path, program, threads):
    """Peak bytes of our process."""
    command = [program, "train", path, "--json", "--threads", str(threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        steps, peak = 0, 0
        for line in process.stdout:
            steps += "loss" in json.loads(line)
            peak = resident(process.pid)[0]
            if steps == STEPS:
                break
        # What follows (checkpoints, tests) is not what is measured.
        process.kill()
    if steps < STEPS:
        raise SystemExit(f"{' '.join(command)} ended after {steps} of {STEPS} steps")
    return peak


def theirs(path, threads):
    """Peak bytes of PyTorch's process, and its bytes before the first step."""
    command = [sys.executable, os.path.abspath(__file__), "--child", path, "--threads", str(threads)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def child(path, threads):
    import torch
    import torch.nn.functional as F
    import torch_models as other

    torch.set_num_threads(threads)
    config = tomllib.load(open(path, "rb"))
    batch, words = config["batch"], config["data"].get("vocabulary", 0)
    before = resident()[1]
    sample = [config["data"]["length"]] if words else config["model"]["input"]
    model = other.Model(config["model"]["layers"], sample, words, 10)
    if words:
        shape = (batch, *sample)
        x, y = torch.randint(words, shape), torch.randint(words, shape)
    else:
        x, y = torch.rand(batch, *sample), torch.randint(10, (batch,))
    step = other.optimiser(config["optim"], list(model.parameters()))
    for _ in range(STEPS):
        step.zero_grad()
        loss = F.cross_entropy(model(x).flatten(0, -2), y.flatten())
        loss.backward()
        step.step()
    print(json.dumps([resident()[0], before]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--cupola", default="target/release/cupola")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--most", type=float, default=0.8)
    parser.add_argument("--json")
    parser.add_argument("--child")
    args = parser.parse_args()
    if args.child:
        return child(args.child, args.threads)
    lines = []
    for case in args.cases:
        with tempfile.TemporaryDirectory() as folder:
            config = json.loads(json.dumps(CASES[case]))
            config["data"]["files"] = [data(case, folder)]
            config["steps"] = 1_000
            config["checkpoint"] = {"folder": os.path.join(folder, "checkpoints"), "every": 1 << 30}
            path = os.path.join(folder, "run.toml")
            write(config, path)
            own = ours(path, args.cupola, args.threads)
            peak, before = theirs(path, args.threads)
        lines.append({"case": case, "cupola": own, "pytorch": peak, "pytorch_before": before, "ratio": own / peak})
        mib = lambda size: f"{size / (1 << 20):.0f} MiB"
        print(f"{case}: {mib(own)} of PyTorch's {mib(peak)} ({mib(before)} before the first step), ratio {own / peak:.2f}")
    if args.json:
        json.dump(lines, open(args.json, "w"), indent=1)
    if any(line["ratio"] > args.most for line in lines):
        sys.exit(1)


if __name__ == "__main__":
    main()
