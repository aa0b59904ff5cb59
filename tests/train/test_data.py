from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from tiny_models import as_model, classifier, noise_images, regressor

from opadapt.errors import ConfigError, DataError
from opadapt.train.data import DataConfig, load_data
from opadapt.train.preprocess import AugmentConfig, PreprocessConfig

IMAGES = noise_images(60, 1)
LABELS = np.arange(60) % 3


@pytest.fixture
def model():
    return as_model(classifier(0))


def npz(folder: Path, **arrays: np.ndarray) -> DataConfig:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return DataConfig(path=str(path))


def write_images(root: Path, classes: dict[str, int], size: tuple[int, int] = (6, 6)) -> None:
    for number, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.full(size, number * 40 + i, np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")


def rows(split) -> set[bytes]:
    return {image.tobytes() for image in split.inputs["image"]}


@pytest.mark.parametrize("form", ["x_train", "train_x"])
def test_an_explicit_test_set_is_left_untouched(tmp_path, model, form):
    def key(name, part):
        return f"{name}_{part}" if form == "x_train" else f"{part}_{name}"

    arrays = {
        key("x", "train"): IMAGES[:40], key("y", "train"): LABELS[:40],
        key("x", "test"): IMAGES[40:], key("y", "test"): LABELS[40:],
    }  # fmt: skip
    data = load_data(npz(tmp_path, **arrays), model)
    np.testing.assert_array_equal(data.test.inputs["image"], IMAGES[40:])
    np.testing.assert_array_equal(data.test.labels, LABELS[40:])
    assert rows(data.train) | rows(data.validation) == {i.tobytes() for i in IMAGES[:40]}
    assert len(data.train) + len(data.validation) == 40
    assert data.label_kind == "classes"
    assert data.train.inputs["image"].dtype == np.uint8


def test_division_is_disjoint_stratified_and_fixed_by_the_seed(tmp_path, model):
    config = npz(tmp_path, x=IMAGES, y=LABELS)
    data = load_data(config, model)
    assert not rows(data.train) & rows(data.validation)
    assert not rows(data.train) & rows(data.test)
    assert not rows(data.validation) & rows(data.test)
    assert len(data.train) + len(data.validation) + len(data.test) == 60
    assert np.bincount(data.test.labels).tolist() == [2, 2, 2]
    assert np.bincount(data.validation.labels).tolist() == [2, 2, 2]
    assert rows(load_data(config, model).test) == rows(data.test)
    other = load_data(config.model_copy(update={"seed": 7}), model)
    assert rows(other.test) != rows(data.test)


def test_groups_are_never_divided(tmp_path, model):
    subject = np.repeat(np.arange(6), 10)
    images = IMAGES.copy()
    images[:, 0, 0] = subject  # mark every image with its subject
    config = npz(tmp_path, x=images, y=LABELS, subject=subject).model_copy(update={"group": "subject"})
    data = load_data(config, model)
    owners = [set(s.inputs["image"][:, 0, 0].tolist()) for s in (data.train, data.validation, data.test)]
    assert all(owners)
    assert [set(s.groups) for s in (data.train, data.validation, data.test)] == owners
    assert sum(map(len, owners)) == 6
    assert set.union(*owners) == set(range(6))


def test_limits_bound_each_split(tmp_path, model):
    limits = {"train_limit": 20, "validation_limit": 3, "test_limit": 2}
    data = load_data(npz(tmp_path, x=IMAGES, y=LABELS).model_copy(update=limits), model)
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 3, 2)


def test_data_without_labels(tmp_path, model):
    data = load_data(npz(tmp_path, x=IMAGES), model)
    assert data.label_kind == "none"
    assert data.train.labels is None


def test_npy_files(tmp_path, model):
    np.save(tmp_path / "a.npy", IMAGES)
    np.save(tmp_path / "b.npy", LABELS)
    data = load_data(DataConfig(x="a.npy", y="b.npy"), model, tmp_path)
    assert len(data.train) == 48
    assert data.train.labels.dtype == np.int64


def test_class_numbers_in_a_column(tmp_path, model):
    np.savez(tmp_path / "keras.npz", x=IMAGES, y=LABELS[:, None])
    data = load_data(DataConfig(path="keras.npz"), model, tmp_path)
    assert data.label_kind == "classes"
    assert data.train.labels.shape == (len(data.train),)


def test_entry_point_in_a_file_with_several_inputs(tmp_path):
    code = (
        "import numpy as np\n"
        "def load():\n"
        "    r = np.random.default_rng(0)\n"
        "    return {'first': r.normal(size=(50, 4)).astype('f'), 'b': r.normal(size=(50, 2)).astype('f'),\n"
        "            'y': r.normal(size=50), 'names': ['anything']}\n"
    )
    (tmp_path / "mine.py").write_text(code)
    config = DataConfig(path="mine.py:load", inputs={"a": "first"})
    data = load_data(config, as_model(regressor(0)), tmp_path)
    assert data.train.inputs["a"].shape == (41, 4)  # 5 test, then 4 of 45 validate
    assert data.train.inputs["b"].shape == (41, 2)
    assert data.label_kind == "values"
    assert data.train.labels.dtype == np.float32


def test_image_folder_with_parts(tmp_path, model):
    write_images(tmp_path / "train", {"cat": 8, "dog": 9, "eel": 10})
    write_images(tmp_path / "test", {"cat": 2, "dog": 2, "eel": 2})
    data = load_data(DataConfig(path=str(tmp_path)), model)
    assert data.class_names == ("cat", "dog", "eel")
    assert data.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.test.inputs["image"][2, 0, 0] == 40  # first dog
    assert len(data.train) + len(data.validation) == 27


def test_image_folder_in_the_order_of_given_names(tmp_path, model):
    write_images(tmp_path, {"cat": 10, "dog": 10, "eel": 10})
    config = DataConfig(path=str(tmp_path), class_names=("eel", "cat", "dog"))
    data = load_data(config, model)
    eels = data.train.inputs["image"][data.train.labels == 0]
    assert (eels >= 80).all()


def test_images_are_resized_where_asked(tmp_path, model):
    write_images(tmp_path, {"a": 6, "b": 6, "c": 6}, size=(12, 9))
    with pytest.raises(DataError, match="do not fit"):
        load_data(DataConfig(path=str(tmp_path)), model)
    preprocess = PreprocessConfig(resize_pixels=(6, 6))
    data = load_data(DataConfig(path=str(tmp_path), preprocess=preprocess), model)
    assert data.train.inputs["image"].shape[1:] == (6, 6)
    assert (data.train.inputs["image"] == data.train.inputs["image"][:, :1, :1]).all()  # flat stays flat


def test_arrays_are_resized_where_asked(tmp_path, model):
    flat = np.repeat(np.arange(60, dtype=np.uint8), 144).reshape(60, 12, 12)
    config = npz(tmp_path, x=flat, y=LABELS)
    config = config.model_copy(update={"preprocess": PreprocessConfig(resize_pixels=(6, 6))})
    data = load_data(config, model)
    assert data.train.inputs["image"].shape[1:] == (6, 6)
    assert data.train.inputs["image"].dtype == np.uint8
    assert set(data.train.inputs["image"].reshape(-1).tolist()) <= set(range(60))


BAD_ARRAYS = {
    "range": ({"x": IMAGES, "y": LABELS + 1}, "out of range", "subtract 1"),
    "negative": ({"x": IMAGES, "y": LABELS - 1}, "out of range", "label -1 of sample 0"),
    "counts": ({"x": IMAGES, "y": LABELS[:50]}, "counts differ", "labels: 50"),
    "shape": ({"x": np.zeros((60, 5, 5), np.uint8), "y": LABELS}, "do not fit", "1x6x6"),
    "nan": ({"x": np.where(IMAGES[3, 2, 2] == IMAGES, np.nan, IMAGES / 2), "y": LABELS}, "NaN", "sample "),
    "nothing": ({"a": IMAGES}, "no samples", "image or x"),
    "empty": ({"x": IMAGES[:0], "y": LABELS[:0]}, "no samples", "0x6x6"),
    "text": ({"x": IMAGES, "y": np.array(["a"] * 60)}, "no numbers", "<U1"),
    "no training": ({"x_test": IMAGES, "y_test": LABELS}, "no training data", "x_train"),
    "other test": (
        {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:, :5], "y_test": LABELS}, "differs", "5x6"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_refused_with_their_reason(tmp_path, model, case):
    arrays, message, detail = BAD_ARRAYS[case]
    with pytest.raises(DataError, match=message) as caught:
        load_data(npz(tmp_path, **arrays), model)
    assert detail in str(caught.value)


def test_bad_files_are_refused(tmp_path, model):
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no zip")
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    (tmp_path / "data.csv").write_text("1,2")
    for name, message in {
        "absent.npz": "no data at",
        "broken.npz": "cannot read",
        "objects.npz": "cannot read",
        "data.csv": "cannot tell",
    }.items():
        with pytest.raises(DataError, match=message):
            load_data(DataConfig(path=str(tmp_path / name)), model)


def test_bad_folders_are_refused(tmp_path, model):
    write_images(tmp_path / "ok", {"a": 4, "b": 4, "c": 4})
    (tmp_path / "ok" / "b" / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"b/3\.png"):
        load_data(DataConfig(path=str(tmp_path / "ok")), model)
    write_images(tmp_path / "two", {"a": 4, "b": 4})
    with pytest.raises(DataError, match="other classes"):
        load_data(DataConfig(path=str(tmp_path / "two")), model)
    (tmp_path / "two" / "c").mkdir()
    with pytest.raises(DataError, match="class 'c' has no images"):
        load_data(DataConfig(path=str(tmp_path / "two")), model)
    write_images(tmp_path / "mixed", {"a": 2})
    write_images(tmp_path / "mixed", {"b": 2, "c": 2}, size=(7, 6))
    with pytest.raises(DataError, match="different sizes"):
        load_data(DataConfig(path=str(tmp_path / "mixed")), model)


def test_entry_points_that_fail_say_so(tmp_path, model):
    (tmp_path / "mine.py").write_text("def load(): return 3\n")
    with pytest.raises(DataError, match="something else"):
        load_data(DataConfig(path="mine.py:load"), model, tmp_path)
    with pytest.raises(ConfigError, match="no function 'other'"):
        load_data(DataConfig(path="mine.py:other"), model, tmp_path)
    with pytest.raises(ConfigError, match="cannot import"):
        load_data(DataConfig(path="no_such_module_of_mine:load"), model)


def test_config_that_contradicts_itself(tmp_path, model):
    for fields in ({}, {"path": "a", "x": "b"}, {"path": "a", "y": "b"}, {"path": "a", "unknown": 1}):
        with pytest.raises(ValidationError):
            DataConfig(**fields)
    config = npz(tmp_path, x=IMAGES, y=LABELS)
    for changed, message in (
        ({"inputs": {"picture": "x"}}, "no input 'picture'"),
        ({"labels": "truth"}, "no labels"),
        ({"group": "subject"}, "no group array"),
        ({"preprocess": PreprocessConfig(mean=(0.1, 0.2), std=(1, 1))}, "channels"),
    ):
        with pytest.raises(DataError, match=message):
            load_data(config.model_copy(update=changed), model)


def test_augmentation_needs_images(tmp_path):
    arrays = {"a": np.zeros((30, 4), np.float32), "b": np.zeros((30, 2), np.float32)}
    config = npz(tmp_path, **arrays).model_copy(update={"augment": AugmentConfig(flip_horizontal=True)})
    with pytest.raises(DataError, match="needs images"):
        load_data(config, as_model(regressor(0)))


def test_real_recordings_with_two_inputs_and_subjects(shared_data, shared_models):
    from opadapt.model.load import load

    config = DataConfig(
        path=str(shared_data / "troika_subjects_0_7.npz"), labels="bpm", group="subject",
        validation_fraction=0.2, test_fraction=0.2,
    )  # fmt: skip
    data = load_data(config, load(shared_models / "beliefppg_full.onnx"))
    assert set(data.train.inputs) == {"spec", "ppg"}
    assert data.label_kind == "values"
    assert len(data.train) + len(data.validation) + len(data.test) == 1080
