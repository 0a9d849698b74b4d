"""How this project and its extras are installed: with uv, since pip has no overrides (overrides.txt says of what)."""


def install_command(extra: str | None = None, *options: str) -> str:
    """The command that installs this project from its checkout.

    Args:
        extra: a key of pyproject's optional-dependencies, to be installed as well.
        options: of `uv pip install`, as in "--no-build-isolation".
    """
    what = "." if extra is None else f"'.[{extra}]'"
    return " ".join(("uv pip install", *options, "-c constraints.txt --override overrides.txt -e", what))
