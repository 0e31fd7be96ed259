"""Options.TensorLocations: where tensors live, on chip or in the host's memory, whole or sharded. Spec: section 13."""

from __future__ import annotations

from typing import Any

from ..checks import require, require_positive_int
from .base import OptionsDict, option


class TensorLocationSettings(OptionsDict):
    """Where a kind of tensor lives: on chip or in the host's memory, whole or sharded over replicas."""

    def minElementsForOffChip(self, min_elements: int) -> TensorLocationSettings:
        """Tensors with fewer elements stay on chip."""
        return self._store("minElementsForOffChip", min_elements, int)

    def minElementsForReplicatedTensorSharding(self, min_elements: int) -> TensorLocationSettings:
        """Tensors with fewer elements are not sharded."""
        return self._store("minElementsForReplicatedTensorSharding", min_elements, int)

    def useOnChipStorage(self, use: bool = True) -> TensorLocationSettings:
        """On chip (True) or off chip."""
        return self._store("onChip", use, bool)

    def useReplicatedTensorSharding(self, use: bool = True) -> TensorLocationSettings:
        """Each replica keeps a part of the tensor."""
        return self._store("useReplicatedTensorSharding", use, bool)

    def useIOTilesToLoad(self, use: bool = True) -> TensorLocationSettings:
        """Tiles set aside for transfers load the tensor."""
        return self._store("useIOTilesToLoad", use, bool)

    def useIOTilesToStore(self, use: bool = True) -> TensorLocationSettings:
        """Tiles set aside for transfers store the tensor."""
        return self._store("useIOTilesToStore", use, bool)

    def _store(self, name: str, value: Any, kind: type) -> TensorLocationSettings:
        require(type(value) is kind, f"Unexpected type {type(value)} for option {name}. Expected {kind}")
        self.createOrSet(**{name: value})
        return self


# Of a tensor that useReplicatedTensorSharding shards, unless minElementsForReplicatedTensorSharding says otherwise.
_MIN_SHARDED = 8192


class TensorLocationOptions(OptionsDict):
    """Options.TensorLocations."""

    @property
    def min_sharded_state(self) -> int | None:
        """Elements from which on a parameter's optimizer state is sharded over replicas; None if none is."""
        location = self._values.get("location_optimizer")
        if location is None or not location._values.get("useReplicatedTensorSharding", False):
            return None
        return location._values.get("minElementsForReplicatedTensorSharding", _MIN_SHARDED)

    @property
    def state_off_chip(self) -> bool:
        """Whether the optimizer's state is to be in the host's memory."""
        location = self._values.get("location_optimizer")
        return location is not None and not location._values.get("onChip", True)

    @option
    def numIOTiles(self, num_tiles: int) -> TensorLocationOptions:
        """Tiles set aside for transfers. AssertionError unless an even number from 32 to 192."""
        require_positive_int("numIOTiles", num_tiles)
        require(
            32 <= num_tiles <= 192 and num_tiles % 2 == 0,
            f"numIOTiles must be an even number from 32 to 192, got {num_tiles}",
        )
        self.createOrSet(numIOTiles=num_tiles)

    @option
    def setActivationLocation(self, location: TensorLocationSettings) -> TensorLocationOptions:
        """Where activations live."""
        self._locate("location_activation", location)

    @option
    def setWeightLocation(self, location: TensorLocationSettings) -> TensorLocationOptions:
        """Where weights live."""
        self._locate("location_weight", location)

    @option
    def setOptimizerLocation(self, location: TensorLocationSettings) -> TensorLocationOptions:
        """Where the optimizer's state lives."""
        self._locate("location_optimizer", location)

    @option
    def setAccumulatorLocation(self, location: TensorLocationSettings) -> TensorLocationOptions:
        """Where gradient accumulators live."""
        self._locate("location_accumulator", location)

    def _locate(self, name: str, location: TensorLocationSettings) -> None:
        require(
            isinstance(location, TensorLocationSettings),
            f"{name} expects a poptorch.TensorLocationSettings, got {location!r}",
        )
        self.createOrSet(**{name: location})
