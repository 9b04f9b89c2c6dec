#!/usr/bin/env python3
"""Measures a GPU and PyTorch on it in one call of less than eight minutes, and says how the one lies to the other.

    gpu_marks.py BINARY -o FOLDER [--device gpu] [--torch-device cuda] [--match TEXT]

BINARY is `cupola`. Into FOLDER go `suite.json` (what `cupola bench --suite` wrote), `suite.html`, `torch.json` (milliseconds of the
same cases with PyTorch) and `marks.txt` (a table of both, also printed). Products of f32 are without TF32, as ours are. Without
PyTorch, or without a GPU that it can use, only our own figures are given.
"""

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys
import time

# Most seconds for the cases of PyTorch: compiling models takes the most.
TORCH_SECONDS = 150


def timed(torch, device, run):
    """Milliseconds of single runs, by the device's clock on a GPU."""
    for _ in range(3):
        run()
    samples, start = [], time.perf_counter()
    while len(samples) < 5 or (len(samples) < 50 and time.perf_counter() - start < 0.6):
        if device == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            run()
            last.record()
            torch.cuda.synchronize()
            samples.append(first.elapsed_time(last))
        else:
            begin = time.perf_counter()
            run()
            samples.append(1e3 * (time.perf_counter() - begin))
    return samples


def product(torch, device, dtype, rows, cols, inner):
    x = torch.randn(rows, inner, device=device, dtype=dtype)
    w = torch.randn(inner, cols, device=device, dtype=dtype)
    return lambda: x @ w


def attention(torch, device, dtype, heads, shared, queries, keys, depth):
    q = torch.randn(1, heads, queries, depth, device=device, dtype=dtype)
    k, v = (torch.randn(1, shared, keys, depth, device=device, dtype=dtype) for _ in range(2))
    # One query sees all keys; PyTorch aligns causal masks at the start.
    causal = queries == keys
    call = torch.nn.functional.scaled_dot_product_attention
    return lambda: call(q, k, v, is_causal=causal, enable_gqa=heads != shared)


def encoder(torch, device, batch, tokens):
    nn, width, heads = torch.nn, 384, 12

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

        def forward(self, x):
            split = lambda y: y.view(batch, tokens, heads, width // heads).transpose(1, 2)
            own = nn.functional.scaled_dot_product_attention(*(split(f(x)) for f in (self.q, self.k, self.v)))
            x = self.first(x + self.o(own.transpose(1, 2).reshape(batch, tokens, width)))
            return self.second(x + self.down(nn.functional.gelu(self.up(x))))

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.norm = nn.Embedding(30522, width), nn.LayerNorm(width)
            self.layers = nn.Sequential(*(Layer() for _ in range(6)))

        def forward(self, ids):
            return self.layers(self.norm(self.table(ids))).mean(1)

    ids = torch.randint(0, 30522, (batch, tokens), device=device)
    model = torch.compile(Encoder().to(device).eval())
    return lambda: model(ids)


def residual_network(torch, device, batch):
    nn = torch.nn

    def conv(inner, outer, kernel, stride=1):
        return nn.Conv2d(inner, outer, kernel, stride, kernel // 2)

    class Block(nn.Module):
        def __init__(self, channels, width, stride):
            super().__init__()
            self.a, self.b, self.c = conv(channels, width, 1), conv(width, width, 3, stride), conv(width, 4 * width, 1)
            same = channels == 4 * width
            self.shortcut = nn.Identity() if same else conv(channels, 4 * width, 1, stride)

        def forward(self, x):
            y = self.c(self.b(self.a(x).relu()).relu())
            return (y + self.shortcut(x)).relu()

    layers, channels = [conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], 64
    for blocks, width, stride in ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2)):
        for block in range(blocks):
            layers.append(Block(channels, width, stride if block == 0 else 1))
            channels = 4 * width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]
    model = torch.compile(nn.Sequential(*layers).to(device).eval())
    x = torch.randn(batch, 3, 224, 224, device=device)
    return lambda: model(x)


def simple(torch, device, op):
    """The memory-bound kernels."""
    kind, shape = op
    if kind == "sum":
        x = torch.randn(shape[0], device=device)
        return lambda: x.sum()
    x = torch.randn(*shape, device=device)
    bias, scale = torch.randn(shape[-1], device=device), torch.ones(shape[-1], device=device)
    functional = torch.nn.functional
    return {
        "softmax": lambda: functional.softmax(x, 1),
        "layer norm": lambda: functional.layer_norm(x, (shape[1],)),
        "rms norm": lambda: functional.rms_norm(x, (shape[1],)),
        "transpose": lambda: x.t().contiguous(),
        "negate": lambda: -x,
        "bias gelu": lambda: functional.gelu(x + bias),
        "add": lambda: x + x,
    }[kind]


def runner(torch, device, name):
    """What PyTorch does for the case of this name, or None."""
    types = {"f32": torch.float32, "f16": torch.float16}
    number = lambda m: [int(g) for g in m.groups()[1:]]
    if m := re.fullmatch(r"matmul (f32|f16) (\d+)x(\d+)x(\d+)", name):
        return product(torch, device, types[m[1]], *number(m))
    if m := re.fullmatch(r"attention (f32|f16) (\d+) heads \((\d+) shared\) (\d+)x(\d+)x(\d+)", name):
        return attention(torch, device, types[m[1]], *number(m))
    if m := re.fullmatch(r"(softmax|layer norm|rms norm|transpose|negate|bias gelu|add)(?: f32)? (\d+)x(\d+)", name):
        return simple(torch, device, (m[1], number(m)))
    if m := re.fullmatch(r"(sum) f32 (\d+)", name):
        return simple(torch, device, (m[1], number(m)))
    if m := re.fullmatch(r"(encoder) 6x384 \(MiniLM\), batch (\d+), (\d+) tokens", name):
        return encoder(torch, device, *number(m))
    if m := re.fullmatch(r"(ResNet-50), batch (\d+)", name):
        return residual_network(torch, device, *number(m))
    return None


def torch_times(device, names):
    """Milliseconds by case; what went wrong is said and left out."""
    try:
        import torch
    except ImportError:
        print("PyTorch is not installed: own figures only", file=sys.stderr)
        return {}
    if device == "cuda" and not torch.cuda.is_available():
        print("PyTorch sees no GPU: own figures only", file=sys.stderr)
        return {}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    found, start = {}, time.perf_counter()
    with torch.inference_mode():
        for name in names:
            if time.perf_counter() - start > TORCH_SECONDS:
                print(f"no time left from {name} on", file=sys.stderr)
                break
            try:
                run = runner(torch, device, name)
                if run is not None:
                    found[name] = timed(torch, device, run)
            except (RuntimeError, TypeError) as error:
                print(f"{name}: {str(error).splitlines()[0]}", file=sys.stderr)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True)
    parser.add_argument("--device", default="gpu")
    parser.add_argument("--torch-device", default="cuda")
    parser.add_argument("--match", default="")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    suite = args.output / "suite.json"
    command = [args.binary, "bench", "--suite", "--device", args.device, "-o", str(suite)]
    subprocess.run(command + (["--match", args.match] if args.match else []), check=True, stdout=subprocess.DEVNULL)
    page = ["bench", "compare", str(suite), "--html", str(args.output / "suite.html")]
    subprocess.run([args.binary, *page], check=True, stdout=subprocess.DEVNULL)
    results = json.loads(suite.read_text())
    peers = torch_times(args.torch_device, [row["name"] for row in results["rows"]])
    (args.output / "torch.json").write_text(json.dumps(peers) + "\n")

    width = max(len(row["name"]) for row in results["rows"])
    lines = [f"{results['machine']['name']}: {json.dumps(results['measured'])}"]
    lines.append(f"{'':{width}} {'ms':>10} {'of limit':>9} {'torch ms':>10} {'torch/ours':>11}")
    for row in results["rows"]:
        line = f"{row['name']:{width}} {row['median_ms']:10.4f} {100 * row['fraction']:8.0f}%"
        if row["name"] in peers:
            # Models include transfers here and not there; the gap is part of what a user waits for.
            peer = statistics.median(peers[row["name"]])
            line += f" {peer:10.4f} {peer / row['median_ms']:11.2f}"
        lines.append(line)
    (args.output / "marks.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
