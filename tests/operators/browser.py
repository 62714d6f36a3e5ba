"""Headless Chromium, driven over its DevTools protocol: as much of it as the console's tests need."""

import base64
import json
import re
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from websockets.sync.client import ClientConnection, connect


class Browser:
    """One page of one headless Chromium. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._number = folder, 0
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: ClientConnection | None = None
        self._session = ""
        self.complaints: list[str] = []
        """What the page's console was told of errors, violations of the content policy among them."""

    def __enter__(self) -> Self:
        log = self._folder / "chromium.log"
        words = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
                 "--no-first-run", "--disable-background-networking", "--remote-debugging-port=0", f"--user-data-dir={self._folder / 'profile'}", "about:blank"]  # fmt: skip
        with log.open("wb") as out:
            self._process = subprocess.Popen(words, stdout=out, stderr=out)
        until = time.monotonic() + 60
        while (found := re.search(r"DevTools listening on (ws://\S+)", log.read_text(errors="replace"))) is None:
            assert time.monotonic() < until, log.read_text(errors="replace")[-2000:]
            time.sleep(0.1)
        self._socket = connect(found[1], max_size=None)
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)

    def see(self, width: int, scheme: str) -> None:
        """A screen of this width, ``light`` or ``dark``."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def go(self, url: str) -> None:
        """Open, and wait until it and its scripts are loaded."""
        self._call("Page.navigate", url=url)
        self.wait(f"document.readyState === 'complete' && location.href.startsWith({json.dumps(url.split('#')[0])})")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        told = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def wait(self, condition: str, timeout_s: float = 30) -> None:
        """Until the expression is true."""
        until = time.monotonic() + timeout_s
        while not self.run(condition):
            assert time.monotonic() < until, f"waited for {condition}: {self.run('document.body.innerText')[:2000]}"
            time.sleep(0.1)

    def press(self, key: str) -> None:
        """A key of the keyboard, such as Tab or Enter."""
        code = {"Tab": 9, "Enter": 13, "Escape": 27}[key]
        extra = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **(extra if kind == "keyDown" else {}))

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self._call("Input.insertText", text=text)

    def named(self) -> list[tuple[str, str]]:
        """Role and name of everything that a screen reader would find."""
        nodes = self._call("Accessibility.getFullAXTree")["nodes"]
        return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]

    def shoot(self, path: Path) -> None:
        """The whole page as PNG."""
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 6000), "scale": 1}
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]))

    def _call(self, method: str, **parameters: Any) -> Any:
        assert self._socket is not None
        self._number += 1
        asked = {"id": self._number, "method": method, "params": parameters} | ({"sessionId": self._session} if self._session else {})
        self._socket.send(json.dumps(asked))
        while True:
            told = json.loads(self._socket.recv(timeout=60))
            if told.get("id") == self._number:
                assert "error" not in told, told
                return told["result"]
            if told.get("method") == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
                self.complaints.append(told["params"]["entry"]["text"])
            if told.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(str(told["params"]["exceptionDetails"]))
