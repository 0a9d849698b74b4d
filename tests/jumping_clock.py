"""Run a script by a clock that somebody may set while it runs: `python jumping_clock.py SCRIPT [argument …]`.

`time.time` is off by the seconds in the file that CLOCK names, which is read at every call. The monotonic clocks go on,
as they do where a machine's clock is set, and so do the times of files, which are the kernel's.
"""

import os
import runpy
import sys
import time

clock = time.time


def time_by_the_jumping_clock() -> float:
    with open(os.environ["CLOCK"], encoding="ascii") as file:
        return clock() + float(file.read())


for module in list(sys.modules.values()):  # of a fork of a process that has imported them
    if vars(module).get("time") is clock:
        module.time = time_by_the_jumping_clock
time.time = time_by_the_jumping_clock

del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
