# SPDX-License-Identifier: MIT
"""Draw the pictures of docs/masks.md: weights of small problems, as SVG.

``python docs/draw_masks.py [directory]`` writes docs/figures/masks. Every shade is a
weight that `cpuattn.attention` returned, rounded so that each CPU draws the same file.
Colors are middle tones, so that the pictures read on a light and on a dark page.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cpuattn

Array = NDArray[Any]

DIRECTORY = Path(__file__).parent / "figures" / "masks"
ROWS, KEYS = 6, 10
CELL = 18
LEVELS = 16  # shades of a weight
INK = "#7d8590"  # text and grid
COLORS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ec4899", "#eab308")


@dataclass
class Panel:
    """Hold one grid of weights: (rows, keys), a title, and a color for each row."""

    weights: Array
    title: str = ""
    colors: Array | None = None
    extra: Array | None = None  # a column of its own: what the sinks took


def weights_of(
    *, rows: int = ROWS, scores: Array | None = None, **options: Any
) -> Array:
    """Return the weights of one head with these scores, by default equal ones."""
    query = np.zeros((1, 1, rows, KEYS), np.float32)
    key = np.eye(KEYS, dtype=np.float32)[None, None]
    if scores is not None:
        query[:] = scores
    options = {"scale": 1.0, "return_weights": True} | options
    return cpuattn.attention(query, key, key, **options)[-1][0, 0]


def number(x: float) -> str:
    """Write a coordinate as short as it can be."""
    return f"{x:.2f}".rstrip("0").rstrip(".")


def text(x: float, y: float, words: str, anchor: str = "start", size: int = 12) -> str:
    """Return a line of text."""
    return (
        f'<text x="{number(x)}" y="{number(y)}" font-size="{size}" '
        f'text-anchor="{anchor}">{words}</text>'
    )


def cell(x: float, y: float, weight: float, color: str) -> list[str]:
    """Return a square, the darker the nearer its weight is to 1; NaN is crossed out."""
    if np.isnan(weight):
        a, b, c, d = (number(v) for v in (x + 4, y + 4, x + CELL - 4, y + CELL - 4))
        return [f'<path d="M{a} {b}L{c} {d}M{c} {b}L{a} {d}" stroke="#ef4444"/>']
    if weight == 0:
        return []
    opacity = number((2 + np.rint(weight * LEVELS)) / (2 + LEVELS))  # never invisible
    box = f'x="{number(x)}" y="{number(y)}" width="{CELL}" height="{CELL}"'
    return [f'<rect {box} fill="{color}" fill-opacity="{opacity}"/>']


def lines(x: float, y: float, rows: int, cols: int) -> str:
    """Return the lines around and between the cells of a grid."""
    across = "".join(
        f"M{number(x)} {number(y + n * CELL)}h{cols * CELL}" for n in range(rows + 1)
    )
    down = "".join(
        f"M{number(x + n * CELL)} {number(y)}v{rows * CELL}" for n in range(cols + 1)
    )
    return f'<path d="{across}{down}" stroke="{INK}" stroke-opacity=".5"/>'


def grid(panel: Panel, x: float, y: float) -> list[str]:
    """Return the cells of a panel, each weight relative to the greatest one."""
    greatest = np.nanmax(panel.weights, initial=0) or 1
    if panel.extra is not None:
        greatest = max(greatest, panel.extra.max())
    parts = [text(x, y - 10, panel.title)] if panel.title else []
    rows, cols = panel.weights.shape
    for row, values in enumerate(panel.weights):
        color = COLORS[0] if panel.colors is None else COLORS[panel.colors[row]]
        for col, weight in enumerate(values):
            parts += cell(x + col * CELL, y + row * CELL, weight / greatest, color)
    parts.append(lines(x, y, rows, cols))
    if panel.extra is not None:
        left = x + (cols + 0.5) * CELL
        for row, share in enumerate(panel.extra):
            parts += cell(left, y + row * CELL, share / greatest, COLORS[1])
        parts.append(lines(left, y, rows, 1))
    return parts


def svg(width: float, height: float, label: str, parts: list[str]) -> str:
    """Return a whole file."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {number(width)} '
        f'{number(height)}" width="{number(width)}" height="{number(height)}" '
        f'role="img" aria-label="{label}" fill="{INK}" '
        'font-family="system-ui,sans-serif">'
    )
    return "\n".join([head, *parts, "</svg>\n"])


def picture(label: str, *panels: Panel) -> str:
    """Return panels side by side, with the axes named at the first one."""
    x, y = 62.0, 44.0
    parts: list[str] = []
    bottom = y
    for n, panel in enumerate(panels):
        rows, keys = panel.weights.shape
        if n == 0:
            parts.append(text(x - 8, y + 13, "row 0", "end", 11))
            parts.append(text(x - 8, y + rows * CELL - 5, f"row {rows - 1}", "end", 11))
        keys += 1.5 if panel.extra is not None else 0
        parts += grid(panel, x, y)
        below = y + rows * CELL + 15
        parts.append(text(x, below, "key 0", "start", 11))
        end = x + panel.weights.shape[1] * CELL
        parts.append(text(end, below, f"key {KEYS - 1}", "end", 11))
        if panel.extra is not None:
            parts.append(text(end + CELL, below, "sink", "middle", 11))
        x += keys * CELL + 34
        bottom = max(bottom, below + 10)
    return svg(x - 34 + 12, bottom, label, parts)


def slopes() -> Array:
    """Return scores that differ from key to key, the same for every row."""
    return np.tile(np.array([0, 3, 1, 6, 2, 9, 4, 1, 5, 2], np.float32), (ROWS, 1))


def hiding() -> dict[str, str]:
    """Return the pictures of what hides keys."""
    segments = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    rows = np.array([0, 0, 1, 1, 2, 2])
    mask = np.random.default_rng(4).random((ROWS, KEYS)) < 0.6
    batch = np.zeros((2, 1, ROWS, KEYS), np.float32)
    keys = np.broadcast_to(np.eye(KEYS, dtype=np.float32), (2, 1, KEYS, KEYS))
    lengths = {"kv_lengths": [6, 9], "q_lengths": [6, 4]}
    padded = cpuattn.attention(
        batch, keys, keys, causal=True, return_weights=True, **lengths
    )[-1]
    return {
        "full": picture("full attention", Panel(weights_of(), "no option")),
        "causal": picture(
            "causal masks",
            Panel(weights_of(causal="top_left"), "causal=&quot;top_left&quot;"),
            Panel(weights_of(causal=True), "causal=True (bottom_right)"),
            Panel(weights_of(causal=2), "causal=2 (offset)"),
        ),
        "window": picture(
            "sliding windows",
            Panel(weights_of(window=(2, 1)), "window=(2, 1)"),
            Panel(weights_of(window=(2, 1), causal=2), "window=(2, 1), causal=2"),
            Panel(weights_of(window=(2, 0), causal=True), "window=(2, 0), causal=True"),
        ),
        "lengths": picture(
            "lengths of a padded batch",
            Panel(padded[0, 0], "element 0: q 6, kv 6"),
            Panel(padded[1, 0], "element 1: q 4, kv 9"),
        ),
        "segments": picture(
            "segment ids",
            Panel(
                weights_of(q_segment_ids=rows, kv_segment_ids=segments),
                "q 001122, kv 0000111222",
                rows,
            ),
        ),
        "mask": picture(
            "boolean mask",
            Panel(weights_of(mask=mask), "mask"),
            Panel(weights_of(mask=mask, causal=True), "mask and causal=True"),
        ),
    }


def scoring() -> dict[str, str]:
    """Return the pictures of what changes scores, and of dropout."""
    tall = slopes()
    bias = (tall - 4.5) / 3
    logit = np.array([1.0], np.float32)
    sunk = weights_of(sinks=logit, causal=3)
    dropped = {"dropout_p": 0.4, "dropout_seed": 3, "return_weights": "after_dropout"}
    return {
        "alibi": picture(
            "ALiBi",
            Panel(weights_of(alibi_slopes=[0.25], causal=True), "slope 1/4"),
            Panel(weights_of(alibi_slopes=[1.0], causal=True), "slope 1"),
        ),
        "bias": picture(
            "additive bias",
            Panel(weights_of(bias=bias), "bias by column"),
            Panel(weights_of(bias=bias, causal=True), "and causal=True"),
        ),
        "softcap": picture(
            "soft cap",
            Panel(weights_of(scores=tall / 2), "scores up to 4.5"),
            Panel(weights_of(scores=tall / 2, softcap=1.0), "softcap=1"),
        ),
        "sinks": picture(
            "attention sinks",
            Panel(weights_of(causal=3), "without"),
            Panel(sunk, "sinks=[1.0]", extra=1 - sunk.sum(-1)),
        ),
        "dropout": picture(
            "dropout",
            Panel(weights_of(causal=True), "before"),
            Panel(weights_of(causal=True, **dropped), "dropout_p=0.4, after"),
        ),
        "empty-rows": picture(
            "rows that see no key",
            *(
                Panel(weights_of(causal=-3, fully_masked=way), f"&quot;{way}&quot;")
                for way in ("zero", "mean", "nan")
            ),
        ),
    }


def heads() -> str:
    """Return which kv head each query head reads, as the output says."""
    query_heads, kv_heads = 8, 2
    query = np.zeros((1, query_heads, 1, 8), np.float32)
    key = np.zeros((1, kv_heads, 1, 8), np.float32)
    value = (
        np.zeros((1, kv_heads, 1, 1), np.float32) + np.arange(kv_heads)[:, None, None]
    )
    read = cpuattn.attention(query, key, value.astype(np.float32))[0, :, 0, 0]
    width, step, top = 34, 44, 26
    parts = [text(14, top + 20, "query heads"), text(14, top + 110, "kv heads")]
    for head in range(query_heads):
        group = int(np.rint(read[head]))
        x = 110 + head * step
        middle, target = x + width / 2, 110 + (group * 4 + 1.5) * step + width / 2
        parts += [
            f'<path d="M{middle:g} {top + 30}L{target:g} {top + 92}" '
            f'stroke="{COLORS[group]}" stroke-width="1.5"/>',
            box(x, top, width, 30, COLORS[group], str(head)),
        ]
    for head in range(kv_heads):
        x = 110 + (head * 4 + 1.5) * step
        parts.append(box(x, top + 92, width, 30, COLORS[head], str(head)))
    return svg(110 + query_heads * step + 4, top + 134, "grouped heads", parts)


def box(x: float, y: float, width: float, height: float, color: str, words: str) -> str:
    """Return a colored box with words in its middle."""
    return (
        f'<rect x="{number(x)}" y="{number(y)}" width="{number(width)}" '
        f'height="{number(height)}" rx="3" fill="{color}" fill-opacity=".15" '
        f'stroke="{color}"/>'
        + text(x + width / 2, y + height / 2 + 4, words, "middle", 11)
    )


def layouts() -> str:
    """Return the order in memory of the rows of both layouts, from their strides."""
    head_count, length = 2, 4
    shapes = {"bhsd": (1, head_count, length, 8), "bshd": (1, length, head_count, 8)}
    width, left = 62, 70
    parts: list[str] = []
    for n, (name, shape) in enumerate(shapes.items()):
        array = np.empty(shape, np.float32)
        views = array if name == "bhsd" else array.swapaxes(1, 2)
        y = 24 + n * 62
        parts.append(text(left - 12, y + 20, name, "end", 13))
        for head in range(head_count):
            for place in range(length):
                offset = head * views.strides[1] + place * views.strides[2]
                x = left + offset // (8 * 4) * (width + 4)
                words = f"h{head} s{place}"
                parts.append(box(x, y, width, 30, COLORS[head], words))
    end = left + head_count * length * (width + 4)
    parts.append(text(left, 24 + 2 * 62, "addresses grow to the right: each box is one"
                      " row of head_dim numbers"))  # fmt: skip
    return svg(end + 8, 24 + 2 * 62 + 14, "layouts in memory", parts)


def draw_all() -> dict[str, str]:
    """Return the text of every picture by its name."""
    return {**hiding(), **scoring(), "heads": heads(), "layouts": layouts()}


def main() -> None:
    """Write every picture."""
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else DIRECTORY
    directory.mkdir(parents=True, exist_ok=True)
    for name, picture_text in draw_all().items():
        path = directory / f"{name}.svg"
        path.write_text(picture_text, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
