import pytest
import torch

from medqdm.device import autocast, choose_device, is_bf16_fast
from medqdm.errors import MedQDMError


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cuda:99"])
def test_devices_that_are_not_there_are_refused(name: str) -> None:
    with pytest.raises(MedQDMError, match="--device"):
        choose_device(name)


def test_precision_follows_the_device() -> None:
    cpu = torch.device("cpu")
    for precision, expected in (("fp32", False), ("bf16", True), ("auto", is_bf16_fast(cpu))):
        with autocast(cpu, precision):
            assert torch.is_autocast_enabled("cpu") is expected
