import numpy as np
import pytest

from lco_jax.training import finiteness, program


@pytest.mark.parametrize("num_updates", [1, 2, 7, 40, 61, 244, 976, 977])
def test_chunks_cover_a_run(num_updates):
  length = program.default_chunk_length(num_updates)
  lengths = program.chunk_lengths(num_updates, length)
  assert sum(lengths) == num_updates
  assert len(set(lengths)) <= 2 and len(lengths) <= 62
  assert set(lengths[:-1]) <= {length}


def test_first_nonfinite_names_update_seed_and_metric():
  fine = np.zeros((4, 3))
  episodes = np.full((4, 3), np.nan)  # No episode ended: that is no error.
  metrics = {"loss": fine, "norm": fine, "return": episodes}
  counts = {"return": "episodes"}
  assert finiteness.first_nonfinite(metrics, counts) is None
  assert finiteness.first_nonfinite(metrics, {}) == (0, 0, ["return"])
  broken = fine.copy()
  broken[2, 1] = np.inf
  broken[3, 0] = np.nan
  metrics["norm"] = broken
  assert finiteness.first_nonfinite(metrics, counts) == (2, 1, ["norm"])
  # From there on that seed has nothing to say, and the others do.
  kept, gone = finiteness.without_faults(metrics, np.zeros(3, bool), counts)
  np.testing.assert_array_equal(
    np.isnan(kept["loss"]),
    [[0, 0, 0], [0, 0, 0], [0, 1, 0], [1, 1, 0]],
  )
  np.testing.assert_array_equal(gone, [True, True, False])
  # Nor later, should it be finite again.
  kept, gone = finiteness.without_faults({"loss": fine}, gone, counts)
  np.testing.assert_array_equal(np.isnan(kept["loss"]).all(0), gone)
  np.testing.assert_array_equal(gone, [True, True, False])
