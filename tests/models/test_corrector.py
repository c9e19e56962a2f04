"""The corrector: what it is told, and that it corrects the streams and nothing else."""

import pytest
import torch

from medqdm.models.corrector import Corrector, CorrectorSize
from medqdm.models.transformer import QDM
from medqdm.models.windows import WindowIndex

T = torch.tensor


def make_qdm(corrector: CorrectorSize | None, *, awake: bool = True) -> QDM:
    torch.manual_seed(0)
    network = QDM(
        latent_size=32, latent_channels=3, condition_channels=1, hidden_size=16, depth=1,
        num_heads=2, mask_input=True, corrector=corrector,
    )  # fmt: skip
    if awake:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def inputs(b: int = 2):
    generator = torch.Generator().manual_seed(1)
    z_t = torch.randn(b, 3, 32, 48, generator=generator)
    lr = torch.rand(b, 1, 16, 24, generator=generator) * 2 - 1
    return z_t, lr, torch.rand(b, 16, 24, generator=generator) > 0.5


@torch.inference_mode()
def test_before_training_the_streams_stay_what_they_are() -> None:
    z_t, lr, refined = inputs()
    plain, network = make_qdm(None), make_qdm(CorrectorSize(8, 2), awake=False)
    network.load_state_dict({**network.state_dict(), **plain.state_dict()})
    t = T([3, 9])
    assert torch.equal(network(z_t, t, lr, refined), plain(z_t, t, lr, refined))
    assert plain(z_t, t, lr, refined).any()


@torch.inference_mode()
def test_it_adds_to_both_streams_predictions() -> None:
    z_t, lr, refined = inputs()
    network, t = make_qdm(CorrectorSize(8, 2)), T([3, 9])
    index = WindowIndex(refined)
    up, down = network.streams(z_t, t, lr, index)
    predicted = torch.where(index.refined, down, up)
    corrected = network(z_t, t, lr, refined)
    torch.testing.assert_close(network.correct(predicted, z_t, t, lr, index), corrected)
    changed = (corrected - predicted).abs() > 1e-4
    assert changed[index.refined.expand_as(changed)].float().mean() > 0.9
    assert changed[~index.refined.expand_as(changed)].float().mean() > 0.9


@torch.inference_mode()
@pytest.mark.parametrize("seen", ["prediction", "latent", "lr", "mask"])
def test_it_sees_everything_that_is_known(seen: str) -> None:
    z_t, lr, refined = inputs(1)
    network, t, index = make_qdm(CorrectorSize(8, 2)), T([3]), WindowIndex(refined)
    z = torch.zeros_like(z_t)
    before = network.correct(z, z_t, t, lr, index)
    given = {"prediction": z, "latent": z_t, "lr": lr, "mask": index.refined}
    if seen == "mask":
        given["mask"] = ~index.refined
    else:
        given[seen] = given[seen] + 1
    after = network.correct(
        given["prediction"], given["latent"], t, given["lr"], index, given["mask"]
    )
    moved = after - before - (1 if seen == "prediction" else 0)
    if seen == "mask":  # elsewhere it takes the whole correction away
        moved = moved[index.refined.expand_as(moved)]
    assert moved.abs().max() > 1e-3


@torch.inference_mode()
def test_a_map_of_one_step_is_that_step_and_of_two_each_in_its_place() -> None:
    z_t, lr, _ = inputs(1)
    network = make_qdm(CorrectorSize(8, 2))
    index = WindowIndex.everywhere((1, 32, 48), z_t.device)
    table = network.modulations(T([14, 0]))
    rows = torch.zeros(1, 1, 32, 48, dtype=torch.long)
    same = network(z_t, table.at_map(rows, index), lr, index)
    torch.testing.assert_close(same, network(z_t, T([14]), lr, index), atol=1e-5, rtol=0)
    torch.testing.assert_close(same, network(z_t, table.at(0), lr, index), atol=1e-5, rtol=0)

    def correction(where: torch.Tensor) -> torch.Tensor:
        return network.correct(torch.zeros_like(z_t), z_t, table.at_map(where, index), lr, index)

    rows[..., 24:] = 1
    both, first, second = (correction(r) for r in (rows, torch.zeros_like(rows), 1 - 0 * rows))
    near = 18  # further than it looks: 6 latents in fine blocks on either side, 12 in coarse ones
    torch.testing.assert_close(both[..., : 24 - near], first[..., : 24 - near], atol=1e-6, rtol=0)
    torch.testing.assert_close(both[..., 24 + near :], second[..., 24 + near :], atol=1e-6, rtol=0)
    assert not torch.allclose(first, second, atol=1e-3)


@torch.inference_mode()
def test_regions_that_do_not_run_stay_the_upstream_s() -> None:
    """As ``noisy`` says: those that carry noise, some of which a policy lets wait."""
    z_t, lr, refined = inputs(1)
    network, t = make_qdm(CorrectorSize(8, 2)), T([3])
    noisy = WindowIndex(refined).refined
    due = refined.clone()
    due[:, :, 8:] = False
    index = WindowIndex(due)
    up, _ = network.streams(z_t, t, lr, index, noisy)
    out = network(z_t, t, lr, due, noisy)
    waiting = (noisy & ~index.refined).expand_as(out)
    assert waiting.any()
    assert torch.equal(out[waiting], up[waiting])
    others = (~noisy).expand_as(out)
    assert ((out - up)[others].abs() > 1e-4).float().mean() > 0.9


@torch.inference_mode()
def test_slices_of_a_batch_do_not_meet() -> None:
    z_t, lr, refined = inputs()
    network, t = make_qdm(CorrectorSize(8, 2)), T([3, 9])
    each = (slice(0, 1), slice(1, 2))
    alone = [network(z_t[k], t[k], lr[k], refined[k]) for k in each]
    torch.testing.assert_close(network(z_t, t, lr, refined), torch.cat(alone), atol=1e-5, rtol=0)


def test_every_weight_learns() -> None:
    torch.manual_seed(0)
    network = Corrector(in_channels=8, out_channels=3, size=CorrectorSize(8, 2))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    out = network(torch.randn(2, 8, 16, 16), network.vectors(T([1, 5])))
    out.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
