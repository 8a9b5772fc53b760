#!/usr/bin/env bash
# The whole flow of docs/cluster.md on clusters/onprem.yaml, with hosts made of namespaces (hosts.sh).
#   VENV=path/to/venv tests/cluster/ray_up.sh ['COMMAND TO RUN ON THE HEAD, IN ~/rayfl']
# Prints what the command prints on stdout, and how long each step took on stderr. Leaves nothing behind.
set -euo pipefail
cd "$(dirname "$0")/../.."
command=${1:-rayfl run configs/quickstart.yaml ray.address=auto tracking.uri=http://127.0.0.1:5000 --json}
export VENV
VENV=$(realpath "${VENV:?the virtual environment that has rayfl and Ray}")
export RAY_UP_enable_autoscaler_v2=0
state=$(mktemp -d /tmp/rayfl-XXXXXXXX)
config=$state/onprem.yaml
hosts() { tests/cluster/hosts.sh "$1" "$state" "${@:2}"; }
trap 'hosts down' EXIT
trap 'exit 130' INT TERM
step() {
  local began=$SECONDS
  "${@:2}" || { echo "== $1: FAILED after $((SECONDS - began)) s" >&2; return 1; }
  echo "== $1: $((SECONDS - began)) s" >&2
}
on_head() { hosts enter ray exec --no-config-cache "$config" "$1"; }

step hosts hosts up >&2
hosts enter ray get-auth-token --generate > /dev/null 2>&1
sed -e 's|192.168.1.10|10.77.0.1|; s|192.168.1.11, 192.168.1.12|10.77.0.2, 10.77.0.3|' \
  -e "s|ssh_user: YOU|ssh_user: $(id -un)|; s|~/.ssh/id_ed25519|$state/ssh/id|" \
  clusters/onprem.yaml > "$config"

step 'ray up' hosts enter ray up -y --no-config-cache "$config" >&2
step 'run' on_head "cd ~/rayfl && $command"
step 'status' on_head 'ray status; ss -ltn' >&2
step 'ray up again' hosts enter ray up -y --no-config-cache "$config" >&2
step 'ray down' hosts enter ray down -y "$config" >&2
