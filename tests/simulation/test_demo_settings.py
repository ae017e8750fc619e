import itertools
from pathlib import Path

import pytest

from cutlayer.broker.errors import SettingsError
from cutlayer.simulation.demo_settings import DemoSettings, agent_commands, make_run_folder, worker_command

URL = "mqtt://127.0.0.1:1883"


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "digits.toml"
    path.touch()
    return path


def words_after(arguments: tuple[str, ...], flag: str) -> list[str]:
    return [value for word, value in itertools.pairwise(arguments) if word == flag]


def test_worker_is_started_with_what_the_demo_was_called_with(run_file: Path) -> None:
    settings = DemoSettings(name="mine", agents=3, epochs=2, seed=7, mode="synchronous", run_file=run_file)
    command = worker_command(settings, URL, Path("runs/mine"))
    assert command.program.name == "server-worker"
    assert command.arguments[0] == "start"
    for flag, value in {
        "--run": str(run_file),
        "--broker": URL,
        "--output": "runs/mine",
        "--min-agents": "3",
        "--seed": "7",
        "--epochs": "2",
    }.items():
        assert words_after(command.arguments, flag) == [value]
    assert words_after(command.arguments, "--set") == ["run.name=mine", "window.mode=synchronous"]


def test_what_the_demo_was_not_asked_for_stays_as_the_file_says(run_file: Path) -> None:
    command = worker_command(DemoSettings(name="mine", run_file=run_file), URL, Path("runs/mine"))
    assert words_after(command.arguments, "--set") == ["run.name=mine"]
    assert not {"--seed", "--epochs"} & set(command.arguments)


def test_codec_is_that_of_the_activations(run_file: Path) -> None:
    command = worker_command(DemoSettings(name="mine", codec="int8+lz4", run_file=run_file), URL, Path("runs/mine"))
    assert words_after(command.arguments, "--set")[1:] == [
        "codecs.activations=int8+lz4",
        "codecs.activation_gradients=int8+lz4",
    ]


def test_identity_is_for_all_tensors(run_file: Path) -> None:
    command = worker_command(DemoSettings(name="mine", codec="identity", run_file=run_file), URL, Path("runs/mine"))
    kinds = ("activations", "activation_gradients", "outputs", "output_gradients")
    assert words_after(command.arguments, "--set")[1:] == [f"codecs.{kind}=identity" for kind in kinds]


def test_every_agent_has_a_topic_and_a_shard_of_its_own(run_file: Path) -> None:
    commands = agent_commands(DemoSettings(agents=2, data_options=("views=1",), run_file=run_file), URL)
    assert [words_after(command.arguments, "--topic") for command in commands] == [["clinic/00"], ["clinic/01"]]
    assert [words_after(command.arguments, "--shard") for command in commands] == [["0/2"], ["1/2"]]
    assert words_after(commands[0].arguments, "--data-option") == ["alpha=0.5", "views=1"]
    assert str(commands[1]).startswith("edge-agent start --topic clinic/01 --broker mqtt://127.0.0.1:1883 ")


def test_alpha_of_zero_is_an_even_split(run_file: Path) -> None:
    (command,) = agent_commands(DemoSettings(agents=1, alpha=0, run_file=run_file), URL)
    assert "--data-option" not in command.arguments


def test_folder_that_is_taken_gets_a_number(tmp_path: Path, run_file: Path) -> None:
    settings = DemoSettings(output=tmp_path / "runs", run_file=run_file)
    made = [make_run_folder(settings) for _ in range(3)]
    assert [named.name for named, _ in made] == ["demo", "demo-2", "demo-3"]
    assert [folder for _, folder in made] == [tmp_path / "runs" / name for name in ("demo", "demo-2", "demo-3")]


def test_name_that_was_asked_for_and_is_taken_is_an_error(tmp_path: Path, run_file: Path) -> None:
    settings = DemoSettings(name="mine", output=tmp_path, run_file=run_file)
    make_run_folder(settings)
    with pytest.raises(SettingsError, match="--name mine"):
        make_run_folder(settings)


def test_output_that_cannot_be_made_is_an_error(run_file: Path) -> None:
    with pytest.raises(SettingsError, match="cannot make"):
        make_run_folder(DemoSettings(output=run_file, run_file=run_file))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"name": "../up"}, "--name '../up'"),
        ({"agents": 0}, "--agents is 0"),
        ({"alpha": -1.0}, "--alpha is -1.0"),
        ({"alpha": float("nan")}, "--alpha is nan"),
        ({"mode": "sync"}, "--mode 'sync'"),
        ({"codec": "int9"}, "--codec"),
        ({"broker": "mosquito"}, "'mosquito' is not mqtt://"),
        ({"run_file": Path("missing.toml")}, "no run settings missing.toml"),
    ],
)
def test_wrong_flags_are_named(run_file: Path, flags: dict[str, object], named: str) -> None:
    with pytest.raises(SettingsError) as caught:
        DemoSettings(**({"run_file": run_file} | flags))  # type: ignore[arg-type]
    assert named in caught.value.problem
    assert caught.value.fix
