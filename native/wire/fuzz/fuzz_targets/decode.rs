//! Any bytes: an error, or a term that is written and read again unchanged, within the limits.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snakepit_wire::reference::Heap;
use snakepit_wire::{Decoder, Encoder, Limits, SharedSource, SliceSource, VecSink};

unsafe fn copy(target: *mut u8, source: *const u8, length: usize) {
    // SAFETY: the caller vouches for both ranges.
    unsafe { std::ptr::copy_nonoverlapping(source, target, length) };
}

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits {
        bytes: 1 << 16,
        words: 1 << 16,
        depth: 1000,
    };
    let mut heap = Heap::new();
    let mut decoder = Decoder::new();
    let read = decoder.decode(&mut SliceSource::new(bytes), &limits, &mut heap);
    // SAFETY: `bytes` outlives the source.
    let mut source = unsafe { SharedSource::new(bytes.as_ptr(), bytes.len(), copy) };
    let shared = decoder.decode(&mut source, &limits, &mut heap);
    assert_eq!(read.is_ok(), shared.is_ok());

    if let Ok(term) = read {
        let mut encoder = Encoder::new();
        let mut written = Vec::new();
        let sent = encoder.encode(
            &mut heap,
            term,
            &Limits::DEFAULT,
            &mut VecSink::new(&mut written, 1 << 20),
        );
        assert_eq!(sent, Ok(()));
        let again = decoder.decode(&mut SliceSource::new(&written), &Limits::DEFAULT, &mut heap);
        let mut rewritten = Vec::new();
        let again = again.expect("what was written is read");
        let sent = encoder.encode(
            &mut heap,
            again,
            &Limits::DEFAULT,
            &mut VecSink::new(&mut rewritten, 1 << 20),
        );
        assert_eq!(sent, Ok(()));
        assert_eq!(written, rewritten);
    }
});
