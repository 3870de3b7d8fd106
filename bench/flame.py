"""`python -m bench.flame STACKS FILE.svg`: draw collapsed stacks (`py-spy record -f raw`).

A box is a function, its width the share of samples that it was in; what it called stands on it.
Only the event loop's thread is drawn, from the loop's own frames up; its waiting is left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, ROW, LEAST_PX = 1000, 16, 1.5
LOOP = "Runner.run (asyncio/runners.py"  # below it is how the server was started


class Frame:
    """A function in one place of the stack, with what it called."""

    def __init__(self) -> None:
        self.samples = 0
        self.callees: dict[str, Frame] = {}


def main() -> int:
    """Draw one file."""
    parser = argparse.ArgumentParser(prog="python -m bench.flame", description=__doc__)
    parser.add_argument("stacks", type=Path)
    parser.add_argument("svg", type=Path)
    options = parser.parse_args()
    options.svg.write_text(drawing(tree(options.stacks.read_text())))
    return 0


def tree(collapsed: str) -> Frame:
    """Merge stacks: one a line, frames from the outermost in, `;` between, and a count."""
    root = Frame()
    for line in collapsed.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        at = next((n for n, frame in enumerate(frames) if frame.startswith(LOOP)), None)
        if at is None or at + 1 == len(frames):  # another thread, or the loop that waits
            continue
        frame = root
        root.samples += int(count)
        for name in frames[at + 1 :]:
            frame = frame.callees.setdefault(name.partition(":")[0], Frame())
            frame.samples += int(count)
    return root


def drawing(root: Frame) -> str:
    """Draw from the bottom up."""
    boxes: list[tuple[float, int, float, str, int]] = []

    def place(frame: Frame, left: float, depth: int) -> None:
        for name, callee in sorted(frame.callees.items(), key=lambda item: -item[1].samples):
            width = WIDTH * callee.samples / root.samples
            if width >= LEAST_PX:
                boxes.append((left, depth, width, name, callee.samples))
                place(callee, left, depth + 1)
            left += width

    place(root, 0.0, 0)
    height = ROW * (1 + max((depth for _, depth, *_ in boxes), default=0))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        f' font-family="monospace" font-size="10">'
    ]
    for left, depth, width, name, samples in boxes:
        top = height - ROW * (depth + 1)
        ours = "#f2b36b" if "(retort/" in name else "#d9d9d9"
        text = name.partition(" (")[0][: int(width / 6.2)]
        share = 100 * samples / root.samples
        lines.append(
            f'<g><title>{escape(name)}: {share:.1f} %</title><rect x="{left:.1f}" y="{top}"'
            f' width="{width:.1f}" height="{ROW - 1}" fill="{ours}"/>'
            f'<text x="{left + 2:.1f}" y="{top + 11}">{escape(text)}</text></g>'
        )
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    sys.exit(main())
