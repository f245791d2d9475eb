"""Tests of tokenizers of Hugging Face folders, against their library."""

import io
import json
import sys

import numpy as np
import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from lmx.config.registry import ConfigError
from lmx.data.tokenizer.pretrained import load_hf_folder, load_tokenizer
from lmx.data.tokenizer.tokenizer_json import HFTokenizer

TEXTS = ["def f(x):\n    return x  # ä 你好 🙂", "Hello world, hello!", "a", "  two  "]
CORPUS = [*TEXTS, "the quick brown fox", "return hello world"] * 4


def by_bytes():
    """A byte-level tokenizer, as of GPT-2, Llama 3 and Qwen."""
    reference = Tokenizer(models.BPE())
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<|user|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    reference.train_from_iterator(CORPUS, trainer)
    reference.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", reference.token_to_id("<s>"))]
    )
    reference.add_tokens(["<plain>"])
    return reference


def by_pieces():
    """A tokenizer with byte fallback and a leading space, as of Llama 2."""
    spaced = [text.replace(" ", "\u2581") for text in CORPUS]
    reference = Tokenizer(
        models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    reference.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    reference.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    hexes = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<unk>", "<s>", "</s>", *hexes],
        limit_alphabet=40,
        show_progress=False,
    )
    reference.train_from_iterator(spaced, trainer)
    content = json.loads(reference.to_str())
    # Published files list only the first three as special; the bytes are plain pieces.
    content["added_tokens"] = content["added_tokens"][:3]
    return Tokenizer.from_str(json.dumps(content))


KINDS = {"bytes": by_bytes, "pieces": by_pieces}


def load_folder(folder, **content):
    tokenizer = load_hf_folder(folder, content)
    assert tokenizer
    return tokenizer


@pytest.fixture(params=KINDS)
def fast(request, tmp_path):
    """A tokenizer of the library, and that of a folder with its file."""
    reference = KINDS[request.param]()
    reference.save(str(tmp_path / "tokenizer.json"))
    about = {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
    return reference, load_hf_folder(tmp_path, {"eos_token_id": [7, 2]})


def test_tokens_equal_those_of_the_library_and_are_decoded(fast):
    reference, tokenizer = fast
    for text in TEXTS:
        tokens = tokenizer.encode(text)
        assert tokens.tolist() == reference.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(tokens) == text == reference.decode(tokens.tolist())


def test_tokens_have_the_bytes_that_the_library_decodes(fast):
    reference, tokenizer = fast
    assert tokenizer.vocab == reference.get_vocab_size()
    for text in TEXTS:
        tokens = tokenizer.encode(text)
        streamed = tokenizer.stream()
        whole = "".join(map(streamed, tokens)) + streamed.flush()
        assert whole.removeprefix(" " * tokenizer.strip_leading_space) == text
        assert tokenizer.token_bytes[tokens].sum() == len(whole.encode())


def test_special_tokens_have_no_text(fast):
    reference, tokenizer = fast
    assert tokenizer.vocab_bytes[reference.token_to_id("</s>")] == b""
    assert (
        tokenizer.decode([tokenizer.eos, *tokenizer.encode("hi"), tokenizer.eos])
        == "hi"
    )


def test_bos_and_eos_are_those_of_the_files(fast, tmp_path):
    reference, tokenizer = fast
    plain = reference.encode("x", add_special_tokens=False).ids
    before = reference.encode("x").ids[: -len(plain)]
    assert before == [tokenizer.bos] * (tokenizer.bos is not None)
    assert tokenizer.eos == reference.token_to_id("</s>")
    assert tokenizer.stop_tokens == tuple(sorted({tokenizer.eos, 7, 2}))
    about = json.loads((tmp_path / "tokenizer_config.json").read_text())
    first = next(iter(before), None)
    cases = [(True, reference.token_to_id("<s>")), (False, None), (None, first)]
    for add, want in cases:
        content = json.dumps(about | {"add_bos_token": add})
        (tmp_path / "tokenizer_config.json").write_text(content)
        assert load_folder(tmp_path).bos == want
    (tmp_path / "tokenizer_config.json").unlink()
    assert load_folder(tmp_path, eos_token_id=9).eos == 9


def test_a_saved_tokenizer_is_loaded(fast, tmp_path):
    _, tokenizer = fast
    run = tmp_path / "run"
    run.mkdir()
    tokenizer.save(run)
    again = load_tokenizer(run)
    assert again.digest == tokenizer.digest and again.files == tokenizer.files
    for name in ("bos", "eos", "stop_tokens", "strip_leading_space"):
        assert getattr(again, name) == getattr(tokenizer, name)
    np.testing.assert_array_equal(again.encode(TEXTS[0]), tokenizer.encode(TEXTS[0]))


def test_chat_templates_are_stored(fast, tmp_path):
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    tokenizer = load_folder(tmp_path)
    assert tokenizer.files["chat_template.jinja"] == b"{{ messages }}"


def test_a_special_token_in_text_is_encoded_as_such():
    reference = by_bytes()
    tokenizer = HFTokenizer(files={"tokenizer.json": reference.to_str().encode()})
    assert tokenizer.encode("<|user|>hi").tolist()[0] == reference.token_to_id(
        "<|user|>"
    )
    assert tokenizer.decode(tokenizer.encode("<plain>")) == "<plain>"


def test_only_encoding_needs_the_library(monkeypatch):
    reference = by_bytes()
    tokenizer = HFTokenizer(files={"tokenizer.json": reference.to_str().encode()})
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert (
        tokenizer.decode(reference.encode("hello", add_special_tokens=False).ids)
        == "hello"
    )
    with pytest.raises(ConfigError, match=r"pip install 'lmx\[hf\]'"):
        tokenizer.encode("hello")


def test_a_lossy_decoder_is_refused(tmp_path):
    reference = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    reference.decoder = decoders.WordPiece()
    reference.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="has the decoder WordPiece"):
        load_hf_folder(tmp_path, {})


def test_a_folder_without_a_tokenizer_gives_none_and_an_old_format_is_refused(tmp_path):
    assert load_hf_folder(tmp_path, {}) is None
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ConfigError, match="old format, without tokenizer.json"):
        load_hf_folder(tmp_path, {})


@pytest.fixture
def sentence(tmp_path):
    """A SentencePiece model with the settings of Llama 2, alone in a folder."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.98,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 320}')
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model.getvalue())
    return processor


def test_a_folder_can_have_only_a_sentencepiece_model(sentence, tmp_path):
    tokenizer = load_folder(tmp_path, eos_token_id=2)
    assert load_folder(tmp_path).stop_tokens == (2,) == (load_folder(tmp_path).eos,)
    assert load_folder(tmp_path, eos_token_id=[5, 7]).stop_tokens == (5, 7)
    assert tokenizer.vocab == 321 and tokenizer.vocab_bytes[320] == b""
    assert (tokenizer.bos, tokenizer.eos, tokenizer.stop_tokens) == (1, 2, (2,))
    for text in TEXTS:
        tokens = tokenizer.encode(text)
        assert tokens.tolist() == sentence.Encode(text)
        assert tokenizer.decode(tokens) == text == sentence.Decode(tokens.tolist())
    run = tmp_path / "run"
    run.mkdir()
    tokenizer.save(run)
    assert load_tokenizer(run).digest == tokenizer.digest


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["model"]["vocab"].update(a="7"),
        lambda content: content["model"]["vocab"].update(a=7.0),
        lambda content: content["model"]["vocab"].update(a=[7]),
        lambda content: content["model"]["vocab"].update(a=-7),
        lambda content: content["model"]["vocab"].update(a=None),
        lambda content: content["added_tokens"][0].update(id="0"),
        lambda content: content["added_tokens"][0].update(id=True),
        lambda content: content["added_tokens"][0].pop("content"),
        lambda content: content.update(added_tokens={"a": 1}),
        lambda content: content.update(added_tokens=7),
        lambda content: content.update(decoder="ByteLevel"),
        lambda content: content.update(model=[1]),
        lambda content: content["post_processor"].pop("single"),
        lambda content: content["post_processor"].update(special_tokens=[7]),
    ],
)
def test_a_tokenizer_json_of_wrong_kinds_is_refused(change, tmp_path):
    content = json.loads(by_bytes().to_str())
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="wrong kind|ids .* of tokens must"):
        load_hf_folder(tmp_path, {})


@pytest.mark.parametrize("name", ["bos_token", "eos_token"])
@pytest.mark.parametrize("entry", [["</s>"], 7, {"content": [1]}])
def test_a_special_token_of_a_wrong_kind_is_refused(name, entry, tmp_path):
    by_bytes().save(str(tmp_path / "tokenizer.json"))
    content = json.dumps({name: entry, "add_bos_token": True})
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(ConfigError, match="has the token .* it must be a text"):
        load_hf_folder(tmp_path, {})


@pytest.mark.parametrize("ids", ["2", [1, "2"], 2.0, True, {"a": 2}])
def test_an_eos_token_id_of_a_wrong_kind_is_refused(ids, tmp_path):
    by_bytes().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="config.json: eos_token_id must be int"):
        load_hf_folder(tmp_path, {"eos_token_id": ids})
