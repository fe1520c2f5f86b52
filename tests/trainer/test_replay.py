"""A step made once more, and a group shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.test_audit import K, found, life, settings_for, text_of, value
from tests.trainer.test_ledger import state
from trainer.audit_group import group_lines
from trainer.batch import MiniBatch, Sample
from trainer.collect import Logprobs
from trainer.material import Material
from trainer.prompts import Prompt
from trainer.record import Record, recorded
from trainer.replay import KeptGroup, checkpoints_of, compared, replay_lines, replayable
from trainer.stats import StepStats
from wire.errors import ConfigError
from wire.generation import PolicyVersion

ROOT = Path(__file__).parents[2]


class Again:
    """A learner that gives what `life` wrote down, but for what is added to it."""

    def __init__(self, *, kl: float = 0.0, loss: float = 0.0, grad_norm: float = 0.0) -> None:
        self._kl, self._loss, self._grad_norm = kl, loss, grad_norm
        self.calls: list[str] = []
        self.trained: list[Sample] = []

    async def reference(self, samples: Sequence[Sample]) -> list[Logprobs]:
        self.calls.append("reference")
        return [([1.0, 0.25 * (i % K - 1) + self._kl], [1.0, 0.0]) for i, _ in enumerate(samples)]

    async def step(self, batch: Sequence[Sequence[MiniBatch]]) -> StepStats:
        self.calls.append("step")
        self.trained = [s for rank in batch for mini in rank for micro in mini.micro_batches for s in micro]
        return StepStats(loss=0.25 + self._loss, grad_norm=1.5 + self._grad_norm)


def keep(folder: Path, *steps: int, lineage: int = 0) -> None:
    """Checkpoints of these steps, as far as a replay looks at them."""
    for step in steps:
        path = folder / f"checkpoint-{step}"
        path.mkdir()
        (path / "state.json").write_text(json.dumps({"lineage": lineage, "step": step, "next_prompt": 2 * step}))


def kept(record: Record, version: PolicyVersion) -> list[KeptGroup]:
    """The groups of a step with their completions, of a prompt of one token."""
    return [
        KeptGroup(
            group,
            Prompt(group.occurrence, (), (5,)),
            [each.completion for each in record.completions(group.occurrence).values()],
        )
        for group in record.groups_of(version)
    ]


@pytest.fixture
async def run(tmp_path: Path) -> Path:
    await life(settings_for(tmp_path), [0, 1], [2, 3], [4, 5], [6, 7], prune=2)
    return tmp_path


async def replayed(folder: Path, learner: Again, tolerance: float = 1e-5) -> list[bool]:
    """Whether loss, gradient norm, KL and advantages of step 3 agree."""
    version = PolicyVersion(0, 3)
    with recorded(folder) as record:
        numbers = record.step_numbers()[version]
        assert numbers is not None
        comparisons = await compared(learner, version, kept(record, version), numbers, settings_for(folder))
    return [comparison.agrees(tolerance) for comparison in comparisons]


async def test_a_step_made_as_it_was_agrees_and_the_kl_is_measured_before_it(run: Path) -> None:
    learner = Again()
    assert await replayed(run, learner) == [True] * 4
    assert learner.calls == ["reference", "step"]
    with recorded(run) as record:
        groups = kept(record, PolicyVersion(0, 3))
    recorded_advantages = [a for group in groups for a in group.recorded.known["advantages"] if a is not None]
    assert sorted(sample.advantage for sample in learner.trained) == sorted(recorded_advantages)


@pytest.mark.parametrize(
    ("off", "agrees"),
    [
        ({"loss": 1e-3}, [False, True, True, True]),
        ({"grad_norm": 1e-4}, [True, False, True, True]),
        ({"kl": 1e-3}, [True, True, False, True]),  # all advantages lose the same
        ({"loss": 1e-7, "grad_norm": 1e-6, "kl": 1e-7}, [True] * 4),
        ({"grad_norm": float("nan")}, [True, False, True, True]),
    ],
)
async def test_what_differs_is_told_from_what_agrees(run: Path, off: dict[str, float], agrees: list[bool]) -> None:
    assert await replayed(run, Again(**off)) == agrees


async def test_an_altered_advantage_differs_from_what_its_rewards_give(run: Path) -> None:
    numbers = json.loads(value(run, "SELECT numbers FROM trained WHERE occurrence = 4"))
    numbers["advantages"][1] += 0.01
    found(run, ("UPDATE trained SET numbers = ? WHERE occurrence = 4", (json.dumps(numbers),)))
    assert await replayed(run, Again()) == [True, True, True, False]


async def test_a_kl_that_older_weights_measured_is_not_compared(run: Path) -> None:
    found(run, 'UPDATE trained SET numbers = replace(numbers, \'"scored_by": "0.2"\', \'"scored_by": "0.1"\')')
    learner = Again(kl=1.0)
    assert await replayed(run, learner) == [True] * 4
    assert learner.calls == ["step"]


def test_what_can_be_replayed_follows_from_checkpoints_and_completions(run: Path) -> None:
    keep(run, 2, 3)
    with recorded(run) as record:
        assert set(checkpoints_of(record, run)) == {2, 3}
        assert replayable(record, [0, 2, 3]) == {3: 2, 4: 3}  # the completions of step 1 are pruned
        assert replayable(record, [1]) == {2: 1, 3: 1, 4: 1}


async def test_the_first_step_is_replayed_from_the_untrained_policy(tmp_path: Path) -> None:
    await life(settings_for(tmp_path), [0, 1])
    with recorded(tmp_path) as record:
        assert replayable(record, [0]) == {1: 0}


async def test_a_checkpoint_of_a_dead_lineage_is_none(tmp_path: Path) -> None:
    await life(settings_for(tmp_path), [0, 1], [2, 3])
    await life(settings_for(tmp_path, resumed=True), [2, 3], restored=state(1, 2))
    keep(tmp_path, 1, 2)
    with recorded(tmp_path) as record:
        assert set(checkpoints_of(record, tmp_path)) == {1}


def test_a_step_that_cannot_be_replayed_is_a_mistake_with_what_can_be(run: Path) -> None:
    keep(run, 2, 3)
    message = r"step 2 cannot be replayed: .* What can be: steps 3 to 4 \(kept checkpoints: 2, 3; save_steps"
    with recorded(run) as record, pytest.raises(ConfigError, match=message):
        replay_lines(record, run, 2, 1e-5)


@pytest.mark.timeout(500)
def test_a_real_learner_makes_a_step_again_and_one_altered_token_shows(tmp_path: Path) -> None:
    if not (ROOT / ".cache" / "toy" / "policy" / "config.json").exists():
        pytest.skip("no toy models in .cache/toy: run `make toy`")
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    for what in ("train", "replay"):
        command = [sys.executable, "-m", "tests.trainer.replay_case", what, str(tmp_path)]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=240
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert found(tmp_path) == []
    untouched, altered = json.loads((tmp_path / "lines.json").read_text())
    assert [line.partition(" (")[0] for line in untouched] == [
        "step 0.3, loss: same", "step 0.3, gradient norm: same", "step 0.3, KL: same", "step 0.3, advantages: same",
    ]  # fmt: skip
    assert altered[1].startswith("step 0.3, gradient norm: DIFFERS") and altered[2].startswith("step 0.3, KL: DIFFERS")


class Words:
    """A tokenizer whose tokens are numbers."""

    def decode(self, token_ids: Sequence[int], **_: Any) -> str:
        return " ".join(map(str, token_ids))


def shown(folder: Path, occurrence: int) -> list[str]:
    prompts = [Prompt(i, ({"role": "user", "content": f"question {i}"},), (5,)) for i in range(3)]
    material = Material(Words(), (), prompts, [], None, [])
    with recorded(folder) as record:
        return group_lines(record, occurrence, lambda _: material)


def test_a_group_is_shown_with_all_that_is_known_of_it(run: Path) -> None:
    lines = shown(run, 5)
    text = "\n".join(lines)
    assert lines[0] == "group 5" and "user:" in lines and "    question " in text
    assert "trained on in step 0.3, at place 1" in lines and "written by 0.2; KL measured by 0.2" in lines
    assert "    51 52 53 54 55" in lines and "    -- 5 tokens by 0.2 [0, 5) at http://r" in lines
    numbers = json.loads(value(run, "SELECT numbers FROM trained WHERE occurrence = 5"))
    score, advantage = numbers["verdict_scores"][1], numbers["advantages"][1]
    assert f"    -- score {score:.4g}, after its penalty" in text and f"advantage {advantage:.4g}" in text
    assert "    -- cut at the length limit" in lines and "whose answer is the same" in text
    for (first, second, vote), (scores, ranking, _) in zip(numbers["pairs"], numbers["judged"], strict=True):
        said = f"scores {scores[0]:g} and {scores[1]:g}, ranking {ranking}"
        place = lines.index(f"verdict on completions {first} and {second} (vote {vote}): {said}")
        assert lines[place + 1] == f"    on {text_of(5, first).strip()} and {text_of(5, second).strip()}"


def test_of_a_pruned_group_the_numbers_are_shown(run: Path) -> None:
    lines = shown(run, 0)
    assert lines.count("    its text is pruned") == K and "    -- gave the judge nothing to judge" in lines
    with pytest.raises(ConfigError, match=r"group 99: the ledger knows nothing of it; the last that was .* is 7"):
        shown(run, 99)
