"""How a patient's diabetes goes on, from an examination and a blood sample (scikit-learn's `diabetes`, BSD).

442 patients, ten measurements, and the progression a year later (Efron et al., "Least Angle Regression", 2004). The two
sources are two modalities, and tables. A third of the patients is for testing, another third with each seed.

Axes: B patients, F columns.
"""

from __future__ import annotations

import functools
import gzip

import numpy as np
from numpy.typing import NDArray

from cutlayer.edge_agent.batches import Batch, Dataset
from cutlayer.edge_agent.partition import Shard

from .division import divide, draws, samples
from .package_files import package_file

__all__ = ["NAME", "fourths", "open_vitals"]

NAME = "vitals"
TEST_SHARE = 1 / 3
_AGE, _SEX, _BODY_MASS, _PRESSURE, _FIRST_OF_BLOOD = 0, 1, 2, 3, 4


def open_vitals(shard: Shard, seed: int, alpha: float | None) -> Dataset:
    """Open one site's patients; skew is by the fourth of the progressions that a patient's is in.

    Raises:
        SettingsError: When scikit-learn is not installed.
    """
    patients = _patients()
    num_patients = len(patients.targets)
    order_B = draws(seed, "patients").permutation(num_patients)
    num_test = round(TEST_SHARE * num_patients)
    train, test = samples(patients, np.sort(order_B[num_test:])), samples(patients, np.sort(order_B[:num_test]))
    return divide(NAME, train, test, fourths(train.targets[:, 0]), shard, seed, alpha)


def fourths(values_B: NDArray[np.generic]) -> NDArray[np.int64]:
    """Return which quarter of all values each is in, 0 to 3, int64 (B)."""
    limits = np.quantile(values_B.astype(np.float64), (0.25, 0.5, 0.75))
    return np.searchsorted(limits, values_B.astype(np.float64)).astype(np.int64)


@functools.cache
def _patients() -> Batch:
    """Return all patients; the columns in the order of the run settings, which name them."""
    cells_BF, progression_B1 = (_table(name) for name in ("diabetes_data_raw.csv.gz", "diabetes_target.csv.gz"))
    examined_BF = cells_BF[:, [_AGE, _BODY_MASS, _PRESSURE, _SEX]]
    examined_BF[:, 3] -= 1  # 1 and 2 in the file, places in the category's values here
    return Batch({"blood": cells_BF[:, _FIRST_OF_BLOOD:], "examination": examined_BF}, progression_B1)


def _table(name: str) -> NDArray[np.float32]:
    with gzip.open(package_file("sklearn", f"datasets/data/{name}", "digits"), "rt", encoding="ascii") as file:
        return np.loadtxt(file, dtype=np.float32, ndmin=2)
