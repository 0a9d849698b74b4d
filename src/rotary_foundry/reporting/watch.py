"""`rotary-foundry report --watch`: the page of a run in progress, on this machine only.

The server listens on 127.0.0.1, and answers for two addresses: the page and what it shows. It opens no file by the
name that a request has, so there is no path to leave the run's folder by, and what is not on the page (checkpoints, the
recipe with its secrets) is not to be had. A request that names another host than this one is refused: a web page
elsewhere could otherwise have its own name lead here, and read along.

What the page shows is made anew when a file of a run has changed: of a million updates that takes seconds, and every
open page asks every few.
"""

import contextlib
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from rotary_foundry.reporting.charts import report
from rotary_foundry.reporting.records import Run
from rotary_foundry.reporting.reference import find_reference
from rotary_foundry.reporting.report_page import as_json, page
from rotary_foundry.utils.errors import ConfigurationError, FoundryError

SECONDS = 5  # between the page's questions
NAMES = ("127.0.0.1", "localhost")


def serve(paths: list[Path], port: int, reference: Path | None = None) -> None:
    """Serve the page of these runs until it is interrupted.

    Raises:
        ConfigurationError: there is no run in a folder, the port is taken, or the reference is another recipe's.
        DataError: a file of a run is broken.
    """
    with server(paths, port, reference) as running, contextlib.suppress(KeyboardInterrupt):
        print(f"report: http://127.0.0.1:{running.server_port}/ (Ctrl-C ends it)", flush=True)
        running.serve_forever()


class Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing, where a client went away before it had its answer: a closed tab is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Content:
    """What the page of some runs shows, for several that ask at a time."""

    def __init__(self, paths: list[Path], reference: Path | None):
        self.runs = [Run(path) for path in paths]
        self.reference = find_reference(self.runs, reference)
        self.lock = threading.Lock()
        self.made: dict | None = None

    def now(self) -> dict:
        """As the files have it."""
        with self.lock:
            for run in self.runs:
                if run.refresh():
                    self.made = None  # at once: the next run may be broken
            if self.made is None:
                self.made = report(self.runs, self.reference)
            return self.made


def server(paths: list[Path], port: int, reference: Path | None = None) -> ThreadingHTTPServer:
    """The server, listening."""
    content = Content(paths, reference)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rsplit(":", 1)[0]
            if host not in NAMES:
                self._answer(403, "text/plain", "this page is for this machine only")
            elif self.path in ("/", "/content.json"):
                self._content()
            else:
                self._answer(404, "text/plain", "there is / and nothing else")

        def _content(self) -> None:
            try:
                now = content.now()
            except FoundryError as error:
                self._answer(500, "text/plain", f"error: {error}")
                return
            if self.path == "/":
                self._answer(200, "text/html", page(now, SECONDS))
            else:
                self._answer(200, "application/json", as_json(now))

        def _answer(self, status: int, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """A line a question would bury the address."""

    try:
        return Server(("127.0.0.1", port), Handler)
    except OSError as error:
        raise ConfigurationError(f"--port {port}: cannot listen there: {error}; 0 takes any that is free") from error
