"""Which pairs become conversations, balanced over the domains.

As in the paper: pictures only (no plots, no diagrams), the wanted domains, one panel per image. When
fewer conversations are wanted than there are pairs, the domains take turns, so that a rare one (gross
pathology) is not drowned by a common one.

Within a domain the order is that of a hash of seed and key. It does not depend on the order in which
the pairs come, and a smaller `count` picks a subset of what a larger one picks.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

from llavamed.errors import InputError
from llavamed.records import DOMAINS, Pair


def check_domains(domains: Sequence[str]) -> None:
    """Raises InputError for a domain that no pair can have."""
    unknown = [domain for domain in domains if domain not in DOMAINS]
    if unknown:
        raise InputError(f"instruct.domains: {', '.join(map(repr, unknown))}; the domains are {', '.join(DOMAINS)}")


def reason_against_align(pair: Pair) -> str | None:
    """Why the pair teaches no alignment; None if it does. Compound figures stay: their captions have the words."""
    if not pair.caption.strip():
        return "no_caption"
    return "plot" if pair.is_plot else None


def reason_against_instruct(pair: Pair, domains: Sequence[str]) -> str | None:
    """Why no conversation is written about the pair; None if one is."""
    if pair.is_plot:
        return "plot"
    if pair.domain not in domains:
        return "other_domain"
    return "compound" if pair.is_compound else None


def select(
    candidates: Iterable[tuple[str, str]], domains: Sequence[str], count: int | None, seed: int
) -> tuple[list[str], Counter[str]]:
    """From (key, domain) of the pairs that qualify: the keys taken, domain by domain in turn, at most `count`;
    and how many each domain left behind."""
    domains = tuple(dict.fromkeys(domains))  # one that is named twice has one turn
    queues: dict[str, list[str]] = {domain: [] for domain in domains}
    for key, domain in candidates:
        queues[domain].append(key)
    for queue in queues.values():
        queue.sort(key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest())
    total = sum(map(len, queues.values()))
    wanted = total if count is None else min(count, total)
    taken: list[str] = []
    turn = 0
    while len(taken) < wanted:
        for domain in domains:
            if turn < len(queues[domain]) and len(taken) < wanted:
                taken.append(queues[domain][turn])
        turn += 1
    chosen = set(taken)
    left = Counter({domain: sum(key not in chosen for key in queue) for domain, queue in queues.items()})
    return taken, +left
