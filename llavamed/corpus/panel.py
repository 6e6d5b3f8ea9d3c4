"""A figure of several panels -> its panels, each with the part of the caption that is about it.

Half of the figures of the literature are compound, and a caption that says "(A) CT, (B) histology" teaches a model
little about either. Two things are found, each on its own:

- in the caption, the labels and the text that belongs to each: "(A) ... (B) ...", "A, ... B, ...", "a Axial ... b
  Coronal", "CT (A) and MRI (B, C)", "(A-C)", "left", "upper row" (`parts`);
- in the picture, the gutters: bands of paper from edge to edge, along which it falls apart (`boxes`).

The hard thing is that both lie: a chart is full of white bands, a panel may be a grid of its own, "(A)" may be
hepatitis A. Neither is trusted alone. A figure is cut only if the caption names the labels A to N without a gap, and
if the picture falls into exactly N panels at one scale: cut along the widest gutter first, the N-th panel is there, and
the next gutter is clearly narrower than the last one used. Then they are matched in reading order. Else the figure
stays whole, for a reason that can be counted.

The cuts are an XY-cut (Nagy and Seth 1984) with a count to reach.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from string import ascii_uppercase

import numpy as np

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels; right and bottom are outside

MOST = 12  # panels; what has more is a contact sheet
NO_LABELS, NO_GUTTERS, COUNTS_DIFFER = "no_labels", "no_gutters", "counts_differ"


@dataclass(frozen=True)
class Part:
    """What a caption says of one panel: `label` is a letter ("A") or a side ("left"), `text` has the words before the
    first label too, which are said of all."""

    label: str
    text: str


@dataclass(frozen=True)
class Split:
    """The panels in reading order, or none and the reason why the figure stays whole."""

    panels: tuple[tuple[Part, Box], ...] = ()
    whole_because: str = ""


def split(grey_HW: np.ndarray, caption: str) -> Split:
    """Match the panels of a picture (2-d, 8 bits) with the parts of its caption."""
    found = parts(caption)
    if len(found) < 2:
        return Split(whole_because=NO_LABELS)
    some = False
    for paper in _papers(grey_HW):
        whole = _without_margins(paper, (0, 0, *grey_HW.shape[::-1]), _least(grey_HW))
        some = some or bool(_cuts(paper, whole, _least(grey_HW)))
        if panels := _boxes(paper, len(found), columns=found[0].label in _COLUMNS):
            return Split(tuple(zip(found, panels, strict=True)))
    return Split(whole_because=COUNTS_DIFFER if some else NO_GUTTERS)


def boxes(grey_HW: np.ndarray, count: int, columns: bool = False) -> list[Box]:
    """The picture's `count` panels in reading order (rows first unless `columns`), or [] if it does not fall into
    exactly as many at any scale."""
    found = (_boxes(paper, count, columns) for paper in _papers(grey_HW))
    return next((panels for panels in found if panels), [])


# The caption -------------------------------------------------------------------------------------

_LIST = r"[A-Za-z](?: ?(?:[,&–—-]|and|to) ?[A-Za-z])*"
_BRACKETED = re.compile(rf"[(\[] ?(?:panels? )?({_LIST}) ?[)\]]")
# "A, ", "A: ", "A. ", "A) " where a sentence begins, and "a Axial", "B Coronal": a letter before a capital one
_BARE = re.compile(rf"(?:\A|(?<=[.;:] ))({_LIST})(?:[:.,)]+ | (?=[A-Z][a-z]|[A-Z]{{2}}|(?<=A )A ))")
_PANELS = re.compile(rf"\b[Pp]anels? ({_LIST})\b[:,.]?")
_SIDES = (
    ("upper left", "upper right", "lower left", "lower right"),
    ("top left", "top right", "bottom left", "bottom right"),
    ("left", "middle", "right"),
    ("left", "center", "right"),
    ("left", "right"),
    ("upper", "middle", "lower"),
    ("top", "middle", "bottom"),
    ("upper", "lower"),
    ("top", "bottom"),
)
_COLUMNS = ("left",)  # labels that stand side by side; the others stand in rows
# anatomy has sides too ("the left lung"): a side must be marked as one of the figure's
_KIND = r"(?: (?:panels?|images?|columns?|rows?|pictures?|photos?|side|half))"
_JOINED = re.compile(r"\A\s*(?:and|or|,|;|\.|/|&)", re.IGNORECASE)
_LOOSE_ENDS = re.compile(r"\A(?:[\s,;:.)–—-]|(?:and|or)\b)+|(?:[\s,;:(–—-]|\b(?:and|or|while|whereas))+\Z")


@dataclass(frozen=True)
class _Label:
    start: int
    end: int
    names: tuple[str, ...]


def parts(caption: str) -> list[Part]:
    """The parts of a caption by panel, in the order of the labels; [] unless these run from A (or name all sides)
    without a gap."""
    for labels in _label_sets(caption):
        if len(labels) < 2 and not (labels and len(labels[0].names) > 1):
            continue
        text = _texts(caption, labels)
        names = sorted(text) if len(next(iter(text))) == 1 else list(text)
        if 2 <= len(names) <= MOST and (len(names[0]) > 1 or "".join(names) == ascii_uppercase[: len(names)]):
            return [Part(name, text[name]) for name in names]
    return []


def is_compound(caption: str) -> bool:
    """True if the caption names at least two panels, or two sides of the figure, in whatever order."""
    return any(len({name for label in labels for name in label.names}) > 1 for labels in _label_sets(caption))


def _label_sets(caption: str) -> Iterator[list[_Label]]:
    """The labels of each style that the caption may be written in; the most explicit first."""
    for pattern in (_BRACKETED, _BARE, _PANELS):
        found = [_Label(m.start(), m.end(), _expand(m[1])) for m in pattern.finditer(caption)]
        found = [label for label in found if label.names]
        if pattern is _BARE:  # "A CT scan was made. A Axial ... B Coronal ...": the article is no label
            found = [one for n, one in enumerate(found) if n + 1 == len(found) or found[n + 1].names != one.names]
        yield found
    for sides in _SIDES:
        found = []
        for side in sides:
            if (match := _side(caption, side)) is None:
                break
            found.append(_Label(match.start(), match.end(), (side,)))
        else:
            yield sorted(found, key=lambda label: label.start)


def _expand(listed: str) -> tuple[str, ...]:
    """ "A-C" -> A, B, C; "a and d" -> A, D; letters of both cases are two kinds of label, and none at all."""
    if listed[0].isupper() != listed[-1].isupper():
        return ()
    names: list[str] = []
    for part in re.split(r" ?(?:,|&|\band\b) ?", listed.upper()):
        ends = re.split(r" ?(?:[–—-]|TO) ?", part)
        if not all(len(end) == 1 for end in ends):
            return ()
        names += ascii_uppercase[ascii_uppercase.index(ends[0]) : ascii_uppercase.index(ends[-1]) + 1]
    return tuple(names)


def _side(caption: str, side: str) -> re.Match[str] | None:
    """Where a side of the figure is named: "left panel", "(left)", "Left: ", "upper row"."""
    words = side.replace(" ", "[ -]")
    style = rf"[(\[]{words}{_KIND}?[)\]]|\b{words}{_KIND}\b[:,]?|(?:\A|(?<=[.;] )){words}[:,] "
    return re.search(style, caption, re.IGNORECASE)


def _texts(caption: str, labels: list[_Label]) -> dict[str, str]:
    """{label: what is said of it}. A label repeated later only refers back."""
    seen: set[str] = set()
    first = []
    for label in labels:
        if new := tuple(name for name in label.names if name not in seen):
            first.append(_Label(label.start, label.end, new))
            seen |= set(new)
    before = caption[: first[0].start].strip()
    behind = bool(before) and before[-1] not in ".:;" and len(first) > 1 and _JOINED.match(caption[first[0].end :])
    text: dict[str, str] = {}
    if behind or (before and len(first) == 1):  # "CT (A) and MRI (B, C) showing ...": what precedes a label is its text
        tail = _trimmed(caption[first[-1].end :])
        start = 0
        for label in first:
            own = _trimmed(caption[start : label.start])
            text |= dict.fromkeys(label.names, f"{own} {tail}".strip())
            start = label.end
        return text
    for number, label in enumerate(first):
        end = first[number + 1].start if number + 1 < len(first) else len(caption)
        text |= dict.fromkeys(label.names, f"{before} {_trimmed(caption[label.end : end])}".strip())
    return text


def _trimmed(text: str) -> str:
    return _LOOSE_ENDS.sub("", text).strip()


# The picture -------------------------------------------------------------------------------------

_WHITE, _BLACK = 238, 14  # grey levels: JPEG leaves some dirt on paper
_CLEAN = 0.996  # of a line's pixels must be paper
_LEAST_GUTTER = 2  # pixels
_LEAST_SHARE = 0.1  # of the picture's side: what is narrower is a label, a scale or an axis, no panel
_LEAST_SIDE = 24  # pixels
_CLEARLY = 0.7  # a gutter of less than this share of the last one used is of another scale


@dataclass(frozen=True)
class _Cut:
    """Part `box` at the gutter `start`..`end` (pixels): rows if it lies (`axis` 0), columns if it stands (1)."""

    axis: int
    start: int
    end: int

    @property
    def width(self) -> int:
        return self.end - self.start


def _boxes(paper_HW: np.ndarray, count: int, columns: bool) -> list[Box]:
    least = _least(paper_HW)
    leaves = [_without_margins(paper_HW, (0, 0, *paper_HW.shape[::-1]), least)]
    narrowest = 0
    while True:
        widest: tuple[float, int, _Cut] | None = None
        for number, box in enumerate(leaves):
            for cut in _cuts(paper_HW, box, least):
                # of two gutters alike the one between rows is cut first, as a page is read
                weight = cut.width * (1.3 if (cut.axis == 0) != columns else 1.0)
                if widest is None or weight > widest[0]:
                    widest = (weight, number, cut)
        if len(leaves) == count:
            alike = widest is not None and widest[2].width >= _CLEARLY * narrowest
            return [] if alike else leaves
        if widest is None or len(leaves) > count:
            return []
        _, number, cut = widest
        narrowest = min(narrowest or cut.width, cut.width)
        left, top, right, bottom = leaves[number]
        if cut.axis == 0:
            halves: tuple[Box, Box] = (left, top, right, cut.start), (left, cut.end, right, bottom)
        else:
            halves = (left, top, cut.start, bottom), (cut.end, top, right, bottom)
        leaves[number : number + 1] = [_without_margins(paper_HW, half, least) for half in halves]


def _least(grey_HW: np.ndarray) -> tuple[int, int]:
    """The least height and width of a panel."""
    height, width = grey_HW.shape
    return max(_LEAST_SIDE, int(_LEAST_SHARE * height)), max(_LEAST_SIDE, int(_LEAST_SHARE * width))


def _papers(grey_HW: np.ndarray) -> Iterator[np.ndarray]:
    """Which pixels are paper: white, or else black as in plates of scans. One at a time, as a scan on white paper has
    black margins of its own."""
    yield grey_HW >= _WHITE
    yield grey_HW <= _BLACK


def _clean(paper_HW: np.ndarray, axis: int) -> np.ndarray:
    """Which lines (rows for axis 0) are paper from end to end."""
    clean: np.ndarray = paper_HW.mean(axis=1 - axis) >= _CLEAN
    return clean


def _without_margins(paper_HW: np.ndarray, box: Box, least: tuple[int, int]) -> Box:
    """The box without its margins, and without the strips at its edges that paper parts from it and that are too narrow
    for a panel: a letter above a panel, a line of text that came along from the page."""
    spans = {}
    left, top, right, bottom = box
    for axis, begin in ((0, top), (1, left)):
        runs = _runs(~_clean(paper_HW[top:bottom, left:right], axis), begin)
        if not runs:
            return box
        while len(runs) > 1 and min(runs[0][1] - runs[0][0], runs[-1][1] - runs[-1][0]) < least[axis]:
            runs.pop(0 if runs[0][1] - runs[0][0] < least[axis] else -1)
        spans[axis] = runs[0][0], runs[-1][1]
        if axis == 0:  # columns are looked at without the strips above and below
            top, bottom = spans[0]
    return spans[1][0], top, spans[1][1], bottom


def _runs(true: np.ndarray, begin: int) -> list[tuple[int, int]]:
    """Start and end of each run of True, counted from `begin`."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], true, [False])).astype(np.int8))) + begin
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _cuts(paper_HW: np.ndarray, box: Box, least: tuple[int, int]) -> list[_Cut]:
    """The gutters of a box with something as large as a panel on both sides."""
    left, top, right, bottom = box
    found = []
    for axis, begin, stop in ((0, top, bottom), (1, left, right)):
        for start, end in _runs(_clean(paper_HW[top:bottom, left:right], axis), begin):
            room = min(start - begin, stop - end)
            if end - start >= _LEAST_GUTTER and room >= least[axis]:
                found.append(_Cut(axis, start, end))
    return found
