"""The command that installs this project and its extras: with uv, because pip has no overrides (see overrides.txt)."""


def install_command(extra: str | None = None, *options: str) -> str:
    """Return the command that installs this project from its checkout.

    Args:
        extra: a key of pyproject's optional-dependencies to install as well.
        options: options of `uv pip install`, such as "--no-build-isolation".
    """
    what = "." if extra is None else f"'.[{extra}]'"
    return " ".join(("uv pip install", *options, "-c constraints.txt --override overrides.txt -e", what))
