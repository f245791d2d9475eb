"""XLA flags for fast compilation in tests."""

from importlib.metadata import version

FLAGS = " ".join([
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
])  # fmt: skip
if version("jaxlib").startswith("0.10."):  # later ones have no other way, and no flag
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
