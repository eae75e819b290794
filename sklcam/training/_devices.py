"""Nets whose device may be "auto": resolved where it is read, never where it is stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sklcam.training._parameters import ParameterNet

Device = str | torch.device | None


class DeviceNet(ParameterNet):
    """A skorch net whose ``device="auto"`` stays "auto" in copies, files and clones."""

    @property
    def device(self) -> Any:
        """The device in use: "auto" is resolved when it is read."""
        device = vars(self)["device"]
        return _found() if _is_auto(device) else device

    @device.setter
    def device(self, device: Device) -> None:
        self.__dict__["device"] = device

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks and losses, by attribute."""
        # skorch has no public name for what ``initialize_module`` and the like have told it.
        names = [f"{name}_" for name in [*self._modules, *self._criteria]]
        found = {name: getattr(self, name) for name in names}
        return {name: each for name, each in found.items() if isinstance(each, nn.Module)}

    def _cuda_devices(self) -> list[torch.device]:
        device = torch.device(self.device) if self.device is not None else torch.device("cpu")
        return [device] if device.type == "cuda" else []

    def _on_device(self, values: Any) -> Any:
        if self.device is None or not isinstance(values, Tensor):
            return values
        # A blocking copy would make the host wait for all work queued on the device.
        return values.to(self.device, non_blocking=values.device.type == "cpu")

    def get_params(self, deep: bool = True, **kwargs: Any) -> dict[str, Any]:
        """Return the parameters, as scikit-learn does.

        Parameters
        ----------
        deep : bool, default=True

        Returns
        -------
        dict
        """
        params = super().get_params(deep=deep, **kwargs)
        params["device"] = vars(self)["device"]
        return {name: value for name, value in params.items() if not name.startswith("_")}

    def load_params(self, *args: Any, **kwargs: Any) -> None:
        stored = vars(self)["device"]
        try:
            super().load_params(*args, **kwargs)
        finally:
            if _is_auto(stored):  # skorch writes what it resolved to
                self.__dict__["device"] = stored

    def __setstate__(self, state: dict[str, Any]) -> None:
        stored = state["device"]
        if _is_auto(stored):  # skorch would look for a device of that name
            state = {**state, "device": _found()}
        super().__setstate__(state)
        if _is_auto(stored):
            self.__dict__["device"] = stored


def _is_auto(device: Device) -> bool:
    return isinstance(device, str) and device == "auto"


def _found() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: Device) -> None:
    """Raise a ValueError unless a network can be trained on this device; "auto" can."""
    if device is None or _is_auto(device):
        return
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(
            f'device must be "auto" or a device of torch, such as "cuda:0"; got {device!r}.'
        ) from None
    if found.type == "meta":
        raise ValueError(
            'device="meta" holds no values to train. Set "auto", which takes what is available.'
        )
    n_devices = torch.cuda.device_count()
    if found.type == "cuda" and (found.index or 0) >= n_devices:
        raise ValueError(
            f"device={device!r} is not available: torch finds {n_devices} CUDA devices. Set "
            '"auto", which takes what is available.'
        )
