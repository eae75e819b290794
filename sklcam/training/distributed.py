"""Training by several processes, on several GPUs or machines, with Hugging Face accelerate.

Accelerate starts the processes, and gives each its device and its share of every batch. The
gradients are averaged here, once per step, as each becomes complete. ``DistributedDataParallel``
assumes one backward pass per step through all parameters; a step on explanations may have several,
through some of them. So the network is never wrapped.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from sklearn.utils._param_validation import HasMethods
from skorch import NeuralNet
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.data import DataLoader, Subset

from sklcam.training._data import Annotations, Classes, TrainingImages
from sklcam.training._gradients import AveragedGradients
from sklcam.training._recording import known_length
from sklcam.training.classifier import ConsistentCAMClassifier
from sklcam.training.net import Module, StepFunction

if TYPE_CHECKING:
    from accelerate import Accelerator

_BUCKET_BYTES = 2**26


class AcceleratedCAMClassifier(ConsistentCAMClassifier):
    """:class:`~sklcam.ConsistentCAMClassifier` on several GPUs or machines, one process for each.

    All processes run the same script, started by ``accelerate launch``, with the same X and y. In
    training each takes its share of the images; the gradients are averaged over the processes, and
    all end with the same network. In a single process it behaves like the class that it extends.

    Parameters
    ----------
    module, **kwargs
        As in :class:`~sklcam.ConsistentCAMClassifier`. ``batch_size`` is per process, unless the
        accelerator has ``split_batches``.
    accelerator : accelerate.Accelerator or None, default=None
        The object that knows the processes and their devices; None creates one when training
        begins. An accelerator with ``mixed_precision`` or ``gradient_accumulation_steps`` is
        refused, as these settings would miss the maps: use ``precision`` and
        ``batch_accumulation``. Clones share it, and files do not hold it.
    device : "auto"
        The accelerator's.

    Attributes
    ----------
    accelerator_ : accelerate.Accelerator
        The accelerator in use.
    classes_, module_, target_layer_, n_channels_
        As in :class:`~sklcam.ConsistentCAMClassifier`; the same in all processes.
    history : skorch.history.History
        Training losses are means over all processes.

    Raises
    ------
    ImportError
        From ``fit``, if accelerate is not installed.

    Notes
    -----
    If the images cannot be divided evenly, accelerate repeats some of the epoch's first ones. The
    main process draws what a single process would draw from ``random_state``; the others have their
    own streams for views, augmentation and dropout. All start from the main process's weights.

    Batch normalisation sees the images of its own process, and so do terms that couple images, such
    as :class:`~sklcam.training.Contrastive`. The running statistics are averaged after each epoch.

    Validation, prediction and explanation are not divided: each process does everything it is asked
    for. So callbacks decide the same everywhere, and what follows training can be done by the main
    process only.

    Examples
    --------
    >>> from accelerate import Accelerator
    >>> from sklearn.datasets import load_digits
    >>> from sklcam.training import AcceleratedCAMClassifier
    >>> X, y = load_digits(n_class=3, return_X_y=True)
    >>> X = (X / 16).reshape(-1, 8, 8)
    >>> clf = AcceleratedCAMClassifier("resnet18", accelerator=Accelerator(cpu=True), image_size=64,
    ...                                lr=0.05, max_epochs=1, verbose=0, random_state=0)
    >>> clf = clf.fit(X[:64], y[:64])
    >>> if clf.accelerator_.is_main_process:
    ...     print(clf.explain(X[128:132]).shape)
    (4, 64, 64)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ConsistentCAMClassifier._parameter_constraints,
        "accelerator": [None, HasMethods(["prepare_data_loader", "wait_for_everyone"])],
    }

    accelerator_: Accelerator

    def __init__(
        self,
        module: Module = "resnet18",
        *,
        accelerator: Accelerator | None = None,
        **kwargs: Any,
    ):
        super().__init__(module, **kwargs)
        self.accelerator = accelerator

    # Checks before training

    def _check_parameters(self) -> None:
        super()._check_parameters()
        self._accelerate()

    def _accelerate(self) -> None:
        """Find the accelerator to use, and refuse settings that do not work here."""
        if vars(self)["device"] != "auto":
            raise ValueError(
                f"The accelerator chooses the device; got device={vars(self)['device']!r}. Leave "
                'it at "auto".'
            )
        accelerator = self.accelerator
        if accelerator is None:
            accelerator = vars(self).get("accelerator_")
        if accelerator is None:
            accelerator = _new_accelerator()
        _check_accelerator(accelerator)
        self.accelerator_ = accelerator

    def _check_training_data(
        self, X: Any, y: Any, annotations: Annotations, *, known: bool, classes: Classes
    ) -> tuple[TrainingImages, np.ndarray]:
        data, y = super()._check_training_data(X, y, annotations, known=known, classes=classes)
        labels = zlib.crc32(np.asarray(data.y).tobytes())
        annotated = None if data.masks is None else data.masks.annotated.tolist()
        weights = None if data.weights is None else data.weights.tolist()
        classes = (self.task_, self.classes_inferred_.tolist())
        given = (len(data), self.n_channels_, classes, labels, annotated, weights)
        if any(other != given for other in self._processes.of_all(given)):
            raise ValueError(
                "The processes were given different images, labels, masks, boxes, weights or "
                "classes. Give each process all of them, in the same order; it takes its share "
                "in training."
            )
        return data, y

    # Fitting

    @property
    def _processes(self) -> Processes:
        return Processes(self.accelerator_)

    def initialize_virtual_params(self) -> None:
        self._accelerate()
        super().initialize_virtual_params()

    def _seed(self) -> dict[str, Any]:
        seed = self._processes.from_main(self._draw_seed())
        rank, own = self._processes.rank, seed
        if rank:
            (own,) = np.random.SeedSequence(seed, spawn_key=(rank,)).generate_state(1, np.uint32)
        return {**self._seeded(int(own)), "seed": seed}

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        device = torch.device(self.device)
        if any(parameter.device != device for parameter in self._parameters()):
            self._move(device)  # what was loaded may be on another process's device
        super().on_train_begin(net, **kwargs)

    def _move(self, device: torch.device) -> None:
        for network in self.networks.values():
            network.to(device)
        for name in self._optimizers:
            optimizer = getattr(self, f"{name}_")
            optimizer.load_state_dict(optimizer.state_dict())  # to where the parameters are

    def fit_loop(self, X: Any, y: Any = None, epochs: int | None = None, **kwargs: Any) -> Any:
        loaders = self.accelerator_._dataloaders
        n_before = len(loaders)
        try:
            return super().fit_loop(X, y, epochs, **kwargs)
        finally:
            del loaders[n_before:]  # or the accelerator would keep the images
            self.__dict__.pop("_averaged", None)

    def get_split_datasets(self, X: Any, y: Any = None, **fit_params: Any) -> tuple[Any, Any]:
        split = super().get_split_datasets(X, y, **fit_params)
        for part in split:
            if isinstance(part, Subset):  # it may be random
                part.indices = self._processes.from_main(part.indices)
        return split

    def get_iterator(self, dataset: Any, training: bool = False) -> Iterable[Any]:
        iterator = super().get_iterator(dataset, training=training)
        if not training or not self._is_fitting():
            return iterator
        if not isinstance(iterator, DataLoader):
            raise TypeError(
                "Processes can only share the images of a torch DataLoader; got iterator_train="
                f"{type(iterator).__name__}."
            )
        prepared = self.accelerator_.prepare_data_loader(iterator)
        self._n_batches = known_length(prepared)
        return prepared

    def _is_fitting(self) -> bool:
        return hasattr(self, "generator_")

    def run_single_epoch(
        self,
        iterator: Iterable[Any] | None,
        training: bool,
        prefix: str,
        step_fn: StepFunction,
        **fit_params: Any,
    ) -> None:
        if training:  # here, as callbacks may have set weights
            self._processes.copy_from_main([*self._parameters(), *self._buffers()])
        super().run_single_epoch(iterator, training, prefix, step_fn, **fit_params)
        if training:
            buffers = list(self._buffers())
            self._processes.average([b for b in buffers if b.is_floating_point()])
            self._processes.copy_from_main([b for b in buffers if not b.is_floating_point()])

    def score_of(self, outcomes: Tensor, *, training: bool) -> float:
        if training:  # each process validates on its own
            outcomes = torch.cat(self._processes.of_all(outcomes.cpu()))
        return super().score_of(outcomes, training=training)

    def _agreed(self, is_asked: bool) -> bool:
        return self._processes.from_main(is_asked)

    def _recalibrate(self) -> int:
        n_images = super()._recalibrate()
        self._processes.copy_from_main([*self._buffers()])  # processes may round differently
        return n_images

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        if self._processes.count == 1:
            return super().train_step_single(batch, **fit_params)
        if not hasattr(self, "_averaged"):
            self._averaged = AveragedGradients(self._processes)
        assert self._step is not None
        step = self._step
        with self._averaged.during(self._trained(), lambda: step.is_last_backward):
            return super().train_step_single(batch, **fit_params)

    def _complete_gradient(self) -> None:
        """Average gradients, losses and the sizes that balance weights over the processes.

        A parameter may be unused in some processes; if it is unused in all, it still has no
        gradient.
        """
        if self._processes.count == 1:
            return
        parameters = self._trained()
        is_used = [parameter.grad is not None for parameter in parameters]
        self._averaged.finish()
        users = torch.tensor(is_used, dtype=torch.float32, device=self.device)
        assert self._step is not None
        self.gradient_sizes_.to(self.device)  # also those that this step does not use
        sizes = self.gradient_sizes_.averages.values()
        self._processes.average([users, *self._step.detach(), *sizes])
        if all(is_used):  # known here, so the host need not wait for the device
            return
        for parameter, share in zip(parameters, users.tolist(), strict=True):
            if not share:
                parameter.grad = None

    def _sum(self, weights: Tensor) -> Tensor:
        weight = super()._sum(weights)
        if self._step is not None and self._step.scaler is not None:  # not in validation
            self._processes.average([weight])  # as the gradients will be
        return weight

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._parameters() if parameter.requires_grad]

    def _parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for _, parameter in self.get_all_learnable_params())

    def _buffers(self) -> Iterator[Tensor]:
        for network in self.networks.values():
            yield from network.buffers()

    # Files

    def save_params(self, *args: Any, **kwargs: Any) -> None:
        """Save parameters as skorch does, in the main process only.

        Parameters
        ----------
        *args, **kwargs
            As in skorch.
        """
        processes = Processes(self.accelerator_) if hasattr(self, "accelerator_") else None
        try:
            if processes is None or processes.is_main:
                super().save_params(*args, **kwargs)
        finally:
            if processes is not None and self._is_fitting():  # others may load the file next
                processes.wait()

    # Parameters, copies

    @property
    def device(self) -> Any:
        """The accelerator's device, once there is an accelerator."""
        accelerator = vars(self).get("accelerator_")
        if accelerator is None:
            return super().device
        device = accelerator.device
        return torch.device("cpu") if device.type == "cpu" else device  # files are not for "cpu:0"

    @device.setter
    def device(self, device: Any) -> None:
        self.__dict__["device"] = device

    @property
    def verbose(self) -> int:
        """How much is printed: only the main process prints."""
        accelerator = vars(self).get("accelerator_")
        is_main = accelerator is None or accelerator.is_main_process
        return vars(self)["verbose"] if is_main else 0

    @verbose.setter
    def verbose(self, verbose: int) -> None:
        self.__dict__["verbose"] = verbose

    def get_params(self, deep: bool = True, **kwargs: Any) -> dict[str, Any]:
        params = super().get_params(deep=deep, **kwargs)
        return {**params, "verbose": vars(self)["verbose"]}

    def __sklearn_clone__(self) -> AcceleratedCAMClassifier:
        bare = type(self).__new__(type(self))
        bare.__dict__.update(vars(self), accelerator=None)
        duplicate = super(AcceleratedCAMClassifier, bare).__sklearn_clone__()
        duplicate.accelerator = self.accelerator
        return duplicate

    def __deepcopy__(self, memo: dict[int, Any]) -> AcceleratedCAMClassifier:
        for name in ("accelerator", "accelerator_"):
            memo[id(vars(self).get(name))] = vars(self).get(name)
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[str, Any]:
        # Processes and devices are different where it is loaded.
        state = {**super().__getstate__(), "accelerator": None}
        for name in ("accelerator_", "_averaged"):
            state.pop(name, None)
        return state


class Processes:
    """The processes that train a network together, each with a copy of it.

    All of them must call each method in the same order. With a single process, nothing happens.
    """

    def __init__(self, accelerator: Accelerator):
        self.rank: int = accelerator.process_index
        self.count: int = accelerator.num_processes
        self._device: torch.device = accelerator.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes have reached this point."""
        self.of_all(None)

    def from_main(self, value: Any) -> Any:
        """Return the main process's value."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=self._device)
        return values[0]

    def of_all(self, value: Any) -> list[Any]:
        """Return every process's value."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with the main process's."""
        if self.count > 1:
            _in_buckets(tensors, lambda flat: dist.broadcast(flat, src=0))

    def sum_soon(self, flat: Tensor) -> Any:
        """Start overwriting a tensor with the sum over the processes; wait on the result."""
        return dist.all_reduce(flat, async_op=True)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite floating-point tensors with their means over the processes."""

        def mean(flat: Tensor) -> None:
            dist.all_reduce(flat)
            flat /= self.count

        if self.count > 1:
            _in_buckets(tensors, mean)


@torch.no_grad()
def _in_buckets(tensors: Iterable[Tensor], operation: Callable[[Tensor], object]) -> None:
    """Apply an elementwise operation in place to many tensors at once, as flat buckets."""
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        operation(flat)
        parts = flat.split([tensor.numel() for tensor in bucket])
        for tensor, values in zip(bucket, parts, strict=True):
            tensor.copy_(values.view_as(tensor))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield tensors of one type together, enough to be worth sending."""
    waiting: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        bucket = waiting.setdefault(tensor.dtype, [])
        bucket.append(tensor)
        if sum(each.nbytes for each in bucket) >= _BUCKET_BYTES:
            yield waiting.pop(tensor.dtype)
    yield from waiting.values()


def _new_accelerator() -> Accelerator:
    try:
        accelerate = import_module("accelerate")
    except ImportError as error:
        raise ImportError(
            "Training by several processes needs accelerate; install it with "
            '`pip install "sklcam[accelerate]"`.'
        ) from error
    return accelerate.Accelerator()


def _check_accelerator(accelerator: Accelerator) -> None:
    kind = getattr(accelerator.distributed_type, "value", accelerator.distributed_type)
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise ValueError(
            "Each process must hold the whole network, and the accelerator's distributed_type "
            f"{kind} splits it, or trains it in its own way. Configure accelerate for several GPUs "
            "or CPUs."
        )
    if accelerator.mixed_precision != "no":
        raise ValueError(
            f"mixed_precision={accelerator.mixed_precision!r} of the accelerator would affect the "
            'maps, too. Leave it at "no" (there and in `accelerate launch`), and set the '
            "classifier's precision."
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            f"gradient_accumulation_steps={accelerator.gradient_accumulation_steps} of the "
            "accelerator takes several batches per step. Leave it at 1, and give the classifier a "
            "larger batch_size and batch_accumulation."
        )
    if accelerator.num_processes > 1 and not accelerator.even_batches:
        raise ValueError(
            "even_batches=False leaves some processes without a last batch, while the others wait "
            "for their gradients. Leave it at True."
        )
