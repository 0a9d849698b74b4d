"""Write each conversation into one row: pack short ones; those of `alone_from` tokens or more get a row of their own.

A conversation that no row can hold is left out, and named in bad_input.txt. With `too_long: cut_left` it loses the
first tokens of the first user's turn instead; the headers of turns and all answers stay. The longest row length decides
whether a conversation is in the corpus, and rows of shorter lengths lack conversations that do not fit them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from datatrove.data import Document

from rotary_foundry.data.packing import BUFFER_TOKENS, WholePacker
from rotary_foundry.data.rows import Row, token_dtype
from rotary_foundry.data.target_context import count_longer, count_responses
from rotary_foundry.data_prep.conversations.chat_template import ChatTemplate, open_template
from rotary_foundry.data_prep.conversations.response_tokens import ConversationEncoder, EncodedConversation
from rotary_foundry.data_prep.corpus_config import CorpusConfig
from rotary_foundry.data_prep.encoding import CorpusTokenizer
from rotary_foundry.data_prep.length_bands import band_names, bands_of
from rotary_foundry.data_prep.readers import BadInput, SourceConfig
from rotary_foundry.data_prep.readers.messages import Message, Unusable, from_text
from rotary_foundry.data_prep.tokenizer import CAUSAL_TOKENS
from rotary_foundry.data_prep.work import Work
from rotary_foundry.data_prep.writing import DocumentTable, KeptDocuments, StoredShards

NO_OFFSETS = np.empty((0, 2), np.int64)  # offsets of a waiting conversation


def template_of(config: CorpusConfig) -> ChatTemplate:
    """Open the chat template of a corpus of conversations. Raises DataError as `open_template`."""
    return open_template(config.tokenizer.path, config.tokenizer.chat_template, CAUSAL_TOKENS)


def renderable(documents: Iterator[Document], template: ChatTemplate, bad: BadInput) -> Iterator[Document]:
    """Yield the conversations that the chat template renders so that turns are found, and list the others as bad."""
    for document in documents:
        try:
            template.render(from_text(document.text))
        except Unusable as error:
            bad.add(document.id, str(error))
        else:
            yield document


def write_conversations(work: Work, rank: int, source: str, split: str, number: int, files: list[int]) -> None:
    """Render and encode document files, pack them for each row length, and write them as a part of a source's split.

    Raises:
        DataError: more conversations than `max_bad_documents` allows cannot be trained on.
    """
    config, directory = work.config, work.whole / "tokenizer"
    encode = ConversationEncoder(directory, template_of(config))
    tokenizer = CorpusTokenizer(directory)
    vocab_size, unknown = tokenizer.vocab_size, 0
    bounds = config.sources[source].length_bands
    bands = [
        _Part(work, name, split, number, encode, config.sources[source], vocab_size)
        for name in band_names(source, bounds)
    ]
    documents, bad = KeptDocuments(work, split, files), BadInput(source, config.max_bad_documents)
    frequencies = np.zeros(vocab_size, np.int64)  # of predicted tokens
    too_long = []
    for ids, texts in documents:
        for id_, text in zip(ids, texts, strict=True):
            messages = from_text(text)
            try:
                conversation = encode(messages)
            except Unusable as error:
                bad.add(id_, str(error))
                continue
            band = bands[bands_of(np.array([len(conversation.tokens)]), bounds)[0]]
            if why := band.add(id_, messages, conversation):
                too_long.append(f"{id_}: {why}")
            else:
                unknown += int(np.count_nonzero(conversation.tokens == tokenizer.unknown))
                frequencies += np.bincount(conversation.tokens[conversation.responses == 1], minlength=vocab_size)
    counts = {"left_out": documents.left_out, "unknown": unknown, "bad": bad.listed, "too_long": too_long}
    work.write_json("written", rank, counts | {"bands": [band.close() for band in bands]})
    if split == "validation":
        np.save(work.folder / "written" / f"{rank:05d}.npy", frequencies)


class _Part:
    """Writes the rows of all lengths, and the table of conversations, of one part and split of a source."""

    def __init__(
        self,
        work: Work,
        name: str,
        split: str,
        number: int,
        encode: ConversationEncoder,
        source: SourceConfig,
        vocab_size: int,
    ) -> None:
        self._named = {"source": name, "split": split, "number": number}
        self._encode, self._cuts = encode, source.too_long == "cut_left"
        lengths = sorted(work.config.row_lengths, reverse=True)
        self._rows = [_Rows(work, name, split, number, length, source, vocab_size) for length in lengths]
        folder, part = work.place(name, number)
        self._table = DocumentTable(work.whole / folder / "documents" / split / f"{part}.parquet", responses=True)
        self._lines: list[tuple[str, int, int, int]] = []
        self._tokens = self._bytes = 0
        self._missing: dict[str, Counter] = {"left_out": Counter(), "cut": Counter()}  # by row length

    def add(self, id_: str, messages: Sequence[Message], conversation: EncodedConversation) -> str | None:
        """Add a conversation; if no row can hold it, return the reason."""
        number = len(self._lines)
        for rows in self._rows:
            over, fitting = len(conversation.tokens) - rows.row_length, conversation
            if over > 0:
                try:
                    fitting = self._cut(messages, conversation, over)
                except Unusable as error:
                    self._missing["left_out"][str(rows.row_length)] += 1
                    if rows is self._rows[0]:
                        return str(error)
                    continue
                self._missing["cut"][str(rows.row_length)] += 1
            rows.add(number, fitting._replace(offsets=NO_OFFSETS))
            if rows is self._rows[0]:
                size = sum(len(message["content"].encode()) for message in messages)
                self._lines.append((id_, size, len(fitting.tokens), int(fitting.responses[1:].sum())))
        return None

    def _cut(self, messages: Sequence[Message], conversation: EncodedConversation, tokens: int) -> EncodedConversation:
        if self._cuts:
            return self._encode.without_first(messages, conversation, tokens)
        raise Unusable(f"has {len(conversation.tokens):,} tokens, {tokens:,} more than a row")

    def close(self) -> dict:
        """Finish the files, and return the counts."""
        ids, *counts = zip(*self._lines, strict=True) if self._lines else ((), (), (), ())
        self._table.add(list(ids), *(np.array(column, np.int64) for column in counts))
        self._table.close()
        written = {str(rows.row_length): rows.close() for rows in self._rows}
        of_table = {key: getattr(self._table, key) for key in ("documents", "bytes", "tokens")}
        return self._named | of_table | {"rows": written, "conversations": self._missing}


class _Waiting(NamedTuple):
    """A conversation that is not in a row yet."""

    number: int
    conversation: EncodedConversation


class _Rows:
    """Writes the rows of one length, of one part and split."""

    def __init__(
        self, work: Work, name: str, split: str, number: int, row_length: int, source: SourceConfig, vocab_size: int
    ) -> None:
        self.row_length, self._alone_from = row_length, source.alone_from or row_length + 1
        self._packer = WholePacker(row_length, buffer_tokens=BUFFER_TOKENS)
        self._waiting: dict[int, _Waiting] = {}  # by its index in the packer
        self._added = 0
        place, part = work.place(name, number)
        folder = f"{place}/{row_length}/{split}/{part}"
        self._writer = StoredShards(work, folder, token_dtype(vocab_size), responses=True)
        self._counts = {"rows": 0, "documents": 0, "tokens": 0}
        self._longer, self._responses = count_longer(np.zeros(0), row_length), 0

    def add(self, number: int, conversation: EncodedConversation) -> None:
        """Add a conversation that fits a row."""
        one = _Waiting(number, conversation)
        if len(conversation.tokens) >= self._alone_from:
            self._put([one])
            return
        self._waiting[self._added] = one
        self._added += 1
        self._write(self._packer.add(len(conversation.tokens)))

    def close(self) -> dict:
        """Write the waiting conversations, and return the counts."""
        self._write(self._packer.finish())
        self._writer.finish()
        responses = np.broadcast_to(self._responses, len(self._longer) + 1)
        return self._counts | {"longer": self._longer.tolist(), "responses": responses.tolist()}

    def _write(self, rows: Iterator[list[int]]) -> None:
        for indices in rows:
            self._put([self._waiting.pop(index) for index in indices])

    def _put(self, together: Sequence[_Waiting]) -> None:
        conversations = [one.conversation for one in together]
        lengths = np.array([len(one.tokens) for one in conversations], np.uint32)
        responses = np.concatenate([one.responses for one in conversations])
        row = Row(
            np.concatenate([one.tokens for one in conversations]),
            lengths,
            np.array([one.number for one in together], np.uint32),
            responses=responses,
        )
        self._writer.write(row)
        self._counts["rows"] += 1
        self._counts["documents"] += len(lengths)
        self._counts["tokens"] += len(row.tokens)
        self._longer += count_longer(lengths, self.row_length)
        self._responses = self._responses + count_responses(responses, lengths, self.row_length)
