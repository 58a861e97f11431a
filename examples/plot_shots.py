"""A table and a picture of how normal pictures help: image AUROC over shots, from reports of `vlad eval --shots K`.

for k in 0 1 2 4 8; do vlad eval --data folder:ROOT --method patch_memory --shots $k --out shots/$k; done
python examples/plot_shots.py shots/* --out shots.svg
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

COLOURS = ("#2563eb", "#d97706", "#059669", "#7c3aed")
WIDTH, HEIGHT, LEFT, TOP, RIGHT = 420, 240, 48, 16, 110


def read(folders: list[Path]) -> dict[tuple[str, str], dict[int, tuple[float, float]]]:
    """(detector, category) -> shots -> (image AUROC, its deviation over the draws)."""
    found: dict[tuple[str, str], dict[int, tuple[float, float]]] = defaultdict(dict)
    for folder in folders:
        report = json.loads((folder / "report.json" if folder.is_dir() else folder).read_text())
        for row in report["rows"]:
            if row["metric"] == "image_auroc" and row["condition"] == "clean" and row["value"] is not None:
                values = row["value"], row["deviation"] or 0.0
                found[row["detector"], row["category"]][report["settings"]["shots"]] = values
    return found


def draw(means: dict[str, dict[int, float]], shots: list[int]) -> str:
    low, high = 0.65, 0.90
    xs = {shot: LEFT + WIDTH * index / max(len(shots) - 1, 1) for index, shot in enumerate(shots)}

    def y(value: float) -> float:
        return TOP + HEIGHT * (high - value) / (high - low)

    size = f'viewBox="0 0 {LEFT + WIDTH + RIGHT} {HEIGHT + 4 * TOP}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">']
    parts.append('<rect width="100%" height="100%" fill="white"/>')
    for level in (0.65, 0.70, 0.75, 0.80, 0.85, 0.90):
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y(level):.1f}" y2="{y(level):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(level) + 4:.1f}" text-anchor="end">{100 * level:.0f}</text>')
    for shot, x in xs.items():
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT + 2 * TOP + 4}" text-anchor="middle">{shot}</text>')
    for colour, values in zip(COLOURS, means.values(), strict=False):
        points = " ".join(f"{xs[shot]:.1f},{y(value):.1f}" for shot, value in sorted(values.items()))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{xs[s]:.1f}" cy="{y(v):.1f}" r="3" fill="{colour}"/>' for s, v in values.items()]
    lowest = 0.0  # of the names so far, which are kept apart
    ends = [(y(values[max(values)]), xs[max(values)], label) for label, values in means.items()]
    for (at, x, label), colour in sorted(zip(ends, COLOURS, strict=False)):
        lowest = max(at + 4, lowest + 14)
        parts.append(f'<text x="{x + 8:.1f}" y="{lowest:.1f}" fill="{colour}">{label}</text>')
    middle = LEFT + WIDTH / 2
    words = "normal pictures; image AUROC in percent, mean over categories"
    parts.append(f'<text x="{middle}" y="{HEIGHT + 3.4 * TOP:.0f}" text-anchor="middle">{words}</text></svg>')
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reports", type=Path, nargs="+")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found = read(arguments.reports)
    shots = sorted({shot for values in found.values() for shot in values})
    print("| detector | category |", *(f" {shot} shots |" for shot in shots))
    print("| --- | --- |", *(" --- |" for _ in shots))
    means: dict[str, dict[int, float]] = defaultdict(dict)
    for label in dict.fromkeys(label for label, _ in found):
        rows = {category: values for (other, category), values in found.items() if other == label}
        for category, values in rows.items():
            cells = [f"{100 * values[s][0]:.1f} ± {100 * values[s][1]:.1f}" if s in values else "-" for s in shots]
            print(f"| {label} | {category} | {' | '.join(cells)} |")
        for shot in shots:
            one = [values[shot][0] for values in rows.values() if shot in values]
            if len(one) == len(rows):
                means[label][shot] = sum(one) / len(one)
        cells = [f"{100 * means[label][s]:.1f}" if s in means[label] else "-" for s in shots]
        print(f"| {label} | mean | {' | '.join(cells)} |")
    if arguments.out:
        arguments.out.write_text(draw(means, shots))


if __name__ == "__main__":
    main()
