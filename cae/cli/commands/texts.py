"""`cae texts build`."""

from __future__ import annotations

import typer

from cae.cli import terminal
from cae.cli.options import Captions, Device, EncoderSpec, Nouns, Quiet, Weights
from cae.config import DEFAULT_ENCODER
from cae.utils.words import counted

texts_app = typer.Typer(help="Text banks: nouns and captions, embedded once and cached.", no_args_is_help=True)


@texts_app.command()
def build(
    encoder: EncoderSpec = DEFAULT_ENCODER,
    encoder_weights: Weights = None,
    nouns: Nouns = None,
    captions: Captions = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Embed the nouns and captions ahead of time; `cae cluster` then finds them in the cache."""
    terminal.note_loading(quiet=quiet)
    from cae.encoders import load_encoder
    from cae.text import load_bank
    from cae.text.vectors import is_vectors, text_sources
    from cae.utils.devices import find_device

    sources = text_sources(nouns, captions)
    if given := [str(source) for source in sources.values() if is_vectors(source)]:
        raise ValueError(f"{', '.join(given)} holds vectors: nothing to embed; give it to `cae cluster` as it is")
    loaded = load_encoder(encoder, weights=encoder_weights, device=find_device(device))
    for kind, source in sources.items():
        with terminal.progress_bars(quiet=quiet) as reporter:
            bank = load_bank(kind, str(source), loaded, reporter)
        if not quiet:
            terminal.out.print(
                f"{kind}s: {counted(len(bank.texts), 'text')} of {bank.corpus.name}, cached", highlight=False
            )
