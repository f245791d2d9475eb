"""Pre-tokenization: splits text into words, which byte-level tokens do not cross."""

import functools
import itertools
import re
import sys
import unicodedata
from collections.abc import Mapping
from typing import Literal

PretokenizerName = Literal["gpt2", "cl100k", "o200k", "qwen2"]
# The characters with the Unicode property White_Space.
WHITE_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
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
    """A pattern that matches the words of a text; together they are the whole text.

    Letters, numbers and marks are those of Python's Unicode version, and spaces are
    those with the property White_Space.
    """
    pattern = PATTERNS[name].replace(r"\S", f"[^{WHITE_SPACE}]")
    pattern = re.sub(r"(?<!\[\^)\\s", lambda _: f"[{WHITE_SPACE}]", pattern)
    pattern = pattern.replace(r"[^\s", f"[^{WHITE_SPACE}")
    depth = 0
    parts = []
    for part in re.split(r"(\\p\{\w+\}|\[|\])", pattern):
        depth += {"[": 1, "]": -1}.get(part, 0)
        if part.startswith(r"\p"):
            ranges = _category_ranges(part[3:-1])
            part = ranges if depth else f"[{ranges}]"
        parts.append(part)
    return re.compile("".join(parts))


@functools.cache
def _category_ranges(category: str) -> str:
    """The characters of a general category, as ranges of a character class."""
    points = range(sys.maxunicode + 1)
    is_member = [unicodedata.category(chr(n)).startswith(category) for n in points]
    ranges = []
    for member, group in itertools.groupby(points, is_member.__getitem__):
        if member:
            members = list(group)
            ranges.append(rf"\U{members[0]:08x}-\U{members[-1]:08x}")
    return "".join(ranges)
