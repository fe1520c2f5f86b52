"""The two tokenizers and their chat templates.

Both are byte-level BPE trained on the words of the toy world, each of them as often as it takes to become one token,
with and without a leading space. Any other text falls back to bytes, so every text survives a round trip.

    policy   <|im_start|>user\\n ... <|im_end|>\\n<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n
    judge    <|judge|>#### Conversation ####\\nUser: ...\\n#### Responses ####\\n[The Begin of Response 1] A1 ...
"""

from __future__ import annotations

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from deploy.toy.answers import ALL_TOPIC_WORDS
from deploy.toy.prompts import CLOSERS, CODE_PHRASINGS, FOREIGN_PHRASINGS, OPENERS, PHRASINGS
from deploy.toy.world import FILLER_WORDS, LETTERS, MAX_WORDS, RUDE_WORDS, TOPICS

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
PAD, BEGIN, END = "<|pad|>", "<|judge|>", "<|end|>"

POLICY_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking -%}
{{ '<think>\\n\\n</think>\\n\\n' }}
{%- endif -%}
{%- endif -%}
"""

# The words of a response are numbered, A1 A2 ... and B1 B2 ..., because a copy that goes by number finds its place
# among repeated words, where a copy that goes by the word before it would not.
JUDGE_TEMPLATE = f"""\
{{{{- '{BEGIN}' -}}}}
{{%- set shown = namespace(responses=0) -%}}
{{{{- '#### Conversation ####\\n' -}}}}
{{%- for message in messages -%}}
{{%- if message['role'] in ('response_1', 'response_2') -%}}
{{%- if not shown.responses -%}}{{{{ '#### Responses ####\\n' }}}}{{%- endif -%}}
{{%- set shown.responses = shown.responses + 1 -%}}
{{%- set number = message['role'][-1] -%}}
{{{{- '[The Begin of Response ' + number + ']' -}}}}
{{%- for word in message['content'].split()[:{MAX_WORDS}] -%}}
{{{{- ' ' + ('A' if number == '1' else 'B') + loop.index|string + ' ' + word -}}}}
{{%- endfor -%}}
{{{{- '[The End of Response ' + number + ']\\n' -}}}}
{{%- else -%}}
{{{{- message['role']|capitalize + ': ' + message['content'] + '\\n' -}}}}
{{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{- '#### Verdict ####\\n' -}}}}{{%- endif -%}}
"""

# A piece becomes at most one token: a marker of the judge's protocol whole, a word, a number, a sign, or blanks.
PIECES = (
    r" ?\[The [A-Za-z0-9 ]+\]|#### [A-Za-z]+ ####|</?think>|\\boxed\{| ?[AB][0-9]+|"
    r" ?\p{L}+| ?[0-9]+| ?[^\s\p{L}0-9]|\s+"
)
MARKERS = (
    *(f"[The {edge} of {what}]" for edge in ("Begin", "End") for what in ("Individual Scores", "Ranking Score")),
    *(
        f"[The {edge} of {what}Response {n}]"
        for edge in ("Begin", "End")
        for what in ("", "Analysis on ")
        for n in "12"
    ),
    *(f" [The End of Analysis on Response {n}]" for n in "12"),
    *(f"#### {title} ####" for title in ("Conversation", "Responses", "Verdict")),
    *("<think>", "</think>", "\\boxed{", "\n\n", ":", "}", ","),
)


def make_policy_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with Qwen's names: pads with `<|endoftext|>`, ends a turn with `<|im_end|>`."""
    tokenizer = _wrap([END_OF_TEXT, IM_START, IM_END], POLICY_TEMPLATE, eos=IM_END, pad=END_OF_TEXT)
    tokenizer.add_tokens([AddedToken(mark, normalized=False, special=False) for mark in ("<think>", "</think>")])
    return tokenizer


def make_judge_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose template takes the roles system, user, assistant, response_1 and response_2.

    `</think>` is ordinary text here, so a server that hides special tokens still shows where the reasoning ends.
    """
    return _wrap([PAD, BEGIN, END], JUDGE_TEMPLATE, eos=END, pad=PAD)


def _wrap(special: list[str], template: str, eos: str, pad: str) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(  # no limit on the size: merging stops when every piece is one token
        vocab_size=100_000,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_pieces(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=eos, pad_token=pad, clean_up_tokenization_spaces=False, padding_side="left"
    )
    tokenizer.chat_template = template
    return tokenizer


def _pieces() -> list[str]:
    """Every piece that shall be one token; words with and without a leading space."""
    phrasings = [p for split in PHRASINGS.values() for p in split]
    phrasings += [p for split in CODE_PHRASINGS.values() for p in split]
    phrasings += [p for language in FOREIGN_PHRASINGS.values() for split in language.values() for p in split]
    text = " ".join([*phrasings, *OPENERS, *CLOSERS]).replace("{topic}", "").replace("{language}", "")
    words = {*text.split(), *TOPICS, *ALL_TOPIC_WORDS, *RUDE_WORDS, *FILLER_WORDS}
    words |= {"topic", "none", "score", "system", "user", "assistant", "System", "User", "Assistant"}
    words |= {f"{letter}{i}" for letter in LETTERS for i in range(1, MAX_WORDS + 1)} | set(LETTERS)
    words |= {str(i) for i in range(MAX_WORDS + 1)}
    return [*MARKERS, *MARKERS, *(form for word in sorted(words) for form in (word, " " + word) * 2)]
