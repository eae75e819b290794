"""Which columns the epochs of a fit will have in the history, known before the first one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from numbers import Real

from sklcam.training.terms import Term
from sklcam.training.weights import weight_in


@dataclass(frozen=True)
class Plan:
    """The coming epochs and their steps.

    Attributes
    ----------
    epochs : range
        Counted from the network's first one.
    n_before : int
        How many steps were taken before.
    n_steps : int or None
        How many steps an epoch has; None if a loader does not say.
    every : int
        Terms are part of every n-th step, for this n.
    annotated : dict of str to float
        The share of the "train" and "valid" images that has masks or boxes.
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
        """Raise a ValueError if terms would be part of the first step only."""
        if self.n_steps is None:
            return
        n_steps = self.n_before + self.n_steps * len(self.epochs)
        if self.every > n_steps:
            raise ValueError(
                f"every={self.every} makes terms part of one step in {self.every}, and there are "
                f"{n_steps} in all, so only the first would have any. Set every to {self.n_steps} "
                "at most, for terms in each epoch, or train longer."
            )


def lacking(terms: Iterable[Term], plan: Plan) -> dict[str, str]:
    """Return which columns of these terms some epochs lack in the history, and why.

    Parameters
    ----------
    terms : iterable of Term
    plan : Plan

    Returns
    -------
    dict of str to str
        Reasons by name in the history. A reason continues a sentence after "which ", or is empty if
        no epoch has the column because the term, or a balanced weight for it, is not in use.
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
            "is not recorded: it needs the gradient at the pixels, which is not computed in "
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
            f"an epoch may lack: with every={plan.every}, its steps with terms may have no image "
            f"with a mask or box. {_elsewhere(phase)}"
        )
    if plan.n_steps is None:
        return (
            f"an epoch may lack: with every={plan.every}, and a loader that does not say how many "
            f"steps an epoch has, one may have no terms. {_elsewhere(phase)}"
        )
    first = next(plan.without_terms(), None)
    if first is None:
        return ""
    return (
        f"epoch {first + 1} does not have: none of its {plan.n_steps} step(s) has terms, as "
        f"every={plan.every}. Set every to {plan.n_steps} at most, or monitor something else, "
        "such as 'train_loss'."
    )


def _elsewhere(phase: str) -> str:
    return f"Monitor something that all epochs have, such as '{phase}_loss'."


def known_length(iterable: object) -> int | None:
    """Return the number of items, such as batches; None if it is not known."""
    if not isinstance(iterable, Sized):
        return None
    try:
        return len(iterable)
    except (TypeError, NotImplementedError):  # a loader of data without a length
        return None
