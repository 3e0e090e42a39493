"""What `precision.backend=te` is refused for, machine by machine."""

import pytest

from dsv3.config.compose import compose
from dsv3.errors import CapacityError
from dsv3.machine import Gpu, Machine
from dsv3.plan import te_capacity
from dsv3.plan.capacity import check_capacity

GIB = 2**30
AMPERE, ADA, HOPPER = ("A100", (8, 0)), ("L40S", (8, 9)), ("H200", (9, 0))
BLACKWELL, CONSUMER = ("B200", (10, 0)), ("RTX 5090", (12, 0))


def machine(*cards: tuple[str, tuple[int, int]]) -> Machine:
    gpus = tuple(Gpu(name, 140 * GIB, capability) for name, capability in cards)
    return Machine(gpus, cores=2, memory_bytes=64 * GIB, gpu_driver=None)


def refusal(
    monkeypatch: pytest.MonkeyPatch, there: Machine, *overrides: str, version: str | None
) -> str:
    """What is said, empty if nothing is refused."""
    monkeypatch.setattr(te_capacity, "installed_version", lambda _: version)
    config = compose(["model=moe_1b", "parallelism=single", *overrides]).config
    try:
        check_capacity(config, there)
    except CapacityError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("recipe", "able", "unable"),
    [
        ("fp8_block", [HOPPER, BLACKWELL], [AMPERE, ADA]),
        ("fp8_current", [ADA, HOPPER, BLACKWELL, CONSUMER], [AMPERE]),
        ("mxfp8", [BLACKWELL], [AMPERE, ADA, HOPPER, CONSUMER]),
    ],
)
def test_a_recipe_wants_its_hardware(
    monkeypatch: pytest.MonkeyPatch,
    recipe: str,
    able: list[tuple[str, tuple[int, int]]],
    unable: list[tuple[str, tuple[int, int]]],
) -> None:
    asked = f"precision={recipe}"
    for card in able:
        assert refusal(monkeypatch, machine(card), asked, version="2.20.2") == "", card
    for card in unable:
        text = refusal(monkeypatch, machine(card), asked, version="2.20.2")
        major, minor = card[1]
        assert f"precision.recipe={recipe}: needs" in text
        assert f"{card[0]} has {major}.{minor}" in text
        assert "precision=fp8_block_emulated" in text


def test_everything_that_is_missing_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ("precision=fp8_block", "launcher.device=cpu", "model.kv_lora_rank=500")
    text = refusal(monkeypatch, machine(), *overrides, version=None)
    for part in (
        "launcher.device=cpu: Transformer Engine (precision.backend=te) computes on GPUs",
        "needs a Hopper GPU (H100, H200, H800) or a newer one, and no CUDA GPU was found",
        "transformer-engine is not installed; pip install 'dsv3[gpu]'",
        "model.kv_lora_rank=500: FP8 products need widths that are multiples of 16",
        "model.kv_lora_rank+qk_rope_head_dim=564",
        "precision=fp8_block_emulated computes the same values on any machine",
        "precision=bf16",
    ):
        assert part in text


def test_layers_of_the_engine_in_bf16_want_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("precision=bf16", "precision.backend=te")
    text = refusal(monkeypatch, machine(), *asked, version=None)
    assert "precision.recipe=bf16: needs an Ampere GPU" in text
    assert "leave precision.backend=te out" in text
    assert refusal(monkeypatch, machine(AMPERE), *asked, version="2.20.2") == ""
    odd = (*asked, "model.kv_lora_rank=500")
    assert refusal(monkeypatch, machine(AMPERE), *odd, version="2.20.2") == ""


def test_fp32_scales_are_hoppers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("precision=fp8_block", "precision.scales=fp32")
    assert refusal(monkeypatch, machine(HOPPER), *asked, version="2.20.2") == ""
    text = refusal(monkeypatch, machine(BLACKWELL), *asked, version="2.20.2")
    assert "precision.scales=fp32: GPUs after Hopper" in text


def test_the_emulation_is_refused_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(monkeypatch, machine(), "precision=fp8_block_emulated", version=None) == ""


def test_shipped_models_have_widths_for_fp8_but_the_smallest() -> None:
    odd = {
        (model, recipe): [problem.setting for problem in te_capacity.odd_widths(config)]
        for model in ("moe_nano", "moe_tiny", "moe_1b", "moe_3b", "moe_16b", "moe_671b")
        for recipe in ("fp8_block", "mxfp8")
        for config in [compose([f"model={model}", f"precision={recipe}"]).config]
    }
    assert {key: settings for key, settings in odd.items() if settings} == {
        ("moe_nano", "fp8_block"): ["model.kv_lora_rank+qk_rope_head_dim=40"],
        ("moe_nano", "mxfp8"): [
            "model.moe_intermediate_size=48",
            "model.kv_lora_rank+qk_rope_head_dim=40",
        ],
        ("moe_tiny", "mxfp8"): ["model.kv_lora_rank+qk_rope_head_dim=80"],
    }
