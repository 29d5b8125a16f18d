//! The header page under arbitrary values, mutations and rubbish.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may: its line says why it failed"
)]

use proptest::prelude::*;
use snakepit_shm_core::header::{
    CleanupPolicy, Header, Identity, LIVE, Live, MAX_DIMENSIONS, MAX_METADATA, PAGE, Page, State, compare,
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

fn headers() -> impl Strategy<Value = Header> {
    let names = (
        text(1, 127),
        text(0, 63),
        proptest::option::of(text(1, 15)),
        text(0, 200),
    );
    let numbers = (1u64..1 << 40, any::<(bool, bool, bool)>(), 0u32..0o1000, 0usize..3);
    let times = (proptest::option::of(0..u64::MAX), any::<u64>());
    let owner = (any::<[u8; 16]>(), any::<u64>(), any::<u64>(), any::<u64>());
    let shape = proptest::option::of(proptest::collection::vec(any::<u64>(), 0..=MAX_DIMENSIONS));
    (names, numbers, times, owner, shape).prop_map(|(names, numbers, times, owner, shape)| Header {
        id: names.0,
        instance: names.1,
        dtype: names.2,
        metadata: names.3,
        size: numbers.0,
        named: numbers.1.0,
        huge_pages: numbers.1.1,
        peers_write: numbers.1.2,
        mode: numbers.2,
        cleanup_policy: [
            CleanupPolicy::Automatic,
            CleanupPolicy::Manual,
            CleanupPolicy::ReferenceCounted,
        ][numbers.3],
        timeout: times.0,
        created_at: times.1,
        identity: Identity {
            boot_id: owner.0,
            pid_namespace: owner.1,
            pid: owner.2,
            start_time: owner.3,
        },
        shape,
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
        let mut changed = page.clone();
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
        let mut page: Box<Page> = Header::draft("r", "i", 1).encode(Live::FRESH);
        page[keep..].copy_from_slice(&bytes[keep..]);
        let _ = Header::decode(&page, length);
    }

    #[test]
    fn rubbish_with_a_good_checksum_never_panics(at in 8usize..4020, bytes: [u8; 8], length: u64) {
        let mut page = Header::draft("r", "i", 1).encode(Live::FRESH);
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
        mode: 0o640,
        timeout: Some(5000),
        created_at: 0x0102_0304_0506_0708,
        identity: Identity {
            boot_id: [0xB0; 16],
            pid_namespace: 7,
            pid: 8,
            start_time: 9,
        },
        dtype: Some("float32".to_owned()),
        shape: Some(vec![3, 4]),
        metadata: "{}".to_owned(),
        ..Header::draft("region", "default", 48)
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
        [1, 4096, 5, 0o640, 1]
    );
    assert_eq!(
        [u64_at(16), u64_at(24), u64_at(48), u64_at(56)],
        [4096, 48, 5000, 0x0102_0304_0506_0708]
    );
    assert_eq!(
        (&page[64..80], u64_at(80), u64_at(88), u64_at(96)),
        (&[0xB0; 16][..], 7, 8, 9)
    );
    assert_eq!((page[112], &page[113..119]), (6, &b"region"[..]));
    assert_eq!((page[240], &page[241..248]), (7, &b"default"[..]));
    assert_eq!((page[304], &page[305..312]), (7, &b"float32"[..]));
    assert_eq!((u32_at(320), u64_at(328), u64_at(336), u64_at(344)), (2, 3, 4, 0));
    assert_eq!((u32_at(584), &page[592..594]), (2, &b"{}"[..]));
    assert_eq!(u32_at(4028), crc32fast::hash(&page[..4028]));
    assert_eq!((u64_at(4032), u64_at(4040), u32_at(4048)), (6, 2, 2));
}

#[test]
fn what_does_not_fit_is_refused_before_it_is_written() {
    let good = Header::draft("r", "i", 1);
    assert_eq!(good.check(), Ok(()));
    for bad in [
        Header {
            id: String::new(),
            ..good.clone()
        },
        Header {
            id: "x".repeat(128),
            ..good.clone()
        },
        Header {
            instance: "x".repeat(64),
            ..good.clone()
        },
        Header {
            dtype: Some("x".repeat(16)),
            ..good.clone()
        },
        Header {
            dtype: Some(String::new()),
            ..good.clone()
        },
        Header {
            shape: Some(vec![1; MAX_DIMENSIONS + 1]),
            ..good.clone()
        },
        Header {
            metadata: "x".repeat(MAX_METADATA + 1),
            ..good.clone()
        },
        Header {
            timeout: Some(u64::MAX),
            ..good.clone()
        },
        Header {
            mode: 0o1000,
            ..good.clone()
        },
        Header {
            size: 0,
            ..good.clone()
        },
        Header {
            size: u64::MAX,
            ..good.clone()
        },
    ] {
        assert!(bad.check().is_err(), "{bad:?}");
        // And encoding it all the same stays inside the page.
        let _ = bad.encode(Live::FRESH);
    }
}
