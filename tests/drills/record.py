"""What drills counted: a JSON file each, and the table of all in tests/README.md (`python tests/drills/record.py`)."""

import json
from pathlib import Path

RESULTS = Path(__file__).with_name("results")
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- drills -->\n", "<!-- /drills -->"


def record(name: str, *, tried: int, lost: int, note: str = "") -> None:
    """Keep what a drill counted under its name; call it before asserting that nothing was lost."""
    assert 0 <= lost <= tried, f"{name}: {lost} lost of {tried}"
    RESULTS.mkdir(exist_ok=True)
    row = {"tried": tried, "survived": tried - lost, "lost": lost, "note": note}
    (RESULTS / f"{name}.json").write_text(json.dumps(row, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def table() -> str:
    lines = [
        "| drill | tried | survived | lost | what, and under which conditions |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for file in sorted(RESULTS.glob("*.json")):
        row = json.loads(file.read_text(encoding="utf-8"))
        lines.append(f"| {file.stem} | {row['tried']:,} | {row['survived']:,} | {row['lost']:,} | {row['note']} |")
    return "\n".join(lines) + "\n"


def render() -> None:
    """Write the table between the two comments of tests/README.md."""
    text = README.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    README.write_text(f"{before}{BEGIN}{table()}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    render()
