"""Codes and clusters stored beside the rows: they never change a result, and a file that cannot be used raises."""

import pickle
import resource
import zlib

import pytest
import torch
from dissim_retrieval import DissimilarityHead, DissimilarityIndex
from dissim_retrieval.index import lance_store, prepared_files, scan
from dissim_retrieval.index.preparation import Preparation
from safetensors.torch import load, save

#: Option of the index -> folder of its files
FOLDERS = {"quantized": "codes", "clustered": "clusters"}


@pytest.fixture(autouse=True)
def _small_segments_are_prepared(monkeypatch):
    monkeypatch.setattr(prepared_files, "FILE_MIN_ROWS", 1)
    monkeypatch.setattr(Preparation, "min_rows", 1)


@pytest.fixture(params=FOLDERS)
def option(request):
    return request.param


@pytest.fixture
def folder(option):
    return FOLDERS[option]


@pytest.fixture
def head():
    head = DissimilarityHead(8, sign="free")
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    return head


@pytest.fixture
def rows():
    return torch.randn(60, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def path(tmp_path, head, rows, option):
    """An index with files for three fragments, of 20 rows each."""
    index = DissimilarityIndex.create(tmp_path / "index", head, **{option: True})
    for first in (0, 20, 40):
        index.add(rows[first : first + 20], range(first, first + 20), {"number": range(first, first + 20)})
    return tmp_path / "index"


def files_of(path, folder):
    return sorted((path / folder).iterdir(), key=lambda file: file.stat().st_mtime_ns)


def mapped(index):
    """Which segments have codes before any search."""
    return [segment.vectors._prepared is not None for segment in index._snapshot.segments]


def equal_to_a_plain_search(path, rows, option, **changes):
    index, plain = DissimilarityIndex.open(path, **{option: True}), DissimilarityIndex.open(path)
    for condition in (None, "number < 30", "number < 2"):
        found, expected = (one.search(rows, 9, filter=condition) for one in (index, plain))
        assert torch.equal(found.scores, expected.scores) and torch.equal(found.ids, expected.ids)
    return index


def test_files_are_written_with_the_rows_and_mapped_when_the_index_is_opened(path, rows, option, folder):
    assert len(files_of(path, folder)) == 3
    index = DissimilarityIndex.open(path, verify=True, **{option: True})
    assert mapped(index) == [True] * 3
    index.update(rows[:2], [50, 5])  # the rows are not in the order of their numbers after that
    index.remove([3, 25, 26])
    assert mapped(index) == [True] * 4 and len(files_of(path, folder)) == 4
    assert mapped(equal_to_a_plain_search(path, rows, option)) == [True] * 4
    index.optimize()
    assert mapped(DissimilarityIndex.open(path, **{option: True})) == [True]
    assert mapped(equal_to_a_plain_search(path, rows, option)) == [True]
    assert mapped(pickle.loads(pickle.dumps(index))) == [True]
    index.save(path.parent / "copy")
    assert mapped(equal_to_a_plain_search(path.parent / "copy", rows, option)) == [True]


def test_most_rows_are_not_scored_and_the_result_is_the_same(tmp_path, option, monkeypatch):
    generator = torch.Generator().manual_seed(3)
    centers = torch.randn(40, 8, generator=generator)
    rows = (centers + 0.02 * torch.randn(100, 40, 8, generator=generator)).flatten(0, 1)
    index = DissimilarityIndex.create(tmp_path / "index", DissimilarityHead(8, sign="free"), **{option: True})
    index.add(rows, metadata={"number": range(4000)})
    index.remove(range(50, 4000, 7))
    scored = []

    def search(query, rows, *args, search=scan.fused_dissim_topk, **options):
        scored.append(search(query, rows, *args, **options, return_stats=True).rescored.double().mean().item())
        return search(query, rows, *args, **options)

    monkeypatch.setattr(scan, "fused_dissim_topk", search)
    for condition in (None, "number % 3 = 0"):
        found = index.search(centers, 4, filter=condition)
        assert scored[-1] < 1000
        expected = DissimilarityIndex.open(tmp_path / "index").search(centers, 4, filter=condition)
        assert torch.equal(found.scores, expected.scores) and torch.equal(found.ids, expected.ids)


def test_options_exclude_each_other(tmp_path, head, path):
    for make in (
        lambda **options: DissimilarityIndex(head, **options),
        lambda **options: DissimilarityIndex.create(tmp_path / "new", head, **options),
        lambda **options: DissimilarityIndex.open(path, **options),
    ):
        with pytest.raises(ValueError, match="clustered: expected False with quantized=True, got both"):
            make(quantized=True, clustered=True)
    assert not (tmp_path / "new").exists()
    for option in FOLDERS:
        with pytest.raises(ValueError, match=f"{option}: expected False with in_memory=False"):
            DissimilarityIndex.open(path, **{option: True}, in_memory=False)


def test_small_segments_have_no_file(path, rows, option, folder, monkeypatch):
    monkeypatch.setattr(prepared_files, "FILE_MIN_ROWS", 21)
    index = DissimilarityIndex.open(path, **{option: True})
    index.add(rows[:20], range(100, 120))
    assert len(files_of(path, folder)) == 3
    index.add(rows[:21], range(200, 221))
    assert len(files_of(path, folder)) == 4
    equal_to_a_plain_search(path, rows, option)


def test_missing_files_do_no_harm_and_are_written_by_optimize(path, rows, option, folder):
    files_of(path, folder)[1].unlink()
    DissimilarityIndex.open(path).add(rows[:20], range(100, 120))  # without a file
    index = equal_to_a_plain_search(path, rows, option)
    index.optimize()
    index.optimize()
    assert mapped(DissimilarityIndex.open(path, **{option: True})) == [True]
    for file in files_of(path, folder):
        file.unlink()
    index.optimize()  # there is nothing to merge
    assert len(files_of(path, folder)) == 1


def test_files_of_deleted_data_are_deleted(path, rows, option, folder, monkeypatch):
    monkeypatch.setattr(lance_store, "KEPT", lance_store.timedelta(microseconds=1))
    (path / folder / ".part.0.safetensors.0").write_bytes(b"a writer was killed here")
    reader = DissimilarityIndex.open(path, **{option: True})
    expected = reader.search(rows, 9)
    DissimilarityIndex.open(path).optimize()
    assert files_of(path, folder) == []
    assert torch.equal(reader.search(rows, 9).scores, expected.scores)
    equal_to_a_plain_search(path, rows, option)


def check_unusable(path, file, option, message):
    with pytest.raises(
        ValueError, match=rf"path: {file} is damaged: {message}.* Delete this file: optimize\(\)"
    ) as caught:
        DissimilarityIndex.open(path, **{option: True})
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="is damaged"):
        DissimilarityIndex.open(path, verify=True)


def test_damaged_files_are_found(path, option, folder):
    file = files_of(path, folder)[1]
    content = file.read_bytes()
    changes = [content[: len(content) // 2], b"", content + b"0"]
    for place in torch.randint(len(content), (40,), generator=torch.Generator().manual_seed(0)).tolist():
        changes.append(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
    for changed in changes:
        file.write_bytes(changed)
        check_unusable(path, file, option, "it differs from its checksum")
    assert len(DissimilarityIndex.open(path)) == 60
    file.unlink()
    DissimilarityIndex.open(path, verify=True, **{option: True})


def test_files_of_other_rows_weights_versions_and_shapes_raise(path, option, folder, rows):
    first, second, _ = files_of(path, folder)
    stem, data_file = second.name.split(".")[0], second.name.split(".")[0] + ".lance"
    tensors, own = load(second.read_bytes()), {"version": "1", "data_file": data_file, "rows": "20"}
    for changed, metadata, message in (
        (load(first.read_bytes()), own | {"data_file": first.name.split(".")[0] + ".lance"}, "expected a file of"),
        (tensors, own | {"version": "2"}, "expected a file of .*'version': '1'.* got one of .*'version': '2'"),
        (tensors, own | {"rows": "19"}, "expected a file of"),
        (tensors, None, "expected a file of"),
        (tensors | {"weight": tensors["weight"] + 1}, own, "it was made for other weights"),
        (tensors | {"weight": tensors["weight"][:7]}, own, "it was made for other weights"),
        (tensors | {"more": tensors["weight"].clone()}, own, "expected tensors"),
    ):
        content = save(changed, metadata)
        second.unlink()
        second = second.with_name(f"{stem}.{zlib.crc32(content):08x}.safetensors")
        second.write_bytes(content)
        check_unusable(path, second, option, message)


def test_a_file_of_another_dtype_raises(path, rows, option, folder):
    file = files_of(path, folder)[0]
    stem, tensors = file.name.split(".")[0], load(file.read_bytes())
    name = {"quantized": "error_bounds", "clustered": "order"}[option]
    tensors[name] = tensors[name].short()
    content = save(tensors, {"version": "1", "data_file": f"{stem}.lance", "rows": "20"})
    file.unlink()
    file.with_name(f"{stem}.{zlib.crc32(content):08x}.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=rf"\w+\.{name}: expected torch.int\d+ .*got torch.int16"):
        DissimilarityIndex.open(path, **{option: True}).search(rows, 3)


def test_other_weights_of_the_head_are_not_written(path, rows, option, folder):
    index = DissimilarityIndex.open(path, **{option: True})
    with torch.no_grad():
        index.head.weight.neg_()
    index.add(rows[:20], range(100, 120))
    index.optimize()
    plain = DissimilarityIndex.open(path)
    plain.head.load_state_dict(index.head.state_dict())
    assert torch.equal(index.search(rows, 5).scores, plain.search(rows, 5).scores)
    assert mapped(equal_to_a_plain_search(path, rows, option)) == [True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_ranked_by_float32_scores_of_the_stored_rows(tmp_path, head, rows, dtype, option):
    gallery = torch.cat(
        [rows + 1e-3 * step for step in range(8)]
    )  # with scores that half precision cannot tell apart
    index = DissimilarityIndex.create(tmp_path / "half", head.to(dtype), **{option: True})
    index.add(gallery)
    index = DissimilarityIndex.open(tmp_path / "half", **{option: True})
    stored, exact = index.get(range(len(gallery))).embeddings.float(), DissimilarityHead(8, normalize=False)
    exact.load_state_dict({name: tensor.float() for name, tensor in head.state_dict().items()})
    query = head.transform(rows[:5]).to(dtype)
    found, expected = index.search(rows[:5], 3), exact(query.float(), stored).detach().topk(3)
    torch.testing.assert_close(found.scores, expected.values)
    scores = exact(query.float(), stored).detach().gather(1, found.ids)
    torch.testing.assert_close(scores, expected.values)


def test_a_file_that_cannot_be_written_leaves_the_index_as_it_was(path, rows, option, folder):
    for file in files_of(path, folder):
        file.unlink()
    (path / folder).rmdir()
    (path / folder).write_text("a file in the place of the folder")
    index = DissimilarityIndex.open(path, **{option: True})
    version = index.version
    with pytest.raises(OSError, match=r"path: .*index cannot be written"):
        index.add(rows[:20], range(100, 120))
    assert DissimilarityIndex.open(path).version == index.version == version
    (path / folder).unlink()
    index.add(rows[:20], range(100, 120))
    assert len(files_of(path, folder)) == 1


def test_a_full_disk_leaves_no_part_of_a_file(path, rows, option, folder):
    DissimilarityIndex.open(path).optimize()  # without a file
    for file in files_of(path, folder):
        file.unlink()
    index, limits = DissimilarityIndex.open(path, **{option: True}), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))  # the largest file that this process may write
    try:
        with pytest.raises(OSError, match=r"path: .* cannot be written: .*too large"):
            index.optimize()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files_of(path, folder) == []
    equal_to_a_plain_search(path, rows, option)
