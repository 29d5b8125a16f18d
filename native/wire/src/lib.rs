//! What crosses between the VM and its workers, as bytes. `README.md` has every byte.
//!
//! * Terms: [`Encoder`] writes what a [`Reader`] sees into a [`Sink`]; [`Decoder`] reads a [`Source`] and has a
//!   [`Builder`] make the terms. One codec, and the VM's terms and the worker's own heap are two back ends of it.
//! * [`control`]: the messages outside of calls; [`service`]: what a library asks of the VM.
//!
//! Invariants:
//!
//! * Each byte of a source is read at most once, and in order. A source over memory that a worker can write needs no
//!   private copy of the whole.
//! * Nothing recurses, and nothing is reserved for more than the bytes that are there can hold.
//! * [`Limits`] bound bytes, heap words and depth before a term is made.
//! * Pids, ports, references and funs have no form here but an index into the VM's table for this worker.
//!
//! ```
//! use snakepit_wire::{Decoder, Encoder, Limits, SliceSource, VecSink, reference::{Heap, Value}};
//!
//! let mut heap = Heap::new();
//! let term = heap.add(Value::tuple([Value::atom("ok"), Value::from(3)]));
//! let mut bytes = Vec::new();
//! Encoder::new().encode(&mut heap, term, &Limits::DEFAULT, &mut VecSink::new(&mut bytes, 1024))?;
//! assert_eq!(bytes, [104, 2, 119, 2, b'o', b'k', 97, 3]);
//!
//! let answer = Decoder::new().decode(&mut SliceSource::new(&bytes), &Limits::DEFAULT, &mut heap)?;
//! assert_eq!(heap.value(answer), heap.value(term));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod bytes;
pub mod control;
pub mod decode;
pub mod encode;
pub mod error;
pub mod limits;
pub mod objects;
pub mod reference;
pub mod service;
pub mod shared;
pub mod tag;
pub mod term;

pub use bytes::{Measure, Payload, Sink, SliceSink, SliceSource, Source, VecSink};
pub use decode::Decoder;
pub use encode::{Encoder, EncoderOf};
pub use error::{DecodeError, EncodeError, Full};
pub use limits::Limits;
pub use objects::objects;
pub use shared::{SharedSink, SharedSource};
pub use term::{Builder, Name, NameKind, Reader, View};
