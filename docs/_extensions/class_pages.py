"""Which members of an estimator its page in the reference shows first: those that users call.

Explainers and nets have many more, for displays, metrics and extensions. These follow under a
heading of their own. Methods of scikit-learn and skorch are left to their documentation.
"""

import inspect
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module

from skorch import NeuralNet

from sklcam.explain import Explainer

# In the order in which they are usually called.
USERS_CALL = (
    *("fit", "partial_fit", "predict", "predict_texts", "predict_proba", "transform", "score"),
    *("explain", "iter_explain", "explain_to", "explain_words", "explain_pairs"),
    *("explain_neighbors", "explain_in_words", "strongest_channels", "channel_weights", "export"),
    *("get_params", "set_params", "classes_", "class_names_", "proxies_", "preprocessing_"),
    "history_frame_",
)


Group = list[tuple[str, str]]


@dataclass(frozen=True)
class GroupedMembers:
    """What the template of a class calls. Sphinx can cache it, which it cannot do with a function.

    It returns the members that users call, and the others, each with autodoc's directive for it;
    None for classes that have only members that users call.
    """

    def __call__(self, module: str, name: str) -> tuple[Group, Group] | None:
        cls = getattr(import_module(module), name)
        if not issubclass(cls, Explainer | NeuralNet):
            return None
        found = _documented(cls)
        first = [(found.pop(each), each) for each in USERS_CALL if each in found]
        return first, [(directive, each) for each, directive in sorted(found.items())]


def _documented(cls: type) -> dict[str, str]:
    """Return the public methods and properties that the library documents, and their directives."""
    nearest: dict[str, tuple[type, object]] = {}
    for owner in cls.__mro__:
        for name, member in vars(owner).items():
            nearest.setdefault(name, (owner, member))
    return {
        name: "automethod" if inspect.isroutine(member) else "autoproperty"
        for name, (owner, member) in nearest.items()
        if owner.__module__.split(".")[0] == "sklcam"
        and not name.startswith("_")
        and not name.endswith("_request")  # scikit-learn's, made for each class
        and (inspect.isroutine(member) or isinstance(member, property | cached_property))
        and member.__doc__
    }
