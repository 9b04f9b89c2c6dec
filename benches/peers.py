#!/usr/bin/env python3
"""Times real models with Cupola, ONNX Runtime and OpenVINO side by side, on the inputs of tests/models/reference.

    python3 benches/peers.py PROGRAM [--cache DIR] [--match REGEX] [--engines ort,ov] [--threads 1,2] [--rounds N] [--out FILE.jsonl]

PROGRAM is `target/release/cupola`; DIR holds what scripts/fetch_models.py fetched (default .cache/models). Every engine is a process of
its own on the first THREADS cores; in each round each is visited once, in shuffled order, after a rest, warms up and takes up to 20
samples within a second. A line per model, engine and number of threads: median and best sample of all visits in milliseconds, and the
best of the visits' medians, the least disturbed figure. At the end a table of the ratios of Cupola to the best other engine and their
median. Needs numpy, and the engines as the packages onnxruntime and openvino; an engine that cannot run a model is left out there.
"""
import argparse
import json
import os
import random
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
REST, WARMUP, SAMPLES, SECONDS = 0.2, 0.3, 20, 1.0


def inputs_of(reference):
    """The model's file name and its inputs by name."""
    with np.load(reference) as members:
        meta = json.loads(str(members["meta"]))
        given = {name: members[f"in.{k}"] for k, name in enumerate(meta["inputs"]) if f"in.{k}" in members}
    return meta.get("file", ""), given


def session(engine, model, threads):
    """A function from inputs to outputs."""
    if engine == "ort":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        running = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        return lambda given: running.run(None, given)
    import openvino

    properties = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(str(model), "CPU", properties).create_infer_request()
    return lambda given: request.infer(given, share_inputs=True, share_outputs=True)


def sample(step):
    """Milliseconds of several runs, after a warm-up."""
    end = time.perf_counter() + WARMUP
    step()
    while time.perf_counter() < end:
        step()
    taken, end = [], time.perf_counter() + SECONDS
    while not taken or len(taken) < SAMPLES and time.perf_counter() < end:
        start = time.perf_counter()
        step()
        taken.append(1e3 * (time.perf_counter() - start))
    return taken


def serve(engine, model, reference, threads):
    """A worker: a line of samples for each line of input; ends at the end of input."""
    _, given = inputs_of(reference)
    run = session(engine, model, threads)
    run(given)
    print(json.dumps([]), flush=True)
    for _ in sys.stdin:
        print(json.dumps(sample(lambda: run(given))), flush=True)


class Engine:
    """One engine with one model, alive between visits where it can be."""

    def __init__(self, name, argv, threads):
        cores = sorted(os.sched_getaffinity(0))[:threads]
        self.name, self.argv = name, argv
        self.bind = lambda: os.sched_setaffinity(0, cores)
        self.process = None
        if name != "cupola":
            pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, preexec_fn=self.bind)
            self.process = subprocess.Popen(argv, **pipes)
            self.alive = self.process.stdout.readline().startswith("[")
        else:
            self.alive = bool(self.visit())

    def visit(self):
        """Samples in milliseconds; none if it failed."""
        if self.process is None:
            done = subprocess.run(self.argv, capture_output=True, text=True, preexec_fn=self.bind)
            lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
            return json.loads(lines[-1])["samples_ms"] if done.returncode == 0 and lines else []
        try:
            self.process.stdin.write("run\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline() or "[]")
        except OSError:
            return []

    def close(self):
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()


def measure(name, engines, threads, rounds):
    """Rows of one model."""
    visits = {engine.name: [] for engine in engines}
    for _ in range(rounds):
        for engine in random.sample(engines, len(engines)):
            time.sleep(REST)
            if taken := engine.visit():
                visits[engine.name].append(taken)
    rows = []
    for engine, taken in visits.items():
        if samples := [one for visit in taken for one in visit]:
            row = {"model": name, "engine": engine, "threads": threads, "unit": "ms", "median": statistics.median(samples)}
            row |= {"min": min(samples), "best_visit": min(map(statistics.median, taken)), "n": len(samples)}
            rows.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    return rows


def table(rows):
    """Ratios of Cupola to the best other engine, by the undisturbed figures."""
    cases, ratios = {}, []
    for row in rows:
        cases.setdefault((row["model"], row["threads"]), {})[row["engine"]] = row["best_visit"]
    for (model, threads), figures in sorted(cases.items()):
        others = {engine: figure for engine, figure in figures.items() if engine != "cupola"}
        if "cupola" in figures and others:
            best = min(others, key=others.get)
            ratios.append(figures["cupola"] / others[best])
            print(f"{model:36} {threads} threads  cupola {figures['cupola']:10.3f}  {best:4} {others[best]:10.3f}  ratio {ratios[-1]:.2f}")
    if ratios:
        print(f"{len(ratios)} ratios, median {statistics.median(ratios):.2f}, largest {max(ratios):.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache/models")
    parser.add_argument("--match", default="")
    parser.add_argument("--engines", default="ort,ov")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    sink = arguments.out.open("w", buffering=1) if arguments.out else sys.stderr
    for reference in sorted((ROOT / "tests/models/reference").glob("*.npz")):
        file, given = inputs_of(reference)
        name = reference.stem
        model = arguments.cache / name.split(".")[0] / file
        if not file.endswith(".onnx") or not given or not re.search(arguments.match, name) or not model.exists():
            continue
        with tempfile.TemporaryDirectory() as folder:
            flags = []
            for k, (key, value) in enumerate(given.items()):
                np.save(f"{folder}/{k}.npy", value)
                flags += ["-i", f"{key}={folder}/{k}.npy"]
            for threads in map(int, arguments.threads.split(",")):
                limits = ["--iterations", str(SAMPLES), "--warmup", str(WARMUP), "--threads", str(threads)]
                engines = [Engine("cupola", [*shlex.split(arguments.program), "bench", str(model), *flags, *limits], threads)]
                for engine in arguments.engines.split(","):
                    argv = [sys.executable, __file__, "--serve", engine, str(model), str(reference), str(threads)]
                    engines.append(Engine(engine, argv, threads))
                found = measure(name, [engine for engine in engines if engine.alive], threads, arguments.rounds)
                for engine in engines:
                    engine.close()
                for row in found:
                    print(json.dumps(row), file=sink)
                rows += found
    table(rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        engine, model, reference, threads = sys.argv[2:]
        serve(engine, Path(model), Path(reference), int(threads))
    else:
        main()
