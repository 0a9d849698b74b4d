"""ModernBERT (arXiv 2412.13663): an encoder with rotary positions, GeGLU and alternating global and local attention."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rotary_foundry.models.family import Family
from rotary_foundry.models.modernbert.huggingface_config import ModernBertOnDisk
from rotary_foundry.models.modernbert.shape import KNOBS, Shape

if TYPE_CHECKING:
    from torch import Tensor

    from rotary_foundry.models.growing import Growth
    from rotary_foundry.models.modernbert.network import ModernBert
    from rotary_foundry.models.weights import ForeignCheckpoint


class ModernBertFamily(Family):
    """ModernBERT's part of the table of families."""

    name = "modernbert"
    title = "ModernBERT"
    causal = False
    Shape = Shape
    knobs = KNOBS
    tied: ClassVar = {"decoder.weight": "model.embeddings.tok_embeddings.weight"}
    huggingface = ModernBertOnDisk()

    def network(self, shape: Shape, knobs: Mapping[str, float], attn_implementation: str = "auto") -> "ModernBert":
        from rotary_foundry.models.modernbert.network import ModernBert

        return ModernBert(shape, knobs, attn_implementation)

    def initial_value(self, name: str, shape: Shape, seed: int) -> "Tensor":
        from rotary_foundry.models.modernbert.initialisation import initial_value

        return initial_value(name, shape, seed)

    def open_file(self, path: Path, recipe: Path | None) -> "ForeignCheckpoint":
        from rotary_foundry.models.modernbert.flexbert import open_flexbert

        return open_flexbert(path, recipe)

    @property
    def growth(self) -> "Growth":
        from rotary_foundry.models.modernbert.dimensions import GROWTH

        return GROWTH
