"""How a batch is sharded, packed and cut changes nothing, held against plain PyTorch, one completion at a time.

Real DeepSpeed on CPU: ZeRO-2 and ZeRO-3 (there with gradient checkpointing), one rank and two, each a process.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.e2e.gradient_case import (
    ADAM_RATE,
    BUDGETS,
    CAP,
    CLIP,
    DECAY,
    NORM,
    REUSE_RATE,
    SGD_RATE,
    TEMPERATURE,
    Tensors,
)
from tests.ranks import run_ranks
from trainer.batch import Sample

VOCABULARY = 97
CLOSE = 1e-5  # relative L2 distance of a tensor: fp32 sums in another order

Policy = Qwen3ForCausalLM


def samples_of(policy: Policy) -> list[Sample]:
    """Eleven completions (no number of ranks or mini-batches divides it) of four prompts, whose replica was a little
    off.

    The seed is one whose gradients are large beside the weights: a small update is lost in the rounding of the weight.
    """
    rng = random.Random(17)
    samples = []
    for index in range(11):
        if index % 3 == 0:
            prompt = tuple(rng.randrange(VOCABULARY) for _ in range(rng.randrange(1, 9)))
        ids = tuple(rng.randrange(VOCABULARY) for _ in range(rng.randrange(2, 14)))
        own = logprobs(policy, Sample(prompt, ids, ())).tolist()
        samples.append(Sample(prompt, ids, tuple(value - rng.gauss(0, 0.2) for value in own), rng.gauss(0, 1.5)))
    return samples


def logprobs(policy: Policy, sample: Sample) -> torch.Tensor:
    """Of the completion's tokens, from one sequence without padding; by hand."""
    ids = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])
    table = (policy(input_ids=ids, use_cache=False).logits[0].float() / TEMPERATURE).log_softmax(-1)
    return table[torch.arange(len(sample.prompt_ids) - 1, ids.shape[1] - 1), torch.tensor(sample.completion_ids)]


def weights_of(sample: Sample, old: torch.Tensor) -> torch.Tensor:
    return (old - torch.tensor(sample.sampled_logprobs)).exp().clamp(max=CAP)


def set_gradients(policy: Policy, samples: Sequence[Sample], olds: Sequence[torch.Tensor]) -> int:
    """Gradients of the estimator, from its definition; returns how many completions the clip silenced."""
    policy.zero_grad()
    num_clipped = 0
    for sample, old in zip(samples, olds, strict=True):
        new = logprobs(policy, sample)
        ratio = float((new - old).sum().exp().detach())
        clipped = ratio > 1 + CLIP if sample.advantage > 0 else ratio < 1 - CLIP
        num_clipped += clipped
        if not clipped:
            (-sample.advantage * ratio / len(samples) * (weights_of(sample, old) * new).sum()).backward()
    return num_clipped


@pytest.fixture(scope="module")
def policy() -> Iterator[Policy]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Qwen3Config(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            head_dim=16, vocab_size=VOCABULARY, tie_word_embeddings=False, attn_implementation="sdpa",
        )  # fmt: skip
        model = Qwen3ForCausalLM(config)
    with torch.no_grad():  # the usual small weights give a flat distribution, in which many mistakes do not show
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.dim() > 1 else 1)
    yield model
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def samples(policy: Policy) -> list[Sample]:
    with torch.no_grad():
        return samples_of(policy)


@pytest.fixture(scope="module")
def olds(policy: Policy, samples: list[Sample]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [logprobs(policy, sample) for sample in samples]


@pytest.fixture(scope="module")
def found(
    policy: Policy, samples: list[Sample], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[int, int], dict[str, Tensors]]:
    """(stage, ranks) -> what DeepSpeed made of it."""
    folder = tmp_path_factory.mktemp("gradients")
    policy.save_pretrained(folder / "model")
    rows = [[s.prompt_ids, [*s.completion_ids], [*s.sampled_logprobs], s.advantage] for s in samples]
    (folder / "samples.json").write_text(json.dumps(rows))
    for world in (1, 2):
        run_ranks("tests.e2e.gradient_case", folder, world)
    return {
        (stage, world): results
        for world in (1, 2)
        for stage, results in torch.load(folder / f"world-{world}.pt").items()
    }


LAYOUTS = [(stage, world) for stage in (2, 3) for world in (1, 2)]
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"zero{layout[0]}-{layout[1]}")


def assert_close(one: Tensors, other: Tensors, bound: float = CLOSE) -> None:
    assert one.keys() == other.keys()
    distances = {name: float((one[name] - other[name]).norm() / other[name].norm()) for name in one}
    assert max(distances.values()) < bound, max(distances.items(), key=lambda item: item[1])
    print("largest distance", max(distances.values()))


@pytest.mark.parametrize("cut", [*map(str, BUDGETS), "other order", "in parts", "nothing left"])
@layouts
def test_the_gradient_is_the_estimators_however_it_is_sharded_and_cut(
    found, policy, samples, olds, layout, cut
) -> None:
    capped = torch.cat([weights_of(s, old) == torch.tensor(CAP) for s, old in zip(samples, olds, strict=True)])
    assert 0.05 < capped.float().mean() < 0.5
    assert set_gradients(policy, samples, olds) == 0
    assert_close(found[layout][f"gradient, {cut}"], {name: p.grad for name, p in policy.named_parameters()})


@layouts
def test_so_is_an_sgd_update(found, policy, samples, olds, layout) -> None:
    set_gradients(policy, samples, olds)
    before = {name: p.detach() for name, p in policy.named_parameters()}
    update = {name: weight - before[name] for name, weight in found[layout]["sgd"].items()}
    assert_close(update, {name: -SGD_RATE * p.grad for name, p in policy.named_parameters()})


def copy_of(policy: Policy) -> Policy:
    copied = Qwen3ForCausalLM(policy.config)
    copied.load_state_dict(policy.state_dict())
    return copied


@layouts
def test_two_epochs_of_two_mini_batches_take_four_clipped_steps(found, policy, samples, olds, layout) -> None:
    """Ratio and weights are to the policy at the start of the step; each mini-batch has its own denominator."""
    trained, num_clipped = copy_of(policy), 0
    optimizer = torch.optim.SGD(trained.parameters(), REUSE_RATE)
    for _ in range(2):
        for part in range(2):
            num_clipped += set_gradients(trained, samples[part::2], olds[part::2])
            assert torch.nn.utils.clip_grad_norm_(trained.parameters(), NORM) > NORM
            optimizer.step()
    assert 0 < num_clipped < 2 * len(samples), "some must be clipped, and some not"
    before = dict(policy.named_parameters())
    update = {name: weight - before[name].detach() for name, weight in found[layout]["reused"].items()}
    assert_close(update, {name: p.detach() - before[name].detach() for name, p in trained.named_parameters()}, 1e-4)


@layouts
def test_adamw_takes_the_same_step_and_vectors_do_not_decay(found, policy, samples, olds, layout) -> None:
    """A first Adam step is about the sign of the gradient, so where an element is near 0 its rounding shows."""
    trained = copy_of(policy)
    set_gradients(trained, samples, olds)
    matrices = [p for p in trained.parameters() if p.dim() > 1]
    vectors = [p for p in trained.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=ADAM_RATE).step()
    for name, parameter in trained.named_parameters():
        assert float((found[layout]["adamw"][name] - parameter.detach()).abs().max()) < 0.1 * ADAM_RATE, name


@layouts
def test_a_head_in_fp32_runs_sharded_and_rounds_no_logit(found, policy, samples, layout) -> None:
    rounded = copy_of(policy)
    exact, of_bf16_head = [], []
    with torch.no_grad():
        for parameter in rounded.parameters():  # and no buffer: positions stay exact
            parameter.data = parameter.to(torch.bfloat16)
        for sample in samples:
            ids = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])
            hidden = rounded.model(input_ids=ids, use_cache=False).last_hidden_state[0]
            places = torch.arange(len(sample.prompt_ids) - 1, ids.shape[1] - 1), torch.tensor(sample.completion_ids)
            logits = hidden.float() @ rounded.lm_head.weight.float().T
            exact.append((logits / TEMPERATURE).log_softmax(-1)[places])
            of_bf16_head.append(logprobs(rounded, sample))
    results = dict(found[layout]["fp32 head"])
    distance = (results.pop("logprobs") - torch.cat(exact)).abs()
    rounding = (torch.cat(of_bf16_head) - torch.cat(exact)).abs()
    assert distance.max() < 1e-4
    assert rounding.mean() > 5e-4
    assert all(gradient.isfinite().all() and gradient.any() for gradient in results.values())


@layouts
def test_in_bf16_the_frequencies_of_positions_stay_in_fp32(found, policy, layout) -> None:
    buffers = found[layout]["buffers"]
    expected = dict(policy.named_buffers())
    assert "model.rotary_emb.inv_freq" in expected and buffers.keys() == expected.keys()
    for name, buffer in buffers.items():
        assert buffer.dtype == torch.float32 and torch.equal(buffer, expected[name]), name
