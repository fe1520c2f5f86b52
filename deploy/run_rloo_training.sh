#!/usr/bin/env bash
# The original job with one command: bash deploy/run_rloo_training.sh [single|multi|deepspeed] [flags of trainer.main]
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'TEXT'
bash deploy/run_rloo_training.sh [single|multi|deepspeed] [flags of trainer.main]

mode        learner                                        beside it
single      1 GPU of 50 GB, ZeRO-2, optimizer on the host  1 GPU for the replica, 4 for the judge
multi       8 GPUs of 28 GB, ZeRO-3                        2 GPUs for replicas, 4 for the judge
deepspeed   8 GPUs of 20 GB, ZeRO-3 with offload           2 GPUs for replicas, 4 for the judge

No mode: single. What stands beside the learner is started on this host, unless it runs already and is named:
REWARD_URL      the reward service, such as http://10.0.0.2:8100
ROLLOUT_URLS    replicas, separated by spaces; the run then starts none of its own
The replicas must reach this host: give --bind_address with its own address.

BATCH_SIZE      completions of a micro-batch on each GPU    (2)
GRAD_ACCUM      micro-batches of a step                     (8)
LEARNING_RATE                                               (1.0e-6)
TOTAL_EPISODES  completions to train on                     (50000)
RLOO_K          completions of a prompt                     (4)
PYTHON          the environment's Python                    (.venv/bin/python, else python)

Further flags go to trainer.main and win; --dry_run prints the plan and starts nothing.
TEXT
}

mode=single
case ${1:-} in
    single | multi | deepspeed) mode=$1; shift ;;
    -h | --help) usage; exit 0 ;;
    '' | --*) ;;
    *) echo "error: unknown mode '$1'; give single, multi or deepspeed" >&2; exit 2 ;;
esac

flags=()
add() { if [ -n "$2" ]; then flags+=("$1" "$2"); fi; }
add --per_device_train_batch_size "${BATCH_SIZE:-}"
add --gradient_accumulation_steps "${GRAD_ACCUM:-}"
add --learning_rate "${LEARNING_RATE:-}"
add --total_episodes "${TOTAL_EPISODES:-}"
add --rloo_k "${RLOO_K:-}"
add --reward_url "${REWARD_URL:-}"
if [ -n "${ROLLOUT_URLS:-}" ]; then
    read -ra urls <<< "$ROLLOUT_URLS"
    flags+=(--replicas 0 --rollout_urls "${urls[@]}")
fi

python=${PYTHON:-.venv/bin/python}
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python
exec "$python" -m trainer.main --config "configs/qwen3-8b/$mode.yaml" "${flags[@]}" "$@"
