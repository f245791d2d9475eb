"""Tests of BPE, against plain loops and the library `tokenizers`."""

import base64
import itertools
import json
import random
import re
import string
import sys
import unicodedata
from collections import Counter

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers

from lmx.config.registry import ConfigError
from lmx.data.corpus.corpus import HoldoutTail
from lmx.data.corpus.text import Stdlib, Text
from lmx.data.tokenizer.bpe import BPE, PATTERNS, Tiktoken
from lmx.data.tokenizer.pretrained import load_tokenizer
from lmx.data.tokenizer.tokenizer_json import (
    ALPHABET,
    BYTE_OF_LETTER,
    TOKENIZER_JSON,
    HFTokenizer,
)

CHANCE = random.Random(0)
ASSIGNED = [
    chr(n)
    for n in range(0, sys.maxunicode, 37)
    if unicodedata.category(chr(n)) not in ("Cn", "Cs")
]


def split_words(name, text):
    """The words of a text, as the library splits it."""
    split = pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated")
    return [word for word, _ in split.pre_tokenize_str(text)]


def mixed(count, seed):
    """Lines of hard text: letters of all kinds, runs, numbers and spaces."""
    chance = random.Random(seed)
    kinds = [
        lambda: "".join(chance.choices(ASSIGNED, k=chance.randrange(1, 9))),
        lambda: chance.choice(string.ascii_letters) * chance.randrange(1, 40),
        lambda: chance.choice(" \n\t\r\u3000\x1c\x85") * chance.randrange(1, 9),
        lambda: str(chance.randrange(10**9)),
        lambda: chance.choice(["'s", "'LL", "'ſ", "don't", " Hello", "ÄÖü", "/\r\n"]),
    ]
    return ["".join(chance.choice(kinds)() for _ in range(30)) for _ in range(count)]


def modules(size):
    """Sources of Python's library, up to `size` characters."""
    texts, size_read = [], 0
    for document in Stdlib().read("validation"):
        texts.append(document.text)
        size_read += len(document.text)
        if size_read > size:
            return texts
    return texts


TEXTS = {
    "code": modules(9000),
    "hard": mixed(60, seed=1),
    "runs": [" " * n + "ab" * n + "a" * n + "aba" * n for n in range(1, 40)],
    "ties": ["".join(CHANCE.choices("abcd", k=8)) for _ in range(60)],
}
SIZES = {"code": 340, "hard": 350, "runs": 330, "ties": 330}


def train_slowly(words, size):
    """The byte strings and the merges of BPE, with all pairs counted for each merge."""
    vocab, merges = [bytes([byte]) for byte in ALPHABET], []
    texts = {word: [bytes([byte]) for byte in word] for word in words}
    while len(vocab) < size:
        counts = Counter()
        for word, text in texts.items():
            for pair in itertools.pairwise(text):
                counts[pair] += words[word]
        order = {data: token for token, data in enumerate(vocab)}
        left, right = min(counts, key=lambda p: (-counts[p], order[p[0]], order[p[1]]))
        merges.append((left, right))
        if left + right not in order:
            vocab.append(left + right)
        texts = {word: merge_slowly(text, left, right) for word, text in texts.items()}
    return vocab, merges


def merge_slowly(text, left, right):
    """Replaces each pair of these byte strings, from the left."""
    merged, at = [], 0
    while at < len(text):
        size = 2 if text[at : at + 2] == [left, right] else 1
        merged.append(b"".join(text[at : at + size]))
        at += size
    return merged


def encode_slowly(word, merges):
    """Applies each merge in turn to the bytes of a word."""
    text = [bytes([byte]) for byte in word]
    for left, right in merges:
        text = merge_slowly(text, left, right)
    return text


@pytest.fixture(scope="module", params=TEXTS)
def trained(request, tmp_path_factory):
    """A trained tokenizer, and the text that it was trained on."""
    texts, root = TEXTS[request.param], tmp_path_factory.mktemp("bpe")
    for number, text in enumerate(texts):
        (root / f"{number:03}.txt").write_bytes(text.encode())
    corpus = Text(path=str(root), holdout=HoldoutTail(fraction=0.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMX_CACHE", str(root / "cache"))
        return BPE(vocab=SIZES[request.param] + 2).open(corpus), texts


def test_training_merges_the_most_frequent_pair(trained):
    tokenizer, texts = trained
    words = Counter(w.encode() for text in texts for w in split_words("gpt2", text))
    vocab, merges = train_slowly(words, tokenizer.vocab - 2)
    assert list(tokenizer.vocab_bytes) == [*vocab, b"", b""]
    stored = json.loads(tokenizer.files[TOKENIZER_JSON])["model"]["merges"]
    to_bytes = {letter: bytes([byte]) for letter, byte in BYTE_OF_LETTER.items()}
    assert len(merges) > 50
    assert merges == [
        tuple(b"".join(map(to_bytes.__getitem__, part)) for part in pair)
        for pair in stored
    ]
    token_of = {data: token for token, data in enumerate(vocab)}
    for text in [*texts[:3], *mixed(5, seed=2), " " * 500, "ab" * 500, ""]:
        parts = [encode_slowly(w.encode(), merges) for w in split_words("gpt2", text)]
        expected = [token_of[part] for part in sum(parts, [])]
        assert tokenizer.encode(text).tolist() == expected


def test_a_very_long_word_takes_no_quadratic_time(write):
    """With 100,000 tokens, quadratic time would be hours."""
    corpus = Text(path=write("a.txt", "abab" * 20), holdout=HoldoutTail(fraction=0.0))
    assert len(BPE(vocab=262).open(corpus).encode("ab" * 50_000)) < 50_000


@pytest.mark.parametrize("pretokenizer", PATTERNS)
def test_words_concatenate_to_the_text(pretokenizer):
    points = itertools.chain(range(0xD800), range(0xE000, 0x20000), (0xE0001, 0x10FFFF))
    text = "".join(map(chr, points))
    assert "".join(split_words(pretokenizer, text)) == text


@pytest.mark.parametrize("pretokenizer", PATTERNS)
def test_the_library_can_read_the_stored_file(pretokenizer, write):
    text = "".join(modules(60_000))
    config = BPE(vocab=500, pretokenizer=pretokenizer)
    tokenizer = config.open(Text(path=write("a.txt", text), holdout=HoldoutTail()))
    library = Tokenizer.from_str(tokenizer.files[TOKENIZER_JSON].decode())
    assert library.get_vocab_size() == tokenizer.vocab == 500
    assert library.token_to_id("<|end_of_text|>") == tokenizer.eos == 499
    for part in [*mixed(40, seed=4), text[:5000]]:
        tokens = tokenizer.encode(part)
        assert tokens.tolist() == library.encode(part).ids
        assert library.decode(tokens.tolist()) == tokenizer.decode(tokens) == part
    assert 499 not in tokenizer.encode("<|end_of_text|>")


def test_the_maximum_that_an_error_names_works(write):
    corpus = Text(path=write("a.txt", "abcd" * 9), holdout=HoldoutTail())
    with pytest.raises(ConfigError, match="too few repetitions for 999") as refusal:
        BPE(vocab=999).open(corpus)
    largest = re.search(r"BPE.vocab to (\d+) or less", str(refusal.value))
    assert largest
    assert BPE(vocab=int(largest[1])).open(corpus).vocab == int(largest[1])


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """A tiktoken file, and the ranks in it."""
    root = tmp_path_factory.mktemp("tiktoken")
    (root / "a.txt").write_text("".join(modules(400_000)))
    corpus = Text(path=str(root / "a.txt"), holdout=HoldoutTail(fraction=0.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMX_CACHE", str(root / "cache"))
        tokenizer = BPE(vocab=1502, pretokenizer="cl100k").open(corpus)
    vocab = tokenizer.vocab_bytes[:1500]
    lines = [base64.b64encode(data) + b" %d" % n for n, data in enumerate(vocab)]
    (root / "code.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
    return str(root / "code.tiktoken"), {data: n for n, data in enumerate(vocab)}


def by_rank(word, ranks):
    """Merges the pair of least rank, and searches all pairs each time."""
    if word in ranks:
        return [ranks[word]]
    parts = [word[at : at + 1] for at in range(len(word))]
    while True:
        beside = [left + right for left, right in itertools.pairwise(parts)]
        known = [
            (ranks[piece], at) for at, piece in enumerate(beside) if piece in ranks
        ]
        if not known:
            return [ranks[part] for part in parts]
        _, at = min(known)
        parts[at : at + 2] = [beside[at]]


SPECIALS = {"<|endoftext|>": 1507, "<|start|>": 1503}


def test_tiktoken_merges_the_pair_of_least_rank(ranks, tmp_path):
    path, known = ranks
    tokenizer = Tiktoken(
        path=path, pretokenizer="cl100k", special_tokens=SPECIALS, eos="<|endoftext|>"
    ).open(Stdlib())
    assert (
        tokenizer.vocab == 1508
        and tokenizer.stop_tokens == (1507,)
        and tokenizer.bos is None
    )
    for text in [*mixed(40, seed=5), TEXTS["code"][0][:20_000], "<|endoftext|>"]:
        words = split_words("cl100k", text)
        tokens = tokenizer.encode(text)
        assert tokens.tolist() == sum((by_rank(w.encode(), known) for w in words), [])
        assert tokenizer.decode(tokens) == text
    assert tokenizer.decode([1507, 1503, 1501]) == ""
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.digest, loaded.eos, loaded.vocab) == (tokenizer.digest, 1507, 1508)
    np.testing.assert_array_equal(
        loaded.encode("def f():"), tokenizer.encode("def f():")
    )


DAMAGED = {
    "line 301: .* must be a base64": lambda lines: [*lines[:300], b"AB= x"],
    "line 301: .* must be a": lambda lines: [*lines[:300], lines[300][:3]],
    "line 302: .* repeats": lambda lines: [*lines[:301], lines[300]],
    "3 of the 256 bytes have no token": lambda lines: lines[3:],
    "256 of the 256 bytes have no token": lambda lines: [],
    "line 1: b'{": lambda lines: [b'{"model": {"vocab": {}}}'],
}


@pytest.mark.parametrize("message", DAMAGED)
def test_an_invalid_tiktoken_file_is_refused_by_line(message, ranks, write):
    path, _ = ranks
    with open(path, "rb") as file:
        lines = DAMAGED[message](file.read().splitlines())
    bad = write("bad.tiktoken", b"\n".join(lines))
    with pytest.raises(ConfigError, match=rf"bad.tiktoken: {message}"):
        Tiktoken(path=bad, pretokenizer="gpt2").open(Stdlib())


def test_invalid_special_tokens_are_refused(ranks):
    path, _ = ranks
    with pytest.raises(ConfigError, match="number 7, which must be"):
        Tiktoken(path=path, pretokenizer="gpt2", special_tokens={"<e>": 7}).open(
            Stdlib()
        )
    with pytest.raises(ConfigError, match="as must its name"):
        Tiktoken(path=path, pretokenizer="gpt2", special_tokens={"a": 2000}).open(
            Stdlib()
        )
    with pytest.raises(ConfigError, match="Tiktoken.eos is '<x>', which is not one of"):
        Tiktoken(
            path=path, pretokenizer="gpt2", special_tokens={"<e>": 2000}, eos="<x>"
        ).open(Stdlib())


def test_a_special_token_of_one_word_is_not_encoded(ranks):
    path, _ = ranks
    config = Tiktoken(path=path, pretokenizer="cl100k", special_tokens={"zqj": 1600})
    tokenizer = config.open(Stdlib())
    assert 1600 not in tokenizer.encode("zqj") and tokenizer.token_to_id("zqj") == 1600
    library = HFTokenizer(files=tokenizer.files)
    assert library.encode("zqj").tolist() == [1600]
