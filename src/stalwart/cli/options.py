"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Folder with the datasets' published files.")]
NoDownload = Annotated[bool, typer.Option("--no-download", help="Never ask the publisher for missing data.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1; by default a GPU where there is one.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Output folder.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides such as training.epochs=5 seed=1.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes to share the work; with --address tasks at once.")
]
Address = Annotated[
    str | None, typer.Option("--address", help="A Ray cluster, such as auto or 10.0.0.1:6379; local starts one here.")
]
