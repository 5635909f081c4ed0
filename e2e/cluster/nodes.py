"""Fault injection for nodes: power loss, freeze, unplugged network, dead kubelet, killed containers.

`NodeController` is the only way in which tests inject faults. It works below Kubernetes, on the containers that are the
nodes, and uses the API server only to find a pod or to wait for a node.

Every fault can be undone, and `heal` undoes all of them, so a test that fails halfway does not affect the next one.
Unplugging the network requires root on the machine that runs the engine; everything else requires only the engine.
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
_NO_RESTART = "/run/systemd/system/kubelet.service.d/90-stay-dead.conf"
SIGKILL, SIGSTOP, SIGCONT = 9, 19, 18


@dataclass(frozen=True, slots=True)
class NodeController:
    """Faults of the cluster's nodes. Every method raises ClusterError if it fails."""

    engine: Engine = field(default_factory=lambda: current(default_paths()))
    paths: Paths = field(default_factory=default_paths)

    @property
    def control_plane(self) -> str:
        """Name of the control plane's node."""
        return f"{NAME}-control-plane"

    def names(self) -> tuple[str, ...]:
        """Return all nodes, including killed ones; the control plane first."""
        listed = self.engine(
            "ps", "--all", "--filter", f"label=io.x-k8s.kind.cluster={NAME}", "--format", "{{.Names}}"
        ).split()
        return tuple(sorted(listed, key=lambda name: (name != self.control_plane, name)))

    def workers(self) -> tuple[str, ...]:
        """Return the worker nodes."""
        return tuple(name for name in self.names() if name != self.control_plane)

    def state(self, node: str) -> str:
        """Return the engine's state of the node: `running`, `paused` or `exited`."""
        return self.engine("inspect", "--format", "{{.State.Status}}", node)

    # The whole node

    def kill(self, node: str) -> None:
        """Simulate power loss: everything on the node ends at once; disks survive, memory (tmpfs) is lost."""
        self.engine("kill", node)

    def start(self, node: str) -> None:
        """Power the node on. It is Ready some seconds later: see wait_ready."""
        self.engine("start", node, timeout=60)

    def freeze(self, node: str) -> None:
        """Stop every process of the node, as if a virtual machine were suspended."""
        self.engine("pause", node)

    def thaw(self, node: str) -> None:
        """Undo freeze."""
        self.engine("unpause", node)

    def cut_off(self, node: str) -> None:
        """Unplug the node's network: pods keep running, without any traffic to or from other machines."""
        run(["ip", "link", "set", "dev", self._host_link(node), "down"])

    def reconnect(self, node: str) -> None:
        """Undo cut_off."""
        run(["ip", "link", "set", "dev", self._host_link(node), "up"])

    # Parts of its network

    def block(self, node: str, addresses: Iterable[str]) -> None:
        """Drop all packets between the node with its pods and these addresses; earlier blocks remain in force.

        Addresses must be those of pods or nodes: packets to a service's address carry a pod's address instead.
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
        """Undo block, block_pods and block_control_plane."""
        # Adding the table first avoids an error if it does not exist.
        table = f"add table inet {_TABLE}\ndelete table inet {_TABLE}\n"
        self.execute(node, "nft", "-f", "-", stdin=table)

    def block_pods(self, node: str, namespace: str, selector: str) -> None:
        """Block traffic between the node and the pods with these labels, for example those of the store."""
        template = '{range .items[*]}{.status.podIP}{"\\n"}{end}'
        addresses = self.kubectl("-n", namespace, "get", "pods", "-l", selector, "-o", f"jsonpath={template}").split()
        if not addresses:
            raise ClusterError(f"no pod in namespace {namespace} with labels {selector} has an address")
        self.block(node, addresses)

    def block_control_plane(self, node: str) -> None:
        """Block traffic between a worker and the API server."""
        self.block(node, [self.address(self.control_plane)])

    # Programs on the node

    def kill_kubelet(self, node: str) -> None:
        """Send SIGKILL to the kubelet and keep it dead until start_kubelet; the node's containers keep running."""
        script = (
            f"mkdir -p {_NO_RESTART.rpartition('/')[0]} && printf '[Service]\\nRestart=no\\n' >{_NO_RESTART}"
            " && systemctl daemon-reload && systemctl kill -s KILL kubelet"
        )
        self.execute(node, "sh", "-c", script)

    def start_kubelet(self, node: str) -> None:
        """Undo kill_kubelet."""
        # On a node that has just been started the file does not exist, and systemd does not answer yet.
        script = (
            f"test ! -f {_NO_RESTART} || {{ rm {_NO_RESTART} && systemctl daemon-reload && systemctl start kubelet; }}"
        )
        self.execute(node, "sh", "-c", script)

    def restart_service(self, node: str, service: str) -> None:
        """Restart `kubelet` or `containerd`."""
        self.execute(node, "systemctl", "restart", service)

    def kill_container(self, namespace: str, pod: str, container: str, signal: int = SIGKILL) -> None:
        """Send a signal to the main process of a container; the pod stays, and its init containers do not run again.

        SIGSTOP stops only the main process; freeze_container stops all of them.
        """
        node, identifier = self._find(namespace, pod, container)
        self.execute(node, "kill", f"-{signal}", str(self._pid(node, identifier)))

    def freeze_container(self, namespace: str, pod: str, container: str) -> None:
        """Stop every process of a container."""
        node, identifier = self._find(namespace, pod, container)
        self.execute(node, "ctr", "--namespace", "k8s.io", "tasks", "pause", identifier)

    def thaw_container(self, namespace: str, pod: str, container: str) -> None:
        """Undo freeze_container."""
        node, identifier = self._find(namespace, pod, container)
        self.execute(node, "ctr", "--namespace", "k8s.io", "tasks", "resume", identifier)

    # Queries and waits

    def execute(self, node: str, *command: str, stdin: str | None = None) -> str:
        """Run a command on the node and return its output."""
        interactive = ("--interactive",) if stdin is not None else ()
        return self.engine("exec", *interactive, node, *command, stdin=stdin, timeout=120)

    def kubectl(self, *arguments: str) -> str:
        """Run `kubectl ARGUMENTS` and return its output."""
        return kubectl(self.paths, *arguments, timeout=300)

    def address(self, node: str) -> str:
        """Return the node's internal IP address."""
        template = '{.status.addresses[?(@.type=="InternalIP")].address}'
        return self.kubectl("get", "node", node, "-o", f"jsonpath={template}")

    def node_of(self, namespace: str, pod: str) -> str:
        """Return the node that the pod is bound to; empty if it is not bound yet."""
        return self.kubectl("-n", namespace, "get", "pod", pod, "-o", "jsonpath={.spec.nodeName}")

    def ready(self, node: str) -> bool:
        """Return whether the node is Ready."""
        template = '{.status.conditions[?(@.type=="Ready")].status}'
        return self.kubectl("get", "node", node, "-o", f"jsonpath={template}") == "True"

    def wait_ready(self, *nodes: str, seconds: float = 120) -> None:
        """Wait until the nodes are Ready and have renewed their leases: a lost node stays Ready for some seconds."""
        deadline = time.monotonic() + seconds
        before: dict[str, str] = {}
        waiting = set(nodes)
        while True:
            try:
                before = before or self._lease_renewals()
                now = self._lease_renewals()
                waiting = {node for node in nodes if now.get(node, "") == before.get(node, "") or not self.ready(node)}
            except ClusterError:
                if time.monotonic() > deadline:
                    raise  # the API server itself does not answer
            if not waiting:
                return
            if time.monotonic() > deadline:
                raise ClusterError(f"nodes not Ready after {seconds:.0f} s: {', '.join(sorted(waiting))}")
            time.sleep(0.3)

    def wait_not_ready(self, node: str, seconds: float = 120) -> None:
        """Wait until the cluster has detected the loss of the node."""
        deadline = time.monotonic() + seconds
        while self.ready(node):
            if time.monotonic() > deadline:
                raise ClusterError(f"node {node} is still Ready after {seconds:.0f} s")
            time.sleep(0.3)

    def heal(self, seconds: float = 120) -> None:
        """Undo every fault on every node and wait up to ``seconds`` until all nodes are Ready."""
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

    def _lease_renewals(self) -> dict[str, str]:
        """Return for each node when its kubelet last renewed its lease."""
        template = '{range .items[*]}{.metadata.name} {.spec.renewTime}{"\\n"}{end}'
        listed = self.kubectl("-n", "kube-node-lease", "get", "leases", "-o", f"jsonpath={template}")
        return dict(line.split() for line in listed.splitlines())

    def _host_link(self, node: str) -> str:
        """Return the name of the host's end of the node's network link."""
        if not self.engine.managed and self.engine.program != "docker":
            raise ClusterError("unplugging a node's network is implemented only for docker on Linux")
        pid = self.engine("inspect", "--format", "{{.State.Pid}}", node)
        shown = run(["nsenter", "--target", pid, "--net", "ip", "-json", "link", "show", "dev", "eth0"]).stdout
        peer = json.loads(shown)[0]["link_index"]
        for link in json.loads(run(["ip", "-json", "link", "show"]).stdout):
            if link["ifindex"] == peer:
                return str(link["ifname"])
        raise ClusterError(f"the host has no link {peer}, the peer of eth0 in {node}")

    def _find(self, namespace: str, pod: str, container: str) -> tuple[str, str]:
        """Return the container's node and its id."""
        document = json.loads(self.kubectl("-n", namespace, "get", "pod", pod, "-o", "json"))
        status = document["status"]
        listed = [*status.get("containerStatuses", []), *status.get("initContainerStatuses", [])]
        for entry in listed:
            if entry["name"] == container and "running" in entry.get("state", {}):
                return str(document["spec"]["nodeName"]), str(entry["containerID"]).rpartition("/")[2]
        raise ClusterError(f"pod {namespace}/{pod} has no running container {container}")

    def _pid(self, node: str, identifier: str) -> int:
        """Return the process id of the container's main process."""
        inspected = json.loads(self.execute(node, "crictl", "inspect", identifier))
        return int(inspected["info"]["pid"])
