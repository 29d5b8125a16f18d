//! The header page under arbitrary values, mutations and rubbish.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may: its line says why it failed"
)]

use proptest::prelude::*;
use snakepit_shm_core::error::Error;
use snakepit_shm_core::header::{
    CleanupPolicy, Header, ITEM_SIZES, Identity, LIVE, Live, MAX_CREATED_AT, MAX_DIMENSIONS, MAX_METADATA, PAGE,
    Page, State, compare,
};

fn text(least: usize, most: usize) -> impl Strategy<Value = String> {
    proptest::collection::vec(any::<char>(), least..=most).prop_map(move |chars| {
        let mut text: String = chars.into_iter().collect();
        while text.len() > most {
            text.pop();
        }
        if text.len() < least { "x".repeat(least) } else { text }
    })
}

/// Type, shape, and a size that goes with them.
fn arrays() -> impl Strategy<Value = (Option<String>, Option<Vec<u64>>, u64)> {
    let any_shape = proptest::option::of(proptest::collection::vec(any::<u64>(), 0..=MAX_DIMENSIONS));
    let items = 0..ITEM_SIZES.len();
    prop_oneof![
        (any_shape, 1u64..1 << 40).prop_map(|(shape, size)| (None, shape, size)),
        (items.clone(), 1u64..1 << 40).prop_map(|(item, size)| (Some(ITEM_SIZES[item].0.to_owned()), None, size)),
        (items, proptest::collection::vec(1u64..5, 0..=MAX_DIMENSIONS / 2)).prop_map(|(item, shape)| {
            let (name, bytes) = ITEM_SIZES[item];
            let size = bytes * shape.iter().product::<u64>();
            (Some(name.to_owned()), Some(shape), size)
        }),
    ]
}

fn headers() -> impl Strategy<Value = Header> {
    let names = (
        text(0, 123),
        text(0, 63),
        proptest::option::of(text(1, 223)),
        text(0, 200),
    );
    let numbers = (any::<[bool; 5]>(), 0u32..0o1000, 0usize..3);
    let times = (proptest::option::of(0..u64::MAX), 0..=MAX_CREATED_AT);
    let owner = (any::<[u8; 16]>(), any::<u64>(), any::<u64>(), any::<u64>());
    (names, numbers, times, owner, arrays()).prop_map(|(names, numbers, times, owner, (dtype, shape, size))| {
        let [named, huge_pages, peers_write, access_read_only, owner_read_only] = numbers.0;
        Header {
            id: format!("shm_{}", names.0),
            instance: names.1,
            label: names.2.filter(|_| named),
            metadata: names.3,
            size,
            named,
            huge_pages,
            peers_write,
            access_read_only,
            owner_read_only,
            mode: numbers.1,
            cleanup_policy: [
                CleanupPolicy::Automatic,
                CleanupPolicy::Manual,
                CleanupPolicy::ReferenceCounted,
            ][numbers.2],
            timeout: times.0,
            created_at: times.1,
            identity: Identity {
                boot_id: owner.0,
                pid_namespace: owner.1,
                pid: owner.2,
                start_time: owner.3,
            },
            dtype,
            shape,
        }
    })
}

fn lives() -> impl Strategy<Value = Live> {
    let states = [State::Allocated, State::Sealed, State::Freed, State::Invalid];
    (any::<u64>(), any::<u64>(), 0usize..4).prop_map(move |(sequence, writer, state)| Live {
        sequence,
        writer,
        state: states[state],
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn what_is_encoded_is_decoded(header in headers(), live in lives()) {
        prop_assert_eq!(header.check(), Ok(()));
        let page = header.encode(live);
        let length = header.size + PAGE as u64;
        prop_assert_eq!(Header::decode(&page, length), Ok((header.clone(), live)));
        prop_assert_eq!(Header::decode(&page, length - 1).unwrap_err().field, "data size");
    }

    #[test]
    fn any_change_of_the_static_part_is_noticed(header in headers(), at in 0..LIVE, bits in 1u8..) {
        let page = header.encode(Live::FRESH);
        let mut changed = page;
        changed[at] ^= bits;
        let length = header.size + PAGE as u64;
        prop_assert!(Header::decode(&changed, length).is_err());
        prop_assert!(compare(&changed, &page, length).is_err());
    }

    #[test]
    fn a_forged_checksum_does_not_help(header in headers(), other in headers()) {
        let (page, forged) = (header.encode(Live::FRESH), other.encode(Live::FRESH));
        prop_assert_eq!(compare(&forged, &page, u64::MAX).is_ok(), page[..LIVE] == forged[..LIVE]);
    }

    #[test]
    fn rubbish_never_panics(bytes in proptest::collection::vec(any::<u8>(), PAGE), keep in 0usize..PAGE, length: u64) {
        let mut page: Page = Header::draft("shm_r", "i", 1).encode(Live::FRESH);
        page[keep..].copy_from_slice(&bytes[keep..]);
        let _ = Header::decode(&page, length);
    }

    #[test]
    fn rubbish_with_a_good_checksum_never_panics(at in 8usize..4020, bytes: [u8; 8], length: u64) {
        let mut page = Header::draft("shm_r", "i", 1).encode(Live::FRESH);
        page[at..at + 8].copy_from_slice(&bytes);
        let checksum = crc32fast::hash(&page[..4028]);
        page[4028..4032].copy_from_slice(&checksum.to_le_bytes());
        if let Ok((header, live)) = Header::decode(&page, length) {
            prop_assert_eq!(header.encode(live), page);
        }
    }
}

#[test]
fn the_documented_offsets() {
    let header = Header {
        named: true,
        peers_write: true,
        access_read_only: true,
        owner_read_only: true,
        label: Some("weights".to_owned()),
        mode: 0o640,
        timeout: Some(5000),
        created_at: 0x0002_0304_0506_0708,
        identity: Identity {
            boot_id: [0xB0; 16],
            pid_namespace: 7,
            pid: 8,
            start_time: 9,
        },
        dtype: Some("float32".to_owned()),
        shape: Some(vec![3, 4]),
        metadata: "{}".to_owned(),
        ..Header::draft("shm_region", "default", 48)
    };
    let page = header.encode(Live {
        sequence: 6,
        writer: 2,
        state: State::Sealed,
    });
    let u32_at = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
    assert_eq!(&page[..8], b"SNKPSHM\0");
    assert_eq!(
        [u32_at(8), u32_at(12), u32_at(32), u32_at(36), u32_at(40)],
        [1, 4096, 0b11101, 0o640, 1]
    );
    assert_eq!(
        [u64_at(16), u64_at(24), u64_at(48), u64_at(56)],
        [4096, 48, 5000, 0x0002_0304_0506_0708]
    );
    assert_eq!(
        (&page[64..80], u64_at(80), u64_at(88), u64_at(96)),
        (&[0xB0; 16][..], 7, 8, 9)
    );
    assert_eq!((page[112], &page[113..123]), (10, &b"shm_region"[..]));
    assert_eq!((page[240], &page[241..248]), (7, &b"default"[..]));
    assert_eq!((page[304], &page[305..312]), (7, &b"float32"[..]));
    assert_eq!((u32_at(320), u64_at(328), u64_at(336), u64_at(344)), (2, 3, 4, 0));
    assert_eq!((u32_at(584), &page[592..594]), (2, &b"{}"[..]));
    assert_eq!((page[3664], &page[3665..3673]), (7, &b"weights\0"[..]));
    assert_eq!(u32_at(4028), crc32fast::hash(&page[..4028]));
    assert_eq!((u64_at(4032), u64_at(4040), u32_at(4048)), (6, 2, 2));
}

#[test]
fn what_does_not_fit_is_refused_before_it_is_written() {
    let good = Header::draft("shm_r", "i", 1);
    assert_eq!(good.check(), Ok(()));
    let with = |change: fn(&mut Header)| {
        let mut header = good.clone();
        change(&mut header);
        header
    };
    let shape = |dtype: &str, shape: &[u64], size| Header {
        dtype: Some(dtype.to_owned()),
        shape: Some(shape.to_vec()),
        size,
        ..good.clone()
    };
    for (field, bad) in [
        ("id", with(|h| h.id = String::new())),
        ("id", with(|h| h.id = format!("shm_{}", "x".repeat(124)))),
        ("id", with(|h| h.id = "region".to_owned())),
        ("instance", with(|h| h.instance = "x".repeat(64))),
        ("size", with(|h| h.size = 0)),
        ("size", with(|h| h.size = u64::MAX)),
        ("mode", with(|h| h.mode = 0o1000)),
        ("timeout", with(|h| h.timeout = Some(u64::MAX))),
        ("created_at", with(|h| h.created_at = MAX_CREATED_AT + 1)),
        ("dtype", with(|h| h.dtype = Some("x".repeat(16)))),
        ("dtype", with(|h| h.dtype = Some(String::new()))),
        ("dtype", with(|h| h.dtype = Some("float128".to_owned()))),
        ("shape", with(|h| h.shape = Some(vec![1; MAX_DIMENSIONS + 1]))),
        ("shape", shape("float32", &[2, 3], 6)),
        ("shape", shape("uint8", &[0], 1)),
        ("shape", shape("uint8", &[u64::MAX, u64::MAX, 1], 1)),
        ("shape", shape("uint8", &[u64::MAX, 2, 0], 1)),
        ("metadata", with(|h| h.metadata = "x".repeat(MAX_METADATA + 1))),
        ("label", with(|h| h.label = Some("anonymous".to_owned()))),
        ("label", with(|h| (h.named, h.label) = (true, Some(String::new())))),
        ("label", with(|h| (h.named, h.label) = (true, Some("x".repeat(224))))),
    ] {
        match bad.check() {
            Err(Error::InvalidSpec { field: named, .. }) => assert_eq!(named, field, "{bad:?}"),
            other => panic!("{other:?}: {bad:?}"),
        }
        // And encoding it all the same stays inside the page.
        let _ = bad.encode(Live::FRESH);
    }
    assert_eq!(shape("float32", &[2, 3], 24).check(), Ok(()));
    assert_eq!(shape("complex128", &[], 16).check(), Ok(()));
}

/// Well-formed, with a good checksum, and impossible.
#[test]
fn values_that_cannot_be_are_named() {
    let good = Header {
        named: true,
        dtype: Some("int16".to_owned()),
        shape: Some(vec![2, 3]),
        label: Some("weights".to_owned()),
        created_at: MAX_CREATED_AT,
        ..Header::draft("shm_r", "i", 12)
    };
    let decode = |at: usize, bytes: &[u8]| {
        let mut page = good.encode(Live::FRESH);
        page[at..at + bytes.len()].copy_from_slice(bytes);
        let checksum = crc32fast::hash(&page[..4028]);
        page[4028..4032].copy_from_slice(&checksum.to_le_bytes());
        Header::decode(&page, 8192).map_err(|corruption| corruption.field)
    };
    assert_eq!(decode(0, b""), Ok((good.clone(), Live::FRESH)));
    for (at, bytes, field) in [
        (32, &b"\x21"[..], "flags"),
        (32, b"\0", "name"),
        (56, &(MAX_CREATED_AT + 1).to_le_bytes(), "created at"),
        (113, b"S", "id"),
        (112, b"\0\0\0\0\0\0", "id"),
        (305, b"int17", "dtype"),
        (305, b"int32", "shape"),
        (328, b"\x03", "shape"),
        (320, b"\x01", "shape"),
        (328, &[0xFF; 16], "shape"),
        (24, b"\x0b", "shape"),
        (3664, b"\xe0", "name"),
        (3664, b"\x06", "name"),
        (3666, b"\xff", "name"),
        (3888, b"\x01", "reserved at 3888"),
        (4027, b"\x01", "reserved at 3888"),
    ] {
        assert_eq!(decode(at, bytes), Err(field), "{bytes:?} at {at}");
    }
}
