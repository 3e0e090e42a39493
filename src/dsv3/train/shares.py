"""Which samples of a step a rank trains on, as a function of its place and the position."""

from dsv3.config.root import RunConfig
from dsv3.parallel.mesh import Place
from dsv3.train.position import Position


def micro_batch_ranges(config: RunConfig, place: Place, position: Position) -> list[range]:
    """Numbers of the samples of each micro batch of the step that follows `position`."""
    schedule = config.schedule
    share = schedule.batch_size_at(position.tokens) // len(place.data_ranks)
    at_least = config.parallelism.fewest_micro_batches
    size = schedule.micro_batch_size_of(share, at_least=at_least)
    begin = position.samples + place.data_rank * share
    return [range(first, first + size) for first in range(begin, begin + share, size)]
