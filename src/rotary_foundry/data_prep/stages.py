"""The stages of a preparation of texts. Each is a step that a datatrove executor runs once for each task."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig

from rotary_foundry.data.special_tokens import rewrite_config
from rotary_foundry.data_prep import duplicates
from rotary_foundry.data_prep.conversations.conversation_rows import renderable, template_of, write_conversations
from rotary_foundry.data_prep.corpus_config import minhash_options
from rotary_foundry.data_prep.filters import make_filter
from rotary_foundry.data_prep.finishing import finish
from rotary_foundry.data_prep.readers import BadInput, read
from rotary_foundry.data_prep.readers.messages import spoken
from rotary_foundry.data_prep.stage_runs import Stage
from rotary_foundry.data_prep.step import After, Step
from rotary_foundry.data_prep.task_stages import CollectHeldOut, DropHeldOut, WriteLabelled
from rotary_foundry.data_prep.tokenizer import save_copy, save_trained, train_tokenizer, train_wordpiece
from rotary_foundry.data_prep.work import BAD_INPUT, SPLITS, WITHOUT_TEXT, DocumentWriter, Work, read_documents
from rotary_foundry.data_prep.writing import write_shards
from rotary_foundry.utils.errors import DataError, FoundryError
from rotary_foundry.utils.wording import one_line

NEAR_EMPTY = 32  # characters without blanks at the ends; a shorter document has too little to predict from
RESERVED = 0.01  # the share of documents kept from training if `validation` is a number of documents
TRAIN_BYTES = 500_000_000  # the most bytes of text that a tokenizer is trained on


class ReadDocuments(Step):
    """Read a part of a source, filter it, and assign each document to a split.

    Only the hash of a document's text decides its split. So a document never changes its split when data is added,
    moved between sources or read in another order; a random sample would not have this property.
    """

    name = "documents"

    def __init__(self, work: Work) -> None:
        super().__init__(work, len(work.tasks))

    def do(self, rank: int) -> None:
        task, config = self.work.tasks[rank], self.work.config
        source = config.sources[task.source]
        bad = BadInput(task.source, config.max_bad_documents)
        documents = read(source, self.work.part(rank), bad)
        if source.conversations is not None:
            documents = renderable(documents, template_of(config), bad)
        filters = [make_filter(entry) for entry in source.filters]
        first: dict[str, str] = {}  # where the first document was left out and why, by reason
        for step in filters:
            step.exclusion_writer = FirstDropped(type(step).__name__, first)
            documents = _filtered(task.source, step, documents, rank)
        near_empty = 0
        digest = hashlib.sha256()
        writers = {split: DocumentWriter(self.work.documents(rank, split)) for split in SPLITS}
        for document in documents:
            if len(document.text.strip()) < NEAR_EMPTY:
                first.setdefault("near-empty", f"{document.id}: under {NEAR_EMPTY} characters")
                near_empty += 1
                continue
            text = document.text.encode()
            text_hash = hashlib.sha256(text).digest()[:16]
            digest.update(text_hash)
            writers[side(text_hash, config.validation)].add(document.id, document.text, len(text), text_hash)
        for writer in writers.values():
            writer.close()
        dropped = Counter({"near-empty": near_empty, "bad input": bad.count, WITHOUT_TEXT: bad.without_text})
        for step in filters:
            dropped[type(step).__name__] += int(step.stats["dropped"].total)
        self.work.write_json(
            "read",
            rank,
            {
                "source": task.source,
                "dropped": dropped,
                "first": first,
                "bad": bad.listed,
                WITHOUT_TEXT: bad.listed_without_text,
                "bytes": {split: writer.bytes for split, writer in writers.items()},
                "documents": {split: writer.documents for split, writer in writers.items()},
                "digest": digest.hexdigest(),
            },
        )


class FirstDropped:
    """Records the first document that a filter drops; datatrove uses it as a writer of dropped documents."""

    def __init__(self, name: str, first: dict[str, str]) -> None:
        self.name, self.first = name, first

    def __enter__(self) -> "FirstDropped":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, document: Document, rank: int) -> None:
        reason = document.metadata.get("filter_reason")
        self.first.setdefault(self.name, f"{document.id}: dropped by {self.name}{f', {reason}' if reason else ''}")


def _filtered(source: str, step: PipelineStep, documents: Iterator[Document], rank: int) -> Iterator[Document]:
    last = "the first document"

    def noted() -> Iterator[Document]:
        nonlocal last
        for document in documents:
            last = document.id
            yield document

    try:
        yield from step.run(noted(), rank)
    except FoundryError:
        raise
    except Exception as error:  # a filter may raise anything
        name = type(step).__name__
        reason = one_line(error)
        raise DataError(f"source '{source}': {name} cannot be applied at {last}: {reason}") from error


def side(text_hash: bytes, validation: float) -> str:
    """Return the split of a document with the SHA-256 `text_hash`; `validation` is a fraction or a document count."""
    fraction = validation if validation < 1 else RESERVED
    return "validation" if int.from_bytes(text_hash[:8]) < fraction * 2**64 else "train"


class FindExactDuplicates(Step):
    """Find exact duplicates; each task searches the hashes of its buckets."""

    name = "duplicates"

    def __init__(self, work: Work) -> None:
        super().__init__(work, duplicates.tasks_for(len(work.tasks)))

    def do(self, rank: int) -> None:
        duplicates.find_exact(self.work, rank, self.tasks)


class ReadWritten(PipelineStep):
    """Pass the documents to datatrove's steps, one document file per task."""

    type, name = "Rotary Foundry", "read written documents"

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for batch in read_documents(self.work.file(rank)):
            for id_, text, _ in batch:
                yield Document(text=text, id=id_)


class ChooseNearDuplicates(Step):
    """Decide which documents of MinHash's clusters to keep."""

    name = "near-duplicates"

    def __init__(self, work: Work, clusters: Path) -> None:
        super().__init__(work, 1)
        self.clusters = clusters

    def do(self, rank: int) -> None:
        duplicates.find_near(self.work, self.clusters)


class MakeTokenizer(Step):
    """Check that every source has documents in both splits, and train or copy the tokenizer."""

    name = "tokenizer"

    def __init__(self, work: Work) -> None:
        super().__init__(work, 1)

    def do(self, rank: int) -> None:
        config, directory = self.work.config, self.work.whole / "tokenizer"
        tokenizer, longest = config.tokenizer, max(config.row_lengths)
        for source in config.sources:
            self._check_sides(source)
        if tokenizer.path:
            save_copy(Path(tokenizer.path), directory, longest, tokenizer.causal)
        elif tokenizer.train.kind == "wordpiece":
            save_trained(train_wordpiece(self._texts, tokenizer.train.vocab_size), directory, longest)
        else:
            trained = train_tokenizer(self._texts(), tokenizer.train.vocab_size, tokenizer.causal)
            save_trained(trained, directory, longest, tokenizer.causal)
        if tokenizer.chat_template is not None:
            rewrite_config(directory, chat_template=template_of(config).source)

    def _check_sides(self, source: str) -> None:
        validation = self.work.config.validation
        parts = [part for part in self.work.read_json("read") if part["source"] == source]
        count = {}
        for split in SPLITS:
            files = self.work.files_of(source, split)
            read = sum(part["documents"][split] for part in parts)
            count[split] = read - sum(len(self.work.dropped(file)) for file in files)
        total = sum(count.values())
        if not total:
            left_out = self.work.left_out(source)
            why = ", ".join(f"{documents:,} {reason}" for reason, documents in left_out.items())
            said = [f"source '{source}' has no documents{f' (left out: {why})' if why else ''}"]
            said += self.work.first_left_out(source)
            if left_out["bad input"] or left_out[WITHOUT_TEXT]:
                self.work.write_bad_input(self.work.folder)
                said.append(f"all bad input is listed in {self.work.folder / BAD_INPUT}")
                said.append("correct the files, or the source's reader, text_column, encoding or delimiter")
            raise DataError("; ".join(said))
        if validation >= 1 and count["validation"] < validation:
            smaller = "a smaller number, or " if count["validation"] else ""
            raise DataError(
                f"source '{source}': validation={validation:.0f} is a number of documents, and {count['validation']} "
                f"of its {total} can be held out, as {RESERVED:.0%} are reserved for that; set {smaller}a fraction "
                "such as validation=0.05"
            )
        for split in SPLITS:
            if not count[split]:
                raise DataError(
                    f"source '{source}': none of its {total} documents is in the {split} split with "
                    f"validation={validation}; add documents or change 'validation'"
                )

    def _texts(self) -> Iterator[str]:
        """Yield the training documents; if they have more than TRAIN_BYTES of text, a selection by hash."""
        there = sum(part["bytes"]["train"] for part in self.work.read_json("read"))
        share = min(1.0, TRAIN_BYTES / max(1, there))
        for rank, task in enumerate(self.work.tasks):
            conversations = self.work.config.sources[task.source].conversations is not None
            for batch in read_documents(self.work.documents(rank, "train"), self.work.dropped(rank)):
                # other bits of the hash than those that decide the split
                texts = [text for _, text, hash_ in batch if int.from_bytes(hash_[8:]) < share * 2**64]
                yield from map(spoken, texts) if conversations else texts


class WriteShards(Step):
    """Tokenise, pack and write: one task for each part, and one for each source's held-out documents."""

    name = "shards"

    def __init__(self, work: Work) -> None:
        super().__init__(work, len(work.tasks) + len(work.config.sources))

    def do(self, rank: int) -> None:
        if rank < len(self.work.tasks):
            task = self.work.tasks[rank]
            what = task.source, "train", task.number, [rank]
        else:
            source = list(self.work.config.sources)[rank - len(self.work.tasks)]
            what = source, "validation", 0, self.work.files_of(source, "validation")
        conversations = self.work.config.sources[what[0]].conversations is not None
        (write_conversations if conversations else write_shards)(self.work, rank, *what)


class Finish(Step):
    """Write indices, manifests and statistics, and move the prepared folder to `out`."""

    name = "finish"

    def __init__(self, work: Work, made_of: dict) -> None:
        super().__init__(work, 1)
        self.made_of = made_of

    def do(self, rank: int) -> None:
        finish(self.work, self.made_of)


def stages_of(work: Work, made_of: dict) -> list[Stage]:
    """Return all stages of a preparation; `made_of` are the settings to write into its statistics."""
    config = work.config
    stages = [
        *(_stages(ReadDocuments(work), FindExactDuplicates(work)) if config.sources else []),
        *(_near_duplicates(work) if config.sources else []),
        *(_stages(CollectHeldOut(work)) if config.labelled else []),
        *(_stages(DropHeldOut(work)) if config.labelled and config.sources else []),
        *_stages(MakeTokenizer(work)),
        *(_stages(WriteShards(work)) if config.sources else []),
        *(_stages(WriteLabelled(work)) if config.labelled else []),
        *_stages(Finish(work, made_of)),
    ]
    for before, stage in pairwise(stages):
        stage.steps.insert(0, After(work, stage.name, before))
    return stages


def _stages(*steps: Step) -> list[Stage]:
    return [Stage(step.name, [step], step.tasks) for step in steps]


def _near_duplicates(work: Work) -> list[Stage]:
    """Return datatrove's stages of MinHash deduplication, and the stage that chooses the documents to keep."""
    options = minhash_options(work.config.deduplication)
    if options is None:
        return []
    language = options.pop("language", "en")
    config = MinhashConfig(**options)
    signatures, pairs, clusters = (work.folder / "minhash" / name for name in ("signatures", "pairs", "clusters"))
    return [
        Stage(
            "minhash-signatures",
            [ReadWritten(work), MinhashDedupSignature(str(signatures), config, language=language)],
            len(work.files),
        ),
        Stage("minhash-pairs", [MinhashDedupBuckets(str(signatures), str(pairs), config=config)], config.num_buckets),
        Stage(
            "minhash-clusters", [MinhashDedupCluster(str(pairs), str(clusters), config=config, save_cluster_id=True)], 1
        ),
        Stage(ChooseNearDuplicates.name, [ChooseNearDuplicates(work, clusters)], 1),
    ]
