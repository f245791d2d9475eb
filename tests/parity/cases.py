"""The compared models, and what is compared."""

from tests.parity.dense import DENSE
from tests.parity.sparse import SPARSE

CASES = {case.name: case for case in [*DENSE, *SPARSE]}
FAMILIES = (
    "gpt2 llama mistral mixtral qwen2 qwen3 qwen3_moe "
    "gemma2 gemma3 olmo2 deepseek_v3 gpt_oss"
).split()  # cases with golden files in `make test`
ROWS, NEW, PROMPTS = 2, 32, (4, 9, 14)
GRADIENTS = {"llama", "llama_grouped", "mixtral", "mixtral_window", "gemma2"}
BEAMS = {"llama", "llama_grouped", "gpt2", "gpt2_untied"}
SEARCHES = (
    {"length_penalty": 1.0, "early_stopping": False},
    {"length_penalty": 0.0, "early_stopping": True},
    {"length_penalty": 2.0, "early_stopping": False},
)
