#!/usr/bin/env bash
# Setup of every node, the same on all: ~/venv with the rayfl of ~/rayfl, and the shell's environment.
# Where that is done it is left alone; new code needs no new installation.
set -euo pipefail
# One version on every node and where `ray up` runs: Ray joins no two minor versions.
ray='ray[default]~=2.60.0'

if [ ~/rayfl/pyproject.toml -nt ~/venv/rayfl-installed ]; then
  python3 -m venv ~/venv
  ~/venv/bin/pip install -q -e ~/rayfl "$ray"
  touch ~/venv/rayfl-installed
fi

# The commands of `ray up`, `ray exec` and `ray submit` run in a shell that reads this.
if ! grep -q '# rayfl$' ~/.bashrc; then
  cat >> ~/.bashrc <<'BASHRC'
export PATH="$HOME/venv/bin:$PATH" # rayfl
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true
# A node that waits for an object asks again after 10 s, and gets all of it once more, which makes a slow link slower.
export RAY_object_manager_pull_timeout_ms=300000
BASHRC
fi
