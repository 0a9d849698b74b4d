"""The flash backend, without a GPU: its calls fit the real signatures, and what it asks for is our attention."""

import ast
import inspect
import subprocess
import sys
import tarfile

import pytest
import torch
import torch.nn.functional as F

from rotary_foundry.models.layers import attention as dispatch
from rotary_foundry.models.layers import attention_flash
from rotary_foundry.models.layers.attention import window_size
from rotary_foundry.models.layers.attention_flash import flash_attention
from tests.models import flash_stand_in
from tests.models.flash_stand_in import RECORDED_FROM, flash_attention_2, flash_attention_3, flash_attention_3_of_2_8_0
from tests.models.peers import our_network, pack
from tests.models.test_attention import HEADS, MIXED, assert_close_to_definition, documents_of, qkv_grad

BOTH = {"flash_attn": flash_attention_2, "flash_attn_interface": flash_attention_3}


@pytest.fixture
def installed(monkeypatch):
    """Install packages by name; returns the list that their calls go to, as (package, bound arguments)."""

    def install(packages):
        calls = []
        for package, function in packages.items():

            def call(*args, _package=package, _function=function, **kwargs):
                calls.append((_package, inspect.signature(_function).bind(*args, **kwargs).arguments))
                return _function(*args, **kwargs)

            flash_stand_in.install(monkeypatch, package, call)
        monkeypatch.setattr(attention_flash, "has_flash_attention_3", lambda device: "flash_attn_interface" in packages)
        return calls

    return install


@pytest.fixture
def everywhere(monkeypatch):
    """Let `attention` choose flash on CPU, too."""
    monkeypatch.setattr(dispatch, "choose", lambda *asked: "flash")


@pytest.mark.parametrize(
    "packages",
    [{"flash_attn": flash_attention_2}, BOTH, BOTH | {"flash_attn_interface": flash_attention_3_of_2_8_0}],
    ids=["FA2 only", "FA2 and FA3", "FA2 and FA3 that returns the logsumexp"],
)
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("window", [None, 128])
def test_output_and_gradients_are_those_of_masked_softmax(installed, packages, window, causal, heads):
    installed(packages)
    documents = documents_of(MIXED)

    def ours(q, k, v):
        return flash_attention(q, k, v, documents, window_size(window, causal))

    inputs = qkv_grad(documents, heads, 32, torch.bfloat16)
    assert_close_to_definition(ours, inputs, documents, window, causal, relative=0.01)


def test_the_backward_is_deterministic_where_torch_is_told_so(installed):
    calls = installed(BOTH)
    documents = documents_of([8])
    for on in (False, True):
        torch.use_deterministic_algorithms(on)
        try:
            for sides in ((-1, -1), (64, 64)):
                flash_attention(*qkv_grad(documents, (2, 2), 32, torch.bfloat16)[:3], documents, sides)
        finally:
            torch.use_deterministic_algorithms(False)
    packages = ["flash_attn_interface", "flash_attn"]
    assert [(package, given["deterministic"]) for package, given in calls] == [
        (package, on) for on in (False, True) for package in packages
    ]


def test_global_layers_go_to_flash_attention_3_and_local_ones_to_2(installed, everywhere):
    calls = installed(BOTH)
    with torch.autocast("cpu", torch.bfloat16):
        our_network()(*pack(300, 20), max_seqlen=512)  # layers 0 and 3 are global
    packages = [package for package, _ in calls]
    assert packages == ["flash_attn_interface", "flash_attn", "flash_attn", "flash_attn_interface"]
    windows = [arguments["window_size"] for _, arguments in calls]
    assert windows == [(-1, -1), (64, 64), (64, 64), (-1, -1)]
    assert all(arguments["max_seqlen_q"] == arguments["max_seqlen_k"] == 512 for _, arguments in calls)


def test_without_flash_attention_3_all_layers_go_to_2(installed, everywhere):
    calls = installed({"flash_attn": flash_attention_2})
    with torch.autocast("cpu", torch.bfloat16):
        our_network()(*pack(300, 20))
    assert [arguments["window_size"] for _, arguments in calls] == [(-1, -1), (64, 64), (64, 64), (-1, -1)]


def test_the_network_computes_with_flash_what_it_computes_with_sdpa(installed, monkeypatch):
    installed(BOTH)
    network, (input_ids, cu_seqlens) = our_network(160_000.0), pack(300, 20, 1, 600)
    outcomes = []
    for implementation in ("sdpa", "flash"):
        monkeypatch.setattr(dispatch, "choose", lambda *asked, chosen=implementation: chosen)
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(input_ids, cu_seqlens)
        F.cross_entropy(logits.float(), input_ids).backward()
        outcomes.append((logits.detach().float(), torch.cat([p.grad.flatten() for p in network.parameters()])))
    for with_sdpa, with_flash in zip(*outcomes, strict=True):
        assert (with_flash - with_sdpa).norm() / with_sdpa.norm() < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_stand_in_refuses_what_the_kernels_refuse(installed, dtype):
    installed(BOTH)
    documents = documents_of([8])
    with pytest.raises(AssertionError):
        flash_attention(*qkv_grad(documents, (2, 2), 32, dtype)[:3], documents, (-1, -1))
    long = type(documents)(documents.cu_seqlens.long(), 8, 8)
    with pytest.raises(AssertionError):
        flash_attention(*qkv_grad(long, (2, 2), 32, torch.bfloat16)[:3], long, (-1, -1))


@pytest.mark.long
def test_the_recorded_signatures_are_those_of_the_published_sources(tmp_path):
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
    download += ["--no-binary", ":all:", "--dest", tmp_path, f"flash-attn=={RECORDED_FROM}"]
    outcome = subprocess.run(download, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr  # no network is no comparison, and not a pass
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as sources:
        for folder, recorded in (("flash_attn", flash_attention_2), ("hopper", flash_attention_3)):
            source = sources.extractfile(f"flash_attn-{RECORDED_FROM}/{folder}/flash_attn_interface.py").read()
            assert published(source) == [
                (name, None if parameter.default is inspect.Parameter.empty else repr(parameter.default))
                for name, parameter in inspect.signature(recorded).parameters.items()
            ]


def published(source):
    """(name, default) of every parameter of the module's flash_attn_varlen_func."""
    function = next(node for node in ast.parse(source).body if getattr(node, "name", None) == "flash_attn_varlen_func")
    arguments = function.args
    assert not (arguments.posonlyargs or arguments.kwonlyargs or arguments.vararg or arguments.kwarg)
    defaults = [repr(ast.literal_eval(default)) for default in arguments.defaults]
    names = [argument.arg for argument in arguments.args]
    return list(zip(names, [None] * (len(names) - len(defaults)) + defaults, strict=True))
