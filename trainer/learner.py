"""One learner rank: the policy under DeepSpeed, its reference, and the step.

A rank is a plain object; `trainer/placement.py` makes a Ray actor of it. All ranks get the same calls in the same
order, because under ZeRO every pass is a collective.
"""

from __future__ import annotations

import importlib.util
import os
from array import array
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from rollout_server.rendezvous import store_on
from trainer.attention import PER_SEQUENCE, is_plain_causal
from trainer.batch import MicroBatch, MiniBatch, Sample
from trainer.buffers import restore_buffers
from trainer.config import RunSettings
from trainer.logprobs import Packed, PolicyScorer
from trainer.lora import Adapters, ServedWeight, served_weights
from trainer.optimizer import adamw, deepspeed_config, schedule, weight_decay_groups
from trainer.out_of_memory import memory_guard
from trainer.publish import TransferSettings, WeightSender, ZeroWeightSource
from trainer.random_states import load_random_states, save_random_states
from trainer.rloo import importance_weights, policy_loss
from trainer.stats import Moments, StepStats
from wire.address import socket_environment
from wire.engine import resolve_device
from wire.errors import ServiceError
from wire.generation import PolicyVersion
from wire.membership import Member, TransferReport
from wire.process import free_port
from wire.token import read_token

EXPORT_BUCKET_BYTES = 2**28


class LearnerRank:
    """Rank `rank` of the learner.

    Args:
        settings: the run's.
        rank: 0 .. num_learner_ranks - 1; rank 0 sends the weights.
    """

    def __init__(self, settings: RunSettings, rank: int) -> None:
        self._settings, self._rank = settings, rank
        self._is_cuda = resolve_device(settings.device) == "cuda"
        self._device = torch.device("cuda", 0) if self._is_cuda else torch.device("cpu")
        self._dtype = torch.bfloat16 if settings.bf16 else torch.float32
        self._adapters: Adapters | None = None
        self._begun = StepStats()  # of what the next step has already
        self._sender: WeightSender | None = None

    # --- start

    def pick_port(self) -> int:
        """A free port on rank 0's node for the ranks' rendezvous."""
        return free_port(self._settings.bind_address, self._settings.port_range)

    def setup(self, host: str, port: int) -> dict[str, Any]:
        """Meet the other ranks at `host:port` and load the policy and its reference.

        Returns: `num_parameters`, of the whole policy; `sends_beside`.
        """
        self._join(host, port)
        set_seed(self._settings.seed + self._rank)
        torch.use_deterministic_algorithms(self._settings.deterministic)
        with self._memory_guard("loading"):
            config = deepspeed_config(self._settings)
            partitioned = config["zero_optimization"]["stage"] == 3
            self._hf_config = HfDeepSpeedConfig(config) if partitioned else None  # alive while models load
            self._engine = self._build_engine(config)
            has_reference = self._settings.kl_coef and not self._settings.use_peft
            self._reference = self._build_reference(config) if has_reference else None
        policy = self._engine.module.policy
        # Made here, on the main thread: its scales are read while no pass has the adapters switched off.
        self._weights_out = ZeroWeightSource(
            served_weights(policy),
            getattr(torch, self._settings.rollout_dtype),
            self._settings.transfer_bucket_mib * 2**20,
            is_sender=self._rank == 0,
        )
        num_parameters = sum(getattr(p, "ds_numel", p.numel()) for p in policy.parameters())
        return {"num_parameters": num_parameters, "sends_beside": self.sends_beside}

    def _join(self, host: str, port: int) -> None:
        """Form the ranks' process group over a store that listens on `host` only.

        DeepSpeed takes over a group that exists; left alone it would open a store on every interface.
        """
        world_size = self._settings.num_learner_ranks
        os.environ.update(RANK=str(self._rank), WORLD_SIZE=str(world_size), LOCAL_RANK="0")
        os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port))
        for name, value in socket_environment(self._settings.bind_address).items():
            os.environ.setdefault(name, value)  # read by NCCL and Gloo when they form a group, the transfer's too
        timeout = timedelta(seconds=self._settings.learner_timeout_s)
        store = store_on(host, port, self._rank, world_size, timeout)
        if self._is_cuda:
            torch.cuda.set_device(self._device)
        backend = "nccl" if self._is_cuda else "gloo"
        # DeepSpeed would compile a shared-memory reduction at every first start on a CPU host: a compiler and half a
        # minute for ranks that Gloo serves as well.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        dist.init_process_group(backend, store=store, rank=self._rank, world_size=world_size, timeout=timeout)
        deepspeed.init_distributed(backend, dist_init_required=False)

    def _load_scorer(self) -> PolicyScorer:
        settings = self._settings
        model = AutoModelForCausalLM.from_pretrained(
            settings.model_name_or_path,
            revision=settings.model_revision or "main",
            dtype=self._dtype,
            attn_implementation=settings.attn_implementation or self._default_attention(),
        )
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):  # else the two passes over a sample would differ by chance
                module.p = 0.0
        restore_buffers(model)
        return PolicyScorer(model, settings.temperature, settings.logprob_chunk_tokens, settings.fp32_lm_head)

    def _default_attention(self) -> str:
        """The fastest that there is; the last computes attention between the sequences of a pack too and masks it."""
        if self._is_cuda and importlib.util.find_spec("flash_attn") is not None:
            return "flash_attention_2"
        settings = self._settings
        config = AutoConfig.from_pretrained(settings.model_name_or_path, revision=settings.model_revision or "main")
        return PER_SEQUENCE if is_plain_causal(config) else "sdpa"

    def _build_engine(self, config: dict[str, Any]) -> Any:
        settings = self._settings
        scorer = self._load_scorer()
        policy: Any = scorer.policy
        if settings.use_peft:
            self._adapters = Adapters(policy, settings)
        if settings.gradient_checkpointing:
            policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
            if settings.use_peft:  # a checkpointed layer has a gradient only where its input needs one
                policy.enable_input_require_grads()
        engine, *_ = deepspeed.initialize(
            model=scorer,
            model_parameters=weight_decay_groups(scorer, settings.weight_decay),
            lr_scheduler=schedule(settings),
            config=config | {"optimizer": adamw(settings, config["zero_optimization"], is_cuda=self._is_cuda)},
        )
        return engine

    def _build_reference(self, config: dict[str, Any]) -> Any:
        """The frozen initial policy: sharded like the policy under ZeRO-3, whole otherwise."""
        settings = self._settings
        reference = self._load_scorer()
        reference.requires_grad_(False).eval()
        if config["zero_optimization"]["stage"] != 3:
            return reference.to(self._device)
        offloads = {"offload_optimizer", "offload_param"}
        parameters = {k: v for k, v in config["zero_optimization"].items() if k not in offloads}
        if settings.offload_reference:
            parameters["offload_param"] = {"device": "cpu", "pin_memory": self._is_cuda}
        engine, *_ = deepspeed.initialize(model=reference, config=config | {"zero_optimization": parameters})
        engine.eval()
        return engine

    # --- work

    @torch.no_grad()
    def reference(self, micro_batches: list[MicroBatch]) -> list[list[tuple[array[float], array[float]]]]:
        """Own and reference log-probs of each sample's completion tokens, without gradient.

        Returns: for each micro-batch, for each sample in its order, (own, reference), in nats; the reference's are the
        own where kl_coef is 0.
        """
        with self._memory_guard("the no-grad pass"):
            self._engine.eval()
            try:
                return [self._score_both(samples) for samples in micro_batches]
            finally:
                self._engine.train()

    def _score_both(self, samples: list[Sample]) -> list[tuple[array[float], array[float]]]:
        packed = self._engine.module.to_tensors(samples, self._device)
        own = self._engine(packed, with_entropy=False)[0]
        reference = self._reference_logprobs(packed, own)
        lengths = [len(sample.completion_ids) for sample in samples]
        if not samples:
            return []
        rows = zip(own.double().split(lengths), reference.double().split(lengths), strict=True)
        return [(array("d", a.numpy(force=True).tobytes()), array("d", b.numpy(force=True).tobytes())) for a, b in rows]

    def _reference_logprobs(self, packed: Packed, own: torch.Tensor) -> torch.Tensor:
        logprobs = own
        if self._adapters is not None and self._settings.kl_coef:  # the model under the adapters is the reference
            with self._adapters.off():
                logprobs = self._engine(packed, with_entropy=False)[0]
        elif self._reference is not None:
            logprobs = self._reference(packed, with_entropy=False)[0]
        return logprobs

    def accumulate(self, mini_batch: MiniBatch) -> None:
        """A part of the coming step's gradient. What `step` is called with next is the rest, and its denominator is
        the same; it is the step's only mini-batch, in one epoch."""
        with self._memory_guard("the training step"):
            for samples in mini_batch.micro_batches:
                self._begun = self._begun + self._backward(samples, None, mini_batch.denominator, is_last=False)

    def step(self, mini_batches: list[MiniBatch]) -> StepStats:
        """All optimizer steps of one step of the loop."""
        with self._memory_guard("the training step"):
            old = self._old_logprobs(mini_batches)
            stats, self._begun = self._begun, StepStats()
            for _ in range(self._settings.num_ppo_epochs):
                for index, mini_batch in enumerate(mini_batches):
                    stats = stats + self._optimizer_step(mini_batch, old[index] if old else None)
            return stats

    def _old_logprobs(self, mini_batches: list[MiniBatch]) -> list[list[torch.Tensor]] | None:
        """Log-probs under the policy at the start of the step; None where each sample is used once, since the pass
        that trains on it is then the first and gives the same numbers."""
        if self._settings.optimizer_steps_per_step == 1:
            return None
        with torch.no_grad():
            return [
                [
                    self._engine(self._engine.module.to_tensors(samples, self._device), with_entropy=False)[0]
                    for samples in mini_batch.micro_batches
                ]
                for mini_batch in mini_batches
            ]

    def _optimizer_step(self, mini_batch: MiniBatch, old: list[torch.Tensor] | None) -> StepStats:
        stats = StepStats()
        last = len(mini_batch.micro_batches) - 1
        for index, samples in enumerate(mini_batch.micro_batches):
            old_M = None if old is None else old[index]
            stats = stats + self._backward(samples, old_M, mini_batch.denominator, is_last=index == last)
        self._engine.step()
        stats.grad_norm = float(self._engine.get_global_grad_norm() or 0.0)
        stats.learning_rate = float(self._engine.get_lr()[0])
        return stats

    def _backward(
        self, samples: MicroBatch, old_M: torch.Tensor | None, denominator: int, *, is_last: bool
    ) -> StepStats:
        """Add a micro-batch's gradient; `is_last`: the optimizer's step follows."""
        packed = self._engine.module.to_tensors(samples, self._device)
        new_M, entropy_M = self._engine(packed)
        loss, stats = self._loss(packed, new_M, new_M.detach() if old_M is None else old_M, entropy_M, denominator)
        self._engine.set_gradient_accumulation_boundary(is_last)
        # DeepSpeed averages gradients over the ranks, RLOO over the completions (the denominator spans all ranks):
        # times the ranks undoes the one. scale_wrt_gas=False: no division by accumulation steps either.
        self._engine.backward(loss * self._settings.num_learner_ranks, scale_wrt_gas=False)
        return stats

    def _loss(
        self, packed: Packed, new_M: torch.Tensor, old_M: torch.Tensor, entropy_M: torch.Tensor, denominator: int
    ) -> tuple[torch.Tensor, StepStats]:
        if packed.segment_M.numel() == 0:
            return new_M.sum(), StepStats()
        settings, sampled_M, segment_M = self._settings, packed.sampled_M, packed.segment_M
        weights = importance_weights(
            old_M, sampled_M, segment_M, kind=settings.importance_weights, cap=settings.importance_weight_cap
        )
        result = policy_loss(
            new_M,
            old_M,
            weights.weight_T,
            segment_M,
            packed.advantage_N,
            denominator=denominator,
            cliprange=settings.cliprange,
        )
        difference_M = old_M - sampled_M
        ratio_M = difference_M.exp()
        outside_M = ((ratio_M < 0.9) | (ratio_M > 1.1)).float()
        return result.loss, StepStats(
            entropy=_moments(entropy_M),
            ratio=_moments((new_M.detach() - old_M).exp()),
            logp_diff=_moments(difference_M),
            ratio_outside=_moments(outside_M),
            weight=_moments(weights.weight_T),
            weight_capped=_moments(weights.capped_T.float()),
            approx_kl=_moments(0.5 * result.log_ratio_N.square()),
            clipped=_moments(result.clipped_N.float()),
            loss=float(result.loss.detach()),
            num_tokens=int(packed.input_ids_1T.numel()),
        )

    # --- weights out

    def open_transfer(self, members: list[Member], timeout_s: float) -> TransferReport:
        """Form the transfer group with `members`; the one before, if any, is closed.

        What happens at a member is reported, not raised. Ranks that do not send return an empty report.
        """
        if self._rank != 0:
            return TransferReport({}, {})
        if self._sender is None:
            settings = self._settings
            transfer = TransferSettings(
                settings.transfer_backend,
                settings.bind_address,
                settings.transfer_bucket_mib * 2**20,
                settings.transfer_staging_mib * 2**20,
                settings.verify_transfer,
                settings.port_range,
            )
            self._sender = WeightSender(transfer, self._weights_out, read_token(settings.token_file))
        return self._sender.open(members, timeout_s)

    def send_weights(self, version: PolicyVersion, push_id: str, timeout_s: float) -> TransferReport:
        """Push the current weights to every member and label them. Called on every rank; rank 0's report counts.

        Under ZeRO-3 every rank takes part in the gathers, whatever becomes of the push. Where nothing is partitioned
        only rank 0 does anything, and it may run in another thread beside `reference`: both only read the weights.
        """
        if self._rank == 0:
            if self._sender is None:
                raise ServiceError("send_weights before open_transfer")
            return self._sender.send(version.label, push_id, timeout_s)
        if not self.sends_beside:
            self._weights_out.start_pass()
            self._weights_out.finish_pass()
        return TransferReport({}, {})

    @property
    def sends_beside(self) -> bool:
        """Whether `send_weights` may run in a thread beside the rank's other passes; its gathers are collectives
        under ZeRO-3, and collectives have one order."""
        return not any(hasattr(parameter, "ds_id") for parameter in self._engine.module.policy.parameters())

    def close_transfer(self) -> None:
        """Leave the transfer group, if there is one."""
        if self._sender is not None:
            self._sender.close()

    # --- weights to disk

    def save(self, folder: str) -> None:
        """Write this rank's part of a checkpoint: weights, optimizer, schedule, random states."""
        self._engine.save_checkpoint(folder, tag="learner", exclude_frozen_parameters=self._settings.use_peft)
        save_random_states(self._random_states_in(folder))

    def load(self, folder: str) -> None:
        """Restore what `save` wrote. Raises ServiceError on a checkpoint that does not fit."""
        strict = not self._settings.use_peft  # what is frozen is in no checkpoint: it is the base model's
        path, _ = self._engine.load_checkpoint(folder, tag="learner", load_module_strict=strict)
        if path is None:
            raise ServiceError(f"learner rank {self._rank}: {folder} holds no checkpoint that fits this run")
        load_random_states(self._random_states_in(folder))

    def _random_states_in(self, folder: str) -> Path:
        return Path(folder) / "learner" / f"random_states_rank_{self._rank}.pt"

    def export(self, folder: str) -> None:
        """Write the policy in Hugging Face format with its tokenizer; all ranks gather, rank 0 writes."""
        policy = self._engine.module.policy
        weights = self._whole(served_weights(policy))
        if self._rank == 0:
            # Tied weights are one parameter; the state dict that is saved names them both.
            if policy.config.tie_word_embeddings and "lm_head.weight" not in weights:
                weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
            policy.save_pretrained(folder, state_dict=weights)
            settings = self._settings
            revision = settings.model_revision or "main"
            AutoTokenizer.from_pretrained(settings.model_name_or_path, revision=revision).save_pretrained(folder)
        dist.barrier()

    def export_adapter(self, folder: str) -> None:
        """Write the adapters in PEFT's format; all ranks gather, rank 0 writes."""
        assert self._adapters is not None
        weights = self._whole(self._adapters.weights())
        if self._rank == 0:
            self._adapters.save(folder, weights)
        dist.barrier()

    def _whole(self, weights: list[ServedWeight]) -> dict[str, torch.Tensor]:
        """The weights in the training type, in rank 0's host memory; the other ranks only take part in the gathers."""
        source = ZeroWeightSource(weights, self._dtype, EXPORT_BUCKET_BYTES, is_sender=self._rank == 0)
        return {name: tensor.cpu() for name, tensor in source}

    def close(self) -> None:
        """Leave every group."""
        self.close_transfer()
        if dist.is_initialized():
            dist.destroy_process_group()

    def _memory_guard(self, stage: str) -> AbstractContextManager[None]:
        return memory_guard(stage, self._rank, self._settings)


def _moments(values: torch.Tensor) -> Moments:
    return Moments.of(values.numpy(force=True))
