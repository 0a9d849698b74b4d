"""The varlen backend, without a GPU: torch's own `varlen_attn` on exact kernels, eager and traced."""

import inspect
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn

from rotary_foundry.models.layers import attention as dispatch
from rotary_foundry.models.layers import attention_varlen
from rotary_foundry.models.layers.attention import attention, window_size
from rotary_foundry.models.layers.attention_varlen import HAS_ENABLE_GQA, use_newer_kernels, varlen_attention
from rotary_foundry.models.layers.documents import Documents
from rotary_foundry.utils.errors import ConfigurationError
from tests.models.flash_stand_in import torch_kernels
from tests.models.peers import masked, our_network, pack
from tests.models.test_attention import HEADS, MIXED, assert_close_to_definition, documents_of, qkv_grad

BF16 = torch.bfloat16


@pytest.fixture
def kernels():
    with torch_kernels() as calls:
        yield calls


@pytest.fixture
def everywhere(monkeypatch):
    """Let `attention` choose varlen on CPU, too."""
    monkeypatch.setattr(dispatch, "choose", lambda *asked: "varlen")


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("window", [None, 128])
def test_output_and_gradients_are_those_of_masked_softmax(kernels, window, causal, heads, dtype):
    documents = documents_of(MIXED)

    def ours(q, k, v):
        return varlen_attention(q, k, v, documents, window_size(window, causal))

    inputs = qkv_grad(documents, heads, 32, dtype)
    assert_close_to_definition(ours, inputs, documents, window, causal, relative=0.01)
    assert [name for name, _ in kernels] == ["_flash_attention_forward", "_flash_attention_backward"]


def test_windows_and_lengths_go_to_the_kernel_as_they_are(kernels, everywhere):
    with torch.autocast("cpu", BF16):
        our_network()(*pack(300, 20), max_seqlen=512)  # layers 0 and 3 are global
    windows = [(given["window_size_left"], given["window_size_right"]) for _, given in kernels]
    assert windows == [(-1, -1), (64, 64), (64, 64), (-1, -1)]
    assert all(given["max_q"] == given["max_k"] == 512 for _, given in kernels)


def test_the_network_computes_with_varlen_what_it_computes_with_sdpa(kernels, monkeypatch):
    network, (input_ids, cu_seqlens) = our_network(160_000.0), pack(300, 20, 1, 600)
    outcomes = []
    for implementation in ("sdpa", "varlen"):
        monkeypatch.setattr(dispatch, "choose", lambda *asked, chosen=implementation: chosen)
        network.zero_grad()
        with torch.autocast("cpu", BF16):
            logits = network(input_ids, cu_seqlens)
        F.cross_entropy(logits.float(), input_ids).backward()
        outcomes.append((logits.detach().float(), torch.cat([p.grad.flatten() for p in network.parameters()])))
    for with_sdpa, with_varlen in zip(*outcomes, strict=True):
        assert (with_varlen - with_sdpa).norm() / with_sdpa.norm() < 0.02


@pytest.mark.parametrize(
    ("window", "causal", "heads"),
    [
        pytest.param(
            window,
            causal,
            heads,
            marks=[] if heads == (4, 2) or (window, causal) == (None, False) else pytest.mark.long,
        )
        for window in (None, 128)
        for causal in (False, True)
        for heads in HEADS
    ],
    ids=str,
)
def test_a_compiled_function_traces_through_it(kernels, everywhere, window, causal, heads):
    """One graph serves all lengths above 128 tokens, where torch begins to consider cuDNN."""
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(attention, fullgraph=True, dynamic=True, backend=count)
    for lengths in (MIXED, [200, 7], [600, 150, 20]):
        documents = documents_of(lengths)
        assert_close_to_definition(
            lambda q, k, v, documents=documents: compiled(q, k, v, documents, window, "auto", causal),
            qkv_grad(documents, heads, 32, BF16),
            documents,
            window,
            causal,
            relative=0.01,
        )
    assert len(graphs) == 1
    targets = [node.target for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert torch.ops.torch_attn._varlen_attn.default in targets or torch.ops.torch_attn._varlen_attn in targets


def test_a_compiled_layer_is_one_graph(kernels, everywhere):
    """Where sdpa, which the compiler goes around, leaves a graph before it and one after it."""
    network = our_network(num_hidden_layers=2)  # a global layer and a local one
    torch._dynamo.reset()
    for layer in network.model.layers:
        layer.forward = torch.compile(layer.forward, fullgraph=True, dynamic=True, backend="eager")
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for theta in (10_000.0, 160_000.0):
            network.model.rope_theta = theta
            for lengths in ((40, 300), (7, 7, 500), (1000,)):
                input_ids, cu_seqlens = pack(*lengths)
                with torch.autocast("cpu", BF16):
                    network(input_ids, cu_seqlens, labels=masked(input_ids)).cross_entropy.backward()
    assert {name for name, _ in kernels} == {"_flash_attention_forward", "_flash_attention_backward"}


def test_only_what_this_torch_takes_is_passed(monkeypatch):
    """torch 2.11 has no `enable_gqa`; the tested range ends where it has."""
    calls = []
    monkeypatch.setattr(
        attention_varlen,
        "varlen_attn",
        lambda *args, **kwargs: calls.append(inspect.signature(varlen_attn).bind(*args, **kwargs).arguments),
    )
    documents = documents_of([8])
    for heads in HEADS:
        varlen_attention(*qkv_grad(documents, heads, 32, BF16)[:3], documents, (-1, -1))
    expected = [False, True, True] if HAS_ENABLE_GQA else [False] * 3
    assert [given.get("enable_gqa", False) for given in calls] == expected


def test_cudnn_is_excluded_under_deterministic_algorithms_and_beside_a_newer_flash_attention(
    kernels, monkeypatch, request
):
    enabled = []

    def look(*args, **kwargs):
        enabled.append(torch.backends.cuda.cudnn_sdp_enabled())
        return varlen_attn(*args, **kwargs)

    monkeypatch.setattr(attention_varlen, "varlen_attn", look)
    documents = documents_of([8])
    qkv = qkv_grad(documents, (2, 2), 32, BF16)[:3]
    varlen_attention(*qkv, documents, (-1, -1))
    monkeypatch.setattr(attention_varlen, "use_newer_kernels", lambda device_type: "FA3")
    varlen_attention(*qkv, documents, (-1, -1))
    monkeypatch.setattr(attention_varlen, "use_newer_kernels", lambda device_type: None)
    request.getfixturevalue("deterministic")
    varlen_attention(*qkv, documents, (-1, -1))
    assert enabled == [True, False, False]
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_a_compiled_function_traces_through_it_under_deterministic_algorithms(kernels, everywhere, deterministic):
    torch._dynamo.reset()
    documents = documents_of(MIXED)
    compiled = torch.compile(attention, fullgraph=True, dynamic=True, backend="aot_eager")
    assert_close_to_definition(
        lambda q, k, v: compiled(q, k, v, documents, None),
        qkv_grad(documents, (4, 2), 32, BF16),
        documents,
        None,
        False,
        relative=0.01,
    )


def test_newer_kernels_are_looked_for_while_a_layer_is_traced_and_not_traced_themselves(
    kernels, everywhere, monkeypatch
):
    traced = []
    monkeypatch.setattr(attention_varlen, "_activated", lambda: traced.append(torch.compiler.is_dynamo_compiling()))
    torch._dynamo.reset()
    compiled = torch.compile(lambda: use_newer_kernels("cuda"), fullgraph=True, backend="eager")
    compiled()
    assert traced == [False]


@pytest.fixture
def gpu_of(monkeypatch):
    """A GPU of a compute capability, and a FlashAttention package; returns what torch's registry was asked to use."""
    asked = []

    def install(capability, package, activate=asked.append):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(attention_varlen, "activate_flash_attention_impl", activate)
        monkeypatch.setattr(attention_varlen, "_is_installed", lambda name: name == package)
        attention_varlen._activated.cache_clear()
        return asked

    yield install
    attention_varlen._activated.cache_clear()


@pytest.mark.parametrize(
    ("capability", "package", "used"),
    [
        ((9, 0), "flash_attn_interface", "FA3"),
        ((10, 0), "flash_attn.cute", "FA4"),
        ((9, 0), "flash_attn.cute", None),
        ((10, 0), "flash_attn_interface", None),
        ((8, 0), "flash_attn_interface", None),
        ((9, 0), None, None),
    ],
)
def test_the_flash_attention_made_for_a_gpu_is_used_where_it_is_installed(
    gpu_of, monkeypatch, capability, package, used
):
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.15.0"))
    asked = gpu_of(capability, package)
    assert use_newer_kernels("cuda") == used
    assert use_newer_kernels("cuda") == used
    assert asked == ([used] if used else [])  # once


def test_flash_attention_4_is_left_alone_by_a_torch_that_cannot_pass_it_a_window(gpu_of, monkeypatch):
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.11.0"))
    assert gpu_of((10, 0), "flash_attn.cute") == []
    assert use_newer_kernels("cuda") is None


def test_torch_knows_both_names_and_refuses_a_package_without_kernels_by_a_configuration_error(gpu_of, monkeypatch):
    from torch.nn.attention import activate_flash_attention_impl, list_flash_attention_impls

    assert {"FA3", "FA4"} <= set(list_flash_attention_impls())
    monkeypatch.setitem(sys.modules, "flash_attn_interface", types.ModuleType("flash_attn_interface"))
    gpu_of((9, 0), "flash_attn_interface", activate_flash_attention_impl)
    with pytest.raises(ConfigurationError, match=r"cannot load flash_attn_interface \(FA3\).*; build it for"):
        use_newer_kernels("cuda")


def test_a_head_dim_that_the_kernels_do_not_take_is_refused():
    documents = documents_of([8])
    with pytest.raises(ConfigurationError, match="a head_dim of 20 is not a multiple of 8; give 'sdpa'"):
        varlen_attention(*qkv_grad(documents, (2, 2), 20, BF16)[:3], documents, (-1, -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_stand_in_refuses_what_the_kernels_refuse(kernels, dtype):
    documents = documents_of([8])
    with pytest.raises(AssertionError):
        varlen_attention(*qkv_grad(documents, (2, 2), 32, dtype)[:3], documents, (-1, -1))
    long = Documents(documents.cu_seqlens.long(), 8, 8)
    with pytest.raises(AssertionError):
        varlen_attention(*qkv_grad(long, (2, 2), 32, BF16)[:3], long, (-1, -1))
