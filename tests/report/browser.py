"""A headless Chromium for tests, driven through its DevTools pipe: nothing to install beside the browser itself."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
VARIABLE = "CHROMIUM"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-extensions", "--remote-debugging-pipe"),
)
# The browser reads commands from descriptor 3 and writes answers to 4.
LAUNCH = (
    "import os, sys; r, w = map(int, sys.argv[1:3]); os.dup2(r, 3); os.dup2(w, 4); os.execv(sys.argv[3], sys.argv[3:])"
)


def find() -> str | None:
    """The browser that $CHROMIUM names, or the first of NAMES on the path."""
    return shutil.which(os.environ.get(VARIABLE) or "") or next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Chromium:
    """One browser process. `open` gives pages."""

    binary: str
    profile: Path
    events: list[dict[str, Any]] = field(default_factory=list)

    def __enter__(self) -> Chromium:
        commands, self._to = os.pipe()
        self._from, answers = os.pipe()
        for descriptor in (commands, answers):
            os.set_inheritable(descriptor, True)
        arguments = [self.binary, *FLAGS, f"--user-data-dir={self.profile}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(commands), str(answers), *arguments],
            pass_fds=(commands, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._number, self._rest = 0, b""
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        os.close(self._to)
        os.close(self._from)
        self._process.terminate()
        self._process.wait(20)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """A DevTools command and its result; events that arrive meanwhile are kept. Raises RuntimeError."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return dict(answer["result"])

    def wait_for(self, event: str, session: str) -> None:
        """Until an event of this session has been seen."""
        while not any(e.get("method") == event and e.get("sessionId") == session for e in self.events):
            self.events.append(self._receive())

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = os.read(self._from, 1 << 20)
            if not data:
                raise RuntimeError(f"{self.binary} went away")
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    @contextmanager
    def open(self, path: Path, width: int = 1280, scheme: str = "light") -> Iterator[Page]:
        """A page of this file in a window of this width, in a dark or light scheme; closed after the block."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        page.call("Page.navigate", url=path.resolve().as_uri())
        self.wait_for("Page.loadEventFired", session)
        yield page
        self.call("Target.closeTarget", targetId=target)


@dataclass
class Page:
    """A page that has loaded."""

    browser: Chromium
    session: str

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A DevTools command to this page."""
        return self.browser.call(method, self.session, **parameters)

    def evaluate(self, script: str) -> Any:
        """A script's value. Raises RuntimeError where it throws."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def said(self) -> list[str]:
        """What went to the console or the browser's log: messages, errors, blocked requests."""
        texts = {
            "Log.entryAdded": lambda p: p["entry"]["text"],
            "Runtime.consoleAPICalled": lambda p: str(p["args"]),
            "Runtime.exceptionThrown": lambda p: p["exceptionDetails"]["text"],
        }
        return [texts[e["method"]](e["params"]) for e in self._mine() if e["method"] in texts]

    def requested(self) -> list[str]:
        """Addresses that the page asked for."""
        return [e["params"]["request"]["url"] for e in self._mine() if e["method"] == "Network.requestWillBeSent"]

    def screenshot(self, whole: bool = True) -> bytes:
        """PNG of the whole page."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"])

    def pdf(self) -> bytes:
        """The page as printed on A4, backgrounds left out as most people print."""
        paper = {"paperWidth": 8.27, "paperHeight": 11.69}
        return base64.b64decode(self.call("Page.printToPDF", printBackground=False, **paper)["data"])

    def _mine(self) -> list[dict[str, Any]]:
        self.evaluate("0")  # whatever is on its way has arrived by the answer
        return [e for e in self.browser.events if e.get("sessionId") == self.session]
