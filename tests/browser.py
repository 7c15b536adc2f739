"""A page in a real Chromium without a window, driven by its DevTools protocol over two pipes."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from local.packages import chromium_program

PATIENCE = 60.0
"""Seconds until the page must show what is waited for."""


class Page:
    """One page. Messages are JSON, each ended by NUL, as `--remote-debugging-pipe` has them."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._out, self._in, self._text = to_browser, from_browser, b""
        self._number = 0
        self._session: dict[str, str] = {}
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        attached = self._send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    def open(self, url: str) -> None:
        """Begins to load a page."""
        self._send("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """Returns the value of a JavaScript expression in the page; raises its error."""
        done = self._send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in done, (script, done)
        return done["result"].get("value")

    def type(self, text: str) -> None:
        """Types into the field that has the focus."""
        self._send("Input.insertText", text=text)

    def wait_for(self, script: str) -> Any:
        """Waits until an expression is true; returns its value."""
        deadline = time.monotonic() + PATIENCE
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, (script, self.run("document.body.innerText"))
            time.sleep(0.1)
        return value

    def click(self, selector: str) -> None:
        """Clicks the first element, as soon as there is one that can be clicked."""
        self.wait_for(
            f"(each => each && !each.disabled && (each.click(), true))"
            f"(document.querySelector({json.dumps(selector)}))"
        )

    def _send(self, method: str, **params: object) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params, **self._session}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := json.loads(self._read())).get("id") != self._number:
            pass  # an event
        assert "error" not in answer, (method, answer)
        result: dict[str, Any] = answer["result"]
        return result

    def _read(self) -> bytes:
        while b"\0" not in self._text:
            more = os.read(self._in, 65536)
            assert more, "Chromium has ended"
            self._text += more
        message, _, self._text = self._text.partition(b"\0")
        return message


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """Chromium with an empty profile in `folder`, and a page in it."""
    read_here, write_there = os.pipe()
    read_there, write_here = os.pipe()
    command = [
        str(chromium_program()), "--headless", "--no-sandbox", "--disable-gpu",
        "--remote-debugging-pipe", f"--user-data-dir={folder}",
    ]  # fmt: skip
    script = f'exec "$@" 3<&{read_there} 4>&{write_there}'
    chromium = subprocess.Popen(
        ["bash", "-c", script, "bash", *command],
        pass_fds=(read_there, write_there), stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(read_there)
    os.close(write_there)
    try:
        yield Page(write_here, read_here)
    finally:
        chromium.terminate()
        chromium.wait(timeout=30)
        os.close(write_here)
        os.close(read_here)
