"""A tiny corpus, a tiny recipe with every part of a real one, and the real `composer` command."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from tests.forked_composer import composer, script

REPOSITORY = Path(__file__).parents[2]
TAMPERED_LAUNCH = Path(__file__).parent / "tampered_launch.py"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
WORDS = [first + second for first in ("ba", "du", "ki", "lo", "me") for second in ("n", "rt", "s", "x", "l", "ff")]
PLANTED, PLANTED_KEY = "planted-in-the-environment", "planted0" * 5  # secrets

RECIPE = """
extends: [{nano}]
run_name: tiny
runs_folder: {folder}/runs
precision: fp32
progress_bar: false
model: {{vocab_size: 448, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 3, num_attention_heads: 2}}
data: {{local: {folder}/data, sources: [one, two]}}
save_interval: 2ba
rollback: {{at: {{token: 5000tok, to: 2600tok, lr: 4e-3, weight_decay: 1e-3, data: advance}}}}
stages:
  pretrain: {{duration: 6144tok, row_length: 64, rope_theta: 10000, global_train_batch_size: 12,
     device_train_microbatch_size: 3, lr: 5e-3, t_warmup: 1000tok,
     batch_size_ramp: {{initial: 4, increment: 4, duration: 3072tok}}}}
  extend: {{duration: 4096tok, row_length: 256, rope_theta: 160000, global_train_batch_size: 4,
     device_train_microbatch_size: 1, lr: 3e-3, local_rope_theta: {{start: 10000, end: 20000}}}}
  decay: {{duration: 4096tok, row_length: 256, rope_theta: 160000, global_train_batch_size: 4,
     device_train_microbatch_size: 1, lr: 3e-3, t_decay: 1dur, alpha_f: 0.001, mixture: {{one: 0.3, two: 0.7}},
     mlm_probability: {{start: 0.3, end: 0.1, shape: cosine}}}}
"""
CORPUS = """
sources:
  one: {{reader: jsonl, path: {folder}/one.jsonl}}
  two: {{reader: jsonl, path: {folder}/two.jsonl}}
tokenizer: {{train: {{vocab_size: 448}}}}
row_lengths: [64, 256]
validation: 0.1
out: {folder}/data
"""


@dataclass(frozen=True)
class Tiny:
    """A folder with a prepared corpus and a recipe over it."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "tiny.yaml"

    def launch(self, *overrides: str, ranks: int = 2, script: Path = REPOSITORY / "launch", **environment: str):
        """Run `composer` without its imports (tests/forked_composer.py) and return the finished process."""
        arguments = ["-n", str(ranks), str(script), str(self.recipe), *overrides]
        return composer(arguments, REPOSITORY, os.environ | ONE_THREAD | environment, timeout=280)

    def launch_anew(self, *overrides: str):
        """Run the real `composer` command on two ranks and return the finished process, its output as text."""
        command = str(Path(sys.executable).parent / "composer")
        return subprocess.run(
            [command, "-n", "2", "launch", str(self.recipe), *overrides],
            cwd=REPOSITORY,
            env=os.environ | ONE_THREAD,
            capture_output=True,
            text=True,
            timeout=280,
        )

    def launch_rank(self, rank: int, *overrides: str):
        """Run what `composer -n 2` starts, one of the two processes alone: it saves the launcher's own ten seconds."""
        environment = os.environ | ONE_THREAD | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        return script(["launch", str(self.recipe), *overrides], REPOSITORY, environment, timeout=280)


@pytest.fixture(scope="session", autouse=True)
def own_temporary_folder(tmp_path_factory):
    """Streaming keeps its locks in TMPDIR and scans past those that killed runs left behind."""
    folder = tmp_path_factory.mktemp("tmp")
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    yield
    os.environ.pop("TMPDIR")
    if before is not None:
        os.environ["TMPDIR"] = before


def made_once(tmp_path_factory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that is made by the first of pytest-xdist's processes that needs it, and shared by all."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / name
    with FileLock(root / f"{name}.lock"):
        if not (root / f"{name}.made").exists():
            make(folder)
            (root / f"{name}.made").touch()
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    return Tiny(made_once(tmp_path_factory, "tiny", _write_tiny))


def _write_tiny(folder: Path) -> None:
    folder.mkdir()
    for seed, name in enumerate(("one", "two")):
        generator = random.Random(seed)
        texts = [" ".join(generator.choices(WORDS, k=generator.randint(20, 200))) for _ in range(120)]
        (folder / f"{name}.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    (folder / "corpus.yaml").write_text(CORPUS.format(folder=folder))
    subprocess.run(
        [sys.executable, "data_prep", str(folder / "corpus.yaml")], cwd=REPOSITORY, check=True, capture_output=True
    )
    Tiny(folder).recipe.write_text(RECIPE.format(folder=folder, nano=REPOSITORY / "yamls/main/nano.yaml"))


@pytest.fixture(scope="session")
def undisturbed(tiny, tmp_path_factory) -> Path:
    """The run folder of a run on two ranks that nothing disturbed."""

    def make(_: Path) -> None:
        run = tiny.launch()
        assert run.returncode == 0, run.stderr[-4000:]

    made_once(tmp_path_factory, "undisturbed", make)
    return tiny.folder / "runs/tiny"


@pytest.fixture(scope="session")
def alone(tiny, tmp_path_factory) -> Path:
    """The run folder of a run of one process, with both loggers, a rollback, and secrets where one may put them."""
    made_once(tmp_path_factory, "alone", lambda _: _run_alone(tiny))
    return tiny.folder / "runs/alone"


def _run_alone(tiny: Tiny) -> None:
    wandb = {
        "project": "tiny",
        "tags": [f"of-{PLANTED}"],
        "checkpoint_references": True,
        "init_kwargs": {"mode": "offline", "notes": f"by {PLANTED_KEY}", "settings": {"api_key": PLANTED_KEY}},
    }
    run = tiny.launch(
        *("run_name=alone", "data.num_workers=2", "stages.pretrain.device_train_microbatch_size=5"),
        "stages.decay.device_train_microbatch_size=3",  # where the mask rate moves
        *(f"loggers.wandb={json.dumps(wandb)}", "loggers.tensorboard={}"),
        ranks=1,
        script=TAMPERED_LAUNCH,
        STORE_SECRET_KEY=PLANTED,
    )
    assert run.returncode == 0, run.stderr[-4000:]
