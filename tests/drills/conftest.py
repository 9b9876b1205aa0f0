"""What drills share."""

import pytest

from drills.lives import Life


@pytest.fixture(scope="session")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    """One undisturbed life, to compare all others with."""
    return Life.undisturbed(tmp_path_factory.mktemp("life"))
