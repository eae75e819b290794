"""Parameters of nets, as scikit-learn means them: signatures, representations and copies."""

from __future__ import annotations

import copy
from inspect import Parameter, Signature, signature
from typing import Any, ClassVar, Self

from sklearn.base import BaseEstimator
from skorch import NeuralNet

from sklcam._validation import suggestion

# Parameters that scikit-learn and others call by another name than skorch.
_ELSEWHERE = {
    "class_weight": "ConsistentCAMClassifier weighs classes; here an iterator_train__sampler can "
    "draw some images more often.",
    "validation": "Give validation images to fit: fit(X, y, validation=(X_val, y_val)).",
    "early_stopping": "skorch stops early: callbacks=[skorch.callbacks.EarlyStopping(patience=5)].",
    "patience": "skorch stops early: callbacks=[skorch.callbacks.EarlyStopping(patience=5)].",
    "learning_rate": "Did you mean: lr?",
    "weight_decay": "Did you mean: optimizer__weight_decay?",
    "momentum": "Did you mean: optimizer__momentum?",
    "loss": "Did you mean: criterion?",
}


def parameter_instead(name: str, known: set[str]) -> str:
    """Return advice on a parameter that does not exist, from the names of those that do."""
    return _ELSEWHERE.get(name) or suggestion(name, known - {"self", "kwargs"})


class ParameterNet(NeuralNet):
    """A skorch net whose parameters behave like those of a scikit-learn estimator."""

    _module_like: ClassVar[tuple[str, ...]] = ("module", "criterion")
    callbacks_: list[tuple[str, Any]]
    _late: ClassVar[tuple[str, ...]] = ("iterator_train", "iterator_valid", "dataset")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            vars(cls)["__init__"].__signature__ = _full_signature(cls)

    # skorch's own lists the layers. scikit-learn's shows what differs from the defaults; like the
    # HTML, it looks these up in the signature.
    __repr__ = BaseEstimator.__repr__

    def _get_params_html(self, deep: bool = True, *args: Any, **kwargs: Any) -> Any:
        # With deep=True, it would list each parameter of skorch's own callbacks as set by the user.
        return super()._get_params_html(False, *args, **kwargs)

    def get_params(self, deep: bool = True, **kwargs: Any) -> dict[str, Any]:
        params = super().get_params(deep=deep, **kwargs)
        # skorch lists its callbacks' defaults, even if other values were asked for.
        asked_for = {name: v for name, v in vars(self).items() if name.startswith("callbacks__")}
        return {**params, **asked_for} if deep else params

    def set_params(self, **kwargs: Any) -> Self:
        """Set parameters as skorch does, and for later fits as well.

        Parameters
        ----------
        **kwargs
            Parameters by name. A fitted net recreates whatever they belong to; a recreated network
            is untrained.

        Returns
        -------
        self
        """
        # skorch takes these until the net is initialized, not after.
        late = {
            name: value
            for name, value in kwargs.items()
            if name == "optimizer" or name.partition("__")[0] in self._late
        }
        # Others are set only in the optimizer, which the next fit recreates.
        kept = {name: kwargs[name] for name in kwargs if name.startswith("optimizer__")}
        kept = {name: value for name, value in kept.items() if "param_groups__" not in name}
        rest = {name: value for name, value in kwargs.items() if name not in late}
        super().set_params(**rest)
        self.__dict__.update(late | kept)
        self._params_to_validate |= late.keys() | kept.keys()
        if self.initialized_ and "optimizer" in late:
            self._initialize_optimizer()
        if any(name.startswith("callbacks") for name in rest):
            # skorch has recreated the existing ones; newly set ones come with the next network.
            self._initialize_callbacks()
        for group in self.optimizer_.param_groups if self.initialized_ else ():
            # Resumed schedules ask for it, with a recreated optimizer as well.
            group.setdefault("initial_lr", group["lr"])
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._module_like:  # parameters, even if they are instances
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Without pickling, which refuses functions and classes defined on the spot.
        duplicate = type(self).__new__(type(self))
        memo[id(self)] = duplicate
        duplicate.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return duplicate


def _full_signature(cls: type) -> Signature:
    """Return the signature of a class's ``__init__``, including what it passes on."""
    own = signature(vars(cls)["__init__"])
    parameters = dict(own.parameters)
    *_, last = own.parameters
    if parameters[last].kind is not Parameter.VAR_KEYWORD:
        return own
    rest = parameters.pop(last)
    for base in cls.__mro__[1:]:
        for name, parameter in signature(base).parameters.items():
            if parameter.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY):
                parameters.setdefault(name, parameter.replace(kind=Parameter.KEYWORD_ONLY))
    return own.replace(parameters=[*parameters.values(), rest])
