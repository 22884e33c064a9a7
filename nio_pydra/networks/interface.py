"""What every registration network offers, whatever its architecture.

An engine needs no more than this to make a first field of a network's prediction. To add an architecture, write a
module with a subclass of :class:`Network` and put its name into `ARCHITECTURES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

__all__ = ["ARCHITECTURES", "Network", "NetworkConfig", "architecture_class", "require_size"]

#: Module and class of every architecture, by the name that the metadata of weights give it.
ARCHITECTURES = {
    "lapirn": ("nio_pydra.networks.lapirn", "LapIRN"),
    "mpr": ("nio_pydra.networks.mpr", "MPR"),
    "ulae": ("nio_pydra.networks.ulae", "ULAE"),
}


class NetworkConfig(Protocol):
    """Shape of a network: a frozen dataclass of plain values.

    Attributes
    ----------
    conditional : bool
        Whether the network is told the regularisation weight.
    """

    @property
    def conditional(self) -> bool: ...

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as stored in a checkpoint's metadata."""
        ...


class Network(nn.Module, ABC):
    """A network that predicts the displacement field between two images.

    Attributes
    ----------
    architecture : str
        Name in `ARCHITECTURES`.
    config_class : type
        Frozen dataclass of the architecture's shape, built from the keyword arguments that `to_dict` gives.
    size_multiple : int
        Every axis of the images must be a multiple of this.
    config : NetworkConfig
        Shape of this network.
    """

    architecture: ClassVar[str]
    config_class: ClassVar[type[Any]]
    size_multiple: ClassVar[int]
    config: Any

    @abstractmethod
    def predict(self, moving: Tensor, fixed: Tensor, *, condition: float | Tensor | None = None) -> Tensor:
        """Predict the field that aligns `moving` with `fixed`.

        Parameters
        ----------
        moving, fixed : Tensor
            ``(N, 1, D, H, W)`` float32, axes in the network's orientation, every axis a multiple of
            `size_multiple`, intensities scaled as the checkpoint's metadata say.
        condition : float or Tensor, optional
            What a conditional network is told; other networks ignore it.

        Returns
        -------
        Tensor
            Unit displacement field ``(N, 3, D, H, W)`` float32 at full resolution
            (see :mod:`nio_pydra.spatial.unit_grid`), with gradient where gradients are enabled.

        Raises
        ------
        ValueError
            If an axis has another size, or a conditional network is told nothing.
        """


def architecture_class(name: str) -> type[Network]:
    """Return the class of an architecture, importing its module only now.

    Raises
    ------
    KeyError
        If there is no architecture of that name.
    """
    module, attribute = ARCHITECTURES[name]
    found: type[Network] = getattr(import_module(module), attribute)
    return found


def require_size(image: Tensor, multiple: int) -> None:
    """Refuse an image whose axes are no multiples of a number.

    Raises
    ------
    ValueError
        If one is not.
    """
    if any(n % multiple for n in image.shape[2:]):
        raise ValueError(f"image size {tuple(image.shape[2:])}: every axis must be a multiple of {multiple}")
