"""The tokenizer: trained on the corpus or copied from a Hugging Face directory, and saved beside the shards.

By default, the trained one is a byte-level BPE that splits text like the OLMo tokenizer (GPT-NeoX-20B's), which suits
code. Words are GPT-2's, so a run of digits is one word, and the merges decide how it is cut. Each run of 2 to 24 spaces
is one token and is matched before words, so a word is the same token after an indentation as at the start of a line.
The merges are learned without these runs; GPT-NeoX spent some merges on them that no text can use. Unlike GPT-NeoX, it
has no NFC normaliser, so that tokens decode to exactly the same text.

Ids 0 to 4 are [UNK] [CLS] [SEP] [PAD] [MASK]. Then come all 256 bytes, the merges, the runs of spaces, and [unused0] …
up to a multiple of 64, the size that matrix units compute fastest. The unused tokens are only in the vocabulary and no
merge leads to one, so a text that contains "[unused0]" is encoded as ordinary text.

The other kind is BERT's lower-cased WordPiece, for Chinese: `tokenizers`' BertNormalizer puts blanks around each
Chinese character, so each is a token, and words of other scripts are cut into pieces. Ids 0 to 4 are [PAD] [UNK] [CLS]
[SEP] [MASK], as in BERT's vocabularies. Then come the characters (first those that continue a word, as ##a, then all in
the order of Unicode), pieces of words, and [unused0] …. A character that occurs once is not in the vocabulary.

The tokenizer of a decoder (`causal`) is the same BPE with SentencePiece's special tokens: ids 0 to 2 are <s> </s>
<pad>. In rows, each document is between <s> and </s>. The saved tokenizer adds only <s>, because a prompt is to be
continued.

A tokenizer from elsewhere keeps its spelling of the special tokens. Missing ones (GPT-2 has no mask) are added with
BERT's names, except to a decoder's tokenizer, whose model may exist already. It is saved as transformers' plain
PreTrainedTokenizerFast, because the tokenizer class of a model may add special tokens when it is opened, contrary to
tokenizer.json.

transformers takes seconds to import, so it is imported only when a tokenizer is saved or opened.
"""

import json
import logging
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from rotary_foundry.data.fast_tokenizer import open_fast
from rotary_foundry.data.rows import FRAME, OF_DECODERS, SPECIAL_TOKENS, Frame
from rotary_foundry.data.special_tokens import OF_ENCODERS, RARE, padded, rewrite_config
from rotary_foundry.data_prep.encoding import open_tokenizer, pieces
from rotary_foundry.runs.run_folder import GENERATION
from rotary_foundry.utils.errors import DataError

RUNS = [" " * length for length in range(24, 1, -1)]  # in GPT-NeoX's order
TRAINING_PIECE = 2**16  # characters; `tokenizers` reads 256 of them ahead
# A run of letters, digits or signs that is no word, such as a genome. Training takes 47 bytes of memory and 23
# microseconds for each character of different words (huggingface/tokenizers#1170, #994).
NO_WORD = re.compile(r"[^\W\d_]{1000,}|\d{1000,}|[^\w\s]{1000,}")
CAUSAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256 + len(RUNS)  # no merges at all
SMALLEST_WORDPIECE = 64  # any corpus has more characters
WORDPIECE_ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")  # ids 0 to 4
SEEN = 2  # a character or a pair of pieces must occur at least so often to enter the vocabulary

log = logging.getLogger(__name__)


def train_tokenizer(texts: Iterable[str], vocab_size: int, causal: bool = False) -> Tokenizer:
    """Train a byte-level BPE with a vocabulary of `vocab_size`, rounded up to a multiple of 64.

    The vocabulary has this size for any corpus. The same texts in the same order give the same tokenizer. Memory grows
    with the number of different words; runs of characters that are longer than any word (NO_WORD) are left out.

    Args:
        causal: whether to train it for a decoder, with a decoder's special tokens.
    """
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(f" {{2,{len(RUNS[0])}}}"), behavior="removed"), words]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(RUNS),
        min_frequency=SEEN,
        special_tokens=[_special(token, role) for role, token in _special_tokens(causal).items()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_read(texts), trainer)
    tokenizer.pre_tokenizer = words
    tokenizer = _padded(tokenizer, vocab_size)
    tokenizer.add_tokens([AddedToken(run, normalized=False) for run in RUNS])
    if causal:
        bos = CAUSAL_TOKENS["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    else:
        _frame(tokenizer, SPECIAL_TOKENS)
    return tokenizer


def _read(texts: Iterable[str]) -> Iterator[str]:
    """Yield the texts in pieces, for training, without runs that are longer than any word (NO_WORD)."""
    return (NO_WORD.sub(" ", piece) for text in texts for piece in pieces(text, TRAINING_PIECE))


def _special_tokens(causal: bool) -> dict[str, str]:
    return CAUSAL_TOKENS if causal else SPECIAL_TOKENS


def train_wordpiece(texts: Callable[[], Iterable[str]], vocab_size: int) -> Tokenizer:
    """Train BERT's lower-cased WordPiece with a vocabulary of `vocab_size`, rounded up to a multiple of 64.

    The most frequent characters that fit are in the vocabulary; a word with any other becomes [UNK]. The same texts in
    the same order give the same tokenizer. To ensure this, characters are counted here: the trainer of `tokenizers`
    numbers those that continue a word in an order that changes from run to run.

    Args:
        texts: called twice, to count characters and to train.
    """
    tokenizer = _wordpiece({})
    special = [SPECIAL_TOKENS[role] for role in WORDPIECE_ROLES]
    characters, continuing = _alphabet(tokenizer, texts(), vocab_size - len(special))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=SEEN,
        special_tokens=special + continuing,  # these keep their order
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_read(texts()), trainer)
    tokenizer = _wordpiece(_with_unused(tokenizer.get_vocab(), vocab_size))
    tokenizer.add_special_tokens([_special(SPECIAL_TOKENS[role], role) for role in WORDPIECE_ROLES])
    _frame(tokenizer, SPECIAL_TOKENS)
    return tokenizer


def _wordpiece(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


def _alphabet(tokenizer: Tokenizer, texts: Iterable[str], room: int) -> tuple[list[str], list[str]]:
    """Return the most frequent characters, and the ##forms of those that can continue a word, at most `room` in all."""
    occurring: Counter[str] = Counter()
    for text in texts:
        occurring.update(text)
    counts: Counter[str] = Counter()
    for character, count in occurring.items():
        for normal in tokenizer.normalizer.normalize_str(character).strip():
            counts[normal] += count
    characters, continuing = [], []
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        word = tokenizer.normalizer.normalize_str(f"a{character}")
        continues = len(tokenizer.pre_tokenizer.pre_tokenize_str(word)) == 1 and word != "a"
        if count < SEEN or len(characters) + len(continuing) + 1 + continues > room:
            break
        characters.append(character)
        continuing += [f"##{character}"] if continues else []
    return characters, sorted(continuing)


def _with_unused(vocabulary: dict[str, int], vocab_size: int) -> dict[str, int]:
    """Return the vocabulary with unused tokens up to the next multiple of 64."""
    learned = len(vocabulary)
    return vocabulary | {f"[unused{id_ - learned}]": id_ for id_ in range(learned, padded(vocab_size))}


def _padded(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """Add the runs of spaces, and unused tokens up to a multiple of 64, to the vocabulary of a tokenizer."""
    content = json.loads(tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    for run in RUNS:
        vocabulary[run] = len(vocabulary)
    content["model"]["vocab"] = _with_unused(vocabulary, vocab_size)
    return Tokenizer.from_str(json.dumps(content))


def _special(token: str, role: str) -> AddedToken:
    """Make an added token. A mask includes the space before it, because a token of a BPE begins with its space."""
    return AddedToken(token, special=True, normalized=False, lstrip=role == "mask_token")


def _frame(tokenizer: Tokenizer, spelling: dict[str, str]) -> None:
    """Set the special tokens around texts and pairs of texts as in BERT: [CLS] text [SEP] second text [SEP]."""
    before, after = ([spelling[role] for role in roles] for roles in (FRAME.before, FRAME.after))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join([*before, "$A", *after]),
        pair=" ".join([*before, "$A", *after, "$B", *after]),
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (*before, *after)],
    )


def save_trained(tokenizer: Tokenizer, directory: Path, max_length: int, causal: bool = False) -> None:
    """Save a tokenizer that was trained here as a Hugging Face fast tokenizer for models of `max_length` tokens."""
    _save(tokenizer, _special_tokens(causal), directory, max_length)


def save_copy(path: Path, directory: Path, max_length: int, causal: bool = False) -> None:
    """Save the Hugging Face tokenizer in `path` for models of `max_length` tokens.

    A tokenizer that lacks nothing keeps its fingerprint; additions to any other are logged. Its chat template and the
    generation_config.json in `path` are saved with it.

    Raises:
        DataError: as `open_brought`.
    """
    brought = open_brought(path, causal)
    _save(brought.tokenizer, brought.roles, directory, max_length, brought.chat_template)
    for change in brought.changes:
        log.info(f"{path}: the tokenizer was given {change}")
    if not brought.tokenizer.encode(RARE, add_special_tokens=False).ids:
        log.info(f"{path}: the tokenizer has no unknown token, so it leaves out text that it does not know")
    if not brought.changes:
        shutil.copy(path / "tokenizer.json", directory)
    if (path / GENERATION).is_file():
        shutil.copy(path / GENERATION, directory)


def _save(
    tokenizer: Tokenizer,
    roles: dict[str, str | list[str]],
    directory: Path,
    max_length: int,
    chat_template: str | dict[str, str] | None = None,
) -> None:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,  # True would remove spaces from decoded text
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],  # no token types
        chat_template=chat_template,
        **roles,
    )
    fast.save_pretrained(directory, save_jinja_files=False)  # puts the template into tokenizer_config.json
    rewrite_config(directory)


@dataclass(frozen=True)
class Brought:
    """A tokenizer from elsewhere, with the special tokens that training needs."""

    tokenizer: Tokenizer
    roles: dict[str, str | list[str]]  # the spelling of special tokens, by transformers' role names
    changes: list[str]  # descriptions of what was added to it; empty if nothing was
    chat_template: str | dict[str, str] | None  # by name, if it has several


def open_brought(path: Path, causal: bool = False) -> Brought:
    """Open a Hugging Face fast tokenizer, and add the special tokens that it lacks, except to a decoder's tokenizer.

    Raises:
        DataError: it cannot be read, is not a fast tokenizer, or has a special token without an id or in two roles; or
            `causal` is set, and it has no tokens for the beginning and the end of a document.
    """
    tokenizer = open_tokenizer(path)
    fast = open_fast(path)
    roles = dict(fast.special_tokens_map)
    if fast.extra_special_tokens:
        roles["extra_special_tokens"] = [str(token) for token in fast.extra_special_tokens]
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    for role, token in roles.items():  # a token named only in the configuration would get an id beyond the vocabulary
        if isinstance(token, str) and token not in vocabulary:
            raise DataError(
                f"{path}: the tokenizer's {role} is {token}, which is not in tokenizer.json; "
                "add the token to the tokenizer and save it again, or remove the role"
            )
    if causal:
        for other, role in OF_DECODERS.items():
            if role not in roles and other not in roles:
                raise DataError(
                    f"{path}: the tokenizer has no {role}, which `tokenizer.causal: true` needs around every document; "
                    "name one of its tokens in tokenizer_config.json, or choose another tokenizer"
                )
        return Brought(tokenizer, roles, [], fast.chat_template)
    changes = []
    for role in OF_ENCODERS:
        if role not in roles:
            roles[role] = SPECIAL_TOKENS[role]
            tokenizer.add_special_tokens([_special(roles[role], role)])
            changes.append(f"{roles[role]} as its {role}")
    _refuse_shared_ids(path, tokenizer, roles)
    if not _framed(tokenizer, roles):
        _frame(tokenizer, roles)
        changes.append(f"{roles['cls_token']} before and {roles['sep_token']} after each text")
    return Brought(tokenizer, roles, changes, fast.chat_template)


def _refuse_shared_ids(path: Path, tokenizer: Tokenizer, roles: dict[str, str | list[str]]) -> None:
    taken: dict[str, str] = {}
    for role in OF_ENCODERS:
        other = taken.setdefault(roles[role], role)
        if other != role:
            raise DataError(f"{path}: {roles[role]} is both {other} and {role}; give each role a token of its own")
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    if len(set(vocabulary.values())) < len(
        vocabulary
    ):  # `tokenizers` takes the size as the next id, even if it is taken
        raise DataError(
            f"{path}: two tokens would share an id, because tokenizer.json skips ids; renumber its vocabulary"
        )


def _framed(tokenizer: Tokenizer, roles: dict[str, str | list[str]]) -> bool:
    """Return whether the tokenizer already puts its [CLS] and [SEP] around a text."""
    return Frame.of(tokenizer) == FRAME.ids({role: tokenizer.token_to_id(roles[role]) for role in OF_ENCODERS})
