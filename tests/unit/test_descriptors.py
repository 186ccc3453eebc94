"""Descriptor sets: what is refused, what is compatible."""

from __future__ import annotations

import pytest

from kernel.errors import InvalidArgument, TooLarge
from schemas import registry
from schemas.compatibility import breaking
from schemas.model import SchemaLimits
from tests.protos import CART, F, descriptor_set, enum, field, file, message

LIMITS = SchemaLimits()


def parsed(*files: object, limits: SchemaLimits = LIMITS) -> registry.Files:
    return registry.parse_set(descriptor_set(*files), limits)  # type: ignore[arg-type]


def change(before: registry.Files, after: registry.Files) -> registry.Change:
    return registry.change(before, after, LIMITS)


def refusal(before: registry.Files, after: registry.Files) -> str:
    with pytest.raises(InvalidArgument) as found:
        change(before, after)
    assert found.value.field == "descriptor_set"
    return found.value.problem


# -- sets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"\xff\xff", "is not a FileDescriptorSet"), (b"", "has no files")],
)
def test_what_is_no_set_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        registry.parse_set(data, LIMITS)


def test_a_set_is_bounded_in_bytes_and_in_files() -> None:
    with pytest.raises(TooLarge) as found:
        registry.parse_set(b"\0" * (LIMITS.set_bytes + 1), LIMITS)
    assert (found.value.actual, found.value.limit) == (LIMITS.set_bytes + 1, LIMITS.set_bytes)
    files = [file(f"{i}.proto") for i in range(3)]
    with pytest.raises(TooLarge, match="3 files, the limit is 2"):
        parsed(*files, limits=SchemaLimits(files=2))


def test_all_that_is_registered_is_bounded() -> None:
    small = SchemaLimits(total_bytes=len(registry.encoded(CART)) + 10)
    with pytest.raises(TooLarge, match="all registered descriptors"):
        registry.change(parsed(CART), parsed(file("b.proto", message("Other"))), small)
    registry.change({}, parsed(CART), small)
    with pytest.raises(TooLarge, match="2 files, the limit is 1"):
        registry.change(parsed(CART), parsed(file("b.proto")), SchemaLimits(files=1))


def test_a_file_without_a_name_and_two_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="printable name"):
        parsed(file(""))
    with pytest.raises(InvalidArgument, match=r"two different files 'a\.proto'"):
        parsed(file("a.proto"), file("a.proto", message("A")))
    assert list(parsed(file("a.proto"), file("a.proto"))) == ["a.proto"]


def test_a_missing_import_is_named() -> None:
    problem = refusal({}, parsed(file("a.proto", dependency=["b.proto"])))
    assert problem.startswith("'a.proto' imports 'b.proto', which is neither in it nor registered")
    assert change(parsed(file("b.proto")), parsed(file("a.proto", dependency=["b.proto"]))).files


def test_imports_that_go_in_a_circle_are_refused() -> None:
    problem = refusal(
        {},
        parsed(
            file("a.proto", dependency=["b.proto"]),
            file("b.proto", dependency=["c.proto"]),
            file("c.proto", dependency=["a.proto"]),
        ),
    )
    assert "import each other" in problem


def test_a_chain_of_imports_may_be_as_long_as_a_set() -> None:
    files = [file("0.proto")]
    files += [file(f"{i}.proto", dependency=[f"{i - 1}.proto"]) for i in range(1, 1_990)]
    assert len(change({}, parsed(*reversed(files))).files) == 1_990


def test_a_file_that_protobuf_refuses_is_named_with_its_reason() -> None:
    wrong = file("a.proto", message("A", field(1, "b", ".shop.Missing")))
    assert refusal({}, parsed(wrong)).startswith("'a.proto' is not valid: ")
    twice = file("a.proto", message("A", field(1, "b", "int32"), field(1, "c", "int32")))
    assert "'a.proto' is not valid" in refusal({}, parsed(twice))


def test_protobufs_own_files_are_always_there_and_never_kept() -> None:
    own = file("google/protobuf/timestamp.proto", package="google.protobuf")
    using = file(
        "a.proto",
        message("A", field(1, "at", ".google.protobuf.Timestamp")),
        dependency=["google/protobuf/timestamp.proto"],
    )
    done = change({}, parsed(own, using))
    assert [made.name for made in done.files] == ["a.proto"]


def test_comments_are_not_kept() -> None:
    commented = file("a.proto", message("A"))
    commented.source_code_info.location.add(leading_comments="secret")
    assert change(parsed(file("a.proto", message("A"))), parsed(commented)).files == ()


def test_types_are_the_messages_with_full_names_but_for_map_entries() -> None:
    inner = message("Inner", field(1, "a", "int32"))
    entry = message("ManyEntry", field(1, "key", "string"), field(2, "value", "string"))
    entry.options.map_entry = True
    many = field(1, "many", ".shop.Outer.ManyEntry", label=F.LABEL_REPEATED)
    outer = message("Outer", many, nested_type=[inner, entry])
    done = change({}, parsed(file("a.proto", outer), file("b.proto", message("B"), package="")))
    assert [made.types for made in done.files] == [
        (("shop.Outer", 1), ("shop.Outer.Inner", 1)),
        (("B", 0),),
    ]


# -- one message under two files -----------------------------------------------------------------


def test_a_file_that_comes_under_another_name_replaces_the_old_one() -> None:
    moved = file("cart.proto", *CART.message_type)
    done = change(parsed(CART), parsed(moved))
    assert (done.superseded, done.breaking) == (("shop/cart.proto",), ())
    assert [made.name for made in done.files] == ["cart.proto"]


def test_a_message_with_two_homes_is_refused_when_the_old_file_has_more() -> None:
    problem = refusal(parsed(CART), parsed(file("b.proto", CART.message_type[0])))
    assert (
        "shop.ItemAdded is defined in 'b.proto' and, registered before, in 'shop/cart.proto'"
        in (problem)
    )


def test_a_file_that_others_import_is_not_replaced_behind_their_back() -> None:
    user = file("user.proto", message("User"), dependency=["shop/cart.proto"])
    moved = file("cart.proto", *CART.message_type)
    problem = refusal(parsed(CART, user), parsed(moved))
    assert "'user.proto', registered before, imports it" in problem
    user_too = file("user.proto", message("User"), dependency=["cart.proto"])
    assert change(parsed(CART, user), parsed(moved, user_too)).superseded == ("shop/cart.proto",)


def test_a_message_that_moves_to_another_file_of_the_set_is_not_gone() -> None:
    a, b = file("a.proto", message("A"), message("B")), file("b.proto", message("C"))
    moved = file("a.proto", message("A")), file("b.proto", message("B"), message("C"))
    done = change(parsed(a, b), parsed(*moved))
    assert ([f.name for f in done.files], done.breaking) == (["a.proto", "b.proto"], ())
    assert change(parsed(a, b), parsed(moved[0])).breaking == ("shop.B: is gone",)


# -- compatibility -------------------------------------------------------------------------------

BASE = (
    field(1, "a", "int32"),
    field(2, "b", "string"),
    field(3, "c", "int32", label=F.LABEL_REPEATED),
)


def compared(old: tuple[F, ...], new: tuple[F, ...], **more: object) -> list[str]:
    before = file("a.proto", message("M", *old))
    return breaking([before], [file("a.proto", message("M", *new, **more))])


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ((field(1, "a", "string"), *BASE[1:]), "field a = 1 was int32 and is string"),
        ((field(1, "a", "sint32"), *BASE[1:]), "field a = 1 was int32 and is sint32"),
        ((field(1, "a", "uint64"), *BASE[1:]), "field a = 1 was int32 and is uint64"),
        ((field(1, "a", ".shop.M"), *BASE[1:]), "field a = 1 was int32 and is shop.M"),
        ((BASE[0], field(2, "b", "bytes"), BASE[2]), "field b = 2 was string and is bytes"),
        ((field(1, "z", "int32"), *BASE[1:]), "field a = 1 was renamed to z"),
        (
            (field(1, "a", "int32", label=F.LABEL_REPEATED), *BASE[1:]),
            "field a = 1 was not repeated",
        ),
        ((*BASE[:2], field(3, "c", "int32")), "field c = 3 was repeated"),
        (
            (field(1, "a", "int32", label=F.LABEL_REQUIRED), *BASE[1:]),
            "field a = 1 became required",
        ),
        (BASE[1:], "field a = 1 is gone and its number is not reserved"),
        (
            (*BASE, field(4, "d", "int32", label=F.LABEL_REQUIRED)),
            "field d = 4 is new and required",
        ),
    ],
)
def test_what_makes_stored_payloads_read_otherwise_is_breaking(
    new: tuple[F, ...], said: str
) -> None:
    assert compared(BASE, new) == [f"shop.M: {said}"]


@pytest.mark.parametrize(
    "new",
    [
        BASE,
        BASE[::-1],
        (*BASE, field(4, "d", "string")),
        (field(1, "a", "int64"), *BASE[1:]),
        (field(1, "a", "int32", proto3_optional=True), *BASE[1:]),
    ],
)
def test_what_leaves_stored_payloads_readable_is_compatible(new: tuple[F, ...]) -> None:
    assert compared(BASE, new) == []


@pytest.mark.parametrize(
    ("old", "new", "fits"),
    [
        ("int32", "int64", True), ("int64", "int32", False), ("uint32", "uint64", True),
        ("uint32", "int64", True), ("uint64", "int64", False), ("sint32", "sint64", True),
        ("bool", "int32", False), ("fixed32", "uint32", False), ("float", "double", False),
    ],
)  # fmt: skip
def test_integers_may_become_wider(old: str, new: str, fits: bool) -> None:
    assert (compared((field(1, "a", old),), (field(1, "a", new),)) == []) is fits


def test_a_field_may_go_when_its_number_is_reserved_and_may_not_come_back() -> None:
    reserved = [{"start": 1, "end": 2}]
    assert compared(BASE, BASE[1:], reserved_range=reserved) == []
    for near in ({"start": 2, "end": 3}, {"start": 0, "end": 1}):
        assert compared(BASE, BASE[1:], reserved_range=[near]) != []
    before = file("a.proto", message("M", *BASE[1:], reserved_range=reserved))
    after = file("a.proto", message("M", field(1, "again", "string"), *BASE[1:]))
    assert breaking([before], [after]) == [
        "shop.M: field again = 1 uses a number that was reserved"
    ]


def test_enums_keep_numbers_and_names() -> None:
    def given(*values: str, **more: object) -> list[str]:
        before = file("a.proto", enum_type=[enum("E", "A", "B", "C")])
        return breaking([before], [file("a.proto", enum_type=[enum("E", *values, **more)])])

    assert given("A", "B", "C", "D") == []
    assert given("A", "B", "X") == ["shop.E: value C = 2 was renamed to X"]
    assert given("A", "B") == ["shop.E: value C = 2 is gone and its number is not reserved"]
    assert given("A", "B", reserved_range=[{"start": 2, "end": 2}]) == []
    nested = file("a.proto", message("M", enum_type=[enum("E", "A", "B")]))
    assert breaking([nested], [file("a.proto", message("M"))]) == ["shop.M.E: is gone"]


def test_messages_do_not_go_away_nested_ones_neither() -> None:
    before = file("a.proto", message("M", nested_type=[message("N")]))
    assert breaking([before], []) == ["shop.M: is gone", "shop.M.N: is gone"]
    assert breaking([before], [file("b.proto", *before.message_type)]) == []
