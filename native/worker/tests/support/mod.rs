//! The VM's part: starts a warden, has it start workers, loads libraries, calls them.

#![allow(dead_code, reason = "each test file, and the benchmark, uses a part")]

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, send, sendmsg, socketpair,
};
use snakepit_shm_core::mapping::Permit;
use snakepit_shm_core::ring::bell::{self, Listener, Ringer};
use snakepit_shm_core::ring::vm::{Call, Payload, Poll, Request, VmRing, Wake};
use snakepit_shm_core::ring::{Caller, Plan};
use snakepit_wire::Limits;
use snakepit_wire::control::{
    self, FromWarden, FromWorker, Load, Loaded, Message, Process, Status, System, ToWarden, ToWorker,
};
use std::fs::File;
use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

pub mod asked;
pub mod library;

/// Longer than anything takes, also on a machine with other things to do.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn plan() -> Plan {
    Plan {
        slots: 8,
        executors: 4,
        ..Plan::default()
    }
}

/// A socket that carries messages.
pub struct Channel {
    fd: OwnedFd,
}

impl Channel {
    pub fn pair() -> (Channel, OwnedFd) {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        (Channel { fd: ours }, theirs)
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn say<M: Message>(&self, message: &M) {
        self.say_bytes(&control::encode(message).unwrap());
    }

    pub fn say_bytes(&self, packet: &[u8]) {
        send(self.fd.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL).unwrap();
    }

    /// The next message; `None` when the other end is closed.
    pub fn hear<M: Message>(&self) -> Option<M> {
        assert!(readable(self.fd.as_fd(), PATIENCE), "no message");
        let mut buffer = vec![0; control::PACKET];
        match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(0) | Err(_) => None,
            Ok(length) => Some(control::decode(&buffer[..length]).unwrap()),
        }
    }
}

/// Waits until there is something to read, or the other end is closed.
pub fn readable(fd: BorrowedFd<'_>, patience: Duration) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::try_from(patience).unwrap()).unwrap() > 0
}

pub struct Warden {
    pub child: Child,
    pub channel: Option<Channel>,
    tokens: Mutex<u64>,
    /// Ends that were told while something else was waited for.
    ended: Mutex<Vec<(u64, Status)>>,
}

impl Warden {
    pub fn start() -> Warden {
        Self::start_with(|_| {})
    }

    pub fn start_with(prepare: impl FnOnce(&mut Command)) -> Warden {
        let (channel, theirs) = Channel::pair();
        let number = theirs.as_raw_fd();
        let mut command = Command::new(env!("CARGO_BIN_EXE_snakepit_worker"));
        command.arg("warden").stdin(Stdio::null());
        prepare(&mut command);
        // SAFETY: system calls only, between fork and exec. The number is open in the child; a socket that is 3 already
        // stays open as well.
        unsafe {
            command.pre_exec(move || match libc::dup2(number, 3) + libc::fcntl(3, libc::F_SETFD, 0) {
                3 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            })
        };
        let child = command.spawn().unwrap();
        let pid = child.id();
        match channel.hear() {
            Some(FromWarden::Hello { version, pid: said }) => {
                assert_eq!((version, said), (control::VERSION, pid));
            }
            other => panic!("{other:?}"),
        }
        Warden {
            child,
            channel: Some(channel),
            tokens: Mutex::new(0),
            ended: Mutex::new(Vec::new()),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn channel(&self) -> &Channel {
        self.channel.as_ref().unwrap()
    }

    /// Asks for a worker and hands its ends over; what the warden answers is still to be heard.
    pub fn ask(&self, plan: Plan) -> Worker {
        let token = {
            let mut tokens = self.tokens.lock().unwrap();
            *tokens += 1;
            *tokens
        };
        let ring = VmRing::create("test", plan, Permit::take(u64::MAX).unwrap(), 0).unwrap();
        let memory = ring.fd().unwrap();
        let (control, their_control) = Channel::pair();
        let (bell, their_listener) = bell::pair().unwrap();
        let (their_ringer, done) = bell::pair().unwrap();
        let (output, their_output) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let (listener, ringer) = (their_listener.into_fd(), their_ringer.into_fd());
        self.start_with_descriptors(
            token,
            &[
                their_control.as_fd(),
                memory.as_fd(),
                listener.as_fd(),
                ringer.as_fd(),
                their_output.as_fd(),
            ],
        );
        Worker {
            token,
            pid: 0,
            ring,
            control: Some(control),
            bell,
            done,
            output: File::from(output),
            loaded: None,
            vm: Mutex::default(),
        }
    }

    pub fn start_with_descriptors(&self, token: u64, descriptors: &[BorrowedFd<'_>]) {
        let packet = control::encode(&ToWarden::Start {
            token,
            label: format!("test/{token}"),
            memory: 0,
        })
        .unwrap();
        let numbers: Vec<i32> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        sendmsg::<()>(
            self.channel().fd.as_raw_fd(),
            &[IoSlice::new(&packet)],
            &[ControlMessage::ScmRights(&numbers)],
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .unwrap();
    }

    /// A worker that has said hello.
    pub fn worker_with(&self, plan: Plan) -> Worker {
        let mut worker = self.ask(plan);
        match self.hear() {
            FromWarden::Started { token, pid } => {
                assert_eq!(token, worker.token);
                worker.pid = pid;
            }
            other => panic!("{other:?}"),
        }
        match worker.hear() {
            Some(FromWorker::Hello { version, pid }) => assert_eq!((version, pid), (control::VERSION, worker.pid)),
            other => panic!("{other:?}"),
        }
        worker
    }

    pub fn worker(&self) -> Worker {
        self.worker_with(plan())
    }

    /// A worker with a library that loads.
    pub fn serving(&self, path: &Path) -> Worker {
        let mut worker = self.worker();
        worker.load(path, 1);
        worker
    }

    pub fn hear(&self) -> FromWarden {
        self.channel().hear().expect("the warden is gone")
    }

    pub fn kill(&self, worker: &Worker, signal: i32) {
        self.channel().say(&ToWarden::Kill {
            token: worker.token,
            signal,
        });
    }

    /// How a worker ended; waits for it.
    pub fn ended(&self, worker: &Worker) -> Status {
        let mut ended = self.ended.lock().unwrap();
        loop {
            if let Some(position) = ended.iter().position(|(token, _)| *token == worker.token) {
                return ended.swap_remove(position).1;
            }
            match self.hear() {
                FromWarden::Exited { token, status, .. } => ended.push((token, status)),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Closes the VM's end and waits for the warden.
    pub fn leave(mut self) -> std::process::ExitStatus {
        drop(self.channel.take());
        assert!(dies(self.pid()), "the warden stays");
        self.child.wait().unwrap()
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        drop(self.channel.take());
        let _ = self.child.wait();
    }
}

pub struct Worker {
    pub token: u64,
    pub pid: u32,
    pub ring: VmRing,
    pub control: Option<Channel>,
    pub bell: Ringer,
    pub done: Listener,
    pub output: File,
    pub loaded: Option<Loaded>,
    pub vm: Mutex<asked::Vm>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    Answer(u16, Vec<u8>),
    Nothing,
}

impl Worker {
    pub fn hear(&self) -> Option<FromWorker> {
        self.control.as_ref().unwrap().hear()
    }

    pub fn say(&self, message: &ToWorker) {
        self.control.as_ref().unwrap().say(message);
    }

    /// Says what to load. `path` is without the extension.
    pub fn ask_to_load(&self, path: &Path, info: &[u8], executors: u16) {
        self.say(&ToWorker::Load(Load {
            library: 0,
            replaces: None,
            asks: false,
            process: Some(Process {
                executors,
                spin_us: 50,
                limits: Limits::DEFAULT,
                system: System {
                    driver: (3, 3),
                    nif: (2, 16),
                    erts: "13.1.5".into(),
                    release: "25".into(),
                    threads: 1,
                    smp: 1,
                    async_threads: 1,
                    schedulers: 2,
                    dirty_schedulers: 1,
                },
            }),
            path: path.as_os_str().as_bytes().to_vec(),
            load_info: info.to_vec(),
        }));
    }

    /// Says to load another library; what comes of it is still to be heard.
    pub fn ask_for_another(&self, library: u32, path: &Path, info: &[u8], replaces: Option<u32>, asks: bool) {
        self.say(&ToWorker::Load(Load {
            library,
            replaces,
            asks,
            process: None,
            path: path.as_os_str().as_bytes().to_vec(),
            load_info: info.to_vec(),
        }));
    }

    pub fn load(&mut self, path: &Path, executors: u16) {
        self.ask_to_load(path, &int(0), executors);
        match self.hear() {
            Some(FromWorker::Loaded(loaded)) => self.loaded = Some(loaded),
            other => panic!("{other:?}"),
        }
    }

    /// By which number calls name a function.
    pub fn function(&self, name: &str, arity: usize) -> u32 {
        let functions = &self.loaded.as_ref().unwrap().functions;
        functions
            .iter()
            .position(|entry| entry.name == name && entry.arity as usize == arity)
            .unwrap_or_else(|| panic!("no function {name}/{arity}")) as u32
    }

    pub fn start(&self, function: &str, arguments: &[Vec<u8>]) -> Call {
        let number = self.function(function, arguments.len());
        self.submit(number, arguments.len() as u16, &arguments.concat())
    }

    pub fn submit(&self, function: u32, arity: u16, arguments: &[u8]) -> Call {
        let request = Request {
            function,
            arity,
            caller: Caller::default(),
        };
        let claim = self.ring.claim().unwrap();
        let (call, wake) = self
            .ring
            .publish(claim, request, Payload::Bytes(arguments))
            .map_err(|(_, error)| error)
            .unwrap();
        if wake == Wake::Asleep {
            self.bell.ring().unwrap();
        }
        call
    }

    /// The answer of a call, within `patience`; a call without one is abandoned.
    pub fn answer(&self, call: Call, patience: Duration) -> Reply {
        let until = Instant::now() + patience;
        loop {
            match self.ring.spin(&call, Duration::from_micros(50)).unwrap() {
                Poll::Answered(answer) => {
                    let mut payload = Vec::new();
                    self.ring.source(&call, &answer).read(&mut payload);
                    self.ring.release(call);
                    return Reply::Answer(answer.status, payload);
                }
                Poll::Waiting if Instant::now() < until => std::thread::yield_now(),
                _ => {
                    self.ring.abandon(call);
                    return Reply::Nothing;
                }
            }
        }
    }

    pub fn call(&self, function: &str, arguments: &[Vec<u8>]) -> Reply {
        let call = self.start(function, arguments);
        self.answer(call, PATIENCE)
    }

    /// What the library prints until `enough` says so.
    pub fn printed(&mut self, enough: impl Fn(&str) -> bool) -> String {
        let mut text = String::new();
        while !enough(&text) {
            assert!(readable(self.output.as_fd(), PATIENCE), "printed only {text:?}");
            let mut buffer = [0; 4096];
            let length = self.output.read(&mut buffer).unwrap();
            assert!(length > 0, "printed only {text:?}");
            text += str::from_utf8(&buffer[..length]).unwrap();
        }
        text
    }
}

// ── Terms ────────────────────────────────────────────────────────────────────────────────────────────────────────────

pub fn int(value: i32) -> Vec<u8> {
    let mut bytes = vec![98];
    bytes.extend(value.to_be_bytes());
    if let Ok(small) = u8::try_from(value) {
        bytes = vec![97, small];
    }
    bytes
}

pub fn atom(name: &str) -> Vec<u8> {
    [&[119, name.len() as u8], name.as_bytes()].concat()
}

pub fn binary(bytes: &[u8]) -> Vec<u8> {
    [&[109], &(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

pub fn value(term: Vec<u8>) -> Reply {
    Reply::Answer(snakepit_shm_core::ring::status::VALUE, term)
}

// ── Processes ────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Waits for a process to be gone or a zombie, whoever its parent is.
pub fn dies(pid: u32) -> bool {
    // SAFETY: takes numbers only; the new descriptor has no other owner.
    let fd = unsafe {
        match libc::syscall(libc::SYS_pidfd_open, pid, 0) {
            -1 => return true,
            fd => OwnedFd::from_raw_fd(fd as i32),
        }
    };
    readable(fd.as_fd(), PATIENCE)
}

pub fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// The open descriptors of a process and what they are.
pub fn descriptors(pid: u32) -> Vec<(i32, String)> {
    let mut all: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let number = entry.file_name().to_str().unwrap().parse().unwrap();
            let target: PathBuf = std::fs::read_link(entry.path()).unwrap();
            (
                number,
                target
                    .display()
                    .to_string()
                    .split([':', '['])
                    .next()
                    .unwrap()
                    .to_owned(),
            )
        })
        .collect();
    all.sort();
    all
}
