#!/usr/bin/env python3
"""Exports the models of configurations to ONNX, and checks them: the file is sound, ONNX Runtime and Cupola compute the same from it,
its initializers are the checkpoint's tensors.

    python scripts/check_export.py examples/train/mnist-cnn.toml ... [--cupola target/release/cupola]

Prints the operators of each and the names of weights that are not in the file under their name; status 1 where something differs.
Needs onnx, onnxruntime, numpy and safetensors.
"""
import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter

import numpy as np
import onnx
import onnxruntime
from safetensors.numpy import load_file

BATCH, STEPS, MOST = 3, 7, 1e-4


def sample(info, kinds, draw):
    """Made-up numbers for an input; tokens are below the rows of the smallest table."""
    named = {"batch": BATCH}
    shape = [d.dim_value or named.get(d.dim_param, STEPS) for d in info.type.tensor_type.shape.dim]
    if info.type.tensor_type.elem_type == onnx.TensorProto.INT64:
        return draw.integers(0, kinds, shape)
    return draw.normal(size=shape).astype(np.float32)


def check(path, program):
    with tempfile.TemporaryDirectory() as folder:
        file, weights = os.path.join(folder, "model.onnx"), os.path.join(folder, "weights.safetensors")
        command = [program, "train", path, "--steps", "0", "--checkpoints", folder, "--export", file, "--export", weights]
        subprocess.run(command, check=True, capture_output=True)
        model, weights = onnx.load(file), load_file(weights)
        onnx.checker.check_model(model, full_check=True)
        kinds = min((len(w) for name, w in weights.items() if w.ndim == 2), default=2)
        draw = np.random.default_rng(0)
        inputs = {i.name: sample(i, kinds, draw) for i in model.graph.input}
        want = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, inputs)
        command = [program, "run", file, "--outputs", folder]
        for name, value in inputs.items():
            np.save(os.path.join(folder, f"{name}.npy"), value)
            command += ["-i", f"{name}={folder}/{name}.npy"]
        subprocess.run(command, check=True, capture_output=True)
        got = [np.load(os.path.join(folder, f"{o.name}.npy")) for o in model.graph.output]
    difference = max(float(np.abs(g - w).max() / (1 + np.abs(w).max())) for g, w in zip(got, want, strict=True))
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    same = lambda name, w: name in tensors and tensors[name].size == w.size and np.array_equal(np.sort(tensors[name], None), np.sort(w, None))
    lost = [name for name, w in weights.items() if not same(name, w)]
    operators = ", ".join(f"{n} {op}" for op, n in Counter(n.op_type for n in model.graph.node).most_common())
    print(f"{os.path.basename(path)}: difference {difference:.1e}; opset {model.opset_import[0].version}; {operators}")
    if lost:
        print(f"    under other names: {', '.join(lost)}")
    return difference < MOST


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--cupola", default="target/release/cupola")
    args = parser.parse_args()
    good = [check(path, os.path.abspath(args.cupola)) for path in args.files]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
