"""A real browser without a window, driven over the W3C WebDriver protocol by chromedriver.

Source: https://www.w3.org/TR/webdriver2/
"""

import base64
import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element in WebDriver's JSON

needs_browser = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="no browser is installed: apt-get install chromium chromium-driver",
)


class Browser:
    """One window."""

    def __init__(self, http: httpx.Client, session: str) -> None:
        self._http, self._session = http, f"/session/{session}"

    def do(self, path: str, body: Any = None) -> Any:
        answered = self._http.post(f"{self._session}{path}", json=body or {})
        assert answered.status_code == 200, answered.text
        return answered.json()["value"]

    def open(self, url: str) -> None:
        self.do("/url", {"url": url})

    def run(self, code: str) -> Any:
        """What JavaScript returns."""
        return self.do("/execute/sync", {"script": code, "args": []})

    def wait(self, condition: str) -> None:
        """Until an expression of JavaScript is true."""
        check = "const done = arguments[0]; const look = () => "
        check += f"({condition}) ? done(true) : setTimeout(look, 20); look();"
        self.do("/execute/async", {"script": check, "args": []})

    def _element(self, selector: str) -> str:
        found = self.do("/element", {"using": "css selector", "value": selector})
        return f"/element/{found[ELEMENT]}"

    def type(self, selector: str, text: str) -> None:
        self.do(f"{self._element(selector)}/value", {"text": text})

    def click(self, selector: str) -> None:
        self.do(f"{self._element(selector)}/click")

    def text(self, selector: str) -> str:
        return str(self.run(f"return document.querySelector({selector!r}).textContent"))

    def size(self, width: int, height: int, *, dark: bool = False) -> None:
        """The size of the page, whatever the window's least is, and the scheme of its colours."""
        self._devtools(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._devtools("Emulation.setEmulatedMedia", {"features": [scheme]})

    def picture(self) -> bytes:
        """What is seen of the page, as PNG."""
        answered = self._http.get(f"{self._session}/screenshot")
        return base64.b64decode(answered.json()["value"])

    def complaints(self) -> list[str]:
        """What the browser wrote to its console since the last look."""
        return [entry["message"] for entry in self.do("/se/log", {"type": "browser"})]

    def _devtools(self, command: str, params: dict[str, Any]) -> None:
        self.do("/goog/cdp/execute", {"cmd": command, "params": params})


@contextlib.contextmanager
def opened() -> Iterator[Browser]:
    """A browser with a new profile, closed at the end."""
    with tempfile.TemporaryDirectory(prefix="browser-") as home:
        process = subprocess.Popen(
            ["chromedriver", "--port=0"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HOME": home},
        )
        assert process.stdout is not None
        try:
            with httpx.Client(base_url=_address(process.stdout), timeout=240) as http:
                session = _new_session(http)
                yield Browser(http, session)
                http.delete(f"/session/{session}")
        finally:
            process.terminate()
            process.wait()


def _address(output: Any) -> str:
    for line in output:
        if "started successfully on port" in line:
            return f"http://127.0.0.1:{line.split()[-1].rstrip('.')}"
    raise AssertionError("chromedriver did not start")


def _new_session(http: httpx.Client) -> str:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    flags += ["--no-proxy-server", "--hide-scrollbars"]
    wanted = {
        "browserName": "chrome",
        "goog:chromeOptions": {"args": flags},
        "goog:loggingPrefs": {"browser": "ALL"},
        "timeouts": {"script": 120_000},
    }
    made = http.post("/session", json={"capabilities": {"alwaysMatch": wanted}})
    assert made.status_code == 200, made.text
    return str(made.json()["value"]["sessionId"])
