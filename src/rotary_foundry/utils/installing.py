"""Return the command that installs this project, and refuse an installation without its overrides.

pip has no overrides (see overrides.txt), so an installer other than uv may leave the old torch and transformers that
Composer and Streaming ask for.
"""

from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.version import Version

from rotary_foundry.utils.errors import ConfigurationError

OVERRIDDEN = ("torch", "transformers")


def install_command(extra: str | None = None, *options: str) -> str:
    """Return the command that installs this project from its checkout.

    Args:
        extra: a key of pyproject's optional-dependencies to install as well.
        options: options of `uv pip install`, such as "--no-build-isolation".
    """
    what = "." if extra is None else f"'.[{extra}]'"
    return " ".join(("uv pip install", *options, "-c constraints.txt --override overrides.txt -e", what))


def check_overrides(distribution: str = "rotary-foundry") -> None:
    """Refuse a torch or transformers that is older than this project asks for; imports neither.

    Raises:
        ConfigurationError: one is older; names both versions and the command that installs the right one.
    """
    try:
        required = map(Requirement, requires(distribution) or ())
    except PackageNotFoundError:  # used from its folder: there are no requirements to read
        return
    for name, specifier in ((each.name, each.specifier) for each in required if each.name in OVERRIDDEN):
        lowest = max(Version(bound.version) for bound in specifier if bound.operator == ">=")
        if Version(Version(found := version(name)).base_version) < lowest:
            raise ConfigurationError(
                f"'{name}': expected {lowest} or newer, got {found}, which Composer or Streaming asks for if this "
                f"project is installed without overrides; run {install_command()}"
            )
