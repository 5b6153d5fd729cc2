"""The index on disk: what it survives, and what it raises for folders that it cannot use."""

import json
import os
import pickle
import re
import resource
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from dissim_retrieval import DissimilarityHead, DissimilarityIndex
from dissim_retrieval.index import BackboneWeights, lance_store
from index_killing import error_in_a_process, kill_at_random_moments
from index_threads import search_while_writing


@pytest.fixture
def head():
    head = DissimilarityHead(8, sign="free")
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    return head


@pytest.fixture
def rows():
    return torch.randn(60, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def path(tmp_path, head, rows):
    """An index with three fragments, two of them with deleted rows."""
    index = DissimilarityIndex.create(tmp_path / "index", head)
    for first in (0, 20, 40):
        ids = [f"photo {n}" for n in range(first, first + 20)]
        index.add(rows[first : first + 20], ids, {"number": range(first, first + 20)})
    index.remove(["photo 3", "photo 25"])
    return tmp_path / "index"


def equal(first, second):
    return torch.equal(first.scores, second.scores) and first.ids.tolist() == second.ids.tolist()


def test_save_and_open(tmp_path, head, rows):
    index = DissimilarityIndex(head, provenance={"model": "abc"}, backbone=BackboneWeights("small", {"w": rows}))
    index.add(rows, metadata={"number": range(60)})
    index.remove([5])
    index.save(tmp_path / "new folder" / "index")
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["index"]
    opened = DissimilarityIndex.open(tmp_path / "new folder" / "index", verify=True)
    assert equal(opened.search(rows, 5), index.search(rows, 5))
    assert opened.provenance == index.provenance and opened.backbone.name == "small"
    assert torch.equal(opened.backbone.state["w"], rows)
    opened.save(tmp_path / "copy")
    assert equal(DissimilarityIndex.open(tmp_path / "copy").search(rows, 5), index.search(rows, 5))
    with pytest.raises(FileExistsError, match=r"path: expected a new path, got .*copy, which exists"):
        opened.save(tmp_path / "copy")
    DissimilarityIndex(head).save(tmp_path / "empty")
    assert len(DissimilarityIndex.open(tmp_path / "empty", verify=True)) == 0


def test_provenance_is_what_json_makes_of_it(tmp_path, head, rows):
    facts = {"names": {1: "a", 2: "b", 10: "c"}, "size": (8, 4)}
    index = DissimilarityIndex(head, provenance=facts)
    index.save(tmp_path / "saved")
    DissimilarityIndex.create(tmp_path / "made", head, provenance=facts)
    for name in ("saved", "made"):
        opened = DissimilarityIndex.open(tmp_path / name)
        assert opened.provenance == index.provenance == {"names": {"1": "a", "2": "b", "10": "c"}, "size": [8, 4]}
    for wrong, got in (({"root": Path("x")}, "one that does not: .*Path"), ([1], "got list")):
        for make in (DissimilarityIndex, lambda *a, **b: DissimilarityIndex.create(tmp_path / "wrong", *a, **b)):
            with pytest.raises(TypeError, match=rf"provenance: expected a dict.* {got}"):
                make(head, provenance=wrong)
    assert not (tmp_path / "wrong").exists()


def test_rows_that_are_looked_up_keep_no_others_in_memory(path, rows, monkeypatch):
    looked_up = []
    stack = torch.stack
    monkeypatch.setattr(torch, "stack", lambda found: looked_up.extend(found) or stack(found))
    found = DissimilarityIndex.open(path, in_memory=False).get(["photo 5", "photo 1"])
    np.testing.assert_allclose(found.embeddings, DissimilarityIndex.open(path).get(["photo 5", "photo 1"]).embeddings)
    assert [row.untyped_storage().nbytes() for row in looked_up] == [8 * 4] * 2


@pytest.mark.parametrize("name", ["file:g.rel", "memory:x", "s3:x", "index"])
def test_relative_names_are_folders_wherever_the_process_is(tmp_path, head, rows, name, monkeypatch):
    """Lance alone would take what is before the colon for a kind of storage, and write elsewhere or nowhere."""
    monkeypatch.chdir(tmp_path)
    index = DissimilarityIndex.create(name, head)
    index.add(rows, metadata={"number": range(60)})
    assert [file.name for file in tmp_path.iterdir()] == [name] and list(tmp_path.joinpath(name).glob("rows/data/*"))
    assert len(DissimilarityIndex.open(name, verify=True)) == 60
    index.save(f"{name}.copy")
    assert len(DissimilarityIndex.open(f"{name}.copy", verify=True)) == 60
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    index.add(rows[:1], [99])
    index.refresh()
    assert index.ids("number IS NULL").tolist() == [99] and not list(Path().iterdir())


def test_a_folder_that_was_made_meanwhile_is_not_replaced(tmp_path, head, rows, monkeypatch):
    index = DissimilarityIndex(head)
    index.add(rows)
    first = DissimilarityIndex(head)
    first.add(rows[:5])
    write_all = lance_store.LanceStore.write_all

    def slow(store, tables):
        monkeypatch.undo()
        first.save(tmp_path / "index")
        write_all(store, tables)

    monkeypatch.setattr(lance_store.LanceStore, "write_all", slow)
    with pytest.raises(FileExistsError, match=r"path: expected a new path, got .*index, which exists"):
        index.save(tmp_path / "index")
    assert len(DissimilarityIndex.open(tmp_path / "index")) == 5
    assert [file.name for file in tmp_path.iterdir()] == ["index"]


def test_create_leaves_nothing_if_it_fails(tmp_path, head):
    with pytest.raises(TypeError):
        DissimilarityIndex.create(tmp_path / "index", head, provenance={"model": object()})
    assert list(tmp_path.iterdir()) == []


def test_files_have_the_mode_of_the_umask(tmp_path, head, rows):
    before = os.umask(0o027)
    try:
        DissimilarityIndex.create(tmp_path / "index", head).add(rows)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "index").rglob("*") if path.is_file()}
    assert modes == {0o640}


def test_a_reader_stays_on_its_version_until_refresh(path, rows):
    reader, streaming = DissimilarityIndex.open(path), DissimilarityIndex.open(path, in_memory=False)
    before = reader.search(rows, 10, filter="number > 4"), reader.search(rows, 10)
    writer = DissimilarityIndex.open(path)
    writer.remove([f"photo {n}" for n in range(30, 60)])
    writer.update(rows[:1], ["photo 20"])
    writer.optimize()
    writer.add(rows[30:40], [f"again {n}" for n in range(10)])
    for index in (reader, streaming):
        assert len(index) == 58
        assert equal(index.search(rows, 10, filter="number > 4"), before[0])
        assert equal(index.search(rows, 10), before[1])
        index.refresh()
        assert len(index) == 38 and index.version == writer.version
        assert equal(index.search(rows, 10), writer.search(rows, 10))


def test_refresh_reads_only_what_is_new(path, rows, monkeypatch):
    reader = DissimilarityIndex.open(path)
    DissimilarityIndex.open(path).add(rows[:4], list("abcd"))
    DissimilarityIndex.open(path).remove(["photo 30"])
    read, all_rows = [], lance_store.LanceStore._all_rows
    monkeypatch.setattr(
        lance_store.LanceStore, "_all_rows", lambda store, *which: read.append(which) or all_rows(store, *which)
    )
    reader.refresh()
    assert len(read) == 1 and len(reader) == 61


def test_a_search_that_began_before_a_compaction_still_filters_its_own_version(tmp_path, head, rows):
    index = DissimilarityIndex.create(tmp_path / "index", head)
    for row in rows[:3]:
        index.add(row[None])
    before = index._snapshot  # what a search in another thread has
    index.optimize()
    assert before.handle.version == before.version < index.version
    found = index._store.select(before, "id > 0", [])
    assert before.positions(found.column("_sequence").to_numpy()).tolist() == [1, 2]


def test_refresh_writes_nothing(path, rows):
    reader, writer = DissimilarityIndex.open(path), DissimilarityIndex.open(path)
    for number in range(17):
        writer.add(rows[:1], [f"small {number}"])
    before = set(path.rglob("*"))
    reader.refresh()
    assert set(path.rglob("*")) == before and reader.version == writer.version


def test_an_index_that_was_replaced_is_neither_read_nor_written(path, tmp_path, head, rows):
    """The other index has the same number of versions, and ids that the first one has not."""
    index = DissimilarityIndex.open(path)
    shutil.rmtree(path)
    other = DissimilarityIndex.create(path, head)
    for part in rows[:40].split(10):
        other.add(part, [f"other {len(other) + n}" for n in range(10)])
    assert other.version == index.version
    for call in (
        index.refresh,
        index.optimize,
        lambda: index.add(rows[:1], ["other 3"]),
        lambda: index.update(rows[:1], ["photo 0"]),
        lambda: index.remove(["photo 0"]),
        lambda: index.save(tmp_path / "copy"),
        lambda: index.backbone,
    ):
        with pytest.raises(OSError, match=r"path: .*index was replaced by another index, or removed\. Open it again"):
            call()
    other.refresh()
    other.verify()
    assert len(other) == 40 and not (tmp_path / "copy").exists()
    shutil.rmtree(path)
    with pytest.raises(OSError, match="or removed"):
        other.add(rows[:1], ["x"])
    assert not path.exists()


def test_a_removed_version_is_named(path, rows, monkeypatch):
    monkeypatch.setattr(lance_store, "KEPT", lance_store.timedelta(microseconds=1))
    reader, writer = DissimilarityIndex.open(path), DissimilarityIndex.open(path)
    writer.optimize()
    writer.add(rows[:1], ["new"])
    writer.optimize()
    assert len(reader.search(rows, 3).ids) == 60  # its rows are in memory
    with pytest.raises(OSError, match=r"path: a file of .* Old versions are deleted: call refresh\(\)"):
        reader.search(rows, 3, filter="number < 9")
    reader.refresh()
    reader.search(rows, 3, filter="number < 9")


def test_writers_of_several_threads_and_objects_lose_nothing(tmp_path, head, rows):
    DissimilarityIndex.create(tmp_path / "index", head)

    def write(number):
        index = DissimilarityIndex.open(tmp_path / "index")
        for step in range(8):
            index.add(rows[:3], [f"{number}-{step}-{n}" for n in range(3)])
        index.remove([f"{number}-{step}-0" for step in range(8)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    index = DissimilarityIndex.open(tmp_path / "index", verify=True)
    assert len(index) == 4 * 8 * 2
    index.get([f"{number}-{step}-{n}" for number in range(4) for step in range(8) for n in (1, 2)])


def test_a_second_writer_waits_and_then_raises(path, rows, monkeypatch):
    monkeypatch.setattr(lance_store, "LOCK_SECONDS", 0.2)
    first, second = DissimilarityIndex.open(path), DissimilarityIndex.open(path)
    with first._store.writing():
        for write in (lambda: second.add(rows[:1], ["x"]), lambda: second.remove(["photo 1"]), second.optimize):
            with pytest.raises(TimeoutError, match=r"path: another writer has been at .*index for 0.2 s"):
                write()
        second.search(rows, 3)
    second.add(rows[:1], ["x"])


@pytest.mark.parametrize("on_disk", [False, True])
def test_threads_search_while_one_writes(tmp_path, on_disk):
    search_while_writing(tmp_path / "index" if on_disk else None, seconds=2, threads=3)


@pytest.mark.parametrize("options", [{}, {"quantized": True}, {"clustered": True}])
def test_killed_writers_lose_nothing_that_was_acknowledged(tmp_path, options):
    assert kill_at_random_moments(tmp_path / "index", kills=4, **options) > 4


def test_opening_writes_nothing_and_writing_to_a_read_only_folder_raises(path, rows, monkeypatch):
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    index = DissimilarityIndex.open(path, verify=True)
    index.search(rows, 3, filter="number > 3")
    index.save(path.parent / "copy")
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before
    with tempfile.TemporaryDirectory() as folder:  # that another user can read
        Path(folder).chmod(0o755)
        shutil.copytree(path, Path(folder, "index"))
        Path(folder, "index").chmod(0o555)
        error = error_in_a_process(add_to_read_only_folder, Path(folder, "index"))
    assert re.fullmatch(r"PermissionError: path: \S+/index cannot be written: .*", error)


def add_to_read_only_folder(path):
    index = DissimilarityIndex.open(path)
    if os.geteuid() == 0:  # whom permissions do not stop
        os.setuid(65534)
    index.add(torch.ones(1, 8), ["x"])


def limited_add(path):
    """Add rows that do not fit into the largest file that this process may write."""
    index = DissimilarityIndex.open(path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    index.add(torch.randn(20_000, 8), [f"large {n}" for n in range(20_000)])


def test_a_full_disk_loses_nothing(path, rows):
    before = DissimilarityIndex.open(path).search(rows, 5)
    error = error_in_a_process(limited_add, path)
    assert re.match(r"OSError: path: .* cannot be written: .*too large", error)
    index = DissimilarityIndex.open(path, verify=True)
    assert len(index) == 58 and equal(index.search(rows, 5), before)
    index.add(rows[:1], ["x"])


def damage(file, change):
    data = bytearray(file.read_bytes())
    if change == "truncate":
        data = data[: len(data) // 2]
    elif change == "empty":
        data = bytearray()
    else:
        data[len(data) // 3] ^= 1 << 4
    file.write_bytes(data)


@pytest.mark.parametrize("change", ["truncate", "empty", "flip a bit"])
@pytest.mark.parametrize(
    "name", ["index.json", "head.safetensors", "rows/data/*.lance", "rows/_versions/1*.manifest"]
)
def test_damaged_files_are_found(path, name, change):
    file = max(path.glob(name), key=lambda file: (file.stat().st_mtime_ns, file.name))
    damage(file, change)
    with pytest.raises(ValueError, match=rf"path: .*{path.name}.* damaged") as caught:
        DissimilarityIndex.open(path, verify=True)
    assert "\n" not in str(caught.value)


def test_every_changed_row_is_found_by_verify(path):
    contents = {file: file.read_bytes() for file in path.glob("rows/data/*.lance")}
    for name in ("photo 0", "photo 27", "photo 59"):
        row = DissimilarityIndex.open(path).get([name]).embeddings.numpy().tobytes()
        file, data = next((file, data) for file, data in contents.items() if row in data)
        at = data.index(row) + 5
        file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(ValueError, match=f"1 rows differ from their checksums, the first with id '{name}'"):
            DissimilarityIndex.open(path).verify()
        file.write_bytes(data)


def test_missing_files_are_named(path):
    (path / "head.safetensors").unlink()
    with pytest.raises(ValueError, match=r"damaged: head.safetensors is missing"):
        DissimilarityIndex.open(path)


def test_missing_rows_are_named(path):
    shutil.rmtree(path / "rows" / "data")
    with pytest.raises(OSError, match=r"path: a file of .* cannot be read: .*\.lance.* restore it from a copy"):
        DissimilarityIndex.open(path)


def test_other_formats_raise(path, tmp_path):
    record = json.loads((path / "index.json").read_text())
    for change, message in (
        ({"version": 3}, "path: expected an index of format version 2, got 3 in .* Install the release"),
        ({"format": "other"}, "whose index.json is of another kind"),
        ({"dim": 9}, "is damaged: index.json differs from its checksum"),
        ({"dtype": "float64"}, "is damaged: index.json differs from its checksum"),
    ):
        (path / "index.json").write_text(json.dumps(record | change))
        with pytest.raises(ValueError, match=message):
            DissimilarityIndex.open(path)
    with pytest.raises(FileNotFoundError, match=r"path: expected a folder written by .*, which does not exist"):
        DissimilarityIndex.open(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"without index.json. Indexes of earlier formats must be made again"):
        DissimilarityIndex.open(tmp_path / "folder")


class Harmful:
    def __reduce__(self):
        return (print, ("code from the file has run",))


def test_files_of_other_kinds_raise_and_run_no_code(path, tmp_path, capsys):
    (tmp_path / "file").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(
        ValueError, match=r"expected a folder written by DissimilarityIndex\.create or save, got .* a file"
    ):
        DissimilarityIndex.open(tmp_path / "file")
    for name in ("index.json", "head.safetensors"):
        before = (path / name).read_bytes()
        torch.save({"x": Harmful()}, path / name)
        with pytest.raises(ValueError, match="is damaged"):
            DissimilarityIndex.open(path)
        (path / name).write_bytes(before)
    assert capsys.readouterr().out == ""


def test_an_absent_device_is_named(path):
    with pytest.raises(ValueError, match="device: expected a device of this machine, got cuda:97"):
        DissimilarityIndex.open(path, device="cuda:97")


def test_sync_waits_for_data_before_the_version_that_names_it(path, rows, monkeypatch):
    """A file is synced before a version that needs it is committed, and everything before the write returns."""
    index, events = DissimilarityIndex.open(path, sync=True), []
    fsync, commit = os.fsync, lance_store.LanceDataset.commit
    monkeypatch.setattr(
        os, "fsync", lambda number: events.append(os.readlink(f"/proc/self/fd/{number}")) or fsync(number)
    )
    monkeypatch.setattr(
        lance_store.LanceDataset,
        "commit",
        lambda *args, **options: events.append("commit") or commit(*args, **options),
    )
    for write in (
        lambda: index.add(rows[:2], ["a", "b"]),
        lambda: index.update(rows[:1], ["a"]),
        lambda: index.remove(["photo 50"]),
    ):
        before = set(path.rglob("*"))
        events.clear()
        write()
        new = {str(file) for file in set(path.rglob("*")) - before if file.is_file() and file.name != "write.lock"}
        at = events.index("commit")
        synced_before, synced_after = set(events[:at]), set(events[at:])
        needed = {file for file in new if "/data/" in file or "/_deletions/" in file}
        assert needed and needed <= synced_before
        assert {str(Path(file).parent) for file in needed} <= synced_before
        assert new - needed <= synced_after and str(path / "rows" / "_versions") in synced_after


def test_an_index_can_be_passed_to_a_spawned_process(path, rows):
    index = DissimilarityIndex.open(path)
    copy = pickle.loads(pickle.dumps(index))
    assert equal(copy.search(rows, 3), index.search(rows, 3))
    with pytest.raises(TypeError, match="index: expected an index on disk to pickle"):
        pickle.dumps(DissimilarityIndex(index.head))


def remove_in_a_fork(path):
    index, (reader, writer) = DissimilarityIndex.open(path), os.pipe()
    if os.fork() == 0:
        try:
            index.remove(["photo 1"])
        except RuntimeError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.wait()
    raise RuntimeError(os.read(reader, 1000).decode())


def test_a_forked_process_gets_an_error_instead_of_a_deadlock(path):
    error = error_in_a_process(remove_in_a_fork, path)
    assert error.startswith("RuntimeError: index: expected the process that opened it, got a fork of it")
