"""What a task may offer beyond ``Task``, and what a run makes of it."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

import kdplug
from kdplug.errors import ConfigError, RunError
from kdplug.recipes.preview.plan import plan_recipe
from kdplug.recipes.recipe_runner import RecipeRunner
from kdplug.recipes.run import run_recipe


@pytest.fixture
def offering(signs):
    """A recipe for ``Signs`` with more methods."""

    def make(*changes, **methods):
        kdplug.tasks.register("signs")(type("Signs", (kdplug.tasks.load("signs"),), methods))
        return signs(*changes)

    return make


@pytest.mark.parametrize("go", [run_recipe, plan_recipe])
def test_a_task_receives_what_is_read_before_anything_is_built(offering, go):
    told = []
    usual = kdplug.tasks.load("signs").build_teacher
    go(
        offering(
            "distillation.hard_label_weight=1",
            expect=lambda self, reads: told.append(sorted(reads)),
            check=lambda self: told.append("checked"),
            build_teacher=lambda self: told.append("built") or usual(self),
        )
    )
    assert told[:3] == [["logits", "logits_mask", "losses"], "checked", "built"]


def test_what_a_task_finds_wrong_stops_a_run_before_it_writes(offering, tmp_path):
    def check(self):
        raise ConfigError("no such file", field="data.train")

    with pytest.raises(ConfigError, match=r"^task\.data\.train: no such file"):
        run_recipe(offering(check=check))
    assert not (tmp_path / "out").exists()


def test_both_students_start_from_the_trained_teacher(offering):
    seen = []

    def start_student(self, student, teacher):
        seen.append(teacher.weight.clone())
        student.load_state_dict(teacher.state_dict())

    fit = {"epochs": 1, "batch_size": 10, "learning_rate": 0.1}
    adaptor = kdplug.tasks.load("signs").student_adaptor
    methods = {
        "starts_student": True,
        "start_student": start_student,
        "teacher_fit": lambda self: fit,
        "teacher_adaptor": adaptor,
    }
    done = run_recipe(offering("training.lr=1e-12", **methods))
    start = kdplug.tasks.build("signs").target.build_teacher().weight
    rehearsed = seen.pop(0)  # a run tries its first batch before it fits the teacher
    assert torch.equal(rehearsed, start)
    assert len(seen) == 3  # the control's, the distilled student's, and that of the student to save
    assert all(torch.equal(one, seen[0]) for one in seen)
    assert not torch.equal(seen[0], start)
    assert done.distilled.metrics == done.no_teacher.metrics == done.teacher.metrics


def test_a_task_saves_its_student_with_what_the_run_was(offering, tmp_path):
    def save_student(self, student, folder, record):
        (folder / "weights.json").write_text(json.dumps([student.weight.tolist(), record["results"], record["kdplug"]]))

    run_recipe(offering(save_student=save_student))
    weights, results, version = json.loads((tmp_path / "out" / "model" / "weights.json").read_text())
    assert results == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (len(weights), version) == (2, kdplug.__version__)
    assert not (tmp_path / "out" / "student.safetensors").exists()


def test_a_task_saves_the_teacher_that_the_run_trained_before_it_distils(offering, tmp_path):
    calls = []
    methods = {
        "teacher_fit": lambda self: {"epochs": 1, "batch_size": 10, "learning_rate": 0.1},
        "teacher_adaptor": kdplug.tasks.load("signs").student_adaptor,
        "start_student": lambda self, student, teacher: calls.append("student"),
        "starts_student": True,
    }

    def save_teacher(self, teacher, folder, record):
        calls.append("teacher")
        (folder / "parts").mkdir()
        (folder / "parts" / "weights.json").write_text(json.dumps([teacher.weight.tolist(), record["seed"]]))

    run_recipe(offering(**methods, save_teacher=save_teacher))
    assert calls == ["student", "teacher", *["student"] * 3]  # the first is the rehearsal's, the last one is saved
    folder = tmp_path / "out" / "teacher"
    assert json.loads((folder / "parts" / "weights.json").read_text())[1] == 0
    (folder / "parts" / "of-the-user").touch()
    run_recipe(offering("seed=1"), overwrite=True)
    assert json.loads((folder / "parts" / "weights.json").read_text())[1] == 1
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == [
        "SHA256SUMS", "kdplug-run.json", "log.jsonl", "parts", "predictions.jsonl", "result.json", "seconds.jsonl", "step-4",
    ]  # fmt: skip
    assert (folder / "parts" / "of-the-user").exists()


def _saves(name):
    """A method that saves a model as one file ``name``."""

    def save(self, model, folder, record):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps([model.weight.tolist(), record["seed"]]))

    return save


def _saving(name):
    """Methods of a task that trains its teacher, and saves both models as one file ``name``."""
    return {
        "teacher_fit": lambda self: {"epochs": 1, "batch_size": 10, "learning_rate": 0.1},
        "teacher_adaptor": kdplug.tasks.load("signs").student_adaptor,
        "save_teacher": _saves(name),
        "save_student": _saves(name),
    }


@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_files_of_the_user_in_the_folders_of_both_models_are_kept(offering, tmp_path, how):
    made, out = offering(**_saving("parts/weights.json")), tmp_path / "out"
    run_recipe(made)
    places = ("teacher", "teacher/step-3", "teacher/parts", "model", "model/parts", "model/mine")
    mine = [out / place / "notes.txt" for place in places]
    for file in mine:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    for _ in range(2):
        run_recipe(made, **{how: True})
        assert [file.read_text() for file in mine] == ["mine"] * len(mine)
        assert all((out / name / "parts" / "weights.json").is_file() for name in ("teacher", "model"))


def test_a_run_that_is_killed_before_it_saves_resumes_with_files_of_the_user_in_the_folders(
    offering, tmp_path, monkeypatch
):
    made, out = offering(**_saving("weights.json")), tmp_path / "out"
    run_recipe(made)
    for name in ("teacher", "model"):
        (out / name / "notes.txt").touch()
    with monkeypatch.context() as patch:
        patch.setattr(RecipeRunner, "teacher", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_recipe(made, overwrite=True)
    assert not (out / "model" / "weights.json").exists()
    run_recipe(made, resume=True)
    for name in ("teacher", "model"):
        assert (out / name / "notes.txt").exists()
        assert (out / name / "weights.json").exists()


@pytest.mark.parametrize(("name", "side"), [("teacher", "teacher"), ("model", "student")])
def test_a_saved_model_replaces_no_file_of_the_user(offering, tmp_path, name, side):
    run_recipe(offering(**_saving("weights.json")))
    mine = tmp_path / "out" / name / "other.json"
    mine.write_text("mine")
    with pytest.raises(RunError, match=rf"^output_dir: the {side} would be saved to .*other\.json', but that file"):
        run_recipe(offering(**_saving("other.json")), overwrite=True)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("how", ["resume", "overwrite"])
@pytest.mark.parametrize("place", ["seed-0/distilled/step-6", "seed-0/no_teacher/step-6", "teacher/step-4"])
def test_a_folder_of_the_user_in_the_place_of_a_checkpoint_is_an_error_before_the_teacher_is_trained(
    offering, tmp_path, place, how
):
    methods = _saving("weights.json")
    del methods["save_teacher"]
    mine = tmp_path / "out" / place / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.touch()
    with pytest.raises(RunError, match=rf"^output_dir: .*{place}' was not written by a run"):
        run_recipe(offering(**methods), **{how: True})
    assert mine.exists()
    assert not (tmp_path / "out" / "teacher" / "log.jsonl").exists()


def test_names_in_checksums_that_lead_out_of_the_folder_delete_nothing(offering, tmp_path):
    made, out = offering(**_saving("weights.json")), tmp_path / "out"
    run_recipe(made)
    (tmp_path / "mine").mkdir()
    mine = tmp_path / "mine" / "notes.txt"
    mine.touch()
    (out / "model" / "link").symlink_to(mine.parent)
    with (out / "model" / "SHA256SUMS").open("a") as sums:
        sums.writelines(f"{'0' * 64}  {name}\n" for name in (mine, "../../mine/notes.txt", "link/notes.txt", "a\0b"))
    run_recipe(made, overwrite=True)
    assert mine.exists()


def test_a_teacher_that_cannot_be_written_is_an_error_and_leaves_no_folder(offering, tmp_path):
    def save_teacher(self, teacher, folder, record):
        (folder / "weights.json").touch()
        raise OSError(28, "No space left on device")

    fit = {"epochs": 1, "batch_size": 10, "learning_rate": 0.1}
    adaptor = kdplug.tasks.load("signs").student_adaptor
    with pytest.raises(RunError, match=r"cannot write the teacher to .*teacher': .*No space left.*--resume"):
        run_recipe(offering(teacher_fit=lambda self: fit, teacher_adaptor=adaptor, save_teacher=save_teacher))
    assert sorted(path.name for path in (tmp_path / "out" / "teacher").iterdir()) == [
        ".run",
        "log.jsonl",
        "seconds.jsonl",
        "step-4",
    ]


def test_a_folder_of_a_student_brings_the_checksums_of_its_files(offering, tmp_path):
    def save_student(self, student, folder, record):
        (folder / "parts").mkdir()
        (folder / "parts" / "weights.json").write_text("[]")

    run_recipe(offering(save_student=save_student))
    folder = tmp_path / "out" / "model"
    sums = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert sums == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("kdplug-run.json", "parts/weights.json")
    }


def test_a_student_that_could_not_be_saved_leaves_no_folder(offering, tmp_path):
    with pytest.raises(ZeroDivisionError):
        run_recipe(offering(save_student=lambda *_: 1 / 0))
    assert [path.name for path in (tmp_path / "out").iterdir() if "model" in path.name] == []


def test_a_folder_that_no_run_saved_is_not_replaced(offering, tmp_path):
    mine = tmp_path / "out" / "model" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.touch()
    with pytest.raises(RunError, match=r"output_dir: the student would be saved to .*model', but that folder was not"):
        run_recipe(offering(save_student=lambda *_: None))
    assert mine.exists()


def test_a_run_replaces_the_student_of_an_earlier_one(offering, tmp_path):
    for seed in (1, 2):
        run_recipe(
            offering(f"seed={seed}", save_student=lambda self, student, folder, record: None), overwrite=seed == 2
        )
        record = json.loads((tmp_path / "out" / "model" / "kdplug-run.json").read_text())
        assert record["seed"] == seed


def test_a_task_may_not_read_from_the_folder_of_its_own_student(offering, tmp_path):
    def init(self, *, teacher: str = ""):
        pass

    teacher = tmp_path / "out" / "model"
    teacher.mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"task\.teacher: .* is the folder to which this run writes its student"):
        run_recipe(offering(f"task={{name: signs, teacher: {teacher}}}", __init__=init))
    assert teacher.exists()


def test_a_metric_of_which_less_is_better_says_so(offering):
    done = run_recipe(offering(is_lower_better=True))
    assert done.title == "accuracy (lower is better)"
    assert done.to_data()["is_lower_better"] is True


def test_throughput_is_counted_in_what_the_task_counts(offering):
    done = run_recipe(offering(unit="signs", count=lambda self, batch: 4 * len(batch[0])))
    assert done.unit == "signs"
    figures = done.teacher.figures
    assert figures.units_per_second == pytest.approx(4 / figures.seconds_per_example)


def test_throughput_is_that_of_a_whole_answer(offering):
    asked = []

    def answer(self, model, batch):
        asked.append((model.training, torch.is_grad_enabled()))
        return model(*batch)

    run_recipe(offering(answer=answer))
    assert set(asked) == {(False, False)}


def test_batches_that_a_task_makes_again_are_made_of_the_student_as_it_is(offering, tmp_path):
    seen = []

    def prepare_batch(self, batch, student):
        seen.append((student.training, torch.is_grad_enabled(), student.weight[0, 0].item()))
        return (batch[0] + 1,) if len(seen) % 2 else batch

    done = run_recipe(offering("controls=[]", prepares_batches=True, prepare_batch=prepare_batch))
    assert {state[:2] for state in seen} == {(False, False)}
    assert len({state[2] for state in seen}) == len(seen) == done.made.batches
    assert done.made.generated == (len(seen) + 1) // 2
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["batches_generated"] == done.made._asdict()


def test_both_models_are_shown_what_was_made(offering):
    shown = []
    adaptor = kdplug.tasks.load("signs").student_adaptor

    def teacher_adaptor(self, batch, outputs):
        shown.append(batch[0].unique().tolist())
        return {"logits": outputs}

    run_recipe(
        offering(
            prepares_batches=True,
            prepare_batch=lambda self, batch, student: (torch.full_like(batch[0], 3.0),),
            teacher_adaptor=teacher_adaptor,
            student_adaptor=lambda self, batch, outputs: shown.append(None) or adaptor(self, batch, outputs),
        )
    )
    assert [3.0] in shown
    assert all(one in (None, [3.0]) for one in shown)


@pytest.mark.parametrize("go", [run_recipe, plan_recipe])
def test_batches_that_are_made_on_the_way_go_with_no_cache(offering, go):
    made = offering("distillation.is_caching_logits=true", prepares_batches=True, prepare_batch=lambda *_: None)
    with pytest.raises(ConfigError, match=r"is_caching_logits: task '.*signs' generates batches with the student"):
        go(made)


def test_a_task_that_makes_no_batches_just_now_goes_with_a_cache(offering):
    done = run_recipe(offering("distillation.is_caching_logits=true", prepares_batches=False, prepare_batch=None))
    assert done.made is None


@pytest.mark.parametrize("go", [run_recipe, plan_recipe])
def test_two_vocabularies_go_with_no_loss_that_compares_class_by_class(offering, go):
    with pytest.raises(
        ConfigError, match=r"^distillation\.kd_loss_type: local:soft compares class by class, .*: 7 tokens and 9\. "
    ):
        go(offering(vocabulary_difference="7 tokens and 9"))


@kdplug.across_vocabularies
def certainty(student_logits, teacher_logits):
    return (student_logits.softmax(-1).amax(-1) - teacher_logits.softmax(-1).amax(-1)).square().mean()


def penalty(student_parameters):
    return student_parameters[":parameter.weight"].square().mean()


@pytest.mark.parametrize(
    "changes",
    [
        ("distillation.kd_loss_weight=0", "distillation.hard_label_weight=1"),
        ("distillation.kd_loss_type=certainty",),
        ("distillation={terms: [{loss: penalty, reads_S: [':parameter.weight']}, {loss: certainty}]}",),
    ],
)
def test_what_compares_no_classes_goes_with_two_vocabularies(offering, changes):
    kdplug.losses.register("certainty")(certainty)
    kdplug.losses.register("penalty")(penalty)
    run_recipe(offering(*changes, vocabulary_difference="7 tokens and 9"))


def test_one_vocabulary_goes_with_any_loss(offering):
    run_recipe(offering(vocabulary_difference=""))
