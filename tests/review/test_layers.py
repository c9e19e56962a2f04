"""Layers and planes: every number on its grid, planes in true millimetres, archives on demand."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from medqdm import io
from medqdm.config import load_task
from medqdm.errors import MedQDMError
from medqdm.metrics import reduce_by_area
from medqdm.networks import quadtree_of
from medqdm.review import Layers, Review, load_review
from medqdm.review import layers as module
from medqdm.review.planes import planes_of
from medqdm.volume import SliceStack, Volume
from medqdm.window import Window

UPSCALE = 4


@pytest.fixture(scope="module")
def layers(case):
    return Layers(load_review(case.out, case.source, slice_axis=2))


class TestLayers:
    def test_slices_are_the_arrays(self, case, layers):
        for z in (0, 6):
            enhanced = case.enhanced_hu[z]
            np.testing.assert_array_equal(layers.at("enhanced", "axial", z), enhanced)
            np.testing.assert_array_equal(layers.at("bicubic", "axial", z), case.bicubic_hu(z))
            np.testing.assert_array_equal(layers.at("refined", "axial", z), case.refined[z])
            np.testing.assert_array_equal(
                layers.at("uncertainty", "axial", z), case.deviation_hu[z].astype(np.float32)
            )
            expected = reduce_by_area(enhanced, UPSCALE) - case.source_hu[z]
            np.testing.assert_allclose(layers.at("residual", "axial", z), expected, atol=1e-4)

    def test_levels_are_the_quadtrees_and_top_where_refined(self, case, layers):
        task = load_task("tiny")
        lr = torch.from_numpy(task.hu_window.normalize(case.source_hu[2]))[None, None]
        tree = quadtree_of(task, lr)
        levels = layers.at("levels", "axial", 2)
        top = task.quadtree.num_levels
        np.testing.assert_array_equal(levels == top, case.refined[2])
        outside = ~case.refined[2]
        expected = tree.difficulty[0].numpy().clip(max=top - 1)
        np.testing.assert_array_equal(levels[outside], expected[outside])
        assert expected[outside].max() > 0

    @pytest.mark.parametrize("axis", ["coronal", "sagittal"])
    @pytest.mark.parametrize("block_bytes", [1, 128 << 20])
    def test_planes_are_cuts_through_the_stack(self, case, axis, block_bytes, monkeypatch):
        monkeypatch.setattr(module, "_BLOCK_BYTES", block_bytes)
        layers = Layers(load_review(case.out, case.source, slice_axis=2))
        cut = (lambda stack, k: stack[:, k]) if axis == "coronal" else (lambda s, k: s[:, :, k])
        cells = case.refined.repeat(8, axis=1).repeat(8, axis=2)
        count = layers.count(axis)
        for index in (0, 41, count - 1):
            head_first = cut(case.enhanced_hu, index)[::-1]
            np.testing.assert_array_equal(layers.at("enhanced", axis, index), head_first)
            refined = cut(cells, index)[::-1, : head_first.shape[1]]
            np.testing.assert_array_equal(layers.at("refined", axis, index), refined)
        bicubic = np.stack([case.bicubic_hu(z) for z in range(7)])
        np.testing.assert_array_equal(layers.at("bicubic", axis, 41), cut(bicubic, 41)[::-1])

    def test_without_a_source_there_is_nothing_to_compare(self, case):
        review = load_review(case.out)
        assert set(Layers(review).names) == {"enhanced", "refined", "uncertainty"}
        with pytest.raises(MedQDMError, match="must have the source, got none"):
            review.at(0)

    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            (("other", "axial", 0), "layer must be one of .*, got other"),
            (("enhanced", "oblique", 0), "axis must be one of axial, coronal, sagittal"),
            (("enhanced", "axial", 7), "axial index must be 0 to 6, got 7"),
        ],
    )
    def test_refusals(self, layers, asked, message):
        with pytest.raises(MedQDMError, match=message):
            layers.at(*asked)


class TestPlanes:
    def test_a_single_slice_has_none(self):
        assert planes_of(Volume.from_spacing(np.zeros((1, 4, 4)), (3, 1, 1))) == {}

    def test_a_gap_stays_empty_and_heights_are_true(self):
        volume = Volume.from_spacing(np.zeros((4, 4, 5)), (2.0, 1.0, 0.5))
        z_mm = np.array([0.0, 2.0, 4.0, 12.0])[:, None]
        plane = planes_of(replace(volume, origins_mm=z_mm * [0, 0, 1]))["coronal"]
        assert (plane.height_mm, plane.width_mm, plane.columns) == (2.0, 0.5, 5)
        assert plane.slices.tolist() == [3, -1, -1, -1, 2, 1, 0]
        assert plane.letters == ("R", "L", "H", "F")
        lines = np.arange(4, dtype=np.float32)[:, None].repeat(5, axis=1)
        shown = plane.assemble(lines, 0, 1)[:, 0]
        np.testing.assert_array_equal(shown, [3, np.nan, np.nan, np.nan, 2, 1, 0])

    def test_feet_first_stacks_have_the_head_above_too(self):
        volume = Volume.from_spacing(np.zeros((3, 4, 5)), (2.0, 1.0, 1.0))
        plane = planes_of(replace(volume, origins_mm=volume.origins_mm[::-1]))["sagittal"]
        assert plane.slices.tolist() == [0, 1, 2]
        assert plane.letters == ("A", "P", "H", "F")

    def test_a_tilted_gantry_is_put_upright(self):
        """A rod along the patient's z stays one column of a sagittal plane, one row in all."""
        random = np.random.default_rng(1)
        hu = random.uniform(-1000, 0, (5, 20, 6)).astype(np.float32)
        origins = np.array([[0.0, -2.0 * z, 4.0 * z] for z in range(5)])
        for z in range(5):
            hu[z, 6 + 2 * z, 3] = 1000  # at y = 6 mm in each slice
        volume = replace(Volume.from_spacing(hu, (4.0, 1.0, 1.0)), origins_mm=origins)
        review = Review(
            volume, volume, np.ones((5, 10, 3), dtype=bool), Window(0, 2000), "tilted", 1
        )
        layers = Layers(review)
        sagittal = layers.at("enhanced", "sagittal", 3)
        assert sagittal.shape == (5, 28)
        assert np.isnan(sagittal).sum() == 5 * 8
        columns = np.argwhere(sagittal == 1000)[:, 1]
        assert columns.tolist() == [14] * 5
        coronal = layers.at("enhanced", "coronal", 10)  # the middle slice's row
        assert (coronal[:, 3] == 1000).all()
        outside = layers.at("enhanced", "coronal", 1)
        assert np.isnan(outside).all(axis=1).tolist() == [False, False, False, True, True]


class TestUncertainty:
    def test_is_unpacked_when_it_is_looked_at(self, case, tmp_path):
        out = shutil.copytree(case.out, tmp_path / "out")
        review = load_review(out)
        assert isinstance(review.deviation_hu, SliceStack)
        np.testing.assert_array_equal(np.asarray(review.deviation_hu), case.deviation_hu)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"nothing", "uncertainty.npz: must be as medqdm enhance wrote it, got BadZipFile"),
            ({"other": np.zeros((2, 2, 2))}, "got KeyError"),
            ({"deviation_hu": np.zeros((7, 120, 176))}, "got ValueError"),
            ({"deviation_hu": np.zeros((7, 120, 9), np.float16)}, "must hold .* got"),
        ],
    )
    def test_refuses_something_else(self, case, tmp_path, content, message):
        out = shutil.copytree(case.out, tmp_path / "out")
        file = out / "uncertainty.npz"
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            np.savez(file, **content)
        with pytest.raises(MedQDMError, match=message):
            load_review(out)


def test_a_stack_that_is_read_lazily_stays_lazy(case):
    review = load_review(case.out, case.source, slice_axis=2)
    assert isinstance(review.enhanced.hu, SliceStack)
    assert io.read(case.out).shape == review.enhanced.shape
