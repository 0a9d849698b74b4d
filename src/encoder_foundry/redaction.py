"""Configuration without its secrets, for what is shown to people: the page, W&B.

By name and by value. A name tells a secret where one of its words is one (`password`), or where it ends in `key` or
`token` (`api_key`, `hf_token`), unless a number of tokens stands there, as in `rollback.at.token`. A value tells one
where it is an address with a password or a signature in it, or begins as the keys of known services do. A list of
names cannot be complete: secrets belong into the environment, and this is for those that were put elsewhere.
"""

import re

REDACTED = "(redacted)"
WORDS = {"authorization", "credential", "credentials", "passphrase", "passwd", "password", "secret", "secrets"}
ENDINGS = {"key", "keys", "token", "apikey"}
COUNT = re.compile(r"[\d_]+(tok|ba|dur)?|[\d.]+dur")
KNOWN = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|sk-[\w-]{16,}|A[KS]IA[A-Z0-9]{16}"
    r"|xox[abprs]-[\w-]{10,}|glpat-[\w-]{16,}|AIza[\w-]{30,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+)"
)
USER = re.compile(r"(\w[\w+.-]*://)[^\s/@]+@")  # the user and the password of an address
QUERY = re.compile(r"(\w[\w+.-]*://[^\s?]+\?)\S+")  # what may sign an address


def redacted(config: object, name: str = "") -> object:
    """A configuration of plain types (mappings, lists, scalars) with `(redacted)` for what looks like a secret."""
    if config is not None and not isinstance(config, bool | int | float) and _names_a_secret(name, config):
        return REDACTED
    if isinstance(config, dict):
        return {key: redacted(value, str(key)) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [redacted(value, name) for value in config]
    if isinstance(config, str):
        shown = QUERY.sub(rf"\1{REDACTED}", USER.sub(rf"\1{REDACTED}@", config))
        return KNOWN.sub(REDACTED, shown)
    return config


def _names_a_secret(name: str, value: object) -> bool:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().replace("-", "_").replace(".", "_").split("_")
    if WORDS & set(words):
        return True
    return words[-1] in ENDINGS and not (isinstance(value, str) and COUNT.fullmatch(value))
