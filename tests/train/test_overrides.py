"""Settings from the command line: typed, checked, and refused in a sentence."""

from __future__ import annotations

import pytest

from fastsam3d.errors import ConfigError
from fastsam3d.train.config import RunConfig
from fastsam3d.train.overrides import override


def test_values_take_the_type_of_their_field() -> None:
    config = override(
        RunConfig(),
        [
            "ema=0.99",
            "clip=2",
            "compile=False",
            "num_steps=12",
            "initial_weights=old.safetensors",
            "generator.num_real=7",
            "generator.object_share=0.1,0.9",
            "generator.degrade.noise=(0.2, 0)",
            "prompts.round_shares=[1, 0.5, 0.25]",
        ],
    )
    assert (config.ema, config.clip, config.compile, config.num_steps) == (0.99, 2.0, False, 12)
    assert isinstance(config.clip, float)
    assert config.initial_weights == "old.safetensors"
    assert config.generator.num_real == 7
    assert config.generator.object_share == (0.1, 0.9)
    assert config.generator.degrade.noise == (0.2, 0.0)
    assert config.prompts.round_shares == (1.0, 0.5, 0.25)


def test_later_settings_win_and_none_unsets() -> None:
    config = override(RunConfig(), ["num_steps=5", "num_steps=none"])
    assert config.num_steps is None


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("ema", "written key=value, got 'ema'"),
        ("emma=1", "No setting is called 'emma'; did you mean ema"),
        ("generator.num_reel=1", r"did you mean generator\.num_real"),
        ("ema.x=1", r"goes too deep: ema is a plain value; leave out \.x"),
        ("generator=1", r"is a group; set one of its fields, such as generator\.size"),
        ("seed=1.5", "Setting seed must be of type int, got '1.5'"),
        ("compile=1", "Setting compile must be of type bool, got '1'"),
        ("generator.object_share=0.1", "object_share must be of type"),
        ("ema=high", "Setting ema must be of type float, got 'high'"),
        ("minutes=-1", "A run needs num_steps or positive minutes"),
    ],
)
def test_mistakes_are_told(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(RunConfig(), [assignment])
