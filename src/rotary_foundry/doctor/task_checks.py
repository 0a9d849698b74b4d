"""Check the tasks of multi-task stages, and that the newest checkpoint of the run has heads for them and no others."""

from collections.abc import Iterator

from rotary_foundry.data.corpus import open_objective
from rotary_foundry.doctor.finding import Finding, bad, doubtful, good
from rotary_foundry.recipe import Recipe
from rotary_foundry.runs.run_folder import RunFolder

SUBJECT = "tasks"


def check_tasks(recipe: Recipe) -> Iterator[Finding]:
    """Check the tasks; `recipe.data.local` must have their files, and these must be valid."""
    tasks = {name: task for stage in recipe.stages for name, task in open_objective(recipe, stage).tasks.items()}
    if not tasks:
        return
    with_head = {name for name, task in tasks.items() if task.kind != "masked_lm"}
    yield good(SUBJECT, f"{len(tasks)} tasks, {len(with_head)} of them with a head: {', '.join(sorted(with_head))}")
    checkpoint = RunFolder.of(recipe).newest_checkpoint()
    if checkpoint is None:
        return
    from rotary_foundry.interop.checkpoint_weights import tasks_with_heads  # imports torch

    stored = tasks_with_heads(checkpoint.folder)
    if new := sorted(with_head - stored):
        yield bad(
            SUBJECT,
            f"{checkpoint.folder}: has no head for {', '.join(new)}",
            "train the multi-task stage in a run of its own, with init_from set to this run's folder",
        )
    if gone := sorted(stored - with_head):
        yield doubtful(
            SUBJECT,
            f"{checkpoint.folder}: has a head for {', '.join(gone)}, which no stage draws any more",
            "restore the mixture if this was not intended; later checkpoints would lose this head",
        )
