"""Every backend on a GPU, against the definition in float64 on CPU. `make test-gpu`."""

import pytest
import torch
import torch.nn.functional as F

from rotary_foundry.models.layers.attention import attention
from rotary_foundry.models.layers.attention_flash import flash_attn_is_installed
from rotary_foundry.models.layers.documents import Documents
from tests.models.peers import our_network, pack
from tests.models.test_attention import HEADS, assert_close_to_definition, documents_of, qkv_grad, with_gradients

pytestmark = pytest.mark.gpu

LENGTHS = ([130, 130, 400, 3], [64], [900, 1, 300, 20], [5] * 77, [2048])
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture(autouse=True)
def gpu():
    if not torch.cuda.is_available():
        pytest.fail("there is no CUDA GPU here; nothing was run", pytrace=False)
    torch._dynamo.reset()  # all tests together are more graphs than torch allows a function


@pytest.fixture
def deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def needs(implementation: str) -> None:
    """flash-attn is optional, also on a GPU; what `auto` does without it is tested all the same."""
    if implementation == "flash" and not flash_attn_is_installed():
        pytest.skip("flash is not tested: flash-attn is not installed (the extra `gpu`)")


def moved(documents: Documents) -> Documents:
    return Documents(documents.cu_seqlens.cuda(), documents.max_seqlen, documents.tokens)


@pytest.mark.parametrize(
    ("implementation", "dtype"),
    [("varlen", BF16), ("varlen", FP16), ("flash", BF16), ("sdpa", BF16), ("sdpa", FP32)],
    ids=str,
)
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("window", [None, 128])
@pytest.mark.parametrize("head_dim", [32, 64])
def test_output_and_gradients_are_those_of_masked_softmax(implementation, window, causal, heads, dtype, head_dim):
    needs(implementation)
    for lengths in LENGTHS:
        documents = documents_of(lengths)
        on_gpu = moved(documents)

        def ours(q, k, v, on_gpu=on_gpu):
            out = attention(q.cuda(), k.cuda(), v.cuda(), on_gpu, window, implementation, causal)
            assert out.device.type == "cuda"
            return out.cpu()

        inputs = qkv_grad(documents, heads, head_dim, dtype)
        tolerance = 1e-4 if dtype == FP32 else 0.01
        assert_close_to_definition(ours, inputs, documents, window, causal, relative=tolerance)


@pytest.mark.parametrize("implementation", ["varlen", "flash", "sdpa"])
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("window", [None, 128])
def test_the_backward_gives_the_same_bits_under_deterministic_algorithms(deterministic, implementation, window, causal):
    needs(implementation)
    documents = documents_of([5] * 77 + [2048])
    on_gpu = moved(documents)
    inputs = [x.cuda() for x in qkv_grad(documents, (4, 2), 64, BF16)]
    runs = [
        with_gradients(lambda *qkv: attention(*qkv, on_gpu, window, implementation, causal), *inputs) for _ in range(5)
    ]
    assert all(torch.equal(one, other) for run in runs for one, other in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("window", [None, 128])
def test_a_compiled_function_traces_through_varlen(window, causal):
    documents = documents_of([130, 130, 400, 3])
    on_gpu = moved(documents)
    compiled = torch.compile(attention, fullgraph=True, dynamic=True)

    def ours(q, k, v):
        return compiled(q.cuda(), k.cuda(), v.cuda(), on_gpu, window, "auto", causal).cpu()

    inputs = qkv_grad(documents, (4, 2), 64, BF16)
    assert_close_to_definition(ours, inputs, documents, window, causal, relative=0.01)


@pytest.mark.parametrize("implementation", ["varlen", "flash", "sdpa"])
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
