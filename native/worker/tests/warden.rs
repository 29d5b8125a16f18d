//! The warden alone: starting, reaping, reporting, leaving nothing behind.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test has one reason to fail, and the line says which"
)]

mod support;

use snakepit_wire::control::{FromWarden, Status, ToWorker};
use std::os::fd::AsFd;
use support::{Warden, descriptors, dies, is_alive};

#[test]
fn a_warden_leaves_when_the_vm_does() {
    let status = Warden::start().leave();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_warden_holds_its_own_descriptors_only() {
    let file = std::fs::File::open("/dev/null").unwrap();
    // Inherited without its knowledge, as `:socket` does it.
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let warden = Warden::start();
    let open = descriptors(warden.pid());
    let open: Vec<_> = open.iter().map(|(number, kind)| (*number, kind.as_str())).collect();
    let null = "/dev/null";
    assert_eq!(&open[..2], [(0, null), (1, null)]);
    assert_eq!(
        &open[3..],
        [(3, "socket"), (4, null), (5, null), (6, null), (7, "anon_inode")]
    );
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC)).unwrap();
}

#[test]
fn polite_signals_do_not_end_a_warden() {
    let warden = Warden::start();
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE, libc::SIGQUIT] {
        // SAFETY: takes numbers only; a child that has not been waited for.
        unsafe { libc::kill(warden.pid() as i32, signal) };
    }
    let worker = warden.worker();
    assert!(is_alive(worker.pid));
}

#[test]
fn a_warden_has_a_session_of_its_own() {
    let warden = Warden::start();
    // SAFETY: takes numbers only.
    let session = unsafe { libc::getsid(warden.pid() as i32) };
    assert_eq!(session as u32, warden.pid());
}

#[test]
fn no_worker_outlives_the_vm() {
    let warden = Warden::start();
    let workers: Vec<_> = (0..3).map(|_| warden.worker()).collect();
    assert!(workers.iter().all(|worker| is_alive(worker.pid)));
    assert_eq!(warden.leave().code(), Some(0));
    // The warden has waited for them before it left.
    assert!(!workers.iter().any(|worker| is_alive(worker.pid)));
}

#[test]
fn no_worker_outlives_a_warden_that_is_killed() {
    let mut warden = Warden::start();
    let worker = warden.worker();
    warden.child.kill().unwrap();
    warden.child.wait().unwrap();
    assert!(dies(worker.pid), "the worker stays");
}

#[test]
fn a_worker_that_is_killed_is_reported_with_its_signal() {
    let warden = Warden::start();
    let worker = warden.worker();
    warden.kill(&worker, libc::SIGKILL);
    assert_eq!(warden.ended(&worker), Status::Signal(libc::SIGKILL));
    // Whom it does not know any more it does not kill.
    warden.kill(&worker, libc::SIGKILL);
    warden.worker();
}

#[test]
fn a_worker_that_somebody_else_kills_is_reported() {
    let warden = Warden::start();
    let worker = warden.worker();
    // SAFETY: takes numbers only; the warden has not reaped it.
    unsafe { libc::kill(worker.pid as i32, libc::SIGUSR1) };
    assert_eq!(warden.ended(&worker), Status::Signal(libc::SIGUSR1));
}

#[test]
fn a_worker_without_descriptors_is_not_started() {
    let warden = Warden::start();
    let null = std::fs::File::open("/dev/null").unwrap();
    warden.start_with_descriptors(77, &[null.as_fd(), null.as_fd()]);
    match warden.hear() {
        FromWarden::NotStarted { token, call, errno } => {
            assert_eq!((token, call.as_str(), errno), (77, "descriptors", libc::EBADF));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_worker_with_wrong_descriptors_says_so_and_ends() {
    let warden = Warden::start();
    let null = std::fs::File::open("/dev/null").unwrap();
    warden.start_with_descriptors(78, &[null.as_fd(); 5]);
    assert!(matches!(warden.hear(), FromWarden::Started { token: 78, .. }));
    match warden.hear() {
        FromWarden::Exited { token, status, .. } => assert_eq!((token, status), (78, Status::Exit(64))),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_vm_that_does_not_read_is_not_waited_for() {
    let warden = Warden::start();
    let null = std::fs::File::open("/dev/null").unwrap();
    let requests = 600;
    for token in 0..requests {
        warden.start_with_descriptors(token, &[null.as_fd()]);
    }
    for expected in 0..requests {
        match warden.hear() {
            FromWarden::NotStarted { token, .. } => assert_eq!(token, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_message_of_another_version_ends_the_warden() {
    let mut warden = Warden::start();
    warden.channel.as_ref().unwrap().say_bytes(&[0xFF, 0xFF, 0x80]);
    assert_eq!(warden.child.wait().unwrap().code(), Some(65));
}

#[test]
fn a_worker_is_not_started_by_hand() {
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_snakepit_worker"));
        command
            .args(arguments)
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap()
            .code()
    };
    assert_eq!(run(&[]), Some(64));
    assert_eq!(run(&["worker"]), Some(64));
    assert_eq!(run(&["worker", "1", "label"]), Some(64));
    // Its parent is not the one that it is told to watch.
    assert_eq!(run(&["worker", "1", "label", "0"]), Some(67));
}

#[test]
fn a_worker_whose_control_channel_closes_leaves() {
    let warden = Warden::start();
    let mut worker = warden.worker();
    drop(worker.control.take());
    assert_eq!(warden.ended(&worker), Status::Exit(0));
}

#[test]
fn a_worker_says_hello_in_its_own_session_and_with_its_own_name() {
    let warden = Warden::start();
    let worker = warden.worker();
    // SAFETY: takes numbers only.
    assert_eq!(unsafe { libc::getsid(worker.pid as i32) } as u32, worker.pid);
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", worker.pid)).unwrap();
    assert_eq!(read("comm").trim(), "snakepit_worker");
    assert_eq!(read("cmdline").split('\0').nth(3), Some("test/1"));
    assert_eq!(read("oom_score_adj").trim(), "1000");
    assert!(
        read("limits")
            .lines()
            .any(|line| line.starts_with("Max core file size        1 "))
    );
}

#[test]
fn stop_before_load_ends_a_worker() {
    let warden = Warden::start();
    let worker = warden.worker();
    worker.say(&ToWorker::Stop);
    assert_eq!(warden.ended(&worker), Status::Exit(0));
}
