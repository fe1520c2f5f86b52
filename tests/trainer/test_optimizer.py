"""What DeepSpeed is told, and what a person is told when memory runs out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainer.config import RunSettings
from trainer.optimizer import adamw, deepspeed_config, schedule, weight_decay_groups
from trainer.out_of_memory import advice, memory_guard
from wire.errors import ServiceError

CONFIGS = Path(__file__).parents[2] / "configs" / "deepspeed"


def test_the_files_leave_to_the_flags_what_belongs_to_them() -> None:
    for path in CONFIGS.glob("*.json"):
        config = deepspeed_config(RunSettings(device="cpu", deepspeed=str(path), bf16=False, max_grad_norm=0.5))
        assert (config["gradient_clipping"], config["bf16"]["enabled"]) == (0.5, False)
        assert config["gradient_accumulation_steps"] == config["train_micro_batch_size_per_gpu"] == 1


@pytest.mark.parametrize(
    ("offload", "is_cuda", "torch_adam"), [("cpu", True, False), ("none", True, True), ("cpu", False, True)]
)
def test_deepspeeds_cpu_adam_is_taken_only_for_a_gpu_runs_offloaded_states(
    offload: str, is_cuda: bool, torch_adam: bool
) -> None:
    zero = {"stage": 2, "offload_optimizer": {"device": offload}}
    params = adamw(RunSettings(device="cpu"), zero, is_cuda=is_cuda)["params"]
    assert params["torch_adam"] is params.get("fused", False) is torch_adam


def test_the_schedule_warms_up_over_its_share_of_the_optimizer_steps() -> None:
    settings = RunSettings(device="cpu", total_episodes=1600, warmup_ratio=0.1, learning_rate=1.0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(settings)(optimizer)
    rates = []
    for _ in range(settings.num_steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[:10] == pytest.approx([i / 10 for i in range(10)])
    assert set(rates[10:]) == {1.0}


def test_the_schedule_counts_optimizer_steps_of_all_epochs_and_mini_batches() -> None:
    settings = RunSettings(
        device="cpu", total_episodes=320, num_mini_batches=2, num_ppo_epochs=3, learning_rate=1.0, warmup_ratio=0.1,
        lr_scheduler_type="linear",
    )  # fmt: skip
    assert settings.num_steps == 10
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(settings)(optimizer)
    rates = []
    for _ in range(60):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[:7] == pytest.approx([i / 6 for i in range(7)])
    assert rates[6:] == pytest.approx([1 - i / 54 for i in range(54)])
    assert scheduler.get_last_lr() == [0.0]


def test_vectors_do_not_decay() -> None:
    matrices, vectors = weight_decay_groups(torch.nn.Linear(3, 2), 0.1)
    assert [p.ndim for p in matrices["params"]] == [2]
    assert [p.ndim for p in vectors["params"]] == [1]
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)


def test_what_is_frozen_is_not_optimized() -> None:
    model = torch.nn.Linear(3, 2)
    model.weight.requires_grad_(False)
    (group,) = weight_decay_groups(model, 0.1)
    assert group["params"] == [model.bias]


def test_a_matrix_that_zero_3_has_flattened_still_decays() -> None:
    model = torch.nn.Linear(3, 2)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.ds_shape, parameter.data = shapes[name], torch.empty(0)
    matrices, vectors = weight_decay_groups(model, 0.1)
    assert (matrices["params"], vectors["params"]) == ([model.weight], [model.bias])


def test_out_of_memory_says_what_to_lower_and_to_what() -> None:
    settings = RunSettings(device="cpu", max_tokens_per_microbatch=4096, logprob_chunk_tokens=512)
    text = advice("the training step", 3, settings, 2**30, 80 * 2**30)
    assert "rank 3 in the training step: 1.0 GiB were free of 80.0" in text
    assert "max_tokens_per_microbatch from 4096 to 2048" in text
    assert "logprob_chunk_tokens from 512 to 256" in text


def test_the_guard_turns_cudas_error_into_that_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 2**30))
    with pytest.raises(ServiceError, match="rank 1 in loading"), memory_guard("loading", 1, RunSettings(device="cpu")):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")
