#!/usr/bin/env python3
"""Uses the page of a running `cupola serve` as a reader does, in headless Chromium, and judges what it shows. Standard library only.

    python3 scripts/drive_page.py http://127.0.0.1:8080 [--chromium PROGRAM] [--screenshot FILE.png] [--seconds 60]

It sends a message by the keyboard and reads the streamed answer, stops a long answer with the button and another with Escape, sees that
the server ends these texts, asks what the server refuses and reads the error, begins anew, and checks that the page loads nothing from
elsewhere. Chromium is spoken to through two pipes (its DevTools protocol).

Exit status: 0 when all is as it should be, 1 when not, 3 without a Chromium.
"""
import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
         "--disable-extensions", "--window-size=900,700", "--remote-debugging-pipe")
LONG = "Write a very long story about a lighthouse, a storm and a ship, and tell every detail of it."


class Browser:
    """A Chromium with one page."""

    def __init__(self, program, profile, seconds):
        self.seconds, self.number, self.events, self.rest = seconds, 0, [], b""
        read_commands, self.commands = os.pipe()
        self.answers, write_answers = os.pipe()

        def wire():
            # Chromium reads commands from 3 and writes answers to 4; the pipes may have these numbers themselves.
            commands, answers = os.dup(read_commands), os.dup(write_answers)
            os.dup2(commands, 3)
            os.dup2(answers, 4)

        command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.child = subprocess.Popen(command, preexec_fn=wire, close_fds=False, stdin=subprocess.DEVNULL,
                                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(read_commands)
        os.close(write_answers)
        os.set_blocking(self.answers, False)

    def attach(self):
        """Speaks to its page from now on."""
        pages = self.call("Target.getTargets")["targetInfos"]
        target = next(page["targetId"] for page in pages if page["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def receive(self, deadline):
        while b"\0" not in self.rest:
            if time.monotonic() > deadline:
                raise TimeoutError("Chromium does not answer")
            try:
                got = os.read(self.answers, 1 << 16)
                if not got:
                    raise ConnectionError("Chromium has ended")
                self.rest += got
            except BlockingIOError:
                time.sleep(0.005)
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if hasattr(self, "session"):
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + self.seconds
        while True:
            answer = self.receive(deadline)
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def value(self, expression):
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, expression, what):
        deadline = time.monotonic() + self.seconds
        while not (value := self.value(expression)):
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}; the page says: {self.value('document.body.innerText')!r}")
            time.sleep(0.02)
        return value

    def press(self, key):
        text = {"Enter": "\r"}.get(key)
        code = {"Enter": 13, "Escape": 27}[key]
        down = {"type": "keyDown", "key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", **down, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", **{**down, "type": "keyUp"})

    def type(self, text):
        self.call("Input.insertText", text=text)
        self.press("Enter")

    def end(self):
        try:
            self.call("Browser.close")
            self.child.wait(10)
        except (OSError, RuntimeError, subprocess.TimeoutExpired):
            self.child.kill()
            self.child.wait()


def running(address):
    """Texts that the server is at."""
    figures = urllib.request.urlopen(address + "/metrics", timeout=10).read().decode()
    return int(next(line.split()[1] for line in figures.splitlines() if line.startswith("cupola_running")))


def wait_idle(address, seconds):
    deadline = time.monotonic() + seconds
    while running(address):
        assert time.monotonic() < deadline, "a text goes on though its reader stopped it"
        time.sleep(0.05)


def shown(kind):
    return f"[...document.querySelectorAll('.{kind}')].map(e => e.textContent)"


def begin_long(browser):
    """Asks for a long answer until one is under way: what a model says is random."""
    for _ in range(10):
        browser.value("document.getElementById('new').click(); 0")
        browser.type(LONG)
        browser.wait(shown("assistant") + "[0]?.length > 20 || document.getElementById('stop').disabled", "a long answer does not come")
        if not browser.value("document.getElementById('stop').disabled"):
            return
    raise AssertionError("no answer is long enough to be stopped")


def drive(browser, address, seconds, screenshot):
    browser.call("Page.enable")
    browser.call("Network.enable")
    browser.call("Page.navigate", url=address + "/")
    browser.wait("document.readyState === 'complete' && document.getElementById('model').textContent", "the model's name is not shown")
    assert browser.value("document.activeElement.id") == "text", "the text is not in focus"

    # Every change of the first answer's text is counted, to see that it comes in pieces.
    browser.value("window.pieces = 0; new MutationObserver(all => { window.pieces += all.length; })"
                  ".observe(document.getElementById('talk'), { childList: true, subtree: true }); 0")
    browser.type("What is the capital of France?")
    browser.wait("document.querySelectorAll('.note').length === 1", "the first answer does not end")
    answer = browser.value(shown("assistant"))[0]
    assert answer, "the answer is empty"
    assert browser.value("window.pieces") > 4, "the answer did not come in pieces"
    if screenshot:
        data = browser.call("Page.captureScreenshot", format="png")["data"]
        Path(screenshot).write_bytes(base64.b64decode(data))

    begin_long(browser)
    assert browser.value("document.getElementById('send').disabled"), "two messages could be sent at once"
    browser.value("document.getElementById('stop').click(); 0")
    browser.wait("[...document.querySelectorAll('.note')].at(-1).textContent === 'stopped'", "Stop does not stop")
    wait_idle(address, seconds)
    begin_long(browser)
    browser.press("Escape")
    browser.wait("document.getElementById('stop').disabled", "Escape does not stop")
    wait_idle(address, seconds)

    # More than the model reads is refused, and the page says so and goes on.
    browser.value("document.getElementById('text').value = 'word '.repeat(20000); 0")
    browser.press("Enter")
    message = browser.wait(shown("error") + "[0]", "an error is not shown")
    assert "tokens" in message, message
    browser.value("document.getElementById('new').click(); 0")
    assert browser.value("document.getElementById('talk').childElementCount") == 0, "New does not begin anew"
    browser.type("Hello")
    browser.wait("document.querySelectorAll('.note').length === 1", "the page does not go on after an error")

    requests = [event["params"]["request"]["url"] for event in browser.events if event.get("method") == "Network.requestWillBeSent"]
    outside = [url for url in requests if not url.startswith((address, "data:"))]
    assert requests and not outside, f"the page asks for {outside}"
    return answer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("--chromium", default=next(filter(None, map(shutil.which, NAMES)), None))
    parser.add_argument("--screenshot")
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    if not args.chromium:
        print("there is no Chromium here: the page is not tried", file=sys.stderr)
        sys.exit(3)
    address = args.address.rstrip("/")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(args.chromium, profile, args.seconds)
        try:
            browser.attach()
            answer = drive(browser, address, args.seconds, args.screenshot)
        except (AssertionError, RuntimeError, OSError) as error:
            print(error, file=sys.stderr)
            sys.exit(1)
        finally:
            browser.end()
    print(json.dumps({"answer": answer}))


if __name__ == "__main__":
    main()
