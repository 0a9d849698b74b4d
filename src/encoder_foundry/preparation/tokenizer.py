"""The tokenizer: trained on the corpus, or taken from a Hugging Face directory; either way saved beside the shards.

Byte-level BPE with all 256 bytes in its alphabet, without a normaliser or an added first space, so that every text
comes back from its tokens exactly. Ids 0 to 4 are [UNK] [CLS] [SEP] [PAD] [MASK]; then the bytes, the merges, and
[unused0] … up to a multiple of 64, which the matrix units want of a vocabulary. The unused tokens are in the
vocabulary only and no merge leads to one: text which spells "[unused0]" is read as the text it is.

The same holds for the special tokens while a corpus is tokenised: documentation that mentions [MASK] must not put a
mask into the training data. The saved tokenizer does read them, as fill-mask needs; its [MASK] takes the space before
it along, as ModernBERT's does, because a token of this BPE begins with its space.

transformers, seconds to import, is imported where a tokenizer is saved or opened.
"""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from encoder_foundry.data.rows import SPECIAL_TOKENS, fingerprint
from encoder_foundry.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MULTIPLE = 64
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256  # no merges at all


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE; its vocabulary is `vocab_size`, rounded up to a multiple of 64, on any corpus.

    The same texts in the same order give the same tokenizer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[
            AddedToken(token, special=True, normalized=False, lstrip=token == SPECIAL_TOKENS["mask_token"])
            for token in SPECIAL_TOKENS.values()
        ],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer = _padded(tokenizer, vocab_size)
    cls, sep = SPECIAL_TOKENS["cls_token"], SPECIAL_TOKENS["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B {sep}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )
    return tokenizer


def _padded(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """The same tokenizer with unused tokens in its BPE's vocabulary up to the next multiple of 64."""
    content = json.loads(tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    learned = len(vocabulary)
    for id_ in range(learned, -(-vocab_size // MULTIPLE) * MULTIPLE):
        vocabulary[f"[unused{id_ - learned}]"] = id_
    return Tokenizer.from_str(json.dumps(content))


def save_trained(tokenizer: Tokenizer, directory: Path, max_length: int) -> None:
    """Save what `train_tokenizer` gave as a Hugging Face fast tokenizer for models of `max_length` tokens."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **SPECIAL_TOKENS)
    _save(fast, directory, max_length)


def save_copy(path: Path, directory: Path, max_length: int) -> None:
    """Save the Hugging Face tokenizer in `path` for models of `max_length` tokens, its fingerprint unchanged."""
    _save(open_fast(path), directory, max_length)
    shutil.copy(path / "tokenizer.json", directory)


def _save(fast: "PreTrainedTokenizerFast", directory: Path, max_length: int) -> None:
    fast.model_max_length = max_length
    fast.model_input_names = ["input_ids", "attention_mask"]  # no token types
    fast.init_kwargs["model_input_names"] = fast.model_input_names  # without this it is not saved
    fast.save_pretrained(directory)


def open_fast(path: Path) -> "PreTrainedTokenizerFast":
    """Open a Hugging Face fast tokenizer and see to it that it serves for masked-language-model training here.

    Raises:
        DataError: it cannot be read, or one of SPECIAL_TOKENS is not in it or not known for what it is.
    """
    fingerprint(path)
    from transformers import AutoTokenizer

    try:
        fast = AutoTokenizer.from_pretrained(path, local_files_only=True)
        vocabulary = Tokenizer.from_file(str(path / "tokenizer.json")).get_vocab(with_added_tokens=True)
    except Exception as error:  # both raise whatever their parts raise
        reason = (str(error) or repr(error)).splitlines()[0]
        raise DataError(f"{path}: transformers cannot open this tokenizer: {reason}") from error
    if not fast.is_fast:
        raise DataError(f"{path}: a fast tokenizer is wanted, and this is a {type(fast).__name__}")
    for role, token in SPECIAL_TOKENS.items():
        there = fast.special_tokens_map.get(role)
        if there != token:
            raise DataError(f"{path}: the tokenizer's {role} is wanted to be {token}, and it has {there or 'none'}")
        if token not in vocabulary:  # named in the configuration only: it would get an id beyond the vocabulary
            raise DataError(f"{path}: {token} is not in tokenizer.json; add it to the tokenizer and save it again")
    return fast


class CorpusTokenizer:
    """A tokenizer that was saved here, as preparation uses it: text to content ids, with all cores and nothing else."""

    def __init__(self, directory: Path) -> None:
        self.fingerprint = fingerprint(directory)
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.cls_id = self._tokenizer.token_to_id(SPECIAL_TOKENS["cls_token"])
        self.sep_id = self._tokenizer.token_to_id(SPECIAL_TOKENS["sep_token"])
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # "[MASK]" in a text is six characters, not a mask
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, uint32 `[tokens]`: nothing cut, nothing added."""
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of content ids, exactly."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)
