//! Several libraries in one worker: loading, calling, upgrading, unloading.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test has one reason to fail, and the line says which"
)]

mod support;

use snakepit_shm_core::ring::status;
use snakepit_wire::control::{self, FUNCTIONS, Failed, FromWorker, Loaded, Stage, Status, ToWorker};
use support::library::fixture;
use support::{PATIENCE, Reply, Warden, Worker, atom, int, value};

/// A worker with the first library. It prints, so that the test sees its callbacks.
fn serving(warden: &Warden) -> Worker {
    let mut worker = warden.serving(&fixture("tenant_a"));
    assert_eq!(line(&mut worker), "load 1 0");
    worker
}

fn line(worker: &mut Worker) -> String {
    worker.printed(|text| text.ends_with('\n')).trim_end().to_owned()
}

fn loaded(worker: &Worker) -> Loaded {
    match worker.hear() {
        Some(FromWorker::Loaded(loaded)) => loaded,
        other => panic!("{other:?}"),
    }
}

fn not_loaded(worker: &Worker, number: u32) -> Failed {
    match worker.hear() {
        Some(FromWorker::NotLoaded { library, failed }) if library == number => failed,
        other => panic!("{other:?}"),
    }
}

fn unload(worker: &Worker, library: u32) {
    worker.say(&ToWorker::Unload { library });
    assert_eq!(worker.hear(), Some(FromWorker::Unloaded { library }));
}

fn add(worker: &Worker, number: u32, name: &str, replaces: Option<u32>) -> Loaded {
    worker.ask_for_another(number, &fixture(name), &int(0), replaces, false);
    let loaded = loaded(worker);
    assert_eq!(loaded.library, number);
    loaded
}

/// Calls a function of a library by its number.
fn call(worker: &Worker, library: u32, name: &str, arguments: &[Vec<u8>]) -> Reply {
    let place = worker.function(name, arguments.len());
    let number = control::function_number(library, place);
    let call = worker.submit(number, arguments.len() as u16, &arguments.concat());
    worker.answer(call, PATIENCE)
}

fn is_not_there(reply: &Reply) -> bool {
    matches!(reply, Reply::Answer(status::BAD_ARGUMENTS, _))
}

#[test]
fn libraries_share_the_process_and_nothing_else() {
    let warden = Warden::start();
    let mut worker = serving(&warden);
    let added = add(&worker, 1, "tenant_b", None);
    assert_eq!(added.module, "snakepit_tenant_b");
    assert_eq!(line(&mut worker), "load 7 0");
    // Data of its own for each, and a pointer of one means the same to the other.
    assert_eq!(call(&worker, 0, "count", &[]), value(int(1)));
    assert_eq!(call(&worker, 0, "count", &[]), value(int(2)));
    assert_eq!(call(&worker, 1, "count", &[]), value(int(1)));
    let Reply::Answer(status::VALUE, pointer) = call(&worker, 0, "data", &[]) else {
        panic!()
    };
    assert_eq!(call(&worker, 1, "peek", &[pointer]), value(int(2)));
    // Objects: the type of the other is not its own, but it can call it.
    let Reply::Answer(status::VALUE, object) = call(&worker, 0, "make", &[int(5)]) else {
        panic!()
    };
    assert!(matches!(
        call(&worker, 1, "value", std::slice::from_ref(&object)),
        Reply::Answer(status::RAISED, _)
    ));
    let module = atom("snakepit_tenant_a");
    assert_eq!(call(&worker, 1, "dynamic", &[module, object.clone()]), value(int(105)));
    assert_eq!(
        call(&worker, 1, "dynamic", &[atom("snakepit_tenant_b"), object]),
        value(atom("none"))
    );
}

#[test]
fn a_function_is_that_of_one_library() {
    let warden = Warden::start();
    let worker = serving(&warden);
    let unknown = |number| {
        let call = worker.submit(number, 0, &[]);
        is_not_there(&worker.answer(call, PATIENCE))
    };
    // A place past the table, a library that is not there, one that would be in the same place, and the largest number.
    for number in [FUNCTIONS as u32 - 1, FUNCTIONS as u32, 256 * FUNCTIONS as u32, u32::MAX] {
        assert!(unknown(number), "{number}");
    }
    assert_eq!(call(&worker, 0, "version", &[]), value(int(1)));
}

#[test]
fn each_is_unloaded_by_itself() {
    for (first, second) in [(0, 1), (1, 0)] {
        let warden = Warden::start();
        let mut worker = serving(&warden);
        add(&worker, 1, "tenant_b", None);
        assert_eq!(line(&mut worker), "load 7 0");
        let versions = [1, 7];
        unload(&worker, first);
        // Its own data is that of the callback's env.
        assert_eq!(line(&mut worker), format!("unload {} 1000", versions[first as usize]));
        assert!(is_not_there(&call(&worker, first, "version", &[])));
        assert_eq!(
            call(&worker, second, "version", &[]),
            value(int(versions[second as usize]))
        );
        // What is left is unloaded when the worker stops, and only that.
        worker.say(&ToWorker::Stop);
        assert_eq!(line(&mut worker), format!("unload {} 1000", versions[second as usize]));
        assert_eq!(warden.ended(&worker), Status::Exit(0));
    }
}

#[test]
fn an_object_keeps_its_library() {
    let warden = Warden::start();
    let mut worker = serving(&warden);
    add(&worker, 1, "tenant_b", None);
    assert_eq!(line(&mut worker), "load 7 0");
    let made = call(&worker, 1, "make", &[int(3)]);
    assert!(matches!(made, Reply::Answer(status::VALUE, _)));
    unload(&worker, 1);
    // Nothing is printed by that: the next line is the destructor's.
    worker.say(&ToWorker::Release { ids: vec![1] });
    let both = worker.printed(|text| text.lines().count() == 2);
    assert_eq!(both, "destroyed 7 3\nunload 7 1000\n");
}

#[test]
fn a_running_call_keeps_its_library() {
    let warden = Warden::start();
    let mut worker = warden.worker();
    worker.load(&fixture("tenant_a"), 2);
    assert_eq!(line(&mut worker), "load 1 0");
    add(&worker, 1, "tenant_b", None);
    assert_eq!(line(&mut worker), "load 7 0");
    let function = control::function_number(1, worker.function("sleep", 1));
    let running = worker.submit(function, 1, &int(300));
    while worker.ring.executor(0).call.is_none() && worker.ring.executor(1).call.is_none() {
        std::thread::yield_now();
    }
    worker.say(&ToWorker::Unload { library: 1 });
    // Another library is loaded meanwhile: nobody waits for the call.
    add(&worker, 2, "tenant_a2", None);
    assert_eq!(line(&mut worker), "load 2 0");
    assert_eq!(worker.answer(running, PATIENCE), value(int(7)));
    assert_eq!(worker.hear(), Some(FromWorker::Unloaded { library: 1 }));
    assert_eq!(line(&mut worker), "unload 7 1000");
}

#[test]
fn an_upgrade_takes_data_and_types_over() {
    let warden = Warden::start();
    let mut worker = serving(&warden);
    let Reply::Answer(status::VALUE, object) = call(&worker, 0, "make", &[int(5)]) else {
        panic!()
    };
    assert_eq!(call(&worker, 0, "count", &[]), value(int(1)));
    add(&worker, 1, "tenant_a2", Some(0));
    assert_eq!(line(&mut worker), "upgrade 2 1");
    // Side by side, with the same data.
    assert_eq!(call(&worker, 0, "version", &[]), value(int(1)));
    assert_eq!(call(&worker, 1, "version", &[]), value(int(2)));
    assert_eq!(call(&worker, 0, "count", &[]), value(int(2)));
    assert_eq!(call(&worker, 1, "count", &[]), value(int(3)));
    // The object is the new library's now: its value, its dynamic call, its destructor; and it keeps the old one no longer.
    assert_eq!(call(&worker, 1, "value", std::slice::from_ref(&object)), value(int(5)));
    assert_eq!(
        call(&worker, 1, "dynamic", &[atom("snakepit_tenant_a"), object]),
        value(int(205))
    );
    unload(&worker, 0);
    assert_eq!(line(&mut worker), "unload 1 1003");
    worker.say(&ToWorker::Release { ids: vec![1] });
    assert_eq!(line(&mut worker), "destroyed 2 3005");
    unload(&worker, 1);
    assert_eq!(line(&mut worker), "unload 2 1003");
}

#[test]
fn a_failed_upgrade_changes_nothing() {
    let warden = Warden::start();
    let mut worker = serving(&warden);
    let Reply::Answer(status::VALUE, object) = call(&worker, 0, "make", &[int(5)]) else {
        panic!()
    };
    worker.ask_for_another(1, &fixture("tenant_a2"), &int(13), Some(0), false);
    let failed = not_loaded(&worker, 1);
    assert_eq!((failed.stage, failed.code), (Stage::UpgradeCallback, 13));
    assert_eq!(line(&mut worker), "upgrade 2 0");
    assert!(is_not_there(&call(&worker, 1, "version", &[])));
    // The old one has its data, its type and its destructor.
    assert_eq!(call(&worker, 0, "count", &[]), value(int(1)));
    assert_eq!(
        call(&worker, 0, "dynamic", &[atom("snakepit_tenant_a"), object]),
        value(int(105))
    );
    worker.say(&ToWorker::Release { ids: vec![1] });
    assert_eq!(line(&mut worker), "destroyed 1 1005");

    worker.ask_for_another(2, &fixture("tenant_a3"), &int(0), Some(0), false);
    let failed = not_loaded(&worker, 2);
    assert_eq!((failed.stage, failed.code), (Stage::UpgradeCallback, 0));
    // Without a predecessor it is loaded.
    add(&worker, 3, "tenant_a3", Some(9));
    assert_eq!(line(&mut worker), "load 3 0");
}

#[test]
fn what_fails_leaves_nothing() {
    let warden = Warden::start();
    let mut worker = serving(&warden);
    worker.ask_for_another(1, &fixture("tenant_b"), &int(4), None, false);
    let failed = not_loaded(&worker, 1);
    assert_eq!((failed.stage, failed.code), (Stage::LoadCallback, 4));
    assert_eq!(line(&mut worker), "load 7 0");
    worker.ask_for_another(2, std::path::Path::new("/nowhere/at_all"), &int(0), None, false);
    assert_eq!(not_loaded(&worker, 2).stage, Stage::NotFound);
    worker.ask_for_another(3, &fixture("no_init"), &int(0), None, false);
    assert_eq!(not_loaded(&worker, 3).stage, Stage::NoInit);
    // Where another one is.
    worker.ask_for_another(256, &fixture("tenant_b"), &int(0), None, false);
    assert_eq!(not_loaded(&worker, 256).stage, Stage::Worker);
    // Its type was not made: the name is free.
    add(&worker, 1, "tenant_b", None);
    assert_eq!(line(&mut worker), "load 7 0");
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", worker.pid)).unwrap();
    assert!(maps.contains("tenant_b.so") && !maps.contains("no_init.so"), "{maps}");
    assert_eq!(call(&worker, 0, "version", &[]), value(int(1)));
}

#[test]
fn the_vm_is_asked_before_anything_of_it_runs() {
    let warden = Warden::start();
    let mut worker = serving(&warden);
    for wanted in [false, true] {
        worker.ask_for_another(1, &fixture("tenant_b"), &int(0), None, true);
        let Some(FromWorker::Opened(opened)) = worker.hear() else {
            panic!()
        };
        assert_eq!((opened.library, &*opened.module), (1, "snakepit_tenant_b"));
        assert!(is_not_there(&call(&worker, 1, "version", &[])));
        if wanted {
            worker.say(&ToWorker::Proceed { library: 1 });
            assert_eq!(loaded(&worker), opened);
            assert_eq!(line(&mut worker), "load 7 0");
        } else {
            worker.say(&ToWorker::Unload { library: 1 });
            assert_eq!(not_loaded(&worker, 1).stage, Stage::Unwanted);
        }
    }
    // Told to stop in between, it stops.
    worker.ask_for_another(2, &fixture("tenant_a2"), &int(0), None, true);
    assert!(matches!(worker.hear(), Some(FromWorker::Opened(_))));
    worker.say(&ToWorker::Stop);
    assert_eq!(warden.ended(&worker), Status::Exit(0));
}

#[test]
fn a_library_that_is_not_there_is_unloaded_at_once() {
    let warden = Warden::start();
    let mut worker = serving(&warden);
    for number in [1, 256, 9_999] {
        unload(&worker, number);
    }
    assert_eq!(call(&worker, 0, "version", &[]), value(int(1)));
    // One that is unloaded before it was loaded is not there afterwards.
    worker.ask_for_another(1, &fixture("tenant_b"), &int(0), None, false);
    worker.say(&ToWorker::Unload { library: 1 });
    assert_eq!(loaded(&worker).library, 1);
    assert_eq!(worker.hear(), Some(FromWorker::Unloaded { library: 1 }));
    let both = worker.printed(|text| text.lines().count() == 2);
    assert_eq!(both, "load 7 0\nunload 7 1000\n");
}

#[test]
fn a_second_beginning_and_an_answer_to_nobody_are_faults() {
    for message in [ToWorker::Proceed { library: 0 }] {
        let warden = Warden::start();
        let worker = serving(&warden);
        worker.say(&message);
        assert_eq!(warden.ended(&worker), Status::Exit(65));
    }
    let warden = Warden::start();
    let worker = serving(&warden);
    worker.ask_to_load(&fixture("tenant_b"), &int(0), 1);
    assert_eq!(warden.ended(&worker), Status::Exit(65));
}

#[test]
fn many_loads_and_unloads_under_calls() {
    let warden = Warden::start();
    let worker = serving(&warden);
    let mut before = None;
    // Numbers that are alive together differ by their remainders, also after one turn.
    for number in (1..=300).filter(|number| number % control::LIBRARIES as u32 != 0) {
        worker.ask_for_another(number, &fixture("tenant_a2"), &int(0), before, false);
        // In flight while the old one is taken out of the table.
        let calls: Vec<_> = (0..4).map(|_| worker.start("count", &[])).collect();
        assert_eq!(loaded(&worker).library, number);
        for call in calls {
            assert!(matches!(worker.answer(call, PATIENCE), Reply::Answer(status::VALUE, _)));
        }
        if let Some(before) = before.replace(number) {
            unload(&worker, before);
        }
        assert_eq!(call(&worker, number, "version", &[]), value(int(2)));
    }
    assert_eq!(call(&worker, 0, "version", &[]), value(int(1)));
}
