"""Compares answers for `maths.py`: a process that reads one question a line from stdin and answers on stdout.

A comparison that takes too long is ended by a signal that raises; where the interpreter is busy inside one C call, a
second signal ends the process.
"""

import contextlib
import json
import logging
import os
import resource
import signal
import sys

from aisp_ray.rewards import _answers
from aisp_ray.rewards.sandbox.child import enter_seccomp, out_of_time

MEMORY = 2 << 30  # bytes of address space


def _compare(question, seconds):
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds, 0.5)  # again and again: a library may catch the first
        signal.setitimer(signal.ITIMER_VIRTUAL, 2 * seconds)
        return _answers.same(*question)
    except MemoryError:
        os._exit(1)  # nothing is sure to work any more; the parent starts another process
    except BaseException:
        return False
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def main():
    seconds = float(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGPROF, out_of_time)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _answers.same("0.5", "\\frac12", 1e-6, True)  # loads the library
    with contextlib.suppress(OSError):  # no answer is run as code; the limits are what matters
        enter_seccomp()
    for line in sys.stdin:
        number, *question = json.loads(line)
        answers.write(json.dumps([number, _compare(question, seconds)]) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
