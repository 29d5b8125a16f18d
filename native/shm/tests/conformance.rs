//! What every back end must do, written once against the traits and instantiated for each.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may: its line says why it failed"
)]

mod support;

use snakepit_shm_core::backend::{Anonymous, Backend, Named, Object, Request};
use snakepit_shm_core::budget::Budget;
use snakepit_shm_core::error::Error;
use snakepit_shm_core::header::{DATA_OFFSET, Header, State};
use snakepit_shm_core::segment::{PhaseName, Plan, Segment, Wait};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use support::{Place, read, read_of, write_through};

/// What differs between the back ends, as far as these tests care.
trait Kind {
    type Backend: Backend;
    const ZERO_COPY: bool;

    fn request(place: &Place, size: u64) -> Request;
    fn plan(place: &Place, size: u64) -> Plan;
}

struct AnonymousKind;

impl Kind for AnonymousKind {
    type Backend = Anonymous;
    const ZERO_COPY: bool = true;

    fn request(_: &Place, size: u64) -> Request {
        Request {
            size,
            label: "conformance".to_owned(),
            peers_write: true,
            reserve: true,
            ..Request::default()
        }
    }

    fn plan(_: &Place, size: u64) -> Plan {
        Plan::anonymous(Header {
            peers_write: true,
            ..Header::draft("shm_r", "conformance", size)
        })
    }
}

struct NamedKind;

impl Kind for NamedKind {
    type Backend = Named;
    const ZERO_COPY: bool = false;

    fn request(place: &Place, size: u64) -> Request {
        Request {
            size,
            path: Some(place.path()),
            mode: 0o600,
            peers_write: true,
            reserve: true,
            ..Request::default()
        }
    }

    fn plan(place: &Place, size: u64) -> Plan {
        Plan::named(
            Header {
                peers_write: true,
                ..Header::draft("shm_r", "conformance", size)
            },
            &place.path(),
        )
    }
}

fn object<K: Kind>(place: &Place, size: u64) -> K::Backend {
    let object = K::Backend::create(K::request(place, size)).unwrap();
    object.publish().unwrap();
    object
}

fn segment<K: Kind>(place: &Place, size: u64) -> Segment {
    Segment::create(Budget::new().charge(size, u64::MAX).unwrap(), K::plan(place, size)).unwrap()
}

fn the_length_is_header_and_data_up_to_a_page<K: Kind>() {
    let place = Place::new();
    for (size, length) in [(1, 8192), (4096, 8192), (4097, 12288)] {
        let object = K::Backend::create(K::request(&place, size)).unwrap();
        assert_eq!(object.length(), length);
    }
}

fn a_size_that_no_object_can_have_is_an_error<K: Kind>() {
    let place = Place::new();
    for size in [u64::MAX, i64::MAX as u64, 1 << 60, 1 << 45] {
        let error = K::Backend::create(K::request(&place, size)).unwrap_err();
        assert!(
            matches!(
                error,
                Error::FileTooBig | Error::NotEnoughMemory { .. } | Error::NoSpace { .. }
            ),
            "{size}: {error:?}"
        );
    }
    assert!(place.is_empty());
}

fn reserved_memory_is_there<K: Kind>() {
    let place = Place::new();
    let object = object::<K>(&place, 1 << 20);
    assert!(object.resident().unwrap() >= object.length());
}

fn unreserved_memory_comes_later<K: Kind>() {
    let place = Place::new();
    let request = Request {
        reserve: false,
        ..K::request(&place, 1 << 20)
    };
    let object = K::Backend::create(request).unwrap();
    assert!(object.resident().unwrap() < object.length());
    object.reserve().unwrap();
    assert!(object.resident().unwrap() >= object.length());
}

fn bytes_come_back<K: Kind>() {
    let place = Place::new();
    let object = object::<K>(&place, 5000);
    object.write_at(4000, b"across the page").unwrap();
    assert_eq!(read_of(&object, 4000, 15), b"across the page");
    assert_eq!(read_of(&object, 8000, 100), [0; 100]);
}

fn reading_stops_at_the_end<K: Kind>() {
    let place = Place::new();
    let object = object::<K>(&place, 1);
    assert_eq!(read_of(&object, object.length() - 3, 10).len(), 3);
    assert_eq!(read_of(&object, object.length(), 10).len(), 0);
}

fn a_punched_range_is_given_back_and_zero<K: Kind>() {
    let place = Place::new();
    let object = object::<K>(&place, 1 << 20);
    object.write_at(8192, &[7; 8192]).unwrap();
    let before = object.resident().unwrap();
    object.punch(8192, 8192).unwrap();
    assert_eq!(object.resident().unwrap(), before - 8192);
    assert_eq!(read_of(&object, 8192, 8192), [0; 8192]);
}

fn an_export_for_reading_is_not_writable_by_itself<K: Kind>() {
    let place = Place::new();
    let object = object::<K>(&place, 100);
    let export = object.export(false, 0).unwrap();
    assert!(write_through(&export, DATA_OFFSET, b"no").is_err());
    let export = object.export(true, 0).unwrap();
    write_through(&export, DATA_OFFSET, b"yes").unwrap();
    assert_eq!(read_of(&object, DATA_OFFSET, 3), b"yes");
}

fn descriptors_are_closed_on_exec<K: Kind>() {
    let place = Place::new();
    let object = object::<K>(&place, 100);
    let exports = [object.export(false, 0).unwrap(), object.export(true, 0).unwrap()];
    for fd in exports
        .iter()
        .map(|export| export.number())
        .chain([object.fd().as_raw_fd()])
    {
        // SAFETY: F_GETFD touches no memory.
        assert_eq!(unsafe { libc::fcntl(fd, libc::F_GETFD) }, libc::FD_CLOEXEC);
    }
}

fn the_descriptor_reserve_is_respected<K: Kind>() {
    let place = Place::new();
    let request = Request {
        descriptor_reserve: u64::MAX,
        ..K::request(&place, 100)
    };
    assert!(matches!(
        K::Backend::create(request),
        Err(Error::DescriptorLimit { reserve: u64::MAX, .. })
    ));
    assert!(place.is_empty());
    let object = object::<K>(&place, 100);
    assert!(matches!(
        object.export(false, u64::MAX),
        Err(Error::DescriptorLimit { .. })
    ));
}

fn writes_are_read_and_counted<K: Kind>() {
    let place = Place::new();
    let segment = segment::<K>(&place, 10_000);
    assert_eq!(segment.generation(), Ok(0));
    assert_eq!(segment.write(4090, &[b"one ", b"", b"two"], Wait::Spin), Ok(1));
    assert_eq!(read(&segment, 4090, 7).unwrap(), b"one two");
    assert_eq!(segment.write(0, &[], Wait::Spin), Ok(2));
    assert_eq!(segment.generation(), Ok(2));
    assert_eq!(read(&segment, 10_000, 0).unwrap(), b"");
}

fn ranges_are_checked<K: Kind>() {
    let place = Place::new();
    let segment = segment::<K>(&place, 100);
    for (offset, length) in [(101, 0), (100, 1), (0, 101), (u64::MAX, 1), (1, usize::MAX >> 1)] {
        let error = Error::OutOfRange {
            offset,
            length: length as u64,
            size: 100,
        };
        assert_eq!(segment.check_range(offset, length as u64), Err(error));
    }
    assert!(matches!(
        segment.write(98, &[b"ab", b"c"], Wait::Spin),
        Err(Error::OutOfRange { length: 3, .. })
    ));
    assert!(matches!(segment.view(1, u64::MAX), Err(Error::OutOfRange { .. })));
    assert_eq!(segment.generation(), Ok(0));
}

fn a_peers_turn_excludes_the_vm<K: Kind>() {
    let place = Place::new();
    let segment = segment::<K>(&place, 100);
    segment.write_begin(7).unwrap();
    let busy = Error::Busy { writer: 7 };
    assert_eq!(read(&segment, 0, 1), Err(busy.clone()));
    assert_eq!(segment.write(0, &[b"x"], Wait::Patient), Err(busy.clone()));
    assert_eq!(segment.seal(Wait::Patient), Err(busy.clone()));
    assert_eq!(segment.write_begin(8), Err(busy));
    assert_eq!(segment.write_end(8), Err(Error::NotWriter { writer: 7 }));
    assert_eq!(segment.write_end(7), Ok(1));
    assert_eq!(segment.write_end(7), Err(Error::NotWriter { writer: 0 }));
    assert_eq!(segment.write(0, &[b"x"], Wait::Spin), Ok(2));
    assert!(matches!(segment.write_begin(1), Err(Error::Invalid { .. })));
}

fn the_live_line_is_published<K: Kind>() {
    let place = Place::new();
    let segment = segment::<K>(&place, 100);
    let peer = segment.export(false).unwrap();
    let live = || support::live_line(&peer);
    assert_eq!(live(), (0, 0, State::Allocated as u32));
    segment.write(0, &[b"x"], Wait::Spin).unwrap();
    assert_eq!(live(), (2, 0, State::Allocated as u32));
    segment.write_begin(9).unwrap();
    assert_eq!(live(), (3, 9, State::Allocated as u32));
    segment.write_end(9).unwrap();
    assert_eq!(live(), (4, 0, State::Allocated as u32));
    segment.seal(Wait::Patient).unwrap();
    assert_eq!(live(), (4, 0, State::Sealed as u32));
}

fn a_freed_segment_says_so<K: Kind>() {
    let place = Place::new();
    let segment = segment::<K>(&place, 100);
    let peer = segment.export(false).unwrap();
    segment.close(true);
    assert_eq!(support::live_line(&peer).2, State::Freed as u32);
    assert!(place.is_empty());
}

fn sealed_is_for_ever<K: Kind>() {
    let place = Place::new();
    let segment = segment::<K>(&place, 100);
    segment.write(0, &[b"kept"], Wait::Spin).unwrap();
    let sealed = segment.seal(Wait::Patient).unwrap();
    assert_eq!((sealed.copied, sealed.zero_copy), (false, K::ZERO_COPY));
    assert_eq!(segment.seal(Wait::Patient), Ok(sealed));
    assert_eq!(segment.write(0, &[b"no"], Wait::Spin), Err(Error::Sealed));
    assert_eq!(segment.write_begin(7), Err(Error::Sealed));
    assert_eq!(segment.punch(0, 1, Wait::Spin), Err(Error::Sealed));
    assert_eq!(segment.export(true).unwrap_err(), Error::ReadOnly);
    assert_eq!(read(&segment, 0, 4).unwrap(), b"kept");
    match segment.view(0, 4) {
        Ok(view) => assert!(K::ZERO_COPY && view.bytes() == b"kept"),
        Err(error) => assert!(!K::ZERO_COPY && error == Error::NotZeroCopy),
    }
}

fn closed_is_closed<K: Kind>() {
    let place = Place::new();
    let segment = segment::<K>(&place, 100);
    segment.close(false);
    segment.close(true);
    segment.invalidate("too late");
    assert_eq!(segment.info().phase, PhaseName::Closed);
    assert_eq!(read(&segment, 0, 1), Err(Error::Closed));
    assert_eq!(segment.write(0, &[b"x"], Wait::Spin), Err(Error::Closed));
    assert_eq!(segment.seal(Wait::Patient), Err(Error::Closed));
    assert_eq!(segment.view(0, 1).unwrap_err(), Error::Closed);
    assert_eq!(segment.export(false).unwrap_err(), Error::Closed);
    assert_eq!(segment.resident(), Err(Error::Closed));
    assert_eq!(segment.generation(), Err(Error::Closed));
    assert_eq!(segment.write_begin(2), Err(Error::Closed));
}

fn a_peers_turn_can_end_after_close<K: Kind>() {
    let place = Place::new();
    let segment = segment::<K>(&place, 100);
    segment.write_begin(5).unwrap();
    segment.close(false);
    assert_eq!(segment.write_end(5), Err(Error::Closed));
    assert_eq!(segment.info().writer, 0);
}

fn a_spoiled_header_is_named_and_remembered<K: Kind>() {
    for (offset, field) in [
        (0, "magic"),
        (24, "data size"),
        (60, "created at"),
        (113, "id"),
        (4000, "reserved at 3888"),
    ] {
        let place = Place::new();
        let segment = segment::<K>(&place, 100);
        let peer = segment.export(true).unwrap();
        write_through(&peer, offset, &[0xEE]).unwrap();
        match read(&segment, 0, 1) {
            Err(Error::Corrupted(corruption)) => {
                // What no field check can see, the checksum does.
                let named = [field, "checksum"].contains(&corruption.field);
                assert!(named, "{offset}: {corruption:?}");
                let reason = Error::Corrupted(corruption).to_string();
                assert_eq!(
                    segment.write(0, &[b"x"], Wait::Spin),
                    Err(Error::Invalid { reason: reason.clone() })
                );
                assert_eq!(segment.seal(Wait::Patient), Err(Error::Invalid { reason }));
            }
            other => panic!("{offset}: {other:?}"),
        }
        assert_eq!(segment.info().phase, PhaseName::Invalid);
    }
}

fn a_consistent_forgery_is_noticed<K: Kind>() {
    let place = Place::new();
    let segment = segment::<K>(&place, 100);
    let peer = segment.export(true).unwrap();
    let mut forged = segment.header().clone();
    forged.metadata = "{}".to_owned();
    let page = forged.encode(snakepit_shm_core::header::Live::FRESH);
    write_through(&peer, 0, &page[..]).unwrap();
    assert!(matches!(read(&segment, 0, 1), Err(Error::Corrupted(c)) if c.field == "metadata"));
}

fn what_a_peer_writes_into_the_live_line_is_not_believed<K: Kind>() {
    let place = Place::new();
    let segment = segment::<K>(&place, 100);
    let peer = segment.export(true).unwrap();
    write_through(&peer, 4032, &[0xFF; 20]).unwrap();
    assert_eq!(read(&segment, 0, 1).unwrap(), [0]);
    assert_eq!(segment.write(0, &[b"x"], Wait::Spin), Ok(1));
    assert_eq!(segment.info().phase, PhaseName::Allocated);
}

fn an_invalidated_segment_is_not_read<K: Kind>() {
    let place = Place::new();
    let segment = segment::<K>(&place, 100);
    let peer = segment.export(false).unwrap();
    segment.invalidate("because");
    segment.invalidate("too late");
    let refused = || Error::invalid("because");
    assert_eq!(read(&segment, 0, 1), Err(refused()));
    assert_eq!(segment.export(false).unwrap_err(), refused());
    assert_eq!(segment.export(true).unwrap_err(), refused());
    assert_eq!(support::live_line(&peer).2, State::Invalid as u32);
}

fn what_may_block_is_not_for_a_scheduler<K: Kind>() {
    let place = Place::new();
    let segment = segment::<K>(&place, 100);
    assert!(segment.export(true).is_ok());
    assert_eq!(segment.seal(Wait::Spin), Err(Error::DirtyNeeded));
    assert_eq!(segment.write(0, &[b"still allocated"], Wait::Spin), Ok(1));
    assert!(segment.seal(Wait::Patient).is_ok());
}

fn idleness_counts_from_the_last_use<K: Kind>() {
    let place = Place::new();
    let segment = segment::<K>(&place, 100);
    // Far longer than the clock of ticks may be behind: under a hypervisor, some tens of milliseconds.
    std::thread::sleep(std::time::Duration::from_millis(400));
    let idle = segment.idle();
    assert!((200..10_000).contains(&idle), "{idle}");
    // Its time of last use is told before the clock is read: a test that is kept waiting between
    // the two finds it longer ago, never later.
    let last_access = segment.info().last_access;
    let wall = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let ago = wall.as_millis() as i64 - last_access;
    assert!((200..10_000).contains(&ago), "{ago}");
    segment.touch();
    assert!(segment.idle() < idle);
    assert_eq!(segment.info().access_count, 1);
}

fn a_file_fills_it<K: Kind>() {
    let place = Place::new();
    let size = (1 << 20) + 77;
    let segment = segment::<K>(&place, size);
    let file = place.file("content");
    let content: Vec<u8> = (0..size + 5).map(|i| (i % 251) as u8).collect();
    std::fs::write(&file, &content).unwrap();
    assert_eq!(segment.fill(&file, 5, size), Ok(1));
    assert_eq!(read(&segment, 0, size as usize).unwrap(), content[5..]);
    let short = Error::FileChanged {
        expected: size + 6,
        found: size + 5,
    };
    assert_eq!(segment.fill(&file, 6, size), Err(short));
    assert_eq!(segment.fill(&place.file("none"), 0, 1), Err(Error::NotFound));
    assert_eq!(
        segment.fill(std::path::Path::new("/dev/null"), 0, 1),
        Err(Error::NotRegularFile)
    );
    assert!(matches!(segment.fill(&file, u64::MAX, 1), Err(Error::FileTooBig)));
    assert!(matches!(
        segment.fill(&file, 0, size + 1),
        Err(Error::OutOfRange { .. })
    ));
}

fn reads_are_never_torn<K: Kind>() {
    let place = Place::new();
    let size = 64 << 10;
    let segment = segment::<K>(&place, size);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in [1u8, 2] {
            let (segment, stop) = (&segment, &stop);
            scope.spawn(move || {
                let data = vec![seed; size as usize];
                while !stop.load(Ordering::Relaxed) {
                    match segment.write(0, &[&data], Wait::Patient) {
                        Ok(_) | Err(Error::Busy { .. }) => {}
                        Err(other) => panic!("{other:?}"),
                    }
                }
            });
        }
        let mut good = 0;
        while good < 100 {
            match read(&segment, 0, size as usize) {
                Ok(data) => {
                    assert!(data.iter().all(|byte| *byte == data[0]));
                    good += 1;
                }
                Err(Error::Busy { .. }) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

fn everything_may_race_with_close<K: Kind>() {
    for round in 0..60u64 {
        let place = Place::new();
        let segment = segment::<K>(&place, 2 << 20);
        let data = vec![1; 1 << 20];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !matches!(
                    segment.write(0, &[&data], Wait::Patient),
                    Err(Error::Closed | Error::Sealed)
                ) {}
            });
            scope.spawn(|| while !matches!(read(&segment, 0, 1 << 20), Err(Error::Closed)) {});
            scope.spawn(|| while !matches!(segment.seal(Wait::Patient), Err(Error::Closed)) {});
            std::thread::sleep(std::time::Duration::from_micros(round * 20));
            segment.close(true);
        });
        assert_eq!(segment.info().phase, PhaseName::Closed);
    }
}

macro_rules! conformance {
    ($($module:ident: $kind:ty),*; $tests:tt) => { $(conformance!(@module $module $kind $tests);)* };
    (@module $module:ident $kind:ty [$($test:ident),* $(,)?]) => {
        mod $module {
            use super::*;
            $(#[test] fn $test() { super::$test::<$kind>() })*
        }
    };
}

conformance! {
    anonymous: AnonymousKind, named: NamedKind;
    [
        the_length_is_header_and_data_up_to_a_page,
        a_size_that_no_object_can_have_is_an_error,
        reserved_memory_is_there,
        unreserved_memory_comes_later,
        bytes_come_back,
        reading_stops_at_the_end,
        a_punched_range_is_given_back_and_zero,
        an_export_for_reading_is_not_writable_by_itself,
        descriptors_are_closed_on_exec,
        the_descriptor_reserve_is_respected,
        writes_are_read_and_counted,
        ranges_are_checked,
        a_peers_turn_excludes_the_vm,
        the_live_line_is_published,
        a_freed_segment_says_so,
        sealed_is_for_ever,
        closed_is_closed,
        a_peers_turn_can_end_after_close,
        a_spoiled_header_is_named_and_remembered,
        a_consistent_forgery_is_noticed,
        what_a_peer_writes_into_the_live_line_is_not_believed,
        an_invalidated_segment_is_not_read,
        what_may_block_is_not_for_a_scheduler,
        idleness_counts_from_the_last_use,
        a_file_fills_it,
        reads_are_never_torn,
        everything_may_race_with_close,
    ]
}
