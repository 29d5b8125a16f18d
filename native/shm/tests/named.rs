//! What only named objects promise: atomic creation, exclusive names, no trust in the file.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may: its line says why it failed"
)]

mod support;

use snakepit_shm_core::backend::{HugePages, is_served, read_header, unlink_if};
use snakepit_shm_core::budget::Budget;
use snakepit_shm_core::error::{Error, Result};
use snakepit_shm_core::header::{Header, State};
use snakepit_shm_core::segment::{PhaseName, Plan, Segment, Wait};
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use support::{Place, read};

fn draft(id: &str, size: u64) -> Header {
    Header::draft(&format!("shm_{id}"), "named", size)
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
    assert_eq!(read_header(&place.path()).unwrap().0.id, "shm_first");
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
        ("shm_kept", State::Sealed, 2, 8192)
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
        Error::corrupted("state", "freed", "allocated or sealed")
    );
}

/// Changes the live line as a writer that was killed leaves it.
fn leave(path: &Path, sequence: u64, writer: u64, state: u32) {
    let mut line = [sequence.to_le_bytes(), writer.to_le_bytes()].concat();
    line.extend(state.to_le_bytes());
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&line, 4032).unwrap();
}

#[test]
fn what_nobody_knows_the_contents_of_is_invalid() {
    let place = Place::new();
    for (left, reason) in [
        ((7, 1, 1), "a writer (1) ended in the middle of a write, sequence 7"),
        ((9, 12, 2), "a writer (12) ended in the middle of a write, sequence 9"),
        ((4, 0, 4), "marked invalid in its header"),
        ((5, 1, 4), "marked invalid in its header"),
    ] {
        drop(create(&place.path(), draft("left", 100)).unwrap());
        leave(&place.path(), left.0, left.1, left.2);
        let segment = open(&place.path()).unwrap();
        let refused = || Error::invalid(reason);
        assert_eq!(segment.info().phase, PhaseName::Invalid);
        assert_eq!(read(&segment, 0, 1), Err(refused()));
        assert_eq!(segment.write(0, &[b"x"], Wait::Patient), Err(refused()));
        assert_eq!(segment.fill(&place.path(), 0, 1), Err(refused()));
        assert_eq!(segment.view(0, 1).unwrap_err(), refused());
        assert_eq!(segment.seal(Wait::Patient), Err(refused()));
        assert_eq!(segment.generation(), Err(refused()));
        assert_eq!(segment.export(false).unwrap_err(), refused());
        assert_eq!(segment.export(true).unwrap_err(), refused());
        assert_eq!(segment.write_begin(5), Err(refused()));
        assert_eq!(segment.write_end(5), Err(Error::NotWriter { writer: 0 }));
        // Nothing is repaired, and it is served like any other until it is closed.
        assert_eq!(read_header(&place.path()).unwrap().1.sequence, left.0);
        assert!(is_served(&place.path()));
        segment.close(true);
        assert!(place.is_empty());
    }
}

#[test]
fn a_sequence_that_cannot_be_is_corrupted() {
    let place = Place::new();
    drop(create(&place.path(), draft("counted", 100)).unwrap());
    leave(&place.path(), u64::MAX - 1, 0, 1);
    assert_eq!(corrupted_field(open(&place.path()).unwrap_err()), "sequence");
}

#[test]
fn holes_are_filled_when_it_is_opened() {
    let place = Place::new();
    let blocks = || fs::metadata(place.path()).unwrap().blocks() * 512;
    let plan = Plan {
        reserve: false,
        ..Plan::named(draft("sparse", 1 << 20), &place.path())
    };
    drop(Segment::create(Budget::new().charge(1, 1).unwrap(), plan).unwrap());
    assert!(blocks() < 1 << 20);
    let segment = open(&place.path()).unwrap();
    assert!(blocks() >= 1 << 20);
    assert_eq!(read(&segment, 1000, 2).unwrap(), [0, 0]);
    segment.close(true);

    // More than there is.
    let free = nix::sys::statvfs::statvfs(&place.directory()).unwrap();
    let size = (free.blocks_available() as u64 + 1024) * free.fragment_size() as u64;
    let plan = Plan {
        reserve: false,
        ..Plan::named(draft("sparse", size), &place.path())
    };
    drop(Segment::create(Budget::new().charge(1, 1).unwrap(), plan).unwrap());
    let error = open(&place.path()).unwrap_err();
    assert!(
        matches!(error, Error::NoSpace { .. } | Error::NotEnoughMemory { .. }),
        "{error:?}"
    );
    // An invalid one takes nothing, and can be removed.
    leave(&place.path(), 1, 1, 1);
    let segment = open(&place.path()).unwrap();
    assert_eq!(segment.info().phase, PhaseName::Invalid);
    segment.close(true);
    assert!(place.is_empty());
}

#[test]
fn the_label_is_in_the_header() {
    let place = Place::new();
    let header = Header {
        label: Some("weights".to_owned()),
        access_read_only: true,
        ..draft("labelled", 100)
    };
    let segment = create(&place.path(), header).unwrap();
    let (found, ..) = read_header(&place.path()).unwrap();
    assert_eq!(&found, segment.header());
    assert_eq!(found.label.as_deref(), Some("weights"));
    assert!(found.access_read_only && !found.owner_read_only);
}

/// Whether somebody else could have it, by an opening of our own.
fn can_be_locked(path: &Path) -> bool {
    let file = fs::File::open(path).unwrap();
    // SAFETY: flock takes a descriptor, which lives through the call.
    unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) == 0 }
}

#[test]
fn it_is_locked_as_long_as_it_is_served() {
    let place = Place::new();
    let path = place.path();
    assert!(!is_served(&path));
    let first = create(&path, draft("served", 4 << 20)).unwrap();
    assert!(is_served(&path) && !can_be_locked(&path));
    // Asking leaves no lock behind.
    let second = open(&path).unwrap();
    assert!(is_served(&path));
    first.close(false);
    first.close(false);
    assert!(is_served(&path) && !can_be_locked(&path), "the second is still there");
    second.invalidate("still served");
    assert!(is_served(&path));
    drop(second);
    // Whatever the reaper still has to do.
    assert!(!is_served(&path) && can_be_locked(&path));
    let third = open(&path).unwrap();
    assert!(is_served(&path));
    third.close(true);
    assert!(!is_served(&path));
}

#[test]
fn a_peers_descriptor_does_not_keep_the_lock() {
    let place = Place::new();
    let segment = create(
        &place.path(),
        Header {
            peers_write: true,
            ..draft("exported", 100)
        },
    )
    .unwrap();
    let exports = [segment.export(true).unwrap(), segment.export(false).unwrap()];
    // Neither can a peer give it away.
    for export in &exports {
        // SAFETY: as above.
        assert_eq!(unsafe { libc::flock(export.number(), libc::LOCK_UN) }, 0);
    }
    assert!(is_served(&place.path()));
    segment.close(false);
    assert!(!is_served(&place.path()) && can_be_locked(&place.path()));
}

#[test]
fn what_another_process_serves_is_not_opened() {
    let place = Place::new();
    create(&place.path(), draft("theirs", 100)).unwrap().close(false);
    let file = fs::File::open(place.path()).unwrap();
    // An open file description of its own excludes like another process.
    // SAFETY: as above.
    assert_eq!(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) }, 0);
    assert!(is_served(&place.path()));
    let budget = Budget::new();
    assert_eq!(
        Segment::open(budget.charge(1, 1).unwrap(), &place.path(), 0).unwrap_err(),
        Error::Locked { path: place.path() }
    );
    assert_eq!(budget.usage(), (0, 0));
    drop(file);
    assert!(open(&place.path()).is_ok());
}

#[test]
fn probes_are_not_in_the_way() {
    let place = Place::new();
    create(&place.path(), draft("probed", 100)).unwrap().close(false);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    is_served(&place.path());
                    std::thread::sleep(std::time::Duration::from_micros(50));
                }
            });
        }
        let opened = (0..200).try_for_each(|_| open(&place.path()).map(drop));
        stop.store(true, Ordering::Relaxed);
        assert_eq!(opened, Ok(()));
    });
}

#[test]
fn one_vm_may_open_and_close_it_from_everywhere() {
    let place = Place::new();
    create(&place.path(), draft("contended", 100)).unwrap().close(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let segment = open(&place.path()).unwrap();
                    assert!(is_served(&place.path()));
                    drop(segment);
                }
            });
        }
    });
    assert!(!is_served(&place.path()));
}

#[test]
fn what_is_no_object_is_not_served() {
    let place = Place::new();
    let link = place.directory().join("link");
    let _segment = create(&place.path(), draft("target", 100)).unwrap();
    symlink(place.path(), &link).unwrap();
    for path in [
        &link,
        &place.directory(),
        &place.directory().join("none"),
        Path::new("/dev/null/x"),
    ] {
        assert!(!is_served(path), "{path:?}");
    }
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
    assert_eq!(read_header(&place.path()).unwrap().0.id, "shm_other");
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
    assert_eq!(unlink_if(&place.path(), "shm_wrong"), Err(Error::Replaced));
    assert_eq!(unlink_if(&place.path(), "shm_right"), Ok(()));
    assert_eq!(unlink_if(&place.path(), "shm_right"), Err(Error::NotFound));
    fs::write(place.path(), vec![0; 8192]).unwrap();
    assert_eq!(
        corrupted_field(unlink_if(&place.path(), "shm_right").unwrap_err()),
        "magic"
    );
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
            let name = path.file_name().and_then(|name| name.to_str());
            assert_eq!(header.id.strip_prefix("shm_"), name);
            assert_eq!(length, fs::metadata(&path).unwrap().size());
            assert!(matches!(live.state, State::Allocated | State::Freed));
            if live.state == State::Allocated {
                // The lock has died with it.
                assert!(!is_served(&path));
                let segment = open(&path).unwrap();
                if live.sequence % 2 == 1 {
                    assert!(matches!(segment.generation(), Err(Error::Invalid { .. })));
                } else {
                    assert_eq!(segment.write(0, &[b"next"], Wait::Spin), Ok(live.sequence / 2 + 1));
                    assert_eq!(read_header(&path).unwrap().1.sequence, live.sequence + 2);
                }
            }
        }
    }
}
