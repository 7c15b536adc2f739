"""A headless Chromium, driven over a pipe by the DevTools protocol: no library, no open port."""

import base64
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from select import select
from typing import Any

from local.packages import chromium_program

PATIENCE = 15.0
"""Seconds for a condition to become true on a page."""


class Browser:
    """One Chromium; `open` gives a tab. Commands that are refused raise RuntimeError."""

    def __init__(self, process: "subprocess.Popen[bytes]", write: int, read: int) -> None:
        self._process = process
        self._write, self._read = write, read
        self._number = 0
        self._text = b""
        self._tabs: dict[str, Tab] = {}

    def open(self, width: int = 1280, height: int = 900, **emulated: Any) -> "Tab":
        """A new tab with an empty profile of its own."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = {"url": "about:blank", "browserContextId": context}
        id = self.call("Target.createTarget", target)["targetId"]
        attach = {"targetId": id, "flatten": True}
        session = self.call("Target.attachToTarget", attach)["sessionId"]
        self._tabs[session] = tab = Tab(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            tab.call(f"{domain}.enable")
        tab.call("Emulation.setFocusEmulationEnabled", enabled=True)  # and so never hidden
        tab.resize(width, height)
        tab.emulate(**emulated)
        return tab

    def call(self, method: str, params: Mapping[str, Any] | None = None, session: str = "") -> Any:
        """The result of a command; notes the events that come before it."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params or {}}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for answer in self._messages(deadline - time.monotonic()):
                if answer.get("id") == number:
                    if "error" in answer:
                        raise RuntimeError(f"{method}: {answer['error']['message']}")
                    return answer["result"]
                self._note(answer)
        raise RuntimeError(f"{method} was not answered")

    def _note(self, message: Mapping[str, Any]) -> None:
        if tab := self._tabs.get(message.get("sessionId", "")):
            tab.note(message["method"], message["params"])

    def drain(self, seconds: float) -> None:
        """Notes the events that come within some time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            for message in self._messages(left):
                if "method" in message:
                    self._note(message)

    def _messages(self, wait: float) -> Iterator[Any]:
        """The messages of one read; a command's answer may be one of several."""
        if not select([self._read], [], [], max(0.0, wait))[0]:
            return
        received = os.read(self._read, 1 << 20)
        if not received:
            raise RuntimeError(f"Chromium has ended with {self._process.wait()}")
        *whole, self._text = (self._text + received).split(b"\0")
        waiting = [json.loads(each) for each in whole]
        for place, each in enumerate(waiting):
            if "id" in each:  # all other messages first: one caller waits for this one
                for other in waiting[:place] + waiting[place + 1 :]:
                    self._note(other)
                yield each
                return
        yield from waiting


class Tab:
    """A page in the browser; `requests` are the URLs that it has asked for."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.requests: list[str] = []
        self.statuses: list[tuple[str, int]] = []
        self.complaints: list[str] = []
        """Errors of scripts, and what a policy refused."""

    def call(self, method: str, **params: Any) -> Any:
        """The result of a DevTools command for this tab."""
        return self._browser.call(method, params, self._session)

    def note(self, method: str, params: Mapping[str, Any]) -> None:
        """Takes an event of this tab."""
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Network.responseReceived":
            self.statuses.append((params["response"]["url"], params["response"]["status"]))
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(params["entry"]["text"])

    def resize(self, width: int, height: int) -> None:
        """Gives the page so many CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def emulate(self, *, dark: bool = False, scripts: bool = True, moves: bool = True) -> None:
        """Sets what the reader prefers: colours, motion; and whether scripts run."""
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "no-preference" if moves else "reduce"},
        ]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)

    def go(self, url: str) -> None:
        """Opens a URL, and returns when it is loaded."""
        self.call("Runtime.evaluate", expression="window.left = true")
        answer = self.call("Page.navigate", url=url)
        if "errorText" in answer:
            raise RuntimeError(f"{url}: {answer['errorText']}")
        self.wait("document.readyState === 'complete' && !window.left", f"{url} to be loaded")

    def run(self, script: str) -> Any:
        """The value of an expression; a promise is awaited. Raises RuntimeError."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script[:200]}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, condition: str, what: str = "", seconds: float = PATIENCE) -> None:
        """Returns when an expression is true. Raises TimeoutError."""
        self.until(lambda: bool(self.run(condition)), what or condition, seconds)

    def until(self, is_met: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
        """Returns when a condition is met. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if is_met():
                    return
            except RuntimeError:
                if time.monotonic() > deadline:  # the page was being replaced
                    raise
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {seconds:g} s for {what}")
            self._browser.drain(0.05)

    def click(self, selector: str) -> None:
        """Clicks the first such element, as soon as there is one that can be clicked."""
        self.wait(
            f"(each => each && !each.disabled && (each.click(), true))"
            f"(document.querySelector({json.dumps(selector)}))",
            f"{selector} to click",
        )

    def press(self, key: str, text: str = "", times: int = 1) -> None:
        """Presses a key; `text` is what it types."""
        codes = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowRight": 39, " ": 32}
        given = {"key": key, "code": key, "windowsVirtualKeyCode": codes.get(key, 0)}
        for _ in range(times):
            self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **given)
            self.call("Input.dispatchKeyEvent", type="keyUp", **given)

    def type(self, text: str) -> None:
        """Types into what has the focus."""
        self.call("Input.insertText", text=text)

    def picture(self, file: Path, *, whole: bool = True) -> None:
        """Writes the page as a PNG, or the part that is on the screen."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(answer["data"]))


@contextmanager
def chromium() -> Iterator[Browser]:
    """A running Chromium, which has ended afterwards. Raises CannotStart."""
    to_browser, from_browser = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        script = f'exec "$0" "$@" 3<&{to_browser[0]} 4>&{from_browser[1]}'
        command = ["bash", "-c", script, str(chromium_program()), "--headless", "--no-sandbox",
                   "--disable-gpu",
                   "--hide-scrollbars", "--remote-debugging-pipe", "--disable-dev-shm-usage",
                   "--force-color-profile=srgb", "--disable-background-networking",
                   f"--user-data-dir={folder}"]  # fmt: skip
        with subprocess.Popen(
            command, pass_fds=(to_browser[0], from_browser[1]), stderr=subprocess.DEVNULL
        ) as process:
            os.close(to_browser[0])
            os.close(from_browser[1])
            try:
                yield Browser(process, to_browser[1], from_browser[0])
            finally:
                process.kill()
                os.close(to_browser[1])
                os.close(from_browser[0])
