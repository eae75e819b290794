"""What the epochs of a fit will have in the history: known before the first of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from numbers import Real

from sklcam.training.terms import Term
from sklcam.training.weights import weight_in


@dataclass(frozen=True)
class Plan:
    """The epochs that are to come, and what they are of.

    Attributes
    ----------
    epochs : range
        Counted from the network's first one.
    n_before : int
        How many steps were made before.
    n_steps : int or None
        How many steps an epoch has; None where a loader does not say.
    every : int
        In each of how many steps there are terms.
    annotated : dict of str to float
        How much of the images of "train" and of "valid" has masks or boxes.
    """

    epochs: range
    n_before: int
    n_steps: int | None
    every: int
    annotated: dict[str, float]

    def without_terms(self) -> Iterator[int]:
        """Yield the epochs in which no step has terms."""
        assert self.n_steps is not None
        for i, epoch in enumerate(self.epochs):
            if -(self.n_before + i * self.n_steps) % self.every >= self.n_steps:
                yield epoch

    def check_every(self) -> None:
        """Raise a ValueError if terms are part of the first step alone, of all that are made."""
        if self.n_steps is None:
            return
        n_steps = self.n_before + self.n_steps * len(self.epochs)
        if self.every > n_steps:
            raise ValueError(
                f"every={self.every} makes terms part of one step in {self.every}, and there are "
                f"{n_steps}, so that the first alone would have any. Set every to {self.n_steps} "
                "at most, for terms in each epoch, or train longer."
            )


def lacking(terms: Iterable[Term], plan: Plan) -> dict[str, str]:
    """Return what of these terms not all epochs have in the history, and why.

    Parameters
    ----------
    terms : iterable of Term
    plan : Plan

    Returns
    -------
    dict of str to str
        By names in the history. The reason goes on from "which ", or is empty if no epoch has it
        because the term, or a balanced weight of it, is not in use.
    """
    found: dict[str, str] = {}
    for term in terms:
        weights = {e: weight_in(e, term.weight, term.weight_name) for e in plan.epochs}
        unused = [e for e, weight in weights.items() if not weight]
        given = [e for e, weight in weights.items() if isinstance(weight, Real)]
        for phase in ("train", "valid"):
            always = _reason(term, phase, plan)
            for name, epochs in ((term.name, unused), (term.weight_name, given)):
                if len(epochs) == len(weights):
                    found[f"{phase}_{name}"] = ""
                elif always:
                    found[f"{phase}_{name}"] = always
                elif epochs:
                    found[f"{phase}_{name}"] = (
                        f"epoch {epochs[0] + 1} does not have: {term.weight_name} is "
                        f"{weights[epochs[0]]} there. {_elsewhere(phase)}"
                    )
    return found


def _reason(term: Term, phase: str, plan: Plan) -> str:
    if phase == "valid" and "pixels" in term.needs:
        return (
            "is not recorded: it takes the gradient at the pixels, which is not computed in "
            f"validation. Monitor 'train_{term.name}', or a score such as 'valid_loss'."
        )
    if "masks" in term.needs and not plan.annotated[phase]:
        what = "train" if phase == "train" else "validate"
        how = ', validation={"X": X_val, "y": y_val, "masks": masks_val}, or "boxes"'
        return (
            f"is not recorded: it needs masks or boxes, and no image to {what} on has any. Give "
            f"them{how if phase == 'valid' else ''}; or monitor something else."
        )
    if phase == "valid" or plan.every == 1:
        return ""
    if "masks" in term.needs and plan.annotated[phase] < 1:
        return (
            f"an epoch may lack: every={plan.every}, and its steps with terms may have no image "
            f"with a mask or box. {_elsewhere(phase)}"
        )
    if plan.n_steps is None:
        return (
            f"an epoch may lack: every={plan.every}, and the loader does not say how many steps an "
            f"epoch has. {_elsewhere(phase)}"
        )
    first = next(plan.without_terms(), None)
    if first is None:
        return ""
    return (
        f"epoch {first + 1} does not have: of its {plan.n_steps} step(s) none has terms, as "
        f"every={plan.every}. Set every to {plan.n_steps} at most, or monitor something else, such "
        "as 'train_loss'."
    )


def _elsewhere(phase: str) -> str:
    return f"Monitor something that all epochs have, such as '{phase}_loss'."


def known_length(iterable: object) -> int | None:
    """Return how many items there are, such as batches; None if that is not said."""
    if not isinstance(iterable, Sized):
        return None
    try:
        return len(iterable)
    except (TypeError, NotImplementedError):  # a loader of what has no length
        return None
