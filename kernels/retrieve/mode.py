"""The two ways to choose texts."""

from typing import Literal

Mode = Literal["all", "assigned"]
"""Each center's best among all texts, or among those that are closer to it than to any other center."""
