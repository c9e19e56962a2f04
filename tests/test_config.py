import pytest
import torch
import yaml

from medqdm.build import build_autoencoder, build_qdm
from medqdm.config import CONFIGS, Task, load_task, override, parse_task, task_names
from medqdm.errors import MedQDMError


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
