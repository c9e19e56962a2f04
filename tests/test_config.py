import copy
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import torch
import yaml
from annotated_types import Le, Lt, MaxLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from safetensors import safe_open

from medqdm.build import build_autoencoder, build_qdm
from medqdm.checkpoint import read_networks
from medqdm.config import CONFIGS, Task, load_task, override, parse_task, task_names
from medqdm.config.size import count_weights
from medqdm.config.task import RETIRED
from medqdm.errors import MedQDMError
from medqdm.loading import bundled_weights
from studies.baselines.weights import build_edsr, build_unet


@pytest.mark.parametrize("name", task_names())
def test_every_task_loads_and_builds_its_networks(name: str) -> None:
    task = load_task(name)
    with torch.device("meta"):
        autoencoder, qdm = build_autoencoder(task), build_qdm(task)
    assert autoencoder.compression == task.autoencoder.compression == 4
    assert qdm.latent_size * 4 == task.slice_px
    assert task.description


@pytest.mark.parametrize("name", task_names())
def test_task_files_hold_only_what_differs(name: str) -> None:
    given = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    assert len((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()) <= 30
    assert parse_task(load_task(name).model_dump(), where="again") == load_task(name)
    assert set(given) <= set(Task.model_fields)


def test_derived_sizes() -> None:
    four, eight = load_task("sr4"), load_task("sr8")
    assert (four.tile_lr_px, eight.tile_lr_px) == (128, 64)
    assert (four.lr_multiple, eight.lr_multiple) == (16, 8)
    assert four.latent_size == eight.latent_size == 128
    assert four.threshold_hu == 150
    assert override(four, ["window.width_hu=400"]).threshold_hu == pytest.approx(30)


def test_presets_and_what_differs() -> None:
    task = load_task("sr4", ["degradation={preset: clean, jpeg_quality: [50, 60]}"])
    assert task.degradation.jpeg_quality == (50, 60)
    assert task.degradation.gaussian_sigma == (0, 0)
    assert load_task("sr4", ["degradation=paper-test"]).degradation.blur_sigma_px == (0.2, 0.8)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("diffusion.kapa=3", r"--set: diffusion.kapa .*did you mean diffusion.kappa\?"),
        ("rival={network: edsr, widht: 8}", r"rival.widht .*did you mean rival.width\?"),
        ("quadtree.threshold=-1", "quadtree.threshold: .* got -1"),
        ("degradation=paper-tes", "must be one of paper-train, paper-test, clean"),
        ("degradation={preset: clean, true_kernel_sizes: [4]}", "must be odd, got 4"),
        ("degradation={preset: clean, jpeg_quality: [90, 50]}", "first number must not be above"),
        ("transformer.depth=3", "go with size custom"),
        ("slice_px=500", "slice_px must be a multiple of 64, got 500"),
        ("autoencoder.channels=[30, 60]", "multiples of norm_groups = 32, got 30"),
        ("name.x=3", "must name a setting"),
        ("diffusion.num_steps=many", "diffusion.num_steps: .*got 'many'"),
        ("seed", "must be key=value"),
    ],
)
def test_settings_that_do_not_fit_are_refused(setting: str, message: str) -> None:
    with pytest.raises(MedQDMError, match=message):
        load_task("sr4", [setting])


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(MedQDMError, match=r"no task 'sr44': expected one of .*did you mean sr4"):
        load_task("sr44")


def test_task_from_a_file(tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("upscale: 8\n")
    assert (load_task(file).name, load_task(file).upscale) == ("mine", 8)
    with pytest.raises(MedQDMError, match=r"no\.yaml: a task file must exist"):
        load_task(tmp_path / "no.yaml")
    file.write_text("- a\n- b\n")
    with pytest.raises(MedQDMError, match="must be a mapping of keys, got list"):
        load_task(file)
    file.write_text("upscale: [\n")
    with pytest.raises(MedQDMError, match="must be YAML"):
        load_task(file)


OLD = [
    {"steps": 3000},
    {"student_steps": 4, "ssim_weight": 1, "image_weight": 0},  # was refused once
    "anything",
    None,
]


@pytest.mark.parametrize("value", OLD)
def test_retired_settings_are_dropped_from_files(tmp_path: Path, value: Any) -> None:
    """Weights and task files of earlier versions stay readable, whatever they carry there."""
    data = load_task("sr8-t").model_dump(mode="json")
    data["training"]["distillation"] = value
    old = copy.deepcopy(data)
    assert parse_task(data, where="weights") == load_task("sr8-t")
    assert data == old
    file = tmp_path / "old.yaml"
    file.write_text(yaml.safe_dump({"training": data["training"]}))
    assert load_task(file, ["training.seed=3"]).training.seed == 3


def test_every_retired_setting_is_unknown_everywhere_else() -> None:
    for key in RETIRED:
        for setting in (f"{key}=1", f"{key}.steps=1", f"{key.split('.')[-1]}=1"):
            with pytest.raises(MedQDMError, match=r"--set: .* must be a known setting"):
                load_task("sr4", [setting])
        with pytest.raises(MedQDMError, match="must be a known setting"):
            parse_task({"name": "x", key.split(".")[-1]: {}}, where="weights")
    with pytest.raises(MedQDMError, match="training"):
        parse_task({"name": "x", "training": 3}, where="weights")


@pytest.mark.parametrize("name", ["sr4", "sr8"])
def test_the_bundled_weights_carry_retired_settings_and_load(name: str) -> None:
    with safe_open(bundled_weights(name), "np") as file:
        carried = json.loads(file.metadata()["task"])
    assert "distillation" in carried["training"]
    assert read_networks(bundled_weights(name)).task.training.diffusion.image_weight > 0


def test_task_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_task("sr4").upscale = 8  # type: ignore[misc]


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ("{nothing: 0.1}", "degradation_mix: must name presets"),
        ("{clean: 0.6, paper-train: 0.5}", "shares must add up to at most 1, got 1.1"),
    ],
)
def test_a_mixture_of_degradations_must_fit(mix: str, message: str) -> None:
    with pytest.raises(MedQDMError, match=message):
        load_task("tiny", [f"degradation_mix={mix}"])
    task = load_task("tiny", ["degradation_mix={clean: 0.3, paper-test: 0.7}"])
    assert [share for _, share in task.training_degradations] == pytest.approx([0, 0.3, 0.7])


def unbounded(annotation: Any, constraints: tuple[Any, ...], where: str) -> Iterator[str]:
    """Numbers, texts, tuples and mappings of a type that have no upper bound."""
    if get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        constraints = (*constraints, *more)
    parts = get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            yield from unbounded(field.annotation, (field,), f"{where}.{name}")
        return
    if get_origin(annotation) is Literal or annotation in {bool, type(None)}:
        return
    flat = [c for given in constraints for c in getattr(given, "metadata", None) or [given]]
    is_collection = annotation is str or get_origin(annotation) is dict or ... in parts
    assert is_collection or parts or annotation in {int, float}, f"{where}: {annotation}"
    wanted = MaxLen if is_collection else None if parts else Le | Lt
    if wanted is not None and not any(isinstance(c, wanted) for c in flat):
        yield where
    is_union = parts and not is_collection and get_origin(annotation) is not tuple
    for part in parts:
        if part is not ...:
            yield from unbounded(part, constraints if is_union else (), where)


def test_every_setting_has_an_upper_bound() -> None:
    assert list(unbounded(Task, (), "task")) == []


def test_the_check_of_bounds_finds_what_has_none() -> None:
    class Open(BaseModel):
        a: int
        b: tuple[float, ...] = ()
        c: Annotated[int, FieldInfo(ge=0)] | None = None
        d: Annotated[float, FieldInfo(le=1)] = 0
        e: Literal[1, 2] = 1
        f: str = ""

    found = list(unbounded(Open, (), "open"))
    assert found == ["open.a", "open.b", "open.b", "open.c", "open.f"]


WHOLE = [  # so that no section is left out
    "autoencoder.light={}",
    "autoencoder.latent_scale=[1, 1, 1]",
    "transformer={size: custom, depth: 2, hidden_size: 32, num_heads: 2, corrector: {}}",
    "training.patient_weights={p0: 0.5}",
    "degradation_mix={clean: 0.1}",
    "diffusion.residual_deviation=1.5",
    "diffusion.sampling_steps=4",
    "training.minutes=7",
]
RIVAL_SETTINGS = ["rival={network: edsr}", "rival={network: resshift}"]


def numbers_of(data: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting that holds numbers, with its dotted name."""
    if isinstance(data, dict):
        for name, value in data.items():
            yield from numbers_of(value, f"{key}.{name}".lstrip("."))
    elif all_replaced(data, "") != all_replaced(data, "1"):
        yield key, data


def all_replaced(value: Any, number: str) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(all_replaced(part, number) for part in value)}]"
    return str(value) if isinstance(value, bool | str | None) else number


@pytest.mark.parametrize("rival", RIVAL_SETTINGS)
@pytest.mark.parametrize(
    "number", [".inf", "-.inf", ".nan", "1" + 18 * "0", "1.0e+300", "0x" + 5000 * "f"]
)
def test_every_number_refuses_what_is_too_large(rival: str, number: str) -> None:
    task = load_task("tiny", [*WHOLE, rival])
    found = dict(numbers_of(task.model_dump()))
    assert len(found) > 90
    for key, value in found.items():
        began = time.perf_counter()
        with pytest.raises(MedQDMError, match=rf"^--set: {key}[^\n]*$") as refusal:
            override(task, [f"{key}={all_replaced(value, number)}"])
        assert time.perf_counter() - began < 0.5
        assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("seed", range(3))
def test_random_large_settings_are_refused_or_small_enough_to_build(seed: int) -> None:
    """Within their bounds one by one, networks may still be too large together."""
    drawn, refused = random.Random(seed), 0

    def large(most: int, unit: int = 1) -> int:
        return unit * round(most / unit * 10 ** -drawn.uniform(0, 2.5)) or unit

    for _ in range(15):
        channels = [large(8192, 32) for _ in range(drawn.randint(1, 3))]
        settings = [
            f"transformer={{size: custom, depth: {large(64)}, hidden_size: {large(8192, 8)}, "
            f"num_heads: 2, corrector: {{channels: {large(8192)}, blocks: {large(20)}}}}}",
            drawn.choice([
                f"autoencoder.light={{channels: {large(8192)}, decoder_blocks: {large(20)}}}",
                f"autoencoder={{channels: {channels}, num_res_blocks: {large(4)}}}",
            ]),
        ]  # fmt: skip
        try:
            task = load_task("sr4", settings)
        except MedQDMError as error:
            assert "must have 3 billion weights at the most" in str(error)  # noqa: PT017
            refused += 1
            continue
        assert num_weights(task) < 3.4e9
    assert 0 < refused < 15


def num_weights(task: Task) -> int:
    with torch.device("meta"):
        if task.rival is None:
            networks = [build_autoencoder(task), build_qdm(task)]
        elif task.rival.network == "edsr":
            networks = [build_edsr(task)]
        else:
            networks = [build_autoencoder(task), build_unet(task)]
    return sum(p.numel() for network in networks for p in network.parameters())


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        (["transformer={size: custom, depth: 12, hidden_size: 1024, num_heads: 16}"], 0.1),
        (["transformer={size: custom, depth: 3, hidden_size: 64, num_heads: 2, mask_input: true, "
          "corrector: {channels: 48, blocks: 3}}", "autoencoder.light={compression: 8}"], 0.1),
        (["transformer={size: custom, depth: 1, hidden_size: 8, num_heads: 2}",
          "autoencoder={channels: [96, 32, 256], latent_channels: 8, mid_attention: false}"], 0.1),
        (["rival={network: edsr, width: 96, blocks: 20}"], 0.1),
        (["rival={network: resshift, channels: [64, 96, 160], res_blocks: 2}",
          "autoencoder.light={channels: 16}"], 0.35),
    ],
)  # fmt: skip
def test_weights_are_counted_as_they_are_built(settings: list[str], share: float) -> None:
    task = load_task("sr4", settings)
    counted = count_weights(task.autoencoder, task.transformer, task.rival)
    assert counted == pytest.approx(num_weights(task), rel=share)


@pytest.mark.parametrize(
    "setting",
    [
        "diffusion.num_steps=" + 6000 * "9",
        "diffusion.num_steps=" + 500 * "[",
        "name=" + 5000 * "x",
        "training.validation_patients=[" + 2000 * "x" + "]",
        "autoencoder.channels=[]",
        "autoencoder.channels=" + str([32] * 9),
        "degradation={preset: clean, true_kernel_sizes: [257]}",
        "autoencoder.channels=[8192, 8192, 8192]",
    ],
)
def test_settings_that_are_too_long_end_in_one_short_line(setting: str) -> None:
    began = time.perf_counter()
    with pytest.raises(MedQDMError, match=r"^--set: [^\n]*$") as refusal:
        load_task("sr4", [setting])
    assert time.perf_counter() - began < 2
    assert len(str(refusal.value)) < 300
