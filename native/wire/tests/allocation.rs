//! A small call allocates nothing once its encoder and decoder have been used.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use snakepit_wire::reference::{Heap, Value};
use snakepit_wire::{Decoder, Encoder, Limits, SliceSink, SliceSource};

thread_local! {
    static ALLOCATIONS: Cell<u32> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: everything is left to the system's allocator. The counter has no destructor and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller vouches.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller vouches; `alloc` and the default `realloc` took it from the same allocator.
        unsafe { System.dealloc(pointer, layout) };
    }
}

#[test]
fn a_small_call_allocates_nothing() {
    let mut heap = Heap::new();
    let mut encoder = Encoder::new();
    let mut decoder = Decoder::new();
    let mut room = [0; 64];
    let mut count = 0;
    for round in 0..10 {
        heap.clear();
        let terms = [heap.add(Value::from(1)), heap.add(Value::from(2))];
        let list = heap.add(Value::list([Value::from(1), Value::tuple([Value::Nil])]));

        let before = ALLOCATIONS.get();
        encoder
            .encode_all(&mut heap, terms, &Limits::DEFAULT, &mut SliceSink::new(&mut room))
            .unwrap();
        assert_eq!(room[..4], [97, 1, 97, 2]);
        let mut source = SliceSource::new(&room[..4]);
        assert_eq!(
            decoder
                .decode_all(&mut source, 2, &Limits::DEFAULT, &mut heap)
                .unwrap()
                .len(),
            2
        );
        decoder
            .decode(&mut SliceSource::new(&room[..2]), &Limits::DEFAULT, &mut heap)
            .unwrap();
        encoder
            .encode(&mut heap, list, &Limits::DEFAULT, &mut SliceSink::new(&mut room))
            .unwrap();
        count = ALLOCATIONS.get() - before;
        assert!(round == 0 || count == 0, "{count} in round {round}");
    }
    assert_eq!(count, 0);
}
