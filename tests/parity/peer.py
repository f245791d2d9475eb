"""Creates the models with transformers, saves their results, and reads exports.

Runs in the environment with torch, and exchanges only files:
`python -m tests.parity.peer write FOLDER` before `compare.py`, `... check FOLDER`
after it; `... golden FOLDER` writes the golden files of `make test`.
"""

import importlib
import json
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

import numpy as np

from tests.parity.case import Case, Fields
from tests.parity.cases import (
    BEAMS,
    CASES,
    FAMILIES,
    GRADIENTS,
    NEW,
    PROMPTS,
    ROWS,
    SEARCHES,
)
from tests.parity.weights import rows, weights

# Only in the other environment, so that type checkers do not find them.
torch: Any = importlib.import_module("torch")
transformers: Any = importlib.import_module("transformers")
safetensors: Any = importlib.import_module("safetensors.numpy")

Arrays = dict[str, np.ndarray]
PAD = 0


def write_model(case: Case, folder: pathlib.Path) -> dict[str, list[int]]:
    """Writes the model of a case. Returns the shapes of its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "config.json"
    page.write_text(json.dumps(case.config, indent=1))
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    shapes = {name: list(w.shape) for name, w in safetensors.load_file(file).items()}
    if case.published:
        page.write_text(json.dumps(case.config, indent=1))
        shapes = rename_published(case.config, shapes)
    safetensors.save_file(weights(shapes), file, {"format": "pt"})
    return shapes


def rename_published(
    config: Fields, shapes: dict[str, list[int]]
) -> dict[str, list[int]]:
    """The shapes by the tensor names of published files."""
    if config["model_type"] != "gpt2":
        return shapes
    mask = [1, 1, config["n_positions"], config["n_positions"]]
    masks = {f"h.{layer}.attn.bias": mask for layer in range(config["n_layer"])}
    return masks | {name.removeprefix("transformer."): s for name, s in shapes.items()}


def load(folder: pathlib.Path) -> Any:
    """The model of a folder. Raises if a tensor is missing or unused."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
    )
    masks = {n for n in info["unexpected_keys"] if n.endswith(".attn.bias")}
    wrong = {k: v for k, v in info.items() if v and set(v) - masks}
    if wrong:
        raise ValueError(f"{folder} has missing or unused tensors: {wrong}")
    return model.eval()


def logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(tokens).long()).logits.numpy()


def pad_prompts(case: Case, vocab: int) -> tuple[Any, Any]:
    """Prompts of different lengths, padded on the left, and their mask."""
    width = max(PROMPTS)
    tokens = rows(f"{case.name}: prompts", (len(PROMPTS), width), vocab)
    mask = np.arange(width) >= width - np.array(PROMPTS)[:, None]
    return torch.from_numpy(tokens * mask).long(), torch.from_numpy(mask).long()


def generate(model: Any, tokens: Any, mask: Any, **options: Any) -> Any:
    """The continuations of prompts by transformers' `generate`, and their scores."""
    fixed = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": PAD}
    fixed |= {"return_dict_in_generate": True, "output_scores": True}
    out = model.generate(tokens, attention_mask=mask, **fixed, **options)
    follows = out.sequences[:, tokens.shape[1] :].numpy().astype(np.int32)
    return follows, getattr(out, "sequences_scores", None)


def generate_greedy(model: Any, tokens: Any, mask: Any) -> Arrays:
    """Greedy tokens of the batch. Raises if those of a prompt alone differ."""
    together, _ = generate(model, tokens, mask)
    for row, alone in enumerate(PROMPTS):
        one = tokens[row : row + 1, -alone:]
        single, _ = generate(model, one, torch.ones_like(one))
        if not np.array_equal(single[0], together[row]):
            raise ValueError(f"row {row} differs once it is padded")
    return {"greedy": together}


def search_beams(model: Any, tokens: Any, mask: Any) -> Arrays:
    """Results of beam search, with an end token that a good beam reaches midway."""
    free, _ = generate(model, tokens, mask, num_beams=4)
    end = int(free[0, 5])
    found: Arrays = {"end": np.array(end)}
    for i, options in enumerate(SEARCHES):
        follows, scores = generate(
            model,
            tokens,
            mask,
            num_beams=4,
            num_return_sequences=4,
            eos_token_id=end,
            **options,
        )
        found |= {f"beams/{i}": follows, f"scores/{i}": scores.numpy()}
    return found


def save_gradient(model: Any, tokens: np.ndarray, folder: pathlib.Path) -> Arrays:
    """The mean loss. Writes its gradients as the tensors of a model."""
    ids = torch.from_numpy(tokens).long()
    loss = model(ids, labels=ids).loss
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    model.save_pretrained(folder / "gradient")
    return {"loss": loss.detach().numpy()}


def compute_results(case: Case, folder: pathlib.Path) -> Arrays:
    """All results that `compare.py` reads."""
    model = load(folder)
    vocab = case.config["vocab_size"]
    tokens = rows(case.name, (ROWS, case.text), vocab)
    prompts, mask = pad_prompts(case, vocab)
    found = {"tokens": tokens, "logits": logits(model, tokens)}
    found |= {"prompts": prompts.numpy().astype(np.int32), "mask": mask.bool().numpy()}
    found |= generate_greedy(model, prompts, mask)
    if case.name in BEAMS:
        found |= search_beams(model, prompts, mask)
    if case.name in GRADIENTS:
        found |= save_gradient(model, tokens, folder)
    return found


def write(root: pathlib.Path) -> None:
    start = time.monotonic()
    for case in CASES.values():
        folder = root / case.name
        write_model(case, folder)
        np.savez(
            folder / "answers.npz", allow_pickle=False, **compute_results(case, folder)
        )
    print(f"{len(CASES)} models by transformers, {time.monotonic() - start:.0f} s")


def check(root: pathlib.Path) -> None:
    """Compares the exported models with the originals."""
    wrong = []
    for case in CASES.values():
        with np.load(root / case.name / "answers.npz") as results:
            want, tokens = results["logits"], results["tokens"]
        try:
            folder = root / case.name / "exported"
            if not folder.is_dir():
                raise ValueError("was not exported")
            got = logits(load(folder), tokens)
            error = np.abs(got - want).max() / np.abs(want).max()
            if not error <= 1e-4:
                raise ValueError(f"logits differ by {error:.1e} of the largest")
        except (OSError, RuntimeError, ValueError) as fault:
            wrong.append(f"{case.name}: {fault}")
    print("\n".join([*wrong, f"{len(CASES) - len(wrong)} of {len(CASES)} read back"]))
    sys.exit(bool(wrong))


def golden(root: pathlib.Path) -> None:
    """Writes a file for each family: its config, shapes, and some results."""
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch)
            shapes = write_model(CASES[family], folder)
            found = compute_results(CASES[family], folder)
        few = found["logits"][:, 19::20].astype(np.float64)
        page = {"config": CASES[family].config, "shapes": shapes} | {
            name: found[name].tolist() for name in ("tokens", "prompts", "greedy")
        }
        page["logits"] = [[[float(f"{x:.6g}") for x in t] for t in row] for row in few]
        lines = (f"{json.dumps(k)}: {json.dumps(v)}" for k, v in page.items())
        (root / f"{family}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main() -> None:
    command, folder = sys.argv[1:]
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    {"write": write, "check": check, "golden": golden}[command](pathlib.Path(folder))


if __name__ == "__main__":
    main()
