"""setuptools, which refuses to build for pip.

pip would resolve for a while and end in a page of conflicts, since it cannot override the bounds that overrides.txt
names. So pip's first call gets the reason in one sentence. uv builds as with setuptools itself, and so does `python -m
build`. A backend is not told pip's options, so `pip install --no-deps` is refused as well.
"""

import os
import sys

# A build frontend looks up the hooks as attributes of this module, so all of setuptools' hooks must be in it. F403
# forbids `import *`, but a list of names would miss the hooks that a later setuptools adds.
from setuptools.build_meta import *  # noqa: F403
from setuptools.build_meta import get_requires_for_build_editable as _for_editable
from setuptools.build_meta import get_requires_for_build_sdist as _for_sdist
from setuptools.build_meta import get_requires_for_build_wheel as _for_wheel

REFUSAL = (
    "rotary-foundry cannot be installed by pip, which has no overrides: Composer and Streaming ask for an older "
    "torch and transformers. Use uv pip install -c constraints.txt --override overrides.txt -e . (or `make nano`)"
)


def _refuse_pip(hook):
    def called(config_settings=None):
        if "PIP_BUILD_TRACKER" in os.environ:  # pip sets it for the builds that it starts
            sys.tracebacklimit = 0
            raise SystemExit(REFUSAL)
        return hook(config_settings)

    return called


get_requires_for_build_editable = _refuse_pip(_for_editable)
get_requires_for_build_sdist = _refuse_pip(_for_sdist)
get_requires_for_build_wheel = _refuse_pip(_for_wheel)
