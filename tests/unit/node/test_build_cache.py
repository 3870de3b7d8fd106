"""The build cache over folders of the host: what hits, what misses, who waits, what goes wrong."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.hostfs.trees import FailingTree, tree_of

from retort.core.console import Console, Stream
from retort.core.limits import Usage
from retort.core.run import Outcome, RunLimits, StepResult
from retort.errors import SandboxFault
from retort.hostfs.folders import FolderTree
from retort.hostfs.snapshot import TreeLimits
from retort.node.build_cache import Build, BuildCache, CacheSettings, SessionBuilds, Surroundings
from retort.node.build_store import BuildStore, PackWriter

NO_LIMITS = RunLimits()
DONE = StepResult(Outcome.EXITED, 0, usage=Usage(user_us=5))


class Toolchain:
    """Programs of a host that can be replaced."""

    version = b"gcc 12"

    def identity(self) -> bytes:
        return self.version


class Session:
    """A session whose files lie in a folder, and whose builds are functions."""

    def __init__(self, cache: BuildCache, folder: Path, owner: str, facts: Any) -> None:
        folder.mkdir()
        self.folder = folder
        self.fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self.uploads: int | None = 0
        self.left: str | None = None
        self.tree: Any = FolderTree(self.fd)
        self.cache = cache
        self.surroundings = Surroundings(owner, facts)

    @property
    def builds(self) -> SessionBuilds:
        return SessionBuilds(
            self.cache,
            self.tree,
            lambda: self.surroundings,
            lambda: self.uploads,
            lambda: self.left,
        )

    def upload(self, **files: str) -> None:
        for name, content in files.items():
            (self.folder / name).write_text(content)
            os.utime(self.folder / name, (1000, 1000))

    async def look(self, *argv: str, limits: RunLimits = NO_LIMITS) -> Build:
        return await self.builds.look(argv or ("make",), limits, is_alone=True)

    async def run(
        self,
        work: Callable[[Path], object],
        *argv: str,
        result: StepResult = DONE,
        text: bytes = b"",
        is_pure: bool = True,
        is_valid: bool = True,
    ) -> StepResult:
        """Build with the cache."""
        build = await self.look(*argv)
        if build.hit is not None:
            return build.hit
        console = Console(1000)
        build.recording = console.record()
        console.feed(Stream.STDOUT, text)
        work(self.folder)
        return await self.builds.keep(build, result, is_pure=is_pure, is_valid=lambda: is_valid)


class World:
    """One node with its cache, and sessions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.toolchain = Toolchain()
        self.sessions: list[Session] = []
        self.cache = self.make()

    def make(self, **settings: Any) -> BuildCache:
        store = BuildStore(self.folder / "builds", 1 << 20)
        toolchain: Any = lambda: self.toolchain  # noqa: E731
        return BuildCache(store, toolchain, CacheSettings(**settings))

    def session(self, owner: str = "me", facts: Any = None, **files: str) -> Session:
        folder = self.folder / f"session{len(self.sessions)}"
        made = Session(self.cache, folder, owner, facts or {"image": "gcc"})
        made.upload(**files)
        self.sessions.append(made)
        return made

    def packs(self) -> list[str]:
        return [path.name for path in (self.folder / "builds").iterdir()]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.cache.close()
    for session in made.sessions:
        os.close(session.fd)


def compile_(home: Path) -> None:
    (home / "main").write_text("binary")
    (home / "main").chmod(0o755)
    (home / "obj").mkdir()
    (home / "obj" / "main.o").write_text("object")


def note(result: StepResult) -> tuple[bool, str | None]:
    assert result.cache is not None
    return result.cache.is_hit, result.cache.refusal


async def test_hit_leaves_the_same_tree_and_result(world: World) -> None:
    first, second = world.session(main="source"), world.session(main="source")
    missed = await first.run(compile_, text=b"warning")
    hit = await second.run(compile_)
    assert (note(missed), note(hit)) == ((False, None), (True, None))
    assert hit.usage == missed.usage
    assert tree_of(second.folder) == tree_of(first.folder)
    assert (await world.session(main="source").look()).printed == [(Stream.STDOUT, b"warning")]


async def test_what_is_put_in_place_is_never_shared_with_the_store(world: World) -> None:
    await world.session(main="source").run(compile_)
    spoiler = world.session(main="source")
    await spoiler.run(compile_)
    (spoiler.folder / "main").chmod(0o755)
    with (spoiler.folder / "main").open("r+") as file:
        file.write("EVIL")
    last = world.session(main="source")
    assert note(await last.run(compile_)) == (True, None)
    assert (last.folder / "main").read_text() == "binary"


CHANGES: dict[str, Callable[[World, Session], object]] = {
    "content": lambda world, s: s.upload(main="other"),
    "new file": lambda world, s: s.upload(more="x"),
    "removed file": lambda world, s: (s.folder / "util").unlink(),
    "renamed file": lambda world, s: (s.folder / "util").rename(s.folder / "utik"),
    "mode": lambda world, s: (s.folder / "util").chmod(0o600),
    "empty folder": lambda world, s: (s.folder / "d").mkdir(),
    "link": lambda world, s: (s.folder / "l").symlink_to("main"),
    "order of times": lambda world, s: os.utime(s.folder / "util", (999, 999)),
    "toolchain": lambda world, s: setattr(world.toolchain, "version", b"gcc 13"),
    "owner": lambda world, s: setattr(s, "surroundings", Surroundings("you", {"image": "gcc"})),
    "image": lambda world, s: setattr(s, "surroundings", Surroundings("me", {"image": "g++"})),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_each_input_that_changes_misses(world: World, change: str) -> None:
    await world.session(main="source", util="x").run(compile_)
    second = world.session(main="source", util="x")
    CHANGES[change](world, second)
    assert note(await second.run(compile_)) == (False, None)


async def test_another_command_or_limit_misses(world: World) -> None:
    await world.session(main="source").run(compile_)
    session = world.session(main="source")
    for build in (await session.look("make", "all"), await session.look(limits=RunLimits(cpu_s=1))):
        assert build.hit is None
        session.builds.drop(build)
    assert (await session.look()).hit is not None


async def test_target_of_a_link_is_an_input(world: World) -> None:
    keys = []
    for target in ("a", "b"):
        session = world.session(main="source")
        (session.folder / "l").symlink_to(target)
        build = await session.look()
        keys.append(build.key)
        session.builds.drop(build)
    assert keys[0] != keys[1]


async def test_absolute_times_and_times_of_folders_are_no_inputs(world: World) -> None:
    await world.session(main="source", util="x").run(compile_)
    second = world.session(main="source", util="x")
    for file in ("main", "util"):
        os.utime(second.folder / file, (5000, 5000))
    assert note(await second.run(compile_)) == (True, None)


async def test_times_of_what_was_built_stand_to_the_rest_as_they_did(world: World) -> None:
    def work(home: Path) -> None:
        (home / "first").write_text("1")
        (home / "second").write_text("2")
        now = (home / "second").stat().st_mtime_ns
        os.utime(home / "second", ns=(now, now + 5_000_000))
        shutil.copy2(home / "main", home / "copy")
        (home / "old").write_text("3")
        os.utime(home / "old", (7, 7))

    await world.session(main="source").run(work)
    second = world.session(main="source")
    os.utime(second.folder / "main", (5000, 5000))
    await second.run(work)
    times = {path.name: path.stat().st_mtime_ns for path in second.folder.iterdir()}
    assert times["copy"] == times["main"] == 5000 * 10**9
    assert times["old"] == 7 * 10**9
    assert times["main"] < times["first"] < times["second"]


async def test_shared_cache_serves_other_owners(world: World) -> None:
    world.cache.close()
    world.cache = world.make(is_shared=True)
    await world.session("me", main="source").run(compile_)
    assert note(await world.session("you", main="source").run(compile_)) == (True, None)


async def test_failed_impure_or_stale_build_is_not_kept(world: World) -> None:
    failed = StepResult(Outcome.EXITED, 1)
    killed = StepResult(Outcome.TIMED_OUT, 137)
    cut = StepResult(Outcome.EXITED, 0, usage=Usage(cut_chars=1))
    results = [
        await world.session(main="1").run(compile_, result=failed),
        await world.session(main="1").run(compile_, result=killed),
        await world.session(main="1").run(compile_, result=cut),
        await world.session(main="1").run(compile_, is_pure=False),
        await world.session(main="1").run(compile_, is_valid=False),
        await world.session(main="1").run(compile_, text=b"x" * 1001),
    ]
    assert all(result.cache is not None and result.cache.refusal for result in results)
    assert world.packs() == []


async def test_toolchain_that_changes_during_a_build_keeps_it_out(world: World) -> None:
    def work(home: Path) -> None:
        world.toolchain.version = b"gcc 13"

    assert "changed meanwhile" in str(note(await world.session(main="1").run(work))[1])
    assert world.packs() == []


async def test_upload_that_races_keeps_a_build_out(world: World) -> None:
    session = world.session(main="1")

    def work(home: Path) -> None:
        session.uploads = 1

    assert "uploaded meanwhile" in str(note(await session.run(work))[1])
    session.uploads = None
    build = await session.look()
    assert (build.key, build.refusal) == (None, "files are being uploaded")
    assert world.packs() == []


async def test_something_left_outside_keeps_a_build_out(world: World) -> None:
    session = world.session(main="1")
    session.left = "/tmp is not empty"
    assert (await session.look()).refusal == "/tmp is not empty"
    session.left = None
    result = await session.run(lambda home: setattr(session, "left", "/tmp is not empty"))
    assert note(result) == (False, "/tmp is not empty")


async def test_tree_above_its_caps_is_not_looked_up(world: World) -> None:
    world.cache.close()
    world.cache = world.make(tree=TreeLimits(max_entries=2, max_bytes=10))
    assert "more than 2" in str((await world.session(a="1", b="2", c="3").look()).refusal)
    assert "more than 10" in str((await world.session(a="12345678901").look()).refusal)


async def test_folder_that_cannot_be_written_again_keeps_a_build_out(world: World) -> None:
    session = world.session(main="1")
    (session.folder / "shut").mkdir(mode=0o500)

    def work(home: Path) -> None:
        (home / "shut").chmod(0o700)
        (home / "shut" / "file").touch()
        (home / "shut").chmod(0o500)

    assert "cannot be written" in str(note(await session.run(work))[1])


async def test_of_builds_of_one_key_one_runs_and_the_others_wait(world: World) -> None:
    first, others = world.session(main="1"), [world.session(main="1") for _ in range(3)]
    build = await first.look()
    waiting = [asyncio.ensure_future(other.look()) for other in others]
    await asyncio.wait(waiting, timeout=0.05)
    assert not any(task.done() for task in waiting)
    build.recording = Console(10).record()
    compile_(first.folder)
    await first.builds.keep(build, DONE, is_pure=True, is_valid=lambda: True)
    assert all(looked.hit is not None for looked in await asyncio.gather(*waiting))


async def test_one_waiter_takes_over_from_a_builder_that_came_to_nothing(world: World) -> None:
    first, second, third = (world.session(main="1") for _ in range(3))
    build = await first.look()
    waiting = {asyncio.ensure_future(session.look()): session for session in (second, third)}
    await asyncio.wait(waiting, timeout=0.05)
    first.builds.drop(build)
    done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert (len(done), len(rest)) == (1, 1)
    [task] = done
    assert (await task).hit is None
    waiting[task].builds.drop(await task)
    assert (await next(iter(rest))).hit is None


async def test_waiter_that_is_cancelled_holds_nobody_up(world: World) -> None:
    first, second, third = (world.session(main="1") for _ in range(3))
    build = await first.look()
    waiter = asyncio.ensure_future(second.look())
    await asyncio.wait([waiter], timeout=0.05)
    waiter.cancel()
    await asyncio.wait([waiter])
    first.builds.drop(build)
    assert (await asyncio.wait_for(third.look(), 5)).hit is None


async def test_damaged_content_costs_a_build_and_heals(world: World) -> None:
    await world.session(main="1").run(compile_)
    [pack] = (world.folder / "builds").iterdir()
    content = bytearray(pack.read_bytes())
    content[0] ^= 1
    pack.write_bytes(content)
    second = world.session(main="1")
    build = await second.look()
    assert (build.hit, build.refusal) == (None, None)
    assert set(tree_of(second.folder)) == {b"main"}  # nothing of it was put in place
    second.builds.drop(build)
    assert note(await second.run(compile_)) == (False, None)
    assert note(await world.session(main="1").run(compile_)) == (True, None)


async def test_crash_between_writing_and_storing_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*args: object) -> None:
        raise OSError("the disk went away")

    monkeypatch.setattr(BuildStore, "store", crash)
    assert note(await world.session(main="1").run(compile_)) == (False, "it could not be stored")
    assert world.packs() == []
    monkeypatch.undo()
    monkeypatch.setattr(PackWriter, "keep", crash)
    assert note(await world.session(main="1").run(compile_)) == (False, "it could not be stored")
    monkeypatch.undo()
    assert note(await world.session(main="1").run(compile_)) == (False, None)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_every_failure_while_files_are_put_in_place_is_a_miss_or_our_fault(
    world: World, when: str
) -> None:
    """At no call may a failure give a wrong tree that is called right."""

    def work(home: Path) -> None:
        compile_(home)
        (home / "gone").unlink()
        (home / "changed").write_text("new")

    files = {"main.c": "1", "gone": "2", "changed": "3"}
    first = world.session(**files)
    await first.run(work)
    whole = tree_of(first.folder)
    fates = []
    for fail_at in range(1, 40):
        session = world.session(**files)
        before = tree_of(session.folder)
        session.tree = tree = FailingTree(session.tree, fail_at, OSError(5, "no"), when)
        try:
            build = await session.look()
        except (SandboxFault, OSError) as exc:
            fates.append("fault" if isinstance(exc, SandboxFault) else "early")
            continue
        if build.hit is not None:
            assert tree_of(session.folder) == whole
        else:
            fates.append("built")
            assert build.refusal is not None
            assert tree_of(session.folder) == before
            session.builds.drop(build)
        if tree.calls < fail_at:
            break
    assert {"fault", "built"} <= set(fates)
    assert len(fates) == fail_at - 1


async def test_no_descriptor_is_left(world: World) -> None:
    sessions = [world.session(main="1") for _ in range(4)]
    await sessions[0].run(compile_)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for session in sessions[1:]:
        assert note(await session.run(compile_)) == (True, None)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
