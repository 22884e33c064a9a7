"""Methods: engines by name, presets, and settings that differ."""

import json
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from nio_pydra.cli import nio
from nio_pydra.engines.methods import choose_method, parse_method, read_settings_file
from nio_pydra.engines.names import ENGINES, get_engine
from nio_pydra.errors import InputError
from nio_pydra.profiles import LUNG


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_says_what_it_is_and_has_frozen_presets(name):
    engine = get_engine(name)
    assert engine.what and engine.citation and engine.presets
    for settings in engine.presets.values():
        assert is_dataclass(settings) and settings.__dataclass_params__.frozen
        assert settings == type(settings)(**{field.name: getattr(settings, field.name) for field in fields(settings)})


def test_the_table_of_names_imports_no_engine():
    code = (
        "import sys; import nio_pydra.engines.names; print([m for m in ('torch', 'numpy', 'ants') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_method_is_the_first_preset_unless_another_is_chosen():
    assert choose_method().record()["settings"]["network"]["iterations"] == [100, 60, 30]
    assert choose_method("syn").settings == get_engine("syn").presets["fast"]
    assert choose_method("syn", "precise").settings == get_engine("syn").presets["precise"]


def test_settings_that_differ_are_set_in_nested_parts_and_the_rest_stays():
    changes = {"network": {"iterations": [3, 2, 1], "objective": {"weight": 0.2}}, "field": False}
    method = choose_method("nio_m", "fast", changes=changes)
    assert method.settings.network.iterations == (3, 2, 1)
    assert method.settings.network.objective.weight == 0.2 and method.settings.network.objective.window == 7
    assert method.settings.field is None
    assert get_engine("nio_m").presets["fast"].field is not None


@pytest.mark.parametrize(
    ("arguments", "changes", "sentence"),
    [
        (("magic",), {}, "There is no engine magic: choose one of nio_m"),
        (
            ("nio_m", "magic"),
            {},
            "has no preset magic: choose one of paper, precise, fast, adapted, draft",
        ),
        (("nio_m",), {"netwrok": {}}, r"there is no setting netwrok: choose one of start, network"),
        (("nio_m",), {"network": {"iterations": "many"}}, "network.iterations is 'many': expected a list"),
        (("nio_m",), {"network": {"iterations": [1.5, 0, 0]}}, "network.iterations is 1.5: expected a whole number"),
        (("nio_m",), {"network": {"iterations": [1, 2]}}, "network.iterations is .1, 2.: expected 3 numbers"),
        (("nio_m",), {"network": 3}, "network is 3: expected a table of settings"),
        (("nio_m",), {"network": {"learning_rate": True}}, "network.learning_rate is True: expected a number"),
        (("nio_m",), {"start": "middle"}, "start is 'middle': expected network or zero"),
        (("nio_m",), {"start": "zero"}, "start is 'zero', which uses no network"),
        (("syn",), {"metric": "MeanSquares"}, "expected 'mattes' or 'CC'"),
        (("affine",), {"speed": 1}, "there is no setting speed: there is nothing to set"),
    ],
)
def test_what_cannot_be_set_is_said_in_a_sentence(arguments, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        choose_method(*arguments, changes=changes)


def test_weights_belong_to_engines_with_a_network():
    with pytest.raises(InputError, match="syn uses no network"):
        choose_method("syn", weights=Path("w.safetensors"))
    assert choose_method("io", weights=Path("w.safetensors")).settings.weights == Path.cwd() / "w.safetensors"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("s.toml", 'preset = "fast"\nfield.iterations = 5\n[network]\nlearning_rate = 1e-3\n'),
        ("s.json", '{"preset": "fast", "field": {"iterations": 5}, "network": {"learning_rate": 0.001}}'),
    ],
)
def test_settings_come_from_toml_and_json(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    preset, changes = read_settings_file(tmp_path / name)
    method = choose_method("nio_m", preset, changes=changes)
    assert method.preset == "fast"
    assert (method.settings.field.iterations, method.settings.network.learning_rate) == (5, 1e-3)
    assert method.settings.network.iterations == get_engine("nio_m").presets["fast"].network.iterations


@pytest.mark.parametrize(
    ("text", "preset", "sentence"),
    [
        ("[network", None, "is not TOML"),
        ("preset = 3", None, "preset is 3, expected a name"),
        ('preset = "fast"', "paper", "starts from the preset fast, but --preset is paper"),
    ],
)
def test_a_settings_file_that_cannot_be_used_is_named(tmp_path, text, preset, sentence):
    path = tmp_path / "s.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=sentence) as caught:
        read_settings_file(path, preset)
    assert str(path) in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_settings_file(tmp_path / "absent.toml")


def test_nio_engines_lists_every_engine_with_its_presets(capsys):
    assert nio.main(["engines"]) == 0
    said = capsys.readouterr().out
    for name in ENGINES:
        assert f"\n{name}\n" in f"\n{said}"
        assert ", ".join(get_engine(name).presets) in said


def test_a_short_text_names_a_method():
    assert parse_method("syn:precise") == choose_method("syn", "precise")
    assert parse_method("lapirn@a/b.pth") == choose_method("lapirn", weights=Path("a/b.pth"))
    found = parse_method("nio_m:fast?network.objective.weight=0.2&network.objective.window=9&field=false")
    changes = {"network": {"objective": {"weight": 0.2, "window": 9}}, "field": False}
    assert found == choose_method("nio_m", "fast", changes=changes)
    assert parse_method("io", profile=LUNG) == parse_method("io:chest")
    assert parse_method("greedy", profile=LUNG) == parse_method("greedy")


@pytest.mark.parametrize("name", ENGINES)
def test_every_preset_can_be_named_in_a_short_text(name):
    for preset in get_engine(name).presets:
        assert parse_method(f"{name}:{preset}").preset == preset


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("nio m", "cannot be read: expected ENGINE"),
        ("", "cannot be read: expected ENGINE"),
        ("syn?metric=CC", "with text in quotes"),
        ("syn:slow", "has no preset slow"),
    ],
)
def test_a_text_that_names_no_method_is_refused(text, sentence):
    with pytest.raises(InputError, match=sentence):
        parse_method(text)


def test_nio_engines_shows_the_settings_of_one_engine_as_files_take_them(capsys, tmp_path):
    assert nio.main(["engines", "nio_m"]) == 0
    said = capsys.readouterr().out
    assert "\nsyn\n" not in said and "network.iterations = [20, 0, 0]" in said
    fast = said.partition("settings of fast\n")[2].partition("settings of")[0]
    path = tmp_path / "fast.toml"
    path.write_text("\n".join(line.strip() for line in fast.splitlines() if "=" in line and "weights" not in line))
    preset, changes = read_settings_file(path)
    assert choose_method("nio_m", preset, changes=changes).settings == get_engine("nio_m").presets["fast"]
    assert nio.main(["engines", "magic"]) == 1


def test_a_record_is_of_a_method_if_all_settings_agree_and_absent_ones_are_the_default():
    method = parse_method("nio_m:draft?field.iterations=5")
    record = json.loads(json.dumps(method.record()))
    assert method.made(record) and not parse_method("nio_m:draft").made(record)
    del record["settings"]["network"]["augmentation"]  # an older package did not have it
    assert method.made(record) and not parse_method("nio_m:draft?field.iterations=5&network.augmentation=0.1").made(
        record
    )
    del record["settings"]["network"]["levels"]
    assert not method.made(record), "it has another value than the default"
    record["settings"]["unheard_of"] = 1
    assert not method.made(record)
