"""Exports in the newest transformers, sentence-transformers and ONNX, in an environment of their own.

The pins hold sentence-transformers back, because PyLate's newest asks for an older one, and have no ONNX.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from rotary_foundry.interop import load_model
from rotary_foundry.interop.huggingface import export_model
from rotary_foundry.interop.importing import import_model
from tests.models import peers, roformer_v2_peers
from tests.models.llama import peers as llama_peers

NEWEST = ("transformers", "sentence-transformers", "onnx", "onnxscript", "onnxruntime")
TEXTS = ["a b c", "j [MASK] a b c d e f g h i j", "d"]
SCRIPT = """
import json, sys, numpy, onnxruntime, torch, transformers
from pathlib import Path
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, pipeline

folder, (texts, ids) = Path(sys.argv[1]), json.loads(sys.argv[2])
ids, found = torch.tensor([ids]), {}
for name, auto in (("modernbert", AutoModelForMaskedLM), ("llama", AutoModelForCausalLM)):
    model, loading = auto.from_pretrained(folder / name, output_loading_info=True)
    assert not any(loading.values()), loading
    embeddings, output = model.get_input_embeddings(), model.get_output_embeddings()
    assert output.weight is embeddings.weight
    tokenizer = AutoTokenizer.from_pretrained(folder / name)
    model.eval().save_pretrained(folder / f"{name}_saved")
    tokenizer.save_pretrained(folder / f"{name}_saved")
    with torch.no_grad():
        found[name] = model(input_ids=ids).logits[0]
        torch.testing.assert_close(model(inputs_embeds=embeddings(ids)).logits[0], found[name], rtol=0, atol=1e-5)
load = AutoModelForMaskedLM.from_pretrained
model, loading = load(folder / "roformer_v2", trust_remote_code=True, output_loading_info=True)
assert not any(loading.values()), loading
with torch.no_grad():
    found["roformer_v2"] = model.eval()(input_ids=ids).logits[0]
model.save_pretrained(folder / "roformer_v2_saved")
AutoTokenizer.from_pretrained(folder / "roformer_v2").save_pretrained(folder / "roformer_v2_saved")

path = str(folder / "modernbert")
assert len(pipeline("fill-mask", model=path, device="cpu")(texts[1])) == 5
assert numpy.array(pipeline("feature-extraction", model=path, device="cpu")(texts[0])).shape[2] == 64
retriever = SentenceTransformer(path, device="cpu", local_files_only=True)
found["vectors"] = retriever.encode(texts, convert_to_tensor=True)
retriever.save_pretrained(str(folder / "retriever"))
for name in ("retriever", "saved_by_5_3"):
    again = SentenceTransformer(str(folder / name), device="cpu").encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(again, found["vectors"], rtol=0, atol=1e-6)

class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits

tokenizer = AutoTokenizer.from_pretrained(folder / "modernbert")
model = AutoModelForMaskedLM.from_pretrained(folder / "modernbert", attn_implementation="eager").eval()
batch = tokenizer(texts[:2], padding=True, return_tensors="pt")
sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
made = torch.onnx.export(
    Logits(model), (batch["input_ids"], batch["attention_mask"]), dynamo=True,
    dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
)
made.save(str(folder / "model.onnx"))
session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
for given in (batch, tokenizer(texts, padding=True, return_tensors="pt"), {"input_ids": ids, "attention_mask": ids**0}):
    names = [one.name for one in session.get_inputs()]
    fed = dict(zip(names, (given["input_ids"].numpy(), given["attention_mask"].numpy())))
    by_onnx = torch.from_numpy(session.run(None, fed)[0])
    with torch.no_grad():
        expected = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits
    real = given["attention_mask"].bool()
    torch.testing.assert_close(by_onnx[real], expected[real], rtol=0, atol=1e-4)
save_file({name: value.contiguous() for name, value in found.items()}, folder / "found.safetensors")
"""
NETWORKS = {"modernbert": peers, "llama": llama_peers, "roformer_v2": roformer_v2_peers}


@pytest.mark.long
@pytest.mark.timeout(3000)
@torch.no_grad()
def test_the_newest_libraries_compute_what_we_do_and_their_files_come_back(tokenizer_dir, llama_tokenizer, tmp_path):
    """AnswerDotAI/ModernBERT#221, huggingface/transformers#35545, #38870, #41038, #48154, vllm-project/vllm#45995."""
    networks = {
        "modernbert": peers.our_network(160_000.0).eval(),
        "llama": llama_peers.our_network(tie_word_embeddings=True).eval(),
        "roformer_v2": roformer_v2_peers.our_network().eval(),
    }
    exports = tmp_path / "exports"
    for name, network in networks.items():
        family, tokenizer = NETWORKS[name].FAMILY, llama_tokenizer if name == "llama" else tokenizer_dir
        knobs = {knob: network.knobs[knob] for knob in family.knobs_of_weights()}
        export_model(network.state_dict(), family, network.shape, knobs, tokenizer, 512, exports / name)
    here = SentenceTransformer(str(exports / "modernbert"), device="cpu", local_files_only=True)
    here.save_pretrained(str(exports / "saved_by_5_3"))
    flat = peers.pack(300)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def call(*command: object) -> None:
        done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command[:5]}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"

    python = tmp_path / "venv/bin/python"
    call(sys.executable, "-m", "uv", "venv", "--python", sys.executable, tmp_path / "venv")
    call(sys.executable, "-m", "uv", "pip", "install", "--python", python, f"torch=={version('torch')}", *NEWEST)
    call(python, "-c", SCRIPT, exports, json.dumps([TEXTS, flat[0].tolist()]))

    found = load_file(exports / "found.safetensors")
    for name, network in networks.items():
        torch.testing.assert_close(found[name], network(*flat), rtol=0, atol=1e-4)
        import_model(exports / f"{name}_saved", tmp_path / f"{name}_back")
        torch.testing.assert_close(load_model(tmp_path / f"{name}_back")(*flat), network(*flat), rtol=0, atol=0)
    torch.testing.assert_close(here.encode(TEXTS, convert_to_tensor=True), found["vectors"], rtol=0, atol=1e-5)
