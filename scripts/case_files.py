"""Case folders: how their files are read, and when an output counts as right. Used by the other scripts; needs numpy and onnx.

A suite is a folder with `manifest.json` and one folder a case: `model.onnx` and `test_data_set_<k>/{input,output}_<i>.pb`, each file one
TensorProto, SequenceProto or OptionalProto, as the i-th graph input (initializers left out) or output is typed.
"""
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

FLOATS_BELOW_F32 = {"float16": (1e-2, 2e-3), "bfloat16": (2.0**-5, 1e-2)}


@dataclass
class Verdict:
    """Of one output or of a whole case: the largest differences, and the first thing wrong (empty: right)."""

    max_abs: float = 0.0
    max_rel: float = 0.0
    wrong: str = ""

    @property
    def right(self):
        return not self.wrong

    def join(self, other):
        return Verdict(max(self.max_abs, other.max_abs), max(self.max_rel, other.max_rel), self.wrong or other.wrong)


def wrong(text):
    return Verdict(float("inf"), float("inf"), text)


def load_manifest(suite):
    return json.loads((Path(suite) / "manifest.json").read_text())


def signature(model):
    """The graph inputs that a caller feeds, and the graph outputs."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored], list(model.graph.output)


def decode(data, value_type):
    """File content -> array, list or None."""
    kind = value_type.WhichOneof("value")
    if kind == "sequence_type":
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if kind == "optional_type":
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))


def encode(value, info):
    """Array, list, None or ready TensorProto -> file content, for the graph input or output `info`."""
    if isinstance(value, onnx.TensorProto):
        return value.SerializeToString()
    kind = info.type.WhichOneof("value")
    if kind == "sequence_type":
        return numpy_helper.from_list(value, info.name).SerializeToString()
    if kind == "optional_type":
        return numpy_helper.from_optional(value, info.name).SerializeToString()
    if kind == "map_type":
        return numpy_helper.from_dict(value, info.name).SerializeToString()
    return numpy_helper.from_array(np.asarray(value), info.name).SerializeToString()


def data_sets(case):
    """The case's data set folders in order."""
    return sorted(Path(case).glob("test_data_set_*"), key=lambda folder: int(folder.name.rpartition("_")[2]))


def tolerance(expected, rtol, atol, profile):
    """(rtol, atol) for one expected array. `strict` is the suite's own, `device` has floors for what a GPU may round."""
    name = expected.dtype.name
    if profile == "device":
        if name == "float32":
            finite = np.abs(expected[np.isfinite(expected)])
            largest = float(finite.max()) if finite.size else 1.0
            return max(rtol, 2e-3), max(atol, 1e-5 * min(max(largest, 1.0), 1e4))
        if name in FLOATS_BELOW_F32:
            floor_r, floor_a = FLOATS_BELOW_F32[name]
            return max(rtol, floor_r), max(atol, floor_a)
    return (max(rtol, 2.0**-6) if name == "bfloat16" else rtol), atol


def widen(array):
    """To a type in which differences are exact enough: integers to Python's, every float kind to f64 or complex."""
    if array.dtype.kind in "iub":
        return array.astype(object)
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def compare(got, expected, rtol, atol, profile, where):
    """One output against the expected one, sequences item by item."""
    if got is None or expected is None:
        return Verdict() if got is None and expected is None else wrong(f"{where}: one side is empty")
    if isinstance(expected, list):
        if not isinstance(got, list) or len(got) != len(expected):
            return wrong(f"{where}: another sequence length")
        verdict = Verdict()
        for k, (one, other) in enumerate(zip(got, expected)):
            verdict = verdict.join(compare(one, other, rtol, atol, profile, f"{where}[{k}]"))
        return verdict
    got, expected = np.asarray(got), np.asarray(expected)
    if got.shape != expected.shape:
        return wrong(f"{where}: shape {got.shape}, expected {expected.shape}")
    if expected.dtype.kind in "OSU":
        same = [text(x) for x in got.flat] == [text(x) for x in expected.flat]
        return Verdict() if same else wrong(f"{where}: other strings")
    if got.dtype != expected.dtype:
        return wrong(f"{where}: dtype {got.dtype}, expected {expected.dtype}")
    if expected.size == 0:
        return Verdict()
    rtol, atol = tolerance(expected, rtol, atol, profile)
    got, expected = np.atleast_1d(got, expected)
    left, right = widen(got), widen(expected)
    with np.errstate(all="ignore"):
        same = (left == right).astype(bool)
        if expected.dtype.kind not in "iub":
            same |= np.isnan(left) & np.isnan(right)
        # Equal infinities and NaNs count as no difference; unequal ones as an infinite one.
        difference = np.where(same, 0.0, np.abs(left - right).astype(np.float64))
        difference = np.where(np.isnan(difference), np.inf, difference)
        size = np.abs(right).astype(np.float64)
        bad = ~same if expected.dtype.kind == "b" else ~same & ~(difference <= atol + rtol * size)
        relative = np.where(same, 0.0, difference / np.where(size > 0, size, 1.0))
    relative = np.where(np.isnan(relative), np.inf, relative)
    verdict = Verdict(float(difference.max()), float(relative.max()))
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        verdict.wrong = (
            f"{where}: {int(bad.sum())} of {bad.size} outside rtol {rtol:g} atol {atol:g}, "
            f"first at {at}: {got[at]}, expected {expected[at]}"
        )
    return verdict


def text(value):
    return value.decode() if isinstance(value, bytes) else str(value)


def judge(case, written, rtol, atol, profile):
    """Every output of every data set of a case, against what a program wrote under `written`."""
    model = onnx.load(Path(case) / "model.onnx", load_external_data=False)
    _, outputs = signature(model)
    verdict = Verdict()
    for folder in data_sets(case):
        for k, info in enumerate(outputs):
            name = f"{folder.name}/output_{k}.pb"
            if not (folder / f"output_{k}.pb").exists():
                break
            expected = decode((folder / f"output_{k}.pb").read_bytes(), info.type)
            try:
                got = decode((Path(written) / name).read_bytes(), info.type)
            except FileNotFoundError:
                return verdict.join(wrong(f"{name} was not written"))
            except Exception as error:  # whatever a broken file makes the reader raise
                return verdict.join(wrong(f"{name} cannot be read: {str(error)[:80]}"))
            verdict = verdict.join(compare(got, expected, rtol, atol, profile, name))
    return verdict
