"""The commands of the image: ``savepoint-sidecar`` (also with ``ready`` or ``prestop``) and ``savepoint-restore``.

Dispatch only, with late imports: a probe every second must not load a server.
"""

import sys

EXIT_USAGE = 2


def sidecar() -> int:
    """``savepoint-sidecar [ready | prestop]``."""
    match sys.argv[1:]:
        case ["ready"]:
            from savepoint_sidecar import probe  # noqa: PLC0415 - see above

            return probe.ready()
        case ["prestop"]:
            from savepoint_sidecar import probe  # noqa: PLC0415 - see above

            return probe.prestop()
        case []:
            from savepoint_sidecar import serve  # noqa: PLC0415 - see above

            return serve.run_sidecar()
    sys.stderr.write("usage: savepoint-sidecar [ready | prestop]\n")
    return EXIT_USAGE


def restore() -> int:
    """``savepoint-restore``."""
    from savepoint_sidecar import serve  # noqa: PLC0415 - see above

    return serve.run_restore()


if __name__ == "__main__":
    sys.exit(sidecar())
