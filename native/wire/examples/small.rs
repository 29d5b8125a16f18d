//! What a small call costs the codec: `cargo run --release -p snakepit_wire --example small`.

use std::convert::Infallible;
use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use snakepit_wire::reference::{Heap, Value};
use snakepit_wire::{
    Builder, Decoder, Encoder, Limits, Name, Payload, Reader, SharedSink, SharedSource, SliceSink, SliceSource,
    Source, View,
};

/// Words are small integers or, with the lowest bit, the address of a tuple's elements: a back end that costs nothing.
struct Words {
    tuple: [u64; 8],
}

impl Reader for Words {
    type Term = u64;
    type Tuple = u64;
    type Pairs = ();
    type Refusal = Infallible;

    #[inline]
    fn view(&mut self, term: u64) -> Result<View<'_, u64, u64>, Infallible> {
        Ok(if term & 1 == 0 {
            View::Integer(term.cast_signed() >> 1)
        } else {
            View::Atom("ok")
        })
    }

    #[inline]
    fn element(&mut self, _tuple: u64, index: usize) -> u64 {
        self.tuple[index]
    }

    fn pairs(&mut self, _map: u64) -> Result<(), Infallible> {
        Ok(())
    }

    fn next_pair(&mut self, (): &mut ()) -> Option<(u64, u64)> {
        None
    }
}

impl Builder for Words {
    type Term = u64;
    type Refusal = Infallible;
    const KEYS: bool = true;

    #[inline]
    fn integer(&mut self, value: i64) -> Result<u64, Infallible> {
        Ok((value << 1).cast_unsigned())
    }

    #[inline]
    fn unsigned(&mut self, value: u64) -> Result<u64, Infallible> {
        Ok(value)
    }

    fn big(&mut self, _negative: bool, magnitude: &[u8]) -> Result<u64, Infallible> {
        Ok(magnitude.len() as u64)
    }

    fn float(&mut self, value: f64) -> Result<u64, Infallible> {
        Ok(value.to_bits())
    }

    #[inline]
    fn atom(&mut self, text: &str) -> Result<u64, Infallible> {
        Ok(text.len() as u64 * 2 + 1)
    }

    fn nil(&mut self) -> Result<u64, Infallible> {
        Ok(1)
    }

    fn list(&mut self, elements: &[u64], _tail: Option<u64>) -> Result<u64, Infallible> {
        Ok(elements.len() as u64)
    }

    #[inline]
    fn tuple(&mut self, elements: &[u64]) -> Result<u64, Infallible> {
        self.tuple[..elements.len()].copy_from_slice(elements);
        Ok(1)
    }

    fn map(&mut self, keys: &[u64], _values: &[u64]) -> Result<Option<u64>, Infallible> {
        Ok(Some(keys.len() as u64))
    }

    fn binary<S: Source>(&mut self, payload: Payload<'_, S>) -> Result<u64, Infallible> {
        let mut bytes = Vec::new();
        payload.append_to(&mut bytes);
        Ok(bytes.len() as u64)
    }

    fn bits<S: Source>(&mut self, payload: Payload<'_, S>, _last: u8) -> Result<u64, Infallible> {
        self.binary(payload)
    }

    fn name(&mut self, name: Name, _key: &[u8]) -> Result<u64, Infallible> {
        Ok(name.index.into())
    }

    fn resource(&mut self, id: u64) -> Result<u64, Infallible> {
        Ok(id)
    }
}

/// The best of twenty rounds, in ns.
fn measure(what: &str, mut run: impl FnMut()) {
    const TIMES: u32 = 200_000;
    let best = (0..20).map(|_| {
        let start = Instant::now();
        (0..TIMES).for_each(|_| run());
        start.elapsed().as_secs_f64() * 1e9 / f64::from(TIMES)
    });
    println!("{what:<44} {:>9.1} ns", best.fold(f64::INFINITY, f64::min));
}

unsafe fn copy(target: *mut u8, source: *const u8, length: usize) {
    // SAFETY: the caller vouches for both ranges.
    unsafe { std::ptr::copy_nonoverlapping(source, target, length) };
}

fn main() -> Result<(), Box<dyn Error>> {
    let limits = Limits::DEFAULT;
    let mut words = Words { tuple: [0; 8] };
    let mut encoder = Encoder::new();
    let mut decoder = Decoder::new();
    let mut room = [0; 64];

    let arguments = [2_u64, 4];
    measure("encode arguments 1, 2", || {
        let mut sink = SliceSink::new(&mut room);
        let _ = black_box(encoder.encode_all(&mut words, black_box(arguments), &limits, &mut sink));
        black_box(&room);
    });
    measure("encode arguments 1, 2 into shared memory", || {
        // SAFETY: `room` outlives the sink.
        let mut sink = unsafe { SharedSink::new(room.as_mut_ptr(), room.len(), copy) };
        let _ = black_box(encoder.encode_all(&mut words, black_box(arguments), &limits, &mut sink));
        black_box(&room);
    });
    let bytes = [97, 1, 97, 2];
    measure("decode arguments 1, 2", || {
        let mut source = SliceSource::new(black_box(&bytes));
        let _ = black_box(decoder.decode_all(&mut source, 2, &limits, &mut words));
    });
    measure("encode answer 3", || {
        let mut sink = SliceSink::new(&mut room);
        let _ = black_box(encoder.encode(&mut words, black_box(6), &limits, &mut sink));
        black_box(&room);
    });
    let bytes = [97, 3];
    measure("decode answer 3", || {
        let mut source = SliceSource::new(black_box(&bytes));
        let _ = black_box(decoder.decode(&mut source, &limits, &mut words));
    });
    measure("decode answer 3 from shared memory", || {
        // SAFETY: `bytes` outlives the source.
        let mut source = unsafe { SharedSource::new(black_box(bytes.as_ptr()), bytes.len(), copy) };
        let _ = black_box(decoder.decode(&mut source, &limits, &mut words));
    });
    let bytes = [104, 2, 119, 2, b'o', b'k', 97, 3];
    measure("decode answer {ok, 3}", || {
        let mut source = SliceSource::new(black_box(&bytes));
        let _ = black_box(decoder.decode(&mut source, &limits, &mut words));
    });

    let mut heap = Heap::new();
    let mut encoder = Encoder::new();
    let mut bytes = vec![0; 1 << 20];
    let list = heap.add(Value::list((0..1000).map(Value::from)));
    measure("encode a list of 1,000 integers", || {
        let _ = black_box(encoder.encode(&mut heap, list, &limits, &mut SliceSink::new(&mut bytes)));
    });
    encoder.encode(&mut heap, list, &limits, &mut SliceSink::new(&mut bytes))?;
    let length = 5 + 256 * 2 + 744 * 5 + 1;
    measure("decode a list of 1,000 integers", || {
        let _ = black_box(decoder.decode(&mut SliceSource::new(&bytes[..length]), &limits, &mut words));
    });
    Ok(())
}
