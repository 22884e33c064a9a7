"""Publications to cite, for engines and for the methods text of a run."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Reference"]


@dataclass(frozen=True)
class Reference:
    """A publication.

    Attributes
    ----------
    key : str
        Key in BibTeX: family name of the first author, and year.
    authors : str
        Authors as BibTeX wants them: joined by ``and``, ``others`` for those left out.
    title : str
        Title.
    source : str
        Journal, proceedings or archive.
    doi : str
        Digital object identifier; empty if there is none.

    Examples
    --------
    >>> paper = Reference("doe2020", "Doe, Jane and Roe, Richard", "On T1w", "Journal", "10.1/x")
    >>> paper.cited
    'Doe and Roe 2020'
    >>> str(paper)
    'Doe and Roe 2020, Journal, doi:10.1/x'
    """

    key: str
    authors: str
    title: str
    source: str
    doi: str = ""

    @property
    def year(self) -> str:
        """Year of publication."""
        return self.key[-4:]

    @property
    def cited(self) -> str:
        """Authors and year, as in a text: ``Avants et al. 2011``."""
        names = [name.split(",")[0] for name in self.authors.split(" and ")]
        several = len(names) > 2 or names[-1] == "others"
        return f"{names[0]} et al. {self.year}" if several else f"{' and '.join(names)} {self.year}"

    def __str__(self) -> str:
        """Return the reference in a line, without its title."""
        return ", ".join([self.cited, self.source, *([f"doi:{self.doi}"] if self.doi else [])])

    @property
    def full(self) -> str:
        """The reference with its title, for a list of references."""
        authors = self.authors.replace(" and others", " et al.").replace(" and ", "; ")
        link = f" https://doi.org/{self.doi}" if self.doi else ""
        return f"{authors} ({self.year}). {self.title}. {self.source}.{link}"

    @property
    def bibtex(self) -> str:
        """The entry of a .bib file."""
        # Braces keep capitals, as those of MRI.
        fields = {"author": self.authors, "title": f"{{{self.title}}}", "year": self.year, "journal": self.source}
        if self.doi:
            fields["doi"] = self.doi
        text = ",\n".join(f"  {name} = {{{value.replace('&', chr(92) + '&')}}}" for name, value in fields.items())
        return f"@article{{{self.key},\n{text}\n}}\n"


MOK_2023 = Reference(
    "mok2023",
    "Mok, Tony C. W. and Li, Zi and Xia, Yingda and Yao, Jiawen and Zhang, Ling and Zhou, Jingren and Lu, Le",
    "Deformable Medical Image Registration Under Distribution Shifts with Neural Instance Optimization",
    "Machine Learning in Medical Imaging (MICCAI workshop)",
)
MOK_2020 = Reference(
    "mok2020",
    "Mok, Tony C. W. and Chung, Albert C. S.",
    "Large Deformation Diffeomorphic Image Registration with Laplacian Pyramid Networks",
    "MICCAI",
    "10.1007/978-3-030-59716-0_21",
)
SIEBERT_2021 = Reference(
    "siebert2021",
    "Siebert, Hanna and Hansen, Lasse and Heinrich, Mattias P.",
    "Fast 3D Registration with Accurate Optimisation and Little Learning for Learn2Reg 2021",
    "Learn2Reg challenge (MICCAI)",
    "10.1007/978-3-030-97281-3_25",
)
SIEBERT_2024 = Reference(
    "siebert2024",
    "Siebert, Hanna and others",
    "ConvexAdam: Self-Configuring Dual-Optimization-Based 3D Multitask Medical Image Registration",
    "IEEE Transactions on Medical Imaging",
    "10.1109/TMI.2024.3462248",
)
AVANTS_2011 = Reference(
    "avants2011",
    "Avants, Brian B. and others",
    "A reproducible evaluation of ANTs similarity metric performance in brain image registration",
    "NeuroImage 54",
    "10.1016/j.neuroimage.2010.09.025",
)
AVANTS_2008 = Reference(
    "avants2008",
    "Avants, Brian B. and Epstein, Charles L. and Grossman, Murray and Gee, James C.",
    "Symmetric diffeomorphic image registration with cross-correlation: evaluating automated labeling of elderly and "
    "neurodegenerative brain",
    "Medical Image Analysis 12",
    "10.1016/j.media.2007.06.004",
)
YUSHKEVICH_2016 = Reference(
    "yushkevich2016",
    "Yushkevich, Paul A. and others",
    "Fast automatic segmentation of hippocampal subfields and medial temporal lobe subregions in 3 Tesla and 7 Tesla "
    "T2-weighted MRI",
    "Alzheimer's & Dementia 12(7), P126",
)
MODAT_2010 = Reference(
    "modat2010",
    "Modat, Marc and others",
    "Fast free-form deformation using graphics processing units",
    "Computer Methods and Programs in Biomedicine 98",
    "10.1016/j.cmpb.2009.09.002",
)
SHU_2021 = Reference(
    "shu2021",
    "Shu, Yucheng and others",
    "Medical image registration based on uncoupled learning and accumulative enhancement",
    "MICCAI",
)
LIU_2022 = Reference(
    "liu2022",
    "Liu, Risheng and others",
    "Learning Deformable Image Registration from Optimization: Perspective, Modules, Bilevel Training and Beyond",
    "IEEE Transactions on Pattern Analysis and Machine Intelligence",
)
FISCH_2024 = Reference(
    "fisch2024",
    "Fisch, Lukas and others",
    "deepbet: Fast brain extraction of T1-weighted MRI using Convolutional Neural Networks",
    "Computers in Biology and Medicine",
    "10.1016/j.compbiomed.2024.108845",
)
CIRIC_2022 = Reference(
    "ciric2022",
    "Ciric, Rastko and others",
    "TemplateFlow: FAIR-sharing of multi-scale, multi-species brain models",
    "Nature Methods 19",
    "10.1038/s41592-022-01681-2",
)
GORGOLEWSKI_2016 = Reference(
    "gorgolewski2016",
    "Gorgolewski, Krzysztof J. and others",
    "The brain imaging data structure, a format for organizing and describing outputs of neuroimaging experiments",
    "Scientific Data 3",
    "10.1038/sdata.2016.44",
)
JARECKA_2020 = Reference(
    "jarecka2020",
    "Jarecka, Dorota and others",
    "Pydra - a flexible and lightweight dataflow engine for scientific analyses",
    "Proceedings of the 19th Python in Science Conference",
    "10.25080/Majora-342d178e-012",
)
