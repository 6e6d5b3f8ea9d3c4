"""Which versions of an article there are: the bucket lists them; on a plain web server they are tried.

What kind of server it is, is settled once, before the first article (`can_list`). After that a listing that does not
come is a failure of the one article that it was asked for: taken as "cannot list", it would make every later article be
tried version by version, and that stops at a gap and takes an old version for the latest.

Trying finds what is there, but not that something is gone: a wrong address answers 404 to everything.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import quote

from llavamed.corpus import bucket
from llavamed.corpus.bucket import BucketError, Name
from llavamed.corpus.client import Client, Failed, Missing
from llavamed.errors import InputError

_NO_LISTING = frozenset({"forbidden", "redirected", "refused"})  # how web servers answer who asks for a folder
_MOST_TRIED = 50  # versions of an article


async def can_list(client: Client) -> bool:
    """Whether the server lists its objects as S3 does. Raises InputError if it does not answer."""
    try:
        body, _ = await client.read("", "?list-type=2&prefix=metadata/&delimiter=/&max-keys=1")
        bucket.read_listing(body, client.base_url)
    except (BucketError, Missing):
        return False
    except Failed as error:
        if error.reason in _NO_LISTING:
            return False
        raise InputError(f"{client.base_url}: does not answer ({error}); run the command again when it does") from None
    return True


async def prefixes(client: Client, prefix: str) -> list[str]:
    """The folders below a prefix, from all pages of its listing."""
    found: list[str] = []
    token, seen = "", {""}
    while True:
        more = f"&continuation-token={quote(token, safe='')}" if token else ""
        query = f"?list-type=2&prefix={quote(prefix)}&delimiter=/{more}"
        try:
            body, _ = await client.read("", query)
        except Missing as error:
            raise Failed(f"{client.base_url}/{query}: {error}", "no_listing") from None
        page, token = bucket.read_listing(body, client.base_url)
        found += page
        if not token:
            return found
        if token in seen:
            raise Failed(f"{client.base_url}/{query}: a listing without an end", "no_listing")
        seen.add(token)


async def listed(client: Client, pmcid: int) -> list[int]:
    """Raises Failed and BucketError where the listing does not come or is none."""
    return bucket.versions(await prefixes(client, f"PMC{pmcid}."), pmcid)


async def tried(client: Client, pmcid: int, held: Collection[int]) -> list[int]:
    """The versions from 1 to the first that is not there, and those up to the last of `held` (what a mirror has).

    Raises Failed and BucketError where the answers do not tell.
    """
    found: list[int] = []
    for version in range(1, _MOST_TRIED):
        name = Name(pmcid, version)
        try:
            body, _ = await client.read(name.metadata_key)
        except Missing:
            there = False
        except Failed as error:
            if error.reason != "forbidden" or not found:
                raise
            there = False  # S3 says so of what is not there, where its bucket may be read but not listed
        else:
            bucket.read_metadata(body, name)  # a login page is no metadata, whatever its status
            there = True
        if there:
            found.append(version)
        elif version in held:
            raise Failed(f"{client.base_url}: HTTP 404 for {name}, which was there", "not_found")
        elif version > max(held, default=0):
            break
    return found
