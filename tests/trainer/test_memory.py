"""The memory plan: DeepSpeed's own estimates, and the promises of the shipped configurations."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from trainer.config import RunSettings
from trainer.memory import GB, KNOWN_SHAPES, ModelShape, learner_memory, model_shape, zero2_states, zero3_states
from trainer.plan import make_plan
from wire.settings import parse_settings

ROOT = Path(__file__).parents[2]
SIZES = [(1_000, 100), (596_049_920, 155_582_464), (8_190_735_360, 622_329_856), (70_553_706_496, 1_050_673_152)]
EMPTY = ModelShape(0, 0, 0, 0, 0, 0)


# DeepSpeed's import warns in several places; it is the subject of no test here.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_model_states_are_deepspeeds_own_estimates() -> None:
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    flags = (False, True)
    for (total, largest), ranks, optimizer in itertools.product(SIZES, (1, 2, 8, 64), flags):
        _, two = estimate_zero2_model_states_mem_needs(total, num_gpus_per_node=ranks, cpu_offload=optimizer)
        assert zero2_states(total, ranks, offload_optimizer=optimizer) == pytest.approx(two, abs=1)
        for parameters in flags:
            _, three, _ = estimate_zero3_model_states_mem_needs(
                total, largest, num_gpus_per_node=ranks, cpu_offload=optimizer, cpu_offload_params=parameters
            )
            ours = zero3_states(total, largest, ranks, offload_optimizer=optimizer, offload_param=parameters)
            assert ours == pytest.approx(three, abs=1)


def test_qwen3_8b_has_8_19_billion_parameters_and_its_largest_layer_is_the_vocabulary() -> None:
    shape = model_shape(AutoConfig.for_model(**KNOWN_SHAPES["Qwen/Qwen3-8B"]))
    assert shape.num_parameters == 8_190_735_360
    assert shape.largest_layer == 151_936 * 4096
    assert (shape.num_layers, shape.hidden_size, shape.vocab_size) == (36, 4096, 151_936)


@pytest.mark.parametrize(("name", "limit_gb"), [("single", 50), ("multi", 28), ("deepspeed", 20)])
def test_a_shipped_configuration_fits_the_gpu_that_it_names(
    monkeypatch: pytest.MonkeyPatch, name: str, limit_gb: float
) -> None:
    monkeypatch.chdir(ROOT)
    path = ROOT / "configs" / "qwen3-8b" / f"{name}.yaml"
    assert f"{limit_gb} GB" in path.read_text()
    settings, _ = parse_settings(RunSettings, ["--config", str(path)], strict_file=True)
    memory = make_plan(settings).memory
    assert 5 < memory.total / GB <= limit_gb
    assert memory.total == memory.model_states + memory.reference + memory.activations + memory.output_head


def test_what_is_offloaded_or_not_needed_takes_no_memory() -> None:
    shape = ModelShape(8_000_000_000, 600_000_000, 36, 4096, 12288, 151_936)
    zero3 = json.loads((ROOT / "configs/deepspeed/zero3.json").read_text())["zero_optimization"]
    sharded = learner_memory(shape, RunSettings(num_learner_ranks=8), zero3)
    assert sharded.reference == 2 * 8e9 / 8
    assert learner_memory(shape, RunSettings(num_learner_ranks=8, offload_reference=True), zero3).reference == 0
    assert learner_memory(shape, RunSettings(num_learner_ranks=8, kl_coef=0.0), zero3).reference == 0
    assert learner_memory(shape, RunSettings(), {"stage": 2}).reference == 2 * 8e9


def test_with_adapters_only_these_have_states_and_the_frozen_weights_are_the_reference_too() -> None:
    whole = ModelShape(8_000_000_000, 600_000_000, 36, 4096, 12288, 151_936, num_adapter_parameters=50_000_000)
    settings = RunSettings(num_learner_ranks=8, use_peft=True)
    zero2 = learner_memory(whole, settings, {"stage": 2})
    assert zero2.model_states == 2 * 8e9 + zero2_states(50_000_000, 8, offload_optimizer=False)
    zero3 = learner_memory(whole, settings, {"stage": 3})
    assert zero3.model_states == 2 * 8e9 / 8 + 4 * 6e8 + 18 * 5e7 / 8
    offloaded = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    assert learner_memory(whole, settings, offloaded).model_states == 4 * 6e8
    assert zero2.reference == zero3.reference == 0
    full = learner_memory(whole, RunSettings(num_learner_ranks=8), {"stage": 2})
    assert full.output_head - zero2.output_head == (4 + 2) * 4096 * 151_936
    assert full.activations == zero2.activations
    in_fp32 = RunSettings(num_learner_ranks=8, use_peft=True, bf16=False)
    assert learner_memory(whole, in_fp32, {"stage": 2}).model_states - zero2.model_states == 2 * 8e9


def test_a_smaller_budget_a_smaller_chunk_and_checkpointing_each_take_less() -> None:
    shape = ModelShape(8_000_000_000, 600_000_000, 36, 4096, 12288, 151_936)
    base = learner_memory(shape, RunSettings(), {"stage": 2})
    assert (
        learner_memory(shape, RunSettings(max_tokens_per_microbatch=1024), {"stage": 2}).activations < base.activations
    )
    assert learner_memory(shape, RunSettings(gradient_checkpointing=False), {"stage": 2}).activations > base.activations
    half = learner_memory(shape, RunSettings(logprob_chunk_tokens=512), {"stage": 2})
    gradient = (4 + 2) * 4096 * 151_936
    assert half.output_head - gradient == (base.output_head - gradient) / 2
    # A chunk is never larger than the row that it is cut from.
    tiny = RunSettings(max_prompt_length=50, response_length=50)
    assert learner_memory(shape, tiny, {"stage": 2}).output_head == 2 * 100 * 151_936 + gradient
    assert learner_memory(EMPTY, RunSettings(), {"stage": 2}).total == 0
