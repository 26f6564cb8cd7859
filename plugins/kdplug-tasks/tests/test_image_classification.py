"""Image classification: folders, arrays, tables and datasets."""

from __future__ import annotations

import numpy
import pytest
import torch
from PIL import Image
from task_scene import RESNET, TRAINED, VIT, first_batch, recipe, task_of, write_csv

from kdplug import ConfigError


@pytest.fixture(scope="module")
def arrays():
    """16 dark and bright images with their labels."""
    draw = numpy.random.default_rng(0)
    labels = numpy.arange(16) % 2
    pixels = draw.integers(0, 100, (16, 8, 8)) + 150 * labels[:, None, None]
    return pixels.astype(numpy.uint8), labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory, arrays):
    folder = tmp_path_factory.mktemp("pictures")
    for place, (picture, label) in enumerate(zip(*arrays, strict=True)):
        file = folder / "train" / ("dark", "bright")[label] / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)
    numpy.savez(folder / "train.npz", image=arrays[0], label=arrays[1])
    return folder


def _settings(train, **changes):
    teacher, student = {"config": VIT, **TRAINED}, {"from_teacher": {"layers": [0]}}
    settings = {"name": "image-classification", "data": {"train": str(train), "test": 0.25}, "teacher": teacher}
    return {**settings, "student": student, **changes}


def test_pictures_in_folders_end_in_a_model_that_transformers_loads_and_feeds(folder, tmp_path):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    from kdplug.recipes.run import run_recipe

    match = {"layer_T": -1, "layer_S": -1, "feature": "hidden", "loss": "hidden_mse"}
    done = run_recipe(recipe(_settings(folder / "train"), tmp_path, intermediate_matches=[match]))
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "model").eval()
    brings = AutoImageProcessor.from_pretrained(tmp_path / "model", backend="pil")
    task = task_of(**_settings(folder / "train"))
    data = task.data("test")
    pixels = brings(
        [data[place][0] for place in range(len(data))], return_tensors="pt", input_data_format="channels_last"
    )
    right = model(**pixels).logits.argmax(dim=-1).eq(torch.tensor([data[place][1] for place in range(len(data))]))
    assert float(right.double().mean()) == done.distilled.metrics["accuracy"]


def test_folders_arrays_tables_and_datasets_give_the_same_batch(folder, arrays, tmp_path):
    from datasets import Dataset, DatasetDict

    names = ["dark" if label == 0 else "bright" for label in arrays[1]]
    files = [str(folder / "train" / name / f"{place}.png") for place, name in enumerate(names)]
    table = write_csv(tmp_path / "table.csv", [{"image": f, "label": n} for f, n in zip(files, names, strict=True)])
    pictures = [Image.fromarray(picture) for picture in arrays[0]]
    DatasetDict({"train": Dataset.from_dict({"image": pictures, "label": names})}).save_to_disk(tmp_path / "saved")
    sources = [folder / "train.npz", table]
    tasks = [task_of(**_settings(source)) for source in sources]
    tasks.append(task_of(**_settings("train", data={"dataset": str(tmp_path / "saved"), "test": 0.25})))
    batches = [first_batch(task)["pixel_values"] for task in tasks]
    assert batches[0].shape == (4, 1, 8, 8)
    assert all(torch.equal(batch, batches[0]) for batch in batches)


def test_a_picture_of_a_dataset_is_turned_as_datasets_turns_it(tmp_path):
    from datasets import Dataset

    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.new("L", (4, 8), 0).save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as picture:
        saved = Dataset.from_dict({"image": [picture] * 4, "label": list("abab")})
        saved.save_to_disk(tmp_path / "saved")
    task = task_of(**_settings("train", data={"dataset": str(tmp_path / "saved"), "test": 0.5}))
    assert task.data("test")[0][0].shape[:2] == numpy.asarray(saved[0]["image"]).shape == (4, 8)


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "webp", "gif", "tif", "ppm", "jp2"])
def test_pictures_of_every_common_format_are_read(tmp_path, ending):
    for name in "ab":
        for place in range(2):
            file = tmp_path / f"{name}{place}.{ending}"
            Image.new("L", (8, 8), 40 * place).save(file)
    rows = [{"image": f"{name}{place}.{ending}", "label": name} for name in "ab" for place in range(2)]
    task = task_of(**_settings(write_csv(tmp_path / "table.csv", rows)))
    assert task.data("test")[0][0].shape == (8, 8, 1)


def test_pixels_of_a_model_from_scratch_are_between_minus_one_and_one(folder, arrays):
    task = task_of(**_settings(folder / "train.npz"))
    whole = task.collate([task.data(part)[0] for part in ("distillation", "test")])["pixel_values"]
    assert whole.min() >= -1
    assert whole.max() <= 1
    row = task.problem.processor.pixels([arrays[0][0][..., None]])
    torch.testing.assert_close(row[0, 0], torch.from_numpy(arrays[0][0] / 127.5 - 1).float(), atol=1e-5, rtol=0)


def test_feature_maps_become_sequences_of_positions(folder):
    task = task_of(**_settings(folder / "train.npz", student={"config": RESNET}))
    task.expect(frozenset({"hidden"}))
    batch = first_batch(task)
    hidden = task.student_adaptor(batch, task.build_student()(**batch))["hidden"]
    assert [tuple(one.shape) for one in hidden] == [(4, 4, 8), (4, 4, 8), (4, 1, 16)]


def test_a_student_for_pictures_of_another_size_is_refused(folder):
    student = {"config": {**VIT, "image_size": 16}}
    with pytest.raises(ConfigError, match=r"student\.config\.image_size: is 16, but the teacher's is 8"):
        task_of(**_settings(folder / "train.npz", student=student)).check()


@pytest.mark.parametrize("changes", [{"image_size": 8}, {"student": {"config": VIT}}])
def test_models_that_take_any_size_are_given_the_one_that_is_said(folder, changes):
    teacher = {"config": RESNET, **TRAINED}
    task = task_of(**_settings(folder / "train.npz", teacher=teacher, **{"student": {"config": RESNET}, **changes}))
    assert first_batch(task)["pixel_values"].shape == (4, 1, 8, 8)


def test_a_size_that_nothing_says_is_224(folder):
    models = {"teacher": {"config": RESNET, **TRAINED}, "student": {"config": RESNET}}
    assert first_batch(task_of(**_settings(folder / "train.npz", **models)))["pixel_values"].shape == (4, 1, 224, 224)


def test_another_size_than_a_model_takes_is_refused(folder):
    message = r"image_size: is 9, but the teacher's config has 8\. Remove image_size, and set the size in the configs"
    with pytest.raises(ConfigError, match=message):
        task_of(**_settings(folder / "train.npz", image_size=9)).check()


def test_a_size_in_addition_to_an_image_processor_is_rejected(folder, tmp_path):
    task = task_of(**_settings(folder / "train.npz"))
    task.family.save(task.build_student(), tmp_path)
    task.problem.save(tmp_path, "student")
    with pytest.raises(ConfigError, match=r"image_size: has no effect, since the image processor in .* sets the size"):
        task_of(**_settings(folder / "train.npz", teacher={"path": str(tmp_path)}, image_size=8)).check()


def test_another_size_is_another_teacher_to_a_cache(folder):
    models = {"teacher": {"config": RESNET, **TRAINED}, "student": {"config": RESNET}}
    found = [task_of(**_settings(folder / "train.npz", **models, image_size=size)).fingerprint() for size in (8, 9)]
    assert found[0] != found[1]


def test_a_file_that_is_no_picture_is_an_error(folder, tmp_path):
    (tmp_path / "x.png").write_text("no picture")
    rows = [{"image": "x.png", "label": name} for name in ("a", "b", "a", "b")]
    with pytest.raises(ConfigError, match=r"row 2 of .*table\.csv \(line 3\): the image cannot be read"):
        task_of(**_settings(write_csv(tmp_path / "table.csv", rows))).check()


def test_a_picture_that_is_not_there_is_an_error(tmp_path):
    rows = [{"image": f"{name}.png", "label": name} for name in ("a", "b", "a", "b")]
    with pytest.raises(ConfigError, match=r"row 2 of .* \(line 3\): there is no file 'b\.png'"):
        task_of(**_settings(write_csv(tmp_path / "table.csv", rows))).check()


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="it is a folder without images"):
        task_of(**_settings(tmp_path)).check()
