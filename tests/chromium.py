"""A headless browser, spoken to in its own debugging protocol over a pipe."""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE_S = 60.0
_FIRST_FREE = 10
"""The browser's ends of the pipe are 3 and 4; ours must be others."""
_OPTIONS = (
    *("--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu"),
    *("--disable-extensions", "--disable-background-networking", "--disable-sync"),
    *("--disable-component-update", "--disable-dev-shm-usage", "--mute-audio", "--hide-scrollbars"),
    # The sandbox needs what containers lack; the pages are our own.
    *("--no-sandbox", "--no-proxy-server"),
)


class Chromium:
    """One page. Whatever goes wrong in it, or is asked of another host, is kept in `problems`."""

    def __init__(self, requests: int, answers: int) -> None:
        self.problems: list[str] = []
        self.asked_urls: list[str] = []
        self._requests, self._answers = requests, answers
        self._numbers = itertools.count(1)
        self._received = b""
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(
        self, url: str, *, width: int = 1280, height: int = 900, scheme: str = "light"
    ) -> None:
        """Loads a page on a screen of this size, in light or in dark surroundings."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def text(self, selector: str) -> str:
        """What is to be read there; empty where there is no such element."""
        found: str = self.evaluate(
            f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"
        )
        return found

    def wait_until(self, expression: str) -> None:
        """Until it is true in the page."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not self.evaluate(f"Boolean({expression})"):
            body = self.evaluate("document.body?.innerText")
            assert time.monotonic() < deadline_s, f"{expression} is never true of: {body}"
            time.sleep(0.1)

    def wait_for_text(self, selector: str, part: str) -> None:
        found = f"document.querySelector({json.dumps(selector)})?.innerText"
        self.wait_until(f"{found}.includes({json.dumps(part)})")

    def picture(self) -> bytes:
        """The whole page as PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        return base64.b64decode(shot["data"])

    def call(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._answers], [], [], PATIENCE_S)
            part = os.read(self._answers, 1 << 20) if ready else b""
            assert part, "the browser says nothing"
            self._received += part
        message, _, self._received = self._received.partition(b"\0")
        decoded: dict[str, Any] = json.loads(message)
        return decoded

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.problems.append(str(params["exceptionDetails"]))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
            case "Network.requestWillBeSent":
                self.asked_urls.append(params["request"]["url"])


@contextmanager
def running_chromium() -> Iterator[Chromium]:
    """A browser with a profile of its own, which is gone afterwards."""
    assert BROWSER is not None
    requests_out, requests_in = map(_moved, os.pipe())
    answers_out, answers_in = map(_moved, os.pipe())
    # Where a child's descriptors must have certain numbers the shell sees to it.
    script = f'exec "$@" 3<&{requests_out} 4>&{answers_in}'
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        command = ["bash", "-c", script, "bash", BROWSER, *_OPTIONS, f"--user-data-dir={profile}"]
        process = subprocess.Popen(
            command,
            pass_fds=(requests_out, answers_in),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": profile},
        )
        os.close(requests_out)
        os.close(answers_in)
        try:
            yield Chromium(requests_in, answers_out)
        finally:
            # It ends when its pipe does.
            os.close(requests_in)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(answers_out)


def _moved(descriptor: int) -> int:
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)
    os.close(descriptor)
    return moved
