"""GradientCombination: combine the gradients of an update's tasks into one, by the objective's `combine`.

All ranks work on the same task at the same time, and a batch's rows are sorted by task. So after a task's last
microbatch, `.grad` holds its gradient and nothing else. Composer weights a microbatch by its share of the update's
predicted units on all ranks, so this is (N_task / N_all) · ∇L_task, which is scaled back. It is then moved out of
`.grad` for the next task. Before the optimizer's step, `.grad` is set to the combination.

- A head keeps the gradient of its own task's mean loss, whatever the rule. A head whose task is not in the update keeps
  its weights and its moments.
- min_norm and projected keep the gradients of all tasks in the update, sharded as the parameters are, because their
  weights are known only at the end. The other rules add each gradient as soon as it is complete. They need the
  memory of one more gradient, and they estimate the cosines with the update from sketches of 262 kB per task
  (optim/gradient_sketch.py). min_norm_at_output takes only the norm of the gradient at the encoder's output.
- Communication, once per update each: all-reduces of the counts, of the losses, and of the norms or the Gram matrix
  (optim/sharded_sums.py). normalised, loss_scaled and min_norm_at_output need a task's loss or norm before they add its
  gradient. So they reduce both once per task, and each time the host waits for the GPU.

Composer's loss of an update is the mean over all its tokens and examples, in which a masked LM task hides all others.
It is replaced by the tasks' losses, averaged by their shares of the blocks. `mean` minimises this loss. Over many
updates it is on average the mean weighted by the tasks' weights. Records, the spike score and rollbacks use it.

Acts on BATCH_START, AFTER_BACKWARD, AFTER_TRAIN_BATCH and BATCH_END in multi-task stages. On FIT_START it makes the
optimizer state of every parameter, because a checkpoint must also have the state of a head that had no gradient yet.
Composer would clear a state that is made earlier.
"""

from collections import Counter
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor, nn

from rotary_foundry.compat.torch import foreach_add_, foreach_mul_
from rotary_foundry.models.task_heads import HEADS
from rotary_foundry.optim.gradient_sketch import Sketcher
from rotary_foundry.optim.sharded_sums import local_tensors, sum_over_shards
from rotary_foundry.optim.task_weights import cosines, min_norm_weights, projected_weights, single_weight

OF_GRAM = ("min_norm", "projected")
CHUNK = 1 << 19  # elements of a gradient whose inner products are computed together
AT_OUTPUT = "min_norm_at_output"
OF_ONE_TASK = ("normalised", "loss_scaled", AT_OUTPUT)  # the weight of a task follows from its own loss or norm


@dataclass
class TaskPart:
    """The sums and the gradient of one task in one update."""

    rows: int  # rows of this rank that are still to come
    share: float  # share of the update's blocks
    units: int = 0  # predicted tokens or examples, on all ranks
    scale: float = 1.0  # `.grad` times this is the gradient of the mean over the units
    loss: float = 0.0  # mean over the units
    right: float = 0.0  # share of the units
    norm: float | None = None  # norm of the gradient of the shared parameters
    weight: float = 0.0
    cosine: float | None = None  # between the gradient and the update's; None: the rule does not keep the gradients
    cosine_estimate: float | None = None  # the same from sketches; None: the rule keeps the gradients
    output_norm: float = 0.0  # of the gradient at the encoder's output, times the number of ranks; min_norm_at_output
    sums: list[Tensor] = field(default_factory=list)  # of each microbatch: loss, right units, squared norm at output
    squares: dict[nn.Parameter, Tensor] = field(default_factory=dict)  # squared norms of `.grad` on this rank
    gradient: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    sketch: Tensor | None = None  # of this rank's shards of the gradient


class GradientCombination(Algorithm):
    """Combines the gradients of tasks.

    `parts` holds each task's sums and gradient in the last update, by name.

    Args:
        seed: the run's seed; the orders of `projected` and the sketches depend on it and on the token clock.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self.parts: dict[str, TaskPart] = {}
        self.output_squares: list[Tensor] = []  # of a microbatch's gradient at the encoder's output; min_norm_at_output

    def match(self, event: Event, state: State) -> bool:
        acts = event in (Event.BATCH_START, Event.AFTER_BACKWARD, Event.AFTER_TRAIN_BATCH, Event.BATCH_END)
        return event == Event.FIT_START or (acts and state.model.objective.block_size is not None)

    @torch.no_grad()
    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.FIT_START:
            state.optimizers[0].initialise_state()
        elif event == Event.BATCH_START:
            self._begin(state)
        elif event == Event.AFTER_BACKWARD:
            self._add_microbatch(state)
        elif event == Event.AFTER_TRAIN_BATCH:
            self._combine(state)
        else:
            state.total_loss_dict = {"loss/train/total": self.mean_of_tasks("loss")}

    def mean_of_tasks(self, attribute: str) -> float:
        """Return the mean of an attribute of `parts`, weighted by the tasks' shares of the last update's blocks."""
        parts = [part for part in self.parts.values() if part.units]
        total = sum(part.share for part in parts)
        return sum(getattr(part, attribute) * part.share / total for part in parts)

    def _begin(self, state: State) -> None:
        """Count each task's rows and predicted units in the update."""
        batch = state.batch
        rows, units = Counter(batch["row_sources"]), Counter()
        for task, predicted in zip(batch["row_sources"], batch["row_predicted"], strict=True):
            units[task] += predicted
        self.parts = {task: TaskPart(rows[task], rows[task] / rows.total()) for task in sorted(rows)}
        counts = state.device.tensor_to_device(torch.tensor([units[task] for task in self.parts]))
        dist.all_reduce(counts)
        for part, count in zip(self.parts.values(), counts.tolist(), strict=True):
            part.units, part.scale = count, counts.sum().item() / max(1, count)
        parameters = state.model.network.named_parameters()
        self.shared = [parameter for name, parameter in parameters if not name.startswith(HEADS)]
        self.total: dict[nn.Parameter, Tensor] = {}  # in units of `unit`
        combine = state.model.objective.combine
        self.unit, self.divided = 1.0, combine == AT_OUTPUT
        state.model.network.on_output_gradient = self._see_output if combine == AT_OUTPUT else None
        self.sketcher = None
        if combine not in OF_GRAM:
            key = self.seed, state.timestamp.token.value, dist.get_global_rank()
            self.sketcher = Sketcher(self.shared, key)

    def _see_output(self, gradient: Tensor) -> None:
        """Store the squared norm of a microbatch's gradient at the encoder's output [tokens, hidden]."""
        self.output_squares.append(gradient.double().square().sum())

    def _add_microbatch(self, state: State) -> None:
        task = state.batch["row_sources"][0]
        part, outputs = self.parts[task], state.outputs
        sums = [outputs.cross_entropy.detach().double(), outputs.correct.double()]
        part.sums.append(torch.stack([*sums, sum(self.output_squares, torch.zeros_like(sums[0]))]))
        self.output_squares.clear()
        part.rows -= len(state.batch["row_sources"])
        if part.rows == 0:
            self._end_task(state, task, part)

    def _end_task(self, state: State, task: str, part: TaskPart) -> None:
        """Take the gradient of a task after its last microbatch."""
        head = state.model.network.heads.of(task)
        params = [param for param in self.shared if param.grad is not None]
        gradients = [param.grad for param in params]
        for param in params:
            param.grad = None
        if part.units == 0:
            return
        of_head = [] if head is None else [param.grad for param in head.parameters() if param.grad is not None]
        if of_head:
            foreach_mul_(local_tensors(of_head), part.scale)
        part.gradient = dict(zip(params, gradients, strict=True))
        combine = state.model.objective.combine
        if combine in OF_GRAM:
            return
        flat = [local.flatten() for local in local_tensors(gradients)]
        part.squares = {param: one @ one for param, one in zip(params, flat, strict=True)}  # faster on CPU than norms
        if combine == "normalised":
            self._measure_norms([part])
        elif combine in OF_ONE_TASK:
            self._measure_sums([part])
        part.weight = single_weight(combine, part.share, part.norm, part.loss, part.output_norm)
        part.sketch = self.sketcher(part.gradient).mul_(part.scale)
        self._add(part)

    def _measure_sums(self, parts: list[TaskPart]) -> None:
        """Add up the sums of tasks over the ranks; waits for a GPU."""
        sums = torch.stack([torch.stack(part.sums).sum(0) for part in parts])  # [tasks, 3]
        dist.all_reduce(sums)
        for part, (loss, right, output_square) in zip(parts, sums.tolist(), strict=True):
            part.loss, part.right = loss / part.units, right / part.units
            part.output_norm = part.scale * output_square**0.5
            part.sums = []

    def _measure_norms(self, parts: list[TaskPart]) -> None:
        """Add up the squared norms of tasks over the shards; waits for a GPU."""
        squares = torch.stack([square for part in parts for square in part.squares.values()])[None]
        sum_over_shards(squares, [param for part in parts for param in part.squares])
        of_parts = squares[0].split([len(part.squares) for part in parts])
        norms = torch.stack([of_part.sum().sqrt() for of_part in of_parts]).tolist()
        for part, norm in zip(parts, norms, strict=True):
            part.norm, part.squares = part.scale * norm, {}

    def _add(self, part: TaskPart) -> None:
        """Add a task's gradient, times its weight, to the update's, and drop it."""
        factor = part.weight * part.scale / self.unit
        if self.divided and not self.total and factor:
            self.unit, factor = factor, 1.0  # the division by the sum of the weights includes it
        known = [param for param in part.gradient if param in self.total]
        new = [param for param in part.gradient if param not in self.total]
        if known:
            sums = local_tensors(self.total[param] for param in known)
            foreach_add_(sums, local_tensors(part.gradient[param] for param in known), alpha=factor)
        if new:
            if factor != 1:
                foreach_mul_(local_tensors(part.gradient[param] for param in new), factor)
            self.total |= {param: part.gradient[param] for param in new}
        part.gradient = {}

    def _combine(self, state: State) -> None:
        """Set every shared parameter's gradient to the combination."""
        combine = state.model.objective.combine
        if unmeasured := [part for part in self.parts.values() if part.units and part.sums]:
            self._measure_sums(unmeasured)
        if unmeasured := [part for part in self.parts.values() if part.squares]:
            self._measure_norms(unmeasured)
        kept = [part for part in self.parts.values() if part.gradient]
        if kept:
            scales = np.array([part.scale for part in kept])
            gram = self._gram([part.gradient for part in kept]) * np.outer(scales, scales)
            if combine == "min_norm":
                weights = min_norm_weights(gram)
            else:
                generator = np.random.default_rng((self.seed, state.timestamp.token.value))
                weights = projected_weights(gram, [generator.permutation(len(kept)) for _ in kept])
            for index, (part, cosine) in enumerate(zip(kept, cosines(gram, weights), strict=True)):
                part.norm, part.weight = float(np.sqrt(gram[index, index])), float(weights[index])
                part.cosine = cosine
                self._add(part)
        if combine == AT_OUTPUT and self.total:
            total_weight = sum(part.weight for part in self.parts.values())
            foreach_mul_(local_tensors(self.total.values()), self.unit / total_weight if total_weight else 0.0)
            for part in self.parts.values():
                part.weight /= total_weight or 1.0
        state.model.network.on_output_gradient = None
        self._estimate_cosines([part for part in self.parts.values() if part.sketch is not None])
        for param, gradient in self.total.items():
            param.grad = gradient
        self.total = {}

    def _estimate_cosines(self, parts: list[TaskPart]) -> None:
        if not parts:
            return
        sketches = torch.stack([part.sketch for part in parts])  # [tasks, LENGTH]
        products = (sketches @ sketches.T).flatten()[:, None]
        sum_over_shards(products, self.shared[:1])  # all parameters are sharded alike
        gram = products.view(len(parts), len(parts)).double().cpu().numpy()
        for part, cosine in zip(parts, cosines(gram, np.array([part.weight for part in parts])), strict=True):
            part.cosine_estimate, part.sketch = cosine, None

    def _gram(self, gradients: list[dict[nn.Parameter, Tensor]]) -> np.ndarray:
        """Return the inner products of gradients [gradients, gradients], summed over the shards."""
        pairs = [(first, second) for first in range(len(gradients)) for second in range(first + 1)]
        columns = []
        for param in self.shared:
            of_tasks = [gradient.get(param) for gradient in gradients]
            parts = [[] if one is None else local_tensors([one])[0].flatten().split(CHUNK) for one in of_tasks]
            products = [torch.zeros((), device=param.device)] * len(pairs)
            for chunk in zip_longest(*parts):  # of all tasks, so that memory is read once
                flat = [None if one is None else one.float() for one in chunk]
                products = [
                    product if flat[first] is None or flat[second] is None else product + flat[first] @ flat[second]
                    for product, (first, second) in zip(products, pairs, strict=True)
                ]
            columns.append(torch.stack(products))
        sums = torch.stack(columns, dim=1)  # [pairs, params]
        sum_over_shards(sums, self.shared)
        gram = np.zeros((len(gradients), len(gradients)))
        for (first, second), value in zip(pairs, sums.double().sum(1).tolist(), strict=True):
            gram[first, second] = gram[second, first] = value
        return gram
