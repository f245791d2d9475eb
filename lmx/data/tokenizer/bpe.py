"""Byte-level BPE: training of merges, and vocabularies of tiktoken.

Sennrich et al. 2016, arXiv:1508.07909, on bytes as in GPT-2.
"""

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from lmx.config.registry import (
    ConfigError,
    at_least,
    configurable,
    require,
)
from lmx.core.console import print_line
from lmx.data.corpus.corpus import Corpus
from lmx.data.optional import import_optional
from lmx.data.tokenizer.base import (
    BYTES,
    Tokenizer,
    TokenizerConfig,
    TokenizerFile,
    encode_utf8,
    load_or_train,
    read_tokenizer_file,
)
from lmx.data.tokenizer.tokenizer_json import (
    BYTE_OF_LETTER,
    TOKENIZER_JSON,
    HFTokenizer,
    format_byte_bpe,
    load_json,
)

BOS_TEXT, EOS_TEXT = "<|begin_of_text|>", "<|end_of_text|>"
PretokenizerName = Literal["gpt2", "cl100k", "o200k", "qwen2"]
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
PATTERNS: Mapping[PretokenizerName, str] = {  # of words, as published
    "gpt2": GPT2,
    "cl100k": CL100K,  # of GPT-4, and of Llama 3
    "o200k": O200K,  # of GPT-4o, and of gpt-oss
    "qwen2": CL100K.replace(r"\p{N}{1,3}", r"\p{N}"),
}


@configurable
@dataclass(frozen=True, kw_only=True)
class BPE(TokenizerConfig):
    """Byte-pair encoding: the most frequent pairs of bytes are merged, within words.

    Trained on the train split by the library `tokenizers` and cached. Special tokens
    spelled in text are encoded as other words.
    """

    vocab: Annotated[int, at_least(258)] = 4096  # V, with the 256 bytes, BOS and EOS
    pretokenizer: PretokenizerName = "gpt2"

    def open(self, corpus: Corpus) -> HFTokenizer:
        library = import_optional("tokenizers", "hf", "for BPE")
        trainer = f"tokenizers {library.__version__}"
        data = load_or_train(corpus, (f"{self}", trainer), self._train)
        bos, eos = self.vocab - 2, self.vocab - 1
        return HFTokenizer(
            files={TOKENIZER_JSON: data},
            bos=bos,
            eos=eos,
            stop_tokens=(eos,),
            split_special_tokens=True,
        )

    def _train(self, corpus: Corpus) -> bytes:
        library = import_optional("tokenizers", "hf", "for BPE")
        print_line(f"training BPE ({self.vocab} tokens)")
        pattern = PATTERNS[self.pretokenizer]
        tokenizer = load_json(format_byte_bpe({}, [], pattern, {}).decode(), "for BPE")
        trainer = library.trainers.BpeTrainer(
            vocab_size=self.vocab - 2,
            initial_alphabet=[*BYTE_OF_LETTER],
            show_progress=False,
        )
        tokenizer.train_from_iterator(_read_texts(corpus), trainer)
        model = json.loads(tokenizer.to_str())["model"]
        size = len(model["vocab"])
        require(
            size >= self.vocab - 2,
            f"the text has too few repetitions for {self.vocab} tokens: set"
            f" BPE.vocab to {size + 2} or less, or add text.",
        )
        special_tokens = {BOS_TEXT: size, EOS_TEXT: size + 1}
        return format_byte_bpe(model["vocab"], model["merges"], pattern, special_tokens)


def _read_texts(corpus: Corpus) -> Iterator[str]:
    for document in corpus.read_nonempty("train"):
        encode_utf8(document.text)
        yield document.text


@configurable
@dataclass(frozen=True, kw_only=True)
class Tiktoken(TokenizerFile):
    """A `.tiktoken` file of byte strings by rank, and what it does not contain.

    It is stored as a tokenizer.json. Special tokens spelled in text are encoded as
    other words.

    Attributes:
        pretokenizer: how text is split into words, as the model's publisher says.
        special_tokens: their numbers by name.
        bos: the special token before each document; None: none.
        eos: the special token after each document; None: none.
    """

    pretokenizer: PretokenizerName
    special_tokens: Mapping[str, int] = field(default_factory=dict)

    def load(self, path: Path) -> Tokenizer:
        content = self._convert(read_tokenizer_file(path))
        bos, eos = (self.special_tokens.get(n or "") for n in (self.bos, self.eos))
        return HFTokenizer(
            files={TOKENIZER_JSON: content},
            bos=bos,
            eos=eos,
            stop_tokens=() if eos is None else (eos,),
            split_special_tokens=True,
        )

    def _convert(self, data: bytes) -> bytes:
        """The tokenizer.json of a file. Refuses special tokens that do not fit it."""
        for name, value in (("bos", self.bos), ("eos", self.eos)):
            require(
                value is None or value in self.special_tokens,
                f"Tiktoken.{name} is {value!r}, which is not one of"
                f" Tiktoken.special_tokens: {', '.join(self.special_tokens)}.",
            )
        ranks = parse_ranks(data)
        letters = {byte: letter for letter, byte in BYTE_OF_LETTER.items()}
        texts = {key: "".join(map(letters.__getitem__, key)) for key in ranks}
        vocab = {texts[key]: rank for key, rank in ranks.items()}
        used = {*vocab.values()}
        for name, token in self.special_tokens.items():
            require(
                token not in used and token >= 0 and name not in vocab,
                f"the special token {name!r} has the number {token}, which must be"
                f" at least 0 and not in use, as must its name: the file uses"
                f" numbers up to {max(used)}.",
            )
        return format_byte_bpe(
            {**vocab, **self.special_tokens},
            [[texts[left], texts[right]] for left, right in derive_merges(ranks)],
            PATTERNS[self.pretokenizer],
            self.special_tokens,
            ignore_merges=True,
        )


def parse_ranks(file: bytes) -> dict[bytes, int]:
    """The byte strings and their tokens. Errors name the line."""
    ranks: dict[bytes, int] = {}
    tokens: set[int] = set()
    for number, line in enumerate(file.splitlines(), 1):
        if not line.strip():
            continue
        try:
            text, rank = line.split()
            data, token = base64.b64decode(text, validate=True), int(rank)
        except (ValueError, binascii.Error):
            raise ConfigError(
                f"line {number}: {line[:40]!r} must be a base64 string, a space and a"
                " number: the file is damaged or of another kind."
            ) from None
        require(
            data and token >= 0 and data not in ranks and token not in tokens,
            f"line {number}: {line[:40]!r} is empty, or repeats the string or the"
            " number of an earlier line: the file is damaged.",
        )
        ranks[data] = token
        tokens.add(token)
    if missing := [byte[0] for byte in BYTES if byte not in ranks]:
        raise ConfigError(
            f"{len(missing)} of the 256 bytes have no token, first 0x{missing[0]:02x}:"
            " the file is truncated or of another kind."
        )
    return ranks


def derive_merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every pair of tokens that makes a token, in the order of that token's rank."""
    pairs = [
        (data[:split], data[split:])
        for data in sorted(ranks, key=ranks.__getitem__)
        for split in range(1, len(data))
    ]
    return [(left, right) for left, right in pairs if left in ranks and right in ranks]
