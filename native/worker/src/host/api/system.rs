//! What the library may know of the system that it runs in.

use crate::host::vm::vm;
use std::ffi::{CStr, c_char, c_int, c_void};

/// `ErlNifSysInfo`
#[repr(C)]
struct Information {
    driver_major: c_int,
    driver_minor: c_int,
    erts_version: *const c_char,
    otp_release: *const c_char,
    thread_support: c_int,
    smp_support: c_int,
    async_threads: c_int,
    scheduler_threads: c_int,
    nif_major: c_int,
    nif_minor: c_int,
    dirty_schedulers: c_int,
}

type Report = Option<unsafe extern "C" fn(*mut c_void, *const c_char)>;

unsafe fn report(handle: Report, argument: *mut c_void) {
    // SAFETY: the library's handler; the text is null or terminated.
    unsafe {
        let text = libc::dlerror();
        if let Some(handle) = handle {
            handle(argument, text);
        }
    }
}

api! {
    fn enif_system_info(place: *mut c_void, size: usize) {
        // SAFETY of what is copied: plain data, no padding matters to who reads fields.
        let vm = vm();
        let information = Information {
            driver_major: vm.system.driver.0,
            driver_minor: vm.system.driver.1,
            erts_version: vm.erts.as_ptr(),
            otp_release: vm.release.as_ptr(),
            thread_support: vm.system.threads,
            smp_support: vm.system.smp,
            async_threads: vm.system.async_threads,
            scheduler_threads: vm.system.schedulers,
            nif_major: vm.system.nif.0,
            nif_minor: vm.system.nif.1,
            dirty_schedulers: vm.system.dirty_schedulers,
        };
        // An older library has a shorter struct.
        let size = size.min(size_of::<Information>());
        std::ptr::copy_nonoverlapping((&raw const information).cast::<u8>(), place.cast(), size);
    }

    fn enif_getenv(key: *const c_char, value: *mut c_char, size: *mut usize) -> c_int {
        let found = libc::getenv(key);
        if found.is_null() {
            return -1;
        }
        let found = CStr::from_ptr(found);
        let length = found.count_bytes();
        if length >= *size {
            // What a buffer would need.
            size.write(length + 1);
            return 1;
        }
        std::ptr::copy_nonoverlapping(found.as_ptr(), value, length + 1);
        size.write(length);
        0
    }

    fn enif_dlopen(library: *const c_char, handle: Report, argument: *mut c_void) -> *mut c_void {
        // The name comes without its ending, whatever it looks like. Null, undefined in the VM, is the program itself.
        let file = (!library.is_null()).then(|| [CStr::from_ptr(library).to_bytes(), b".so\0"].concat());
        let name = file.as_ref().map_or(std::ptr::null(), |file| file.as_ptr().cast());
        let opened = libc::dlopen(name, libc::RTLD_NOW);
        if opened.is_null() {
            report(handle, argument);
        } else if file.is_some() {
            // Half of a library that lies in two files may set itself up there; the VM calls it without arguments too.
            let init = libc::dlsym(opened, c"nif_init".as_ptr());
            if !init.is_null() {
                let init: unsafe extern "C" fn() -> *mut c_void = std::mem::transmute(init);
                init();
            }
        }
        opened
    }

    fn enif_dlsym(library: *mut c_void, symbol: *const c_char, handle: Report, argument: *mut c_void) -> *mut c_void {
        let found = libc::dlsym(library, symbol);
        if found.is_null() {
            report(handle, argument);
        }
        found
    }
}
