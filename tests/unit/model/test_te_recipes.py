"""Transformer Engine's recipes in its own words, and a rank's refusal where it is not."""

import ast
import inspect
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv3.config.precision import PrecisionConfig
from dsv3.errors import CapacityError
from dsv3.model.backends import te_recipes
from dsv3.model.backends.te_recipes import load_engine, recipe_of, row_multiple_of
from unit.model import fake_te

SHARED = {
    "backend": "te",
    "dispatch": "weights",
    "accumulate_bits": None,
    "dgrad_tiling": None,
    "promote_every": None,
}
SCALES = {"bf16": None, "fp8_block": "power_of_two", "fp8_current": "fp32", "mxfp8": "power_of_two"}


def precision(recipe: str, scales: str | None = None) -> PrecisionConfig:
    values = {"recipe": recipe, "scales": SCALES[recipe] if scales is None else scales}
    return PrecisionConfig.model_validate(SHARED | values)


@pytest.mark.parametrize("recipe", ["fp8_block", "fp8_current"])
@pytest.mark.parametrize("scales", ["power_of_two", "fp32"])
def test_scales_are_set_where_quantisers_read_them(
    monkeypatch: pytest.MonkeyPatch, recipe: str, scales: str
) -> None:
    fake_te.install(monkeypatch)
    found = recipe_of(precision(recipe, scales))
    assert found is not None and found.backward_override is None
    for tensor in ("fwd_inp", "fwd_weight", "bwd_grad"):
        qparams = getattr(found, f"fp8_quant_{tensor}")
        assert qparams.power_2_scale == (scales == "power_of_two")
        assert qparams.amax_epsilon == 0.0


def test_every_recipe_is_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_te.install(monkeypatch)
    assert recipe_of(precision("bf16")) is None
    block = recipe_of(precision("fp8_block"))
    assert isinstance(block, fake_te.Float8BlockScaling)
    assert block.fp8_format is fake_te.Format.E4M3
    current = recipe_of(precision("fp8_current"))
    assert isinstance(current, fake_te.Float8CurrentScaling)
    assert current.fp8_format is fake_te.Format.HYBRID
    assert isinstance(recipe_of(precision("mxfp8")), fake_te.MXFP8BlockScaling)
    multiples = [row_multiple_of(precision(recipe)) for recipe in SCALES]
    assert multiples == [1, 16, 16, 32]


# In a process of its own: with this variable the package loads none of its libraries, so that its
# recipes can be read without a GPU, and it stays so for the life of a process.
REAL = """
import os
os.environ["NVTE_PROJECT_BUILDING"] = "1"
os.environ["NVTE_BACKWARD_OVERRIDE"] = "high_precision"
import warnings
warnings.simplefilter("ignore")
from transformer_engine.common import recipe as recipes
from dsv3.model.backends.te_recipes import recipe_of
from dsv3.config.precision import PrecisionConfig
shared = dict(backend="te", dispatch="weights", accumulate_bits=None)
shared |= dict(dgrad_tiling=None, promote_every=None)
deaf = recipes.Float8BlockScaling(use_f32_scales=True)
assert deaf.fp8_quant_fwd_inp.power_2_scale, "the constructor listens: _with_scales can go"
for name, kind in (("fp8_block", "Float8BlockScaling"), ("fp8_current", "Float8CurrentScaling")):
    for scales in ("power_of_two", "fp32"):
        found = recipe_of(PrecisionConfig(recipe=name, scales=scales, **shared))
        assert type(found) is getattr(recipes, kind)
        assert found.backward_override is None
        for tensor in ("fwd_inp", "fwd_weight", "bwd_grad"):
            rounded = getattr(found, f"fp8_quant_{tensor}").power_2_scale
            assert rounded == (scales == "power_of_two"), (name, scales, tensor)
        assert str(scales == "power_of_two") in repr(found)
found = recipe_of(PrecisionConfig(recipe="mxfp8", scales="power_of_two", **shared))
assert type(found) is recipes.MXFP8BlockScaling and found.backward_override is None
print("held")
"""


def package() -> Path:
    """Where Transformer Engine's files are; skips the test if it is not installed."""
    spec = util.find_spec("transformer_engine")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("transformer-engine is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def test_the_packages_own_recipes_have_the_scales_asked_for() -> None:
    directory = package()
    root = Path(__file__).resolve().parents[3]
    environment = {"PYTHONPATH": f"{directory.parent}:{root / 'src'}"}
    done = subprocess.run(
        [sys.executable, "-c", REAL], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "held", done.stderr


@pytest.mark.slow
def test_the_packages_own_python_over_our_arithmetic_is_the_emulation() -> None:
    """A step through the package's layers, its compiled parts replaced: see te_on_cpu.py."""
    directory, root = package(), Path(__file__).resolve().parents[3]
    environment = {"PYTHONPATH": f"{directory.parent}:{root / 'src'}:{root / 'tests'}"}
    done = subprocess.run(
        [sys.executable, "-m", "unit.model.te_on_cpu"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["held"], done.stderr


@pytest.mark.parametrize(
    ("file", "owner", "function"),
    [
        ("module/linear.py", "Linear", "__init__"),
        ("module/linear.py", "Linear", "forward"),
        ("module/grouped_linear.py", "GroupedLinear", "__init__"),
        ("module/grouped_linear.py", "GroupedLinear", "forward"),
        ("module/rmsnorm.py", "RMSNorm", "__init__"),
        (
            "attention/dot_product_attention/dot_product_attention.py",
            "DotProductAttention",
            "__init__",
        ),
        ("quantization.py", "autocast", "__init__"),
        ("cpp_extensions/gemm.py", None, "general_gemm"),
        ("cpp_extensions/gemm.py", None, "general_grouped_gemm"),
    ],
)
def test_the_stand_in_has_the_packages_signatures(
    file: str, owner: str | None, function: str
) -> None:
    """Read from the source: the package cannot be imported without CUDA."""
    tree: Any = ast.parse((package() / "pytorch" / file).read_text(encoding="utf-8"))
    if owner is not None:
        tree = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == owner)
    definition = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
    arguments = [argument.arg for argument in definition.args.args]
    theirs = dict.fromkeys(arguments) | dict(
        zip(
            reversed(arguments),
            map(ast.literal_eval, reversed(definition.args.defaults)),
            strict=False,
        )
    )
    home = fake_te if owner is None else getattr(fake_te, owner)
    ours = {
        name: None if p.default is p.empty else p.default
        for name, p in inspect.signature(getattr(home, function)).parameters.items()
        if p.kind is p.POSITIONAL_OR_KEYWORD
    }
    assert ours == theirs


def test_a_module_looks_products_up_where_they_are_replaced() -> None:
    for file, name in (("linear", "general_gemm"), ("grouped_linear", "general_grouped_gemm")):
        text = (package() / "pytorch" / "module" / f"{file}.py").read_text(encoding="utf-8")
        tree = ast.parse(text)
        imported = [n for n in tree.body if isinstance(n, ast.ImportFrom) if name in _names(n)]
        assert len(imported) == 1, "imported once, by name, into the module itself"


def _names(node: ast.ImportFrom) -> set[str]:
    return {alias.asname or alias.name for alias in node.names}


def test_a_rank_without_a_gpu_is_refused() -> None:
    assert not torch.cuda.is_available()
    with pytest.raises(CapacityError, match=r"needs a GPU, and torch .* sees none") as caught:
        load_engine(precision("fp8_block"))
    assert "fp8_block_emulated" in str(caught.value)


@pytest.mark.parametrize(
    ("version", "said"),
    [(None, "not installed"), ("2.9.0", "here in version 2.9.0"), ("3.0", "here in version 3.0")],
)
def test_a_rank_wants_the_version_it_is_written_for(
    monkeypatch: pytest.MonkeyPatch, version: str | None, said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(te_recipes, "installed_version", lambda _: version)
    with pytest.raises(CapacityError, match=f"transformer-engine 2.20 is needed, and {said}"):
        load_engine(precision("bf16"))


def test_a_rank_says_why_the_package_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(te_recipes, "installed_version", lambda _: "2.20.2")
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", None)
    with pytest.raises(CapacityError, match=r"transformer-engine 2.20.2 cannot be imported"):
        load_engine(precision("bf16"))


def test_a_rank_asks_the_engine_for_the_recipes_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    te = fake_te.install(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(te_recipes, "installed_version", lambda _: "2.20.2")
    monkeypatch.delenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", raising=False)
    assert load_engine(precision("fp8_block")) is te

    def old(return_reason: bool) -> tuple[bool, str]:
        return False, "FP8 block scaled GEMM requires CUDA >= 12.9."

    monkeypatch.setattr(te, "is_fp8_block_scaling_available", old)
    with pytest.raises(CapacityError, match=r"requires CUDA >= 12\.9"):
        load_engine(precision("fp8_block"))
    assert load_engine(precision("fp8_current")) is te


def test_the_extra_asks_for_the_version_the_layers_are_written_for(checkout: Path) -> None:
    import tomllib

    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (line,) = project["optional-dependencies"]["gpu"]
    assert line.startswith("transformer-engine[") and f">={te_recipes.VERSION}" in line
    if metadata.packages_distributions().get("transformer_engine"):
        assert metadata.version("transformer-engine").startswith(te_recipes.VERSION)
