#!/usr/bin/env bash
# Makes VENV (.venv where it is not set) for GPUs, from the pins of requirements/. A finished one is left alone until a pin
# changes.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${VENV:-.venv}
stamp=$venv/requirements.sha256
want=$(cat requirements/common.txt requirements/cuda.txt requirements/uv.txt pyproject.toml deploy/setup_cuda.sh | sha256sum)
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && exit 0

python=${PYTHON:-python3.11}
if ! "$python" -c 'import sys, venv; sys.exit(sys.version_info[:2] != (3, 11))'; then
    echo "error: $python is not Python 3.11 with venv; name one: PYTHON=/path/to/python3.11 bash deploy/setup_cuda.sh" >&2
    exit 2
fi
echo "setup: $venv (several minutes: torch and vLLM with their CUDA libraries)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements/uv.txt
export UV_COMPILE_BYTECODE=1  # else each of a run's processes would compile it all again
install() { "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" "$@"; }

# What common.txt pins holds here too, but for two packages of which the CUDA builds of torch and vLLM want their own.
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
grep -vE '^(triton|apache-tvm-ffi)==' requirements/common.txt > "$constraints"
install -r requirements/cuda.txt -c "$constraints"
install --no-deps --no-build-isolation -e .
printf '%s' "$want" > "$stamp"
