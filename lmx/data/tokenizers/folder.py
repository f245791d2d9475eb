"""Tokenizers of Hugging Face folders, read from their files and kept as these."""

import functools
import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Int32

from lmx.config.names import ConfigError
from lmx.data.cache import write_whole
from lmx.data.tokenizers.codec import FOLDER, Codec
from lmx.data.tokenizers.pieces import SPACE, meaning, opened

FAST, SENTENCE, ABOUT = "tokenizer.json", "tokenizer.model", "tokenizer_config.json"
ADDED = "added_tokens.json"
FILES = (
    FAST, SENTENCE, ABOUT, ADDED, "special_tokens_map.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
IDS = "ids.json"  # beside them in a run: which tokens begin and end
NO_LIBRARY = "to encode with a tokenizer.json: pip install 'lmx[hf]'"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FileCodec(Codec):
    """A tokenizer of others, whose files are carried along.

    `decode(encode(text)) == text` where its own normalisation leaves the text as it is
    and no special token is spelled in it.

    Attributes:
        ends: tokens at which a generated text ends; `end` and perhaps others.
        strips: whether `encode` puts a space before a text; `decode` takes it away.
    """

    files: Mapping[str, bytes]
    ends: tuple[int, ...] = ()
    strips: bool = False

    @property
    def stops(self) -> tuple[int, ...]:
        return self.ends

    @property
    @abstractmethod
    def prefix(self) -> tuple[int, ...]:
        """What its own files say comes before every text."""

    @abstractmethod
    def token(self, text: str) -> int | None:
        """The token that is spelled so, special ones among them."""

    @property
    def digest(self) -> str:
        content = hashlib.sha256(f"{(self.begin, self.end)}".encode())
        for name in sorted(self.files):
            content.update(name.encode() + hashlib.sha256(self.files[name]).digest())
        return content.hexdigest()

    @property
    def carried(self) -> Mapping[str, bytes]:
        return self.files

    def decode(self, tokens: Iterable[SupportsIndex]) -> str:
        text = super().decode(tokens)
        return text.removeprefix(" ") if self.strips else text

    def save(self, folder: Path) -> None:
        (folder / FOLDER).mkdir(exist_ok=True)
        ids = {"begin": self.begin, "end": self.end, "ends": self.ends}
        for name, content in {**self.files, IDS: json.dumps(ids).encode()}.items():
            write_whole(folder / FOLDER / name, content)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FastCodec(FileCodec):
    """A tokenizer.json. Only `encode` needs the library `tokenizers`."""

    pieces: tuple[bytes, ...] = ()

    def __post_init__(self):
        kinds = {step["type"]: step for step in _steps(self._said.get("decoder"))}
        if "ByteLevel" not in kinds and not {"Metaspace", "Replace"} & kinds.keys():
            raise ConfigError(
                f"{FAST} decodes by {', '.join(kinds) or 'nothing'}: lmx knows those of"
                " bytes and of SentencePiece, which lose nothing."
            )
        meant = _by_bytes if "ByteLevel" in kinds else _by_pieces
        pieces = {token: meant(text) for text, token in self._vocab.items()}
        for added in self._said.get("added_tokens", ()):
            special = added.get("special", False)
            pieces[added["id"]] = b"" if special else added["content"].encode()
        count = max(pieces) + 1
        object.__setattr__(
            self, "pieces", tuple(pieces.get(token, b"") for token in range(count))
        )
        space = kinds.get("Metaspace", {})
        first = space.get("prepend_scheme", "always") != "never" if space else False
        strip = kinds.get("Strip", {}).get("start") == 1
        object.__setattr__(self, "strips", first or strip)

    @functools.cached_property
    def _said(self) -> dict[str, Any]:
        return json.loads(self.files[FAST])

    @functools.cached_property
    def _vocab(self) -> dict[str, int]:
        vocab = self._said["model"]["vocab"]
        if isinstance(vocab, dict):
            return vocab
        return {text: token for token, (text, *_) in enumerate(vocab)}

    @functools.cached_property
    def _tokenizer(self) -> Any:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise ConfigError(
                f"the library tokenizers is needed {NO_LIBRARY}"
            ) from None
        tokenizer = Tokenizer.from_str(self.files[FAST].decode())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return np.array(ids, np.int32)

    @property
    def prefix(self) -> tuple[int, ...]:
        for step in _steps(self._said.get("post_processor")):
            if step["type"] == "TemplateProcessing":
                return tuple(_before(step))
        return ()

    def token(self, text: str) -> int | None:
        added = {
            one["content"]: one["id"] for one in self._said.get("added_tokens", ())
        }
        return added.get(text, self._vocab.get(text))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SentenceCodec(FileCodec):
    """A SentencePiece model, with the normalisation it was trained with.

    Spelled special tokens are no tokens in text: they are read as any other words.
    """

    pieces: tuple[bytes, ...] = ()

    def __post_init__(self):
        count = self._processor.vocab_size()
        pieces = {token: meaning(self._processor, token) for token in range(count)}
        for text, (token, special) in self._added.items():
            pieces.setdefault(token, b"" if special else text.encode())
        every = range(max(pieces) + 1)
        object.__setattr__(self, "pieces", tuple(pieces.get(n, b"") for n in every))
        (first, *_) = self._processor.Encode("a")
        object.__setattr__(self, "strips", self.pieces[first].startswith(b" "))

    @functools.cached_property
    def _processor(self) -> Any:
        return opened(self.files[SENTENCE])

    @functools.cached_property
    def _added(self) -> dict[str, tuple[int, bool]]:
        """Tokens that came after training, and whether they are special."""
        old = _json(self.files, ADDED)
        new = _json(self.files, ABOUT).get("added_tokens_decoder", {})
        return {text: (token, True) for text, token in old.items()} | {
            one["content"]: (int(token), one.get("special", False))
            for token, one in new.items()
        }

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        return np.array(self._processor.Encode(text), np.int32)

    @property
    def prefix(self) -> tuple[int, ...]:
        begin = self._processor.bos_id()
        return (begin,) if begin >= 0 else ()

    def token(self, text: str) -> int | None:
        if text in self._added:
            return self._added[text][0]
        token = self._processor.PieceToId(text)
        return None if token == self._processor.unk_id() else token


def open_folder(path: Path, said: Mapping[str, Any]) -> FileCodec | None:
    """The tokenizer of a Hugging Face folder; None if it has none.

    `said` is what the model's own files say of `eos_token_id`, used where the
    tokenizer's are silent.
    """
    files = {name: (path / name).read_bytes() for name in _there(path)}
    if not files.keys() & {FAST, SENTENCE}:
        if "vocab.json" in files:
            raise ConfigError(
                f"{path} has a tokenizer in an old form, without {FAST}: load and save"
                " it with transformers' AutoTokenizer first."
            )
        return None
    codec, about = _codec(files), _json(files, ABOUT)
    begin = next(iter(codec.prefix), None)
    if "add_bos_token" in about:
        begin = (
            _token(codec, about.get("bos_token")) if about["add_bos_token"] else None
        )
    stops = said.get("eos_token_id")
    stops = tuple(stops) if isinstance(stops, list | tuple) else (stops,)
    end = _token(codec, about.get("eos_token"))
    end = stops[0] if end is None else end
    ends = sorted({token for token in (end, *stops) if token is not None})
    return _codec(files, begin=begin, end=end, ends=tuple(ends))


def load_folder(path: Path) -> FileCodec:
    """What `FileCodec.save` wrote."""
    ids = json.loads((path / IDS).read_text())
    files = {name: (path / name).read_bytes() for name in _there(path)}
    return _codec(files, **ids | {"ends": tuple(ids["ends"])})


def _codec(files: Mapping[str, bytes], **ids: Any) -> FileCodec:
    kind = FastCodec if FAST in files else SentenceCodec
    return kind(files=files, **ids)


def _there(path: Path) -> list[str]:
    return [name for name in FILES if (path / name).is_file()]


def _json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    return json.loads(files.get(name, b"{}"))


def _token(codec: FileCodec, said: str | Mapping[str, Any] | None) -> int | None:
    """The token that a tokenizer_config.json names, by its text or by all about it."""
    text = said["content"] if isinstance(said, Mapping) else said
    return None if text is None else codec.token(text)


def _steps(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a pipeline that may be one, none or a sequence."""
    if step is None:
        return
    inner = step.get("decoders") or step.get("processors")
    if inner is None:
        yield step
    for one in inner or ():
        yield from _steps(one)


def _before(template: dict[str, Any]) -> Iterator[int]:
    """The tokens that a template puts before a single text."""
    for item in template["single"]:
        if "Sequence" in item:
            return
        yield from template["special_tokens"][item["SpecialToken"]["id"]]["ids"]


def _by_pieces(text: str) -> bytes:
    """The bytes of a piece as SentencePiece writes it."""
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return bytes([int(text[3:5], 16)])
    return text.replace(SPACE, " ").encode()


def _by_bytes(text: str) -> bytes:
    """The bytes of a piece in GPT-2's alphabet, where each is one printable letter."""
    alphabet = _alphabet()
    if all(letter in alphabet for letter in text):
        return bytes(alphabet[letter] for letter in text)
    return text.encode()


@functools.cache
def _alphabet() -> dict[str, int]:
    """Bytes that Latin-1 prints stand for themselves, the rest for U+0100 and on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {
        chr(256 + n): byte for n, byte in enumerate(hidden)
    }
