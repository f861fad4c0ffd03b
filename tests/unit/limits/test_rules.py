"""Which buckets a request takes from, and which two requests share."""

from itertools import combinations

import pytest

from gateway.core.caller import ANONYMOUS, Tenant
from gateway.limits.bucket import DAY, MINUTE, Bucket, Counts
from gateway.limits.rules import LIMITS, Rule, Rules, TokenKind, words_of

KEY = Tenant("key1", "acme")
OTHER_KEY = Tenant("key2", "acme")
OTHER_TENANT = Tenant("key3", "globex")
RPM = (("requests_per_minute", 5),)
TPM = (("tokens_per_minute", 500),)


def one(rules: Rules, tenant: Tenant = KEY, user: str = "", model: str = "m") -> Bucket:
    (bucket,) = rules.buckets(tenant, user, model)
    return bucket


def keys(rules: Rules, tenant: Tenant = KEY, user: str = "", model: str = "m") -> tuple[bytes, ...]:
    return tuple(bucket.key for bucket in rules.buckets(tenant, user, model))


def amounts(rules: Rules, tenant: Tenant = KEY, user: str = "", model: str = "m") -> list[tuple[str, int]]:
    return [(bucket.name, bucket.amount) for bucket in rules.buckets(tenant, user, model)]


class TestOfKeys:
    DEFAULT = Rules((("concurrent", 3), ("requests_per_minute", 60), ("tokens_per_minute", 1000)))

    def test_each_key_has_the_default_limits(self) -> None:
        assert amounts(self.DEFAULT) == [("requests_per_minute", 60), ("tokens_per_minute", 1000), ("concurrent", 3)]

    def test_a_keys_own_limit_stands_in_place_of_the_default_one(self) -> None:
        own = Tenant("k", "t", requests_per_minute=7, concurrent=1)
        assert amounts(self.DEFAULT, own) == [
            ("requests_per_minute", 7),
            ("tokens_per_minute", 1000),
            ("concurrent", 1),
        ]

    def test_a_key_may_have_limits_where_there_are_none_by_default(self) -> None:
        own = Tenant("k", "t", requests_per_minute=1, tokens_per_minute=2, concurrent=3)
        assert amounts(Rules(), own) == [("requests_per_minute", 1), ("tokens_per_minute", 2), ("concurrent", 3)]
        assert amounts(Rules()) == []

    def test_who_needs_no_key_has_only_what_rules_say(self) -> None:
        rules = Rules(self.DEFAULT.of_keys, (Rule("key", RPM), Rule("tenant", TPM)))
        assert amounts(rules, ANONYMOUS) == [("requests_per_minute", 5), ("tokens_per_minute", 500)]

    def test_each_key_has_buckets_of_its_own_whatever_the_model(self) -> None:
        assert not set(keys(self.DEFAULT)) & set(keys(self.DEFAULT, OTHER_KEY))
        assert keys(self.DEFAULT) == keys(self.DEFAULT, model="another", user="anyone")

    def test_another_tenant_object_of_the_same_key_goes_on_from_where_it_was(self) -> None:
        changed = Tenant("key1", "acme", requests_per_minute=7, models=("m",))
        assert keys(self.DEFAULT) == keys(self.DEFAULT, changed)

    def test_each_bucket_is_what_its_name_says(self) -> None:
        buckets = self.DEFAULT.buckets(KEY, "", "m")
        assert [(bucket.period, bucket.counts) for bucket in buckets] == [
            (MINUTE, Counts.REQUESTS),
            (MINUTE, Counts.BOTH),
            (0.0, Counts.REQUESTS),
        ]
        assert {bucket.of for bucket in buckets} == {"this key"}

    def test_what_holds_while_redis_is_away_is_said_for_keys_and_for_each_rule(self) -> None:
        rules = Rules(RPM, (Rule("key", RPM, on_redis_down="allow"),), on_redis_down="deny")
        assert [bucket.on_redis_down for bucket in rules.buckets(KEY, "", "m")] == ["deny", "allow"]


class TestRules:
    @pytest.mark.parametrize(
        ("rule", "shared", "apart"),
        [
            (Rule("key", RPM), [(KEY, "u", "m"), (KEY, "", "n")], [(OTHER_KEY, "u", "m")]),
            (Rule("tenant", RPM), [(KEY, "u", "m"), (OTHER_KEY, "", "n")], [(OTHER_TENANT, "u", "m")]),
            (Rule("user", RPM), [(KEY, "u", "m"), (OTHER_KEY, "u", "n")], [(KEY, "v", "m"), (OTHER_TENANT, "u", "m")]),
            (Rule("model", RPM), [(KEY, "u", "m"), (OTHER_TENANT, "", "m")], [(KEY, "u", "n")]),
        ],
        ids=lambda value: value.per if isinstance(value, Rule) else "",
    )
    def test_whoever_is_one_subject_shares_a_bucket(
        self, rule: Rule, shared: list[tuple[Tenant, str, str]], apart: list[tuple[Tenant, str, str]]
    ) -> None:
        rules = Rules(rules=(rule,))
        assert len({one(rules, *each).key for each in shared}) == 1
        assert one(rules, *shared[0]).key not in {one(rules, *each).key for each in apart}

    def test_who_asks_for_no_user_has_no_users_limit(self) -> None:
        assert keys(Rules(rules=(Rule("user", RPM),))) == ()

    def test_a_rule_is_for_the_subjects_and_models_that_its_globs_admit(self) -> None:
        rules = Rules(rules=(Rule("tenant", RPM, match="ac*", model="llama-?"),))
        assert len(keys(rules, model="llama-3")) == 1
        assert keys(rules, model="llama-33") == keys(rules, model="Llama-3") == ()
        assert keys(rules, OTHER_TENANT, model="llama-3") == ()

    @pytest.mark.parametrize(
        ("rule", "caller"),
        [
            (Rule("key", RPM, match="key1"), (OTHER_KEY, "key1", "key1")),
            (Rule("tenant", RPM, match="acme"), (OTHER_TENANT, "acme", "acme")),
            (Rule("user", RPM, match="u"), (KEY, "v", "u")),
            (Rule("model", RPM, match="m"), (KEY, "m", "n")),
        ],
        ids=lambda value: value.per if isinstance(value, Rule) else "",
    )
    def test_match_is_about_the_subject_alone(self, rule: Rule, caller: tuple[Tenant, str, str]) -> None:
        assert keys(Rules(rules=(rule,)), *caller) == ()

    def test_the_models_of_a_rule_share_a_bucket_but_for_a_rule_per_model(self) -> None:
        together, each = Rules(rules=(Rule("key", RPM, model="m*"),)), Rules(rules=(Rule("model", RPM, model="m*"),))
        assert keys(together, model="m1") == keys(together, model="m2")
        assert keys(each, model="m1") != keys(each, model="m2")

    def test_brackets_are_a_set_of_letters_as_everywhere_in_the_configuration(self) -> None:
        rules = Rules(rules=(Rule("model", RPM, match="m[12]"),))
        assert len(keys(rules, model="m1")) == 1
        assert keys(rules, model="m[12]") == ()
        literal = Rules(rules=(Rule("model", RPM, match="m[[]12]"),))
        assert len(keys(literal, model="m[12]")) == 1
        assert keys(literal, model="m1") == ()

    @pytest.mark.parametrize("model", ["m[12]", "[", "]", "*", "?", "a\nb", "\ud800", "m\0n", "é" * 200])
    def test_a_model_of_any_name_has_a_bucket_of_its_own(self, model: str) -> None:
        rules = Rules(rules=(Rule("model", RPM), Rule("key", RPM, model="*")))
        assert len(set(keys(rules, model=model))) == 2
        assert keys(rules, model=model)[0] != keys(rules, model="m")[0]
        assert keys(rules, model=model)[1] == keys(rules, model="m")[1]

    @pytest.mark.parametrize(
        ("count", "counts"), [("prompt", Counts.PROMPT), ("completion", Counts.COMPLETION), ("both", Counts.BOTH)]
    )
    def test_a_rule_says_which_tokens_count_and_all_its_requests_do(self, count: TokenKind, counts: Counts) -> None:
        rule = Rule("key", [(name, 9) for name in LIMITS], count=count)
        found = {bucket.name: (bucket.counts, bucket.period) for bucket in Rules(rules=(rule,)).buckets(KEY, "", "m")}
        assert found == {
            "requests_per_minute": (Counts.REQUESTS, MINUTE),
            "tokens_per_minute": (counts, MINUTE),
            "requests_per_day": (Counts.REQUESTS, DAY),
            "tokens_per_day": (counts, DAY),
            "concurrent": (Counts.REQUESTS, 0.0),
        }


class TestKeysOfBuckets:
    EVERY = tuple((name, 9) for name in LIMITS)

    def test_no_request_has_a_bucket_twice(self) -> None:
        scopes: list[tuple[str, str, TokenKind]] = [
            (match, model, count)
            for match in ("*", "?*")
            for model in ("*", "m")
            for count in ("prompt", "completion", "both")
        ]
        rules = tuple(
            Rule(per, self.EVERY, match, model, count)
            for per in ("key", "tenant", "user", "model")
            for match, model, count in scopes
        )
        # One name for all four: who it is does not tell them apart.
        same = Tenant("m", "m")
        found = keys(Rules(self.EVERY, rules), same, "m", "m")
        assert len(found) == len(LIMITS) * (1 + 4 * len(scopes))
        assert len(set(found)) == len(found)

    def test_two_rules_that_differ_in_what_they_count_each_hold_their_own_number_of_requests(self) -> None:
        strict = Rule("tenant", (("requests_per_minute", 60),), count="prompt")
        loose = Rule("tenant", (("requests_per_minute", 600),), count="completion")
        assert len(set(keys(Rules(rules=(strict, loose))))) == 2

    def test_a_limit_that_is_changed_goes_on_from_where_it_was(self) -> None:
        before, after = Rule("tenant", RPM), Rule("tenant", (("requests_per_minute", 50),), on_redis_down="deny")
        assert keys(Rules(rules=(before,))) == keys(Rules(rules=(after,)))
        assert keys(Rules(RPM)) == keys(Rules((("requests_per_minute", 50),)))

    def test_where_a_rule_stands_among_the_others_does_not_matter(self) -> None:
        one, other = Rule("tenant", RPM), Rule("key", TPM)
        assert keys(Rules(rules=(one, other))) == keys(Rules(rules=(other, one)))[::-1]

    def test_every_part_of_a_scope_tells_buckets_apart(self) -> None:
        rules = [
            Rule("tenant", TPM),
            Rule("key", TPM),
            Rule("tenant", TPM, match="a*"),
            Rule("tenant", TPM, model="m"),
            Rule("tenant", TPM, count="prompt"),
            Rule("tenant", (("tokens_per_day", 500),)),
        ]
        for one_rule, other in combinations(rules, 2):
            assert not set(keys(Rules(rules=(one_rule,)))) & set(keys(Rules(rules=(other,))))

    def test_where_one_name_ends_and_the_next_begins_matters(self) -> None:
        rules = Rules(rules=(Rule("user", RPM),))
        assert one(rules, Tenant("k", "ab"), "c").key != one(rules, Tenant("k", "a"), "bc").key

    def test_a_bucket_tells_of_nobody(self) -> None:
        bucket = one(Rules(rules=(Rule("user", RPM),)), KEY, "alice@example.org")
        assert b"alice" not in bucket.key
        assert len(bucket.key) == 30
        assert bucket.key.isalnum()
        assert bucket.of == "this user"


class TestWords:
    @pytest.mark.parametrize(
        ("name", "count", "words"),
        [
            ("requests_per_minute", "prompt", "requests per minute"),
            ("requests_per_day", "both", "requests per day"),
            ("tokens_per_minute", "both", "tokens per minute"),
            ("tokens_per_minute", "prompt", "prompt tokens per minute"),
            ("tokens_per_day", "completion", "completion tokens per day"),
            ("concurrent", "completion", "concurrent requests"),
        ],
    )
    def test_a_limit_is_called_what_it_is(self, name: str, count: TokenKind, words: str) -> None:
        assert words_of(one(Rules(rules=(Rule("key", ((name, 9),), count=count),)))) == words

    @pytest.mark.parametrize(
        ("rule", "words"),
        [
            (Rule("key", RPM), "this key"),
            (Rule("tenant", RPM), "tenant 'acme'"),
            (Rule("user", RPM), "this user"),
            (Rule("model", RPM), "model 'llama'"),
            (Rule("key", RPM, model="ll*"), "this key, models 'll*'"),
            (Rule("model", RPM, model="ll*"), "model 'llama'"),
        ],
    )
    def test_a_refusal_says_whose_limit_it_was(self, rule: Rule, words: str) -> None:
        assert one(Rules(rules=(rule,)), KEY, "u", "llama").of == words

    def test_a_models_name_is_not_told_at_any_length(self) -> None:
        assert len(one(Rules(rules=(Rule("model", RPM),)), model="m" * 10_000).of) < 300
