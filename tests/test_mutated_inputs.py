"""Every door of this project gets inputs with something wrong in them, at random.

Whatever is wrong, a command ends with status 0, 2 or 3 and with one line on stderr, and no exception, hang or
allocation of gigabytes comes of it. SEED=… repeats a sequence, and INPUTS=… makes another number of it.
"""

import json
import os
import random
import re
import resource
import runpy
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn
from unittest import mock

import pytest
import torch
import transformers
import yaml

from rotary_foundry.data_prep.tokenizer import save_trained, train_tokenizer
from rotary_foundry.evaluation import evaluate
from rotary_foundry.finetuning import job, search
from rotary_foundry.interop.huggingface import export_model
from rotary_foundry.reporting import report_page
from rotary_foundry.utils.errors import DataError
from tests.command import captured, rotary_foundry
from tests.data_prep import reading
from tests.data_prep.labelled.clue_samples import write_clue
from tests.data_prep.labelled.tokenizers import write_byte_tokenizer, write_chinese_tokenizer
from tests.data_prep.small_corpus import sentences
from tests.data_prep.test_conversations import as_messages, as_sharegpt, chats
from tests.data_prep.test_readers_bad_input import FUZZED, PAGES, ROWS, read_listing
from tests.evaluation.conftest import made
from tests.evaluation.corpus import write_corpus
from tests.evaluation.decoders import save_decoder
from tests.finished_run import write_finished_run
from tests.interop.flexbert import save_with_composer, settings_of
from tests.interop.gguf_files import VOCABULARY, tensors_of, write_gguf
from tests.interop.gguf_files import settings_of as gguf_settings
from tests.interop.test_roformer_v2 import JUNNYU, TENSORFLOW
from tests.models import peers, roformer_v2_peers
from tests.models.llama import peers as llama_peers
from tests.mutations import changed, damaged, mutations
from tests.reporting.made_run import write_result

SEED = os.environ.get("SEED") or f"{time.time():.0f}"
INPUTS = int(os.environ.get("INPUTS") or 500)
SECONDS = 30  # of processor time for an input; the slowest sound one takes two
MEMORY = 8 << 30  # bytes beyond what the process has

pytestmark = [pytest.mark.long, pytest.mark.timeout(3000, method="thread")]


class Hang(BaseException):
    """An input took too long. Nothing catches it by accident."""


@contextmanager
def limits() -> Iterator[None]:
    """Raise `Hang` after SECONDS, and an error of memory where much is allocated."""

    def end(_: int, frame: FrameType | None) -> None:
        raise Hang("".join(traceback.format_stack(frame)[-3:]))

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    there = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGPROF, end)
    resource.setrlimit(resource.RLIMIT_AS, (there + MEMORY, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, before)


def is_right(status: int, said: str) -> bool:
    """Return whether a command ended as it should: with an error in one line if its status is not 0."""
    return said == "" if status == 0 else status in (2, 3) and re.fullmatch("error: .+\n", said) is not None


def check(door: str, files: list[Path], call: Callable[[Path], tuple[int, str]]) -> None:
    """Call a door with INPUTS mutations of these files, and report every kind of wrong end by its first input.

    Args:
        call: takes the file that was changed, and returns the exit status and what is on stderr.
    """
    print(f"{door}: SEED={SEED}")
    contents = {file: file.read_bytes() for file in files}
    for file in (files[0], files[-1]):
        status, said = call(file)
        assert status == 0, said
    outcomes, wrong, began = Counter(), {}, time.process_time()
    for number, file in zip(range(INPUTS), mutations(contents, f"{SEED} {door}"), strict=False):
        try:
            with limits(), chdir(files[0].parent):  # where a command may write anything, such as to out: True
                status, said = call(file)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            frames = traceback.extract_tb(error.__traceback__)  # an assertion of this file has none of ours
            frame = next((frame for frame in reversed(frames) if "rotary_foundry" in frame.filename), frames[-1])
            key = f"{type(error).__name__} {frame.filename}:{frame.lineno}"
            kind = f"{key}: {str(error)[:300]}"
        else:
            outcomes[status] += 1
            if is_right(status, said):
                continue
            kind = key = f"status {status}, stderr {said[-500:]!r}"
        wrong.setdefault(key, []).append((number, kind))
    print(f"{door}: {dict(outcomes)} in {time.process_time() - began:.0f} s of CPU")
    report = [f"{len(found)} × from input {found[0][0]} on: {found[0][1]}" for found in wrong.values()]
    assert not report, f"{door}, SEED={SEED}:\n" + "\n".join(report)
    assert outcomes[2] > INPUTS / 50


@pytest.mark.parametrize("kind", [*FUZZED, "html", "man"])
def test_readers(tmp_path, kind):
    more = {"html": ("html", "a.html"), "man": ("man", "a.1")}
    reader, name, *_ = more.get(kind) or FUZZED[kind]
    path = tmp_path / name
    if kind in more:
        path.write_text(
            {"html": reading.PAGE.format(PAGES[0]), "man": '.TH A 1\n.SH NAME\nfoo \\- "bar"\n.B x\n'}[kind]
        )
    else:
        FUZZED[kind][2](path, PAGES[:1] if kind == "warc" else ROWS)

    def call(_: Path) -> tuple[int, str]:
        try:
            _, listed = read_listing(reader, path)
        except DataError as error:
            return 2, f"error: {error}\n"
        return (2, "error: listed\n") if listed else (0, "")

    check(f"reader of {kind}", [file for file in [path, *path.rglob("*")] if file.is_file()], call)


with mock.patch.dict(os.environ):  # the script sets variables that would reach other tests
    DATA_PREP = runpy.run_path(str(Path(__file__).parents[1] / "data_prep/__main__.py"))["main"]


def data_prep(folder: Path) -> tuple[int, str]:
    """Prepare a corpus anew."""
    for made_before in ("out", ".out-work"):
        shutil.rmtree(folder / made_before, ignore_errors=True)
    done = captured(lambda: sys.exit(DATA_PREP()), "data_prep", folder / "data.yaml")
    return done.returncode, done.stderr


def corpus_yaml(folder: Path, **keys: object) -> Path:
    content = {"row_lengths": [64], "validation": 0.2, "out": str(folder / "out")} | keys
    content["executor"] = {"local": {"workers": 1}}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return folder / "data.yaml"


def test_data_prep(tmp_path):
    reading.write_jsonl(tmp_path / "a.jsonl", sentences(1, 40))
    save_trained(train_tokenizer(sentences(1, 20), 320), tmp_path / "tokenizer", 64)
    source = {"reader": "jsonl", "path": str(tmp_path / "a.jsonl"), "separator": "zzz"}
    config = corpus_yaml(tmp_path, sources={"mine": source}, tokenizer={"path": str(tmp_path / "tokenizer")})
    check(
        "data_prep", [config, tmp_path / "a.jsonl", *(tmp_path / "tokenizer").iterdir()], lambda _: data_prep(tmp_path)
    )


def test_conversations(tmp_path):
    turns, others = chats("token", 30), chats("word", 30)
    reading.pq.write_table(reading.pa.Table.from_pylist(list(map(as_sharegpt, others))), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(as_messages(of)) + "\n" for of in turns))
    save_trained(train_tokenizer(sentences(1, 20), 320, causal=True), tmp_path / "tokenizer", 256, causal=True)
    shutil.copy("yamls/data/llama_nano_chat.jinja", tmp_path / "a.jinja")
    sources = {
        "one": {"reader": "jsonl", "path": str(tmp_path / "a.jsonl"), "conversations": "messages"},
        "other": {"reader": "parquet", "path": str(tmp_path / "a.parquet"), "conversations": "sharegpt"},
    }
    tokenizer = {"path": str(tmp_path / "tokenizer"), "causal": True, "chat_template": str(tmp_path / "a.jinja")}
    config = corpus_yaml(tmp_path, sources=sources, tokenizer=tokenizer, row_lengths=[256])
    files = [config, *tmp_path.glob("a.*"), *(tmp_path / "tokenizer").iterdir()]
    check("conversations", files, lambda _: data_prep(tmp_path))


RECIPES = ["nano", "roformer_v2_nano_multi_task", "llama_nano_instruct", "llama2_long_7b", "llama2_long_mix_new"]


def merged(name: str) -> dict:
    """A recipe of one file, in which nothing is left out."""
    done = rotary_foundry("plan", f"yamls/main/{name}.yaml", "--recipe")
    return yaml.safe_load(done.stdout)


def test_recipes(tmp_path):
    for name in RECIPES:
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(merged(name), sort_keys=False))
    (tmp_path / "extends.yaml").write_text("extends: [nano.yaml]\nstages: {decay: {lr: 1e-3}}\n")
    main = tmp_path / "extends.yaml"

    def call(changed: Path) -> tuple[int, str]:
        done = rotary_foundry("plan", main if changed.stem == "nano" else changed)
        return done.returncode, done.stderr

    check("recipes", [*tmp_path.iterdir()], call)


OVERRIDES = [
    *(
        "stages.decay.lr=1e-3",
        "objective.mlm_probability=0.2",
        "data.sources=[a,b]",
        "seed=3",
        "optimizer.betas=[0.9,0.98]",
    ),
    *(
        "stages.decay.mixture={docs: 0.5}",
        "run_name=x",
        "batch=null",
        "model.family=llama",
        "stages.extend.duration=3tok",
    ),
    *("loggers={wandb: {project: x}}", "callbacks={}", "rollback.at={token: 9}", "fsdp_config.sharding_strategy=x"),
]


def test_overrides():
    generator = random.Random(f"{SEED} overrides")
    wrong = []
    for _ in range(INPUTS):
        given = []
        for override in generator.choices(OVERRIDES, k=generator.choice([1, 1, 2])):
            key, _, value = override.partition("=")
            if generator.random() < 0.5:
                value = json.dumps(changed(yaml.safe_load(value), generator))
            else:
                override = damaged(override.encode(), generator).decode(errors="replace").replace("\0", "")
                key, _, value = override.partition("=")
            given.append(f"{key}={value}"[:100_000])
        try:
            with limits():
                done = rotary_foundry("plan", "yamls/main/nano.yaml", "--", *given)
        except BaseException as error:
            wrong.append(f"{given}: {type(error).__name__}: {error}"[:600])
        else:
            if not is_right(done.returncode, done.stderr):
                wrong.append(f"{given}: status {done.returncode}: {done.stderr}"[:600])
    assert not wrong, f"SEED={SEED}\n" + "\n".join(wrong)


def imported(*arguments: object) -> Callable[[Path], tuple[int, str]]:
    """The import of a model to a folder that is not there."""

    def call(_: Path) -> tuple[int, str]:
        out = Path(arguments[0]).with_name("imported")
        shutil.rmtree(out, ignore_errors=True)
        done = rotary_foundry("import", arguments[0], out, *arguments[1:])
        return done.returncode, done.stderr

    return call


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory) -> Path:
    return write_byte_tokenizer(tmp_path_factory.mktemp("byte_level") / "tokenizer")


NETWORKS = {
    "modernbert": lambda: peers.our_network(hidden_size=32, vocab_size=448),
    "roformer_v2": lambda: roformer_v2_peers.our_network(num_hidden_layers=2, hidden_size=32, vocab_size=448),
    "llama": lambda: llama_peers.our_network(num_hidden_layers=2, hidden_size=32, vocab_size=448),
}


def exported(name: str, tokenizer: Path, out: Path) -> Path:
    network = NETWORKS[name]().eval()
    family = {"modernbert": peers, "roformer_v2": roformer_v2_peers, "llama": llama_peers}[name].FAMILY
    knobs = {knob: network.knobs[knob] for knob in family.knobs_of_weights()}
    export_model(network.state_dict(), family, network.shape, knobs, tokenizer, 128, out)
    return out


@pytest.mark.parametrize("name", NETWORKS)
def test_import_of_directories(tmp_path, name, tokenizer_dir):
    tokenizer = tokenizer_dir
    if name == "llama":
        tokenizer = tmp_path / "tokenizer"
        save_trained(train_tokenizer(sentences(1, 20), 448, causal=True), tokenizer, 128, causal=True)
    model = exported(name, tokenizer, tmp_path / "model")
    check(
        f"import of {name}",
        [file for file in model.iterdir() if file.suffix == ".json" or "safe" in file.name],
        imported(model),
    )


@pytest.mark.parametrize("kind", ["gguf", "flexbert", "junnyu", "tensorflow"])
def test_import_of_files(tmp_path, kind, tokenizer_dir):
    if kind == "gguf":
        network = llama_peers.our_network(vocab_size=320, num_hidden_layers=1)
        path = write_gguf(tmp_path / "model.gguf", tensors_of(network), gguf_settings(network) | VOCABULARY)
        check("import of GGUF", [path], imported(path))
    elif kind == "flexbert":
        ours = peers.our_network(num_hidden_layers=1, vocab_size=448)
        tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_dir)
        theirs = peers.their_network(ours)
        path = save_with_composer(theirs, settings_of(ours), tokenizer, tmp_path)
        check("import of FlexBERT", [path], imported(path, "--tokenizer", tokenizer_dir))
    elif kind == "junnyu":
        torch.save(roformer_v2_peers.junnyu_tensors(roformer_v2_peers.our_network(vocab_size=448)), tmp_path / "a.bin")
        (tmp_path / "config.json").write_text(json.dumps(JUNNYU | {"vocab_size": 448}))
        check(
            "import of JunnYu's",
            [tmp_path / "a.bin", tmp_path / "config.json"],
            imported(tmp_path / "a.bin", "--tokenizer", tokenizer_dir),
        )
    else:
        for file in TENSORFLOW.glob("*.ckpt.*"):
            shutil.copy(file, tmp_path)
        config = {"hidden_act": "relu", "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2}
        config |= {"num_hidden_layers": 2, "type_vocab_size": 2, "vocab_size": 32}
        (tmp_path / "bert_config.json").write_text(json.dumps(config))
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        (tmp_path / "vocab.txt").write_text("\n".join([*special, *(f"##{n}" for n in range(27))]) + "\n")
        index = next(tmp_path.glob("*.index"))
        check("import of TensorFlow's", [*tmp_path.iterdir()], imported(index))


def test_gguf_settings(tmp_path):
    """Well-formed files with other keys and values."""
    network = llama_peers.our_network(vocab_size=320, num_hidden_layers=1)
    tensors, settings = tensors_of(network), gguf_settings(network) | VOCABULARY
    (tmp_path / "settings.json").write_text(json.dumps(settings))

    def call(_: Path) -> tuple[int, str]:
        try:
            content = json.loads((tmp_path / "settings.json").read_text())
            path = write_gguf(tmp_path / "model.gguf", tensors, content)
        except Exception as error:  # gguf cannot write them
            return 2, f"error: {type(error).__name__}\n"
        return imported(path)(path)

    check("GGUF's keys", [tmp_path / "settings.json"], call)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("evaluated") / "corpus")


@pytest.mark.parametrize("model", ["modernbert", "bert", "llama"])
def test_evaluate(tmp_path, corpus, model):
    path, data = tmp_path / "model", tmp_path / "data"
    shutil.copytree(corpus, data)
    if model == "llama":
        save_decoder(path)
        keys = {"suite": "causal_lm", "documents": 1, "longest": 64}
    else:
        made(model, 384).save_pretrained(path)
        transformers.AutoTokenizer.from_pretrained(corpus / "tokenizer").save_pretrained(path)
        keys = {"suite": "masked_lm", "documents": 1, "longest": 64, "long_documents": "truncate"}
        keys |= {"mlm_probability": 0.15, "mask_share": 0.8, "random_share": 0.1}
    keys |= {"data": str(data), "resamples": 5, "out": str(tmp_path / "out")}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(keys))
    shards = [file for file in data.rglob("*") if file.is_file() and "tokenizer" not in file.parts]
    files = [tmp_path / "suite.yaml", *path.iterdir(), *data.glob("tokenizer/*"), *shards]

    def call(_: Path) -> tuple[int, str]:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        with mock.patch.object(
            evaluate, "draw"
        ):  # a picture of numbers takes half a second, and they are none of the input
            done = rotary_foundry("evaluate", path, tmp_path / "suite.yaml")
        return done.returncode, done.stderr

    check(f"evaluate {model}", files, call)


class Reached(Exception):
    """The input was sound so far that a job would train."""


def opened(config: object, folder: Path, jobs: list[dict], *_: object) -> NoReturn:
    """Open what a job opens, in this process, in the place of running it."""
    job.open_parts(jobs[0])
    raise Reached


def finetuned(folder: Path, config: Path) -> tuple[int, str]:
    shutil.rmtree(folder / "out", ignore_errors=True)
    with mock.patch.object(search, "_run", opened):
        try:
            done = rotary_foundry("finetune", config)
        except Reached:
            return 0, ""
    return done.returncode, done.stderr


def bert(folder: Path, tokenizer_dir: Path) -> Path:
    """A tiny BERT for a tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_dir)
    made("bert", len(tokenizer), pad_token_id=tokenizer.pad_token_id).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


LABELLED = {
    "csv": ("sequence", "text,label\n" + "".join(f'"some text {n}, of words",{"ab"[n % 2]}\n' for n in range(8))),
    "tsv": ("regression", "text\tlabel\n" + "".join(f"some text {n}\t{n / 2}\n" for n in range(8))),
    "jsonl": ("sequence", "".join(json.dumps({"text": f"text {n}", "label": n % 2}) + "\n" for n in range(8))),
    "conll": ("token", "".join(f"Anna B-PER\nwas O\nin O\nBerlin{n} B-LOC\n\n" for n in range(8))),
}


def finetune_yaml(folder: Path, model: Path, tasks: dict) -> Path:
    grid = {"lr": [1e-3], "weight_decay": [0.1], "max_duration": ["1ep"], "global_train_batch_size": [4]}
    content = {"model": str(model), "out": str(folder / "out"), "search": grid, "seeds": [1], "tasks": tasks}
    (folder / "search.yaml").write_text(yaml.safe_dump(content))
    return folder / "search.yaml"


@pytest.mark.parametrize("kind", [*LABELLED, "parquet"])
def test_finetune(tmp_path, kind, corpus):
    model = bert(tmp_path / "model", corpus / "tokenizer")
    file = tmp_path / f"train.{kind}"
    task_type, text = LABELLED.get(kind, ("sequence", ""))
    if kind == "parquet":
        rows = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(8)]
        reading.pq.write_table(reading.pa.Table.from_pylist(rows), file)
    else:
        file.write_text(text)
    shutil.copy(file, other := tmp_path / f"validation.{kind}")
    tasks = {"mine": {"type": task_type, "data": {"train": str(file), "validation": [str(other)]}}}
    config = finetune_yaml(tmp_path, model, tasks)
    check(f"finetune on {kind}", [config, file, other, *model.iterdir()], lambda _: finetuned(tmp_path, config))


CLUE = {**dict.fromkeys(("afqmc", "wsc", "csl"), "sequence"), "c3": "choice", "chid": "choice", "cmrc2018": "answer"}
CLUE |= {"cluener": "entities"}
OTHER_LABELS = {'"label": "1"': '"label": "0"', '"label": "0"': '"label": "1"', '"label": "true"': '"label": "false"'}


@pytest.mark.parametrize("form", CLUE)
def test_finetune_on_clue(tmp_path, form):
    folder = write_clue(tmp_path / "clue", copies=4) / {"wsc": "cluewsc2020_public"}.get(form, form)
    folder = folder if folder.exists() else folder.with_name(f"{form}_public")
    for file in folder.glob("*.json"):  # of two classes
        text = file.read_text()
        file.write_text(text + "".join(text.replace(*pair) for pair in OTHER_LABELS.items() if pair[0] in text))
    model = bert(tmp_path / "model", write_chinese_tokenizer(tmp_path / "tokenizer"))
    data = {"form": form, "path": str(tmp_path / "clue"), "name": folder.name}
    config = finetune_yaml(tmp_path, model, {"mine": {"type": CLUE[form], "data": data}})
    files = [file for file in folder.iterdir() if "test" not in file.name]
    check(f"finetune on {form}", files, lambda _: finetuned(tmp_path, config))


RUN_COMMANDS = {
    "summary": ("summary",),
    "report": ("report",),
    "trace": ("data", "trace", "--update=2"),
    "export": ("export",),
    "evaluate": ("evaluate", "suite.yaml"),
}
NOT_SHOWN = re.compile("^(not shown|Not shown|No masks are filled): .", re.MULTILINE)


@pytest.mark.parametrize("command", RUN_COMMANDS)
def test_run_folder(tmp_path, command):
    """A finished run with a damaged file: its recipe, plan and records, its checkpoint, its export and results."""
    run = write_finished_run(tmp_path)
    write_result(run.path, "export", "masked_lm", loss=(5.59, 5.4, 5.77))
    keys = {"suite": "masked_lm", "data": str(tmp_path / "data"), "documents": 1, "longest": 64, "resamples": 5}
    keys |= {"long_documents": "truncate", "mlm_probability": 0.15, "mask_share": 0.8, "random_share": 0.1}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(keys))
    checkpoint = [*run.checkpoints.glob("*/*"), *run.tokenizer.iterdir()]
    more = {"summary": [*run.export.iterdir()], "report": run.results, "trace": []}
    name, *options = RUN_COMMANDS[command]
    generator = random.Random(f"{SEED} pictures")

    def call(_: Path) -> tuple[int, str]:
        for made_before in (tmp_path / "exported", run.path / "evaluations/run"):
            shutil.rmtree(made_before, ignore_errors=True)
        with ExitStack() as held:
            held.enter_context(chdir(tmp_path))
            if generator.random() < 0.95:  # pictures take seconds
                held.enter_context(mock.patch.object(report_page, "draw"))
                held.enter_context(mock.patch.object(evaluate, "draw"))
            out = [tmp_path / "exported"] if command == "export" else []
            given = [options[0], run.path, *options[1:]] if command == "trace" else [run.path, *options]
            done = rotary_foundry(name, *given, *out)
        if done.returncode == 0 and NOT_SHOWN.search(done.stdout):
            return 2, "error: some of it is not shown\n"
        return done.returncode, done.stderr

    files = [path for path in run.path.iterdir() if path.is_file()]
    check(f"run folder, {command}", [*files, *more.get(command, checkpoint)], call)
