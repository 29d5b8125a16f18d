//! What a library asks of the VM while it runs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test has one reason to fail, and the line says which"
)]

mod support;

use snakepit_wire::NameKind;
use snakepit_wire::control::{FromWorker, ToWorker};
use snakepit_wire::reference::Value;
use snakepit_wire::service::{Named, Request};
use support::asked::{bare, encoded, name, pid, reference};
use support::library::hosted;
use support::{Warden, Worker};

const OWNER: u32 = 5;

/// A worker with the library, and a process that it knows.
fn serving(warden: &Warden) -> Worker {
    let worker = warden.serving(&hosted("requests"));
    assert_eq!(worker.loaded.as_ref().unwrap().missing, Vec::<String>::new());
    assert_eq!(worker.ask("bind", &[pid(OWNER)]), Value::atom("ok"));
    // To know which pids are of the VM's node, once.
    assert_eq!(worker.said().requests.len(), 1);
    worker
}

fn int(value: i64) -> Value {
    Value::Integer(value)
}

fn tagged(tag: &str, value: i64) -> Value {
    Value::tuple([Value::atom(tag), int(value)])
}

/// Messages to the owner.
fn messages(worker: &Worker) -> Vec<Value> {
    let to_owner = |(to, message, _): (snakepit_wire::Name, Value, bool)| {
        assert_eq!(to, name(NameKind::Pid, OWNER));
        message
    };
    worker.said().messages.into_iter().map(to_owner).collect()
}

#[test]
fn a_message_is_there_when_the_call_returns() {
    let warden = Warden::start();
    let worker = serving(&warden);
    for round in 0..100 {
        assert_eq!(worker.ask("send", &[pid(OWNER), int(round), int(1)]), int(1));
        assert_eq!(messages(&worker), [int(round)]);
    }
}

#[test]
fn the_first_message_is_a_question() {
    let warden = Warden::start();
    let worker = serving(&warden);
    assert_eq!(worker.ask("send", &[pid(OWNER), int(7), int(1_500)]), int(1_500));
    let said = worker.said();
    assert_eq!(said.messages.len(), 1_500);
    assert!(said.messages[0].2);
    let asked = said.messages.iter().filter(|message| message.2).count();
    // The 1,001st after the first at the latest; more often where these took longer than 10 ms.
    assert!(asked >= 2, "{asked}");
    let told = said.messages.split(|message| message.2).map(<[_]>::len).max();
    assert!(told <= Some(1_000), "{told:?}");
}

#[test]
fn a_process_that_is_dead_stays_so() {
    let warden = Warden::start();
    let worker = serving(&warden);
    worker.vm.lock().unwrap().dead.insert(9);
    assert_eq!(worker.ask("send", &[pid(9), int(1), int(10)]), int(0));
    assert_eq!(worker.said().messages.len(), 1);
    assert_eq!(worker.ask("send_env", &[pid(9), int(1)]), int(0));
    assert_eq!(worker.said().messages.len(), 0);
}

#[test]
fn an_env_is_sent_with_all_that_is_in_it() {
    let warden = Warden::start();
    let worker = serving(&warden);
    let term = Value::map([(Value::atom("key"), Value::Binary(vec![1; 100]))]);
    assert_eq!(worker.ask("send_env", &[pid(OWNER), term.clone()]), int(1));
    assert_eq!(messages(&worker), [Value::tuple([term, int(1)])]);
}

#[test]
fn large_messages_go_in_pieces() {
    let warden = Warden::start();
    let worker = serving(&warden);
    // At the edges of one piece, and many times the event queue.
    for length in [16_379, 16_380, 32_764, 40_000, 3_000_000] {
        let term = Value::Binary((0..length).map(|byte| byte as u8).collect());
        assert_eq!(worker.ask("send", &[pid(OWNER), term.clone(), int(1)]), int(1));
        assert!(messages(&worker) == [term], "{length}");
    }
}

#[test]
fn threads_send() {
    let warden = Warden::start();
    let worker = serving(&warden);
    worker.ask("send_thread", &[]);
    assert_eq!(messages(&worker), (0..100).map(int).collect::<Vec<_>>());
}

#[test]
fn an_object_in_a_message_lives_until_the_vm_drops_it() {
    let warden = Warden::start();
    let worker = serving(&warden);
    let object = worker.ask("object", &[int(3)]);
    let Value::Resource(id) = object else {
        panic!("{object:?}")
    };
    worker.ask("send", &[pid(OWNER), object.clone(), int(2)]);
    assert_eq!(messages(&worker), [object.clone(), object]);
    worker.say(&ToWorker::Release { ids: vec![id, id] });
    worker.ask("alive", &[Value::Nil]);
    assert_eq!(messages(&worker), []);
    worker.say(&ToWorker::Release { ids: vec![id] });
    worker.attend_until(|vm| !vm.messages.is_empty());
    assert_eq!(messages(&worker), [tagged("destroyed", 3)]);
}

#[test]
fn ports_take_commands() {
    let warden = Warden::start();
    let worker = serving(&warden);
    let port = bare(NameKind::Port, 4);
    let data = Value::Binary(b"data".to_vec());
    assert_eq!(worker.ask("port_command", &[port.clone(), data.clone()]), int(1));
    assert_eq!(worker.said().commands, [(name(NameKind::Port, 4), data.clone())]);
    worker.vm.lock().unwrap().dead.insert(4);
    assert_eq!(worker.ask("port_command", &[port.clone(), data]), int(0));
    assert_eq!(worker.ask("alive", &[port]), int(0));
}

#[test]
fn the_vm_makes_references() {
    let warden = Warden::start();
    let worker = serving(&warden);
    let Value::List(made, None) = worker.ask("refs", &[int(100)]) else {
        panic!()
    };
    let names: std::collections::HashSet<_> = made
        .iter()
        .map(|made| match made {
            Value::Name { name, .. } => *name,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(names.len(), 100);
    // They end with the call's env. Others are made ahead.
    worker.attend_until(|vm| vm.made.len() < 100);
    assert!(
        worker
            .vm
            .lock()
            .unwrap()
            .made
            .iter()
            .all(|made| !names.contains(&made.0))
    );
}

#[test]
fn references_do_not_fill_a_small_table() {
    let warden = Warden::start();
    let worker = serving(&warden);
    worker.vm.lock().unwrap().places = 64;
    for _ in 0..50 {
        worker.ask("refs", &[int(32)]);
        while worker.attend() > 0 {}
    }
    // More at once than there is room for.
    let call = worker.start("refs", &[encoded(&int(100))]);
    let badarg = encoded(&Value::atom("badarg"));
    let raised = support::Reply::Answer(snakepit_shm_core::ring::status::RAISED, badarg);
    assert_eq!(worker.answer_asked(call), raised);
    worker.ask("refs", &[int(32)]);
}

#[test]
fn a_kept_reference_is_kept_until_the_last_copy_is_gone() {
    let warden = Warden::start();
    let worker = serving(&warden);
    let both = Value::list([reference(70), reference(71), reference(70)]);
    worker.ask("keep", &[both]);
    let keep = |index| Request::Keep {
        names: vec![Named(name(NameKind::Reference, index))],
    };
    assert_eq!(worker.said().requests, [keep(70), keep(71)]);
    let bare = |index| bare(NameKind::Reference, index);
    assert_eq!(
        worker.ask("kept_term", &[]),
        Value::list([bare(70), bare(71), bare(70)])
    );
    assert_eq!(worker.said().requests, []);
    worker.ask("forget", &[]);
    let Request::Drop { names, .. } = &worker.said().requests[..][0] else {
        panic!()
    };
    let mut names = names.clone();
    names.sort_by_key(|name| name.0.index);
    assert_eq!(names, [70, 71].map(|index| Named(name(NameKind::Reference, index))));
}

#[test]
fn a_made_reference_that_is_kept_is_dropped_when_it_is_forgotten() {
    let warden = Warden::start();
    let worker = serving(&warden);
    let Value::Name { name: made, .. } = worker.ask("keep_new", &[]) else {
        panic!()
    };
    // So many that what is done with is told.
    worker.ask("refs", &[int(100)]);
    worker.attend_until(|vm| vm.made.len() < 100);
    assert!(worker.vm.lock().unwrap().made.contains(&Named(made)));
    worker.ask("forget", &[]);
    worker.ask("refs", &[int(100)]);
    worker.attend_until(|vm| !vm.made.contains(&Named(made)));
    assert!(
        !worker
            .said()
            .requests
            .iter()
            .any(|request| matches!(request, Request::Keep { .. }))
    );
}

#[test]
fn a_drop_says_which_calls_may_still_answer() {
    let warden = Warden::start();
    let worker = serving(&warden);
    let since = || {
        let dropped = |request: Request| match request {
            Request::Drop { since, .. } => Some(since),
            _ => None,
        };
        let all: Vec<u64> = worker.said().requests.into_iter().filter_map(dropped).collect();
        assert_eq!(all.len(), 1);
        all[0]
    };
    // `bind` was the call 0; the numbers count up from there.
    worker.ask("keep", &[reference(70)]);
    worker.ask("kept_term", &[]);
    worker.ask("forget", &[]);
    assert_eq!(since(), 1);
    worker.ask("keep", &[reference(71)]);
    worker.ask("forget", &[]);
    assert_eq!(since(), 4);
    // Made in the calls from 6 on.
    worker.ask("echo", &[int(1)]);
    worker.ask("refs", &[int(16)]);
    worker.attend_until(|vm| {
        vm.requests
            .iter()
            .any(|request| matches!(request, Request::Drop { .. }))
    });
    assert_eq!(since(), 7);
}

#[test]
fn the_vm_makes_unique_integers() {
    let warden = Warden::start();
    let worker = serving(&warden);
    assert_eq!(worker.ask("unique", &[int(0)]), int(1));
    assert_eq!(worker.ask("unique", &[int(3)]), int(32));
}

#[test]
fn the_vm_knows_who_lives() {
    let warden = Warden::start();
    let worker = serving(&warden);
    assert_eq!(worker.ask("alive", &[pid(8)]), int(1));
    assert_eq!(worker.ask("alive", &[Value::Nil]), int(1));
    // The caller's index is 0.
    worker.vm.lock().unwrap().dead.extend([0, 8]);
    assert_eq!(worker.ask("alive", &[pid(8)]), int(0));
    assert_eq!(worker.ask("alive", &[Value::Nil]), int(0));
}

#[test]
fn registered_names_are_looked_up() {
    let warden = Warden::start();
    let worker = serving(&warden);
    let names = [("server", NameKind::Pid, 30), ("device", NameKind::Port, 31)];
    for (registered, kind, index) in names {
        let name = name(kind, index);
        worker.vm.lock().unwrap().registered.insert(registered.to_owned(), name);
    }
    assert_eq!(worker.ask("whereis", &[Value::atom("server")]), bare(NameKind::Pid, 30));
    assert_eq!(
        worker.ask("whereis", &[Value::atom("device")]),
        Value::tuple([bare(NameKind::Port, 31)])
    );
    for nobody in [Value::atom("nobody"), int(1)] {
        assert_eq!(worker.ask("whereis", &[nobody]), Value::atom("undefined"));
    }
}

#[test]
fn atoms_of_the_vm_are_there_though_the_worker_has_not_met_them() {
    let warden = Warden::start();
    let worker = serving(&warden);
    let text = |text: &str| Value::list(text.bytes().map(|byte| int(byte.into())));
    let longest = "x".repeat(255);
    for name in ["only in the vm", "only in bytes", &longest] {
        worker.vm.lock().unwrap().atoms.insert(name.to_owned());
    }
    let asked = |worker: &Worker| worker.said().requests.len();

    assert_eq!(
        worker.ask("existing", &[text("only in the vm")]),
        Value::atom("only in the vm")
    );
    assert_eq!(worker.ask("existing", &[text(&longest)]), Value::atom(&longest));
    assert_eq!(asked(&worker), 2);
    // Now it has met them, and nobody is asked for what no atom can be.
    worker.ask("existing", &[text("only in the vm")]);
    assert_eq!(worker.ask("existing", &[text(&"x".repeat(256))]), int(0));
    assert_eq!(asked(&worker), 0);
    // One that there is not may be made later.
    for _ in 0..2 {
        assert_eq!(worker.ask("existing", &[text("nowhere")]), int(0));
    }
    assert_eq!(asked(&worker), 2);

    let bytes = |name: &str| {
        let mut bytes = vec![131, 119, name.len() as u8];
        bytes.extend_from_slice(name.as_bytes());
        Value::Binary(bytes)
    };
    assert_eq!(
        worker.ask("read_safe", &[bytes("only in bytes")]),
        Value::atom("only in bytes")
    );
    assert_eq!(worker.ask("read_safe", &[bytes("nowhere")]), int(0));
}

#[test]
fn the_callers_pid_is_printed_as_the_vm_prints_it() {
    let warden = Warden::start();
    let worker = serving(&warden);
    let text = Value::list("<0.40.0>".bytes().map(|byte| int(byte.into())));
    for _ in 0..2 {
        assert_eq!(worker.ask("printed_self", &[]), text);
    }
    assert_eq!(worker.said().requests.len(), 1);
}

#[test]
fn a_pid_of_another_node_is_not_local() {
    let warden = Warden::start();
    let worker = serving(&warden);
    let named = |node: &str| {
        let mut key = vec![88, 119, node.len() as u8];
        key.extend_from_slice(node.as_bytes());
        key.extend_from_slice(&[0, 0, 0, 90, 0, 0, 0, 0, 0, 0, 0, 0]);
        Value::Name {
            name: name(NameKind::Pid, 50),
            key,
        }
    };
    let far = named("other@there");
    assert_eq!(worker.ask("bind", std::slice::from_ref(&far)), Value::atom("no"));
    assert_eq!(worker.ask("bind", &[pid(6)]), Value::atom("ok"));
    // The VM gets that name itself. What came without is still its own.
    worker.vm.lock().unwrap().node = Some("other@there".to_owned());
    assert_eq!(worker.ask("bind", &[far]), Value::atom("ok"));
    assert_eq!(worker.ask("bind", &[pid(6)]), Value::atom("ok"));
}

#[test]
fn requests_work_while_the_library_loads() {
    let warden = Warden::start();
    let worker = warden.worker();
    worker.ask_to_load(&hosted("requests"), &encoded(&Value::tuple([])), 1);
    worker.attend_until(|vm| !vm.requests.is_empty());
    assert!(matches!(worker.hear(), Some(FromWorker::Loaded(_))));
}

#[test]
fn who_waits_for_an_answer_stops_waiting_when_the_worker_is_stopped() {
    let warden = Warden::start();
    let worker = serving(&warden);
    worker.vm.lock().unwrap().silent = true;
    let call = worker.start("alive", &[encoded(&pid(8))]);
    worker.attend_until(|vm| !vm.requests.is_empty());
    worker.say(&ToWorker::Stop);
    let answered = worker.answer_asked(call);
    assert_eq!(answered, support::value(encoded(&int(0))));
    assert_eq!(warden.ended(&worker), snakepit_wire::control::Status::Exit(0));
}

#[test]
fn a_library_is_unloaded_when_its_worker_is_stopped() {
    let warden = Warden::start();
    let mut worker = warden.worker();
    worker.load(&hosted("requests"), 3);
    worker.say(&ToWorker::Stop);
    let printed = worker.printed(|text| text.contains("unloaded"));
    let expected = ["thread gone with its data\n"; 3].concat() + "unloaded with its data\n";
    assert_eq!(printed, expected);
    assert_eq!(warden.ended(&worker), snakepit_wire::control::Status::Exit(0));
}

#[test]
fn a_queue_that_nobody_takes_from_is_waited_for_until_the_worker_is_stopped() {
    let warden = Warden::start();
    let worker = serving(&warden);
    // The first message is answered, the others fill the queue.
    let term = Value::Binary(vec![1; 10_000]);
    let call = worker.start("send", &[encoded(&pid(OWNER)), encoded(&term), encoded(&int(100))]);
    worker.attend_until(|vm| !vm.messages.is_empty());
    worker.say(&ToWorker::Stop);
    assert!(matches!(
        worker.answer(call, support::PATIENCE),
        support::Reply::Answer(..)
    ));
    assert_eq!(warden.ended(&worker), snakepit_wire::control::Status::Exit(0));
}

#[test]
fn a_monitored_process_ends() {
    let warden = Warden::start();
    let worker = serving(&warden);
    let object = worker.ask("object", &[int(3)]);
    let Value::Tuple(monitored) = worker.ask("monitor", &[object.clone(), pid(8)]) else {
        panic!()
    };
    assert_eq!(monitored[0], int(0));
    let monitor = worker.vm.lock().unwrap().monitors()[0];
    worker.say(&ToWorker::Down { monitor });
    worker.attend_until(|vm| !vm.messages.is_empty());
    // With the same reference, and it cannot be ended any more.
    let expected = [
        Value::atom("down"),
        int(3),
        bare(NameKind::Pid, 8),
        monitored[1].clone(),
        int(1),
    ];
    assert_eq!(messages(&worker), [Value::tuple(expected)]);
    assert_eq!(worker.ask("demonitor", &[object]), int(1));
    // Nor is it told again.
    worker.say(&ToWorker::Down { monitor });
    worker.ask("alive", &[Value::Nil]);
    assert_eq!(messages(&worker), []);
}

#[test]
fn a_monitor_is_ended() {
    let warden = Warden::start();
    let worker = serving(&warden);
    let object = worker.ask("object", &[int(3)]);
    worker.ask("monitor", &[object.clone(), pid(8)]);
    assert_eq!(worker.ask("demonitor", std::slice::from_ref(&object)), int(0));
    assert_eq!(worker.ask("demonitor", &[object]), int(1));
    let said = worker.said();
    let monitor = said.monitors()[0];
    assert!(said.requests.contains(&Request::Demonitor { monitor }));
    // On its way already.
    worker.say(&ToWorker::Down { monitor });
    worker.ask("alive", &[Value::Nil]);
    assert_eq!(messages(&worker), []);
}

#[test]
fn monitors_end_with_their_object() {
    let warden = Warden::start();
    let worker = serving(&warden);
    let object = worker.ask("object", &[int(6)]);
    worker.ask("monitor", &[object.clone(), pid(8)]);
    worker.ask("monitor", &[object.clone(), pid(9)]);
    let monitors = worker.said().monitors();
    let Value::Resource(id) = object else { panic!() };
    worker.say(&ToWorker::Release { ids: vec![id] });
    worker.attend_until(|vm| !vm.messages.is_empty());
    let said = worker.said();
    assert_eq!(said.messages[0].1, tagged("destroyed", 6));
    for monitor in monitors {
        assert!(said.requests.contains(&Request::Demonitor { monitor }), "{said:?}");
    }
}

#[test]
fn not_everybody_can_be_monitored() {
    let warden = Warden::start();
    let worker = serving(&warden);
    let object = worker.ask("object", &[int(3)]);
    worker.vm.lock().unwrap().dead.insert(8);
    let none = Value::tuple([int(1), Value::atom("none")]);
    assert_eq!(worker.ask("monitor", &[object.clone(), pid(8)]), none);
    assert_eq!(worker.ask("monitor", &[object, Value::atom("undefined")]), none);
    // Its type has no down callback.
    assert_eq!(worker.ask("monitor_plain", &[]), int(-1));
}

// ── Descriptors ──────────────────────────────────────────────────────────────────────────────────────────────────────

const READ: i64 = 1;
const WRITE: i64 = 2;
const STOP: i64 = 4;
const CANCEL: i64 = 8;
const ERROR: i64 = 32;
const READ_CANCELLED: i64 = 1 << 4;
const WRITE_CANCELLED: i64 = 1 << 5;
const ERROR_CANCELLED: i64 = 1 << 6;
const STOP_CALLED: i64 = 1;
const FAILED: i64 = 1 << 3;
const INVALID: i64 = 1 << 2;

fn select(worker: &Worker, pipe: &Value, end: i64, mode: i64, term: Value) -> Value {
    worker.ask("select", &[pipe.clone(), int(end), int(mode), pid(OWNER), term])
}

fn ready(pipe: &Value, term: Value, event: &str) -> Value {
    Value::tuple([Value::atom("select"), pipe.clone(), term, Value::atom(event)])
}

fn undefined() -> Value {
    Value::atom("undefined")
}

/// Waits for one message to the owner.
fn message(worker: &Worker) -> Value {
    worker.attend_until(|vm| !vm.messages.is_empty());
    let mut messages = messages(worker);
    assert_eq!(messages.len(), 1);
    messages.remove(0)
}

#[test]
fn a_descriptor_that_can_be_read_is_told_once() {
    let warden = Warden::start();
    let worker = serving(&warden);
    let pipe = worker.ask("pipe", &[]);
    assert_eq!(select(&worker, &pipe, 0, READ, reference(60)), int(0));
    // The reference must outlive the call.
    let keep = vec![Named(name(NameKind::Reference, 60))];
    assert!(worker.said().requests.contains(&Request::Keep { names: keep.clone() }));
    worker.ask("write_end", std::slice::from_ref(&pipe));
    worker.attend_until(|vm| !vm.requests.is_empty());
    let said = worker.said();
    let expected = ready(&pipe, bare(NameKind::Reference, 60), "ready_input");
    assert_eq!(said.messages, [(name(NameKind::Pid, OWNER), expected, false)]);
    let [Request::Drop { names, .. }] = &said.requests[..] else {
        panic!("{said:?}")
    };
    assert_eq!(*names, keep);
    // Once, although there is more to read; and again when it is asked for again.
    worker.ask("write_end", std::slice::from_ref(&pipe));
    assert_eq!(select(&worker, &pipe, 0, READ, undefined()), int(0));
    assert_eq!(message(&worker), ready(&pipe, undefined(), "ready_input"));
}

#[test]
fn a_message_of_ones_own_is_sent() {
    let warden = Warden::start();
    let worker = serving(&warden);
    let pipe = worker.ask("pipe", &[]);
    let term = Value::list([Value::Binary(vec![3; 100]), int(1)]);
    assert_eq!(worker.ask("select_message", &[pipe.clone(), term.clone()]), int(0));
    worker.ask("write_end", std::slice::from_ref(&pipe));
    assert_eq!(message(&worker), term);
}

#[test]
fn both_directions_and_trouble_are_told_apart() {
    let warden = Warden::start();
    let worker = serving(&warden);
    let pipe = worker.ask("pipe", &[]);
    assert_eq!(select(&worker, &pipe, 1, WRITE, undefined()), int(0));
    assert_eq!(message(&worker), ready(&pipe, undefined(), "ready_output"));
    assert_eq!(select(&worker, &pipe, 1, ERROR, undefined()), int(0));
    worker.ask("close_end", &[pipe.clone(), int(0)]);
    assert_eq!(message(&worker), ready(&pipe, undefined(), "ready_error"));
    // Nobody waits for trouble: it wakes who waits for anything.
    assert_eq!(select(&worker, &pipe, 1, WRITE, undefined()), int(0));
    assert_eq!(message(&worker), ready(&pipe, undefined(), "ready_output"));
    let pipe = worker.ask("pipe", &[]);
    assert_eq!(select(&worker, &pipe, 0, READ, undefined()), int(0));
    worker.ask("close_end", &[pipe.clone(), int(1)]);
    assert_eq!(message(&worker), ready(&pipe, undefined(), "ready_input"));
}

#[test]
fn selections_are_cancelled() {
    let warden = Warden::start();
    let worker = serving(&warden);
    let pipe = worker.ask("pipe", &[]);
    let select = |end, mode| select(&worker, &pipe, end, mode, undefined());
    assert_eq!(select(0, READ | CANCEL), int(0));
    assert_eq!(select(0, READ | ERROR), int(0));
    assert_eq!(select(0, READ | WRITE | CANCEL), int(READ_CANCELLED));
    assert_eq!(select(0, READ | ERROR | CANCEL), int(ERROR_CANCELLED));
    assert_eq!(select(0, WRITE), int(0));
    assert_eq!(select(0, WRITE | CANCEL), int(WRITE_CANCELLED));
    assert_eq!(select(0, WRITE | CANCEL), int(0));
    worker.ask("write_end", std::slice::from_ref(&pipe));
    // What was cancelled does not happen; what is selected afterwards does.
    assert_eq!(messages(&worker), []);
    assert_eq!(select(0, READ), int(0));
    assert_eq!(message(&worker), ready(&pipe, undefined(), "ready_input"));
}

#[test]
fn a_stop_runs_the_callback_and_lets_go_of_the_object() {
    let warden = Warden::start();
    let worker = serving(&warden);
    let pipe = worker.ask("pipe", &[]);
    assert_eq!(select(&worker, &pipe, 0, READ, undefined()), int(0));
    let Value::Resource(id) = pipe else { panic!() };
    // Selected: held, though the VM has no handle. Handles: of `pipe` alone.
    assert_eq!(
        select(&worker, &pipe, 0, STOP, undefined()),
        int(STOP_CALLED | READ_CANCELLED)
    );
    assert_eq!(messages(&worker), [tagged("stopped", 100)]);
    // Unknown now: the callback is called, and closes what it is given.
    assert_eq!(select(&worker, &pipe, 1, STOP, undefined()), int(STOP_CALLED));
    assert_eq!(messages(&worker), [tagged("stopped", 100)]);
    worker.say(&ToWorker::Release { ids: vec![id] });
    assert_eq!(message(&worker), tagged("destroyed", 100));
}

#[test]
fn a_selected_object_lives() {
    let warden = Warden::start();
    let worker = serving(&warden);
    let pipe = worker.ask("pipe", &[]);
    assert_eq!(select(&worker, &pipe, 1, WRITE, undefined()), int(0));
    assert_eq!(message(&worker), ready(&pipe, undefined(), "ready_output"));
    let Value::Resource(id) = pipe else { panic!() };
    // All handles but those of the answer and the message.
    worker.say(&ToWorker::Release { ids: vec![id] });
    assert_eq!(select(&worker, &pipe, 1, STOP | WRITE, undefined()), int(STOP_CALLED));
    assert_eq!(messages(&worker), [tagged("stopped", 100)]);
    worker.say(&ToWorker::Release { ids: vec![id] });
    assert_eq!(message(&worker), tagged("destroyed", 100));
}

#[test]
fn what_cannot_be_watched_is_refused() {
    let warden = Warden::start();
    let worker = serving(&warden);
    let pipe = worker.ask("pipe", &[]);
    let failed = |flags| Value::tuple([Value::atom("failed"), int(flags)]);
    assert_eq!(select(&worker, &pipe, -1, READ, undefined()), failed(INVALID));
    assert_eq!(
        select(&worker, &pipe, i32::MAX.into(), READ, undefined()),
        failed(INVALID)
    );
    // Not open.
    assert_eq!(select(&worker, &pipe, 900, READ, undefined()), failed(FAILED));
    assert_eq!(worker.ask("select_file", std::slice::from_ref(&pipe)), int(0));
    let expected = [ready(&pipe, undefined(), "ready_input"), tagged("stopped", 100)];
    assert_eq!(messages(&worker), expected);
    // Closed without a stop, and its number taken by another.
    assert_eq!(select(&worker, &pipe, 1, WRITE, undefined()), int(0));
    message(&worker);
    worker.ask("close_end", &[pipe.clone(), int(1)]);
    worker.ask("close_end", &[pipe.clone(), int(0)]);
    let other = worker.ask("pipe", &[]);
    assert_eq!(select(&worker, &other, 1, WRITE, undefined()), int(0));
    assert_eq!(message(&worker), ready(&other, undefined(), "ready_output"));
}
