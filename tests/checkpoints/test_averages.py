"""Averages of weights: found under every name and prefix, and never passed over in silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints.tiny import teacher_tensors, tokenizer_tensors
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dd2_fast import checkpoints
from dd2_fast.checkpoints.nesting import is_average

pytestmark = pytest.mark.usefixtures("family")
Tensors = dict[str, Tensor]
RAW, MEAN = teacher_tensors(), teacher_tensors(shift=1.0)
NAMES = [
    *("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "ema_params"),
    *("ema_parameters", "params_ema", "net_ema", "EMA", "modelEMA", "ema_0.9999"),
    *("swa_model", "averaged_model", "average", "model_avg", "shadow"),
    *("swaModel", "AveragedModel", "emaModel", "modelema", "movingAverage", "mean_teacher"),
]


def add(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: value for name, value in tensors.items()}


def counted(tensors: Tensors) -> Tensors:
    """What torch's AveragedModel saves."""
    return {"n_averaged": torch.tensor(3), **add("module.", tensors)}


def assert_is(model: nn.Module, tensors: Tensors) -> None:
    for name, value in model.state_dict().items():
        assert torch.equal(value, tensors[name]), name


PLACES: dict[str, Callable[[str, Tensors], Any]] = {
    "beside": lambda name, mean: {"model": RAW, name: mean},
    "alone": lambda name, mean: {"epoch": 3, name: mean},
    "first in the file": lambda name, mean: {name: mean, "state_dict": RAW, **RAW},
    "inside a trainer": lambda name, mean: {"trainer": {"var_wo_ddp": RAW, name: mean}},
    "inside an unknown name": lambda name, mean: {"run": {"weights": RAW, name: mean}},
    "with its counters": lambda name, mean: {
        "model": RAW,
        name: {"module": mean, "decay": 0.99, "num_updates": torch.tensor(4)},
    },
    "wrapped": lambda name, mean: {"model": RAW, name: add("module._orig_mod.", mean)},
    "inside a list": lambda name, mean: {"model": RAW, name: [mean]},
    "by its decay": lambda name, mean: {"model": RAW, name: {0.999: mean}},
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", PLACES)
def test_every_name_in_every_place(name: str, place: str):
    assert_is(checkpoints.load(PLACES[place](name, MEAN)), MEAN)


@pytest.mark.parametrize(
    "tree",
    [
        counted(MEAN),
        {"model": RAW, "other": counted(MEAN)},
        {"model": RAW, "other": add("module.", counted(MEAN))},
        {**add("model.", RAW), **add("ema_model.module.", MEAN)},
        {**RAW, **add("ema.", MEAN)},
        {**add("module.", RAW), **add("module.ema.", MEAN)},
        {"state_dict": {**add("net.", RAW), **add("net_ema.", MEAN)}},
        {
            **add("online_model.", RAW),
            **add("ema_model.", MEAN),
            **{"initted": torch.tensor(True), "step": torch.tensor(4)},
        },
        {"model": RAW, "ema": {"decay": 0.9, "shadow_params": list(MEAN.values())}},
        {
            **add("model.", RAW),
            **add("model_ema.", {k.replace(".", ""): v for k, v in MEAN.items()}),
        },
    ],
    ids=[
        *("torch's own", "beside raw weights", "under data parallelism", "by prefix", "mixed in"),
        *("by inner prefix", "lightning", "with its online model", "a list", "names without dots"),
    ],
)
def test_flattened_and_renamed(tree):
    assert_is(checkpoints.load(tree), MEAN)


def test_torchs_averaged_model(tmp_path: Path):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(3, 4), nn.Linear(4, 4)

    net = Net()
    average = AveragedModel(net)
    for _ in range(2):
        net.out.weight.data += 1
        average.update_parameters(net)
    torch.save({"model": net.state_dict(), "swa": average.state_dict()}, tmp_path / "x.pth")
    assert_is(checkpoints.load(tmp_path / "x.pth"), average.module.state_dict())
    torch.save(average.state_dict(), tmp_path / "x.pth")
    assert_is(checkpoints.load(tmp_path / "x.pth"), average.module.state_dict())


def test_the_average_keeps_its_own_dtype():
    raw = {name: value.bfloat16() for name, value in RAW.items()}
    assert_is(checkpoints.load({"model": raw, "model_ema": MEAN}), MEAN)


@pytest.mark.parametrize(
    "average",
    [
        {name: value for name, value in MEAN.items() if name != "table.weight"},
        {"shadow_params": list(MEAN.values())[:-1]},
        {"shadow_params": list(MEAN.values())[::-1]},
    ],
)
def test_an_average_that_cannot_be_read_is_named(average):
    with pytest.raises(ValueError, match=r"\(model\), .*expected the average beside it \(ema"):
        checkpoints.load({"model": RAW, "ema": average})


@pytest.mark.parametrize("missing", ["out.bias", "out.weight"])
def test_an_average_without_a_tensor_is_not_completed_by_raw_weights(missing: str):
    average = {name: value for name, value in MEAN.items() if name != missing}
    with pytest.raises(ValueError, match=rf"\(ema\): .*1 missing: {missing}"):
        checkpoints.load({"model": RAW, "ema": average})


@pytest.mark.parametrize(
    "beside",
    [
        {"ema": None},
        {"ema": {}},
        {"ema": {"decay": 0.99, "num_updates": torch.tensor(7)}},
        {"vae_ema": tokenizer_tensors()},
        {"discriminator_ema": {"main.0.weight": torch.zeros(4, 3)}},
        {"optimizer": {"state": {0: {"ema": torch.zeros(4)}}}},
    ],
)
def test_what_is_no_average_of_the_model_leaves_it(beside):
    assert_is(checkpoints.load({"model": RAW, **beside}), RAW)


def test_words_that_contain_the_letters_are_no_averages():
    for name in ("schema", "temaki", "swallow", "cinema_model", "weights", "averageness"):
        assert not is_average(name)
