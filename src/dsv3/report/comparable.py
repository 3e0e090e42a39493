"""Which published number stands beside a run of ours, and why the two do not compare."""

from dsv3.config.root import RunConfig
from dsv3.plan.parameters import count_parameters
from dsv3.plan.quantities import count
from dsv3.report.paper import TRAINED_ON, HeatMap, Reference, Row, Scale

_SAME = 0.05
"""Relative difference up to which sizes and lengths count as the same."""


def scale_for(reference: Reference, config: RunConfig) -> Scale:
    """The published scale of the run's model, else the smallest."""
    same = [scale for scale in reference.scales if scale.model == config.model.name]
    return same[0] if same else reference.scales[0]


def column_for(reference: Reference, config: RunConfig) -> int | None:
    """Which published arm the run is the counterpart of, as an index; None: of none."""
    matching = (i for i, column in enumerate(reference.columns) if column.matches(config))
    return next(matching, None)


def not_comparable_because(
    reference: Reference, scale: Scale, row: Row | None, config: RunConfig
) -> tuple[str, ...]:
    """Why the run's figure is not the published one of `row`, whatever their values are.

    `row` None asks for the result as a whole. Never empty: the corpus is not public.
    """
    if row is not None and row.metric is None:
        return ("not measured here",)
    reasons = []
    parameters = count_parameters(config.model).total
    if not _alike(parameters, scale.parameters):
        reasons.append(f"{_short(parameters)} parameters here, {_short(scale.parameters)} there")
    tokens = config.schedule.total_tokens
    if not _alike(tokens, scale.tokens):
        reasons.append(f"{_short(tokens)} tokens here, {_short(scale.tokens)} there")
    ours = "installed text" if config.data.source == "installed_text" else "the text in data.path"
    reasons.append(f"trained on {ours} here, there on {TRAINED_ON}")
    if row is not None and row.set is not None:
        reasons.append(f"measured on held-out text of it here, on {row.set} there")
    if config.model.name == scale.model:  # elsewhere it is the least of the reasons
        reasons.append(f"not published: {reference.unstated}")
    return tuple(reasons)


def chosen_layers(heat_map: HeatMap, config: RunConfig) -> tuple[int, ...]:
    """The MoE layers of the run at the relative depth of those in the figure."""
    model = config.model
    moe_layers = range(model.first_k_dense_replace, model.num_hidden_layers)
    if len(moe_layers) == 0:
        return ()
    wanted = [layer * model.num_hidden_layers / heat_map.of_layers for layer in heat_map.layers]
    nearest = [min(moe_layers, key=lambda layer: abs(layer - depth)) for depth in wanted]
    return tuple(dict.fromkeys(nearest))


def _short(number: float) -> str:
    return count(number, digits=3)


def _alike(ours: float, published: float) -> bool:
    return abs(ours - published) <= _SAME * published
