from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

import cutlayer.server_worker.timm_import
from cutlayer.server_worker.torchvision_shim import declare_missing_operators

# Operators belong to the process, so each case has one of its own.
SHIM = "from cutlayer.server_worker.torchvision_shim import declare_missing_operators as declare\n"


def run_python(program: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_timm_imports_in_a_fresh_process() -> None:
    program = (
        "from cutlayer.server_worker.timm_import import list_models; print('vit_tiny_patch16_224' in list_models())"
    )
    assert run_python(program) == "True"


def test_nothing_is_declared_where_torchvision_is_healthy() -> None:
    program = (
        "import torch\n"
        "library = torch.library.Library('torchvision', 'DEF')\n"  # as a native part that loads does
        "for name in ('nms', 'qnms'):\n"
        "    library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        f"{SHIM}print(declare())"
    )
    assert run_python(program) == "()"


def test_operators_are_declared_once_beside_a_native_part_of_another_torch(tmp_path: Path) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / f"_C{EXTENSION_SUFFIXES[-1]}").write_bytes(b"built for another torch")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{SHIM}print(declare(), declare())"
    assert run_python(program) == "('nms', 'qnms') ()"


def test_nothing_is_declared_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert declare_missing_operators() == ()


def test_timm_is_imported_through_one_door() -> None:
    door = Path(cutlayer.server_worker.timm_import.__file__)
    others = [path for path in door.parent.glob("*.py") if path != door]
    offenders = [
        path.name
        for path in others
        if any(line.startswith(("import timm", "from timm")) for line in path.read_text().splitlines())
    ]
    assert offenders == []
