"""Our loss and gradients against TRL's RLOOTrainer: the same model, completions and rewards, in fp32.

TRL pads, we pack; TRL scores the whole batch, we a row of whole sequences. Its full-batch loss is -mean(A) = 0 by
construction, so the terms of single completions and the gradients are compared.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from trainer.advantages import step_advantages
from trainer.batch import Sample
from trainer.config import RunSettings
from trainer.group import Group
from trainer.logprobs import PolicyScorer, to_tensors
from trainer.prompts import Prompt
from trainer.rloo import assemble_reward, leave_one_out, policy_loss
from wire.generation import Completion
from wire.judgement import GroupVerdict

VOCABULARY, PAD, END = 97, 0, 1
NUM_PROMPTS, BETA, CLIP, TEMPERATURE = 3, 0.05, 0.2, 0.8
CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's own, of its trainer and of the libraries below it


def draw(rng: random.Random, shortest: int, longest: int) -> tuple[int, ...]:
    return tuple(rng.randrange(2, VOCABULARY) for _ in range(rng.randrange(shortest, longest)))


class Case:
    """Prompts, K completions each, and a score for each completion."""

    def __init__(self, k: int) -> None:
        rng = random.Random(k)
        self.k = k
        self.prompts = [draw(rng, 2, 9) for _ in range(NUM_PROMPTS)]
        self.completions = [[(*draw(rng, 1, 12), END) for _ in range(k)] for _ in self.prompts]
        self.scores = [[rng.uniform(1, 5) for _ in range(k)] for _ in self.prompts]

    @property
    def flat_scores(self) -> list[float]:
        return [score for row in self.scores for score in row]

    @property
    def flat_completions(self) -> list[tuple[int, ...]]:
        return [completion for row in self.completions for completion in row]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny random Qwen3; it is the reference too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Qwen3Config(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            head_dim=16, vocab_size=VOCABULARY, tie_word_embeddings=False, pad_token_id=PAD, eos_token_id=END,
            attn_implementation="sdpa",
        )  # fmt: skip
        model = Qwen3ForCausalLM(config)
    with torch.no_grad():  # the usual small weights give a flat distribution, in which many mistakes do not show
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.dim() > 1 else 1)
    folder = tmp_path_factory.mktemp("oracle") / "model"
    model.save_pretrained(folder)
    yield folder
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A word for each token."""
    words = Tokenizer(WordLevel({word(token): token for token in range(VOCABULARY)}, unk_token=word(PAD)))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=word(PAD), eos_token=word(END))


def word(token: int) -> str:
    return {PAD: "pad", END: "end"}.get(token, f"t{token}")


class Oracle:
    """TRL's trainer with the case's completions and scores in place of its own.

    `_generate_and_score_completions` and `_compute_loss` are called as its `_prepare_inputs` and `training_step` do,
    less the shuffling of rows between them.
    """

    def __init__(self, case: Case, model_dir: Path, tokenizer: PreTrainedTokenizerFast, beta: float) -> None:
        from trl import RLOOConfig, RLOOTrainer

        class Trainer(RLOOTrainer):
            def _generate_single_turn(self, prompt_ids: Any, images: Any, multimodal_fields: Any) -> Any:
                assert [tuple(ids) for ids in prompt_ids] == [p for p in case.prompts for _ in range(case.k)]
                return [list(completion) for completion in case.flat_completions]

        def score(prompts: list[str], **_columns: Any) -> list[float]:
            return case.flat_scores

        self.case, rows = case, NUM_PROMPTS * case.k
        arguments = RLOOConfig(
            output_dir=str(model_dir.parent / "trl"), use_cpu=True, bf16=False, gradient_checkpointing=False,
            num_generations=case.k, per_device_train_batch_size=rows, gradient_accumulation_steps=1, beta=beta,
            epsilon=CLIP, temperature=TEMPERATURE, report_to="none", disable_dropout=True,
        )  # fmt: skip
        texts = [" ".join(map(word, prompt)) for prompt in case.prompts]
        self.policy = Qwen3ForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        self.trainer = Trainer(
            model=self.policy,
            reward_funcs=score,
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": texts}),
            processing_class=tokenizer,
        )
        self.inputs = [{"prompt": text} for text in texts for _ in range(case.k)]

    def score(self) -> dict[str, Tensor]:
        """The batch: old log-probs, advantages, masks."""
        self.policy.train()
        batch: dict[str, Tensor] = self.trainer._generate_and_score_completions(self.inputs)
        return batch

    def terms(self, batch: dict[str, Tensor], *, on_policy: bool = False) -> list[float]:
        """The loss of each completion alone.

        `on_policy`: the old log-probs are computed anew, from the row alone, so that its ratio is 1 to the last bit as
        that of the whole batch is.
        """
        terms = []
        for i in range(len(batch["advantages"])):
            row = {name: tensor[i : i + 1] for name, tensor in batch.items()}
            if on_policy:
                row["old_logps"] = self._logprobs(row)
            terms.append(float(self.trainer._compute_loss(self.policy, row).detach()))
        return terms

    @torch.no_grad()
    def _logprobs(self, row: dict[str, Tensor]) -> Tensor:
        ids = torch.cat([row["prompt_ids"], row["completion_ids"]], dim=1)
        mask = torch.cat([row["prompt_mask"], row["completion_mask"]], dim=1)
        length = row["completion_ids"].shape[1]
        token_logprobs, *_ = self.trainer._get_per_token_logps_and_entropies(self.policy, ids, mask, length)
        return (token_logprobs * row["completion_mask"]).sum(1)

    def gradients(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        self.policy.zero_grad()
        self.trainer._compute_loss(self.policy, batch).backward()
        return {name: p.grad.clone() for name, p in self.policy.named_parameters()}


class Ours:
    """The same, from our own functions: both log-probs, rewards, advantages, packed loss."""

    def __init__(self, case: Case, model_dir: Path, beta: float) -> None:
        self.case, self.beta = case, beta
        self.settings = RunSettings(device="cpu", rloo_k=case.k, kl_coef=beta)
        self.policy = Qwen3ForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        self.reference = PolicyScorer(
            Qwen3ForCausalLM.from_pretrained(model_dir, dtype=torch.float32), TEMPERATURE, 1024
        )
        self.scorer = PolicyScorer(self.policy, TEMPERATURE, 1024)

    @torch.no_grad()
    def score(self) -> list[Sample]:
        """Samples with advantages; their sampled log-probs are the policy's own, so that every weight is 1."""
        groups = [
            self._group(*row) for row in zip(self.case.prompts, self.case.completions, self.case.scores, strict=True)
        ]
        return [sample for group in step_advantages(groups, self.settings) for sample in group.samples()]

    def _group(self, prompt: tuple[int, ...], completions: list[tuple[int, ...]], scores: list[float]) -> Group:
        packed = to_tensors([Sample(prompt, ids, (0.0,) * len(ids)) for ids in completions], CPU)
        lengths = [len(ids) for ids in completions]
        own_K, reference_K = (scorer(packed)[0].split(lengths) for scorer in (self.scorer, self.reference))
        kl_K = [float(own.sum() - reference.sum()) for own, reference in zip(own_K, reference_K, strict=True)]
        rewards_K = [
            assemble_reward(score, finished=True, kl=kl, kl_coef=self.beta, missing_eos_penalty=None)[1]
            for score, kl in zip(scores, kl_K, strict=True)
        ]
        return Group(
            prompt=Prompt(0, (), prompt),
            completions=[
                Completion(i, ids, tuple(own.tolist()), True, ())
                for i, (ids, own) in enumerate(zip(completions, own_K, strict=True))
            ],
            texts=[""] * len(completions),
            verdict=GroupVerdict(scores=tuple(scores), verdicts=()),
            scores_K=scores,
            rewards_K=rewards_K,
            kl_K=kl_K,
            entropy_K=kl_K,
            length_terms_K=[0.0] * len(kl_K),
            seconds={},
        )

    def loss(self, samples: list[Sample], denominator: int, on_policy: bool) -> Tensor:
        packed = to_tensors(samples, CPU)
        new_M, _ = self.scorer(packed)
        old_M = new_M.detach() if on_policy else packed.sampled_M
        return policy_loss(
            new_M, old_M, torch.ones_like(new_M), packed.segment_M, packed.advantage_N,
            denominator=denominator, cliprange=CLIP,
        ).loss  # fmt: skip

    def terms(self, samples: list[Sample], *, on_policy: bool = False) -> list[float]:
        return [float(self.loss([sample], 1, on_policy).detach()) for sample in samples]

    def gradients(self, samples: list[Sample], *, on_policy: bool = False) -> dict[str, Tensor]:
        self.policy.zero_grad()
        self.loss(samples, len(samples), on_policy).backward()
        return {name: p.grad.clone() for name, p in self.policy.named_parameters() if p.grad is not None}


def move(policy: Qwen3ForCausalLM, size: float, seed: int) -> None:
    """Move the weights a little, by the same amounts wherever the seed is the same."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(params=[0.0, BETA], ids=["no KL", "KL"])
def beta(request: pytest.FixtureRequest) -> float:
    return float(request.param)


@pytest.fixture
def both(k: int, beta: float, model_dir: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[Oracle, Ours]:
    """Both sides, after the policy has moved away from the reference."""
    case = Case(k)
    oracle = Oracle(case, model_dir, tokenizer, beta)
    ours = Ours(case, model_dir, beta)
    for side in (oracle, ours):
        move(side.policy, 0.03, seed=1)
    return oracle, ours


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor], bound: float) -> None:
    assert ours.keys() == theirs.keys()
    distances = {name: float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in theirs}
    print("largest relative distance of a gradient:", max(distances.values()))
    assert max(distances.values()) < bound, max(distances.items(), key=lambda item: item[1])


@pytest.mark.parametrize("k", [2, 4, 8])
def test_on_policy_terms_and_gradients_are_trls(both: tuple[Oracle, Ours]) -> None:
    oracle, ours = both
    batch, samples = oracle.score(), ours.score()
    their_terms, our_terms = oracle.terms(batch, on_policy=True), ours.terms(samples, on_policy=True)
    print("largest distance of a term:", max(abs(a - b) for a, b in zip(our_terms, their_terms, strict=True)))
    assert our_terms == pytest.approx(their_terms, abs=1e-6, rel=0)
    without_kl = [-a for row in oracle.case.scores for a in leave_one_out(row) if a is not None]
    shifts = [abs(term - plain) for term, plain in zip(their_terms, without_kl, strict=True)]
    assert max(map(abs, their_terms)) > 0.5 and (max(shifts) > 0.05 if ours.beta else max(shifts) < 1e-6)
    assert_same_gradients(ours.gradients(samples, on_policy=True), oracle.gradients(batch), 1e-5)


@pytest.mark.parametrize("k", [4])
def test_on_a_reused_batch_ratio_and_clip_are_trls(both: tuple[Oracle, Ours]) -> None:
    """After another move of the policy. A term is then A times a ratio of sums of a dozen log-probs in fp32, each near
    -5 with a spacing of 5e-7: a few of these make the 1e-5 that is allowed here."""
    oracle, ours = both
    batch, samples = oracle.score(), ours.score()
    for side in (oracle, ours):
        move(side.policy, 0.003, seed=2)
    their_terms, advantages = oracle.terms(batch), batch["advantages"].tolist()
    assert ours.terms(samples) == pytest.approx(their_terms, abs=1e-5, rel=0)
    ratios = [-term / advantage for term, advantage in zip(their_terms, advantages, strict=True)]
    clipped = [min(abs(ratio - 1 - CLIP), abs(ratio - 1 + CLIP)) < 1e-6 for ratio in ratios]
    assert any(clipped) and not all(clipped)
    assert_same_gradients(ours.gradients(samples), oracle.gradients(batch), 1e-5)
