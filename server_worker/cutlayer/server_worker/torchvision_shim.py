"""Let torchvision import beside a torch that its native part was not built for.

timm imports torchvision unconditionally, for image transforms that Cutlayer never calls. torchvision's native
part (`_C`) is built against one exact torch build; beside another, such as a CPU-only torch from a second index,
it does not load, its operators stay undeclared, and `import torchvision` dies on
`RuntimeError: operator torchvision::nms does not exist`, since it attaches shape functions to two of them. Those
two are declared here without a kernel, which is all that the import asks for. Detection boxes, the one thing
that they are for, keep failing loudly when called.

Where the native part loads, its own declarations win and nothing happens here.
"""

from __future__ import annotations

import importlib.util
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

__all__ = ["declare_missing_operators"]

# As torchvision declares them (csrc/ops/nms.cpp, csrc/ops/quantized/cpu/qnms_kernel.cpp).
_SCHEMAS = {name: f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")}

# A library that is collected takes its operators with it, so it lives as long as the process.
_declared: list[torch.library.Library] = []


def declare_missing_operators() -> tuple[str, ...]:
    """Declare the torchvision operators that its import needs and its native part does not bring.

    Call it before the first `import torchvision` (or timm) of the process; a second call finds nothing missing.

    Returns:
        Names of the operators declared; empty where torchvision is healthy or not installed.
    """
    package = importlib.util.find_spec("torchvision")
    if package is None or package.origin is None:
        return ()
    _load_native_part(Path(package.origin).parent)
    missing = tuple(name for name in _SCHEMAS if not hasattr(torch.ops.torchvision, name))
    if missing:
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in missing:
            library.define(_SCHEMAS[name])  # type: ignore[no-untyped-call]
        _declared.append(library)
    return missing


def _load_native_part(folder: Path) -> None:
    """Load `_C` as torchvision would. Loading it twice in a process is harmless."""
    for suffix in EXTENSION_SUFFIXES:
        extension = folder / f"_C{suffix}"
        if extension.exists():
            try:
                torch.ops.load_library(extension)  # type: ignore[no-untyped-call]
            except OSError:  # built for another torch: the case this module exists for
                continue
            return
