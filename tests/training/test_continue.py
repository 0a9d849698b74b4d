"""Continued pretraining, as yamls/main/continue.yaml has it: from CSV to a model that is better on its domain."""

import csv
import os
import random
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import stdev

import pytest
import torch
from omegaconf import OmegaConf

from rotary_foundry import load_model, load_recipe
from rotary_foundry.data.corpus import open_corpus
from rotary_foundry.data.loaders import RunData
from rotary_foundry.interop.export import export_checkpoint
from rotary_foundry.models.modernbert.network import ModernBert
from rotary_foundry.recipe import Recipe
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.training.first_weights import check_init_from
from rotary_foundry.utils.errors import DataError
from tests.command import output_of
from tests.permuted import permuted

from .conftest import REPOSITORY, WORDS, Tiny

pytestmark = pytest.mark.long
CONTINUE, DATA = REPOSITORY / "yamls/main/continue.yaml", REPOSITORY / "yamls/data/continue.yaml"
NOISE = 3  # standard errors that a gain has to be above


class Continued(Tiny):
    """A folder with a domain's and general shards, over which continue.yaml is run."""

    @property
    def recipe(self) -> Path:
        return CONTINUE


def write_csv(path: Path, texts: Iterable[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["number", "text"], *enumerate(texts)])


@torch.no_grad()
def by_row(model: ModernBert, recipe: Recipe, *sources: str) -> list[tuple[float, int]]:
    """Every held-out row of some sources: its summed loss, and of how many masked tokens."""
    stage = replace(recipe.stages["continue"], device_train_microbatch_size=1)
    recipe = replace(recipe, data=replace(recipe.data, sources=list(sources)), stages={"continue": stage})
    loader = RunData(recipe, open_corpus(recipe)).eval_loader("continue")
    outputs = [model(batch["input_ids"], batch["cu_seqlens"], batch["row_length"], batch["labels"]) for batch in loader]
    return [(output.cross_entropy.item(), int(output.tokens)) for output in outputs]


def mean(rows: list[tuple[float, int]]) -> float:
    return sum(loss for loss, _ in rows) / sum(tokens for _, tokens in rows)


def gain(before: list[tuple[float, int]], after: list[tuple[float, int]]) -> tuple[float, float]:
    """By how many nats per token the loss fell, and the standard error of that over rows, each with the same masks."""
    fell = mean(before) - mean(after)
    apart = [first - last - fell * tokens for (first, tokens), (last, _) in zip(before, after, strict=True)]
    return fell, stdev(apart) * len(apart) ** 0.5 / sum(tokens for _, tokens in before)


@pytest.fixture(scope="module")
def continued(tiny, undisturbed) -> Continued:
    """A tiny model, of words drawn alike, that went on with a domain of some of the words."""
    folder = Continued(tiny.folder / "continued")
    folder.folder.mkdir()
    export_checkpoint(undisturbed, folder.folder / "model")
    draw = random.Random(0)
    texts = (" ".join(draw.choices(WORDS[:6], k=draw.randint(20, 200))) for _ in range(120))
    write_csv(folder.folder / "my_csv/a.csv", texts)
    subprocess.run(
        [
            *(sys.executable, "data_prep", DATA, f"tokenizer.path={folder.folder}/model", "row_lengths=[64]"),
            *(f"sources.domain.path={folder.folder}/my_csv/*.csv", f"sources.general.path={tiny.folder}/one.jsonl"),
            *("validation=0.1", f"out={folder.folder}/data"),
        ],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    run = folder.launch(*overrides(folder))
    assert run.returncode == 0, run.stderr[-4000:]
    return folder


def overrides(continued: Continued) -> list[str]:
    folder = continued.folder
    paths = [f"init_from={folder}/model", f"data.local={folder}/data", f"runs_folder={folder}/runs"]
    sizes = {"row_length": 64, "global_train_batch_size": 8, "device_train_microbatch_size": 4, "duration": "20_480tok"}
    stage = [f"stages.continue.{key}={value}" for key, value in (sizes | {"lr": 3e-3}).items()]
    return [*paths, *stage, "precision=fp32", "data.num_workers=0", "progress_bar=false"]


def test_a_model_goes_on_in_its_own_shape_and_theta_and_gets_better_on_its_domain(continued, undisturbed, tmp_path):
    run = RunFolder(continued.folder / "runs/continue")
    recipe, source = load_recipe(run.recipe), load_recipe(undisturbed / "recipe.yaml")
    assert recipe.model.shape == source.model.shape
    assert recipe.knobs_of("continue")["rope_theta"] == source.stages["decay"].rope_theta == 160_000
    output_of("export", run.path, tmp_path / "export")
    models = load_model(continued.folder / "model"), load_model(tmp_path / "export")
    fell, noise = gain(*(by_row(model, recipe, "domain") for model in models))
    assert fell > NOISE * noise > 0
    first, last = run.records(run.evaluations)
    for record, model in zip((first, last), models, strict=True):
        assert record["loss"] == pytest.approx(mean(by_row(model, recipe, *recipe.data.sources)), rel=1e-4)
    assert first["batch"] == 0 and last["rope_theta"] == 160_000


def test_the_same_command_goes_on_though_the_model_is_gone(continued):
    (continued.folder / "model").rename(continued.folder / "gone")
    try:
        recipe = load_recipe(CONTINUE, overrides(continued))
        assert recipe == load_recipe(continued.folder / "runs/continue/recipe.yaml")
        check_init_from(recipe)
    finally:
        (continued.folder / "gone").rename(continued.folder / "model")


def test_shards_of_another_tokenizer_are_refused_before_a_run_begins(continued, tmp_path):
    permuted(continued.folder / "data/tokenizer", tmp_path / "tokenizer")
    recipe = load_recipe(CONTINUE, [*overrides(continued), "run_name=other", f"data.local={tmp_path}"])
    with pytest.raises(DataError, match=r"^'init_from': .*: id \d+ is 'd', and 'b' to the model; prepare the data "):
        check_init_from(recipe)


def test_a_launch_without_a_model_to_go_on_from_is_refused_in_a_line(continued):
    refused = continued.launch_rank(0)
    assert refused.returncode == 2
    assert refused.stderr.startswith(
        f"error: {CONTINUE}: 'model.family' is required and not given; set it, or set 'init_"
    )
    assert len(refused.stderr.splitlines()) == 1


def run(*arguments: object) -> None:
    finished = subprocess.run(
        [str(argument) for argument in arguments],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]


@pytest.mark.timeout(3600)
def test_a_nano_model_learns_cplusplus_from_csv_and_with_replay_forgets_less(tmp_path):
    """The README's walk-through, from a source of a third of nano's tokens."""
    composer = (Path(sys.executable).parent / "composer", "-n", "2", "launch")
    run(sys.executable, "data_prep", "yamls/data/nano.yaml", f"out={tmp_path}/data/nano", "row_lengths=[1024]")
    nano = load_recipe("yamls/main/nano.yaml")
    stage = replace(nano.stages["pretrain"], duration="393_216tok", batch_size_ramp=None, t_decay="0.3dur")
    source = replace(
        nano,
        data=replace(nano.data, local=f"{tmp_path}/data/nano"),
        precision="fp32",
        runs_folder=f"{tmp_path}/runs",
        stages={"pretrain": stage},
    )
    (tmp_path / "nano.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(source)))
    run(*composer, tmp_path / "nano.yaml")
    headers = sorted((Path(find_spec("torch").origin).parent / "include/torch/csrc").rglob("*.h"))
    write_csv(tmp_path / "my_csv/headers.csv", (path.read_text(encoding="utf-8") for path in headers))
    model = tmp_path / "model"
    output_of("export", tmp_path / "runs/nano", model)
    run(
        *(sys.executable, "data_prep", DATA, f"tokenizer.path={model}", f"sources.domain.path={tmp_path}/my_csv/*.csv"),
        *("sources.general={reader: python_docstrings}", "row_lengths=[1024]", "validation=0.05"),
        f"out={tmp_path}/data/continue",
    )
    shared = [f"init_from={model}", f"data.local={tmp_path}/data/continue", f"runs_folder={tmp_path}/runs"]
    shared += ["data.num_workers=0", "stages.continue.row_length=1024", "stages.continue.global_train_batch_size=8"]
    shared += ["stages.continue.device_train_microbatch_size=4", "stages.continue.duration=300_000tok"]
    shared += ["stages.continue.lr=1e-3", "precision=fp32"]
    run(*composer, CONTINUE, *shared)
    run(*composer, CONTINUE, *shared, "run_name=alone", "data.sources=[domain]", "stages.continue.mixture=null")
    recipe = load_recipe(tmp_path / "runs/continue/recipe.yaml")
    for name in ("continue", "alone"):
        output_of("export", tmp_path / "runs" / name, tmp_path / name)
    before, after, alone = (load_model(tmp_path / name) for name in ("model", "continue", "alone"))
    fell, noise = gain(by_row(before, recipe, "domain"), by_row(after, recipe, "domain"))
    assert fell > NOISE * noise > 0
    replayed, noise = gain(by_row(alone, recipe, "general"), by_row(after, recipe, "general"))
    assert replayed > NOISE * noise > 0
