"""Short of the drills (tests/drills): what damage does, tried a few hundred times."""

from mutations import verdicts


def test_damaged_pictures_are_read_or_refused():
    found = verdicts(10**7, 10**7 + 300)
    assert {number: said for number, said in found.items() if said not in ("picture", "refused")} == {}
    assert len(found) == 300
    assert set(found.values()) == {"picture", "refused"}
