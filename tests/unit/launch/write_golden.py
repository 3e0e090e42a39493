"""Write the golden scripts anew: `python -m unit.launch.write_golden` in tests/; read the diff."""

import pytest

import dsv3
from unit.launch.test_slurm_script import CASES, GOLDEN, rendered

if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in CASES:
        with pytest.MonkeyPatch.context() as patch:
            text = rendered(name, patch).replace(f"dsv3 {dsv3.__version__} ", "dsv3 VERSION ")
        (GOLDEN / f"{name}.sh").write_text(text)
