"""The script that `composer launch RECIPE [key=value …]` starts, once in every process.

A wrong recipe, fewer rows than processes, shards that do not fit, a run that another launch works on, and a torch that
is too old are refused here, before torch is imported and a process group is made. Only one rank prints the error.
The first rank holds the locks of the run's folder and of its store until the process ends, through all rollbacks. No
other rank touches them.

Composer's launcher ends all ranks with SIGTERM as soon as one has ended with an error. Then it prints the output of the
ranks that were not ended by SIGTERM or SIGKILL, except the first rank of each node, which prints to the launcher's own
output. So only the first rank of a node prints the error. The others wait for the signal and end silently; every
traceback is in `logs/rank<N>.log`.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from rotary_foundry.recipe import Plan, Recipe
from rotary_foundry.recipe.compilation import compile_stages
from rotary_foundry.recipe.rehearsal import rehearsal
from rotary_foundry.runs.changes import changes_of_run
from rotary_foundry.runs.recipes import load_recipe_and_plan
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.runs.run_lock import LockFile, LockObject, RunLock
from rotary_foundry.utils.compiled_code import separate_compiled_code
from rotary_foundry.utils.errors import (
    FAILED,
    REFUSED,
    STOPPED,
    ConfigurationError,
    Fault,
    FoundryError,
    StopRequested,
    escape_unprintable,
    print_error,
)
from rotary_foundry.utils.installing import check_overrides
from rotary_foundry.utils.processes import is_first, is_first_of_node, local_world_size, world_size
from rotary_foundry.utils.redaction import redacted

# Seconds. A rank that is still running after them has an error of its own, such as shards that are missing on its node.
FIRST_RANK_SPEAKS = 10
INTERRUPTED = 130


def main(arguments: list[str]) -> int:
    escape_unprintable()
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: composer [-n PROCESSES] launch RECIPE.yaml [key=value …]")
        return 0 if arguments else REFUSED
    try:
        launch(arguments[0], arguments[1:])
    except (FoundryError, OSError) as error:  # an OSError names the file
        let_the_first_speak()
        print_error(redacted(str(error)))
        return FAILED if isinstance(error, Fault) else REFUSED
    except StopRequested as stopped:
        let_the_first_speak()
        if is_first():
            print(f"{stopped}; the same command goes on from there")
        return STOPPED
    except KeyboardInterrupt:
        let_the_first_speak()
        print("interrupted; the same command goes on from the last checkpoint")
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises an error for a killed worker
        for child in multiprocessing.active_children():
            child.kill()  # a loader's worker may wait for a shard; under launch/stoppable.py it has SIGTERM blocked
    return 0


def let_the_first_speak() -> None:
    """Wait for the launcher to end this rank, unless it is the first of its node.

    The first rank ignores SIGTERM, so that it prints its error and ends with its own status. The launcher's signal for
    another rank's end may come late, when Python is shutting down and a Python handler is gone or interrupts it.
    """
    if is_first_of_node():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # launch/stoppable.py has it blocked
    launcher, until = os.getppid(), time.monotonic() + FIRST_RANK_SPEAKS
    while os.getppid() == launcher and time.monotonic() < until:
        time.sleep(0.1)


@contextmanager
def sigterm_held_back() -> Iterator[None]:
    """Hold SIGTERM back while modules are imported; then it ends this process.

    Composer sets a handler for it when it is imported, and what that raises within a `__del__` is lost.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
        from rotary_foundry.compat.composer import exit_at_sigterm

        signal.signal(signal.SIGTERM, exit_at_sigterm)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def launch(path: str, overrides: list[str]) -> None:
    check_overrides()
    recipe, plan = load_recipe_and_plan(path, overrides)
    if recipe.rehearse:
        recipe = rehearsal(recipe, plan, world_size())
        plan = compile_stages(recipe)
    check_world_size(recipe, plan, path)
    with ExitStack() as held:
        locks = []
        if is_first():
            locks.append(held.enter_context(RunLock(LockFile(RunFolder.of(recipe).path, "runs_folder", "run_name"))))
        run(recipe, plan, locks, held)


def run(recipe: Recipe, plan: Plan, locks: list[RunLock], held: ExitStack) -> None:
    """Train or rehearse. `locks` are the run's locks, held until `held` closes. The store's lock is added here."""
    if recipe.rehearse:
        with sigterm_held_back():
            from rotary_foundry.training.rehearsal_stand_ins import with_stand_ins

        recipe = with_stand_ins(recipe)
    elif (folder := RunFolder.of(recipe)).recipe.is_file():  # if nodes have separate disks, only on the first one
        changes_of_run(folder, recipe, plan)

    from rotary_foundry.data.corpus import open_corpus

    tokenizer = open_corpus(recipe)

    # Every flat batch has a different length, and oneDNN keeps compiled kernels for the last 1024 lengths: gigabytes.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
    # Such batches also leave gaps in a GPU's memory that the next one may not fit into. Expandable segments grow.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    separate_compiled_code()
    # Another process frees the shared memory of a process that was ended, and would warn about it after the error.
    quiet = "ignore::UserWarning:multiprocessing.resource_tracker"
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), quiet]))

    with sigterm_held_back():
        from torch import distributed

        from rotary_foundry.reporting.start import print_start
        from rotary_foundry.runs.checkpoint_store import open_store
        from rotary_foundry.training.extensions import check_extensions
        from rotary_foundry.training.first_weights import check_init_from
        from rotary_foundry.training.logs import start_logs
        from rotary_foundry.training.ranks import one_reason
        from rotary_foundry.training.run import train

    check_extensions(recipe)
    if is_first() and (store := open_store(recipe, RunFolder.of(recipe))) is not None:
        locks.append(held.enter_context(RunLock(LockObject(store.bucket))))
    check_init_from(recipe)
    start_logs(recipe)
    stopped = None
    try:
        with one_reason():
            train(recipe, plan, tokenizer, print_start, locks)
    except StopRequested as outcome:  # raised on every rank
        stopped = outcome
    if distributed.is_initialized():  # NCCL may linger, and torch would warn
        distributed.destroy_process_group()
    if stopped is not None:
        raise stopped
    if recipe.rehearse and is_first():
        report_rehearsal(RunFolder.of(recipe))


def report_rehearsal(folder: RunFolder) -> None:
    from rotary_foundry.interop.export import export_checkpoint
    from rotary_foundry.reporting.transitions import print_transitions

    export_checkpoint(folder.path, folder.export)
    print_transitions(folder)


def check_world_size(recipe: Recipe, plan: Plan, path: str) -> None:
    world = world_size()
    recipe.fsdp_config.degrees(world, -(-world // local_world_size()))
    for segment in plan.segments:
        if segment.rows < world:
            raise ConfigurationError(
                f"{path}: 'stages.{segment.stage}.global_train_batch_size': {segment.rows} rows per update are fewer "
                f"than the {world} processes; set at least {world}, or use fewer processes"
            )
    for stage in recipe.stages:
        block = recipe.objective_of(stage).block_size
        if block is not None and block % world:
            key = "objective" if recipe.stages[stage].objective is None else f"stages.{stage}.objective"
            raise ConfigurationError(
                f"{path}: '{key}.rows_per_block': {block} rows of a task cannot be split over {world} processes; set a "
                f"multiple of {world}, or use another number of processes"
            )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
