"""Reference outputs of transformers for sampling rules and beam search.

Needs torch==2.13.0 and transformers==5.23.0: `python tests/golden/infer/make.py`.
"""

import importlib
import json
import pathlib
import zlib
from typing import Any

import numpy as np

# Installed in another environment, so type checkers must not resolve them.
torch: Any = importlib.import_module("torch")
peer: Any = importlib.import_module("transformers")

HERE = pathlib.Path(__file__).parent
END, PAD = 3, 0
SIZES = dict(
    vocab_size=13,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    rope_theta=10_000.0,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=PAD,
)
PROMPTS = [[5, 7, 1], [2, 9, 4, 11, 6, 8, 12], [10]]
RULES = [
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_p": 0.3},
    {"top_p": 0.8},
    {"top_p": 0.99},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"typical_p": 0.2},
    {"typical_p": 0.9},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7, "temperature": 1.5, "top_k": 9},
    {"temperature": 0.6, "top_k": 12, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.8},
    {"repetition_penalty": 2.0, "temperature": 2.0, "top_p": 0.7, "typical_p": 0.95},
]
SEARCHES = [
    {"num_beams": 4},
    {"num_beams": 4, "early_stopping": True},
    {"num_beams": 4, "early_stopping": "never"},
    {"num_beams": 4, "length_penalty": 0.0},
    {"num_beams": 4, "length_penalty": 2.0, "early_stopping": "never"},
    {"num_beams": 4, "length_penalty": -1.0},
    {"num_beams": 3, "length_penalty": 0.5, "early_stopping": True},
    {"num_beams": 1, "repetition_penalty": 1.5},
    {"num_beams": 1},
]


def build_llama() -> Any:
    """Returns a model whose weights are functions of their names."""
    model = peer.LlamaForCausalLM(peer.LlamaConfig(**SIZES)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = np.random.default_rng(zlib.crc32(name.encode()))
            value = noise.normal(size=tuple(weight.shape)).astype(np.float32)
            weight.copy_(torch.tensor(1 + value / 8 if "norm" in name else value / 2))
    return model


def apply_rules(model: Any) -> dict[str, Any]:
    """Returns logits, half of the rows with ties, and the logits after each rule."""
    noise = np.random.default_rng(0)
    logits = noise.normal(size=(8, 24)).astype(np.float32) * 2
    logits[4:] = np.round(logits[4:])
    tokens = noise.integers(0, 24, (8, 6))
    arrays = {"logits": logits, "tokens": tokens.astype(np.int32)}
    for rule in RULES:
        plain = dict(temperature=1.0, top_k=0, top_p=1.0, do_sample=True)
        config = peer.GenerationConfig(**(plain | rule))
        chain = model._get_logits_processor(config, input_ids_seq_length=6)
        filtered = chain(torch.tensor(tokens), torch.tensor(logits))
        arrays[json.dumps(rule)] = filtered.numpy()
    return arrays


def search(model: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Returns tokens and scores of the continuations of each prompt."""
    width, beams = max(map(len, PROMPTS)), options["num_beams"]
    rows = [[PAD] * (width - len(row)) + row for row in PROMPTS]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in PROMPTS]
    out = model.generate(
        torch.tensor(rows),
        attention_mask=torch.tensor(mask),
        max_new_tokens=12,
        eos_token_id=END,
        do_sample=False,
        num_return_sequences=beams,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    new = [truncate(row) for row in out.sequences[:, width:].tolist()]
    scores = out.sequences_scores.tolist() if beams > 1 else [0.0] * len(new)
    pairs = [[row, round(score, 6)] for row, score in zip(new, scores, strict=True)]
    each = [pairs[at : at + beams] for at in range(0, len(pairs), beams)]
    return {"options": options, "beams": each}


def truncate(row: list[int]) -> list[int]:
    """Returns the tokens up to the end token."""
    return row[: row.index(END) + 1] if END in row else row


if __name__ == "__main__":
    tiny = build_llama()
    np.savez_compressed(HERE / "rules.npz", **apply_rules(tiny))
    content = {
        "end": END,
        "prompts": PROMPTS,
        "searches": [search(tiny, options) for options in SEARCHES],
    }
    (HERE / "searches.json").write_text(json.dumps(content) + "\n")
