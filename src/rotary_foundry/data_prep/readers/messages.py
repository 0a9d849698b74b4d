"""Read a conversation from the columns of a row, in one of three forms, and check its turns.

    messages         [{"role": "user", "content": …}, {"role": "assistant", "content": …}, …]
    sharegpt         `conversations`: [{"from": "human", "value": …}, {"from": "gpt", "value": …}, …]
    prompt_response  two columns of text

Other columns, and other keys of a turn, are ignored. A conversation may begin with a system turn. Then user and
assistant alternate, and the assistant has the last turn. Tools and pictures are refused.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rotary_foundry.data_prep.readers import CONVERSATIONS
from rotary_foundry.data_prep.readers.text_columns import not_text

KEYS = {"messages": ("role", "content"), "sharegpt": ("from", "value")}  # of a turn
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}

Message = dict[str, str]  # role and content


class Unusable(ValueError):
    """Why a conversation cannot be trained on."""


def read_conversation(form: str, row: Mapping[str, Any]) -> list[Message]:
    """Return the turns of a row, in transformers' form.

    Args:
        form: a key of CONVERSATIONS.
        row: its columns.

    Raises:
        Unusable: the row is not of this form, a turn is empty, or the roles are out of order.
    """
    if form == "prompt_response":
        turns = zip(("user", "assistant"), CONVERSATIONS[form], strict=True)
        found = [{"role": role, "content": row[column]} for role, column in turns]
    else:
        column, (role, content) = CONVERSATIONS[form][0], KEYS[form]
        turns = row[column]
        if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
            raise Unusable(f"column '{column}': expected a list of at least one turn, got {_shown(turns)}")
        found = [_message(number, turn, role, content) for number, turn in enumerate(turns)]
    for number, message in enumerate(found):
        if problem := not_text(message["content"]):
            raise Unusable(f"turn {number} ({message['role']}) {problem}")
        if not message["content"].strip():
            raise Unusable(f"turn {number} ({message['role']}) is empty")
    _check_order([message["role"] for message in found])
    return found


def _message(number: int, turn: Any, role: str, content: str) -> Message:
    if not isinstance(turn, Mapping) or role not in turn or content not in turn:
        raise Unusable(f"turn {number}: expected an object with '{role}' and '{content}', got {_shown(turn)}")
    if not isinstance(turn[role], str) or turn[role] not in ROLES:
        raise Unusable(f"turn {number}: role {_shown(turn[role])} is not known; there are {', '.join(ROLES)}")
    return {"role": ROLES[turn[role]], "content": turn[content]}


def _check_order(roles: list[str]) -> None:
    first = int(roles[0] == "system")
    for number, role in enumerate(roles[first:], first):
        expected = ("user", "assistant")[(number - first) % 2]
        if role != expected:
            raise Unusable(f"turn {number} is of the {role}, expected the {expected}: roles are out of order")
    if roles[-1] != "assistant":
        raise Unusable(f"ends with a turn of the {roles[-1]}, after which there is nothing to predict")


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"


def to_text(messages: Sequence[Message]) -> str:
    """Return turns as one line of JSON, which represents the conversation between the stages of a preparation."""
    return json.dumps([[message["role"], message["content"]] for message in messages], ensure_ascii=False)


def spoken(text: str) -> str:
    """Return the contents of the turns in the text that `to_text` made, one paragraph per turn."""
    return "\n\n".join(message["content"] for message in from_text(text))


def from_text(text: str) -> list[Message]:
    """Return the turns in the text that `to_text` made."""
    return [{"role": role, "content": content} for role, content in json.loads(text)]
