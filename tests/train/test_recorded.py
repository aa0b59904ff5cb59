"""The teacher is asked once about every view of a sample, and what it said is found again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import classifier, image_dataset

from opadapt.errors import RunError
from opadapt.train import recorded
from opadapt.train.batches import Batch, Batches
from opadapt.train.data import Dataset
from opadapt.train.finetune import FinetuneConfig, finetune
from opadapt.train.preprocess import AugmentConfig
from opadapt.train.recorded import LARGEST, RECORD, Recorded, fits
from opadapt.train.teacher import Teacher
from opadapt.train.trainer import Trainer

DATA = image_dataset(400, None)  # 240 to train with
AUGMENTED = replace(DATA, augment=AugmentConfig(crop_padding_pixels=2, flip_horizontal=True))
SHAPES = [(4,), (2, 3)]
EXACT = FinetuneConfig(batch=32, threads=1, layout="contiguous", precision="float32")


def batch_of(rows: list[int], view: int = 0) -> Batch:
    return Batch([], None, torch.tensor(rows), view)


def outputs(count: int) -> list[torch.Tensor]:
    return [torch.randn(count, *shape) for shape in SHAPES]


def test_what_was_kept_is_found_again_by_another(tmp_path: Path) -> None:
    path = tmp_path / "teacher.f32"
    said = outputs(3)
    Recorded(path, 2, 10, SHAPES).keep(batch_of([7, 1, 4], view=1), said)
    again = Recorded(path, 2, 10, SHAPES)
    found = again.find(batch_of([4, 7], view=1))
    for one, wanted in zip(found, said, strict=True):
        torch.testing.assert_close(one, wanted[[2, 0]], rtol=0, atol=0)
    assert again.missing(batch_of([4, 7], view=1)).tolist() == []
    assert again.missing(batch_of([4, 7], view=0)).tolist() == [0, 1]
    assert again.missing(batch_of([4, 5], view=1)).tolist() == [1]


def test_a_file_of_another_size_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "teacher.f32"
    Recorded(path, 1, 4, SHAPES).keep(batch_of([0]), outputs(1))
    path.write_bytes(path.read_bytes()[:-4])
    assert Recorded(path, 1, 4, SHAPES).missing(batch_of([0])).tolist() == [0]


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot write .*teacher\.f32"):
        Recorded(tmp_path / "none" / "teacher.f32", 1, 4, SHAPES)


def test_large_outputs_are_not_recorded() -> None:
    assert fits(3, 50_000, [(10,)])
    assert not fits(1, LARGEST // 4 + 1, [(1,)])
    assert not fits(1, 1, [(10,), (None, 4)])


def test_a_view_shows_a_sample_as_before_in_another_company() -> None:
    batches = Batches(AUGMENTED, ["image"], 32, 2, seed=3)
    epochs = [[batches(e * batches.per_epoch + s) for s in range(batches.per_epoch)] for e in range(3)]

    def images(epoch: list[Batch]) -> dict[int, torch.Tensor]:
        return {int(row): x for batch in epoch for row, x in zip(batch.rows, batch.inputs[0], strict=True)}

    first, second, third = map(images, epochs)
    shared = first.keys() & second.keys() & third.keys()
    assert len(shared) > 150
    assert all(torch.equal(first[row], third[row]) for row in shared)
    assert sum(torch.equal(first[row], second[row]) for row in shared) < len(shared) / 4
    assert not torch.equal(epochs[0][0].rows, epochs[2][0].rows)


def tuned(folder: Path, data: Dataset, **settings: object) -> None:
    folder.mkdir()
    config = EXACT.model_copy(update={"epochs": 6, **settings})
    finetune(classifier(1), classifier(0), data, config, folder, seed=5)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """About how many samples the teacher is asked, each time."""
    found: list[int] = []
    real = Teacher.__call__

    def spied(teacher: Teacher, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        found.append(len(inputs[0]))
        return real(teacher, inputs)

    monkeypatch.setattr(Teacher, "__call__", spied)
    return found


FILLED, LEFT_OUT = 240 // 32 * 32, 240 % 32


@pytest.mark.parametrize("replicas", [1, 2])
def test_the_teacher_is_asked_once_about_every_view(tmp_path: Path, asked: list[int], replicas: int) -> None:
    """What an epoch leaves out, since it fills no batch, is asked about when it comes up."""
    tuned(tmp_path / "twice", DATA, teacher_epochs=2, replicas=replicas)
    assert 2 * FILLED < sum(asked) <= 2 * (FILLED + LEFT_OUT)


@pytest.mark.parametrize("settings", [{"teacher_epochs": None}, {"teacher_epochs": 6}, {"teacher_epochs": 2}])
def test_it_always_runs_where_nothing_is_recorded(
    tmp_path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch, settings: dict[str, int | None]
) -> None:
    monkeypatch.setattr(recorded, "LARGEST", 100)  # too small for the last of them
    tuned(tmp_path / "always", DATA, **settings)
    assert sum(asked) == 6 * FILLED
    assert not (tmp_path / "always" / RECORD).exists()


def test_features_alone_teach_to_the_end(tmp_path: Path, asked: list[int]) -> None:
    (name,) = [n.output[0] for n in classifier(0).graph.node if n.op_type == "Conv"][:1]
    tuned(tmp_path / "features", DATA, teacher_weight=0.0, features=(name,), teacher_epochs=1)
    assert sum(asked) == 6 * FILLED


@pytest.mark.parametrize("replicas", [1, 2])
def test_what_is_remembered_is_what_the_teacher_would_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replicas: int
) -> None:
    epochs: set[int] = set()
    real = Trainer._wanted

    def checked(trainer: Trainer, teacher: Teacher, batch: Batch) -> list[torch.Tensor]:
        wanted = real(trainer, teacher, batch)
        for one, said in zip(wanted, teacher(batch.inputs), strict=True):
            torch.testing.assert_close(one, said, rtol=1e-4, atol=1e-5)
        epochs.add(trainer.step // trainer.steps_per_epoch)
        return wanted

    monkeypatch.setattr(Trainer, "_wanted", checked)
    tuned(tmp_path / "remembered", AUGMENTED, teacher_epochs=2, replicas=replicas)
    assert epochs == set(range(6))
