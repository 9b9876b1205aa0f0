"""The method of the paper, one stage per file. Start with `pipeline`, which runs them; none of them knows Lightning."""
