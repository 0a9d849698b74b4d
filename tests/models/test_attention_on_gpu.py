"""Every backend on a GPU, against the definition in float32 on CPU. `make test-gpu`."""

import pytest
import torch
import torch.nn.functional as F

from rotary_foundry.models.layers.attention import attention
from rotary_foundry.models.layers.attention_flash import flash_attn_is_installed
from rotary_foundry.models.layers.documents import Documents
from tests.models.peers import our_network, pack
from tests.models.test_attention import by_definition, documents_of, with_gradients

pytestmark = pytest.mark.gpu

LENGTHS = ([130, 130, 400, 3], [64], [900, 1, 300, 20], [5] * 77, [2048])


@pytest.fixture(autouse=True)
def gpu():
    if not torch.cuda.is_available():
        pytest.fail("there is no CUDA GPU here; nothing was run", pytrace=False)
    torch._dynamo.reset()  # all tests together are more graphs than torch allows a function


def needs(implementation: str) -> None:
    """flash-attn is optional, also on a GPU; what `auto` does without it is tested all the same."""
    if implementation == "flash" and not flash_attn_is_installed():
        pytest.skip("flash is not tested: flash-attn is not installed (the extra `gpu`), and `auto` takes flex here")


@pytest.mark.parametrize(
    ("implementation", "dtype"),
    [
        ("flash", torch.bfloat16),  # it has no float32
        ("flex", torch.bfloat16),
        ("flex", torch.float32),
        ("sdpa", torch.bfloat16),
        ("sdpa", torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("window", [None, 128])
@pytest.mark.parametrize("head_dim", [32, 64])
def test_output_and_gradients_are_those_of_masked_softmax(implementation, window, dtype, head_dim):
    needs(implementation)
    for lengths in LENGTHS:
        documents = documents_of(lengths)
        on_gpu = Documents(documents.cu_seqlens.cuda(), documents.max_seqlen, documents.tokens)
        inputs = torch.randn(4, documents.tokens, 2, head_dim).to(dtype)

        def ours(q, k, v, on_gpu=on_gpu):
            return attention(q, k, v, on_gpu, window, implementation)

        def definition(q, k, v, documents=documents):
            return by_definition(q, k, v, documents, window)

        found = with_gradients(ours, *inputs.cuda())
        exact = with_gradients(definition, *inputs.float())
        for one, wanted in zip(found, exact, strict=True):
            assert one.dtype == dtype
            assert (one.cpu() - wanted).norm() / wanted.norm() < (0.01 if dtype == torch.bfloat16 else 1e-4)


@pytest.mark.parametrize("implementation", ["flash", "flex", "sdpa"])
def test_the_network_gives_the_logits_and_gradients_it_gives_on_cpu(implementation):
    needs(implementation)
    network, batch = our_network(160_000.0, attn_implementation=implementation), pack(300, 20, 1, 600)
    reference = our_network(160_000.0)
    expected = reference(*batch)
    F.cross_entropy(expected, batch[0].roll(1)).backward()
    network.cuda()
    input_ids, cu_seqlens = (tensor.cuda() for tensor in batch)
    with torch.autocast("cuda", torch.bfloat16):
        logits = network(input_ids, cu_seqlens)
    F.cross_entropy(logits.float(), input_ids.roll(1)).backward()
    grads, wanted = (torch.cat([p.grad.cpu().flatten() for p in n.parameters()]) for n in (network, reference))
    assert (logits.float().cpu() - expected).norm() / expected.norm() < 0.03
    assert (grads - wanted).norm() / wanted.norm() < 0.05


@torch.no_grad()
def test_auto_in_float32_gives_the_logits_of_the_cpu():
    network, batch = our_network(160_000.0).eval(), pack(300, 20, 1, 600)
    expected = network(*batch)
    logits = network.cuda()(*(tensor.cuda() for tensor in batch))
    torch.testing.assert_close(logits.cpu(), expected, rtol=0, atol=1e-3)
