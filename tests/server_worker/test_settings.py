from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.tasks import ClassificationSpec, MultiLabelSpec, RegressionSpec, TaskSpec
from cutlayer.server_worker.settings import RunSettings, load_run_settings

SMALLEST = """
[modalities.image]
kind = "image"
height = 8
width = 8
channels = 1
patch = 2

[task]
classes = ["cat", "dog"]
"""


def load(folder: Path, text: str = SMALLEST, overrides: Mapping[str, object] | None = None) -> RunSettings:
    path = folder / "run.toml"
    path.write_text(text)
    return load_run_settings(path, overrides)


def test_the_smallest_file_names_modalities_and_classes(tmp_path: Path) -> None:
    settings = load(tmp_path)
    assert settings.task == ClassificationSpec(classes=("cat", "dog"))
    assert settings.modalities["image"].num_tokens == 16
    assert settings.run.epochs == 1
    assert settings.optimizer.clip_norm == 1.0


def test_every_section_is_read(tmp_path: Path) -> None:
    text = f"""
telemetry_s = 2.5
{SMALLEST}
[run]
name = "wards"
seed = 7
min_agents = 4
service = true
[data]
name = "demo:digits"
[model]
name = "vit_small_patch16_224"
options = {{ depth = 4, img_size = [8, 16] }}
fusion = "late"
modality_dropout = 0.2
dtype = "float64"
[codecs]
activations = "fp16"
[window]
samples = 64
[optimizer]
name = "sgd"
betas = [0.8, 0.9]
clip_norm = 0
[worker]
credits = 4
[evaluation]
every_epochs = 2
"""
    settings = load(tmp_path, text)
    assert settings.model.options == {"depth": 4, "img_size": [8, 16]}
    assert settings.optimizer.clip_norm is None
    assert (settings.run.name, settings.data.name, settings.codecs.activations) == ("wards", "demo:digits", "fp16")
    assert (settings.telemetry_s, settings.window.samples, settings.evaluation.every_epochs) == (2.5, 64, 2)


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    settings = load(tmp_path, overrides={"run.epochs": 9, "modalities.image.patch": 4, "run.seed": None})
    assert settings.run.epochs == 9
    assert settings.modalities["image"].num_tokens == 4


def test_weights_are_found_from_the_settings_file(tmp_path: Path) -> None:
    settings = load(tmp_path, overrides={"model.weights": "vit.safetensors"})
    assert settings.model.weights == tmp_path / "vit.safetensors"
    absolute = load(tmp_path, overrides={"model.weights": str(tmp_path.parent / "vit.pth")})
    assert absolute.model.weights == tmp_path.parent / "vit.pth"


@pytest.mark.parametrize(
    ("addition", "problem", "fix"),
    [
        ("[optimizer]\nweight_decy = 0.1", "unknown key [optimizer] weight_decy", "did you mean weight_decay?"),
        ("[worker]\nepochs = 3", "unknown key [worker] epochs", "did you mean [run] epochs?"),
        ("[optimiser]\nlr = 0.1", "unknown key [optimiser]", "did you mean optimizer?"),
        ("[data]\nqqq = 1", "unknown key [data] qqq", "known here: name"),
        (
            "[modalities.sound]\nkind = 'audio'\nsample_rat_hz = 1",
            "[modalities.sound] sample_rat_hz",
            "sample_rate_hz?",
        ),
        (
            "[run]\nname = 'blätter'",
            "[run] name = 'blätter' is refused",
            "use letters from A to Z and a to z, digits, '.'",
        ),
        ("[optimizer]\nlr = -1.0", "[optimizer] lr = -1.0 is refused", "it should be greater than 0"),
        ("[model]\nfusion = 'both'", "[model] fusion = 'both' is refused", "it should be 'early' or 'late'"),
        ("[model]\nmodality_dropout = 1.0", "[model] modality_dropout = 1.0", "less than 1"),
        ("[model]\noptions = {num_classes = 3}", "[model]: options.num_classes", "name the classes in [task] instead"),
        ("[model]\npretrained = true\nweights = 'a'", "pretrained and weights are both set", "keep one of them"),
        ("[run]\nmicrobatch_samples = 512", "worker.max_batch_samples = 256", "lower the first or raise the second"),
        (
            "[modalities.sound]\nhop_samples = 1",
            "[modalities.sound] has no known kind",
            'set its kind to "image", "audio"',
        ),
        (
            '[modalities."a.b"]\nkind = "image"',
            "[modalities.a.b]",
            "use letters from A to Z and a to z, digits, '_' and",
        ),
    ],
    ids=lambda value: value.replace("\n", " ") if "=" in value else "",
)
def test_a_wrong_setting_is_explained(tmp_path: Path, addition: str, problem: str, fix: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, SMALLEST + addition)
    text = str(caught.value)
    assert str(tmp_path / "run.toml") in text
    assert problem in text
    assert fix in text


def test_a_patch_that_does_not_divide_is_explained(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, overrides={"modalities.image.patch": 3})
    assert "[modalities.image]: patch 3 does not divide 8 x 8" in caught.value.problem
    assert caught.value.fix == "take another patch, or the nearest size that it divides, 6 x 6 or 9 x 9"


def load_task(folder: Path, task: str) -> TaskSpec:
    return load(folder, SMALLEST.partition("[task]")[0] + f"[task]\n{task}").task


def test_every_kind_of_task_is_read(tmp_path: Path) -> None:
    labels = load_task(tmp_path, 'kind = "multi-label"\nclasses = ["cat", "dog"]\npositive_weights = [1.5, 20]')
    assert labels == MultiLabelSpec(classes=("cat", "dog"), positive_weights=(1.5, 20.0))
    numbers = load_task(
        tmp_path,
        'kind = "regression"\nhuber_delta = 1.5\n'
        'targets = [{ name = "age", mean = 48, std = 13, unit = "years" }, { name = "dose", mean = 0.1, std = 0.02 }]',
    )
    assert isinstance(numbers, RegressionSpec)
    assert (numbers.output_names, numbers.huber_delta, numbers.targets[0].unit) == (("age", "dose"), 1.5, "years")


@pytest.mark.parametrize(
    ("task", "problem", "fix"),
    [
        (
            'kind = "sorting"',
            "[task] has no known kind",
            'set its kind to "classification", "multi-label", "regression"',
        ),
        ('classes = ["cat"]', "[task] classes = ['cat'] is refused", "at least 2 items"),
        ('kind = "multi-label"', "[task] classes is missing", "add [task] classes"),
        ('kind = "multi-label"\nclases = ["a"]', "unknown key [task] clases", "did you mean classes?"),
        ('kind = "multi-label"\nclasses = ["a", "a"]', "[task]: classes has 'a' twice", "a name of its own"),
        (
            'kind = "multi-label"\nclasses = ["a", "b"]\npositive_weights = [1]',
            "[task]: positive_weights has 1 for 2 classes",
            "give one a class",
        ),
        (
            'kind = "multi-label"\nclasses = ["a"]\npositive_weights = [0]',
            "[task] positive_weights.0 = 0 is refused",
            "greater than 0",
        ),
        ('kind = "regression"\ntargets = []', "[task] targets = [] is refused", "at least 1 item"),
        (
            'kind = "regression"\ntargets = [{ name = "age", mean = 1 }]',
            "[task] targets.0.std is missing",
            "add [task]",
        ),
        (
            'kind = "regression"\ntargets = [{ name = "age", mean = 1, std = 0 }]',
            "[task] targets.0.std = 0 is refused",
            "greater than 0",
        ),
        (
            'kind = "regression"\ntargets = [{ name = "age", mean = 1, std = 2, units = "years" }]',
            "unknown key [task] targets.0.units",
            "did you mean unit?",
        ),
        (
            'kind = "regression"\ntargets = [{ name = "a", mean = 0, std = 1 }, { name = "a", mean = 0, std = 1 }]',
            "[task]: targets has 'a' twice",
            "a name of its own",
        ),
        (
            'kind = "regression"\nhuber_delta = 0\ntargets = [{ name = "a", mean = 0, std = 1 }]',
            "[task] huber_delta = 0 is refused",
            "greater than 0",
        ),
    ],
)
def test_a_wrong_task_is_explained(tmp_path: Path, task: str, problem: str, fix: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_task(tmp_path, task)
    assert problem in str(caught.value)
    assert fix in str(caught.value)


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"\[task\] is missing"):
        load(tmp_path, SMALLEST.partition("[task]")[0])


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"\[modalities\.image\] patch is missing"):
        load(tmp_path, SMALLEST.replace("patch = 2", ""))


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, SMALLEST + "[run]\nepochs = 0\nsede = 1\n")
    assert "2 settings are wrong" in caught.value.problem
    assert "[run] epochs = 0" in caught.value.problem
    assert "did you mean seed?" in caught.value.problem


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no settings file .*absent\.toml"):
        load_run_settings(tmp_path / "absent.toml")


def test_a_folder_is_no_settings_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load_run_settings(tmp_path)


def test_a_syntax_error_is_located(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"is no TOML: .*line 2"):
        load(tmp_path, "[run]\nepochs = = 3\n")


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(b'name = "\xff"')
    with pytest.raises(SettingsError, match="not UTF-8 at byte 8"):
        load_run_settings(path)


@pytest.mark.parametrize("key", ["task.classes.first", "telemetry_s.x"])
def test_an_override_below_a_value_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(SettingsError, match=f"override {key} = 1"):
        load(tmp_path, "telemetry_s = 1.0\n" + SMALLEST, {key: 1})


def test_an_override_that_is_wrong_is_explained(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"\[run\] epochs = -1"):
        load(tmp_path, overrides={"run.epochs": -1})


@pytest.mark.parametrize(("telemetry_s", "lease_s"), [(31.0, 30.0), (1.0, 0.5)])
def test_telemetry_rarer_than_a_lease_lasts_is_refused(tmp_path: Path, telemetry_s: float, lease_s: float) -> None:
    with pytest.raises(SettingsError, match=r"telemetry_s = .* is over worker\.lease_s = .*vanished") as refused:
        load(tmp_path, overrides={"telemetry_s": telemetry_s, "worker.lease_s": lease_s})
    assert "lower the first or raise the second" in str(refused.value)


def test_telemetry_may_be_as_rare_as_a_lease_lasts(tmp_path: Path) -> None:
    settings = load(tmp_path, overrides={"telemetry_s": 30.0, "worker.lease_s": 30.0})
    assert settings.telemetry_s == settings.worker.lease_s


TRAINABLE = '[tokenizers]\nmode = "trainable"\n'


@pytest.mark.parametrize("mode", ["every-step", "delta"])
def test_trainable_tokenizers_go_with_activations_that_go_up_again(tmp_path: Path, mode: str) -> None:
    settings = load(tmp_path, f'{SMALLEST}[activations]\nmode = "{mode}"\n{TRAINABLE}')
    assert settings.tokenizers.mode == "trainable"
    assert (settings.tokenizers.every_steps, settings.tokenizers.every_windows) == (4, 4)


@pytest.mark.parametrize("section", ["", '[activations]\nmode = "once"\n'], ids=["by default", "by name"])
def test_trainable_tokenizers_and_activations_that_go_up_once_are_refused(tmp_path: Path, section: str) -> None:
    with pytest.raises(SettingsError, match=r'set activations.mode to "every-step" or "delta"'):
        load(tmp_path, SMALLEST + section + TRAINABLE)


def test_trainable_tokenizers_and_merged_tokens_are_refused(tmp_path: Path) -> None:
    section = '[activations]\nmode = "delta"\nreduction = { image = { kind = "merge", keep = 0.5 } }\n'
    with pytest.raises(SettingsError, match=r'set kind to "content" or "random"'):
        load(tmp_path, SMALLEST + section + TRAINABLE)
