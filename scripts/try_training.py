#!/usr/bin/env python3
"""Tries every row of the tables of docs/training.md: each loss, optimiser, schedule, layer, form of data and option trains three steps.

    python3 scripts/try_training.py [--cupola target/release/cupola] [--tokenizer model.gguf]

Needs nothing but Python; data are made up in a temporary folder. --tokenizer names a GGUF file or model folder for data.tokenizer. Prints what fails; status 1 if anything does.
"""
import argparse
import gzip
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import zlib

CLASSES = 'files = ["table.csv"]\nclass_target = true'
NUMBERS = 'files = ["numbers.csv"]'
TEXT = 'files = ["text.txt"]\nlength = 6'
DIGITS = 'files = ["digits.csv"]'
TOPICS = 'files = ["topics.tab"]\nkind = "classes"\n'


def made_up(draw):
    """Files by name."""
    row = lambda n: [f"{draw.random():.3f}" for _ in range(n)]
    pixels = lambda: [str(draw.randrange(256)) for _ in range(784)]
    lines = {
        "table.csv": ["a,b,y"] + [",".join([*row(2), str(draw.randrange(3))]) for _ in range(40)],
        "numbers.csv": [",".join(row(3)) for _ in range(40)],
        "text.txt": ["the cat sat on the mat, and the dog did not. " * 40],
        "digits.csv": [",".join([*pixels(), str(i % 3)]) for i in range(24)],
        "topics.tab": [f"{draw.choice('ab')}\tthe {draw.choice(['cat', 'dog', 'cow'])} sat" for _ in range(40)],
    }
    files = {name: "\n".join(all) + "\n" for name, all in lines.items()}
    files["topics.tsv"] = "class\ttext\nd\tstring\nclass\tmeta\n" + files["topics.tab"]
    files |= {f"greys/{k}.json": json.dumps({"data": [round(draw.random(), 3) for _ in range(8 * 784)]}) for k in range(3)}
    files |= {f"pictures/{'ab'[i % 2]}/{i}.png": picture(draw) for i in range(16)}
    classes = [i % 3 for i in range(24)]
    files["x-idx3-ubyte"] = struct.pack(">4B3I", 0, 0, 8, 3, 24, 6, 6) + draw.randbytes(24 * 36)
    files["y-idx1-ubyte"] = struct.pack(">4BI", 0, 0, 8, 1, 24) + bytes(classes)
    files |= {f"{name}.gz": gzip.compress(files[name]) for name in ("x-idx3-ubyte", "y-idx1-ubyte")}
    files["x.npy"] = array("<f4", (24, 5), struct.pack("<120f", *(draw.random() for _ in range(120))))
    files["y.npy"] = array("<i8", (24,), struct.pack("<24q", *classes))
    files["z.npy"] = array("<f8", (24, 2), struct.pack("<48d", *(draw.random() for _ in range(48))))
    return files


def picture(draw):
    """A PNG of 6 by 6 greys."""
    part = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + draw.randbytes(6) for _ in range(6))
    head = struct.pack(">2I5B", 6, 6, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")


def array(kind, shape, data):
    """A NumPy file."""
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + head.encode() + data


def case(loss="ce", optim="adam:lr=1e-3", top="", data=CLASSES, layers=("linear:classes",), model="", more="", options=()):
    text = f'loss = "{loss}"\noptim = "{optim}"\nsteps = 3\nbatch = 8\n{top}\n[data]\n{data}\n[model]\nlayers = {json.dumps(list(layers))}\n{model}\n{more}\n'
    return text, options


def forms():
    """Every form of data."""
    flat = ("flatten", "linear:classes")
    yield case(data='files = ["greys"]', layers=flat)
    yield case(data='files = ["greys"]\nkind = "digits-json"\nimage = [28, 28]', layers=flat)
    yield case(data='files = ["digits.csv"]\nkind = "digits-csv"\nlabel_first = false', layers=flat)
    yield case(data='files = ["x-idx3-ubyte", "y-idx1-ubyte"]', layers=flat)
    yield case(data='files = ["x-idx3-ubyte.gz", "y-idx1-ubyte.gz"]\nkind = "idx"\nvalidation_files = ["x-idx3-ubyte", "y-idx1-ubyte"]', layers=flat)
    yield case(data='files = ["pictures"]', layers=flat)
    yield case(data='files = ["pictures"]\nkind = "images"\nimage = [3, 8, 8]\ntest_files = ["pictures"]', layers=("conv:2", *flat))
    yield case(data='files = ["x.npy", "y.npy"]')
    yield case("mse", data='files = ["x.npy", "z.npy"]\nkind = "npy"', layers=("linear:targets",))
    yield case(data='files = ["topics.tsv"]', layers=("embedding:4", "lstm:4", "last", "linear:classes"))
    yield case(data='files = ["topics.tab"]\nkind = "text"\nlength = 5', layers=("embedding:4", "gru:4", "linear:tokens"))
    yield case(data=NUMBERS + '\nkind = "table"\nseparator = ","\ntarget = ["2"]', loss="mse", layers=("linear:1",))


def cases(tokenizer):
    """Configurations with options of the command line."""
    yield from forms()
    if tokenizer:
        cut = f'{TEXT}\ntokenizer = {json.dumps(tokenizer)}'
        yield case(data=cut, layers=("embedding:4", "lstm:4", "linear:tokens"))
        yield case(data=cut + '\nunits = "tokenizer"', layers=("embedding:4", "linear:tokens"))
        yield case(data=f'{TOPICS}tokenizer = {json.dumps(tokenizer)}', layers=("embedding:4", "lstm:4", "last", "linear:classes"))
    yield from (case(loss) for loss in ("ce", "ce:smoothing=0.1,ignore=1"))
    yield case("nll:ignore=2", layers=("linear:classes", "log_softmax"))
    yield from (case(loss, data=NUMBERS, layers=("linear:1",)) for loss in ("mse", "l1", "huber:1", "smooth_l1:1", "bce"))
    yield case("kl", data=NUMBERS, layers=("linear:targets", "log_softmax"))
    for optim in (
        "sgd:lr=1e-3,momentum=0.9,dampening=0,nesterov=true,weight_decay=0.1", "sgd:lr=1e-3,momentum=0.5,dampening=0.1", "adam:1e-3",
        "adam:lr=1e-3,betas=0.9/0.99,eps=1e-7,amsgrad=true,weight_decay=0.1", "adamw:lr=1e-3,no_vector_decay=true",
    ):  # fmt: skip
        yield case(optim=optim)
    for schedule in (
        "constant", "step:size=2,gamma=0.1", "multi_step:at=100/200,gamma=0.1", "exponential:0.95", "cosine:steps=5,min=0",
        "restarts:first=3,factor=2,min=0", "linear:start=1,end=0,steps=4", "polynomial:steps=4,power=2",
        "one_cycle:steps=4,rise=0.3,divisor=25,final_divisor=1e4,straight=true", "cosine:warmup=2", "step:size=1,epochs=true,warmup=1",
        "plateau:factor=0.1,patience=10,threshold=1e-4,cooldown=0,min=0",
    ):  # fmt: skip
        yield case(top=f'schedule = "{schedule}"')
    for key in (
        'name = "other"', "seed = 4", "shuffle = false", "drop_last = true", "clip_norm = 1.0", "clip_value = 0.1", 'amp = "bf16"', 'amp = "f16"',
        'metrics = ["accuracy", "precision", "recall", "f1", "perplexity", "bleu"]', 'export = ["o/a.onnx", "o/a.cupola", "o/a.safetensors"]',
    ):  # fmt: skip
        yield case(top=key)
    often = '[validation]\nevery = 1\nbatch = 4\nwatch = "mse"\npatience = 2\nleast = 0.0\n[checkpoint]\nfolder = "kept"\nevery = 1\nkeep = 2'
    yield case("mse", top='metrics = ["mse"]', data=NUMBERS + "\nvalidation = 0.2", layers=("linear:1",), more=often)
    for layer in (
        "linear:5,bias=false", "layer_norm", "rms_norm", "batch_norm", "dropout:0.5", "relu", "gelu", "gelu:tanh=true", "silu", "tanh", "sigmoid",
        "softplus", "elu", "elu:0.5", "leaky_relu:0.02", "softmax", "flatten",
    ):  # fmt: skip
        yield case(layers=("linear:4", layer, "linear:classes"))
    for layer in (
        "lstm:6", "gru:6", "rnn:6", "lstm:6,layers=2,dropout=0.2,bidirectional=true,bias=false", "attention:2", "attention:2,causal=true,bias=false",
        "blocks:1,heads=2", "blocks:2,heads=2,causal=false,dropout=0.1,factor=2", "positions", "layer_norm",
    ):  # fmt: skip
        yield case(data=TEXT, layers=("embedding:4", layer, "linear:tokens"))
    letters = TEXT + '\nunits = "characters"\nstride = 3\nlowercase = true\nvocabulary = 12'
    yield case(data=letters, layers=("embedding:4,rows=tokens,padding=0", "gru:4", "linear:tokens"))
    for layers in (
        ("conv:4,kernel=3,stride=1,padding=0,groups=1,bias=true", "relu", "max_pool:2", "flatten"),
        ("conv:4,kernel=3x5,padding=1x2,stride=2", "batch_norm", "avg_pool:2,stride=1,padding=1", "global_pool"),
        ("conv:4", "group_norm:2", "max_pool:3,stride=2,padding=1", "flatten"),
        ("conv:4", "mean:1", "flatten"),
    ):
        yield case(data=DIGITS, layers=(*layers, "linear:classes"), model="input = [1, 28, 28]")
    for keys in ("", 'pad = "left"\nlength = 4\npad_to_length = true', 'pad = "right"\nlength = 2', "vocabulary = 5\nlowercase = true", 'class_column = "1"\ntext_column = "2"'):
        yield case(data=TOPICS + keys, layers=("embedding:4", "lstm:4", "last", "linear:classes"))
    shares = '\nstandardise = true\nunique = true\nvalidation = 0.1\ntest = 0.2\nsplit_seed = 3\nsplit_end = true\ntarget = ["y"]\nignore = ["a"]\nseparator = ","'
    yield case(data=CLASSES + shares)
    yield case(model='freeze = ["linear1.w"]')
    yield case(options=("--export", "weights.safetensors"))
    yield case(model='weights = "weights.safetensors"')
    for options in (
        "--loss ce --optim sgd:lr=0.1 --schedule constant --amp bf16 --batch 4 --epochs 1", "--steps 2 --metric accuracy --seed 3 --validation 0.2",
        "--data table.csv", "--json", "--html report.html", "--deterministic", "--memory 2GiB",
    ):  # fmt: skip
        yield case(options=options.split())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cupola", default="target/release/cupola")
    parser.add_argument("--tokenizer")
    args = parser.parse_args()
    program, tokenizer = os.path.abspath(args.cupola), args.tokenizer and os.path.abspath(args.tokenizer)
    failed = count = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, text in made_up(random.Random(1)).items():
            path = os.path.join(folder, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as f:
                f.write(text if isinstance(text, bytes) else text.encode())

        def run(what, *args):
            nonlocal failed, count
            count += 1
            out = subprocess.run([program, *args], cwd=folder, capture_output=True, text=True)
            if out.returncode != 0:
                failed += 1
                print(f"status {out.returncode}: {what}\n    {out.stderr.strip()}")

        for text, options in cases(tokenizer):
            with open(os.path.join(folder, "case.toml"), "w") as f:
                f.write(text)
            run(f"{text}{' '.join(options)}", "train", "case.toml", *options)
        run("checkpoints", "train", "case.toml", "--checkpoints", "own")
        run("resume", "train", "case.toml", "--checkpoints", "own", "--steps", "6", "--resume")
        run("export", "eval", "checkpoints/case", "--part", "train", "--metric", "accuracy", "--export", "model.onnx")
        run("other data", "eval", "checkpoints/case", "--data", "table.csv", "--json")
        run("plan", "plan", "case.toml", "--train", "--memory", "2GiB")
        more = ["--loss", "mse", "--optim", "adam:lr=1e-4", "--epochs", "1", "--export", "tuned.onnx"]
        with open(os.path.join(folder, "case.toml"), "w") as f:
            f.write(case("mse", data=NUMBERS, layers=("linear:1",))[0])
        run("a model to be trained further", "train", "case.toml", "--export", "model.onnx")
        run("a model file", "train", "model.onnx", "--data", "numbers.csv", *more)
        with open(os.path.join(folder, "case.toml"), "w") as f:
            f.write(case(data='files = ["pictures"]', layers=("conv:2,name=c", "relu", "flatten", "linear:classes"), model="input = [3, 32, 32]")[0])
        run("a reader of pictures", "train", "case.toml", "--export", "reader.onnx")
        more = ["--loss", "ce", "--optim", "adam:lr=1e-4", "--epochs", "1", "--batch", "4", "--validation", "0.25", "--metric", "accuracy", "--export", "tuned.onnx"]
        run("pictures for a model file", "train", "reader.onnx", "--data", "pictures", *more)
        with open(os.path.join(folder, "case.toml"), "w") as f:
            f.write(case(data='files = ["pictures"]')[0].replace('layers = ["linear:classes"]', 'file = "reader.onnx"\noutput = "y"\nfreeze = ["c."]'))
        run("a configuration of a model file", "train", "case.toml", "--export", "tuned.onnx")
    print(f"{count - failed} of {count} work")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
