//! `posix_spawn` of the warden: from a process with many threads nothing else is safe.

use nix::errno::Errno;
use snakepit_shm_core::error::{Error, Result};
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr::null;

/// The descriptor that the new process finds its socket at.
const SOCKET: RawFd = 3;

struct Actions(libc::posix_spawn_file_actions_t);

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised by `prepare`.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised by `prepare`.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}

/// Starts `executable role` in a session of its own, with `socket` as its descriptor 3, an empty environment, default
/// dispositions and no blocked signals: the VM ignores SIGCHLD, and an ignored signal would be inherited. Standard error
/// stays the VM's, for what it has to say when it cannot start.
pub fn role(executable: &CStr, role: &CStr, socket: BorrowedFd<'_>) -> Result<libc::pid_t> {
    let actions = file_actions(socket.as_raw_fd())?;
    let attributes = attributes()?;
    let arguments = [
        executable.as_ptr().cast_mut(),
        role.as_ptr().cast_mut(),
        null::<i8>().cast_mut().cast(),
    ];
    let environment = [null::<libc::c_char>().cast_mut()];
    let mut pid = 0;
    // SAFETY: all pointers outlive the call; both arrays end with a null pointer.
    let errno = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            executable.as_ptr(),
            &raw const actions.0,
            &raw const attributes.0,
            arguments.as_ptr(),
            environment.as_ptr(),
        )
    };
    check("posix_spawn", errno)?;
    Ok(pid)
}

fn file_actions(socket: RawFd) -> Result<Actions> {
    const NULL: &CStr = c"/dev/null";
    let mut actions = MaybeUninit::uninit();
    // SAFETY: initialises the value.
    check("posix_spawn_file_actions_init", unsafe {
        libc::posix_spawn_file_actions_init(actions.as_mut_ptr())
    })?;
    // SAFETY: initialised just above.
    let mut actions = Actions(unsafe { actions.assume_init() });
    // dup2 to itself clears close-on-exec here (POSIX 2024, glibc since 2.29, musl).
    // SAFETY: initialised; the path is static.
    let errnos = unsafe {
        [
            libc::posix_spawn_file_actions_adddup2(&raw mut actions.0, socket, SOCKET),
            libc::posix_spawn_file_actions_addopen(&raw mut actions.0, 0, NULL.as_ptr(), libc::O_RDONLY, 0),
            libc::posix_spawn_file_actions_addopen(&raw mut actions.0, 1, NULL.as_ptr(), libc::O_WRONLY, 0),
        ]
    };
    errnos
        .into_iter()
        .try_for_each(|errno| check("posix_spawn_file_actions", errno))?;
    Ok(actions)
}

fn attributes() -> Result<Attributes> {
    let mut attributes = MaybeUninit::uninit();
    // SAFETY: initialises the value.
    check("posix_spawnattr_init", unsafe {
        libc::posix_spawnattr_init(attributes.as_mut_ptr())
    })?;
    // SAFETY: initialised just above.
    let mut attributes = Attributes(unsafe { attributes.assume_init() });
    let mut all = MaybeUninit::uninit();
    let mut none = MaybeUninit::uninit();
    let flags = libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSID;
    // SAFETY: the sets are initialised before they are read.
    let errnos = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::sigemptyset(none.as_mut_ptr());
        [
            libc::posix_spawnattr_setsigdefault(&raw mut attributes.0, all.as_ptr()),
            libc::posix_spawnattr_setsigmask(&raw mut attributes.0, none.as_ptr()),
            libc::posix_spawnattr_setflags(&raw mut attributes.0, flags as libc::c_short),
        ]
    };
    errnos
        .into_iter()
        .try_for_each(|errno| check("posix_spawnattr", errno))?;
    Ok(attributes)
}

/// Not in the crate libc for every C library.
const POSIX_SPAWN_SETSID: i32 = 0x80;

fn check(call: &'static str, errno: i32) -> Result<()> {
    match errno {
        0 => Ok(()),
        errno => match Errno::from_raw(errno) {
            Errno::ENOENT => Err(Error::NotFound),
            errno => Err(Error::os(call, errno)),
        },
    }
}

/// A path as the C library takes it.
pub fn c_path(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::invalid_spec("executable", "a zero byte in the path"))
}
