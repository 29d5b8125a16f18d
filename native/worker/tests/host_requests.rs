//! What needs the VM, in one process with who plays it: to be looked at with valgrind or a sanitizer. `requests.rs` has the
//! cases, against the built executable.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test has one reason to fail, and the line says which"
)]

mod hosted;
mod support;

use hosted::int;
use snakepit_host::host::{self, Transport};
use snakepit_wire::NameKind;
use snakepit_wire::reference::Value;
use snakepit_wire::service::Request;
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard};
use support::PATIENCE;
use support::asked::{Vm, bare, pid, reference};

/// Answers at once, in the thread that asks.
#[derive(Default)]
struct Direct {
    vm: Mutex<Vm>,
    said: Condvar,
}

static VM: LazyLock<Direct> = LazyLock::new(Direct::default);

impl Transport for Direct {
    fn longest(&self) -> usize {
        1 << 16
    }

    fn put(&self, kind: u32, record: &[u8]) -> bool {
        let answer = self.vm.lock().unwrap().take(kind, record);
        self.said.notify_all();
        if let Some((request, reply)) = answer {
            host::answer(request, reply);
        }
        true
    }
}

fn vm() -> MutexGuard<'static, Vm> {
    VM.vm.lock().unwrap()
}

/// Waits for a message that no call sends.
fn message() -> Value {
    let none = |vm: &mut Vm| vm.messages.is_empty();
    let (mut vm, _) = VM.said.wait_timeout_while(vm(), PATIENCE, none).unwrap();
    vm.messages.pop().expect("no message").1
}

#[test]
fn everything_that_asks_the_vm() {
    host::connect(&*VM);
    let mut library = hosted::load(&hosted::compile("requests"), &Value::tuple([])).unwrap();
    let library = &mut library;
    library.value("bind", &[pid(5)]);

    let large = Value::Binary(vec![7; 100_000]);
    let term = Value::list([reference(60), large, Value::Float(1.5)]);
    assert_eq!(library.value("send", &[pid(5), term.clone(), int(3)]), int(3));
    assert_eq!(library.value("send_env", &[pid(5), term.clone()]), int(1));
    library.value("send_thread", &[]);
    assert_eq!(std::mem::take(&mut vm().messages).len(), 104);
    assert_eq!(
        library.value("port_command", &[bare(NameKind::Port, 4), term.clone()]),
        int(1)
    );

    for _ in 0..20 {
        library.value("refs", &[int(30)]);
        library.value("keep", std::slice::from_ref(&term));
        library.value("kept_term", &[]);
        library.value("keep_new", &[]);
        library.value("forget", &[]);
    }
    // What is made ahead, and what is done with but not yet told.
    assert!(vm().made.len() < 32, "{}", vm().made.len());

    vm().registered
        .insert("server".to_owned(), support::asked::name(NameKind::Pid, 9));
    assert_eq!(
        library.value("whereis", &[Value::atom("server")]),
        bare(NameKind::Pid, 9)
    );
    library.value("unique", &[int(1)]);
    library.value("printed_self", &[]);

    vm().messages.clear();
    let object = library.value("object", &[int(3)]);
    let Value::Resource(id) = object else { panic!() };
    for _ in 0..3 {
        library.value("monitor", &[object.clone(), pid(8)]);
    }
    let monitors = vm().monitors();
    host::down(monitors[1]);
    host::settle();
    assert!(matches!(message(), Value::Tuple(down) if down[0] == Value::atom("down")));
    assert_eq!(library.value("demonitor", std::slice::from_ref(&object)), int(0));
    host::release(vec![id]);
    host::settle();
    assert_eq!(message(), Value::tuple([Value::atom("destroyed"), int(3)]));
    assert!(vm().requests.contains(&Request::Demonitor { monitor: monitors[0] }));
    host::down(monitors[0]);
    host::settle();

    for round in 0..20 {
        let pipe = library.value("pipe", &[]);
        let Value::Resource(id) = pipe else { panic!() };
        let select = |library: &mut hosted::Library, end, mode| {
            library.value("select", &[pipe.clone(), int(end), int(mode), pid(5), reference(70)])
        };
        select(library, 0, 1);
        if round % 2 == 0 {
            library.value("write_end", std::slice::from_ref(&pipe));
            let Value::Tuple(ready) = message() else { panic!() };
            assert_eq!(ready[3], Value::atom("ready_input"));
        }
        select(library, 1, 2);
        message();
        // First the end that waits: the other's is its trouble.
        select(library, 0, 4);
        select(library, 1, 4);
        // A handle for the call, and one for each message.
        host::release(vec![id; if round % 2 == 0 { 3 } else { 2 }]);
        host::settle();
        // The thread that watches may be the last to let go of the object.
        let mut told = [(); 3].map(|()| format!("{:?}", message()));
        told.sort();
        let expected = ["destroyed", "stopped", "stopped"].map(|tag| Value::tuple([Value::atom(tag), int(100)]));
        assert_eq!(told, expected.map(|term| format!("{term:?}")));
    }
}
