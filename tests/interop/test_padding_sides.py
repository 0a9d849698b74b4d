"""An export's hidden states do not depend on padding or on the attention that transformers computes with.

Elsewhere they changed shape or value with the side of the padding and the backend (transformers#41056,
text-embeddings-inference#617). transformers 4.57 does the same in test_transformers_4.py.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from rotary_foundry.interop.huggingface import export_model
from rotary_foundry.interop.own_code import register_own_code
from tests.models import peers, roformer_v2_peers
from tests.models.llama import peers as llama_peers

TEXTS = ["a b c", "j a b c d e f g h a b c d e f g h", "d"]
FAMILIES = {peers: AutoModelForMaskedLM, roformer_v2_peers: AutoModelForMaskedLM, llama_peers: AutoModelForCausalLM}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.FAMILY.name)
@torch.no_grad()
def test_logits_of_a_text_are_the_same_alone_and_padded_on_either_side(
    family, attention, tokenizer_dir, llama_tokenizer, tmp_path
):
    network = family.our_network()
    knobs = {name: network.knobs[name] for name in family.FAMILY.knobs_of_weights()}
    own = llama_tokenizer if family is llama_peers else tokenizer_dir
    export_model(network.state_dict(), family.FAMILY, network.shape, knobs, own, 512, tmp_path / "export")
    register_own_code(tmp_path / "export")
    model = FAMILIES[family].from_pretrained(tmp_path / "export", attn_implementation=attention).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    alone = [model(**tokenizer([text], return_tensors="pt")).logits[0] for text in TEXTS]
    for side in ("left", "right"):
        batch = tokenizer(TEXTS, padding=True, padding_side=side, return_tensors="pt")
        assert (batch["attention_mask"] == 0).any()
        logits = model(**batch).logits
        for row, expected in enumerate(alone):
            found = logits[row][batch["attention_mask"][row].bool()]
            assert (found - expected).abs().max() < 1e-4, (side, row)
