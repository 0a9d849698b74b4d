"""Report which processes work in the folders of this project, by the locks of the folders (runs/run_lock.py).

It looks into the folders given by a recipe and the defaults: runs, fine-tunings below `runs_folder`, evaluations of
runs and in `evaluations`, and the hidden work folders of `python data_prep` beside `data.local`. It does not know of
locks elsewhere (`out=…`, `work=…`); a command that needs such a folder reports its lock.
"""

import time
from collections.abc import Iterator
from pathlib import Path

from rotary_foundry.doctor.finding import Finding, bad, doubtful, good
from rotary_foundry.recipe import Recipe
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.runs.run_lock import GONE_AFTER, LOCK, Holder, LockFile, LockObject
from rotary_foundry.utils.errors import FoundryError

SUBJECT = "locks"


def check_locks(recipe: Recipe | None) -> Iterator[Finding]:
    """Report the holder of each lock. A lock is bad only if the recipe's run would be refused because of it."""
    runs = Path("runs" if recipe is None else recipe.runs_folder)
    data = Path("data") if recipe is None else Path(recipe.data.local).parent
    own = None if recipe is None else RunFolder.of(recipe).path
    names = [f"*/{LOCK}", f"finetune/*/{LOCK}", f"*/evaluations/*/*/{LOCK}"]
    paths = [path for name in names for path in sorted(runs.glob(name))]
    paths += [*sorted(Path("evaluations").glob(f"**/{LOCK}")), *sorted(data.glob(f".*-work/{LOCK}"))]
    findings = [_finding(LockFile(path.parent, "runs_folder"), path.parent == own) for path in paths]
    if recipe is not None and recipe.save_folder is not None:
        findings.append(_stored(recipe))
    yield from [finding for finding in findings if finding] or [good(SUBJECT, f"nobody is at work in {runs}")]


def _stored(recipe: Recipe) -> Finding | None:
    """Return the finding about the lock in the run's store; None if the store cannot be used (another check tells)."""
    from rotary_foundry.runs.checkpoint_store import open_store

    try:
        return _finding(LockObject(open_store(recipe, RunFolder.of(recipe)).bucket), True)
    except FoundryError:
        return None


def _finding(place: LockFile | LockObject, own: bool) -> Finding | None:
    """Return the finding about one lock; `own` if the recipe's run would need it."""
    try:
        found = place.look()
    except FoundryError as error:
        if not place.local:
            raise
        return bad(SUBJECT, str(error), "remove whatever has the name of the lock")
    if found is None:
        return None
    holder = Holder.read(found.content)
    if holder is None:
        return doubtful(SUBJECT, f"{place.name}/{LOCK}: cannot be read as a lock", _what_a_start_does())
    lives = holder.lives()
    if lives is None:
        seconds = max(0.0, time.time() - found.renewed)
        said = f"{place.name}: {holder}; renewed {seconds:.0f} s ago, if the clocks here and there agree"
        return doubtful(SUBJECT, said, _what_a_start_does())
    if not lives:
        return good(
            SUBJECT, f"{place.name}: {holder}, has ended and left its lock; the next start takes it over at once"
        )
    said = f"{place.name}: {holder}, is at work there"
    return bad(SUBJECT, said, "wait for it to end, stop it, or give another run_name") if own else good(SUBJECT, said)


def _what_a_start_does() -> str:
    return f"nothing: a start there waits {GONE_AFTER:g} s, and is refused if the lock is renewed in that time"
