"""The prompts of self-instruct, and how replies to them are read.

The prompts ask for the same as the paper's Appendix D, in our own words. The two kinds of question differ only in the
length of the answer. Tags are read strictly: a reply is rejected unless it has both pairs exactly once, because the
text in a broken pair is often half an answer.
"""

import re

from rotary_foundry.data_prep.readers.text_columns import not_text

NORMAL, SHORT = "normal", "short"  # the kinds of question

_QUESTION = """\
Here is a passage from a longer document:

<passage>
{{chunk}}
</passage>

Write one question for a reading test on the whole document, and its correct answer. Everything that the answer needs \
must be in the passage. Whoever takes the test sees the whole document and does not know which passage you read, so \
the question must say what it is about and must not mention the passage. {style}

Put the question between <question> and </question>, and the answer between <answer> and </answer>. Write nothing \
else."""

PROMPTS = {
    NORMAL: _QUESTION.format(style="Answer in one or more complete sentences."),
    SHORT: _QUESTION.format(style="Answer in a few words, such as a name, a number or a phrase, not in a sentence."),
    "critique": """\
Check a question and its answer against a passage.

<passage>
{chunk}
</passage>

Question: {question}

Answer: {answer}

Is the answer correct and complete, does the passage alone show that it is, and can the question be understood by \
somebody who does not know which passage it was made from? If all of this is true, write <verdict>keep</verdict>. \
Otherwise write <verdict>drop</verdict>.""",
    "example": "{document}\n\nAnswer the question about the text above.\n\nQuestion: {question}",
    "example_short": "{document}\n\nAnswer the question about the text above in a few words.\n\nQuestion: {question}",
}
EXAMPLES = {NORMAL: "example", SHORT: "example_short"}  # the prompt of an example, by the kind of its question
FIELD = re.compile(r"\{(chunk|question|answer|document)\}")
REASONING = re.compile(r".*</think>", re.DOTALL)  # what some models write before their reply


class Rejected(Exception):
    """A document that gives no example.

    Args:
        reason: why; the report counts documents by reason.
        detail: what differs between documents, such as a server's message.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class NoReply(Rejected):
    """A request that the generator did not answer. Its reason begins with "no reply"."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"no reply: {reason}", detail)


def fill(template: str, **values: str) -> str:
    """Replace the fields of a prompt. Braces in the values are left as they are."""
    return FIELD.sub(lambda found: values.get(found[1], found[0]), template)


def missing_fields(name: str, text: str) -> list[str]:
    """Return the fields, such as "{chunk}", that the prompt `name` has and `text` lacks."""
    needed = dict.fromkeys(found[0] for found in FIELD.finditer(PROMPTS[name]))
    return [field for field in needed if field not in text]


def tagged(reply: str, tag: str) -> str:
    """Return the text between a pair of tags in a reply, without white space around it.

    Raises:
        Rejected: the pair is missing, incomplete, empty or repeated, or its content is not text.
    """
    reply = REASONING.sub("", reply, count=1)
    before, opened, rest = reply.partition(f"<{tag}>")
    text, closed, after = rest.partition(f"</{tag}>")
    if not reply.strip():
        raise Rejected("an empty reply")
    if not opened:
        raise Rejected(f"no <{tag}>")
    if not closed:
        raise Rejected(f"<{tag}> never closes")
    if any(f"<{slash}{tag}>" in part for part in (before, text, after) for slash in ("", "/")):
        raise Rejected(f"more than one <{tag}>")
    if not text.strip():
        raise Rejected(f"<{tag}> is empty")
    if re.search(r"</?(question|answer|verdict)\b", text):
        raise Rejected(f"<{tag}> has another tag in it")
    if not_text(text):
        raise Rejected(f"<{tag}> has characters that are not text")
    return text.strip()


def is_kept(reply: str) -> bool:
    """Return the verdict of a critique.

    Raises:
        Rejected: the reply has no verdict.
    """
    verdict = tagged(reply, "verdict").lower()
    if verdict not in ("keep", "drop"):
        raise Rejected("a verdict that is neither keep nor drop")
    return verdict == "keep"
