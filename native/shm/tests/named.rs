//! What only named objects promise: atomic creation, exclusive names, no trust in the file.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may: its line says why it failed"
)]

mod support;

use snakepit_shm_core::backend::{HugePages, read_header, unlink_if};
use snakepit_shm_core::budget::Budget;
use snakepit_shm_core::error::{Error, Result};
use snakepit_shm_core::header::{Header, State};
use snakepit_shm_core::segment::{PhaseName, Plan, Segment, Wait};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use support::{Place, read};

fn draft(id: &str, size: u64) -> Header {
    Header::draft(id, "named", size)
}

fn create(path: &Path, header: Header) -> Result<Segment> {
    let charge = Budget::new().charge(header.size, u64::MAX).unwrap();
    Segment::create(charge, Plan::named(header, path))
}

fn open(path: &Path) -> Result<Segment> {
    Segment::open(Budget::new().charge(1, 1).unwrap(), path, 0).map(|(segment, _)| segment)
}

fn corrupted_field(error: Error) -> &'static str {
    match error {
        Error::Corrupted(corruption) => corruption.field,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_name_is_taken_once() {
    let place = Place::new();
    let segment = create(&place.path(), draft("first", 100)).unwrap();
    assert_eq!(create(&place.path(), draft("second", 100)).unwrap_err(), Error::Exists);
    assert_eq!(read_header(&place.path()).unwrap().0.id, "first");
    segment.close(true);
    assert!(place.is_empty());
    assert!(create(&place.path(), draft("third", 100)).is_ok());
}

#[test]
fn the_mode_is_as_asked_whatever_the_umask() {
    let place = Place::new();
    let segment = create(
        &place.path(),
        Header {
            mode: 0o666,
            ..draft("mode", 100)
        },
    )
    .unwrap();
    assert_eq!(fs::metadata(place.path()).unwrap().permissions().mode() & 0o777, 0o666);
    assert_eq!(segment.header().mode, 0o666);
}

#[test]
fn another_opening_sees_the_same() {
    let place = Place::new();
    let header = Header {
        dtype: Some("float32".to_owned()),
        shape: Some(vec![5, 5]),
        metadata: r#"{"a":1}"#.to_owned(),
        timeout: Some(1000),
        ..draft("shared", 100)
    };
    let first = create(&place.path(), header).unwrap();
    first.write(3, &[b"abc"], Wait::Spin).unwrap();
    let second = open(&place.path()).unwrap();
    assert_eq!(second.header(), first.header());
    assert_eq!(second.generation(), Ok(1));
    assert_eq!(read(&second, 3, 3).unwrap(), b"abc");
    second.write(3, &[b"xyz"], Wait::Spin).unwrap();
    assert_eq!(read(&first, 3, 3).unwrap(), b"xyz");
}

#[test]
fn it_lives_on_after_close_and_is_sealed_for_who_opens_it_later() {
    let place = Place::new();
    let segment = create(&place.path(), draft("kept", 100)).unwrap();
    segment.write(0, &[b"kept"], Wait::Spin).unwrap();
    segment.seal(Wait::Patient).unwrap();
    drop(segment);
    let (header, live, length) = read_header(&place.path()).unwrap();
    assert_eq!(
        (header.id.as_str(), live.state, live.sequence, length),
        ("kept", State::Sealed, 2, 8192)
    );
    let segment = open(&place.path()).unwrap();
    assert_eq!(segment.info().phase, PhaseName::Sealed);
    assert_eq!(read(&segment, 0, 4).unwrap(), b"kept");
    assert_eq!(segment.write(0, &[b"no"], Wait::Spin), Err(Error::Sealed));
}

#[test]
fn a_freed_one_is_not_opened() {
    let place = Place::new();
    let first = create(&place.path(), draft("freed", 100)).unwrap();
    let link = place.directory().join("second name");
    fs::hard_link(place.path(), &link).unwrap();
    first.close(true);
    assert_eq!(read_header(&link).unwrap().1.state, State::Freed);
    assert_eq!(
        open(&link).unwrap_err(),
        Error::Invalid {
            reason: "freed".to_owned()
        }
    );
}

#[test]
fn a_truncated_file_is_an_error_not_a_signal() {
    let place = Place::new();
    for length in [0, 4096, 5000, 1 << 20] {
        let segment = create(&place.path(), draft("cut", 10_000)).unwrap();
        fs::OpenOptions::new()
            .write(true)
            .open(place.path())
            .unwrap()
            .set_len(length)
            .unwrap();
        assert_eq!(corrupted_field(read(&segment, 0, 10_000).unwrap_err()), "size");
        assert!(matches!(
            segment.write(0, &[b"x"], Wait::Spin),
            Err(Error::Invalid { .. })
        ));
        assert_eq!(
            fs::metadata(place.path()).unwrap().len(),
            length,
            "left as it was found"
        );
        let reopened = open(&place.path()).unwrap_err();
        assert!(["size", "data size"].contains(&corrupted_field(reopened)));
        segment.close(true);
    }
}

#[test]
fn an_unlinked_or_replaced_file_is_noticed() {
    let place = Place::new();
    let segment = create(&place.path(), draft("gone", 100)).unwrap();
    fs::remove_file(place.path()).unwrap();
    let other = create(&place.path(), draft("other", 100)).unwrap();
    assert_eq!(corrupted_field(read(&segment, 0, 1).unwrap_err()), "unlinked");
    // The other's name is not ours to take away.
    segment.close(true);
    assert_eq!(read_header(&place.path()).unwrap().0.id, "other");
    assert_eq!(other.write(0, &[b"x"], Wait::Spin), Ok(1));
}

#[test]
fn only_regular_files_of_ours_are_opened() {
    let place = Place::new();
    let link = place.directory().join("link");
    create(&place.path(), draft("target", 100)).unwrap();
    symlink(place.path(), &link).unwrap();
    assert_eq!(open(&link).unwrap_err(), Error::NotRegularFile);
    assert_eq!(read_header(&link).unwrap_err(), Error::NotRegularFile);
    assert_eq!(open(&place.directory()).unwrap_err(), Error::NotRegularFile);
    let fifo = place.directory().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(fs::metadata(&fifo).unwrap().file_type().is_fifo());
    assert_eq!(open(&fifo).unwrap_err(), Error::NotRegularFile);
    assert_eq!(open(&place.directory().join("none")).unwrap_err(), Error::NotFound);
}

#[test]
fn a_foreign_owner_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let place = Place::new();
    create(&place.path(), draft("foreign", 100)).unwrap();
    std::os::unix::fs::chown(place.path(), Some(12345), None).unwrap();
    assert_eq!(
        open(&place.path()).unwrap_err(),
        Error::WrongOwner {
            owner: 12345,
            expected: 0
        }
    );
    assert!(matches!(read_header(&place.path()), Err(Error::WrongOwner { .. })));
}

#[test]
fn unlink_needs_the_right_id() {
    let place = Place::new();
    create(&place.path(), draft("right", 100)).unwrap();
    assert_eq!(unlink_if(&place.path(), "wrong"), Err(Error::Replaced));
    assert_eq!(unlink_if(&place.path(), "right"), Ok(()));
    assert_eq!(unlink_if(&place.path(), "right"), Err(Error::NotFound));
    fs::write(place.path(), vec![0; 8192]).unwrap();
    assert_eq!(corrupted_field(unlink_if(&place.path(), "right").unwrap_err()), "magic");
    assert!(place.path().exists());
}

#[test]
fn a_directory_that_cannot_hold_it_is_an_error() {
    assert!(matches!(
        create(Path::new("/proc/snakepit-test"), draft("proc", 100)),
        Err(Error::UnsupportedFilesystem { .. } | Error::Os { .. } | Error::NotFound)
    ));
    let place = Place::new();
    let missing = place.directory().join("missing/object");
    assert_eq!(create(&missing, draft("missing", 100)).unwrap_err(), Error::NotFound);
}

#[test]
fn space_that_is_not_there_is_an_error_and_leaves_nothing() {
    let place = Place::new();
    let free = nix::sys::statvfs::statvfs(&place.directory()).unwrap();
    let size = (free.blocks_available() as u64 + 1024) * free.fragment_size() as u64;
    let budget = Budget::new();
    let plan = Plan::named(draft("large", size), &place.path());
    let error = Segment::create(budget.charge(size, u64::MAX).unwrap(), plan).unwrap_err();
    assert!(
        matches!(error, Error::NoSpace { .. } | Error::NotEnoughMemory { .. }),
        "{error:?}"
    );
    assert!(place.is_empty());
    assert_eq!(budget.usage(), (0, 0));
}

#[test]
fn huge_pages_are_for_anonymous_memory() {
    let place = Place::new();
    let plan = |huge_pages| Plan {
        huge_pages,
        ..Plan::named(draft("huge", 100), &place.path())
    };
    let charge = || Budget::new().charge(1, 1).unwrap();
    assert!(matches!(
        Segment::create(charge(), plan(HugePages::Require)),
        Err(Error::NoHugePages { .. })
    ));
    assert!(Segment::create(charge(), plan(HugePages::Prefer)).is_ok());
}

#[test]
fn a_reader_needs_no_write_permission_of_the_file() {
    let place = Place::new();
    create(
        &place.path(),
        Header {
            mode: 0o400,
            ..draft("read-only", 100)
        },
    )
    .unwrap();
    // Root may write anything; everybody else opens it for reading, and a write says so.
    let segment = open(&place.path()).unwrap();
    assert_eq!(read(&segment, 0, 3).unwrap(), [0; 3]);
    if !nix::unistd::geteuid().is_root() {
        assert_eq!(segment.write(0, &[b"x"], Wait::Spin), Err(Error::ReadOnly));
    }
}

const CHILD: &str = "SNAKEPIT_TEST_CREATE_IN";

/// Not a test: the process that the next one kills.
#[test]
fn child_creates_until_killed() {
    let Ok(directory) = std::env::var(CHILD) else { return };
    for number in 0..u64::MAX {
        let path = Path::new(&directory).join(number.to_string());
        let segment = create(&path, draft(&number.to_string(), 200_000)).unwrap();
        segment.write(0, &[&[1; 200_000]], Wait::Patient).unwrap();
        segment.close(number % 2 == 0);
        if number > 40 {
            let _ = fs::remove_file(Path::new(&directory).join((number - 40).to_string()));
        }
    }
}

#[test]
fn a_killed_creator_leaves_only_whole_objects() {
    for round in 0..12u64 {
        let place = Place::new();
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "child_creates_until_killed",
                "--exact",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(CHILD, place.directory())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while place.is_empty() {
            std::thread::yield_now();
        }
        std::thread::sleep(std::time::Duration::from_micros(700 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        for entry in fs::read_dir(place.directory()).unwrap() {
            let path = entry.unwrap().path();
            let (header, live, length) = read_header(&path).unwrap();
            assert_eq!(
                Some(header.id.as_str()),
                path.file_name().and_then(|name| name.to_str())
            );
            assert_eq!(length, fs::metadata(&path).unwrap().size());
            assert!(matches!(live.state, State::Allocated | State::Freed));
            if live.state == State::Allocated {
                // Whoever died while writing is not in the way of who comes next.
                let segment = open(&path).unwrap();
                let generation = segment.generation().unwrap();
                assert_eq!(segment.write(0, &[b"next"], Wait::Spin), Ok(generation + 1));
                assert_eq!(read_header(&path).unwrap().1.sequence, 2 * (generation + 1));
            }
        }
    }
}
