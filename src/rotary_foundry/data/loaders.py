"""Make the loaders of a run: training rows from the token clock's position on, and each held-out row exactly once."""

import math
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from itertools import islice

import torch
from composer.core import DataSpec
from composer.utils import dist
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from rotary_foundry.data import stream
from rotary_foundry.data.batches import Batch, collate, num_rows, num_tokens, split
from rotary_foundry.data.checked_shards import CheckedShards
from rotary_foundry.data.corpus import TokenizerFacts, open_objective
from rotary_foundry.data.row_preparation import HeldOutPrepared, TrainingPrepared, nothing_to_predict
from rotary_foundry.recipe import Plan, Recipe


class RunData:
    """The training and held-out rows of a recipe.

    Streams are built when they are first needed and then kept, one per row length and split, because Streaming refuses
    a second one on the same local cache.
    """

    def __init__(self, recipe: Recipe, tokenizer: TokenizerFacts):
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.objectives = {stage: open_objective(recipe, stage) for stage in recipe.stages}
        self.tasks = {name: task for objective in self.objectives.values() for name, task in objective.tasks.items()}
        self._train_streams: dict[int, stream.TrainingStream] = {}
        self._held_out: dict[int, CheckedShards] = {}

    @cached_property
    def microbatch_rows(self) -> dict[str, int]:
        """The most rows of a forward pass on a rank, by stage: `device_train_microbatch_size`.

        Compiled layers always get this many; missing rows are filled. So if layers are compiled, the number is at most
        a rank's share of the stage's largest update and, in a multi-task stage, of a block.
        """
        rows = {stage: config.device_train_microbatch_size for stage, config in self.recipe.stages.items()}
        if not self.compiled:
            return rows
        for stage, config in self.recipe.stages.items():
            of_ranks = min(config.global_train_batch_size, self.objectives[stage].block_size or math.inf)
            rows[stage] = min(rows[stage], -(-of_ranks // dist.get_world_size()))
        return rows

    @property
    def compiled(self) -> bool:
        """Return whether layers are compiled on this machine. If so, microbatches are filled."""
        return self.recipe.is_compiled_on("cuda" if torch.cuda.is_available() else "cpu")

    def train_loader(self, plan: Plan, token: int) -> DataLoader:
        """Make a loader of the rest of the segment at `token` of the token clock."""
        segment = plan.segment_at(token)
        position = plan.at(token)
        objective = self.objectives[segment.stage]
        draw = stream.Draw(
            seed=self.recipe.seed,
            stage_index=segment.stage_index,
            mixture=segment.mixture or objective.weights,
            start_row=position.rows_drawn_in_stage,
            updates=(segment.end_token - token) // segment.tokens_per_update,
            global_batch_size=segment.rows,
            rows_per_block=objective.block_size,
        )
        rows = self._train_stream(segment.row_length, draw)
        workers = self.recipe.data.num_workers
        return DataLoader(
            rows,
            batch_size=rows.batch_size,
            # Each segment gets new workers: torch's persistent ones would keep the batch size, the draw and the knobs
            # that they were forked with.
            num_workers=workers,
            # if /dev/shm is full, a worker prints an error and continues, and its batch never arrives
            timeout=self.recipe.dist_timeout if workers else 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=partial(
                collate,
                prepare=TrainingPrepared(objective, self.tokenizer, self.recipe.seed, segment),
                row_length=segment.row_length,
                vocab_size=self.tokenizer.vocab_size,
                document_mask=objective.document_mask,
                by_task=objective.block_size is not None,
                most_rows=-(-segment.rows // dist.get_world_size()),
            ),
        )

    def eval_loader(self, stage: str) -> DataLoader:
        """Make a loader of all held-out rows of a stage's row length, each on one rank, for the stage's objective.

        In a multi-task stage these are only the rows of its tasks, one task after the other.
        """
        config = self.recipe.stages[stage]
        row_length, rows_a_batch = config.row_length, self.microbatch_rows[stage]
        if row_length not in self._held_out:
            data = self.recipe.data
            shards = CheckedShards(
                streams=stream.row_streams(data.sources, data.local, data.remote, row_length, "validation"),
                batch_size=rows_a_batch,
            )
            self._held_out[row_length] = shards
        shards, objective = self._held_out[row_length], self.objectives[stage]
        parts = None
        if objective.tasks:
            ends = shards.samples_per_stream.cumsum().tolist()
            bounds = zip(self.recipe.data.sources, [0, *ends], ends, strict=False)
            parts = {task: range(start, end) for task, start, end in bounds if task in objective.tasks}
        prepare = HeldOutPrepared(objective, self.tokenizer, self.recipe.seed)
        rows = HeldOutRows(shards, prepare, row_length, rows_a_batch, parts)
        on_gpu = torch.cuda.is_available()
        workers = self.recipe.data.held_out_workers if on_gpu else 0  # on CPU they would take the ranks' cores
        return DataLoader(
            rows,
            batch_size=None,
            collate_fn=_unchanged,  # torch's own would make tensors of arrays
            num_workers=workers,
            timeout=self.recipe.dist_timeout if workers else 0,
            pin_memory=on_gpu,
        )

    def _train_stream(self, row_length: int, draw: stream.Draw) -> stream.TrainingStream:
        rows = self._train_streams.get(row_length)
        if rows is None:
            data = self.recipe.data
            rows = stream.TrainingStream(
                sources=data.sources,
                local=data.local,
                remote=data.remote,
                row_length=row_length,
                shuffle_block_size=data.shuffle_block_size,
                draw=draw,
                cache_limit=data.cache_limit,
            )
            self._train_streams[row_length] = rows
        rows.draw = draw
        return rows


def _unchanged(batch: Batch) -> Batch:
    return batch


class HeldOutRows(IterableDataset):
    """Yield batches of held-out rows, with row i of a part on rank i mod world size.

    Every rank gets the same number of batches of each part, because under FSDP a forward pass takes all ranks. Each
    batch is for one forward pass. A rank without a row for a batch gets the part's first row again, with nothing to
    predict in it, and no metric counts it.

    Args:
        shards, prepare, row_length, rows_a_batch: where the rows are, and how to prepare and batch them.
        parts: the rows of each task in a multi-task stage; otherwise all rows are one part.
    """

    def __init__(
        self,
        shards: CheckedShards,
        prepare: HeldOutPrepared,
        row_length: int,
        rows_a_batch: int,
        parts: Mapping[str, range] | None = None,
    ):
        self.shards = shards
        self.prepare = prepare
        self.row_length = row_length
        self.rows_a_batch = rows_a_batch
        self.parts = parts or {None: range(shards.size)}

    def __len__(self) -> int:
        return sum(len(self._turns(rows)) for rows in self.parts.values())

    def __iter__(self) -> Iterator[Batch]:
        rank, world, worker = dist.get_global_rank(), dist.get_world_size(), get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)  # torch's loader asks its workers in turn
        batches = ((source, rows, turns) for source, rows in self.parts.items() for turns in self._turns(rows))
        for source, rows, turns in islice(batches, first, None, step):
            there = [rows[place] for turn in turns if (place := turn * world + rank) < len(rows)]
            prepare = self.prepare if there else nothing_to_predict
            samples = [self.shards[row] | {"row": row, "source": source} for row in there or rows[:1]]
            yield collate(
                samples,
                prepare,
                self.row_length,
                self.prepare.tokenizer.vocab_size,
                self.prepare.objective.document_mask,
                by_task=source is not None,
            )

    def _turns(self, rows: range) -> list[range]:
        """Return, for each batch, the range of a rank's rows of a part, counted on that rank."""
        rows_a_rank = -(-len(rows) // dist.get_world_size())
        starts = range(0, rows_a_rank, self.rows_a_batch)
        return [range(start, min(start + self.rows_a_batch, rows_a_rank)) for start in starts]


def data_spec(loader: DataLoader) -> DataSpec:
    """Tell Composer how to split and count our batches."""
    return DataSpec(loader, split_batch=split, get_num_samples_in_batch=num_rows, get_num_tokens_in_batch=num_tokens)
