"""Whether namespaces can be made here: a container's root may not, and some systems let every user."""

import subprocess


def why_not(options: list[str], steps: str) -> str | None:
    """Why a shell in namespaces of its own cannot take these steps; None if it can. Nothing is left of it.

    Args:
        options: of `unshare`.
        steps: what is to be done in there, as a shell has it.
    """
    try:
        tried = subprocess.run(["unshare", *options, "sh", "-c", steps], capture_output=True, text=True)
    except FileNotFoundError:
        return "no unshare here: apt-get install util-linux"
    return f"namespaces cannot be made here: {tried.stderr.strip()}" if tried.returncode else None
