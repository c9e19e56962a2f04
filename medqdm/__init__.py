"""CT super-resolution with quadtree diffusion models, from DICOM to DICOM.

The one-call functions below are loaded when first used, so that ``import medqdm`` stays light:
``enhance_series``, ``train``, ``prepare``, ``evaluate_weights``, ``import_published_weights``.
"""

from importlib import import_module
from typing import Any

from medqdm.config import Task, load_task, task_names
from medqdm.errors import MedQDMError
from medqdm.io import read, write
from medqdm.version import __version__
from medqdm.volume import Volume
from medqdm.window import Window

__all__ = [
    "MedQDMError",
    "Task",
    "Volume",
    "Window",
    "__version__",
    "load_task",
    "read",
    "task_names",
    "write",
]

# Loaded when first used: ``import medqdm`` stays light, without torch.
_LAZY = {
    "enhance_all": "medqdm.batch",
    "enhance_series": "medqdm.enhance",
    "train": "medqdm.training.run",
    "prepare": "medqdm.data",
    "evaluate_weights": "medqdm.evaluate",
    "import_weights": "medqdm.imported",
}


def __getattr__(name: str) -> Any:
    """The one-call functions ``enhance_series``, ``train``, ``prepare``, ``evaluate_weights``."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'medqdm' has no attribute {name!r}")
