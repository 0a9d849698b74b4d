"""The metrics of an optimizer step, in one form for all our optimizers; monitors, records and rollback read them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of a step for each whole parameter; they are on the parameters' device and the same on every rank."""

    params: list[Tensor]
    """The parameters that had a gradient; the columns below are in their order."""
    l2_norms: dict[str, Tensor]
    """[params] each: `grad`; `param`, before the step; `moment`, the first, after it; `update`, the step taken,
    learning rate, clipping and weight decay included."""
    clipping: Tensor
    """[params]: the divisor that clipping applied to the learning rate (StableAdamW) or the gradient (AdamW), at least
    1; always 1 with LAMB, which does not clip."""

    @cached_property
    def totals(self) -> dict[str, float]:
        """Return each kind's norm over all parameters, and the largest `clipping`; synchronises once with a GPU."""
        values = torch.stack([*self.l2_norms.values(), self.clipping]).cpu()  # [kinds, params]
        norms = values[:-1].norm(dim=1).tolist()
        return dict(zip(self.l2_norms, norms, strict=True)) | {"clipping": values[-1].max().item()}
