"""What can happen to a node, made to happen: power loss, freeze, cut cable, dead kubelet, killed containers.

What it is: `NodeController`, the tests' one way to a node's faults. What it is not: a view of Kubernetes; it acts below
it, on the containers that are our nodes, and asks the API server only to find a pod or to wait for a node.

Every fault has its cure, and `heal` applies all cures; a test that dies half-way leaves nothing for the next.
Cutting the cable works on the machine that runs the engine, as root; the rest needs only the engine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from e2e.cluster.command import ClusterError, run
from e2e.cluster.engine import Engine, current
from e2e.cluster.kind import NAME, kubectl, wait
from e2e.cluster.paths import Paths, default_paths

_TABLE = "savepoint_cut"
_STAY_DEAD = "/run/systemd/system/kubelet.service.d/90-stay-dead.conf"
SIGKILL, SIGSTOP, SIGCONT = 9, 19, 18


@dataclass(frozen=True, slots=True)
class NodeController:
    """Faults of the cluster's nodes. Every method raises ClusterError when the fault cannot be made."""

    engine: Engine = field(default_factory=lambda: current(default_paths()))
    paths: Paths = field(default_factory=default_paths)

    @property
    def control_plane(self) -> str:
        return f"{NAME}-control-plane"

    def names(self) -> tuple[str, ...]:
        """All nodes, also those that are killed; the control plane first."""
        listed = self.engine(
            "ps", "--all", "--filter", f"label=io.x-k8s.kind.cluster={NAME}", "--format", "{{.Names}}"
        ).split()
        return tuple(sorted(listed, key=lambda name: (name != self.control_plane, name)))

    def workers(self) -> tuple[str, ...]:
        return tuple(name for name in self.names() if name != self.control_plane)

    def state(self, node: str) -> str:
        """`running`, `paused` or `exited`, as the engine calls it."""
        return self.engine("inspect", "--format", "{{.State.Status}}", node)

    # The whole node

    def kill(self, node: str) -> None:
        """Power loss: everything on the node ends at once; disks stay, memory (tmpfs) is lost."""
        self.engine("kill", node)

    def start(self, node: str) -> None:
        """Power on. Ready some seconds later: see wait_ready."""
        self.engine("start", node, timeout=60)

    def freeze(self, node: str) -> None:
        """Every process of the node stops where it is, as in a suspended virtual machine."""
        self.engine("pause", node)

    def thaw(self, node: str) -> None:
        self.engine("unpause", node)

    def cut_off(self, node: str) -> None:
        """Pull the network cable: pods run on, and nothing reaches them or is reached by them off the node."""
        run(["ip", "link", "set", "dev", self._cable(node), "down"])

    def reconnect(self, node: str) -> None:
        run(["ip", "link", "set", "dev", self._cable(node), "up"])

    # A part of its network

    def block(self, node: str, addresses: Iterable[str]) -> None:
        """Drop all packets between the node, with its pods, and these addresses; blocked ones add up until unblock.

        Addresses are those of pods or nodes: a service's address never reaches the wire.
        """
        chains = "".join(
            f"add chain inet {_TABLE} {hook} {{ type filter hook {hook} priority -300; }}\n"
            for hook in ("prerouting", "input", "forward", "output")
        )
        rules = "".join(
            f"add rule inet {_TABLE} {hook} {family} {side} {address} drop\n"
            for address in addresses
            for family in ("ip6" if ":" in address else "ip",)
            for hook, side in (("input", "saddr"), ("forward", "saddr"), ("forward", "daddr"), ("output", "daddr"))
        )
        self.execute(node, "nft", "-f", "-", stdin=f"add table inet {_TABLE}\n{chains}{rules}")

    def unblock(self, node: str) -> None:
        table = f"add table inet {_TABLE}\ndelete table inet {_TABLE}\n"  # no error where there was none
        self.execute(node, "nft", "-f", "-", stdin=table)

    def block_pods(self, node: str, namespace: str, selector: str) -> None:
        """Cut the node off from the pods with these labels only, for example from the store."""
        template = '{range .items[*]}{.status.podIP}{"\\n"}{end}'
        addresses = self.kubectl("-n", namespace, "get", "pods", "-l", selector, "-o", f"jsonpath={template}").split()
        if not addresses:
            raise ClusterError(f"no pod in {namespace} with {selector} has an address")
        self.block(node, addresses)

    def block_control_plane(self, node: str) -> None:
        """Cut a worker off from the API server only."""
        self.block(node, [self.address(self.control_plane)])

    # Its programs

    def kill_kubelet(self, node: str) -> None:
        """kill -9, and it stays dead until start_kubelet; the node's containers run on."""
        script = (
            f"mkdir -p {_STAY_DEAD.rpartition('/')[0]} && printf '[Service]\\nRestart=no\\n' >{_STAY_DEAD}"
            " && systemctl daemon-reload && systemctl kill -s KILL kubelet"
        )
        self.execute(node, "sh", "-c", script)

    def start_kubelet(self, node: str) -> None:
        # A node that has just been started has no such file, and no systemd to talk to yet.
        script = (
            f"test ! -f {_STAY_DEAD} || {{ rm {_STAY_DEAD} && systemctl daemon-reload && systemctl start kubelet; }}"
        )
        self.execute(node, "sh", "-c", script)

    def restart_service(self, node: str, service: str) -> None:
        """`kubelet` or `containerd`."""
        self.execute(node, "systemctl", "restart", service)

    def kill_container(self, namespace: str, pod: str, container: str, signal: int = SIGKILL) -> None:
        """Send a signal to the main process of a container, in place: no pod is deleted, no init container re-runs.

        With SIGSTOP the main process alone stops; see freeze_container for all of them.
        """
        node, identifier = self._find(namespace, pod, container)
        self.execute(node, "kill", f"-{signal}", str(self._pid(node, identifier)))

    def freeze_container(self, namespace: str, pod: str, container: str) -> None:
        """Stop every process of a container where it is."""
        node, identifier = self._find(namespace, pod, container)
        self.execute(node, "ctr", "--namespace", "k8s.io", "tasks", "pause", identifier)

    def thaw_container(self, namespace: str, pod: str, container: str) -> None:
        node, identifier = self._find(namespace, pod, container)
        self.execute(node, "ctr", "--namespace", "k8s.io", "tasks", "resume", identifier)

    # Looking and waiting

    def execute(self, node: str, *command: str, stdin: str | None = None) -> str:
        """Run a command on the node; what it printed."""
        interactive = ("--interactive",) if stdin is not None else ()
        return self.engine("exec", *interactive, node, *command, stdin=stdin, timeout=120)

    def kubectl(self, *arguments: str) -> str:
        return kubectl(self.paths, *arguments, timeout=300)

    def address(self, node: str) -> str:
        template = '{.status.addresses[?(@.type=="InternalIP")].address}'
        return self.kubectl("get", "node", node, "-o", f"jsonpath={template}")

    def node_of(self, namespace: str, pod: str) -> str:
        """The node that a pod is bound to; empty before that."""
        return self.kubectl("-n", namespace, "get", "pod", pod, "-o", "jsonpath={.spec.nodeName}")

    def ready(self, node: str) -> bool:
        template = '{.status.conditions[?(@.type=="Ready")].status}'
        return self.kubectl("get", "node", node, "-o", f"jsonpath={template}") == "True"

    def wait_ready(self, *nodes: str, seconds: float = 120) -> None:
        """Wait until the nodes are Ready and have said so anew: an old word is believed for some seconds."""
        deadline = time.monotonic() + seconds
        old: dict[str, str] = {}
        missing = set(nodes)
        while True:
            try:
                old = old or self._leases()
                now = self._leases()
                missing = {node for node in nodes if now.get(node, "") == old.get(node, "") or not self.ready(node)}
            except ClusterError:
                if time.monotonic() > deadline:
                    raise  # the API server itself does not answer
            if not missing:
                return
            if time.monotonic() > deadline:
                raise ClusterError(f"not Ready after {seconds:.0f} s: {', '.join(sorted(missing))}")
            time.sleep(0.3)

    def wait_not_ready(self, node: str, seconds: float = 120) -> None:
        """Wait until the cluster has noticed that the node is gone."""
        deadline = time.monotonic() + seconds
        while self.ready(node):
            if time.monotonic() > deadline:
                raise ClusterError(f"node {node} is still Ready after {seconds:.0f} s")
            time.sleep(0.3)

    def heal(self, seconds: float = 120) -> None:
        """Undo every fault on every node and wait until all are Ready, for so many seconds."""
        for node in self.names():
            if self.state(node) == "paused":
                self.thaw(node)
            if self.state(node) != "running":
                self.start(node)
            self.reconnect(node)
            self.unblock(node)
            self.start_kubelet(node)
        self.wait_ready(*self.names(), seconds=seconds)
        self.kubectl("uncordon", *self.names())
        wait(self.paths)

    def _leases(self) -> dict[str, str]:
        """When each node's kubelet last renewed its lease."""
        template = '{range .items[*]}{.metadata.name} {.spec.renewTime}{"\\n"}{end}'
        listed = self.kubectl("-n", "kube-node-lease", "get", "leases", "-o", f"jsonpath={template}")
        return dict(line.split() for line in listed.splitlines())

    def _cable(self, node: str) -> str:
        """The end of the node's network link that lies on the machine's side."""
        if not self.engine.ours and self.engine.program != "docker":
            raise ClusterError("cutting the cable is written for docker on Linux")
        pid = self.engine("inspect", "--format", "{{.State.Pid}}", node)
        shown = run(["nsenter", "--target", pid, "--net", "ip", "-json", "link", "show", "dev", "eth0"]).stdout
        peer = json.loads(shown)[0]["link_index"]
        for link in json.loads(run(["ip", "-json", "link", "show"]).stdout):
            if link["ifindex"] == peer:
                return str(link["ifname"])
        raise ClusterError(f"the machine has no link {peer}, the other end of {node}'s")

    def _find(self, namespace: str, pod: str, container: str) -> tuple[str, str]:
        """The container's node and its id there."""
        document = json.loads(self.kubectl("-n", namespace, "get", "pod", pod, "-o", "json"))
        status = document["status"]
        listed = [*status.get("containerStatuses", []), *status.get("initContainerStatuses", [])]
        for entry in listed:
            if entry["name"] == container and "running" in entry.get("state", {}):
                return str(document["spec"]["nodeName"]), str(entry["containerID"]).rpartition("/")[2]
        raise ClusterError(f"{namespace}/{pod} has no running container {container}")

    def _pid(self, node: str, identifier: str) -> int:
        inspected = json.loads(self.execute(node, "crictl", "inspect", identifier))
        return int(inspected["info"]["pid"])
