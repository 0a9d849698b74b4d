"""`composer` for machines that may be stopped: `python launch/stoppable.py -n 8 … launch RECIPE.yaml [key=value …]`.

Any number of SIGTERM and SIGUSR1, to any of a run's processes, become one request: the ranks finish their update, save
it, and exit with status 75 (callbacks/graceful_stop.py).

Plain `composer` cannot do this. It passes on a SIGTERM, but kills its ranks 30 seconds later, even while they write. A
second SIGTERM ends it at once and leaves the ranks running. Any SIGUSR1, and a SIGTERM in its own first seconds, kills
it without ending its ranks. Schedulers do send several: Slurm sends one at the start of a grace period and two at its
end. If Slurm tracks processes without cgroups, each signal goes to all processes of a node. It then kills the workers
of loaders, and so their ranks.

So this script blocks both signals before it starts anything, and all its child processes inherit that. A thread waits
for a signal and sends each rank one SIGUSR1. A rank unblocks it as soon as it can act on it. Earlier signals wait in
the kernel, so none is lost during the start. SIGKILL ends such a run at once, and Ctrl-C works as usual.

The launcher's output is kept until the end, and dropped if the status shows that the run itself has reported why it
ended. So the cause of a failure is printed last. The output of the first rank does not pass through this script.
"""

import io
import signal
import sys
import time
from contextlib import redirect_stderr, redirect_stdout, suppress
from threading import Thread

import psutil

REFUSED, FAILED = 2, 70  # rotary_foundry/utils/errors.py; the run has already printed why
REQUESTS = {signal.SIGTERM, signal.SIGUSR1}


def ask_ranks_once_asked() -> None:
    signal.sigwait(REQUESTS)
    print("asked to stop: the ranks end their update, save it and exit", file=sys.__stdout__, flush=True)
    asked: set[psutil.Process] = set()
    while True:  # the ranks may not have been started yet
        ranks = set(psutil.Process().children()) - asked
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                rank.send_signal(signal.SIGUSR1)
        asked |= ranks
        time.sleep(1)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
    Thread(target=ask_ranks_once_asked, daemon=True).start()

    from composer.cli.launcher import main  # takes seconds, in which a signal may come

    from rotary_foundry.utils.errors import STOPPED

    status, said = None, io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            status = main()
    finally:
        # it holds the output of a rank that ended without giving a reason; --help has no status
        if status not in (REFUSED, FAILED, STOPPED) or "Begin global rank" in said.getvalue():
            sys.stderr.write(said.getvalue())
    sys.exit(FAILED if status is not None and status < 0 else status)  # below 0: a signal ended the first rank
