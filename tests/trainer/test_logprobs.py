"""Packed log-probs of a tiny random Qwen3, held against each sequence alone and against the full softmax."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from trainer.attention import PER_SEQUENCE, Segment
from trainer.batch import Sample
from trainer.logprobs import PolicyScorer, to_tensors

CPU = torch.device("cpu")
VOCABULARY = 97
SAMPLES = [
    Sample((5, 6, 7), (8, 9, 10, 11), (-1.0, -2.0, -3.0, -4.0), 0.5),
    Sample((12,), (13, 14), (-5.0, -6.0), -1.5),
    Sample((20, 21, 22, 23, 24), (25,), (-7.0,), 1.0),
]
SIBLINGS = [
    SAMPLES[0],
    Sample((5, 6, 7), (15,), (-1.5,), -0.7),
    Sample((5, 6, 7), (), (), 0.3),
    Sample((5, 6, 7), (16, 17, 18, 19, 8), (-0.5,) * 5, 0.2),
    *SAMPLES[1:],
    Sample(SAMPLES[2].prompt_ids, (26, 27), (-2.0, -3.0), -2.0),
]
MODES = ["eval", "train", "train, checkpointing"]


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """A tiny model spends its time on waking threads up."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["sdpa", PER_SEQUENCE])
def policy(one_thread: None, request: pytest.FixtureRequest) -> Iterator[Qwen3ForCausalLM]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Qwen3Config(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            head_dim=16, vocab_size=VOCABULARY, tie_word_embeddings=False, attn_implementation=request.param,
        )  # fmt: skip
        model = Qwen3ForCausalLM(config)
    with torch.no_grad():  # the usual small weights give a flat distribution, in which many mistakes do not show
        for parameter in model.parameters():
            parameter.mul_(15 if parameter.dim() > 1 else 1)
    yield model


@pytest.fixture
def scorer(policy: Qwen3ForCausalLM) -> Iterator[PolicyScorer]:
    yield PolicyScorer(policy.eval(), temperature=1.0, chunk_tokens=1024)
    policy.gradient_checkpointing_disable()
    policy.zero_grad()
    policy.eval()


def set_mode(scorer: PolicyScorer, mode: str) -> None:
    scorer.train(mode != "eval")
    if mode == "train, checkpointing":
        scorer.policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})


def logprobs_of(scorer: PolicyScorer, *samples: Sample) -> list[Tensor]:
    """Log-probs of each sample, in order."""
    logprobs_M, _ = scorer(to_tensors(samples, CPU))
    return list(logprobs_M.detach().split([len(sample.completion_ids) for sample in samples]))


def full_softmax(policy: Qwen3ForCausalLM, sample: Sample, temperature: float) -> tuple[Tensor, Tensor]:
    """(log-probs, entropy) of the completion's tokens, from whole logits of the sequence alone."""
    ids = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])
    borders = {"segments": [Segment(ids.shape[1])]} if policy.config._attn_implementation == PER_SEQUENCE else {}
    with torch.no_grad():
        logits_TV = policy(input_ids=ids, use_cache=False, **borders).logits[0].float() / temperature
    table_MV = logits_TV.log_softmax(-1)[len(sample.prompt_ids) - 1 : -1]
    chosen_M = table_MV.gather(1, torch.tensor(sample.completion_ids)[:, None])[:, 0]
    return chosen_M, -(table_MV.exp() * table_MV).sum(-1)


def test_samples_are_laid_end_to_end_and_the_token_before_predicts() -> None:
    packed = to_tensors(SAMPLES[:2], CPU)
    assert packed.input_ids_1T.tolist() == [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14]]
    assert packed.position_ids_1T.tolist() == [[0, 1, 2, 3, 4, 5, 6, 0, 1, 2]]
    assert packed.source_M.tolist() == [2, 3, 4, 5, 7, 8]
    assert packed.target_M.tolist() == [8, 9, 10, 11, 13, 14]
    assert packed.segment_M.tolist() == [0, 0, 0, 0, 1, 1]
    assert packed.sampled_M.tolist() == [-1, -2, -3, -4, -5, -6]
    assert packed.advantage_N.tolist() == [0.5, -1.5]


def test_a_shared_prompt_is_laid_once_and_its_last_token_predicts_each_first_one() -> None:
    packed = to_tensors(SIBLINGS[:5], CPU, share_prompts=True)
    assert packed.input_ids_1T.tolist() == [[5, 6, 7, 8, 9, 10, 11, 15, 16, 17, 18, 19, 8, 12, 13, 14]]
    assert packed.position_ids_1T.tolist() == [[0, 1, 2, 3, 4, 5, 6, 3, 3, 4, 5, 6, 7, 0, 1, 2]]
    assert packed.source_M.tolist() == [2, 3, 4, 5, 2, 2, 8, 9, 10, 11, 13, 14]
    assert packed.segment_M.tolist() == [0, 0, 0, 0, 1, 3, 3, 3, 3, 3, 4, 4]
    assert packed.segments == [Segment(7), Segment(1, 3), Segment(5, 3), Segment(3)]


@pytest.mark.parametrize("mode", MODES)
def test_shared_prompts_change_no_log_prob_no_entropy_and_no_gradient(scorer: PolicyScorer, mode: str) -> None:
    set_mode(scorer, mode)
    shares = scorer.policy.config._attn_implementation == PER_SEQUENCE
    shared, apart = scorer.to_tensors(SIBLINGS, CPU), to_tensors(SIBLINGS, CPU)
    assert apart.input_ids_1T.numel() - shared.input_ids_1T.numel() == (3 * 3 + 5 if shares else 0)
    found = []
    for packed in (shared, apart):
        scorer.policy.zero_grad()
        logprobs_M, entropy_M = scorer(packed)
        (logprobs_M * packed.advantage_N[packed.segment_M]).sum().backward()
        gradients = {name: p.grad.clone() for name, p in scorer.policy.named_parameters() if p.grad is not None}
        found.append((logprobs_M.detach(), entropy_M, gradients))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)
    assert_same(found[0][2], found[1][2])


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_log_probs_and_entropy_are_those_of_the_full_softmax_at_the_temperature(policy, temperature: float) -> None:
    scorer = PolicyScorer(policy.eval(), temperature, chunk_tokens=3)
    logprobs_M, entropy_M = scorer(to_tensors(SAMPLES, CPU))
    expected = [full_softmax(policy, sample, temperature) for sample in SAMPLES]
    assert torch.allclose(logprobs_M, torch.cat([logprobs for logprobs, _ in expected]), atol=1e-5)
    assert torch.allclose(entropy_M, torch.cat([entropy for _, entropy in expected]), atol=1e-5)
    assert entropy_M.min() > 0 and entropy_M.max() < torch.log(torch.tensor(float(VOCABULARY)))
    assert not entropy_M.requires_grad and logprobs_M.requires_grad
    assert logprobs_M.dtype == entropy_M.dtype == torch.float32


@pytest.mark.parametrize("mode", MODES)
def test_a_packed_sample_has_the_log_probs_that_it_has_alone(scorer: PolicyScorer, mode: str) -> None:
    set_mode(scorer, mode)
    together = logprobs_of(scorer, *SAMPLES)
    for sample, packed in zip(SAMPLES, together, strict=True):
        (alone,) = logprobs_of(scorer, sample)
        assert torch.allclose(packed, alone, atol=1e-5)


@pytest.mark.parametrize("mode", MODES[1:])
def test_training_mode_and_checkpointing_change_no_log_prob(scorer: PolicyScorer, mode: str) -> None:
    expected = logprobs_of(scorer, *SAMPLES)
    set_mode(scorer, mode)
    for one, other in zip(logprobs_of(scorer, *SAMPLES), expected, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_the_order_in_a_pack_changes_nothing(scorer: PolicyScorer, mode: str) -> None:
    set_mode(scorer, mode)
    forwards, backwards = logprobs_of(scorer, *SAMPLES), logprobs_of(scorer, *reversed(SAMPLES))
    for one, other in zip(forwards, reversed(backwards), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_the_tokens_of_one_sample_have_no_influence_on_another(scorer: PolicyScorer, mode: str) -> None:
    set_mode(scorer, mode)
    first, second, third = SAMPLES
    changed = Sample((40, 41, 42), (43, 44, 45, 46), first.sampled_logprobs)
    before, after = logprobs_of(scorer, first, second, third), logprobs_of(scorer, changed, second, third)
    assert not torch.allclose(before[0], after[0], atol=1e-2)
    assert torch.equal(before[1], after[1]) and torch.equal(before[2], after[2])


def test_its_own_prompt_does_have_an_influence(scorer: PolicyScorer) -> None:
    other = Sample((30, 31, 32), SAMPLES[0].completion_ids, SAMPLES[0].sampled_logprobs)
    assert not torch.allclose(logprobs_of(scorer, SAMPLES[0])[0], logprobs_of(scorer, other)[0], atol=1e-2)


def gradients(scorer: PolicyScorer, *packs: list[Sample]) -> dict[str, Tensor]:
    """Of the sum of advantage x log-prob over all packs."""
    scorer.policy.zero_grad()
    for samples in packs:
        packed = to_tensors(samples, CPU)
        logprobs_M, _ = scorer(packed)
        (logprobs_M * packed.advantage_N[packed.segment_M]).sum().backward()
    return {name: p.grad.clone() for name, p in scorer.policy.named_parameters() if p.grad is not None}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        assert torch.allclose(gradient, other[name], atol=2e-5, rtol=1e-4), name


@pytest.mark.parametrize("chunk_tokens", [1, 2, 3, 7])
def test_the_size_of_a_chunk_changes_neither_log_probs_nor_entropy_nor_gradients(policy, chunk_tokens: int) -> None:
    whole, cut = PolicyScorer(policy.eval(), 0.7, 1024), PolicyScorer(policy, 0.7, chunk_tokens)
    packed = to_tensors(SAMPLES, CPU)
    for one, other in zip(whole(packed), cut(packed), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert_same(gradients(whole, SAMPLES), gradients(cut, SAMPLES))


@pytest.mark.parametrize("mode", MODES)
def test_how_samples_are_packed_and_whether_activations_are_kept_changes_no_gradient(
    scorer: PolicyScorer, mode: str
) -> None:
    expected = gradients(scorer, SAMPLES)
    assert len(expected) == len(list(scorer.policy.parameters()))
    set_mode(scorer, mode)
    assert_same(gradients(scorer, SAMPLES), expected)
    assert_same(gradients(scorer, SAMPLES[:1], SAMPLES[1:]), expected)


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_micro_batch_has_no_loss_and_a_zero_gradient_for_every_parameter(
    scorer: PolicyScorer, mode: str
) -> None:
    set_mode(scorer, mode)
    logprobs_M, entropy_M = scorer(to_tensors([], CPU))
    assert logprobs_M.shape == entropy_M.shape == (0,)
    loss = logprobs_M.sum()
    assert loss.item() == 0.0
    scorer.policy.zero_grad()
    loss.backward()
    for name, parameter in scorer.policy.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_an_empty_completion_among_others_has_no_log_probs(scorer: PolicyScorer) -> None:
    empty = Sample((3, 4), (), (), 2.0)
    first, nothing, last = logprobs_of(scorer, SAMPLES[0], empty, SAMPLES[1])
    assert nothing.numel() == 0
    assert torch.allclose(first, logprobs_of(scorer, SAMPLES[0])[0], atol=1e-5)
    assert torch.allclose(last, logprobs_of(scorer, SAMPLES[1])[0], atol=1e-5)


def test_without_gradient_the_numbers_are_the_same(scorer: PolicyScorer) -> None:
    with_gradient = logprobs_of(scorer, *SAMPLES)
    with torch.no_grad():
        without = logprobs_of(scorer, *SAMPLES)
    assert all(torch.equal(one, other) for one, other in zip(with_gradient, without, strict=True))
