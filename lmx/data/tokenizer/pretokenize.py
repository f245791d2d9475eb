"""How byte-level tokenizers cut text into words, which no token reaches beyond."""

import functools
import re
import sys
import unicodedata
from collections.abc import Mapping
from typing import Literal

PretokenizerName = Literal["gpt2", "cl100k", "o200k", "qwen2"]
WHITE_SPACE = (
    "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # White_Space
)
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS: Mapping[
    PretokenizerName, str
] = {  # as published, for engines that know \p{...}
    "gpt2": GPT2,
    "cl100k": CL100K,  # of GPT-4, and of Llama 3
    "o200k": O200K,  # of GPT-4o, and of gpt-oss
    "qwen2": CL100K.replace(r"\p{N}{1,3}", r"\p{N}"),
}


@functools.cache
def compile_pretokenizer(name: PretokenizerName) -> re.Pattern[str]:
    """What finds the words of a text, one after the other; together they are it.

    Letters, numbers and marks are those of this Python's Unicode, and spaces those that
    have the property White_Space.
    """
    pattern = PATTERNS[name].replace(r"\S", f"[^{WHITE_SPACE}]")
    pattern = re.sub(r"(?<!\[\^)\\s", lambda _: f"[{WHITE_SPACE}]", pattern)
    pattern = pattern.replace(r"[^\s", f"[^{WHITE_SPACE}")
    inside = 0
    made = []
    for part in re.split(r"(\\p\{\w+\}|\[|\])", pattern):
        inside += {"[": 1, "]": -1}.get(part, 0)
        if part.startswith(r"\p"):
            points = _category_ranges(part[3:-1])
            part = points if inside else f"[{points}]"
        made.append(part)
    return re.compile("".join(made))


@functools.cache
def _category_ranges(kind: str) -> str:
    """The characters of a general category, as ranges of a character class."""
    found, begin = [], None
    for point in range(sys.maxunicode + 2):
        within = point <= sys.maxunicode and unicodedata.category(
            chr(point)
        ).startswith(kind)
        if within and begin is None:
            begin = point
        elif not within and begin is not None:
            found.append(rf"\U{begin:08x}-\U{point - 1:08x}")
            begin = None
    return "".join(found)
