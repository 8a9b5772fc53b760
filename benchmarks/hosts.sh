#!/usr/bin/env bash
# A Ray cluster of hosts that are network namespaces of this machine, with links of a given rate behind one
# bridge; runs a command on the first host, where `ray.address=auto` finds it. Needs root and iproute2.
#   benchmarks/hosts.sh HOSTS RATE COMMAND...     benchmarks/hosts.sh 8 1gbit python -m benchmarks.hosts
# Each host has one CPU for Ray, its own object store, and its own process, mount and network namespace.
# STORE_GB: of each object store (0.8).
set -euo pipefail
if [ "${1:-}" = host ]; then # the first process of a host. It reaps, for Ray counts zombies as alive.
  i=$2 hosts=$3
  shift 3
  mount --make-rprivate /
  mount -t tmpfs -o size=8g tmpfs /dev/shm
  mkdir -p /tmp/ray
  mount -t tmpfs tmpfs /tmp/ray
  store=$(python3 -c "print(int(${STORE_GB:-0.8} * 1e9))")
  options=(--num-cpus=1 --node-ip-address="10.78.0.$i" --object-store-memory="$store")
  if [ "$i" = 1 ]; then
    ray start --head --port=6379 --include-dashboard=false "${options[@]}" > /dev/null
    until [ "$(ray status 2> /dev/null | grep -c ' node_')" = "$hosts" ]; do sleep 1; done
    "$@"
    exit
  fi
  until (exec 3<> /dev/tcp/10.78.0.1/6379) 2> /dev/null; do sleep 1; done
  sleep $((5 * (i - 2))) # all at once they take longer than Ray waits for
  until ray start --address=10.78.0.1:6379 "${options[@]}" > /dev/null 2>&1; do sleep 2; done
  while :; do wait -n || sleep 1; done
fi

hosts=$1 rate=$2
shift 2
id=rayfl-bench-$$
pids=()
down() {
  for pid in "${pids[@]}"; do kill -KILL -- "-$pid" 2> /dev/null || true; done
  for name in switch $(seq "$hosts"); do ip netns del "$id-$name" 2> /dev/null || true; done
}
trap down EXIT
trap 'exit 130' INT TERM
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=disabled
limited() { ip netns exec "$1" tc qdisc add dev "$2" root tbf rate "$rate" burst 256kb latency 50ms; }
ip netns add "$id-switch"
ip -n "$id-switch" link add br0 type bridge
ip -n "$id-switch" link set br0 up
for i in $(seq "$hosts"); do
  ip netns add "$id-$i"
  ip link add "v$i" netns "$id-switch" type veth peer name eth0 netns "$id-$i"
  ip -n "$id-switch" link set "v$i" master br0 up
  ip -n "$id-$i" addr add "10.78.0.$i/24" dev eth0
  ip -n "$id-$i" link set lo up
  ip -n "$id-$i" link set eth0 up
  limited "$id-switch" "v$i"
  limited "$id-$i" eth0
  setsid ip netns exec "$id-$i" unshare --fork --pid --mount-proc --mount --kill-child \
    bash "$0" host "$i" "$hosts" "$@" &
  pids+=($!)
done
wait "${pids[0]}"
