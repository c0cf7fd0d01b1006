"""What the embedded base is shown: its classes, the image sets they come from, and the subjects it never sees.

Everything is a fixed list, so that what was held out is a fact to read and not a matter of a seed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DrawingSet:
    """One published set of drawings: a package of the npm registry, pinned by version and content.

    `style` is how captions name the way it is drawn.
    """

    package: str
    version: str
    integrity: str
    licence: str
    author: str
    style: str


SETS: dict[str, DrawingSet] = {
    "flat": DrawingSet(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        "MIT",
        "Microsoft (Fluent Emoji)",
        "flat drawing",
    ),
    "3d": DrawingSet(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        "MIT",
        "Microsoft (Fluent Emoji), packed by LobeHub",
        "shiny render",
    ),
    "noto": DrawingSet(
        "@iconify-json/noto",
        "1.2.9",
        "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        "Apache-2.0",
        "Google (Noto Emoji)",
        "cartoon",
    ),
    "noto1": DrawingSet(
        "@iconify-json/noto-v1",
        "1.2.5",
        "sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        "Apache-2.0",
        "Google (Noto Emoji, first version)",
        "sticker",
    ),
    "fx": DrawingSet(
        "@iconify-json/fxemoji",
        "1.2.2",
        "sha512-UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
        "Apache-2.0",
        "Mozilla (Firefox OS Emoji)",
        "icon",
    ),
}

#: Sets for the identity encoder alone: it takes more drawings of a thing to know it in a look of its own.
FURTHER_SETS: dict[str, DrawingSet] = {
    "twemoji": DrawingSet(
        "@iconify-json/twemoji",
        "1.2.5",
        "sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        "CC-BY-4.0",
        "Twitter (Twemoji)",
        "twemoji",
    ),
    "emojione": DrawingSet(
        "@iconify-json/emojione",
        "1.2.3",
        "sha512-T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
        "CC-BY-4.0",
        "Ranks.com (EmojiOne 2)",
        "emojione",
    ),
}

#: class -> name of its drawing in each set, in the order of SETS ("3d" is by code point); "" where there is none.
_DRAWINGS = """
frog      frog          1f438      frog          frog            frog
dog       dog-face      1f436      dog-face      dog-face        dog
cat       cat-face      1f431      cat-face      cat-face        cat
penguin   penguin       1f427      penguin       penguin         penguin
turtle    turtle        1f422      turtle        turtle          turtle
fish      tropical-fish 1f420      tropical-fish tropical-fish   tropicalfish
elephant  elephant      1f418      elephant      elephant        elephant
snail     snail         1f40c      snail         snail           snail
car       automobile    1f697      automobile    automobile      automobile
bus       bus           1f68c      bus           bus             bus
tractor   tractor       1f69c      tractor       tractor         tractor
rocket    rocket        1f680      rocket        rocket          rocket
house     house         1f3e0      house         house           -
cactus    cactus        1f335      cactus        cactus          cactus
mushroom  mushroom      1f344      mushroom      mushroom        mushroom
flower    sunflower     1f33b      sunflower     sunflower       sunflower
apple     red-apple     1f34e      red-apple     red-apple       redapple
lemon     lemon         1f34b      lemon         lemon           lemon
cake      birthday-cake 1f382      birthday-cake birthday-cake   birthdaycake
robot     robot         1f916      robot         robot           -
teapot    teapot        1fad6      teapot        -               -
cup       hot-beverage  2615       hot-beverage  hot-beverage    -
umbrella  umbrella      2602-fe0f  umbrella      umbrella        -
clock     alarm-clock   23f0       alarm-clock   alarm-clock     alarmclock
"""
DRAWINGS: dict[str, dict[str, str]] = {
    row.split()[0]: {name: icon for name, icon in zip(SETS, row.split()[1:], strict=True) if icon != "-"}
    for row in _DRAWINGS.strip().splitlines()
}
CLASSES: tuple[str, ...] = tuple(DRAWINGS)

#: Things that a subject may wear: name -> drawing in the set "flat".
ACCESSORIES = {"hat": "top-hat", "bow": "ribbon", "crown": "crown", "cap": "billed-cap", "sunglasses": "sunglasses"}

#: Colours that captions name, as RGB.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 42, 48),
    "orange": (250, 140, 30),
    "yellow": (252, 214, 50),
    "green": (52, 168, 72),
    "cyan": (48, 200, 212),
    "blue": (40, 92, 220),
    "purple": (136, 62, 190),
    "pink": (250, 130, 180),
    "brown": (130, 84, 56),
    "white": (244, 244, 244),
    "black": (46, 46, 54),
}
PATTERNS = ("striped", "dotted", "checkered")


@dataclass(frozen=True)
class Design:
    """One look of a class: a drawing, its body recoloured, a pattern on the body, something worn.

    `color` and `second` are names in COLORS; `pattern` is one of PATTERNS and needs `second`.
    """

    class_name: str
    set_name: str
    color: str = ""
    pattern: str = ""
    second: str = ""
    accessory: str = ""


#: The subjects that ship with the package. The drawing of each (class and set) is shown to the base in no form.
SUBJECTS: dict[str, Design] = {
    "robot": Design("robot", "noto1", "orange", "striped", "blue"),
    "teapot": Design("teapot", "noto", "cyan", "dotted", "red"),
    "frog": Design("frog", "fx", "purple", "dotted", "yellow"),
    "dog": Design("dog", "fx", "blue", accessory="hat"),
    "cat": Design("cat", "fx", "pink", "striped", "purple"),
    "turtle": Design("turtle", "fx", "red", "checkered", "white"),
    "elephant": Design("elephant", "fx", "green", "striped", "yellow"),
    "car": Design("car", "noto1", "pink", "checkered", "black"),
    "rocket": Design("rocket", "noto1", "green", "dotted", "white"),
    "mushroom": Design("mushroom", "noto1", "blue", "striped", "white"),
    "apple": Design("apple", "fx", "black", "dotted", "cyan"),
    "house": Design("house", "noto1", "purple", "checkered", "cyan"),
    "penguin": Design("penguin", "fx", "orange", accessory="crown"),
    "snail": Design("snail", "fx", "cyan", "striped", "red"),
}
#: Drawings that the base is never trained on.
RESERVED = frozenset((design.class_name, design.set_name) for design in SUBJECTS.values())


def known_designs() -> list[Design]:
    """Every drawing that the base may see, as it was drawn."""
    return [
        Design(name, set_name)
        for name, icons in DRAWINGS.items()
        for set_name in icons
        if (name, set_name) not in RESERVED
    ]
