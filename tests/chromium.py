"""Headless Chromium by its DevTools protocol over a pipe: https://chromedevtools.github.io/devtools-protocol/

Messages are JSON with a zero byte behind each, to file descriptor 3 and from 4 of the browser.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time


def executable():
    """CHROMIUM of the environment, or what the system calls chromium; None if there is none."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


class Page:
    """One page in a browser of its own."""

    def __init__(self, path, address):
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        ours, self._to = os.pipe()
        self._from, theirs = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
        command = [path, *flags, "--disable-dev-shm-usage", f"--user-data-dir={self._profile.name}", "about:blank"]
        shell = 'exec 3<&"$1" 4>&"$2"; shift 2; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", str(ours), str(theirs), *command],
            pass_fds=[ours, theirs],
            stderr=subprocess.DEVNULL,
        )
        os.close(ours), os.close(theirs)
        self._input, self._number, self._session, self.events = os.fdopen(self._from, "rb"), 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def _receive(self):
        message = b""
        while not message.endswith(b"\0"):
            byte = self._input.read1(1)
            if not byte:
                raise EOFError("the browser has ended")
            message += byte
        return json.loads(message[:-1])

    def call(self, method, **params):
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def value(self, expression):
        """Of JavaScript."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, expression):
        deadline = time.monotonic() + 60
        while not self.value(expression):
            assert time.monotonic() < deadline, f"never true: {expression}; {self.value('document.body.innerText')}"
            time.sleep(0.02)

    def type(self, text):
        self.call("Input.insertText", text=text)

    def press(self, key, control=False):
        codes = {"Enter": 13, "Tab": 9, "Escape": 27, "a": 65}
        fields = dict(key=key, code=key, windowsVirtualKeyCode=codes[key], modifiers=2 if control else 0)
        commands = ["selectAll"] if (key, control) == ("a", True) else []
        text = "\r" if key == "Enter" and not control else ""
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, commands=commands, **fields)
        self.call("Input.dispatchKeyEvent", type="keyUp", **fields)

    def requests(self):
        """Addresses that the page asked for."""
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]

    def complaints(self):
        """Errors in its log, and exceptions."""
        names = ("Runtime.exceptionThrown", "Log.entryAdded")
        return [event["params"] for event in self.events if event.get("method") in names]

    def close(self):
        os.close(self._to)
        self._process.terminate()
        self._process.wait()
        self._input.close()
        self._profile.cleanup()
