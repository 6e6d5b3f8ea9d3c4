"""What calls cost: the price table, the bill so far, and the bound that it must not pass.

Prices are data (`prices.yaml`, with the month they were read); `instruct.price` in the recipe overrules them, and a
model without an entry, such as one on this machine, has none. What an answer costs is known only when it has come, so
for a call under way the most that it can cost is set aside, and no call is begun that could lead over the bound.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from llavamed.errors import InputError
from llavamed.instruct import tables
from llavamed.instruct.journal import Journal

_TABLE = "prices.yaml"


@dataclass(frozen=True)
class Price:
    """Per million tokens."""

    input: float
    output: float
    currency: str = "USD"
    batch: float = 1.0  # times the price for batch files
    read: str = ""  # the day of the price list
    model: str = field(default="", compare=False)  # whose price this is

    def of(self, tokens_in: float, tokens_out: float) -> float:
        return (tokens_in * self.input + tokens_out * self.output) / 1e6


@cache
def price_of(model: str, override: tuple[float, float] | None = None) -> Price | None:
    """The price of a model, or None where nobody has written one down."""
    table = tables.load(_TABLE)
    if override is not None:
        return Price(*override, currency=table["currency"], batch=table["batch"], model=model)
    cost = _entry(model)
    if cost is None:
        return None
    return Price(cost["input"], cost["output"], table["currency"], table["batch"], str(table["read"]), model)


def not_taken(model: str) -> tuple[str, ...]:
    """What the model is known not to take, as `endpoint.CONCESSIONS` names it."""
    return tuple((_entry(model) or {}).get("without", ()))


def _entry(model: str) -> dict[str, Any] | None:
    """The table's line for a model, or None."""
    models: dict[str, dict[str, Any]] = tables.load(_TABLE)["models"]
    name = model.rpartition("/")[2].lower()  # routers write "vendor/model"
    # a dated version costs what its model does; "gpt-5-pro" is no version of gpt-5
    fitting = [entry for entry in models if re.fullmatch(rf"{re.escape(entry)}(-\d[\d-]*)?", name)]
    return models[max(fitting, key=len)] if fitting else None


@dataclass
class Bill:
    """What the journal's answers have cost, and the bound."""

    journal: Journal
    price: Price | None
    max_cost: float | None = None
    _worst: float = 2.0  # times the estimated tokens of a question; images, templates and other languages take more
    _reserved: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_cost is not None and self.price is None:
            raise InputError(
                "instruct.max_cost: nobody has written down this model's price; set instruct.price=[INPUT,OUTPUT], "
                "per million tokens"
            )

    @property
    def known(self) -> bool:
        return self.price is not None

    @property
    def currency(self) -> str:
        return self.price.currency if self.price else ""

    @property
    def spent(self) -> float:
        """Each answer at the price of the model that gave it; what a batch file brought, at that of batch files."""
        total = 0.0
        for (model, batch), tokens in self.journal.tokens_of.items():
            price = self._price_of(model)
            if price is not None:
                total += price.of(*tokens) * (price.batch if batch else 1.0)
        return total

    def _price_of(self, model: str) -> Price | None:
        """A line without a model is taken for one of this bill's model."""
        if self.price is None or model in ("", self.price.model) or not self.price.model:
            return self.price
        return price_of(model)

    def summary(self) -> dict[str, Any]:
        """Of everything in the journal, earlier runs included."""
        tokens_in, tokens_out = self.journal.tokens
        cost = {"cost": round(self.spent, 6), "currency": self.currency} if self.known else {}
        unknown = sorted({model for model, _ in self.journal.tokens_of if self._price_of(model) is None})
        unpriced = {"unpriced": unknown} if self.known and unknown else {}
        return {"tokens_in": tokens_in, "tokens_out": tokens_out, "lost": self.journal.lost, **cost, **unpriced}

    @property
    def over(self) -> bool:
        """Whether what is under way could already lead over the bound."""
        return self.max_cost is not None and self.spent + sum(self._reserved.values()) > self.max_cost

    def fits(self, tokens_in: int, tokens_out: int) -> bool:
        if self.max_cost is None:
            return True
        return self.spent + sum(self._reserved.values()) + self._most(tokens_in, tokens_out) <= self.max_cost

    def reserve(self, call: str, tokens_in: int, tokens_out: int) -> None:
        if self.max_cost is not None:
            self._reserved[call] = self._most(tokens_in, tokens_out)

    def learn(self, estimated: int, counted: int) -> None:
        """A question of so many tokens by our estimate had so many by the endpoint's count."""
        self._worst = max(self._worst, 1.1 * counted / max(estimated, 1))

    def release(self, call: str) -> None:
        self._reserved.pop(call, None)

    def _most(self, tokens_in: int, tokens_out: int) -> float:
        assert self.price is not None
        return self.price.of(self._worst * tokens_in, tokens_out)
