//! `erl_errno_id`: names of system errors as Erlang has them.

use std::ffi::{CStr, c_char, c_int};

macro_rules! names {
    ($($error:ident $name:literal)*) => {
        const NAMES: &[(c_int, &CStr)] = &[$((libc::$error, $name)),*];
    };
}

names! {
    E2BIG c"e2big" EACCES c"eacces" EADDRINUSE c"eaddrinuse" EADDRNOTAVAIL c"eaddrnotavail" EADV c"eadv"
    EAFNOSUPPORT c"eafnosupport" EAGAIN c"eagain" EALREADY c"ealready" EBADE c"ebade" EBADF c"ebadf" EBADFD c"ebadfd"
    EBADMSG c"ebadmsg" EBADR c"ebadr" EBADRQC c"ebadrqc" EBADSLT c"ebadslt" EBFONT c"ebfont" EBUSY c"ebusy"
    ECHILD c"echild" ECHRNG c"echrng" ECOMM c"ecomm" ECONNABORTED c"econnaborted" ECONNREFUSED c"econnrefused"
    ECONNRESET c"econnreset" EDEADLK c"edeadlk" EDESTADDRREQ c"edestaddrreq" EDOM c"edom" EDOTDOT c"edotdot"
    EDQUOT c"edquot" EEXIST c"eexist" EFAULT c"efault" EFBIG c"efbig" EHOSTDOWN c"ehostdown"
    EHOSTUNREACH c"ehostunreach" EIDRM c"eidrm" EILSEQ c"eilseq" EINPROGRESS c"einprogress" EINTR c"eintr" EINVAL c"einval" EIO c"eio"
    EISCONN c"eisconn" EISDIR c"eisdir" EISNAM c"eisnam" EL2HLT c"el2hlt" EL2NSYNC c"el2nsync" EL3HLT c"el3hlt" EL3RST c"el3rst"
    ELIBACC c"elibacc" ELIBBAD c"elibbad" ELIBEXEC c"elibexec" ELIBMAX c"elibmax" ELIBSCN c"elibscn" ELNRNG c"elnrng"
    ELOOP c"eloop" EMFILE c"emfile" EMLINK c"emlink" EMSGSIZE c"emsgsize" EMULTIHOP c"emultihop"
    ENAVAIL c"enavail" ENAMETOOLONG c"enametoolong" ENETDOWN c"enetdown" ENETRESET c"enetreset" ENETUNREACH c"enetunreach"
    ENFILE c"enfile" ENOANO c"enoano" ENOBUFS c"enobufs" ENOCSI c"enocsi" ENODATA c"enodata" ENODEV c"enodev"
    ENOENT c"enoent" ENOEXEC c"enoexec" ENOLCK c"enolck" ENOLINK c"enolink" ENOMEM c"enomem"
    ENOMSG c"enomsg" ENONET c"enonet" ENOPKG c"enopkg" ENOPROTOOPT c"enoprotoopt" ENOSPC c"enospc" ENOSR c"enosr"
    ENOSTR c"enostr" ENOSYS c"enosys" ENOTBLK c"enotblk" ENOTCONN c"enotconn" ENOTDIR c"enotdir"
    ENOTEMPTY c"enotempty" ENOTNAM c"enotnam" ENOTSOCK c"enotsock" ENOTSUP c"enotsup" ENOTTY c"enotty"
    ENOTUNIQ c"enotuniq" ENXIO c"enxio" EOVERFLOW c"eoverflow" EPERM c"eperm" EPFNOSUPPORT c"epfnosupport"
    EPIPE c"epipe" EPROTO c"eproto" EPROTONOSUPPORT c"eprotonosupport" EPROTOTYPE c"eprototype" ERANGE c"erange"
    EREMCHG c"eremchg" EREMOTE c"eremote" EREMOTEIO c"eremoteio" EROFS c"erofs" ESHUTDOWN c"eshutdown"
    ESOCKTNOSUPPORT c"esocktnosupport" ESPIPE c"espipe" ESRCH c"esrch" ESRMNT c"esrmnt" ESTALE c"estale"
    ETIME c"etime" ETIMEDOUT c"etimedout" ETOOMANYREFS c"etoomanyrefs" ETXTBSY c"etxtbsy"
    EUCLEAN c"euclean" EUNATCH c"eunatch" EUSERS c"eusers" EXDEV c"exdev" EXFULL c"exfull"
}

/// The name of an error, `unknown` without one. Libraries take it from the VM's executable, though it is a driver's.
#[unsafe(no_mangle)]
pub extern "C" fn erl_errno_id(error: c_int) -> *const c_char {
    NAMES
        .iter()
        .find(|(number, _)| *number == error)
        .map_or(c"unknown", |(_, name)| name)
        .as_ptr()
}
