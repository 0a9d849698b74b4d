"""lm-evaluation-harness takes an export as it is, and finds the probabilities and answers that our evaluation finds.

It is installed into a folder of the test's own, with the torch and the transformers that are here.
"""

import json
import os
import subprocess
import sys

import pytest

from rotary_foundry.evaluation.causal_models import open_causal_model
from rotary_foundry.evaluation.suites import find_suites
from rotary_foundry.interop.importing import import_model
from tests.evaluation.decoders import save_decoder

PACKAGES = (
    *("lm-eval==0.4.13", "evaluate", "rouge-score", "sacrebleu", "portalocker", "tabulate", "lxml", "colorama"),
    *("sqlitedict", "word2number", "more-itertools", "jsonlines", "pytablewriter", "DataProperty", "mbstrdecoder"),
    *("pathvalidate", "tabledata", "tcolorpy", "typepy", "chardet"),
)
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{context}}}}\\n\\nQ: {{{{question}}}}\\nA:"
"""
CHOICE = "doc_to_choice: '{{choices}}'\ndoc_to_target: '{{answer}}'\nmetric_list: [{metric: acc}]\n"
GENERATION = """
doc_to_target: '{{choices[answer]}}'
generation_kwargs: {until: ["\\n\\n\\n"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match}]
"""
LINES = [
    {"context": "the token attends", "question": "which window?", "choices": ["document", "window of"], "answer": n % 2}
    for n in range(2)
]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_harness_runs_on_an_export_and_finds_our_numbers(tmp_path):
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "packages"]
    installed = subprocess.run([*install, *PACKAGES], capture_output=True, text=True)
    if installed.returncode:
        why = installed.stderr.strip().splitlines()[-1]
        pytest.skip(f"needs a package registry; lm-eval cannot be installed: {why}")
    import_model(save_decoder(tmp_path / "llama"), tmp_path / "export")
    data, tasks = tmp_path / "questions.jsonl", tmp_path / "tasks"
    data.write_text("".join(json.dumps(line | {"n": n}) + "\n" for n, line in enumerate(LINES)))
    tasks.mkdir()
    for name, kind, rest in (("choice", "multiple_choice", CHOICE), ("answer", "generate_until", GENERATION)):
        (tasks / f"{name}.yaml").write_text(TASK.format(name=name, data=data, kind=kind) + rest)
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--tasks", "choice,answer", "--device", "cpu"]
    command += ["--model_args", f"pretrained={tmp_path / 'export'},dtype=float32", "--include_path", tasks]
    command += ["--output_path", tmp_path / "out", "--log_samples"]
    alone = {"HF_HOME": tmp_path / "hf", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    alone["PYTHONPATH"] = tmp_path / "packages"
    ran = subprocess.run(command, env=os.environ | {key: str(value) for key, value in alone.items()}, text=True)
    assert not ran.returncode

    model = open_causal_model(tmp_path / "export", find_suites(["recall"])[0].config)
    (found,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(found.read_text())["results"]["choice"]["acc,none"] == 0.5  # the same choice, right once
    for name in ("choice", "answer"):
        (file,) = (tmp_path / "out").rglob(f"samples_{name}_*.jsonl")
        samples = [json.loads(line) for line in file.read_text().splitlines()]
        assert len(samples) == 2
        for sample in samples:
            for asked, said in zip(sample["arguments"].values(), sample["resps"], strict=True):
                context, after = asked["arg_0"], asked["arg_1"]
                assert context == "the token attends\n\nQ: which window?\nA:"
                if name == "answer":
                    assert said[0] == model.generate(model.row(model.encode(context).ids), 6)
                    continue
                ids = model.encode(context + after).ids
                loss = model.score(model.row(ids), len(ids) - len(model.encode(context).ids)).loss
                assert float(said[0][0]) == pytest.approx(-loss.sum(), abs=1e-3)
