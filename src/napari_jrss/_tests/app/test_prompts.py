"""Prompts on the label under review, answered by a server process over a socket."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from napari_jrss._tests.app.phantoms import blocks, make_project
from napari_jrss.app.review.prompts import Prompts
from napari_jrss.app.review.review import Leave
from napari_jrss.app.session import Session
from napari_jrss.app.status import history
from napari_jrss.errors import JRSSError, ProjectError
from napari_jrss.inference.prompts import Prompt, PromptError, PromptKind, PromptServer

pytest.importorskip("nnInteractive", reason="nninteractive-client is not installed")
pytestmark = pytest.mark.slow

SHAPE = (16, 24, 16)
CASE = "case_05"  # unlabelled
INSIDE, OTHER, BACKGROUND = (5, 8, 8), (9, 8, 8), (1, 1, 1)

Start = Callable[..., str]


@pytest.fixture(scope="module")
def plain(start_once: Start) -> str:
    """Address of a server without options, for many."""
    return start_once("--max-sessions", "9")


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a server with options; returns its address."""
    yield from _started()


@pytest.fixture(scope="module")
def start_once() -> Iterator[Start]:
    yield from _started()


def _started() -> Iterator[Start]:
    processes = []

    def run(*options: str) -> str:
        module = "napari_jrss._tests.app.nninteractive"
        process = subprocess.Popen(
            [sys.executable, "-m", module, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        return f"http://127.0.0.1:{process.stdout.readline().strip()}"

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("prompts"), SHAPE)


@pytest.fixture
def session(made_once: Path, tmp_path: Path) -> Iterator[Session]:
    session = Session(author="anna")
    session.open(shutil.copytree(made_once, tmp_path / "brain.jrss"))
    session.workspace.open_project.split(labelled=4, validation=1, test=1)
    case = next(c.case_id for c in session.workspace.open_project.cases() if not c.labelled)
    session.review.open(case)
    assert session.review.wait(10)
    yield session
    session.close()


@pytest.fixture
def failures(session: Session) -> list[Exception]:
    found: list[Exception] = []
    session.review.prompts.queue.failed.connect(found.append)
    return found


def connected(session: Session, address: str, **options: object) -> Prompts:
    prompts = session.review.prompts
    prompts.connect(address, **options)  # type: ignore[arg-type]
    assert prompts.wait(20)
    assert prompts.server is not None
    return prompts


def truth(session: Session) -> np.ndarray:
    number = int(session.review.open_case.case_id.removeprefix("case_"))
    return blocks(SHAPE, 2, number)


def test_a_point_draws_the_structure_as_one_action(session: Session, plain: str) -> None:
    prompts, case = connected(session, plain), session.review.open_case
    assert prompts.server is not None
    assert (prompts.server.name, prompts.server.licence) == (
        "nnInteractive 2.6.0",
        "CC BY-NC-SA 4.0",
    )
    prompts.ask(1, Prompt.point(INSIDE))
    assert prompts.working == "point: structure 1"
    assert prompts.wait(20)
    assert prompts.working == ""
    drawn, wanted = case.editor.snapshot() == 1, truth(session) == 1
    assert 2 * (drawn & wanted).sum() / (drawn.sum() + wanted.sum()) > 0.8
    assert case.editor.undo_name == "point: structure 1"
    session.review.tools.undo()
    assert not case.editor.snapshot().any()


def test_each_kind_of_prompt_reaches_the_server(session: Session, plain: str) -> None:
    prompts, case = connected(session, plain), session.review.open_case
    path = [(5, 8, 6), (5, 12, 8), (5, 15, 6)]
    for prompt in (
        Prompt.scribble(path, 0, SHAPE),
        Prompt.lasso(path, 0, SHAPE),
        Prompt.rectangle([*path[::2], (5, 10, 9)], 0),
    ):
        assert prompt is not None
        prompts.ask(1, prompt)
        assert prompts.wait(20)
        assert case.editor.snapshot()[6, 10, 7] == 1, prompt.kind
        assert case.editor.undo_name == f"{prompt.kind.words}: structure 1"
        session.review.tools.undo()
    prompts.ask(1, Prompt.point(INSIDE))
    prompts.ask(1, Prompt.point(INSIDE, inside=False))
    assert prompts.wait(20)
    assert not case.editor.snapshot().any()


def test_locked_structures_and_what_a_person_painted_stay(session: Session, plain: str) -> None:
    prompts, case = connected(session, plain), session.review.open_case
    label = case.editor.label
    label[4:6, 6:10, 6:8] = 2
    case.editor.sync("a tool")
    case.editor.lock(2)
    label[6, 10, 6:9] = 1
    label[7, 10, 6:9] = 1
    case.editor.sync()
    label[7, 10, 6:9] = 0  # what was erased by hand is the person's too
    case.editor.sync()
    prompts.ask(1, Prompt.point((5, 12, 10)))
    assert prompts.wait(20)
    after = case.editor.snapshot()
    assert (after == 1).sum() > 200
    assert (after[4:6, 6:10, 6:8] == 2).all()
    assert (after[7, 10, 6:9] == 0).all()
    prompts.ask(1, Prompt.point((5, 12, 10), inside=False))
    assert prompts.wait(20)
    after = case.editor.snapshot()
    assert (after[6, 10, 6:9] == 1).all()
    assert (after == 1).sum() == 3
    with pytest.raises(ProjectError, match="structure 2 is accepted"):
        prompts.ask(2, Prompt.point(OTHER))


def test_an_undone_prompt_no_longer_counts(session: Session, plain: str) -> None:
    prompts, case = connected(session, plain), session.review.open_case
    prompts.ask(1, Prompt.point(INSIDE))
    assert prompts.wait(20)
    first = case.editor.snapshot()
    prompts.ask(1, Prompt.point(OTHER))
    assert prompts.wait(20)
    assert (case.editor.snapshot()[9, 8, 8], first[9, 8, 8]) == (1, 0)
    session.review.tools.undo()
    prompts.ask(1, Prompt.point(BACKGROUND, inside=False))  # it isn't in the structure anyway
    assert prompts.wait(20)
    np.testing.assert_array_equal(case.editor.snapshot(), first)


def test_the_history_tells_what_helped_also_after_a_crash(
    session: Session, plain: str, tmp_path: Path
) -> None:
    prompts, review = connected(session, plain), session.review
    case_id = review.open_case.case_id
    for at in (INSIDE, OTHER):
        prompts.ask(1, Prompt.point(at))
        assert prompts.wait(20)
    review.tools.undo()
    review.close_case(Leave.KEEP)
    assert review.wait(10)
    review.open(case_id)
    assert review.wait(10)
    prompts.ask(2, Prompt.point(OTHER))
    assert prompts.wait(20)
    review.accept()
    assert review.wait(10)
    last = history(session.workspace.open_project, case_id)[-1]
    assert (last.draft, last.detail) == ("blank", "with nnInteractive 2.6.0 (2 actions)")


def test_a_session_that_the_server_forgot_is_begun_again(session: Session, start: Start) -> None:
    prompts, case = connected(session, start("--forget-at", "1")), session.review.open_case
    prompts.ask(1, Prompt.point(INSIDE))
    prompts.ask(1, Prompt.point(OTHER))
    assert prompts.wait(20)
    after = case.editor.snapshot()
    assert (after[INSIDE], after[OTHER]) == (1, 1)


def test_a_cancelled_call_changes_nothing_whenever_it_answers(
    session: Session, start: Start
) -> None:
    prompts, case = connected(session, start("--slow", "1")), session.review.open_case
    began = time.monotonic()
    prompts.ask(1, Prompt.point(INSIDE))
    time.sleep(0.3)
    prompts.cancel()
    assert prompts.working == ""
    assert time.monotonic() - began < 0.8
    prompts.ask(1, Prompt.point(OTHER))
    assert prompts.wait(20)
    after = case.editor.snapshot()
    assert (after[INSIDE], after[OTHER]) == (0, 1)


def test_another_case_gets_its_own_scan(session: Session, plain: str) -> None:
    prompts, review = connected(session, plain), session.review
    prompts.ask(1, Prompt.point(INSIDE))
    assert prompts.wait(20)
    other = next(
        c.case_id
        for c in session.workspace.open_project.cases()
        if not c.labelled and c.case_id != review.open_case.case_id
    )
    review.open(other, Leave.DISCARD)
    assert review.wait(10)
    prompts.ask(2, Prompt.point(OTHER))
    assert prompts.wait(20)
    label = review.open_case.editor.snapshot()
    assert set(np.unique(label)) == {0, 2}


@pytest.mark.parametrize(
    ("options", "given", "told"),
    [
        (["--api-key", "secret"], {"key": "wrong"}, "wants another key"),
        (["--max-sessions", "0"], {}, "as many people as it may"),
        (["--version", "1.1.2"], {}, r"is version 1\.1\.2, and nninteractive-client here is 2"),
        (["--other"], {}, r"another program, or an older version"),
    ],
)
def test_why_it_does_not_connect_is_one_line(
    start: Start, options: list[str], given: dict[str, str], told: str
) -> None:
    with pytest.raises(PromptError, match=told) as raised:
        PromptServer(start(*options), **given)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://127.0.0.1:9", "nothing answers at http://127.0.0.1:9: start nninteractive-server"),
        ("gpu-box", "no address of a server"),
    ],
)
def test_a_wrong_address_is_one_line(address: str, told: str) -> None:
    with pytest.raises(PromptError, match=told):
        PromptServer(address)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--slow", "3"], "took longer than 1 s to answer"),
        (["--die-at", "1"], "broke off"),
        (["--garbled"], "answers as another version does"),
        (["--without", "points"], "takes no point"),
    ],
)
def test_why_there_is_no_answer_is_one_line_and_the_label_stays(
    session: Session, start: Start, failures: list[Exception], options: list[str], told: str
) -> None:
    prompts = connected(session, start(*options), timeout_s=1.0)
    prompts.ask(1, Prompt.point(INSIDE))
    assert prompts.wait(20)
    (error,) = failures
    assert isinstance(error, JRSSError)
    assert told in str(error)
    assert "\n" not in str(error)
    assert prompts.working == ""
    assert not session.review.open_case.editor.snapshot().any()


def test_the_place_on_the_server_is_given_back_at_the_end(session: Session, start: Start) -> None:
    address = start()
    connected(session, address)
    session.close()
    PromptServer(address).close()


def test_what_lies_outside_or_needs_a_server_is_refused(session: Session) -> None:
    prompts = session.review.prompts
    with pytest.raises(ProjectError, match="no nnInteractive server is connected"):
        prompts.ask(1, Prompt.point(INSIDE))
    assert not Prompt.point((40, 0, 0)).within(SHAPE)
    assert Prompt.lasso([(40, 0, 0), (40, 3, 3), (40, 0, 3)], 0, SHAPE) is None


def test_a_drawn_line_becomes_voxels_of_its_own_slice() -> None:
    scribble = Prompt.scribble([(2, 7, 3.2), (9, 7, 3.4)], 1, SHAPE, width=2, inside=False)
    assert scribble is not None
    assert scribble.kind is PromptKind.SCRIBBLE
    assert not scribble.inside
    (z0, z1), y, (x0, x1) = scribble.box
    assert (y, z0 <= 2, z1 >= 10, x0 <= 3 < x1) == ((7, 8), True, True, True)
    assert scribble.mask is not None
    assert scribble.mask.shape == (z1 - z0, 1, x1 - x0)
    lasso = Prompt.lasso([(5, 2, 2), (5, 2, 8), (5, 8, 8), (5, 8, 2)], 0, SHAPE)
    assert lasso is not None
    assert lasso.mask is not None
    assert (lasso.box, lasso.mask.all()) == (((5, 6), (2, 9), (2, 9)), True)
