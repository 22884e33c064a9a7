"""The page of a comparison: one HTML file with its tables and pictures, which opens without a network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from nio_pydra import __version__
from nio_pydra.comparison import paper
from nio_pydra.comparison.figures import Picture
from nio_pydra.comparison.results import Results
from nio_pydra.comparison.tables import (
    FOOTNOTES,
    cautions,
    facts_table,
    failures_table,
    methods_table,
    paper_table,
    scores_table,
    statistics_table,
)
from nio_pydra.system.files import write_text

__all__ = ["write_page"]

TEMPLATE = Path(__file__).with_name("page.html")


def write_page(results: Results, pictures: Sequence[Picture], path: Path) -> Path:
    """Write the page of a comparison.

    Parameters
    ----------
    results : Results
    pictures : sequence of Picture
        Of :func:`nio_pydra.comparison.figures.write_figures`; the page holds copies of them.
    path : Path
        HTML file.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=results.title,
        version=__version__,
        cautions=cautions(results),
        groups=[(scores_table(results, group), statistics_table(results, group)) for group in results.groups],
        failures=failures_table(results),
        methods=methods_table(results),
        settings=results.settings,
        facts=facts_table(results),
        footnotes=FOOTNOTES,
        paper=paper_table(),
        citation=paper.CITATION,
        pictures=[(picture, _data_uri(picture.path)) for picture in pictures],
    )
    write_text(text, path)
    return path


def _data_uri(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
