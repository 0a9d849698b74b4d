"""Compare our way from text to shards with the tokenizer alone and with LLM Foundry's method, on the same real text.

The text is Python source from this environment's packages, in JSONL files. Each contender is a separate process and
has both cores, and all use the same tokenizer. Ours is the whole command `python data_prep`, from its start to its
end: reading, hashing, splitting, finding duplicates, tokenising, packing for two row lengths, compressing, hashing.
LLM Foundry's method is one `datasets` map that tokenises and concatenates, then `MDSWriter`, for one row length, as in
its `convert_dataset_hf.py` and `ConcatTokensDataset`; it neither splits the data nor looks for duplicates.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE_BYTES = 16_000_000
ROW_LENGTHS = (1024, 8192)


def write_corpus(folder: Path, megabytes: int) -> Path:
    """Write JSONL files with `megabytes` MB of Python source, and return their folder. If there is not enough source,
    start again from the beginning and add a first line to each text, so that nothing is a duplicate."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = _sources()
    for number in range(megabytes * 1_000_000 // FILE_BYTES):
        size = 0
        with open(folder / f"{number:05d}.jsonl", "w", encoding="utf-8") as lines:
            while size < FILE_BYTES:
                text = next(sources)
                size += len(text.encode())
                lines.write(json.dumps({"text": text}) + "\n")
    return folder


def _sources() -> Iterator[str]:
    files = sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.py"))
    turn = 0
    while True:
        for file in files:
            text = file.read_bytes().decode("utf-8", "ignore")
            if 200 < len(text) < 300_000:
                yield f"# {turn}\n{text}" if turn else text
        turn += 1


def make_tokenizer(corpus: Path, directory: Path) -> Path:
    """Train a tokenizer of 50,368 ids on the first file of a corpus; return its directory."""
    from rotary_foundry.data_prep.tokenizer import save_trained, train_tokenizer

    lines = min(corpus.glob("*.jsonl")).read_text(encoding="utf-8").splitlines()
    save_trained(train_tokenizer((json.loads(line)["text"] for line in lines), 50_368), directory, max(ROW_LENGTHS))
    return directory


def prepare(corpus: Path, out: Path, tokenizer: Path) -> list[str]:
    """Write the corpus's YAML, and return the command that prepares it."""
    shutil.rmtree(out, ignore_errors=True)
    config = out.with_suffix(".yaml")
    config.write_text(
        json.dumps(
            {
                "sources": {"code": {"reader": "jsonl", "path": f"{corpus}/*.jsonl"}},
                "tokenizer": {"path": str(tokenizer)},
                "row_lengths": list(ROW_LENGTHS),
                "out": str(out),
            }
        )
    )
    return [sys.executable, "data_prep", str(config)]


def tokenise_alone(corpus: Path, tokenizer: Path) -> float:
    """Return the seconds that `encode_batch_fast` takes for the texts, without reading them."""
    command = [sys.executable, __file__, "alone", str(corpus), str(tokenizer)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.split()[-1])


def foundrys_way(corpus: Path, out: Path, tokenizer: Path) -> list[str]:
    """Return the command that runs `datasets` and `MDSWriter`."""
    shutil.rmtree(out, ignore_errors=True)
    return [sys.executable, __file__, "foundry", str(corpus), str(tokenizer), str(out)]


def seconds_of(command: list[str]) -> float:
    """Return the seconds that a command takes."""
    start = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def memory_of(command: list[str]) -> float:
    """Return the peak MiB of a command's process and its descendants together, with shared memory counted once."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    most = 0.0
    while process.poll() is None:
        most = max(most, sum(map(_memory, _tree(process.pid))))
        time.sleep(0.5)
    if process.returncode:
        raise RuntimeError(f"{command}: status {process.returncode}")
    return most


def _tree(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except FileNotFoundError:
        return []
    return [pid, *(below for child in children for below in _tree(int(child)))]


def _memory(pid: int) -> float:
    """Return the MiB of a process, with shared memory divided among the processes that share it."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


def _texts(corpus: Path) -> list[str]:
    files = sorted(corpus.glob("*.jsonl"))
    return [json.loads(line)["text"] for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def _alone(corpus: Path, directory: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    texts = _texts(corpus)
    start = time.perf_counter()
    for first in range(0, len(texts), 1000):
        tokenizer.encode_batch_fast(texts[first : first + 1000], add_special_tokens=False)
    print(time.perf_counter() - start)


def _foundry(corpus: Path, directory: Path, out: Path) -> None:
    import numpy as np
    from datasets import load_dataset
    from streaming import MDSWriter
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    length, ends = ROW_LENGTHS[0], [tokenizer.sep_token_id]

    def concatenated(batch: dict) -> dict:
        buffer: list[int] = []
        for ids in tokenizer(batch["text"], truncation=False, padding=False)["input_ids"]:
            buffer += ids + ends
        return {"tokens": [buffer[at : at + length] for at in range(0, len(buffer) - length + 1, length)]}

    cache = str(out.with_suffix(".cache"))
    shutil.rmtree(cache, ignore_errors=True)
    rows = load_dataset("json", data_files=f"{corpus}/*.jsonl", split="train", cache_dir=cache).map(
        concatenated, batched=True, num_proc=len(os.sched_getaffinity(0)), remove_columns=["text"]
    )
    with MDSWriter(out=str(out), columns={"tokens": "ndarray:int32"}, compression="zstd") as writer:
        for row in rows:
            writer.write({"tokens": np.array(row["tokens"], dtype=np.int32)})


if __name__ == "__main__":
    what, *paths = sys.argv[1:]
    {"alone": _alone, "foundry": _foundry}[what](*map(Path, paths))
