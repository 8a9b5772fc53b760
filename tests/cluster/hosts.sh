#!/usr/bin/env bash
# Hosts with an sshd each on one machine, made of network namespaces: 10.77.0.1, .2, .3, behind a bridge in
# a namespace of its own, where `enter` runs a command as a user's machine would.
#   hosts.sh up STATE      hosts.sh enter STATE COMMAND...      hosts.sh down STATE
# Each has its own process, mount and network namespace, so a `ray stop` there sees no process outside.
# Needs root, iproute2, util-linux, openssh-server and rsync. What it makes is in STATE, or in a namespace.
set -euo pipefail
this=$(realpath "$0") action=$1 state=$(realpath -m "$2")
shift 2
id=rayfl-$(basename "$state" | tail -c 9)

private_copy() { # what is written in these directories is gone with the mount namespace
  mount -t tmpfs tmpfs "$state/mnt"
  for directory in "$@"; do
    mkdir -p "$state/mnt/$directory/"{upper,work}
    mount -t overlay overlay "$directory" \
      -o "lowerdir=$directory,upperdir=$state/mnt/$directory/upper,workdir=$state/mnt/$directory/work"
  done
}

case $action in
up)
  mkdir -p "$state/"{ssh,hosts,home,ray,mnt}
  ssh-keygen -q -t ed25519 -N '' -f "$state/ssh/id"
  ssh-keygen -q -t ed25519 -N '' -f "$state/ssh/host"
  printf '%s\n' "HostKey $state/ssh/host" "AuthorizedKeysFile $state/ssh/id.pub" 'UsePAM no' \
    'PasswordAuthentication no' 'StrictModes no' 'PidFile none' 'MaxStartups 100' 'MaxSessions 50' \
    > "$state/sshd_config"
  ip netns add "$id-switch"
  ip -n "$id-switch" link set lo up
  ip -n "$id-switch" link add br0 type bridge
  ip -n "$id-switch" addr add 10.77.0.254/24 dev br0
  ip -n "$id-switch" link set br0 up
  for i in 1 2 3; do
    ip netns add "$id-$i"
    ip link add "v$i" netns "$id-switch" type veth peer name eth0 netns "$id-$i"
    ip -n "$id-switch" link set "v$i" master br0 up
    ip -n "$id-$i" addr add "10.77.0.$i/24" dev eth0
    ip -n "$id-$i" link set lo up
    ip -n "$id-$i" link set eth0 up
    ip -n "$id-$i" route add default via 10.77.0.254
    setsid ip netns exec "$id-$i" unshare --fork --pid --mount-proc --mount --uts --kill-child \
      bash "$this" host "$state" "$i" > "$state/hosts/$i.log" 2>&1 &
    echo $! > "$state/hosts/$i.pid"
  done
  for i in 1 2 3; do
    for try in $(seq 60); do
      ip netns exec "$id-switch" bash -c "exec 3<> /dev/tcp/10.77.0.$i/22" 2> /dev/null && break
      [ "$try" -lt 60 ] || { cat "$state/hosts/$i.log" >&2; exit 1; }
      sleep 0.5
    done
  done ;;
host) # the first process of a host. It reaps, for Ray counts zombies as alive.
  hostname "host$1"
  HOME=$(getent passwd "$(id -un)" | cut -d: -f6) # where ssh comes to
  mount --make-rprivate /
  mount -t tmpfs -o size=8g tmpfs /dev/shm
  mount -t tmpfs tmpfs /run
  private_copy /tmp "$HOME"
  mkdir -p /tmp/ray
  mount -t tmpfs tmpfs /tmp/ray
  rm -rf ~/.ssh ~/.ray ~/rayfl ~/mlflow ~/venv
  # What clusters/setup.sh would install is there; the code is what `ray up` brings.
  mkdir -p /run/sshd ~/venv
  ln -s "$VENV"/{bin,lib,pyvenv.cfg} ~/venv/
  touch ~/venv/rayfl-installed
  printf '%s\n' "export PYTHONPATH=$HOME/rayfl" > ~/.bashrc
  /usr/sbin/sshd -D -e -f "$state/sshd_config" &
  while :; do wait -n || sleep 1; done ;;
enter)
  exec ip netns exec "$id-switch" unshare --fork --pid --mount-proc --mount --kill-child \
    bash "$this" user "$state" "$@" ;;
user) # the user's machine: a home of its own, and the state of `ray up` from one command to the next
  mount --make-rprivate /
  private_copy /tmp
  mkdir -p /tmp/ray
  mount --bind "$state/ray" /tmp/ray
  export HOME=$state/home PATH=$VENV/bin:$PATH RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
  "$@" ;;
down)
  for i in 1 2 3; do
    if pid=$(cat "$state/hosts/$i.pid" 2> /dev/null); then kill -KILL -- "-$pid" 2> /dev/null || true; fi
  done
  for name in 1 2 3 switch; do ip netns del "$id-$name" 2> /dev/null || true; done
  rm -rf "$state" ;;
esac
