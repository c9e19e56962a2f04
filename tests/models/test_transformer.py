import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from medqdm.errors import MedQDMError
from medqdm.models.layers import position_table, step_code
from medqdm.models.streams import SIZES
from medqdm.models.transformer import QDM, fit_condition
from medqdm.models.windows import WindowIndex


def make_qdm(latent_size: int = 32) -> QDM:
    """A small network whose zero-initialised parts have been woken up."""
    torch.manual_seed(0)
    network = QDM(
        latent_size=latent_size,
        latent_channels=3,
        condition_channels=1,
        hidden_size=16,
        depth=2,
        num_heads=2,
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


@pytest.fixture(scope="module")
def network():
    return make_qdm()


def inputs(b: int, height: int, width: int, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    z_t = torch.randn(b, 3, height, width, generator=generator)
    lr = torch.rand(b, 1, height // 2, width // 2, generator=generator) * 2 - 1
    t = torch.randint(0, 15, (b,), generator=generator)
    refined = torch.rand(b, height // 16, width // 16, generator=generator) > 0.5
    refined = refined.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    refined &= torch.rand(b, height // 2, width // 2, generator=generator) > 0.5
    return z_t, t, lr, refined


@pytest.mark.parametrize(
    ("name", "trainable", "with_positions"),
    [("S", 49.20, 50.87), ("B", 195.72, 199.06), ("L", 687.49, 691.94)],
)
def test_parameter_counts_are_the_paper_s(name, trainable, with_positions):
    with torch.device("meta"):
        network = QDM(
            latent_size=128, latent_channels=3, condition_channels=3, **SIZES[name]._asdict()
        )
    assert round(network.num_parameters(include_positions=False) / 1e6, 2) == trainable
    assert round(network.num_parameters(include_positions=True) / 1e6, 2) == with_positions


def test_untrained_network_returns_zeros():
    network = QDM(
        latent_size=32,
        latent_channels=3,
        condition_channels=1,
        hidden_size=16,
        depth=1,
        num_heads=2,
    )
    z_t, t, lr, refined = inputs(1, 32, 32)
    assert not network(z_t, t, lr, refined).any()
    assert network.downstream.embed.weight.std() > 0.05


@torch.inference_mode()
def test_refined_everywhere_equals_dense(network):
    z_t, t, lr, refined = inputs(2, 32, 48)
    everywhere = network(z_t, t, lr, torch.ones_like(refined))
    torch.testing.assert_close(everywhere, network(z_t, t, lr, None), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_refined_nowhere_equals_upstream_alone(network):
    z_t, t, lr, refined = inputs(2, 32, 48)
    up, _ = network.streams(z_t, t, lr, WindowIndex.everywhere((2, 32, 48), z_t.device))
    assert torch.equal(network(z_t, t, lr, torch.zeros_like(refined)), up)


@torch.inference_mode()
def test_streams_differ(network):
    z_t, t, lr, _ = inputs(1, 32, 32)
    up, down = network.streams(z_t, t, lr, WindowIndex.everywhere((1, 32, 32), z_t.device))
    assert (up - down).abs().mean() > 0.01


@settings(max_examples=12, deadline=None)
@given(
    b=st.integers(1, 3),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
@torch.inference_mode()
def test_packed_equals_dense_where_refined(network, b, rows, columns, seed):
    z_t, t, lr, refined = inputs(b, 16 * rows, 16 * columns, seed)
    packed = network(z_t, t, lr, refined)
    everywhere = WindowIndex.everywhere((b, 16 * rows, 16 * columns), z_t.device)
    up, down = network.streams(z_t, t, lr, everywhere)
    at_latent = WindowIndex(refined).refined
    torch.testing.assert_close(packed, torch.where(at_latent, down, up), atol=1e-5, rtol=0)
    assert packed.shape == z_t.shape


@torch.inference_mode()
def test_slices_of_a_batch_do_not_see_each_other(network):
    z_t, t, lr, refined = inputs(3, 32, 48)
    whole = network(z_t, t, lr, refined)
    for i in range(3):
        alone = network(z_t[i, None], t[i, None], lr[i, None], refined[i, None])
        torch.testing.assert_close(whole[i, None], alone, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_a_window_sees_the_whole_slice_through_the_upstream(network):
    z_t, t, lr, refined = inputs(1, 32, 32)
    changed = z_t.clone()
    changed[..., 16:, 16:] += 1
    ones = torch.ones_like(refined)
    difference = (network(z_t, t, lr, ones) - network(changed, t, lr, ones)).abs()
    assert difference[..., :16, :16].max() > 1e-4


@torch.inference_mode()
def test_an_index_serves_many_steps(network):
    z_t, t, lr, refined = inputs(2, 32, 32)
    windows = WindowIndex(refined)
    for step in (t, (t + 3) % 15):
        assert torch.equal(network(z_t, step, lr, windows), network(z_t, step, lr, refined))


class Operations(TorchDispatchMode):
    """Names of the operations that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.__name__.split(".")[0])
        if func.__name__ == "index.Tensor":  # a mask as an index is a nonzero in disguise
            masks = [i for i in args[1] if i is not None and i.dtype == torch.bool]
            self.names |= {"nonzero"} if masks else set()
        return func(*args, **(kwargs or {}))


def test_a_step_with_an_index_asks_the_device_nothing(network):
    z_t, t, lr, refined = inputs(2, 32, 32)
    asking = {"nonzero", "_local_scalar_dense"}
    with Operations() as indexing:
        windows = WindowIndex(refined)
    with torch.no_grad(), Operations() as step:
        network(z_t, t, lr, windows)
    assert indexing.names >= asking
    assert not step.names & asking


@torch.inference_mode()
def test_transposed_picture_is_another_picture(network):
    """Rows and columns are told apart by the positions."""
    z_t, t, lr, _ = inputs(1, 32, 48)
    straight = network(z_t, t, lr, None)
    turned = network(z_t.mT.contiguous(), t, lr.mT.contiguous(), None).mT
    assert straight.shape == turned.shape
    assert (straight - turned).abs().max() > 1e-2


def test_every_parameter_gets_a_gradient(network):
    z_t, t, lr, refined = inputs(2, 32, 32)
    windows = WindowIndex(refined)
    up, down = network.streams(z_t, t, lr, windows)
    (up.square().mean() + down.square().mean()).backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    network.zero_grad()
    assert not silent


def test_every_parameter_has_a_gradient_when_nothing_is_refined(network):
    z_t, t, lr, refined = inputs(2, 32, 32)
    up, down = network.streams(z_t, t, lr, WindowIndex(torch.zeros_like(refined)))
    (up.square().mean() + down.square().mean()).backward()
    missing = [n for n, p in network.named_parameters() if p.grad is None]
    network.zero_grad()
    assert not missing


@torch.inference_mode()
def test_bf16_autocast_is_close_to_fp32(network):
    z_t, t, lr, refined = inputs(2, 32, 32)
    exact = network(z_t, t, lr, refined)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network(z_t, t, lr, refined)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().mean() < 0.05 * exact.abs().mean()


@torch.inference_mode()
def test_bf16_weights_run():
    network = make_qdm().bfloat16()
    z_t, t, lr, refined = inputs(1, 32, 32)
    out = network(z_t.bfloat16(), t, lr.bfloat16(), refined)
    assert out.dtype == torch.bfloat16


def test_training_after_inference_mode_of_the_same_size():
    position_table.cache_clear()
    network = make_qdm()
    z_t, t, lr, refined = inputs(1, 32, 32)
    with torch.inference_mode():
        network(z_t, t, lr, refined)
    network(z_t, t, lr, None).sum().backward()
    assert network.upstream.embed.weight.grad.any()


@pytest.mark.parametrize("size", [(24, 32), (32, 8), (0, 16)])
def test_sides_that_windows_do_not_fill_are_refused(network, size):
    z_t = torch.zeros(1, 3, *size)
    with pytest.raises(MedQDMError, match=r"latent sides must be multiples of 16, got \(\d+, \d+"):
        network(z_t, torch.zeros(1, dtype=torch.long), torch.zeros(1, 1, 8, 8), None)


def test_windows_of_other_latents_are_refused(network):
    z_t, t, lr, _ = inputs(1, 32, 32)
    with pytest.raises(ValueError, match="do not fit"):
        network(z_t, t, lr, WindowIndex.everywhere((1, 32, 48), z_t.device))


@pytest.mark.parametrize(("hidden_size", "num_heads"), [(18, 2), (16, 3)])
def test_widths_that_do_not_divide_are_refused(hidden_size, num_heads):
    with pytest.raises(MedQDMError, match="must be a multiple of 4 and of num_heads"):
        QDM(
            latent_size=32,
            latent_channels=3,
            condition_channels=1,
            hidden_size=hidden_size,
            depth=1,
            num_heads=num_heads,
        )


def test_larger_grid_is_stretched_onto_the_trained_one():
    cpu = torch.device("cpu")
    trained = position_table(16, 8, 8, 8, cpu)
    large = position_table(16, 16, 8, 8, cpu)
    torch.testing.assert_close(large[::2], trained)  # rows at half steps, columns untouched
    assert torch.equal(position_table(16, 4, 6, 8, cpu), trained[:4, :6])


def test_positions_are_sines_then_cosines_of_x_then_y():
    table = position_table(8, 3, 5, 5, torch.device("cpu"))
    x, y = torch.tensor(4.0), torch.tensor(2.0)
    expected = [x.sin(), (x / 100).sin(), x.cos(), (x / 100).cos()]
    expected += [y.sin(), (y / 100).sin(), y.cos(), (y / 100).cos()]
    torch.testing.assert_close(table[2, 4], torch.stack(expected))


def test_step_code_is_cosines_then_sines():
    code = step_code(torch.tensor([0, 3]))
    assert torch.equal(code[0], torch.cat([torch.ones(128), torch.zeros(128)]))
    assert code[1, 0] == pytest.approx(torch.tensor(3.0).cos().item())
    assert code[1, 128] == pytest.approx(torch.tensor(3.0).sin().item())


def test_condition_is_brought_to_latent_size():
    z_t = torch.zeros(1, 3, 32, 16)
    same = torch.rand(1, 1, 32, 16)
    assert fit_condition(same, z_t) is same
    for size in ((16, 8), (64, 32)):
        constant = torch.full((1, 1, *size), 0.3)
        torch.testing.assert_close(fit_condition(constant, z_t), torch.full((1, 1, 32, 16), 0.3))
    # A checkerboard is gone after smoothing, where bare sampling would leave or alias it.
    board = (torch.arange(64)[:, None] + torch.arange(32)) % 2 * 2.0 - 1
    assert fit_condition(board[None, None], z_t)[..., 4:-4, 4:-4].abs().max() < 0.05


@settings(max_examples=12, deadline=None)
@given(b=st.integers(1, 3), rows=st.integers(1, 2), seed=st.integers(0, 1000))
@torch.inference_mode()
def test_packed_tokens_see_their_window_s_refined_tokens_alone(network, b, rows, seed):
    """The packed pass equals full windows in which unrefined tokens are masked as keys."""
    z_t, t, lr, refined = inputs(b, 16 * rows, 32, seed)
    packed = network(z_t, t, lr, WindowIndex(refined, packing="tokens"))
    everywhere = WindowIndex.everywhere((b, 16 * rows, 32), z_t.device)
    seen = everywhere.gather(WindowIndex(refined).refined.float())[:, :1]
    everywhere.windows.is_full = False  # so that the attention asks for valid keys
    everywhere.windows.valid = everywhere.windows.lay_out(seen)[..., 0] > 0
    everywhere.windows.valid[~everywhere.windows.valid.any(dim=1)] = True  # rows nobody looks at
    up, down = network.streams(z_t, t, lr, everywhere)
    expected = torch.where(everywhere.refined & WindowIndex(refined).refined, down, up)
    torch.testing.assert_close(packed, expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_unrefined_tokens_do_not_matter_to_packed_ones(network):
    z_t, t, lr, refined = inputs(1, 32, 32)
    index = WindowIndex(refined, packing="tokens")
    x = torch.cat([z_t, fit_condition(lr, z_t)], dim=1)
    modulations = network.modulations(t)
    _, context = network.upstream(x, modulations)
    changed = torch.where(index.refined, x, x + 1)
    for weights, same in (("tokens", True), ("windows", False)):
        index = WindowIndex(refined, packing=weights)
        before = index.scatter(network.downstream(x, modulations, context, index), z_t)
        after = index.scatter(network.downstream(changed, modulations, context, index), z_t)
        assert (
            torch.equal(before[index.refined.expand_as(z_t)], after[index.refined.expand_as(z_t)])
            == same
        )


@torch.inference_mode()
def test_modulations_of_a_schedule_serve_each_step(network):
    z_t, _, lr, refined = inputs(2, 32, 32)
    steps = torch.tensor([14, 7, 0])
    table = network.modulations(steps)
    for k, t in enumerate(steps):
        expected = network(z_t, t.repeat(2), lr, refined)
        torch.testing.assert_close(
            network(z_t, table.at(k), lr, refined), expected, atol=1e-5, rtol=0
        )


@torch.inference_mode()
def test_a_map_of_steps_equals_the_step_of_each_slice(network):
    z_t, _, lr, refined = inputs(2, 32, 48)
    steps = torch.tensor([14, 7, 0])
    table = network.modulations(steps)
    rows = torch.tensor([2, 1])[:, None, None, None].expand(2, 1, 32, 48)
    for packing in ("windows", "tokens"):
        index = WindowIndex(refined, packing=packing)
        expected = network(z_t, steps[rows[:, 0, 0, 0]], lr, index)
        found = network(z_t, table.at_map(rows, index), lr, index)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_each_token_is_told_the_step_of_its_own_place(network):
    """In the head, where tokens see each other no more, a step changes its own place alone."""
    z_t, _, lr, _ = inputs(1, 32, 48)
    index = WindowIndex.everywhere((1, 32, 48), z_t.device)
    table = network.modulations(torch.tensor([14, 0]))
    rows = torch.zeros(1, 1, 32, 48, dtype=torch.long)
    rows[..., 16:32, 32:48] = 1
    changed = table.at_map(rows, index)
    zero = table.at_map(torch.zeros_like(rows), index)
    heads_alone = changed._replace(
        upstream=tuple(v[:1].expand_as(v) for v in table.upstream),
        downstream=tuple((a[:1].expand_as(a), b[:1].expand_as(b)) for a, b in table.downstream),
    )
    for before, after in zip(
        network.streams(z_t, zero, lr, index), network.streams(z_t, heads_alone, lr, index),
        strict=True,
    ):  # fmt: skip
        different = (before != after).any(dim=1)
        assert different[0, 16:, 32:].float().mean() > 0.9
        different[0, 16:, 32:] = False
        assert not different.any()


def test_a_step_per_token_asks_the_device_nothing(network):
    z_t, _, lr, refined = inputs(2, 32, 32)
    windows = WindowIndex(refined)
    table = network.modulations(torch.arange(15))
    rows = torch.arange(4).reshape(1, 1, 2, 2).repeat_interleave(16, 2).repeat_interleave(16, 3)
    with torch.no_grad(), Operations() as step:
        network(z_t, table.at_map(rows.expand(2, -1, -1, -1), windows), lr, windows)
    assert not step.names & {"nonzero", "_local_scalar_dense"}
