"""Remove secrets from everything that a run writes, shows or sends.

A secret is recognised by its name: the value of a key or an environment variable that is called a password, a token, an
access key or similar. Such a value is replaced wherever it occurs, even inside a text under an unrelated key. The user
part before the @ of an address, signatures in addresses, and strings that begin like the keys of known services are
replaced too. A list of names is never complete: secrets belong in the environment, and this module is for those that
were put elsewhere.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

REDACTED = "(redacted)"
SHORTEST = 8  # characters; a shorter value of a variable, such as 1 or true, would be found everywhere
NAMED_SECRET = re.compile(
    r"(^|_)(authorization|bearer|credentials?|passphrase|pass|passwd|passwords?|secrets?|connection_string|(api|access|private)_keys?)(_|$)"
    r"|(^|_)(apikeys?|keys?|token)$"
)
CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
TIME = re.compile(r"[\d_]+(tok|ba|sp|dur)?|[\d.]+dur")  # the value of `rollback.at.token` is a time, not a secret
KNOWN = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|sk-[\w-]{16,}|A[KS]IA[A-Z0-9]{16}"
    r"|xox[abprs]-[\w-]{10,}|glpat-[\w-]{16,}|AIza[\w-]{30,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+)"
)
USER = re.compile(r"(?<=://)([^/\s@:]*:\S+|[^/\s@]+)(?=@)")  # a password may have a slash in it, or an @
BEARER = re.compile(r"(?i)\b(bearer |(?:accountkey|sharedaccesskey|sharedaccesssignature)=)[^\s;]+")
QUERY = re.compile(r"(\w[\w+.-]*://[^\s?]+\?)\S+")


def redacted(value: Any, whole: Any = None) -> Any:
    """Return plain data (mappings, lists, numbers, texts) or a text without its secrets.

    Args:
        value: the data or text.
        whole: plain data whose secrets are also removed from `value`; default: `value` itself.
    """
    known = {text for text in (*_secrets(value if whole is None else whole), *_of_environment()) if text}
    return _cleared(value, sorted(known, key=len, reverse=True))


def redacted_arguments(arguments: list[str], whole: Any) -> list[str]:
    """Return `key=value` arguments without the secrets of `whole` and without values whose key names a secret."""
    cleared = []
    for argument in redacted(list(arguments), whole):
        key, equals, value = argument.partition("=")
        cleared.append(f"{key}={REDACTED}" if equals and _is_secret(key.rpartition(".")[2], value) else argument)
    return cleared


def _is_secret(name: object, value: object) -> bool:
    if value is None or isinstance(value, bool) or (isinstance(value, str) and TIME.fullmatch(value)):
        return False
    return NAMED_SECRET.search(CAMEL.sub("_", str(name)).replace("-", "_").lower()) is not None


def _secrets(value: Any, named: bool = False) -> Iterator[str]:
    """Yield the texts and numbers in plain data whose key, or a key above it, names a secret."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _secrets(inner, named or _is_secret(name, inner))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _secrets(inner, named)
    elif named and len(str(value)) >= SHORTEST:
        yield str(value)


def _of_environment() -> Iterator[str]:
    for name, value in os.environ.items():
        if _is_secret(name, value) and len(value) >= SHORTEST:
            yield value


def _cleared(value: Any, known: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {name: REDACTED if _is_secret(name, inner) else _cleared(inner, known) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_cleared(inner, known) for inner in value]
    if isinstance(value, str):
        for secret in known:
            value = value.replace(secret, REDACTED)
        value = BEARER.sub(rf"\1{REDACTED}", USER.sub(REDACTED, value))
        return KNOWN.sub(REDACTED, QUERY.sub(rf"\1{REDACTED}", value))
    return value
