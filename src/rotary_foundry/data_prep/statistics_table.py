"""The table that preparation prints at its end."""

from collections.abc import Iterator

from rich import box
from rich.console import Group
from rich.table import Table

from rotary_foundry.data_prep.conversations.conversation_counts import loss_table
from rotary_foundry.data_prep.readers.bad_input import NAMED
from rotary_foundry.data_prep.statistics import Counts, Statistics, TaskCounts, TaskStatistics
from rotary_foundry.data_prep.work import BAD_INPUT, SPLITS
from rotary_foundry.utils import object_store

MOST_LABELS = 8  # whose shares are printed
SPELLED = "special tokens that texts spell, and that stay text: {:,}"


def table(title: str, statistics: Statistics) -> Group:
    """Make a table of sources and splits: documents, megabytes, tokens, and rows and fill for each row length.

    Below the table are the numbers of documents that were left out of each source, by reason, and a table of tasks.
    """
    row_lengths = statistics.configuration["row_lengths"]
    caption = f"{statistics.vocab_size:,} tokens in the vocabulary"
    if statistics.unigram_entropy is not None:
        caption += f"; held-out unigram entropy {statistics.unigram_entropy:.3f} nats per token"
    result = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("source", "split"):
        result.add_column(heading)
    for heading in ("documents", "MB", "tokens", *(f"rows of {row_length:,}" for row_length in row_lengths)):
        result.add_column(heading, justify="right")
    for split in SPLITS:
        for name, source in statistics.sources.items():
            counts: Counts = getattr(source, split)
            sizes = f"{counts.documents:,}", f"{counts.bytes / 1e6:.2f}", f"{counts.tokens:,}"
            rows = [f"{counts.rows[str(length)]:,} ({counts.fill[str(length)]:.1%})" for length in row_lengths]
            result.add_row(name, split, *sizes, *rows)
    more = [_task_table(statistics)] if statistics.tasks else []
    if statistics.conversations:
        counts = {name: each.train for name, each in statistics.conversations.items()}
        more += [loss_table(counts, "train"), *_of_conversations(statistics)]
    return Group(result, *_left_out(statistics), *more)


def _left_out(statistics: Statistics) -> list[str]:
    lines = []
    for name, source in statistics.sources.items():
        reasons = [f"{documents:,} {reason}" for reason, documents in source.left_out.items()]
        if reasons:
            lines.append(f"  {name}: left out {', '.join(reasons)}")
        if source.special_tokens:
            lines.append(f"  {name}: {SPELLED.format(source.special_tokens)}")
    return lines


def first_bad_input(out: str) -> list[str]:
    """Return lines on the first documents of a prepared folder that could not be read; none if all could."""
    listed = object_store.read_text(f"{out}/{BAD_INPUT}").splitlines()
    more = [f"    … {len(listed):,} lines are in {out}/{BAD_INPUT}"] if len(listed) > NAMED else []
    return [f"    {line}" for line in listed[:NAMED]] + more


def _of_conversations(statistics: Statistics) -> Iterator[str]:
    for name, source in statistics.conversations.items():
        for split in SPLITS:
            counts = getattr(source, split)
            yield f"  {name}, {split}: {'/'.join(map(str, counts.lengths))} tokens (least/median/95 %/most)"
            for length, number in counts.left_out.items():
                yield f"  {name}, {split}: {number:,} are too long for rows of {int(length):,}, and left out"
            for length, number in counts.cut.items():
                yield f"  {name}, {split}: {number:,} are cut from the left for rows of {int(length):,}"


def _task_table(statistics: Statistics) -> Group:
    """Make a table of the labelled tasks and their splits, and lines on what was dropped, cut and labelled."""
    row_lengths = statistics.configuration["row_lengths"]
    result = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("task", "split"):
        result.add_column(heading)
    lengths = "median/95 %/most"  # tokens of a document
    for heading in ("examples", "documents", "tokens", lengths, *(f"rows of {row:,}" for row in row_lengths)):
        result.add_column(heading, justify="right")
    for split in SPLITS:
        for name, task in statistics.tasks.items():
            counts: TaskCounts = getattr(task, split)
            numbers = [f"{number:,}" for number in (counts.examples, counts.documents, counts.tokens)]
            rows = [f"{counts.rows[str(length)]:,} ({counts.fill[str(length)]:.1%})" for length in row_lengths]
            result.add_row(name, split, *numbers, "/".join(map(str, counts.lengths[1:])), *rows)
    return Group(result, *_of_tasks(statistics))


def _of_tasks(statistics: Statistics) -> Iterator[str]:
    tasks = statistics.configuration["tasks"]
    total = sum(task["weight"] for task in tasks.values())
    yield "  shares of the blocks: " + ", ".join(f"{name} {task['weight'] / total:.1%}" for name, task in tasks.items())
    for name, task in statistics.tasks.items():
        yield f"  {name}, {task.kind}: {_labels(task)}"
        if task.dropped:
            yield f"  {name}: dropped {task.dropped:,} training examples whose texts a task holds out"
        for split in SPLITS:
            counts: TaskCounts = getattr(task, split)
            if counts.truncated:
                yield f"  {name}: cut {counts.truncated:,} examples of {split}, the first at {counts.first_truncated}"
            if counts.special_tokens:
                yield f"  {name}, {split}: {SPELLED.format(counts.special_tokens)}"
            if counts.unmatched:
                yield (
                    f"  {name}: {counts.unmatched:,} entities of {split} begin or end within a token and cannot be "
                    f"learned, the first at {counts.first_unmatched}"
                )


def _labels(task: TaskStatistics) -> str:
    """Return the numbers of a regression, or the shares of the most frequent labels, in training and validation."""
    labels, held_out = task.train.labels, task.validation.labels
    if task.kind == "regression":
        return ", ".join(f"{name} {value:.4g} (validation {held_out[name]:.4g})" for name, value in labels.items())
    total, total_held_out = sum(labels.values()), sum(held_out.values())
    most = sorted(labels, key=lambda label: -labels[label])[:MOST_LABELS]
    shares = [f"{label} {labels[label] / total:.1%} ({held_out.get(label, 0) / total_held_out:.1%})" for label in most]
    more = f", … {len(labels)} in all" if len(labels) > len(most) else ""
    return f"{', '.join(shares)}{more} of training (validation)"
