#!/usr/bin/env python3
"""Sends a server bodies that nobody means and ends connections at random points, then asks whether it is what it was. Standard library only.

    python3 scripts/fuzz_server.py PROGRAM MODEL [--requests 1000] [--aborts 200] [--seed 1] [--growth 5] [--json REPORT] [--flags "--threads 1"]
    python3 scripts/fuzz_server.py http://127.0.0.1:8080 [--pid N] ...

PROGRAM is started as `PROGRAM serve MODEL --port 0 -c 1024 --timeout 30 FLAGS`; a server that runs already is given by its address, on this
machine only, and by --pid, whose memory is watched.

Bodies are valid ones with something changed: other types, huge numbers, deep nesting, missing, doubled and unknown keys, grammars and
schemas that grow, cut and damaged text, broken UTF-8. Few tokens are asked for. The faults, the worst first:

    gone      the server does not answer any more
    hang      a request had no answer for --seconds, or texts are under way long after all clients went
    server    status 500, 502 or 503
    answer    what it sent is no JSON document, or an error without a message
    different the greedy text, or the vector, is not what it was
    memory    resident memory grew by more than --growth percent since the first 100 requests

Exit status: 0 without faults, else 1.
"""
import argparse
import copy
import http.client
import json
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

CLIENTS = 4
WARM = 100  # requests before memory is measured the first time
TOKENS = 3  # asked for at most
LOCAL = ("127.0.0.1", "localhost", "::1")

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["a"]}
TOOLS = [{"type": "function", "function": {"name": "go", "description": "Goes.", "parameters": SCHEMA}}]
COMMON = {"max_tokens": TOKENS, "temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.01, "typical_p": 1.0, "seed": 5, "n": 1,
          "repeat_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.5, "logit_bias": {"7": 1.5}, "stop": ["\n\n"]}
CHAT = {"model": "x", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}], **COMMON}
CALLED = [*CHAT["messages"],
          {"role": "assistant", "content": None,
           "tool_calls": [{"id": "abcdefghi", "type": "function", "function": {"name": "go", "arguments": "{\"a\": 1}"}}]},
          {"role": "tool", "tool_call_id": "abcdefghi", "content": "done"}]
BODIES = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 3}),
    ("/v1/chat/completions", {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}}),
    ("/v1/chat/completions", {**CHAT, "messages": CALLED, "tools": TOOLS, "tool_choice": "auto", "parallel_tool_calls": False}),
    ("/v1/chat/completions", {**CHAT, "tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "go"}}}),
    ("/v1/completions", {"model": "x", "prompt": "Once upon", "logprobs": 2, "stream": True, **COMMON}),
    ("/v1/completions", {"model": "x", "prompt": ["a b", "c"], "echo": True, **COMMON}),
    ("/v1/completions", {"prompt": [1, 2, 3], "grammar": "root ::= [a-z]+ (\" \" [a-z]+)*", **COMMON}),
    ("/v1/embeddings", {"model": "x", "input": ["a text", "another"], "encoding_format": "base64"}),
    ("/v1/embeddings", {"model": "x", "input": [[3, 4], [5]], "dimensions": 384}),
]
PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/v1/models/x", "/health", "/metrics", "/", "/v2"]
SPECIAL_KEYS = {"max_tokens", "max_completion_tokens"}
GRAMMARS = ["root ::= root", "root ::= \"a\"{1,3000}", "root ::= \"a\"{1,4000000000}", "root ::= (((\"a\"*)*)*)*", "root ::= [^", "root ::= x", "root ::= " + "(" * 500,
            "root ::= ((\"a\"{1,100}){1,100}){1,100}", "\0", "root ::= a\na ::= b\nb ::= a", "root ::= \"\\xZZ\""]
SCHEMAS = [{"$ref": "#"}, {"allOf": [{"$ref": "#/allOf/0"}]}, {"type": "string", "pattern": "(a+)+$"}, {"type": "string", "minLength": 10**9},
           {"type": "array", "minItems": 10**12}, {"enum": []}, {"type": "integer", "minimum": 10**30}, {"const": {"a": [None] * 50}}, False,
           {"type": "string", "pattern": "(a|b)*a(a|b){20}"}, {"properties": {str(i): {"type": "integer"} for i in range(300)}},
           {"type": "object", "patternProperties": {"(": {}}}, {"anyOf": [{"$ref": "#/anyOf/1"}, {"$ref": "#/anyOf/0"}]}]


def any_value(rng):
    """Something else."""
    deep = []
    for _ in range(rng.choice([2, 60, 200])):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    return rng.choice([
        None, True, False, 0, -1, 1, 2, 16, 17, 2**31, 2**32, 2**63, 2**64, 10**40, -2**63, 0.5, -0.0, 1e-320, 1e308, "", "a", "\0", "none",
        "required", "json_object", "\ud800", "\U0001f600" * 50, "x" * 20_000, "<|im_end|><|im_start|>", "{{ 7 * 7 }}", [], {}, [None], [[]], [{}],
        ["a"] * 300, [1] * 5000, [-1], [2**40], {"": ""}, {"type": "json_schema"}, {"type": rng.choice(["function", "text", 3])}, deep,
        {"type": "json_schema", "json_schema": {"schema": rng.choice(SCHEMAS)}}, rng.choice(GRAMMARS), rng.choice(SCHEMAS),
    ])


def places(value, path=()):
    """The paths of all values inside one."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*path, key)
        yield from places(inner, (*path, key))


def change(body, rng):
    """Changes one place of a body."""
    *path, key = rng.choice(list(places(body)))
    holder = body
    for step in path:
        holder = holder[step]
    what = rng.random()
    if key in SPECIAL_KEYS:
        holder[key] = rng.choice([0, -1, 1.5, "3", [], {}, 1e300, True])
    elif what < 0.7:
        holder[key] = any_value(rng)
    elif what < 0.85:
        del holder[key]
    elif isinstance(holder, dict):
        holder[rng.choice(["grammar", "response_format", "tools", "tool_choice", "extra", "stop", "messages", "prompt"])] = any_value(rng)


def fuzzed(rng):
    """Method, path and body of a request."""
    path, body = rng.choice(BODIES)
    body = copy.deepcopy(body)
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        change(body, rng)
        if not body:
            break
    if isinstance(body, dict) and path != "/v1/embeddings":
        body.setdefault("max_tokens", TOKENS)
    data = json.dumps(body, ensure_ascii=rng.random() < 0.9).encode("utf-8", "surrogatepass")
    what = rng.random()
    if what < 0.08:
        data = data[: rng.randrange(len(data) + 1)]
    elif what < 0.16 and data:
        at = rng.randrange(len(data))
        data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1:]
    elif what < 0.2:
        at = rng.randrange(len(data) + 1)
        data = data[:at] + rng.choice([b"\xff\xfe", b"\xed\xa0\x80", b"\xf0\x9f", b"\0", b"\xc0\xaf"]) + data[at:]
    elif what < 0.23:
        data = rng.choice([b"", b"null", b"[]", b"\xef\xbb\xbf{}", b"[" * 100_000, b"{\"a\":" * 50_000, b"\"" + b"a" * 100_000, b"1e999999"])
    elif what < 0.25:
        data = data[:-1] + b", \"max_tokens\": 2}"
    if rng.random() < 0.05:
        path = rng.choice(PATHS)
    method = "POST" if rng.random() < 0.97 else rng.choice(["GET", "PUT", "DELETE", "OPTIONS"])
    return method, path, data


class Server:
    """One that runs already, or one that is started."""

    def __init__(self, args):
        self.child, self.pid = None, args.pid
        self.seconds = args.seconds
        if re.match(r"https?://", args.target):
            parts = urlsplit(args.target)
            self.host, self.port = parts.hostname, parts.port or 80
            if self.host not in LOCAL:
                sys.exit(f"{args.target} is not on this machine")
            return
        if not args.model:
            sys.exit("a model is needed: fuzz_server.py PROGRAM MODEL")
        command = [args.target, "serve", args.model, "--port", "0", "--name", "x", "--timeout", "30"]
        command += ["-c", "1024"] if args.model.endswith(".gguf") else []
        self.child = subprocess.Popen(command + args.flags.split(), stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
        self.pid = self.child.pid
        found = next((re.search(r"http://(.*):(\d+)", line) for line in self.child.stderr if "listening" in line), None)
        if not found:
            sys.exit("the server did not start")
        self.host, self.port = found[1], int(found[2])
        # What it says is not read, but it must not wait for that.
        threading.Thread(target=self.child.stderr.read, daemon=True).start()

    def exchange(self, method, path, data=b""):
        connection = http.client.HTTPConnection(self.host, self.port, timeout=self.seconds)
        try:
            connection.request(method, path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.getheader("content-type", ""), answer.read()
        finally:
            connection.close()

    def memory(self):
        """Resident MiB, when nothing is under way."""
        if not self.pid:
            return None
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024

    def wait_idle(self):
        """Whether texts of clients that went away end."""
        deadline = time.monotonic() + self.seconds
        while time.monotonic() < deadline:
            figures = self.exchange("GET", "/metrics")[2].decode()
            if not re.search(r"^cupola_(running|waiting) [1-9]", figures, re.M):
                return True
            time.sleep(0.1)
        return False

    def same(self):
        """What it says to a question that has one answer."""
        chat = {**CHAT, "temperature": 0, "max_tokens": 16, "stop": [], "presence_penalty": 0, "frequency_penalty": 0}
        for path, body in [("/v1/chat/completions", chat), ("/v1/completions", {**chat, "prompt": "Once upon a time"})]:
            status, _, data = self.exchange("POST", path, json.dumps(body).encode())
            if status == 200:
                choice = json.loads(data)["choices"][0]
                return choice.get("text") or choice["message"]["content"]
        data = self.exchange("POST", "/v1/embeddings", b"{\"input\": \"a text\"}")[2]
        return [round(x, 4) for x in json.loads(data)["data"][0]["embedding"]]

    def fill(self):
        """Fills the cache of a server that was started here: its memory counts only once it is used."""
        for i in range(8):
            body = {"prompt": f"{i} " + "one two three four " * 210, "max_tokens": 1}
            self.exchange("POST", "/v1/completions", json.dumps(body).encode())

    def end(self):
        if self.child:
            self.child.terminate()
            try:
                self.child.wait(30)
            except subprocess.TimeoutExpired:
                self.child.kill()
                return False
        return True


def judge(method, path, data, server):
    """The fault of one request, if any, and its status."""
    try:
        status, kind, body = server.exchange(method, path, data)
    except socket.timeout:
        return "hang", 0
    except (OSError, http.client.HTTPException):
        return "gone", 0
    if status in (500, 502, 503):
        return "server", status
    if status == 200:
        if kind.startswith("application/json"):
            return (None if is_json(body) else "answer"), status
        return (None if body else "answer"), status
    found = is_json(body) if method == "POST" else {"error": {"message": "-"}}
    named = isinstance(found, dict) and found.get("error", {}).get("message")
    return (None if named and 400 <= status < 505 else "answer"), status


def is_json(body):
    try:
        return json.loads(body)
    except ValueError:
        return None


def fuzz(server, count, rng, faults, statuses):
    """Requests by several clients at a time; every one counts as what came of it."""
    requests = [fuzzed(rng) for _ in range(count)]
    lock = threading.Lock()

    def client():
        while True:
            with lock:
                if not requests:
                    return
                method, path, data = requests.pop()
            fault, status = judge(method, path, data, server)
            with lock:
                statuses[status] += 1
                if fault:
                    faults.append((fault, f"{method} {path} {data[:300]!r}: status {status}"))

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def abort(server, rng):
    """A connection that ends somewhere: in the head, in the body, while it waits, in the answer."""
    path, body = rng.choice(BODIES[:8])
    body = {**body, "stream": rng.random() < 0.7, "max_tokens": 60, "n": 1}
    data = json.dumps(body).encode()
    request = f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
    try:
        with socket.create_connection((server.host, server.port), timeout=server.seconds) as connection:
            cut = rng.choice([rng.randrange(len(request)), len(request), len(request)])
            connection.sendall(request[:cut])
            if cut == len(request) and rng.random() < 0.7:
                left = rng.randrange(1, 3000)
                while left > 0 and (got := connection.recv(min(left, 512))):
                    left -= len(got)
            elif rng.random() < 0.5:
                time.sleep(rng.random() * 0.05)
            if rng.random() < 0.5:
                # Reset instead of an orderly end.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except ConnectionError:
        pass  # the server may end it first


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target")
    parser.add_argument("model", nargs="?")
    parser.add_argument("--pid", type=int)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--aborts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--growth", type=float, default=5.0, metavar="PERCENT")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--flags", default="")
    parser.add_argument("--json")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    server, faults, statuses = Server(args), [], Counter()
    started = time.monotonic()
    report = {}

    def tell(what):
        print(f"{time.monotonic() - started:.1f} s: {what}", file=sys.stderr)

    try:
        said = server.same()
        server.fill()
        tell("the server answers")
        warm = min(WARM, args.requests)
        fuzz(server, warm, rng, faults, statuses)
        server.wait_idle()
        before = server.memory()
        tell(f"{warm} requests")
        fuzz(server, args.requests - warm, rng, faults, statuses)
        after_requests = server.memory()
        tell(f"{args.requests} requests")
        for _ in range(args.aborts):
            abort(server, rng)
        tell(f"{args.aborts} connections ended")
        if not server.wait_idle():
            faults.append(("hang", "texts are under way though all clients went away"))
        if (now := server.same()) != said:
            faults.append(("different", f"{said!r} became {now!r}"))
        after = server.memory()
        growth = 100 * (after / before - 1) if before else 0.0
        if growth > args.growth:
            faults.append(("memory", f"{before:.1f} MiB became {after:.1f}"))
        report = {"memory_mib": [before, after_requests, after], "growth_percent": growth}
    except (OSError, http.client.HTTPException) as error:
        faults.append(("gone", repr(error)))
    if not server.end():
        faults.append(("hang", "it did not end when asked to"))
    report |= {"requests": args.requests, "aborts": args.aborts, "seconds": time.monotonic() - started,
               "statuses": dict(sorted(statuses.items())), "faults": dict(Counter(fault for fault, _ in faults))}
    for fault, what in faults[:20]:
        print(f"{fault}: {what}")
    print(json.dumps(report))
    if args.json:
        Path(args.json).write_text(json.dumps({**report, "details": faults}))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
