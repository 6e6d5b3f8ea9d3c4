"""A corpus written to S3, over HTTP, is the one written to a folder. The server is moto's; skipped without it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llavamed.corpus.build import build

boto3 = pytest.importorskip("boto3")
moto_server = pytest.importorskip("moto.server")
pytest.importorskip("s3fs")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, object]]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="figures")
    yield "s3://figures", client
    server.stop()


def test_a_corpus_on_s3_has_the_bytes_of_one_in_a_folder(
    bucket: tuple[str, object], shared_data: Path, tmp_path: Path
) -> None:
    url, client = bucket
    articles = shared_data / "jats_packages"
    build(articles, f"{url}/corpus", workers=1)
    build(articles, f"{url}/corpus", workers=1)  # finished already: nothing is written twice
    build(articles, tmp_path / "corpus", workers=1)
    listed = client.list_objects_v2(Bucket="figures")["Contents"]  # type: ignore[attr-defined]
    there = {item["Key"].removeprefix("corpus/") for item in listed}
    local = {str(file.relative_to(tmp_path / "corpus")) for file in (tmp_path / "corpus").rglob("*") if file.is_file()}
    assert there == local
    for name in sorted(local - {"manifest.json"}):  # it has the date
        body = client.get_object(Bucket="figures", Key=f"corpus/{name}")["Body"].read()  # type: ignore[attr-defined]
        assert body == (tmp_path / "corpus" / name).read_bytes(), name
