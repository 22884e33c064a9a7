"""The text about a run for a methods section, with its references."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from nio_pydra import __version__
from nio_pydra.bids.atlas import Atlas
from nio_pydra.bids.inputs import Scan
from nio_pydra.bids.templates import template_references
from nio_pydra.engines.contract import Runtime
from nio_pydra.engines.methods import Method
from nio_pydra.engines.names import get_engine
from nio_pydra.engines.references import (
    AVANTS_2011,
    CIRIC_2022,
    FISCH_2024,
    GORGOLEWSKI_2016,
    JARECKA_2020,
    MOK_2023,
    Reference,
)
from nio_pydra.networks.checkpoints import adaptation_of
from nio_pydra.profiles import BRAIN, Profile
from nio_pydra.system.files import write_text
from nio_pydra.system.settings import flat
from nio_pydra.system.wording import counted

__all__ = ["Boilerplate", "write_boilerplate"]

MASK_REFERENCES = {"deepbet": FISCH_2024}
"""Of `nio_pydra.engines.masks.MAKERS`."""


@dataclass(frozen=True)
class Boilerplate:
    """What a run did, as far as its options say.

    Attributes
    ----------
    scans : sequence of Scan
        Scans that are registered, or were to be.
    atlases : sequence of Atlas
        Atlases that they are aligned to.
    method : Method
        Engine and settings.
    runtime : Runtime
        Precision and seed.
    profile : Profile
        What is registered.
    failed : collection of str
        Names of scans that could not be registered to every atlas, beside those with a problem.
    """

    scans: Sequence[Scan]
    atlases: Sequence[Atlas]
    method: Method
    runtime: Runtime = field(default_factory=Runtime)
    profile: Profile = BRAIN
    failed: Collection[str] = ()

    def paragraphs(self) -> list[tuple[str, tuple[Reference, ...]]]:
        """Return sentences in order, each with the publications that it cites."""
        own = [scan for scan in self.scans if not (scan.problem or scan.name in self.failed)]
        return [
            (
                f"{counted(len(own), 'scan')} ({self.profile.suffix}) of "
                f"{counted(len({scan.entities['subject'] for scan in own}), 'participant')}, organised as a BIDS "
                f"dataset{{}}, {'was' if len(own) == 1 else 'were'} aligned with "
                f"nio_pydra {__version__}, which runs its steps as Pydra tasks{{}}.",
                (GORGOLEWSKI_2016, JARECKA_2020),
            ),
            *self._failures(len(self.scans) - len(own)),
            *(self._atlas(atlas) for atlas in self.atlases),
            *self._masks(own),
            (
                "An affine that maximises mutual information was computed by ANTs"
                f"{{}} (antspyx {version('antspyx')}), and refused where it did not align the {self.profile.name}s.",
                (AVANTS_2011,),
            ),
            *self._adaptation(),
            self._registration(),
            *self._lesions(own),
            self._resampling(own),
        ]

    def _failures(self, count: int) -> Iterator[tuple[str, tuple[Reference, ...]]]:
        if count:
            atlas = "the atlas" if len(self.atlases) == 1 else "every atlas"
            yield f"{counted(count, 'further scan')} could not be aligned to {atlas}.", ()

    def _resampling(self, scans: Sequence[Scan]) -> tuple[str, tuple[Reference, ...]]:
        through = "the affine" if self.method.name == "affine" else "affine and deformation together"
        text = f"Images were resampled once, with linear interpolation, through {through}"
        if any(atlas.labels for atlas in self.atlases) or any(scan.labels for scan in scans):
            text += "; label images with the nearest neighbour"
        return f"{text}.", ()

    def _atlas(self, atlas: Atlas) -> tuple[str, tuple[Reference, ...]]:
        modifiers = [
            text
            for text in (
                f"cohort {atlas.cohort}" if atlas.cohort else "",
                f"resolution {atlas.resolution}" if atlas.resolution else "",
            )
            if text
        ]
        name = ", ".join([atlas.name, *modifiers])
        which = "The atlas" if len(self.atlases) == 1 else "One atlas"
        if atlas.reference.startswith("file:"):
            return f"{which} was {name}, an image of our own ({atlas.image.name}).", ()
        return f"{which} was the template {name} from TemplateFlow{{}}.", (CIRIC_2022,)

    def _masks(self, scans: Sequence[Scan]) -> Iterator[tuple[str, tuple[Reference, ...]]]:
        given = sum(scan.mask is not None for scan in scans)
        stripped = sum(scan.mask is None and scan.skull_stripped for scan in scans)
        found = len(scans) - given - stripped
        mask = f"{self.profile.name} mask"
        if given:
            yield f"The {mask}s of {counted(given, 'scan')} came from derivatives.", ()
        if stripped:
            yield f"{counted(stripped, 'scan')} showed the {self.profile.name} alone: voxels that are not zero.", ()
        if found:
            maker = self.profile.mask_maker
            yield (
                f"The {mask}s of {counted(found, 'scan')} were computed by {maker}{{}} ({version(maker)}).",
                (MASK_REFERENCES[maker],),
            )

    def _adaptation(self) -> Iterator[tuple[str, tuple[Reference, ...]]]:
        weights = getattr(self.method.settings, "weights", None)
        if weights is None or (adapted := adaptation_of(weights)) is None:
            return
        learned = adapted["scans"] - adapted["held_out"]
        text = (
            f"The weights of the network ({weights.name}) had been adapted to {counted(learned, 'scan')} and "
            f"the image {adapted['atlas']['name']} by {' + '.join(map(str, adapted['steps']))} steps of the loss of "
            "Neural Instance Optimization at its levels 1 to 3{}"
        )
        if adapted["held_out"]:
            text += f", of which those were kept that aligned {counted(adapted['held_out'], 'further scan')} best"
        yield f"{text}.", (MOK_2023,)

    def _registration(self) -> tuple[str, tuple[Reference, ...]]:
        engine = get_engine(self.method.name)
        if self.method.name == "affine":
            return "No deformation was added to the affine.", ()
        settings = self.method.record()["settings"]
        text = (
            f"The deformation was computed by {engine.described(self.method.settings)}{{}} (engine {self.method.name}"
        )
        text += f", preset {self.method.preset}" if self.method.preset else ""
        if engine.package:
            text += f", {engine.package} {version(engine.package)}"
        if weights := engine.weights_used(self.method.settings):
            text += f", network weights {weights[0]}"
        text += f", random seed {self.runtime.seed}"
        listed = ", ".join(
            f"{name} {value}" for name, value in flat(settings) if value is not None and name != "weights"
        )
        return f"{text}{f'; settings: {listed}' if listed else ''}).", engine.references

    def _lesions(self, scans: Sequence[Scan]) -> Iterator[tuple[str, tuple[Reference, ...]]]:
        if lesions := sum(scan.lesion is not None for scan in scans):
            yield f"In {counted(lesions, 'scan')} the similarity measure ignored a lesion, by its mask.", ()

    @property
    def references(self) -> list[Reference]:
        """Publications that the text cites, sorted by their keys."""
        cited = {reference.key: reference for _, several in self.paragraphs() for reference in several}
        return [cited[key] for key in sorted(cited)]

    def markdown(self) -> str:
        """Return the text with its references, in Markdown."""
        text = " ".join(_filled(sentence, references) for sentence, references in self.paragraphs())
        lines = [f"- {reference.full}" for reference in self.references]
        for atlas in self.atlases:
            lines += [f"- {atlas.name}: {link}" for link in template_references(atlas)]
        return f"# Methods\n\n{text}\n\n## References\n\n" + "\n".join(lines) + "\n"

    def bibtex(self) -> str:
        """Return the references for BibTeX."""
        return "\n".join(reference.bibtex for reference in self.references)


def write_boilerplate(boilerplate: Boilerplate, out_dir: Path) -> list[Path]:
    """Write ``logs/CITATION.md`` and ``logs/CITATION.bib`` of a derivative dataset; return their paths."""
    written = []
    for name, text in (("CITATION.md", boilerplate.markdown()), ("CITATION.bib", boilerplate.bibtex())):
        write_text(text, out_dir / "logs" / name)
        written.append(out_dir / "logs" / name)
    return written


def _filled(sentence: str, references: Sequence[Reference]) -> str:
    """Put citations where the braces are: one each, or all of them in the only place."""
    cited = [reference.cited for reference in references]
    for text in ["; ".join(cited)] if sentence.count("{}") == 1 else cited:
        sentence = sentence.replace("{}", f" ({text})", 1)
    return sentence
