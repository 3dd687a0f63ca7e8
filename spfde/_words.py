"""Numbers as people read them."""

from __future__ import annotations

NONE = "-"  # a figure that the run does not have


def percent(fraction: float, digits: int = 1) -> str:
    """0.9312 as "93.1%"."""
    return f"{100 * fraction:.{digits}f}%"


def duration(seconds: float) -> str:
    """Seconds with the digits that matter: "0.084 s", "4.20 s", "42.0 s", "3 min 05 s", "2 h 07 min"."""
    if seconds < 1:
        return f"{seconds:.3f} s"
    if seconds < 99.95:
        return f"{seconds:.{2 if seconds < 9.995 else 1}f} s"
    if seconds < 3599.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def work(flops: float) -> str:
    """FLOPs with a prefix: 2.34e13 as "23.4 TFLOP"."""
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if flops >= 10**power:
            return f"{flops / 10**power:.3g} {prefix}FLOP"
    return f"{flops:.0f} FLOP"


def size(memory: int) -> str:
    """Bytes as "412 MiB", "1.53 GiB"."""
    mebibytes = memory / 2**20
    return f"{mebibytes:.0f} MiB" if mebibytes < 1000 else f"{mebibytes / 1024:.2f} GiB"


def ratio(value: float) -> str:
    """A factor with three digits: "1.71x", "14.0x", "140x"."""
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}x"


def points(fraction: float) -> str:
    """A difference of accuracies: 0.0123 as "1.2 percentage points"."""
    size = f"{100 * abs(fraction):.1f}"
    return f"{size} percentage point{'' if size == '1.0' else 's'}"


def shortened(text: str, length: int = 26, *, end: bool = False) -> str:
    """At most `length` characters of a name, from its start or from its `end`."""
    if len(text) <= length:
        return text
    return f"...{text[3 - length :]}" if end else f"{text[: length - 3]}..."


def count(number: int, noun: str) -> str:
    """A counted noun: "1 block", "6 blocks"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
