"""A headless Chromium for tests, driven by its DevTools protocol over two pipes: no package is needed for that.

`--remote-debugging-pipe` reads commands from file 3 and writes answers and events to file 4, each ended by a zero byte.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
from pathlib import Path

EXECUTABLE = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
)
PAINTED = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
PATIENCE = 60  # seconds for an answer


class Browser:
    """One tab, what its console complained of, and what was asked of any server."""

    def __init__(self, profile: Path):
        (to_it, self._write), (self._read, from_it) = os.pipe(), os.pipe()
        # above 3 and 4, or making the one would close the other
        command, answer = (fcntl.fcntl(end, fcntl.F_DUPFD, 100) for end in (to_it, from_it))
        start = f'exec "$@" 3<&{command} 4>&{answer}'
        arguments = [EXECUTABLE, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", start, "bash", *arguments], pass_fds=(command, answer), stderr=subprocess.DEVNULL
        )
        for end in (to_it, from_it, command, answer):
            os.close(end)
        self._buffer, self._number, self._session = b"", 0, None
        self.events: list[dict] = []
        self.shows: tuple | None = None  # what was opened, until something is done to it
        targets = self._ask("Target.getTargets")["targetInfos"]
        tab = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self._ask("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        os.close(self._write)
        os.close(self._read)

    @property
    def errors(self) -> list[str]:
        self.run("0")  # what came before this answer has been heard
        said = []
        for event in self.events:
            content = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                said.append(content["exceptionDetails"]["exception"]["description"])
            elif event["method"] == "Log.entryAdded" and content["entry"]["level"] in ("error", "warning"):
                said.append(content["entry"]["text"])
            elif event["method"] == "Runtime.consoleAPICalled" and content["type"] in ("error", "warning", "assert"):
                said.append(str(content["args"]))
        return said

    @property
    def requests(self) -> list[str]:
        """The addresses that were asked for."""
        self.run("0")
        return [
            event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"
        ]

    def open(self, url: str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open an address and wait until it has loaded."""
        phone = width < 600
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.prefer(dark)
        self.events.clear()
        self._ask("Page.navigate", url=url)
        self._until(lambda: any(event["method"] == "Page.loadEventFired" for event in self.events))
        self.run(PAINTED)
        self.shows = url, width, height, dark

    def prefer(self, dark: bool) -> None:
        """Say which colours the reader prefers, and wait for the page to be painted in them."""
        self.shows = None
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        self.run(PAINTED)

    def run(self, script: str) -> object:
        """The value of an expression in the page, its promise awaited."""
        answer = self._ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def picture(self, scale: float) -> bytes:
        """Return a PNG of what the tab shows, with `scale` pixels for each of CSS."""
        _, width, height, _ = self.shows
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": scale}
        return base64.b64decode(self._ask("Page.captureScreenshot", format="png", clip=clip)["data"])

    def drag(self, selector: str, start: float, end: float) -> None:
        """Drag the mouse over an element, from one share of its width to another."""
        box = self._box(selector)
        points = [(box["x"] + share * box["width"], box["y"] + box["height"] / 2) for share in (start, end)]
        self._mouse("mouseMoved", points[0])
        self._mouse("mousePressed", points[0])
        self._mouse("mouseMoved", points[1])
        self._mouse("mouseReleased", points[1])

    def click(self, selector: str) -> None:
        box = self._box(selector)
        point = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        self._mouse("mousePressed", point)
        self._mouse("mouseReleased", point)

    def _box(self, selector: str) -> dict:
        return self.run(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)});"
            " found.scrollIntoView({block: 'center'});"
            " const {x, y, width, height} = found.getBoundingClientRect(); return {x, y, width, height}; })()"
        )

    def _mouse(self, what: str, point: tuple[float, float]) -> None:
        self.shows = None
        button = {} if what == "mouseMoved" else {"button": "left", "clickCount": 1}
        self._ask("Input.dispatchMouseEvent", type=what, x=point[0], y=point[1], **button)

    def _ask(self, method: str, **arguments: object) -> dict:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": arguments}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        answers: list[dict] = []
        self._until(lambda: any(found["id"] == number for found in answers), answers)
        answer = answers[-1]
        if "error" in answer:
            raise AssertionError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _until(self, done, answers: list[dict] | None = None) -> None:
        waiting = select.poll()  # select.select takes no file above 1,023
        waiting.register(self._read, select.POLLIN)
        while not done():
            while b"\0" not in self._buffer:
                if not waiting.poll(1000 * PATIENCE):
                    raise AssertionError(f"Chromium did not answer in {PATIENCE} s")
                more = os.read(self._read, 1 << 20)
                if not more:
                    raise AssertionError("Chromium has ended")
                self._buffer += more
            message, self._buffer = self._buffer.split(b"\0", 1)
            content = json.loads(message)
            if "id" in content and answers is not None:
                answers.append(content)
            elif "method" in content:
                self.events.append(content)
