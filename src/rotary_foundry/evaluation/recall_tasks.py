"""The prompts of the suite `recall`: their questions, and the scores of answers.

- A prompt is a beginning, a long text with the needles in it, and a question at the end. The text is as long as the
  length allows, with room for the answer. Nothing is cut off, so no needle is lost. A length counts the tokens that the
  tokenizer puts before a text, the prompt and the room for the answer.
- A needle is between two sentences or lines of the text, as near as possible to its depth: 0 % is the beginning.
- Prompts depend on the seed, the task, the length, the depth and a number. The model's tokenizer decides only how much
  text fits.
- The tasks: a pass key between repeated sentences (after arXiv 2305.16300); a code in held-out text (a needle in a
  haystack); the value of a key in a JSON object of UUIDs (after arXiv 2307.03172); the first sentence of the input
  (arXiv 2309.16039, section 4.1), scored by ROUGE-L; and all variables with a given value, where there are two chains
  of assignments (after RULER, arXiv 2404.06654). The wordings are ours.
"""

import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rotary_foundry.evaluation.decoder_texts import Filler
from rotary_foundry.utils.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from rotary_foundry.evaluation.models import Encoded

NOISE = (
    "The road is long and the sky is grey. A bird sits on the fence. The river runs to the sea. Wind moves the grass. "
    "Here we walk, and there we rest. "
)
WITH_DEPTHS, WITHOUT = ("passkey", "needle", "key_value"), ("first_sentence", "variables")
FROM_DATA = ("needle", "first_sentence", "variables")  # tasks whose text is held out
COLOURS = ("amber", "azure", "black", "brown", "coral", "green", "ivory", "olive", "pearl", "silver", "white")
THINGS = ("anchor", "basket", "candle", "garden", "hammer", "ladder", "mirror", "needle", "pocket", "ribbon", "saddle")
HOPS, CHAINS = 4, 2  # assignments after a chain's first
SPARE = 12  # tokens of room beyond those of the right answer
PAIR = 16  # tokens of two UUIDs, at least
WORDS = 4  # of a first sentence, at least


@dataclass(frozen=True)
class Tokens:
    """A model's tokenizer for prompts: a function that encodes text, and the ids that it puts before every text."""

    encode: Callable[[str], "Encoded"]
    before: NDArray[np.int64]

    def count(self, text: str) -> int:
        """Count the tokens of a text, without those before it."""
        return len(self.encode(text).ids)


@dataclass(frozen=True)
class Prompt:
    """A question and its answer."""

    task: str
    length: int  # the most tokens that prompt and answer may have
    depth: int | None  # of the needle, in percent of the text; None for tasks without one
    number: int
    ids: NDArray[np.int64]  # [tokens], with the tokenizer's tokens before a text
    room: int  # tokens for the answer
    answers: tuple[str, ...]

    @property
    def name(self) -> str:
        """The prompt's name, unique in the suite."""
        return f"{self.task}:{self.length}:{self.depth}:{self.number}"

    def score(self, answer: str) -> float:
        """Return the share of an answer that is right: the share of right values in it, or ROUGE-L of a sentence."""
        if self.task == "first_sentence":
            return rouge_l(answer, self.answers[0])
        return float(np.mean([bool(re.search(rf"(?<!\w){re.escape(one)}(?!\w)", answer)) for one in self.answers]))


@dataclass(frozen=True)
class _Question:
    """A prompt without its long text."""

    head: str
    needles: list[tuple[float, str]]  # depths from 0 to 1, and sentences
    tail: str
    answers: tuple[str, ...]
    told: str  # the right answer as a model would write it


def make_prompt(
    task: str, length: int, depth: int | None, number: int, seed: int, tokens: Tokens, held_out: Filler | None
) -> Prompt:
    """Make one prompt.

    Args:
        depth: in percent; None for tasks without one.
        held_out: the text around the needles, for the tasks FROM_DATA.

    Raises:
        ConfigurationError: `length` has no room for text beside the question.
        DataError: there is less text than `length`, or no document begins with a sentence.
    """
    generator = np.random.default_rng((seed, length, depth or 0, number, *task.encode()))
    filler, start = held_out, 0
    if task == "passkey":
        question = _passkey(depth, generator)
        filler = Filler.of(tokens.encode, [NOISE * (length // len(NOISE.split()) + 1)])
    elif task == "needle":
        question = _needle(depth, generator)
    elif task == "key_value":
        question = _key_value(depth, generator)
        pairs = [_pair(_uuid(generator), _uuid(generator)) for _ in range(length // PAIR + 1)]
        filler = Filler.of(tokens.encode, ["".join(pairs)])
    elif task == "variables":
        question = _variables(generator)
    else:
        start = _beginning(held_out, generator)
        question = _first_sentence(held_out.pieces[start].strip())
    if task in ("needle", "variables"):
        start = int(generator.integers(len(held_out.pieces)))
    room = tokens.count(f" {question.told}") + (0 if task == "first_sentence" else SPARE)
    ids = _filled(question, filler, start, length - room, tokens, f"{task} at {length:,} tokens")
    return Prompt(task, length, depth, number, ids, room, question.answers)


def rouge_l(answer: str, reference: str) -> float:
    """Return ROUGE-L (Lin 2004): F1 of the longest common subsequence of words, in lower case."""
    ours, theirs = (re.findall(r"\w+", text.lower()) for text in (answer, reference))
    longest = [0] * (len(theirs) + 1)  # of the words of ours so far and the first words of theirs
    for word in ours:
        previous = list(longest)
        for index, other in enumerate(theirs):
            longest[index + 1] = previous[index] + 1 if word == other else max(previous[index + 1], longest[index])
    return 2 * longest[-1] / (len(ours) + len(theirs)) if longest[-1] else 0.0


def _passkey(depth: int, generator: np.random.Generator) -> _Question:
    key = str(generator.integers(10_000, 100_000))
    return _Question(
        "A pass key is hidden in the text below. Remember it.\n\n",
        [(depth / 100, f"The pass key is {key}. Remember it: {key} is the pass key. ")],
        "\n\nQuestion: What is the pass key?\nAnswer: The pass key is",
        (key,),
        key,
    )


def _needle(depth: int, generator: np.random.Generator) -> _Question:
    name = f"{generator.choice(COLOURS)} {generator.choice(THINGS)}"
    code = str(generator.integers(1_000_000, 10_000_000))
    return _Question(
        "One sentence of the text below tells a code. Remember it.\n\n",
        [(depth / 100, f"The code of the {name} is {code}. ")],
        f"\n\nQuestion: What is the code of the {name}?\nAnswer: The code of the {name} is",
        (code,),
        code,
    )


def _key_value(depth: int, generator: np.random.Generator) -> _Question:
    key, value, *last = (_uuid(generator) for _ in range(4))
    return _Question(
        "Find the value of a key in the JSON object below.\n\n{\n",
        [(depth / 100, _pair(key, value))],
        "\n" + _pair(*last).removesuffix(",\n") + f'\n}}\n\nQuestion: What is the value of the key?\nAnswer: "{key}":',
        (value,),
        f'"{value}"',
    )


def _pair(key: str, value: str) -> str:
    return f'"{key}": "{value}",\n'


def _uuid(generator: np.random.Generator) -> str:
    return str(uuid.UUID(bytes=generator.bytes(16), version=4))


def _variables(generator: np.random.Generator) -> _Question:
    letters = generator.integers(26, size=(CHAINS * (HOPS + 1), 5))
    names = ["".join(chr(ord("A") + letter) for letter in of_name) for of_name in letters]
    values = [str(value) for value in generator.choice(np.arange(10_000, 100_000), CHAINS, replace=False)]
    needles = []
    for chain, value in enumerate(values):
        of_chain = names[chain::CHAINS]
        depths = np.sort(generator.random(len(of_chain)))
        assigned = zip(of_chain, [value, *of_chain], strict=False)
        needles += zip(depths, (f"VAR {name} = {given}. " for name, given in assigned), strict=True)
    asked = tuple(names[::CHAINS])
    return _Question(
        "Variables are assigned in the text below. Remember their values.\n\n",
        needles,
        f"\n\nQuestion: Which variables have the value {values[0]}?\n"
        f"Answer: The variables that have the value {values[0]} are",
        asked,
        ", ".join(asked),
    )


def _first_sentence(sentence: str) -> _Question:
    tail = "\n\nQuestion: What is the first sentence of the text above?\nAnswer:"
    return _Question("", [], tail, (sentence,), sentence)


def _beginning(filler: Filler, generator: np.random.Generator) -> int:
    """Draw a document or a paragraph that begins with a sentence; return its first piece."""
    of_words = [begin for begin in filler.begins if len(re.findall(r"\w+", filler.pieces[begin])) >= WORDS]
    if not of_words:
        raise DataError(f"data: no document or paragraph begins with {WORDS} words in a line; first_sentence needs one")
    return int(generator.choice(of_words))


def _filled(
    question: _Question, filler: Filler, start: int, budget: int, tokens: Tokens, what: str
) -> NDArray[np.int64]:
    """Return the ids of a question with as much text as `budget` tokens allow, from piece `start` of the filler on."""
    needles = [needle for _, needle in question.needles]
    fixed = len(tokens.before) + sum(tokens.count(part) for part in (question.head, *needles, question.tail))
    try:
        pieces, sizes = filler.stretch(start, max(0, budget - fixed))
    except ValueError as error:
        raise DataError(
            f"data: {what} needs {budget - fixed:,} tokens of text, and there are {error}; give more documents"
        ) from None
    for left in range(len(pieces), 0, -1):  # sizes were counted in other surroundings, so the last pieces may not fit
        text = question.head + _inserted(pieces[:left], sizes[:left], question.needles).rstrip() + question.tail
        ids = np.concatenate([tokens.before, tokens.encode(text).ids])
        if len(ids) <= budget:
            return ids
    raise ConfigurationError(
        f"lengths: {what} leaves no room for text: the question and its answer alone take about {fixed:,} tokens; "
        "give longer ones"
    )


def _inserted(pieces: Sequence[str], sizes: NDArray[np.int64], needles: Sequence[tuple[float, str]]) -> str:
    """Put each needle between two pieces, as near as possible to its depth."""
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    places = sorted(
        (int(np.abs(bounds - depth * bounds[-1]).argmin()), order) for order, (depth, _) in enumerate(needles)
    )
    made, done = [], 0
    for place, order in places:
        made += [*pieces[done:place], needles[order][1]]
        done = place
    return "".join([*made, *pieces[done:]])
