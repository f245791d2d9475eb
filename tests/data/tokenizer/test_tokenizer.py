"""What every tokenizer must keep: nothing is lost on the way and back."""

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
from lmx.data.tokenizer.byte_bpe import BPE
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
SPLIT = HoldoutTail(fraction=0.4)  # all that is hard is for validation
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
def codecs(tmp_path_factory) -> dict[TokenizerConfig, Tokenizer]:
    folder = tmp_path_factory.mktemp("codecs")
    (folder / "a.txt").write_bytes(TEXT.encode())
    corpus = Text(path=str(folder / "a.txt"), holdout=SPLIT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMX_CACHE", str(folder))
        return {tokenizer: tokenizer.open(corpus) for tokenizer in TOKENIZERS}


@pytest.fixture(params=TOKENIZERS, ids=str)
def codec(request, codecs) -> Tokenizer:
    return codecs[request.param]


@pytest.fixture
def corpus(write) -> Text:
    return Text(path=write("a.txt", TEXT), holdout=SPLIT)


@pytest.mark.parametrize("text", HARD, ids=range(len(HARD)))
def test_text_comes_back_as_it_was(codec, text):
    tokens = codec.encode(text)
    assert tokens.dtype == np.int32
    assert codec.decode(tokens) == text


def test_random_text_comes_back_as_it_was(codec):
    chance = random.Random(0)
    for _ in range(200):
        text = "".join(chance.choices("".join(HARD[:10]), k=chance.randrange(40)))
        assert codec.decode(codec.encode(text)) == text


def test_tokens_have_the_bytes_of_their_text(codec):
    for text in HARD:
        assert codec.token_bytes[codec.encode(text)].sum() == len(text.encode())


def test_specials_stand_for_no_text_and_are_never_encoded(codec):
    specials = {codec.begin, codec.end} - {None}
    assert all(specials.isdisjoint(codec.encode(text).tolist()) for text in HARD)
    assert all(codec.token_bytes[token] == 0 for token in specials)
    assert codec.decode(specials) == ""
    assert len(codec.token_bytes) == codec.vocab


def test_tokens_beyond_those_of_the_text_stand_for_nothing(codec):
    """A model may have more of them: a pause, or rows that fill up its table."""
    tokens = [*codec.encode("Abc"), codec.vocab, codec.vocab + 7]
    stream = codec.stream()
    assert codec.decode(tokens) == "".join(map(stream, tokens)) == "Abc"


def test_text_that_streams_is_the_text(codec):
    for text in HARD:
        stream = codec.stream()
        said = [stream(token) for token in codec.encode(text).tolist()]
        assert "".join(said) == text
        assert stream.flush() == ""


@pytest.mark.parametrize(
    "text", ["\ud800", "abc\udfff", "x" * 5000 + "\udc00y"], ids=len
)
def test_half_a_surrogate_pair_is_refused_by_its_place(codec, text):
    at = next(n for n, letter in enumerate(text) if "\ud800" <= letter <= "\udfff")
    said = rf"U\+{ord(text[at]):04X} at character {at} .* half a surrogate pair"
    with pytest.raises(ConfigError, match=said):
        codec.encode(text)


def test_a_run_keeps_its_tokenizer(codec, tmp_path):
    codec.save(tmp_path)
    kept = load_tokenizer(tmp_path)
    assert (kept.digest, kept.vocab) == (codec.digest, codec.vocab)
    assert (kept.bos, kept.eos) == (codec.begin, codec.end)
    for text in HARD:
        assert kept.encode(text).tolist() == codec.encode(text).tolist()


def test_digests_tell_tokenizers_apart(codecs):
    assert len({codec.digest for codec in codecs.values()}) == len(TOKENIZERS)


def test_a_stream_waits_for_the_rest_of_a_character(codecs):
    stream = codecs[TOKENIZERS[0]].stream()
    assert [stream(byte) for byte in "é😀".encode()] == ["", "é", "", "", "", "😀"]
    assert stream("é".encode()[0]) == ""
    assert stream.flush() == "\ufffd"


def test_characters_are_those_of_both_splits_in_order(write):
    path = write("a.txt", "cab" * 9 + "z")
    codec = CharTokenizer().open(Text(path=path, holdout=HoldoutTail()))
    assert [piece.decode() for piece in codec.vocab_bytes] == ["a", "b", "c", "z"]
    assert codec.encode("abcz").tolist() == [0, 1, 2, 3]
    assert (codec.bos, codec.eos) == (None, None)


@pytest.mark.parametrize("text", ["abé", "ab\0", "\U0010ffff"], ids=ascii)
def test_an_unknown_character_is_named(write, text):
    codec = CharTokenizer().open(
        Text(path=write("a.txt", "abc" * 9), holdout=HoldoutTail())
    )
    with pytest.raises(
        ConfigError, match=rf"U\+{ord(text[-1]):04X}.*@ByteTokenizer\(\)"
    ):
        codec.encode(text)


def test_pieces_keep_code_together(codecs):
    pieces = codecs[TOKENIZERS[2]].vocab_bytes
    assert {b"    return", b":\n", b" b"} & set(pieces)
    assert b"    " in pieces or b"   " in pieces


def test_a_piece_model_is_learned_once_and_the_same_again(corpus, cache):
    tokenizer = SentencePiece(vocab=400)
    first = tokenizer.open(corpus).digest
    (path,) = (cache / "tokenizers").iterdir()
    written = path.stat().st_mtime_ns
    assert tokenizer.open(corpus).digest == first
    assert path.stat().st_mtime_ns == written
    path.unlink()
    assert tokenizer.open(corpus).digest == first


def test_pieces_are_learned_from_the_train_split_alone(write):
    text = "abab " * 2000 + "zqzq " * 200
    codec = SentencePiece(vocab=262).open(
        Text(path=write("a", text), holdout=HoldoutTail())
    )
    assert not any(b"z" in piece for piece in codec.vocab_bytes[259:])
    assert any(b"a" in piece for piece in codec.vocab_bytes[259:])


def test_processes_that_learn_at_once_do_not_meet(corpus, cache, at_once):
    digests = at_once(f"print(SentencePiece(vocab=400).open({corpus}).digest)")
    assert len(set(digests)) == 1
    assert len(list((cache / "tokenizers").iterdir())) == 1


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_more_pieces_than_the_text_has_are_refused_with_the_most(corpus, kind):
    with pytest.raises(ConfigError, match=r"for 9999 pieces: set .* to \d+ or less"):
        SentencePiece(vocab=9999, model_type=kind).open(corpus)


def test_the_most_that_a_refusal_names_will_do(corpus):
    with pytest.raises(ConfigError) as refusal:
        SentencePiece(vocab=9999).open(corpus)
    most = int(str(refusal.value).split(" to ")[1].split()[0])
    assert SentencePiece(vocab=most).open(corpus).vocab == most


def test_fewer_pieces_than_bytes_are_refused_with_the_least(corpus):
    with pytest.raises(ConfigError, match=r"200 pieces are too few.* \d+ or more"):
        SentencePiece(vocab=200).open(corpus)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="neither tokenizer.model nor tokenizer.json"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_of_another_making_is_refused(tmp_path, write):
    write("tokenizer.json", '{"kind": "words"}')
    with pytest.raises(ConfigError, match="'words'.*knows 'bytes' and 'characters'"):
        load_tokenizer(tmp_path)


def test_a_damaged_model_is_refused(tmp_path):
    Path(tmp_path, "tokenizer.model").write_bytes(b"\xff" * 10)
    with pytest.raises(ConfigError, match="10 bytes that are no SentencePiece model"):
        load_tokenizer(tmp_path)
