//! The warden: starts workers, reaps them, says how each ended, and leaves nothing behind.
//!
//! One thread, one `poll` over two descriptors: the VM's socket and a signalfd for SIGCHLD. Its whole state is the
//! list of workers and the messages that the VM has not taken yet. It never waits for the VM (what cannot be sent is
//! kept, and while much is kept no request is taken) and never for a worker.
//!
//! It ends when the VM's socket closes, for whatever reason, and then no worker outlives it; when it is killed itself,
//! the workers' parent-death signals do the same.

use crate::packet::{Packets, Received, wait_for};
use crate::{exit, process, thread};
use snakepit_wire::control::{self, FromWarden, Status, ToWarden};
use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::io::Read;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};
use std::{io, ptr};

/// The VM's socket.
const CONTROL: RawFd = 3;
/// Messages kept for a VM that does not read; beyond, its requests wait as well.
const OUTBOX: usize = 1024;
/// A process that the kernel cannot end yet is not waited for any longer than this.
const FAREWELL: Duration = Duration::from_secs(5);

/// Where a worker finds what the VM has sent for it, in the order of the packet.
const WORKER_DESCRIPTORS: [&[RawFd]; 5] = [&[3], &[4], &[5], &[6], &[1, 2]];

/// Runs the role; the code to leave with.
pub fn run() -> i32 {
    match Warden::start() {
        Ok(warden) => warden.serve(),
        Err(error) => {
            process::complain(format_args!("the warden cannot start: {error}"));
            exit::USAGE
        }
    }
}

struct Worker {
    token: u64,
    pid: libc::pid_t,
}

struct Warden {
    vm: Packets,
    children: OwnedFd,
    /// /dev/null. Keeps the numbers 4 to 6 taken: what is duplicated onto them in a new worker never comes from one.
    placeholders: Vec<OwnedFd>,
    workers: Vec<Worker>,
    outbox: VecDeque<Vec<u8>>,
}

impl Warden {
    fn start() -> io::Result<Self> {
        process::close_from(CONTROL + 1)?;
        thread::set_name(c"snakepit_warden");
        process::leave_session();
        process::adopt_orphans();
        process::default_signals();
        process::ignore_polite_signals();
        process::bounded_stack();
        let placeholders = take_low_numbers()?;
        let vm = Packets::adopt(CONTROL)?;
        let children = child_signals()?;
        Ok(Warden {
            vm,
            children,
            placeholders,
            workers: Vec::new(),
            outbox: VecDeque::new(),
        })
    }

    fn serve(mut self) -> i32 {
        self.tell(&FromWarden::Hello {
            version: control::VERSION,
            pid: std::process::id(),
        });
        let code = self.attend();
        self.end_all();
        code
    }

    /// Until the VM is gone or speaks another language.
    fn attend(&mut self) -> i32 {
        let mut buffer = vec![0; control::PACKET];
        loop {
            let mut events = if self.outbox.len() < OUTBOX { libc::POLLIN } else { 0 };
            if !self.outbox.is_empty() {
                events |= libc::POLLOUT;
            }
            let mut poll = [
                libc::pollfd {
                    fd: self.vm.number(),
                    events,
                    revents: 0,
                },
                libc::pollfd {
                    fd: self.children.as_raw_fd(),
                    events: libc::POLLIN,
                    revents: 0,
                },
            ];
            wait_for(&mut poll, -1);
            let [vm, children] = poll.map(|entry| entry.revents);
            if vm & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0 {
                return exit::DONE;
            }
            if children != 0 {
                self.reap();
            }
            if vm & libc::POLLIN != 0 {
                match self.vm.receive(&mut buffer) {
                    Received::Nothing => {}
                    Received::Closed => return exit::DONE,
                    Received::Packet {
                        length,
                        descriptors,
                        cut,
                    } => match control::decode(&buffer[..length]) {
                        Ok(request) => self.obey(request, descriptors, cut),
                        Err(error) => {
                            process::complain(format_args!("the warden does not understand its VM: {error}"));
                            return exit::PROTOCOL;
                        }
                    },
                }
            }
            if self.flush().is_err() {
                return exit::DONE;
            }
        }
    }

    fn obey(&mut self, request: ToWarden, descriptors: Vec<OwnedFd>, cut: bool) {
        match request {
            ToWarden::Start { token, label, memory } => {
                let answer = match self.spawn(token, label, memory, &descriptors, cut) {
                    Ok(pid) => {
                        self.workers.push(Worker { token, pid });
                        FromWarden::Started { token, pid: pid as u32 }
                    }
                    Err((call, errno)) => FromWarden::NotStarted {
                        token,
                        call: call.to_owned(),
                        errno,
                    },
                };
                self.tell(&answer);
            }
            // Who is not in the list has ended, and its end is told.
            ToWarden::Kill { token, signal } => {
                if let Some(worker) = self.workers.iter().find(|worker| worker.token == token) {
                    // SAFETY: takes numbers only. The pid is a child that has not been reaped: it is nobody else's.
                    unsafe { libc::kill(worker.pid, signal) };
                }
            }
        }
        // The descriptors close here: from now on the worker alone has its ends.
    }

    fn spawn(
        &self,
        token: u64,
        label: String,
        memory: u64,
        descriptors: &[OwnedFd],
        cut: bool,
    ) -> Result<libc::pid_t, (&'static str, i32)> {
        if cut {
            return Err(("recvmsg", libc::EMFILE));
        }
        let Some((descriptors, environment)) = descriptors.split_at_checked(WORKER_DESCRIPTORS.len()) else {
            return Err(("descriptors", libc::EBADF));
        };
        let environment = match environment {
            [] => Vec::new(),
            [file] => read_environment(file).map_err(|errno| ("environment", errno))?,
            _ => return Err(("descriptors", libc::EBADF)),
        };
        if self.workers.iter().any(|worker| worker.token == token) {
            return Err(("token", libc::EEXIST));
        }
        let label = CString::new(label).map_err(|_| ("label", libc::EINVAL))?;
        let parent = CString::new(std::process::id().to_string()).map_err(|_| ("pid", libc::EINVAL))?;
        let memory = CString::new(memory.to_string()).map_err(|_| ("memory", libc::EINVAL))?;
        let arguments = [c"snakepit_worker", c"worker", &parent, &label, &memory];
        let null = self.placeholders[0].as_raw_fd();
        let moves: Vec<(RawFd, RawFd)> = std::iter::once((null, 0))
            .chain(
                descriptors
                    .iter()
                    .zip(WORKER_DESCRIPTORS)
                    .flat_map(|(from, to)| to.iter().map(|to| (from.as_raw_fd(), *to))),
            )
            .collect();
        spawn(&arguments, &environment, &moves).map_err(|errno| ("posix_spawn", errno))
    }

    /// Tells the end of every child that has ended.
    fn reap(&mut self) {
        let mut record = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        // SAFETY: the buffer has the size that is given; what is in it does not matter. Signals of one number are
        // merged, so one read does for all.
        unsafe {
            libc::read(
                self.children.as_raw_fd(),
                record.as_mut_ptr().cast(),
                size_of_val(&record),
            )
        };
        let mut ended = false;
        while let Some((pid, status)) = next_ended() {
            ended = true;
            // SAFETY: takes numbers only. The worker leads a group of its own, and it has not been reaped yet: the
            // number names that group, or nothing. What the library has started goes with it.
            unsafe { libc::kill(-pid, libc::SIGKILL) };
            reap(pid);
            if let Some(position) = self.workers.iter().position(|worker| worker.pid == pid) {
                let Worker { token, pid } = self.workers.swap_remove(position);
                self.tell(&FromWarden::Exited {
                    token,
                    pid: pid as u32,
                    status,
                });
            }
        }
        if ended {
            self.end_strays();
        }
    }

    /// Ends what a worker has left behind outside of its group: our children that we did not start.
    fn end_strays(&self) {
        let path = format!("/proc/self/task/{}/children", std::process::id());
        let Ok(children) = std::fs::read_to_string(path) else {
            return;
        };
        for pid in children
            .split_ascii_whitespace()
            .filter_map(|pid| pid.parse::<libc::pid_t>().ok())
        {
            if self.workers.iter().all(|worker| worker.pid != pid) {
                // SAFETY: takes numbers only. A child that only we can reap, so the number is still its own.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
    }

    /// The VM is gone: so are, when this returns, all workers and what they have started.
    fn end_all(&mut self) {
        for worker in self.workers.drain(..) {
            // SAFETY: takes numbers only; a child that has not been reaped, and the group that it leads.
            unsafe {
                libc::kill(-worker.pid, libc::SIGKILL);
                libc::kill(worker.pid, libc::SIGKILL);
            }
        }
        let until = Instant::now() + FAREWELL;
        while Instant::now() < until {
            while let Some((pid, _)) = next_ended() {
                reap(pid);
            }
            if !has_children() {
                return;
            }
            // Orphans come to us one generation at a time.
            self.end_strays();
            let mut poll = [libc::pollfd {
                fd: self.children.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            }];
            // The signal that is left unread makes this a short nap after the first round.
            if wait_for(&mut poll, 20) {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }

    fn tell(&mut self, message: &FromWarden) {
        match control::encode(message) {
            Ok(packet) => self.outbox.push_back(packet),
            // Only a text could be too long, and these are ours.
            Err(error) => process::complain(format_args!("the warden cannot say {message:?}: {error}")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while let Some(packet) = self.outbox.front() {
            if !self.vm.send(packet)? {
                break;
            }
            self.outbox.pop_front();
        }
        Ok(())
    }
}

/// 0 and 1 are /dev/null, 2 stays (the last words of a warden belong on the VM's stderr), 4 to 6 are taken.
fn take_low_numbers() -> io::Result<Vec<OwnedFd>> {
    let null = OwnedFd::from(std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?);
    // Whoever closes 0, 1 or 2 gets that very number now.
    let mut held = vec![null];
    while held[held.len() - 1].as_raw_fd() < CONTROL + 3 {
        held.push(held[0].try_clone()?);
    }
    for target in 0..3 {
        if target < 2 || !process::is_open(target) {
            process::duplicate(held[0].as_raw_fd(), target)?;
        }
    }
    Ok(held)
}

/// SIGCHLD as something to poll on.
fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset; the new descriptor has no other owner.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &set, ptr::null_mut());
        let fd = process::check(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// A child that has ended and how, still to be reaped: its number stays its own until then.
fn next_ended() -> Option<(libc::pid_t, Status)> {
    // SAFETY: all zeroes is a valid siginfo, which the call fills or leaves; its fields are read as a SIGCHLD has them.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        if libc::waitid(libc::P_ALL, 0, &mut info, flags) != 0 || info.si_pid() == 0 {
            return None;
        }
        let status = match info.si_code {
            libc::CLD_EXITED => Status::Exit(info.si_status()),
            _ => Status::Signal(info.si_status()),
        };
        Some((info.si_pid(), status))
    }
}

fn reap(pid: libc::pid_t) {
    // SAFETY: without a place for the status nothing is written.
    unsafe { libc::waitpid(pid, ptr::null_mut(), libc::WNOHANG) };
}

fn has_children() -> bool {
    // SAFETY: all zeroes is a valid siginfo, which the call fills or leaves.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        libc::waitid(libc::P_ALL, 0, &mut info, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) == 0
    }
}

/// The variables in a file that came with a request, each terminated.
fn read_environment(file: &OwnedFd) -> Result<Vec<CString>, i32> {
    let mut bytes = Vec::new();
    file.try_clone()
        .and_then(|file| std::fs::File::from(file).read_to_end(&mut bytes))
        .map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))?;
    let variables = bytes.split_inclusive(|byte| *byte == 0);
    variables
        .map(|variable| CString::from_vec_with_nul(variable.to_owned()).map_err(|_| libc::EINVAL))
        .collect()
}

/// Starts this executable again: a new address layout, this environment and the VM's directory, and of our descriptors
/// only those that are moved. `posix_spawn` is a vfork with the signals seen to; an error of the exec comes back here.
fn spawn(arguments: &[&CStr], environment: &[CString], moves: &[(RawFd, RawFd)]) -> Result<libc::pid_t, i32> {
    let end = std::iter::once(ptr::null_mut());
    let arguments = arguments.iter().map(|argument| argument.as_ptr().cast_mut());
    let arguments: Vec<*mut libc::c_char> = arguments.chain(end.clone()).collect();
    let environment = environment.iter().map(|variable| variable.as_ptr().cast_mut());
    let environment: Vec<*mut libc::c_char> = environment.chain(end).collect();
    let flags =
        libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETSIGMASK | libc::c_int::from(libc::POSIX_SPAWN_SETSID);
    let mut pid = 0;
    // SAFETY: attributes and actions are initialised by their functions before they are used and destroyed after;
    // strings and arrays outlive the call, and both arrays end with a null pointer.
    let result = unsafe {
        let mut attributes = MaybeUninit::uninit();
        let mut actions = MaybeUninit::uninit();
        let mut none = std::mem::zeroed();
        let mut all = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigfillset(&mut all);
        libc::posix_spawnattr_init(attributes.as_mut_ptr());
        libc::posix_spawn_file_actions_init(actions.as_mut_ptr());
        libc::posix_spawnattr_setflags(attributes.as_mut_ptr(), flags as libc::c_short);
        libc::posix_spawnattr_setsigmask(attributes.as_mut_ptr(), &none);
        libc::posix_spawnattr_setsigdefault(attributes.as_mut_ptr(), &all);
        let added = moves
            .iter()
            .map(|(from, to)| libc::posix_spawn_file_actions_adddup2(actions.as_mut_ptr(), *from, *to))
            .find(|error| *error != 0);
        let result = match added {
            Some(error) => error,
            None => libc::posix_spawn(
                &mut pid,
                c"/proc/self/exe".as_ptr(),
                actions.as_ptr(),
                attributes.as_ptr(),
                arguments.as_ptr(),
                environment.as_ptr(),
            ),
        };
        libc::posix_spawn_file_actions_destroy(actions.as_mut_ptr());
        libc::posix_spawnattr_destroy(attributes.as_mut_ptr());
        result
    };
    if result == 0 { Ok(pid) } else { Err(result) }
}
