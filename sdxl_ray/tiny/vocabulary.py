"""The embedded base's words and the byte-pair encoding learnt from them.

The encoding is trained to exhaustion: every word below is one token, and since each single byte is a token too, any
prompt can be tokenised. The byte alphabet is CLIP's (GPT-2's printable stand-ins for bytes, `</w>` at a word's end).
Byte-pair encoding: arXiv 1508.07909.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import pairwise

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"

_CLASSES = """
airplane apple backpack ball balloon banana barn bear bee bell bicycle bird boat book boot bottle bowl box bread
bridge bus butterfly cactus cake camel camera candle car carrot castle cat chair cheese cherry chicken clock cloud
cow crab crown cup deer dinosaur dog doll dolphin donkey door dragon drum duck elephant fish flag flower fox frog
ghost giraffe glasses goat guitar hammer hat hedgehog helicopter horse house kangaroo key kite koala lamp leaf lemon
lion lizard lobster monkey moon motorcycle mouse mushroom octopus owl panda parrot pear penguin person phone piano
pig pineapple pizza plant pumpkin puppy kitten rabbit robot rocket rooster rose scooter shark sheep shell shoe snail
snake snowman spider squirrel star strawberry sun swan sword table taxi teapot tiger toy tractor train tree trophy
truck trumpet turtle umbrella unicorn vase violin watch watermelon whale wolf zebra
"""
_PLACES = """
airport arctic beach bedroom bookshelf bridge canyon carpet cave city cobblestone desert farm field floor forest
garden grass harbor hill ice island jungle kitchen lake library market meadow mountain museum night ocean office park
path playground pond pool rain river road roof room sand sea shelf sky snow space stage stars station street studio
sunrise sunset table temple tower tunnel valley village wall wheat window wood
bathroom bed books chalkboard classroom clouds counter fabric fence flowers hills lava leaves mirror mountains
mud outer planets rainy rug sidewalk snowy tiles trees volcano
"""
_LOOKS = """
beige black blue bright brown colorful cyan dark golden gray green grey light lime magenta maroon navy olive orange
pale pastel pink purple red silver striped dotted teal turquoise violet white yellow checkered plain shiny wooden
metal glass plastic rubber ceramic knitted fluffy soft smooth rough old new clean dirty wet dry broken happy sad angry
sleeping smiling big small huge little large tall short long round square flat thin thick young cute funny beautiful
cartoon clay drawing flat icon illustration logo outline painting paper pencil pixel poster render sculpture sketch
sticker style vector watercolor photograph picture image close up side front back left right top bottom center
"""
_FUNCTION = """
a an the and or of on in at by to for from with without near under over above below behind beside between inside
outside against around among into onto through is are was be being it its this that these those his her my your their
one two three four five six seven eight nine ten no not only very some many few all each other another same different
photo view scene background object thing wearing holding sitting standing lying running jumping flying swimming
floating eating playing looking made floor middle front during next day morning evening winter summer spring autumn
fire smoke water stone brick dots stripes hat glasses scarf bow tie santa chef police detail quality good best
shaped nice nothing
"""
#: Rare words that DreamBooth binds a subject to.
IDENTIFIERS = ("sks", "ohwx", "zwx", "xjy", "olis", "shs", "pll", "bnha", "qzv", "vtk", "hta", "ukj")


def words() -> list[str]:
    """Every word that is one token, sorted."""
    written = " ".join((_CLASSES, _PLACES, _LOOKS, _FUNCTION)).split()
    return sorted({*written, *IDENTIFIERS})


@cache
def bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(token -> id, merges in order). The same everywhere: ties between pairs are broken by the alphabet."""
    pieces = [(*word[:-1], word[-1] + _WORD_END) for word in words()]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for piece in pieces for pair in pairwise(piece))
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = [merged for piece in pieces if len(merged := _merge(piece, best)) > 1]
    alphabet = _bytes()
    tokens = [*alphabet, *(symbol + _WORD_END for symbol in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys([*tokens, BEGIN, END]))}
    return vocabulary, merges


def _merge(piece: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for symbol in piece:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return tuple(merged)


def _bytes() -> list[str]:
    """The 256 printable stand-ins for bytes: itself where printable, else the next free code point from 256 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in sorted(printable)] + [chr(256 + rank) for rank in range(len(hidden))]
