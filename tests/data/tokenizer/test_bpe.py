"""Tests of BPE, against the library `tokenizers` and plain loops."""

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
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from lmx.config.registry import ConfigError
from lmx.data.corpus.corpus import HoldoutTail
from lmx.data.corpus.stdlib import Stdlib
from lmx.data.corpus.text import Text
from lmx.data.tokenizer.bpe import ALPHABET, encode_word, train_bpe
from lmx.data.tokenizer.byte_bpe import BPE, BPETokenizer, to_tokenizer_json
from lmx.data.tokenizer.pretokenize import PATTERNS, compile_pretokenizer
from lmx.data.tokenizer.pretrained import Tiktoken, load_tokenizer
from lmx.data.tokenizer.tokenizer_json import BYTE_OF_LETTER, TOKENIZER_JSON

LETTER = {byte: letter for letter, byte in BYTE_OF_LETTER.items()}
CHANCE = random.Random(0)
ASSIGNED = [
    chr(n)
    for n in range(0, sys.maxunicode, 37)
    if unicodedata.category(chr(n)) not in ("Cn", "Cs")
]


def library(words, size, texts):
    """The tokenizer that the library trains on texts."""
    made = Tokenizer(models.BPE())
    steps = [
        pre_tokenizers.Split(Regex(PATTERNS[words]), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made


def counted(words, texts):
    cut = compile_pretokenizer(words)
    found = Counter(word for text in texts for word in cut.findall(text))
    return {word.encode(): often for word, often in found.items()}


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
    texts, have = [], 0
    for document in Stdlib().read("validation"):
        texts.append(document.text)
        have += len(document.text)
        if have > size:
            return texts
    return texts


TEXTS = {
    "code": modules(400_000),
    "hard": mixed(300, seed=1),
    "runs": [" " * n + "ab" * n + "a" * n + "aba" * n for n in range(1, 90)],
    "ties": ["".join(CHANCE.choices("abcd", k=8)) for _ in range(60)],
}
SIZES = {"code": 2500, "hard": 1200, "runs": 700, "ties": 330}


@pytest.fixture(scope="module", params=TEXTS)
def both(request):
    """Our model, that of the library, and the text."""
    texts, size = TEXTS[request.param], SIZES[request.param]
    return train_bpe(counted("gpt2", texts), size), library("gpt2", size, texts), texts


def test_merges_equal_those_of_the_library(both):
    mine, theirs, _ = both
    said = json.loads(theirs.to_str())["model"]
    names = ["".join(LETTER[byte] for byte in piece) for piece in mine.vocab]
    merges = [[names[a], names[b]] for (a, b), _ in mine.merges]
    assert len(merges) > 50
    assert merges == said["merges"]
    assert {name: token for token, name in enumerate(names)} == said["vocab"]


def test_tokens_equal_those_of_the_library(both):
    mine, theirs, texts = both
    merge_ranks, order = mine.merge_ranks, {byte: n for n, byte in enumerate(ALPHABET)}
    others = mixed(20, seed=2) + [" " * 5000, "ab" * 5000, ""]
    for text in [*texts[:5], *others]:
        words = compile_pretokenizer("gpt2").findall(text)
        tokens = [
            encode_word([order[b] for b in word.encode()], merge_ranks)
            for word in words
        ]
        assert sum(tokens, []) == theirs.encode(text).ids


def test_a_very_long_word_takes_no_quadratic_time():
    """With 100,000 tokens, quadratic time would be hours."""
    merge_ranks = train_bpe({b"abab" * 20: 1}, 262).merge_ranks
    tokens = encode_word([ALPHABET.index(b) for b in b"ab" * 50_000], merge_ranks)
    assert len(tokens) < 50_000


@pytest.mark.parametrize("words", PATTERNS)
def test_words_equal_those_of_the_library(words):
    split = pre_tokenizers.Split(Regex(PATTERNS[words]), "isolated")
    for text in [*mixed(60, seed=3), *modules(20_000)[:1]]:
        assert compile_pretokenizer(words).findall(text) == [
            w for w, _ in split.pre_tokenize_str(text)
        ]


@pytest.mark.parametrize("words", PATTERNS)
def test_words_concatenate_to_the_text(words):
    points = itertools.chain(range(0xD800), range(0xE000, 0x20000), (0xE0001, 0x10FFFF))
    every = "".join(map(chr, points))
    assert "".join(compile_pretokenizer(words).findall(every)) == every


@pytest.mark.parametrize("words", PATTERNS)
def test_the_library_can_read_the_stored_file(words, write):
    text = "".join(modules(60_000))
    tokenizer = BPE(vocab=500, pretokenizer=words)
    codec = tokenizer.open(Text(path=write("a.txt", text), holdout=HoldoutTail()))
    theirs = Tokenizer.from_str(codec.hf_files["tokenizer.json"].decode())
    assert theirs.get_vocab_size() == codec.vocab == 500
    assert theirs.token_to_id("<|end_of_text|>") == codec.eos == 499
    for each in [*mixed(40, seed=4), text[:5000]]:
        tokens = codec.encode(each)
        assert tokens.tolist() == theirs.encode(each).ids
        assert theirs.decode(tokens.tolist()) == codec.decode(tokens) == each


def test_the_maximum_that_an_error_names_works(write):
    corpus = Text(path=write("a.txt", "abcd" * 9), holdout=HoldoutTail())
    with pytest.raises(ConfigError, match="too few repetitions for 999") as refusal:
        BPE(vocab=999).open(corpus)
    said = re.search(r"BPE.vocab to (\d+) or less", str(refusal.value))
    assert said
    assert BPE(vocab=int(said[1])).open(corpus).vocab == int(said[1])
    with pytest.raises(ConfigError, match="BPE.vocab is 257: .* at least 258"):
        BPE(vocab=257)


@pytest.fixture
def ranks(write):
    """A tiktoken file, and the ranks in it."""
    found = train_bpe(counted("cl100k", TEXTS["code"]), 1500)
    lines = [
        base64.b64encode(piece) + b" %d" % token
        for token, piece in enumerate(found.vocab)
    ]
    path = write("code.tiktoken", b"\n".join(lines) + b"\n")
    return path, {piece: token for token, piece in enumerate(found.vocab)}


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
    path, found = ranks
    codec = Tiktoken(
        path=path, pretokenizer="cl100k", special_tokens=SPECIALS, eos="<|endoftext|>"
    ).open(Stdlib())
    assert codec.vocab == 1508 and codec.stop_tokens == (1507,) and codec.bos is None
    for text in [*mixed(40, seed=5), TEXTS["code"][0][:20_000], "<|endoftext|>"]:
        words = compile_pretokenizer("cl100k").findall(text)
        tokens = codec.encode(text)
        assert tokens.tolist() == sum((by_rank(w.encode(), found) for w in words), [])
        assert codec.decode(tokens) == text
    assert codec.decode([1507, 1503, 1501]) == ""
    codec.save(tmp_path)
    kept = load_tokenizer(tmp_path)
    assert (kept.digest, kept.eos, kept.vocab) == (codec.digest, 1507, 1508)
    np.testing.assert_array_equal(kept.encode("def f():"), codec.encode("def f():"))


BROKEN = {
    "line 301: .* must be a base64": lambda lines: [*lines[:300], b"AB= x"],
    "line 301: .* must be a": lambda lines: [*lines[:300], lines[300][:3]],
    "line 302: .* repeats": lambda lines: [*lines[:301], lines[300]],
    "3 of the 256 bytes have no token": lambda lines: lines[3:],
    "256 of the 256 bytes have no token": lambda lines: [],
    "line 1: b'{": lambda lines: [b'{"model": {"vocab": {}}}'],
}


@pytest.mark.parametrize("message", BROKEN)
def test_an_invalid_tiktoken_file_is_refused_by_line(message, ranks, write):
    path, _ = ranks
    with open(path, "rb") as file:
        lines = BROKEN[message](file.read().splitlines())
    bad = write("bad.tiktoken", b"\n".join(lines))
    with pytest.raises(ConfigError, match=rf"bad.tiktoken: {message}"):
        Tiktoken(path=bad, pretokenizer="gpt2").open(Stdlib())


def test_invalid_special_tokens_are_refused(ranks):
    path, _ = ranks
    with pytest.raises(ConfigError, match="number 7, which must be"):
        Tiktoken(path=path, pretokenizer="gpt2", special_tokens={"<e>": 7}).open(
            Stdlib()
        )
    with pytest.raises(ConfigError, match="Tiktoken.eos is '<x>', which is not one of"):
        Tiktoken(
            path=path, pretokenizer="gpt2", special_tokens={"<e>": 2000}, eos="<x>"
        ).open(Stdlib())


def test_a_tokenizer_json_is_read_back():
    found = train_bpe(counted("gpt2", TEXTS["runs"]), 600)
    codec = BPETokenizer(
        files={TOKENIZER_JSON: to_tokenizer_json(found, "gpt2")},
        pretokenizer="gpt2",
        special_tokens={},
    )
    assert list(codec.vocab_bytes[:600]) == found.vocab
    assert codec._model[1] == found.merge_ranks
