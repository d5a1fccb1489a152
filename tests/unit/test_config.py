"""Profiles: loading, overrides, and errors that name the key and the fix."""

import pytest

from g2g_utils import config
from g2g_utils.runs import places


def test_every_profile_loads_and_is_frozen():
    assert {"miniature", "smoke"} <= set(config.profiles())
    for name in config.profiles():
        loaded = config.load(name)
        assert loaded.profile == name
        with pytest.raises(ValueError):
            loaded.image_size = 1


def test_overrides_are_dotted_or_underscored():
    assert config.load("smoke", **{"grounding.timesteps": 9}).grounding.timesteps == 9
    assert config.load("smoke", training__batch_size=3).training.batch_size == 3


@pytest.mark.parametrize(
    ("profile", "overrides", "words"),
    [
        ("minature", {}, ["'minature'", "miniature", "smoke"]),
        ("smoke", {"grounding.timestep": 5}, ["grounding.timestep", "timesteps"]),
        ("smoke", {"trainig.steps": 5}, ["trainig", "training"]),
        ("smoke", {"training.steps": "many"}, ["training.steps", "'many'"]),
        ("smoke", {"training.steps": 0}, ["training.steps", "0"]),
        ("smoke", {"training.learning_rate": -1}, ["training.learning_rate", "-1"]),
        ("smoke", {"training.ema": 1.5}, ["training.ema", "1.5"]),
        ("smoke", {"training.seeds": [0, 0]}, ["training.seeds", "each once"]),
        ("smoke", {"training.accumulate": 0}, ["training.accumulate"]),
        ("smoke", {"grounding.batch_size": 0}, ["grounding.batch_size"]),
        ("smoke", {"text.max_length": 1}, ["text.max_length"]),
        ("smoke", {"data.world": {"nope": 1}}, ["data", "nope", "zoom"]),
        ("smoke", {"data.world": {"zoom": [2, 3]}}, ["data", "zoom"]),
        ("smoke", {"image_size.x": 3}, ["image_size"]),
        ("smoke", {"grounding.keep_last": 99}, ["keep_last = 99"]),
        ("smoke", {"training.arms": {"a": {"encoder": "nope"}}}, ["'nope'", "encoders"]),
        ("smoke", {"training.arms": {}}, ["training.arms", "at least one"]),
        ("smoke", {"training.arms": {"a/b": {"encoder": "domain"}}}, ["a/b", "letters"]),
        ("smoke", {"training.seeds": [-1]}, ["training.seeds", "from 0 up"]),
        ("smoke", {"fidelity.guidance": float("nan")}, ["fidelity.guidance", "finite"]),
        ("smoke", {"grounding.timesteps": 2000}, ["grounding.timesteps", "1000"]),
        ("smoke", {"grounding.layers": []}, ["layers is empty", "null"]),
        ("smoke", {"unet.heads": 0}, ["unet.heads"]),
        ("smoke", {"data.world": {"size": "big"}}, ["data.world", "big"]),
        ("smoke", {"encoders.domain.widht": 3}, ["encoders.domain.widht", "width"]),
    ],
)
def test_bad_input_is_one_line_that_names_value_and_choices(profile, overrides, words):
    with pytest.raises(config.ConfigError) as caught:
        config.load(profile, **overrides)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_build_and_figures_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("G2G_BUILD", str(tmp_path))
    assert places.build(config.load("smoke")) == tmp_path / "smoke"
    assert places.figures(config.load("smoke")) == tmp_path / "smoke" / "figures"
    assert places.figures(config.load("miniature")) == tmp_path / "miniature" / "figures"
    assert places.kept_figures(config.load("miniature")) == places.ROOT / "figures"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no settings"),
        (b"- a list", "no settings"),
        (b"a: [", "not YAML"),
        (b"[" * 5000, "nested too deeply"),
        (b"a: 1\nb: 2\na: 3\n", "key 'a' occurs twice"),
        ("a: \u00e4".encode("latin-1"), "not UTF-8"),
        (b"profile: paper", "remove the key 'profile'"),
    ],
)
def test_a_file_that_is_no_profile_is_named_in_one_line(tmp_path, content, words):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(config.ConfigError, match=words) as caught:
        config.load(str(path))
    assert str(caught.value).startswith("mine.yaml") and "\n" not in str(caught.value)
    with pytest.raises(config.ConfigError, match="--set a: not YAML"):
        config.value("--set a", "[")
