"""Becomes the agent's command: a child that dies with its supervisor and owns the terminal while it runs.

Run by path with the standard library only, before the command replaces it in the same process.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
EXIT_NOT_FOUND = 127
EXIT_NOT_EXECUTABLE = 126


def main() -> None:
    """Run ``child.py SUPERVISOR-PID COMMAND...``: replace this process by the command."""
    supervisor, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        os._exit(EXIT_NOT_FOUND)  # the supervisor died before prctl took effect
    if os.isatty(0):
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        os.tcsetpgrp(0, os.getpgrp())
        signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)  # noqa: S606 - the user's own command
    except FileNotFoundError:
        sys.stderr.write(f"error: command not found: {command[0]}\n")
        os._exit(EXIT_NOT_FOUND)
    except OSError as error:
        sys.stderr.write(f"error: cannot run {command[0]}: {error.strerror}\n")
        os._exit(EXIT_NOT_EXECUTABLE)


if __name__ == "__main__":
    main()
