"""The attention backend is execution only, and is checked before a run starts."""

import pytest

from lmx.config.registry import ConfigError

CUDNN = ["Attention.backend=@CuDNNAttention()", "Attention.head_dim=8"]


def test_the_backend_does_not_change_the_run_id(tiny):
    assert tiny("Attention.backend=@XLAAttention()").run_id() == tiny().run_id()


def test_a_backend_of_another_platform_is_refused_when_a_run_is_opened(tiny):
    experiment = tiny(*CUDNN).build()
    with pytest.raises(ValueError, match="CuDNNAttention runs on gpu, and this"):
        experiment.open()


def test_an_unsupported_feature_is_refused_with_its_config_lines(tiny):
    experiment = tiny(*CUDNN, "Attention.logit_cap=30.0").build
    with pytest.raises(
        ConfigError, match="does not support Attention.logit_cap"
    ) as error:
        experiment().open()
    assert "logit_cap = 30.0 set by" in f"{error.value}"
    assert "backend = @CuDNNAttention() set by" in f"{error.value}"


def test_splash_is_refused_without_a_tpu_when_a_run_is_opened(tiny):
    experiment = tiny("Attention.backend=@SplashAttention()").build()
    with pytest.raises(ValueError, match="SplashAttention runs on tpu, and this"):
        experiment.open()


def test_a_length_that_a_ring_cannot_split_is_refused_when_a_run_is_opened(tiny):
    words = ["Attention.backend=@RingAttention()", "Mesh.data=1", "Mesh.context=4"]
    tiny(*words).build().open()
    with pytest.raises(ValueError, match="12 tokens over 4 devices: .*multiple of 8"):
        tiny(*words, "RepeatTask.sequence_length=12").build().open()
