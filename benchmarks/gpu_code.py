"""Count the kernels of inductor's code for an H100, and the bytes that they move and keep, on a machine without a GPU.

Nothing is run. A layer of ModernBERT, in one graph with its attention, and a chunk of the loss are traced on tensors
without values, as on a GPU in bf16 under autocast, and inductor generates code for them. gpu_shim.c replaces CUDA
where torch calls it during tracing, and the properties of an H100 are given. Inductor itself counts the bytes that each
kernel reads and writes. Products and attention are not its kernels and are left out. They are also left out of the
kernels that eager torch would launch, which are counted for comparison.

    python benchmarks gpu_code
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Products, attention, operations without a kernel, and operations on a few elements only.
NO_TRAFFIC = re.compile(r"prim::|torch_attn::|aten::(mm|addmm|detach|empty|empty_like|gather|scatter_add_)(\.|$)")
SHIM = Path(__file__).with_name("gpu_shim.c")
TOKENS = {"base": 96 * 1024, "large": 56 * 1024}  # per microbatch
CHUNK = 1332  # tokens of a chunk of the loss with 50,368 words
H100 = {
    "name": "NVIDIA H100",
    "major": 9,
    "minor": 0,
    "multi_processor_count": 132,
    "total_memory": 80 << 30,
    "regs_per_multiprocessor": 65536,
    "max_threads_per_multi_processor": 2048,
    "max_threads_per_block": 1024,
    "warp_size": 32,
    "gcnArchName": "",
    "shared_memory_per_block": 49152,
    "shared_memory_per_block_optin": 232448,
    "shared_memory_per_multiprocessor": 233472,
    "L2_cache_size": 50 << 20,
}


def counts(model: str = "base") -> dict[str, dict]:
    """Count `base` or `large`, in another process.

    Returns:
        `kernels`, `bytes` moved and bytes `kept` of `layer, forward`, `layer, backward`, and `chunk of the loss`. Kept
        is what the forward pass leaves for the backward pass. The same names with `, eager` at the end give kernels
        and bytes without a compiler.
    """
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "shim.map")
        script.write_text("libcudart.so.13 { global: cuda*; local: *; };\n")
        runtime, driver = Path(folder, "shim.so"), Path(folder, "libcuda.so.1")
        build = ["gcc", "-shared", "-fPIC", SHIM, "-o"]
        subprocess.run([*build, runtime, f"-Wl,--version-script={script}"], check=True)
        subprocess.run([*build, driver, "-Wl,-soname,libcuda.so.1"], check=True)
        paths = os.pathsep.join(map(str, (Path(__file__).parents[1], *filter(None, sys.path))))
        environment = {"LD_PRELOAD": str(runtime), "LD_LIBRARY_PATH": folder, "PYTHONPATH": paths}
        command = [sys.executable, __file__, model]
        said = subprocess.run(command, env=os.environ | environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(said.stdout.splitlines()[-1])


class Inductor:
    """Generates code for graphs, and records the kernels and bytes of each."""

    def __init__(self, mode, tokens: int):
        from torch._inductor import config, graph

        config.compile_threads, config.fx_graph_cache, config.joint_graph_constant_folding = 1, False, False
        self.mode, self.tokens, self.found = mode, tokens, []
        graph.GraphLowering.compile_to_module = lambda lowered: self._keep(lowered)

    def _keep(self, lowered):
        lowered.codegen()
        kernels = [quarter for node, quarter in lowered.count_bytes()[1] if not node.is_extern() and int(quarter)]
        self.found.append({"kernels": len(kernels), "bytes": 4 * sum(map(int, kernels))})  # inductor divides by four
        return SimpleNamespace(call=print, __file__="", __name__="")  # never called

    def compile(self, module, inputs, is_backward: bool = False):
        from torch._inductor.compile_fx import compile_fx_inner
        from torch._inductor.virtualized import V

        (outputs,) = next(node.args for node in module.graph.nodes if node.op == "output")
        with V.set_fake_mode(self.mode):
            compile_fx_inner(module, inputs, is_backward=is_backward)
        storages = (_of_tokens(node, self.tokens) for node in outputs[1:])
        self.found[-1]["kept"] = sum({storage._cdata: storage.nbytes() for storage in storages if storage}.values())
        return module.forward

    def partition(self, joint, inputs, **options):
        from functorch.compile import min_cut_rematerialization_partition
        from torch._inductor.fx_passes import joint_graph
        from torch._inductor.virtualized import V

        with V.set_fake_mode(self.mode):
            joint_graph.joint_graph_passes(joint)
        return min_cut_rematerialization_partition(joint, inputs, **options, compiler="inductor")


class EagerKernels(TorchDispatchMode):
    """Counts eager kernels on a GPU. An operation is one kernel, which reads its inputs and writes its outputs once."""

    def __init__(self):
        super().__init__()
        self.found = {"kernels": 0, "bytes": 0}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not function.is_view and not NO_TRAFFIC.match(function.name()):
            leaves = [*tree_leaves((args, kwargs)), *tree_leaves(result)]
            self.found["kernels"] += 1
            self.found["bytes"] += sum(leaf.nbytes for leaf in leaves if getattr(leaf, "is_cuda", False))
        return result


def _of_tokens(node, tokens: int):
    """Return the storage of a graph's output if it belongs to this layer, and not to weights or rotary tables.

    A view keeps its whole base tensor: the values keep queries and keys as they were before the rotation.
    """
    value = getattr(node, "meta", {}).get("val")
    shape = getattr(value, "shape", ())
    given = node is not None and node.op == "placeholder" and len(shape) != 2
    return None if tokens not in shape or given else value.untyped_storage()


def _count(model: str) -> dict[str, dict]:
    """Count in this process, into which the shim is loaded."""
    _pretend()
    import torch
    from functorch.compile import aot_module, make_boxed_func
    from torch import nn
    from torch._guards import TracingContext, tracing
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    from rotary_foundry.models.layers.cross_entropy import _of_chunk
    from rotary_foundry.models.layers.documents import Documents
    from rotary_foundry.models.modernbert.encoder import EncoderLayer
    from rotary_foundry.runs.recipes import load_recipe
    from tests.fake_gpu import move_there

    shape = load_recipe(Path(__file__).parents[1] / f"yamls/main/{model}.yaml").model.shape
    tokens = TOKENS[model]
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    inductor = Inductor(mode, tokens)

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            with torch.device("meta"):
                self.layer = EncoderLayer(shape, layer=1, attn_implementation="varlen")
            self.layer.attn.out_drop.p = 0.1

        def forward(self, hidden, cu_seqlens, *rotary):
            return self.layer(hidden, Documents(cu_seqlens, 1024, tokens), rotary)

    def of_gpu(*size: int, dtype=torch.bfloat16, **options):
        return torch.empty(*size, dtype=dtype, device="cuda", **options)

    layer = Layer()
    with mode, tracing(TracingContext(mode)):
        move_there(layer)
        compiled = aot_module(
            layer,
            fw_compiler=lambda *given: make_boxed_func(inductor.compile(*given)),
            bw_compiler=lambda *given: make_boxed_func(inductor.compile(*given, is_backward=True)),
            partition_fn=inductor.partition,
            decompositions=select_decomp_table(),
        )
        hidden = of_gpu(tokens, shape.hidden_size, dtype=torch.float32, requires_grad=True)
        rotary = [of_gpu(tokens, 1, shape.head_dim) for _ in range(2)]
        with torch.autocast("cuda", torch.bfloat16):
            out = compiled(hidden, of_gpu(385, dtype=torch.int32), *rotary)
        out.backward(torch.empty_like(out))
        chunk = of_gpu(CHUNK, shape.vocab_size), of_gpu(CHUNK, 1, dtype=torch.int64)
        layer.zero_grad()
        hidden = hidden.detach().requires_grad_()
        with EagerKernels() as forward, torch.autocast("cuda", torch.bfloat16):
            out = layer(hidden, of_gpu(385, dtype=torch.int32), *rotary)
        with EagerKernels() as backward:
            out.backward(torch.empty_like(out))
        with EagerKernels() as of_chunk, torch.no_grad():
            _of_chunk(*chunk, None, None, True, True)
        torch.compiler.is_compiling = lambda: True
        functional = torch.func.functionalize(
            lambda products, right: _of_chunk(products, right, None, None, True, True), remove="mutations_and_views"
        )
        with torch.no_grad():
            inductor.compile(make_fx(functional, decomposition_table=select_decomp_table())(*chunk), chunk)
    compiled, eager = inductor.found, [each.found for each in (forward, backward, of_chunk)]
    parts = "layer, forward", "layer, backward", "chunk of the loss"
    return dict(zip((*parts, *(f"{part}, eager" for part in parts)), (*compiled, *eager), strict=True))


def _pretend() -> None:
    """Make torch, inductor and Triton find an H100."""
    import torch
    import triton
    from torch._dynamo import device_interface as interface
    from torch._dynamo import utils
    from torch._inductor.fx_passes import joint_graph, post_grad
    from torch._subclasses import fake_tensor
    from triton.backends.compiler import GPUTarget

    properties = SimpleNamespace(**H100)
    answers = {
        "is_available": True,
        "current_device": 0,
        "device_count": 1,
        "get_device_properties": properties,
        "is_initialized": True,
        "get_device_capability": (9, 0),
        "is_bf16_supported": True,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
        "_lazy_init": None,
        "synchronize": None,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        "is_current_stream_capturing": False,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch.accelerator.current_device_index = torch._C._cuda_getCurrentRawStream = lambda *_: 0
    for owner in (interface.CudaInterface, interface.CudaInterface.Worker):
        owner.current_device = staticmethod(lambda: 0)
        owner.get_device_properties = staticmethod(lambda *_, **__: properties)
    interface.CudaInterface.get_compute_capability = staticmethod(lambda *_, **__: 90)
    joint_graph.lazy_init = post_grad.lazy_init = lambda *_, **__: None  # skips patterns that are traced on a GPU
    fake_tensor.init_gpu_context = utils.assert_no_fake_params_or_buffers = lambda *_, **__: None
    target = GPUTarget("cuda", 90, 32)
    of_triton = {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32}
    triton.runtime.driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: target,
            get_current_device=lambda: 0,
            get_device_interface=lambda: torch.cuda,
            utils=SimpleNamespace(get_device_properties=lambda _: of_triton),
        )
    )


if __name__ == "__main__":
    print(json.dumps(_count(sys.argv[1])))
