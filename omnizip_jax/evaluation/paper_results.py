"""The paper's published results.

Tao et al., OmniZip: Audio-Guided Dynamic Token Compression for Fast Omnimodal Large Language
Models: Tables 1, 2, 3 and 6, copied by hand. "-" marks results that the paper omits (out of
memory). Figures 4, 6 and 7 print no numbers; ``FIGURES`` has the statements of the text.
"""

from __future__ import annotations

SIZES = {3584: "7B", 2048: "3B"}  # by the width of the decoder

AVUT = ("EL", "OR", "OM", "IE", "CC", "CM")
WORLDSENSE = (
    "Tech & Science",
    "Culture & Politics",
    "Daily Life",
    "Film & TV",
    "Performance",
    "Games",
    "Sports",
    "Music",
)

Rows = dict[str, tuple[tuple[str, ...], ...]]


def _rows(text: str) -> tuple[tuple[str, ...], ...]:
    """Lines of cells; the first cell ends at a semicolon."""
    lines = [line.strip().partition(";") for line in text.strip().splitlines()]
    return tuple((name, *cells.split()) for name, _, cells in lines)


# Retained and FLOPs ratio; AVUT by task and on average; VideoMME; ShortVid-Bench; average of the
# shares of the full model's accuracy.
TABLE_1: Rows = {
    "7B": _rows("""
        Full Tokens; 100% 100% 38.2 67.8 59.6 85.6 44.1 66.7 64.5 66.0 70.5 100%
        Random; 55% 48% 38.2 64.9 55.6 80.1 34.7 65.0 61.0 65.4 68.3 96.9%
        FastV; 50% 54% 34.1 64.3 57.1 77.6 36.4 56.4 58.4 - 68.0 94.3%
        DyCoke (V&A); 50% 44% 38.8 67.2 58.2 81.9 39.0 62.4 62.0 65.5 68.5 97.5%
        OmniZip; 45% 39% 38.4 67.2 56.9 85.3 42.4 66.0 63.0 66.3 69.9 99.1%
        Random; 40% 34% 31.7 58.5 53.3 74.9 43.2 59.0 56.9 65.0 67.7 94.3%
        FastV; 35% 42% 24.1 60.7 54.3 81.6 40.7 58.3 57.8 - 67.9 93.8%
        DyCoke (V&A); 35% 29% 32.9 62.1 54.9 74.5 39.0 58.3 57.4 65.2 68.0 94.7%
        OmniZip; 35% 29% 34.1 67.5 54.6 83.7 42.4 61.2 61.0 66.1 69.0 97.6%
    """),
    "3B": _rows("""
        Full Tokens; 100% 100% 32.9 65.3 58.4 85.0 44.1 62.6 62.2 62.6 69.4 100%
        Random; 55% 45% 31.7 59.2 55.4 77.3 44.9 62.1 58.7 61.1 67.9 96.6%
        FastV; 50% 49% 27.1 57.0 56.3 80.5 42.3 60.1 55.9 - 68.0 95.7%
        DyCoke (V&A); 50% 40% 31.9 64.3 57.3 82.2 40.7 61.3 60.7 61.6 67.4 97.7%
        OmniZip; 45% 36% 32.4 65.0 57.7 84.9 41.5 61.4 61.3 62.8 68.5 99.2%
        Random; 40% 31% 28.2 60.8 54.9 73.1 42.3 61.6 57.5 60.6 67.0 95.4%
        FastV; 35% 37% 24.2 60.8 54.3 81.6 40.7 58.3 57.7 - 67.7 96.9%
        DyCoke (V&A); 35% 26% 32.9 62.1 54.9 74.5 38.9 58.3 57.4 61.0 67.5 95.7%
        OmniZip; 35% 26% 28.8 63.1 58.2 84.0 42.4 60.4 60.1 62.7 68.0 98.3%
    """),
}

# Retained ratio, operations in units of 10^12 by eq. 9, WorldSense by domain and on average.
TABLE_2: Rows = {
    "7B": _rows("""
        Full Tokens; 100% 73.2 52.4 50.1 48.5 44.6 43.8 41.6 41.6 47.3 46.8
        Random; 55% 35.5 47.1 47.0 44.4 41.2 40.0 40.1 40.1 46.3 43.6
        FastV; 50% 39.3 48.8 47.4 44.2 44.1 41.2 38.3 40.0 46.6 44.3
        DyCoke (V&A); 50% 31.9 48.4 49.9 46.7 41.4 39.9 40.8 40.2 46.5 44.6
        OmniZip; 45% 28.3 50.1 51.1 47.6 43.9 40.1 40.8 41.9 46.7 45.9
        OmniZip; 35% 21.4 48.3 49.5 47.6 42.5 40.1 40.2 42.3 46.3 45.3
    """),
    "3B": _rows("""
        Full Tokens; 100% 37.4 51.5 50.8 45.0 45.4 43.8 42.5 44.2 46.1 46.4
        Random; 55% 17.0 48.2 46.3 40.7 41.4 38.6 40.0 41.8 43.4 42.8
        FastV; 50% 18.2 50.0 50.5 44.1 43.0 40.5 41.6 41.8 42.1 44.4
        DyCoke (V&A); 50% 15.1 48.1 48.5 42.3 43.3 39.7 43.4 42.1 43.0 44.0
        OmniZip; 45% 13.3 50.1 50.5 43.9 45.6 40.5 40.8 43.7 43.1 45.2
        OmniZip; 35% 9.9 48.8 48.9 41.8 46.4 39.8 42.5 42.6 43.1 44.3
    """),
}

# Peak memory, prefill time, accuracy on WorldSense, latency of an example; an A6000.
TABLE_3: Rows = {
    "7B": _rows("""
        Full Tokens; 35G 291ms 46.8 4.52s
        FastV; - - - -
        DyCoke (V&A); 31G 184ms 44.6 3.64s
        OmniZip 45%; 28G 116ms 45.9 3.40s
        OmniZip 35%; 25G 85ms 45.3 3.18s
    """),
    "3B": _rows("""
        Full Tokens; 25G 258ms 46.4 3.61s
        FastV; 45G 222ms 44.4 3.45s
        DyCoke (V&A); 20G 171ms 44.0 3.12s
        OmniZip 45%; 17G 104ms 45.2 2.86s
        OmniZip 35%; 16G 79ms 44.3 2.75s
    """),
}

# Retained ratio, rho_audio, rho_video, WorldSense by domain and on average.
TABLE_6: Rows = {
    "7B": _rows("""
        Full Tokens; 100% - - 52.4 50.1 48.5 44.6 43.8 41.6 41.6 47.3 46.8
        Random; 55% 0.45 0.45 47.1 47.0 44.4 41.2 40.0 40.1 40.1 46.3 43.6
        FastV; 50% 0.5 0.5 48.8 47.4 44.2 44.1 41.2 38.3 40.0 46.6 44.3
        DyCoke (V&A); 50% 0.5 0.5 48.4 49.9 46.7 41.4 39.9 40.8 40.2 46.5 44.6
        OmniZip; 50% 0.5 0.5 50.4 49.5 47.7 42.5 41.6 41.2 42.8 47.8 46.1
        DyCoke (V&A); 45% 0.55 0.55 47.1 49.5 44.5 41.2 40.8 40.7 40.5 46.6 44.1
        OmniZip; 45% 0.55 0.55 50.0 49.8 47.6 42.7 40.1 40.7 41.2 47.8 45.5
        OmniZip; 45% 0.3 0.6 50.1 51.1 47.6 43.9 40.1 40.8 41.9 46.7 45.9
    """),
}

FIGURES = {
    4: "7B, WorldSense: pruning either modality too hard costs accuracy; OmniZip is above the "
    "others at every ratio (a plot without numbers)",
    6: "7B: prefill 2.7 to 3.8 times as fast as with all tokens (read from a plot)",
    7: "7B at 45 %: G = 3 is best except on AVUT, where larger values are (a plot without numbers)",
}
