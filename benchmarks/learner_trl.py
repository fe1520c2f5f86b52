"""TRL's side of `benchmarks.learner`: its RLOOTrainer on the same completions, stepped by the process above it.

Generation is replaced by the given completions, and so is the tokenizing of prompts; everything after it is TRL's.
The clock runs from the start of a step to its end, so the data loader and the log are not counted.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import RLOOConfig, RLOOTrainer

from benchmarks.child import Answer, Conductor, Stopwatch, peaks
from benchmarks.workload import KL_COEF, K, Workload


class GivenCompletions(RLOOTrainer):
    """A prompt is the number of its group, written out."""

    workload: Workload

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        self._groups = [int(prompt) for prompt in prompts]
        return [list(self.workload.prompts[group]) for group in self._groups], None, {}

    def _generate_single_turn(self, prompt_ids: Any, images: Any, multimodal_fields: Any) -> list[list[int]]:
        taken = [0] * len(self.workload.prompts)
        completions = []
        for group in self._groups:
            completions.append(list(self.workload.completions[group * K + taken[group]]))
            taken[group] += 1
        return completions


class StepByStep(TrainerCallback):
    """Holds the trainer before each step until it is asked for."""

    def __init__(self, conductor: Conductor) -> None:
        self._conductor = conductor
        self._watch, self._times = Stopwatch(), Answer()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._conductor.wait()
        self._watch = Stopwatch()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._times = self._watch.read()

    def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
        if "grad_norm" in logs:
            self._conductor.answer(**self._times, grad_norm=logs["grad_norm"], loss=logs["loss"], **peaks())


def make_trainer(job: dict[str, Any], workload: Workload, conductor: Conductor) -> GivenCompletions:
    """The trainer, its settings those of the job."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="<eos>",
    )
    scores = {tuple(ids): score for ids, score in zip(workload.completions, workload.scores, strict=True)}

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [scores[tuple(ids)] for ids in completion_ids]

    size, num = job["trl_batch_size"], len(workload.completions)
    is_cpu = job.get("device", "cpu") == "cpu"
    arguments = RLOOConfig(
        output_dir=job["folder"],
        per_device_train_batch_size=size,
        gradient_accumulation_steps=num // size,
        num_generations=K,
        beta=KL_COEF,
        max_steps=10**6,
        logging_steps=1,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        gradient_checkpointing=job["gradient_checkpointing"],
        bf16=job.get("bf16", False),
        use_cpu=is_cpu,
        dataloader_pin_memory=not is_cpu,
        shuffle_dataset=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=job["seed"],
        model_init_kwargs={
            "dtype": job.get("trl_dtype", "float32"),
            "attn_implementation": job.get("attention", "sdpa"),
        },
    )
    trainer = GivenCompletions(
        model=job["model"],
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": [str(group) for group in range(len(workload.prompts))]}),
        processing_class=tokenizer,
        callbacks=[StepByStep(conductor)],
    )
    trainer.workload = workload
    return trainer


def main() -> None:
    """As the module says; the argument is the job, in JSON."""
    job = json.loads(sys.argv[1])
    conductor = Conductor(job["answers"])
    make_trainer(job, Workload(**job["workload"]), conductor).train()


if __name__ == "__main__":
    main()
