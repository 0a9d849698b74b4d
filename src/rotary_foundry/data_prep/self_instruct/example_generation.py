"""Run self-instruct: read documents, ask about them, write the examples, and count what happened.

OUT/examples.jsonl     the examples, in the order of the documents; it appears when all are made
OUT/left_out.txt       documents that could not be read or gave no example: file, line, reason
OUT/requests.log       every reply of the generator; it is kept, and the same command asks only what is not in it
"""

import json
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rotary_foundry.data_prep import readers
from rotary_foundry.data_prep.readers import BadInput
from rotary_foundry.data_prep.self_instruct.chat_server import ChatServer
from rotary_foundry.data_prep.self_instruct.document_chunks import Drawer, Task
from rotary_foundry.data_prep.self_instruct.instruct_prompts import NoReply, Rejected, fill, is_kept, tagged
from rotary_foundry.data_prep.self_instruct.request_log import Reply, RequestLog
from rotary_foundry.data_prep.self_instruct.self_instruct_config import SelfInstructConfig
from rotary_foundry.utils.errors import ConfigurationError, DataError, Fault

EXAMPLES, LEFT_OUT, REQUESTS = "examples.jsonl", "left_out.txt", "requests.log"
WINDOW = 4  # tasks that are begun per concurrent request, so that one slow reply does not hold up the others
PATIENCE = 5  # documents in a row without any reply, after which the generator counts as broken
PROGRESS = 100  # documents


class Generator(Protocol):
    """A model that answers requests: a local one, or one on a server."""

    concurrency: int
    repeated: int  # requests

    def ask(self, body: dict) -> Reply: ...

    def close(self) -> None: ...


@dataclass
class Outcome:
    """The result of one task: a question and an answer, or the reason why there is none."""

    task: Task
    question: str = ""
    answer: str = ""
    rejected: Rejected | None = None


@dataclass
class Report:
    """Counts of documents, requests and tokens."""

    config: SelfInstructConfig
    documents: int = 0  # that were read
    short: int = 0
    bad: int = 0
    finished: Counter = field(default_factory=Counter)  # requests, by whether this run made them
    tokens: Counter = field(default_factory=Counter)  # by ("read" or "written", whether in this run)
    without_usage: int = 0  # replies without counts of tokens
    repeated: int = 0  # requests that were repeated
    rejected: Counter = field(default_factory=Counter)  # documents, by reason
    kept: Counter = field(default_factory=Counter)  # examples, by kind
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, reply: Reply, new: bool) -> None:
        """Count a reply of this run (`new`) or of an earlier one; several threads may call this."""
        with self._lock:
            self.finished[new] += 1
            self.without_usage += None in (reply.prompt_tokens, reply.completion_tokens)
            self.tokens["read", new] += reply.prompt_tokens or 0
            self.tokens["written", new] += reply.completion_tokens or 0

    def __str__(self) -> str:
        read, written = (self.tokens[what, True] + self.tokens[what, False] for what in ("read", "written"))
        lines = [
            f"documents  {self.documents:,} read, {self.short:,} shorter than {self.config.min_tokens:,} tokens, "
            f"{self.bad:,} unreadable",
            f"requests   {self.finished.total():,} finished, {self.finished[False]:,} of them before this run; "
            f"{self.repeated:,} repeated",
            f"tokens     {read:,} read and {written:,} written by the generator; in this run "
            f"{self.tokens['read', True]:,} and {self.tokens['written', True]:,}",
        ]
        if self.without_usage:
            lines.append(f"           {self.without_usage:,} replies came without a count of tokens")
        lines.append(f"rejected   {self.rejected.total():,}")
        lines += [f"           {number:,} {reason}" for reason, number in self.rejected.most_common()]
        if any(reason.startswith("no reply") for reason in self.rejected):
            lines.append("           the same command asks again for what got no reply")
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in sorted(self.kept.items()))
        lines.append(f"examples   {self.kept.total():,}" + (f": {kinds}" if kinds else ""))
        return "\n".join(lines)


def self_instruct(config: SelfInstructConfig, out: Path) -> None:
    """Make examples from the documents of `config`, and print the counts, even if it ends early.

    Args:
        config: the documents and the generator.
        out: the folder to write.

    Raises:
        ConfigurationError: a setting cannot be used, or another process writes `out`.
        DataError: a source, the tokenizer or a local generator cannot be read, `out` cannot be written, or there is no
            example at all.
        Fault: the server cannot be reached or has stopped answering; replies until then are kept.
    """
    if ":/" in str(out):
        raise ConfigurationError(f"{out}: expected a local folder; copy the examples to a store when they are done")
    drawer = Drawer(config)
    generator = _generator(config)
    report = Report(config)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror or error}") from error
    with closing(RequestLog(out / REQUESTS)) as log:
        try:
            _run(drawer, generator, log, report, out)
        except OSError as error:
            raise DataError(f"{error.filename or out}: cannot be read or written: {error.strerror or error}") from error
        finally:
            report.repeated = generator.repeated
            print(report, flush=True)
    if not report.kept:
        raise DataError(f"{out}: no example was made; {out / LEFT_OUT} has the reason for each document")


def _generator(config: SelfInstructConfig) -> Generator:
    if config.is_local:
        from rotary_foundry.data_prep.self_instruct.local_generator import LocalGenerator  # imports torch

        return LocalGenerator(Path(config.generator))
    return ChatServer(config)


def _run(drawer: Drawer, generator: Generator, log: RequestLog, report: Report, out: Path) -> None:
    asker = Asker(drawer.config, generator, log, report)
    arriving, left_out = out / f"{EXAMPLES}.partial", out / LEFT_OUT
    silent = 0  # documents in a row
    with arriving.open("w", encoding="utf-8") as examples, left_out.open("w", encoding="utf-8") as rejects:
        tasks = _tasks(drawer, report, rejects.write)
        with closing(_in_order(tasks, asker.outcome, generator)) as outcomes:
            for outcome in outcomes:
                try:
                    if outcome.rejected is not None:
                        raise outcome.rejected
                    example = drawer.example(outcome.task, outcome.question, outcome.answer)
                    examples.write(json.dumps(example, ensure_ascii=False) + "\n")
                    report.kept[outcome.task.kind] += 1
                except Rejected as rejected:
                    report.rejected[rejected.reason] += 1
                    rejects.write(f"{outcome.task.document}: {rejected}\n")
                silent = silent + 1 if isinstance(outcome.rejected, NoReply) else 0
                if silent == PATIENCE:
                    raise Fault(
                        f"{PATIENCE} documents in a row got no reply, the last one: {outcome.rejected}; repair "
                        "the generator, and the same command goes on"
                    )
                if (done := report.kept.total() + report.rejected.total()) % PROGRESS == 0:
                    print(f"{done:,} documents asked about, {report.kept.total():,} examples", flush=True)
    if report.kept:
        arriving.replace(out / EXAMPLES)
    else:
        arriving.unlink()


def _tasks(drawer: Drawer, report: Report, write: Callable[[str], object]) -> Iterator[Task]:
    """Yield a task for each document that is long enough; count the others, and list what cannot be read."""
    config, drawn = drawer.config, 0
    for name, source in config.sources.items():
        for part in readers.parts(source):
            bad = BadInput(name, config.max_bad_documents)
            for document in readers.read(source, part, bad):
                report.documents += 1
                if (task := drawer.task(name, document.id, document.text)) is None:
                    report.short += 1
                    continue
                yield task
                drawn += 1
                if drawn == config.documents:
                    break
            report.bad += bad.count
            report.short += bad.without_text
            report.documents += bad.without_text
            write("".join(f"{line}\n" for line in [*bad.listed, *bad.listed_without_text]))
            if drawn == config.documents:
                return


def _in_order(tasks: Iterator[Task], work: Callable[[Task], Outcome], generator: Generator) -> Iterator[Outcome]:
    """Yield the outcomes of tasks in their order; several tasks run at the same time."""
    waiting: deque[Future[Outcome]] = deque()
    pool = ThreadPoolExecutor(generator.concurrency)
    try:
        for task in tasks:
            waiting.append(pool.submit(work, task))
            if len(waiting) >= WINDOW * generator.concurrency:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        generator.close()
        pool.shutdown(cancel_futures=True)  # requests in progress finish, and their replies are kept


class Asker:
    """Sends the requests of a task, or finds their replies in the log."""

    def __init__(self, config: SelfInstructConfig, generator: Generator, log: RequestLog, report: Report) -> None:
        self.config, self.generator, self.log, self.report = config, generator, log, report

    def outcome(self, task: Task) -> Outcome:
        """Ask for a question and its answer, and then whether to keep them."""
        outcome = Outcome(task)
        try:
            reply = self._ask(outcome, self.config.prompt(task.kind), self.config.temperature)
            outcome.question, outcome.answer = (_read(reply, tagged, tag) for tag in ("question", "answer"))
            if not _read(self._ask(outcome, self.config.prompt("critique"), 0.0), is_kept):
                raise Rejected("the critique drops it")
        except Rejected as rejected:
            outcome.rejected = rejected
        return outcome

    def _ask(self, outcome: Outcome, prompt: str, temperature: float) -> Reply:
        task = outcome.task
        text = fill(prompt, chunk=task.chunk, question=outcome.question, answer=outcome.answer)
        body = {
            "model": self.config.generator,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": self.config.reply_tokens,
            "temperature": temperature,
            "seed": task.seed,
        }
        body = {key: value for key, value in {**body, **self.config.request}.items() if value is not None}
        reply = self.log.find(body)
        if new := reply is None:
            reply = self.generator.ask(body)
            self.log.add(body, task.document, reply)
        self.report.count(reply, new)
        return reply


def _read(reply: Reply, read: Callable, *arguments: str):
    """Read a reply with `read`; if it is rejected and was cut off, add that to the reason."""
    try:
        return read(reply.text, *arguments)
    except Rejected as rejected:
        cut = ", in a reply that was cut off at reply_tokens" if reply.finish == "length" else ""
        raise Rejected(rejected.reason + cut) from None
