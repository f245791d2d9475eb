"""Tests of all tokenizers: encoding is lossless."""

import inspect
import random
import textwrap
from pathlib import Path

import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.data.corpus.corpus import HoldoutTail
from lmx.data.corpus.text import Text
from lmx.data.tokenizer.base import (
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    TokenizerConfig,
)
from lmx.data.tokenizer.bpe import BPE
from lmx.data.tokenizer.pretrained import load_tokenizer
from lmx.data.tokenizer.sentencepiece import SentencePiece

PLACES = (0, 0x41, 0x1F600 & 0xFFFF, 0xD7FF, 0xE000, 0xFFFD, 0xFFFF)
HARD = [
    "",
    " ",
    "\n",
    "a",
    "  two  spaces and three   ",
    "\tdef f(x):\r\n\t\treturn  x\n\n\n",
    "NUL \0 and controls \x01\x1f\x7f\x85\u2028",
    "\u2581 is a space for some \u2581\u2581, \u2585 and \u2047 too",
    "😀 👩‍👩‍👧 é e\u0301 \ufeff ﬁ Ⅳ １２ 汉字\u3000العربية",
    "<s></s><unk><pad><0x41> <0x0A>",
    "x" * 3000,
    " " * 3000,
    "".join(map(chr, range(0x300))),
    "\U0010ffff\uffff\ud7ff\ue000",
    "".join(chr(plane * 0x10000 + at) for plane in range(17) for at in PLACES),
    "aБβ漢عไ한ⴰ𐤀𝛼\U00020000_1२３Ⅷ",
    "\u202eright to left\u202c\u200d\u200b\ufe0f\U000e0041",
    "Ünïcödé" * 400 + "漢" * 400 + "\u0301" * 40,
]
CODE = inspect.getsource(textwrap)
TEXT = CODE + "".join(HARD)
SPLIT = HoldoutTail(fraction=0.4)  # the hard text is in the validation split
TOKENIZERS = [
    ByteTokenizer(),
    CharTokenizer(),
    SentencePiece(vocab=400),
    SentencePiece(vocab=400, model_type="unigram"),
    SentencePiece(vocab=400, split_by="line"),
    BPE(vocab=400),
    BPE(vocab=300, pretokenizer="o200k"),
]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[TokenizerConfig, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "a.txt").write_bytes(TEXT.encode())
    corpus = Text(path=str(folder / "a.txt"), holdout=SPLIT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMX_CACHE", str(folder))
        return {config: config.open(corpus) for config in TOKENIZERS}


@pytest.fixture(params=TOKENIZERS, ids=str)
def tokenizer(request, tokenizers) -> Tokenizer:
    return tokenizers[request.param]


@pytest.fixture
def corpus(write) -> Text:
    return Text(path=write("a.txt", TEXT), holdout=SPLIT)


@pytest.mark.parametrize("text", HARD, ids=range(len(HARD)))
def test_decoding_restores_the_text(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokens.dtype == np.int32
    assert tokenizer.decode(tokens) == text


def test_decoding_restores_random_text(tokenizer):
    chance = random.Random(0)
    for _ in range(200):
        text = "".join(chance.choices("".join(HARD[:10]), k=chance.randrange(40)))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokens_have_the_bytes_of_their_text(tokenizer):
    for text in HARD:
        assert tokenizer.token_bytes[tokenizer.encode(text)].sum() == len(text.encode())


def test_special_tokens_have_no_text_and_are_never_encoded(tokenizer):
    specials = {tokenizer.bos, tokenizer.eos} - {None}
    assert all(specials.isdisjoint(tokenizer.encode(text).tolist()) for text in HARD)
    assert all(tokenizer.token_bytes[token] == 0 for token in specials)
    assert tokenizer.decode(specials) == ""
    assert len(tokenizer.token_bytes) == tokenizer.vocab


def test_tokens_beyond_the_vocabulary_have_no_text(tokenizer):
    """A model may have more tokens: a pause token, or padding of its embedding."""
    tokens = [*tokenizer.encode("Abc"), tokenizer.vocab, tokenizer.vocab + 7]
    stream = tokenizer.stream()
    assert tokenizer.decode(tokens) == "".join(map(stream, tokens)) == "Abc"


def test_streamed_text_is_the_text(tokenizer):
    for text in HARD:
        stream = tokenizer.stream()
        parts = [stream(token) for token in tokenizer.encode(text).tolist()]
        assert "".join(parts) == text
        assert stream.flush() == ""


@pytest.mark.parametrize(
    "text", ["\ud800", "abc\udfff", "x" * 5000 + "\udc00y"], ids=len
)
def test_an_unpaired_surrogate_is_refused_by_its_position(tokenizer, text):
    at = next(n for n, letter in enumerate(text) if "\ud800" <= letter <= "\udfff")
    message = rf"U\+{ord(text[at]):04X} at character {at} .* an unpaired surrogate"
    with pytest.raises(ConfigError, match=message):
        tokenizer.encode(text)


def test_a_saved_tokenizer_is_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.digest, loaded.vocab) == (tokenizer.digest, tokenizer.vocab)
    assert (loaded.bos, loaded.eos) == (tokenizer.bos, tokenizer.eos)
    for text in HARD:
        assert loaded.encode(text).tolist() == tokenizer.encode(text).tolist()


def test_digests_of_different_tokenizers_differ(tokenizers):
    assert len({tokenizer.digest for tokenizer in tokenizers.values()}) == len(
        TOKENIZERS
    )


def test_a_stream_waits_for_complete_characters(tokenizers):
    stream = tokenizers[TOKENIZERS[0]].stream()
    assert [stream(byte) for byte in "é😀".encode()] == ["", "é", "", "", "", "😀"]
    assert stream("é".encode()[0]) == ""
    assert stream.flush() == "\ufffd"


def test_characters_are_those_of_both_splits_in_order(write):
    path = write("a.txt", "cab" * 9 + "z")
    tokenizer = CharTokenizer().open(Text(path=path, holdout=HoldoutTail()))
    assert [piece.decode() for piece in tokenizer.vocab_bytes] == ["a", "b", "c", "z"]
    assert tokenizer.encode("abcz").tolist() == [0, 1, 2, 3]
    assert (tokenizer.bos, tokenizer.eos) == (None, None)


@pytest.mark.parametrize("text", ["abé", "ab\0", "\U0010ffff"], ids=ascii)
def test_an_unknown_character_is_refused_by_name(write, text):
    tokenizer = CharTokenizer().open(
        Text(path=write("a.txt", "abc" * 9), holdout=HoldoutTail())
    )
    with pytest.raises(
        ConfigError, match=rf"U\+{ord(text[-1]):04X}.*@ByteTokenizer\(\)"
    ):
        tokenizer.encode(text)


def test_tokens_of_lines_include_indentation(tokenizers):
    pieces = tokenizers[TOKENIZERS[2]].vocab_bytes
    assert {b"    return", b":\n", b" b"} & set(pieces)
    assert b"    " in pieces or b"   " in pieces


def test_a_model_is_trained_once_and_training_is_deterministic(corpus, cache):
    tokenizer = SentencePiece(vocab=400)
    first = tokenizer.open(corpus).digest
    (path,) = (cache / "tokenizers").iterdir()
    written = path.stat().st_mtime_ns
    assert tokenizer.open(corpus).digest == first
    assert path.stat().st_mtime_ns == written
    path.unlink()
    assert tokenizer.open(corpus).digest == first


def test_training_uses_only_the_train_split(write):
    text = "abab " * 2000 + "zqzq " * 200
    tokenizer = SentencePiece(vocab=262).open(
        Text(path=write("a", text), holdout=HoldoutTail())
    )
    assert not any(b"z" in piece for piece in tokenizer.vocab_bytes[259:])
    assert any(b"a" in piece for piece in tokenizer.vocab_bytes[259:])


def test_processes_that_train_at_once_agree(corpus, cache, at_once):
    digests = at_once(f"print(SentencePiece(vocab=400).open({corpus}).digest)")
    assert len(set(digests)) == 1
    assert len(list((cache / "tokenizers").iterdir())) == 1


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_too_large_a_vocabulary_is_refused_with_the_maximum(corpus, kind):
    with pytest.raises(ConfigError, match=r"for 9999 tokens: set .* to \d+ or less"):
        SentencePiece(vocab=9999, model_type=kind).open(corpus)


def test_the_maximum_that_an_error_names_works(corpus):
    with pytest.raises(ConfigError) as refusal:
        SentencePiece(vocab=9999).open(corpus)
    most = int(str(refusal.value).split(" to ")[1].split()[0])
    assert SentencePiece(vocab=most).open(corpus).vocab == most


def test_too_small_a_vocabulary_is_refused_with_the_minimum(corpus):
    with pytest.raises(ConfigError, match=r"200 tokens are too few.* \d+ or more"):
        SentencePiece(vocab=200).open(corpus)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="has no tokenizer/lmx_tokenizer.json"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_of_an_unknown_class_is_refused(tmp_path, write):
    write("tokenizer/lmx_tokenizer.json", '{"class": "Words"}')
    with pytest.raises(
        ConfigError, match="'Words', and this version of lmx has ByteTokenizer"
    ):
        load_tokenizer(tmp_path)


def test_a_damaged_model_is_refused(tokenizers, tmp_path):
    tokenizer = tokenizers[TOKENIZERS[2]]
    tokenizer.save(tmp_path)
    Path(tmp_path, "tokenizer/tokenizer.model").write_bytes(b"\xff" * 10)
    with pytest.raises(ConfigError, match="of 10 bytes is not a SentencePiece model"):
        load_tokenizer(tmp_path)
