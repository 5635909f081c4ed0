#!/bin/sh
# Sets a node's packet filter rules before its kubelet starts. The two networks are kind's defaults.
set -eu
pods=10.244.0.0/16
services=10.96.0.0/16
# kube-proxy rewrites service addresses before FORWARD. Until it runs, reject connections at once instead of letting
# clients wait.
iptables -w -A FORWARD -d $services -j REJECT
iptables -w -t nat -A POSTROUTING -s $pods ! -d $pods -j MASQUERADE
