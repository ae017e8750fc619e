"""One Python file for a user to take home, made of the files that train: it cannot say anything else than they do."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType

from cutlayer.server_worker import (
    encoder,
    exported_model,
    modality_embedding,
    pair_head,
    raw_features,
    torch_tokenizers,
    torchvision_shim,
    visible_tokens,
)

__all__ = ["portable_source"]

_HEAD = '''"""Loads the model in this folder with plain PyTorch: `pip install torch timm safetensors`.

    from load_model import load
    model = load(".")
    model.predict({{{inputs}}})

{forms}
A modality that there is nothing of is left out. Written by Cutlayer, whose own files these are.
"""

from __future__ import annotations

{shim}

# Beside a torch that torchvision was not built for, timm would not import.
declare_missing_operators()

{imports}

'''
_IMPORTS = (
    "from timm import create_model",
    "from timm.layers import resample_abs_pos_embed",
    "from timm.models.vision_transformer import VisionTransformer",
)
_MODULES = (raw_features, torch_tokenizers, visible_tokens, pair_head, modality_embedding, encoder, exported_model)


def portable_source(forms: dict[str, str]) -> str:
    """Return the source of `load_model.py`.

    Args:
        forms: What raw samples look like, by modality.
    """
    inputs = ", ".join(f'"{name}": {name}' for name in forms)
    lines = "".join(f"`{name}`: {form}.\n" for name, form in forms.items())
    shim = _body(torchvision_shim)
    head = _HEAD.format(inputs=inputs, forms=lines, shim=shim, imports="\n".join(_IMPORTS))
    return head + "\n\n".join(_body(module) for module in _MODULES)


def _body(module: ModuleType) -> str:
    """Return a module's source without its docstring, its `__all__` and what it imports of Cutlayer."""
    source = inspect.getsource(module)
    lines = source.splitlines()
    tree = ast.parse(source)
    for node in tree.body:
        if _is_left_out(node):
            assert node.end_lineno is not None
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return "\n".join(lines).strip() + "\n"


def _is_left_out(node: ast.stmt) -> bool:
    match node:
        case ast.Expr(value=ast.Constant(value=str())):
            return True
        case ast.ImportFrom(module=str(name)):
            return name == "__future__" or name.startswith("cutlayer")
        case ast.Assign(targets=[ast.Name(id="__all__")]):
            return True
    return False
