"""TensorBoard event files."""

from collections.abc import Mapping
from pathlib import Path


class TensorBoard:
    """`Tracker` that writes event files into `directory`; a resumed run supersedes its later steps."""

    def __init__(self, directory: Path, resume_at: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=resume_at + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()
