"""A kernel is how a run is carried out, and is refused before it begins."""

import pytest

from lmx.config.registry import ConfigError

CUDNN = ["Attention.backend=@CuDNNAttention()", "Attention.head_dim=8"]


def test_a_kernel_does_not_name_the_run(tiny):
    assert tiny("Attention.backend=@XLAAttention()").run_id() == tiny().run_id()


def test_a_kernel_that_cannot_run_here_is_refused_when_a_run_is_opened(tiny):
    experiment = tiny(*CUDNN).build()
    with pytest.raises(ValueError, match="CuDNN runs on GPUs and this process is on"):
        experiment.open()


def test_a_kernel_that_cannot_do_it_is_refused_with_the_lines_that_asked(tiny):
    experiment = tiny(*CUDNN, "Attention.logit_cap=30.0").build
    with pytest.raises(ConfigError, match="cannot do what Attention.logit_cap") as told:
        experiment().open()
    assert "logit_cap = 30.0 set by" in f"{told.value}"
    assert "backend = @CuDNNAttention() set by" in f"{told.value}"


def test_splash_is_refused_where_no_tpu_is_when_a_run_is_opened(tiny):
    experiment = tiny("Attention.backend=@SplashAttention()").build()
    with pytest.raises(ValueError, match="Splash runs on TPUs and this program is for"):
        experiment.open()


def test_a_length_that_a_ring_cannot_share_is_refused_when_a_run_is_opened(tiny):
    said = ["Attention.backend=@RingAttention()", "Mesh.data=1", "Mesh.context=4"]
    tiny(*said).build().open()
    with pytest.raises(ValueError, match="12 tokens among 4 devices: .*multiple of 8"):
        tiny(*said, "RepeatTask.sequence_length=12").build().open()
