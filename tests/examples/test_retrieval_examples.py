"""The scripts in examples/ train a tiny export on pairs it can learn, offline, and save what their libraries load."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ModernBertModel

from tests.retrieval import DOCUMENTS, QUERIES, no_network, tiny_encoder

__all__ = ["no_network", "tiny_encoder"]  # fixtures, here too

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = ("dense_retrieval.py", "multi_vector_retrieval.py", "reranker.py")


@pytest.fixture
def run(tiny_encoder, tmp_path, monkeypatch, capsys, no_network):
    """Runs an example on ten copies of the twelve pairs, of which the last copy is what it measures with."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model is slower with more, on a busy machine a hundred times
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"query": query, "positive": document} for query, document in zip(QUERIES, DOCUMENTS, strict=True)] * 10
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def go(
        script: str, *more: str, data: str | None = str(pairs), model: Path = tiny_encoder
    ) -> tuple[Path, float, float, str]:
        out = tmp_path / script.removesuffix(".py")
        given = [script, str(model), str(out), *(["--data", data] if data else []), *more]
        monkeypatch.setattr(sys, "argv", given)
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        said = capsys.readouterr().out
        before, after = re.search(r"nDCG@10 of .* queries: (\S+) before, (\S+)", said).groups()
        assert not no_network
        return out, float(before), float(after), said

    yield go
    torch.set_num_threads(threads)


def test_a_dense_retriever_learns_its_pairs(run):
    from sentence_transformers import SentenceTransformer

    out, before, after, _ = run("dense_retrieval.py", "--epochs", "5", "--batch-size", "12", "--lr", "5e-3")
    assert before < 0.8 < after
    model = SentenceTransformer(str(out), device="cpu")
    scores = model.similarity(model.encode_query(QUERIES), model.encode_document(DOCUMENTS))
    assert (scores.argmax(1) == scores.new_tensor(range(12))).float().mean() > 0.8


def test_what_is_pooled_is_written_as_old_and_new_readers_know_it(run):
    """Servers did not know what sentence-transformers 5.4 writes, and averaged otherwise (vllm#45995, #54533)."""
    out, *_ = run("dense_retrieval.py", "--epochs", "0.1", "--batch-size", "12")
    written = json.loads((out / "1_Pooling/config.json").read_text())
    assert [key for key, value in written.items() if value is True] == ["pooling_mode_mean_tokens", "include_prompt"]
    assert written["word_embedding_dimension"] == 32
    assert json.loads((out / "config.json").read_text())["global_rope_theta"] == 160_000  # for transformers 4
    modules = json.loads((out / "modules.json").read_text())
    assert [module["type"] for module in modules] == [
        f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling")
    ]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_module_that_is_code_of_its_own_is_not_run(run, script, tiny_encoder, tmp_path, capsys):
    shutil.copytree(tiny_encoder, tmp_path / "model")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "own.OwnModule"}]
    (tmp_path / "model/modules.json").write_text(json.dumps(modules))
    (tmp_path / "model/own.py").write_text("raise ValueError('this was run')")
    with pytest.raises(SystemExit, match=r"^2$"):
        run(script, model=tmp_path / "model")
    assert "own.OwnModule is code of its own, which is never run here" in capsys.readouterr().err


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_model_of_which_transformers_would_draw_the_weights_is_refused_in_one_line(
    run, script, tiny_encoder, tmp_path, capsys
):
    shutil.copytree(tiny_encoder, tmp_path / "model")
    tensors = load_file(tiny_encoder / "model.safetensors")
    save_file({f"net.{name}": value for name, value in tensors.items()}, tmp_path / "model/model.safetensors")
    with pytest.raises(SystemExit, match=r"^2$"):
        run(script, model=tmp_path / "model")
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {tmp_path}/model: no tensor ")


@pytest.mark.long
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_retriever_trains_the_same_function_whatever_attention_is_installed(run, script, monkeypatch):
    """Tokens that are not attended to have states of zero under flash attention (lightonai/pylate#125, #109, #148)."""
    forward, weights = ModernBertModel.forward, {}

    def with_attention(self, *arguments, attention_mask, **named):
        self.config._attn_implementation = "eager" if kind == "eager" else "sdpa"
        output = forward(self, *arguments, attention_mask=attention_mask, **named)
        if kind == "flash":
            output["last_hidden_state"] = output["last_hidden_state"] * attention_mask[..., None]
        return output

    monkeypatch.setattr(ModernBertModel, "forward", with_attention)
    for kind in ("sdpa", "eager", "flash"):
        out, *_ = run(script, "--epochs", "0.5", "--batch-size", "12", "--lr", "5e-3")
        weights[kind] = load_file(out / "model.safetensors")
        shutil.rmtree(out)
    for kind in ("eager", "flash"):
        for name, value in weights["sdpa"].items():
            assert (weights[kind][name] - value).norm() <= 1e-3 * value.norm(), (kind, name)


@pytest.mark.long
def test_a_multi_vector_retriever_learns_its_pairs(run):
    from pylate.models import ColBERT

    out, before, after, _ = run("multi_vector_retrieval.py", "--epochs", "5", "--batch-size", "12", "--lr", "5e-3")
    assert before < 0.8 < after
    model = ColBERT(str(out), device="cpu")
    vectors = model.encode(QUERIES[:3], is_query=True)
    assert vectors[0].shape == (32, 128)

    def as_flash_attention(_, arguments, named, output):
        """What it leaves out as padding has hidden states of zero (lightonai/pylate#109, #125)."""
        output["last_hidden_state"] *= named["attention_mask"][..., None]
        return output

    model[0].auto_model.register_forward_hook(as_flash_attention, with_kwargs=True)
    for with_flash, without in zip(model.encode(QUERIES[:3], is_query=True), vectors, strict=True):
        assert (with_flash == without).all()


@pytest.mark.long
def test_a_reranker_learns_its_pairs(run):
    from sentence_transformers import CrossEncoder

    out, before, after, _ = run("reranker.py", "--epochs", "20", "--batch-size", "12", "--lr", "2e-3")
    assert before < 0.8 < after
    scores = CrossEncoder(str(out), device="cpu").predict([(QUERIES[0], document) for document in DOCUMENTS])
    assert scores.argmax() == 0


@pytest.mark.long
def test_code_search_is_the_default_data_and_hard_negatives_can_be_mined(run):
    """With a vocabulary that knows none of its words: there is nothing to learn, and it runs."""
    options = ("--epochs", "0.01", "--max-seq-length", "16", "--hard-negatives", "2")
    _, before, after, said = run("dense_retrieval.py", *options, data=None)
    assert before < 0.5
    assert after < 0.5
    assert re.search(r"trained on \d,\d+ rows with 2 hard negatives", said)
