"""The local cluster's command line: python -m e2e.cluster up | down | status | kubeconfig | images | load | heal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from e2e.cluster import engine, images, kind
from e2e.cluster.bootstrap import BootstrapError
from e2e.cluster.command import ClusterError
from e2e.cluster.go.catalogue import ProgramError
from e2e.cluster.nodes import NodeController
from e2e.cluster.paths import Paths, default_paths
from e2e.cluster.steps import Steps
from e2e.cluster.up import down, up


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 1 with a message on stderr if it fails."""
    options = _parser().parse_args(arguments)
    paths = default_paths()
    steps = Steps(paths.cache / "timings.json")
    try:
        return _run(options, paths, steps)
    except (ClusterError, ProgramError, BootstrapError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: run `up` to continue or `down` to remove everything", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace, paths: Paths, steps: Steps) -> int:
    match options.command:
        case "up":
            up(paths, steps, fast=not options.slow_detection, image=options.node_image)
        case "down":
            down(paths, steps)
        case "status":
            return _status(paths)
        case "kubeconfig":
            if not paths.kubeconfig.exists():
                raise ClusterError("no cluster is running: run `python -m e2e.cluster up`")
            print(paths.kubeconfig)
        case "images":
            for name in images.build_all(engine.current(paths), paths, steps):
                print(name)
        case "load":
            images.load(engine.current(paths), paths, steps, tuple(options.names))
        case "heal":
            NodeController(engine.current(paths), paths).heal()
    return 0


def _status(paths: Paths) -> int:
    print(f"engine:     {engine.describe(paths)}")
    ready = kind.is_ready(paths)
    print(f"kubeconfig: {paths.kubeconfig if paths.kubeconfig.exists() else 'none'}")
    print(f"cluster:    {'all nodes are Ready' if ready else 'not Ready'}")
    if ready:
        print(kind.kubectl(paths, "get", "nodes", "-o", "wide"))
    return 0 if ready else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m e2e.cluster", description="A real kind cluster on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    up_parser = commands.add_parser("up", help="start the cluster, or repair it if it is broken")
    up_parser.add_argument(
        "--slow-detection", action="store_true", help="keep Kubernetes' default times for detecting a lost node"
    )
    up_parser.add_argument(
        "--node-image", metavar="IMAGE", help="kind node image, if a container engine is running; default: kind's own"
    )
    commands.add_parser("down", help="remove the cluster and everything it left on the machine; keep the cache")
    commands.add_parser("status", help="show what is running; exit with 1 unless all nodes are Ready")
    commands.add_parser("kubeconfig", help="print the path of the cluster's kubeconfig")
    commands.add_parser("images", help="build the project's images from its Dockerfiles")
    load_parser = commands.add_parser("load", help="load images into the nodes")
    load_parser.add_argument("names", nargs="*", metavar="IMAGE", help="default: all images of the project")
    commands.add_parser("heal", help="undo every fault on every node")
    return parser


if __name__ == "__main__":
    sys.exit(main())
