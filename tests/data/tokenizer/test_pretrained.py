"""Tests of pretrained tokenizers, against their libraries."""

import base64
import io
import json
import pickle
import unicodedata

import pytest
import sentencepiece
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from lmx.config.registry import ConfigError
from lmx.data.corpus.corpus import HoldoutTail
from lmx.data.corpus.text import Stdlib, Text
from lmx.data.tokenizer.base import ByteTokenizer, CharTokenizer
from lmx.data.tokenizer.bpe import BPE, Tiktoken
from lmx.data.tokenizer.pretrained import PretrainedTokenizer
from lmx.data.tokenizer.tokenizer_json import ALPHABET

PLAIN = "def f(x): return x  # the quick brown fox " * 20
HARD = [
    "e\u0301 \ufb01 \u212b \uff21\u3000x",  # what normalisation changes
    "".join(chr(plane * 0x10000 + at) for plane in range(17) for at in (1, 0xFFFD)),
    "\0\x01\x7f\x85\u2028",
    "word" * 5000,
    "Aбעไ漢🙂" * 3,
    "<s></s><|end|>",
]


def opened(tokenizer):
    return tokenizer.open(Stdlib())


@pytest.fixture
def fast(tmp_path):
    """A tokenizer.json that brings text to NFC, with two special tokens."""
    reference = Tokenizer(models.BPE())
    reference.normalizer = normalizers.NFC()
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    reference.train_from_iterator([PLAIN], trainer)
    reference.save(str(tmp_path / "tokenizer.json"))
    return reference, tmp_path / "tokenizer.json"


@pytest.fixture
def sentence(tmp_path):
    """A SentencePiece model with its own normalisation, NFKC."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter([PLAIN]),
        model_writer=model,
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="nfkc",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    path = tmp_path / "some.model"
    path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_file=str(path)), path


def test_a_tokenizer_json_equals_its_library(fast):
    theirs, path = fast
    codec = opened(PretrainedTokenizer(path=str(path), bos="<|begin|>", eos="<|end|>"))
    assert (codec.bos, codec.eos, codec.stop_tokens) == (0, 1, (1,))
    for text in HARD:
        tokens = codec.encode(text)
        assert tokens.tolist() == theirs.encode(text, add_special_tokens=False).ids
        spoken = unicodedata.normalize("NFC", text).replace("<|end|>", "")
        assert codec.decode(tokens) == spoken


def test_a_sentencepiece_model_equals_its_library(sentence):
    theirs, path = sentence
    codec = opened(PretrainedTokenizer(path=str(path), eos="</s>"))
    assert (codec.bos, codec.eos) == (theirs.bos_id(), theirs.eos_id())
    for text in HARD:
        tokens = codec.encode(text)
        assert tokens.tolist() == theirs.Encode(text)
        assert codec.decode(tokens) == theirs.Decode(tokens.tolist())
    assert codec.decode(codec.encode("\uff21\ufb01")) == "Afi"


@pytest.mark.parametrize("text", ["\ud800", "ab\udfff"], ids=ascii)
def test_unpaired_surrogates_are_refused(fast, sentence, text):
    for _, path in (fast, sentence):
        with pytest.raises(
            ConfigError, match=r"U\+D[8F].. at character \d .* unpaired"
        ):
            opened(PretrainedTokenizer(path=str(path))).encode(text)


def test_a_changed_file_has_another_digest(fast):
    _, path = fast
    before = opened(PretrainedTokenizer(path=str(path))).digest
    settings = json.loads(path.read_text())
    settings["model"]["merges"][-1:] = []
    path.write_text(json.dumps(settings))
    assert opened(PretrainedTokenizer(path=str(path))).digest != before


@pytest.mark.parametrize(
    "tokenizer", [ByteTokenizer(), CharTokenizer(), BPE(vocab=280)]
)
def test_the_folder_of_a_run_can_be_read(tokenizer, tmp_path, write):
    corpus = Text(path=write("a.txt", PLAIN), holdout=HoldoutTail())
    codec = tokenizer.open(corpus)
    (tmp_path / "run").mkdir()
    codec.save(tmp_path / "run")
    again = opened(PretrainedTokenizer(path=str(tmp_path / "run")))
    assert again.digest == codec.digest
    assert again.encode(PLAIN).tolist() == codec.encode(PLAIN).tolist()


def test_a_used_tokenizer_can_be_pickled(write):
    corpus = Text(path=write("a.txt", PLAIN), holdout=HoldoutTail())
    codec = BPE(vocab=280).open(corpus)
    before = codec.encode(PLAIN).tolist()
    assert pickle.loads(pickle.dumps(codec)).encode(PLAIN).tolist() == before


BAD = {
    "a.json: tokenizer.json is not JSON": ("a.json", b'{"model": {"voc'),
    "b.json: tokenizer.json is not JSON": ("b.json", b"\xff\xfe\0"),
    "c.json: tokenizer.json must hold a JSON object": ("c.json", b"[1, 2]"),
    "d.json: tokenizer.json has no model with a voc": ("d.json", b'{"kind": "bytes"}'),
    "e.model: tokenizer.model of 11 bytes is not a Se": ("e.model", b"hello world"),
    "f.model: tokenizer.model of 9 bytes is not a Se": ("f.model", b'{"a": 12}'),
    "g.tiktoken: a tokenizer file ends .* use @Tiktoken": ("g.tiktoken", b"IQ== 0"),
    "no: there is no such file": ("no", None),
}


@pytest.mark.parametrize("message", BAD)
def test_a_damaged_file_or_one_of_another_kind_is_refused_by_name(message, tmp_path):
    name, content = BAD[message]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        opened(PretrainedTokenizer(path=str(tmp_path / name)))


def test_a_truncated_model_is_refused(sentence):
    _, path = sentence
    whole = path.read_bytes()
    for size in (1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(
            ConfigError, match=r"some.model: tokenizer.model of \d+ bytes is n"
        ):
            opened(PretrainedTokenizer(path=str(path)))


def test_a_folder_without_a_tokenizer_and_unknown_tokens_are_refused(fast, tmp_path):
    _, path = fast
    with pytest.raises(ConfigError, match=r"the file has no token '<x>'"):
        opened(PretrainedTokenizer(path=str(path), eos="<x>"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty: the folder has neither"):
        opened(PretrainedTokenizer(path=str(tmp_path / "empty")))
    with pytest.raises(ConfigError, match="give the path of a file"):
        opened(PretrainedTokenizer(path=str(tmp_path), eos="<|end|>"))


def test_a_tiktoken_file_of_bytes_encodes_bytes(write):
    lines = [base64.b64encode(bytes([b])) + b" %d" % n for n, b in enumerate(ALPHABET)]
    path = write("bytes.tiktoken", b"\n".join(lines))
    codec = opened(Tiktoken(path=path, pretokenizer="o200k"))
    for text in HARD:
        assert codec.encode(text).tolist() == [*map(ALPHABET.index, text.encode())]
        assert codec.decode(codec.encode(text)) == text
