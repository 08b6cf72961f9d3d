"""Editing: exact properties for every family, and draws against what teacher forcing says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dd2_fast.models import VARTeacher
from dd2_fast.models.editing import check_mask, edit_tokens, faded
from dd2_fast.models.families import FAMILIES

LABELS = torch.tensor([3, 7])
NONE = {"cfg": None, "top_k": 0, "top_p": 1.0}


@pytest.fixture(params=FAMILIES)
def teacher(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    teacher = FAMILIES[request.param].random().eval().requires_grad_(False)
    for name, parameter in teacher.named_parameters():
        if "ada_lin" in name:
            nn.init.normal_(parameter, std=0.1)
    if request.param == "causal":  # whose random encoder makes one code of everything
        latents = teacher.tokenizer.latents(torch.rand(4, 3, 8, 8))
        teacher.tokenizer.set_raw_codebook(latents.flatten(0, 1))
        teacher.codebook.copy_(teacher.tokenizer.codebook)
    return teacher


@pytest.fixture
def images(teacher: Any) -> Tensor:
    size = teacher.tokenizer.decode(teacher.codebook[:1].expand(1, teacher.num_tokens, -1)).shape
    return torch.rand(2, *size[1:], generator=torch.Generator().manual_seed(1))


def half(images: Tensor) -> Tensor:
    mask = torch.zeros(images.shape[-2:], dtype=torch.bool)
    mask[mask.shape[0] // 2 :] = True
    return mask


def decoded(teacher: Any, tokens: Tensor) -> Tensor:
    return teacher.tokenizer.decode(teacher.tokenizer.embed(tokens))


def test_nothing_masked_is_the_reconstruction(teacher: Any, images: Tensor) -> None:
    mask = torch.zeros(2, 1, *images.shape[-2:], dtype=torch.bool)
    expected = decoded(teacher, teacher.tokenizer.encode(images))
    torch.testing.assert_close(teacher.edit(images, mask, LABELS), expected, atol=1e-6, rtol=0)
    assert torch.equal(teacher.edit(images, mask, LABELS, keep_pixels=True), images)


def test_everything_masked_is_a_plain_draw(teacher: Any, images: Tensor) -> None:
    mask = torch.ones(images.shape[-2:], dtype=torch.bool)
    for settings in ({"cfg": 2.0, "top_k": 20, "seed": 4}, {"cfg": teacher.unguided}):
        expected = decoded(teacher, teacher.sample(LABELS, **settings))
        torch.testing.assert_close(
            teacher.edit(images, mask, LABELS, **settings), expected, atol=1e-5, rtol=0
        )


def test_outside_the_mask_is_the_reconstruction(teacher: Any, images: Tensor) -> None:
    """And inside what is drawn, a function of the seed."""
    size, cell = images.shape[-1], images.shape[-1] // 4
    mask, away = torch.zeros(size, size, dtype=torch.bool), slice(0, size - 2 * cell)
    mask[size - cell :] = True
    made = teacher.edit(images, mask, LABELS, seed=2)
    expected = decoded(teacher, teacher.tokenizer.encode(images))
    torch.testing.assert_close(made[..., away, :], expected[..., away, :], atol=1e-6, rtol=0)
    kept = teacher.edit(images, mask, LABELS, seed=2, keep_pixels=True)
    assert torch.equal(kept * ~mask, images * ~mask)
    torch.testing.assert_close(kept * mask, made * mask, atol=1e-6, rtol=0)
    for other in (teacher.edit(images, mask, LABELS, seed=3), expected):
        assert ((made - other).abs() * mask).flatten(1).amax(1).min() > 1e-4


def test_it_fades_over_one_token() -> None:
    """Linearly, and from a corner no farther; by counting pixels."""
    mask = torch.zeros(1, 1, 20, 20, dtype=torch.bool)
    mask[..., 12:, 12:] = True
    weight = faded(mask, 4)[0, 0]
    assert torch.equal(weight[12:, 12:], torch.ones(8, 8))
    torch.testing.assert_close(weight[15, 7:12], torch.tensor([0, 0.2, 0.4, 0.6, 0.8]))
    assert weight[8:12, 8:12].max() < 0.8 and weight[:8].max() == 0 == weight[:, :8].max()


def test_the_mask_of_each_image_is_its_own(teacher: Any, images: Tensor) -> None:
    """One image is drawn as alone, whatever its neighbour's mask."""
    both = torch.stack([half(images), ~half(images)])[:, None]
    made = teacher.edit(images, both, LABELS, seed=5, keep_pixels=True)
    alone = teacher.edit(images[:1], both[:1], LABELS[:1], seed=5, keep_pixels=True)
    torch.testing.assert_close(made[:1], alone, atol=1e-5, rtol=0)
    assert torch.equal(made.where(~both, 0), images.where(~both, 0))
    assert ((made - images).abs() * both).flatten(1).amax(1).min() > 0.01


def test_images_by_their_numbers(teacher: Any, images: Tensor) -> None:
    mask = half(images)
    both = teacher.edit(images, mask, LABELS, seed=5)
    last = teacher.edit(images[1:], mask, LABELS[1:], seed=5, index=torch.tensor([1]))
    torch.testing.assert_close(last, both[1:], atol=1e-5, rtol=0)


def tokens_of(teacher: Any, known: Any, **settings: Any) -> Tensor:
    return edit_tokens(teacher, known, LABELS, **{**NONE, "seed": 3, **settings})


def known_of(teacher: Any, images: Tensor, mask: Tensor) -> Any:
    return teacher.tokenizer.known(images, check_mask(mask, images))


@pytest.mark.parametrize("guided", [False, True])
def test_drawn_tokens_follow_all_that_came_before(
    teacher: Any, images: Tensor, guided: bool
) -> None:
    """The likeliest codes of teacher forcing over the finished tokens are those drawn with top-k 1,
    at the drawn positions, and there alone."""
    known = known_of(teacher, images, half(images))
    cfg = 3.0 if guided else None
    tokens = tokens_of(teacher, known, top_k=1, cfg=cfg)
    logits = teacher.logits(tokens, LABELS)
    if guided:
        null = teacher.logits(tokens, torch.full_like(LABELS, teacher.num_classes))
        scale = torch.as_tensor(teacher.guidance_scale(cfg)).expand(teacher.num_tokens)
        logits = null + scale[:, None] * (logits - null)
    drawn = known.drawn
    assert torch.equal(tokens[drawn], logits.argmax(-1)[drawn])
    assert (tokens != logits.argmax(-1))[~drawn].any()


def test_the_first_steps_are_those_of_the_start(teacher: Any, images: Tensor) -> None:
    shape = 2, teacher.num_tokens
    start = torch.randint(len(teacher.codebook), shape, generator=torch.Generator().manual_seed(4))
    kept = teacher.steps[-1].start
    known = known_of(teacher, images, half(images))
    tokens = tokens_of(teacher, known, start=start, kept=kept, top_k=1)
    first, drawn = slice(0, kept), known.drawn
    assert torch.equal(tokens[:, first][drawn[:, first]], start[:, first][drawn[:, first]])
    logits = teacher.logits(tokens, LABELS).argmax(-1)
    assert torch.equal(tokens[:, kept:][drawn[:, kept:]], logits[:, kept:][drawn[:, kept:]])
    again = known_of(teacher, images, half(images))
    whole = tokens_of(None, again, start=start, kept=teacher.num_tokens)
    assert torch.equal(whole[drawn], start[drawn])


def passes_of(teacher: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled by every pass of the first block: how many tokens it reads."""
    block, seen = teacher.backbone.blocks[0] if hasattr(teacher, "backbone") else None, []
    block = teacher.blocks[0] if block is None else block
    forward = block.forward

    def run(h: Tensor, *args: Any, **settings: Any) -> Tensor:
        seen.append(h.shape[1])
        return forward(h, *args, **settings)

    monkeypatch.setattr(block, "forward", run)
    return seen


@pytest.mark.parametrize("guided", [False, True])
def test_only_drawn_tokens_cost_a_pass(
    teacher: Any, images: Tensor, monkeypatch: pytest.MonkeyPatch, guided: bool
) -> None:
    """What is known up to the next drawn token is read by one, and what comes after the last drawn
    one by none; the tokens are those of all steps one by one, in float64."""
    teacher, images = teacher.double(), images.double()
    teacher.tokenizer.double()
    grid = teacher.tokenizer.grid or 4
    pixels, cell = images.shape[-1], images.shape[-1] // grid
    cells = [(0, 2), (1, 1), (1, 2)]  # rows and columns; of the second image the last one alone
    mask = torch.zeros(2, 1, pixels, pixels, dtype=torch.bool)
    for image, drawn in enumerate((cells, cells[-1:])):
        for row, column in drawn:
            mask[image, 0, row * cell, column * cell] = True
    settings = {"cfg": 2.0 if guided else None, "top_k": 9}
    seen = passes_of(teacher, monkeypatch)
    found = tokens_of(teacher, known_of(teacher, images, mask), **settings)
    counted = list(seen)

    generate = teacher.generate
    monkeypatch.setattr(
        teacher, "generate", lambda *args, drawn_steps, **given: generate(*args, **given)
    )
    known, take = known_of(teacher, images, mask), []
    monkeypatch.setattr(known, "take", lambda *a, f=known.take: (take.append(a[0]), f(*a))[1])
    assert torch.equal(tokens_of(teacher, known, **settings), found)
    assert take == teacher.steps
    steps = [own.stop - own.start for own in teacher.steps]
    assert seen[len(counted) :] == steps
    if isinstance(teacher, VARTeacher):
        assert counted == steps  # the finest scale is drawn, and scales are read one by one
        return
    places = [row * grid + column for row, column in cells]
    assert counted == [places[0] + 1, *np.diff(places)]
    assert len(counted) == 3 and len(steps) == 16


def test_nothing_drawn_costs_no_pass(
    teacher: Any, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = passes_of(teacher, monkeypatch)
    known = known_of(teacher, images, torch.zeros(images.shape[-2:], dtype=torch.bool))
    assert torch.equal(tokens_of(teacher, known), teacher.tokenizer.encode(images))
    start = torch.zeros(2, teacher.num_tokens, dtype=torch.int64)
    whole = known_of(teacher, images, torch.ones(images.shape[-2:], dtype=torch.bool))
    assert torch.equal(tokens_of(teacher, whole, start=start, kept=teacher.num_tokens), start)
    assert not seen


def test_known_tokens_of_a_raster_are_the_image_s() -> None:
    teacher = FAMILIES["llamagen"].random().eval()
    images = torch.rand(2, 3, 8, 8)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[3, 5] = True  # one pixel: the token of row 1, column 2 of 4 x 4
    known = known_of(teacher, images, mask)
    assert known.drawn.nonzero().tolist() == [[0, 6], [1, 6]]
    tokens = tokens_of(teacher, known)
    expected = teacher.tokenizer.encode(images)
    kept = torch.arange(16) != 6
    assert torch.equal(tokens[:, kept], expected[:, kept])


def _area(maps: np.ndarray, side: int) -> np.ndarray:
    """Averages [C, side, side] of maps [C, g, g] over the cells that adaptive pooling takes."""
    g = maps.shape[-1]
    edges = [(i * g // side, -(-(i + 1) * g // side)) for i in range(side)]
    cells = [[maps[:, a:b, c:d].mean((1, 2)) for c, d in edges] for a, b in edges]
    return np.array(cells).transpose(2, 0, 1)


def test_known_scales_make_up_for_what_was_drawn() -> None:
    """In float64 NumPy: every known code is the nearest to what the codes before it left over."""
    torch.manual_seed(0)
    teacher = FAMILIES["var"].random().double().eval().requires_grad_(False)
    tokenizer = teacher.tokenizer.double()
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:5, 3:] = True
    known = known_of(teacher, images, mask)
    tokens = tokens_of(teacher, known)
    shares = [_area(mask[None].double().numpy(), side)[0] for side in (1, 2, 3, 4)]
    cells = [*(share > 0.5 for share in shares[:3]), shares[3] > 0]
    drawn = np.concatenate([cell.ravel() for cell in cells])
    assert known.drawn.numpy().tolist() == [drawn.tolist()] * 2
    assert [int(cell.sum()) for cell in cells] == [0, 1, 4, 9]

    book, quantizer = tokenizer.codebook.numpy(), tokenizer.quantize
    for image, row in enumerate(tokens):
        rest = known.features[image].numpy()
        for k, (own, side) in enumerate(zip(teacher.steps, (1, 2, 3, 4), strict=True)):
            cells = _area(rest, side).reshape(len(rest), -1).T
            nearest = ((cells[:, None] - book) ** 2).sum(-1).argmin(1)
            found, free = row[own].numpy(), drawn[own]
            assert (found == nearest)[~free].all()
            codes = tokenizer.codebook[row[own]][None]
            rest = rest - quantizer.add_scale(None, codes, k)[0].numpy()


def test_what_is_decoded_outside_is_the_encoded_image() -> None:
    """The decoder's input, cell by cell."""
    teacher = FAMILIES["var"].random().eval().requires_grad_(False)
    tokenizer, seen = teacher.tokenizer, []
    images = torch.rand(1, 3, 8, 8)
    mask = half(images)
    known = known_of(teacher, images, mask)
    tokens = torch.randint(64, (1, teacher.num_tokens))
    tokenizer.post_quant_conv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    known.decode(tokens)
    own = tokenizer.f_hat(tokenizer.embed(tokenizer.encode(images)))
    made = tokenizer.f_hat(tokenizer.embed(tokens))
    torch.testing.assert_close(seen[0][..., :2, :], own[..., :2, :], atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[0][..., 2:, :], made[..., 2:, :], atol=1e-5, rtol=0)


def test_wrong_arguments_are_named(teacher: Any, images: Tensor) -> None:
    mask, size = half(images), list(images.shape[-2:])
    for wrong, error, message in (
        ((images * 255, mask), ValueError, r"images: expected values in \[0, 1\], got .* to 25"),
        ((images * torch.nan, mask), ValueError, r"images: expected values in \[0, 1\], got nan"),
        ((images.numpy(), mask), TypeError, "images: expected a float torch.Tensor, got ndarray"),
        ((images[0], mask), ValueError, r"images: expected shape \['B', c, H, W\], got \[3"),
        ((images[..., :2, :2], mask[:2, :2]), ValueError, "images: expected shape .*, got .*2, 2"),
        ((images, mask.float()), TypeError, "mask: expected a bool .* got torch.float32"),
        ((images, mask[1:]), ValueError, rf"mask: expected shape \[{size[0]}, {size[1]}\].* got"),
        ((images, mask.expand(3, 1, *size)), ValueError, r"mask: expected .* got \[3, 1"),
    ):
        with pytest.raises(error, match=message):
            teacher.edit(*wrong, LABELS)
    for index, error, message in (
        ([0, 1], TypeError, "index: expected an int64 .* got list"),
        (torch.zeros(2), TypeError, "index: expected an int64 .* got torch.float32"),
        (torch.zeros(3, dtype=torch.int64), ValueError, r"index: expected shape \[2\].* got \[3\]"),
        (torch.tensor([0, -1]), ValueError, "index: expected at least 0, got -1"),
    ):
        with pytest.raises(error, match=message):
            teacher.edit(images, mask, LABELS, index=index)
    with pytest.raises(ValueError, match=r"labels: expected shape \[2\], got \[1\]"):
        teacher.edit(images, mask, LABELS[:1])
    teacher.tokenizer = None
    with pytest.raises(RuntimeError, match="tokenizer: .* needs one to edit, and has none"):
        teacher.edit(images, mask, LABELS)
