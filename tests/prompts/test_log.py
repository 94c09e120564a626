"""The log of prompts: undo, redo, remove and edit are exact, and so is its JSON."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsam3d.errors import PromptError
from fastsam3d.prompts import Box, MaskPrompt, Point, PromptLog, Scribble
from fastsam3d.volume import Geometry

A, B, C = (Point.voxel((n, 2, 3), positive=n != 1) for n in range(3))
MASK = MaskPrompt(np.eye(3)[None].astype(bool).repeat(2, 0), Geometry((2, 3, 3), np.eye(4)))
PROMPTS = [A, B, C, Box.voxel((0, 0, 0), (2, 2, 2)), Scribble.voxel([(0, 0, 0), (1, 1, 1)]), MASK]


@st.composite
def logs(draw: st.DrawFn) -> PromptLog:
    log = PromptLog()
    for _ in range(draw(st.integers(0, 12))):
        ids = [entry.id for entry in log.entries]
        doable = ["add", *(["remove", "edit"] if ids else [])]
        doable += ["undo"] * log.can_undo + ["redo"] * log.can_redo
        kind = draw(st.sampled_from(doable))
        prompt = draw(st.sampled_from(PROMPTS))
        if kind == "add":
            log = log.add(*[prompt] * draw(st.integers(1, 2)))
        elif kind == "remove":
            log = log.remove(*draw(st.sets(st.sampled_from(ids), min_size=1)))
        elif kind == "edit":
            log = log.edit(draw(st.sampled_from(ids)), prompt)
        else:
            log = log.undo() if kind == "undo" else log.redo()
    return log


def test_prompts_keep_their_ids_and_order() -> None:
    log = PromptLog().add(A).add(B, C)
    assert [(entry.id, entry.prompt) for entry in log.entries] == [(1, A), (2, B), (3, C)]
    assert [entry.id for entry in log.remove(2).add(B).entries] == [1, 3, 4]
    assert log.edit(2, A).prompts.prompts == (A, A, C)
    assert log.prompt(3) == C


@given(logs(), st.sampled_from(PROMPTS))
def test_undo_after_anything_is_identity_and_redo_brings_it_back(
    log: PromptLog, prompt: object
) -> None:
    changed = [log.add(prompt), log.clear()]
    changed += [log.edit(entry.id, prompt) for entry in log.entries]
    for after in changed:
        assert after.undo().entries == log.entries
        assert after.undo().redo() == after


@given(logs(), logs(), st.sampled_from(PROMPTS))
def test_removing_a_prompt_is_never_having_given_it(
    before: PromptLog, later: PromptLog, prompt: object
) -> None:
    others = later.prompts.prompts
    given_and_removed = before.add(prompt)
    key = given_and_removed.next_id - 1
    for other in others:
        given_and_removed = given_and_removed.add(other)
    never_given = before
    for other in others:
        never_given = never_given.add(other)
    assert given_and_removed.remove(key).prompts == never_given.prompts


@given(logs())
def test_json_is_exact(log: PromptLog) -> None:
    again = PromptLog.from_json(log.to_json())
    assert again == log
    assert again.entries == log.entries


def test_a_new_operation_ends_what_could_be_redone_but_reuses_no_id() -> None:
    log = PromptLog().add(A).add(B).undo().add(C)
    assert not log.can_redo
    assert [entry.id for entry in log.entries] == [1, 3]


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda log: log.undo().undo(), "nothing to undo"),
        (lambda log: log.redo(), "nothing to redo"),
        (lambda log: log.remove(2), r"no prompt 2; there are \[1\]"),
        (lambda log: log.remove(1).edit(1, B), r"no prompt 1; there are \[\]"),
    ],
)
def test_what_is_not_there_is_named(use: object, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        use(PromptLog().add(A))


def altered(**changes: object) -> str:
    return json.dumps({**PromptLog().add(A).add(MASK).remove(1).to_plain(), **changes})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "malformed"),
        (altered(version=9), "version 1, got 9"),
        (altered(position=4), "no position 4"),
        (altered(position=True), "malformed"),
        (altered(position=-1), "no position"),
        (altered(next_id=2), "id 2 twice or too late"),
        (altered(operations=[{"do": "remove", "ids": [1]}], position=0), "not there"),
        (altered(operations=[{"do": "jump"}]), "add, remove or edit, got 'jump'"),
        (altered(operations=[{"do": "add", "entries": [{"id": 1, "prompt": {}}]}]), "malformed"),
        (altered(operations=[{"do": "add"}]), "malformed"),
        (altered(operations=7), "malformed"),
    ],
)
def test_foreign_json_is_refused(text: str, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        PromptLog.from_json(text)


def test_the_voxels_of_masks_can_be_kept_elsewhere() -> None:
    kept: list[MaskPrompt] = []

    def write(mask: MaskPrompt) -> dict[str, int]:
        kept.append(mask)
        return {"number": len(kept) - 1}

    log = PromptLog().add(A, MASK).edit(1, MASK)
    plain = json.loads(json.dumps(log.to_plain(write)))
    assert kept == [MASK, MASK]
    assert PromptLog.from_plain(plain, lambda item: kept[item["number"]]) == log
    with pytest.raises(PromptError, match="malformed"):
        PromptLog.from_plain(plain)


def test_a_log_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastsam3d.prompts.log.MAX_OPERATIONS", 2)
    with pytest.raises(PromptError, match="at most 2 operations"):
        PromptLog().add(A).add(A).add(A)
