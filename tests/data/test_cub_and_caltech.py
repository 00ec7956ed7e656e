import pytest

from perdure.data import caltech101, cub200, lists
from perdure.errors import DataError

BIRDS = lists.load("class_names.json")["cub200"]
THINGS = lists.load("class_names.json")["caltech101"]


@pytest.fixture
def cub(tmp_path):
    """One training and one test image of each of the 200 species."""
    root = tmp_path / "CUB_200_2011"
    rows = []
    for label, bird in enumerate(BIRDS):
        folder = f"{label + 1:03d}.{bird}"
        (root / "images" / folder).mkdir(parents=True)
        for k in range(2):
            (root / "images" / folder / f"{bird}_{k}.jpg").write_bytes(b"x")
            rows.append((len(rows) + 1, f"{folder}/{bird}_{k}.jpg", label + 1, k % 2))
    (root / "images.txt").write_text("".join(f"{i} {path}\n" for i, path, _, _ in rows))
    (root / "image_class_labels.txt").write_text("".join(f"{i} {label}\n" for i, _, label, _ in rows))
    (root / "train_test_split.txt").write_text("".join(f"{i} {train}\n" for i, _, _, train in rows))
    return root


def test_cub_joins_its_tables_and_counts_labels_from_0(cub):
    data = cub200.read(cub200.Config(root=cub.parent))
    assert data.train.targets == data.test.targets == list(range(200))
    assert data.candidates[0] == "Black_footed_Albatross"
    assert data.train[0].id == "images/001.Black_footed_Albatross/Black_footed_Albatross_1.jpg"  # split 1 = train
    assert data.train[0].inputs["image"].is_file()
    assert cub200.read(cub200.Config(root=cub)).facts == data.facts


def replaced(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda r: (r / "images.txt").unlink(), "images.txt: this file is missing"),
        (lambda r: replaced(r / "train_test_split.txt", "400 1\n", ""), "disagree on 1 image ids, first: 400"),
        (lambda r: replaced(r / "image_class_labels.txt", "\n2 1\n", "\n2 2\n"), "folder 001.* for class 2"),
        (lambda r: replaced(r / "image_class_labels.txt", "\n2 1\n", "\n2 201\n"), "a number from 1 to 200"),
        (lambda r: replaced(r / "image_class_labels.txt", "\n2 1\n", "\n1 1\n"), "image 1 for the second time"),
        (lambda r: replaced(r / "images.txt", "_0.jpg", "_9.jpg"), r"_9.jpg is missing"),
        (lambda r: replaced(r / "images.txt", "3 002", "3002"), "images.txt:3: .*Expected `id value`"),
    ],
)
def test_cub_names_what_is_wrong(cub, spoil, said):
    spoil(cub)
    with pytest.raises(DataError, match=said):
        cub200.read(cub200.Config(root=cub))


@pytest.fixture
def caltech(tmp_path):
    """Four images of each class, with the capitals of the archive, and the background."""
    root = tmp_path / "101_ObjectCategories"
    capitals = {"faces": "Faces", "faces_easy": "Faces_easy", "leopards": "Leopards", "motorbikes": "Motorbikes"}
    for name in [*THINGS, "BACKGROUND_Google"]:
        (root / capitals.get(name, name)).mkdir(parents=True)
        for k in range(4):
            (root / capitals.get(name, name) / f"image_{k:04d}.jpg").write_bytes(b"x")
    return root


def test_caltech_matches_folders_to_names_and_leaves_the_background_out(caltech):
    data = caltech101.read(caltech101.Config(root=caltech.parent, test_share=0.25))
    assert data.candidates == tuple(THINGS)
    assert (len(data.train), len(data.test)) == (303, 101)
    faces = THINGS.index("faces")
    assert {e.target for e in data.train if e.id.startswith("Faces/")} == {faces}


def test_caltech_with_100_classes_has_no_faces_easy(caltech):
    data = caltech101.read(caltech101.Config(root=caltech, classes="100"))
    assert len(data.candidates) == 100 and "faces_easy" not in data.candidates


def test_caltech_names_a_misspelt_folder(caltech):
    (caltech / "water_lilly").rename(caltech / "water_lily")
    with pytest.raises(DataError, match=r"missing: water_lilly \(nearest: water_lily\)"):
        caltech101.read(caltech101.Config(root=caltech))
