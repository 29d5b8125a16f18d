//! Limits of the whole process, which no other test shares: one test, one process.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may: its line says why it failed"
)]

mod support;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use snakepit_shm_core::budget::Budget;
use snakepit_shm_core::error::Error;
use snakepit_shm_core::header::Header;
use snakepit_shm_core::segment::{Plan, Segment, Wait};
use snakepit_shm_core::{descriptor, mapping, reaper};
use std::fs::File;
use std::time::Duration;
use support::{Place, add_seals};

fn create(budget: &Budget, size: u64, place: Option<&Place>) -> Result<Segment, Error> {
    let header = Header::draft("shm_limits", "tests", size);
    let plan = match place {
        Some(place) => Plan::named(header, &place.path()),
        None => Plan::anonymous(header),
    };
    Segment::create(budget.charge(size, u64::MAX).unwrap(), plan)
}

fn nothing_is_left(budget: &Budget, place: &Place) {
    assert!(reaper::flush(Duration::from_secs(10)));
    assert_eq!((descriptor::live(), mapping::live(), budget.usage()), (0, 0, (0, 0)));
    assert!(place.is_empty());
}

#[test]
fn failures_leave_nothing_and_the_process_alive() {
    let (budget, place) = (Budget::new(), Place::new());

    // Over the file-size limit: EFBIG, and SIGXFSZ does not end the process.
    let (soft, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, 1 << 20, hard).unwrap();
    for place in [None, Some(&place)] {
        assert_eq!(create(&budget, 2 << 20, place).unwrap_err(), Error::FileTooBig);
    }
    setrlimit(Resource::RLIMIT_FSIZE, soft, hard).unwrap();
    nothing_is_left(&budget, &place);

    // A peer forbids seals and the copy cannot be made: as before the attempt.
    let segment = create(&budget, 2 << 20, None).unwrap();
    let peer = segment.export(false).unwrap();
    let path = format!("/proc/self/fd/{}", peer.number());
    let writable = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    add_seals(&writable, libc::F_SEAL_SEAL).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, 1 << 20, hard).unwrap();
    assert!(matches!(segment.seal(Wait::Patient), Err(Error::SealedByPeer { .. })));
    setrlimit(Resource::RLIMIT_FSIZE, soft, hard).unwrap();
    assert_eq!(segment.write(0, &[b"as before"], Wait::Spin), Ok(1));
    assert!(segment.seal(Wait::Patient).unwrap().copied);
    drop((segment, peer, writable));
    nothing_is_left(&budget, &place);

    // Out of descriptors.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 64, hard).unwrap();
    let held: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).take(100).collect();
    for place in [None, Some(&place)] {
        let error = create(&budget, 100, place).unwrap_err();
        assert!(matches!(error, Error::DescriptorLimit { limit: 64, .. }), "{error:?}");
    }
    drop(held);
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    nothing_is_left(&budget, &place);

    // More than there is.
    for place in [None, Some(&place)] {
        let error = create(&budget, 1 << 44, place).unwrap_err();
        assert!(
            matches!(error, Error::NotEnoughMemory { .. } | Error::NoSpace { .. }),
            "{error:?}"
        );
    }
    nothing_is_left(&budget, &place);

    // What goes well leaves nothing either, large or small, viewed or not.
    for size in [100, 3 << 20] {
        let segment = create(&budget, size, None).unwrap();
        segment.seal(Wait::Patient).unwrap();
        let view = segment.view(0, 10).unwrap();
        assert_eq!((descriptor::live(), mapping::live()), (1, 1));
        drop(segment);
        assert!(reaper::flush(Duration::from_secs(10)));
        assert_eq!((descriptor::live(), mapping::live(), budget.usage()), (0, 1, (size, 1)));
        drop(view);
        nothing_is_left(&budget, &place);
        let segment = create(&budget, size, Some(&place)).unwrap();
        // The second is the lock's.
        assert_eq!((descriptor::live(), mapping::live()), (2, 0));
        segment.close(true);
        nothing_is_left(&budget, &place);
    }
}
