"""A ray tracer in plain Python: `raytrace.py STRIP STRIPS WIDTH HEIGHT` prints one strip's pixels as raw RGB.

The picture: metal and lacquer balls on a polished chequered floor at sunset. A strip is a band of whole
rows, so that all strips' outputs one after the other are the picture (`stitch.py` makes a PNG of them).

The same bytes come out of every machine: only + - * / and sqrt are used, which IEEE 754 defines to the
last bit; sin, pow and exp differ between C libraries, and since Python 3.12 `sum` adds otherwise than `+`.

Soft shadows and the dark where a ball touches the floor are computed in closed form, one expression a
ball, instead of with many rays (after Inigo Quilez, "sphere - soft shadow" and "sphere - ambient
occlusion"); the chequers are filtered in closed form too ("box-filtered checkers").
"""

# Loose numbers instead of vectors, and comparisons instead of min and max, are three times as fast in plain Python.
# ruff: noqa: PLR0917, PLR1730
import sys
from math import floor, sqrt
from typing import NamedTuple

Vector = tuple[float, float, float]
Colour = tuple[float, float, float]


class Ball(NamedTuple):
    """A sphere. `metal`: it shows its surroundings in its colour; otherwise it is lacquer, which only shines."""

    x: float
    y: float
    z: float
    radius: float
    colour: Colour
    metal: bool


Sample = tuple[float, float, float, Ball | None]
"""A colour and the ball that it is of."""


def _unit(x: float, y: float, z: float) -> Vector:
    length = sqrt(x * x + y * y + z * z)
    return x / length, y / length, z / length


def _on_floor(x: float, z: float, radius: float, colour: Colour, metal: bool) -> Ball:
    return Ball(x, radius, z, radius, colour, metal)


GOLD = (1.00, 0.72, 0.29)
SILVER = (0.93, 0.94, 0.96)
COPPER = (0.96, 0.56, 0.42)
RED = (0.68, 0.05, 0.06)
TEAL = (0.02, 0.36, 0.40)
BLUE = (0.05, 0.12, 0.52)
IVORY = (0.82, 0.76, 0.62)

BALLS = (
    _on_floor(0.15, 0.0, 1.35, SILVER, True),
    _on_floor(-2.35, -0.55, 0.85, GOLD, True),
    _on_floor(2.45, -0.45, 0.95, RED, False),
    _on_floor(-0.95, -2.00, 0.42, TEAL, False),
    _on_floor(1.05, -2.15, 0.36, COPPER, True),
    _on_floor(0.10, -2.65, 0.20, IVORY, False),
    _on_floor(-3.35, -2.05, 0.34, RED, False),
    _on_floor(3.10, -2.15, 0.28, GOLD, True),
    _on_floor(-4.60, 3.20, 1.20, BLUE, False),
    _on_floor(4.90, 3.60, 1.30, COPPER, True),
    _on_floor(1.90, 6.50, 1.00, TEAL, False),
)
TOP = max(ball.y + ball.radius for ball in BALLS)
NEAR = min(ball.z - ball.radius for ball in BALLS)

EYE: Vector = (0.0, 1.55, -9.0)
LOOK_AT: Vector = (0.0, 1.08, 0.0)
ZOOM = 1.95
SUN: Vector = _unit(-0.44, 0.215, 0.80)
SUN_COLOUR: Colour = (4.6, 2.55, 1.15)
SUN_SPREAD = 0.055
"""Half the sun's angle as shadows see it: larger is softer."""
BOUNCES = 3
CONTRAST = 0.004
CONTRAST_INSIDE = 0.05
SUB = 3
"""A pixel whose corners differ by more than CONTRAST (squared) is sampled again, SUB x SUB times.

CONTRAST_INSIDE is for corners that are all of one thing: most such edges are soft already."""


def sky(dx: float, dy: float, dz: float) -> Colour:
    """The colour of the sky in a direction: warm at the horizon, deep blue above, the sun and its glow."""
    height = dy if dy > 0.0 else 0.0
    haze = 1.0 / (1.0 + 9.0 * height)
    toward = dx * SUN[0] + dy * SUN[1] + dz * SUN[2]
    away = 1.0 - toward
    glow = 0.014 / (0.014 + away)
    disc = 0.0000002 / (0.0000002 + away * away)
    warm = haze * haze * (0.30 + 0.70 * (0.5 + 0.5 * toward))
    return (
        0.016 + 0.08 * haze + 0.80 * warm + 0.95 * glow + 9.0 * disc,
        0.040 + 0.15 * haze + 0.17 * warm + 0.42 * glow + 6.0 * disc,
        0.130 + 0.30 * haze - 0.12 * warm + 0.04 * glow + 2.6 * disc,
    )


def hit(
    ox: float, oy: float, oz: float, dx: float, dy: float, dz: float, balls: tuple[Ball, ...]
) -> tuple[float, Ball | None]:
    """The nearest thing on a ray: its distance and the ball, None for the floor; distance 0 for the sky."""
    nearest = 1e9
    if dy < -1e-6:
        nearest = -oy / dy
    elif dy > 1e-6:
        # Most rays that the floor throws back leave the slab that holds the balls before they reach them.
        reach = (TOP - oy) / dy
        if reach < 0.0 or (oz < NEAR and oz + dz * reach < NEAR):
            return 0.0, None
    found = None
    for ball in balls:
        cx, cy, cz, radius, _, _ = ball
        cx -= ox
        cy -= oy
        cz -= oz
        along = cx * dx + cy * dy + cz * dz
        if along > 0.0:
            inside = along * along - cx * cx - cy * cy - cz * cz + radius * radius
            if inside > 0.0:
                distance = along - sqrt(inside)
                if 1e-4 < distance < nearest:
                    nearest, found = distance, ball
    return (nearest, found) if nearest < 1e8 else (0.0, None)


def light(px: float, py: float, pz: float, nx: float, ny: float, nz: float, own: Ball | None) -> tuple[float, float]:
    """How much of the sun and how much of the sky a point with a normal sees past the balls, 0 to 1 each."""
    sx, sy, sz = SUN
    sun = nx * sx + ny * sy + nz * sz
    open_sky = 1.0
    if sun < 0.0:
        sun = 0.0
    for ball in BALLS:
        if ball is own:
            continue
        cx, cy, cz, radius, _, _ = ball
        cx -= px
        cy -= py
        cz -= pz
        square = cx * cx + cy * cy + cz * cz
        facing = cx * nx + cy * ny + cz * nz
        if facing > 0.0 and square < 20.0 * radius * radius:
            open_sky -= facing * radius * radius / (square * sqrt(square))
        if sun > 0.0:
            along = cx * sx + cy * sy + cz * sz
            if along > 0.0:
                past = square - along * along
                gap = (sqrt(past) if past > 0.0 else 0.0) - radius
                spread = SUN_SPREAD * along
                if gap < spread:
                    part = 0.5 + 0.5 * gap / spread
                    sun = 0.0 if part <= 0.0 else sun * part * part * (3.0 - 2.0 * part)
    return sun, open_sky if open_sky > 0.0 else 0.0


def chequers(x: float, z: float, wide: float, deep: float) -> float:
    """The share of light squares in a footprint of the floor, `wide` by `deep`."""
    left, right = (x - wide * 0.5) * 0.5, (x + wide * 0.5) * 0.5
    near, far = (z - deep * 0.5) * 0.5, (z + deep * 0.5) * 0.5
    across = 2.0 * (abs(left - floor(left) - 0.5) - abs(right - floor(right) - 0.5)) / wide
    along = 2.0 * (abs(near - floor(near) - 0.5) - abs(far - floor(far) - 0.5)) / deep
    return 0.5 - 0.5 * across * along


def trace(ox: float, oy: float, oz: float, dx: float, dy: float, dz: float, blur: float, bounces: int) -> Colour:
    """The colour seen along a ray. `blur`: its width a unit of distance, which the chequers are filtered by."""
    distance, ball = hit(ox, oy, oz, dx, dy, dz, BALLS)
    if distance == 0.0:
        return sky(dx, dy, dz)
    px, pz = ox + dx * distance, oz + dz * distance
    if ball is None:
        return _floor(px, pz, dx, dy, dz, distance, blur, bounces)
    return _ball(ball, px, oy + dy * distance, pz, dx, dy, dz, blur, bounces)


def _ball(
    ball: Ball, px: float, py: float, pz: float, dx: float, dy: float, dz: float, blur: float, bounces: int
) -> Colour:
    """A point of a ball: its mirror image, and for lacquer its own colour in sun and sky light."""
    radius = ball.radius
    nx, ny, nz = (px - ball.x) / radius, (py - ball.y) / radius, (pz - ball.z) / radius
    facing = -(dx * nx + dy * ny + dz * nz)
    rim = 1.0 - facing
    rim5 = rim * rim
    rim5 = rim5 * rim5 * rim
    rx, ry, rz = dx + 2.0 * facing * nx, dy + 2.0 * facing * ny, dz + 2.0 * facing * nz
    red, green, blue = ball.colour
    if bounces:
        mr, mg, mb = trace(px, py, pz, rx, ry, rz, blur * 5.0, bounces - 1)
    else:
        mr, mg, mb = sky(rx, ry, rz)
    if ball.metal:
        return (
            mr * (red + (1.0 - red) * rim5),
            mg * (green + (1.0 - green) * rim5),
            mb * (blue + (1.0 - blue) * rim5),
        )
    sun, open_sky = light(px, py, pz, nx, ny, nz, ball)
    above = open_sky * (0.5 + 0.5 * ny)
    below = 0.16 * (0.5 - 0.5 * ny)
    shine = rx * SUN[0] + ry * SUN[1] + rz * SUN[2]
    gloss = 0.0
    if shine > 0.0 and sun > 0.0:
        gloss = shine * shine
        gloss *= gloss
        gloss *= gloss
        gloss *= gloss
        gloss *= gloss
        gloss *= gloss * 1.2
    mirror = 0.05 + 0.95 * rim5
    rest = 1.0 - mirror
    return (
        rest * red * (SUN_COLOUR[0] * sun + 0.46 * above + 0.30 * below) + mirror * mr + gloss * SUN_COLOUR[0],
        rest * green * (SUN_COLOUR[1] * sun + 0.50 * above + 0.24 * below) + mirror * mg + gloss * SUN_COLOUR[1],
        rest * blue * (SUN_COLOUR[2] * sun + 0.66 * above + 0.20 * below) + mirror * mb + gloss * SUN_COLOUR[2],
    )


def _floor(px: float, pz: float, dx: float, dy: float, dz: float, distance: float, blur: float, bounces: int) -> Colour:
    """The floor: filtered chequers, the balls' shadows, their mirror image, and haze towards the horizon."""
    wide = distance * blur + 1e-4
    share = chequers(px, pz, wide, wide / (-dy) if dy < -0.02 else wide * 50.0)
    red, green, blue = 0.030 + 0.46 * share, 0.028 + 0.42 * share, 0.034 + 0.36 * share
    sun, open_sky = light(px, 0.0, pz, 0.0, 1.0, 0.0, None)
    red *= SUN_COLOUR[0] * sun + 0.26 * open_sky
    green *= SUN_COLOUR[1] * sun + 0.27 * open_sky
    blue *= SUN_COLOUR[2] * sun + 0.38 * open_sky
    fade = 2500.0 / (2500.0 + distance * distance)
    if bounces and fade > 0.05:
        rim = 1.0 + dy
        rim5 = rim * rim
        mirror = 0.09 + 0.72 * rim5 * rim5 * rim
        mr, mg, mb = trace(px, 0.0, pz, dx, -dy, dz, blur, bounces - 1)
        red += (mr - red) * mirror
        green += (mg - green) * mirror
        blue += (mb - blue) * mirror
    hr, hg, hb = sky(dx, 0.0, dz)
    return red * fade + hr * (1.0 - fade), green * fade + hg * (1.0 - fade), blue * fade + hb * (1.0 - fade)


class Camera:
    """Where picture coordinates point to, in pixels from the left and from the top."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.forward = _unit(LOOK_AT[0] - EYE[0], LOOK_AT[1] - EYE[1], LOOK_AT[2] - EYE[2])
        fx, fy, fz = self.forward
        self.right = _unit(fz, 0.0, -fx)
        rx, _, rz = self.right
        self.up = (fy * rz, fz * rx - fx * rz, -fy * rx)
        self.blur = 2.0 / (ZOOM * height)

    def sample(self, column: float, row: float, balls: tuple[Ball, ...]) -> Sample:
        """What is at a point of the picture; 1.0 is as bright as the screen can be."""
        u = (2.0 * column - self.width) / (self.height * ZOOM)
        v = (self.height - 2.0 * row) / (self.height * ZOOM)
        (fx, fy, fz), (rx, ry, rz), (ux, uy, uz) = self.forward, self.right, self.up
        dx, dy, dz = _unit(fx + rx * u + ux * v, fy + ry * u + uy * v, fz + rz * u + uz * v)
        ex, ey, ez = EYE
        distance, ball = hit(ex, ey, ez, dx, dy, dz, balls)
        if distance == 0.0:
            red, green, blue = sky(dx, dy, dz)
        elif ball is None:
            red, green, blue = _floor(ex + dx * distance, ez + dz * distance, dx, dy, dz, distance, self.blur, BOUNCES)
        else:
            px, py, pz = ex + dx * distance, ey + dy * distance, ez + dz * distance
            red, green, blue = _ball(ball, px, py, pz, dx, dy, dz, self.blur, BOUNCES)
        return _film(red), _film(green), _film(blue), ball

    def visible(self, top: int, bottom: int) -> tuple[Ball, ...]:
        """The balls that rows `top` to `bottom` can show, nearest first; a strip tests no others first-hand."""
        seen = []
        fx, fy, fz = self.forward
        ux, uy, uz = self.up
        for ball in BALLS:
            x, y, z = ball.x - EYE[0], ball.y - EYE[1], ball.z - EYE[2]
            depth = x * fx + y * fy + z * fz
            centre, margin = x * ux + y * uy + z * uz, ball.radius * 1.25
            near = depth - margin
            rows = [
                self.height * 0.5 * (1.0 - ZOOM * edge / d)
                for edge in (centre - margin, centre + margin)
                for d in (near, depth + margin)
            ]
            if max(rows) >= top and min(rows) <= bottom:
                seen.append((depth, ball))
        return tuple(ball for _, ball in sorted(seen))


def _film(value: float) -> float:
    """Brightness as film takes it (a fit of the ACES curve by Krzysztof Narkowicz), then gamma 2."""
    value = value * (2.51 * value + 0.03) / (value * (2.43 * value + 0.59) + 0.14)
    return sqrt(value) if 0.0 < value < 1.0 else 0.0 if value <= 0.0 else 1.0


def render(top: int, bottom: int, width: int, height: int) -> bytes:
    """Rows `top` to `bottom` (not included) as raw RGB, three bytes a pixel.

    Samples lie at the pixels' corners, where neighbours share them; a pixel whose corners differ is
    sampled finely. So edges are smooth for little more than one ray a pixel, whatever the strips are.
    """
    camera = Camera(width, height)
    balls = camera.visible(top, bottom)
    pixels = bytearray()
    above = [camera.sample(float(column), float(top), balls) for column in range(width + 1)]
    for row in range(top, bottom):
        below = [camera.sample(float(column), row + 1.0, balls) for column in range(width + 1)]
        for column in range(width):
            samples: tuple[Sample, ...] = (above[column], above[column + 1], below[column], below[column + 1])
            if _is_rough(samples):
                samples = tuple(
                    camera.sample(column + (i + 0.5) / SUB, row + (j + 0.5) / SUB, balls)
                    for j in range(SUB)
                    for i in range(SUB)
                )
            pixels += _mean(samples)
        above = below
    return bytes(pixels)


def _is_rough(corners: tuple[Sample, ...]) -> bool:
    """Whether a pixel has an edge in it: of a thing, or a sharp one in what it shows."""
    (ar, ag, ab, one), (br, bg, bb, two), (cr, cg, cb, three), (dr, dg, db, four) = corners
    limit = CONTRAST_INSIDE if one is two is three is four else CONTRAST
    ar, ag, ab = ar - dr, ag - dg, ab - db
    br, bg, bb = br - cr, bg - cg, bb - cb
    return ar * ar + ag * ag + ab * ab > limit or br * br + bg * bg + bb * bb > limit


def _mean(samples: tuple[Sample, ...]) -> bytes:
    red = green = blue = 0.0
    for r, g, b, _ in samples:
        red += r
        green += g
        blue += b
    scale = 255.0 / len(samples)
    return bytes((int(red * scale + 0.5), int(green * scale + 0.5), int(blue * scale + 0.5)))


def main(arguments: list[str]) -> int:
    """Render strip `arguments[0]` of `arguments[1]` to standard output."""
    try:
        strip, strips, width, height = (int(argument) for argument in arguments)
    except ValueError:
        print("four whole numbers are wanted: STRIP STRIPS WIDTH HEIGHT", file=sys.stderr)
        return 2
    if not 0 <= strip < strips or height % strips:
        print(f"no strip {strip}: {height} rows in {strips} strips, numbered from 0", file=sys.stderr)
        return 2
    rows = height // strips
    sys.stdout.buffer.write(render(strip * rows, (strip + 1) * rows, width, height))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
