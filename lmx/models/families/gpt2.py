"""GPT-2. Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"."""

from lmx.models.hf.family import Family
from lmx.models.hf.rules.field import Derived, Field
from lmx.models.hf.rules.rows import tied
from lmx.models.hf.table import Weight

BLOCK = "transformer.h.{layer}"
QKV = ("attention.q", "attention.k", "attention.v")

FAMILY = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    page="""
        Pretrained.model = @Decoder
        Decoder.attention = @Attention
        Decoder.block = @PreNorm
        Decoder.mlp = @GELU
        Decoder.norm = @AffineLayerNorm
        Decoder.position = @Learned
        Attention.position = None
        Attention.qkv = @Affine
        Attention.out = @Affine
        GELU.linear = @Affine
    """,
    rules=(
        Field("vocab_size", "Decoder.vocab", 50_257),
        Field("n_positions", "Learned.length", 1024),
        Field("n_embd", "Decoder.width", 768),
        Field("n_layer", "Decoder.depth", 12),
        Field("n_head", "Attention.heads", 12),
        Field("n_inner", "GELU.hidden", lambda given: 4 * given["n_embd"]),
        Field("layer_norm_epsilon", "AffineLayerNorm.epsilon", 1e-5),
        Derived("Attention.kv_heads", lambda given: given["n_head"]),
        Derived(
            "Attention.head_width", lambda given: given["n_embd"] // given["n_head"]
        ),
        tied(True),
    ),
    fixed={
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    idle=frozenset(
        "attn_pdrop embd_pdrop resid_pdrop n_ctx reorder_and_upcast_attn"
        " summary_activation summary_first_dropout summary_proj_to_labels summary_type"
        " summary_use_proj task_specific_params".split()
    ),
    weights=(
        Weight("transformer.wte.weight", "table", "V D -> V D"),
        Weight("transformer.wpe.weight", "position.table", "T D -> T D"),
        Weight(f"{BLOCK}.ln_1.weight", "attention_norm.scale", "D -> D"),
        Weight(f"{BLOCK}.ln_1.bias", "attention_norm.offset", "D -> D"),
        Weight(
            f"{BLOCK}.attn.c_attn.weight",
            tuple(f"{part}.w" for part in QKV),
            "D (3 N H) -> 3 D N H",
        ),
        Weight(
            f"{BLOCK}.attn.c_attn.bias",
            tuple(f"{part}.b" for part in QKV),
            "(3 N H) -> 3 N H",
        ),
        Weight(f"{BLOCK}.attn.c_proj.weight", "attention.out.w", "(N H) D -> N H D"),
        Weight(f"{BLOCK}.attn.c_proj.bias", "attention.out.b", "D -> D"),
        Weight(f"{BLOCK}.ln_2.weight", "mlp_norm.scale", "D -> D"),
        Weight(f"{BLOCK}.ln_2.bias", "mlp_norm.offset", "D -> D"),
        Weight(f"{BLOCK}.mlp.c_fc.weight", "mlp.up.w", "D F -> D F"),
        Weight(f"{BLOCK}.mlp.c_fc.bias", "mlp.up.b", "F -> F"),
        Weight(f"{BLOCK}.mlp.c_proj.weight", "mlp.down.w", "F D -> F D"),
        Weight(f"{BLOCK}.mlp.c_proj.bias", "mlp.down.b", "D -> D"),
        Weight("transformer.ln_f.weight", "norm.scale", "D -> D"),
        Weight("transformer.ln_f.bias", "norm.offset", "D -> D"),
        Weight("lm_head.weight", "head.out.w", "V D -> D V"),
    ),
    ignored=(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",),
    prefix="transformer.",
    presets={
        "gpt2": {},
        "gpt2_medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16},
        "gpt2_large": {"n_embd": 1280, "n_layer": 36, "n_head": 20},
        "gpt2_xl": {"n_embd": 1600, "n_layer": 48, "n_head": 25},
    },
)
