"""Private parts of torch. Tested with torch 2.11 to 2.15."""

from datetime import timedelta

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup, Store, distributed_c10d
from torch.distributed.checkpoint import state_dict
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING
from torch.distributed.fsdp import MixedPrecisionPolicy

# The kernels behind scaled_dot_product_attention on CPU, without autograd. Autograd around slices of a flat sequence
# gives every slice a gradient as long as the whole sequence, and a bfloat16 backward pass is faster in float32
# (models/layers/attention_sdpa.py has the figures). They take fewer key/value heads than query heads. Needed until
# torch has a public function that attends within documents on CPU, as `varlen_attn` does on CUDA.
cpu_flash_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
cpu_flash_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

# The multi-tensor operations that torch.optim itself uses. Needed until torch gives them public names.
foreach_add_ = torch._foreach_add_
foreach_addcmul_ = torch._foreach_addcmul_
foreach_copy_ = torch._foreach_copy_
foreach_div_ = torch._foreach_div_
foreach_lerp_ = torch._foreach_lerp_
foreach_maximum = torch._foreach_maximum
foreach_mul_ = torch._foreach_mul_
foreach_norm = torch._foreach_norm
foreach_reciprocal = torch._foreach_reciprocal
foreach_reciprocal_ = torch._foreach_reciprocal_
foreach_rsqrt_ = torch._foreach_rsqrt_
foreach_sqrt = torch._foreach_sqrt
foreach_sqrt_ = torch._foreach_sqrt_
foreach_sub_ = torch._foreach_sub_

# Classes whose instances are pickled in the `.metadata` of a sharded checkpoint; a reader that allows only known names
# must know them. Needed until torch writes this file in a format that cannot hold code.
StorageInfo = _StorageInfo
MemoryFormat = _MEM_FORMAT_ENCODING


def set_timeout(timeout: timedelta, group: ProcessGroup) -> None:
    """Set how long a collective of a group may take; `init_device_mesh` takes no time-out for the groups it makes.

    Needed until torch 2.11 is no longer supported: newer releases have `torch.distributed.set_timeout`.
    """
    public = getattr(distributed, "set_timeout", None)
    (public or distributed_c10d._set_pg_timeout)(timeout, group)


def gather_matrices_in(dtype: torch.dtype) -> MixedPrecisionPolicy:
    """Return FSDP2's policy: gather matrices in `dtype`, other parameters in their own; reduce gradients in float32.

    Needed until torch 2.14 is no longer supported, which gathers all parameters of a unit in one dtype: their own.
    """
    policy = {"cast_forward_inputs": False, "reduce_dtype": torch.float32}
    if "param_dtype_override_fn" not in MixedPrecisionPolicy.__dataclass_fields__:
        return MixedPrecisionPolicy(**policy)
    return MixedPrecisionPolicy(
        **policy,
        param_dtype=dtype,
        param_dtype_override_fn=lambda param: None if param.ndim > 1 else param.dtype,
    )


def vary_in_size(tensor: Tensor) -> None:
    """Let a compiled function take a tensor of any length in its first dimension, even with `dynamic=False`.

    Needed until torch 2.11 is no longer supported: newer releases have `torch.compile(dynamic_shapes=…)`.
    """
    torch._dynamo.mark_dynamic(tensor, 0)


def allow_graphs(count: int) -> None:
    """Let torch.compile make this many graphs of a function, if it would make fewer; its own limit is 8.

    Beyond the limit it continues without compiling, and only a warning says so. Needed until torch 2.11 is no longer
    supported: newer releases have `torch.compile(recompile_limit=…)`.
    """
    torch._dynamo.config.recompile_limit = max(count, torch._dynamo.config.recompile_limit)


def default_store() -> Store:
    """Return the store through which the ranks met.

    Composer makes the process group, and with it the store. A second store would need a port of its own. Needed until
    torch has a public function for it.
    """
    return distributed_c10d._get_default_store()


def forget_parameter_names() -> None:
    """Clear the cache of names that saving and loading a checkpoint fills; it keeps whole models in memory.

    Needed until torch 2.11 is no longer supported: newer releases have no such cache.
    """
    if hasattr(state_dict._get_fqns, "cache_clear"):
        state_dict._get_fqns.cache_clear()
