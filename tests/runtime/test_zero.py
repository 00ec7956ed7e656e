"""What of accelerate's configuration of DeepSpeed is served; runs under it are in test_several_processes.py."""

import pytest

from perdure.errors import MissingExtra, RecipeError
from perdure.runtime import zero


@pytest.fixture
def asked(monkeypatch):
    """Sets what `accelerate launch` would set."""

    def asked(**variables):
        for name, value in {"USE_DEEPSPEED": "true", **variables}.items():
            monkeypatch.setenv(f"ACCELERATE_{name}", value)

    return asked


def test_without_deepspeed_there_is_no_stage():
    assert zero.stage_asked() == 0


@pytest.mark.parametrize("stage", [2, 3])
def test_stage_is_that_of_the_configuration(stage, asked, monkeypatch):
    monkeypatch.setattr(zero, "find_spec", lambda name: name)
    asked(DEEPSPEED_ZERO_STAGE=str(stage), DEEPSPEED_OFFLOAD_PARAM_DEVICE="none")
    assert zero.stage_asked() == stage


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DEEPSPEED_ZERO_STAGE", "1", "zero_stage: 1. Expected 2 or 3"),
        ("DEEPSPEED_CONFIG_FILE", "ds.json", "Expected zero_stage in its place"),
        ("DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "cpu", "perdure launch fsdp_offload"),
        ("DEEPSPEED_OFFLOAD_PARAM_DEVICE", "nvme", "perdure launch fsdp_offload"),
        ("GRADIENT_ACCUMULATION_STEPS", "4", "tuning.accumulate"),
        ("GRADIENT_CLIPPING", "0.5", "tuning.clip_norm"),
    ],
)
def test_setting_that_is_not_served_is_refused_with_what_to_take(name, value, said, asked):
    asked(**{name: value})
    with pytest.raises(RecipeError, match=said):
        zero.stage_asked()


def test_absent_deepspeed_is_named_with_its_extra(asked, monkeypatch):
    monkeypatch.setattr(zero, "find_spec", lambda name: None)
    asked(DEEPSPEED_ZERO_STAGE="3")
    with pytest.raises(MissingExtra, match=r"perdure\[deepspeed\]"):
        zero.stage_asked()
