//! zlib: what libraries take from the VM's executable, and what compressed terms need.
//!
//! The functions are those of `zlib-rs`, which has zlib's interface. All that a stream may go through is exported, so that no
//! stream is begun by one implementation and ended by another.

use super::symbols::Symbol;

macro_rules! exported {
    ($($name:ident)*) => {
        pub const SYMBOLS: &[Symbol] = &[$(Symbol::present(stringify!($name), libz_rs_sys::$name as *const ())),*];
    };
}

exported! {
    adler32 adler32_combine adler32_combine64 adler32_z compress compress2 compressBound crc32 crc32_combine
    crc32_combine64 crc32_combine_gen crc32_combine_gen64 crc32_combine_op crc32_z deflate deflateBound deflateCopy deflateEnd
    deflateGetDictionary deflateInit2_ deflateInit_ deflateParams deflatePending deflatePrime deflateReset
    deflateResetKeep deflateSetDictionary deflateSetHeader deflateTune get_crc_table inflate inflateBack inflateBackEnd
    inflateBackInit_ inflateCodesUsed inflateCopy inflateEnd inflateGetDictionary inflateGetHeader inflateInit2_ inflateInit_
    inflateMark inflatePrime inflateReset inflateReset2 inflateResetKeep inflateSetDictionary inflateSync
    inflateSyncPoint inflateUndermine inflateValidate uncompress uncompress2 zError zlibCompileFlags zlibVersion
}

/// `size` bytes out of a zlib stream, and how long that was. `None` if it is not one, or of another size.
pub fn inflated(data: &[u8], size: usize) -> Option<(Vec<u8>, usize)> {
    // Deflate makes at most 1,032 bytes of one.
    if size / 1_032 > data.len() {
        return None;
    }
    let mut out = vec![0; size];
    let (mut made, mut taken) = (size as std::ffi::c_ulong, data.len() as std::ffi::c_ulong);
    // SAFETY: both buffers have the lengths that the numbers say.
    let result = unsafe { libz_rs_sys::uncompress2(out.as_mut_ptr(), &raw mut made, data.as_ptr(), &raw mut taken) };
    (result == libz_rs_sys::Z_OK && made as usize == size).then_some((out, taken as usize))
}
