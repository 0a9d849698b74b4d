"""RoFormerV2 (kexue.fm/archives/8998): a post-norm encoder with rotary positions, without biases and gains."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rotary_foundry.models.family import Family
from rotary_foundry.models.roformer_v2.huggingface_config import RoFormerV2OnDisk
from rotary_foundry.models.roformer_v2.shape import KNOBS, Shape

if TYPE_CHECKING:
    from torch import Tensor

    from rotary_foundry.models.growing import Growth
    from rotary_foundry.models.roformer_v2.network import RoFormerV2
    from rotary_foundry.models.weights import ForeignCheckpoint


class RoFormerV2Family(Family):
    """RoFormerV2's part of the table of families."""

    name = "roformer_v2"
    title = "RoFormerV2"
    causal = False
    Shape = Shape
    knobs = KNOBS
    tied: ClassVar = {"decoder.weight": "embeddings.word_embeddings.weight"}
    huggingface = RoFormerV2OnDisk()

    def network(self, shape: Shape, knobs: Mapping[str, float], attn_implementation: str = "auto") -> "RoFormerV2":
        from rotary_foundry.models.roformer_v2.network import RoFormerV2

        return RoFormerV2(shape, knobs, attn_implementation)

    def initial_value(self, name: str, shape: Shape, seed: int) -> "Tensor":
        from rotary_foundry.models.roformer_v2.initialisation import initial_value

        return initial_value(name, shape, seed)

    def open_file(self, path: Path, recipe: Path | None) -> "ForeignCheckpoint | None":
        from rotary_foundry.models.roformer_v2.published_checkpoints import open_published

        return open_published(path)

    @property
    def growth(self) -> "Growth":
        from rotary_foundry.models.roformer_v2.dimensions import GROWTH

        return GROWTH
