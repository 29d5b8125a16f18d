//! Round trips, bounds, and whatever is not a term.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails where it stands")]

use std::convert::Infallible;
use std::mem::MaybeUninit;

use proptest::collection::vec;
use proptest::prelude::*;
use snakepit_wire::limits::words;
use snakepit_wire::reference::{Heap, Term, Value};
use snakepit_wire::{
    DecodeError, Decoder, EncodeError, Encoder, Limits, Measure, Name, NameKind, Payload, SharedSink, SharedSource,
    Sink, SliceSink, SliceSource, Source, VecSink,
};

type Decoded<T> = Result<T, DecodeError<Infallible>>;

const HUGE: Limits = Limits {
    bytes: u64::MAX,
    words: u64::MAX,
    depth: u32::MAX,
};

fn decode(bytes: &[u8]) -> Decoded<Value> {
    decode_within(bytes, &Limits::DEFAULT)
}

fn decode_within(bytes: &[u8], limits: &Limits) -> Decoded<Value> {
    let mut heap = Heap::new();
    let term = Decoder::new().decode(&mut SliceSource::new(bytes), limits, &mut heap)?;
    Ok(heap.value(term))
}

fn encode_term(heap: &mut Heap, term: Term, limits: &Limits) -> Result<Vec<u8>, EncodeError<Infallible>> {
    let mut bytes = Vec::new();
    Encoder::new().encode(heap, term, limits, &mut VecSink::new(&mut bytes, 1 << 24))?;
    Ok(bytes)
}

fn encode_within(value: Value, limits: &Limits) -> Result<Vec<u8>, EncodeError<Infallible>> {
    let mut heap = Heap::new();
    let term = heap.add(value);
    encode_term(&mut heap, term, limits)
}

fn encode(value: Value) -> Vec<u8> {
    encode_within(value, &Limits::DEFAULT).unwrap()
}

/// As terms are: an integer in its narrowest form, the unused bits of a bit string zero, each key once.
fn value() -> impl Strategy<Value = Value> {
    let big = (any::<bool>(), vec(any::<u8>(), 8..300), 1_u8..).prop_map(|(negative, mut magnitude, top)| {
        magnitude.push(top);
        Value::Big { negative, magnitude }
    });
    let bits = (vec(any::<u8>(), 0..40), any::<u8>(), 1_u8..8).prop_map(|(mut bytes, byte, last)| {
        bytes.push(byte & (0xFF << (8 - last)));
        Value::Bits { bytes, last }
    });
    let kind = prop_oneof![
        Just(NameKind::Pid),
        Just(NameKind::Port),
        Just(NameKind::Reference),
        Just(NameKind::Fun)
    ];
    let name =
        (kind, any::<u32>(), any::<u32>(), vec(any::<u8>(), 0..60)).prop_map(|(kind, index, generation, key)| {
            Value::Name {
                name: Name {
                    kind,
                    index,
                    generation,
                },
                key,
            }
        });
    let leaf = prop_oneof![
        3 => (-300_i64..300).prop_map(Value::Integer),
        1 => any::<i64>().prop_map(Value::Integer),
        1 => ((1_u64 << 63)..).prop_map(Value::Unsigned),
        1 => big,
        1 => any::<f64>().prop_filter("finite", |value| value.is_finite()).prop_map(Value::Float),
        1 => vec(any::<char>(), 0..255).prop_map(|text| Value::Atom(text.into_iter().collect())),
        3 => Just(Value::Nil),
        1 => vec(any::<u8>(), 0..200).prop_map(Value::Binary),
        1 => bits,
        1 => name,
        1 => any::<u64>().prop_map(Value::Resource),
    ];
    leaf.prop_recursive(6, 200, 12, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..12).prop_map(Value::list),
            (vec(inner.clone(), 1..4), inner.clone()).prop_map(|(elements, tail)| improper(elements, tail)),
            vec(inner.clone(), 0..12).prop_map(Value::Tuple),
            vec((inner.clone(), inner), 0..12).prop_map(Value::Map),
        ]
    })
    .prop_map(|value| {
        // Through the heap: it keeps one of equal keys, in its order.
        let mut heap = Heap::new();
        let term = heap.add(value);
        heap.value(term)
    })
}

fn improper(elements: Vec<Value>, tail: Value) -> Value {
    let tail = match tail {
        Value::Nil | Value::List(..) => Value::Integer(0),
        tail => tail,
    };
    Value::List(elements, Some(Box::new(tail)))
}

unsafe fn copy(target: *mut u8, source: *const u8, length: usize) {
    // SAFETY: the caller vouches for both ranges.
    unsafe { std::ptr::copy_nonoverlapping(source, target, length) };
}

/// Counts how often each byte is read, and complains about a second time or a step back.
struct Once<'a> {
    bytes: &'a [u8],
    next: usize,
}

// SAFETY: `copy_to` copies as many bytes as the target has, or answers false.
unsafe impl Source for Once<'_> {
    fn remaining(&self) -> usize {
        self.bytes.len() - self.next
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let bytes = *self.bytes[self.next..].first_chunk::<N>()?;
        self.next += N;
        Some(bytes)
    }

    fn copy_to(&mut self, target: &mut [MaybeUninit<u8>]) -> bool {
        let Some(bytes) = self.bytes[self.next..].get(..target.len()) else {
            return false;
        };
        target.write_copy_of_slice(bytes);
        self.next += bytes.len();
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(value in value()) {
        let bytes = encode(value.clone());
        prop_assert_eq!(decode(&bytes), Ok(value));
    }

    /// Hardly a byte more than what the containers announce.
    #[test]
    fn nested_emptiness_is_read(value in Just(Value::Nil).prop_recursive(12, 60, 3, |inner| prop_oneof![
        vec(inner.clone(), 0..3).prop_map(Value::list),
        vec(inner.clone(), 0..3).prop_map(Value::Tuple),
        inner.prop_map(|value| Value::map([(Value::Nil, value)])),
    ])) {
        prop_assert_eq!(decode(&encode(value.clone())), Ok(value));
    }

    #[test]
    fn several_terms_in_one_payload(values in vec(value(), 0..6)) {
        let mut heap = Heap::new();
        let terms: Vec<Term> = values.iter().map(|value| heap.add(value.clone())).collect();
        let mut bytes = Vec::new();
        let mut sink = VecSink::new(&mut bytes, 1 << 24);
        Encoder::new().encode_all(&mut heap, terms, &HUGE, &mut sink).unwrap();
        let mut decoder = Decoder::new();
        let terms = decoder.decode_all(&mut SliceSource::new(&bytes), values.len(), &HUGE, &mut heap).unwrap();
        let read: Vec<Value> = terms.iter().map(|term| heap.value(*term)).collect();
        prop_assert_eq!(read, values);
    }

    #[test]
    fn all_sinks_take_the_same_bytes(value in value()) {
        let mut heap = Heap::new();
        let term = heap.add(value);
        let mut encoder = Encoder::new();
        let bytes = encode_term(&mut heap, term, &HUGE).unwrap();

        let mut measure = Measure::default();
        encoder.encode(&mut heap, term, &HUGE, &mut measure).unwrap();
        prop_assert_eq!(measure.position(), bytes.len());

        let mut room = vec![0; bytes.len()];
        encoder.encode(&mut heap, term, &HUGE, &mut SliceSink::new(&mut room)).unwrap();
        prop_assert_eq!(&room, &bytes);

        let mut room = vec![0; bytes.len()];
        // SAFETY: `room` outlives the sink.
        let mut sink = unsafe { SharedSink::new(room.as_mut_ptr(), room.len(), copy) };
        encoder.encode(&mut heap, term, &HUGE, &mut sink).unwrap();
        prop_assert_eq!(&room, &bytes);

        let less = bytes.len() - 1;
        let full = Err(EncodeError::Full);
        prop_assert_eq!(encoder.encode(&mut heap, term, &HUGE, &mut SliceSink::new(&mut room[..less])), full);
        // SAFETY: `room` outlives the sink.
        let mut sink = unsafe { SharedSink::new(room.as_mut_ptr(), less, copy) };
        prop_assert_eq!(encoder.encode(&mut heap, term, &HUGE, &mut sink), full);
        let mut sink = VecSink::new(&mut room, less);
        prop_assert_eq!(encoder.encode(&mut heap, term, &HUGE, &mut sink), full);
        let limits = Limits { bytes: less as u64, ..HUGE };
        let refused = encode_term(&mut heap, term, &limits);
        prop_assert_eq!(refused, Err(EncodeError::Bytes(less as u64)));
    }

    #[test]
    fn all_sources_give_the_same_terms(value in value()) {
        let bytes = encode(value.clone());
        let mut heap = Heap::new();
        let mut decoder = Decoder::new();
        // SAFETY: `bytes` outlives the source.
        let mut source = unsafe { SharedSource::new(bytes.as_ptr(), bytes.len(), copy) };
        let shared = decoder.decode(&mut source, &HUGE, &mut heap).unwrap();
        prop_assert_eq!(heap.value(shared), value.clone());
        let mut source = Once { bytes: &bytes, next: 0 };
        let once = decoder.decode(&mut source, &HUGE, &mut heap).unwrap();
        prop_assert_eq!(heap.value(once), value);
    }

    #[test]
    fn what_ends_early_or_goes_on_is_refused(value in value(), cut in any::<prop::sample::Index>(), more in 1_usize..9) {
        let mut bytes = encode(value);
        let cut = cut.index(bytes.len());
        prop_assert_eq!(decode(&bytes[..cut]), Err(DecodeError::Truncated));
        bytes.extend(vec![106; more]);
        prop_assert_eq!(decode(&bytes), Err(DecodeError::Trailing(more)));
    }

    /// The encoder and the decoder count the same words, so what one end sends within the limits the other accepts.
    #[test]
    fn both_ends_count_alike(value in value(), words in 0_u64..200) {
        let bytes = encode(value.clone());
        let limits = Limits { words, ..HUGE };
        let sent = encode_within(value, &limits);
        let read = decode_within(&bytes, &limits);
        prop_assert_eq!(sent.is_ok(), read.is_ok());
        if sent.is_err() {
            prop_assert_eq!(sent, Err(EncodeError::Words(words)));
            prop_assert_eq!(read, Err(DecodeError::Words(words)));
        }
    }

    #[test]
    fn one_wrong_byte_is_an_error_or_another_term(value in value(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = encode(value);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        check_hostile(&bytes)?;
    }

    #[test]
    fn noise_is_an_error_or_a_term(bytes in vec(any::<u8>(), 0..200)) {
        check_hostile(&bytes)?;
    }

    /// Mostly tags and small numbers: deeper into the decoder than noise comes.
    #[test]
    fn noise_of_tags_is_an_error_or_a_term(bytes in vec(tag_or_small(), 0..300)) {
        check_hostile(&bytes)?;
    }
}

fn tag_or_small() -> impl Strategy<Value = u8> {
    let tags: &[u8] = &[
        1, 2, 70, 77, 97, 98, 100, 104, 105, 106, 107, 108, 109, 110, 111, 115, 116, 118, 119,
    ];
    prop_oneof![3 => prop::sample::select(tags), 4 => 0_u8..4, 1 => any::<u8>()]
}

/// Whatever is accepted is a term that is written and read again, and cost no more than allowed.
fn check_hostile(bytes: &[u8]) -> Result<(), TestCaseError> {
    let limits = Limits {
        bytes: 4096,
        words: 2000,
        depth: 50,
    };
    if let Ok(value) = decode_within(bytes, &limits) {
        let again = encode_within(value.clone(), &HUGE).unwrap();
        prop_assert_eq!(decode(&again), Ok(value));
    }
    Ok(())
}

#[test]
fn a_million_levels_take_no_stack() {
    let mut heap = Heap::new();
    let mut term = heap.add(Value::Nil);
    for _ in 0..1_000_000 {
        let nil = heap.add(Value::Nil);
        term = heap.cons(term, nil);
    }
    let bytes = encode_term(&mut heap, term, &HUGE).unwrap();
    let mut decoder = Decoder::new();
    let read = decoder.decode(&mut SliceSource::new(&bytes), &HUGE, &mut heap).unwrap();
    assert_eq!(encode_term(&mut heap, read, &HUGE).unwrap(), bytes);

    let limits = Limits { depth: 1000, ..HUGE };
    assert_eq!(encode_term(&mut heap, term, &limits), Err(EncodeError::Depth(1000)));
    let refused = decoder.decode(&mut SliceSource::new(&bytes), &limits, &mut heap);
    assert_eq!(refused, Err(DecodeError::Depth(1000)));
}

#[test]
fn depth_is_counted_to_the_level() {
    let three = Value::tuple([Value::list([Value::map([(Value::Nil, Value::tuple([]))])])]);
    let bytes = encode(three.clone());
    for (depth, fits) in [(2, false), (3, true)] {
        let limits = Limits { depth, ..HUGE };
        assert_eq!(encode_within(three.clone(), &limits).is_ok(), fits);
        assert_eq!(decode_within(&bytes, &limits).is_ok(), fits);
    }
}

#[test]
fn a_list_is_one_level_whatever_its_length() {
    let list = Value::list((0..100_000).map(Value::from));
    let limits = Limits { depth: 1, ..HUGE };
    let bytes = encode_within(list.clone(), &limits).unwrap();
    assert_eq!(decode_within(&bytes, &limits), Ok(list));
}

/// 16 MB of nils would be 290 MB of heap.
#[test]
fn an_announced_size_is_compared_before_memory_is_reserved() {
    for tag in [105, 108, 116, 109, 111] {
        let announced = [tag, 0xFF, 0xFF, 0xFF, 0xFF, 0, 106];
        let expected = if tag == 109 {
            DecodeError::Truncated
        } else {
            DecodeError::Words(1 << 20)
        };
        let limits = Limits { words: 1 << 20, ..HUGE };
        let found = decode_within(&announced, &limits);
        assert!(
            found == Err(expected) || found == Err(DecodeError::Truncated),
            "{tag}: {found:?}"
        );
        assert_eq!(decode_within(&announced, &HUGE), Err(DecodeError::Truncated), "{tag}");
    }
    // Many containers that each stay below the rest of the payload, but not together.
    let mut bytes = [108, 0, 0, 0, 200].repeat(50);
    bytes.resize(400, 106);
    assert_eq!(decode_within(&bytes, &HUGE), Err(DecodeError::Truncated));

    let mut nils = vec![108, 0, 0x10, 0, 0];
    nils.resize(5 + (1 << 20) + 1, 106);
    let limits = Limits { words: 1 << 20, ..HUGE };
    assert_eq!(decode_within(&nils, &limits), Err(DecodeError::Words(1 << 20)));
    assert!(decode_within(&nils, &HUGE).is_ok());
}

#[test]
fn a_payload_larger_than_allowed_is_not_begun() {
    let limits = Limits { bytes: 1, ..HUGE };
    assert_eq!(decode_within(&[97, 1], &limits), Err(DecodeError::Bytes(1)));
}

#[test]
fn forbidden_and_unknown_tags_are_told_apart() {
    for tag in [88, 89, 90, 101, 102, 103, 112, 113, 114, 117, 120] {
        assert_eq!(decode(&[tag, 0, 0, 0, 0]), Err(DecodeError::ForeignName(tag)));
        assert_eq!(decode(&[104, 1, tag, 0, 0, 0]), Err(DecodeError::ForeignName(tag)));
    }
    for tag in [3, 4, 5] {
        assert_eq!(decode(&[tag]), Err(DecodeError::Reserved(tag)));
    }
    // Among them: 80 compressed, 82 a cached atom, 99 an old float, 131 the version, 68 to 70 of the distribution.
    for tag in (0..=255).filter(|tag| ![1, 2, 3, 4, 5].contains(tag)) {
        let known = [
            70, 77, 97, 98, 100, 104, 105, 106, 107, 108, 109, 110, 111, 115, 116, 118, 119,
        ];
        let foreign = [88, 89, 90, 101, 102, 103, 112, 113, 114, 117, 120];
        if !known.contains(&tag) && !foreign.contains(&tag) {
            assert_eq!(decode(&[tag, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Err(DecodeError::Tag(tag)));
        }
    }
}

#[test]
fn malformed_scalars_are_refused() {
    let malformed: [&[u8]; 13] = [
        &[119, 1, 0xFF],                             // not UTF-8
        &[119, 2, 0xC0, 0x80],                       // overlong
        &[119, 3, 0xED, 0xA0, 0x80],                 // a surrogate
        &[100, 1, 0],                                // 256 Latin-1 characters
        &[110, 1, 2, 5],                             // a sign of 2
        &[77, 0, 0, 0, 1, 0, 0xFF],                  // a byte of no bits
        &[77, 0, 0, 0, 1, 9, 0xFF],                  // a byte of nine
        &[77, 0, 0, 0, 0, 3],                        // no byte of three
        &[1, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], // a name of a fifth kind
        &[70, 0x7F, 0xF0, 0, 0, 0, 0, 0, 0],         // infinity
        &[70, 0xFF, 0xF0, 0, 0, 0, 0, 0, 0],
        &[70, 0x7F, 0xF8, 0, 0, 0, 0, 0, 0], // not a number
        &[118, 4, 0],                        // 1,024 bytes cannot be 255 characters
    ];
    for bytes in malformed {
        let mut bytes = bytes.to_vec();
        bytes.resize(
            bytes.len() + if bytes[0] == 100 || bytes[0] == 118 { 1024 } else { 0 },
            b'a',
        );
        assert!(
            matches!(decode(&bytes), Err(DecodeError::Malformed(_))),
            "{bytes:?}: {:?}",
            decode(&bytes)
        );
    }
    let mut many = vec![118, 1, 0];
    many.resize(3 + 256, b'a');
    assert!(matches!(decode(&many), Err(DecodeError::Malformed(_))));
}

#[test]
fn other_spellings_of_a_term_are_read_as_the_term() {
    let cases: [(&[u8], Value); 11] = [
        (&[107, 0, 2, 1, 2], Value::list([Value::from(1), Value::from(2)])),
        (&[107, 0, 0], Value::Nil),
        (&[108, 0, 0, 0, 0, 106], Value::Nil),
        (&[108, 0, 0, 0, 0, 97, 1], Value::from(1)),
        (
            &[108, 0, 0, 0, 1, 97, 1, 107, 0, 1, 2],
            Value::list([Value::from(1), Value::from(2)]),
        ),
        (
            &[108, 0, 0, 0, 1, 97, 1, 108, 0, 0, 0, 0, 106],
            Value::list([Value::from(1)]),
        ),
        (&[110, 3, 1, 7, 0, 0], Value::from(-7)),
        (&[110, 0, 1], Value::from(0)),
        (
            &[111, 0, 0, 0, 9, 0, 255, 255, 255, 255, 255, 255, 255, 255, 0],
            Value::Unsigned(u64::MAX),
        ),
        (&[77, 0, 0, 0, 1, 8, 0xAB], Value::Binary(vec![0xAB])),
        (&[115, 1, 0xE9], Value::atom("é")),
    ];
    for (bytes, value) in cases {
        assert_eq!(decode(bytes), Ok(value), "{bytes:?}");
    }
}

#[test]
fn unused_bits_are_zero_on_both_sides() {
    let dirty = Value::Bits {
        bytes: vec![0xFF, 0xFF],
        last: 3,
    };
    let clean = Value::Bits {
        bytes: vec![0xFF, 0xE0],
        last: 3,
    };
    assert_eq!(encode(dirty), encode(clean.clone()));
    assert_eq!(decode(&[77, 0, 0, 0, 2, 3, 0xFF, 0xFF]), Ok(clean));
}

#[test]
fn a_key_twice_is_refused() {
    let twice = [116, 0, 0, 0, 2, 97, 1, 106, 97, 1, 106];
    assert_eq!(decode(&twice), Err(DecodeError::DuplicateKey));
    // Equal, though written in two ways.
    let twice = [116, 0, 0, 0, 2, 97, 1, 106, 110, 1, 0, 1, 106];
    assert_eq!(decode(&twice), Err(DecodeError::DuplicateKey));
}

#[test]
fn a_decoder_is_as_new_after_an_error() {
    let mut heap = Heap::new();
    let mut decoder = Decoder::new();
    let mut encoder = Encoder::new();
    for _ in 0..3 {
        let mut source = SliceSource::new(&[104, 3, 97, 1, 108, 0, 0, 0, 1, 97, 2, 255]);
        assert!(decoder.decode(&mut source, &HUGE, &mut heap).is_err());
        let bad = heap.add(Value::tuple([Value::list([Value::Float(f64::NAN)]), Value::Nil]));
        let mut bytes = Vec::new();
        let refused = encoder.encode(&mut heap, bad, &HUGE, &mut VecSink::new(&mut bytes, 100));
        assert_eq!(refused, Err(EncodeError::NotFinite));

        let term = decoder
            .decode(&mut SliceSource::new(&[104, 2, 97, 1, 97, 2]), &HUGE, &mut heap)
            .unwrap();
        assert_eq!(heap.value(term), Value::tuple([Value::from(1), Value::from(2)]));
        let mut bytes = Vec::new();
        encoder
            .encode(&mut heap, term, &HUGE, &mut VecSink::new(&mut bytes, 100))
            .unwrap();
        assert_eq!(bytes, [104, 2, 97, 1, 97, 2]);
    }
    let terms = decoder
        .decode_all(&mut SliceSource::new(&[97, 1, 97, 2]), 2, &HUGE, &mut heap)
        .unwrap();
    assert_eq!(terms.len(), 2);
    assert_eq!(
        decoder.decode_all(&mut SliceSource::new(&[97, 1]), 2, &HUGE, &mut heap),
        Err(DecodeError::Truncated)
    );
    let terms = decoder
        .decode_all(&mut SliceSource::new(&[]), 0, &HUGE, &mut heap)
        .unwrap();
    assert!(terms.is_empty());
}

#[test]
fn a_payload_fills_what_it_is_given() {
    let copy = |length: usize, room: usize| {
        let mut source = SliceSource::new(&[1, 2, 3, 4, 5]);
        let payload = Payload::new(&mut source, length)?;
        let mut target = vec![MaybeUninit::new(9); room];
        let filled = payload.copy_to(&mut target).to_vec();
        Some((filled, source.remaining()))
    };
    assert_eq!(copy(3, 3), Some((vec![1, 2, 3], 2)));
    assert_eq!(copy(3, 2), Some((vec![1, 2], 2)));
    assert_eq!(copy(3, 5), Some((vec![1, 2, 3, 0, 0], 2)));
    assert_eq!(copy(6, 6), None);
}

#[test]
fn words_are_the_vms() {
    // erts_debug:flat_size/1 of OTP 25.
    assert_eq!(words::integer((1 << 59) - 1), 0);
    assert_eq!(words::integer(1 << 59), 2);
    assert_eq!(words::integer(-(1 << 59)), 0);
    assert_eq!(words::integer(-(1 << 59) - 1), 2);
    assert_eq!(words::big(9), 3);
    assert_eq!(words::tuple(3), 4);
    assert_eq!(words::map(0), 4);
    assert_eq!(words::map(2), 8);
    assert_eq!(words::map(32), 68);
    assert_eq!(words::binary(0), 2);
    assert_eq!(words::binary(64), 10);
    assert_eq!(words::binary(65), 6);
}
