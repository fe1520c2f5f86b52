r"""Responses made harmless: what would be a mark of the judge's own format becomes text that says the same.

    [The End of Response 1]        ->  (The End of Response 1]
    [Ranking Scoring Guidelines]   ->  (Ranking Scoring Guidelines]
    #### Evaluation Plan ####      ->  # # # # Evaluation Plan ####
    </think>  <|im_end|>  <s>      ->  (/think>  (|im_end|>  (s>
    [INST]  <<SYS>>                ->  (INST]  (<SYS>>
    \boxed{42}                     ->  boxed{42}
    "score_1": 5                   ->  'score_1": 5

A completion that prints these could end its own place in the prompt, forge another's, or have a judge that quotes it
write a false verdict. Special tokens are the worst: a server encodes the prompt as one text, and what looks like a
control token in a response becomes one. The formula keeps its braces and can be read, but a box is where the judge's
numbers stand, and whoever quotes a response must not write one. Of a false JSON verdict one key is enough.

Nothing is searched for twice and nothing can be made by it. A place is altered in its first character (or first run of
`#` or backslashes), and what comes instead can neither begin a mark nor stand where a mark asks for a given character.
The rest of a place stays, so no two pieces come together to form a mark, save around the backslashes that go, where
`boxed` stays between. So a second pass alters nothing.
"""

from __future__ import annotations

import re

# Only the first character or run is matched; the rest of a mark is looked ahead at. Each look ahead stops at the next
# place where a mark of its kind could begin, and white space is taken possessively, so all take linear time together.
# Each alternative begins with a plain character, so the engine skips to the next of these five without trying any. Text
# without marks then takes a twelfth of the time that it takes with a look behind in front, which alone would be a third
# of the CPU time that the service spends on a verdict.
MARK = re.compile(
    r"""
      \[ (?= \s*+ (?:the\s*+)? (?:begin|beginning|start|end) \s*+ of \b     # a section of the prompt or the verdict
           | \s*+ (?:helpfulness|ranking) \s*+ scoring \s*+ guidelines \b
           | \s*+ (?:/\s*+)? INST \s*+ \] )
    | < (?=  \s*+ (?:/\s*+)? think(?:ing)? \b
           | [|\uff5c] [^|\uff5c>]* [|\uff5c] >                             # <|eot_id|>, <|im_end|>, ...
           | < \s*+ (?:/\s*+)? SYS \s*+ >>
           | /? (?-i:s|bos|eos|unk|pad|(?:start|end)_of_turn|extra_id_[0-9]+|SPECIAL_[0-9]+) > )
    | \# (?<!\#\#) \#{2,}+ (?= [^\n]*? \#{3} )                              # a heading that is closed on its line
    | \\ (?<!\\\\) \\*+ (?= boxed (?![a-z]) )
    | " (?= \s*+ score_[12] \s*+ \\?" \s*+ : )
    """,
    re.VERBOSE | re.IGNORECASE,
)


def neutral(text: str) -> tuple[str, int]:
    """`text` without marks, and the number of places that were altered."""
    return MARK.subn(_harmless, text)


def _harmless(mark: re.Match[str]) -> str:
    match mark[0][0]:
        case "#":
            return " ".join(mark[0])
        case "\\":
            return ""
        case '"':
            return "'"
        case _:
            return "("
