import subprocess
import sys
import time
import tracemalloc
from itertools import count
from random import Random

import pytest

from gateway.balancing.affinity import (
    BLOCK_BYTES,
    BLOCKS_OF_A_RUN,
    FINE_BLOCKS,
    KEY_BYTES,
    LENGTHS,
    MAX_BLOCKS,
    PrefixIndex,
    beginning_key,
    blocks_of,
    ends_of,
    session_key,
    uid_key,
)
from gateway.balancing.policy import Cached

SEED = ("qwen3-8b", "")


def text(blocks: int, seed: int = 1) -> bytes:
    return Random(seed).randbytes(blocks * BLOCK_BYTES)


class TestBlocks:
    def test_two_prompts_share_their_blocks_up_to_where_they_part(self) -> None:
        common = text(5)
        one, other = blocks_of(common + text(3, 2), SEED), blocks_of(common + text(3, 3), SEED)
        assert one[:5] == other[:5]
        assert not set(one[5:]) & set(other[5:])

    def test_a_block_stands_for_all_that_came_before_it(self) -> None:
        same = text(4)
        one, other = blocks_of(b"1" * BLOCK_BYTES + same, SEED), blocks_of(b"2" * BLOCK_BYTES + same, SEED)
        assert not set(one) & set(other)

    def test_the_same_bytes_twice_in_a_prompt_are_two_blocks(self) -> None:
        assert len(set(blocks_of(b"a" * (4 * BLOCK_BYTES), SEED))) == 4

    @pytest.mark.parametrize(
        ("length", "blocks"),
        [(0, 0), (BLOCK_BYTES - 1, 0), (BLOCK_BYTES, 1), (2 * BLOCK_BYTES - 1, 1), (2 * BLOCK_BYTES, 2)],
    )
    def test_only_whole_blocks_count(self, length: int, blocks: int) -> None:
        assert len(blocks_of(b"x" * length, SEED)) == blocks

    @pytest.mark.parametrize(
        "seed", [("llama", ""), ("qwen3-8b", "an adapter"), ("qwen3-8b", "", b"a tenant's salt"), ()]
    )
    def test_another_model_adapter_or_tenant_shares_nothing(self, seed: tuple[str | bytes, ...]) -> None:
        prompt = text(3)
        assert not set(blocks_of(prompt, SEED)) & set(blocks_of(prompt, seed))

    def test_what_comes_after_the_last_block_looked_at_changes_nothing(self) -> None:
        long = text(MAX_BLOCKS)
        assert LENGTHS[len(blocks_of(long, SEED))] == MAX_BLOCKS
        assert blocks_of(long + b"x" * 5 * BLOCK_BYTES, SEED) == blocks_of(long, SEED)

    def test_of_a_long_prompt_each_fourth_block_ends_with_a_hash(self) -> None:
        prompt = text(MAX_BLOCKS)
        whole = blocks_of(prompt, SEED)
        for blocks in (
            1,
            FINE_BLOCKS - 1,
            FINE_BLOCKS,
            FINE_BLOCKS + 1,
            FINE_BLOCKS + 4,
            40,
            MAX_BLOCKS - 1,
            MAX_BLOCKS,
        ):
            hashes = blocks_of(prompt[: blocks * BLOCK_BYTES + 5], SEED)
            assert hashes == whole[: len(hashes)]
            assert blocks - BLOCKS_OF_A_RUN < LENGTHS[len(hashes)] <= blocks
            assert LENGTHS[len(hashes)] == blocks or blocks > FINE_BLOCKS
            # Wherever a byte is another, the prompts part.
            for place in {0, len(hashes) // 2, len(hashes) - 1}:
                at = LENGTHS[place] * BLOCK_BYTES
                for other_at in (at, LENGTHS[place + 1] * BLOCK_BYTES - 1):
                    other = prompt[:other_at] + bytes((prompt[other_at] ^ 1,)) + prompt[other_at + 1 :]
                    parted = blocks_of(other, SEED)
                    assert parted[:place] == whole[:place]
                    assert not set(parted[place:]) & set(whole)

    def test_where_a_prompt_stands_in_a_text_is_no_matter(self) -> None:
        prompt = text(50)
        assert blocks_of(b"12345" + prompt + b"6", SEED, 5, 5 + len(prompt)) == blocks_of(prompt, SEED)

    def test_of_hashes_that_end_each_block_the_same_are_kept(self) -> None:
        for blocks in (0, 1, FINE_BLOCKS, FINE_BLOCKS + 3, FINE_BLOCKS + 4, 2 * MAX_BLOCKS):
            assert ends_of(range(1, blocks + 1)) == tuple(each for each in LENGTHS if 0 < each <= blocks)
            assert len(ends_of(range(blocks))) == len(blocks_of(bytes(blocks * BLOCK_BYTES), SEED))

    def test_a_prompt_of_a_megabyte_is_hashed_and_noted_within_a_millisecond(self) -> None:
        index = PrefixIndex()
        took = []
        for number in range(20):
            prompt = text(2 * MAX_BLOCKS, number)
            before = time.thread_time()
            index.sent("a", blocks_of(prompt, SEED))
            took.append(time.thread_time() - before)
        # The best of some, in the processor's time, which is a tenth of that: this machine has others to serve too.
        assert min(took) < 0.001


def test_every_process_makes_the_same_keys_and_other_blocks() -> None:
    program = (
        "from gateway.balancing.affinity import *;"
        "print(session_key('acme', 's'), beginning_key(b'hello', ('m',)), uid_key('u'));"
        "print(blocks_of(b'x' * 512, ('m',)))"
    )
    seen = [
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for seed in ("1", "2")
    ]
    assert seen[0][0] == seen[1][0] == f"{session_key('acme', 's')} {beginning_key(b'hello', ('m',))} {uid_key('u')}"
    assert seen[0][1] != seen[1][1]


class TestKeys:
    def test_a_key_stays_what_it_is_from_version_to_version(self) -> None:
        # Two versions of the gateway run side by side during an update, and must agree.
        assert session_key("acme", "chat-1") == 17736337304956152825
        assert beginning_key(b"You are a helpful assistant.", ("qwen3-8b",)) == 5934351724599909701
        assert uid_key("6f0e8a3c@10.0.0.7") == 5262563311307002265

    def test_a_key_has_64_bits_and_is_odd(self) -> None:
        keys = [uid_key(str(number)) for number in range(500)]
        assert all(key % 2 == 1 and 0 < key < 1 << 64 for key in keys)
        assert max(keys) > 1 << 63
        assert len(set(keys)) == 500

    def test_two_tenants_with_the_same_session_have_different_keys(self) -> None:
        assert session_key("acme", "1") != session_key("globex", "1")
        assert session_key("acme", "s1") != session_key("acmes", "1")
        assert session_key("acme", "1:1") != session_key("acme1:", "1")

    def test_a_session_a_prompt_and_a_pod_of_the_same_name_have_different_keys(self) -> None:
        assert len({session_key("", "x"), session_key("x", "x"), beginning_key(b"x", ()), uid_key("x")}) == 4

    def test_without_a_name_or_a_prompt_there_is_no_key(self) -> None:
        assert session_key("acme", "") == 0
        assert beginning_key(b"", SEED) == 0

    def test_prompts_that_begin_alike_have_the_same_key(self) -> None:
        beginning = text(1)[:KEY_BYTES]
        assert beginning_key(beginning + b"one", SEED) == beginning_key(beginning + b"other", SEED)
        assert beginning_key(beginning[:-1], SEED) != beginning_key(beginning, SEED)
        assert beginning_key(beginning, SEED) != beginning_key(beginning, ("llama", ""))

    def test_of_a_very_long_name_only_the_beginning_is_read(self) -> None:
        name = "n" * KEY_BYTES
        assert session_key("acme", name + "1") == session_key("acme", name + "2")
        assert session_key("acme", name[1:]) != session_key("acme", name)

    def test_nothing_of_a_name_or_a_prompt_is_remembered(self) -> None:
        long = "n" * (1 << 20)
        tracemalloc.start()
        try:
            for number in range(32):
                session_key(f"{number}", f"{number}{long}")
                beginning_key(b"%d%b" % (number, long.encode()), (long, long.encode()))
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < 4 * len(long)  # the last ones' own, and nothing for each of 64

    def test_half_of_a_surrogate_pair_is_a_name_like_any_other(self) -> None:
        assert session_key("acme", "\ud800") not in (0, session_key("acme", "\ud801"))


class TestWhatAPodHas:
    def test_it_has_what_was_sent_there_and_no_other_pod_does(self) -> None:
        index = PrefixIndex()
        cache: Cached = index
        index.sent("a", (1, 2, 3))
        assert cache.cached("a", (1, 2, 3)) == 3
        assert cache.cached("a", (1, 2, 3, 4, 5)) == 3
        assert cache.cached("a", (1, 2, 8, 9)) == 2
        assert cache.cached("a", (7, 8)) == 0
        assert cache.cached("b", (1, 2, 3)) == 0

    def test_however_much_of_a_prompt_is_there_that_much_is_found(self) -> None:
        for length in (1, 2, 3, 10, 64):
            blocks = tuple(range(length))
            for known in range(1, length + 1):
                index = PrefixIndex()
                index.sent("a", blocks[:known])
                assert index.cached("a", blocks) == LENGTHS[known]

    def test_a_prompt_too_short_for_a_block_is_nowhere(self) -> None:
        index = PrefixIndex()
        index.sent("a", ())
        assert index.cached("a", ()) == 0
        assert index.holder(()) is None

    def test_the_least_recently_used_is_forgotten_first(self) -> None:
        index = PrefixIndex(capacity=6)
        index.sent("a", (1, 2))
        index.sent("a", (11, 12))
        index.sent("a", (1, 2))
        index.sent("a", (21, 22, 23, 24))
        assert [index.cached("a", blocks) for blocks in ((1, 2), (11, 12), (21, 22, 23, 24))] == [2, 0, 4]

    def test_a_prompts_end_is_forgotten_before_its_beginning(self) -> None:
        index = PrefixIndex(capacity=6)
        index.sent("a", (1, 2, 3, 4))
        index.sent("a", (11, 12, 13, 14))
        assert index.cached("a", (1, 2, 3, 4)) == 2

    def test_of_a_prompt_larger_than_the_cache_the_beginning_is_there(self) -> None:
        index = PrefixIndex(capacity=3)
        index.sent("a", (1, 2, 3, 4, 5))
        assert index.cached("a", (1, 2, 3, 4, 5)) == 3

    def test_a_full_pod_forgets_an_eighth_at_once_and_the_oldest_only(self) -> None:
        index = PrefixIndex(capacity=80)
        full = set()
        for block in range(1000):
            index.sent("a", (block,))
            held = sum(index.cached("a", (each,)) for each in range(block + 1))
            latest = sum(index.cached("a", (each,)) for each in range(max(0, block - 69), block + 1))
            assert min(block + 1, 70) <= held <= 80
            assert latest == min(block + 1, 70)
            if block >= 80:
                full.add(held)
        assert full == set(range(70, 81))

    def test_what_a_pod_holds_is_counted_in_blocks_however_its_prompts_are_cut(self) -> None:
        index = PrefixIndex(capacity=600)
        prompts = [tuple(range(1000 * number, 1000 * number + number)) for number in (3, 16, 17, 40, 60, 100)] * 3
        for round_ in range(3):
            for number, prompt in enumerate(prompts):
                index.sent("a", prompt[: len(prompt) - round_])
                (pod,) = index._pods.values()
                assert pod.held == sum(pod.blocks.values()) <= 600
                assert number == 0 or index.cached("a", prompt) == LENGTHS[len(prompt) - round_]
        index.resize("a", 100)
        assert 80 <= pod.held == sum(pod.blocks.values()) <= 100

    def test_a_pod_that_tells_its_size_has_that_much(self) -> None:
        index = PrefixIndex(capacity=4)
        index.resize("large", 6)
        index.resize("none", 0)
        for uid in ("large", "usual", "none"):
            index.sent(uid, (1, 2, 3, 4, 5, 6, 7))
        assert [index.cached(uid, (1, 2, 3, 4, 5, 6, 7)) for uid in ("large", "usual", "none")] == [6, 4, 0]
        index.resize("large", 2)
        assert index.cached("large", (1, 2, 3, 4, 5, 6, 7)) == 2

    def test_no_pod_has_more_than_a_sixteenth_of_all(self) -> None:
        index = PrefixIndex(capacity=1000, in_all=160)
        index.sent("a", tuple(range(100)))
        assert index.cached("a", tuple(range(100))) == 10

    def test_where_there_are_many_pods_each_gets_an_equal_share(self) -> None:
        index = PrefixIndex(capacity=1000, in_all=320)
        blocks = tuple(range(100))
        for number in range(40):
            index.sent(str(number), blocks)
        # 320 over 40, and a pod that was there first has no more of it than the last one.
        assert {index.cached(str(number), blocks) for number in range(1, 40)} <= {7, 8}
        index.keep(["0", "1"])
        index.sent("1", blocks)
        assert index.cached("1", blocks) == 20

    def test_a_pod_that_left_takes_all_along_and_starts_anew(self) -> None:
        index = PrefixIndex(capacity=4)
        index.sent("a", (1, 2))
        index.sent("b", (1, 2))
        index.resize("a", 8)
        index.keep({"b", "c"})
        assert index.cached("a", (1, 2)) == 0
        assert index.cached("b", (1, 2)) == 2
        index.sent("a", (11, 12, 13, 14, 15))
        assert index.cached("a", (1, 2)) == 0
        assert index.cached("a", (11, 12, 13, 14, 15)) == 4


class TestTheHolder:
    def test_it_is_the_pod_that_last_got_the_longest_known_beginning(self) -> None:
        index = PrefixIndex()
        index.sent("a", (1, 2, 3))
        index.sent("b", (1, 8, 9))
        assert index.holder((1, 2, 3)) == "a"
        assert index.holder((1, 8, 9)) == "b"
        assert index.holder((1, 5)) == "b"
        assert index.holder((7, 3)) is None
        index.sent("c", (1, 2, 3))
        assert index.holder((1, 2, 3)) == "c"

    def test_the_next_turn_of_a_conversation_finds_the_pod_of_the_last_one(self) -> None:
        index = PrefixIndex()
        system = tuple(range(10))
        for number in range(50):
            index.sent(f"pod-{number}", (*system, *range(100 * number + 100, 100 * number + 113)))
        for number in range(50):
            turn = (*system, *range(100 * number + 100, 100 * number + 113), -1, -2, -3)
            assert index.holder(turn) == f"pod-{number}"

    def test_a_pod_that_left_holds_nothing_even_if_it_returns(self) -> None:
        index = PrefixIndex()
        index.sent("b", (1, 2, 3, 4))
        index.sent("a", (1, 2, 3, 4, 5))
        index.keep(["b"])
        assert index.holder((1, 2, 3, 4, 5)) is None
        index.resize("a", 10)
        assert index.holder((1, 2, 3, 4, 5)) is None

    def test_where_the_holder_left_another_with_a_shorter_beginning_is_found(self) -> None:
        index = PrefixIndex()
        index.sent("a", (1, 2, 3, 4, 5, 6, 7))
        index.sent("b", (1, 2, 3))
        index.keep(["b"])
        assert index.holder((1, 2, 3, 4, 5, 6, 7)) == "b"

    def test_it_is_remembered_for_an_eighth_of_all_notes_at_least_and_a_quarter_at_most(self) -> None:
        index = PrefixIndex(in_all=160)
        for block in range(200):
            index.sent(f"pod-{block % 3}", (block,))
            for before in range(min(block + 1, 21)):
                assert index.holder((block - before, -1)) == f"pod-{(block - before) % 3}"
            assert all(index.holder((old,)) is None for old in range(block - 40 + 1))


def test_a_million_prefixes_take_no_more_memory_than_the_first_hundred_thousand() -> None:
    index = PrefixIndex(capacity=1024, in_all=1 << 14)
    pods = [f"pod-{number}" for number in range(8)]
    starts = count(1 << 40, 20)

    def flood(prefixes: int) -> None:
        # Each block ends another prefix.
        for number in range(prefixes // 20):
            start = next(starts)
            index.sent(pods[number & 7], range(start, start + 20))

    flood(100_000)
    tracemalloc.start()
    try:
        # What was there before is not counted: as it makes way for what is, the count comes to its full height.
        flood(100_000)
        before, _ = tracemalloc.get_traced_memory()
        flood(800_000)
        after, highest = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert before > 500_000
    assert after < 1.5 * before
    assert highest < 2 * before
