#!/usr/bin/env python3
"""Runs a program over the malformed model files of tests/malformed and judges how it takes them. Standard library only.

    python3 scripts/judge_malformed.py PROGRAM CORPUS [--json REPORT] [--match REGEX] [--seconds 5] [--memory 1024]

CORPUS is the unpacked corpus (tests/malformed/README.md). Each case is one start, `PROGRAM check FILE` or
`PROGRAM run FILE --inputs DIR --outputs DIR`. The faults, the worst first:

    signal    it ended by a signal
    panic     exit status 101, or a panic message
    hang      it took longer than --seconds
    memory    its resident memory peaked above --memory MiB
    leak      bytes of a file outside the model's folder came out
    accepted  exit status 0 for a file that must be rejected
    refused   a valid file was rejected
    code      an exit status outside of 0, 1 (only while running), 3, 4 and 5
    message   it rejected without an `error...` line on stderr, or with over 3 lines, a line over 500 bytes, or control characters

Exit status: 0 without faults, else 1.
"""
import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

FAULTS = ("signal", "panic", "hang", "memory", "leak", "accepted", "refused", "code", "message")
HARD = FAULTS[:5]
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
MEMORY_MARGIN = 512  # MiB above the limit at which a child is killed rather than only judged


@dataclass
class Ending:
    exit: int | None
    signal: int
    seconds: float
    mebibytes: float
    stderr: bytes
    stdout: bytes
    stopped: str  # "", "hang" or "memory": killed by the watch


def resident_mebibytes(pid):
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found.group(1)) / 1024 if found else 0


def start(command, folder, seconds, memory):
    """Runs a command to its end, or kills its process group at twice the time or well above the memory."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began, stopped, ended = time.monotonic(), [], threading.Event()
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=folder, start_new_session=True
        )

        def watch():
            while not ended.wait(0.01):
                late = time.monotonic() - began > 2 * seconds
                if late or resident_mebibytes(child.pid) > memory + MEMORY_MARGIN:
                    stopped.append("hang" if late else "memory")
                    os.killpg(child.pid, signal.SIGKILL)
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        # Not yet reaped, so the group still is this child's and no other's.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        ended.set()
        watcher.join()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = 0  # reaped here, subprocess must not wait again
        took = time.monotonic() - began
        err.seek(0)
        out.seek(0)
        exited = os.WIFEXITED(status)
        return Ending(
            exit=os.WEXITSTATUS(status) if exited else None,
            signal=0 if exited else os.WTERMSIG(status),
            seconds=took,
            mebibytes=usage.ru_maxrss / 1024,
            stderr=err.read(1 << 20),
            stdout=out.read(1 << 20),
            stopped=stopped[0] if stopped else "",
        )


def message_is_fine(text):
    lines = [line for line in text.split("\n") if line.strip()]
    return (
        0 < len(lines) <= 3
        and any(line.startswith("error") for line in lines)
        and all(len(line.encode()) <= 500 for line in lines)
        and not CONTROL.search(text)
    )


def faults_of(case, ending, written, canary, seconds, memory):
    text = ending.stderr.decode("utf-8", "replace")
    hard = {
        "signal": ending.signal != 0 and not ending.stopped,
        "panic": ending.exit == 101 or "panicked at" in text,
        "hang": ending.stopped == "hang" or ending.seconds > seconds,
        "memory": ending.stopped == "memory" or ending.mebibytes > memory,
        "leak": any(canary in blob for blob in (ending.stderr, ending.stdout, written)),
    }
    if any(hard.values()):
        return [fault for fault in HARD if hard[fault]]
    allowed = (0, 3, 4, 5) if case["verb"] == "check" else (0, 1, 3, 4, 5)
    soft = {
        "accepted": ending.exit == 0 and case["expect"] == "reject",
        "refused": ending.exit != 0 and case["expect"] == "accept",
        "code": ending.exit not in allowed,
        "message": ending.exit != 0 and not message_is_fine(text),
    }
    return [fault for fault in FAULTS if soft.get(fault)]


def run_case(program, corpus, case, canary, seconds, memory):
    folder = corpus / case["name"]
    scratch = Path(tempfile.mkdtemp(prefix="malformed-"))
    try:
        command = [*shlex.split(program), case["verb"], str(folder / case["file"])]
        if case["verb"] == "run":
            command += ["--inputs", str(folder / "inputs"), "--outputs", str(scratch)]
        ending = start(command, scratch, seconds, memory)
        written = b"".join(path.read_bytes()[: 1 << 20] for path in scratch.rglob("*") if path.is_file())
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    faults = faults_of(case, ending, written, canary, seconds, memory)
    return {
        "name": case["name"],
        "format": case["format"],
        "expect": case["expect"],
        "faults": faults,
        "exit": ending.exit,
        "signal": ending.signal,
        "seconds": round(ending.seconds, 3),
        "mebibytes": round(ending.mebibytes, 1),
        "stderr": ending.stderr[:300].decode("utf-8", "replace"),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--match", default="")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--memory", type=float, default=1024)
    args = parser.parse_args()

    corpus = args.corpus.resolve()
    canary = (corpus / "outside_canary.bin").read_bytes()[:6]
    rows = []
    for case in json.loads((corpus / "corpus.json").read_text())["cases"]:
        if not re.search(args.match, case["name"]):
            continue
        row = run_case(args.program, corpus, case, canary, args.seconds, args.memory)
        rows.append(row)
        if row["faults"]:
            last = row["stderr"].strip().split("\n")[-1][:100]
            print(
                f"{row['faults'][0]:9} {row['name']:36} exit {row['exit']} signal {row['signal']} "
                f"{row['seconds']:.2f} s {row['mebibytes']:.0f} MiB  {last!r}"
            )
    tally = Counter(row["faults"][0] if row["faults"] else "fine" for row in rows)
    hard = sum(tally[fault] for fault in HARD)
    kinds = ", ".join(f"{count} {fault}" for fault, count in tally.most_common())
    print(f"{tally['fine']} of {len(rows)} fine; {hard} crash, hang, memory or leak faults ({kinds})")
    if args.json:
        args.json.write_text(json.dumps({"total": len(rows), "tally": dict(tally), "cases": rows}, indent=0))
    return 0 if tally["fine"] == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
