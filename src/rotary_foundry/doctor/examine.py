"""`rotary-foundry doctor [RECIPE]`: run all checks in order; each prints a line, with a remedy if there is a problem.

- Without a launcher, it checks this machine. Under `composer`, one rank of each node checks its machine, all ranks test
  the collectives, and rank 0 prints the findings of all nodes, with equal ones only once. `composer -c` starts a
  command instead of a script. So a run's launch line works with `-c rotary-foundry doctor` in place of `launch`, also
  under Slurm and Kubernetes.
- Without a recipe, it leaves out the checks that need one.
- Only rank 0 exits with status 1, or the first rank of each node if the ranks cannot connect. Composer would print a
  report for every other process that fails.
- If a check raises an error, this is a finding too, and the other checks still run.
- Nothing is changed without `--clean`, which removes only stale files (leftovers.py).
"""

import re
import shlex
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rotary_foundry.doctor.disk_space import check_runs_disk, check_shm
from rotary_foundry.doctor.finding import BAD, DOUBTFUL, GOOD, Finding, bad, doubtful
from rotary_foundry.doctor.host_memory import check_memory
from rotary_foundry.doctor.installation import check_attention, check_gpus, check_known_faults, check_packages
from rotary_foundry.doctor.leftovers import check_leftovers
from rotary_foundry.doctor.locks import check_locks
from rotary_foundry.doctor.reach import check_data, check_save_folder, check_wandb
from rotary_foundry.doctor.stale_code import check_compiled_code
from rotary_foundry.recipe import Recipe, compile_plan
from rotary_foundry.runs.recipes import load_recipe
from rotary_foundry.utils.errors import FoundryError
from rotary_foundry.utils.installing import install_command
from rotary_foundry.utils.processes import is_first, is_first_of_node, local_world_size, world_size
from rotary_foundry.utils.redaction import redacted, redacted_arguments
from rotary_foundry.utils.wording import one_line

COLOURS = {GOOD: "green", DOUBTFUL: "yellow", BAD: "bold red"}
WIDTH = 14  # of the column of subjects


def examine(path: Path | None, overrides: Sequence[str], clean: bool) -> bool:
    """Run the checks and print the findings; return whether this process found nothing bad.

    Raises:
        ConfigurationError: the recipe is wrong; raised only on rank 0.
    """
    try:
        recipe = None if path is None else load_recipe(path, overrides)
    except FoundryError:
        if is_first():
            raise
        return True
    if world_size() == 1:
        return _tell(chain(_machine(recipe, clean), _no_collectives(recipe)), recipe)
    speaks = is_first_of_node()
    return _with_others(list(_machine(recipe, clean)) if speaks else [], speaks, recipe)


def _machine(recipe: Recipe | None, clean: bool) -> Iterator[Finding]:
    """Yield the findings about this machine."""
    yield from _guarded("packages", check_packages())
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library of its own is missing
        yield bad("torch", f"cannot be imported: {one_line(error)}", f"install it anew: {install_command()}")
        return
    world, ranks = world_size(), local_world_size()
    yield from _guarded("GPUs", check_gpus(ranks if world > 1 else 0, recipe))
    yield from _guarded("attention", check_attention(recipe))
    yield from _guarded("versions", check_known_faults(recipe))
    yield from _guarded("leftovers", check_leftovers(clean))  # before free space is measured
    yield from _guarded("compiled code", check_compiled_code())
    if is_first():
        yield from _guarded("locks", check_locks(recipe))
    if recipe is None:
        return
    plan = compile_plan(recipe)
    on_gpus = ranks if world > 1 else torch.cuda.device_count()
    yield from _guarded("memory", check_memory(recipe, plan, world // ranks, on_gpus or ranks))
    yield from _guarded("/dev/shm", check_shm(recipe, plan, world // ranks, on_gpus))
    yield from _guarded("runs", check_runs_disk(recipe, plan))
    yield from _guarded("data", check_data(recipe))
    yield from _guarded("save_folder", check_save_folder(recipe))
    if is_first():
        yield from _guarded("W&B", check_wandb(recipe))


def _guarded(subject: str, check: Iterator[Finding]) -> Iterator[Finding]:
    """Yield the findings of a check, and one more if the check raises an error."""
    try:
        yield from check
    except Exception as error:  # after any error, run the remaining checks
        said = f"this check failed: {type(error).__name__}: {one_line(error)}"
        yield bad(subject, said, "repair what the error names; if it names nothing of yours, the doctor has a bug")


def _no_collectives(recipe: Recipe | None) -> Iterator[Finding]:
    """Yield the command that tests the collectives, which needs all ranks."""
    import torch

    arguments = redacted_arguments(sys.argv[1:], _plain(recipe))
    command = ["composer", "-n", str(torch.cuda.device_count() or 2), "-c", "rotary-foundry", *arguments]
    for place in (0, 4):
        if shutil.which(command[place]) is None:
            command[place] = str(Path(sys.executable).parent / command[place])
    yield doubtful(
        "collectives",
        "not tested, because this is only one process",
        f"{shlex.join(command)}; on many nodes, or under Slurm, the run's own composer line with "
        "`-c rotary-foundry doctor` in place of `launch`",
    )


def _with_others(here: list[Finding], speaks: bool, recipe: Recipe | None) -> bool:
    """Test the collectives on every rank, and print the findings of all machines on rank 0."""
    from rotary_foundry.doctor import collectives

    def failed(why: str) -> list[Finding]:
        return [*here, bad("collectives", why, collectives.REMEDY)]

    watched = collectives.deadline(lambda why: _tell(failed(why), recipe)) if speaks else nullcontext()
    try:
        collectives.meet()
        with watched:
            outcome = collectives.try_out()
            machines = collectives.gather((socket.gethostname(), here))
        collectives.leave()
    except (RuntimeError, ValueError) as error:  # torch's DistError is a RuntimeError
        return not speaks or _tell(failed(one_line(error)[:300]), recipe)
    if not is_first():
        return True
    return _tell([*_together([machine for machine in machines if machine[1]]), outcome], recipe)


def _together(machines: list[tuple[str, list[Finding]]]) -> Iterator[Finding]:
    """Merge the findings of all machines: good ones in the words of the first machine, others completely."""
    hosts: dict[tuple, list[str]] = {}
    words: dict[tuple, Finding] = {}
    for host, findings in machines:
        for place, finding in enumerate(findings):
            key = (finding.subject, finding.mark, (place,) if finding.mark == GOOD else finding)
            words.setdefault(key, finding)
            hosts.setdefault(key, []).append(host)
    subjects = list(dict.fromkeys(finding.subject for finding in words.values()))
    for key in sorted(words, key=lambda key: subjects.index(key[0])):
        finding, named = words[key], hosts[key]
        if len(machines) == 1:
            yield finding
        else:
            more = f" and {len(named) - 1} more" if len(named) > 1 else ""
            which = f"all {len(machines)} nodes" if len(named) == len(machines) else f"{named[0]}{more}"
            yield Finding(finding.mark, finding.subject, f"{which}: {finding.said}", finding.remedy)


def _tell(findings: Iterable[Finding], recipe: Recipe | None) -> bool:
    """Print findings as they arrive, without the recipe's secrets; return whether none of them is bad."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 10_000  # a finding is one line and its remedy another, so lines must not wrap
    marks, plain = [], _plain(recipe)
    for finding in findings:
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(width=1)
        grid.add_column(width=WIDTH)
        grid.add_column(overflow="fold")
        grid.add_row(Text(finding.mark, COLOURS[finding.mark]), finding.subject, Text(redacted(finding.said, plain)))
        if finding.remedy:
            grid.add_row("", "", Text(f"→ {redacted(finding.remedy, plain)}", "bold" if finding.mark == BAD else ""))
        with console.capture() as drawn:
            console.print(grid)
        print(re.sub(" +$", "", drawn.get(), flags=re.MULTILINE), end="", flush=True)  # rich fills up the shorter line
        marks.append(finding.mark)
    in_the_way, to_look_at = marks.count(BAD), marks.count(DOUBTFUL)
    console.print(f"\n{in_the_way or 'nothing'} in the way of a run, {to_look_at or 'nothing'} to look at")
    return not in_the_way


def _plain(recipe: Recipe | None) -> dict:
    return {} if recipe is None else asdict(recipe)
