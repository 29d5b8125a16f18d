//! What a process of ours does to itself before it does anything else.
//!
//! Everything here is one system call or a few, in the order in which [`warden`](crate::warden) and
//! [`worker`](crate::worker) make them. What is best effort says so and returns nothing.

use snakepit_host::thread::STACK_BYTES;
use std::os::fd::RawFd;
use std::{io, mem, ptr};

/// Ends this process when whoever holds the other end of its input lets go of it. Best effort: only for a pipe.
pub fn end_with_input() {
    // SAFETY: plain data, for which zeros are valid, written by the call; numbers only. SIGIO does what it does by default: it ends the
    // process. Whoever let go before that was asked for is seen by the poll.
    unsafe {
        let mut status: libc::stat = mem::zeroed();
        if libc::fstat(libc::STDIN_FILENO, &raw mut status) < 0 || status.st_mode & libc::S_IFMT != libc::S_IFIFO {
            return;
        }
        let flags = libc::fcntl(libc::STDIN_FILENO, libc::F_GETFL);
        libc::fcntl(libc::STDIN_FILENO, libc::F_SETOWN, libc::getpid());
        libc::fcntl(libc::STDIN_FILENO, libc::F_SETFL, flags | libc::O_ASYNC);
        let mut input = libc::pollfd {
            fd: libc::STDIN_FILENO,
            events: 0,
            revents: 0,
        };
        if libc::poll(&raw mut input, 1, 0) > 0 && input.revents & libc::POLLHUP != 0 {
            leave(crate::exit::DONE);
        }
    }
}

/// Turns the usual `-1` into the error that it stands for.
pub fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Closes every descriptor from `first` on.
pub fn close_from(first: RawFd) -> io::Result<()> {
    // SAFETY: takes numbers only. Called before this process has opened anything, so no owner loses a descriptor.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    if closed == 0 {
        return Ok(());
    }
    // A kernel before 5.9, or a filter that does not know the call. The names are collected first: the directory has
    // a descriptor of its own.
    let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd >= first)
        .collect();
    for fd in open {
        // SAFETY: as above; the directory's own number is closed already, EBADF does no harm.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

/// `target` becomes a second name of `fd`, open across an exec.
pub fn duplicate(fd: RawFd, target: RawFd) -> io::Result<()> {
    // SAFETY: takes numbers only; the caller says that `target` has no other owner.
    check(unsafe { libc::dup2(fd, target) }).map(drop)
}

/// Is there an open descriptor of this number?
pub fn is_open(fd: RawFd) -> bool {
    // SAFETY: takes a number only.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// The descriptor ends with an exec.
pub fn close_on_exec(fd: RawFd) -> io::Result<()> {
    // SAFETY: takes a number only.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) }).map(drop)
}

/// This process dies with `parent`; false when it is too late for that.
///
/// The parent is looked at *after* the request: whoever died in between would never be reported.
pub fn die_with_parent(parent: libc::pid_t) -> bool {
    // SAFETY: takes numbers only.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) == 0 && libc::getppid() == parent }
}

/// A session of its own: no terminal, and not in the group that ^C reaches. Fails for who leads a group already, and
/// that one has what it needs.
pub fn leave_session() {
    // SAFETY: takes nothing.
    unsafe { libc::setsid() };
}

/// Orphans of our descendants become our children, so that they can be found and ended. Best effort.
pub fn adopt_orphans() {
    // SAFETY: takes numbers only.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1 as libc::c_ulong) };
}

/// Every signal does what it does by default, and none is blocked.
pub fn default_signals() {
    // SAFETY: the calls change dispositions and the mask of this process; nothing of ours has a handler. Numbers that
    // cannot be changed (SIGKILL, SIGSTOP, the C library's own) are refused without effect.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none = mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
    }
}

/// Signals that are meant for the VM and its group, or that ask politely: not for us. We end when the VM does.
///
/// A service manager sends SIGTERM to every process of a service while the VM still has calls to finish.
pub fn ignore_polite_signals() {
    use libc::{SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU};
    for signal in [SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU] {
        // SAFETY: a valid signal and a disposition that runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// No core is dumped.
///
/// One byte, not none: a limit of 0 keeps files away but not a `core_pattern` that is a pipe (a systemd machine); 1 is
/// the value with which the kernel gives up in both cases, and a crash is reported at once.
pub fn no_core() {
    limited(libc::RLIMIT_CORE, 1);
}

/// A bounded stack for the main thread; an unbounded one would turn endless recursion into exhausted memory. Counts
/// from the next exec on.
pub fn bounded_stack() {
    let mut now = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the struct is valid for both calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_STACK, &mut now) == 0 {
            now.rlim_cur = now.rlim_max.min(STACK_BYTES as libc::rlim_t);
            libc::setrlimit(libc::RLIMIT_STACK, &now);
        }
    }
}

/// No more private memory than so many bytes, for good. What is asked for beyond is not there (ENOMEM, a null pointer).
///
/// The kernel counts all that is private and writable, touched or not, stacks of threads included; shared memory, the
/// ring above all, is not.
pub fn bounded_memory(bytes: u64) {
    limited(libc::RLIMIT_DATA, bytes);
}

/// At most so much of something that the kernel counts.
pub fn limited(resource: libc::__rlimit_resource_t, value: libc::rlim_t) {
    let mut now = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the struct is valid for both calls.
    unsafe {
        libc::getrlimit(resource, &mut now);
        let value = value.min(now.rlim_max);
        libc::setrlimit(
            resource,
            &libc::rlimit {
                rlim_cur: value,
                rlim_max: value,
            },
        );
    }
}

/// When memory runs out, this process goes first. Best effort: /proc may be missing.
pub fn first_when_memory_ends() {
    // SAFETY: a terminated path; the descriptor is used and closed here.
    unsafe {
        let fd = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if fd >= 0 {
            libc::write(fd, c"1000".as_ptr().cast(), 4);
            libc::close(fd);
        }
    }
}

/// The C library writes whole lines to stdout although it is a pipe: what a library prints is seen when it prints it,
/// and its last words before a crash are not lost in a buffer.
pub fn line_buffered_output() {
    unsafe extern "C" {
        static stdout: *mut libc::FILE;
    }
    // SAFETY: `stdout` is set by the C library before `main`, and nothing has been written to it yet.
    unsafe { libc::setvbuf(stdout, ptr::null_mut(), libc::_IOLBF, 0) };
}

/// Writes what the C library still holds of what was printed.
pub fn flush_output() {
    // SAFETY: without a stream it means all of them.
    unsafe { libc::fflush(ptr::null_mut()) };
}

/// Last words, to whom it may concern: unlike `eprintln!` it does not mind when nobody listens.
pub fn complain(words: std::fmt::Arguments<'_>) {
    let line = format!("snakepit_worker: {words}\n");
    // SAFETY: the pointer and the length are those of one string.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
}

/// Writes all of it; false when nobody listens any more.
pub fn write_all(fd: RawFd, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        // SAFETY: pointer and length are those of one slice.
        let written = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
        match usize::try_from(written) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    true
}

/// Ends the process here and now: no destructors, which are code of a library that other threads may still run.
pub fn leave(code: i32) -> ! {
    // SAFETY: takes a number only.
    unsafe { libc::_exit(code) }
}
