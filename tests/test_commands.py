"""Every command of README and docs/ is run as it is written, in a folder where what it names is there.

Where it cannot be, `LEFT_OUT` says why. Commands do not need one another: each has a copy of the folder of its own.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from sccam import cli
from sccam.artifacts import RunFolder
from sccam.data.folder import read_folder
from sccam.data.sample import draw_sample
from sccam.labels.convert import convert
from tests.test_docs import PAGES, commands

IMAGES = 12
LEFT_OUT = {  # a regular expression that fits a command -> why it is not run
    r"--engine(?! ray)|--device cuda": "needs a GPU; tests/gpu and tests/export run what can be run without",
    r"s3://": "needs an object store; tests/runtime/test_stored.py has stores in memory and over HTTP",
    r"--precision int8": "needs 100 images; tests/export has cases of it",
    r"^sccam bench": "takes minutes; tests/bench runs every suite on small inputs",
    r"^sccam plan": "takes minutes; tests/test_forecast.py does it on small networks",
    r"^sccam ablate": "takes hours; tests/test_ablate.py runs small plans",
    r"^sccam weights import|=resnet38\.safetensors": "needs a file of other authors; tests/nets makes such files",
    r"\b(RUN|DIR|PHOTOS|TAGS|MACHINE)\b|/new/place": "has a placeholder",
}
PREPARED = (  # run once, in this order: the others need what they leave
    "sccam data split photos",
    "sccam train photos -c photos --tensorboard",
    "sccam export runs/photos --triton models/",
    "sccam infer runs/photos photos/new -o masks",
)
CONTAINED = (  # in those, or in others that are run
    "sccam train photos -c photos",
    "sccam export runs/photos",
    "sccam export runs/photos --network segmenter --labels",
)
LISTS = ("train.txt", "val.txt")


def every_command() -> list[str]:
    lines = [line for page in PAGES for line in commands(page.read_text(encoding="utf-8"))]
    return list(dict.fromkeys(line.partition(" #")[0].strip() for line in lines))


def why_not(command: str) -> str:
    return next((why for pattern, why in LEFT_OUT.items() if re.search(pattern, command)), "")


TO_RUN = [command for command in every_command() if not why_not(command)]


def run(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a command in a folder, in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", shlex.split(command))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def photographs(folder: Path, count: int, seed: int) -> None:
    """A drawn set as JPEG files, each scene twice, half of them in a folder below: 12_1, 12_2, shelf/13_1, ..."""
    draw_sample(folder, images=count, seed=seed, sizes=(64, 96))
    tags = (folder / "tags.csv").read_text()
    for n, path in enumerate(sorted((folder / "images").iterdir())):
        name = f"{'shelf/' * (n >= count // 2)}{12 + n // 2}_{n % 2 + 1}"
        for part in ("images", "masks"):
            (folder / part / name).parent.mkdir(exist_ok=True)
        Image.open(path).save(folder / f"images/{name}.jpg", quality=95)
        path.unlink()
        (folder / f"masks/{path.stem}.png").rename(folder / f"masks/{name}.png")
        tags = tags.replace(f"{path.name},", f"{name}.jpg,")
    (folder / "tags.csv").write_text(tags)
    for name in (*LISTS, "looks.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "parts")


@pytest.fixture(scope="module", autouse=True)
def one_worker() -> Iterator[None]:
    """A run has no worker processes: each takes seconds to begin, many times a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sccam.training.context.worker_count", lambda *_: 1)
        yield


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, labels in all formats, a trained run and its files, under the names that the pages use."""
    root = tmp_path_factory.mktemp("commands")
    photos, other = root / "photos", root / "other"
    photographs(photos, IMAGES, seed=0)
    photographs(other, 10, seed=1)
    for name in ("photos/new", "photos/more", "new", "phone", "raw", "train2017"):
        shutil.copytree(other / "images", root / name)
    shutil.copyfile(other / "tags.csv", root / "photos/more.csv")
    shutil.copyfile(other / "tags.csv", root / "labels.csv")
    shutil.copyfile(photos / "classes.txt", root / "classes.txt")
    (root / "shards").mkdir()
    for n, path in enumerate(sorted((root / "new").rglob("*.jpg"))[:2]):
        with tarfile.open(root / f"shards/photos-{n:03d}.tar", "w") as tar:
            tar.add(path, path.name)
    (root / "list.txt").write_text("".join(f"{path}\n" for path in sorted((root / "new").rglob("*.jpg"))))
    with pytest.MonkeyPatch.context() as patch:
        for command in PREPARED:
            assert run(command, root, patch) == 0, command
    assert not RunFolder(root / "runs/photos").foreign()
    for path in (root / "runs/photos/export").glob("segmenter.onnx*"):
        shutil.copyfile(path, root / path.name)
    shutil.copytree(root / "runs/photos", root / "runs/VOC2012")

    for name, to in (("instances_train.json", "coco"), ("export.json", "labelstudio"), ("devkit", "voc")):
        convert(other / "masks", root / name, to, classes=other / "classes.txt", images=other / "images")
    content = json.loads((root / "instances_train.json").read_text())
    half = len(content["images"]) // 2
    for name, images in (("instances_val", content["images"][:half]), ("instances_train", content["images"][half:])):
        (root / f"{name}.json").write_text(json.dumps({**content, "images": images, "annotations": [
            annotation for annotation in content["annotations"]
            if annotation["image_id"] in {image["id"] for image in images}
        ]}))  # fmt: skip
    shutil.copytree(other / "images", root / "devkit/JPEGImages")
    (root / "devkit/Annotations").mkdir()
    tagged = read_folder(other, lists=False).train
    for id, row in zip(tagged.ids, tagged.labels.present, strict=True):
        names = [name for name, there in zip(tagged.classes, row, strict=True) if there]
        objects = "".join(f"<object><name>{name}</name></object>" for name in names)
        (root / f"devkit/Annotations/{id}.xml").parent.mkdir(exist_ok=True)
        (root / f"devkit/Annotations/{id}.xml").write_text(f"<annotation>{objects}</annotation>")
        (root / "by-class" / names[0]).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(other / f"images/{id}.jpg", root / f"by-class/{names[0]}/{Path(id).name}.jpg")
    return root


def without_outputs(command: str, folder: Path) -> None:
    """Removes what the command would find of itself."""
    words = shlex.split(command)
    if words[1:3] == ["data", "split"]:
        for name in LISTS:
            (folder / "photos" / name).unlink(missing_ok=True)
    if words[1] == "infer":
        shutil.rmtree(folder / "masks")
    if words[1:3] == ["data", "import"]:
        shutil.rmtree(folder / "photos")
    if words[1] == "train":
        shutil.rmtree(folder / "runs")


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in TO_RUN if command not in PREPARED + CONTAINED])
def test_a_command_of_the_pages_runs(
    command: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "here"
    shutil.copytree(prepared, folder)
    without_outputs(command, folder)
    code = run(command, folder, monkeypatch)
    assert code == 0, capsys.readouterr().err


def test_what_is_prepared_is_on_the_pages():
    assert set(PREPARED + CONTAINED) <= set(TO_RUN)


def test_most_commands_are_run_and_every_reason_is_needed():
    found = every_command()
    assert len(TO_RUN) > len(found) / 2
    assert all(any(re.search(pattern, command) for command in found) for pattern in LEFT_OUT)
