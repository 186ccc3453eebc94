"""Tokens and roles as values: their form, what each role may do."""

from __future__ import annotations

import hashlib
import re

import pytest

from kernel import tokens
from kernel.errors import InvalidArgument, PermissionDenied
from kernel.principals import PAYLOAD, Principal, Role, check_grants


def test_a_token_has_a_form_that_scanners_find_and_256_random_bits() -> None:
    made = {tokens.mint() for _ in range(200)}
    assert len(made) == 200
    for token in made:
        assert re.fullmatch(r"est_[0-9A-Za-z]{49}", token)
        assert tokens.digest_of(token) == hashlib.sha256(token.encode()).digest()
    # Every digit of the body varies: none of it is fixed or counts up.
    assert all(len({token[i] for token in made}) > 2 for i in range(4, 47))


def test_a_mistyped_token_is_found_out_without_asking() -> None:
    token = tokens.mint()
    for i in (4, 20, 46, 47, 52):
        other = "a" if token[i] != "a" else "b"
        assert tokens.digest_of(token[:i] + other + token[i + 1 :]) is None
    for text in ("", "est_", token[4:], token + "x", token + "\n", token.upper(), "x" * 10_000):
        assert tokens.digest_of(text) is None


def test_a_digest_is_of_one_token_only() -> None:
    one, other = tokens.mint(), tokens.mint()
    digest = tokens.digest_of(one)
    assert digest is not None
    assert tokens.is_same(one, digest)
    assert not tokens.is_same(other, digest)
    assert not tokens.is_same("nonsense", digest)


def test_a_role_may_do_all_that_smaller_ones_may() -> None:
    assert [role.word for role in sorted(Role)] == ["viewer", "operator", "admin"]
    operator = Principal("token", "ci", Role.OPERATOR)
    operator.require(Role.VIEWER)
    operator.require(Role.OPERATOR)
    with pytest.raises(PermissionDenied, match="needs the role admin; 'ci' has the role operator"):
        operator.require(Role.ADMIN)


def test_a_grant_is_apart_from_the_role() -> None:
    with pytest.raises(PermissionDenied, match="grant payload"):
        Principal("token", "boss", Role.ADMIN).require_grant(PAYLOAD)
    Principal("token", "dev", Role.VIEWER, frozenset({PAYLOAD})).require_grant(PAYLOAD)


def test_unknown_roles_and_grants_are_named() -> None:
    with pytest.raises(InvalidArgument, match="role: 'root' is not one of viewer, operator, admin"):
        Role.of("root")
    with pytest.raises(InvalidArgument, match="grants: 'everything' is not a grant"):
        check_grants(frozenset({"everything", PAYLOAD}))
    assert [Role.of(role.word) for role in Role] == list(Role)
