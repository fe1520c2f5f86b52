"""LoRA, held against PEFT's own merge and plain PyTorch; DeepSpeed at both stages, on one rank and two."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tests.ranks import run_ranks
from tests.trainer.lora_case import ALPHA, RANK, RATE, TEMPERATURE, Tensors
from trainer.batch import Sample
from trainer.config import RunSettings
from trainer.lora import Adapters, num_adapter_parameters, served_weights
from wire.errors import ConfigError

VOCABULARY = 97
CLOSE = 1e-5  # relative L2 distance of a tensor: fp32 sums in another order
CONFIG = Qwen3Config(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, vocab_size=VOCABULARY, tie_word_embeddings=True, attn_implementation="sdpa",
)  # fmt: skip
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

Policy = Qwen3ForCausalLM


def made_policy() -> Policy:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(CONFIG)
    with torch.no_grad():  # the usual small weights give a flat distribution, in which many mistakes do not show
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.dim() > 1 else 1)
    return model.eval()


def adapted(dtype: torch.dtype = torch.float32) -> tuple[Policy, Adapters]:
    """A policy whose adapters have been trained: A and B are random."""
    policy = made_policy()
    for parameter in policy.parameters():
        parameter.data = parameter.to(dtype)
    adapters = Adapters(policy, RunSettings(device="cpu", use_peft=True, lora_r=RANK, lora_alpha=ALPHA))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for weight in adapters.weights():
            weight.base.normal_(std=0.1)
    return policy, adapters


def with_peft(policy: Policy, tensors: Tensors) -> Any:
    """PEFT's own model with these adapters, whose names are the policy's."""
    model = get_peft_model(
        policy,
        LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules="all-linear"),
        autocast_adapter_dtype=False,
    )
    result = policy.load_state_dict(tensors, strict=False)
    assert not result.unexpected_keys
    return model


def logprobs(policy: Any, samples: list[Sample]) -> torch.Tensor:
    """Of all completions' tokens, each sequence alone; by hand."""
    rows = []
    for sample in samples:
        ids = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])
        table = (policy(input_ids=ids, use_cache=False).logits[0].float() / TEMPERATURE).log_softmax(-1)
        places = torch.arange(len(sample.prompt_ids) - 1, ids.shape[1] - 1)
        rows.append(table[places, torch.tensor(sample.completion_ids)])
    return torch.cat(rows)


def assert_same(one: Tensors, other: Tensors) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def assert_close(one: Tensors, other: Tensors) -> None:
    assert one.keys() == other.keys()
    distances = {name: float((one[name] - other[name]).norm() / other[name].norm()) for name in one}
    assert max(distances.values()) < CLOSE, max(distances.items(), key=lambda item: item[1])


def state_of(policy: torch.nn.Module) -> Tensors:
    return {name: p.detach().clone() for name, p in policy.named_parameters()}


# --- without DeepSpeed


def test_what_is_served_is_pefts_own_merge_to_the_bit_and_nothing_live_changes() -> None:
    policy, adapters = adapted()
    before = state_of(policy)
    served = {weight.name: weight.tensor(torch.float32) for weight in served_weights(policy)}
    assert_same(state_of(policy), before)
    assert list(served) == [name for name, _ in made_policy().named_parameters()]
    merged = adapters._model.merge_and_unload()
    assert_same(served, state_of(merged))
    changed = {name for name, tensor in made_policy().named_parameters() if not torch.equal(tensor, served[name])}
    assert changed == {name for name in served if name.split(".")[-2] in LINEAR}


def test_in_bf16_it_is_the_nearest_number_to_the_exact_sum_and_pefts_own_is_one_rounding_further() -> None:
    policy, adapters = adapted(torch.bfloat16)
    served = {weight.name: weight.tensor(torch.bfloat16) for weight in served_weights(policy)}
    exact = {
        weight.name: weight.base.double()
        if weight.up is None or weight.down is None
        else weight.base.double() + weight.scale * (weight.up.double() @ weight.down.double())
        for weight in served_weights(policy)
    }
    exact = {name: tensor.detach() for name, tensor in exact.items()}
    for name, tensor in adapters._model.merge_and_unload().named_parameters():
        half_spacing = 2.0**-8 * exact[name].abs()
        # 1e-6: where the sum of three terms cancels, fp32 itself is that far off.
        assert ((served[name].double() - exact[name]).abs() <= half_spacing * 1.001 + 1e-6).all(), name
        theirs, ours = ((t.double() - exact[name]).abs().mean() for t in (tensor.detach(), served[name]))
        assert ours <= theirs


def test_with_the_adapters_off_the_policy_is_the_base_model_to_the_bit() -> None:
    policy, adapters = adapted()
    samples = samples_of(made_policy())
    with torch.no_grad():
        on = logprobs(policy, samples)
        with adapters.off():
            off = logprobs(policy, samples)
        assert torch.equal(off, logprobs(made_policy(), samples))
        assert torch.equal(on, logprobs(policy, samples))
    assert float((on - off).abs().mean()) > 0.1


@pytest.mark.parametrize("targets", [["q_porj"], ["q_proj", "lm_head"], ["embed_tokens"], ["mlp"], ["norm"]])
def test_a_target_that_is_no_linear_layer_of_the_blocks_is_refused(targets: list[str]) -> None:
    settings = RunSettings(device="cpu", use_peft=True, lora_target_modules=targets)
    with pytest.raises(ConfigError, match=f"'{targets[-1]}' names no linear layers .* some of down_proj, gate_proj"):
        num_adapter_parameters(CONFIG, settings)


def test_only_the_named_layers_get_adapters_and_only_these_are_trained() -> None:
    policy = made_policy()
    adapters = Adapters(policy, RunSettings(device="cpu", use_peft=True, lora_target_modules=["q_proj", "v_proj"]))
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert len(trained) == len(adapters.weights()) == 2 * 2 * 2  # layers x targets x (A and B)
    assert {name.split(".")[-4] for name in trained} == {"q_proj", "v_proj"}


def test_the_plan_counts_the_adapters_parameters() -> None:
    queries, keys, hidden, inner = 64, 32, 64, 128
    sides = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)] + [(hidden, inner)] * 3
    settings = RunSettings(device="cpu", use_peft=True, lora_r=5)
    assert num_adapter_parameters(CONFIG, settings) == 2 * 5 * sum(a + b for a, b in sides)


# --- under DeepSpeed


def samples_of(policy: Policy) -> list[Sample]:
    rng = random.Random(3)
    samples = []
    for index in range(7):
        if index % 3 == 0:
            prompt = tuple(rng.randrange(VOCABULARY) for _ in range(rng.randrange(1, 9)))
        ids = tuple(rng.randrange(VOCABULARY) for _ in range(rng.randrange(2, 14)))
        samples.append(Sample(prompt, ids, (-4.0,) * len(ids), rng.gauss(0, 1.5)))
    return samples


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the ranks have it: another number cuts the sums in other places."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return samples_of(made_policy())


@pytest.fixture(scope="module")
def folder(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base model and samples; beside them what each world of ranks wrote."""
    folder = tmp_path_factory.mktemp("lora")
    made_policy().save_pretrained(folder / "model")
    words = {str(token): token for token in range(VOCABULARY)}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words))).save_pretrained(folder / "model")
    rows = [[s.prompt_ids, [*s.completion_ids], [*s.sampled_logprobs], s.advantage] for s in samples]
    (folder / "samples.json").write_text(json.dumps(rows))
    for world in (1, 2):
        run_ranks("tests.trainer.lora_case", folder, world)
    return folder


@pytest.fixture(scope="module", params=[(2, 1), (2, 2), (3, 1), (3, 2)], ids=lambda p: f"zero{p[0]}-{p[1]}")
def layout(request: pytest.FixtureRequest, folder: Path) -> tuple[Path, dict[str, Any]]:
    """(Where its exports lie, what was found) at one stage on so many ranks."""
    stage, world = request.param
    return folder / f"zero{stage}-{world}", torch.load(folder / f"world-{world}.pt")[stage]


def test_the_adapters_gradients_and_an_sgd_step_are_plain_pytorchs(layout, samples) -> None:
    _, found = layout
    assert all(tensor.any() for tensor in found["adapters"].values())
    policy = made_policy()
    with_peft(policy, found["adapters"])
    rows = logprobs(policy, samples).split([len(sample.completion_ids) for sample in samples])
    sum(-s.advantage / len(samples) * row.sum() for s, row in zip(samples, rows, strict=True)).backward()
    gradients = {name: p.grad for name, p in policy.named_parameters() if p.requires_grad}
    assert_close(found["gradients"], gradients)
    update = {name: after - found["adapters"][name] for name, after in found["adapters, after"].items()}
    assert_close(update, {name: -RATE * gradient for name, gradient in gradients.items()})


def test_the_reference_is_the_base_model_and_no_second_one_is_loaded(layout, samples) -> None:
    _, found = layout
    before, after = found["scores, before"], found["scores"]
    assert found["num_loaded"] == 1
    assert torch.equal(before["own"], before["reference"])  # so the KL is 0 at the start
    assert torch.equal(before["reference"], after["reference"])
    assert float((after["own"] - after["reference"]).abs().mean()) > 0.1
    with torch.no_grad():
        torch.testing.assert_close(before["reference"], logprobs(made_policy(), samples), atol=2e-5, rtol=0)


def test_a_push_sends_pefts_own_merge(layout) -> None:
    _, found = layout
    merged = state_of(with_peft(made_policy(), found["adapters, after"]).merge_and_unload())
    assert_same(found["served"], merged)
    assert_same(found["served in bf16"], {name: tensor.to(torch.bfloat16) for name, tensor in merged.items()})


def test_a_push_of_bf16_weights_sends_what_their_own_sum_rounds_to(layout) -> None:
    _, found = layout
    policy = made_policy().to(torch.bfloat16)
    with_peft(policy, found["in bf16"])
    assert_same(found["served of bf16"], {w.name: w.tensor(torch.bfloat16) for w in served_weights(policy)})


def test_exports_load_with_transformers_and_with_peft_and_are_the_learners_weights(layout, folder, samples) -> None:
    out, found = layout
    exported = AutoModelForCausalLM.from_pretrained(out / "policy", dtype=torch.float32)
    assert_same(state_of(exported), found["served"])
    assert AutoTokenizer.from_pretrained(out / "policy").get_vocab()["7"] == 7
    base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, out / "adapter")
    assert loaded.peft_config["default"].base_model_name_or_path == str(folder / "model")
    assert_same({name: p for name, p in base.named_parameters() if ".lora_" in name}, found["adapters, after"])
    with torch.no_grad():
        torch.testing.assert_close(logprobs(loaded, samples), found["scores"]["own"], atol=2e-5, rtol=0)


def test_an_export_without_adapters_is_the_learners_weights(layout) -> None:
    out, found = layout
    exported = AutoModelForCausalLM.from_pretrained(out / "without-adapters", dtype=torch.float32)
    assert_same(state_of(exported), found["without adapters"])
    assert not torch.equal(exported.model.norm.weight, made_policy().model.norm.weight)


def test_a_resumed_learner_takes_the_same_step_from_a_checkpoint_that_holds_what_is_trained(layout, folder) -> None:
    out, found = layout
    assert_same(found["resumed"], found["went on"])
    assert torch.equal(found["scores, resumed"]["reference"], found["scores"]["reference"])
    size = sum(path.stat().st_size for path in (out / "checkpoint" / "learner").glob("*model_states.pt"))
    assert size < (folder / "model" / "model.safetensors").stat().st_size / 2
