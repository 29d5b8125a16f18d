//! What terms are to a library: crossing, copied, compared, taken apart, printed; lists and maps.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test has one reason to fail, and the line says which"
)]

mod hosted;

use hosted::{Answer, Library, atom, big, binary, int, name, pid, pid_key, reference, samples, text};
use snakepit_host::host::Outcome;
use snakepit_wire::NameKind;
use snakepit_wire::reference::Value;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

fn library() -> MutexGuard<'static, Library> {
    static LIBRARY: LazyLock<Mutex<Library>> = LazyLock::new(|| {
        let path = hosted::compile("terms");
        Mutex::new(hosted::load(&path, &Value::Integer(42)).unwrap())
    });
    LIBRARY.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn terms_pass_through_unchanged() {
    let mut library = library();
    for sample in samples() {
        // Maps come back in the order in which they went.
        assert_eq!(
            library.value("echo", std::slice::from_ref(&sample)),
            hosted::decode(&hosted::encode(&[sample]))
        );
    }
}

#[test]
fn copies_outlive_their_source() {
    let mut library = library();
    for sample in samples() {
        let expected = hosted::decode(&hosted::encode(std::slice::from_ref(&sample)));
        assert_eq!(library.value("copy", std::slice::from_ref(&sample)), expected);
        library.value("keep", &[sample]);
        for _ in 0..3 {
            library.value("grow", &[int(300)]);
        }
        assert_eq!(library.value("kept_term", &[]), expected);
    }
}

#[test]
fn integers_fit_their_types() {
    let mut library = library();
    let no = || atom("no");
    let cases = [
        (int(-1), [int(-1), no(), int(-1), no()]),
        (int(1 << 31), [no(), int(1 << 31), int(1 << 31), int(1 << 31)]),
        (int(1 << 32), [no(), no(), int(1 << 32), int(1 << 32)]),
        (int(i64::MAX), [no(), no(), int(i64::MAX), int(i64::MAX)]),
        (int(i64::MIN), [no(), no(), int(i64::MIN), no()]),
        (Value::Unsigned(u64::MAX), [no(), no(), no(), Value::Unsigned(u64::MAX)]),
        (big(true, &[1, 0, 0, 0, 0, 0, 0, 128]), [no(), no(), no(), no()]),
        (Value::Float(1.0), [no(), no(), no(), no()]),
    ];
    for (given, expected) in cases {
        assert_eq!(library.value("integers", &[given]), Value::tuple(expected));
    }
}

#[test]
fn kinds_are_told_apart() {
    let mut library = library();
    let cases = [
        (atom("a"), 1, 1 << 0),
        (binary("b"), 2, 1 << 1),
        (
            Value::Bits {
                bytes: vec![128],
                last: 1,
            },
            2,
            0,
        ),
        (Value::Float(1.0), 3, 1 << 10),
        (int(1), 5, 1 << 10),
        (Value::Unsigned(u64::MAX), 5, 1 << 10),
        (Value::Nil, 6, 1 << 6 | 1 << 7),
        (Value::list([int(1)]), 6, 1 << 6),
        (Value::map([]), 7, 1 << 9),
        (Value::tuple([]), 11, 1 << 8),
        (pid(1, 1), 8, 1 << 4),
        (name(NameKind::Port, 1, b""), 9, 1 << 5),
        (reference(1, [1, 2, 3]), 10, 1 << 2),
        (name(NameKind::Fun, 1, b"fun"), 4, 1 << 3),
    ];
    for (given, kind, is) in cases {
        assert_eq!(
            library.value("type", std::slice::from_ref(&given)),
            Value::tuple([int(kind), int(is)]),
            "{given:?}"
        );
    }
}

/// Ascending, no two equal.
fn ordered() -> Vec<Value> {
    vec![
        big(true, &[0, 0, 0, 0, 0, 0, 0, 0, 1]),
        int(i64::MIN),
        Value::Float(-1e18),
        int(-1),
        int(0),
        Value::Float(0.5),
        int(1),
        int((1 << 53) + 1),
        Value::Float(9_007_199_254_740_994.0),
        Value::Float(9_223_372_036_854_775_808.0),
        Value::Unsigned((1 << 63) + 1),
        big(false, &[0, 0, 0, 0, 0, 0, 0, 0, 1]),
        Value::Float(1e300),
        atom("a"),
        atom("aa"),
        atom("b"),
        reference(9, [0, 1, 0]),
        reference(2, [0, 1, 2]),
        reference(1, [1, 0, 0]),
        name(NameKind::Fun, 1, b"f"),
        name(NameKind::Port, 1, b""),
        pid(30, 1),
        pid(20, 2),
        Value::tuple([]),
        Value::tuple([int(9)]),
        Value::tuple([int(1), int(1)]),
        Value::tuple([int(1), int(2)]),
        Value::map([]),
        Value::map([(int(1), int(9))]),
        Value::map([(int(2), int(1))]),
        Value::map([(Value::Float(1.0), int(1))]),
        Value::map([(atom("a"), int(1))]),
        Value::map([(atom("a"), int(2))]),
        Value::map((0..40).map(|key| (int(key), int(0)))),
        Value::Nil,
        Value::list([int(1)]),
        Value::list([int(1), int(2)]),
        Value::List(vec![int(1)], Some(Box::new(binary("")))),
        Value::list([int(2)]),
        binary(""),
        binary("a"),
        Value::Bits {
            bytes: vec![b'a', 0],
            last: 1,
        },
        binary("aa"),
        Value::Bits {
            bytes: vec![b'b'],
            last: 7,
        },
        binary("b"),
    ]
}

#[test]
fn order_is_erlangs() {
    let mut library = library();
    let ordered = ordered();
    for (left, one) in ordered.iter().enumerate() {
        for (right, other) in ordered.iter().enumerate() {
            let Value::Tuple(told) = library.value("compare", &[one.clone(), other.clone()]) else {
                panic!()
            };
            let expected = match left.cmp(&right) {
                std::cmp::Ordering::Less => -1,
                std::cmp::Ordering::Equal => 0,
                std::cmp::Ordering::Greater => 1,
            };
            assert_eq!(
                told[..2],
                [int(expected), int((left == right).into())],
                "{one:?} and {other:?}"
            );
            if left == right {
                assert_eq!(told[2], int(1), "the hash of {one:?}");
            }
        }
    }
}

#[test]
fn equal_by_value_is_not_identical() {
    let mut library = library();
    let pairs = [
        (int(1), Value::Float(1.0)),
        (
            Value::tuple([int(1 << 40)]),
            Value::tuple([Value::Float((1_i64 << 40) as f64)]),
        ),
        (Value::Unsigned(1 << 63), Value::Float(9_223_372_036_854_775_808.0)),
        (Value::Float(0.0), Value::Float(-0.0)),
    ];
    for (one, other) in pairs {
        let Value::Tuple(told) = library.value("compare", &[one, other]) else {
            panic!()
        };
        assert_eq!(told[..2], [int(0), int(0)]);
    }
}

#[test]
fn a_reference_is_itself_under_another_index() {
    let mut library = library();
    let told = library.value("compare", &[reference(4, [1, 2, 3]), reference(5, [1, 2, 3])]);
    assert_eq!(told, Value::tuple([int(0), int(1), int(1)]));
}

#[test]
fn lists_are_measured_and_reversed() {
    let mut library = library();
    let list = Value::list([int(1), int(2), int(3)]);
    assert_eq!(
        library.value("list", &[list]),
        Value::list([int(3), int(3), int(2), int(1)])
    );
    assert_eq!(library.value("list", &[Value::Nil]), Value::list([int(0)]));
    let improper = Value::List(vec![int(1)], Some(Box::new(int(2))));
    assert_eq!(library.call("list", &[improper]), Answer::Raised(atom("badarg")));
}

#[test]
fn maps_are_changed_and_looked_up() {
    let mut library = library();
    let badarg = || Answer::Raised(atom("badarg"));
    let one = Value::map([(int(1), atom("one"))]);
    let float = || Value::Float(1.0);
    assert_eq!(library.value("map_get", &[one.clone(), int(1)]), atom("one"));
    assert_eq!(library.call("map_get", &[one.clone(), float()]), badarg());
    assert_eq!(library.call("map_get", &[atom("none"), int(1)]), badarg());
    let changed = Value::map([(int(1), atom("uno"))]);
    assert_eq!(library.value("map_put", &[one.clone(), int(1), atom("uno")]), changed);
    assert_eq!(
        library.value("map_update", &[one.clone(), int(1), atom("uno")]),
        changed
    );
    assert_eq!(
        library.call("map_update", &[one.clone(), int(2), atom("dos")]),
        badarg()
    );
    assert_eq!(library.value("map_remove", &[one.clone(), int(1)]), Value::map([]));
    assert_eq!(library.value("map_remove", &[one.clone(), int(2)]), one);
    assert_eq!(library.call("map_remove", &[Value::Nil, int(2)]), badarg());
    assert_eq!(library.value("map_from", &[int(1), int(1)]), atom("no"));
    let two = Value::map([(int(1), atom("a")), (float(), atom("b"))]);
    assert_eq!(
        library.value("map_from", &[int(1), float()]),
        hosted::decode(&hosted::encode(&[two]))
    );
}

#[test]
fn maps_of_any_size_keep_their_pairs() {
    let mut library = library();
    for count in [0, 1, 31, 32, 33, 34, 100, 1_000, 20_000] {
        let expected = Value::map((0..count).map(|key| (int(key), int(2 * key))));
        let expected = hosted::decode(&hosted::encode(&[expected]));
        assert_eq!(library.value("map_many", &[int(count)]), expected, "{count}");
    }
}

#[test]
fn maps_of_the_vm_are_walked_in_the_vms_order() {
    let mut library = library();
    for count in [0, 1, 20, 40, 500] {
        let map = Value::map((0..count).map(|key| (int(key * 7919 % 1_000), binary("v"))));
        // The reference heap has an order of its own; what it writes is what the host gets.
        let Value::Map(pairs) = hosted::decode(&hosted::encode(std::slice::from_ref(&map))) else {
            panic!()
        };
        let pairs: Vec<Value> = pairs
            .into_iter()
            .map(|(key, value)| Value::tuple([key, value]))
            .collect();
        let forth_and_back = pairs.iter().chain(pairs.iter().rev()).cloned();
        assert_eq!(library.value("map_walk", &[map]), Value::list(forth_and_back));
    }
}

#[test]
fn a_large_map_is_looked_up_changed_and_walked() {
    let mut library = library();
    let map = Value::map((0..1_000).map(|key| (Value::tuple([int(key)]), int(key))));
    let key = || Value::tuple([int(500)]);
    assert_eq!(library.value("map_get", &[map.clone(), key()]), int(500));
    let Value::Map(pairs) = library.value("map_put", &[map.clone(), key(), atom("new")]) else {
        panic!()
    };
    assert_eq!(pairs.len(), 1_000);
    assert!(pairs.contains(&(key(), atom("new"))));
    let Value::Map(pairs) = library.value("map_remove", &[map, key()]) else {
        panic!()
    };
    assert_eq!(pairs.len(), 999);
}

#[test]
fn the_external_format_goes_both_ways() {
    let mut library = library();
    for sample in samples() {
        let Value::Binary(bytes) = library.value("to_binary", std::slice::from_ref(&sample)) else {
            panic!()
        };
        let mut longer = bytes.clone();
        longer.extend_from_slice(b"rest");
        let back = library.value("from_binary", &[binary(longer), int(0)]);
        let expected = hosted::decode(&hosted::encode(&[sample]));
        assert_eq!(back, Value::tuple([int(bytes.len() as i64), expected]));
    }
    let no = atom("no");
    for malformed in [
        &b""[..],
        &[131],
        &[130, 97, 1],
        &[131, 97],
        &[131, 108, 255, 255, 255, 255],
        &[131, 2, 0],
    ] {
        assert_eq!(library.value("from_binary", &[binary(malformed), int(0)]), no);
    }
    let new_atom = [&[131, 119, 8][..], b"not_seen"].concat();
    assert_eq!(library.value("from_binary", &[binary(&new_atom), int(1)]), no);
    assert_eq!(
        library.value("from_binary", &[binary(&new_atom), int(0)]),
        Value::tuple([int(11), atom("not_seen")])
    );
    // The VM writes lists of bytes so.
    let string = [131, 107, 0, 2, 1, 2];
    let list = Value::list([int(1), int(2)]);
    assert_eq!(
        library.value("from_binary", &[binary(string), int(0)]),
        Value::tuple([int(6), list])
    );
}

#[test]
fn names_have_the_bytes_that_they_came_with() {
    let mut library = library();
    let port = {
        let mut key = vec![89, 119, 13];
        key.extend_from_slice(b"nonode@nohost");
        key.extend_from_slice(&[0, 0, 0, 7, 0, 0, 0, 0]);
        name(NameKind::Port, 3, &key)
    };
    let names = [pid(40, 40), port, reference(41, [1, 2, 3])];
    let term = Value::tuple([
        Value::list(names.clone()),
        Value::map([(names[0].clone(), names[2].clone())]),
        binary([131, 1]),
    ]);
    let Value::Binary(bytes) = library.value("to_binary", std::slice::from_ref(&term)) else {
        panic!()
    };
    for name in &names {
        let Value::Name { key, .. } = name else { panic!() };
        assert!(bytes.windows(key.len()).any(|part| part == key), "{name:?}");
    }
    // As they came, without keys.
    let back = library.value("from_binary_with", &[binary(&bytes), term.clone()]);
    assert_eq!(back, library.value("echo", &[term]));
    // A pid is known for good, a reference as long as somebody holds it.
    let external = |key: &[u8]| binary([&[131], key].concat());
    let Value::Tuple(read) = library.value("from_binary", &[external(&pid_key(40)), int(0)]) else {
        panic!()
    };
    assert_eq!(read[1], library.value("echo", &[pid(40, 40)]));
    let Value::Name { key, .. } = &names[2] else { panic!() };
    for unknown in [external(key), external(&pid_key(41))] {
        let answer = library.call("from_binary", &[unknown, int(0)]);
        assert!(
            matches!(answer, Answer::Other(Outcome::NotImplemented(_))),
            "{answer:?}"
        );
    }
    library.value("keep", &[names[2].clone()]);
    let Value::Tuple(read) = library.value("from_binary", &[external(key), int(0)]) else {
        panic!()
    };
    assert_eq!(read[1], library.value("echo", &[names[2].clone()]));
    // Cut off in the middle of a name.
    let cut = binary(&bytes[..40]);
    assert_eq!(library.value("from_binary", &[cut, int(0)]), atom("no"));
}

#[test]
fn terms_are_printed_as_the_vm_prints_them() {
    let mut library = library();
    let cases = [
        (int(-5), "-5"),
        (Value::Unsigned(u64::MAX), "18446744073709551615"),
        (big(true, &[0, 0, 0, 0, 0, 0, 0, 0, 1]), "-18446744073709551616"),
        (Value::Float(1.5), "1.500000e+00"),
        (atom("ok"), "ok"),
        (atom("Not plain"), "'Not plain'"),
        (Value::Nil, "[]"),
        (text("str"), "\"str\""),
        (Value::List(vec![int(1), int(2)], Some(Box::new(atom("t")))), "[1,2|t]"),
        (Value::tuple([int(1), Value::tuple([])]), "{1,{}}"),
        (Value::map([(int(1), Value::list([int(2)]))]), "#{1=>[2]}"),
        (binary("text"), "<<\"text\">>"),
        (binary([1, 2]), "<<1,2>>"),
        (
            Value::Bits {
                bytes: vec![255, 0b1100_0000],
                last: 2,
            },
            "<<255,3:2>>",
        ),
        (pid(50, 77), "<0.77.0>"),
    ];
    for (given, expected) in cases {
        assert_eq!(library.value("print", &[given]), text(expected));
    }
    let formatted = "-3| 2.50|ab  |7|ff|q|%|{a}|   9|end";
    assert_eq!(library.value("format", &[Value::tuple([atom("a")])]), text(formatted));
}

#[test]
fn deep_terms_do_not_overflow_the_stack() {
    let mut library = library();
    assert_eq!(library.value("deep", &[int(1_000_000)]), atom("ok"));
}
