"""Where something lies in a picture: the words for its nine parts, and boxes."""

LOCATIONS = (("upper left", "top", "upper right"), ("left", "centre", "right"), ("lower left", "bottom", "lower right"))
PLACES = tuple(place for row in LOCATIONS for place in row)

Box = tuple[int, int, int, int]  # (x0, y0, x1, y1), right and bottom exclusive, in pixels


def place_of(center: tuple[float, float], size: tuple[int, ...]) -> str:
    """The words for the third of a picture of `size` (H, W), both ways, that holds (x, y).

    >>> place_of((90.0, 10.0), (60, 100))
    'upper right'
    """
    return LOCATIONS[int(3 * center[1] / size[0])][int(3 * center[0] / size[1])]


def cell_box(place: str, size: tuple[int, ...]) -> Box:
    """The ninth of a picture of `size` (H, W) that one of `PLACES` names; at least one pixel.

    >>> cell_box("centre", (180, 240))
    (80, 60, 160, 120)
    """
    (row, column), (height, width) = divmod(PLACES.index(place), 3), size[:2]
    x0, y0 = column * width // 3, row * height // 3
    return x0, y0, max((column + 1) * width // 3, x0 + 1), max((row + 1) * height // 3, y0 + 1)
