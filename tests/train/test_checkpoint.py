from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llavamed.errors import InputError
from llavamed.train import checkpoint


def _tensors(fill: float) -> dict[str, torch.Tensor]:
    return {
        "parameter/a": torch.full((3, 2), fill),
        "exp_avg/a": torch.full((3, 2), fill, dtype=torch.bfloat16),
        "step/a": torch.tensor(fill),
    }


def test_what_is_saved_is_what_is_restored(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 7, _tensors(0.25), "abc", keep=2)
    assert checkpoint.latest(tmp_path, "abc") == (7, path)
    assert checkpoint.matches(path, _tensors(0.25))
    assert not checkpoint.matches(path, _tensors(0.5))
    live = _tensors(0.0)
    checkpoint.restore(path, live)
    assert checkpoint.matches(path, live)


def test_only_the_last_are_kept_and_the_newest_is_found(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        checkpoint.save(tmp_path, step, _tensors(step), "abc", keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000100"]
    found = checkpoint.latest(tmp_path, "abc")
    assert found is not None
    assert found[0] == 100


def test_a_checkpoint_of_another_stage_is_not_found(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 5, _tensors(1), "abc", keep=2)
    assert checkpoint.latest(tmp_path, "abd") is None
    assert checkpoint.latest(tmp_path / "absent", "abc") is None


@pytest.mark.parametrize("damage", ["flipped byte", "cut short", "no tensors", "no manifest", "manifest cut short"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.save(tmp_path, 5, _tensors(5), "abc", keep=2)
    newest = checkpoint.save(tmp_path, 6, _tensors(6), "abc", keep=2)
    tensors, described = next(newest.glob("*.safetensors")), newest / "manifest.json"
    data = tensors.read_bytes()
    if damage == "flipped byte":
        tensors.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "cut short":
        tensors.write_bytes(data[:-1])
    elif damage == "no tensors":
        tensors.unlink()
    elif damage == "no manifest":
        described.unlink()
    else:
        described.write_text(described.read_text()[:40])
    found = checkpoint.latest(tmp_path, "abc")
    assert found is not None
    assert found[0] == 5
    if damage != "no manifest":  # that one is merely unfinished
        assert "step-00000006: passed over" in capsys.readouterr().err


def test_an_interrupted_write_leaves_nothing_that_counts(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 5, _tensors(5), "abc", keep=2)
    asides = [tmp_path / f"step-0000000{step}.tmp" for step in (6, 9)]
    for aside in asides:
        aside.mkdir()
        (aside / "shard.safetensors").write_bytes(b"half")
    found = checkpoint.latest(tmp_path, "abc")
    assert found is not None
    assert found[0] == 5
    assert checkpoint.matches(checkpoint.save(tmp_path, 6, _tensors(6), "abc", keep=2), _tensors(6))
    assert not any(aside.exists() for aside in asides)


def test_restoring_into_other_tensors_is_refused(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 5, _tensors(5), "abc", keep=2)
    with pytest.raises(AssertionError, match="step/b"):
        checkpoint.restore(path, {**_tensors(0), "step/b": torch.zeros(())})


def test_large_states_are_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch puts each file together in memory first: of one file that would be a second copy of everything."""
    monkeypatch.setattr(checkpoint, "_FILE_BYTES", 1000)
    state = {f"weight/{n}": torch.full((10, 10), float(n)) for n in range(7)}  # 400 bytes each
    path = checkpoint.save(tmp_path, 5, state, "abc", keep=2)
    assert len(list(path.glob("*.safetensors"))) == 4
    live = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    checkpoint.restore(path, live)
    assert checkpoint.matches(path, live)
    assert torch.equal(live["weight/6"], state["weight/6"])


def test_a_full_disk_is_one_line_and_leaves_the_one_before(tmp_path: Path, small_files: None) -> None:
    large = {name: torch.cat([tensor.flatten()] * 5000) for name, tensor in _tensors(6).items()}
    before = checkpoint.save(tmp_path, 5, _tensors(5), "abc", keep=2)
    with pytest.raises(InputError, match=r"step-00000006\.tmp: cannot be written; make room.*OSError"):
        checkpoint.save(tmp_path, 6, large, "abc", keep=2)
    assert checkpoint.latest(tmp_path, "abc") == (5, before)
