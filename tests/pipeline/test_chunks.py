"""A part is written when all of its prompts have a row, or before, and no row is written twice, in any order."""

import random

from aisp_ray.pipeline.chunks import Chunks


def row(ordinal, method="a"):
    return {"ordinal": ordinal, "method": method}


def ordinals(complete):
    return [row["ordinal"] for row in complete.rows]


def test_parts_are_complete_once_and_in_order_for_any_schedule():
    for seed in range(50):
        rng = random.Random(seed)
        chunks, seen, waiting, written = Chunks(("a", "b"), 4), 0, [], {}
        while seen < 11 or waiting:
            if seen < 11 and (not waiting or rng.random() < 0.5):
                waiting += [row(seen, method) for method in chunks.expect(seen)]
                seen += 1
                if seen == 11:
                    chunks.end()
            else:
                chunks.add(waiting.pop(rng.randrange(len(waiting))))
            for complete in chunks.take_complete():
                assert complete.part not in written
                written[complete.part] = ordinals(complete)
                chunks.written(complete.part)
        expected = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
        assert written == {(method, c): expected[c] for method in "ab" for c in range(3)}
        assert chunks.pending_rows() == []


def test_a_part_that_grows_is_written_row_by_row_and_by_one_writer_at_a_time():
    for seed in range(50):
        rng = random.Random(seed)
        chunks, seen, waiting, under_way, written = Chunks(("a",), 4), 0, [], [], []
        while seen < 11 or waiting or under_way:
            if seen < 11 and rng.random() < 0.5:
                waiting += [row(seen, method) for method in chunks.expect(seen)]
                seen += 1
                if seen == 11:
                    chunks.end()
            elif waiting and rng.random() < 0.6:
                chunks.add(waiting.pop(rng.randrange(len(waiting))))
            elif under_way and rng.random() < 0.6:
                batch = under_way.pop(rng.randrange(len(under_way)))
                chunks.written(batch.part)
                assert not batch.complete or chunks.is_done(batch.part)
            under_way += chunks.take_complete() if rng.random() < 0.7 else chunks.take_all()
            assert len({batch.part for batch in under_way}) == len(under_way) == len(chunks.being_written())
            written += [batch for batch in under_way if batch not in written]
        assert sorted(at for batch in written for at in ordinals(batch)) == list(range(11))
        assert [sum(batch.complete for batch in written if batch.part == ("a", c)) for c in range(3)] <= [1, 1, 1]
        assert chunks.pending_rows() == []
        assert all(chunks.is_done(("a", c)) for c in range(3))


def test_nothing_is_complete_while_its_stream_may_go_on():
    chunks = Chunks(("a",), 4)
    chunks.expect(0)
    chunks.add(row(0))
    assert chunks.take_complete() == []
    chunks.end()
    assert [ordinals(part) for part in chunks.take_complete()] == [[0]]


def test_gaps_in_the_ordinals_hold_nothing_up():
    chunks = Chunks(("a",), 4)
    for ordinal in (1, 3, 9):
        assert chunks.expect(ordinal) == ["a"]
        chunks.add(row(ordinal))
    assert [(part.part[1], ordinals(part)) for part in chunks.take_complete()] == [(0, [1, 3])]


def test_committed_rows_are_not_wanted_again_and_stay_in_their_file():
    chunks = Chunks(("a", "b"), 4)
    chunks.keep(("a", 0), [0, 1, 2])
    assert chunks.expect(0) == ["b"]
    assert chunks.expect(3) == ["a", "b"]
    for method, ordinal in (("b", 0), ("a", 3), ("b", 3)):
        chunks.add(row(ordinal, method))
    chunks.end()
    complete = {part.part: part for part in chunks.take_complete()}
    assert ordinals(complete["a", 0]) == [3]
    assert ordinals(complete["b", 0]) == [0, 3]


def test_a_chunk_that_is_all_there_is_not_written_again():
    chunks = Chunks(("a",), 2)
    chunks.keep(("a", 0), [0, 1])
    assert chunks.expect(0) == chunks.expect(1) == []
    chunks.end()
    assert chunks.take_complete() == []


def test_restored_rows_are_written_with_the_rest():
    chunks = Chunks(("a",), 2)
    chunks.restore(row(1))
    chunks.restore(row(0, "gone"))  # of a method that is not run any more
    assert chunks.expect(0) == ["a"]
    assert chunks.expect(1) == []
    chunks.add(row(0))
    chunks.end()
    assert [ordinals(part) for part in chunks.take_complete()] == [[0, 1]]


def test_a_restored_row_is_not_made_again_where_it_is_flushed_before_its_prompt_comes():
    chunks = Chunks(("a",), 2)
    assert chunks.restore(row(1)) is True
    (growing,) = chunks.take_all()
    chunks.written(growing.part)
    assert chunks.restore(row(1)) is False
    assert (chunks.expect(0), chunks.expect(1)) == (["a"], [])


def test_rows_count_as_pending_until_their_file_is_there():
    chunks = Chunks(("a",), 1)
    chunks.expect(0)
    chunks.add(row(0))
    chunks.end()
    (complete,) = chunks.take_complete()
    assert chunks.pending_rows() == [row(0)]
    chunks.written(complete.part)
    assert chunks.pending_rows() == []
