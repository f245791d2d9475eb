"""Parity cases of dense models."""

from tests.parity.case import GROUPED, NARROW, NO_IDS, OLD, PLAIN, Case, Fields, sizes


def name_model(model_type: str, architecture: str) -> Fields:
    return dict(model_type=model_type, architectures=[architecture])


def gpt2() -> list[Case]:
    base = (
        name_model("gpt2", "GPT2LMHeadModel")
        | NO_IDS
        | dict(vocab_size=61, n_positions=64, n_embd=30, n_layer=2, n_head=5)
    )
    old = dict(
        activation_function="gelu_new",
        attn_pdrop=0.1,
        embd_pdrop=0.1,
        resid_pdrop=0.1,
        initializer_range=0.02,
        layer_norm_epsilon=1e-5,
        n_ctx=64,
        summary_activation=None,
        summary_first_dropout=0.1,
        summary_proj_to_labels=True,
        summary_type="cls_index",
        summary_use_proj=True,
        task_specific_params={"text-generation": {"do_sample": True}},
    )
    inner = dict(vocab_size=157, n_embd=36, n_head=6, n_layer=3, n_inner=50)
    untied = dict(tie_word_embeddings=False, n_layer=4, layer_norm_epsilon=1e-2)
    return [
        Case("gpt2", base | old, published=True),
        Case("gpt2_inner", base | inner),
        Case("gpt2_untied", base | untied),
    ]


def llama() -> list[Case]:
    name = name_model("llama", "LlamaForCausalLM")
    old = OLD | dict(pretraining_tp=1, rms_norm_eps=1e-5, tie_word_embeddings=False)
    old31 = old | dict(attention_bias=False, mlp_bias=False, tie_word_embeddings=True)
    llama3 = dict(
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=32,
        rope_type="llama3",
    )
    yarn = dict(
        rope_type="yarn",
        rope_theta=100.0,
        factor=4.0,
        original_max_position_embeddings=24,
        beta_fast=4.0,
    )
    wide = NARROW | dict(head_dim=12)
    linear = dict(rope_scaling=dict(type="linear", factor=3.0))
    dynamic = dict(
        rope_scaling=dict(type="dynamic", factor=4.0),
        max_position_embeddings=48,  # below the text, enough for generation
    )
    return [
        Case("llama", name | PLAIN | old | dict(rope_scaling=None), published=True),
        Case("llama_grouped", name | GROUPED | dict(rope_theta=500000.0)),
        Case(
            "llama_llama3",
            name | wide | old31 | dict(rope_theta=100.0, rope_scaling=llama3),
            published=True,
        ),
        Case("llama_linear", name | GROUPED | old | linear, published=True),
        Case("llama_dynamic", name | PLAIN | old | dynamic, published=True, text=64),
        Case("llama_yarn", name | wide | dict(rope_parameters=yarn)),
    ]


def mistral() -> list[Case]:
    name = name_model("mistral", "MistralForCausalLM")
    old = OLD | dict(
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        sliding_window=11,
        tie_word_embeddings=False,
    )
    full = dict(sliding_window=None, rope_theta=1000000.0)
    tied = dict(sliding_window=5, tie_word_embeddings=True)
    linear = dict(rope_type="linear", factor=2.0, rope_theta=1e4)
    return [
        Case("mistral", name | GROUPED | old, published=True),
        Case("mistral_full", name | NARROW | full),
        Case("mistral_tied", name | PLAIN | tied),
        Case(
            "mistral_linear",
            name | GROUPED | dict(sliding_window=17, rope_parameters=linear),
        ),
    ]


def qwen2() -> list[Case]:
    name = name_model("qwen2", "Qwen2ForCausalLM")
    base = sizes(61, 2, 36, 6, 2, 40)
    old = OLD | dict(
        max_window_layers=1,
        rms_norm_eps=1e-6,
        rope_theta=1000000.0,
        sliding_window=8,
        tie_word_embeddings=True,
        use_mrope=False,
        use_sliding_window=False,
    )
    window = dict(use_sliding_window=True, sliding_window=9, max_window_layers=1)
    yarn = dict(factor=4.0, original_max_position_embeddings=64, type="yarn")
    return [
        Case("qwen2", name | base | old, published=True),
        Case("qwen2_window", name | NARROW | window),
        Case(
            "qwen2_yarn",
            name | PLAIN | dict(rope_theta=1000.0, rope_scaling=yarn),
            published=True,
        ),
    ]


def qwen3() -> list[Case]:
    name = name_model("qwen3", "Qwen3ForCausalLM")
    old = OLD | dict(
        attention_bias=False,
        max_window_layers=2,
        rms_norm_eps=1e-6,
        rope_scaling=None,
        rope_theta=1000000.0,
        sliding_window=None,
        tie_word_embeddings=True,
        use_sliding_window=False,
    )
    window = dict(use_sliding_window=True, sliding_window=7, max_window_layers=2)
    yarn = dict(
        rope_type="yarn",
        rope_theta=100.0,
        factor=4.0,
        original_max_position_embeddings=64,
        attention_factor=1.3,
    )
    return [
        Case("qwen3", name | GROUPED | old, published=True),
        Case("qwen3_window", name | NARROW | window),
        Case("qwen3_yarn", name | PLAIN | dict(head_dim=12, rope_parameters=yarn)),
    ]


def gemma2() -> list[Case]:
    name = name_model("gemma2", "Gemma2ForCausalLM")
    old = OLD | dict(
        attention_bias=False,
        attn_logit_softcapping=5.0,
        cache_implementation="hybrid",
        final_logit_softcapping=4.0,
        hidden_act="gelu_pytorch_tanh",
        hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=10,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        sliding_window=10,
    )
    uncapped = dict(
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        query_pre_attn_scalar=4,
        sliding_window=7,
        tie_word_embeddings=False,
    )
    deep = dict(head_dim=16, num_hidden_layers=4, sliding_window=12)
    return [
        Case("gemma2", name | GROUPED | old, published=True),
        Case("gemma2_uncapped", name | NARROW | uncapped),
        Case("gemma2_deep", name | PLAIN | deep),
    ]


def gemma3() -> list[Case]:
    name = name_model("gemma3_text", "Gemma3ForCausalLM")
    old = OLD | dict(
        attention_bias=False,
        attn_logit_softcapping=None,
        cache_implementation="hybrid",
        final_logit_softcapping=None,
        hidden_activation="gelu_pytorch_tanh",
        num_hidden_layers=4,
        query_pre_attn_scalar=8,
        rms_norm_eps=1e-6,
        rope_local_base_freq=100.0,
        rope_scaling={"factor": 8.0, "rope_type": "linear"},
        rope_theta=1000000.0,
        sliding_window=9,
        sliding_window_pattern=3,
    )
    del old["hidden_act"]
    deep = dict(num_hidden_layers=7, sliding_window=6, tie_word_embeddings=False)
    capped = dict(
        head_dim=16,
        num_hidden_layers=3,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        sliding_window=12,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=4.0,
    )
    return [
        Case("gemma3", name | GROUPED | old, published=True),
        Case("gemma3_deep", name | NARROW | deep),
        Case("gemma3_capped", name | PLAIN | capped),
    ]


def olmo2() -> list[Case]:
    name = name_model("olmo2", "Olmo2ForCausalLM")
    base = sizes(157, 3, 36, 6, 2, 40)
    old = OLD | dict(
        attention_bias=False,
        rms_norm_eps=1e-6,
        rope_scaling=None,
        rope_theta=500000.0,
        tie_word_embeddings=False,
    )
    linear = dict(rope_type="linear", factor=2.0, rope_theta=1e4)
    return [
        Case("olmo2", name | base | old, published=True),
        Case("olmo2_tied", name | NARROW | dict(tie_word_embeddings=True)),
        Case("olmo2_linear", name | PLAIN | dict(rope_parameters=linear)),
    ]


DENSE = [
    case
    for family in (gpt2, llama, mistral, qwen2, qwen3, gemma2, gemma3, olmo2)
    for case in family()
]
