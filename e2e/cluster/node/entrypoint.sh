#!/bin/bash
# Before kind's own entrypoint: what keeps a node from changing the machine that it runs on, and makes a restart look
# like one.
set -euo pipefail

# The kubelet sets these kernel-wide values. It finds files that already hold them, so that it changes nothing.
mkdir -p /kind/settings
settle() {
  [[ -f /proc/sys/$1 ]] || return 0
  local file=/kind/settings/${1//\//-}
  echo "$2" >"$file"
  mount --bind "$file" "/proc/sys/$1"
}
settle vm/overcommit_memory 1
settle vm/panic_on_oom 0
settle kernel/panic 10
settle kernel/panic_on_oops 1
settle kernel/keys/root_maxkeys 1000000
settle kernel/keys/root_maxbytes 25000000

# All nodes share one kernel and with it one boot id; with one of its own per start the kubelet reports `Rebooted`.
cat /proc/sys/kernel/random/uuid >/kind/settings/boot_id
mount --bind /kind/settings/boot_id /proc/sys/kernel/random/boot_id

exec /usr/local/bin/entrypoint "$@"
