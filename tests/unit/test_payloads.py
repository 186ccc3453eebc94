"""Payloads as JSON values: every kind of field, limits, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from google.protobuf import (
    any_pb2,
    duration_pb2,
    field_mask_pb2,
    json_format,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.errors import Undecodable
from schemas.descriptors import Decoder
from schemas.model import SchemaLimits
from schemas.upcasters import Upcasters, upcaster
from tests.protos import CART, F, Source, enum, field, file, kind_of, map_of, message

JSON, PROTOBUF, TEXT = "application/json", "application/protobuf", "text/plain"

SCALARS = (
    "double", "float", "int64", "uint64", "int32", "fixed64", "fixed32", "bool", "string", "bytes",
    "uint32", "sfixed32", "sfixed64", "sint32", "sint64",
)  # fmt: skip

counts, counts_entry = map_of("shop.All", 80, "counts", "string", "int64")
items, items_entry = map_of("shop.All", 81, "items", "int32", ".shop.All")
flags, flags_entry = map_of("shop.All", 82, "flags", "bool", "bytes")
ALL = file(
    "all.proto",
    message(
        "All",
        *(field(i, f"one_{kind}", kind) for i, kind in enumerate(SCALARS, 1)),
        *(field(i, f"many_{k}", k, label=F.LABEL_REPEATED) for i, k in enumerate(SCALARS, 20)),
        *(
            field(i, f"maybe_{k}", k, proto3_optional=True, oneof_index=i - 40)
            for i, k in enumerate(SCALARS, 40)
        ),
        field(60, "color", ".shop.Color", type=F.TYPE_ENUM),
        field(61, "colors", ".shop.Color", type=F.TYPE_ENUM, label=F.LABEL_REPEATED),
        field(70, "inner", ".shop.All"),
        field(71, "inners", ".shop.All", label=F.LABEL_REPEATED),
        counts,
        items,
        flags,
        nested_type=[counts_entry, items_entry, flags_entry],
        oneof_decl=[{"name": f"_maybe_{kind}"} for kind in SCALARS],
    ),
    enum_type=[enum("Color", "NONE", "RED", "GREEN")],
)
All: Any = kind_of("shop.All", ALL)


async def decoder(
    *files: FileDescriptorProto, types: Sequence[str], limits: SchemaLimits | None = None
) -> Decoder:
    made = Decoder(Source(*files), limits=limits)
    await made.prepare([(kind, PROTOBUF) for kind in types])
    return made


async def decoded(value: Any, *files: FileDescriptorProto, **more: Any) -> Any:
    name = value.DESCRIPTOR.full_name
    made = await decoder(*(files or (ALL,)), types=[name], **more)
    return made.decode(name, PROTOBUF, 0, value.SerializeToString())


async def reason(value: Any, *files: FileDescriptorProto, **more: Any) -> str:
    with pytest.raises(Undecodable) as found:
        await decoded(value, *files, **more)
    return found.value.message


# -- fields --------------------------------------------------------------------------------------


async def test_fields_that_know_no_absence_are_there_with_their_zero_the_others_are_absent() -> (
    None
):
    zeros: dict[str, Any] = dict.fromkeys((f"one_{kind}" for kind in SCALARS), 0)
    zeros |= {"one_bool": False, "one_string": "", "one_bytes": "", "color": "NONE", "colors": []}
    zeros |= {f"many_{kind}": [] for kind in SCALARS}
    zeros |= {"inners": [], "counts": {}, "items": {}, "flags": {}}
    found = await decoded(All())
    assert found == zeros
    assert found["one_bool"] is False


async def test_present_fields_are_there_even_with_their_zero() -> None:
    found = await decoded(All(maybe_int32=0, maybe_string="", maybe_bool=False, inner=All()))
    assert (found["maybe_int32"], found["maybe_string"], found["maybe_bool"]) == (0, "", False)
    assert found["inner"]["one_int32"] == 0
    assert "maybe_int64" not in found


async def test_64_bit_integers_are_numbers() -> None:
    found = await decoded(
        All(one_int64=-(2**63), one_uint64=2**64 - 1, counts={"a": 2**63 - 1}, many_sint64=[-1])
    )
    assert (found["one_int64"], found["one_uint64"]) == (-(2**63), 2**64 - 1)
    assert (found["counts"], found["many_sint64"]) == ({"a": 2**63 - 1}, [-1])
    assert orjson.loads(orjson.dumps(found)) == found


async def test_enums_are_names_and_unknown_ones_numbers() -> None:
    found = await decoded(All(color=2, colors=[1, 7, 0]))
    assert (found["color"], found["colors"]) == ("GREEN", ["RED", 7, "NONE"])


async def test_bytes_are_base64_and_keys_are_strings() -> None:
    found = await decoded(All(one_bytes=b"\xff\0", items={-1: All()}, flags={True: b"a"}))
    assert found["one_bytes"] == "/wA="
    assert list(found["items"]) == ["-1"]
    assert found["flags"] == {"true": "YQ=="}


async def test_floats_are_the_shortest_number_and_what_json_lacks_are_strings() -> None:
    found = await decoded(
        All(many_float=[0.1, math.nan, 3.4028235e38, 16777216], many_double=[math.inf, -math.inf])
    )
    assert found["many_float"] == [0.1, "NaN", 3.4028235e38, 16777216]
    assert found["many_double"] == ["Infinity", "-Infinity"]


async def test_names_that_python_has_taken_are_fields_like_others() -> None:
    names = ("from", "Clear", "DESCRIPTOR", "ListFields", "HasField", "None")
    fields = [field(i, name, "int32") for i, name in enumerate(names, 1)]
    fields.append(field(9, "there", "int32", proto3_optional=True, oneof_index=0))
    made = file("a.proto", message("A", *fields, oneof_decl=[{"name": "_there"}]))
    payload = b"".join(bytes((f.number << 3, f.number)) for f in fields)
    found = (await decoder(made, types=["shop.A"])).decode("shop.A", PROTOBUF, 0, payload)
    assert found == {f.name: f.number for f in fields}


async def test_messages_of_proto2_have_their_defaults_extensions_and_groups() -> None:
    made = file(
        "old.proto",
        message(
            "Old",
            field(1, "a", "int32", default_value="5"),
            field(2, "b", "string", label=F.LABEL_REQUIRED),
            extension_range=[{"start": 100, "end": 200}],
        ),
        syntax="proto2",
        extension=[field(100, "more", "int32", extendee=".shop.Old")],
    )
    kind = kind_of("shop.Old", made)
    found = await decoded(kind.FromString(b"\x12\x01x\xa0\x06\x07"), made)
    assert found == {"b": "x", "[shop.more]": 7}


async def test_the_type_may_be_a_url() -> None:
    made = await decoder(CART, types=["type.googleapis.com/shop.ItemRemoved"])
    found = made.decode("type.googleapis.com/shop.ItemRemoved", PROTOBUF, 0, b"\x0a\x01p")
    assert found == {"product_id": "p"}


# -- well-known types ----------------------------------------------------------------------------

WELL_KNOWN = file(
    "known.proto",
    message(
        "Known",
        field(1, "at", ".google.protobuf.Timestamp"),
        field(2, "took", ".google.protobuf.Duration"),
        field(3, "mask", ".google.protobuf.FieldMask"),
        field(4, "struct", ".google.protobuf.Struct"),
        field(5, "value", ".google.protobuf.Value"),
        field(6, "list", ".google.protobuf.ListValue"),
        field(7, "int64", ".google.protobuf.Int64Value"),
        field(8, "bytes", ".google.protobuf.BytesValue"),
        field(9, "any", ".google.protobuf.Any"),
        field(10, "null", ".google.protobuf.NullValue", type=F.TYPE_ENUM),
        field(11, "empty", ".google.protobuf.Empty"),
    ),
    dependency=[
        f"google/protobuf/{name}.proto"
        for name in ("timestamp", "duration", "field_mask", "struct", "wrappers", "any", "empty")
    ],
)


async def known(**fields: Any) -> Any:
    """The JSON value of the named fields, each given as a well-known message."""
    kind: Any = kind_of("shop.Known", WELL_KNOWN)
    made = kind()
    for name, value in fields.items():
        getattr(made, name).MergeFromString(value.SerializeToString())
        getattr(made, name).SetInParent()
    found = await decoded(made, WELL_KNOWN)
    assert found.pop("null") is None
    return found


async def test_well_known_types_have_their_special_forms() -> None:
    data = struct_pb2.Struct()
    data.update({"a": [1, 2.5, None, {"b": True}]})
    assert await known(at=timestamp_pb2.Timestamp(seconds=1, nanos=5_000)) == {
        "at": "1970-01-01T00:00:01.000005Z"
    }
    assert await known(took=duration_pb2.Duration(seconds=3)) == {"took": "3s"}
    assert await known(mask=field_mask_pb2.FieldMask(paths=["a.b_c", "d"])) == {"mask": "a.bC,d"}
    assert await known(struct=data) == {"struct": {"a": [1, 2.5, None, {"b": True}]}}
    assert await known(value=struct_pb2.Value(string_value="x")) == {"value": "x"}
    assert await known(list=data["a"]) == {"list": [1, 2.5, None, {"b": True}]}
    assert await known(int64=wrappers_pb2.Int64Value(value=2**62)) == {"int64": 2**62}
    assert await known(int64=wrappers_pb2.Int64Value()) == {"int64": 0}
    assert await known(bytes=wrappers_pb2.BytesValue(value=b"a")) == {"bytes": "YQ=="}
    assert await known(empty=any_pb2.Any()) == {"empty": {}}


async def test_an_any_is_its_type_and_its_fields() -> None:
    inner = any_pb2.Any()
    inner.Pack(timestamp_pb2.Timestamp(seconds=1))
    url = "type.googleapis.com/google.protobuf.Timestamp"
    assert await known(any=inner) == {"any": {"@type": url, "value": "1970-01-01T00:00:01Z"}}
    outer = any_pb2.Any(type_url="x/shop.Known", value=b"\x3a\x02\x08\x07")
    assert await known(any=outer) == {"any": {"@type": "x/shop.Known", "int64": 7, "null": None}}
    assert await known(any=any_pb2.Any()) == {"any": {}}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"at": timestamp_pb2.Timestamp(seconds=1 << 60)}, "protobuf.Timestamp out of range"),
        ({"took": duration_pb2.Duration(seconds=1 << 60)}, "protobuf.Duration out of range"),
        ({"any": any_pb2.Any(type_url="x/shop.No", value=b"a")}, "'shop.No', which is not"),
        ({"any": any_pb2.Any(type_url="x/shop.Known", value=b"\xff")}, "not the bytes of a shop"),
        ({"value": struct_pb2.Value(number_value=math.nan)}, "protobuf.Value without a JSON"),
    ],
)  # fmt: skip
async def test_well_known_types_without_a_json_value_are_undecodable(
    fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(Undecodable) as found:
        await known(**fields)
    assert said in found.value.message
    assert found.value.message.startswith("the payload of shop.Known ")


# -- the round trip ------------------------------------------------------------------------------

_EXTREME = {
    "int32": st.integers(-(2**31), 2**31 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint32": st.integers(0, 2**32 - 1),
    "uint64": st.integers(0, 2**64 - 1),
    "bool": st.booleans(),
    "string": st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    "bytes": st.binary(max_size=5),
    # JSON has one NaN, of all those that IEEE 754 knows.
    # Protobuf refuses to read the largest as it writes it itself, 3.4028235e+38.
    "float": st.floats(width=32, allow_nan=False).filter(lambda v: abs(v) != 2.0**128 - 2.0**104)
    | st.just(math.nan),
    "double": st.floats(allow_nan=False) | st.just(math.nan),
}
_SAME = {"fixed": "uint", "sfixed": "int", "sint": "int"}


def of(kind: str) -> st.SearchStrategy[Any]:
    for prefix, like in _SAME.items():
        if kind.startswith(prefix):
            return _EXTREME[kind.replace(prefix, like, 1)]
    return _EXTREME[kind]


def all_fields(depth: int = 2) -> st.SearchStrategy[Any]:
    choices: dict[str, st.SearchStrategy[Any]] = {}
    for kind in SCALARS:
        choices[f"one_{kind}"] = choices[f"maybe_{kind}"] = of(kind)
        choices[f"many_{kind}"] = st.lists(of(kind), max_size=3)
    choices["color"] = st.integers(0, 5)
    choices["colors"] = st.lists(st.integers(0, 5), max_size=3)
    choices["counts"] = st.dictionaries(of("string"), of("int64"), max_size=3)
    choices["flags"] = st.dictionaries(st.booleans(), of("bytes"))
    if depth:
        inner = all_fields(depth - 1)
        choices["inner"] = inner
        choices["inners"] = st.lists(inner, max_size=2)
        choices["items"] = st.dictionaries(of("int32"), inner, max_size=2)
    some = st.lists(st.sampled_from(sorted(choices)), unique=True, max_size=6)
    return some.flatmap(
        lambda names: st.fixed_dictionaries({name: choices[name] for name in names})
    ).map(lambda fields: All(**fields))


@settings(max_examples=150, deadline=None)
@given(value=all_fields())
async def test_any_message_becomes_json_from_which_protobuf_reads_the_same_message(
    value: Any,
) -> None:
    found = await decoded(value)
    text = orjson.dumps(found)  # it is JSON
    assert _same(json_format.Parse(text, All()), value)


def _same(one: Any, other: Any) -> bool:
    """Equal as bytes: NaN does not equal itself, and 0.0 equals -0.0."""
    return bool(
        one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
    )


@settings(max_examples=150, deadline=None)
@given(value=all_fields())
async def test_but_for_64_bit_numbers_it_is_what_protobufs_own_json_says(value: Any) -> None:
    theirs = json_format.MessageToDict(
        value,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        unquote_int64_if_possible=False,
    )

    def quoted(ours: Any, like: Any) -> Any:
        """Ours with 64-bit integers as strings, where theirs has strings."""
        if isinstance(ours, dict):
            assert ours.keys() == like.keys()
            return {key: quoted(item, like[key]) for key, item in ours.items()}
        if isinstance(ours, list):
            return [quoted(a, b) for a, b in zip(ours, like, strict=True)]
        if isinstance(ours, int) and not isinstance(ours, bool) and isinstance(like, str):
            return str(ours)
        return ours

    ours = quoted(await decoded(value), theirs)
    assert json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True)


@settings(max_examples=300, deadline=None)
@given(payload=st.binary(max_size=60))
async def test_any_bytes_are_decoded_or_refused_and_nothing_else(payload: bytes) -> None:
    made = await decoder(ALL, types=["shop.All"])
    try:
        found = made.decode("shop.All", PROTOBUF, 0, payload)
    except Undecodable as error:
        assert "is not the bytes of a shop.All" in error.message  # noqa: PT017 - either is right
    else:
        assert isinstance(found, dict)


# -- bounds --------------------------------------------------------------------------------------


def nested(depth: int) -> bytes:
    payload = b""
    for _ in range(depth):
        size = len(payload)
        length = b""
        while size > 127:
            length += bytes((size & 127 | 128,))
            size >>= 7
        payload = b"\xb2\x04" + length + bytes((size,)) + payload  # field 70, inner
    return payload


async def test_nesting_is_bounded() -> None:
    made = await decoder(ALL, types=["shop.All"])
    assert made.decode("shop.All", PROTOBUF, 0, nested(50))["inner"]["inner"]
    for depth in (150, 20_000):
        with pytest.raises(Undecodable):
            made.decode("shop.All", PROTOBUF, 0, nested(depth))
    shallow = await decoder(ALL, types=["shop.All"], limits=SchemaLimits(depth=10))
    with pytest.raises(Undecodable, match="is nested too deeply"):
        shallow.decode("shop.All", PROTOBUF, 0, nested(50))
    with pytest.raises(Undecodable, match="is not JSON"):
        made.decode("x", JSON, 0, b"[" * 500_000)


async def test_anys_in_anys_are_bounded_though_each_is_parsed_for_itself() -> None:
    inner = any_pb2.Any()
    for _ in range(2_000):
        inner = any_pb2.Any(type_url="x/google.protobuf.Any", value=inner.SerializeToString())
    made = file(
        "any.proto",
        message("A", field(1, "any", ".google.protobuf.Any")),
        dependency=["google/protobuf/any.proto"],
    )
    value: Any = kind_of("shop.A", made)()
    value.any.MergeFromString(inner.SerializeToString())
    assert "is nested too deeply" in await reason(value, made)
    few: Any = kind_of("shop.A", made)()
    few.any.type_url, few.any.value = "x/shop.A", b"\x0a\x0a\x0a\x08x/shop.A"
    assert (await decoded(few, made))["any"]["any"] == {"@type": "x/shop.A"}
    assert "is nested too deeply" in await reason(few, made, limits=SchemaLimits(depth=3))


async def test_a_small_payload_cannot_become_a_huge_value() -> None:
    many = All(inners=[All() for _ in range(1_000)])
    assert len(many.SerializeToString()) < 5_000
    assert "would be too large" in await reason(many, limits=SchemaLimits(decoded_bytes=200_000))
    colors = All(colors=[1] * 100_000)
    assert "would be too large" in await reason(colors, limits=SchemaLimits(decoded_bytes=200_000))
    found = await decoded(many)
    assert len(orjson.dumps(found)) < SchemaLimits().decoded_bytes


async def test_what_is_taken_is_at_least_what_json_needs_beyond_the_payload() -> None:
    value = All(
        inners=[All() for _ in range(50)], colors=[1] * 50, many_double=[-1.7e-308] * 50,
        many_uint64=[2**64 - 1] * 50, many_bool=[False] * 50, counts={str(i): 1 for i in range(50)},
        inner=All(maybe_int64=-(2**63), maybe_double=-1.7e-308, maybe_string=""),
    )  # fmt: skip
    size = len(orjson.dumps(await decoded(value)))
    text = len(value.SerializeToString())
    assert "would be too large" in await reason(
        value, limits=SchemaLimits(decoded_bytes=size - text)
    )


# -- other content types -------------------------------------------------------------------------


async def test_json_and_text_are_what_they_say_and_bytes_mean_nothing() -> None:
    made = Decoder()
    assert made.decode("E", JSON, 0, b'{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    assert made.decode("E", TEXT, 0, "ä".encode()) == "ä"
    for other in ("application/octet-stream", "image/png", ""):
        assert made.decode("E", other, 0, b"\xff") is None


@pytest.mark.parametrize(
    ("content_type", "payload", "said"),
    [
        (JSON, b"", "the payload of E is not JSON: "),
        (JSON, b"{hunter2", "the payload of E is not JSON: "),
        (JSON, b"\xff", "the payload of E is not JSON: "),
        (JSON, b'{"a": NaN}', "the payload of E is not JSON: "),
        (TEXT, b"\xff", "the payload of E is not UTF-8 text"),
    ],
)
def test_what_is_not_what_it_says_is_undecodable(
    content_type: str, payload: bytes, said: str
) -> None:
    with pytest.raises(Undecodable) as found:
        Decoder().decode("E", content_type, 0, payload)
    assert found.value.message.startswith(said)
    assert "hunter2" not in found.value.message


async def test_a_wrong_payload_names_the_type_and_tells_nothing_of_itself() -> None:
    made = await decoder(CART, types=["shop.ItemAdded"])
    with pytest.raises(Undecodable) as found:
        made.decode("shop.ItemAdded", PROTOBUF, 0, b"\x0a\x7fhunter2")
    assert found.value.message == (
        "the payload of shop.ItemAdded is not the bytes of a shop.ItemAdded"
    )


async def test_upcasters_see_the_decoded_value() -> None:
    @upcaster("shop.ItemRemoved", to="Removed", to_version=2)
    def moved(data: Any) -> Any:
        return {"sku": data["product_id"]}

    made = Decoder(Source(CART), Upcasters([moved]))
    await made.prepare([("shop.ItemRemoved", PROTOBUF)])
    found = made.read("shop.ItemRemoved", PROTOBUF, 0, b"\x0a\x01p")
    assert found == ("Removed", 2, {"sku": "p"})
    assert made.decode("shop.ItemRemoved", PROTOBUF, 1, b"\x0a\x01p") == {"product_id": "p"}
    assert made.read("E", JSON, 4, b"1") == ("E", 4, 1)
