"""A RoFormerV2 of two layers through every Chinese task from packages."""

import json

import pytest

from rotary_foundry.data_prep.labelled import chinese_packages
from rotary_foundry.finetuning.example_encoding import prepare
from rotary_foundry.finetuning.finetune_config import load_finetune_config
from rotary_foundry.finetuning.job import run_job
from rotary_foundry.finetuning.search import job_settings
from tests.data_prep.labelled.chinese_packages_made import write_packages


@pytest.mark.parametrize("name", chinese_packages.PACKAGES)
def test_every_task_runs_from_its_yaml(roformer, tmp_path, name):
    texts = write_packages(tmp_path / "texts")
    settings = [f"model={roformer}", f"data_path={texts}", "search.max_duration=[1ep]"]
    config = load_finetune_config("yamls/finetune/chinese.yaml", settings)
    data = prepare(config, name, tmp_path / name / "data")
    shared, grid = job_settings(config, name, data)
    folder = tmp_path / name / "point/seed"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(shared | grid[0] | {"seed": 1}))
    result = run_job(folder)
    assert 0 <= result["score"] <= 1
    assert list(result["metrics"]) == config.of(name).metrics
