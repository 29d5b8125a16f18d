//! What happens around terms: exceptions, binaries, resources, threads, and what calls come to.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test has one reason to fail, and the line says which"
)]

mod hosted;

use hosted::{Answer, CALLER, Library, atom, binary, int, name, pid, reference, text};
use snakepit_host::host::{self, Outcome};
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
fn the_library_describes_itself() {
    let mut library = library();
    assert_eq!(library.loaded().module, "terms");
    let position = library.position("count_down", 2) as usize;
    assert_eq!(library.loaded().functions[position].flags, 2);
    assert_eq!(library.loaded().missing, Vec::<String>::new());
    assert_eq!(library.value("private_data", &[]), int(42));
}

#[test]
fn what_cannot_be_made_is_badarg() {
    let mut library = library();
    let badarg = || Answer::Raised(atom("badarg"));
    assert_eq!(library.call("not_a_number", &[]), badarg());
    assert_eq!(library.call("infinite", &[]), badarg());
    assert_eq!(library.call("long_atom", &[int(256)]), badarg());
    assert_eq!(library.value("long_atom", &[int(255)]), atom(&"a".repeat(255)));
    assert_eq!(library.call("add", &[int(1), atom("x")]), badarg());
}

#[test]
fn an_exception_stays() {
    let mut library = library();
    let reason = Value::tuple([atom("why"), int(1)]);
    assert_eq!(
        library.call("raise_then_return", std::slice::from_ref(&reason)),
        Answer::Raised(reason)
    );
    assert_eq!(library.value("add", &[int(1), int(2)]), int(3));
}

#[test]
fn a_function_that_returns_nothing_is_told_so() {
    let mut library = library();
    let Answer::Other(Outcome::NotEncodable(message)) = library.call("nothing", &[]) else {
        panic!()
    };
    assert!(message.contains("no term"), "{message}");
}

#[test]
fn a_binary_of_a_term_is_copied_when_it_grows() {
    let mut library = library();
    for length in [0, 1, 64, 65, 5_000] {
        let given = vec![b'.'; length];
        let mut grown = given.clone();
        grown.push(b'!');
        if length > 0 {
            grown[0] = b'x';
        }
        let both = library.value("realloc_inspected", &[binary(&given)]);
        assert_eq!(both, Value::tuple([binary(&given), binary(&grown)]));
    }
}

#[test]
fn binaries_grow_and_are_shared() {
    let mut library = library();
    let bytes: Vec<u8> = (0..5_000).map(|byte| byte as u8).collect();
    let parts = library.value("grow", &[int(5_000)]);
    assert_eq!(parts, Value::list([binary(&bytes), binary(&bytes[1..4_999])]));
    assert_eq!(
        library.value("new_binary", &[int(1 << 20)]),
        binary(vec![b'n'; 1 << 20])
    );
}

#[test]
fn iolists_become_binaries() {
    let mut library = library();
    let improper = |tail| Value::List(vec![int(98), binary("cd")], Some(Box::new(tail)));
    let good = [
        (Value::Nil, ""),
        (binary("whole"), "whole"),
        (Value::list([int(97), improper(binary("e")), Value::Nil]), "abcde"),
    ];
    for (given, expected) in good {
        assert_eq!(library.value("iolist", &[given]), binary(expected));
    }
    for given in [
        int(97),
        atom("a"),
        improper(int(1)),
        Value::list([int(256)]),
        Value::list([int(-1)]),
    ] {
        assert_eq!(library.call("iolist", &[given]), Answer::Raised(atom("badarg")));
    }
}

#[test]
fn strings_and_atoms_fit_their_buffers() {
    let mut library = library();
    let cases = [
        (text("sixteen"), 8, text("sixteen")),
        (text("sixteens"), -8, text("sixteen")),
        (Value::Nil, 1, Value::Nil),
        (Value::list([int(256)]), 0, atom("no")),
        (atom("a"), 0, atom("no")),
    ];
    for (given, length, read) in cases {
        assert_eq!(library.value("string", &[given]), Value::tuple([int(length), read]));
    }
    let cases = [
        (atom("seven77"), 8, int(7), text("seven77")),
        (atom("eight888"), 0, int(8), atom("no")),
        (atom("\u{e9}"), 2, int(1), Value::list([int(0xE9)])),
        (atom("\u{3b1}"), 0, atom("no"), atom("no")),
        (int(1), 0, atom("no"), atom("no")),
    ];
    for (given, written, length, read) in cases {
        assert_eq!(
            library.value("atom", &[given]),
            Value::tuple([int(written), length, read])
        );
    }
    assert_eq!(library.value("existing", &[binary("badarg")]), atom("badarg"));
    assert_eq!(library.value("existing", &[binary("never seen")]), int(0));
}

#[test]
fn the_caller_is_known() {
    let mut library = library();
    let caller = Value::Name {
        name: CALLER,
        key: Vec::new(),
    };
    assert_eq!(library.value("self", &[]), caller);
    assert_eq!(library.value("local", &[pid(1, 1)]), int(1));
    assert_eq!(library.value("local", &[name(NameKind::Port, 1, b"")]), int(2));
    assert_eq!(library.value("local", &[reference(1, [1, 2, 3])]), int(0));
    // A name goes back by its place alone.
    let Value::Name { name: back, key } = library.value("echo", &[pid(9, 9)]) else {
        panic!()
    };
    assert_eq!((back.index, back.generation, key), (9, 1, Vec::new()));
}

#[test]
fn resources_live_as_long_as_somebody_holds_them() {
    let mut library = library();
    let destroyed = |library: &mut Library| {
        host::settle();
        match library.value("resources_destroyed", &[]) {
            Value::Integer(sum) => sum,
            other => panic!("{other:?}"),
        }
    };
    let before = destroyed(&mut library);
    let Value::Resource(id) = library.value("resource_new", &[int(1)]) else {
        panic!()
    };
    let resource = || Value::Resource(id);
    assert_eq!(
        library.value("resource_get", &[resource()]),
        Value::tuple([int(1), int(4)])
    );
    assert_eq!(
        library.value("type", &[resource()]),
        Value::tuple([int(10), int(1 << 2)])
    );
    // Two handles more, one of them in an answer that does not get through.
    assert_eq!(
        library.value("resource_twice", &[resource()]),
        Value::list([resource(), resource()])
    );
    assert_eq!(
        library.raw("resource_twice", &[resource()], &mut Vec::new(), 20),
        Outcome::TooLarge
    );
    host::release(vec![id, id]);
    assert_eq!(destroyed(&mut library), before);
    library.value("resource_retain", &[resource()]);
    host::release(vec![id]);
    assert_eq!(destroyed(&mut library), before);
    let Answer::Other(Outcome::BadArguments(message)) = library.call("resource_get", &[resource()]) else {
        panic!()
    };
    assert!(message.contains("resource"), "{message}");
    library.value("resource_drop", &[]);
    assert_eq!(destroyed(&mut library), before + 1);
    // One whose handle never left is destroyed with the call.
    assert_eq!(library.value("resource_binary", &[]), binary(vec![b'r'; 96]));
    assert_eq!(destroyed(&mut library), before + 1_001);
    // What the VM has not been given means nothing.
    host::release(vec![id, 999_999]);
    host::settle();
}

#[test]
fn functions_go_on_later() {
    let mut library = library();
    assert_eq!(library.value("count_down", &[int(1_000), int(0)]), int(500_500));
}

#[test]
fn threads_and_clocks_work() {
    let mut library = library();
    assert_eq!(library.value("threads", &[]), atom("ok"));
    let (Value::Tuple(one), Value::Tuple(other)) = (library.value("times", &[]), library.value("times", &[])) else {
        panic!()
    };
    assert_eq!(one.len(), 3);
    assert_ne!(one, other);
}

#[test]
fn what_is_not_there_names_itself() {
    let mut library = library();
    let answer = library.call("resource_phash2", &[]);
    let Answer::Other(Outcome::NotImplemented(symbol)) = answer else {
        panic!("{answer:?}")
    };
    assert!(symbol.starts_with("enif_hash"), "{symbol}");
    assert_eq!(library.value("add", &[int(1), int(2)]), int(3));
}

#[test]
fn functions_know_what_they_are_for() {
    let mut library = library();
    for (function, arguments, kind) in [
        ("thread_type", vec![], 1),
        ("dirty_cpu", vec![], 2),
        ("dirty_io", vec![], 3),
        ("thread_type_of", vec![int(0)], 1),
        ("thread_type_of", vec![int(1)], 2),
        ("thread_type_of", vec![int(2)], 3),
        ("thread_type", vec![], 1),
    ] {
        assert_eq!(library.value(function, &arguments), int(kind), "{function}");
    }
}

#[test]
fn options_are_for_the_load_callback() {
    assert_eq!(library().value("options", &[]), int(libc::EINVAL.into()));
}

#[test]
fn atoms_have_places_in_a_cache() {
    let mut library = library();
    let place = library.value("cache_index", &[atom("ok")]);
    assert!(matches!(place, Value::Integer(_)), "{place:?}");
    assert_eq!(library.value("cache_index", &[atom("ok")]), place);
    assert_ne!(library.value("cache_index", &[atom("error")]), place);
    assert_eq!(library.value("cache_index", &[int(1)]), atom("no"));
}

#[test]
fn what_only_the_vm_can_do_fails_without_it() {
    let mut library = library();
    assert_eq!(library.call("send", &[int(1)]), Answer::Raised(atom("badarg")));
}

#[test]
fn a_large_answer_is_refused() {
    let mut library = library();
    let mut answer = Vec::new();
    assert_eq!(
        library.raw("new_binary", &[int(1_000)], &mut answer, 999),
        Outcome::TooLarge
    );
}

#[test]
fn malformed_arguments_are_refused() {
    let mut library = library();
    let mut executor = host::Executor::new();
    let function = library.position("echo", 1);
    for (arity, bytes) in [
        (1, &b""[..]),
        (1, &[97]),
        (1, &[97, 1, 97, 1]),
        (2, &[97, 1, 97, 1]),
        (1, &[255]),
    ] {
        let call = host::Call {
            function,
            arity,
            arguments: bytes,
            caller: CALLER,
        };
        let outcome = executor.call(&call, &mut snakepit_wire::Measure::default());
        assert!(matches!(outcome, Outcome::BadArguments(_)), "{bytes:?}: {outcome:?}");
    }
    assert_eq!(library.value("echo", &[int(1)]), int(1));
}

#[test]
fn a_call_begins_anew_though_nobody_cleared_up() {
    let library = library();
    let mut executor = host::Executor::new();
    let mut answer = Vec::new();
    for (name, expected) in [("infinite", Outcome::Raised), ("self", Outcome::Value)] {
        let function = library.position(name, 0);
        let call = host::Call {
            function,
            arity: 0,
            arguments: &[],
            caller: CALLER,
        };
        let outcome = executor.call(&call, &mut snakepit_wire::VecSink::new(&mut answer, 100));
        assert_eq!(outcome, expected);
    }
}

#[test]
fn queues_refer_to_bytes() {
    let mut library = library();
    let large = vec![b'L'; 1_000];
    let parts = Value::list([binary("xy"), binary(""), binary(&large)]);
    let whole = [&b"bcxyy"[..], &large].concat();
    for (skip, head) in [
        (0, &whole[..2]),
        (1, b"c"),
        (2, b"xy"),
        (4, b"y"),
        (5, &large),
        (6, &large[1..]),
    ] {
        let expected = Value::tuple([binary(head), binary(&whole[skip..]), Value::Nil]);
        assert_eq!(
            library.value("queue", &[parts.clone(), int(skip as i64)]),
            expected,
            "{skip}"
        );
    }
    for given in [
        Value::list([int(1)]),
        Value::List(vec![binary("a")], Some(Box::new(binary("b")))),
        atom("a"),
    ] {
        assert_eq!(library.call("queue", &[given, int(0)]), Answer::Raised(atom("badarg")));
    }
}
