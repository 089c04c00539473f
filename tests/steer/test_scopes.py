"""Scopes: which tokens, against plain sets of positions; whatever the padding and the chunks."""

import itertools
import random

import pytest
import torch
from torch import Tensor

import steer
from steer.models.tiny_tokenizer import tiny_tokenizer
from steer.scopes import (
    ALL,
    FIRST,
    GENERATED,
    LAST,
    OUTPUT,
    PROMPT,
    Scope,
    at,
    parse_scope,
    span,
    text,
)
from steer.tokens import Prompt, Tokens

TOKENIZER = tiny_tokenizer()

# The table of the architecture: a prompt of 5 tokens, generated tokens from 5 on.
TABLE: list[tuple[Scope, set[int]]] = [
    (ALL, {0, 1, 2, 3, 4, 5, 6, 7}),
    (FIRST, {0}),
    (~FIRST, {1, 2, 3, 4, 5, 6, 7}),
    (PROMPT, {0, 1, 2, 3, 4}),
    (LAST, {4}),
    (GENERATED, {5, 6, 7}),
    (OUTPUT, {4, 5, 6, 7}),
    (LAST | GENERATED, {4, 5, 6, 7}),
    (at(3), {3}),
    (at(-1), {4}),
    (at(-5), {0}),
    (at(6), {6}),
    (span(2, 5), {2, 3, 4}),
    (span(3, 7), {3, 4, 5, 6}),
    (span(-3, -1), {2, 3}),
    (span(-2, None), {3, 4}),
    (span(1, None), {1, 2, 3, 4}),
    (span(1, -1), {1, 2, 3}),
    (PROMPT & ~LAST, {0, 1, 2, 3}),
    (~(FIRST | GENERATED), {1, 2, 3, 4}),
    (at(0) | at(-1) | at(7), {0, 4, 7}),
    (~ALL, set()),
    (OUTPUT & PROMPT, {4}),
]
IDS = [str(scope) for scope, _ in TABLE]


def grown(
    lengths: list[int], new: int, *, left: bool, ids: Tensor | None = None
) -> tuple[Prompt, int]:
    """Return the prompt of rows padded on one side, and the columns of the whole growth."""
    width = max(lengths)
    mask = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, n in enumerate(lengths):
        mask[row, width - n if left else 0 : width if left else n] = True
    return Prompt(mask, ids), width + new


def of(prompt: Prompt, start: int, n: int, *, open_ended: bool = True) -> Tokens:
    return Tokens(
        prompt.positions(start, n),
        torch.arange(len(prompt.mask)),
        prompt.lengths,
        prompt=prompt if prompt.ids is not None else None,
        decode=lambda row: str(TOKENIZER.decode(row)),
        from_start=start == 0,
        open_ended=open_ended,
    )


def chosen(scope: Scope, tokens: Tokens) -> list[set[int]]:
    """Return the selected positions of each row."""
    selected = scope.select(tokens)
    assert selected.dtype == torch.bool
    assert selected.shape == tokens.positions.shape
    return [
        {int(p) for p in row[keep]} for row, keep in zip(tokens.positions, selected, strict=True)
    ]


@pytest.mark.parametrize(("scope", "positions"), TABLE, ids=IDS)
def test_a_prompt_of_five_tokens_and_three_generated_ones(scope, positions):
    prompt, columns = grown([5], 3, left=True)
    assert chosen(scope, of(prompt, 0, columns)) == [positions]


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize(("scope", "positions"), TABLE, ids=IDS)
def test_padding_on_either_side_moves_nothing(scope, positions, left):
    # The row of 5 stands between longer and shorter ones; theirs are skipped where they lack it.
    prompt, columns = grown([9, 5, 8], 3, left=left)
    if left:
        assert chosen(scope, of(prompt, 0, columns))[1] == positions
    else:
        # With padding on the right, generated columns follow the widest row; positions do not.
        found = chosen(scope, of(prompt, 0, columns))[1]
        assert found == positions


@pytest.mark.parametrize(("scope", "positions"), TABLE, ids=IDS)
def test_every_way_of_cutting_the_columns_selects_the_same_tokens(scope, positions):
    prompt, columns = grown([9, 5, 8], 3, left=True)
    chooser = random.Random(0)
    for _ in range(20):
        cuts = [0, *sorted(chooser.sample(range(1, columns), chooser.randint(0, 6))), columns]
        found: set[int] = set()
        for start, stop in itertools.pairwise(cuts):
            piece = chosen(scope, of(prompt, start, stop - start))[1]
            assert not piece & found
            found |= piece
        assert found == positions


@pytest.mark.parametrize(("scope", "positions"), TABLE, ids=IDS)
def test_repeated_rows_select_what_their_prompt_selects(scope, positions):
    prompt, columns = grown([9, 5, 8], 3, left=True)
    beams = prompt.repeat(3)
    assert chosen(scope, of(beams, 0, columns))[3:6] == [positions] * 3


def test_scopes_obey_set_algebra():
    prompt, columns = grown([6, 9, 7], 4, left=True)
    tokens = of(prompt, 0, columns)
    every = [set(range(n + 4)) for n in (6, 9, 7)]
    scopes = [FIRST, PROMPT, LAST, OUTPUT, at(3), span(1, 5), span(-4, -1)]
    for left, right in itertools.product(scopes, scopes):
        a, b = chosen(left, tokens), chosen(right, tokens)
        assert chosen(left | right, tokens) == [x | y for x, y in zip(a, b, strict=True)]
        assert chosen(left & right, tokens) == [x & y for x, y in zip(a, b, strict=True)]
        assert chosen(~left, tokens) == [e - x for e, x in zip(every, a, strict=True)]
        assert chosen(~(left | right), tokens) == chosen(~left & ~right, tokens)


# -- rows that lack a position -----------------------------------------------------------------


def test_outside_generate_a_position_beyond_the_row_is_an_error():
    prompt, columns = grown([9, 5], 0, left=True)
    tokens = of(prompt, 0, columns, open_ended=False)
    match = r"Row 1 has 5 tokens \(positions 0 to 4\), so it has no at\(5\).*missing=\"skip\""
    with pytest.raises(steer.ScopeError, match=match):
        at(5).select(tokens)
    with pytest.raises(steer.ScopeError, match=r"Row 1 has 5 tokens.*has no span\(3, 6\)"):
        span(3, 6).select(tokens)
    assert chosen(at(5, missing="skip"), tokens) == [{5}, set()]
    assert chosen(span(3, 6, missing="skip"), tokens) == [{3, 4, 5}, {3, 4}]


@pytest.mark.parametrize("open_ended", [True, False])
def test_a_position_before_the_row_is_an_error_also_while_it_grows(open_ended):
    prompt, columns = grown([9, 5], 0, left=True)
    tokens = of(prompt, 0, columns, open_ended=open_ended)
    with pytest.raises(steer.ScopeError, match=r"Row 1 has 5 tokens.*has no at\(-6\)"):
        at(-6).select(tokens)
    assert chosen(at(-6, missing="skip"), tokens) == [{3}, set()]


def test_while_a_row_grows_a_later_position_may_still_come():
    prompt, _ = grown([9, 5], 3, left=True)
    assert chosen(at(6), of(prompt, 0, 9)) == [{6}, set()]
    assert chosen(at(6), of(prompt, 9, 1)) == [set(), set()]
    assert chosen(at(6), of(prompt, 10, 1)) == [set(), {6}]


def test_an_empty_span_and_an_empty_text_are_refused_at_once():
    with pytest.raises(steer.ScopeError, match=r"span\(4, 4\) holds no position.*at\(4\)"):
        span(4, 4)
    with pytest.raises(steer.ScopeError, match=r"span\(-1, -3\) holds no position"):
        span(-1, -3)
    with pytest.raises(steer.ScopeError, match=r"points at nothing.*words to find"):
        text("")


@pytest.mark.parametrize("scope", [PROMPT, LAST, GENERATED, OUTPUT, at(-1), span(0, None)])
def test_where_the_prompt_ends_unknown_a_scope_that_needs_it_is_an_error(scope):
    tokens = Tokens(
        torch.arange(4)[None], torch.arange(1), None, why_unknown="this pass is a riddle"
    )
    with pytest.raises(steer.ScopeError, match=r"this pass is a riddle.*run\.prompt\(lengths\)"):
        scope.select(tokens)
    for known in (ALL, FIRST, ~FIRST, at(2), span(1, 3)):
        assert bool(known.select(tokens).any())


# -- text --------------------------------------------------------------------------------------

TEXTS = [
    "In Paris it was May, and after May came June.",
    "Was it a caf\u00e9 in \u5317\u4eac? Paris, Paris, May.",
    "MayMay May Paris",
]


def with_ids(texts: list[str], *, left: bool) -> Tokens:
    rows = [TOKENIZER(t)["input_ids"] for t in texts]
    lengths = [len(row) for row in rows]
    width = max(lengths)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    for at_row, row in enumerate(rows):
        place = slice(width - len(row), None) if left else slice(0, len(row))
        ids[at_row, place] = torch.tensor(row)
    prompt, columns = grown(lengths, 2, left=left, ids=ids)
    return of(prompt, 0, columns)


def by_offsets(whole: str, begin: int, end: int) -> set[int]:
    """Return the tokens that hold a character of [begin, end), by the tokenizer's own offsets."""
    tokens = TOKENIZER(whole, return_offsets_mapping=True)["offset_mapping"]
    return {i for i, (start, stop) in enumerate(tokens) if start < end and stop > begin}


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("needle", ["Paris", "May", "a", "it"])
def test_text_selects_the_tokens_that_hold_its_characters(needle, left):
    tokens = with_ids(TEXTS, left=left)
    for nth in (0, 1, -1):
        found = chosen(text(needle, nth=nth, missing="skip"), tokens)
        for row, whole in enumerate(TEXTS):
            begins = [i for i in range(len(whole)) if whole.startswith(needle, i)]
            if not -len(begins) <= nth < len(begins):
                assert found[row] == set()
                continue
            begin = begins[nth]
            assert found[row] == by_offsets(whole, begin, begin + len(needle))


def test_text_of_several_words_and_of_bytes_is_the_whole_span():
    tokens = with_ids(TEXTS, left=True)
    (words, *_), (_, cafe, _) = (
        chosen(text("Paris it was", missing="skip"), tokens),
        chosen(text("caf\u00e9 in \u5317\u4eac", missing="skip"), tokens),
    )
    for found, whole, needle in (
        (words, TEXTS[0], "Paris it was"),
        (cafe, TEXTS[1], "caf\u00e9 in \u5317\u4eac"),
    ):
        begin = whole.index(needle)
        assert found == by_offsets(whole, begin, begin + len(needle))
        assert len(found) > 3
        assert found == set(range(min(found), max(found) + 1))


def test_text_that_a_row_lacks_is_an_error_unless_skipped():
    tokens = with_ids(TEXTS, left=True)
    with pytest.raises(steer.ScopeError, match=r"Row 1 has 0 occurrences of 'June'.*spelling"):
        text("June").select(tokens)
    with pytest.raises(steer.ScopeError, match=r"Row 0 has 2 occurrences of 'May'.*occurrence 2"):
        text("May", nth=2).select(tokens)
    found = chosen(text("June", missing="skip"), tokens)
    assert [bool(row) for row in found] == [True, False, False]


def test_text_counts_the_prompt_only_and_stays_while_rows_grow():
    tokens = with_ids(TEXTS, left=True)
    assert tokens.prompt is not None
    width = tokens.prompt.mask.shape[1]
    later = of(tokens.prompt, width, 2)
    assert chosen(text("May"), later) == [set()] * 3
    pieces = [chosen(text("May"), of(tokens.prompt, start, 1)) for start in range(width)]
    together = [set().union(*(piece[row] for piece in pieces)) for row in range(3)]
    assert together == chosen(text("May"), tokens)


def test_text_without_ids_is_an_error():
    prompt, columns = grown([5], 0, left=True)
    with pytest.raises(steer.ScopeError, match=r"needs the token ids.*at\(\.\.\.\) or span"):
        text("May").select(of(prompt, 0, columns))


# -- printing ----------------------------------------------------------------------------------

PRINTED = [
    *(scope for scope, _ in TABLE),
    at(3, missing="skip"),
    span(2, 5, missing="skip"),
    text("Paris"),
    text('it\'s "May"\n', nth=-2, missing="skip"),
    ~(LAST | text("a | b")) & span(-3, None),
]


@pytest.mark.parametrize("scope", PRINTED, ids=str)
def test_what_a_scope_prints_is_parsed_back_to_it(scope):
    again = parse_scope(repr(scope))
    assert again == scope
    assert hash(again) == hash(scope)
    assert Scope.from_spec(scope.spec()) == scope


def test_scopes_print_as_they_are_written():
    assert repr(at(-1)) == "at(-1)"
    assert repr(span(2, 5)) == "span(2, 5)"
    assert repr(text("Paris")) == "text('Paris', nth=0)"
    assert repr(LAST | GENERATED & ~at(3)) == "(LAST | (GENERATED & ~at(3)))"


@pytest.mark.parametrize(
    "printed",
    [
        "__import__('os').system('true')",
        "at(3).select",
        "at(__name__)",
        "LAST + at(3)",
        "last",
        "at(1",
        "",
        "3",
        "at()",
        "at('x')",
        "text('a', nowhere=1)",
        "[at(1)]",
        "lambda: LAST",
    ],
)
def test_text_that_is_no_scope_is_refused_and_not_run(printed):
    with pytest.raises(steer.SpecError, match=r"is not a scope"):
        parse_scope(printed)
