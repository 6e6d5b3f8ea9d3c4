"""What asking a model will cost, known before the first request.

`judge_prices.yaml` is a dated table of prices. A model served on this machine costs nothing, and a model that is not
in the table has no price: then the person says what it is (`--price`), or that it does not matter (`--yes`).

Tokens are estimated without the model's tokenizer: at three bytes a token English text comes out a third too dear
(it has about four), and text in Chinese about right. The estimate is a bound on purpose.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import yaml

from llavamed.engine import Request

_BYTES_PER_TOKEN = 3
_TOKENS_PER_MESSAGE = 8  # the marks of a chat template
_DATE = re.compile(r"-\d{4}-\d{2}-\d{2}$")


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens; `body` holds what a request to this model must have otherwise."""

    input: float
    output: float
    source: str
    body: Mapping[str, Any] = field(default_factory=dict)

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """US dollars."""
        return (tokens_in * self.input + tokens_out * self.output) / 1e6


def of(url: str, model: str, given: tuple[float, float] | None = None) -> Price | None:
    """The price of `model` at the endpoint `url`, or the one `given`; None if it is not known."""
    host = urlsplit(url).hostname or ""
    entry = _table()["hosts"].get(host, {}).get(_DATE.sub("", model), {})
    body = entry.get("body", {})
    if given is not None:
        return Price(*given, "the price given", body)
    if _is_here(host):
        return Price(0.0, 0.0, "served on this machine")
    return Price(entry["input"], entry["output"], f"price list of {_table()['as_of']}", body) if entry else None


def tokens_in(requests: Iterable[Request], also: str = "") -> int:
    """About how many tokens the texts of these requests have, and `also` in each, rather too many than too few."""
    texts = ((*(message.text for message in request.messages), also) for request in requests)
    return sum(-(-len(text.encode()) // _BYTES_PER_TOKEN) + _TOKENS_PER_MESSAGE for each in texts for text in each)


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@cache
def _table() -> dict[str, Any]:
    text = (resources.files("llavamed.evaluate") / "judge_prices.yaml").read_text(encoding="utf-8")
    table: dict[str, Any] = yaml.safe_load(text)
    return table
