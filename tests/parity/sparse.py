"""Parity cases of mixture-of-experts models."""

from tests.parity.case import GROUPED, NARROW, OLD, PLAIN, Case, sizes
from tests.parity.dense import name_model


def mixtral() -> list[Case]:
    name = name_model("mixtral", "MixtralForCausalLM")
    old = OLD | dict(
        num_experts_per_tok=2,
        num_local_experts=4,
        output_router_logits=False,
        rms_norm_eps=1e-5,
        rope_theta=1000000.0,
        router_aux_loss_coef=0.02,
        sliding_window=None,
        tie_word_embeddings=False,
    )
    window = dict(num_local_experts=5, num_experts_per_tok=3, sliding_window=9)
    tied = dict(num_local_experts=3, num_experts_per_tok=1, tie_word_embeddings=True)
    return [
        Case("mixtral", name | GROUPED | old, published=True),
        Case("mixtral_window", name | NARROW | window),
        Case("mixtral_tied", name | PLAIN | tied),
    ]


def qwen3_moe() -> list[Case]:
    name = name_model("qwen3_moe", "Qwen3MoeForCausalLM")
    old = OLD | dict(
        attention_bias=False,
        decoder_sparse_step=1,
        max_window_layers=3,
        mlp_only_layers=[],
        moe_intermediate_size=24,
        norm_topk_prob=True,
        num_experts=6,
        num_experts_per_tok=3,
        output_router_logits=False,
        rms_norm_eps=1e-6,
        rope_scaling=None,
        rope_theta=1000000.0,
        router_aux_loss_coef=0.001,
        sliding_window=None,
        tie_word_embeddings=False,
        use_sliding_window=False,
    )
    unnormed = dict(
        num_experts=5,
        num_experts_per_tok=2,
        moe_intermediate_size=20,
        norm_topk_prob=False,
        tie_word_embeddings=True,
    )
    mixed = dict(
        num_hidden_layers=4,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=28,
        norm_topk_prob=True,
        decoder_sparse_step=2,
        mlp_only_layers=[3],
        use_sliding_window=True,
        sliding_window=13,
    )
    return [
        Case("qwen3_moe", name | GROUPED | old, published=True),
        Case("qwen3_moe_unnormed", name | NARROW | unnormed),
        Case("qwen3_moe_mixed", name | PLAIN | mixed),
    ]


# DeepSeek-V3's config.json with smaller sizes.
DEEPSEEK = OLD | dict(
    attention_bias=False,
    ep_size=1,
    first_k_dense_replace=1,
    moe_intermediate_size=24,
    moe_layer_freq=1,
    n_group=4,
    n_routed_experts=8,
    n_shared_experts=1,
    norm_topk_prob=True,
    num_experts_per_tok=3,
    num_nextn_predict_layers=1,
    q_lora_rank=20,
    rms_norm_eps=1e-6,
    rope_scaling=dict(
        beta_fast=32,
        beta_slow=1,
        factor=40,
        mscale=1.0,
        mscale_all_dim=1.0,
        original_max_position_embeddings=128,
        type="yarn",
    ),
    rope_theta=1000,
    routed_scaling_factor=2.5,
    scoring_func="sigmoid",
    tie_word_embeddings=False,
    topk_group=2,
    topk_method="noaux_tc",
)


def deepseek_v3() -> list[Case]:
    name = name_model("deepseek_v3", "DeepseekV3ForCausalLM") | dict(
        kv_lora_rank=16, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10
    )
    direct = dict(
        q_lora_rank=None,
        first_k_dense_replace=2,
        moe_intermediate_size=20,
        n_group=1,
        topk_group=1,
        n_routed_experts=5,
        n_shared_experts=2,
        num_experts_per_tok=2,
        norm_topk_prob=False,
        routed_scaling_factor=1.5,
        rms_norm_eps=1e-2,
    )
    halves = dict(
        rope_interleave=False,
        q_lora_rank=24,
        first_k_dense_replace=0,
        moe_intermediate_size=28,
        n_group=3,
        topk_group=2,
        n_routed_experts=12,
        num_experts_per_tok=4,
        tie_word_embeddings=True,
        rope_parameters=dict(
            rope_type="yarn",
            rope_theta=100.0,
            factor=4.0,
            original_max_position_embeddings=64,
            mscale=0.7,
            mscale_all_dim=0.4,
        ),
    )
    return [
        Case(
            "deepseek_v3", name | sizes(157, 3, 36, 6, 6, 40) | DEEPSEEK, published=True
        ),
        Case("deepseek_v3_direct", name | sizes(90, 3, 30, 5, 5, 52) | direct),
        Case("deepseek_v3_halves", name | PLAIN | halves),
    ]


def gpt_oss() -> list[Case]:
    name = name_model("gpt_oss", "GptOssForCausalLM")
    old = OLD | dict(
        attention_bias=True,
        experts_per_token=2,
        initial_context_length=32,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        num_experts_per_tok=2,
        num_local_experts=4,
        output_router_logits=False,
        rms_norm_eps=1e-5,
        rope_scaling=dict(
            beta_fast=32.0,
            beta_slow=1.0,
            factor=32.0,
            original_max_position_embeddings=32,
            rope_type="yarn",
            truncate=False,
        ),
        rope_theta=1000,
        router_aux_loss_coef=0.9,
        sliding_window=8,
        swiglu_limit=7.0,
        tie_word_embeddings=False,
    )
    full = dict(
        layer_types=["full_attention"] * 3,
        num_local_experts=5,
        num_experts_per_tok=3,
        rope_parameters=dict(rope_type="default", rope_theta=1e4),
        swiglu_limit=0.5,
    )
    tied = dict(
        head_dim=8,
        num_local_experts=3,
        num_experts_per_tok=1,
        sliding_window=15,
        tie_word_embeddings=True,
    )
    return [
        Case("gpt_oss", name | GROUPED | old, published=True),
        Case("gpt_oss_full", name | NARROW | full),
        Case("gpt_oss_tied", name | PLAIN | tied),
    ]


SPARSE = [
    case for family in (mixtral, qwen3_moe, deepseek_v3, gpt_oss) for case in family()
]
