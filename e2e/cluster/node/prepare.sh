#!/bin/bash
# Runs once while the node image is built. Does what kind's base image does in its Dockerfile, and what is needed in
# addition on a machine whose root lacks CAP_SYS_RESOURCE.
set -euo pipefail
cd /

# Remove units that a container does not need, or that would change the machine's kernel.
find /lib/systemd/system/sysinit.target.wants/ -name systemd-tmpfiles-setup.service -delete
rm -f /lib/systemd/system/{multi-user,local-fs,basic}.target.wants/* /etc/systemd/system/*.wants/*
rm -f /lib/systemd/system/sockets.target.wants/*{udev,initctl}*
echo ReadKMsg=no >>/etc/systemd/journald.conf
systemctl enable kubelet.service containerd.service undo-mount-hacks.service savepoint-network.service
systemctl mask systemd-binfmt.service
rm -f /usr/lib/sysctl.d/*

# Raising limits and lowering the OOM score require CAP_SYS_RESOURCE.
sed -i -e '/^Limit/d' -e '/^OOMScoreAdjust/d' /etc/systemd/system/containerd.service
sed -i 's/restrict_oom_score_adj = false/restrict_oom_score_adj = true/' /etc/containerd/config.toml
ctr oci spec |
  jq '.hooks.createContainer[.hooks.createContainer | length] |= . + {"path": "/kind/bin/mount-product-files.sh"}' |
  jq 'del(.process.rlimits)' >/etc/containerd/cri-base.json

mkdir -p /etc/kubernetes/manifests
rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* /prepare.sh
