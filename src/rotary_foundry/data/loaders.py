"""The loaders of a run: training rows at the token clock, held-out rows each exactly once."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from composer.core import DataSpec
from composer.utils import dist
from torch.utils.data import DataLoader, IterableDataset

from rotary_foundry.data import stream
from rotary_foundry.data.batches import Batch, collate, num_rows, num_tokens, split
from rotary_foundry.data.checked_shards import CheckedShards
from rotary_foundry.data.corpus import TokenizerFacts
from rotary_foundry.objectives.masked_lm import Masking, row_generator
from rotary_foundry.recipe import Plan, Recipe

HELD_OUT = 1 << 31  # in a stage's place when held-out rows are masked, so that every evaluation masks them alike


class RunData:
    """The training and held-out rows of a recipe.

    Streams are built when first wanted and kept, one a row length and split: Streaming refuses a second one on the same
    local cache.
    """

    def __init__(self, recipe: Recipe, tokenizer: TokenizerFacts):
        self.recipe = recipe
        shares = recipe.masking.mask_share, recipe.masking.random_share
        self.train_masking = tokenizer.masking(recipe.masking.mlm_probability, *shares)
        self.eval_masking = tokenizer.masking(recipe.masking.eval_mlm_probability, *shares)
        self._train_streams: dict[int, stream.TrainingStream] = {}
        self._held_out: dict[int, CheckedShards] = {}

    def train_loader(self, plan: Plan, token: int) -> DataLoader:
        """A loader of the rest of the segment at the token clock (or of as much of it as is dealt out at a time)."""
        segment = plan.segment_at(token)
        position = plan.at(token)
        draw = stream.Draw(
            seed=self.recipe.seed,
            stage_index=segment.stage_index,
            mixture=segment.mixture,
            start_row=position.rows_drawn_in_stage,
            updates=min(
                (segment.end_token - token) // segment.tokens_per_update, max(1, stream.MAX_ROWS_DEALT // segment.rows)
            ),
            global_batch_size=segment.rows,
        )
        rows = self._train_stream(segment.row_length, draw)
        return DataLoader(
            rows,
            batch_size=rows.batch_size,
            num_workers=self.recipe.data.num_workers,
            pin_memory=torch.cuda.is_available(),
            collate_fn=partial(
                _collate_training,
                masking=self.train_masking,
                seed=self.recipe.seed,
                stage_index=segment.stage_index,
                row_length=segment.row_length,
            ),
        )

    def eval_loader(self, row_length: int, rows_a_batch: int) -> DataLoader:
        """A loader of all held-out rows of one length, each on one rank."""
        if row_length not in self._held_out:
            data = self.recipe.data
            shards = CheckedShards(
                streams=stream.row_streams(data.sources, data.local, data.remote, row_length, "validation"),
                batch_size=rows_a_batch,
            )
            self._held_out[row_length] = shards
        rows = HeldOutRows(self._held_out[row_length], self.eval_masking, self.recipe.seed, row_length, rows_a_batch)
        return DataLoader(rows, batch_size=None)

    def _train_stream(self, row_length: int, draw: stream.Draw) -> stream.TrainingStream:
        rows = self._train_streams.get(row_length)
        if rows is None:
            data = self.recipe.data
            rows = stream.TrainingStream(
                sources=data.sources,
                local=data.local,
                remote=data.remote,
                row_length=row_length,
                shuffle_algo=data.shuffle_algo,
                shuffle_block_size=data.shuffle_block_size,
                draw=draw,
                cache_limit=data.cache_limit,
            )
            self._train_streams[row_length] = rows
        rows.draw = draw
        return rows


class HeldOutRows(IterableDataset):
    """Batches of held-out rows, row i on rank i mod world.

    Every rank gets the same number of batches, each for one forward pass, since that takes all ranks under FSDP: where
    the rows do not go round, a rank gets row 0 again with nothing to predict in it, which no metric counts.
    """

    def __init__(self, shards: CheckedShards, masking: Masking, seed: int, row_length: int, rows_a_batch: int):
        self.shards = shards
        self.masking = masking
        self.seed = seed
        self.row_length = row_length
        self.rows_a_batch = rows_a_batch
        self.rows_a_rank = -(-shards.size // dist.get_world_size())

    def __len__(self) -> int:
        return -(-self.rows_a_rank // self.rows_a_batch)

    def __iter__(self) -> Iterator[Batch]:
        rank, world = dist.get_global_rank(), dist.get_world_size()
        for start in range(0, self.rows_a_rank, self.rows_a_batch):
            turns = range(start, min(start + self.rows_a_batch, self.rows_a_rank))
            yield from self._batches([turn * world + rank for turn in turns])

    def _batches(self, rows: list[int]) -> Iterator[Batch]:
        there = [row for row in rows if row < self.shards.size]
        masking = self.masking if there else replace(self.masking, probability=0.0)
        samples = [self.shards[row] | {"row": row} for row in there or [0]]
        generators = [row_generator(self.seed, HELD_OUT, sample["row"]) for sample in samples]
        yield collate(samples, masking, generators, self.row_length)


def data_spec(loader: DataLoader) -> DataSpec:
    """Tell Composer how to split and count our batches."""
    return DataSpec(loader, split_batch=split, get_num_samples_in_batch=num_rows, get_num_tokens_in_batch=num_tokens)


def _collate_training(samples: list[dict], masking: Masking, seed: int, stage_index: int, row_length: int) -> Batch:
    generators = [row_generator(seed, stage_index, sample["position"]) for sample in samples]
    return collate(samples, masking, generators, row_length)
