"""One set of tests for every backend of ``sample_code``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ops.cases import COMPILERS, GPU_BACKENDS, device_of, pairwise_with_backends, runnable_backends
from ops.oracle import kept_codes
from scipy import stats
from torch import Tensor

from dd2_fast.ops import sample_code

BACKENDS = pytest.mark.parametrize("backend", runnable_backends())
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DRAWS = 200_000

# (rows, vocabulary, guided, top_k, top_p, temperature), each with the regime it covers
REGIMES = {
    "one_code": (3, 1, False, 0, 1.0, 1.0),
    "ragged": (1000, 101, True, 17, 0.9, 0.7),
    "no_filter": (300, 1000, True, 0, 1.0, 1.0),
    "top_p_only": (300, 2048, True, 0, 0.8, 1.3),
    "top_k_only": (300, 2048, False, 900, 1.0, 1.0),
    "blocks_and_tail": (300, 4099, False, 0, 1.0, 5.0),
    "llamagen": (40, 16384, True, 900, 1.0, 1.0),
}


def make_inputs(
    rows: int, vocabulary: int, guided: bool, backend: str, dtype=torch.float32
) -> dict:
    generator = torch.Generator().manual_seed(vocabulary)
    device = device_of(backend)
    cond = 2 * torch.randn(rows, vocabulary, generator=generator)
    uncond = cond + torch.randn(rows, vocabulary, generator=generator)
    scale = 1 + 2 * torch.rand(rows, generator=generator)
    return {
        "logits": cond.to(device, dtype),
        "uncond_logits": uncond.to(device, dtype) if guided else None,
        "guidance_scale": scale.to(device) if guided else 1.0,
    }


def exact_probabilities(
    cond: Tensor, uncond: Tensor | None, scale: float, top_k: int, top_p: float, temperature: float
) -> np.ndarray:
    """Of one row, by definition in float64."""
    guided = cond.double() if uncond is None else torch.lerp(uncond.double(), cond.double(), scale)
    guided = guided.numpy() / temperature
    mass = np.where(kept_codes(guided, top_k, top_p), np.exp(guided - guided.max()), 0.0)
    return mass / mass.sum()


@BACKENDS
@pytest.mark.parametrize(
    ("top_k", "top_p", "temperature"),
    [(0, 1.0, 1.0), (20, 1.0, 1.0), (0, 0.9, 2.0), (40, 0.8, 0.6)],
)
def test_draws_follow_the_distribution(backend: str, top_k: int, top_p: float, temperature: float):
    """Chi-square of one row drawn at many indices, codes expected under 5 times pooled."""
    inputs = make_inputs(1, 64, True, backend)
    inputs["guidance_scale"] = 1.5
    wanted = exact_probabilities(
        inputs["logits"][0].cpu(), inputs["uncond_logits"][0].cpu(), 1.5, top_k, top_p, temperature
    )
    for name in ("logits", "uncond_logits"):
        inputs[name] = inputs[name].expand(DRAWS, 64)
    drawn = sample_code(
        **inputs, top_k=top_k, top_p=top_p, temperature=temperature, seed=11, backend=backend
    )
    counts = np.bincount(drawn.cpu().numpy(), minlength=64).astype(float)
    assert not counts[wanted == 0].any()
    expected = DRAWS * wanted
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    assert stats.chisquare(counts, expected).pvalue > 1e-3


@pairwise_with_backends(regime=REGIMES, dtype=DTYPES)
def test_equals_the_float64_draw(backend: str, dtype: torch.dtype, regime: tuple) -> None:
    """The same codes as in double precision but for uniforms next to a boundary: the CDF errs by
    1e-7, so a draw among 4096 codes changes with probability below 4e-4."""
    rows, vocabulary, guided, top_k, top_p, temperature = regime
    inputs = make_inputs(rows, vocabulary, guided, backend, dtype)
    options = {"top_k": top_k, "top_p": top_p, "temperature": temperature, "seed": 5}
    drawn = sample_code(**inputs, **options, backend=backend)
    assert drawn.dtype == torch.int64 and drawn.shape == (rows,)
    double = {n: v.double() if isinstance(v, Tensor) else v for n, v in inputs.items()}
    exact = sample_code(**double, **options, backend="torch")
    assert (drawn != exact).sum() <= 1


@BACKENDS
def test_top_k_of_rows_that_mislead_a_sample(backend: str) -> None:
    """The CPU kernel takes its first threshold from vectors at multiples of 32: rows whose values
    there are the largest, the lowest, none at all, all equal or not finite."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(10, 16384, generator=generator)
    sampled = (torch.arange(16384) % 128 < 16).nonzero()[:, 0]
    rows[0, sampled] += 20
    rows[1, sampled] -= 20
    rows[2, sampled] = -torch.inf
    rows[3] = 1.0
    rows[4] = (rows[4] > 1.5).float()
    rows[5, 10:] = -torch.inf
    rows[6, sampled[7]] = torch.nan
    rows[7, 100] = torch.nan  # not among the sampled
    rows[8, 100] = torch.inf
    options = {"top_k": 900, "seed": 3}
    drawn = sample_code(rows.to(device_of(backend)), **options, backend=backend).cpu()
    exact = sample_code(rows.double(), **options, backend="torch")
    assert (drawn[6:9] == -1).all()
    assert (drawn != exact).sum() <= 1


@BACKENDS
def test_backends_agree_on_5000_rows(backend: str) -> None:
    inputs = make_inputs(5000, 1024, True, backend)
    options = {"top_k": 300, "top_p": 0.95, "temperature": 1.1, "seed": 2**40 + 1}
    drawn = sample_code(**inputs, **options, backend=backend)
    reference = sample_code(**inputs, **options, backend="torch")
    assert (drawn != reference).sum() <= 2


@BACKENDS
def test_a_draw_depends_on_seed_and_row_index_alone(backend: str) -> None:
    inputs = make_inputs(60, 200, False, backend)
    logits = inputs["logits"]
    drawn = sample_code(logits, seed=1, backend=backend)
    assert torch.equal(sample_code(logits[:25], seed=1, backend=backend), drawn[:25])
    other = torch.randn_like(logits)
    other[17] = logits[17]
    assert sample_code(other, seed=1, backend=backend)[17] == drawn[17]
    shaped = sample_code(logits.reshape(3, 4, 5, 200), seed=1, backend=backend)
    assert torch.equal(shaped, drawn.reshape(3, 4, 5))
    assert not torch.equal(sample_code(logits, seed=2, backend=backend), drawn)
    assert not torch.equal(sample_code(logits, seed=1 + 2**32, backend=backend), drawn)
    as_tensor = torch.tensor(1, device=logits.device)
    assert torch.equal(sample_code(logits, seed=as_tensor, backend=backend), drawn)
    order = torch.tensor([50, 3, 3, 17], device=logits.device)
    assert torch.equal(
        sample_code(logits[order], seed=1, index=order, backend=backend), drawn[order]
    )
    shaped = sample_code(logits[order, None], seed=1, index=order[:, None], backend=backend)
    assert torch.equal(shaped[:, 0], drawn[order])
    far = order + torch.tensor([2**40, 2**62, -(2**40), -1], device=logits.device)
    settings = {"seed": 1, "index": far}
    reference = sample_code(logits[order], **settings, backend="torch")
    assert torch.equal(sample_code(logits[order], **settings, backend=backend), reference)


@BACKENDS
def test_rows_with_seeds_of_their_own(backend: str) -> None:
    """Each draws what a call with its seed draws; 64 bits of each count, and its place still."""
    logits = make_inputs(8, 700, False, backend)["logits"]
    seeds = torch.tensor([5, 5, -1, 2**63 - 1, -(2**63), 1 + 2**32, 1, 0], device=logits.device)
    index = torch.tensor([0, 1, 0, 2**40, -3, 0, 0, 7], device=logits.device)
    for own in (None, index):
        rows = [
            sample_code(
                logits[i : i + 1], seed=int(seeds[i]), backend=backend,
                index=torch.tensor([i if own is None else int(own[i])], device=logits.device),
            )
            for i in range(8)
        ]  # fmt: skip
        assert torch.equal(
            sample_code(logits, seed=seeds, index=own, backend=backend), torch.cat(rows)
        )
    spread = seeds[:2, None].expand(2, 4)  # a seed for each image of several tokens
    shaped = {"seed": spread, "index": index.view(2, 4), "backend": backend}
    found = sample_code(logits.view(2, 4, 700), **shaped)
    wanted = sample_code(logits, seed=spread.flatten(), index=index, backend=backend)
    assert torch.equal(found.flatten(), wanted)
    with pytest.raises(ValueError, match=r"seed: expected shape \[8\].*got \[7\]"):
        sample_code(logits, seed=seeds[:7], backend=backend)


@BACKENDS
def test_small_temperature_is_greedy_and_large_is_uniform(backend: str) -> None:
    inputs = make_inputs(50, 300, False, backend)
    logits = inputs["logits"]
    for temperature in (1e-4, 1e-30):
        greedy = sample_code(logits, temperature=temperature, backend=backend)
        assert torch.equal(greedy, logits.argmax(-1))
    drawn = sample_code(logits.expand(40, 50, 300), temperature=1e30, backend=backend)
    assert abs(drawn.double().mean().item() - 149.5) < 5 * (300**2 / 12 / 2000) ** 0.5


@BACKENDS
@pytest.mark.parametrize("filters", [(0, 1.0), (7, 1.0), (0, 0.5), (150, 0.5), (0, 1e-6)])
def test_heavy_ties(backend: str, filters: tuple[int, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    levels = torch.tensor([0.0, -0.0, 1.5, -2.0, 3.0])
    logits = levels[torch.randint(5, (100, 700), generator=generator)]
    logits[50:].clamp_(max=0)
    options = {"top_k": filters[0], "top_p": filters[1], "seed": 4}
    drawn = sample_code(logits.to(device_of(backend)), **options, backend=backend).cpu()
    exact = sample_code(logits.double(), **options, backend="torch")
    assert (drawn != exact).sum() <= 1


@BACKENDS
@pytest.mark.parametrize("filters", [{}, {"top_k": 30}, {"top_p": 0.9}], ids=["none", "k", "p"])
def test_invalid_rows_give_minus_one_alone(backend: str, filters: dict) -> None:
    inputs = make_inputs(9, 200, True, backend)
    clean = sample_code(**inputs, **filters, backend=backend)
    inputs["logits"][1, 7] = torch.nan
    inputs["uncond_logits"][2, 199] = torch.nan
    inputs["logits"][3] = -torch.inf
    inputs["logits"][4, 3] = torch.inf
    inputs["uncond_logits"][6] = -torch.inf
    inputs["guidance_scale"][7] = torch.nan
    drawn = sample_code(**inputs, **filters, backend=backend).cpu()
    bad = torch.zeros(9, dtype=torch.bool)
    bad[[1, 2, 3, 4, 6, 7]] = True
    assert (drawn[bad] == -1).all()
    assert torch.equal(drawn[~bad], clean.cpu()[~bad])


@BACKENDS
@pytest.mark.parametrize("filters", [{}, {"top_k": 300}, {"top_p": 0.99}], ids=["none", "k", "p"])
def test_minus_infinity_is_never_drawn(backend: str, filters: dict) -> None:
    inputs = make_inputs(4000, 300, True, backend)
    inputs["logits"][:, 0:100] = -torch.inf
    inputs["uncond_logits"][:, 60:298] = -torch.inf
    drawn = sample_code(**inputs, **filters, temperature=100.0, backend=backend)
    assert set(drawn.tolist()) == {298, 299}


@BACKENDS
def test_strided_inputs(backend: str) -> None:
    plain = make_inputs(60, 64, True, backend)
    strided = dict(plain)
    for name in ("logits", "uncond_logits"):
        wide = torch.full((60, 3 * 64), torch.nan, device=plain[name].device)
        wide[:, 64:128] = plain[name]
        strided[name] = wide[:, 64:128]
    wanted = sample_code(**plain, top_k=20, backend=backend)
    assert torch.equal(sample_code(**strided, top_k=20, backend=backend), wanted)
    columns = dict(plain, logits=plain["logits"].T.contiguous().T)
    assert torch.equal(sample_code(**columns, top_k=20, backend=backend), wanted)
    alone = dict(plain, uncond_logits=strided["uncond_logits"])
    assert torch.equal(sample_code(**alone, top_k=20, backend=backend), wanted)


@BACKENDS
def test_shapes(backend: str) -> None:
    logits = make_inputs(6, 40, False, backend)["logits"]
    assert sample_code(logits[:0], backend=backend).shape == (0,)
    assert sample_code(logits.reshape(2, 3, 40)[:, :0], backend=backend).shape == (2, 0)
    assert sample_code(logits[0], backend=backend).shape == ()
    shaped = logits.reshape(2, 3, 40)
    per_token = torch.tensor([1.0, 2.0, 3.0], device=logits.device)
    drawn = sample_code(
        shaped, uncond_logits=-shaped, guidance_scale=per_token, seed=3, backend=backend
    )
    flat = sample_code(
        logits, uncond_logits=-logits, guidance_scale=per_token.repeat(2), seed=3, backend=backend
    )
    assert torch.equal(drawn, flat.reshape(2, 3))


@BACKENDS
def test_opcheck(backend: str) -> None:
    inputs = make_inputs(4, 30, True, backend)
    logits, seed = inputs["logits"], torch.tensor(3, device=inputs["logits"].device)
    for uncond in (inputs["uncond_logits"], None):
        torch.library.opcheck(
            torch.ops.dd2_fast.sample_code.default,
            (logits, uncond, inputs["guidance_scale"], seed, None, 10, 0.9, 0.8, backend),
        )


@BACKENDS
@COMPILERS
def test_compiles_without_graph_breaks(backend: str, compiler: str) -> None:
    inputs = make_inputs(12, 64, True, backend)
    logits = inputs.pop("logits")

    def draw(logits: Tensor, seed: Tensor | int) -> Tensor:
        return sample_code(logits * 1.5, **inputs, top_k=10, seed=seed, backend=backend) + 1

    compiled = torch.compile(draw, fullgraph=True, backend=compiler)
    for seed in (7, 8, torch.tensor(9, device=logits.device)):
        assert torch.equal(compiled(logits, seed), draw(logits, seed))


@pytest.mark.parametrize("backend", runnable_backends(GPU_BACKENDS))
def test_cuda_graph_reads_the_seed_at_replay(backend: str) -> None:
    inputs = make_inputs(32, 512, True, backend)
    seed = torch.tensor(1, device="cuda")
    sample_code(**inputs, top_k=50, seed=seed, backend=backend)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sample_code(**inputs, top_k=50, seed=seed, backend=backend)
    for value in (1, 2):
        seed.fill_(value)
        captured.fill_(-7)
        graph.replay()
        assert torch.equal(captured, sample_code(**inputs, top_k=50, seed=value, backend=backend))


BAD = {
    "logits type": ({"logits": [0.0]}, TypeError, "logits: expected a torch.Tensor, got list"),
    "logits dtype": ({"logits": torch.zeros(4, 9).int()}, TypeError, "logits.*got int32"),
    "logits empty": ({"logits": torch.zeros(4, 0)}, ValueError, "logits: expected .* V >= 1"),
    "uncond shape": ({"uncond_logits": torch.zeros(4, 8)}, ValueError, r"uncond_logits.*\[4, 8\]"),
    "scale alone": ({"guidance_scale": 2.0}, ValueError, "guidance_scale.*uncond_logits"),
    "top_k": ({"top_k": -1}, ValueError, "top_k.*got -1"),
    "top_p": ({"top_p": 0.0}, ValueError, r"top_p: .*\(0, 1\], got 0.0"),
    "temperature": ({"temperature": 0.0}, ValueError, "temperature: expected .*1e-30.*got 0.0"),
    "temperature nan": ({"temperature": float("nan")}, ValueError, "temperature: .*got nan"),
    "temperature type": ({"temperature": "hot"}, TypeError, "temperature: .*number, got str"),
    "temperature array": ({"temperature": np.ones(1)}, TypeError, "temperature: .*numpy.ndarray"),
    "seed type": ({"seed": 1.5}, TypeError, "seed: expected an int or .*got float"),
    "seed size": ({"seed": 2**63}, ValueError, "seed: expected .*64 bits, got 9223372036854775808"),
    "seed dtype": ({"seed": torch.tensor(1.0)}, TypeError, "seed: .*int64, got float32"),
    "seed shape": (
        {"seed": torch.tensor([1])}, ValueError, r"seed: expected shape \[\d+\].*or \[\].*\[1\]",
    ),
    "seed device": (
        {"seed": torch.tensor(1, device="meta")}, ValueError, "seed: expected device cpu",
    ),
    "index type": ({"index": [0]}, TypeError, "index: expected a torch.Tensor, got list"),
    "index dtype": ({"index": torch.zeros(4)}, TypeError, "index: .*int64, got float32"),
    "index shape": ({"index": torch.arange(3)}, ValueError, r"index: .*\[4\].*got \[3\]"),
    "backend": ({"backend": "metal"}, ValueError, "backend.*'torch', got 'metal'"),
    "gradient": (
        {"logits": torch.zeros(4, 9, requires_grad=True)}, ValueError, "logits: .*constant",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change,error,message", BAD.values(), ids=BAD.keys())
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"logits": torch.zeros(4, 9)}
    sample_code(**arguments)
    with pytest.raises(error, match=message):
        sample_code(**{**arguments, **change})


def test_numpy_scalars() -> None:
    logits = torch.randn(6, 30, generator=torch.Generator().manual_seed(0))
    wanted = sample_code(logits, seed=2**40, top_k=9, temperature=0.5)
    scalars = {"seed": np.int64(2**40), "top_k": np.uint16(9), "temperature": np.float32(0.5)}
    assert torch.equal(sample_code(logits, **scalars), wanted)
