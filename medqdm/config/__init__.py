"""What a task is: frozen sections with units and ranges, read from YAML, carried by the weights."""

from medqdm.config.degradation import DEGRADATIONS, DegradationSection
from medqdm.config.diffusion import DiffusionSection, GroupsSection, SamplerSection, TSSSection
from medqdm.config.fields import Precision
from medqdm.config.networks import (
    AutoencoderSection,
    EDSRSection,
    QuadtreeSection,
    ResShiftSection,
    TransformerSection,
)
from medqdm.config.task import (
    CONFIGS,
    SSIM_SIDE_PX,
    Task,
    WindowSection,
    load_task,
    override,
    parse_task,
    task_names,
)
from medqdm.config.training import DiffusionTraining, TrainingSection

__all__ = [
    "CONFIGS",
    "DEGRADATIONS",
    "SSIM_SIDE_PX",
    "AutoencoderSection",
    "DegradationSection",
    "DiffusionSection",
    "DiffusionTraining",
    "EDSRSection",
    "GroupsSection",
    "Precision",
    "QuadtreeSection",
    "ResShiftSection",
    "SamplerSection",
    "TSSSection",
    "Task",
    "TrainingSection",
    "TransformerSection",
    "WindowSection",
    "load_task",
    "override",
    "parse_task",
    "task_names",
]
