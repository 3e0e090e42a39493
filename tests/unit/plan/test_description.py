"""The line a run is introduced with: its size, length, arm and layout."""

import pytest

from dsv3.config.compose import compose
from dsv3.plan.description import describe, describe_balance


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["balance=none"], "none"),
        (["balance=aux_loss"], "aux_loss (alpha 0.003)"),
        (["balance=aux_batch"], "aux_batch (alpha 0.003)"),
        (["balance=aux_loss_v2"], "aux_loss_v2 (alpha_1 0.003, alpha_2 0.05, alpha_3 0.02)"),
        (["balance=aux_free"], "aux_free (gamma 0.001)"),
        (["balance=aux_free_seq"], "aux_free_seq (gamma 0.001, alpha 0.0001)"),
        (
            ["balance=aux_free", "balance.bias_update_rule=zero_mean_sign"],
            "aux_free (gamma 0.001, zero_mean_sign)",
        ),
    ],
)
def test_an_arm_is_told_with_its_strengths(overrides: list[str], text: str) -> None:
    config = compose(["model=moe_228b", *overrides]).config
    assert describe_balance(config.balance) == text
    assert f" steps; balance {text}; 128 ranks (" in str(describe(config))


def test_mtp_is_told_where_there_is_some() -> None:
    with_mtp = describe(compose(["model=moe_nano", "balance=none", "mtp=depth1"]).config)
    assert str(with_mtp).endswith(" steps; balance none; mtp depth 1 (lambda 0.3); 1 rank")
    without = describe(compose(["model=moe_nano", "balance=none"]).config)
    assert str(without).endswith(" steps; balance none; 1 rank")
