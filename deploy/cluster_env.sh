# Sourced before every Ray command of a cluster, on every host: what Ray's processes and the driver must find.
_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# The image has its environment outside of the project's folder, over which the project's own files are mounted.
if [ -x /opt/venv/bin/python ]; then export VENV=/opt/venv; else export VENV=$_root/.venv; fi
case ":$PATH:" in *":$VENV/bin:"*) ;; *) export PATH="$VENV/bin:$PATH" ;; esac

# One secret for Ray and for the project's own services, in a file of mode 0600 that is named and never printed.
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH:-$HOME/.config/disaggregated-rloo/token}

# Ray gives its workers a niceness of 15; ranks and servers do the real work and share cores with the driver.
export RAY_worker_niceness=0
export RAY_USAGE_STATS_ENABLED=0 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0

# A dead node is noticed after about 2 s instead of 14 s. Raise the threshold where hosts stall for longer while they live.
export RAY_health_check_initial_delay_ms=1000 RAY_health_check_period_ms=500
export RAY_health_check_timeout_ms=1000 RAY_health_check_failure_threshold=3
export AUTOSCALER_UPDATE_INTERVAL_S=1
# `ray job stop` kills what has not ended by then: a run writes a checkpoint and ends its parts first. Ray's own is 3 s.
export RAY_JOB_STOP_WAIT_TIME_S=300
unset _root

ulimit -n 65536 2> /dev/null || true  # Ray and vLLM hold many sockets; a host may allow fewer
