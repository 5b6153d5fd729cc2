"""Training killed at 50 random moments. Takes some minutes."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from killed_training import count_kills_with_other_weights


def test_every_killed_training_ends_in_the_same_weights(tmp_path):
    different, during = count_kills_with_other_weights(tmp_path, kills=50)
    assert different == 0
    assert during >= 25, "too few were killed after their first checkpoint and before their end"
