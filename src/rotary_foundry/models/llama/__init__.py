"""Llama 2 (arXiv 2307.09288): a decoder with rotary positions, SwiGLU, RMS norms and grouped key/value heads."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rotary_foundry.models.family import Family
from rotary_foundry.models.llama.huggingface_config import LlamaOnDisk
from rotary_foundry.models.llama.shape import KNOBS, Shape

if TYPE_CHECKING:
    from torch import Tensor

    from rotary_foundry.models.growing import Growth
    from rotary_foundry.models.llama.network import Llama
    from rotary_foundry.models.weights import ForeignCheckpoint


class LlamaFamily(Family):
    """Llama's part of the table of families."""

    name = "llama"
    title = "Llama"
    causal = True
    Shape = Shape
    knobs = KNOBS
    huggingface = LlamaOnDisk()

    def network(self, shape: Shape, knobs: Mapping[str, float], attn_implementation: str = "auto") -> "Llama":
        from rotary_foundry.models.llama.network import Llama

        return Llama(shape, knobs, attn_implementation)

    def initial_value(self, name: str, shape: Shape, seed: int) -> "Tensor":
        from rotary_foundry.models.llama.initialisation import initial_value

        return initial_value(name, shape, seed)

    def open_file(self, path: Path, recipe: Path | None) -> "ForeignCheckpoint | None":
        from rotary_foundry.models.llama.gguf_file import open_gguf

        return open_gguf(path, recipe)

    @property
    def growth(self) -> "Growth":
        from rotary_foundry.models.llama.dimensions import GROWTH

        return GROWTH
