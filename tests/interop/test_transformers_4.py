"""Exports are opened by transformers 4, sentence-transformers and PyLate, and what transformers 4 saves is imported.

The pins have transformers 5, which PyLate by itself refuses, so the test makes an environment of its own, of packages
that uv's cache mostly has.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import numpy
import pytest
import torch
from pylate.models import ColBERT
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from rotary_foundry.data_prep.tokenizer import save_copy, save_trained, train_tokenizer
from rotary_foundry.interop import load_model
from rotary_foundry.interop.heads import Head
from rotary_foundry.interop.huggingface import add_settings_of_4, export_model
from rotary_foundry.interop.importing import import_model
from tests.models import peers, roformer_v2_peers
from tests.models.llama import peers as llama_peers

OLDER = ("transformers==4.57.6", "sentence-transformers==5.3.0", "pylate==1.6.0")
TEXTS = ["a b c", "j [MASK] a b c d e f g h i j"]
LABELS = ("O", "B-PER", "I-PER")
SCRIPT = """
import json, sys, numpy, torch, transformers
from pathlib import Path
from pylate.models import ColBERT
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

def check_padding(load, path, **options):
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    for attention in ("eager", "sdpa"):
        model = load(path, attn_implementation=attention, **options).eval()
        with torch.no_grad():
            alone = [model(**tokenizer([text], return_tensors="pt")).logits[0] for text in texts]
            for side in ("left", "right"):
                batch = tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
                for row, logits in enumerate(model(**batch).logits):
                    error = (logits[batch["attention_mask"][row].bool()] - alone[row]).abs().max()
                    assert error < 1e-4, (path, attention, side, error)

folder, (texts, ids) = Path(sys.argv[1]), json.loads(sys.argv[2])
assert transformers.__version__.startswith("4."), transformers.__version__
found = {}
for name in ("MaskedLM", "SequenceClassification", "TokenClassification"):
    load = getattr(transformers, f"AutoModelFor{name}").from_pretrained
    model, loading = load(folder / name, output_loading_info=True)
    assert not any(loading.values()), loading
    tokenizer = AutoTokenizer.from_pretrained(folder / name)
    with torch.no_grad():
        found[name] = model.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        if name == "MaskedLM":
            assert model.config.reference_compile is False
            assert model.decoder.weight is model.get_input_embeddings().weight
            found["long"] = model(input_ids=torch.tensor([ids])).logits[0]
            model.save_pretrained(folder / "saved_by_4")
            tokenizer.save_pretrained(folder / "saved_by_4")
load = transformers.AutoModelForMaskedLM.from_pretrained
check_padding(load, folder / "MaskedLM")
check_padding(load, folder / "RoFormerV2", trust_remote_code=True)
check_padding(transformers.AutoModelForCausalLM.from_pretrained, folder / "Llama_none")
model, loading = load(folder / "RoFormerV2", trust_remote_code=True, output_loading_info=True)
assert not any(loading.values()), loading
with torch.no_grad():
    found["RoFormerV2"] = model.eval()(input_ids=torch.tensor([ids])).logits[0]
for path in folder.glob("Llama_*"):
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not any(loading.values()), loading
    with torch.no_grad():
        found[path.name] = model.eval()(input_ids=torch.tensor([ids])).logits[0]
    assert AutoTokenizer.from_pretrained(path).eos_token == "</s>"
found["vectors"] = SentenceTransformer(str(folder / "dense"), device="cpu").encode(texts, convert_to_tensor=True)
late = ColBERT(str(folder / "late"), device="cpu", local_files_only=True)
for is_query in (True, False):
    found[f"late {is_query}"] = torch.from_numpy(numpy.concatenate(late.encode(texts, is_query=is_query)))
tokens = {}
for path in (folder / "tokenizers").iterdir():
    tokenizer = AutoTokenizer.from_pretrained(path)
    encoded = tokenizer(texts)["input_ids"]
    tokens[path.name] = [encoded, tokenizer.decode(encoded[1], True), sorted(tokenizer.all_special_tokens)]
    for unused in [token for token in tokenizer.get_vocab() if token.startswith("[unused")][:1]:
        size, own = len(tokenizer), tokenizer.convert_tokens_to_ids(unused)
        tokenizer.add_tokens([unused], special_tokens=True)
        assert (len(tokenizer), tokenizer(f"a{unused}b")["input_ids"].count(own)) == (size, 1)
(folder / "tokens.json").write_text(json.dumps(tokens))
save_file(found, folder / "logits.safetensors")
"""


def export_network(network, family, tokenizer_dir, out_dir, head=None):
    knobs = {name: network.knobs[name] for name in family.knobs_of_weights()}
    export_model(network.state_dict(), family, network.shape, knobs, tokenizer_dir, 8192, out_dir, head=head)


@pytest.mark.long
@pytest.mark.timeout(1500)
@torch.no_grad()
def test_transformers_4_computes_what_we_and_transformers_5_do_and_what_it_saves_comes_back(
    tokenizer_dir, llama_tokenizer, tmp_path
):
    """So do sentence-transformers 5.3 and PyLate with it (vllm-project/vllm#45995, lightonai/pylate#108)."""
    network = peers.our_network(20_000.0).eval()  # not the theta that transformers takes where it finds none
    exports = tmp_path / "exports"
    heads = {
        "MaskedLM": None,
        "SequenceClassification": Head("sequence", LABELS),
        "TokenClassification": Head("token", LABELS),
    }
    roformer = roformer_v2_peers.our_network().eval()
    for name, head in heads.items():
        export_network(network, peers.FAMILY, tokenizer_dir, exports / name, head)
    export_network(roformer, roformer_v2_peers.FAMILY, tokenizer_dir, exports / "RoFormerV2")
    llamas = {
        f"Llama_{method}": llama_peers.our_network(**changes).eval()
        for method, changes in ({"none": {"tie_word_embeddings": True}} | llama_peers.SCALED).items()
    }
    for name, llama in llamas.items():
        export_network(llama, llama_peers.FAMILY, llama_tokenizer, exports / name)
    dense = SentenceTransformer(str(exports / "MaskedLM"), device="cpu", local_files_only=True)
    dense.save_pretrained(str(exports / "dense"))
    add_settings_of_4(exports / "dense")
    attended = {"do_query_expansion": True, "attend_to_expansion_tokens": True}
    late = ColBERT(str(exports / "MaskedLM"), device="cpu", local_files_only=True, **attended)
    late.model_card_data.local_files_only = True
    late.save_pretrained(str(exports / "late"))
    add_settings_of_4(exports / "late")
    save_trained(train_tokenizer(TEXTS, 320), exports / "tokenizers/trained", max_length=512)
    more = AutoTokenizer.from_pretrained(tokenizer_dir)
    more.add_special_tokens({"additional_special_tokens": ["j"]})
    more.save_pretrained(tmp_path / "more")
    save_copy(tmp_path / "more", exports / "tokenizers/brought", max_length=512)
    flat = peers.pack(300)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def call(*command: object) -> None:
        done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command[:5]}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"

    python = tmp_path / "venv/bin/python"
    call(sys.executable, "-m", "uv", "venv", "--python", sys.executable, tmp_path / "venv")
    (tmp_path / "overrides.txt").write_text(f"torch=={version('torch')}\n")  # PyLate's index asks for an older one
    override = ("--override", tmp_path / "overrides.txt")
    call(sys.executable, "-m", "uv", "pip", "install", "--python", python, *override, *OLDER)
    call(python, "-c", SCRIPT, exports, json.dumps([TEXTS, flat[0].tolist()]))

    by_4 = load_file(exports / "logits.safetensors")
    ours = load_model(exports / "MaskedLM")
    torch.testing.assert_close(by_4["long"], ours(*flat), rtol=0, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(exports / "MaskedLM")
    for row, text in enumerate(TEXTS):
        ids = torch.tensor(tokenizer(text)["input_ids"])
        lengths = torch.tensor([0, len(ids)], dtype=torch.int32)
        torch.testing.assert_close(by_4["MaskedLM"][row, : len(ids)], ours(ids, lengths), rtol=0, atol=1e-4)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    real = batch["attention_mask"].bool()
    for theirs in (AutoModelForSequenceClassification, AutoModelForTokenClassification):
        name = theirs.__name__.removeprefix("AutoModelFor")
        by_5 = theirs.from_pretrained(exports / name).eval()(**batch).logits
        kept = real if name == "TokenClassification" else slice(None)
        torch.testing.assert_close(by_4[name][kept], by_5[kept], rtol=0, atol=1e-4)
    for folder, encoded in json.loads((exports / "tokens.json").read_text()).items():
        opened = AutoTokenizer.from_pretrained(exports / "tokenizers" / folder)
        ids = opened(TEXTS)["input_ids"]
        assert encoded == [ids, opened.decode(ids[1], True), sorted(opened.all_special_tokens)], folder
        assert ("j" in encoded[2]) == (folder == "brought")
    for name, alike in ({"RoFormerV2": roformer} | llamas).items():
        torch.testing.assert_close(by_4[name], alike(*flat), rtol=0, atol=1e-4)
    torch.testing.assert_close(by_4["vectors"], dense.encode(TEXTS, convert_to_tensor=True), rtol=0, atol=1e-5)
    for is_query in (True, False):
        vectors = torch.from_numpy(numpy.concatenate(late.encode(TEXTS, is_query=is_query)))
        torch.testing.assert_close(by_4[f"late {is_query}"], vectors, rtol=0, atol=1e-5)
    import_model(exports / "saved_by_4", tmp_path / "back")
    assert load_model(tmp_path / "back").shape == network.shape
    torch.testing.assert_close(load_model(tmp_path / "back")(*flat), ours(*flat), rtol=0, atol=0)
