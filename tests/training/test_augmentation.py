"""Picture augmentation: each change against its definition, and a slot's pictures the same in any
stack."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import functional as vision
from torchvision.transforms.v2 import functional as v2

from sweepstack.data import streams
from sweepstack.training.augmentation import (
    Augmentation,
    crop,
    cutout,
    erase,
    flip,
    jitter,
    rand_augment,
    resized_crop,
    rotate_and_translate,
    turn_hue,
)

CHANGES = ("crop", "flip", "affine", "cutout")
NEW = ("resized", "color", "hue", "operations", "erasing")
STRENGTHS = {
    "crop_padding": [4.0, 0.0, 2.0, 40.0],
    "horizontal_flip": [1.0, 1.0, 0.0, 1.0],
    "rotation": [15.0, 0.0, 180.0, 3.0],
    "translation": [0.1, 0.3, 0.0, 0.5],
    "cutout": [8.0, 0.0, 3.0, 100.0],
    "random_resized_crop": [0.08, 1.0, 0.5, 0.2],
    "random_resized_crop_ratio": [1.333, 1.0, 3.0, 1.5],
    "brightness": [0.4, 0.0, 2.0, 0.1],
    "contrast": [0.4, 0.0, 2.0, 0.1],
    "saturation": [0.4, 0.0, 2.0, 0.1],
    "hue": [0.1, 0.0, 0.5, 0.3],
    "rand_augment": [9.0, 30.0, 1.0, 15.0],
    "random_erasing": [0.5, 0.0, 1.0, 0.9],
}


def augmentation(*on):
    given = {change: change in on for change in (*CHANGES, *NEW)}
    return Augmentation(**given | {"operations": 2 * ("operations" in on)})


def strengths(slots=4, **constant):
    values = {name: torch.tensor(row)[:slots] for name, row in STRENGTHS.items()}
    return values | {name: torch.full((slots,), value) for name, value in constant.items()}


def keys(slots=4, step=0):
    return streams.split(torch.arange(slots), torch.tensor(step))


def pictures(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def numbers(samples, count, seed=1):
    u = torch.rand(samples, count, generator=torch.Generator().manual_seed(seed))
    return u if count > 1 else u.squeeze(1)


# --- a stack --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "on", [*((change,) for change in (*CHANGES, *NEW)), CHANGES, (*CHANGES, *NEW)]
)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 7, 13)])
def test_a_slots_pictures_are_bit_equal_alone_and_in_a_stack(on, shape):
    if "hue" in on and shape[0] != 3:
        pytest.skip("needs colors")
    x, change = pictures(4, 5, *shape), augmentation(*on)
    together = change(x, keys(), strengths())
    assert together.shape == x.shape
    assert not torch.equal(together, x)
    for slot in range(4):
        own = {name: values[[slot]] for name, values in strengths().items()}
        alone = change(x[[slot]], keys()[[slot]], own)
        assert torch.equal(together[[slot]], alone)


def test_a_pictures_numbers_do_not_depend_on_the_batch_size():
    x, change = pictures(4, 6, 3, 8, 8), augmentation(*CHANGES)
    assert torch.equal(change(x, keys(), strengths())[:, :2], change(x[:, :2], keys(), strengths()))


@pytest.mark.parametrize("change", [*CHANGES, *NEW])
def test_pictures_differ_between_samples_slots_and_steps(change):
    x = pictures(1, 1, 3, 32, 32).sigmoid().expand(4, 64, 3, 32, 32)
    given = strengths(
        **{"crop_padding": 4.0, "horizontal_flip": 1.0, "rotation": 20.0, "translation": 0.2},
        **{"cutout": 8.0, "random_resized_crop": 0.2, "brightness": 0.5, "hue": 0.3},
        **{"rand_augment": 20.0, "random_erasing": 0.5},
    )
    now, later = (augmentation(change)(x, keys(step=step), given) for step in (0, 1))
    assert not (now == now[:, :1]).flatten(2).all(-1)[:, 1:].all(1).any()
    assert not torch.equal(now[0], now[1])
    assert not torch.equal(now, later)


@pytest.mark.parametrize("other", ["crop", "affine", "cutout"])
def test_switching_a_change_on_does_not_alter_the_numbers_of_another(other):
    """The same pictures are mirrored, whatever else happens to them."""
    x = pictures(4, 64, 1, 9, 9)
    weak = strengths(
        horizontal_flip=1.0, crop_padding=0.0, rotation=1e-3, translation=0.0, cutout=0.0
    )
    alone = augmentation("flip")(x, keys(), weak)
    both = augmentation("flip", other)(x, keys(), weak)
    torch.testing.assert_close(both, alone, atol=1e-2, rtol=0)
    assert not torch.equal(alone, x)


def test_changes_draw_independent_numbers():
    """Where crop moves a dot says nothing about where cutout erases one."""
    n, dot = 2000, torch.zeros(1, 1, 1, 17, 17)
    dot[..., 8, 8] = 1.0
    given = strengths(1, crop_padding=8.0, cutout=1.0)
    moved = augmentation("crop")(dot.expand(1, n, 1, 17, 17), keys(1), given)
    erased = 1 - augmentation("cutout")(torch.ones(1, n, 1, 17, 17), keys(1), given)
    places = [picture.flatten(2).argmax(-1).squeeze(0) for picture in (moved, erased)]
    for axis in (lambda place: place % 17, lambda place: place // 17):
        columns = torch.stack([axis(place).double() for place in places])
        assert columns.std(1).min() > 4
        assert torch.corrcoef(columns)[0, 1].abs() < 5 / n**0.5


def test_any_says_whether_there_is_something_to_do():
    assert not augmentation().any
    assert all(augmentation(change).any for change in (*CHANGES, *NEW))
    x = pictures(2, 3, 1, 4, 4)
    assert torch.equal(augmentation()(x, keys(2), {}), x)


# --- each change ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    padding=st.integers(0, 50),
    seed=st.integers(0, 99),
)
def test_crop_cuts_a_window_out_of_the_padded_picture(size, padding, seed):
    x, u = pictures(3, 2, *size, seed=seed), numbers(3, 2, seed=seed)
    cropped = crop(x, u, torch.full((3,), float(padding)))
    height, width = size
    padded = F.pad(x, (padding,) * 4)
    for sample, (left, top) in enumerate((u * (2 * padding + 1)).long().tolist()):
        window = padded[sample, :, top : top + height, left : left + width]
        assert torch.equal(cropped[sample], window)


def test_crop_shifts_evenly_from_minus_to_plus_padding():
    x = torch.zeros(20_000, 1, 9, 9)
    x[:, :, 4, 4] = 1.0
    u = streams.uniform(torch.arange(20_000), 2)
    where = crop(x, u, torch.full((20_000,), 2)).flatten(1).nonzero()[:, 1]
    counts = torch.bincount(where, minlength=81).view(9, 9)
    assert counts.sum() == counts[2:7, 2:7].sum() == 20_000
    assert (counts[2:7, 2:7] - 800).abs().max() < 5 * 800**0.5


def test_flip_mirrors_half_of_the_pictures_where_it_is_on():
    x, enabled = pictures(4000, 2, 3, 5), torch.ones(4000)
    enabled[2000:] = 0
    flipped = flip(x, streams.uniform(torch.arange(4000), 1).squeeze(1), enabled)
    mirrored = (flipped == x.flip(-1)).flatten(1).all(1)
    assert ((flipped == x).flatten(1).all(1) ^ mirrored).all()
    assert not mirrored[2000:].any()
    assert mirrored[:2000].sum().item() == pytest.approx(1000, abs=5 * 500**0.5)


@pytest.mark.parametrize(
    ("angle", "right", "down"), [(0, 3, 0), (30, 0, 0), (-75, 0, 4), (160, -2, 3), (0, 0, 0)]
)
@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_rotation_then_translation_is_torchvisions(angle, right, down, size):
    x, (height, width) = pictures(1, 3, *size), size
    bilinear = vision.InterpolationMode.BILINEAR
    expected = vision.affine(x, float(angle), [right, down], 1.0, [0.0, 0.0], bilinear)
    # With the strengths 180° and 1/2 side, these numbers give the wanted angle and shifts.
    u = torch.tensor([[angle / 180 + 1, 2 * right / width + 1, 2 * down / height + 1]]) / 2
    ours = rotate_and_translate(x, u, torch.tensor([180.0]), torch.tensor([0.5]))
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_a_quarter_turn_moves_every_pixel():
    x = pictures(2, 3, 11, 11)
    u = torch.tensor([[1.0, 0.5, 0.5], [0.0, 0.5, 0.5]])
    turned = rotate_and_translate(x, u, torch.tensor([90.0, 90.0]), torch.zeros(2))
    expected = torch.stack((x[0].rot90(-1, (1, 2)), x[1].rot90(1, (1, 2))))
    torch.testing.assert_close(turned, expected, atol=1e-4, rtol=0)


def test_angles_and_shifts_fill_their_ranges():
    """A dot right of the center shows the angle; that of an unturned picture the shift."""
    n, side = 5000, 41
    x = torch.zeros(n, 1, side, side)
    x[:, :, 20, 32] = 1.0
    u = streams.uniform(torch.arange(n), 3)
    ramp = torch.arange(side).float() - 20

    def dots(rotation, translation):
        moved = rotate_and_translate(
            x, u, torch.full((n,), rotation), torch.full((n,), translation)
        ).squeeze(1)
        mass = moved.sum((1, 2))
        return (moved.sum(1) * ramp).sum(1) / mass, (moved.sum(2) * ramp).sum(1) / mass

    column, row = dots(30.0, 0.0)
    angles = torch.rad2deg(torch.atan2(row, column))
    torch.testing.assert_close(angles, 30 * (2 * u[:, 0] - 1), atol=0.5, rtol=0)
    column, row = dots(0.0, 0.1)
    shifts = 0.1 * side * (2 * u[:, 1:] - 1)
    torch.testing.assert_close(torch.stack((column - 12, row), 1), shifts, atol=1e-3, rtol=0)


def test_rotation_and_translation_of_0_keep_the_picture():
    x = pictures(8, 3, 28, 28)
    kept = rotate_and_translate(x, numbers(8, 3), torch.zeros(8), torch.zeros(8))
    torch.testing.assert_close(kept, x, atol=1e-4, rtol=0)


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    side=st.integers(0, 30),
    seed=st.integers(0, 99),
)
def test_cutout_erases_a_square_around_its_center(size, side, seed):
    x, u = pictures(4, 2, *size, seed=seed), numbers(4, 2, seed=seed)
    erased = cutout(x, u, torch.full((4,), float(side)))
    for sample, (column, row) in enumerate((u * torch.tensor(size[::-1])).long().tolist()):
        expected = x[sample].clone()
        top, left = row - side // 2, column - side // 2
        expected[:, max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = 0
        assert torch.equal(erased[sample], expected)


# --- crops, colors, RandAugment and erasing, against torchvision ----------------------------------


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_a_resized_crop_is_torchvisions(size):
    x, u, (height, width) = pictures(40, 3, *size), numbers(40, 4), size
    ours = resized_crop(x, u, torch.full((40,), 0.1), torch.full((40,), 4 / 3))
    seen = set()
    for row, (a, r, across, down) in enumerate(u.double().tolist()):
        area, ratio = (0.1 + 0.9 * a) * height * width, (4 / 3) ** (2 * r - 1)
        w = min(width, round((area * ratio) ** 0.5))
        h = min(height, round((area / ratio) ** 0.5))
        left, top = int(across * (width - w + 1)), int(down * (height - h + 1))
        bilinear = v2.InterpolationMode.BILINEAR
        expected = v2.resized_crop(x[row], top, left, h, w, [height, width], bilinear)
        torch.testing.assert_close(ours[row], expected, atol=1e-4, rtol=1e-4)
        seen.add((left, top, w, h))
    assert len(seen) > 30
    kept = resized_crop(x, u, torch.ones(40), torch.ones(40))
    if height == width:
        torch.testing.assert_close(kept, x, atol=1e-4, rtol=0)


def test_color_jitter_is_torchvisions():
    x, u = pictures(20, 3, 9, 7).sigmoid(), numbers(20, 3)
    v = torch.tensor([0.4, 0.2, 1.5, 0.0]).repeat(5)
    ours = jitter(x, u, v, v, v)
    for row, draws in enumerate(u.tolist()):
        low = max(0.0, 1 - float(v[row]))
        factors = [low + draw * (1 + float(v[row]) - low) for draw in draws]
        expected = v2.adjust_brightness(x[row], factors[0])
        expected = v2.adjust_contrast(expected, factors[1])
        expected = v2.adjust_saturation(expected, factors[2])
        torch.testing.assert_close(ours[row], expected, atol=1e-5, rtol=0)
    assert torch.equal(ours[3::4], x[3::4])  # no strength keeps the picture


def test_hue_is_torchvisions():
    x = pictures(20, 3, 9, 7).sigmoid()
    x[0], x[1, :, 0] = 0.5, 1.0  # grays have no hue
    turn = torch.linspace(-0.5, 0.5, 20)
    expected = torch.stack([v2.adjust_hue(x[row], float(turn[row])) for row in range(20)])
    torch.testing.assert_close(turn_hue(x, turn), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("magnitude", [9, 30])
def test_rand_augment_is_torchvisions(magnitude, channels, sign):
    m, size, bilinear = magnitude / 30, 11, v2.InterpolationMode.BILINEAR
    x = pictures(1, channels, size, size).sigmoid()
    factor, angle = 1 + 0.9 * m * sign, sign * math.degrees(math.atan(0.3 * m))
    moved = sign * m * size * 150 / 331

    def affine(rotation=0.0, right=0.0, down=0.0, shear=(0.0, 0.0)):
        return v2.affine(x, rotation, [right, down], 1.0, list(shear), bilinear)

    expected = {
        "identity": x,
        "shear_x": affine(shear=(angle, 0.0)),
        "shear_y": affine(shear=(0.0, angle)),
        "translate_x": affine(right=moved),
        "translate_y": affine(down=moved),
        "rotate": affine(rotation=30.0 * m * sign),
        "brightness": v2.adjust_brightness(x, factor),
        "color": v2.adjust_saturation(x, factor),
        "contrast": v2.adjust_contrast(x, factor),
        "sharpness": v2.adjust_sharpness(x, factor),
        "posterize": v2.posterize(x, 8 - round(4 * m)),
        "solarize": v2.solarize(x, 1 - m),
        "autocontrast": v2.autocontrast(x),
    }
    for place, (name, wanted) in enumerate(expected.items()):
        u = torch.tensor([[(place + 0.5) / len(expected), 0.25 if sign < 0 else 0.75]])
        ours = rand_augment(x, u, torch.tensor([m]))
        torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=0, msg=name)


def test_erasing_leaves_a_rectangle_of_zeros_as_often_as_asked():
    n, height, width = 2000, 20, 30
    x, probability = torch.ones(n, 2, height, width), torch.full((n,), 0.3)
    gone = erase(x, streams.uniform(torch.arange(n), 5), probability) == 0
    assert torch.equal(gone[:, 0], gone[:, 1])
    rows, columns = gone[:, 0].any(2), gone[:, 0].any(1)
    assert torch.equal(gone[:, 0], rows.unsqueeze(2) & columns.unsqueeze(1))  # a rectangle
    erased = gone.flatten(1).any(1)
    assert erased.float().mean() == pytest.approx(0.3, abs=5 * (0.21 / n) ** 0.5)
    share = gone[erased, 0].double().mean((1, 2))
    assert share.min() > 0.01
    assert share.max() < 0.36
    ratio = (rows.sum(1) / columns.sum(1))[erased]
    assert ratio.min() < 0.45
    assert ratio.max() > 2.2
    assert not (erase(x, torch.rand(n, 5), torch.zeros(n)) == 0).any()


def test_colors_change_the_raw_picture_of_normalized_data():
    raw, shift, scale = pictures(2, 4, 3, 6, 6).sigmoid(), 0.3, 0.2
    affine = {"shift": torch.full((3, 1, 1), shift), "scale": torch.full((3, 1, 1), scale)}
    plain = Augmentation(color=True, hue=True, operations=1)(raw, keys(2), strengths(2))
    given = Augmentation(color=True, hue=True, operations=1, **affine)
    normalized = given((raw - shift) / scale, keys(2), strengths(2))
    torch.testing.assert_close(normalized * scale + shift, plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize("change", [crop, flip, rotate_and_translate, cutout])
def test_a_broken_picture_does_not_touch_the_others(change):
    x = pictures(3, 2, 8, 8)
    broken = x.clone()
    broken[1] = float("nan")
    count = {crop: 2, flip: 1, rotate_and_translate: 3, cutout: 2}[change]
    amount = [torch.ones(3)] * (2 if change is rotate_and_translate else 1)
    a, b = (change(each, numbers(3, count), *amount) for each in (x, broken))
    assert torch.equal(a[[0, 2]], b[[0, 2]])
