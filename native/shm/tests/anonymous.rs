//! What only memfds promise: confinement, seals, views, and the ways in which peers can get in the way of a seal.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may: its line says why it failed"
)]

mod support;

use nix::errno::Errno;
use snakepit_shm_core::backend::HugePages;
use snakepit_shm_core::budget::Budget;
use snakepit_shm_core::descriptor::Descriptor;
use snakepit_shm_core::error::Error;
use snakepit_shm_core::header::{DATA_OFFSET, Header, State};
use snakepit_shm_core::segment::{Plan, Segment, Wait};
use snakepit_shm_core::{machine, reaper};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;
use support::{add_seals, live_line, read, read_through, write_through};

fn draft(id: &str, size: u64) -> Header {
    Header::draft(&format!("shm_{id}"), "anonymous", size)
}

fn make(plan: Plan) -> Segment {
    let budget = Budget::new();
    Segment::create(budget.charge(plan.header.size, u64::MAX).unwrap(), plan).unwrap()
}

fn shared(size: u64) -> Segment {
    make(Plan::anonymous(Header {
        peers_write: true,
        ..draft("shared", size)
    }))
}

fn confined(size: u64) -> Segment {
    make(Plan::anonymous(draft("confined", size)))
}

/// Opens again what the descriptor is of, as any process of the same user can.
fn reopen(peer: &Descriptor) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("/proc/self/fd/{}", peer.number()))
        .unwrap()
}

fn map_shared(file: &impl AsFd) -> std::io::Result<memmap2::MmapRaw> {
    memmap2::MmapOptions::new().len(8192).map_raw(file.as_fd().as_raw_fd())
}

#[test]
fn a_reading_peer_cannot_write_by_any_way() {
    let segment = confined(100);
    let peer = segment.export(false).unwrap();
    assert_eq!(segment.export(true).unwrap_err(), Error::ReadOnly);
    let file = reopen(&peer);
    let eperm = |outcome: std::io::Result<()>| assert_eq!(outcome.unwrap_err().raw_os_error(), Some(libc::EPERM));
    eperm(map_shared(&file).map(drop));
    eperm(std::os::unix::fs::FileExt::write_all_at(&file, b"no", DATA_OFFSET));
    eperm(file.set_len(0));
    eperm(file.set_len(1 << 20));
    let punch = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
    assert_eq!(nix::fcntl::fallocate(&file, punch, 0, 4096), Err(Errno::EPERM));
    // The VM's own mapping is older than the seal and goes on.
    segment.write(0, &[b"yes"], Wait::Spin).unwrap();
    assert_eq!(read_through(&peer, DATA_OFFSET, 3), b"yes");
}

#[test]
fn a_writing_peer_cannot_truncate() {
    let segment = shared(100);
    let peer = support::file(&segment.export(true).unwrap());
    assert!(peer.set_len(0).is_err() && peer.set_len(1 << 20).is_err());
}

#[test]
fn sealed_memory_is_immutable_for_everybody() {
    let segment = shared(100);
    let peer = segment.export(true).unwrap();
    segment.seal(Wait::Patient).unwrap();
    assert!(write_through(&peer, DATA_OFFSET, b"no").is_err());
    assert!(map_shared(&peer).is_err());
}

#[test]
fn a_peers_writable_mapping_keeps_it_from_being_sealed() {
    let segment = shared(100);
    let peer = segment.export(true).unwrap();
    let mapped = map_shared(&peer).unwrap();
    assert_eq!(segment.seal(Wait::Patient), Err(Error::Busy { writer: 0 }));
    assert_eq!(live_line(&peer).2, State::Allocated as u32);
    // As before the attempt.
    segment.write(0, &[b"still"], Wait::Spin).unwrap();
    assert_eq!(read(&segment, 0, 5).unwrap(), b"still");
    assert!(segment.info().mapped);
    drop(mapped);
    let sealed = segment.seal(Wait::Patient).unwrap();
    assert_eq!((sealed.copied, sealed.zero_copy), (false, true));
}

#[test]
fn a_peer_that_forbids_seals_is_copied_from() {
    for segment in [shared(100), confined(100)] {
        segment.write(0, &[b"copied"], Wait::Spin).unwrap();
        let peer = segment.export(false).unwrap();
        add_seals(&reopen(&peer), libc::F_SEAL_SEAL).unwrap();
        let sealed = segment.seal(Wait::Patient).unwrap();
        assert_eq!((sealed.copied, sealed.zero_copy), (true, true));
        assert_eq!(segment.seal(Wait::Patient), Ok(sealed));
        assert_eq!(segment.view(0, 6).unwrap().bytes(), b"copied");
        // Exports are of the fresh one from now on; generation and state are in its header.
        let fresh = segment.export(false).unwrap();
        assert_eq!(live_line(&fresh), (2, 0, State::Sealed as u32));
        assert!(write_through(&peer, DATA_OFFSET, b"old").is_err() || read(&segment, 0, 6).unwrap() == b"copied");
    }
}

#[test]
fn a_peers_mapping_of_what_it_forbids_to_seal_does_not_matter_to_the_copy() {
    let segment = shared(100);
    segment.write(0, &[b"before"], Wait::Spin).unwrap();
    let peer = segment.export(true).unwrap();
    let _mapped = map_shared(&peer).unwrap();
    add_seals(&reopen(&peer), libc::F_SEAL_SEAL).unwrap();
    assert!(segment.seal(Wait::Patient).unwrap().copied);
    write_through(&peer, DATA_OFFSET, b"later!").unwrap();
    assert_eq!(segment.view(0, 6).unwrap().bytes(), b"before");
}

#[test]
fn holes_are_filled_before_the_seal() {
    let segment = make(Plan {
        reserve: false,
        ..Plan::anonymous(draft("sparse", 1 << 20))
    });
    assert!(segment.resident().unwrap() < 1 << 20);
    assert!(segment.seal(Wait::Patient).unwrap().zero_copy);
    assert!(segment.resident().unwrap() >= 1 << 20);
}

#[test]
fn punched_memory_is_zero_and_seals_whole() {
    let segment = confined(1 << 20);
    segment.write(0, &[&vec![5; 1 << 20]], Wait::Patient).unwrap();
    // FUTURE_WRITE forbids punching to everybody.
    assert!(segment.punch(0, 8192, Wait::Spin).is_err());
    let segment = shared(1 << 20);
    segment.write(0, &[&vec![5; 1 << 20]], Wait::Patient).unwrap();
    segment.punch(0, 8192, Wait::Spin).unwrap();
    assert_eq!(read(&segment, 0, 8192).unwrap(), [0; 8192]);
    assert!(segment.seal(Wait::Patient).unwrap().zero_copy);
}

#[test]
fn a_view_outlives_everything_and_keeps_the_charge() {
    for size in [100, 4 << 20] {
        let budget = Budget::new();
        let charge = budget.charge(size, u64::MAX).unwrap();
        let segment = Segment::create(charge, Plan::anonymous(draft("viewed", size))).unwrap();
        segment.write(size - 4, &[b"tail"], Wait::Spin).unwrap();
        segment.seal(Wait::Patient).unwrap();
        let view = segment.view(size - 4, 4).unwrap();
        assert_eq!(segment.info().views, 1);
        segment.close(false);
        drop(segment);
        assert!(reaper::flush(Duration::from_secs(10)));
        assert_eq!(view.bytes(), b"tail");
        assert_eq!(budget.usage(), (size, 1));
        drop(view);
        assert!(reaper::flush(Duration::from_secs(10)));
        assert_eq!(budget.usage(), (0, 0));
        assert_eq!(budget.closing(), 0);
    }
}

#[test]
fn an_empty_view_is_empty() {
    let segment = confined(10);
    segment.seal(Wait::Patient).unwrap();
    assert_eq!(segment.view(10, 0).unwrap().bytes(), b"");
}

#[test]
fn it_shows_by_its_name_in_the_maps() {
    let segment = make(Plan::anonymous(draft("seen-in-maps", 100)));
    let maps = || std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(maps().contains("/memfd:snakepit:shm_seen-in-maps"));
    segment.close(false);
    assert!(!maps().contains("/memfd:snakepit:shm_seen-in-maps"));
}

#[test]
fn large_memory_is_kept_out_of_core_dumps() {
    let segment = make(Plan::anonymous(draft("not-dumped", 100)));
    let flags = |name: &str| {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let rest = &smaps[smaps.find(name).unwrap()..];
        rest.lines()
            .find(|line| line.starts_with("VmFlags:"))
            .unwrap()
            .to_owned()
    };
    assert!(flags("snakepit:shm_not-dumped").contains(" dd"));
    segment.seal(Wait::Patient).unwrap();
    assert!(flags("snakepit:shm_not-dumped").contains(" dd"));
}

#[test]
fn an_id_too_long_for_a_label_is_cut() {
    let id = "ü".repeat(61);
    let segment = make(Plan::anonymous(draft(&id, 100)));
    assert_eq!(segment.header().id, format!("shm_{id}"));
}

#[test]
fn the_mapping_limit_holds_and_leaves_nothing() {
    let budget = Budget::new();
    let plan = Plan {
        mapping_limit: 0,
        ..Plan::anonymous(draft("limited", 100))
    };
    let refused = Segment::create(budget.charge(100, 100).unwrap(), plan);
    assert!(matches!(refused, Err(Error::TooManyMappings { limit: 0, .. })));
    assert_eq!(budget.usage(), (0, 0));
}

#[test]
fn huge_pages_are_refused_with_writing_peers() {
    let header = Header {
        peers_write: true,
        ..draft("huge", 100)
    };
    let plan = Plan {
        huge_pages: HugePages::Prefer,
        ..Plan::anonymous(header)
    };
    let refused = Segment::create(Budget::new().charge(1, 1).unwrap(), plan);
    assert!(matches!(
        refused,
        Err(Error::InvalidSpec {
            field: "huge_pages",
            ..
        })
    ));
}

/// Runs both ways: the machine's pool is usually empty.
#[test]
fn huge_pages_are_taken_or_refused_by_name() {
    let (_, page) = machine::huge_pages();
    let plan = |huge_pages| Plan {
        huge_pages,
        ..Plan::anonymous(draft("huge", 100))
    };
    match Segment::create(Budget::new().charge(1, 1).unwrap(), plan(HugePages::Require)) {
        Ok(segment) => {
            let info = segment.info();
            assert!(info.huge_pages && info.length == page && segment.header().huge_pages);
            segment.write(0, &[b"huge"], Wait::Spin).unwrap();
            let sealed = segment.seal(Wait::Patient).unwrap();
            assert_eq!((sealed.copied, sealed.zero_copy), (false, true));
            assert_eq!(segment.view(0, 4).unwrap().bytes(), b"huge");
        }
        Err(error) => assert!(
            matches!(error, Error::NoHugePages { asked, .. } if asked == page),
            "{error:?}"
        ),
    }
    assert!(Segment::create(Budget::new().charge(1, 1).unwrap(), plan(HugePages::Prefer)).is_ok());
}

#[test]
fn a_scheduler_waits_for_nobody() {
    let segment = shared(8 << 20);
    let data = vec![1; 8 << 20];
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = segment.write(0, &[&data], Wait::Patient);
            }
        });
        // One of many tries meets the writer, and is told at once.
        let mut target = [std::mem::MaybeUninit::new(0); 1];
        let busy = (0..10_000_000).find_map(|_| segment.read(0, &mut target, Wait::Spin).err());
        assert_eq!(busy, Some(Error::Busy { writer: 1 }));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn an_exported_descriptor_keeps_only_itself() {
    let segment = confined(2 << 20);
    let export: OwnedFd = segment.export(false).unwrap().as_fd().try_clone_to_owned().unwrap();
    segment.write(0, &[b"kept"], Wait::Spin).unwrap();
    segment.close(false);
    let mut bytes = [0; 4];
    std::os::unix::fs::FileExt::read_exact_at(&File::from(export), &mut bytes, DATA_OFFSET).unwrap();
    assert_eq!(&bytes, b"kept");
}
