//! C++ in the host: exceptions that are caught inside, containers of terms, objects with destructors.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test has one reason to fail, and the line says which"
)]

mod hosted;

use hosted::{Answer, Library, atom, binary, int};
use snakepit_host::host;
use snakepit_wire::reference::Value;
use std::path::Path;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

fn library() -> MutexGuard<'static, Library> {
    static LIBRARY: LazyLock<Mutex<Library>> = LazyLock::new(|| {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../test/support/fixtures/isolation");
        let path = hosted::compile_code("cpp", &fixtures.join("cpp.cc"));
        Mutex::new(hosted::load(&path, &int(0)).unwrap())
    });
    LIBRARY.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn what_is_thrown_is_raised() {
    let mut cpp = library();
    assert_eq!(cpp.value("parse", &[binary("17 and more")]), int(17));
    assert_eq!(cpp.call("parse", &[binary("none")]), Answer::Raised(atom("badarg")));
    let far = binary("99999999999999999999");
    assert_eq!(cpp.call("parse", &[far]), Answer::Raised(atom("out_of_range")));
    let thrown = |depth: i64| Answer::Raised(Value::tuple([int(depth + 1), binary("why")]));
    for depth in [0, 1, 1_000] {
        assert_eq!(cpp.call("raise_through", &[int(depth), binary("why")]), thrown(depth));
    }
}

#[test]
fn terms_are_sorted_and_counted_in_containers() {
    let mut cpp = library();
    let unsorted = [binary("b"), atom("z"), int(2), Value::list([]), int(1)];
    let sorted = Value::list([int(1), int(2), atom("z"), Value::list([]), binary("b")]);
    assert_eq!(cpp.value("sort", &[Value::list(unsorted)]), sorted);
    let words: Vec<Value> = (0..1_000).map(|n| binary(format!("word {}", n % 50))).collect();
    let Value::Map(counts) = cpp.value("count", &[Value::list(words)]) else {
        panic!()
    };
    assert_eq!(counts.len(), 50);
    assert!(counts.iter().all(|(_, count)| *count == int(20)));
}

#[test]
fn objects_end_with_their_destructors() {
    let mut cpp = library();
    let before = cpp.value("tables", &[]);
    let table = cpp.value("table_new", &[]);
    let put = |n: i64| [table.clone(), binary(format!("key {n}")), int(n)];
    for n in 0..100 {
        assert_eq!(cpp.value("table_put", &put(n)), atom("ok"));
    }
    assert_eq!(cpp.value("table_get", &[table.clone(), binary("key 7")]), int(7));
    let missing = [table.clone(), binary("no key")];
    assert_eq!(cpp.call("table_get", &missing), Answer::Raised(atom("out_of_range")));
    let holder = cpp.value("holder_new", &[]);
    let held = cpp.value("holder_get", std::slice::from_ref(&holder));
    assert_eq!(cpp.value("table_list", std::slice::from_ref(&held)), Value::list([]));
    let id = |object: &Value| match object {
        Value::Resource(id) => *id,
        other => panic!("{other:?}"),
    };
    // The holder's table lives on as long as the VM has it.
    host::release(vec![id(&table), id(&holder)]);
    host::settle();
    assert_eq!(cpp.value("table_list", std::slice::from_ref(&held)), Value::list([]));
    host::release(vec![id(&held)]);
    host::settle();
    assert_eq!(cpp.value("tables", &[]), before);
}
