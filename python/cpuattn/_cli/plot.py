"""Draw what `bench` measured, by matplotlib."""

from __future__ import annotations

from typing import Any

COLORS = ("#c1121f", "#33658a", "#f6ae2d", "#b5b5b5")


def draw(result: dict[str, Any], path: str) -> None:
    """Draw grouped bars of GFLOP/s, a group for each case, and write them to a file.

    Parameters
    ----------
    result : dict
        Of `bench`.
    path : str
        The suffix says the format: .svg, .png, .pdf.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = result["cases"]
    names = list(result["libraries"])
    height = 0.8 / len(names)
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.3 * len(rows) * len(names) ** 0.7))
    for n, name in enumerate(names):
        rates = [
            row["flops"] / row["peers"][name].get("median", float("inf")) / 1e9
            for row in rows
        ]
        places = [i + (n - (len(names) - 1) / 2) * height for i in range(len(rows))]
        axes.barh(places, rates, height, color=COLORS[n % len(COLORS)], label=name)
    axes.set_yticks(range(len(rows)), [f"{r['case']}\n{r['shape']}" for r in rows])
    axes.invert_yaxis()
    axes.set_xlabel("GFLOP/s (more is better)")
    threads = f"{result['threads']} thread{'s' * (result['threads'] > 1)}"
    facts = (result["cpu"], result["isa"], threads, result["dtype"])
    axes.set_title(", ".join(facts), loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, bbox_inches="tight", dpi=150)
    plt.close(figure)
