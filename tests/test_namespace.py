"""The six rooms are one PEP 420 namespace, and no folder of ours hides anybody else's package."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("broker", "compression", "dashboards", "edge_agent", "server_worker", "simulation")


def in_python(program: str, *flags: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, *flags, "-c", program], capture_output=True, text=True, check=True, cwd=cwd or Path("/")
    )
    return done.stdout.strip()


@pytest.mark.parametrize("room", ROOMS)
def test_component_folders_and_the_namespace_itself_are_no_packages(room: str) -> None:
    assert (ROOT / room / "cutlayer" / room / "__init__.py").is_file()
    assert not (ROOT / room / "__init__.py").exists()
    assert not (ROOT / room / "cutlayer" / "__init__.py").exists()
    assert [path.name for path in (ROOT / room / "cutlayer").iterdir() if path.name != "__pycache__"] == [room]


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_is_imported_from_its_own_folder(room: str) -> None:
    module = importlib.import_module(f"cutlayer.{room}")
    assert module.__file__ is not None
    assert Path(module.__file__) == ROOT / room / "cutlayer" / room / "__init__.py"


def test_namespace_is_a_namespace() -> None:
    import cutlayer

    assert getattr(cutlayer, "__file__", None) is None
    assert {Path(path).parent.name for path in cutlayer.__path__} == set(ROOMS)


def test_installed_use_does_not_look_into_the_repository_itself() -> None:
    paths = json.loads(in_python("import json, sys; print(json.dumps(sys.path))"))
    assert str(ROOT) not in [str(Path(path)) for path in paths if path]
    assert str(ROOT / "compression") in paths  # the editable install names each room


def test_component_folder_does_not_hide_a_package_of_its_name(tmp_path: Path) -> None:
    # Python 3.14 has a package `compression`, which gzip imports. A folder without __init__.py never wins over one
    # with it, wherever it stands in the path.
    for name in ROOMS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    found = in_python(
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]\n"
        f"import importlib; print([importlib.import_module(name).__file__ for name in {ROOMS!r}])"
    )
    assert found == str([str(tmp_path / name / "__init__.py") for name in ROOMS])


def test_standard_library_is_not_shadowed_from_within_the_repository() -> None:
    assert in_python("import gzip, bz2, lzma, zlib; print(gzip.decompress(gzip.compress(b'ok')))", cwd=ROOT) == "b'ok'"
    if sys.version_info >= (3, 14):
        assert "cutlayer" not in in_python("import compression; print(compression.__file__)", cwd=ROOT)


def test_nothing_in_a_component_folder_is_imported_by_an_accidental_name() -> None:
    # The editable install puts the component folders on the path, so what lies in them is importable.
    known = set(sys.stdlib_module_names)
    for room in ROOMS:
        for path in (ROOT / room).iterdir():
            if path.name not in ("cutlayer", "__pycache__"):
                assert path.suffix != ".py", f"{path} would be importable as {path.stem}"
                assert path.name not in known, f"{path} has the name of a standard module"


def test_build_settings_name_every_room() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    assert set(build["dev-mode-dirs"]) == set(ROOMS)
    assert set(build["targets"]["wheel"]["packages"]) == {f"{room}/cutlayer" for room in ROOMS}


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_says_that_it_is_typed(room: str) -> None:
    assert (ROOT / room / "cutlayer" / room / "py.typed").is_file()


@pytest.mark.slow
def test_wheel_holds_all_rooms(tmp_path: Path) -> None:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling, the build backend, is not installed here: pip install hatchling")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True)
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for room in ROOMS:
        sources = {path.relative_to(ROOT / room).as_posix() for path in (ROOT / room / "cutlayer").rglob("*.py")}
        assert sources <= set(names)
        assert f"cutlayer/{room}/py.typed" in names
    # What the live page is made of, with the licence of what is not ours.
    for folder in ("assets", "vendor"):
        parts = (ROOT / "dashboards" / "cutlayer" / "dashboards" / folder).iterdir()
        assert {f"cutlayer/dashboards/{folder}/{part.name}" for part in parts} <= set(names)
    assert "cutlayer/__init__.py" not in names
    assert {name.partition("/")[0] for name in names if not name.startswith("cutlayer-")} == {"cutlayer"}


def test_imports_point_one_way() -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([str(linter), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout
