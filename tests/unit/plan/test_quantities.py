"""Numbers for people."""

from dsv3.plan.quantities import count, flops, plural, size


def test_counts_carry_their_unit() -> None:
    assert [count(n) for n in (0, 7, 1_524_992, 15_706_484_224, 14_800_000_000_000)] == [
        "0",
        "7",
        "1.525M",
        "15.71B",
        "14.8T",
    ]
    assert count(671_026_404_352, 7) == "671.0264B"


def test_flops_carry_their_unit() -> None:
    assert flops(250_455_926_784) == "250.46 GFLOP"
    assert flops(9.02e22) == "90.20 ZFLOP"
    assert flops(0) == "0 FLOP"


def test_sizes_are_binary() -> None:
    assert [size(n) for n in (512, 2048, 3 * 2**20, 37 * 2**30, 2**42)] == [
        "512 B",
        "2.0 KiB",
        "3.0 MiB",
        "37.0 GiB",
        "4.0 TiB",
    ]


def test_beyond_the_largest_unit_there_are_powers_of_ten() -> None:
    assert size(10**40) == "8.674e+21 EiB"
    assert size(1234 * 2**60) == "1,234.0 EiB"
    assert flops(1e40) == "1.000e+16 YFLOP"


def test_one_of_a_thing_is_singular() -> None:
    assert (plural(1, "GPU"), plural(0, "GPU"), plural(2048, "rank")) == (
        "1 GPU",
        "0 GPUs",
        "2,048 ranks",
    )
