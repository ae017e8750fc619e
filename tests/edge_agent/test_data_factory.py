"""A user's own code as a data set; the example of the documentation is one."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.manifest import AudioSpec
from cutlayer.edge_agent import data_factory
from cutlayer.edge_agent.data_factory import is_factory, open_from_factory
from support.user_data import AUDIO, asked


@pytest.fixture(autouse=True)
def _modules_as_before() -> Iterator[None]:
    modules, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    sys.path[:] = path


def example() -> str:
    """Return the example in the module's documentation."""
    assert data_factory.__doc__ is not None
    return textwrap.dedent(data_factory.__doc__[data_factory.__doc__.index("    import numpy") :])


def module(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str = "ward_seven") -> None:
    (folder / f"{name}.py").write_text(text)
    monkeypatch.chdir(folder)


def test_the_documented_example_is_a_data_set_in_fifteen_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = example()
    assert len([line for line in text.splitlines() if line.strip()]) <= 15
    module(tmp_path, monkeypatch, text)
    dataset = open_from_factory("ward_seven:Beats", asked({"audio": AUDIO}))
    assert dataset.classes == ("cat", "dog")
    assert dataset.modalities == {"audio": AUDIO}
    assert dataset.num_samples("train") == 80
    batch = dataset.batch("train", np.arange(3))
    assert batch.inputs["audio"].shape == (3, AUDIO.num_samples)
    assert batch.targets.tolist() == [0, 1, 0]


def test_documentation_page_shows_the_same_example() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    assert example().strip() in page


def test_factory_gets_what_the_run_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(
        tmp_path,
        monkeypatch,
        example() + "\n\ndef make(request):\n    Beats.request = request\n    return Beats(request)\n",
    )
    request = asked({"audio": AUDIO}, shard="1/3", seed=5, gain="2")
    dataset = open_from_factory("ward_seven:make", request)
    assert vars(type(dataset))["request"] is request
    assert isinstance(request.modalities["audio"], AudioSpec)
    assert (request.shard.index, request.shard.count, request.seed, request.options) == (1, 3, 5, {"gain": "2"})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:make", "No module named 'no_such_module'"),
        ("ward_seven:missing", "has no callable 'missing'"),
        ("ward_seven:NUMBER", "has no callable 'NUMBER'"),
        ("ward_seven:half", "returned Half, which has no classes, modalities, num_samples, batch"),
        ("ward_seven:nothing", "returned NoneType"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    half = "class Half:\n    name = 'half'\ndef half(request):\n    return Half()\n"
    module(tmp_path, monkeypatch, f"NUMBER = 3\n{half}def nothing(request):\n    pass\n")
    with pytest.raises(SettingsError, match=message) as caught:
        open_from_factory(name, asked())
    assert caught.value.fix


def test_error_in_the_users_code_is_shown_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(tmp_path, monkeypatch, "def make(request):\n    return 1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        open_from_factory("ward_seven:make", asked())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a:b", True),
        ("a.b:c.d", True),
        ("./a:b", False),
        ("a", False),
        ("a:b.csv", True),
        ("a b:c", False),
        ("", False),
    ],
)
def test_form_of_a_factorys_name(name: str, *, expected: bool) -> None:
    assert is_factory(name) is expected
