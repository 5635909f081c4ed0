"""Entry points of the image: ``savepoint-sidecar`` (also with ``ready`` or ``prestop``) and ``savepoint-restore``.

They only dispatch, with late imports: the probe that kubelet runs every second must not load a server.
"""

import sys
from typing import Final

EXIT_USAGE: Final = 2


def sidecar() -> int:
    """Run ``savepoint-sidecar [ready | prestop]`` and return its exit status."""
    match sys.argv[1:]:
        case ["ready"]:
            from savepoint_sidecar import probe  # noqa: PLC0415 - see the module docstring

            return probe.ready()
        case ["prestop"]:
            from savepoint_sidecar import probe  # noqa: PLC0415 - see the module docstring

            return probe.prestop()
        case []:
            from savepoint_sidecar import serve  # noqa: PLC0415 - see the module docstring

            return serve.run_sidecar()
    sys.stderr.write("usage: savepoint-sidecar [ready | prestop]\n")
    return EXIT_USAGE


def restore() -> int:
    """Run ``savepoint-restore`` and return its exit status."""
    from savepoint_sidecar import serve  # noqa: PLC0415 - see the module docstring

    return serve.run_restore()


if __name__ == "__main__":
    sys.exit(sidecar())
