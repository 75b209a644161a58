"""Random acquisition of given pictures: what changes, what must not, and what it may cost."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from medm2g_core.data.acquisition import RANGES, _Draws, _move, _views, acquire
from medm2g_core.streams import IMAGE_STREAMS, StreamError

EVERY = dataclasses.replace(RANGES, untouched=0.0)
SIZE = 64


def phantom(n: int, size: int = SIZE) -> Tensor:
    """Bodies (n, 1, size, size) on air: an ellipse with organs of several greys, values -1..1."""
    generator = torch.Generator().manual_seed(3)
    at = (2 * torch.arange(size) + 1) / size - 1
    y, x = at[:, None], at[None, :]
    out = torch.full((n, 1, size, size), -0.97)
    for picture in out[:, 0]:
        picture[(x / 0.75) ** 2 + (y / 0.85) ** 2 < 1] = 0.1
        for level in torch.linspace(-0.6, 0.7, 6):
            cx, cy, r = (torch.rand(3, generator=generator) * 0.8 - 0.4).tolist()
            picture[(x - cx) ** 2 + (y - cy) ** 2 < (0.08 + abs(r) * 0.4) ** 2] = level
    return out


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", IMAGE_STREAMS)
def test_a_seed_decides_everything(name: str) -> None:
    image = phantom(8)
    once, again = acquire(image, name, seeded()), acquire(image, name, seeded())
    assert torch.equal(once, again)
    assert not torch.equal(once, acquire(image, name, seeded(1)))


@pytest.mark.parametrize("name", IMAGE_STREAMS)
def test_a_sample_does_not_depend_on_its_neighbours_pictures(name: str) -> None:
    image = phantom(8)
    others = image.flip(-1).roll(1, 0)
    others[3] = image[3]
    torch.testing.assert_close(
        acquire(image, name, seeded(), head=True)[3], acquire(others, name, seeded(), head=True)[3]
    )


@pytest.mark.parametrize("name", IMAGE_STREAMS)
def test_samples_differ_in_how_they_were_acquired(name: str) -> None:
    image = phantom(1).expand(12, -1, -1, -1)
    out = acquire(image, name, seeded(), ranges=EVERY).flatten(1)
    assert len(out.unique(dim=0)) == 12


@pytest.mark.parametrize("name", IMAGE_STREAMS)
def test_strength_zero_is_the_picture_itself(name: str) -> None:
    generator = seeded()
    image, before = phantom(4), generator.get_state()
    assert acquire(image, name, generator, 0.0) is image
    assert torch.equal(before, generator.get_state())


@pytest.mark.parametrize("name", IMAGE_STREAMS)
def test_hardly_any_strength_hardly_changes_anything(name: str) -> None:
    image = phantom(16)
    out = acquire(image, name, seeded(), 1e-4, head=True, ranges=EVERY)
    assert (out - image).abs().mean() < 1e-3


@pytest.mark.parametrize("name", IMAGE_STREAMS)
def test_values_stay_in_range(name: str) -> None:
    image = phantom(16)
    image[0], image[1] = -1.0, 1.0  # a blank picture has no bright end and no detail
    for strength in (1.0, 3.0):
        out = acquire(image, name, seeded(), strength, head=True, ranges=EVERY)
        assert out.isfinite().all() and out.abs().max() <= 1


@pytest.mark.parametrize("name", IMAGE_STREAMS)
def test_more_strength_changes_more(name: str) -> None:
    image = phantom(32)
    change = [
        (acquire(image, name, seeded(), s) - image).abs().mean().item() for s in (0.25, 0.5, 1, 2)
    ]
    assert change == sorted(change) and change[-1] > 2 * change[0] > 0


@pytest.mark.parametrize("name", IMAGE_STREAMS)
def test_about_the_promised_share_stays_untouched_bit_for_bit(name: str) -> None:
    image = phantom(1).expand(400, -1, -1, -1)
    same = (acquire(image, name, seeded()) == image).flatten(1).all(1).float().mean().item()
    # of the others, a few per cent have no effect at all and differ by rounding or not at all
    assert RANGES.untouched - 0.06 < same < RANGES.untouched + 0.1


def edges(image: Tensor) -> Tensor:
    """Gradient magnitude (B, H, W), no mean."""
    down, right = torch.gradient(image[:, 0], dim=(1, 2))
    magnitude = torch.hypot(down, right)
    return magnitude - magnitude.mean((1, 2), keepdim=True)


def displacement(a: Tensor, b: Tensor) -> Tensor:
    """Rows and columns (B, 2) by which the edges of ``b`` must be shifted to lie best on ``a``'s:
    the peak of their circular cross-correlation."""
    product = torch.fft.rfft2(edges(a)) * torch.fft.rfft2(edges(b)).conj()
    size = a.shape[-1]
    peak = torch.fft.irfft2(product, s=(size, size)).flatten(1).argmax(1)
    rows_columns = torch.stack([peak // size, peak % size], 1)
    return (rows_columns + size // 2) % size - size // 2


def test_control_a_shift_is_seen() -> None:
    image = phantom(4)
    assert displacement(image.roll((2, -1), (2, 3)), image).tolist() == [[2, -1]] * 4


# A frame is an edge of its own, and thick slices move edges by up to half a slice.
IN_PLACE = dataclasses.replace(
    EVERY,
    film=dataclasses.replace(EVERY.film, frame=(0.0, 0.0)),
    ct=dataclasses.replace(EVERY.ct, frame=(0.0, 0.0), circle=(0.0, 0.0), thickness_px=(0.0, 0.0)),
    mr=dataclasses.replace(EVERY.mr, thickness_px=(0.0, 0.0)),
)


@pytest.mark.parametrize("name", IMAGE_STREAMS)
def test_anatomy_stays_in_place_without_geometry(name: str) -> None:
    image = phantom(48, 128)
    out = acquire(image, name, seeded(), geometry=False, ranges=IN_PLACE)
    assert not displacement(image, out).any()
    thick = acquire(image, name, seeded(), geometry=False, ranges=EVERY)
    assert displacement(image, thick).abs().max() <= 1


@pytest.mark.parametrize("name", IMAGE_STREAMS)
def test_the_field_of_view_moves_by_a_few_pixels_only(name: str) -> None:
    image = phantom(48, 128)
    moved = displacement(image, acquire(image, name, seeded(), ranges=IN_PLACE)).abs()
    assert moved.any() and moved.max() <= 0.025 * 128 + 2  # rotation and zoom about the middle


def test_a_view_turns_zooms_and_shifts_as_its_numbers_say() -> None:
    one_pixel = 2 / SIZE
    right = torch.tensor([[[1.0, 0.0, one_pixel], [0.0, 1.0, 0.0]]])
    image = phantom(1)
    torch.testing.assert_close(_move(image, right)[..., :-1], image[..., 1:])
    views = _views(_Draws((200,), seeded(), 1.0), RANGES.view)
    assert (views[:, :, 2].abs() <= 2 * RANGES.view.shift).all()
    scale = views[:, :, :2].det().sqrt()
    assert scale.max() <= RANGES.view.zoom + 1e-5 and scale.min() >= 1 / RANGES.view.zoom - 1e-5
    still = (views == torch.eye(2, 3)).flatten(1).all(1).float().mean()
    assert abs(1 - still - RANGES.view.chance) < 0.1


@pytest.mark.parametrize("name", IMAGE_STREAMS)
def test_the_order_of_greys_is_mostly_kept(name: str) -> None:
    image = phantom(48, 128)
    out = acquire(image, name, seeded(), geometry=False, ranges=EVERY)
    ranks = torch.tensor(
        [spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(image, out, strict=True)]
    )
    assert ranks.min() > 0.5 and ranks.median() > 0.85


def test_only_heads_are_stripped_and_only_of_their_shell() -> None:
    size = 128
    at = (2 * torch.arange(size) + 1) / size - 1
    radius = torch.hypot(at[:, None] / 0.9, at[None, :] / 0.75)
    image = torch.full((2, 1, size, size), -0.98)
    image[:, :, radius < 1] = 0.5  # scalp
    image[:, :, radius < 0.95] = -0.8  # skull
    image[:, :, radius < 0.9] = 0.0  # brain
    off = (0.0, 0.0)
    mr = dataclasses.replace(
        RANGES.mr, strip=1.0, curve=(0.0, 0.0, 0.0, 0.0), gamma=(0.0, 1.0), gain=(0.0, 1.0),
        bias=off, blur=off, thickness_px=off, noise=off,
    )  # fmt: skip
    only = dataclasses.replace(EVERY, mr=mr)
    heads = torch.tensor([True, False])
    out = acquire(image, "mri_t1", seeded(), geometry=False, head=heads, ranges=only)
    assert (out[0, 0][radius > 0.96] < -0.95).all()
    assert (out[0, 0][radius < 0.75] - image[0, 0][radius < 0.75]).abs().max() < 1e-5
    torch.testing.assert_close(out[1], image[1])


def test_the_curve_of_a_contrast_keeps_the_order_of_tissues() -> None:
    off, same = (0.0, 0.0), (0.0, 1.0)
    curve = (1.0, *RANGES.mr.curve[1:])
    mr = dataclasses.replace(
        RANGES.mr, curve=curve, gamma=(1.0, 1.35), gain=same, bias=off, blur=off, noise=off,
        thickness_px=off,
    )  # fmt: skip
    ramp = torch.linspace(-1, 0.8, SIZE).expand(64, 1, SIZE, SIZE)
    only = dataclasses.replace(EVERY, mr=mr)
    out = acquire(ramp, "mri_t1", seeded(), geometry=False, ranges=only)
    assert (out.diff(dim=-1) > 0).all()
    assert (out - ramp).abs().amax((1, 2, 3)).median() > 0.1


def test_a_picture_of_any_size_gets_the_same_blur() -> None:
    off = (0.0, 0.0)
    ct = dataclasses.replace(
        RANGES.ct, offset_hu=off, scale=(0.0, 1.0), soft_px=(1.0, 2.0), sharp=off, thickness_px=off,
        noise_hu=off, circle=off, frame=off,
    )  # fmt: skip
    only = dataclasses.replace(EVERY, ct=ct)
    large = phantom(6, 256)
    small = torch.nn.functional.avg_pool2d(large, 2)
    # white noise takes more numbers for a larger picture, but the blur's are drawn before it
    fine = acquire(large, "ct", seeded(), geometry=False, ranges=only)
    coarse = acquire(small, "ct", seeded(), geometry=False, ranges=only)
    apart = (torch.nn.functional.avg_pool2d(fine, 2) - coarse).abs().mean()
    assert apart < 0.1 * (coarse - small).abs().mean()


class NoReadOnHost(TorchDispatchMode):
    """Fails where a tensor's value decides what runs next, or a tensor is made from Python
    numbers: either makes the host wait for a GPU, and neither can be captured as a CUDA graph."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "index")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        assert name not in self.FORBIDDEN, f"{name} needs the host"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", IMAGE_STREAMS)
def test_nothing_is_read_on_the_host(name: str) -> None:
    image, head = phantom(2), torch.tensor([True, False])
    with NoReadOnHost():
        acquire(image, name, seeded(), head=head)


def test_control_a_read_on_the_host_is_seen() -> None:
    image = phantom(1)
    for reading in (
        lambda: image.max().item(),
        lambda: torch.tensor([1.0]),
        lambda: image[image > 0],
    ):
        with pytest.raises(AssertionError, match="host"), NoReadOnHost():
            reading()


@pytest.mark.cuda
@pytest.mark.parametrize("name", IMAGE_STREAMS)
def test_a_gpu_captures_it_and_draws_anew_at_every_replay(name: str) -> None:
    image, head = phantom(4).cuda(), torch.ones(4, dtype=torch.bool, device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    acquire(image, name, generator, head=head, ranges=EVERY)  # loads the libraries
    torch.cuda.set_sync_debug_mode("error")
    try:
        acquire(image, name, generator, head=head, ranges=EVERY)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        out = acquire(image, name, generator, head=head, ranges=EVERY)
    graph.replay()
    first = out.clone()
    graph.replay()
    assert out.isfinite().all() and out.abs().max() <= 1
    assert not torch.equal(first, out)


def test_half_precision_and_autocast_give_what_single_precision_gives() -> None:
    image = phantom(6).half().float()
    whole = acquire(image, "ct", seeded())
    half = acquire(image.half(), "ct", seeded())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), whole, atol=1e-3, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(acquire(image, "ct", seeded()), whole)


@pytest.mark.parametrize(
    ("image", "name", "strength", "error"),
    [
        (torch.zeros(2, 1, 8, 8), "text", 1.0, StreamError),
        (torch.zeros(2, 1, 8, 8), "pet", 1.0, StreamError),
        (torch.zeros(1, 8, 8), "ct", 1.0, StreamError),
        (torch.zeros(2, 3, 8, 8), "ct", 1.0, StreamError),
        (torch.zeros(2, 1, 8, 9), "ct", 1.0, StreamError),
        (torch.zeros(2, 1, 8, 8, dtype=torch.long), "ct", 1.0, StreamError),
        (torch.zeros(2, 1, 8, 8), "ct", -1.0, ValueError),
    ],
)
def test_what_cannot_be_acquired_is_refused(
    image: Tensor, name: str, strength: float, error: type[Exception]
) -> None:
    with pytest.raises(error):
        acquire(image, name, seeded(), strength)
