"""A server on loopback that speaks POST /v1/chat/completions, and answers as a test tells it to."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = tuple[int, dict[str, str], bytes]  # status, headers and body; an empty body with status 0: hang up


@contextmanager
def served(answer: Callable[[dict, dict], Answer]) -> Iterator[str]:
    """Serve until left; yields the address for OPENAI_BASE_URL. `answer` gets a request's body and headers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            content = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers, body = (
                answer(json.loads(content), dict(self.headers)) if self._is_known() else (404, {}, b"")
            )
            if status == 0:
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def _is_known(self) -> bool:
            return self.path == "/v1/chat/completions"

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):
            pass  # a client that did not wait

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def completion(text: str | None, finish: str = "stop", usage: tuple[int, int] | None = (100, 10)) -> Answer:
    """A chat completion, as such a server sends it."""
    content = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}
    if usage is not None:
        content["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()
