"""What a sieve left out, and which samples were never learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spfde.sieving.pictures import picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class SieveReport:
    """A sieve's history; `print` draws it.

    method, num_samples: of the sieve. volumes: active samples of each epoch, the present one last. reason: of the last
    choice. never_learned: samples that were shown and never predicted right, those that were shown most first, with
    their presentations; wrong labels are among them. extra_seconds: spent on passes that training does not make itself,
    in this process.
    """

    method: str
    num_samples: int
    volumes: tuple[int, ...]
    reason: str
    never_learned: tuple[int, ...]
    presentations: tuple[int, ...]
    extra_seconds: float

    @property
    def saved(self) -> float:
        """Share of the presentations of all epochs that the sieve left out, in [0, 1]."""
        return 1 - sum(self.volumes) / (self.num_samples * len(self.volumes))

    def __str__(self) -> str:
        lines = [
            f"{self.method}: {self.volumes[-1]} of {self.num_samples} samples active in epoch {len(self.volumes) - 1}, "
            f"{100 * self.saved:.1f}% of the presentations left out"
        ]
        if self.reason:
            lines.append(f"last choice: {self.reason}")
        if self.extra_seconds:
            lines.append(f"passes of its own: {self.extra_seconds:.1f} s")
        if self.never_learned:
            pairs = zip(self.never_learned[:10], self.presentations[:10], strict=True)
            shown = ", ".join(f"{sample} ({count}x)" for sample, count in pairs)
            more = f", and {len(self.never_learned) - 10} more" if len(self.never_learned) > 10 else ""
            lines.append(f"shown and never predicted right: {shown}{more}")
        return "\n".join(lines)

    def figure(self, data: Any, limit: int = 24) -> Figure:
        """Pictures of the samples that were never learnt, with their labels.

        Args:
            data: `data[i]` is (image [channels, height, width] or [height, width], label, ...).
            limit: of pictures.

        Raises:
            ValueError: every sample was predicted right at least once, or an item is no image.
        """
        from matplotlib.figure import Figure

        samples = self.never_learned[:limit]
        if not samples:
            raise ValueError("expected samples that were never predicted right, got none; try after more epochs")
        columns = min(6, len(samples))
        rows = -(-len(samples) // columns)
        drawing = Figure(figsize=(1.7 * columns, 2 * rows), layout="constrained")
        for place, (sample, shown) in enumerate(zip(samples, self.presentations, strict=False)):
            image, label = data[sample][:2]
            axes = drawing.add_subplot(rows, columns, place + 1)
            axes.imshow(picture(image), cmap="gray")
            axes.set_title(f"{sample}: {int(label)} ({shown}x)", fontsize=8)
            axes.set_axis_off()
        return drawing
