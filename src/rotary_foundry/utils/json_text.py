"""Parse JSON that others may have written."""

import json
import re
from pathlib import Path
from typing import Any

from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.wording import one_line

SURROGATE = {str: re.compile(r"\\u[dD]"), bytes: re.compile(rb"\\u[dD]")}


def parse_json(text: str | bytes, **options: Any) -> Any:
    """Parse JSON; the options are those of `json.loads`.

    Raises:
        ValueError: it is not JSON; or is nested too deeply, for which Python raises another error; or has half of a
            surrogate pair, which is not text: it can be neither tokenised nor written.
    """
    try:
        content = json.loads(text, **options)
        if SURROGATE[type(text)].search(text):
            json.dumps(content, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return content


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        DataError: it is missing, cannot be read, or holds something else; names the file.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: cannot be read: expected a JSON object, got {type(content).__name__}")
    return content
