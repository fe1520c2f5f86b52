"""A whole run over the real parts, watched from outside while it runs."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.conftest import ROOT, START_S, Program
from trainer.supervisor import RUN_ENV
from wire.process import url_of
from wire.token import auth_headers, read_token

SHORT = ("--total_episodes", "256", "--num_eval_prompts", "8", "--eval_steps", "2", "--save_steps", "2")
KEYS = {
    *("steps", "episodes", "held_out_score_before", "held_out_score_after", "held_out_truth_before"),
    *("held_out_truth_after", "scores_first", "scores_last", "policy_version", "replica_versions", "seconds"),
    *("versions", "evaluation", "evaluations_skipped"),
}
TENSORBOARD = {
    *("objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward", "objective/scores"),
    *("policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg", "loss/policy_avg", "val/ratio"),
    *("val/ratio_var", "val/num_eos_tokens", "lr", "episode", "eps", "sampling/logp_diff_mean"),
    *("sampling/logp_diff_std", "sampling/logp_diff_max", "sampling/ratio_outside_0.9_1.1"),
    *("time/generate", "time/judge", "time/reference", "time/wait", "time/step", "time/publish"),
    *("eval/win_rate", "eval/score", "eval/length", "eval/missing", "eval/skipped"),
}
ROUTELESS = {"/health"}  # open to all: whether a process lives


def processes_of(program: Program) -> list[psutil.Process]:
    """The driver and everything that carries its run's mark."""
    driver = psutil.Process(program.process.pid)
    marks = set()
    for child in driver.children(recursive=True):
        try:
            marks.add(child.environ().get(RUN_ENV))
        except (psutil.Error, OSError):
            continue
    marks.discard(None)
    return [driver, *marked(marks)]


def marked(marks: set[Any]) -> list[psutil.Process]:
    """Living processes that carry one of these run ids."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN_ENV) in marks and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def run_ids(processes: list[psutil.Process]) -> set[Any]:
    """The marks that these processes carry."""
    ids = set()
    for process in processes[1:]:
        try:
            ids.add(process.environ().get(RUN_ENV))
        except (psutil.Error, OSError):
            continue
    return ids - {None}


def listeners(pids: set[int]) -> dict[int, set[str]]:
    """Port -> addresses that the processes listen on, read from /proc/net/tcp and tcp6."""
    inodes = {inode for pid in pids for inode in socket_inodes(pid)}
    found: dict[int, set[str]] = {}
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:  # 0A: listening
                address, port = fields[1].split(":")
                words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
                found.setdefault(int(port, 16), set()).add(socket.inet_ntop(family, b"".join(words)))
    return found


def socket_inodes(pid: int) -> Iterator[str]:
    """Inodes of a process's sockets."""
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = str(link.readlink())
            if target.startswith("socket:["):
                yield target[8:-1]
    except OSError:
        return


def status_of(method: str, url: str, headers: dict[str, str]) -> int:
    """HTTP status of an empty request."""
    request = urllib.request.Request(url, method=method, headers=headers, data=b"{}" if method != "GET" else None)
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@dataclass
class Observed:
    """What was seen of a run from outside."""

    program: Program
    output_dir: Path
    listening: dict[int, set[str]] = field(default_factory=dict)
    open_routes: list[str] = field(default_factory=list)
    num_routes: dict[str, int] = field(default_factory=dict)
    left_after: list[psutil.Process] = field(default_factory=list)
    exit_code: int | None = None


@pytest.fixture(scope="module")
def run(start: Callable[..., Program], folder: Path, token_file: Path) -> Observed:
    """The demo's job, short: all three parts started by the trainer itself."""
    output_dir = folder / "run"
    program = start("trainer.main", *SHORT, "--output_dir", str(output_dir), name="run")
    seen = Observed(program, output_dir)
    text = program.wait_for("ready: ", times=4)
    urls = [line.split()[-1] for line in text.splitlines() if line.startswith("ready: http")]
    program.wait_for("step 1/4")
    processes = processes_of(program)
    seen.listening = listeners({process.pid for process in processes})
    headers = auth_headers(read_token(token_file))
    for url in urls:
        with urllib.request.urlopen(
            urllib.request.Request(f"{url}/openapi.json", headers=headers), timeout=20
        ) as reply:
            paths = json.load(reply)["paths"]
        routes = [(method.upper(), path) for path, methods in paths.items() for method in methods]
        routes += [("GET", path) for path in ("/openapi.json", "/docs", "/redoc", "/metrics", "/no-such-route")]
        seen.num_routes[url] = len(routes)
        for method, path in routes:
            if path not in ROUTELESS and status_of(method, url + path, {}) != 401:
                seen.open_routes.append(f"{method} {url}{path}")
    ids = run_ids(processes)
    seen.exit_code = program.process.wait(START_S)
    time.sleep(0.5)
    seen.left_after = marked(ids)
    return seen


def test_the_run_ends_by_itself_with_a_whole_summary(run: Observed) -> None:
    assert run.exit_code == 0, run.program.text()[-3000:]
    summary = json.loads((run.output_dir / "summary.json").read_text())
    assert summary.keys() >= KEYS
    assert (summary["steps"], summary["episodes"], summary["policy_version"]) == (4, 256, "0.4")
    assert summary["replica_versions"] == ["0.4", "0.4"]
    assert 1 <= summary["held_out_score_before"] <= 5
    assert 1 <= summary["held_out_truth_after"] <= 5


def test_the_final_policy_was_compared_with_the_initial_one_on_every_held_out_prompt(run: Observed) -> None:
    found = json.loads((run.output_dir / "summary.json").read_text())["evaluation"]
    assert (found["step"], found["num_prompts"]) == (4, 8)
    assert found["missing"] <= 0.25  # one verdict in fifty of the toy judge's cannot be read
    assert found["oldest_version"] == found["newest_version"] == "0.4"
    assert 0 <= found["win_rate_low"] <= found["win_rate"] <= found["win_rate_high"] <= 1
    assert 1 <= found["score"] <= 5 and 1 <= found["length"] <= 16
    initial = [json.loads(line) for line in (run.output_dir / "initial_answers.jsonl").read_text().splitlines()]
    assert len(initial) == 8 and {answer["newest"] for answer in initial} == {"0.0"}


def test_nothing_of_the_run_is_left(run: Observed) -> None:
    assert run.left_after == []


def test_no_socket_of_the_run_listens_beyond_loopback(run: Observed) -> None:
    assert len(run.listening) >= 8  # Ray's, three servers', the rendezvous of learner and transfer
    loopback = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert {port: found for port, found in run.listening.items() if not found <= loopback} == {}


def test_every_route_of_every_service_asks_for_the_token(run: Observed) -> None:
    assert len(run.num_routes) == 3
    assert all(count >= 8 for count in run.num_routes.values())
    assert run.open_routes == []


def test_tensorboard_has_the_names_users_know(run: Observed) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.output_dir / "runs"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= TENSORBOARD
    assert len(events.Scalars("objective/scores")) == 4
    # The first step trains the very weights that wrote its completions; later ones lag by a step.
    assert events.Scalars("sampling/logp_diff_max")[0].value < 1e-4
    assert "completions/text_summary" in events.Tags()["tensors"]
    # A toy verdict's prompt is short, and yet what the verdicts of a group share is computed once.
    assert events.Scalars("judge/prefix_cache_hits")[-1].value > 0


def test_the_final_policy_loads_with_transformers(run: Observed) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy = AutoModelForCausalLM.from_pretrained(run.output_dir / "policy")
    tokenizer = AutoTokenizer.from_pretrained(run.output_dir / "policy")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], return_tensors="pt", return_dict=False)
    assert policy(ids).logits.isfinite().all()


def test_checkpoints_are_rotated_and_whole(run: Observed) -> None:
    assert sorted(path.name for path in run.output_dir.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert json.loads((run.output_dir / "checkpoint-4" / "state.json").read_text())["step"] == 4


def audited(run: Observed, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainer.audit", str(run.output_dir), *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=START_S)


def test_the_audit_of_the_run_finds_nothing(run: Observed) -> None:
    done = audited(run)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "nothing is wrong"), done.stdout + done.stderr
    shown = audited(run, "--group", "40")
    assert shown.returncode == 0 and "trained on in step" in shown.stdout, shown.stderr
    assert shown.stdout.count("\ncompletion ") == 4 and "\nverdict on completion" in shown.stdout


def test_a_replayed_step_is_what_it_was(run: Observed) -> None:
    done = audited(run, "--step", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()[-4:]
    assert [line.partition(" (")[0] for line in lines if ", KL: " not in line] == [
        f"step 0.3, {what}: same" for what in ("loss", "gradient norm", "advantages")
    ]
    refused = audited(run, "--step", "1")
    assert refused.returncode == 2 and "What can be: steps 3 to 4 (kept checkpoints: 2, 4;" in refused.stderr


@pytest.mark.parametrize(
    ("sign", "address"), [(signal.SIGINT, "::1"), (signal.SIGKILL, "127.0.0.1")], ids=["ctrl-c", "kill-9"]
)
def test_a_run_ended_in_its_middle_leaves_nothing_but_what_it_had_joined(
    start: Callable[..., Program], folder: Path, reward_url: str, sign: signal.Signals, address: str
) -> None:
    flags = ("--reward_url", reward_url, "--replicas", "1", "--num_eval_prompts", "0", "--bind_address", address)
    program = start("trainer.main", *flags, "--output_dir", str(folder / sign.name), name=sign.name)
    text = program.wait_for("step 1/")  # its transfer group has met on that address, too
    assert f"fleet: {url_of(address, 0).removesuffix('0')}" in text
    processes = processes_of(program)
    servers = {process.pid for process in processes if any("vllm.entrypoints" in word for word in process.cmdline())}
    listening = listeners(servers)  # their workers' own groups are on the first address of the interface: Gloo's choice
    assert listening and set.union(*listening.values()) == {address}, listening
    ids = run_ids(processes)
    names = {process.name() for process in processes}
    assert {"raylet", "gcs_server"} <= names
    assert any("VLLM" in name for name in names), names
    program.process.send_signal(sign)
    program.process.wait(60)
    end = time.monotonic() + 30
    while marked(ids) and time.monotonic() < end:
        time.sleep(0.2)
    assert [(process.pid, process.name()) for process in marked(ids)] == []
    assert status_of("GET", f"{reward_url}/health", {}) == 200
    if sign == signal.SIGINT:
        assert program.process.returncode == 130
