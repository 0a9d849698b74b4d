"""TaskRecords: add each task's loss and other figures to the record of an update, in multi-task stages."""

from composer.core import State

from rotary_foundry.algorithms.gradient_combination import GradientCombination
from rotary_foundry.callbacks.monitor import Monitor, Numbers

# keys in metrics.jsonl, whose values are by task, and the attributes of TaskPart
COLUMNS = {
    "task_loss": "loss",
    "task_right": "right",
    "task_units": "units",
    "task_grad_norm": "norm",
    "task_weight": "weight",
    "task_cosine": "cosine",
    "task_cosine_estimate": "cosine_estimate",
}


class TaskRecords(Monitor):
    """Records loss, share of right units, gradient norm, weight, and cosine with the update, by task.

    Args:
        combination: the run's algorithm, which computes these.
    """

    def __init__(self, combination: GradientCombination):
        self.combination = combination

    def measured(self, state: State, ranks: list[Numbers]) -> dict[str, dict[str, float]]:
        if state.model.objective.block_size is None:
            return {}
        right = {"examples_right": self.combination.mean_of_tasks("right")}  # averaged as the update's loss is
        columns = {
            column: {task: getattr(part, attribute) for task, part in self.combination.parts.items()}
            for column, attribute in COLUMNS.items()
        }
        known = {
            column: {task: value for task, value in values.items() if value is not None}
            for column, values in columns.items()
        }
        return right | {column: values for column, values in known.items() if values}
