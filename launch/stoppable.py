"""`composer` where machines are taken away: `python launch/stoppable.py -n 8 … launch RECIPE.yaml [key=value …]`.

SIGTERM and SIGUSR1, however many come and to whichever of a run's processes, become one request: the ranks end their
update, save it, and exit with status 75 (callbacks/graceful_stop.py).

Plain `composer` cannot be told so. It passes on a SIGTERM, but kills its ranks 30 seconds later, whatever they are
writing; a second one ends it at once and leaves them behind; and it dies, without a word to them, of any SIGUSR1 and of
a SIGTERM in its own first seconds. Schedulers do send more than one, Slurm one at the start of a grace period and two
at its end. Where Slurm tracks processes without cgroups each goes to all processes of a node, of which a loader's
worker dies, and with it its rank.

So both signals are blocked before anything is started, and all that is started inherits that. A thread waits for one of
them here and asks each rank once, by SIGUSR1; a rank lets that in as soon as it can act on it. What comes earlier waits
in the kernel: nothing is lost in the start. SIGKILL ends such a run at once, and Ctrl-C does as ever.

What the launcher says is kept until the end, and left out if the status shows that the run itself has said why it
ended: so the cause of a failure stands last. What its first rank prints does not pass through here.
"""

import io
import signal
import sys
import time
from contextlib import redirect_stderr, redirect_stdout, suppress
from threading import Thread

import psutil

REFUSED, FAILED = 2, 70  # rotary_foundry/utils/errors.py: both with a line that says why
REQUESTS = {signal.SIGTERM, signal.SIGUSR1}


def ask_ranks_once_asked() -> None:
    signal.sigwait(REQUESTS)
    print("asked to stop: the ranks end their update, save it and exit", file=sys.__stdout__, flush=True)
    asked: set[psutil.Process] = set()
    while True:  # they may not have been started yet
        ranks = set(psutil.Process().children()) - asked
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                rank.send_signal(signal.SIGUSR1)
        asked |= ranks
        time.sleep(1)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
    Thread(target=ask_ranks_once_asked, daemon=True).start()

    from composer.cli.launcher import main  # seconds, in which a signal may come

    from rotary_foundry.utils.errors import STOPPED

    status, said = None, io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            status = main()
    finally:
        # a rank that ended without a word has what it wrote in there; of --help there is no status
        if status not in (REFUSED, FAILED, STOPPED) or "Begin global rank" in said.getvalue():
            sys.stderr.write(said.getvalue())
    sys.exit(status)
