#!/usr/bin/env python3
"""Runs a program over a suite of case folders and judges what it wrote, whatever the program says of itself.

    python3 scripts/harness.py PROGRAM SUITE [--device cpu|gpu|reference] [--profile strict|device] [--json REPORT] [--baseline REPORT]
                               [--match REGEX] [--stall SECONDS] [--limit SECONDS] [--memory MIB]

PROGRAM (a command line; `target/release/cupola`) is started as
    PROGRAM conformance --suite SUITE --device D --profile P --outputs DIR --json FILE --skip-file FILE
and appends to FILE one JSON line before each case, {"case": NAME, "status": "start"}, and one after it with status pass, fail,
unsupported or error. A case that was started and not ended when the program died or stalled is a crash or a hang; the program is started
again without the cases it is done with.

The report has each case's status, differences and detail. With --baseline the exit status is 1 if a case that passed there does
not pass now; without, 0. Needs numpy and onnx.
"""
import argparse
import json
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from case_files import judge, load_manifest

RESTARTS = 200
POLL = 0.1  # seconds


@dataclass
class Limits:
    stall: float  # seconds without a new result line
    deadline: float  # time.monotonic() at which the whole run ends
    memory: int  # MiB of address space, 0: not limited (a GPU driver may reserve much)

    def set_for_child(self):
        if self.memory:
            resource.setrlimit(resource.RLIMIT_AS, (self.memory << 20, self.memory << 20))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def json_lines(path):
    if not path.exists():
        return
    with open(path, errors="replace") as f:
        for line in f:
            try:
                yield json.loads(line)
            except ValueError:
                pass  # a line cut by the program's death


def run_once(command, results, errors, limits):
    """One start of the program. True: it had to be killed for stalling."""
    with open(errors, "wb") as stderr:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, preexec_fn=limits.set_for_child)
        size, since = 0, time.monotonic()
        while child.poll() is None:
            time.sleep(POLL)
            now = time.monotonic()
            grown = results.stat().st_size if results.exists() else 0
            if grown != size:
                size, since = grown, now
            if now - since > limits.stall or now > limits.deadline:
                child.kill()
                child.wait()
                return child.returncode, True
    return child.returncode, False


def run_all(program, suite, device, profile, names, everything, scratch, limits):
    """Starts the program until every name has a record: its own last line, or {"status": crash, hang or missing}."""
    records, restarts = {}, 0
    results, skip, errors = scratch / "results.jsonl", scratch / "skip.txt", scratch / "stderr.txt"
    command = [*shlex.split(program), "conformance", "--suite", str(suite), "--device", device, "--profile", profile]
    command += ["--outputs", str(scratch / "outputs"), "--json", str(results), "--skip-file", str(skip)]
    while (left := [name for name in names if name not in records]) and restarts <= RESTARTS:
        wanted = set(left)
        skip.write_text("".join(f"{name}\n" for name in everything if name not in wanted))
        results.unlink(missing_ok=True)
        status, stalled = run_once(command, results, errors, limits)
        running = None
        for line in json_lines(results):
            if line.get("status") == "start":
                running = line["case"]
            elif "case" in line:
                records[line["case"]] = line
                running = None if running == line["case"] else running
        last = errors.read_text(errors="replace").strip().splitlines()[-1:]
        detail = f"exit {status}: {last[0][:200] if last else ''}"
        if running is None or time.monotonic() > limits.deadline:
            for name in left:
                records.setdefault(name, {"status": "missing", "detail": detail})
        else:
            records[running] = {"status": "hang" if stalled else "crash", "detail": detail}
            restarts += 1
    for name in left:
        records.setdefault(name, {"status": "missing", "detail": f"not reached after {restarts} restarts"})
    return records, restarts


def report_case(case, record, suite, outputs, profile):
    """One row of the report: the program's word for what it could not run, ours for what it ran."""
    row = {"case": case["name"], "kind": case["kind"], "status": record["status"], "ms": record.get("ms")}
    if record["status"] not in ("pass", "fail", "done"):
        row["detail"] = str(record.get("detail", ""))[:300]
        return row
    verdict = judge(suite / case["name"], outputs / case["name"], case["rtol"], case["atol"], profile)
    row.update(status="pass" if verdict.right else "fail", max_abs=verdict.max_abs, max_rel=verdict.max_rel, detail=verdict.wrong)
    if record["status"] in ("pass", "fail") and record["status"] != row["status"]:
        row["own_verdict"] = record["status"]
    if record.get("fallback"):
        row["fallback"] = record["fallback"]
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("suite", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--profile", choices=("strict", "device"), default="strict")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--baseline", type=Path)
    parser.add_argument("--match", default="", help="only cases whose name this regular expression finds")
    parser.add_argument("--stall", type=float, default=60)
    parser.add_argument("--limit", type=float, default=1800)
    parser.add_argument("--memory", type=int, default=0)
    args = parser.parse_args()

    manifest, began = load_manifest(args.suite), time.monotonic()
    cases = [case for case in manifest["cases"] if re.search(args.match, case["name"])]
    names, everything = [case["name"] for case in cases], [case["name"] for case in manifest["cases"]]
    with tempfile.TemporaryDirectory(prefix="suite-") as scratch:
        limits = Limits(args.stall, began + args.limit, args.memory)
        suite = args.suite.resolve()
        run = run_all(args.program, suite, args.device, args.profile, names, everything, Path(scratch), limits)
        records, restarts = run
        rows = [report_case(c, records[c["name"]], suite, Path(scratch) / "outputs", args.profile) for c in cases]
    tally = Counter(row["status"] for row in rows)
    report = {
        "suite": manifest.get("source"),
        "device": args.device,
        "profile": args.profile,
        "total": len(rows),
        "tally": dict(tally),
        "passed_with_fallback": sum(row["status"] == "pass" and "fallback" in row for row in rows),
        "own_verdict_differs": sum("own_verdict" in row for row in rows),
        "restarts": restarts,
        "seconds": round(time.monotonic() - began, 1),
        "cases": rows,
    }
    if args.json:
        args.json.write_text(json.dumps(report, indent=0))
    counts = ", ".join(f"{count} {status}" for status, count in tally.most_common())
    print(f"{tally['pass']} of {len(rows)} pass ({counts}) on {args.device} in {report['seconds']} s; with fallback", end=" ")
    print(f"{report['passed_with_fallback']}, own verdict differs {report['own_verdict_differs']}, restarts {restarts}")
    if args.baseline is None:
        return 0
    passed_before = {row["case"] for row in json.loads(args.baseline.read_text())["cases"] if row["status"] == "pass"}
    lost = [row for row in rows if row["case"] in passed_before and row["status"] != "pass"]
    for row in lost:
        print(f"lost: {row['case']}: {row['status']} {row.get('detail', '')}")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
