//! Debian's jiffy, unmodified, in the host: its own loops in Erlang (`jiffy:decode/2`, `jiffy:encode/2`) are done here.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test has one reason to fail, and the line says which"
)]

mod hosted;

use hosted::{Answer, Library, atom, binary};
use snakepit_wire::reference::Value;
use std::sync::{LazyLock, Mutex, MutexGuard};

/// `None` where erlang-jiffy is not installed.
fn jiffy() -> Option<MutexGuard<'static, Library>> {
    static JIFFY: LazyLock<Option<Mutex<Library>>> = LazyLock::new(|| {
        let path = hosted::debian("jiffy-", "priv/jiffy")?;
        Some(Mutex::new(hosted::load(&path, &Value::Integer(0)).unwrap()))
    });
    let library = JIFFY.as_ref()?;
    Some(library.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// As `jiffy:decode(Json, [return_maps])`: numbers that are no small integers come back in pieces that Erlang finishes.
fn decode(jiffy: &mut Library, json: &[u8]) -> Answer {
    jiffy.call("nif_decode_init", &[binary(json), Value::list([atom("return_maps")])])
}

/// As `jiffy:encode(Term)`: a binary, or the pieces of a long one, the last first, which Erlang puts in order.
fn encode(jiffy: &mut Library, term: Value) -> Vec<u8> {
    match jiffy.value("nif_encode_init", &[term, Value::Nil]) {
        Value::List(pieces, None) => pieces.iter().rev().flat_map(flat).collect(),
        whole => flat(&whole),
    }
}

fn flat(iolist: &Value) -> Vec<u8> {
    match iolist {
        Value::Binary(bytes) => bytes.clone(),
        Value::Integer(byte) => vec![*byte as u8],
        Value::Nil => Vec::new(),
        Value::List(elements, None) => elements.iter().flat_map(flat).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn module_and_functions_are_discovered() {
    let Some(jiffy) = jiffy() else { return };
    assert_eq!(jiffy.loaded().module, "jiffy");
    assert_eq!(jiffy.loaded().functions.len(), 4);
    assert_eq!(jiffy.loaded().missing, Vec::<String>::new());
}

#[test]
fn a_document_becomes_a_term() {
    let Some(mut jiffy) = jiffy() else { return };
    let json = br#"{"name": "snake", "tags": ["a", "\u00e9", null, true], "n": -17, "deep": {"x": []}}"#;
    let expected = Value::map([
        (binary("name"), binary("snake")),
        (
            binary("tags"),
            Value::list([binary("a"), binary("\u{e9}"), atom("null"), atom("true")]),
        ),
        (binary("n"), Value::Integer(-17)),
        (binary("deep"), Value::map([(binary("x"), Value::Nil)])),
    ]);
    let Answer::Value(value) = decode(&mut jiffy, json) else {
        panic!()
    };
    // Both in the reference heap's order of pairs.
    assert_eq!(
        hosted::decode(&hosted::encode(&[value])),
        hosted::decode(&hosted::encode(&[expected]))
    );
}

#[test]
fn a_term_becomes_a_document() {
    let Some(mut jiffy) = jiffy() else { return };
    let term = Value::map([(
        binary("k"),
        Value::list([Value::Integer(1), binary("x\n"), atom("false")]),
    )]);
    assert_eq!(encode(&mut jiffy, term), br#"{"k":[1,"x\n",false]}"#);
}

#[test]
fn floats_cross() {
    let Some(mut jiffy) = jiffy() else { return };
    assert_eq!(encode(&mut jiffy, Value::Float(1.5)), b"1.5");
    assert_eq!(
        decode(&mut jiffy, b"[2.25]"),
        Answer::Value(Value::list([Value::Float(2.25)]))
    );
}

#[test]
fn what_is_no_document_raises() {
    let Some(mut jiffy) = jiffy() else { return };
    let Answer::Value(Value::Tuple(error)) = decode(&mut jiffy, b"{\"a\": }") else {
        panic!()
    };
    assert_eq!(error[0], atom("error"));
    assert_eq!(
        jiffy.call("nif_decode_init", &[atom("x"), Value::Nil]),
        Answer::Raised(atom("badarg"))
    );
}

#[test]
fn twenty_thousand_objects_come_back_as_they_went() {
    let Some(mut jiffy) = jiffy() else { return };
    let object = |number: i64| {
        Value::map([
            (binary("id"), Value::Integer(number)),
            (
                binary("name"),
                binary(format!("object {number} with a name that is longer than it has to be")),
            ),
            (
                binary("flags"),
                Value::list([atom("true"), atom("null"), Value::Integer(-number)]),
            ),
        ])
    };
    let document = hosted::decode(&hosted::encode(&[Value::list((0..20_000).map(object))]));
    let json = encode(&mut jiffy, document.clone());
    assert!(json.len() > 1 << 20, "{}", json.len());
    let Answer::Value(back) = decode(&mut jiffy, &json) else {
        panic!()
    };
    assert!(hosted::decode(&hosted::encode(&[back])) == document);
}

#[test]
fn a_map_of_many_keys_is_built_key_by_key() {
    let Some(mut jiffy) = jiffy() else { return };
    let json = format!(
        "{{{}}}",
        (0..5_000)
            .map(|key| format!("\"key {key}\":{key}"))
            .collect::<Vec<_>>()
            .join(",")
    );
    let Answer::Value(Value::Map(pairs)) = decode(&mut jiffy, json.as_bytes()) else {
        panic!()
    };
    let mut numbers: Vec<i64> = pairs
        .iter()
        .map(|(key, value)| match (key, value) {
            (Value::Binary(key), Value::Integer(value)) if *key == format!("key {value}").into_bytes() => *value,
            other => panic!("{other:?}"),
        })
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..5_000).collect::<Vec<_>>());
}
