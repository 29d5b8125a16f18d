//! The same terms in the VM (`erl`, if there is one): hash values and order are those that it gives.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test has one reason to fail, and the line says which"
)]

mod hosted;

use hosted::{Library, atom, binary, int};
use snakepit_wire::NameKind;
use snakepit_wire::reference::Value;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

fn library() -> MutexGuard<'static, Library> {
    static LIBRARY: LazyLock<Mutex<Library>> =
        LazyLock::new(|| Mutex::new(hosted::load(&hosted::compile("terms"), &int(1)).unwrap()));
    LIBRARY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Terms of all kinds that the VM can make from bytes, near each other's edges.
fn terms() -> Vec<Value> {
    let mut terms = Vec::new();
    for power in [0, 1, 7, 8, 26, 27, 28, 31, 32, 52, 53, 54, 58, 59, 60, 61, 62] {
        for value in [-1, 0, 1] {
            terms.extend([int((1 << power) + value), int(-(1 << power) + value)]);
        }
        terms.push(Value::Float((1_u64 << power) as f64));
        terms.push(Value::Float(-((1_u64 << power) as f64) * 1.5));
    }
    terms.extend([
        int(i64::MAX),
        int(i64::MIN),
        Value::Unsigned(1 << 63),
        Value::Unsigned(u64::MAX),
    ]);
    for length in [8, 9, 16, 17, 40] {
        let magnitude: Vec<u8> = (0..length).map(|byte| 200 + byte).collect();
        terms.extend([true, false].map(|negative| Value::Big {
            negative,
            magnitude: magnitude.clone(),
        }));
    }
    terms.extend([0.0, 0.5, 1e300, -1e-300, 1e18, 18_446_744_073_709_551_616.0].map(Value::Float));
    for text in [
        "",
        "a",
        "ok",
        "aa",
        "A b",
        "\u{e9}t\u{e9}",
        "\u{3b1}",
        "a_long_atom_with_many_letters_in_it",
    ] {
        terms.push(atom(text));
    }
    for length in [0, 1, 3, 4, 5, 11, 12, 13, 24, 30, 300] {
        let bytes: Vec<u8> = (0..length).map(|byte| (byte * 7) as u8).collect();
        terms.push(Value::list(bytes.iter().map(|byte| int((*byte).into()))));
        terms.push(Value::list(bytes.iter().map(|byte| int(i64::from(*byte) + 200))));
        if length > 0 {
            let mut bytes = bytes.clone();
            bytes[length - 1] = 0b1010_0000;
            terms.push(Value::Bits { bytes, last: 3 });
        }
        terms.push(binary(bytes));
    }
    terms.extend([
        Value::tuple([]),
        Value::tuple([int(0)]),
        Value::tuple([Value::Nil, atom("a"), int(-1)]),
    ]);
    terms.push(Value::List(vec![int(1), atom("b")], Some(Box::new(binary("tail")))));
    terms.push(Value::list([
        Value::list([Value::Nil]),
        Value::tuple([Value::Float(2.5)]),
    ]));
    for size in [0, 1, 2, 31, 32, 33, 100] {
        terms.push(Value::map(
            (0..size).map(|key| (int(key * 99), Value::list([int(key)]))),
        ));
        terms.push(Value::map(
            (0..size).map(|key| (Value::tuple([atom("k"), int(key)]), Value::Float(0.5))),
        ));
        terms.push(Value::tuple([
            int(9),
            Value::map((0..size).map(|key| (binary(vec![key as u8]), Value::map([])))),
        ]));
    }
    terms
}

/// What the VM says of the terms: a line with the hash value of each, then one that says how it stands to each of them.
fn vm(terms: &[Value]) -> Option<Vec<String>> {
    const PROGRAM: &str = r#"
        {ok, All} = file:read_file(os:getenv("SNAKEPIT_TEST_TERMS")),
        Terms = [binary_to_term(T) || T <- binary_to_term(All)],
        [io:format("~w~n", [erlang:phash2(T)]) || T <- Terms],
        Order = fun (A, B) when A < B -> $<; (A, B) when A == B -> $=; (_, _) -> $> end,
        [io:format("~s~n", [[Order(A, B) || B <- Terms]]) || A <- Terms],
        halt()."#;
    let external = |value: &Value| [&[131], &hosted::encode(std::slice::from_ref(value))[..]].concat();
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("oracle_terms");
    std::fs::write(
        &file,
        external(&Value::list(terms.iter().map(|term| binary(external(term))))),
    )
    .unwrap();
    let erl = Command::new("erl")
        .args(["-noinput", "-noshell", "-eval", PROGRAM])
        .env("SNAKEPIT_TEST_TERMS", &file)
        .output()
        .ok()?;
    assert!(erl.status.success(), "{}", String::from_utf8_lossy(&erl.stdout));
    Some(
        String::from_utf8(erl.stdout)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect(),
    )
}

#[test]
fn hash_values_and_order_are_the_vms() {
    let terms = terms();
    let Some(lines) = vm(&terms) else { return };
    assert_eq!(lines.len(), 2 * terms.len());
    let mut library = library();
    for (term, expected) in terms.iter().zip(&lines) {
        let hash = library.value("phash2", std::slice::from_ref(term));
        assert_eq!(hash, int(expected.parse().unwrap()), "{term:?}");
    }
    for (one, expected) in terms.iter().zip(&lines[terms.len()..]) {
        for (other, expected) in terms.iter().zip(expected.chars()) {
            let Value::Tuple(told) = library.value("compare", &[one.clone(), other.clone()]) else {
                panic!()
            };
            let order = match expected {
                '<' => -1,
                '=' => 0,
                _ => 1,
            };
            assert_eq!(told[0], int(order), "{one:?} and {other:?}");
        }
    }
}

/// Funs, references and compressed terms, with what the VM says of each: `phash2`, flat size, bytes.
fn vms_own() -> Option<Vec<(u64, u64, Vec<u8>)>> {
    const PROGRAM: &str = r#"
        X = {make_ref, [1, 2.5, <<"bytes">>]}, Y = 1 bsl 70,
        Terms = [fun lists:map/2, fun erlang:'+'/2, fun() -> ok end, fun(A) -> {A, X, Y} end, make_ref(),
                 lists:duplicate(500, <<"again">>), #{a => [1, 2, 3]}, {1 bsl 59, -(1 bsl 59), -(1 bsl 59) - 1}, {{}, #{}, []},
                 <<0:7>>, <<1, 2, 3>>, {1 bsl 200, 1.5, "text"}],
        [io:format("~w ~w ~s~n", [erlang:phash2(T), erts_debug:flat_size(binary_to_term(term_to_binary(T))),
                                  binary:encode_hex(term_to_binary(T, if is_list(T) -> [compressed]; true -> [] end))])
         || T <- Terms],
        halt()."#;
    let erl = Command::new("erl")
        .args(["-noinput", "-noshell", "-eval", PROGRAM])
        .output()
        .ok()?;
    assert!(erl.status.success(), "{}", String::from_utf8_lossy(&erl.stdout));
    let line = |line: &str| {
        let parts: Vec<&str> = line.split(' ').collect();
        let bytes = parts[2].as_bytes().chunks(2);
        let hex = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
        (
            parts[0].parse().unwrap(),
            parts[1].parse().unwrap(),
            bytes.map(hex).collect(),
        )
    };
    Some(String::from_utf8(erl.stdout).unwrap().lines().map(line).collect())
}

#[test]
fn what_only_the_vm_makes_is_understood() {
    let Some(lines) = vms_own() else { return };
    assert_eq!(lines.len(), 12);
    let mut library = library();
    for (hash, size, bytes) in lines {
        let kind = match bytes[1] {
            112 | 113 => Some(NameKind::Fun),
            90 => Some(NameKind::Reference),
            _ => None,
        };
        let term = match kind {
            Some(kind) => hosted::name(kind, 1, &bytes[1..]),
            None => {
                let Value::Tuple(read) = library.value("from_binary", &[binary(&bytes), int(0)]) else {
                    panic!()
                };
                assert_eq!(read[0], int(bytes.len() as i64));
                read[1].clone()
            }
        };
        assert_eq!(
            library.value("phash2", std::slice::from_ref(&term)),
            int(hash as i64),
            "{term:?}"
        );
        if kind != Some(NameKind::Fun) {
            assert_eq!(
                library.value("size", std::slice::from_ref(&term)),
                int(size as i64 * 8),
                "{term:?}"
            );
        }
        if kind.is_some() {
            assert_eq!(library.value("to_binary", &[term]), binary(bytes));
        }
    }
}
