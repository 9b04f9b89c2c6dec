#!/usr/bin/env python3
"""Lays the official ONNX backend tests out as case folders (see case_files.py), from the installed `onnx` package.

    python3 scripts/export_suite.py DIR [--include FILE]

FILE: names of the cases to take, one a line; default tests/conformance/include.txt, `all` for every case. DIR must be new or empty.
manifest.json is written last, so a folder that has one is whole.

The package builds its single-operator cases in memory, stores small graphs as files, and stores a few known networks with generated
weights, whose input is 0, 1/n, 2/n ... in the input's shape.
"""
import argparse
import json
import math
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from case_files import data_sets, encode, signature

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted", "real")


def type_name(value_type):
    kind = value_type.WhichOneof("value")
    if kind == "tensor_type":
        return TensorProto.DataType.Name(value_type.tensor_type.elem_type).lower()
    if kind in ("sequence_type", "optional_type"):
        return f"{'seq' if kind == 'sequence_type' else 'optional'}({type_name(getattr(value_type, kind).elem_type)})"
    return str(kind)


def operators(nodes):
    """(operator names of these nodes and their subgraphs, depth of the deepest subgraph)."""
    names, depth = set(), 0
    for node in nodes:
        names.add(node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}")
        for attribute in node.attribute:
            for graph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                inner, below = operators(graph.node)
                names |= inner
                depth = max(depth, below + 1)
    return names, depth


def manifest_entry(test, model, folder):
    names, depth = operators(model.graph.node)
    for function in model.functions:
        names |= {node.op_type for node in function.node}
    inputs, outputs = signature(model)
    return {
        "name": test.name,
        "kind": test.kind,
        "ops": sorted(names),
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "ir_version": model.ir_version,
        "nodes": len(model.graph.node),
        "subgraph_depth": depth,
        "functions": len(model.functions),
        "inputs": [type_name(value.type) for value in inputs],
        "outputs": [type_name(value.type) for value in outputs],
        "rtol": test.rtol,
        "atol": test.atol,
        "data_sets": len(data_sets(folder)),
    }


def write_values(folder, prefix, values, infos):
    folder.mkdir(exist_ok=True)
    for k, (value, info) in enumerate(zip(values, infos)):
        (folder / f"{prefix}_{k}.pb").write_bytes(encode(value, info))


def write_from_memory(test, folder):
    model = test.model
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    for k, (inputs, outputs) in enumerate(test.data_sets):
        write_values(folder / f"test_data_set_{k}", "input", inputs, model.graph.input)
        write_values(folder / f"test_data_set_{k}", "output", outputs, model.graph.output)


def write_network(test, folder):
    source = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / Path(test.url).name
    shutil.copy(source, folder / "model.onnx")
    inputs, outputs = signature(onnx.load(source))
    values = []
    for info in inputs:
        shape = [dim.dim_value if dim.HasField("dim_value") else 1 for dim in info.type.tensor_type.shape.dim]
        count = math.prod(shape)
        values.append((np.arange(count).reshape(shape) / count).astype(np.float32))
    write_values(folder / "test_data_set_0", "input", values, inputs)
    for k in range(len(outputs)):
        shutil.copy(source.with_name(f"{source.stem}_output_{k}.pb"), folder / "test_data_set_0" / f"output_{k}.pb")


def write_case(test, folder):
    if test.model is not None:
        folder.mkdir()
        write_from_memory(test, folder)
    elif test.model_dir:
        shutil.copytree(test.model_dir, folder, ignore=lambda at, names: [n for n in names if at == test.model_dir and not kept(n)])
    else:
        folder.mkdir()
        write_network(test, folder)
    return manifest_entry(test, onnx.load(folder / "model.onnx"), folder)


def kept(name):
    return name == "model.onnx" or name.startswith("test_data_set_")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--include", default=ROOT / "tests" / "conformance" / "include.txt")
    args = parser.parse_args()
    if args.out.exists() and any(args.out.iterdir()):
        parser.error(f"{args.out} is not empty")
    included = None if str(args.include) == "all" else set(Path(args.include).read_text().split())

    warnings.filterwarnings("ignore")  # numpy's, from the cases' own formulas
    from onnx.backend.test.loader import load_model_tests

    args.out.mkdir(parents=True, exist_ok=True)
    cases = {}
    for kind in KINDS:
        for test in sorted(load_model_tests(kind=kind), key=lambda test: test.name):
            if included is None or test.name in included:
                cases[test.name] = write_case(test, args.out / test.name)
    manifest = {
        "format": "onnx-case-folders/1",
        "source": f"onnx {onnx.__version__} backend tests",
        "count": len(cases),
        "cases": list(cases.values()),
    }
    (args.out / "manifest.json").write_text(json.dumps(manifest, indent=0, sort_keys=True))
    print(f"{len(cases)} cases in {args.out}")
    missing = sorted((included or set()) - set(cases))
    if missing:
        print(f"{len(missing)} included cases are not in onnx {onnx.__version__}: {', '.join(missing[:5])} ...", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
