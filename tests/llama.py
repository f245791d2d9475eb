"""Small Llama checkpoints in the format of transformers."""

import json

import numpy as np
import pytest

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 37,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "eos_token_id": [1, 2],
}


def tensors_of(config, dtype=np.float32):
    """Random weights, by the names and in the shapes of transformers."""
    D, F, V = (config[f"{n}_size"] for n in ("hidden", "intermediate", "vocab"))
    N, K = config["num_attention_heads"], config["num_key_value_heads"]
    H = config["head_dim"]
    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.input_layernorm.weight": (D,),
            f"{at}.self_attn.q_proj.weight": (N * H, D),
            f"{at}.self_attn.k_proj.weight": (K * H, D),
            f"{at}.self_attn.v_proj.weight": (K * H, D),
            f"{at}.self_attn.o_proj.weight": (D, N * H),
            f"{at}.post_attention_layernorm.weight": (D,),
            f"{at}.mlp.gate_proj.weight": (F, D),
            f"{at}.mlp.up_proj.weight": (F, D),
            f"{at}.mlp.down_proj.weight": (D, F),
        }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (V, D)
    random = np.random.default_rng(0)
    return {
        name: random.normal(size=shape).astype(dtype) for name, shape in shapes.items()
    }


@pytest.fixture
def weights():
    """The tensors of the default Llama."""
    return tensors_of(CONFIG)


@pytest.fixture
def llama(tmp_path):
    """Makes a folder by the library `safetensors`, in one file or one a tensor."""

    def make(dtype=np.float32, files=1, only=None, extra=None, drop=(), **fields):
        from safetensors.numpy import save_file

        folder = tmp_path / "llama"
        folder.mkdir(exist_ok=True)
        config = CONFIG | fields
        tensors = (only or tensors_of(config, dtype)) | (extra or {})
        tensors = {name: t for name, t in tensors.items() if name not in drop}
        (folder / "config.json").write_text(json.dumps(config))
        names = sorted(tensors)
        shards = {f"model-{n}.safetensors": names[n::files] for n in range(files)}
        if files == 1:
            shards = {"model.safetensors": names}
        for file, inside in shards.items():
            save_file({name: tensors[name] for name in inside}, folder / file)
        if files > 1:
            index = {name: file for file, inside in shards.items() for name in inside}
            text = json.dumps({"metadata": {}, "weight_map": index})
            (folder / "model.safetensors.index.json").write_text(text)
        return folder

    return make
