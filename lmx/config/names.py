"""Which known name a wrong one means: another case, a synonym, or a typing mistake."""

import difflib
from collections.abc import Iterable

# What other frameworks call a parameter or a class; `_` and case do not count.
SYNONYMS = {
    "peak_lr": "lr learning_rate max_lr",
    "width": "dim d_model n_embd hidden_size embed_dim emb_dim model_dim",
    "depth": "layers n_layer n_layers num_layers num_hidden_layers num_blocks",
    "heads": "n_head n_heads num_heads num_attention_heads num_query_heads",
    "kv_heads": "n_kv_head n_kv_heads num_kv_heads num_key_value_heads n_query_groups",
    "head_dim": "head_size kv_channels d_head",
    "hidden": "d_ff ffn_dim intermediate_size mlp_dim hidden_dim ffn_hidden_size",
    "vocab": "vocab_size n_vocab num_embeddings",
    "sequence_length": "seq_len seq_length block_size context_length max_seq_len",
    "batch_size": "batch global_batch_size train_batch_size",
    "steps": "max_steps num_steps max_iters train_iters total_steps",
    "warmup_steps": "warmup warmup_iters num_warmup_steps",
    "clip": "grad_clip clip_grad max_grad_norm clip_norm gradient_clipping",
    "b1": "beta1 adam_beta1",
    "b2": "beta2 adam_beta2",
    "theta": "rope_theta rotary_base rope_base",
    "experts": "n_experts num_experts num_local_experts n_routed_experts",
    "top_k": "num_experts_per_tok moe_top_k n_active_experts",
    "every": "interval eval_interval save_steps eval_steps log_interval",
    "logit_cap": "softcap logit_softcapping attn_logit_softcapping",
    "window": "sliding_window window_size",
    "unroll": "scan_unroll",
    "microbatches": "accumulation gradient_accumulation_steps grad_accum",
    "adamw": "adam",
    "Attention": "mha gqa mqa self_attention multi_head_attention",
    "MLA": "latent_attention multi_latent_attention",
    "RoPE": "rotary rotary_embedding",
    "MoE": "mixture_of_experts",
    "ReLU2": "relu_squared squared_relu",
    "Cosine": "cosine_decay cosine_annealing",
}


def find_nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that a wrong name means. Of a dotted path, the last word."""
    words, last = sorted(set(names)), name.rsplit(".", 1)[-1]
    meant = {_fold(last), *map(_fold, find_synonyms(last))}
    same = [word for word in words if _fold(word.rsplit(".", 1)[-1]) in meant]
    near = (
        difflib.get_close_matches(name, same, n=1, cutoff=0)
        or difflib.get_close_matches(name, words, n=1)
        or difflib.get_close_matches(last, words, n=1)
    )
    return near[0] if near else None


def find_synonyms(name: str) -> list[str]:
    """What lmx calls what another framework calls `name`."""
    return [
        own
        for own, others in SYNONYMS.items()
        if _fold(name) in map(_fold, others.split())
    ]


def _fold(name: str) -> str:
    return name.replace("_", "").lower()
