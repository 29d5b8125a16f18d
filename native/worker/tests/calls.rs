//! Workers with libraries: loading, calling, crashing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test has one reason to fail, and the line says which"
)]

mod support;

use snakepit_shm_core::ring::status;
use snakepit_wire::control::{Failed, FromWorker, Stage, Status, ToWorker};
use std::time::Duration;
use support::library::{file, fixture, library};
use support::{PATIENCE, Reply, Warden, Worker, atom, binary, descriptors, int, value};

// ── Loading ──────────────────────────────────────────────────────────────────────────────────────────────────────────

fn refused(worker: &Worker) -> Failed {
    match worker.hear() {
        Some(FromWorker::Failed(failed)) => failed,
        other => panic!("{other:?}"),
    }
}

fn fails(path: &std::path::Path, info: &[u8]) -> Failed {
    let warden = Warden::start();
    let worker = warden.worker();
    worker.ask_to_load(path, info, 1);
    let failed = refused(&worker);
    assert!(!failed.message.is_empty());
    assert_eq!(warden.ended(&worker), Status::Exit(71));
    failed
}

#[test]
fn a_library_tells_its_functions() {
    let warden = Warden::start();
    let worker = warden.serving(&fixture("adder"));
    let loaded = worker.loaded.as_ref().unwrap();
    assert_eq!(loaded.module, "snakepit_adder");
    assert!(
        loaded
            .functions
            .iter()
            .any(|entry| entry.name == "add" && entry.arity == 2)
    );
    assert_eq!(loaded.missing, Vec::<String>::new());
}

#[test]
fn a_file_that_is_missing() {
    assert_eq!(
        fails(std::path::Path::new("/nowhere/at_all"), &int(0)).stage,
        Stage::NotFound
    );
}

#[test]
fn a_file_that_is_no_library() {
    let path = file("text", b"This is a text. It is no library.\n");
    assert_eq!(fails(&path, &int(0)).stage, Stage::NotALibrary);
}

#[test]
fn a_library_for_another_processor() {
    let mut bytes = std::fs::read(fixture("adder").with_extension("so")).unwrap();
    bytes[18] = if bytes[18] == 183 { 62 } else { 183 };
    let path = file("foreign", &bytes);
    assert_eq!(fails(&path, &int(0)).stage, Stage::WrongArchitecture);
}

#[test]
fn a_library_without_nif_init() {
    assert_eq!(fails(&fixture("no_init"), &int(0)).stage, Stage::NoInit);
}

#[test]
fn a_library_that_needs_what_is_nowhere() {
    assert_eq!(
        fails(&fixture("undefined_symbol"), &int(0)).stage,
        Stage::UnresolvedSymbol
    );
}

#[test]
fn a_load_callback_that_says_no() {
    let failed = fails(&fixture("load_fails"), &int(7));
    assert_eq!((failed.stage, failed.code), (Stage::LoadCallback, 7));
}

#[test]
fn a_constructor_that_crashes() {
    let warden = Warden::start();
    let worker = warden.worker();
    worker.ask_to_load(&fixture("constructor_crash"), &int(0), 1);
    assert_eq!(warden.ended(&worker), Status::Signal(libc::SIGSEGV));
    assert!(worker.hear().is_none());
}

#[test]
fn a_constructor_that_hangs_is_killed() {
    let warden = Warden::start();
    let worker = warden.worker();
    worker.ask_to_load(&fixture("constructor_hang"), &int(0), 1);
    let before = beats(&worker);
    // It lives, although it does not answer.
    await_beat(&worker, before);
    warden.kill(&worker, libc::SIGKILL);
    assert_eq!(warden.ended(&worker), Status::Signal(libc::SIGKILL));
}

#[test]
fn a_constructor_that_hangs_does_not_keep_a_worker_whose_vm_is_gone() {
    let warden = Warden::start();
    let mut worker = warden.worker();
    worker.ask_to_load(&fixture("constructor_hang"), &int(0), 1);
    drop(worker.control.take());
    assert_eq!(warden.ended(&worker), Status::Exit(0));
}

#[test]
fn a_second_library_ends_a_worker() {
    let warden = Warden::start();
    let worker = warden.serving(&fixture("adder"));
    worker.ask_to_load(&fixture("adder"), &int(0), 1);
    assert_eq!(warden.ended(&worker), Status::Exit(65));
}

// ── Calls ────────────────────────────────────────────────────────────────────────────────────────────────────────────

#[test]
fn a_call_is_answered() {
    let warden = Warden::start();
    let worker = warden.serving(&fixture("adder"));
    for round in 0..100 {
        assert_eq!(worker.call("add", &[int(round), int(2)]), value(int(round + 2)));
    }
}

#[test]
fn a_call_that_raises() {
    let warden = Warden::start();
    let worker = warden.serving(&fixture("adder"));
    assert_eq!(
        worker.call("raise", &[atom("reason")]),
        Reply::Answer(status::RAISED, atom("reason"))
    );
}

#[test]
fn terms_of_every_size_come_back() {
    let warden = Warden::start();
    let worker = warden.serving(&fixture("adder"));
    for size in [0, 1, 40, 63, 64, 65, 1000, 16 << 10, 64 << 10, 1 << 20, 20 << 20] {
        let bytes: Vec<u8> = (0..size).map(|position: u32| position as u8).collect();
        let term = binary(&bytes);
        assert!(
            worker.call("echo", std::slice::from_ref(&term)) == value(term),
            "{size} bytes"
        );
    }
}

#[test]
fn an_answer_that_fits_nowhere_is_too_large() {
    let warden = Warden::start();
    let worker = warden.serving(&fixture("adder"));
    let Reply::Answer(code, _) = worker.call("fill", &[int(64 << 20), int(1)]) else {
        panic!()
    };
    assert_eq!(code, status::TOO_LARGE);
    assert_eq!(worker.call("add", &[int(1), int(2)]), value(int(3)));
}

#[test]
fn arguments_that_are_no_terms() {
    let warden = Warden::start();
    let worker = warden.serving(&fixture("adder"));
    let Reply::Answer(code, text) = worker.call("echo", &[vec![255, 0]]) else {
        panic!()
    };
    assert_eq!(code, status::BAD_ARGUMENTS);
    assert!(!text.is_empty());
}

#[test]
fn a_function_that_is_not_implemented_is_named() {
    let warden = Warden::start();
    let worker = warden.serving(&fixture("unimplemented"));
    assert_eq!(worker.loaded.as_ref().unwrap().missing, ["enif_of_tomorrow"]);
    let Reply::Answer(code, text) = worker.call("hash", &[]) else {
        panic!()
    };
    assert_eq!(code, status::NOT_IMPLEMENTED);
    assert!(text.starts_with(b"enif_hash"), "{text:?}");
}

#[test]
fn a_worker_that_sleeps_is_woken() {
    let warden = Warden::start();
    let worker = warden.serving(&fixture("adder"));
    for _ in 0..20 {
        // Longer than an executor looks for the next call.
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(worker.call("add", &[int(1), int(2)]), value(int(3)));
    }
}

#[test]
fn executors_work_at_the_same_time() {
    let warden = Warden::start();
    let mut worker = warden.worker();
    worker.load(&fixture("adder"), 4);
    let calls: Vec<_> = (0..3).map(|_| worker.start("sleep", &[int(300)])).collect();
    assert_eq!(worker.call("add", &[int(1), int(2)]), value(int(3)));
    for call in calls {
        assert!(matches!(worker.answer(call, PATIENCE), Reply::Answer(status::VALUE, _)));
    }
}

#[test]
fn stop_lets_calls_end() {
    let warden = Warden::start();
    let worker = warden.serving(&fixture("adder"));
    let call = worker.start("sleep", &[int(100)]);
    while worker.ring.executor(0).call.is_none() {
        std::thread::yield_now();
    }
    worker.say(&ToWorker::Stop);
    assert!(matches!(worker.answer(call, PATIENCE), Reply::Answer(status::VALUE, _)));
    assert_eq!(warden.ended(&worker), Status::Exit(0));
}

#[test]
fn a_worker_without_a_vm_does_not_finish_its_call() {
    let warden = Warden::start();
    let mut worker = warden.serving(&fixture("adder"));
    let _call = worker.start("spin_forever", &[]);
    drop(worker.control.take());
    assert_eq!(warden.ended(&worker), Status::Exit(0));
}

// ── Crashes ──────────────────────────────────────────────────────────────────────────────────────────────────────────

fn ends_with(function: &str, arguments: &[Vec<u8>], expected: Status) {
    let warden = Warden::start();
    let worker = warden.serving(&fixture("crasher"));
    let call = worker.start(function, arguments);
    assert_eq!(warden.ended(&worker), expected);
    worker.ring.close(|_| {});
    assert_eq!(worker.answer(call, PATIENCE), Reply::Nothing);
    // The warden goes on.
    let next = warden.serving(&fixture("crasher"));
    assert_eq!(next.call("fine", &[]), value(atom("ok")));
}

#[test]
fn a_segmentation_fault() {
    ends_with("segv", &[], Status::Signal(libc::SIGSEGV));
}

#[test]
fn a_segmentation_fault_in_a_thread_of_the_library() {
    ends_with("segv_in_thread", &[], Status::Signal(libc::SIGSEGV));
}

#[test]
fn an_abort() {
    ends_with("abort", &[], Status::Signal(libc::SIGABRT));
}

#[test]
fn a_bus_error() {
    ends_with("bus", &[], Status::Signal(libc::SIGBUS));
}

#[test]
fn a_stack_that_overflows() {
    ends_with("overflow", &[], Status::Signal(libc::SIGSEGV));
}

#[test]
fn a_stack_that_overflows_in_another_executor() {
    let warden = Warden::start();
    let mut worker = warden.worker();
    worker.load(&fixture("crasher"), 4);
    // Three executors are kept busy; whichever takes the fourth call, one of both overflows is not on the main thread.
    let calls: Vec<_> = (0..4).map(|_| worker.start("overflow", &[])).collect();
    assert_eq!(warden.ended(&worker), Status::Signal(libc::SIGSEGV));
    worker.ring.close(|_| {});
    for call in calls {
        worker.ring.abandon(call);
    }
}

#[test]
fn an_exit() {
    ends_with("exit", &[int(3)], Status::Exit(3));
}

#[test]
fn an_exit_without_ceremony() {
    ends_with("quick_exit", &[int(0)], Status::Exit(0));
}

#[test]
fn a_kill_from_within() {
    ends_with("signal", &[int(libc::SIGKILL)], Status::Signal(libc::SIGKILL));
}

#[test]
fn an_endless_loop_is_killed() {
    let warden = Warden::start();
    let worker = warden.serving(&fixture("crasher"));
    let call = worker.start("loop", &[]);
    assert_eq!(worker.answer(call, Duration::from_millis(50)), Reply::Nothing);
    warden.kill(&worker, libc::SIGKILL);
    assert_eq!(warden.ended(&worker), Status::Signal(libc::SIGKILL));
}

#[test]
fn what_a_library_has_started_goes_with_its_worker() {
    let warden = Warden::start();
    let text = r#"
        #include <erl_nif.h>
        #include <unistd.h>
        #include <signal.h>
        static ERL_NIF_TERM fun_fork(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
            pid_t child = fork();
            if (child == 0) for (;;) pause();
            return enif_make_int(env, child);
        }
        static ERL_NIF_TERM fun_daemon(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
            int ends[2];
            pid_t pid = 0;
            if (pipe(ends)) return enif_make_badarg(env);
            if (fork() == 0) {
                setsid();
                pid = fork();
                if (pid == 0) for (;;) pause();
                write(ends[1], &pid, sizeof pid);
                _exit(0);
            }
            read(ends[0], &pid, sizeof pid);
            return enif_make_int(env, pid);
        }
        static ErlNifFunc functions[] = {{"fork", 0, fun_fork, 0}, {"daemon", 0, fun_daemon, 0}};
        ERL_NIF_INIT(snakepit_forks, functions, NULL, NULL, NULL, NULL)
    "#;
    let worker = warden.serving(&library("forks", text));
    for function in ["fork", "daemon"] {
        let Reply::Answer(status::VALUE, pid) = worker.call(function, &[]) else {
            panic!()
        };
        let pid = pid[1..].iter().fold(0, |pid, byte| pid << 8 | u32::from(*byte));
        assert!(support::is_alive(pid));
        if function == "daemon" {
            warden.kill(&worker, libc::SIGKILL);
            assert!(support::dies(pid), "a daemon stays");
        }
    }
}

// ── Output, heartbeat, descriptors ───────────────────────────────────────────────────────────────────────────────────

#[test]
fn what_a_library_prints_arrives() {
    let warden = Warden::start();
    let mut worker = warden.serving(&fixture("adder"));
    worker.call("print", &[int(1), binary(b"to stdout\n")]);
    worker.call("print", &[int(2), binary(b"to stderr\n")]);
    assert_eq!(
        worker.printed(|text| text.contains("stderr\n")),
        "to stdout\nto stderr\n"
    );
}

#[test]
fn lines_arrive_without_being_flushed() {
    let text = r#"
        #include <erl_nif.h>
        #include <stdio.h>
        #include <stdlib.h>
        static ERL_NIF_TERM fun_last_words(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
            printf("last words\n");
            abort();
        }
        static ErlNifFunc functions[] = {{"last_words", 0, fun_last_words, 0}};
        ERL_NIF_INIT(snakepit_last_words, functions, NULL, NULL, NULL, NULL)
    "#;
    let warden = Warden::start();
    let mut worker = warden.serving(&library("last_words", text));
    let call = worker.start("last_words", &[]);
    assert_eq!(warden.ended(&worker), Status::Signal(libc::SIGABRT));
    worker.ring.abandon(call);
    assert_eq!(worker.printed(|text| text.ends_with('\n')), "last words\n");
}

#[test]
fn a_library_that_prints_to_nobody_goes_on() {
    let warden = Warden::start();
    let worker = warden.serving(&fixture("adder"));
    // Three times what the pipe holds.
    let text = binary(&vec![b'x'; 192 << 10]);
    assert_eq!(worker.call("print", &[int(1), text]), value(atom("ok")));
}

fn beats(worker: &Worker) -> u64 {
    worker.ring.status().map_or(0, |status| status.beats)
}

fn await_beat(worker: &Worker, after: u64) {
    let until = std::time::Instant::now() + PATIENCE;
    while beats(worker) <= after {
        assert!(std::time::Instant::now() < until, "no heartbeat");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_heart_beats_while_a_call_runs() {
    let warden = Warden::start();
    let worker = warden.serving(&fixture("adder"));
    let call = worker.start("sleep_forever", &[]);
    let before = beats(&worker);
    await_beat(&worker, before);
    assert!(worker.ring.status().unwrap().resident > 0);
    worker.ring.abandon(call);
}

#[test]
fn a_worker_that_serves_holds_its_own_descriptors_only() {
    let warden = Warden::start();
    let worker = warden.serving(&fixture("adder"));
    let open = descriptors(worker.pid);
    let open: Vec<_> = open.iter().map(|(number, kind)| (*number, kind.as_str())).collect();
    let expected = [
        (0, "/dev/null"),
        (1, "pipe"),
        (2, "pipe"),
        (3, "socket"),
        // The reading end of its own output; the ring's is closed once it is mapped.
        (4, "pipe"),
        (5, "pipe"),
        (6, "pipe"),
        // By which executors wake each other.
        (7, "pipe"),
        (8, "pipe"),
    ];
    assert_eq!(open, expected);
}
