#!/usr/bin/env bash
# The whole flow of docs/cluster.md on clusters/onprem.yaml, with hosts made of namespaces (hosts.sh).
#   VENV=path/to/venv tests/cluster/ray_up.sh ['COMMAND TO RUN ON THE HEAD, IN ~/rayfl' ['COMMAND OF rayfl TO SUBMIT']]
# What these print is on stdout, how long each step took on stderr. It leaves nothing behind.
set -euo pipefail
cd "$(dirname "$0")/../.."
command=${1:-rayfl run configs/quickstart.yaml ray.address=auto tracking.uri=http://127.0.0.1:5000 --json}
submitted=${2:-plan configs/sweeps/rho_beta_alpha.yaml base.ray.address=auto base.tracking.uri=http://127.0.0.1:5000}
export VENV
VENV=$(realpath "${VENV:?the virtual environment that has rayfl and Ray}")
export RAY_UP_enable_autoscaler_v2=0
state=$(mktemp -d /var/tmp/rayfl-XXXXXXXX) # not in /tmp, of which each host has its copy
config=$state/onprem.yaml
hosts() { tests/cluster/hosts.sh "$1" "$state" "${@:2}"; }
trap 'hosts down' EXIT
trap 'exit 130' INT TERM
step() {
  local began=$SECONDS
  "${@:2}" || { echo "== $1: FAILED after $((SECONDS - began)) s" >&2; return 1; }
  echo "== $1: $((SECONDS - began)) s" >&2
}
# As a user types it, on the user's machine; $CLUSTER is the file.
user() { hosts enter env CLUSTER="$config" HEAD_ADDRESS=10.77.0.1 bash -c "$1"; }
machine() { # by ssh, for what is typed there
  user "ssh -i $state/ssh/id -o StrictHostKeyChecking=no -o LogLevel=ERROR $1 \"bash -lic '${*:2}'\""
}

up() { user 'ray up -y $CLUSTER' > "$state/up.log" 2>&1 || { cat "$state/up.log"; return 1; }; }
three_nodes() { user "ray exec \$CLUSTER 'until ray status | grep -q \"3 local.cluster.node\"; do sleep 1; done'"; }
reached() { user "exec 3<> /dev/tcp/$1/$2" 2> /dev/null; }
head_alone() { reached 10.77.0.1 6379 && ! reached 10.77.0.1 5000; } # Ray answers, MLflow does not
forwarded() {
  user 'sleep 90 | ray attach -p 5000 -p 8265 $CLUSTER > /dev/null 2>&1 &
    for try in $(seq 60); do (exec 3<> /dev/tcp/127.0.0.1/5000) 2> /dev/null && exit; sleep 1; done
    exit 1'
}
fetched() {
  user "cd $state && ray rsync-down \$CLUSTER '~/mlflow/' mlflow/" >&2
  "$VENV/bin/python" - "$state/mlflow/mlflow.db" << 'PY'
import sqlite3, sys
query = """select run_uuid, status, value from runs join tags using (run_uuid)
           where key = 'rayfl.model_sha256'"""
for row in sqlite3.connect(sys.argv[1]).execute(query):
    print("recorded:", *row)
PY
  user "cd $state && rayfl results --uri sqlite:///mlflow/mlflow.db" >&2
}
by_hand() {
  machine 10.77.0.1 'RAY_AUTH_MODE=token ray start --head --port=6379'
  machine 10.77.0.2 "HEAD_ADDRESS=10.77.0.1; RAY_AUTH_MODE=token ray start --address=\\\$HEAD_ADDRESS:6379"
  machine 10.77.0.1 'until ray status | grep -c " node_" | grep -q 2; do sleep 1; done; ray stop'
  machine 10.77.0.2 'ray stop'
}

step hosts hosts up >&2
sed -e 's|192.168.1.10|10.77.0.1|; s|192.168.1.11, 192.168.1.12|10.77.0.2, 10.77.0.3|' \
  -e "s|ssh_user: YOU|ssh_user: $(id -un)|; s|~/.ssh/id_ed25519|$state/ssh/id|" \
  clusters/onprem.yaml > "$config"

step token user 'ray get-auth-token --generate' > /dev/null
step 'ray up' up >&2
step 'three nodes' three_nodes >&2
step command user "ray exec \$CLUSTER 'cd ~/rayfl && $command'"
step submitted user "ray submit \$CLUSTER clusters/run.py $submitted"
step 'status' user "ray exec \$CLUSTER 'ray status'" >&2
step 'ports' user "ray exec \$CLUSTER 'ss -ltnp'" >&2
step 'MLflow answers the head alone' head_alone
step 'MLflow through ssh' forwarded
step 'ray up again' up >&2
step 'results, fetched' fetched
step 'ray down' user 'ray down -y $CLUSTER' >&2
step 'by hand' by_hand >&2
