//! Time, the environment, dynamic libraries, and what the system is.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::sync::LazyLock;

/// `ErlNifTimeUnit`, `erl_drv_nif.h`.
const UNITS: [i64; 4] = [1, 1_000, 1_000_000, 1_000_000_000];
/// `ERL_NIF_TIME_ERROR`.
const ERROR: i64 = i64::MIN;

fn clock(id: libc::clockid_t) -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is ours, and the clocks that we ask for exist.
    unsafe { libc::clock_gettime(id, &raw mut now) };
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// Rounds down, as the VM does.
fn convert(value: i64, from: c_uint, to: c_uint) -> i64 {
    let (Some(&from), Some(&to)) = (UNITS.get(from as usize), UNITS.get(to as usize)) else {
        return ERROR;
    };
    if to >= from {
        value.wrapping_mul(to / from)
    } else {
        value.div_euclid(from / to)
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn enif_monotonic_time(unit: c_uint) -> i64 {
    convert(clock(libc::CLOCK_MONOTONIC), 3, unit)
}

/// What makes system time of monotonic time.
#[unsafe(no_mangle)]
pub extern "C" fn enif_time_offset(unit: c_uint) -> i64 {
    // One answer for the life of the process, as with the VM's default time warp mode.
    static OFFSET: LazyLock<i64> = LazyLock::new(|| clock(libc::CLOCK_REALTIME) - clock(libc::CLOCK_MONOTONIC));
    convert(*OFFSET, 3, unit)
}

#[unsafe(no_mangle)]
pub extern "C" fn enif_convert_time_unit(value: i64, from: c_uint, to: c_uint) -> i64 {
    convert(value, from, to)
}

/// 0: written with its end; 1: there is none; -1: `size` is too small, and now says what is needed. As in the VM, `size`
/// counts the terminator in and not out.
///
/// # Safety
/// `key` is terminated, `size` can be written, `value` has room for what it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn enif_getenv(key: *const c_char, value: *mut c_char, size: *mut usize) -> c_int {
    if key.is_null() || value.is_null() || size.is_null() {
        return -1;
    }
    // SAFETY: the caller's promise. Nobody changes the environment of this process but the library.
    let found = unsafe { libc::getenv(key) };
    if found.is_null() {
        return 1;
    }
    // SAFETY: the C library's strings are terminated; the room was checked.
    unsafe {
        let length = CStr::from_ptr(found).count_bytes();
        if length >= *size {
            *size = length + 1;
            return -1;
        }
        *size = length;
        libc::memcpy(value.cast(), found.cast(), length + 1);
    }
    0
}

type OnError = Option<unsafe extern "C" fn(*mut c_void, *const c_char)>;

/// # Safety
/// To be called in the thread of the failure.
unsafe fn tell(handler: OnError, argument: *mut c_void) {
    if let Some(handler) = handler {
        // SAFETY: the text lives until the next call of dlerror in this thread; the handler is the library's.
        unsafe {
            let text = libc::dlerror();
            handler(
                argument,
                if text.is_null() {
                    c"unknown error".as_ptr()
                } else {
                    text
                },
            );
        }
    }
}

/// # Safety
/// `library` is terminated or NULL (the program itself); `handler` can be called with `argument`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn enif_dlopen(library: *const c_char, handler: OnError, argument: *mut c_void) -> *mut c_void {
    // SAFETY: constructors are the library's own business.
    let handle = unsafe { libc::dlopen(library, libc::RTLD_NOW) };
    if handle.is_null() {
        // SAFETY: it was this thread's.
        unsafe { tell(handler, argument) };
    }
    handle
}

/// # Safety
/// `handle` is of `enif_dlopen`, `symbol` terminated; `handler` can be called with `argument`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn enif_dlsym(
    handle: *mut c_void,
    symbol: *const c_char,
    handler: OnError,
    argument: *mut c_void,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    let found = unsafe { libc::dlsym(handle, symbol) };
    if found.is_null() {
        // SAFETY: it was this thread's.
        unsafe { tell(handler, argument) };
    }
    found
}

/// `ErlNifSysInfo`.
#[repr(C)]
pub struct SystemInfo {
    driver_major_version: c_int,
    driver_minor_version: c_int,
    erts_version: *mut c_char,
    otp_release: *mut c_char,
    thread_support: c_int,
    smp_support: c_int,
    async_threads: c_int,
    scheduler_threads: c_int,
    nif_major_version: c_int,
    nif_minor_version: c_int,
    dirty_scheduler_support: c_int,
}

/// The first OTP with the newest interface that we have: 2.16 came with OTP 24.
static ERTS: LazyLock<CString> = LazyLock::new(|| c"12.0".to_owned());
static OTP: LazyLock<CString> = LazyLock::new(|| c"24".to_owned());

/// # Safety
/// `info` has room for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn enif_system_info(info: *mut SystemInfo, size: usize) {
    let full = SystemInfo {
        driver_major_version: 3,
        driver_minor_version: 3,
        erts_version: ERTS.as_ptr().cast_mut(),
        otp_release: OTP.as_ptr().cast_mut(),
        thread_support: 1,
        smp_support: 1,
        async_threads: 1,
        scheduler_threads: std::thread::available_parallelism().map_or(1, |count| count.get() as c_int),
        nif_major_version: 2,
        nif_minor_version: 16,
        dirty_scheduler_support: 1,
    };
    if !info.is_null() {
        // SAFETY: no more than there is room for; older callers know less of it.
        unsafe { libc::memcpy(info.cast(), (&raw const full).cast(), size.min(size_of::<SystemInfo>())) };
    }
}
