"""Becomes the agent's command: it dies with its supervisor, and owns the terminal while it lives.

Run by path, standard library only, before the command takes its place in the same process.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
EXIT_NOT_FOUND = 127
EXIT_NOT_EXECUTABLE = 126


def main() -> None:
    """``child.py SUPERVISOR-PID COMMAND...``"""
    supervisor, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        os._exit(EXIT_NOT_FOUND)  # it died before we could ask to die with it
    if os.isatty(0):
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        os.tcsetpgrp(0, os.getpgrp())
        signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)  # noqa: S606 - the user's own command
    except FileNotFoundError:
        sys.stderr.write(f"savepoint: no command {command[0]!r}\n")
        os._exit(EXIT_NOT_FOUND)
    except OSError as error:
        sys.stderr.write(f"savepoint: {command[0]!r} cannot be run: {error.strerror}\n")
        os._exit(EXIT_NOT_EXECUTABLE)


if __name__ == "__main__":
    main()
