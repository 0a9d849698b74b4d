"""The tasks that a checkpoint was trained on in multi-task stages, and their heads.

A task's kind and labels are read from `task.json` in the run's data. The run's `rows.json` has a digest of that file,
so heads never get the labels of other data.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rotary_foundry.data.corpus import open_objective
from rotary_foundry.data.task_file import TASK_FILE, Task
from rotary_foundry.interop.checkpoint_weights import CheckpointWeights
from rotary_foundry.interop.trained_heads import TrainedHead
from rotary_foundry.models.task_heads import TaskHeads, head_prefix
from rotary_foundry.objectives.objective import Objective
from rotary_foundry.runs.trained_state import TrainedState, with_data
from rotary_foundry.utils.errors import ConfigurationError, DataError
from rotary_foundry.utils.json_text import read_object
from rotary_foundry.utils.wording import nearest


@dataclass(frozen=True)
class TrainedTask:
    """A task with the last stage that trained it, and the objective of that stage."""

    task: Task
    stage: str
    row_length: int  # of the stage, in tokens
    objective: Objective


def trained_tasks(state: TrainedState, data: str | None = None) -> dict[str, TrainedTask]:
    """Return the tasks that a checkpoint was trained on, by name.

    Args:
        state: the state of the checkpoint.
        data: the folder with the run's data; None: the recipe's folder.

    Raises:
        ConfigurationError: the checkpoint was not trained in a multi-task stage.
        DataError: a task is no longer in the data, or was replaced by another one; names the file.
    """
    recipe = state.recipe
    stages = [
        stage
        for stage in dict.fromkeys(segment.stage for segment in state.trained)
        if recipe.objective_of(stage).block_size is not None
    ]
    if not stages:
        raise ConfigurationError(
            f"{state.checkpoint.folder}: was not trained in a multi-task stage, so it has no tasks; give a run or a "
            "checkpoint that was (`objective: {name: multi_task, …}`)"
        )
    recipe = with_data(state.run, recipe, data)
    local = Path(recipe.data.local)
    kept = read_object(state.run.rows) if state.run.rows.is_file() else {}
    found = {}
    for stage in stages:
        objective = open_objective(recipe, stage)
        for name, task in objective.tasks.items():
            if kept.get(f"{name}/{TASK_FILE}", task.digest) != task.digest:
                raise DataError(
                    f"{local / name / TASK_FILE}: its kind, labels or weight are not those that the run was trained "
                    "with; put the run's own data there again"
                )
            found[name] = TrainedTask(task, stage, recipe.stages[stage].row_length, objective)
    return found


def head_weights(state: TrainedState, name: str, task: Task) -> dict[str, Tensor]:
    """Read the parameters of a task's head, by their names in the head.

    Raises:
        DataError: the checkpoint has no such head, or one of another shape.
    """
    stored, prefix = CheckpointWeights(state.checkpoint.folder, state.family, heads=True), head_prefix(name)
    with torch.device("meta"):
        expected = TaskHeads({name: task}, state.shape.hidden_size).of(name).state_dict()
    for key, value in expected.items():
        if stored.shapes.get(prefix + key) != list(value.shape):
            raise DataError(
                f"{state.checkpoint.folder}: {prefix}{key}: expected shape {list(value.shape)}, as {name}/{TASK_FILE} "
                f"has {len(task.labels)} labels, got {stored.shapes.get(prefix + key, 'no such tensor')}"
            )
    return {key: stored[prefix + key] for key in expected}


def trained_head(state: TrainedState, name: str) -> TrainedHead | None:
    """Read the head of a task; None for a masked-LM task, whose head is the network's own output.

    Raises:
        ConfigurationError: the checkpoint was not trained on this task; names its tasks.
        DataError: as for `trained_tasks` and `head_weights`.
    """
    tasks = trained_tasks(state)
    if name not in tasks:
        raise ConfigurationError(
            f"--task: '{name}' is not a task of {state.run.path}, which has {', '.join(tasks)}; {nearest(name, tasks)}"
        )
    task, row_length = tasks[name].task, tasks[name].row_length
    if task.kind == "masked_lm":
        return None
    return TrainedHead(name, task, head_weights(state, name, task), row_length)
