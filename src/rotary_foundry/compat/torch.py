"""Private parts of torch.

`cpu_flash_attention` and its backward are the kernels behind torch's scaled_dot_product_attention on CPU. They are
called directly because autograd around slices of a flat sequence gives every slice a gradient as long as the whole
sequence, and because bfloat16 goes back faster in float32 (layers/attention_sdpa.py has the figures). They take fewer
key/value heads than query heads, and sum the gradients over each group (tests/models/test_attention.py). torch has no
public function for either; one that attends within documents on CPU, as `varlen_attn` does on CUDA, would make both
unnecessary.
"""

import torch

cpu_flash_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
cpu_flash_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
