"""CT super-resolution with quadtree diffusion models, from DICOM to DICOM.

Each public name is loaded when it is first used, so that ``import medqdm`` loads no library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medqdm.version import __version__

if TYPE_CHECKING:
    from medqdm.batch import enhance_all
    from medqdm.config import Task, load_task, task_names
    from medqdm.data import prepare
    from medqdm.enhance import enhance_series
    from medqdm.errors import MedQDMError
    from medqdm.evaluate import evaluate_weights
    from medqdm.imported import import_weights
    from medqdm.io import read, write
    from medqdm.training.run import train
    from medqdm.volume import Volume
    from medqdm.window import Window

_MODULES = {
    "MedQDMError": "medqdm.errors",
    "Task": "medqdm.config",
    "Volume": "medqdm.volume",
    "Window": "medqdm.window",
    "enhance_all": "medqdm.batch",
    "enhance_series": "medqdm.enhance",
    "evaluate_weights": "medqdm.evaluate",
    "import_weights": "medqdm.imported",
    "load_task": "medqdm.config",
    "prepare": "medqdm.data",
    "read": "medqdm.io",
    "task_names": "medqdm.config",
    "train": "medqdm.training.run",
    "write": "medqdm.io",
}

__all__ = [
    "MedQDMError",
    "Task",
    "Volume",
    "Window",
    "__version__",
    "enhance_all",
    "enhance_series",
    "evaluate_weights",
    "import_weights",
    "load_task",
    "prepare",
    "read",
    "task_names",
    "train",
    "write",
]


def __getattr__(name: str) -> Any:
    """Load a public name."""
    if name not in _MODULES:
        raise AttributeError(f"module 'medqdm' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
