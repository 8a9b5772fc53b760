#!/usr/bin/env bash
# What `benchmarks/gpu.py` needs on a GPU machine without a network, in one folder:
#
#     benchmarks/gpu_bundle.sh FOLDER CIFAR10 [PYTHON=3.12] [RAY=2.60.0]
#
# site.tar.xz, some 27 MB: Ray (without its Java, RLlib, Serve, LLM and dashboard pages, binaries stripped),
# pydantic, ruamel.yaml, jsonschema, and what these need; and the parquet files of the folder CIFAR10, 18 MB.
# The machine must have torch, numpy, scipy, pandas, matplotlib, scikit-learn, pyarrow, pillow, safetensors,
# rich, typer, jinja2, cloudpickle, filelock and psutil. MLflow is not needed. Beside the repository, there:
#
#     mkdir -p /tmp/site && tar xJf FOLDER/site.tar.xz -C /tmp/site
#     PYTHONPATH=/tmp/site python3 benchmarks/gpu.py --device cuda --cifar10 FOLDER --out OUT
#
# Fails if the repository's files and the folder are more than 64 MiB together. Takes some two minutes on two
# cores; needs pip, unzip, binutils (strip), xz and git.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,16s/^# \{0,1\}//p' "$0"; exit 2; }
folder=$(realpath -m "$1") cifar10=$(realpath "$2") python=${3:-3.12} ray=${4:-2.60.0}
most=$((64 << 20))
cd "$(dirname "$0")/.."
compgen -G "$cifar10/*.parquet" > /dev/null || { echo "no parquet files in $cifar10" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$folder"
cp -f "$cifar10"/*.parquet "$folder"

pip download -q --no-deps --only-binary=:all: --platform manylinux2014_x86_64 --python-version "$python" \
    -d "$work/wheels" "ray==$ray" pydantic pydantic-core annotated-types typing-inspection ruamel.yaml \
    jsonschema jsonschema-specifications referencing rpds-py msgpack
mkdir "$work/site"
for wheel in "$work"/wheels/*.whl; do unzip -q -o "$wheel" -d "$work/site"; done
(
    cd "$work/site"
    rm -rf ray/jars ray/rllib ray/dashboard/client ray/serve ray/llm ray/cpp
    find ray -type f \( -name '*.so' -o -name raylet -o -name gcs_server \) -exec strip -s {} + 2> /dev/null || true
    chmod -R u+w . && find ray -type f \( -name raylet -o -name gcs_server \) -exec chmod +x {} +
    find . -name __pycache__ -prune -exec rm -rf {} +
    tar c . | xz -T0 -6 > "$folder/site.tar.xz"
)
ls -l "$folder"

travels=$(git ls-files -z --cached --others --exclude-standard | xargs -0 cat | wc -c)
bundle=$(cat "$folder/site.tar.xz" "$folder"/*.parquet | wc -c)
case $folder/ in
"$PWD"/*) git check-ignore -q "$folder" || travels=$((travels - bundle)) ;; # counted as files of the repository
esac
echo "$((travels >> 20)) MiB of the repository and $((bundle >> 20)) MiB beside it; at most $((most >> 20)) MiB"
[ $((travels + bundle)) -le $most ] || { echo "too much to travel" >&2; exit 1; }
