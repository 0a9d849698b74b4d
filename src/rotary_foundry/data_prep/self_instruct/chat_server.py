"""Ask a model of an OpenAI-compatible server (vLLM, TGI, …) by POST /chat/completions.

Temporary failures are retried: no connection, a time-out, 408, 425, 429, 5xx, or a reply that is not the interface's
JSON. The wait doubles from one second on, unless the server gives Retry-After. A failure that every request would have
(no server at the first request, a wrong key, an unknown model) ends the run at once. Any other error fails one request.
"""

import os
import random
import threading
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from rotary_foundry.data_prep.self_instruct.instruct_prompts import NoReply
from rotary_foundry.data_prep.self_instruct.request_log import Reply
from rotary_foundry.data_prep.self_instruct.self_instruct_config import SelfInstructConfig
from rotary_foundry.utils.errors import ConfigurationError, Fault
from rotary_foundry.utils.redaction import redacted
from rotary_foundry.utils.wording import one_line

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds, without Retry-After
LONGEST_RETRY_AFTER = 86_400.0  # seconds
FOR_ALL = {401, 403, 404, 405}  # the statuses that every request would get
SHOWN = 200  # characters of a server's error


class ChatServer:
    """A model of the server at OPENAI_BASE_URL; many threads may ask at the same time.

    Raises:
        ConfigurationError: OPENAI_BASE_URL is not set or not an address.
    """

    def __init__(self, config: SelfInstructConfig) -> None:
        url = os.environ.get("OPENAI_BASE_URL", "").rstrip("/")
        if not url.startswith(("http://", "https://")):
            raise ConfigurationError(
                f"'generator': '{config.generator}' is not a folder, and OPENAI_BASE_URL is "
                f"{f'no address: {url}' if url else 'not set'}; set it to a server's, such as http://localhost:8000/v1"
            )
        self.url, self.concurrency = url, config.concurrency
        self.repeated = 0  # number of repeated requests
        self._attempts = config.retries + 1
        self._reached = False
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        self._client = httpx.Client(
            timeout=config.timeout,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=None),
        )

    def ask(self, body: dict) -> Reply:
        """Send one request, and retry it after temporary failures.

        Raises:
            NoReply: this request gets no reply.
            Fault: at present no request would get a reply.
        """
        for attempt in range(1, self._attempts + 1):
            wait, overall = None, False
            try:
                response = self._client.post(f"{self.url}/chat/completions", json=body)
            except httpx.TimeoutException as error:
                problem = f"no answer in time ({type(error).__name__})"
            except httpx.RequestError as error:
                problem, overall = f"no connection ({one_line(error)})", True
                if not self._reached:
                    raise Fault(f"{self.url}: {problem}; start the server, or correct OPENAI_BASE_URL") from error
            else:
                self._reached = True
                if response.status_code == 200:
                    if (reply := _reply(response)) is not None:
                        return reply
                    problem = "garbage: expected the JSON of a chat completion"
                else:
                    problem, overall = self._refused(response), response.status_code == 429
                    wait = _retry_after(response.headers.get("Retry-After"))
            if attempt < self._attempts:
                with self._lock:
                    self.repeated += 1
                doubled = min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT) * random.uniform(0.5, 1)
                if wait is not None and wait > LONGEST_WAIT:
                    print(f"{self.url}: asks to wait for {wait:,.0f} s", flush=True)
                self._wait(doubled if wait is None else wait)
        if overall:
            raise Fault(
                f"{self.url}: {problem}, {self._attempts} times; the same command goes on when it answers again"
            )
        raise NoReply(problem)

    def close(self) -> None:
        """Make all requests that wait for their next attempt give up."""
        self._stopped.set()

    def _wait(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise NoReply("stopped")

    def _refused(self, response: httpx.Response) -> str:
        """Return the problem if it may be temporary; raise any other."""
        status = response.status_code
        if status in FOR_ALL or status < 400:
            raise Fault(
                f"{self.url}: HTTP {status}: {_said(response)}; correct OPENAI_BASE_URL, OPENAI_API_KEY or the "
                "server's name of the model, 'generator'"
            )
        if status < 500 and status not in (408, 425, 429):
            raise NoReply(f"HTTP {status}", _said(response))
        return f"HTTP {status}"


def _said(response: httpx.Response) -> str:
    return redacted(" ".join(response.text[:SHOWN].split())) or "no message"


def _reply(response: httpx.Response) -> Reply | None:
    """Read a chat completion; None if the response is not one."""
    try:
        content = response.json()
        choice, usage = content["choices"][0], content.get("usage") or {}
        text = choice["message"]["content"] or ""
        counts = [usage.get(key) for key in ("prompt_tokens", "completion_tokens")]
        finish = choice.get("finish_reason")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    if not isinstance(text, str):
        return None
    return Reply(text, finish, *(count if type(count) is int else None for count in counts))


def _retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which is a number or a date; None if it is neither."""
    try:
        seconds = float(value or "")
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value or "") - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER)
