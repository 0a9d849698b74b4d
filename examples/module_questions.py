"""Write real questions and answers about the modules of Python's standard library, as conversations for tuning.

    python examples/module_questions.py data/llama_nano_questions

A long conversation has a whole module and a question about one of its functions or classes; a short one has only the
source of that function or class. There are two questions: what it does, which the first paragraph of its docstring
answers, and what its signature is. The text contains the answer, because docstrings are not removed.

`train.jsonl` and `held_out.jsonl` have different modules, by a hash of the module's name. Each line has `messages`, and
for evaluation `context`, `question`, `answer`, `kind` and `module`. Nothing is imported, and no test module is read.
The same Python gives the same files. The lengths suit llama_nano; larger models can have longer modules:

    python examples/module_questions.py data/smollm2_questions --kinds long --shortest 16000 --longest 26000
"""

import argparse
import ast
import hashlib
import json
import random
import sysconfig
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

SHORTEST, LONGEST = 3_000, 11_000  # characters of a module
FUNCTION = 3_000  # characters of a function or class, at most
KINDS = "long", "short"
LEFT_OUT = ("test", "tests", "idlelib", "lib2to3", "site-packages", "turtledemo", "__pycache__", "ensurepip")
HELD_OUT = 0.1  # of the modules
A_MODULE = 3  # questions per module, at most
ANSWER = range(12, 200)  # characters
MARKUP = ("<s>", "</s>", "<pad>")  # special tokens of the tokenizer; preparation would refuse them


class Asked(NamedTuple):
    """A function or a class that can be asked about."""

    name: str
    source: str
    summary: str  # the first paragraph of its docstring, on one line
    signature: str | None  # None for a class


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder to write to")
    parser.add_argument("--shortest", type=int, default=SHORTEST, help="characters of a module, at least")
    parser.add_argument("--longest", type=int, default=LONGEST, help="characters of a module, at most")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    settings = parser.parse_args()
    settings.out.mkdir(parents=True, exist_ok=True)
    counts: Counter[tuple[str, str]] = Counter()
    files = {split: (settings.out / f"{split}.jsonl").open("w", encoding="utf-8") for split in ("train", "held_out")}
    for name, text in modules(Path(sysconfig.get_paths()["stdlib"]), settings.shortest, settings.longest):
        digest = hashlib.sha256(name.encode()).digest()
        split = "held_out" if int.from_bytes(digest[:8]) < HELD_OUT * 2**64 else "train"
        for example in examples(name, text, random.Random(digest), settings.kinds):
            files[split].write(json.dumps(example, ensure_ascii=False) + "\n")
            counts[split, example["kind"]] += 1
    for file in files.values():
        file.close()
    for (split, kind), count in sorted(counts.items()):
        print(f"{settings.out}/{split}.jsonl: {count:,} {kind} conversations")


def modules(library: Path, shortest: int, longest: int) -> Iterator[tuple[str, str]]:
    """Yield the name and source of each module of a library with a length in this range in characters, sorted."""
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        if any(part.startswith("test") or part in LEFT_OUT for part in relative.parts):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if shortest <= len(text) <= longest and not any(token in text for token in MARKUP):
            yield relative.as_posix(), text


def examples(module: str, text: str, generator: random.Random, kinds: Collection[str]) -> Iterator[dict]:
    """Yield a long and a short conversation, or one of them, about some functions and classes of a module."""
    found = list(asked(text))
    for one in generator.sample(found, min(A_MODULE, len(found))):
        about_signature = one.signature is not None and generator.random() < 0.5
        question = f"What is the signature of `{one.name}`?" if about_signature else f"What does `{one.name}` do?"
        answer = one.signature if about_signature else one.summary
        for kind, context in zip(KINDS, (text, one.source), strict=True):
            if kind not in kinds:
                continue
            messages = [
                {"role": "user", "content": f"{context.strip()}\n\n{question}"},
                {"role": "assistant", "content": answer},
            ]
            facts = {"context": context, "question": question, "answer": answer, "kind": kind, "module": module}
            yield {"messages": messages, **facts}


def asked(text: str) -> Iterator[Asked]:
    """Yield a module's functions and classes that have a docstring of some words and a name defined only once."""
    try:
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    except (SyntaxError, ValueError):
        return
    times = Counter(node.name for node in nodes)
    for node in nodes:
        docstring = ast.get_docstring(node)
        if not docstring or times[node.name] > 1 or node.name.startswith("__"):
            continue
        summary = " ".join(docstring.split("\n\n")[0].split())
        signature = f"{node.name}({ast.unparse(node.args)})" if isinstance(node, ast.FunctionDef) else None
        if len(summary) in ANSWER and (signature is None or len(signature) in ANSWER):
            source = ast.get_source_segment(text, node)
            if len(source) <= FUNCTION:
                yield Asked(node.name, source, summary, signature)


if __name__ == "__main__":
    main()
