"""`data trace`: what an update is said to have seen is what the loaders gave it, through ramp, stages and rollback."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from rotary_foundry import load_recipe
from rotary_foundry.cli import main
from rotary_foundry.data.batches import update_digest
from rotary_foundry.data.corpus import TOKENIZER_FILES, open_corpus
from rotary_foundry.data.loaders import RunData
from rotary_foundry.data_prep.inspection.shard_folder import ShardFolder
from rotary_foundry.data_prep.inspection.trace import trace
from rotary_foundry.recipe.compilation import compile_stages, set_rollback
from rotary_foundry.runs.record_files import append_line
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.utils.errors import ConfigurationError, DataError

REPOSITORY = Path(__file__).parents[3]
RECIPE = """
extends: [{nano}]
run_name: tiny
model: {{vocab_size: 384}}
data: {{local: {data}, sources: [mine, yours]}}
rollback: {{at: {{token: 5000tok, to: 2600tok, data: advance}}}}
stages:
  pretrain: {{duration: 6144tok, row_length: 64, global_train_batch_size: 12, t_warmup: 1000tok,
     batch_size_ramp: {{initial: 4, increment: 4, duration: 3072tok}}}}
  extend: {{duration: 16_384tok, row_length: 256, global_train_batch_size: 4}}
  decay: {{duration: 4096tok, row_length: 256, global_train_batch_size: 4, mixture: {{mine: 0.3, yours: 0.7}}}}
"""


@dataclass(frozen=True)
class Run:
    """A run's folder, and the rows that the loaders gave each update: (source, row of its folder, ids)."""

    folder: RunFolder
    seen: dict[tuple[int, int], list[tuple[str, int, list[str]]]]  # by rollbacks before it, and update

    def of_trace(self, update: int, before_rollback: int | None = None) -> list[tuple[str, int, list[str]]]:
        rows = trace(self.folder.path, update, before_rollback).rows
        return [(row.source, row.row, row.documents) for row in rows]


@pytest.fixture(scope="module")
def run(tree, tmp_path_factory) -> Run:
    """What a run leaves behind, without a model: up to its set rollback, and from there to the end."""
    run = Run(RunFolder(tmp_path_factory.mktemp("tiny")), {})
    given = run.folder.path / "tiny.yaml"
    given.write_text(RECIPE.format(nano=REPOSITORY / "yamls/main/nano.yaml", data=tree.root))
    recipe = load_recipe(given)
    run.folder.recipe.write_text(OmegaConf.to_yaml(OmegaConf.structured(recipe)), encoding="utf-8")
    data = RunData(recipe, open_corpus(recipe))
    rollback = set_rollback(recipe, compile_stages(recipe))
    for rollbacks, token, end in (([], 0, rollback.token), ([rollback], rollback.to_token, None)):
        plan = compile_stages(recipe).after(rollbacks)
        while token < (end or plan.total_tokens):
            loader, segment = data.train_loader(plan, token), plan.segment_at(token)
            for batch, samples in DataLoader(
                loader.dataset,
                batch_size=loader.batch_size,
                collate_fn=lambda samples, collate=loader.collate_fn: (collate(samples), samples),
            ):
                token += segment.tokens_per_update
                update = plan.at(token).update
                line = {"batch": update, "token": token, "rollbacks": len(rollbacks)}
                append_line(run.folder.metrics, line | {"rows_digest": update_digest(batch["row_digests"])})
                seen = run.seen[len(rollbacks), update] = []
                for sample in samples:
                    folder = tree.root / sample["source"] / str(segment.row_length) / "train"
                    first_row = len(tree.rows[tree.root / f"mine/{segment.row_length}/train"])
                    row = sample["row"] - (0 if sample["source"] == "mine" else first_row)
                    seen.append((sample["source"], row, tree.rows[folder][row]))
                if token == end:
                    break
        if end is not None:
            append_line(run.folder.ledger, asdict(rollback))
    return run


@pytest.mark.long  # tests/training/test_trace.py traces a real run
def test_every_update_is_traced_to_the_rows_and_documents_that_it_saw(run):
    recipe = load_recipe(run.folder.recipe)
    plan = compile_stages(recipe).after(run.folder.rollbacks())
    (rollback,) = run.folder.rollbacks()
    kept_from = plan.at(rollback.to_token).update
    for update in range(1, plan.total_updates + 1):
        assert run.of_trace(update) == run.seen[int(update > kept_from), update], update
    assert [trace(run.folder.path, update).stage for update in (1, plan.total_updates)] == ["pretrain", "decay"]
    extend = next(segment for segment in plan.segments if segment.stage == "extend")
    updates = range(extend.start_update + 1, extend.start_update + extend.updates + 1)
    extended = [row[:2] for update in updates for row in run.seen[1, update]]
    assert len(set(extended)) < len(extended)  # over an epoch's end


def test_an_update_that_a_rollback_abandoned_is_traced_as_it_was(run):
    abandoned = [update for rollbacks, update in run.seen if not rollbacks and (1, update) in run.seen]
    assert abandoned
    for update in abandoned:
        assert run.of_trace(update, before_rollback=1) == run.seen[0, update]
        assert run.of_trace(update) == run.seen[1, update] != run.seen[0, update]


def test_json_has_the_rows_and_where_they_stand(run, tree, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["rotary-foundry", "data", "trace", str(run.folder.path), "--update=3", "--json"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 0
    traced = json.loads(capsys.readouterr().out)
    plan = compile_stages(load_recipe(run.folder.recipe))
    assert {key: traced[key] for key in ("update", "stage", "row_length", "token")} == {
        "update": 3,
        "stage": "pretrain",
        "row_length": 64,
        "token": 2 * plan.segments[0].tokens_per_update,
    }
    for row in traced["rows"]:
        entries = json.loads((tree.root / row["source"] / "64/train/index.json").read_text())["shards"]
        before = 0
        for entry in entries:
            if entry["zip_data"]["basename"] == row["shard"]:
                break
            before += entry["samples"]
        assert before + row["row_in_shard"] == row["row"]


@pytest.mark.long
def test_a_live_run_that_trains_from_a_remote_is_traced_from_what_its_cache_has_and_from_there(run, copied, tmp_path):
    cache = tmp_path / "cache"
    shutil.copytree(copied / "tokenizer", cache / "tokenizer")
    for name in TOKENIZER_FILES:
        (cache / "tokenizer" / name).touch()
    source, row, _ = run.seen[0, 1][0]
    folder = ShardFolder(copied / source / "64/train")
    shard = folder.shard_of(row)
    raw = cache / source / "64/train" / shard.reader.raw_data.basename  # a cache keeps shards decompressed
    raw.parent.mkdir(parents=True)
    raw.write_bytes(folder.raw(shard))
    (folder.path / shard.name).unlink()
    elsewhere = Path(shutil.copytree(run.folder.path, tmp_path / "run"))
    recipe = OmegaConf.load(run.folder.recipe)
    recipe.data.local, recipe.data.remote = str(cache), str(copied)
    OmegaConf.save(recipe, elsewhere / "recipe.yaml")
    code = "from rotary_foundry import load_recipe; from rotary_foundry.data.corpus import open_corpus; "
    code += f"open_corpus(load_recipe({str(elsewhere / 'recipe.yaml')!r})); print('locked', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as live_run:
        assert live_run.stdout.readline() == b"locked\n"
        traced = trace(elsewhere, 1)
        live_run.communicate(b"\n")
    assert [(row.source, row.row, row.documents) for row in traced.rows] == run.seen[0, 1]
    assert len({row.shard for row in traced.rows}) > 1
    assert list(cache.rglob("*.mds*")) == [raw]


def test_shards_that_the_run_was_not_trained_on_are_refused(run, copied, tmp_path):
    shutil.copytree(copied / "yours", copied / "mine", dirs_exist_ok=True)
    for manifest in (copied / "mine").rglob("manifest.json"):
        manifest.write_text(manifest.read_text().replace('"yours"', '"mine"'))
    elsewhere = Path(shutil.copytree(run.folder.path, tmp_path / "run"))
    recipe = OmegaConf.load(run.folder.recipe)
    recipe.data.local = str(copied)
    OmegaConf.save(recipe, elsewhere / "recipe.yaml")
    with pytest.raises(DataError, match="not the shards that update 2 was trained on"):
        trace(elsewhere, 2)


def test_a_run_is_traced_from_any_folder_and_from_data_that_were_moved(run, tree, tmp_path, monkeypatch):
    elsewhere = RunFolder(Path(shutil.copytree(run.folder.path, tmp_path / "run")))
    recipe = OmegaConf.load(run.folder.recipe)
    recipe.data.local = tree.root.name  # as it was given where the run was started
    OmegaConf.save(recipe, elsewhere.recipe)
    elsewhere.environment.write_text(json.dumps({"working_directory": str(tree.root.parent)}))
    monkeypatch.chdir(tmp_path)
    expected = [row.row for row in trace(run.folder.path, 2).rows]
    assert [row.row for row in trace(elsewhere.path, 2).rows] == expected
    elsewhere.environment.write_text(json.dumps({"working_directory": "/started/here"}))
    assert [row.row for row in trace(elsewhere.path, 2, data=str(tree.root)).rows] == expected
    says = (
        rf"recipe\.yaml: data\.local: /started/here/{tree.root.name}: no such folder; .* --data FOLDER to `data trace`"
    )
    with pytest.raises(DataError, match=says):
        trace(elsewhere.path, 2)


def test_what_cannot_be_traced_is_refused_in_a_line(run, tmp_path):
    early = Path(shutil.copytree(run.folder.path, tmp_path / "early"))
    lines = RunFolder(early).metrics.read_text().splitlines(keepends=True)
    RunFolder(early).metrics.write_text("".join(lines[:4]))
    RunFolder(early).ledger.unlink()
    last = compile_stages(load_recipe(run.folder.recipe)).total_updates
    for arguments, complaint in (
        ((tmp_path, 1), "not a run folder"),
        ((early, 5), "has not reached update 5; its last one is 4"),
        ((early, 0), f"no update 0; its plan has updates 1 to {last}"),
        ((early, last + 1), f"no update {last + 1}; its plan has"),
        ((early, 1, 1), "no rollback 1; the run has had 0"),
    ):
        with pytest.raises(ConfigurationError, match=complaint):
            trace(*arguments)
