#!/bin/bash
# Runs before kind's own entrypoint. Keeps a node from changing the machine it runs on, and gives each start its own
# boot id.
set -euo pipefail

# The kubelet sets these kernel-wide values unless they are set already. It reads them from files that we mount over
# the real ones, so it changes nothing.
mkdir -p /kind/settings
override() {
  [[ -f /proc/sys/$1 ]] || return 0
  local file=/kind/settings/${1//\//-}
  echo "$2" >"$file"
  mount --bind "$file" "/proc/sys/$1"
}
override vm/overcommit_memory 1
override vm/panic_on_oom 0
override kernel/panic 10
override kernel/panic_on_oops 1
override kernel/keys/root_maxkeys 1000000
override kernel/keys/root_maxbytes 25000000

# All nodes share one kernel and its boot id. With a new id for each start, the kubelet reports `Rebooted`.
cat /proc/sys/kernel/random/uuid >/kind/settings/boot_id
mount --bind /kind/settings/boot_id /proc/sys/kernel/random/boot_id

exec /usr/local/bin/entrypoint "$@"
