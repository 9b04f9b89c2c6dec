#!/usr/bin/env python3
"""Samples per second of a training run on one replica, on two of one process, and in two processes of an MPI job.

`apart` are two processes that know nothing of each other, at the same time: what two cores give where nobody waits.

    scripts/measure_replicas.py CUPOLA [--config FILE] [--steps N] [--rounds N] [--out FILE]

CUPOLA is a binary built with the feature `mpi`. One replica has one thread; two have one each. The batch of the configuration is that
of one replica: two get twice the samples in a step (weak scaling), and with --same the same number (strong scaling). Rounds take
turns; what is told is the median over rounds of the median over steps. Writes JSON lines like those of benches/results/training.jsonl.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile

MPIRUN = ["mpirun", "--oversubscribe", "--allow-run-as-root", "--bind-to", "none", "--mca", "btl", "self,vader", "-n", "2"]


def start(command, steps, folder):
    return subprocess.Popen(
        command + ["--steps", str(steps), "--checkpoints", folder, "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "CUPOLA_CACHE": "off"},
    )


def speed(command, steps, processes=1):
    """Median samples per second of the steps after the first fifth; of several processes at the same time the sum."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [start(command, steps, os.path.join(folder, str(at))) for at in range(processes)]
        told = [run.communicate() for run in runs]
    total = 0
    for run, (out, errors) in zip(runs, told):
        if run.returncode:
            raise SystemExit(f"{' '.join(command)}: {errors.strip()}")
        lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        each = [line["samples_per_s"] for line in lines if "lr" in line]
        total += statistics.median(each[len(each) // 5:])
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cupola")
    parser.add_argument("--config", default="examples/train/mnist-cnn.toml")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--same", action="store_true", help="the same batch for one and for two")
    parser.add_argument("--out")
    args = parser.parse_args()
    base = [os.path.abspath(args.cupola), "train", args.config]
    more = args.batch if args.same else 2 * args.batch
    forms = {
        "one": base + ["--threads", "1", "--batch", str(args.batch)],
        "apart": base + ["--threads", "1", "--batch", str(args.batch)],
        "replicas": base + ["--threads", "2", "--replicas", "2", "--batch", str(more)],
        "mpi": MPIRUN + base + ["--threads", "1", "--mpi", "--batch", str(more)],
        "threads": base + ["--threads", "2", "--batch", str(args.batch)],
    }
    found = {name: [] for name in forms}
    for _ in range(args.rounds):
        for name, command in forms.items():
            found[name].append(speed(command, args.steps, 2 if name == "apart" else 1))
    one = statistics.median(found["one"])
    lines = []
    for name, each in found.items():
        median = statistics.median(each)
        case = "replicas/" + os.path.splitext(os.path.basename(args.config))[0]
        lines.append({
            "case": case, "peer": "cupola", "form": name, "threads": 1 if name == "one" else 2, "batch": args.batch if name in ("one", "apart", "threads") else more,
            "unit": "samples/s", "median": round(median, 1), "min": round(min(each), 1), "max": round(max(each), 1),
            "n": len(each), "over_one": round(median / one, 3),
        })
        print(json.dumps(lines[-1]))
    if args.out:
        with open(args.out, "a", encoding="utf-8") as out:
            out.writelines(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    main()
