#!/usr/bin/env bash
# MLflow on the head node, for that node alone: whoever is to see it comes through ssh
# (`ray attach -p 5000 cluster.yaml`). The store is in ~/mlflow; a server that runs already is left alone.
set -euo pipefail
address=127.0.0.1 port=5000 store=$HOME/mlflow

healthy() {
  python - "http://$address:$port/health" <<'PY'
import sys
import urllib.request

try:
    urllib.request.urlopen(sys.argv[1], timeout=5)
except OSError:
    sys.exit(1)
PY
}

healthy && exit
mkdir -p "$store"
cd "$store"
MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false setsid nohup mlflow server \
  --host "$address" --port "$port" --workers 1 \
  --backend-store-uri "sqlite:///$store/mlflow.db" --artifacts-destination "$store/artifacts" \
  < /dev/null >> server.log 2>&1 &
server=$!
until healthy; do
  kill -0 "$server" 2> /dev/null || { tail -n 20 server.log >&2; exit 1; }
  sleep 1
done
