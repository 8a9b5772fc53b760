#!/usr/bin/env bash
# Runs a command with process, network and mount namespaces of its own: `ray stop`, which Ray's autoscaling
# test cluster calls too, ends every Ray process that it sees. Needs root and iproute2.
#   isolated.sh COMMAND...
set -euo pipefail
mkdir -p /tmp/ray
# Its first process is a shell, which reaps: Ray counts zombies as alive.
exec unshare --fork --pid --mount-proc --net --mount --kill-child bash -c '
  ip link set lo up
  mount -t tmpfs -o size=8g tmpfs /dev/shm
  mount -t tmpfs tmpfs /tmp/ray
  "$@"' isolated "$@"
