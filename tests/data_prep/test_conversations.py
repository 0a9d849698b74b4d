"""Conversations from files to rows: each whole and once, what counts, what is cut or left out, and what is refused."""

import io
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datatrove.data import Document
from rich.console import Console
from transformers import AutoTokenizer

from rotary_foundry.data.corpus import open_corpus
from rotary_foundry.data.rows import Manifest, decode_row
from rotary_foundry.data.target_context import context_shares, count_responses
from rotary_foundry.data_prep import readers, stages
from rotary_foundry.data_prep.conversations.chat_template import ChatTemplate
from rotary_foundry.data_prep.conversations.conversation_rows import renderable
from rotary_foundry.data_prep.corpus_config import CorpusConfig, TokenizerConfig, TrainTokenizer, load_corpus_config
from rotary_foundry.data_prep.inspection.shard_folder import ShardFolder
from rotary_foundry.data_prep.inspection.show import documents_of
from rotary_foundry.data_prep.inspection.source_folders import Texts
from rotary_foundry.data_prep.inspection.stats import gather, print_stats
from rotary_foundry.data_prep.inspection.verify import verify
from rotary_foundry.data_prep.pipeline import prepare
from rotary_foundry.data_prep.readers import BadInput, SourceConfig
from rotary_foundry.data_prep.readers.messages import to_text
from rotary_foundry.data_prep.statistics import Statistics
from rotary_foundry.data_prep.statistics_table import table
from rotary_foundry.doctor.conversation_checks import check_conversations
from rotary_foundry.doctor.finding import DOUBTFUL, GOOD
from rotary_foundry.reporting.drawn_data import drawn_data
from rotary_foundry.reporting.plan_table import print_plan
from rotary_foundry.runs.recipes import load_recipe, load_recipe_and_plan
from rotary_foundry.utils.errors import ConfigurationError, DataError
from tests.data_prep.small_corpus import content
from tests.data_prep.tasks import write_lines

TEMPLATE = Path(__file__).parents[2] / "yamls/data/llama_nano_chat.jinja"
TEXT = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
ROLES = {"bos_token": "<s>", "eos_token": "</s>"}
LENGTHS, ALONE_FROM = [128, 256], 100
BAD = {  # by what is said of it
    r"turn 1 \(assistant\) is empty": [("user", "What?"), ("assistant", " ")],
    "turn 1 is of the user, expected the assistant: roles are out of order": [("user", "a"), ("user", "b")],
    "ends with a turn of the user, after which there is nothing to predict": [("user", "a")],
    r"turn 0 \(user\) holds <s>, a special token": [("user", "strike <s>this</s>"), ("assistant", "No.")],
    r"has \d+ tokens, \d+ more than a row": [("user", "words " * 400), ("assistant", "Too long.")],
}


def as_messages(turns: list[tuple[str, str]]) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in turns], "score": 1}


def as_sharegpt(turns: list[tuple[str, str]]) -> dict:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return {"conversations": [{"from": names[role], "value": content} for role, content in turns]}


def chats(name: str, count: int) -> list[list[tuple[str, str]]]:
    """Of one to three questions, every fifth of them long, and every second with a system prompt."""
    found = []
    for number in range(count):
        turns = [("system", "Be brief.")] if number % 2 else []
        for turn in range(1 + number % 3):
            turns += [("user", f"{name} {number}.{turn}, what is it?"), ("assistant", f"It is {name} {number * turn}.")]
        if number % 5 == 0:
            turns[-2] = ("user", f"{name} {number}: " + "the window of tokens " * 9 + "is what?")
        found.append(turns)
    return found


CHATS = {
    "chat": chats("token", 60),
    "long": [[("user", f"{n} " + "a word " * 300 + "ends"), ("assistant", f"End {n}.")] for n in range(24)],
}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> CorpusConfig:
    folder = tmp_path_factory.mktemp("conversations")
    write_lines(folder / "chat.jsonl", [as_messages(turns) for turns in [*CHATS["chat"], *BAD.values()]])
    pq.write_table(pa.Table.from_pylist([as_sharegpt(turns) for turns in CHATS["long"]]), folder / "long.parquet")
    config = CorpusConfig(
        sources={
            "chat": SourceConfig("jsonl", str(folder / "chat.jsonl"), conversations="messages", alone_from=ALONE_FROM),
            "long": SourceConfig(
                "parquet", str(folder / "long.parquet"), conversations="sharegpt", too_long="cut_left"
            ),
        },
        tokenizer=TokenizerConfig(train=TrainTokenizer(400), causal=True, chat_template=str(TEMPLATE)),
        row_lengths=LENGTHS,
        validation=0.2,
        out=str(folder / "out"),
        executor={"local": {"workers": 1}},
    )
    assert prepare(config) and prepare(config)  # a second time it is there
    return config


def rows(
    config: CorpusConfig, source: str, split: str, row_length: int = LENGTHS[-1]
) -> tuple[ShardFolder, list[dict]]:
    folder = ShardFolder(Path(config.out) / source / str(row_length) / split)
    return folder, [sample for shard in folder.shards for sample in folder.rows(shard)]


def ids_of(config: CorpusConfig, source: str, split: str) -> list[str]:
    (file,) = (Path(config.out) / source / "documents" / split).glob("*.parquet")
    return pq.read_table(file)["id"].to_pylist()


def test_every_conversation_is_in_one_row_whole_with_its_answers_marked(config):
    texts, found = Texts(Path(config.out) / "tokenizer"), Counter()
    for split in ("train", "validation"):
        ids = ids_of(config, "chat", split)
        for sample in rows(config, "chat", split)[1]:
            bounds = np.cumsum(sample["lengths"])[:-1]
            responses = np.split(sample["responses"], bounds)
            assert len(responses) == 1 or max(sample["lengths"]) < ALONE_FROM
            for number, tokens, said in zip(sample["documents"], decode_row(sample), responses, strict=True):
                line = int(ids[number].rsplit(":", 1)[1])
                turns = CHATS["chat"][line - 1]
                found[line] += 1
                (answers,) = texts.decode([tokens[said == 1]], framed=False)
                assert answers == "".join(f"{content}</s>" for role, content in turns if role == "assistant")
                (text,) = texts.decode([tokens], framed=False)
                assert text.startswith("<s>") and all(content in text for _, content in turns)
    assert found == Counter(range(1, 61))
    alone = [sample for sample in rows(config, "chat", "train")[1] if max(sample["lengths"]) >= ALONE_FROM]
    packed = [sample for sample in rows(config, "chat", "train")[1] if len(sample["lengths"]) > 1]
    assert len(alone) > 5 and len(packed) > 3


def test_what_cannot_be_trained_on_is_named_by_file_and_line(config):
    lines = (Path(config.out) / "bad_input.txt").read_text().splitlines()
    chat = sorted((line for line in lines if line.startswith("chat: ")), key=lambda line: int(line.split(":")[2]))
    for number, (line, says) in enumerate(zip(chat, BAD, strict=True), 61):
        assert re.search(rf"chat\.jsonl:{number}: {says}", line), line
    assert len(lines) == len(BAD)
    left_out = Statistics.read(config.out).sources["chat"].left_out
    assert left_out == {"bad input": 4, "too long": 1}


def test_a_conversation_that_the_template_raises_at_is_listed_and_the_next_are_read():
    template = ChatTemplate("{{ raise_exception('no system') if messages[0].role == 'system' }}" + TEXT, ROLES, "test")
    texts = [to_text(as_messages(turns)["messages"]) for turns in CHATS["chat"][:4]]
    documents, bad = [Document(text, f"mine:{line}") for line, text in enumerate(texts, 1)], BadInput("mine")
    assert [document.id for document in renderable(iter(documents), template, bad)] == ["mine:1", "mine:3"]
    assert bad.listed == [f"mine:{line}: the chat template raised: no system" for line in (2, 4)]


def test_a_cut_conversation_fills_its_row_and_keeps_header_question_and_answer(config):
    texts = Texts(Path(config.out) / "tokenizer")
    for row_length in LENGTHS:
        samples = rows(config, "long", "train", row_length)[1]
        assert len(samples) > 10 and all(sample["lengths"].tolist() == [row_length] for sample in samples)
        (text,) = texts.decode([samples[0]["tokens"]], framed=False)
        number = text.rsplit("End ", 1)[1].removesuffix(".</s>")
        assert text.startswith("<s>Question:\n") and text.endswith(f"ends\nAnswer:\nEnd {number}.</s>")
        assert f"{number} a word" not in text


def test_statistics_say_lengths_and_the_share_of_the_loss(config):
    statistics = Statistics.read(config.out)
    chat, long = (statistics.conversations[source].train for source in ("chat", "long"))
    assert chat.examples + statistics.conversations["chat"].validation.examples == 60
    assert chat.left_out == {"256": 1} | ({"128": chat.left_out["128"]} if "128" in chat.left_out else {})
    assert long.cut == dict.fromkeys(map(str, LENGTHS), long.examples) and long.lengths == 4 * [256]
    assert [sum(column) for column in zip(*chat.by_length.values(), strict=True)] == [
        chat.examples, chat.tokens, chat.responses,
    ]  # fmt: skip
    for source, counts in (("chat", chat), ("long", long)):
        manifest = Manifest.read(Path(config.out) / source / "256/train")
        assert (manifest.documents, manifest.tokens) == (counts.examples, counts.tokens)
        assert manifest.responses["0"] == counts.responses
        samples = rows(config, source, "train")[1]
        by_hand = sum(count_responses(sample["responses"], sample["lengths"], 256) for sample in samples)
        assert list(manifest.responses.values()) == by_hand.tolist()
    shares = context_shares({"long": 1.0}, {"long": manifest}, causal=True, document_mask=True, responses=True)
    assert shares == {0: 1.0, 128: 1.0}  # answers come after 128 tokens of a long conversation
    output = Console(file=io.StringIO(), width=160)
    output.print(table("corpus", statistics))
    print_stats(gather(config.out), output)
    printed = output.file.getvalue()
    share = f"{chat.responses / (chat.responses + long.responses):.1%}"
    assert printed.count(share) >= 2 and printed.count("of the loss") == 2
    assert "chat, train: 1 are too long for rows of 256" in printed and "cut from the left for rows of 128" in printed


def test_the_corpus_is_sound_and_can_be_looked_at(config):
    report = verify(config.out)
    assert not report.problems and report.rows > 20
    folder, samples = rows(config, "chat", "train")
    shown = documents_of(folder, 0)
    assert shown[0].text.startswith("<s>") and shown[0].text.endswith("</s>")
    assert [document.tokens for document in shown] == samples[0]["lengths"].tolist()


def test_the_plan_counts_the_responses_that_a_stage_draws_and_the_context_that_they_see(config):
    overrides = ["init_from=null", "data.sources=[chat,long]", f"data.local={config.out}"]
    stage = ["stages.tune.row_length=256", "stages.tune.long_share=null", "stages.tune.mixture={chat: 1, long: 3}"]
    recipe, plan = load_recipe_and_plan("yamls/main/llama_nano_instruct.yaml", [*overrides, *stage])
    output = Console(file=io.StringIO(), width=160)
    print_plan(recipe, plan, console=output)
    (drawn,) = drawn_data(recipe, plan)
    manifests = {source: Manifest.read(Path(config.out) / source / "256/train") for source in ("chat", "long")}
    a_row = {source: manifest.responses["0"] / manifest.rows for source, manifest in manifests.items()}
    share = a_row["chat"] / (a_row["chat"] + 3 * a_row["long"])
    assert drawn.responses == pytest.approx({"chat": share, "long": 1 - share})
    of_chat = manifests["chat"].responses
    assert drawn.context[128] == pytest.approx(share * of_chat["128"] / of_chat["0"] + 1 - share)
    tokens = {source: manifest.tokens / manifest.rows for source, manifest in manifests.items()}
    drawn_tokens = tokens["chat"] + 3 * tokens["long"]
    assert drawn.response_share == pytest.approx((a_row["chat"] + 3 * a_row["long"]) / drawn_tokens)
    printed = " ".join(output.file.getvalue().split())
    assert f"of them chat {share:.1%}, long {1 - share:.1%}" in printed and "response tokens only" in printed
    a_row = {source: manifest.documents / manifest.rows for source, manifest in manifests.items()}
    rows = sum(segment.updates * segment.rows for segment in plan.segments)
    assert drawn.conversations == pytest.approx(rows * (a_row["chat"] + 3 * a_row["long"]) / 4)
    assert f"of the tokens of {drawn.conversations:,.0f} conversations" in printed
    assert (
        "tune: Instruction tuning on every turn of the assistant, and prompts of conversations of at least" in printed
    )


def test_the_doctor_counts_conversations_and_doubts_a_length_of_prompts_that_none_has(config):
    corpus = ["init_from=null", "data.sources=[chat,long]", f"data.local={config.out}"]
    stage = ["stages.tune.row_length=256", "stages.tune.long_share=null"]
    manifests = [Manifest.read(Path(config.out) / source / "256/train") for source in ("chat", "long")]
    for sources, least, marks in (("chat", 100, GOOD), ("chat,long", 256, GOOD), ("chat,long", 257, GOOD + DOUBTFUL)):
        mixture = f"stages.tune.mixture={{{', '.join(f'{source}: 1' for source in sources.split(','))}}}"
        given = [*corpus, *stage, mixture, f"objective.target_prompts=length>={least}"]
        found = list(check_conversations(load_recipe("yamls/main/llama_nano_instruct.yaml", given)))
        assert "".join(finding.mark for finding in found) == marks
        drawn = manifests[: len(sources.split(","))]
        assert found[0].said.startswith(f"tune: {sum(manifest.documents for manifest in drawn)} in ")
    assert "no conversation has 257 tokens, so no prompt is predicted" in found[1].said


def test_another_template_or_no_conversation_left_is_refused(config, tmp_path):
    other = tmp_path / "other.jinja"
    other.write_text(TEMPLATE.read_text() + " ")
    with pytest.raises(DataError, match="shards made with other values of chat_template"):
        prepare(replace(config, tokenizer=replace(config.tokenizer, chat_template=str(other))))
    source = replace(config.sources["long"], too_long=None)
    none_left = replace(config, sources={"long": source}, out=str(tmp_path / "out"))
    with pytest.raises(
        DataError, match=r"source 'long': no conversation is left in the train split; .* more than a row"
    ):
        prepare(none_left)
    raising = tmp_path / "raising.jinja"
    raising.write_text("{{ raise_exception('no luck') }}")
    tokenizer = replace(config.tokenizer, chat_template=str(raising))
    with pytest.raises(
        DataError, match=r"'long' has no documents \(left out: 24 bad input\).*/long\.parquet:0: .*raised: no luck"
    ):
        prepare(replace(none_left, tokenizer=tokenizer, out=str(tmp_path / "raised")))


def test_the_template_comes_with_a_corpus_from_a_remote(config, tmp_path):
    remote = [f"data.local={tmp_path}/cache", f"data.remote={config.out}", "data.sources=[chat,long]"]
    recipe = ["stages.tune.row_length=256", "stages.tune.long_share=null"]
    open_corpus(load_recipe("yamls/main/llama_nano_instruct.yaml", [*remote, *recipe]))
    assert AutoTokenizer.from_pretrained(tmp_path / "cache/tokenizer").chat_template == TEMPLATE.read_text()


class Interrupted(BaseException):
    pass


def test_an_interrupted_preparation_gives_the_same_files_and_goes_on_with_the_same_settings_only(
    config, tmp_path, monkeypatch
):
    """It ends as it reads the second source, and again as it writes the held-out conversations of the first."""
    interrupted = replace(config, out=str(tmp_path / "out"))
    for name, last in (("read", 1), ("write_conversations", 2)):
        calls, function = [], getattr(stages, name)

        def until_interrupted(*arguments, calls=calls, last=last, function=function):
            if len(calls) == last:
                raise Interrupted
            calls.append(arguments)
            return function(*arguments)

        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(stages, name, until_interrupted)
            prepare(interrupted)
        assert not Path(interrupted.out).exists()
    other = tmp_path / "other.jinja"
    other.write_text(TEMPLATE.read_text() + " ")
    pairs = config.sources | {"chat": replace(config.sources["chat"], conversations="prompt_response")}
    for change, key in (
        ({"tokenizer": replace(config.tokenizer, chat_template=str(other))}, "chat_template"),
        ({"sources": pairs}, "sources"),
        ({"sources": config.sources | {"chat": replace(config.sources["chat"], too_long="cut_left")}}, "sources"),
    ):
        with pytest.raises(DataError, match=f"unfinished work.*other values of {key}; delete it"):
            prepare(replace(interrupted, **change))
    with monkeypatch.context() as patch:
        patch.setattr(stages, "read", None)  # nothing is read again
        prepare(interrupted)
    assert content(Path(interrupted.out)) == content(Path(config.out))


def test_jsonl_parquet_and_hugging_face_sets_give_the_same_conversations(tmp_path):
    import datasets

    made = [as_messages(turns) for turns in CHATS["chat"][:5]] + [{"messages": [], "score": 0}]
    write_lines(tmp_path / "made.jsonl", made)
    pq.write_table(pa.Table.from_pylist(made), tmp_path / "made.parquet")
    datasets.Dataset.from_list(made).save_to_disk(str(tmp_path / "made"))
    found = {}
    for reader, path in (("jsonl", "made.jsonl"), ("parquet", "made.parquet"), ("huggingface", "made")):
        source = SourceConfig(reader, str(tmp_path / path), conversations="messages")
        bad = BadInput("mine")
        (part,) = readers.parts(source)
        found[reader] = [document.text for document in readers.read(source, part, bad)]
        assert len(bad.listed) == 1 and "expected a list of at least one turn" in bad.listed[0]
    expected = [to_text(row["messages"]) for row in made[:5]]
    assert found == dict.fromkeys(found, expected)
    pairs = write_lines(tmp_path / "pairs.jsonl", [{"prompt": "a", "response": "b"}, {"prompt": "a"}])
    source, bad = SourceConfig("jsonl", str(pairs), conversations="prompt_response"), BadInput("mine")
    (document,) = readers.read(source, readers.parts(source)[0], bad)
    assert json.loads(document.text) == [["user", "a"], ["assistant", "b"]]
    assert bad.listed == [f"{pairs}:2: no column 'response'; the columns there are 'prompt'"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("sources.chat.conversations=chatml", r"'sources\.chat\.conversations': 'chatml' is not known"),
        ("sources.chat.reader=csv", r"'sources\.chat\.conversations': the reader csv reads none; .* jsonl, parquet"),
        ("sources.chat.text_column=text", r"'sources\.chat\.text_column': is for texts"),
        ("sources.chat.too_long=cut", r"'sources\.chat\.too_long': expected leave_out or cut_left, got 'cut'"),
        ("sources.chat.alone_from=0", r"'sources\.chat\.alone_from': expected a number of tokens of at least 1"),
        ("sources.chat.conversations=null", r"'sources\.chat\.alone_from': is for sources with `conversations`"),
        ("tokenizer.causal=false", r"'tokenizer\.causal': conversations are for decoders"),
        ("word_starts=pre_tokenizer", r"'word_starts': is for masked LM"),
    ],
)
def test_a_key_that_does_not_fit_conversations_is_refused(change, says, tmp_path):
    write_lines(tmp_path / "chat.jsonl", [as_messages(CHATS["chat"][0])])
    (tmp_path / "data.yaml").write_text(
        f"sources: {{chat: {{reader: jsonl, path: {tmp_path}/chat.jsonl, conversations: messages, alone_from: 9}}}}\n"
        "tokenizer: {train: {vocab_size: 400}, causal: true}\nrow_lengths: [64]\nout: data/mine\n"
    )
    with pytest.raises(ConfigurationError, match=says):
        load_corpus_config(tmp_path / "data.yaml", [change])
