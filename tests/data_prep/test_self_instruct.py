"""Self-instruct asks as it should, keeps every reply, and counts whatever goes wrong by reason, file and line."""

import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rotary_foundry.data_prep.self_instruct import chat_server
from rotary_foundry.data_prep.self_instruct.instruct_prompts import PROMPTS, Rejected, tagged
from rotary_foundry.data_prep.self_instruct.local_generator import LocalGenerator
from rotary_foundry.data_prep.self_instruct.self_instruct_config import load_self_instruct_config
from rotary_foundry.data_prep.tokenizer import save_trained, train_tokenizer
from tests.command import output_of, rotary_foundry
from tests.data_prep.chat_completions import completion, served
from tests.data_prep.small_corpus import write_jsonl

TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}" + (
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
GOOD = "<question>Who wrote it?</question>\n<answer>She did.</answer>"
KEEP = "It is right. <verdict>keep</verdict>"


def text(number: int, words: int = 300) -> str:
    return f"Document {number}. " + " ".join(f"word{number}_{place}" for place in range(words))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """The folder of a small tokenizer with a chat template."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_trained(train_tokenizer([text(0), *PROMPTS.values()], 384, causal=True), folder, 512, causal=True)
    fast = PreTrainedTokenizerFast.from_pretrained(folder)
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory) -> Path:
    """The folder of a small Llama with random weights."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def corpus(tokenizer, tmp_path, monkeypatch) -> Path:
    """The YAML of a corpus of 8 long documents and 2 short ones."""
    monkeypatch.setattr(chat_server, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    texts = [text(number, 5 if number in (3, 7) else 300) for number in range(10)]
    content = {
        "sources": {"mine": {"reader": "jsonl", "path": str(write_jsonl(tmp_path / "mine.jsonl", texts))}},
        "generator": "served",
        "tokenizer": str(tokenizer),
        "min_tokens": 200,
        "max_tokens": 600,
        "chunk_tokens": 100,
        "reply_tokens": 60,
        "concurrency": 3,
        "timeout": 20,
        "retries": 2,
    }
    path = tmp_path / "self_instruct.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def is_critique(body: dict) -> bool:
    return "<verdict>" in body["messages"][0]["content"]


def document(body: dict) -> int:
    """Return the number of the document that a request is about."""
    return int(re.search(r"word(\d+)_\d+ ", body["messages"][0]["content"])[1])


def good(body: dict, _headers: dict) -> tuple:
    return completion(KEEP if is_critique(body) else GOOD)


def examples(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "examples.jsonl").read_text(encoding="utf-8").splitlines()]


def reasons(out: Path) -> dict[int, str]:
    """Return the reason for each document that was left out, by its line."""
    found = [re.fullmatch(r".*?:(\d+): (.*)", line) for line in (out / "left_out.txt").read_text().splitlines()]
    return {int(match[1]) - 1: match[2] for match in found}


def test_an_example_is_the_whole_document_with_its_question_and_answer(corpus, tokenizer, tmp_path, monkeypatch):
    bodies, out = [], tmp_path / "out"

    def answer(body, headers):
        bodies.append(body)
        assert headers["Authorization"] == "Bearer my-key"
        return good(body, headers)

    monkeypatch.setenv("OPENAI_API_KEY", "my-key")
    with served(answer) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        printed = output_of("data", "self-instruct", corpus, out)
        one_at_a_time = tmp_path / "one"
        output_of("data", "self-instruct", corpus, one_at_a_time, "concurrency=1")
    made, fast = examples(out), PreTrainedTokenizerFast.from_pretrained(tokenizer)
    asked = {(body["messages"][0]["content"], body["seed"]) for body in bodies}
    assert len(bodies) == 32 and len(asked) == 16, "the same requests in both runs"
    assert (one_at_a_time / "examples.jsonl").read_bytes() == (out / "examples.jsonl").read_bytes()
    assert [example["document"] for example in made] == [
        f"{tmp_path}/mine.jsonl:{number + 1}" for number in range(10) if number not in (3, 7)
    ]
    for example in made:
        number = int(example["document"].rpartition(":")[2]) - 1
        user, assistant = example["messages"]
        kept, _, rest = user["content"].partition("\n\nAnswer the question")
        assert text(number).startswith(kept) and "Question: Who wrote it?" in rest
        assert assistant == {"role": "assistant", "content": "She did."}
        start, end = example["chunk"]
        chunk = text(number)[start:end]
        assert chunk in kept and sum(f"<passage>\n{chunk}\n</passage>" in prompt for prompt, _ in asked) == 2
        assert ("in a few words" in rest) == (example["kind"] == "short")
        rendered = fast.apply_chat_template(example["messages"], tokenize=False)
        assert 590 < len(fast(rendered, add_special_tokens=False).input_ids) <= 600
        assert (example["source"], example["generator"]) == ("mine", "served")
    assert {example["kind"] for example in made} == {"normal", "short"}
    assert len({example["chunk"][0] for example in made}) > 2
    assert "10 read, 2 shorter than 200 tokens, 0 unreadable" in printed
    assert "16 finished, 0 of them before this run; 0 repeated" in printed
    assert "1,600 read and 160 written" in printed and re.search(r"examples   8: \d normal, \d short", printed)


def test_each_reader_gives_documents_and_bad_ones_are_listed(corpus, tmp_path, monkeypatch):
    (tmp_path / "books").mkdir()
    (tmp_path / "books/a.txt").write_text(text(1))
    (tmp_path / "books/b.txt").write_bytes(b"\xff\xfe")
    pq.write_table(pa.table({"body": [text(2), None]}), tmp_path / "a.parquet")
    sources = {
        "books": {"reader": "text", "path": str(tmp_path / "books")},
        "rows": {"reader": "parquet", "path": str(tmp_path / "a.parquet"), "text_column": "body"},
    }
    content = yaml.safe_load(corpus.read_text()) | {"sources": sources}
    corpus.write_text(yaml.safe_dump(content))
    with served(good) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        printed = output_of("data", "self-instruct", corpus, tmp_path / "out")
    assert [example["source"] for example in examples(tmp_path / "out")] == ["books", "rows"]
    assert "2 read, 0 shorter than 200 tokens, 2 unreadable" in printed
    listed = (tmp_path / "out/left_out.txt").read_text()
    assert "b.txt: UTF-16, expected UTF-8" in listed and "a.parquet:1: column 'body' holds null" in listed


REPLIES = {
    0: ("<question>Who?</question> <answer>She did", "<answer> never closes"),
    1: ("<question>Who?</quest", "<question> never closes"),
    2: ("I would rather not.", "no <question>"),
    4: ("<question>Who?</question><answer> </answer>", "<answer> is empty"),
    5: ("", "an empty reply"),
    6: ("<question>Who?</question><answer>a</answer><answer>b</answer>", "more than one <answer>"),
    8: ("<question>Who?</question><answer>\0</answer>", "<answer> has characters that are not text"),
}


def test_replies_without_both_tags_and_a_verdict_are_counted_by_reason(corpus, tmp_path, monkeypatch):
    verdicts = {0: "<verdict>drop</verdict>", 1: "keep it", 2: "<verdict>maybe</verdict>", 4: None}

    def bad_question(body, _headers):
        return completion(KEEP if is_critique(body) else REPLIES.get(document(body), (GOOD,))[0])

    def bad_verdict(body, _headers):
        if not is_critique(body):
            return completion(GOOD, usage=None)
        return completion(verdicts.get(document(body), KEEP), finish="length")

    with served(bad_question) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        printed = output_of("data", "self-instruct", corpus, tmp_path / "questions")
    assert reasons(tmp_path / "questions") == {number: reason for number, (_, reason) in REPLIES.items()}
    assert all(f"1 {reason}\n" in printed for _, reason in REPLIES.values()) and "rejected   7\n" in printed
    assert len(examples(tmp_path / "questions")) == 1
    with served(bad_verdict) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        printed = output_of("data", "self-instruct", corpus, tmp_path / "verdicts")
    cut = ", in a reply that was cut off at reply_tokens"
    assert reasons(tmp_path / "verdicts") == {
        0: "the critique drops it",
        1: "no <verdict>" + cut,
        2: "a verdict that is neither keep nor drop" + cut,
        4: "an empty reply" + cut,
    }
    assert "8 replies came without a count of tokens" in printed


def test_what_a_model_thinks_before_its_reply_is_not_read():
    assert tagged("<think>a <question> in tags</think><question>Who?</question>", "question") == "Who?"
    with pytest.raises(Rejected, match="another tag"):
        tagged("<question>Who? <answer>a</answer></question>", "question")


def test_failed_requests_are_repeated_and_the_others_are_not_lost(corpus, tmp_path, monkeypatch):
    seen, waits, moment = Counter(), [], datetime.now(UTC) + timedelta(hours=1)
    monkeypatch.setattr(chat_server.ChatServer, "_wait", lambda _, seconds: waits.append(seconds))
    first = {
        0: (429, {"Retry-After": "7"}, b"slow down"),
        1: (503, {"Retry-After": format_datetime(moment)}, b""),
        2: (500, {}, b"<html>"),
        4: (200, {}, b"<html>not JSON"),
        5: (200, {}, b'{"choices": []}'),
        6: (0, {}, b""),
    }

    def answer(body, headers):
        number = document(body)
        seen[number] += 1
        if number == 8:
            return 500, {}, b"out of memory"
        if number == 9:
            return 400, {}, b"context too long: 5000 tokens"
        return first[number] if number in first and seen[number] == 1 else good(body, headers)

    with served(answer) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        printed = output_of("data", "self-instruct", corpus, tmp_path / "out")
        assert seen[8] == 3 and seen[9] == 1
        first.clear()
        again = output_of("data", "self-instruct", corpus, tmp_path / "out")
    assert seen[8] == 6 and seen[0] == 3, "only what had no reply is asked for again"
    assert len(examples(tmp_path / "out")) == 6 and 7.0 in waits and 3500 < max(waits) <= 3600
    assert reasons(tmp_path / "out") == {
        8: "no reply: HTTP 500",
        9: "no reply: HTTP 400: context too long: 5000 tokens",
    }
    assert "12 finished, 0 of them before this run; 8 repeated" in printed
    assert "12 finished, 12 of them before this run; 2 repeated" in again
    assert "1 no reply: HTTP 400\n" in printed and "asks again for what got no reply" in printed


def test_a_slow_server_and_one_that_always_fails_end_the_run(corpus, tmp_path, monkeypatch):
    over = threading.Event()

    def slow(_body, _headers):
        over.wait(30)
        return 0, {}, b""

    with served(slow) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        done = rotary_foundry("data", "self-instruct", corpus, tmp_path / "slow", "timeout=0.02", "retries=1")
        over.set()
    assert done.returncode == 2 and "5 documents in a row got no reply" in done.stderr
    assert "no reply: no answer in time" in done.stderr and "rejected   5" in done.stdout
    with served(lambda *_: (429, {"Retry-After": "0"}, b"")) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        done = rotary_foundry("data", "self-instruct", corpus, tmp_path / "busy")
    assert done.returncode == 2 and "HTTP 429, 3 times; the same command goes on" in done.stderr


def test_what_every_request_would_get_ends_the_run_at_once(corpus, tmp_path, monkeypatch):
    asked = []

    def refuse(body, _headers):
        asked.append(body)
        return 401, {}, b'{"error": "wrong key my-secret-key"}'

    out = tmp_path / "out"
    done = rotary_foundry("data", "self-instruct", corpus, out)
    assert done.returncode == 2 and "'served' is not a folder, and OPENAI_BASE_URL is not set" in done.stderr
    monkeypatch.setenv("OPENAI_API_KEY", "my-secret-key")
    with served(refuse) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        done = rotary_foundry("data", "self-instruct", corpus, out, "concurrency=1")
        assert done.returncode == 2 and "HTTP 401" in done.stderr and "my-secret-key" not in done.stderr
        monkeypatch.setenv("OPENAI_BASE_URL", url.removesuffix("/v1"))
        done = rotary_foundry("data", "self-instruct", corpus, out)
        assert done.returncode == 2 and "HTTP 404" in done.stderr
    assert len(asked) <= 5, "no retries"
    done = rotary_foundry("data", "self-instruct", corpus, out)  # the port is free again
    assert done.returncode == 2 and "no connection" in done.stderr and "start the server" in done.stderr
    assert "0 repeated" in done.stdout and not (out / "examples.jsonl").exists()


def test_a_run_whose_server_dies_goes_on_and_repeats_nothing(corpus, tmp_path, monkeypatch):
    finished, whole, out = Counter(), tmp_path / "whole", tmp_path / "out"
    alive = 7  # requests

    def dying(body, headers):
        if finished.total() >= alive:
            return 0, {}, b""
        return counting(body, headers)

    def counting(body, headers):
        finished[json.dumps(body, sort_keys=True)] += 1
        return good(body, headers)

    with served(good) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        output_of("data", "self-instruct", corpus, whole)
    with served(dying) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        done = rotary_foundry("data", "self-instruct", corpus, out, "concurrency=1")
    assert done.returncode == 2 and "the same command goes on when it answers again" in done.stderr
    assert "7 finished, 0 of them before this run" in done.stdout and "700 read" in done.stdout
    assert not (out / "examples.jsonl").exists()
    with served(counting) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        printed = output_of("data", "self-instruct", corpus, out)
    assert len(finished) == 16 and set(finished.values()) == {1}
    assert "16 finished, 7 of them before this run" in printed
    assert (out / "examples.jsonl").read_bytes() == (whole / "examples.jsonl").read_bytes()


def test_a_killed_run_loses_and_repeats_nothing_that_was_finished(corpus, tmp_path, monkeypatch):
    finished, out, reached = Counter(), tmp_path / "out", threading.Event()

    def counting(body, headers):
        if finished.total() >= 5 and not reached.is_set():
            reached.set()
            over.wait(250)
            return 0, {}, b""
        finished[json.dumps(body, sort_keys=True)] += 1
        return good(body, headers)

    over = threading.Event()
    with served(counting) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        command = [sys.executable, "-c", "from rotary_foundry.cli import main; main()", "data", "self-instruct"]
        process = subprocess.Popen([*command, str(corpus), str(out), "concurrency=1"], env={**os.environ})
        assert reached.wait(250)
        locked = rotary_foundry("data", "self-instruct", corpus, out)
        assert locked.returncode == 2 and "another process is writing it" in locked.stderr
        process.kill()
        process.wait()
        over.set()
        with (out / "requests.log").open("ab") as log:
            log.write(b'{"request": "half a li')
        printed = output_of("data", "self-instruct", corpus, out)
    assert "16 finished, 5 of them before this run" in printed and len(examples(out)) == 8
    assert len(finished) == 16 and set(finished.values()) == {1}
    log = (out / "requests.log").read_text().splitlines()
    assert len(log) == 16 and all(json.loads(line) for line in log)
    (out / "requests.log").write_text("\n".join(["{", *log]) + "\n")
    assert "requests.log:1: expected a request" in rotary_foundry("data", "self-instruct", corpus, out).stderr


def test_a_real_model_on_loopback_and_in_a_folder_is_asked_counted_and_rejected(corpus, model, tmp_path, monkeypatch):
    """Random weights write no tags, so every document is rejected; both ways the model writes the same."""
    real = LocalGenerator(model)

    def answer(body, _headers):
        reply = real.ask(body)
        return completion(reply.text, reply.finish, (reply.prompt_tokens, reply.completion_tokens))

    settings = ["documents=3", "reply_tokens=12"]
    with served(answer) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        remote = rotary_foundry("data", "self-instruct", corpus, tmp_path / "remote", *settings)
    local = rotary_foundry("data", "self-instruct", corpus, tmp_path / "local", f"generator={model}", *settings)
    assert remote.returncode == local.returncode == 2 and "no example was made" in local.stderr
    assert remote.stdout == local.stdout and "rejected   3" in local.stdout and "3 finished" in local.stdout
    replies = [
        [json.loads(line)["reply"] for line in (tmp_path / where / "requests.log").read_text().splitlines()]
        for where in ("remote", "local")
    ]
    assert sorted(map(str, replies[0])) == sorted(map(str, replies[1]))
    read, written = (sum(reply[key] for reply in replies[0]) for key in ("prompt_tokens", "completion_tokens"))
    assert f"{read:,} read and {written} written" in local.stdout and read > 500 and 0 < written <= 36
    long = rotary_foundry("data", "self-instruct", corpus, tmp_path / "long", f"generator={model}", "reply_tokens=900")
    assert long.returncode == 2 and "reply_tokens 900" in long.stderr


def test_special_tokens_that_a_document_spells_stay_text_for_the_generator(model, monkeypatch):
    seen = []
    generator = LocalGenerator(model)
    monkeypatch.setattr(generator.model, "generate", lambda ids, **_: seen.append(ids) or ids)
    body = {"messages": [{"role": "user", "content": "a </s> and <s>"}], "max_tokens": 8, "temperature": 0, "seed": 1}
    generator.ask(body)
    (ids,) = seen[0].tolist()
    assert [ids.count(generator.tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")] == [2, 1]
    assert generator.tokenizer.decode(ids) == "<s>user\na </s> and <s></s>\n<s>assistant\n"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("min_tokens=700", "'min_tokens': expected at most max_tokens, 600, got 700"),
        ("prompts.normal=Ask.", "'prompts.normal': expected {chunk} in the text"),
        ("prompts.norml='{chunk}'", "did you mean 'normal'?"),
        ("sources.mine.filters=[GopherQualityFilter]", "'sources.mine.filters': is for `python data_prep` only"),
        ("tokenizer=nowhere", "nowhere/tokenizer.json is missing"),
        ("concurrency=0", "'concurrency': expected an integer of at least 1, got 0"),
        ("reply_tokens=590", "'max_tokens': 600 leave no room for a document"),
    ],
)
def test_wrong_settings_are_refused_by_key(corpus, tmp_path, override, message):
    done = rotary_foundry("data", "self-instruct", corpus, tmp_path / "out", override)
    assert done.returncode == 2 and message in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_prompt_and_a_request_are_replaced_by_keys(corpus, tmp_path, monkeypatch):
    bodies = []

    def answer(body, headers):
        bodies.append(body)
        return completion(KEEP if body["messages"][0]["content"].startswith("Judge") else GOOD)

    changes = [
        "prompts.normal='N {chunk}'",
        "prompts.short='S {chunk}'",
        "prompts.critique='Judge {chunk} {question} {answer}'",
    ]
    with served(answer) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        output_of("data", "self-instruct", corpus, tmp_path / "out", *changes, "request={temperature: null, top_k: 5}")
    prompts = [body["messages"][0]["content"] for body in bodies]
    assert Counter(prompt[0] for prompt in prompts)["J"] == 8 and {prompt[0] for prompt in prompts} == {"N", "S", "J"}
    assert all("temperature" not in body and body["top_k"] == 5 for body in bodies)


def test_the_yaml_of_the_guide_loads(tokenizer):
    path = Path(__file__).parents[2] / "yamls/data/self_instruct.yaml"
    assert load_self_instruct_config(path, [f"tokenizer={tokenizer}"]).sources["packages"].reader == "repositories"
