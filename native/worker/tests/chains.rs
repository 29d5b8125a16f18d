//! What the thread `callbacks` is for: the ends of objects and of libraries, in their order and in nobody's call.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test has one reason to fail, and the line says which"
)]

mod support;

use nix::sys::stat::Mode;
use snakepit_wire::control::{self, FromWorker, Loaded, Stage, Status, ToWorker};
use snakepit_wire::reference::Value;
use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use support::asked::{encoded, pid};
use support::library::{fixture, hosted};
use support::{PATIENCE, Reply, Warden, Worker, atom, binary, int, readable, value};

/// Something in the library stands still until this is opened.
struct Gate(PathBuf);

impl Gate {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = hosted("chains").with_file_name(format!("gate-{number}"));
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        Self(path)
    }

    /// As an argument.
    fn path(&self) -> Vec<u8> {
        binary(self.0.as_os_str().as_bytes())
    }

    /// Waits until somebody stands there.
    fn open(&self) {
        let until = Instant::now() + PATIENCE;
        while let Err(error) = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&self.0)
        {
            assert_eq!(error.raw_os_error(), Some(libc::ENXIO));
            assert!(Instant::now() < until, "nobody stands at the gate");
            std::thread::yield_now();
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn serving(warden: &Warden) -> Worker {
    warden.serving(&hosted("chains"))
}

fn lines(worker: &mut Worker, count: usize) -> Vec<String> {
    let text = worker.printed(|text| text.lines().count() == count && text.ends_with('\n'));
    text.lines().map(str::to_owned).collect()
}

fn ok() -> Reply {
    value(atom("ok"))
}

fn stops(warden: &Warden, worker: &mut Worker, printed: &[&str]) {
    worker.say(&ToWorker::Stop);
    assert_eq!(lines(worker, printed.len()), printed);
    assert_eq!(warden.ended(worker), Status::Exit(0));
}

/// Long enough for what should not happen to happen.
const WHILE: Duration = Duration::from_millis(100);

fn prints_nothing(worker: &Worker) {
    assert!(!readable(worker.output.as_fd(), WHILE), "it prints");
}

#[test]
fn an_object_is_let_go_of_under_the_lock_that_its_destructor_takes() {
    let warden = Warden::start();
    let mut worker = serving(&warden);
    assert_eq!(worker.call("locked", &[]), ok());
    assert_eq!(worker.call("locked_env", &[]), ok());
    assert_eq!(lines(&mut worker, 2), ["destroyed 1", "destroyed 2"]);
    stops(&warden, &mut worker, &["unload 0"]);
}

#[test]
fn a_chain_of_objects_ends_without_recursion() {
    let warden = Warden::start();
    let mut worker = serving(&warden);
    assert_eq!(worker.call("chain", &[encoded(&Value::Integer(200_000))]), ok());
    assert_eq!(lines(&mut worker, 1), ["destroyed 200000"]);
    stops(&warden, &mut worker, &["unload 0"]);
}

#[test]
fn the_thread_that_lets_go_last_is_joined_by_the_unload_callback() {
    let warden = Warden::start();
    let mut worker = serving(&warden);
    let gate = Gate::new();
    assert_eq!(worker.call("in_thread", &[gate.path()]), ok());
    worker.say(&ToWorker::Unload { library: 0 });
    assert_eq!(worker.hear(), Some(FromWorker::Unloaded { library: 0 }));
    gate.open();
    // 0 is what enif_thread_join gave.
    assert_eq!(lines(&mut worker, 2), ["destroyed 3", "unload 0"]);
    worker.say(&ToWorker::Stop);
    assert_eq!(warden.ended(&worker), Status::Exit(0));
}

#[test]
fn a_monitor_that_a_destructor_makes_has_no_down_callback() {
    let warden = Warden::start();
    let mut worker = serving(&warden);
    let gate = Gate::new();
    let call = worker.start("monitoring", &[encoded(&pid(8)), gate.path()]);
    worker.attend_until(|vm| vm.monitors().len() == 1);
    let monitor = worker.said().monitors()[0];
    worker.say(&ToWorker::Down { monitor });
    prints_nothing(&worker);
    gate.open();
    assert_eq!(worker.answer_asked(call), ok());
    // Once.
    assert_eq!(lines(&mut worker, 1), ["destroyed 5"]);
    stops(&warden, &mut worker, &["unload 0"]);
}

#[test]
fn no_library_is_unloaded_before_a_destructor_that_is_due() {
    let warden = Warden::start();
    let mut worker = serving(&warden);
    let gate = Gate::new();
    assert!(matches!(worker.call("standing", &[gate.path()]), Reply::Answer(..)));
    worker.say(&ToWorker::Release { ids: vec![1] });
    assert_eq!(lines(&mut worker, 1), ["standing 4"]);
    // Behind the one that stands still.
    assert_eq!(worker.call("locked", &[]), ok());
    worker.say(&ToWorker::Stop);
    prints_nothing(&worker);
    gate.open();
    assert_eq!(lines(&mut worker, 3), ["destroyed 4", "destroyed 1", "unload 0"]);
    assert_eq!(warden.ended(&worker), Status::Exit(0));
}

#[test]
fn a_destructor_that_does_not_end_keeps_no_worker_from_ending() {
    let warden = Warden::start();
    let mut worker = serving(&warden);
    let gate = Gate::new();
    assert!(matches!(worker.call("standing", &[gate.path()]), Reply::Answer(..)));
    worker.say(&ToWorker::Release { ids: vec![1] });
    assert_eq!(lines(&mut worker, 1), ["standing 4"]);
    worker.say(&ToWorker::Stop);
    assert_eq!(warden.ended(&worker), Status::Exit(0));
    // And the library was not unloaded beside it: the other end of the pipe is closed, and nothing was written.
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut worker.output, &mut rest).unwrap();
    assert_eq!(rest, "");
}

#[test]
fn calls_wait_for_what_they_have_left_behind_but_not_for_ever() {
    let warden = Warden::start();
    let mut worker = serving(&warden);
    let gate = Gate::new();
    assert!(matches!(worker.call("standing", &[gate.path()]), Reply::Answer(..)));
    worker.say(&ToWorker::Release { ids: vec![1] });
    assert_eq!(lines(&mut worker, 1), ["standing 4"]);
    let many = |count| worker.call("many", &[encoded(&Value::Integer(count))]);
    assert_eq!(many(5_000), ok());
    let since = Instant::now();
    for _ in 0..10 {
        assert_eq!(many(0), ok());
    }
    // Each but the first waits for the one before.
    assert!(since.elapsed() >= Duration::from_millis(90), "{:?}", since.elapsed());
    gate.open();
    assert_eq!(lines(&mut worker, 2), ["destroyed 4", "destroyed 5000"]);
    stops(&warden, &mut worker, &["unload 0"]);
}

/// Calls a function of a library that was added.
fn call(worker: &Worker, library: &Loaded, name: &str, arguments: &[Vec<u8>]) -> snakepit_shm_core::ring::vm::Call {
    let of = |function: &control::Function| function.name == name && function.arity as usize == arguments.len();
    let place = library.functions.iter().position(of).unwrap() as u32;
    let number = control::function_number(library.library, place);
    worker.submit(number, arguments.len() as u16, &arguments.concat())
}

fn loaded(worker: &Worker) -> Loaded {
    match worker.hear() {
        Some(FromWorker::Loaded(loaded)) => loaded,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_library_is_not_forgotten_while_another_takes_its_types_over() {
    let warden = Warden::start();
    let mut worker = warden.worker();
    worker.load(&fixture("tenant_b"), 2);
    assert_eq!(lines(&mut worker, 1), ["load 7 0"]);
    worker.ask_for_another(1, &hosted("chains"), &int(0), None, false);
    let first = loaded(&worker);
    let (runs, loads) = (Gate::new(), Gate::new());
    let running = call(&worker, &first, "call", &[runs.path()]);
    while worker.ring.executor(0).call.is_none() && worker.ring.executor(1).call.is_none() {
        std::thread::yield_now();
    }
    worker.say(&ToWorker::Unload { library: 1 });
    // A file of its own, or it would be the same library for the linker.
    let copy = hosted("chains").with_file_name("chains_again");
    std::fs::copy(hosted("chains").with_extension("so"), copy.with_extension("so")).unwrap();
    worker.ask_for_another(2, &copy, &loads.path(), Some(1), false);
    assert_eq!(lines(&mut worker, 1), ["loading 0"]);
    // The type is found. Now the last call of the old library ends.
    runs.open();
    assert_eq!(worker.answer(running, PATIENCE), ok());
    let control = worker.control.as_ref().unwrap();
    assert!(!readable(control.fd(), WHILE), "{:?}", worker.hear());
    loads.open();
    let second = loaded(&worker);
    assert_eq!(worker.hear(), Some(FromWorker::Unloaded { library: 1 }));
    assert_eq!(lines(&mut worker, 1), ["unload 0"]);
    // Each time, the type has an object, and none again: the library stays.
    for _ in 0..3 {
        let made = call(&worker, &second, "one", &[]);
        assert_eq!(worker.answer(made, PATIENCE), ok());
        assert_eq!(lines(&mut worker, 1), ["destroyed 6"]);
    }
    stops(&warden, &mut worker, &["unload 0", "unload 7 1000"]);
}

#[test]
fn a_library_that_is_left_when_the_worker_is_stopped_is_unloaded() {
    let warden = Warden::start();
    let mut worker = warden.worker();
    worker.load(&fixture("tenant_b"), 2);
    assert_eq!(lines(&mut worker, 1), ["load 7 0"]);
    worker.ask_for_another(1, &hosted("chains"), &int(0), None, false);
    let library = loaded(&worker);
    let gate = Gate::new();
    let running = call(&worker, &library, "call", &[gate.path()]);
    while worker.ring.executor(0).call.is_none() && worker.ring.executor(1).call.is_none() {
        std::thread::yield_now();
    }
    worker.say(&ToWorker::Unload { library: 1 });
    worker.say(&ToWorker::Stop);
    gate.open();
    assert_eq!(worker.answer(running, PATIENCE), ok());
    assert_eq!(lines(&mut worker, 2), ["unload 0", "unload 7 1000"]);
    assert_eq!(warden.ended(&worker), Status::Exit(0));
}

/// Leaves a process no room for the stack of another thread, or as much as it wants again.
fn room_for_threads(worker: &Worker, room: bool) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid)).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmData:")).unwrap();
    let data: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    let limit = libc::rlimit {
        rlim_cur: if room {
            libc::RLIM_INFINITY
        } else {
            (data << 10) + (4 << 20)
        },
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the struct is valid for the call.
    let done = unsafe {
        libc::prlimit(
            worker.pid as libc::pid_t,
            libc::RLIMIT_DATA,
            &raw const limit,
            std::ptr::null_mut(),
        )
    };
    assert_eq!(done, 0);
}

#[test]
fn what_finds_no_thread_waits_for_one() {
    let warden = Warden::start();
    let mut worker = serving(&warden);
    room_for_threads(&worker, false);
    worker.ask_for_another(1, &fixture("tenant_b"), &int(0), None, true);
    match worker.hear() {
        Some(FromWorker::NotLoaded { library: 1, failed }) => assert_eq!(failed.stage, Stage::Worker),
        other => panic!("{other:?}"),
    }
    assert_eq!(worker.call("locked", &[]), ok());
    prints_nothing(&worker);
    room_for_threads(&worker, true);
    assert_eq!(lines(&mut worker, 1), ["destroyed 1"]);
    worker.ask_for_another(1, &fixture("tenant_b"), &int(0), None, false);
    assert_eq!(loaded(&worker).library, 1);
    assert_eq!(lines(&mut worker, 1), ["load 7 0"]);
    stops(&warden, &mut worker, &["unload 7 1000", "unload 0"]);
}

#[test]
fn a_worker_without_the_thread_ends_in_order() {
    let warden = Warden::start();
    let mut worker = serving(&warden);
    room_for_threads(&worker, false);
    assert_eq!(worker.call("locked", &[]), ok());
    prints_nothing(&worker);
    stops(&warden, &mut worker, &["destroyed 1", "unload 0"]);
}
